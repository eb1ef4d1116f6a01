from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport DEVICES_MAX, Io, Operation

cdef extern from "<liburing.h>" nogil:
    struct io_uring:
        int ring_fd

cdef enum:
    CONNECTIONS_MAX = 1024

cdef struct Connection:
    int fd                           # -1: the number is free
    uint32_t under_way
    bint closing

cdef class Uring(Io):
    cdef io_uring ring
    cdef io_uring polled_ring        # IOPOLL: reads and writes of devices that support it
    cdef bint made
    cdef bint polled                 # polled_ring is in use
    cdef readonly bint files_registered
    cdef readonly bint buffers_registered
    cdef char* arena
    cdef uint64_t arena_bytes
    cdef uint32_t under_way          # operations in the kernel
    cdef uint32_t polled_under_way
    cdef uint32_t reads              # of devices in the kernel
    cdef uint32_t workers            # operations in the kernel that end on a kernel worker thread
    cdef bint files[DEVICES_MAX]     # the device is a file
    cdef bint blocking[DEVICES_MAX]  # it is on FUSE: a submission waits for the write before, also if that hangs
    cdef int bell
    cdef uint64_t bell_count
    cdef Operation bell_operation
    cdef int devices[DEVICES_MAX]    # descriptors, -1: free
    cdef Connection connections[CONNECTIONS_MAX]
    cdef Operation* timers           # soonest first
    cdef int64_t now
    cdef int64_t waited              # ns
    cdef uint64_t random_state
    cdef readonly uint64_t enters    # system calls made
    cdef readonly list warnings      # what is unavailable, each with its remedy

    cdef void submit(self, Operation* operation) noexcept nogil
    cdef void ended(self, Operation* operation, int result) noexcept nogil
    cdef int reap(self, io_uring* ring) noexcept nogil
    cdef int expire(self) noexcept nogil
    cdef void wait(self, int64_t wait_ns) noexcept nogil
    cdef void close_now(self, int connection) noexcept nogil
    cdef bint ends_on_worker(self, const Operation* operation) noexcept nogil
    cdef void listen_bell(self) noexcept nogil
