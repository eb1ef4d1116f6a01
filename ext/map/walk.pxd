# Comparing the trees of a volume's maps: finds the blocks that only one of them has. See map/walk.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.map.map cimport Map, MapCache, Node
from iomesh.engine.map.segment_table cimport SegmentTable

cdef enum:
    WALK_FRAMES = 512                # of a walk's own cache, at most 2 MiB: it evicts no nodes of users

cdef class Walk:                     # one per volume; one walk at a time
    cdef Io io
    cdef SegmentTable segments
    cdef const bint* no_space        # writes wait for space: then unreadable nodes are retried briefly; NULL: never
    cdef int64_t retry_until_ns    # deadline for retrying unreadable nodes; 0: there was none
    cdef MapCache cache
    cdef Map own
    cdef Map parent
    cdef Map child
    cdef bint running
    cdef bint stopping
    cdef uint64_t nodes              # nodes visited
    cdef uint64_t doomed_data        # data blocks that the newest walk has found
    cdef uint64_t disagreements      # blocks found that are already dead by the counts
    cdef uint64_t unreadable         # subtrees skipped because a node of one of the trees stayed unreadable

    # In a task: counts as `doomed`, in their segments, the blocks and nodes that `own` reaches and neither `parent` nor
    # `child` does. 0; or -ESHUTDOWN if it was stopped: then nothing is doomed.
    cdef int doom(self, Pointer own, Pointer parent, Pointer child) noexcept nogil
    # Makes doomed blocks dead. Returns their number; adds those that exceed a segment's count to `disagreements`.
    cdef uint64_t carry_out(self, uint64_t* disagreements) noexcept nogil
    cdef void spare(self) noexcept nogil
    cdef Node* fetch(self, Map map, int level, uint64_t index) noexcept nogil
    cdef bint may_retry(self) noexcept nogil
    cdef int below(self, int level, uint64_t index, bint in_parent, bint in_child) noexcept nogil
