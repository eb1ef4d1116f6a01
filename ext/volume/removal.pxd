# Deletes segments that are not needed any more. See volume/removal.pyx.

from libc.stdint cimport uint64_t
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.segment_table cimport Segment, SegmentTable

# In a task, once the pointer of the checkpoint at `sequence` has moved. Returns the number of segments removed; one
# that cannot be removed is left to the next checkpoint. dying: a snapshot starts to die with this checkpoint.
cdef uint64_t remove_dead(Log log, SegmentTable segments, uint64_t sequence, bint dying) noexcept nogil

# The segment is not needed by replay after the checkpoint at this sequence, nor for its tables; its map may still point
# into it.
cdef bint is_settled(const Segment* segment, uint64_t checkpoint) noexcept nogil
