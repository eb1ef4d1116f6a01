# The abstract interface, and what all implementations share: the time limit of device requests. Implementations
# override start() and the methods that raise an invariant here.
#
# A device request lives in a DeviceRequest of the Io until the device answers. So the caller need not wait for ever:
#   - after `request_timeout_ns` its operation completes with -ETIMEDOUT; abandon() gives an operation up earlier;
#   - the device may still use the memory of such a request. It must not be released, changed or used for anything else
#     while holds() is true: Pool.give_back, release() and the owners of longer-lived buffers ask;
#   - the late answer frees the DeviceRequest and such memory. Nobody else learns of it.
#
# One timer scans the requests once a second, oldest first. A device with OVERDUE_MAX unanswered overdue reads (or
# writes and flushes) gets no more of them: they fail at once, so what a stalled device holds is bounded.

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.uio cimport iovec

from iomesh.engine.base.atomics cimport load_uint32, store_uint32
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.planted cimport planted

cdef extern from "<malloc.h>" nogil:
    size_t malloc_usable_size(void* memory)

cdef extern from "<sys/mman.h>" nogil:
    int munmap(void* memory, size_t bytes)

cdef extern from *:
    r"""
    typedef struct iomesh_link { struct iomesh_link* next; } iomesh_link;

    static inline void iomesh_push(void* list, void* link) {
        iomesh_link** head = list;
        iomesh_link* newest = __atomic_load_n(head, __ATOMIC_RELAXED);
        do
            ((iomesh_link*)link)->next = newest;
        while (!__atomic_compare_exchange_n(head, &newest, (iomesh_link*)link, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    }

    static inline void* iomesh_take_all(void* list) {
        return __atomic_exchange_n((iomesh_link**)list, NULL, __ATOMIC_ACQUIRE);
    }
    """
    void push "iomesh_push" (Kept** list, Kept* link) noexcept nogil
    Kept* take_all "iomesh_take_all" (Kept** list) noexcept nogil

cdef enum:
    SCAN_NS = 1000 * 1000 * 1000


