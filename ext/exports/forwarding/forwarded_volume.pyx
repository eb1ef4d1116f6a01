# A volume that another node owns, as this node's exports use it: forwards requests to the owner, on a connection for
# this volume alone (docs/protocols.md, "A volume's I/O"). Python makes the connection, and another one to the next
# owner when it ends.
#
#     accepted --> sent --> answered --> ended
#         ^         |  '--> abandoned, the connection broke --> ended
#         '---------'       the connection broke, the other node is not the owner or cannot take it now
#
# Always true:
#   - a request is kept, with the data of a write, until it is answered, and sent again over the next connection. It may
#     so be executed twice, the second time by another owner. It is never executed after it was answered, or after a
#     later request of its client to the same blocks: each owner ends what came over a connection before it serves the
#     next one of this node, and a former owner commits nothing;
#   - while there is no connection, requests wait. They end when they are answered, or their client leaves;
#   - what an owner sends can end its own connection and nothing else. Data that does not match its checksum is read
#     again.
#
# Nothing here allocates after construction, except for what is inherited from a volume of this node that another one
# has taken over.

from libc.errno cimport EBADMSG, EBUSY, ECONNRESET, ENOBUFS, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport join, wake_all
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS
from iomesh.engine.format.peer cimport (
    PEER_STABLE, PEER_VOLUME_FLUSH, PEER_VOLUME_MERGE, PEER_VOLUME_READ, PEER_VOLUME_STATUS, PEER_VOLUME_WRITE,
    PEER_VOLUME_ZERO, PEER_ZEROS, VolumeRequest
)
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.replicas.remote_node cimport RemoteNode

cdef extern from "<errno.h>" nogil:
    int ESTALE


