# Implements Io with io_uring. No other file of the engine uses io_uring.
#
# Always true:
#   - only the thread that called begin() submits and polls (SINGLE_ISSUER, DEFER_TASKRUN: the kernel runs completions
#     when it polls, and never interrupts it);
#   - operations are submitted in one system call per poll, and only if there is something to submit or to collect;
#   - an operation is in exactly one place: in the kernel, among the timers, or with its owner;
#   - a connection's descriptor is closed only when none of its operations is in the kernel.
#
# Direct writes to a file complete on a kernel worker thread, because ext4 and XFS finish a write outside of interrupts.
# The worker runs on the core that took the device's interrupt, which is the core that submitted the write. A reactor
# that polls there delays the worker (measured: until it stopped polling 50 µs later, for a write that the device had
# finished in 25). So while such a write is in flight, core_wanted() requests a wait in the ring. Flushes and discards
# run on workers as well. Writes to a block device complete in the interrupt itself, so the reactor polls for them.
#
# If the kernel or a limit denies a feature (registered buffers: RLIMIT_MEMLOCK; IOPOLL: a device without poll queues),
# the ring works without it and adds a line to `warnings`.

import os
import resource
from pathlib import Path
from uuid import UUID

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, EMFILE, ENOMEM, EOPNOTSUPP, ENOSYS, EPERM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.uio cimport iovec

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport DeviceRequest, msghdr

