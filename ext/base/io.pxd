# The engine's only interface to the outside world: rule 7 of the architecture. `uring` is one implementation.
#
# An Operation is one request to an Io. It is embedded in the requester's object and must not move until it is done. The
# Io completes it by calling `done` on the reactor's thread, from poll() and never from inside the requesting call. Its
# `result` is a byte count or a negative errno. Reads and writes of devices complete in full or fail: the implementation
# continues a short transfer itself.
#
# A device request that is not answered within `request_timeout_ns` completes with -ETIMEDOUT, although the device may
# still read from, or write into, its memory: see io.pyx. Discards have no limit: on a large range they may take long.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen

cdef enum DeviceRequestKind:         # Operation.kind of a request to a device; implementations number theirs alike
    DEVICE_READ, DEVICE_WRITE, DEVICE_FLUSH, DEVICE_DISCARD

cdef enum:
    DEVICES_MAX = 256
    REQUESTS_MAX = 4096              # device requests in flight; more wait in a queue
    # unanswered overdue reads of a device (likewise writes and flushes) after which more fail at once
    OVERDUE_MAX = 8

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

cdef struct DeviceRequest:           # a request to a device until the device answers
    Operation operation              # what the implementation gets; its first member
    void* io
    Operation* caller                # NULL: it is abandoned, nobody waits for the answer
    int64_t asked_ns
    bint overdue                     # its time ran out before the answer
    DeviceRequest* older
    DeviceRequest* newer             # free: the next one in the free list

cdef struct DeviceWatch:
    uint32_t overdue_reads           # not answered yet
    uint32_t overdue_changes         # writes and flushes
    void* owner
    void (*on_stalled)(void* owner) noexcept nogil

cdef struct Kept:                    # memory to release once no abandoned request uses it
    Kept* next                       # its first field
    void* memory
    uint64_t bytes
    bint mapped                      # by mmap(), not malloc()

cdef class Io:
    cdef uint64_t boot                                           # of the node: a different number after each boot
    cdef int64_t request_timeout_ns                              # 0: device requests have no limit
    cdef readonly uint32_t abandoned                             # requests in flight whose answer nobody awaits
    cdef readonly uint64_t timeouts                              # requests whose time has run out
    cdef readonly uint64_t late                                  # abandoned requests that were answered
    cdef DeviceRequest* requests
    cdef uint32_t requests_touched                               # from this index on they were never used
    cdef DeviceRequest* free_requests
    cdef DeviceRequest* oldest                                   # of those in flight
    cdef DeviceRequest* newest
    cdef Operation* queue_first                                  # operations that wait for a free DeviceRequest
    cdef Operation* queue_last
    cdef Operation* refused                                      # operations that fail in the next poll
    cdef Operation refusal
    cdef Operation scan_timer
    cdef bint scanning
    cdef int64_t scan_due_ns
    cdef DeviceWatch watches[DEVICES_MAX]
    cdef Kept* kept
    cdef Kept* handed_in                                         # by any thread; the reactor takes the whole list
    cdef void* pool                                              # the reactor's: told of answers to abandoned requests
    cdef void (*on_answer)(void* pool) noexcept nogil
    # devices: numbers from add_device; all offsets, lengths and addresses are multiples of 4096
    cdef void read(self, Operation* operation, int device, void* into, uint32_t bytes, uint64_t offset) noexcept nogil
    cdef void write(
        self, Operation* operation, int device, const void* data, uint32_t bytes, uint64_t offset
    ) noexcept nogil
    cdef void flush(self, Operation* operation, int device) noexcept nogil
    cdef void discard(self, Operation* operation, int device, uint64_t bytes, uint64_t offset) noexcept nogil
    # An operation that will not be called back any more, whether the device answers or not. False: it is not in flight.
    # The memory of the operation is the caller's again. Its buffer is not, while holds() is true.
    cdef bint abandon(self, Operation* operation) noexcept nogil
    # an abandoned request may use this memory
    cdef bint holds(self, const void* memory, uint64_t bytes) noexcept nogil
    cdef bint writes_abandoned(self, int device) noexcept nogil  # an abandoned write to it is not answered yet
    cdef void release(self, void* memory) noexcept nogil         # free(), once no abandoned request uses it
    # on_stalled is called when the time of a request to this device runs out, before the request fails
    cdef void watch(self, int device, void* owner, void (*on_stalled)(void* owner) noexcept nogil) noexcept nogil
    cdef void unwatch(self, int device) noexcept nogil           # before remove_device
    cdef void start(self, Operation* operation) noexcept nogil   # the implementation's; it is part of a DeviceRequest
    cdef void ask_device(
        self, Operation* operation, int kind, int device, char* buffer, uint32_t bytes, uint64_t offset
    ) noexcept nogil
    cdef void dispatch(self, Operation* operation) noexcept nogil
    cdef void answered(self, DeviceRequest* request) noexcept nogil
    cdef void scan_later(self) noexcept nogil
    cdef void scan(self) noexcept nogil
    cdef void time_out(self, DeviceRequest* request) noexcept nogil
    cdef void refuse(self) noexcept nogil
    cdef void keep(self, Kept* kept) noexcept nogil
    cdef void release_kept(self) noexcept nogil
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

# At the end of an object, on any thread: memory that requests of `io` used, which may be gone already. Releases it once
# no abandoned request uses it.
cdef void release_buffer(Io io, void* memory) noexcept             # from malloc()
cdef void release_mapping(Io io, void* memory, uint64_t bytes) noexcept    # from mmap()
