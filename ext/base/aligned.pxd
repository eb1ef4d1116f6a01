# Block-aligned memory for device I/O, as O_DIRECT requires.

cdef extern from *:
    r"""
    #include <stdlib.h>
    static inline void* iomesh_allocate_aligned(size_t bytes) {
        void* memory;
        return posix_memalign(&memory, 4096, bytes) == 0 ? memory : NULL;
    }
    """
    void* allocate_aligned "iomesh_allocate_aligned" (size_t bytes) noexcept nogil     # not zeroed; NULL: no memory