cdef extern from *:
    r"""
    #include <liburing.h>
    #include <sys/eventfd.h>
    #include <sys/socket.h>
    #include <fcntl.h>
    #include <unistd.h>
    #include <linux/falloc.h>
    #include <sys/stat.h>
    #include <sys/vfs.h>
    #include <linux/magic.h>
    static int is_file(int fd) { struct stat status; return fstat(fd, &status) == 0 && S_ISREG(status.st_mode); }
    static int is_on_fuse(int fd) {
        struct statfs status;
        return is_file(fd) && fstatfs(fd, &status) == 0 && status.f_type == FUSE_SUPER_MAGIC;
    }
    #define ring_has_task_work(ring) \
        (IO_URING_READ_ONCE(*(ring)->sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
    #define ring_has_completions(ring) (io_uring_cq_ready(ring) != 0)
    /* io_uring_enable_rings() is declared by liburing 2.3, but its shared library does not export it */
    #include <errno.h>
    #include <sys/syscall.h>
    static int enable_rings(struct io_uring* ring) {
        return syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 ? -errno : 0;
    }
    """
    struct io_uring_sqe:
        pass
    struct io_uring_cqe:
        uint64_t user_data
        int res
    struct io_uring_params:
        unsigned flags
        unsigned cq_entries
    struct kernel_timespec "__kernel_timespec":
        int64_t tv_sec
        long long tv_nsec
    unsigned SETUP_SINGLE_ISSUER "IORING_SETUP_SINGLE_ISSUER"
    unsigned SETUP_DEFER_TASKRUN "IORING_SETUP_DEFER_TASKRUN"
    unsigned SETUP_TASKRUN_FLAG "IORING_SETUP_TASKRUN_FLAG"
    unsigned SETUP_R_DISABLED "IORING_SETUP_R_DISABLED"
    unsigned SETUP_CQSIZE "IORING_SETUP_CQSIZE"
    unsigned SETUP_IOPOLL "IORING_SETUP_IOPOLL"
    unsigned SQE_FIXED_FILE "IOSQE_FIXED_FILE"
    unsigned SQE_ASYNC "IOSQE_ASYNC"
    unsigned FSYNC_DATASYNC "IORING_FSYNC_DATASYNC"
    int MSG_WAITALL, MSG_NOSIGNAL, SHUT_RDWR
    int EFD_CLOEXEC
    int PUNCH_HOLE "FALLOC_FL_PUNCH_HOLE"
    int KEEP_SIZE "FALLOC_FL_KEEP_SIZE"
    int io_uring_queue_init_params(unsigned entries, io_uring* ring, io_uring_params* parameters) nogil
    void io_uring_queue_exit(io_uring* ring) nogil
    int enable_rings(io_uring* ring) nogil
    int io_uring_register_ring_fd(io_uring* ring) nogil
    int io_uring_register_files_sparse(io_uring* ring, unsigned count) nogil
    int io_uring_register_files_update(io_uring* ring, unsigned offset, const int* fds, unsigned count) nogil
    int io_uring_register_buffers(io_uring* ring, const iovec* vectors, unsigned count) nogil
    io_uring_sqe* io_uring_get_sqe(io_uring* ring) nogil
    int io_uring_submit(io_uring* ring) nogil
    int io_uring_submit_and_get_events(io_uring* ring) nogil
    int io_uring_submit_and_wait_timeout(
        io_uring* ring, io_uring_cqe** cqe, unsigned count, kernel_timespec* limit, void* mask
    ) nogil
    unsigned io_uring_sq_ready(io_uring* ring) nogil
    unsigned io_uring_peek_batch_cqe(io_uring* ring, io_uring_cqe** cqes, unsigned count) nogil
    void io_uring_cq_advance(io_uring* ring, unsigned count) nogil
    void io_uring_sqe_set_data(io_uring_sqe* sqe, void* data) nogil
    void io_uring_sqe_set_flags(io_uring_sqe* sqe, unsigned flags) nogil
    void prep_read "io_uring_prep_read" (io_uring_sqe* sqe, int fd, void* into, unsigned bytes, uint64_t offset) nogil
    void prep_write "io_uring_prep_write" (
        io_uring_sqe* sqe, int fd, const void* data, unsigned bytes, uint64_t offset
    ) nogil
    void prep_read_fixed "io_uring_prep_read_fixed" (
        io_uring_sqe* sqe, int fd, void* into, unsigned bytes, uint64_t offset, int index
    ) nogil
    void prep_write_fixed "io_uring_prep_write_fixed" (
        io_uring_sqe* sqe, int fd, const void* data, unsigned bytes, uint64_t offset, int index
    ) nogil
    void prep_fsync "io_uring_prep_fsync" (io_uring_sqe* sqe, int fd, unsigned flags) nogil
    void prep_fallocate "io_uring_prep_fallocate" (
        io_uring_sqe* sqe, int fd, int mode, uint64_t offset, uint64_t bytes
    ) nogil
    void prep_recv "io_uring_prep_recv" (io_uring_sqe* sqe, int fd, void* into, size_t bytes, int flags) nogil
    void prep_sendmsg "io_uring_prep_sendmsg" (io_uring_sqe* sqe, int fd, const msghdr* message, unsigned flags) nogil
    bint ring_has_task_work(io_uring* ring) nogil
    bint ring_has_completions(io_uring* ring) nogil
    int make_bell "eventfd" (unsigned count, int flags) nogil
    int close_fd "close" (int fd) nogil
    bint is_file(int fd) nogil
    bint is_on_fuse(int fd) nogil
    int shutdown(int fd, int how) nogil

cdef enum OperationKind:             # Operation.kind; the first ones as DeviceRequestKind has them
    READ, WRITE, FLUSH, DISCARD, RECEIVE, SEND, TIMER, BELL

cdef enum:
    SUBMISSIONS = 1024
    COMPLETIONS = 8192
    BATCH = 64                       # completions handled together
    POLLED = 0x100                   # Operation.kind: submitted to the polled ring


class RingError(Exception):
    """io_uring is unavailable; the message gives the cause and the remedy."""


def boot_of(str boot_id) -> int:
    """The first 8 bytes of Linux' boot id."""
    return int.from_bytes(UUID(boot_id.strip()).bytes[:8], "little")


