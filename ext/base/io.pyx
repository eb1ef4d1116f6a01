# The abstract interface. Implementations override the methods; a call on a bare Io is a bug.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.uio cimport iovec

from iomesh.engine.base.invariant cimport invariant


cdef class Io:
    cdef void read(self, Operation* operation, int device, void* into, uint32_t bytes, uint64_t offset) noexcept nogil:
        invariant(False, b"an Io implements read")

    cdef void write(
        self, Operation* operation, int device, const void* data, uint32_t bytes, uint64_t offset
    ) noexcept nogil:
        invariant(False, b"an Io implements write")

    cdef void flush(self, Operation* operation, int device) noexcept nogil:
        invariant(False, b"an Io implements flush")

    cdef void discard(self, Operation* operation, int device, uint64_t bytes, uint64_t offset) noexcept nogil:
        invariant(False, b"an Io implements discard")

    cdef void receive(self, Operation* operation, int connection, void* into, uint32_t bytes) noexcept nogil:
        invariant(False, b"an Io implements receive")

    cdef void send(self, Operation* operation, int connection, iovec* parts, int count) noexcept nogil:
        invariant(False, b"an Io implements send")

    cdef void close(self, int connection) noexcept nogil:
        invariant(False, b"an Io implements close")

    cdef void after(self, Operation* operation, int64_t delay_ns) noexcept nogil:
        invariant(False, b"an Io implements after")

    cdef bint cancel(self, Operation* operation) noexcept nogil:
        invariant(False, b"an Io implements cancel")

    cdef int64_t now_ns(self) noexcept nogil:
        invariant(False, b"an Io implements now_ns")

    cdef int64_t waited_ns(self) noexcept nogil:
        return 0

    cdef int64_t monotonic_ns(self) noexcept nogil:
        invariant(False, b"an Io implements monotonic_ns")

    cdef int64_t unix_ns(self) noexcept nogil:
        invariant(False, b"an Io implements unix_ns")

    cdef uint64_t random(self) noexcept nogil:
        invariant(False, b"an Io implements random")

    cdef int poll(self, int64_t wait_ns) noexcept nogil:
        invariant(False, b"an Io implements poll")

    cdef bint awaits_device(self) noexcept nogil:
        return False

    cdef bint core_wanted(self) noexcept nogil:
        return False

    cdef int wake_fd(self) noexcept nogil:
        invariant(False, b"an Io implements wake_fd")

    cdef int begin(self) noexcept nogil:
        return 0

    cdef int add_device(self, int fd) noexcept nogil:
        invariant(False, b"an Io implements add_device")

    cdef void remove_device(self, int device) noexcept nogil:
        invariant(False, b"an Io implements remove_device")

    cdef int add_connection(self, int fd) noexcept nogil:
        invariant(False, b"an Io implements add_connection")