cdef class Io:
    def __cinit__(self, *_, **__):
        self.requests = <DeviceRequest*>calloc(REQUESTS_MAX, sizeof(DeviceRequest))
        if self.requests is NULL:
            raise MemoryError("no memory for device requests")
        self.scan_timer.done = scan_due
        self.refusal.done = refusal_due
        self.scan_timer.owner = self.refusal.owner = <void*>self

    def __dealloc__(self):
        if self.abandoned == 0:                          # else a device may still use some of it: the process ends soon
            self.release_kept()
        free(self.requests)

    cdef void read(self, Operation* operation, int device, void* into, uint32_t bytes, uint64_t offset) noexcept nogil:
        self.ask_device(operation, DEVICE_READ, device, <char*>into, bytes, offset)

    cdef void write(
        self, Operation* operation, int device, const void* data, uint32_t bytes, uint64_t offset
    ) noexcept nogil:
        self.ask_device(operation, DEVICE_WRITE, device, <char*>data, bytes, offset)

    cdef void flush(self, Operation* operation, int device) noexcept nogil:
        self.ask_device(operation, DEVICE_FLUSH, device, NULL, 0, 0)

    cdef void discard(self, Operation* operation, int device, uint64_t bytes, uint64_t offset) noexcept nogil:
        self.ask_device(operation, DEVICE_DISCARD, device, <char*>bytes, 0, offset)      # the length may exceed 32 bits

    cdef void start(self, Operation* operation) noexcept nogil:
        invariant(False, b"an Io implements start")

    # ------------------------------------------------------------------ requests to devices

    cdef void ask_device(
        self, Operation* operation, int kind, int device, char* buffer, uint32_t bytes, uint64_t offset
    ) noexcept nogil:
        cdef DeviceWatch* watch = &self.watches[device]
        operation.kind = kind
        operation.target = device
        operation.buffer = buffer
        operation.bytes = bytes
        operation.offset = offset
        operation.moved = 0
        if (watch.overdue_reads if kind == DEVICE_READ else watch.overdue_changes) >= OVERDUE_MAX:
            if self.refused is NULL:
                self.after(&self.refusal, 0)
            operation.next = self.refused
            self.refused = operation
        elif self.free_requests is NULL and self.requests_touched == REQUESTS_MAX:
            operation.next = NULL
            if self.queue_first is NULL:
                self.queue_first = operation
            else:
                self.queue_last.next = operation
            self.queue_last = operation
        else:
            self.dispatch(operation)

    cdef void dispatch(self, Operation* operation) noexcept nogil:
        cdef DeviceRequest* request = self.free_requests
        if request is not NULL:
            self.free_requests = request.newer
        else:
            request = &self.requests[self.requests_touched]
            self.requests_touched += 1
        request.operation.done = device_answered
        request.operation.owner = request
        request.operation.kind = operation.kind
        request.operation.target = operation.target
        request.operation.buffer = operation.buffer
        request.operation.bytes = operation.bytes
        request.operation.offset = operation.offset
        request.operation.moved = 0
        request.io = <void*>self
        request.caller = operation
        request.asked_ns = self.now_ns()
        request.overdue = False
        request.newer = NULL
        request.older = self.newest
        if self.newest is NULL:
            self.oldest = request
        else:
            self.newest.newer = request
        self.newest = request
        if not self.scanning and self.request_timeout_ns:
            self.scan_later()
        self.start(&request.operation)

    cdef void answered(self, DeviceRequest* request) noexcept nogil:
        cdef Operation* caller = request.caller
        cdef Operation* waiting
        cdef DeviceWatch* watch = &self.watches[request.operation.target]
        if request.older is NULL:
            self.oldest = request.newer
        else:
            request.older.newer = request.newer
        if request.newer is NULL:
            self.newest = request.older
        else:
            request.newer.older = request.older
        request.newer = self.free_requests
        self.free_requests = request
        if request.overdue and request.operation.kind == DEVICE_READ:
            watch.overdue_reads -= 1
        elif request.overdue:
            watch.overdue_changes -= 1
        if self.queue_first is not NULL:
            waiting = self.queue_first
            self.queue_first = waiting.next
            waiting.next = NULL
            self.dispatch(waiting)
        if caller is not NULL:
            caller.result = request.operation.result
            caller.done(caller)
            return
        store_uint32(self.abandoned, self.abandoned - 1)
        self.late += 1
        self.release_kept()
        if self.pool is not NULL:
            self.on_answer(self.pool)

    cdef void scan_later(self) noexcept nogil:
        self.scanning = True
        self.scan_due_ns = self.now_ns() + SCAN_NS
        self.after(&self.scan_timer, SCAN_NS)

    cdef void scan(self) noexcept nogil:
        cdef int64_t limit_ns = self.now_ns() - self.request_timeout_ns
        cdef DeviceRequest* request = self.oldest
        cdef DeviceRequest* newer
        # Much too late: the process was stopped. What the devices have answered meanwhile is received first.
        cdef bint stopped = self.now_ns() - self.scan_due_ns > SCAN_NS and not planted(b"stop_taken_for_timeout")
        self.scanning = False
        while request is not NULL and request.asked_ns <= limit_ns and not stopped:
            newer = request.newer                        # requests leave the list only when the device answers
            if not request.overdue and request.operation.kind != DEVICE_DISCARD:
                self.time_out(request)
            request = newer
        if self.newest is not NULL and not self.newest.overdue and not self.scanning:
            self.scan_later()

    cdef void time_out(self, DeviceRequest* request) noexcept nogil:
        cdef DeviceWatch* watch = &self.watches[request.operation.target]
        cdef Operation* caller = request.caller
        request.overdue = True
        self.timeouts += 1
        if request.operation.kind == DEVICE_READ:
            watch.overdue_reads += 1
        else:
            watch.overdue_changes += 1
        if watch.on_stalled is not NULL:
            watch.on_stalled(watch.owner)
        if caller is not NULL:
            request.caller = NULL
            store_uint32(self.abandoned, self.abandoned + 1)
            caller.result = -ETIMEDOUT
            caller.done(caller)

    cdef void refuse(self) noexcept nogil:
        cdef Operation* operation = self.refused
        cdef Operation* following
        self.refused = NULL
        while operation is not NULL:
            following = operation.next
            operation.next = NULL
            operation.result = -ETIMEDOUT
            operation.done(operation)
            operation = following

    cdef bint abandon(self, Operation* operation) noexcept nogil:
        cdef DeviceRequest* request = self.newest
        cdef Operation** place = &self.refused
        cdef Operation* before = NULL
        while request is not NULL and request.caller is not operation:
            request = request.older
        if request is not NULL:
            request.caller = NULL
            store_uint32(self.abandoned, self.abandoned + 1)
            return True
        while place[0] is not NULL:                      # refused, and not called back yet
            if place[0] is operation:
                place[0] = operation.next
                if self.refused is NULL:
                    self.cancel(&self.refusal)
                return True
            place = &place[0].next
        place = &self.queue_first
        while place[0] is not NULL:
            if place[0] is operation:
                place[0] = operation.next
                if self.queue_last is operation:
                    self.queue_last = before
                return True
            before = place[0]
            place = &place[0].next
        return False

    cdef bint holds(self, const void* memory, uint64_t bytes) noexcept nogil:
        cdef DeviceRequest* request = self.oldest if self.abandoned else NULL
        cdef const Operation* operation
        cdef const char* start = <const char*>memory
        while request is not NULL:
            operation = &request.operation
            if request.caller is NULL and operation.kind <= DEVICE_WRITE:
                if operation.buffer < start + bytes and start < operation.buffer + operation.bytes:
                    return True
            request = request.newer
        return False

    cdef bint writes_abandoned(self, int device) noexcept nogil:
        cdef DeviceRequest* request = self.oldest if self.abandoned else NULL
        while request is not NULL:
            if request.caller is NULL and request.operation.kind == DEVICE_WRITE and request.operation.target == device:
                return True
            request = request.newer
        return False

    cdef void release(self, void* memory) noexcept nogil:
        if self.abandoned == 0 or memory is NULL or not self.holds(memory, malloc_usable_size(memory)):
            free(memory)
        else:
            self.keep(new_kept(memory, malloc_usable_size(memory), False))

    cdef void keep(self, Kept* kept) noexcept nogil:
        kept.next = self.kept
        self.kept = kept

    cdef void release_kept(self) noexcept nogil:
        """Releases what no abandoned request uses any more."""
        cdef Kept* left[2]
        cdef Kept* kept
        cdef int i
        left[0], left[1] = self.kept, take_all(&self.handed_in)
        self.kept = NULL
        for i in range(2):
            while left[i] is not NULL:
                kept = left[i]
                left[i] = kept.next
                if self.holds(kept.memory, kept.bytes):
                    self.keep(kept)
                else:
                    release_now(kept.memory, kept.bytes, kept.mapped)
                    free(kept)

    cdef void watch(self, int device, void* owner, void (*on_stalled)(void* owner) noexcept nogil) noexcept nogil:
        self.watches[device].owner = owner
        self.watches[device].on_stalled = on_stalled

    cdef void unwatch(self, int device) noexcept nogil:
        cdef DeviceRequest* request = self.oldest
        while request is not NULL:                       # the number may soon be another device's
            if request.operation.target == device:
                request.overdue = False
            request = request.newer
        self.watches[device].overdue_reads = self.watches[device].overdue_changes = 0
        self.watches[device].owner = NULL
        self.watches[device].on_stalled = NULL

    # ------------------------------------------------------------------ the implementation's

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


