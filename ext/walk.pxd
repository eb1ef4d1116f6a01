# Comparing the trees of a volume's maps: what is only in one of them. See walk.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.io cimport Io
from iomesh.engine.layout cimport Pointer
from iomesh.engine.map cimport Map, MapCache, Node
from iomesh.engine.segments cimport Segments

cdef enum:
    WALK_FRAMES = 512                # of a walk's own cache, 2 MiB of it at most: users' nodes stay where they are

cdef class Walk:                     # of one volume; one walk at a time
    cdef Segments segments
    cdef MapCache cache
    cdef Map own
    cdef Map parent
    cdef Map child
    cdef bint running
    cdef bint stopping
    cdef uint64_t nodes              # of the tree that were looked at
    cdef uint64_t doomed_data        # blocks of data that the newest walk has found
    cdef uint64_t disagreements      # blocks found that by the counts were dead
    cdef uint64_t unreadable         # subtrees that were left out, because a node of one of the trees could not be read

    # In a task: marks as doomed, in their segments, the blocks and nodes that `own` reaches and neither `parent` nor `child` does. 0; or
    # -ESHUTDOWN, when it was stopped: then nothing is doomed.
    cdef int doom(self, Pointer own, Pointer parent, Pointer child) noexcept nogil
    # What is doomed dies; how many blocks. In a segment that by its count has fewer: `disagreements`.
    cdef uint64_t carry_out(self, uint64_t* disagreements) noexcept nogil
    cdef void spare(self) noexcept nogil
    cdef int below(self, int level, uint64_t index, bint in_parent, bint in_child) noexcept nogil
