# The simulated world's connections: two ends, and for each direction a pipe of bounded length.
#
# Sent data enters the pipe at once, as far as there is room, and arrives in one or two pieces after a random delay: in
# order within a direction, in any order between connections. A send completes when all of it is in the pipe, a receive
# when any data has arrived.
#
#     open ── close ──▶ closing ── its operations completed ──▶ free      the peer gets data in flight, then the end (0)
#     open ── cut ────▶ failed: every operation gives ECONNRESET, until it is closed
#     half open: data that one end sends never arrives; its sends complete until the pipe is full, then wait for ever
#     the peer's node has ended: silently, until data is sent to it; or with a reset
#
# Always true: an end has at most one receive and one send in flight. A number is reused only after its generation has
# changed, and an event of an older generation is ignored.

from libc.errno cimport ECONNRESET, EMFILE, ENOMEM, EPIPE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free as release, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

from iomesh.engine.simulation.event_queue cimport (
    EVENT_ARRIVAL, EVENT_FIN, EVENT_RECEIVE, EVENT_RESET, EVENT_SEND, Event, EventKind
)
from iomesh.engine.simulation.prng cimport below, draw
from iomesh.engine.simulation.faults cimport CONNECTION_CUT, CONNECTION_HALF_OPEN, NETWORK_SLOW, record_fault, strikes
from iomesh.engine.base.invariant cimport invariant

cdef extern from "<errno.h>" nogil:
    int ECANCELED


