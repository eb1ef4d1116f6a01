# The send queue of one connection of the peer protocol: everything queued in a turn leaves as one vectored send,
# straight from its owners' memory; what is queued during a send leaves with the next.
#
# Always true:
#   - at most one send is under way;
#   - an item is in exactly one place: waiting, in the current send, or with its owner;
#   - its owner gets it back exactly once, by `left`, and not before the send that reads its memory has ended, also when
#     the connection breaks.
#
# Called by replicas/server.pyx (replies) and replicas/peer.pyx (requests). It copies nothing: a
# record's payload goes from the log's buffer to the socket.

from libc.stdint cimport uint32_t

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor

cdef enum:
    SEND_BYTES = 4 * 1024 * 1024     # limit of one send, so that the memory of its items is released soon


cdef class SendQueue:
    def __cinit__(self, Reactor reactor):
        self.reactor = reactor
        self.io = reactor.io
        self.connection = -1
        self.broken = True
        self.sending.done = send_done
        self.sending.owner = <void*>self
        self.at_turn.done = turn_ends
        self.at_turn.owner = <void*>self

    cdef void begin(self, int connection) noexcept nogil:
        invariant(self.idle(), b"a send queue changes its connection when nothing is being sent")
        self.connection = connection
        self.broken = False

    cdef void add(self, SendItem* item) noexcept nogil:
        if self.broken:
            item.left(item)
            return
        append(&self.first, &self.last, item)
        self.ask()

    cdef void drop(self) noexcept nogil:
        cdef SendItem* item
        self.broken = True
        while self.first is not NULL:
            item = pop(&self.first, &self.last)
            item.left(item)

    cdef bint idle(self) noexcept nogil:
        return self.first is NULL and not self.busy and not self.asked

    cdef void ask(self) noexcept nogil:
        if not self.asked and not self.busy:
            self.asked = True
            self.reactor.at_turn_end(&self.at_turn)

    cdef void send(self) noexcept nogil:
        cdef uint32_t parts = 0, bytes = 0
        cdef SendItem* item
        while self.first is not NULL and parts + 3 <= SEND_PARTS_MAX and bytes < SEND_BYTES:
            item = pop(&self.first, &self.last)
            self.parts[parts].iov_base = item.header
            self.parts[parts].iov_len = FRAME_BYTES
            parts += 1
            if item.head_bytes:
                self.parts[parts].iov_base = <void*>item.head
                self.parts[parts].iov_len = item.head_bytes
                parts += 1
            if item.data_bytes:
                self.parts[parts].iov_base = <void*>item.data
                self.parts[parts].iov_len = item.data_bytes
                parts += 1
            bytes += FRAME_BYTES + item.head_bytes + item.data_bytes
            self.frames += 1
            append(&self.leaving, &self.leaving_last, item)
        if parts:
            self.busy = True
            self.sends += 1
            self.io.send(&self.sending, self.connection, self.parts, parts)

    cdef void turn_ended(self) noexcept nogil:
        self.asked = False
        if not self.broken:
            self.send()
        if not self.busy:
            self.changed(self.owner)

    cdef void sent(self) noexcept nogil:
        invariant(self.busy, b"a send ends once")
        self.busy = False
        if self.sending.result < 0:
            self.broken = True
        while self.leaving is not NULL:
            give_back(&self.leaving, &self.leaving_last)
        if self.broken:
            self.drop()
        elif self.first is not NULL:
            self.ask()
        self.changed(self.owner)


cdef void turn_ends(Operation* operation) noexcept nogil:
    (<SendQueue>operation.owner).turn_ended()


cdef void send_done(Operation* operation) noexcept nogil:
    (<SendQueue>operation.owner).sent()


cdef inline void give_back(SendItem** first, SendItem** last) noexcept nogil:
    cdef SendItem* item = pop(first, last)
    item.left(item)


cdef inline void append(SendItem** first, SendItem** last, SendItem* item) noexcept nogil:
    item.next = NULL
    if last[0] is NULL:
        first[0] = item
    else:
        last[0].next = item
    last[0] = item


cdef inline SendItem* pop(SendItem** first, SendItem** last) noexcept nogil:
    cdef SendItem* item = first[0]
    first[0] = item.next
    if first[0] is NULL:
        last[0] = NULL
    item.next = NULL
    return item
