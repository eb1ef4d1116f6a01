# Memory that a device reads into or writes from: it begins at a multiple of a block, as O_DIRECT wants it.

cdef extern from *:
    r"""
    #include <stdlib.h>
    static inline void* iomesh_allocate_aligned(size_t bytes) {
        void* memory;
        return posix_memalign(&memory, 4096, bytes) == 0 ? memory : NULL;
    }
    """
    void* allocate_aligned "iomesh_allocate_aligned" (size_t bytes) noexcept nogil     # not zeroed; NULL: no memory. free() releases it