cdef class ForwardedVolume:
    """Raises MemoryError."""

    def __cinit__(self, bytes identity, Reactor reactor, Pool pool, uint64_t blocks):
        cdef Forward* forward
        cdef int i
        memcpy(self.identity, <const char*>identity, 16)
        self.reactor, self.io, self.pool, self.blocks = reactor, reactor.io, pool, blocks
        self.node = RemoteNode(reactor)
        self.node.entries = 0                            # its devices do not matter here
        self.forwards = <Forward*>calloc(FORWARDS_MAX, sizeof(Forward))
        self.arena = <char*>allocate_aligned(FORWARDS_MAX * FORWARD_BLOCKS * BLOCK_BYTES)
        if self.forwards is NULL or self.arena is NULL:
            raise MemoryError("no memory for requests to another node")
        for i in range(FORWARDS_MAX - 1, -1, -1):
            forward = &self.forwards[i]
            forward.volume = <void*>self
            forward.buffer = self.arena + <uint64_t>i * FORWARD_BLOCKS * BLOCK_BYTES
            forward.call.operation.done = call_done
            forward.call.operation.owner = forward
            forward.next = self.free_forwards
            self.free_forwards = forward
        self.at_turn.done = turn_ends
        self.at_turn.owner = <void*>self
        self.timer.done = timer_rings
        self.timer.owner = <void*>self

    def __dealloc__(self):
        release(self.forwards)
        release(self.arena)

    cdef bint is_idle(self) noexcept nogil:
        return self.open == 0 and not self.asked and not self.timing and not self.node.waiting

    # ------------------------------------------------------------------ requests of exports

    cdef int64_t write(
        self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when
    ) noexcept nogil:
        cdef uint32_t leaf = NODE_POINTERS - <uint32_t>(block % NODE_POINTERS)
        cdef uint32_t blocks = min(min(count, <uint32_t>FORWARD_BLOCKS), leaf)
        cdef Forward* forward = self.take(PEER_VOLUME_WRITE, block, blocks)
        if forward is NULL:
            join(&self.room, when)
            return 0
        forward.payload = blocks * BLOCK_BYTES
        memcpy(forward.buffer, data, forward.payload)
        forward.request = request
        self.add(forward)
        return blocks

    cdef int64_t merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data, Operation* when
    ) noexcept nogil:
        cdef Forward* forward = self.take(PEER_VOLUME_MERGE, block, 1)
        if forward is NULL:
            join(&self.room, when)
            return 0
        self.fill_merge(forward, start, bytes, data)
        forward.request = request
        self.add(forward)
        return 1

    cdef void fill_merge(self, Forward* forward, uint32_t start, uint32_t bytes, const char* data) noexcept nogil:
        forward.start, forward.bytes = start, bytes
        if data is NULL:
            forward.flags = PEER_ZEROS
        else:
            forward.payload = bytes
            memcpy(forward.buffer, data, bytes)

    cdef int64_t zero(self, Request* request, uint64_t block, uint64_t count, Operation* when) noexcept nogil:
        cdef Forward* forward = self.take(PEER_VOLUME_ZERO, block, count)
        if forward is NULL:
            join(&self.room, when)
            return 0
        forward.request = request
        self.add(forward)
        return <int64_t>count

    cdef void complete(self, Request* request) noexcept nogil:
        request.complete = True
        if request.parts == 0:
            request.deferred.done = request_deferred
            request.deferred.owner = request
            request.flush_of = <void*>self
            self.reactor.at_turn_end(&request.deferred)

    cdef void flush(self, Request* request) noexcept nogil:
        request.next = NULL
        if self.free_forwards is not NULL and self.flushes is NULL:
            self.begin_flush(request)
        elif self.flushes is NULL:
            self.flushes = self.flushes_last = request
        else:
            self.flushes_last.next = request
            self.flushes_last = request

    cdef void begin_flush(self, Request* request) noexcept nogil:
        cdef Forward* forward = self.take(PEER_VOLUME_FLUSH, 0, 0)
        forward.request = request
        self.add(forward)

    cdef void read(self, Read* read) noexcept nogil:
        read.error = 0
        read.unmapped = False
        read.next = NULL
        if self.free_forwards is not NULL and self.reads is NULL:
            self.begin_read(read)
        elif self.reads is NULL:
            self.reads = self.reads_last = read
        else:
            self.reads_last.next = read
            self.reads_last = read

    cdef void begin_read(self, Read* read) noexcept nogil:
        cdef Forward* forward = self.take(PEER_VOLUME_READ, read.block, read.count)
        forward.reading = read
        self.add(forward)

    cdef int64_t alike(self, uint64_t block, uint64_t most, bint* mapped, Operation* when) noexcept nogil:
        cdef Forward* forward
        if self.status_known and self.status_block == block:
            self.status_known = False
            mapped[0] = self.status_mapped
            return <int64_t>min(most, self.status_blocks)
        forward = self.take(PEER_VOLUME_STATUS, block, most)
        if forward is NULL:
            join(&self.room, when)
            return 0
        forward.when = when
        self.add(forward)
        return 0

    cdef void abandon(self, void* session) noexcept nogil:
        cdef Forward* forward = self.oldest
        cdef Request* request = self.flushes
        cdef Read* read = self.reads
        cdef bint late = False
        while forward is not NULL:
            if forward.session is session:
                forward.abandoned = True
                late = late or (forward.sent and forward.request is not NULL and forward.kind != PEER_VOLUME_FLUSH)
            forward = forward.next
        while request is not NULL:
            request.error = ESHUTDOWN if request.session is session else request.error
            request = request.next
        while read is not NULL:
            read.error = ESHUTDOWN if read.session is session else read.error
            read = read.next
        if late:
            self.node.detach()                           # or it could be executed after a write of its next connection
        self.ask()

    # ------------------------------------------------------------------ what a lost volume leaves

    cdef bint inherit_write(self, Request* request, uint64_t block, uint32_t count, const char* data) noexcept nogil:
        cdef uint32_t blocks
        cdef Forward* forward
        while count:
            blocks = min(count, <uint32_t>FORWARD_BLOCKS)
            forward = self.take_extra(PEER_VOLUME_WRITE, block, blocks)
            if forward is NULL:
                return False
            forward.payload = blocks * BLOCK_BYTES
            memcpy(forward.buffer, data, forward.payload)
            forward.request = request
            self.add(forward)
            block += blocks
            data += blocks * BLOCK_BYTES
            count -= blocks
        return True

    cdef bint inherit_zero(self, Request* request, uint64_t block, uint64_t count) noexcept nogil:
        cdef Forward* forward = self.take_extra(PEER_VOLUME_ZERO, block, count)
        if forward is NULL:
            return False
        forward.request = request
        self.add(forward)
        return True

    cdef bint inherit_merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data
    ) noexcept nogil:
        cdef Forward* forward = self.take_extra(PEER_VOLUME_MERGE, block, 1)
        if forward is NULL:
            return False
        self.fill_merge(forward, start, bytes, data)
        forward.request = request
        self.add(forward)
        return True

    # ------------------------------------------------------------------ one request to the owner

    cdef Forward* take(self, uint8_t kind, uint64_t block, uint64_t blocks) noexcept nogil:
        """NULL: none is free."""
        cdef Forward* forward = self.free_forwards
        if forward is NULL:
            return NULL
        self.free_forwards = forward.next
        self.enlist(forward, kind, block, blocks)
        return forward

    cdef Forward* take_extra(self, uint8_t kind, uint64_t block, uint64_t blocks) noexcept nogil:
        """A free one, or a new one. NULL: there is no memory."""
        cdef Forward* forward = self.take(kind, block, blocks)
        if forward is not NULL:
            return forward
        forward = <Forward*>calloc(1, sizeof(Forward))
        if forward is NULL:
            return NULL
        forward.buffer = <char*>allocate_aligned(FORWARD_BLOCKS * BLOCK_BYTES)
        if forward.buffer is NULL:
            release(forward)
            return NULL
        forward.extra = True
        forward.volume = <void*>self
        forward.call.operation.done = call_done
        forward.call.operation.owner = forward
        self.enlist(forward, kind, block, blocks)
        return forward

    cdef void enlist(self, Forward* forward, uint8_t kind, uint64_t block, uint64_t blocks) noexcept nogil:
        self.open += 1
        forward.kind, forward.block, forward.blocks = kind, block, blocks
        forward.flags = 0
        forward.start = forward.bytes = forward.payload = forward.crc = 0
        forward.request, forward.reading, forward.when, forward.session = NULL, NULL, NULL, NULL
        forward.sent = forward.abandoned = False
        forward.next, forward.previous = NULL, self.newest
        if self.newest is NULL:
            self.oldest = forward
        else:
            self.newest.next = forward
        self.newest = forward

    cdef void add(self, Forward* forward) noexcept nogil:
        if forward.request is not NULL:
            forward.session = forward.request.session
            if forward.kind != PEER_VOLUME_FLUSH:
                forward.request.parts += 1
                forward.flags |= PEER_STABLE if forward.request.stable else 0
        elif forward.reading is not NULL:
            forward.session = forward.reading.session
        if forward.payload:
            forward.crc = crc32c(forward.buffer, forward.payload)
        if self.node.ready:
            self.send(forward)

    cdef void send(self, Forward* forward) noexcept nogil:
        cdef VolumeRequest* frame = self.node.peer.of_volume(&forward.call, forward.kind, self.identity)
        frame.flags = forward.flags
        frame.block, frame.blocks = forward.block, forward.blocks
        frame.start, frame.bytes = forward.start, forward.bytes
        forward.sent = True
        self.node.peer.ask_volume(
            &forward.call,
            forward.buffer,
            forward.payload,
            forward.crc,
            NULL if forward.reading is NULL else forward.reading.into,
        )

    cdef void send_all(self) noexcept nogil:
        """What is not sent, in the order in which it was accepted."""
        cdef Forward* forward = self.oldest
        while forward is not NULL and self.node.ready:
            if not forward.sent and not forward.abandoned:
                self.repeated += forward.call.peer is not NULL
                self.send(forward)
            forward = forward.next

    cdef void link_ready(self) noexcept nogil:
        self.send_all()

    cdef void answered(self, Forward* forward) noexcept nogil:
        cdef int64_t result = forward.call.operation.result
        forward.sent = False
        if forward.kind == PEER_VOLUME_READ and result == 0 and not forward.call.unmapped:
            if crc32c(forward.reading.into, <uint32_t>forward.blocks * BLOCK_BYTES) != forward.call.payload_crc:
                result = -EBADMSG
        if self.must_repeat(forward, result):
            if forward.abandoned:
                self.ask()
            return
        if forward.kind == PEER_VOLUME_STATUS and result == 0:
            self.status_known, self.status_block = True, forward.block
            self.status_blocks, self.status_mapped = forward.call.count, not forward.call.unmapped
        if forward.reading is not NULL:
            forward.reading.unmapped = forward.call.unmapped
        self.end(forward, <int>-result)

    cdef bint must_repeat(self, Forward* forward, int64_t result) noexcept nogil:
        if result == -ECONNRESET:
            return True                                  # link_ready() sends it again
        if result == -ESTALE:                            # not the owner any more: Python looks for the next one
            self.node.detach()
            return True
        if result == -EBUSY or result == -EBADMSG or result == -ENOBUFS:
            self.repeat_later()
            return True
        return False

    cdef void end(self, Forward* forward, int error) noexcept nogil:
        """error: a positive errno, or 0."""
        cdef Request* request = forward.request
        cdef Read* reading = forward.reading
        cdef Operation* when = forward.when
        cdef bint is_flush
        invariant(not forward.sent and self.open > 0, b"a forwarded request ends once, and when it is not under way")
        if forward.previous is NULL:
            self.oldest = forward.next
        else:
            forward.previous.next = forward.next
        if forward.next is NULL:
            self.newest = forward.previous
        else:
            forward.next.previous = forward.previous
        self.open -= 1
        is_flush = forward.kind == PEER_VOLUME_FLUSH
        if forward.extra:
            release(forward.buffer)
            release(forward)
        else:
            forward.call.peer = NULL
            forward.next = self.free_forwards
            self.free_forwards = forward
        if when is not NULL:
            when.result = -error
            when.done(when)
            self.status_known = False
        elif reading is not NULL:
            reading.error = error
            reading.done(reading)
        elif is_flush:
            request.error = error
            request.finished(request)
        else:
            self.part_done(request, error)
        self.let_in()

    cdef void let_in(self) noexcept nogil:
        """What waits for a free Forward."""
        cdef Request* request
        cdef Read* read
        while self.free_forwards is not NULL and self.flushes is not NULL and self.flushes.error == 0:
            request = self.flushes
            self.flushes = request.next
            self.begin_flush(request)
        while self.free_forwards is not NULL and self.reads is not NULL and self.reads.error == 0:
            read = self.reads
            self.reads = read.next
            self.begin_read(read)
        if self.free_forwards is not NULL and self.room.first is not NULL:
            wake_all(&self.room, 0)

    cdef void part_done(self, Request* request, int error) noexcept nogil:
        invariant(request.parts > 0, b"every part ends once")
        request.parts -= 1
        if error and not request.error:
            request.error = error
        if request.parts == 0 and request.complete:
            self.finish(request)

    cdef void finish(self, Request* request) noexcept nogil:
        if request.mixed and request.stable and request.error == 0 and request.session is not NULL:
            request.mixed = False
            self.flush(request)                          # parts of it are in the log of the volume's former owner
        else:
            request.finished(request)

    # ------------------------------------------------------------------ later

    cdef void ask(self) noexcept nogil:
        if not self.asked:
            self.asked = True
            self.reactor.at_turn_end(&self.at_turn)

    cdef void turn_ended(self) noexcept nogil:
        """End what was abandoned and is not under way."""
        cdef Forward* forward = self.oldest
        cdef Request* request = self.flushes
        cdef Request* next_request
        cdef Read* read = self.reads
        cdef Read* next_read
        self.asked = False
        self.flushes = self.flushes_last = NULL
        self.reads = self.reads_last = NULL
        while request is not NULL:
            next_request = request.next
            if request.error:
                request.finished(request)
            else:
                self.flush(request)
            request = next_request
        while read is not NULL:
            next_read = read.next
            if read.error:
                read.done(read)
            else:
                self.read(read)
            read = next_read
        while forward is not NULL:
            if forward.abandoned and not forward.sent:
                self.end(forward, ESHUTDOWN)
                forward = self.oldest                    # a callback may have changed the list
            else:
                forward = forward.next
        wake_all(&self.room, 0)

    cdef void repeat_later(self) noexcept nogil:
        if not self.timing:
            self.timing = True
            self.io.after(&self.timer, REPEAT_NS)

    cdef void timer_rang(self) noexcept nogil:
        self.timing = False
        self.send_all()


# ---------------------------------------------------------------------- callbacks

cdef void call_done(Operation* operation) noexcept nogil:
    cdef Forward* forward = <Forward*>operation.owner
    (<ForwardedVolume>forward.volume).answered(forward)


cdef void request_deferred(Operation* operation) noexcept nogil:
    cdef Request* request = <Request*>operation.owner
    (<ForwardedVolume>request.flush_of).finish(request)


cdef void turn_ends(Operation* operation) noexcept nogil:
    (<ForwardedVolume>operation.owner).turn_ended()


cdef void timer_rings(Operation* operation) noexcept nogil:
    (<ForwardedVolume>operation.owner).timer_rang()
