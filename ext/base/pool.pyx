# The payload buffers: parts of one arena that is allocated when the reactor is created; nothing is allocated later.
#
# Always true: a buffer is either in the free list of its kind or has exactly one holder. A free buffer has the list's
# next pointer in its first bytes; the holder of a buffer may use all of it.
#
# The kernel allocates the arena's pages on first use, unless the ring registers (and so pins) them. So the lists are
# LIFO: the buffer that was used last is warm and resident.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.task cimport wake_one

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE


cdef uint32_t buffer_bytes(int kind) noexcept nogil:
    return SMALL_BUFFER_BYTES if kind == SMALL else LARGE_BUFFER_BYTES if kind == LARGE else RECORD_BUFFER_BYTES


cdef class Pool:
    """small, large, record: number of buffers of each kind. Raises MemoryError."""

    def __cinit__(self, uint32_t small, uint32_t large, uint32_t record):
        cdef int kind
        cdef void* memory
        self.counts[0], self.counts[1], self.counts[2] = small, large, record
        self.arena_bytes = (
            <uint64_t>small * SMALL_BUFFER_BYTES
            + <uint64_t>large * LARGE_BUFFER_BYTES
            + <uint64_t>record * RECORD_BUFFER_BYTES
        )
        memory = mmap(
            NULL, self.arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if memory == MAP_FAILED:
            raise MemoryError(f"no memory for {self.arena_bytes} bytes of buffers")
        self.arena = <char*>memory
        self.starts[0] = self.arena
        for kind in range(3):
            self.starts[kind + 1] = self.starts[kind] + <uint64_t>self.counts[kind] * buffer_bytes(kind)
        self.renew()

    def __dealloc__(self):
        if self.arena is not NULL:
            munmap(self.arena, self.arena_bytes)

    cdef void renew(self) noexcept nogil:
        cdef uint32_t i
        cdef int kind
        memset(self.waiters, 0, sizeof(self.waiters))
        for kind in range(3):
            self.free[kind] = 0
            self.free_lists[kind] = NULL
            for i in range(self.counts[kind], 0, -1):
                self.push(kind, self.starts[kind] + <uint64_t>(i - 1) * buffer_bytes(kind))

    cdef char* take(self, int kind) noexcept nogil:
        cdef char* buffer = self.free_lists[kind]
        if buffer is not NULL:
            self.free_lists[kind] = (<char**>buffer)[0]
            self.free[kind] -= 1
        return buffer

    cdef void give_back(self, char* buffer) noexcept nogil:
        cdef int kind
        invariant(self.starts[0] <= buffer < self.starts[3], b"a buffer goes back to the pool that it is from")
        kind = 0 if buffer < self.starts[1] else 1 if buffer < self.starts[2] else 2
        self.push(kind, buffer)
        wake_one(&self.waiters[kind], 0)

    cdef void push(self, int kind, char* buffer) noexcept nogil:
        (<char**>buffer)[0] = self.free_lists[kind]
        self.free_lists[kind] = buffer
        self.free[kind] += 1
