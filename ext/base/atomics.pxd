# Values that one thread writes and others read, without a lock. Each word is read and written whole, in no order with
# other memory: a reader may see it late, and must not conclude from it that anything else has happened. What must be
# seen in order goes in a message to the owner's reactor (base/reactor.pyx).
#
# The only thread that writes a value reads it plainly.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    r"""
    #ifndef IOMESH_ATOMICS
    #define IOMESH_ATOMICS
    #define shared_load(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)
    #define shared_store(place, value) __atomic_store_n(&(place), value, __ATOMIC_RELAXED)
    #endif
    """
    uint8_t load_uint8 "shared_load" (uint8_t) noexcept nogil
    bint load_flag "shared_load" (bint) noexcept nogil
    int load_int "shared_load" (int) noexcept nogil
    uint32_t load_uint32 "shared_load" (uint32_t) noexcept nogil
    uint64_t load_uint64 "shared_load" (uint64_t) noexcept nogil
    int64_t load_int64 "shared_load" (int64_t) noexcept nogil
    void store_uint8 "shared_store" (uint8_t, uint8_t) noexcept nogil
    void store_flag "shared_store" (bint, bint) noexcept nogil
    void store_int "shared_store" (int, int) noexcept nogil
    void store_uint32 "shared_store" (uint32_t, uint32_t) noexcept nogil
    void store_uint64 "shared_store" (uint64_t, uint64_t) noexcept nogil
    void store_int64 "shared_store" (int64_t, int64_t) noexcept nogil
