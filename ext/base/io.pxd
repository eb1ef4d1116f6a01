# The engine's only interface to the outside world: rule 7 of the architecture. `uring` is one implementation.
#
# An Operation is one request to an Io. It is embedded in the requester's object and must not move until it is done. The
# Io completes it by calling `done` on the reactor's thread, from poll() and never from inside the requesting call. Its
# `result` is a byte count or a negative errno. Reads and writes of devices complete in full or fail: the implementation
# continues a short transfer itself.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen

cdef struct Operation:
    void (*done)(Operation* operation) noexcept nogil
    void* owner                  # of the requester; the Io does not use it
    int64_t result
    Operation* next              # in the Io while it is in flight, otherwise in a queue of the owner
    # the request, for the Io:
    int kind
    int target                   # device or connection
    char* buffer
    uint64_t offset
    uint32_t bytes
    uint32_t moved               # bytes transferred so far
    int64_t due_ns
    msghdr message

cdef class Io:
    cdef uint64_t boot                                           # of the node: a different number after each boot
    # devices: numbers from add_device; all offsets, lengths and addresses are multiples of 4096
    cdef void read(self, Operation* operation, int device, void* into, uint32_t bytes, uint64_t offset) noexcept nogil
    cdef void write(
        self, Operation* operation, int device, const void* data, uint32_t bytes, uint64_t offset
    ) noexcept nogil
    cdef void flush(self, Operation* operation, int device) noexcept nogil
    cdef void discard(self, Operation* operation, int device, uint64_t bytes, uint64_t offset) noexcept nogil
    # connections: numbers from add_connection
    # result 0: closed by the peer
    cdef void receive(self, Operation* operation, int connection, void* into, uint32_t bytes) noexcept nogil
    # all of it, or an error; `parts` must not move
    cdef void send(self, Operation* operation, int connection, iovec* parts, int count) noexcept nogil
    cdef void close(self, int connection) noexcept nogil         # operations fail first; then the number is free
    # time
    cdef void after(self, Operation* operation, int64_t delay_ns) noexcept nogil
    cdef bint cancel(self, Operation* operation) noexcept nogil   # a timer; True: `done` will not be called
    cdef int64_t now_ns(self) noexcept nogil                     # monotonic, as of the last poll
    cdef int64_t waited_ns(self) noexcept nogil                  # total time spent waiting in poll
    cdef int64_t monotonic_ns(self) noexcept nogil               # now
    cdef int64_t unix_ns(self) noexcept nogil                    # now, by the wall clock, which may be stepped
    cdef uint64_t random(self) noexcept nogil
    # the event loop
    #
    # poll: submit requests, wait up to wait_ns for a completion (0: do not wait), call `done` of completed operations;
    # returns how many
    cdef int poll(self, int64_t wait_ns) noexcept nogil
    cdef bint awaits_device(self) noexcept nogil                 # a device read is in flight: poll rather than sleep
    cdef bint core_wanted(self) noexcept nogil                   # a kernel thread may need this core: wait, do not poll
    cdef int wake_fd(self) noexcept nogil    # an eventfd: a write from any thread ends a waiting poll
    cdef int begin(self) noexcept nogil    # once, on the thread that will poll; 0 or a negative errno
    # the number, or a negative errno; the descriptor stays the caller's
    cdef int add_device(self, int fd) noexcept nogil
    cdef void remove_device(self, int device) noexcept nogil     # no operation is in flight; the number may be reused
    # the number, or a negative errno; the descriptor becomes the Io's
    cdef int add_connection(self, int fd) noexcept nogil
