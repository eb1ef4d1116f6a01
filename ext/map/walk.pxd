# Comparing the trees of a volume's maps: what is only in one of them. See map/walk.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.map.map cimport Map, MapCache, Node
from iomesh.engine.map.segment_table cimport SegmentTable

cdef enum:
    WALK_FRAMES = 512                # of a walk's own cache, 2 MiB of it at most: users' nodes stay where they are

cdef class Walk:                     # of one volume; one walk at a time
    cdef Io io
    cdef SegmentTable segments
    cdef const bint* no_space        # whether writes wait for space: then it does not wait for nodes; NULL: they never do
    cdef int64_t patient_until_ns    # until when unreadable nodes are tried again; 0: there was none
    cdef MapCache cache
    cdef Map own
    cdef Map parent
    cdef Map child
    cdef bint running
    cdef bint stopping
    cdef uint64_t nodes              # of the tree that were looked at
    cdef uint64_t doomed_data        # blocks of data that the newest walk has found
    cdef uint64_t disagreements      # blocks found that by the counts were dead
    cdef uint64_t unreadable         # subtrees that were left out, because a node of one of the trees stayed unreadable

    # In a task: marks as doomed, in their segments, the blocks and nodes that `own` reaches and neither `parent` nor `child` does. 0; or
    # -ESHUTDOWN, when it was stopped: then nothing is doomed.
    cdef int doom(self, Pointer own, Pointer parent, Pointer child) noexcept nogil
    # What is doomed dies; how many blocks. In a segment that by its count has fewer: `disagreements`.
    cdef uint64_t carry_out(self, uint64_t* disagreements) noexcept nogil
    cdef void spare(self) noexcept nogil
    cdef Node* fetch(self, Map map, int level, uint64_t index) noexcept nogil
    cdef bint is_patient(self) noexcept nogil
    cdef int below(self, int level, uint64_t index, bint in_parent, bint in_child) noexcept nogil
