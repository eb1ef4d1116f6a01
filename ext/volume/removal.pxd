# Deleting segments that nothing needs any more. See volume/removal.pyx.

from libc.stdint cimport uint64_t
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.segment_table cimport Segment, SegmentTable

# In a task, once the checkpoint at `sequence` counts. A segment that cannot be removed is left to the next checkpoint; returns how many were. dying:
# a snapshot begins to die with this checkpoint.
cdef uint64_t remove_dead(Log log, SegmentTable segments, uint64_t sequence, bint dying) noexcept nogil

# No block of it is needed by the checkpoint at this sequence but for what its map holds, or by replay behind it.
cdef bint is_settled(const Segment* segment, uint64_t checkpoint) noexcept nogil