cdef class Uring(Io):
    """arena, arena_bytes: the memory to register (0: none). iopoll: use IOPOLL if available. Raises RingError."""

    def __cinit__(self, uint64_t arena=0, uint64_t arena_bytes=0, bint iopoll=False):
        cdef io_uring_params parameters
        cdef iovec vector
        cdef int result, i
        self.warnings = []
        self.boot = boot_of(Path("/proc/sys/kernel/random/boot_id").read_text())
        self.bell = -1
        for i in range(DEVICES_MAX):
            self.devices[i] = -1
        for i in range(CONNECTIONS_MAX):
            self.connections[i].fd = -1
        memset(&parameters, 0, sizeof(parameters))
        parameters.flags = (
            SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG | SETUP_R_DISABLED | SETUP_CQSIZE
        )
        parameters.cq_entries = COMPLETIONS
        result = io_uring_queue_init_params(SUBMISSIONS, &self.ring, &parameters)
        if result < 0:
            raise RingError(why_no_ring(-result))
        self.made = True
        self.bell = make_bell(0, EFD_CLOEXEC)
        if self.bell < 0:
            raise RingError("no eventfd: too many open files; raise the limit (ulimit -n)")
        result = io_uring_register_files_sparse(&self.ring, DEVICES_MAX + CONNECTIONS_MAX)
        self.files_registered = result == 0
        if result < 0:
            self.warnings.append(f"files are not registered with the ring ({os.strerror(-result)}): "
                                 f"raise RLIMIT_NOFILE above {DEVICES_MAX + CONNECTIONS_MAX} (ulimit -n)")
        if arena_bytes:
            self.arena = <char*>arena
            self.arena_bytes = arena_bytes
            vector.iov_base = self.arena
            vector.iov_len = arena_bytes
            result = io_uring_register_buffers(&self.ring, &vector, 1)
            self.buffers_registered = result == 0
            if result < 0:
                self.warnings.append(
                    f"buffers are not registered with the ring ({os.strerror(-result)}): {arena_bytes >> 20} MiB of "
                    f"locked memory are needed and RLIMIT_MEMLOCK is "
                    f"{resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] >> 20} MiB; raise it (LimitMEMLOCK=, ulimit -l) "
                    f"or grant CAP_IPC_LOCK"
                )
        if iopoll:
            memset(&parameters, 0, sizeof(parameters))
            parameters.flags = SETUP_SINGLE_ISSUER | SETUP_R_DISABLED | SETUP_IOPOLL
            result = io_uring_queue_init_params(SUBMISSIONS, &self.polled_ring, &parameters)
            self.polled = result == 0
            if result < 0:
                self.warnings.append(f"devices are not polled ({os.strerror(-result)}): this kernel has no IOPOLL ring")
        self.random_state = int.from_bytes(os.urandom(8), "little") | 1
        self.now = monotonic_ns()

    def __dealloc__(self):
        cdef int i
        for i in range(CONNECTIONS_MAX):
            if self.connections[i].fd >= 0:
                close_fd(self.connections[i].fd)
        if self.made:
            io_uring_queue_exit(&self.ring)
        if self.polled:
            io_uring_queue_exit(&self.polled_ring)
        if self.bell >= 0:
            close_fd(self.bell)

    cdef int begin(self) noexcept nogil:
        cdef int result = enable_rings(&self.ring)
        if result == 0 and self.polled:
            result = enable_rings(&self.polled_ring)
        if result < 0:
            return result
        io_uring_register_ring_fd(&self.ring)            # saves a descriptor look-up per call; failure is harmless
        self.listen_bell()
        return 0

    # ------------------------------------------------------------------ the Io interface

    cdef void start(self, Operation* operation) noexcept nogil:
        self.submit(operation)

    cdef void receive(self, Operation* operation, int connection, void* into, uint32_t bytes) noexcept nogil:
        operation.kind = RECEIVE
        operation.target = connection
        operation.buffer = <char*>into
        operation.bytes = bytes
        operation.moved = 0
        self.connections[connection].under_way += 1
        self.submit(operation)

    cdef void send(self, Operation* operation, int connection, iovec* parts, int count) noexcept nogil:
        cdef int i
        operation.kind = SEND
        operation.target = connection
        memset(&operation.message, 0, sizeof(msghdr))
        operation.message.msg_iov = parts
        operation.message.msg_iovlen = count
        operation.bytes = operation.moved = 0
        for i in range(count):
            operation.bytes += parts[i].iov_len
        self.connections[connection].under_way += 1
        self.submit(operation)

    cdef void close(self, int connection) noexcept nogil:
        cdef Connection* it = &self.connections[connection]
        invariant(it.fd >= 0 and not it.closing, b"a connection is closed once")
        it.closing = True
        shutdown(it.fd, SHUT_RDWR)                       # ends the operations in flight
        if it.under_way == 0:
            self.close_now(connection)

    cdef void after(self, Operation* operation, int64_t delay_ns) noexcept nogil:
        cdef Operation** place = &self.timers
        operation.kind = TIMER
        operation.due_ns = self.now + delay_ns
        while place[0] is not NULL and place[0].due_ns <= operation.due_ns:
            place = &place[0].next
        operation.next = place[0]
        place[0] = operation

    cdef bint cancel(self, Operation* operation) noexcept nogil:
        cdef Operation** place = &self.timers
        while place[0] is not NULL:
            if place[0] is operation:
                place[0] = operation.next
                operation.next = NULL
                return True
            place = &place[0].next
        return False

    cdef int64_t now_ns(self) noexcept nogil:
        return self.now

    cdef int64_t waited_ns(self) noexcept nogil:
        return self.waited

    cdef int64_t monotonic_ns(self) noexcept nogil:
        return monotonic_ns()

    cdef int64_t unix_ns(self) noexcept nogil:
        cdef timespec time
        clock_gettime(CLOCK_REALTIME, &time)
        return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec

    cdef uint64_t random(self) noexcept nogil:
        self.random_state ^= self.random_state << 13     # xorshift64
        self.random_state ^= self.random_state >> 7
        self.random_state ^= self.random_state << 17
        return self.random_state

    cdef bint awaits_device(self) noexcept nogil:
        return self.reads != 0

    cdef bint core_wanted(self) noexcept nogil:
        return self.workers != 0

    cdef int wake_fd(self) noexcept nogil:
        return self.bell

    # ------------------------------------------------------------------ devices and connections

    cdef int add_device(self, int fd) noexcept nogil:
        cdef int device
        for device in range(DEVICES_MAX):
            if self.devices[device] < 0:
                self.devices[device] = fd
                self.files[device] = is_file(fd)
                self.blocking[device] = is_on_fuse(fd)
                if self.files_registered and io_uring_register_files_update(&self.ring, device, &fd, 1) < 0:
                    self.files_registered = False        # plain descriptors from now on; registered ones stay valid
                return device
        return -EMFILE

    cdef void remove_device(self, int device) noexcept nogil:
        cdef int none = -1
        self.devices[device] = -1
        if self.files_registered:
            io_uring_register_files_update(&self.ring, device, &none, 1)

    cdef int add_connection(self, int fd) noexcept nogil:
        cdef int number
        for number in range(CONNECTIONS_MAX):
            if self.connections[number].fd < 0:
                self.connections[number].fd = fd
                self.connections[number].under_way = 0
                self.connections[number].closing = False
                if (
                    self.files_registered
                    and io_uring_register_files_update(&self.ring, DEVICES_MAX + number, &fd, 1) < 0
                ):
                    self.files_registered = False
                return number
        return -EMFILE

    cdef void close_now(self, int connection) noexcept nogil:
        cdef int none = -1
        if self.files_registered:
            io_uring_register_files_update(&self.ring, DEVICES_MAX + connection, &none, 1)
        close_fd(self.connections[connection].fd)
        self.connections[connection].fd = -1

    # ------------------------------------------------------------------ submission

    cdef void submit(self, Operation* operation) noexcept nogil:
        """Prepare the rest of `operation`; the next poll submits it."""
        cdef bint on_device = operation.kind <= DISCARD
        cdef bint polled = self.polled and operation.kind <= WRITE
        cdef io_uring* ring = &self.polled_ring if polled else &self.ring
        cdef io_uring_sqe* sqe = io_uring_get_sqe(ring)
        cdef bint fixed_file = self.files_registered and not polled and operation.kind != BELL
        cdef char* data = operation.buffer + operation.moved
        cdef uint32_t bytes = operation.bytes - operation.moved
        cdef bint fixed = self.buffers_registered and not polled and on_device and \
            self.arena <= data and data + bytes <= self.arena + self.arena_bytes
        cdef unsigned flags = 0
        cdef int fd
        while sqe is NULL:                               # one turn submits more than the ring has room for
            io_uring_submit(ring)
            self.enters += 1
            sqe = io_uring_get_sqe(ring)
        if operation.kind == BELL:
            fd = self.bell
        elif on_device:
            fd = operation.target if fixed_file else self.devices[operation.target]
        else:
            fd = DEVICES_MAX + operation.target if fixed_file else self.connections[operation.target].fd
        if operation.kind == READ:
            if fixed:
                prep_read_fixed(sqe, fd, data, bytes, operation.offset + operation.moved, 0)
            else:
                prep_read(sqe, fd, data, bytes, operation.offset + operation.moved)
        elif operation.kind == WRITE:
            if fixed:
                prep_write_fixed(sqe, fd, data, bytes, operation.offset + operation.moved, 0)
            else:
                prep_write(sqe, fd, data, bytes, operation.offset + operation.moved)
        elif operation.kind == FLUSH:
            prep_fsync(sqe, fd, FSYNC_DATASYNC)
        elif operation.kind == DISCARD:
            prep_fallocate(sqe, fd, PUNCH_HOLE | KEEP_SIZE, operation.offset, <uint64_t>operation.buffer)
        elif operation.kind == RECEIVE:
            prep_recv(sqe, fd, data, bytes, 0)
        elif operation.kind == SEND:
            prep_sendmsg(sqe, fd, &operation.message, MSG_WAITALL | MSG_NOSIGNAL)
        else:
            prep_read(sqe, fd, &self.bell_count, sizeof(self.bell_count), 0)
        io_uring_sqe_set_data(sqe, operation)
        if fixed_file:
            flags |= SQE_FIXED_FILE
        if on_device and self.files[operation.target] and (
            self.blocking[operation.target]
            or self.watches[operation.target].overdue_reads
            or self.watches[operation.target].overdue_changes
        ):
            flags |= SQE_ASYNC                           # other file systems may block it as well
        io_uring_sqe_set_flags(sqe, flags)
        if polled:
            operation.kind |= POLLED
            self.polled_under_way += 1
        self.under_way += 1
        self.reads += (operation.kind & ~POLLED) == READ
        self.workers += self.ends_on_worker(operation)

    cdef bint ends_on_worker(self, const Operation* operation) noexcept nogil:
        if operation.kind == WRITE:
            return self.files[operation.target]
        return operation.kind == FLUSH or operation.kind == DISCARD

    cdef void listen_bell(self) noexcept nogil:
        self.bell_operation.kind = BELL
        self.bell_operation.bytes = sizeof(self.bell_count)
        self.bell_operation.moved = 0
        self.submit(&self.bell_operation)

    # ------------------------------------------------------------------ completion

    cdef int poll(self, int64_t wait_ns) noexcept nogil:
        cdef int found = 0
        if self.polled_under_way:
            wait_ns = 0
            io_uring_submit_and_get_events(&self.polled_ring)
            self.enters += 1
        if wait_ns > 0 and not ring_has_completions(&self.ring):
            self.wait(wait_ns)
        elif io_uring_sq_ready(&self.ring) or ring_has_task_work(&self.ring):
            io_uring_submit_and_get_events(&self.ring)
            self.enters += 1
        self.now = monotonic_ns()
        if self.polled_under_way:
            found += self.reap(&self.polled_ring)
        found += self.reap(&self.ring)
        if self.timers is not NULL:
            found += self.expire()
        return found

    cdef void wait(self, int64_t wait_ns) noexcept nogil:
        cdef io_uring_cqe* ignored
        cdef kernel_timespec limit
        cdef int64_t began = monotonic_ns()
        if self.timers is not NULL and self.timers.due_ns - self.now < wait_ns:
            wait_ns = self.timers.due_ns - self.now
        if wait_ns <= 0:
            io_uring_submit_and_get_events(&self.ring)
        else:
            limit.tv_sec = wait_ns // 1000000000
            limit.tv_nsec = wait_ns % 1000000000
            io_uring_submit_and_wait_timeout(&self.ring, &ignored, 1, &limit, NULL)
        self.waited += monotonic_ns() - began
        self.enters += 1

    cdef int reap(self, io_uring* ring) noexcept nogil:
        cdef io_uring_cqe* completions[BATCH]
        cdef Operation* operations[BATCH]
        cdef int results[BATCH]
        cdef unsigned count = io_uring_peek_batch_cqe(ring, completions, BATCH), i
        cdef int found = 0
        while count:
            for i in range(count):
                operations[i] = <Operation*>completions[i].user_data
                results[i] = completions[i].res
            io_uring_cq_advance(ring, count)             # first: the calls below may submit operations
            for i in range(count):
                self.ended(operations[i], results[i])
            found += count
            if count < BATCH or found >= 1024:
                break
            count = io_uring_peek_batch_cqe(ring, completions, BATCH)
        return found

    cdef void ended(self, Operation* operation, int result) noexcept nogil:
        """One completion: continue a short transfer, or complete the operation."""
        self.under_way -= 1
        self.reads -= (operation.kind & ~POLLED) == READ
        self.workers -= self.ends_on_worker(operation)
        if operation.kind & POLLED:
            operation.kind &= ~POLLED
            self.polled_under_way -= 1
            if result == -EOPNOTSUPP:                    # the device has no poll queues
                self.polled = False
                self.submit(operation)
                return
        if operation.kind == BELL:
            self.listen_bell()
            return
        if operation.kind <= DISCARD and (<DeviceRequest*>operation.owner).caller is NULL:
            operation.result = result                    # abandoned: the device's number may be another's now
            operation.done(operation)
            return
        if result == -EINTR or result == -EAGAIN:
            self.submit(operation)
            return
        if result > 0 and operation.kind != RECEIVE:
            operation.moved += result
            if operation.moved < operation.bytes:
                if operation.kind == SEND:
                    skip(&operation.message, result)
                self.submit(operation)
                return
            result = operation.moved
        elif result == 0 and operation.bytes and operation.kind <= WRITE:
            result = -EIO                                # beyond the end of the device
        operation.result = result
        if operation.kind == RECEIVE or operation.kind == SEND:
            self.connections[operation.target].under_way -= 1
            if self.connections[operation.target].closing and self.connections[operation.target].under_way == 0:
                self.close_now(operation.target)
        operation.done(operation)

    cdef int expire(self) noexcept nogil:
        cdef Operation* operation
        cdef int found = 0
        while self.timers is not NULL and self.timers.due_ns <= self.now:
            operation = self.timers
            self.timers = operation.next
            operation.next = NULL
            operation.result = 0
            operation.done(operation)
            found += 1
        return found


