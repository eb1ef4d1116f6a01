# What the engine may ask of the world, and nothing else: rule 7 of the architecture. One implementation is `uring`.
#
# An Operation is one thing asked. It lies inside whoever asks, stays put until it is done, and is handed back by calling `done` on the
# reactor's thread, from poll() and never from inside the call that asked. Its `result` is a count of bytes or a negative errno.
# Reads and writes of devices are whole or failed: an implementation goes on after a short transfer by itself.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen

cdef struct Operation:
    void (*done)(Operation* operation) noexcept nogil
    void* owner                  # of whoever asked; Io does not look at it
    int64_t result
    Operation* next              # of whoever holds it: an Io while it is under way, else a queue of the owner's
    # what was asked, for an Io to go on with:
    int kind
    int target                   # device or connection
    char* buffer
    uint64_t offset
    uint32_t bytes
    uint32_t moved               # bytes so far
    int64_t due_ns
    msghdr message

cdef class Io:
    cdef uint64_t boot                                           # of the node: another number after each boot, so after each power cut
    # devices: numbers that add_device gave; all offsets, lengths and addresses are multiples of 4096
    cdef void read(self, Operation* operation, int device, void* into, uint32_t bytes, uint64_t offset) noexcept nogil
    cdef void write(self, Operation* operation, int device, const void* data, uint32_t bytes, uint64_t offset) noexcept nogil
    cdef void flush(self, Operation* operation, int device) noexcept nogil
    cdef void discard(self, Operation* operation, int device, uint64_t bytes, uint64_t offset) noexcept nogil
    # connections: numbers that add_connection gave
    cdef void receive(self, Operation* operation, int connection, void* into, uint32_t bytes) noexcept nogil   # result 0: closed by the peer
    cdef void send(self, Operation* operation, int connection, iovec* parts, int count) noexcept nogil         # all of it, or an error; `parts` stays put
    cdef void close(self, int connection) noexcept nogil         # what is under way on it ends with an error first; the number is free again then
    # time
    cdef void after(self, Operation* operation, int64_t delay_ns) noexcept nogil
    cdef bint cancel(self, Operation* operation) noexcept nogil   # a timer; True: it will not be called
    cdef int64_t now_ns(self) noexcept nogil                     # monotonic, as of the last poll
    cdef int64_t waited_ns(self) noexcept nogil                  # spent waiting in poll, ever
    cdef int64_t monotonic_ns(self) noexcept nogil               # now
    cdef int64_t unix_ns(self) noexcept nogil                    # now, by the wall clock, which may be stepped
    cdef uint64_t random(self) noexcept nogil
    # turning the world
    # submit what was asked, wait up to so long for something (0: not), call what is done; returns how many
    cdef int poll(self, int64_t wait_ns) noexcept nogil
    cdef bint awaits_device(self) noexcept nogil                 # a device is about to answer a read: polling for it is worth more than sleeping
    cdef bint core_wanted(self) noexcept nogil                   # what is under way ends on a kernel thread that may need this core: wait for it, do not poll
    cdef int wake_fd(self) noexcept nogil                        # an eventfd: a write from any thread ends a waiting poll
    cdef int begin(self) noexcept nogil                          # once, on the thread that will poll; 0 or a negative errno
    cdef int add_device(self, int fd) noexcept nogil             # the number, or a negative errno; the descriptor stays the caller's
    cdef void remove_device(self, int device) noexcept nogil     # nothing is under way on it; the number may be given again
    cdef int add_connection(self, int fd) noexcept nogil         # the number, or a negative errno; the descriptor becomes the Io's