cdef void device_answered(Operation* operation) noexcept nogil:
    cdef DeviceRequest* request = <DeviceRequest*>operation.owner
    (<Io>request.io).answered(request)


cdef void scan_due(Operation* operation) noexcept nogil:
    (<Io>operation.owner).scan()


cdef void refusal_due(Operation* operation) noexcept nogil:
    (<Io>operation.owner).refuse()


# ---------------------------------------------------------------------- memory that a device may still use

cdef Kept* new_kept(void* memory, uint64_t bytes, bint mapped) noexcept nogil:
    cdef Kept* kept = <Kept*>calloc(1, sizeof(Kept))
    invariant(kept is not NULL, b"there is memory to note what a stalled device uses")
    kept.memory, kept.bytes, kept.mapped = memory, bytes, mapped
    return kept


cdef void release_now(void* memory, uint64_t bytes, bint mapped) noexcept nogil:
    if mapped:
        munmap(memory, bytes)
    else:
        free(memory)


cdef void hand_in(Io io, void* memory, uint64_t bytes, bint mapped) noexcept:
    # Only the io's reactor may look at its requests, and objects end on the thread that drops them.
    if memory is NULL:
        return
    if io is None or load_uint32(io.abandoned) == 0:
        release_now(memory, bytes, mapped)
    else:
        push(&io.handed_in, new_kept(memory, bytes, mapped))


cdef void release_buffer(Io io, void* memory) noexcept:
    hand_in(io, memory, malloc_usable_size(memory), False)


cdef void release_mapping(Io io, void* memory, uint64_t bytes) noexcept:
    hand_in(io, memory, bytes, True)