cdef void skip(msghdr* message, size_t bytes) noexcept nogil:
    """Skip the first `bytes` of a message, which were sent."""
    while bytes:
        if message.msg_iov.iov_len > bytes:
            message.msg_iov.iov_base = <char*>message.msg_iov.iov_base + bytes
            message.msg_iov.iov_len -= bytes
            return
        bytes -= message.msg_iov.iov_len
        message.msg_iov += 1
        message.msg_iovlen -= 1


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


def why_no_ring(int error) -> str:
    """The reason why io_uring does not work here, and the remedy."""
    if error == ENOSYS:
        return "this kernel has no io_uring: Linux 6.1 or newer is needed"
    if error == EPERM:
        return (
            "io_uring is disabled here: set the sysctl kernel.io_uring_disabled to 0 (or 1 with the group in "
            "kernel.io_uring_group), and allow io_uring_setup in the container's seccomp profile"
        )
    if error == EINVAL:
        return "this kernel's io_uring is too old: Linux 6.1 or newer is needed (SINGLE_ISSUER, DEFER_TASKRUN)"
    if error == ENOMEM:
        return (
            "no memory may be locked for the ring: raise RLIMIT_MEMLOCK (LimitMEMLOCK=, ulimit -l) "
            "or grant CAP_IPC_LOCK"
        )
    return f"io_uring cannot be set up: {os.strerror(error)}"