cdef class Network:
    def __cinit__(self, EventQueue event_queue):
        self.event_queue = event_queue

    def __dealloc__(self):
        for end in range(ENDS_MAX):
            release(self.ends[end].pipe)

    # ------------------------------------------------------------------ operations

    cdef int connect(self, int face_a, int face_b, int* a, int* b) noexcept nogil:
        a[0] = self.take_end()
        b[0] = self.take_end() if a[0] >= 0 else a[0]
        if b[0] < 0:
            if a[0] >= 0:
                self.ends[a[0]].used = False
            return b[0]
        self.ends[a[0]].face = face_a
        self.ends[a[0]].peer = b[0]
        self.ends[b[0]].face = face_b
        self.ends[b[0]].peer = a[0]
        return 0

    cdef void receive(self, int number, Operation* operation) noexcept nogil:
        invariant(self.ends[number].receiving is NULL, b"one receive at a time is under way on a connection")
        self.ends[number].receiving = operation
        self.deliver(number)

    cdef void send(self, int number, Operation* operation) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        invariant(end.sending is NULL, b"one send at a time is under way on a connection")
        end.sending = operation
        if end.error == 0 and end.peer >= 0:
            if strikes(self.injector, CONNECTION_CUT):
                record_fault(self.injector, CONNECTION_CUT, self.event_queue.now, number, 0, operation.bytes)
                self.cut(number)
            if strikes(self.injector, CONNECTION_HALF_OPEN):
                record_fault(self.injector, CONNECTION_HALF_OPEN, self.event_queue.now, number, 0, operation.bytes)
                self.half_open(number)
        self.pump(number)

    cdef void close(self, int number) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        invariant(end.used and not end.closing, b"a connection is closed once")
        end.closing = True
        if end.peer >= 0 and not self.ends[end.peer].deaf:
            self.arriving_event(end.peer, EVENT_FIN, 0)
        if end.receiving is not NULL:
            self.end_operation(number, end.receiving, -ECANCELED)
        if end.sending is not NULL:
            self.end_operation(number, end.sending, -ECANCELED)
        if end.endings == 0:
            self.give_up(number)

    cdef void cut(self, int number) noexcept nogil:
        cdef int peer = self.ends[number].peer
        self.reset(number)
        if peer >= 0:
            self.reset(peer)

    cdef void half_open(self, int number) noexcept nogil:
        if self.ends[number].peer >= 0:
            self.ends[self.ends[number].peer].deaf = True

    cdef void hold(self, int sender, int to, bint held) noexcept nogil:
        cdef int number
        cdef ConnectionSide* end
        for number in range(ENDS_MAX):
            end = &self.ends[number]
            if not end.used or end.face != to or end.held == held:
                continue
            if end.peer >= 0 and self.ends[end.peer].face != sender:
                continue
            end.held = held and end.peer >= 0
            if not held and end.held_bytes and end.peer >= 0:    # a node that is gone sends nothing again
                self.arriving(number, end.held_bytes)
            if not held and end.held_end and end.peer >= 0:
                self.arriving_event(number, EVENT_FIN, 0)
            end.held_bytes = 0
            end.held_end = False

    cdef void leave(self, int face, bint silently) noexcept nogil:
        cdef int number
        for number in range(ENDS_MAX):
            if self.ends[number].used and self.ends[number].face == face:
                if self.ends[number].peer >= 0 and not silently:
                    self.reset(self.ends[number].peer)
                self.give_up(number)

    # ------------------------------------------------------------------ events

    cdef bint occur(self, uint32_t event) noexcept nogil:
        """Handles an arrival. False: the end is closed, failed or reused."""
        cdef Event* it = &self.event_queue.events[event]
        cdef ConnectionSide* end = &self.ends[it.target]
        cdef EventKind kind = it.kind
        cdef int number = it.target
        if not end.used or end.generation != it.generation or end.closing or end.error:
            return False
        if kind == EVENT_ARRIVAL:
            end.arrived += it.mark
            self.deliver(number)
        elif kind == EVENT_FIN:
            end.finished = True
            if end.sending is not NULL:
                self.end_operation(number, end.sending, -EPIPE)
            self.deliver(number)
        else:
            self.fail(number, -ECONNRESET)
        return True

    cdef void handed_back(self, int number) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        end.endings -= 1
        if end.closing and end.endings == 0:
            self.give_up(number)

    # ------------------------------------------------------------------ helpers

    cdef int take_end(self) noexcept nogil:
        cdef int number
        cdef ConnectionSide* end
        for number in range(ENDS_MAX):
            end = &self.ends[number]
            if end.used:
                continue
            if end.pipe is NULL:
                end.pipe = <char*>malloc(PIPE_BYTES)     # reused by the next end with this number
                if end.pipe is NULL:
                    return -ENOMEM
            end.used = True
            end.closing = end.finished = end.deaf = end.held = end.held_end = False
            end.held_bytes = 0
            end.peer = -1
            end.error = 0
            end.endings = 0
            end.sent = end.arrived = end.taken = 0
            end.last_ns = 0
            end.receiving = end.sending = NULL
            return number
        return -EMFILE

    cdef void give_up(self, int number) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        if end.peer >= 0 and self.ends[end.peer].peer == number:
            self.ends[end.peer].peer = -1
        end.used = False
        end.generation += 1
        end.receiving = end.sending = NULL

    cdef void pump(self, int number) noexcept nogil:
        """Continues a send, as far as the pipe has room."""
        cdef ConnectionSide* end = &self.ends[number]
        cdef Operation* operation = end.sending
        cdef iovec* part
        cdef uint32_t skipped = 0, room, piece, moved = 0
        if operation is NULL:
            return
        if end.error:
            self.end_operation(number, operation, end.error)
            return
        if end.finished:
            self.end_operation(number, operation, -EPIPE)
            return
        if end.peer < 0 or self.ends[end.peer].closing:
            self.reset(number)                           # the reset arrives later
            self.end_operation(number, operation, operation.bytes)
            return
        room = <uint32_t>(PIPE_BYTES - (self.ends[end.peer].sent - self.ends[end.peer].taken))
        part = operation.message.msg_iov
        while room and operation.moved < operation.bytes:
            while skipped + part.iov_len <= operation.moved:
                skipped += <uint32_t>part.iov_len
                part += 1
            piece = min(room, <uint32_t>(skipped + part.iov_len - operation.moved))
            self.put_into(end.peer, <char*>part.iov_base + (operation.moved - skipped), piece)
            operation.moved += piece
            moved += piece
            room -= piece
        if moved:
            self.arriving(end.peer, moved)
        if operation.moved == operation.bytes:
            self.end_operation(number, operation, operation.bytes)

    cdef void put_into(self, int number, const char* data, uint32_t bytes) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        cdef uint32_t at = <uint32_t>(end.sent % PIPE_BYTES), piece = min(bytes, PIPE_BYTES - at)
        memcpy(end.pipe + at, data, piece)
        memcpy(end.pipe, data + piece, bytes - piece)
        end.sent += bytes

    cdef void arriving(self, int number, uint64_t bytes) noexcept nogil:
        cdef uint64_t first = bytes
        if self.ends[number].deaf:
            return                                       # the bytes stay in the pipe, never acknowledged
        if self.ends[number].held:
            self.ends[number].held_bytes += bytes
            return
        if draw(self.prng) % 8 == 0:
            first = below(self.prng, bytes) + 1
        self.arriving_event(number, EVENT_ARRIVAL, first)
        if first < bytes:
            self.arriving_event(number, EVENT_ARRIVAL, bytes - first)

    cdef void arriving_event(self, int number, EventKind kind, uint64_t bytes) noexcept nogil:
        """Arrives after all data that was sent to this end before."""
        cdef ConnectionSide* end = &self.ends[number]
        cdef uint32_t event
        if end.held:
            end.held_end = True                          # of EVENT_FIN: arriving() counts the bytes
            return
        end.last_ns = max(end.last_ns, self.event_queue.now + self.delay(number))
        event = self.event_queue.put(kind, end.face, number, NULL, end.last_ns)
        self.event_queue.events[event].mark = bytes
        self.event_queue.events[event].generation = end.generation

    cdef void reset(self, int number) noexcept nogil:
        """Resets the end; the reset overtakes sent data."""
        cdef uint32_t event
        if self.ends[number].held:
            return
        event = self.event_queue.put(
            EVENT_RESET, self.ends[number].face, number, NULL, self.event_queue.now + self.delay(number)
        )
        self.event_queue.events[event].generation = self.ends[number].generation

    cdef void deliver(self, int number) noexcept nogil:
        """Completes a receive with the data that has arrived."""
        cdef ConnectionSide* end = &self.ends[number]
        cdef Operation* operation = end.receiving
        cdef uint32_t bytes, at, piece
        if operation is NULL:
            return
        if end.error:
            self.end_operation(number, operation, end.error)
            return
        bytes = <uint32_t>min(operation.bytes, end.arrived - end.taken)
        if bytes == 0 and not end.finished:
            return
        at = <uint32_t>(end.taken % PIPE_BYTES)
        piece = min(bytes, PIPE_BYTES - at)
        memcpy(operation.buffer, end.pipe + at, piece)
        memcpy(operation.buffer + piece, end.pipe, bytes - piece)
        end.taken += bytes
        self.end_operation(number, operation, bytes)
        if bytes and end.peer >= 0:
            self.pump(end.peer)

    cdef void fail(self, int number, int error) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        end.error = error
        if end.receiving is not NULL:
            self.end_operation(number, end.receiving, error)
        if end.sending is not NULL:
            self.end_operation(number, end.sending, error)

    cdef void end_operation(self, int number, Operation* operation, int64_t result) noexcept nogil:
        cdef ConnectionSide* end = &self.ends[number]
        cdef bint receive = operation is end.receiving
        cdef uint32_t event = self.event_queue.put(
            EVENT_RECEIVE if receive else EVENT_SEND,
            end.face,
            number,
            operation,
            self.event_queue.now + 1 + <int64_t>below(self.prng, 1000),
        )
        self.event_queue.events[event].result = result
        end.endings += 1
        if receive:
            end.receiving = NULL
        else:
            end.sending = NULL

    cdef int64_t delay(self, int number) noexcept nogil:
        cdef int64_t delay = self.delay_ns[0] // 4 + <int64_t>below(self.prng, self.delay_ns[0] * 3 // 2 + 1)
        if strikes(self.injector, NETWORK_SLOW):
            record_fault(self.injector, NETWORK_SLOW, self.event_queue.now, number, 0, 0)
            delay *= 2 + below(&self.injector.prng, 99)
        return delay + 1
