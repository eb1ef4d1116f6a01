# The payload buffers: one arena per reactor, divided once, registered with the ring where permitted. See base/pool.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.base.task cimport Waiters

cdef enum BufferKind:
    SMALL                            # 16 KiB, of reads
    LARGE                            # 1 MiB, of reads
    RECORD                           # 249 blocks: a record as it is written
    BUFFER_KINDS

cdef enum:
    SMALL_BUFFER_BYTES = 16 * 1024
    LARGE_BUFFER_BYTES = 1024 * 1024
    RECORD_BUFFER_BYTES = 249 * 4096

cdef class Pool:
    cdef char* arena
    cdef readonly uint64_t arena_bytes
    cdef char* free_lists[3]         # the first bytes of a free buffer point to the next
    cdef uint32_t counts[3]
    cdef char* starts[4]             # start of each kind in the arena; the last: the arena's end
    cdef readonly uint32_t free[3]
    cdef Waiters waiters[3]          # for a buffer; each returned buffer wakes one
    cdef Io io                       # whose abandoned requests may use returned buffers; None: nobody's
    cdef char* spare_arena           # buffers that replace parked ones, not registered
    cdef uint64_t spare_bytes
    cdef char* spare_starts[4]
    cdef char* spares[3]             # free ones, as in free_lists
    cdef uint32_t spares_touched[3]  # from this index on they were never used
    cdef uint32_t short_of[3]        # parked buffers without a replacement
    cdef char** parked               # returned buffers that an abandoned request still uses
    cdef uint32_t parked_count
    cdef bint lost                   # lose() was called: the memory is never unmapped
    cdef char* take(self, int kind) noexcept nogil          # 4096-aligned; NULL: none is free (join waiters[kind])
    cdef void give_back(self, char* buffer) noexcept nogil         # the address determines the kind
    # Of a request of another Io, whose device has not answered: the buffer is not used again.
    cdef void lose(self, char* buffer) noexcept nogil
    cdef char* take_spare(self, int kind) noexcept nogil
    cdef void put(self, int kind, char* buffer) noexcept nogil
    cdef void renew(self) noexcept nogil                     # all holders are gone: every buffer is free
    cdef object attach(self, Io io)                          # None: detach
    cdef void unpark(self) noexcept nogil                    # an abandoned request was answered
    cdef int kind_of(self, const char* buffer) noexcept nogil
    cdef void push(self, int kind, char* buffer) noexcept nogil
