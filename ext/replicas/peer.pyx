# The devices of another node, as a volume's owner uses them: the client of the peer protocol (docs/protocols.md). There
# is one for each pair of reactors. It keeps nothing for each segment: a replica is addressed by the device's number in
# the cluster, volume and segment.
#
#     DETACHED -- attach() --> ATTACHED -- the connection broke, an invalid reply, detach() --> ENDING --> DETACHED
#
#   ENDING: the socket is closed; a send or receive may still use the memory of calls. When both have ended, every call
#   fails with ECONNRESET and the owner is told (`lost`).
#
# A call's life:
#
#     begun --> waiting --> sent: leaving, not replied --> done          done: the send that reads the call's memory has
#       '---------------------^                                          ended, and the whole reply has arrived
#       '--> refused --> done, at the turn's end
#
# Always true:
#   - a call is done exactly once, from the Io's poll or at a turn's end, never inside the method that began it;
#   - a call is not done while the kernel may read its payload (a send) or write to its memory (a receive), also when
#     the reply has arrived already or the connection broke;
#   - calls are sent in the order in which they were begun, and never more than the server's credits allow;
#   - a reply belongs to the call in the slot that its id names, and only if the whole id matches. Ids are never reused,
#     so a reply to a call of an earlier connection matches none;
#   - what the server sends can end this connection and nothing else.
#
# Called by the code that keeps copies of segments on other nodes, on the volume's reactor. Nothing here allocates after
# construction.

from libc.errno cimport ECONNRESET, EINVAL, ENOBUFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.format.layout cimport BLOCK_BYTES, Fault
from iomesh.engine.format.peer cimport (
    BITMAP_BYTES, ENTRY_BYTES, FRAME_BYTES, PAYLOAD_BYTES_MAX, PEER_COMPACT, PEER_CREATE, PEER_FENCE, PEER_FLUSH,
    PEER_HEARTBEAT, PEER_LIST, PEER_MORE, PEER_PULL, PEER_READ, PEER_READ_STORED, PEER_REMOVE, PEER_SEAL, PEER_UNMAPPED,
    PEER_URGENT, PEER_VOLUME_READ, PEER_VOLUME_STATUS, PEER_WRITE, DeviceState, ListedReplica, PeerReply, PeerRequest,
    PullRequest, VolumeRequest, frame_cost, is_of_volume, is_read, reply_fault, request_fault, seal_request,
    status_error
)
from iomesh.engine.replicas.send_queue cimport SendItem, SendQueue

cdef enum:
    ROOM_BYTES = 16 * 1024           # with less room than this behind it, input is moved to the front
    SLOT_BITS = 8                    # of an id; the others count calls

PEER_ENDS = ("closed", "error", "malformed", "detached")      # by PeerEnd


