from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.format.layout cimport Extent

cdef class Slabs:
    cdef readonly uint32_t total
    cdef readonly uint32_t free  # read by other threads, too (base/atomics.pxd)
    cdef uint64_t* taken         # a bit per slab; the bits past `total` are always 1
    cdef uint32_t words
    cdef uint32_t cursor         # the word where the next search begins

    cdef bint begin(self, uint32_t total) noexcept nogil
    cdef int take(self, uint32_t wanted, Extent* into, int room) noexcept nogil
    cdef void give_back(self, const Extent* extents, int count) noexcept nogil
    cdef bint is_taken(self, uint32_t slab) noexcept nogil
    # for opening: False if it exceeds the device or any of its slabs is taken
    cdef bint claim(self, Extent extent) noexcept nogil
    cdef Extent longest_run(self, uint32_t wanted) noexcept nogil
    cdef void mark(self, Extent extent, bint taken) noexcept nogil
