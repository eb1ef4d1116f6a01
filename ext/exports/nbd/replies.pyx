# The send queue of one NBD connection: one send takes the replies that are ready at a turn's end; those that become
# ready during a send leave with the next.
#
# Always true:
#   - at most one send is under way;
#   - a Reply is in exactly one place: the queue, the held replies, the current send (if it has data: headers are
#     copied), or with its owner;
#   - its owner gets it back exactly once, by `left`, also when the connection breaks;
#   - a client that does not receive its replies withholds buffers from other connections for at most about two periods
#     of STALL_TIMEOUT_NS.
#
# A simple reply's data must follow its header with nothing in between. A reply that is larger than what is read at once
# is a *stream*: its parts are queued as they become ready, and every other reply is held until the stream ends.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.pool cimport LARGE, SMALL, Pool
from iomesh.engine.base.reactor cimport Reactor

cdef enum:
    STALL_TIMEOUT_NS = 10000000000   # timeout for a client that receives nothing while others wait for buffers


cdef class Replies:
    def __cinit__(self, Reactor reactor, Io io, Pool pool):
        self.reactor = reactor
        self.io = io
        self.pool = pool
        self.watch.done = time_to_look
        self.watch.owner = <void*>self
        self.at_turn.done = turn_ends
        self.at_turn.owner = <void*>self
        self.sending.done = send_done
        self.sending.owner = <void*>self

    cdef void add(self, Reply* reply) noexcept nogil:
        reply.next = NULL
        if self.broken:
            reply.left(reply)
        elif self.stream:
            append(&self.held_first, &self.held_last, reply)
        else:
            append(&self.first, &self.last, reply)
            self.ask()

    cdef void add_to_stream(self, Reply* reply) noexcept nogil:
        reply.next = NULL
        if self.broken:
            reply.left(reply)
        else:
            self.stream = True
            append(&self.first, &self.last, reply)
            self.ask()

    cdef void end_stream(self) noexcept nogil:
        self.stream = False
        if self.held_first is not NULL:
            if self.last is NULL:
                self.first = self.held_first
            else:
                self.last.next = self.held_first
            self.last = self.held_last
            self.held_first = self.held_last = NULL
            self.ask()

    cdef void drop(self) noexcept nogil:
        cdef Reply* reply
        self.broken = True
        if self.watching and self.io.cancel(&self.watch):
            self.watching = False
        self.end_stream()
        while self.first is not NULL:
            reply = pop(&self.first, &self.last)
            reply.left(reply)

    cdef bint idle(self) noexcept nogil:
        return self.first is NULL and self.held_first is NULL and not self.busy and not self.asked

    cdef void ask(self) noexcept nogil:
        if not self.asked and not self.busy:
            self.asked = True
            self.reactor.at_turn_end(&self.at_turn)

    cdef void send(self) noexcept nogil:
        """Send the ready replies as one message."""
        cdef uint32_t parts = 0, used = 0
        cdef uint64_t bytes = 0
        cdef Reply* reply
        while (
            self.first is not NULL
            and parts + 2 <= PARTS_MAX
            and used + HEADER_BYTES_MAX <= HEADERS_BYTES
            and bytes < SEND_BYTES
        ):
            reply = pop(&self.first, &self.last)
            if reply.header_bytes:
                memcpy(&self.headers[used], reply.header, reply.header_bytes)
                if (
                    parts
                    and <char*>self.parts[parts - 1].iov_base + self.parts[parts - 1].iov_len == &self.headers[used]
                ):
                    self.parts[parts - 1].iov_len += reply.header_bytes       # consecutive headers form one part
                else:
                    self.parts[parts].iov_base = &self.headers[used]
                    self.parts[parts].iov_len = reply.header_bytes
                    parts += 1
                used += reply.header_bytes
                bytes += reply.header_bytes
            if reply.data_bytes:
                self.parts[parts].iov_base = <void*>reply.data
                self.parts[parts].iov_len = reply.data_bytes
                parts += 1
                bytes += reply.data_bytes
                append(&self.leaving, &self.leaving_last, reply)
            else:
                reply.left(reply)
        if parts:
            self.busy = True
            self.sends += 1
            if not self.watching:
                self.watching = True
                self.sends_seen = self.sends
                self.io.after(&self.watch, STALL_TIMEOUT_NS)
            self.io.send(&self.sending, self.connection, self.parts, parts)

    cdef void turn_ended(self) noexcept nogil:
        self.asked = False
        if not self.broken:
            self.send()
        if not self.busy:
            self.changed(self.owner)

    cdef void sent(self) noexcept nogil:
        cdef Reply* reply
        invariant(self.busy, b"a send ends once")
        self.busy = False
        while self.leaving is not NULL:
            reply = pop(&self.leaving, &self.leaving_last)
            reply.left(reply)
        if self.sending.result < 0:
            self.drop()
        elif self.first is not NULL:
            self.ask()
        self.changed(self.owner)

    cdef void look(self) noexcept nogil:
        self.watching = False
        if not self.busy or self.broken:
            return
        if (
            self.sends == self.sends_seen
            and (self.pool.waiters[<int>SMALL].first is not NULL or self.pool.waiters[<int>LARGE].first is not NULL)
        ):
            self.stalled = True
            self.changed(self.owner)
        else:
            self.watching = True
            self.sends_seen = self.sends
            self.io.after(&self.watch, STALL_TIMEOUT_NS)


cdef void turn_ends(Operation* operation) noexcept nogil:
    (<Replies>operation.owner).turn_ended()


cdef void time_to_look(Operation* operation) noexcept nogil:
    (<Replies>operation.owner).look()


cdef void send_done(Operation* operation) noexcept nogil:
    (<Replies>operation.owner).sent()


cdef inline void append(Reply** first, Reply** last, Reply* reply) noexcept nogil:
    reply.next = NULL
    if last[0] is NULL:
        first[0] = reply
    else:
        last[0].next = reply
    last[0] = reply


cdef inline Reply* pop(Reply** first, Reply** last) noexcept nogil:
    cdef Reply* reply = first[0]
    first[0] = reply.next
    if first[0] is NULL:
        last[0] = NULL
    reply.next = NULL
    return reply