cdef class Peer:
    """Raises MemoryError."""

    def __cinit__(self, Reactor reactor):
        cdef int i
        self.reactor, self.io = reactor, reactor.io
        self.connection = -1
        self.requests = SendQueue(reactor)
        self.requests.owner = <void*>self
        self.requests.changed = requests_change
        self.received = <char*>malloc(PEER_RECEIVE_BYTES)
        if self.received is NULL:
            raise MemoryError("no memory for a peer's replies")
        for i in range(SLOTS):
            self.free_slots[i] = SLOTS - 1 - i
        self.free_count = SLOTS
        self.receive.done = receive_ends
        self.receive.owner = <void*>self
        self.at_turn.done = turn_ends
        self.at_turn.owner = <void*>self

    def __dealloc__(self):
        free(self.received)

    # ------------------------------------------------------------------ the connection

    cdef void attach(self, int connection, uint32_t requests, uint64_t bytes) noexcept nogil:
        invariant(self.state == PEER_DETACHED, b"a peer has one connection at a time")
        invariant(requests > 0 and bytes >= PAYLOAD_BYTES_MAX, b"the credits of a connection suffice for any request")
        self.state = PEER_ATTACHED
        self.connection = connection
        self.credit_requests, self.credit_bytes = requests, bytes
        self.begin = self.filled = 0
        self.words = NULL
        self.requests.begin(connection)
        self.listen()

    cdef void detach(self) noexcept nogil:
        self.lose(PEER_BY_US)

    cdef void lose(self, PeerEnd end) noexcept nogil:
        if self.state != PEER_ATTACHED:
            return
        self.state = PEER_ENDING
        self.end = end
        self.io.close(self.connection)
        self.requests.drop()
        self.ask()

    cdef void requests_changed(self) noexcept nogil:
        if self.requests.broken:
            self.lose(PEER_BY_ERROR)
            self.ask()

    cdef void ended(self) noexcept nogil:
        """Nothing uses the connection any more: its calls fail."""
        cdef PeerCall* first = NULL
        cdef PeerCall** link = &first
        cdef PeerCall* call
        cdef int i
        self.state = PEER_DETACHED
        self.connection = -1
        self.current = NULL
        for i in range(SLOTS):
            call = self.slots[i]
            if call is not NULL:
                self.slots[i] = NULL
                self.free_slots[self.free_count] = i
                self.free_count += 1
                link[0] = call
                link = &call.next
        link[0] = self.waiting
        self.waiting = self.waiting_last = NULL
        self.waiting_count = 0
        while first is not NULL:
            call = first
            first = call.next
            call.operation.result = -ECONNRESET
            call.operation.done(&call.operation)
        if self.lost is not NULL:
            self.lost(self.owner)

    cdef void ask(self) noexcept nogil:
        if not self.asked:
            self.asked = True
            self.reactor.at_turn_end(&self.at_turn)

    cdef void turn_ended(self) noexcept nogil:
        """The steps that must not run inside another callback."""
        cdef PeerCall* call
        self.asked = False
        while self.refused is not NULL:
            call = self.refused
            self.refused = call.next
            if self.refused is NULL:
                self.refused_last = NULL
            call.operation.done(&call.operation)
        if self.state == PEER_ENDING and not self.receiving and self.requests.idle():
            self.ended()

    # ------------------------------------------------------------------ calls

    cdef void create(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint16_t stream,
        uint32_t fragment,
        uint32_t blocks,
        bint urgent,
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_CREATE, device, volume, segment)
        frame.epoch, frame.stream, frame.fragment, frame.blocks = epoch, stream, fragment, blocks
        frame.flags = PEER_URGENT if urgent else 0
        self.submit(call)

    cdef void write(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint16_t stream,
        uint32_t block,
        const void* head,
        const void* data,
        uint32_t blocks,
        uint8_t flags,
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_WRITE, device, volume, segment)
        frame.epoch, frame.stream, frame.block, frame.blocks = epoch, stream, block, blocks
        frame.flags = flags
        call.item.head, call.item.head_bytes = <const char*>head, BLOCK_BYTES if head is not NULL else 0
        call.item.data = <const char*>data
        call.cost = frame.payload_bytes = blocks * BLOCK_BYTES
        call.item.data_bytes = frame.payload_bytes - call.item.head_bytes
        self.submit(call)

    cdef void flush(self, PeerCall* call, uint32_t device) noexcept nogil:
        self.prepare(call, PEER_FLUSH, device, NULL, 0)
        self.submit(call)

    cdef void seal(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint32_t blocks,
        uint32_t footer_block,
        uint8_t flags,
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_SEAL, device, volume, segment)
        frame.epoch, frame.blocks, frame.footer_block, frame.flags = epoch, blocks, footer_block, flags
        self.submit(call)

    cdef void read(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint32_t block,
        uint32_t blocks,
        void* into,
        bint stored,
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_READ_STORED if stored else PEER_READ, device, volume, segment)
        frame.block, frame.blocks = block, blocks
        call.into = <char*>into
        call.room = call.cost = blocks * BLOCK_BYTES
        self.submit(call)

    cdef void pull(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint32_t source,
        uint32_t end,
        uint64_t segment_epoch,
        uint32_t rate,
        uint8_t flags,
    ) noexcept nogil:
        cdef PullRequest* frame = <PullRequest*>call.item.header
        self.prepare(call, PEER_PULL, device, volume, segment)
        frame.epoch, frame.source, frame.end, frame.segment_epoch = epoch, source, end, segment_epoch
        frame.rate, frame.flags = rate, flags
        self.submit(call)

    cdef void remove(
        self, PeerCall* call, uint32_t device, const uint8_t* volume, uint32_t segment, uint64_t epoch
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_REMOVE, device, volume, segment)
        frame.epoch = epoch
        self.submit(call)

    cdef void compact(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        const uint64_t* live,
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_COMPACT, device, volume, segment)
        frame.epoch = epoch
        call.item.data = <const char*>live
        call.item.data_bytes = call.cost = frame.payload_bytes = BITMAP_BYTES
        self.submit(call)

    cdef void list(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t first_segment,
        ListedReplica* into,
        uint32_t room,
    ) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_LIST, device, volume, first_segment)
        frame.blocks = room
        call.into = <char*>into
        call.room = call.cost = room * ENTRY_BYTES
        self.submit(call)

    cdef void fence(self, PeerCall* call, uint32_t device, const uint8_t* volume, uint64_t epoch) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_FENCE, device, volume, 0)
        frame.epoch = epoch
        self.submit(call)

    cdef VolumeRequest* of_volume(self, PeerCall* call, uint8_t kind, const uint8_t* volume) noexcept nogil:
        self.prepare(call, kind, 0, NULL, 0)
        memcpy((<VolumeRequest*>call.item.header).volume, volume, 16)
        return <VolumeRequest*>call.item.header

    cdef void ask_volume(
        self, PeerCall* call, const void* data, uint32_t bytes, uint32_t crc, void* into
    ) noexcept nogil:
        cdef VolumeRequest* frame = <VolumeRequest*>call.item.header
        frame.payload_bytes, frame.payload_crc = bytes, crc
        call.item.data, call.item.data_bytes = <const char*>data, bytes
        call.cost = frame_cost(<PeerRequest*>frame)
        if frame.kind == PEER_VOLUME_READ:
            call.into, call.room = <char*>into, <uint32_t>frame.blocks * BLOCK_BYTES
        self.submit(call)

    cdef void heartbeat(self, PeerCall* call, uint64_t counter, DeviceState* into, uint32_t room) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.prepare(call, PEER_HEARTBEAT, 0, NULL, 0)
        frame.counter, frame.blocks = counter, room
        call.into = <char*>into
        call.room = call.cost = room * ENTRY_BYTES
        self.submit(call)

    cdef void prepare(
        self, PeerCall* call, uint8_t kind, uint32_t device, const uint8_t* volume, uint32_t segment
    ) noexcept nogil:
        """All fields of the call but those of its kind. operation.done and operation.owner are the caller's."""
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        memset(frame, 0, sizeof(PeerRequest))
        frame.kind, frame.device, frame.segment = kind, device, segment
        if volume is not NULL:
            memcpy(frame.volume, volume, 16)
        call.count, call.more, call.fence, call.boot = 0, False, 0, 0
        call.unmapped, call.payload_crc = False, 0
        call.item.left, call.item.owner = item_leaves, call
        call.item.head, call.item.head_bytes, call.item.data, call.item.data_bytes = NULL, 0, NULL, 0
        call.into, call.room, call.arrived, call.expected, call.cost = NULL, 0, 0, 0, 0
        call.slot, call.leaving, call.replied = -1, False, False
        call.peer, call.next = <void*>self, NULL

    cdef void submit(self, PeerCall* call) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.calls += 1
        if self.state != PEER_ATTACHED:
            self.refuse(call, -ECONNRESET)
            return
        seal_request(frame)
        if request_fault(frame).words is not NULL:
            self.refuse(call, -EINVAL)                   # the server would end the connection, with all other calls
        elif self.waiting is NULL and self.may_send(call):
            self.send(call)
        elif self.waiting_count == WAITING_MAX:
            self.refuse(call, -ENOBUFS)
        else:
            append(&self.waiting, &self.waiting_last, call)
            self.waiting_count += 1

    cdef void refuse(self, PeerCall* call, int error) noexcept nogil:
        call.operation.result = error
        append(&self.refused, &self.refused_last, call)
        self.ask()

    cdef bint may_send(self, const PeerCall* call) noexcept nogil:
        return self.free_count > 0 and self.credit_requests > 0 and self.credit_bytes >= call.cost

    cdef void send(self, PeerCall* call) noexcept nogil:
        cdef PeerRequest* frame = <PeerRequest*>call.item.header
        self.credit_requests -= 1
        self.credit_bytes -= call.cost
        self.free_count -= 1
        call.slot = self.free_slots[self.free_count]
        self.slots[call.slot] = call
        self.last_id += 1
        frame.id = self.last_id << SLOT_BITS | <uint64_t>call.slot
        seal_request(frame)
        call.leaving = True
        self.requests.add(&call.item)

    cdef void send_waiting(self) noexcept nogil:
        cdef PeerCall* call
        while self.waiting is not NULL and self.state == PEER_ATTACHED and self.may_send(self.waiting):
            call = self.waiting
            self.waiting = call.next
            if self.waiting is NULL:
                self.waiting_last = NULL
            self.waiting_count -= 1
            call.next = NULL
            self.send(call)

    cdef void left(self, PeerCall* call) noexcept nogil:
        """The kernel does not read the call's memory any more."""
        call.leaving = False
        if call.replied and self.state == PEER_ATTACHED:
            self.finish(call)
            self.send_waiting()

    cdef void finish(self, PeerCall* call) noexcept nogil:
        self.slots[call.slot] = NULL
        self.free_slots[self.free_count] = call.slot
        self.free_count += 1
        call.slot = -1
        call.operation.done(&call.operation)

    # ------------------------------------------------------------------ replies

    cdef void listen(self) noexcept nogil:
        cdef uint32_t pending = self.filled - self.begin
        if self.receiving or self.state != PEER_ATTACHED:
            return
        self.receiving = True
        self.direct = self.current is not NULL
        if self.direct:
            self.io.receive(
                &self.receive,
                self.connection,
                self.current.into + self.current.arrived,
                self.current.expected - self.current.arrived,
            )
            return
        if self.begin and (pending == 0 or PEER_RECEIVE_BYTES - self.filled < ROOM_BYTES):
            memmove(self.received, self.received + self.begin, pending)
            self.begin = 0
            self.filled = pending
        self.io.receive(&self.receive, self.connection, self.received + self.filled, PEER_RECEIVE_BYTES - self.filled)

    cdef void receive_done(self) noexcept nogil:
        cdef uint32_t bytes = <uint32_t>max(self.receive.result, 0)
        self.receiving = False
        if self.state != PEER_ATTACHED:
            self.ask()
            return
        if self.receive.result <= 0:
            self.lose(PEER_BY_CLOSE if self.receive.result == 0 else PEER_BY_ERROR)
            return
        if self.direct:
            self.payload_arrived(self.current, bytes)
        else:
            self.filled += bytes
        self.parse()
        self.send_waiting()
        self.listen()

    cdef void parse(self) noexcept nogil:
        cdef bint stuck = False
        while self.state == PEER_ATTACHED and not stuck:
            stuck = self.take_frame() if self.current is NULL else self.take_payload()

    cdef bint take_frame(self) noexcept nogil:
        """True: more input is needed, or the connection is lost."""
        cdef PeerReply* reply = <PeerReply*>(self.received + self.begin)
        cdef const char* words
        cdef PeerCall* call
        if self.filled - self.begin < FRAME_BYTES:
            return True
        words = self.reply_fault_of(reply)
        if words is not NULL:
            self.words = words
            self.lose(PEER_BY_MALFORMED)
            return True
        self.begin += FRAME_BYTES
        call = self.slots[reply.id & (SLOTS - 1)]
        call.operation.result = status_error(reply.status)
        call.count, call.more, call.fence, call.boot = reply.count, reply.flags & PEER_MORE, reply.fence, reply.boot
        call.unmapped, call.payload_crc = reply.flags & PEER_UNMAPPED != 0, reply.payload_crc
        call.expected = reply.payload_bytes
        self.current = call
        self.payload_arrived(call, 0)
        return False

    cdef const char* reply_fault_of(self, const PeerReply* reply) noexcept nogil:
        """Why it is no reply to a call under way, or NULL."""
        cdef Fault fault = reply_fault(reply)
        cdef PeerCall* call = self.slots[reply.id & (SLOTS - 1)]
        if fault.words is not NULL:
            return fault.words
        if call is NULL or call.replied or (<PeerRequest*>call.item.header).id != reply.id:
            return b"it replies to no request under way"
        if (<PeerRequest*>call.item.header).kind != reply.kind:
            return b"it is of another kind than its request"
        if reply.status:
            return NULL
        if is_of_volume(reply.kind):
            return self.volume_reply_fault_of(reply, <const VolumeRequest*>call.item.header)
        if is_read(reply.kind):
            if reply.payload_bytes != call.room or reply.count:
                return b"it has not the blocks that were asked for"
            return NULL
        if reply.count > call.room // ENTRY_BYTES or reply.payload_bytes != reply.count * ENTRY_BYTES:
            return b"its payload has not the length of its entries"
        if reply.kind == PEER_HEARTBEAT and reply.counter != (<PeerRequest*>call.item.header).counter:
            return b"it echoes another counter"
        return NULL

    cdef const char* volume_reply_fault_of(self, const PeerReply* reply, const VolumeRequest* asked) noexcept nogil:
        cdef uint64_t payload = 0
        if reply.kind == PEER_VOLUME_READ and not reply.flags & PEER_UNMAPPED:
            payload = asked.blocks * BLOCK_BYTES
        if reply.payload_bytes != payload:
            return b"it has not the blocks that were asked for"
        if reply.kind == PEER_VOLUME_STATUS and not 1 <= reply.count <= asked.blocks:
            return b"it describes more blocks than were asked for, or none"
        return NULL

    cdef bint take_payload(self) noexcept nogil:
        """Copy what was received of the current reply's payload. True: more is needed."""
        cdef PeerCall* call = self.current
        cdef uint32_t bytes = min(self.filled - self.begin, call.expected - call.arrived)
        memcpy(call.into + call.arrived, self.received + self.begin, bytes)
        self.begin += bytes
        self.payload_arrived(call, bytes)
        return self.current is not NULL

    cdef void payload_arrived(self, PeerCall* call, uint32_t bytes) noexcept nogil:
        call.arrived += bytes
        if call.arrived < call.expected:
            return
        self.current = NULL
        call.replied = True
        self.credit_requests += 1
        self.credit_bytes += call.cost
        if not call.leaving:
            self.finish(call)


cdef inline void append(PeerCall** first, PeerCall** last, PeerCall* call) noexcept nogil:
    call.next = NULL
    if last[0] is NULL:
        first[0] = call
    else:
        last[0].next = call
    last[0] = call


# ---------------------------------------------------------------------- callbacks

cdef void receive_ends(Operation* operation) noexcept nogil:
    (<Peer>operation.owner).receive_done()


cdef void turn_ends(Operation* operation) noexcept nogil:
    (<Peer>operation.owner).turn_ended()


cdef void requests_change(void* peer) noexcept nogil:
    (<Peer>peer).requests_changed()


cdef void item_leaves(SendItem* item) noexcept nogil:
    cdef PeerCall* call = <PeerCall*>item.owner
    (<Peer>call.peer).left(call)
