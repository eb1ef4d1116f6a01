# The payload buffers: parts of one arena that is allocated when the reactor is created; nothing is allocated later.
#
# Always true: a buffer is either in the free list of its kind or has exactly one holder. A free buffer has the list's
# next pointer in its first bytes; the holder of a buffer may use all of it.
#
# A buffer that comes back while an abandoned request still uses it (base/io.pyx) is parked until the device has
# answered, and a spare one takes its place. There are as many spares as buffers and requests that a device may leave
# unanswered, so a device that never answers takes no buffer away.
#
# The kernel allocates the arena's pages on first use, unless the ring registers (and so pins) them. So the lists are
# LIFO: the buffer that was used last is warm and resident.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memset

from iomesh.engine.base.io cimport OVERDUE_MAX
from iomesh.engine.base.planted cimport planted
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
        self.spare_bytes = self.arena_bytes
        for kind in range(3):
            self.spare_bytes += <uint64_t>OVERDUE_MAX * buffer_bytes(kind)
        memory = mmap(
            NULL, self.spare_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        self.spare_arena = NULL if memory == MAP_FAILED else <char*>memory
        self.parked = <char**>calloc(2 * (small + large + record) + 3 * OVERDUE_MAX, sizeof(char*))
        if self.spare_arena is NULL or self.parked is NULL:
            raise MemoryError(f"no memory for {self.arena_bytes} bytes of spare buffers")
        self.starts[0], self.spare_starts[0] = self.arena, self.spare_arena
        for kind in range(3):
            self.starts[kind + 1] = self.starts[kind] + <uint64_t>self.counts[kind] * buffer_bytes(kind)
            self.spare_starts[kind + 1] = self.spare_starts[kind] + \
                <uint64_t>(self.counts[kind] + OVERDUE_MAX) * buffer_bytes(kind)
        self.renew()

    def __dealloc__(self):
        if self.arena is not NULL and not self.lost:
            munmap(self.arena, self.arena_bytes)
        if self.spare_arena is not NULL and not self.lost:
            munmap(self.spare_arena, self.spare_bytes)
        release(self.parked)

    cdef void renew(self) noexcept nogil:
        cdef uint32_t i
        cdef int kind
        memset(self.waiters, 0, sizeof(self.waiters))
        self.parked_count = 0
        for kind in range(3):
            self.spares[kind] = NULL
            self.spares_touched[kind] = self.short_of[kind] = 0
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
        cdef int kind = self.kind_of(buffer)
        cdef bint used = self.io is not None and self.io.holds(buffer, buffer_bytes(kind))
        if used and not planted(b"buffer_reused_early"):
            self.parked[self.parked_count] = buffer
            self.parked_count += 1
            buffer = self.take_spare(kind)
        self.put(kind, buffer)

    cdef void lose(self, char* buffer) noexcept nogil:
        cdef int kind = self.kind_of(buffer)
        self.lost = True
        self.put(kind, self.take_spare(kind))

    cdef char* take_spare(self, int kind) noexcept nogil:
        """NULL: there is none any more."""
        cdef char* buffer = self.spares[kind]
        if buffer is not NULL:
            self.spares[kind] = (<char**>buffer)[0]
        elif self.spares_touched[kind] < self.counts[kind] + OVERDUE_MAX:
            buffer = self.spare_starts[kind] + <uint64_t>self.spares_touched[kind] * buffer_bytes(kind)
            self.spares_touched[kind] += 1
        else:
            self.short_of[kind] += 1
        return buffer

    cdef void put(self, int kind, char* buffer) noexcept nogil:
        if buffer is not NULL:
            self.push(kind, buffer)
            wake_one(&self.waiters[kind], 0)

    cdef int kind_of(self, const char* buffer) noexcept nogil:
        cdef bint spare = not (self.starts[0] <= buffer < self.starts[3])
        cdef char** starts = &self.spare_starts[0] if spare else &self.starts[0]
        invariant(starts[0] <= buffer < starts[3], b"a buffer goes back to the pool that it is from")
        return 0 if buffer < starts[1] else 1 if buffer < starts[2] else 2

    cdef object attach(self, Io io):
        self.io = io
        if io is not None:
            io.pool = <void*>self
            io.on_answer = request_answered

    cdef void unpark(self) noexcept nogil:
        cdef uint32_t i = 0
        cdef char* buffer
        cdef int kind
        while i < self.parked_count:
            buffer = self.parked[i]
            kind = self.kind_of(buffer)
            if self.io.holds(buffer, buffer_bytes(kind)):
                i += 1
                continue
            self.parked_count -= 1
            self.parked[i] = self.parked[self.parked_count]
            if self.short_of[kind]:
                self.short_of[kind] -= 1
                self.push(kind, buffer)
                wake_one(&self.waiters[kind], 0)
            else:
                (<char**>buffer)[0] = self.spares[kind]
                self.spares[kind] = buffer

    cdef void push(self, int kind, char* buffer) noexcept nogil:
        (<char**>buffer)[0] = self.free_lists[kind]
        self.free_lists[kind] = buffer
        self.free[kind] += 1


cdef void request_answered(void* pool) noexcept nogil:
    (<Pool>pool).unpark()
