# One client of the peer protocol, at the node that holds the devices (docs/protocols.md): receives requests, passes
# them to the stores, sends the replies. Python does the handshake.
#
#     OPEN ---- stop() ----> DRAINING ---- no request is open any more, or GRACE_NS ----> CLOSED ----> ENDED
#       \---- the client left, the socket broke, an invalid frame, no credit ---------------^
#
#   OPEN: requests are accepted. DRAINING: no new ones; open requests are finished and answered. CLOSED: the socket is
#   gone; requests that a store still works on complete, and their replies are dropped. ENDED: nothing refers to the
#   connection any more; `ended` is done.
#
# The states of a request:
#
#     taken ---> payload ---> verified ---> at the store ---> answered ---> over      WRITE; of a volume: at the volume
#       |---------------------------------> at the store ---> answered ---> over      others; HEARTBEAT store by store
#       |---> payload is skipped -----------------------> answered ---> over          a kind that is not known
#       '---> payload, which does not arrive ---> over                                the connection broke
#
# Always true:
#   - an entry of the table is free or has one request; a request is over exactly once, when its reply was sent or
#     dropped and no receive writes into its buffer;
#   - a WRITE reaches a store only whole and verified (format/peer.pyx);
#   - a client that sends an invalid frame, or more than its credits allow, is cut off. What it sent before is executed;
#   - a client that does not receive its replies holds its own connection's buffers and no others.
#
# A store on this reactor is called directly. A request for another goes to its home and back as two messages that are
# part of the request; device operations run there. WRITE and READ allocate nothing and start no task.

from libc.errno cimport EBADMSG, ENODEV, EOPNOTSUPP, ETIMEDOUT
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.pool cimport LARGE, SMALL, SMALL_BUFFER_BYTES, Pool
from iomesh.engine.base.reactor cimport Message, Reactor
from iomesh.engine.format.layout cimport BLOCK_BYTES, Fault
from iomesh.engine.format.peer cimport (
    ENTRY_BYTES, FRAME_BYTES, PEER_HEARTBEAT, PEER_LIST, PEER_MORE, PEER_UNMAPPED, PEER_VOLUME_READ,
    PEER_VOLUME_STATUS, PEER_WRITE, PeerReply, PeerRequest, VolumeRequest, frame_cost, is_of_volume, is_read,
    kind_known, request_fault, seal_reply, wire_status, write_fault)
from iomesh.engine.replicas.send_queue cimport SendItem, SendQueue
from iomesh.engine.replicas.served_store cimport ServedStore, ServedStores, StoreRequest

cdef enum:
    GRACE_NS = 2 * 1000000000        # for a client to receive its last replies when the server ends the connection
    ROOM_BYTES = 16 * 1024           # with less room than this behind it, input is moved to the front

SERVER_ENDS = ("closed", "error", "malformed", "credits", "stopped")      # by ServerEnd


def credits() -> tuple[int, int]:
    """What a client is told in the handshake: requests, bytes."""
    return CREDIT_REQUESTS, CREDIT_BYTES


cdef class Server:
    """Raises MemoryError."""

    def __cinit__(self, Reactor reactor, ServedStores stores):
        cdef ServerRequest* request
        cdef uint32_t i
        self.reactor, self.io, self.stores = reactor, reactor.io, stores
        self.connection = -1
        self.pool = Pool(SMALL_BUFFERS, LARGE_BUFFERS, 0)
        self.replies = SendQueue(reactor)
        self.replies.owner = <void*>self
        self.replies.changed = replies_change
        self.received = <char*>malloc(RECEIVE_BYTES)
        self.table = <ServerRequest*>calloc(REQUESTS_MAX, sizeof(ServerRequest))
        if self.received is NULL or self.table is NULL:
            raise MemoryError("no memory for the requests of a peer's connection")
        for i in range(REQUESTS_MAX, 0, -1):
            request = &self.table[i - 1]
            request.server = <void*>self
            request.request.owner = request
            request.request.done = store_done
            request.reply.owner = request
            request.reply.left = reply_leaves
            request.there.owner = request.back.owner = request
            request.there.deliver = arrives_at_home
            request.back.deliver = comes_back
            request.next = self.free_requests
            self.free_requests = request
        self.receive.done = receive_ends
        self.receive.owner = <void*>self
        self.again.done = turn_ends
        self.again.owner = <void*>self
        self.grace.done = grace_ends
        self.grace.owner = <void*>self

    def __dealloc__(self):
        free(self.received)
        free(self.table)

    cdef void start(self) noexcept nogil:
        self.replies.begin(self.connection)
        self.listen()

    cdef void stop(self) noexcept nogil:
        if self.state == SERVER_OPEN:
            self.drain(SERVER_BY_STOP)

    # ------------------------------------------------------------------ input

    cdef void listen(self) noexcept nogil:
        """Start the next receive: into the buffer of the request whose payload is arriving, otherwise for frames."""
        cdef uint32_t pending = self.filled - self.begin
        if self.receiving or self.state != SERVER_OPEN or self.starved:
            return
        self.direct = self.current is not NULL and self.current.request.buffer is not NULL
        if self.direct:
            self.receiving = True
            self.io.receive(
                &self.receive,
                self.connection,
                self.current.request.buffer + self.current.arrived,
                self.current.request.frame.payload_bytes - self.current.arrived,
            )
            return
        if self.begin and (pending == 0 or RECEIVE_BYTES - self.filled < ROOM_BYTES):
            memmove(self.received, self.received + self.begin, pending)
            self.begin = 0
            self.filled = pending
        self.receiving = True
        self.io.receive(&self.receive, self.connection, self.received + self.filled, RECEIVE_BYTES - self.filled)

    cdef void receive_done(self) noexcept nogil:
        cdef uint32_t bytes = <uint32_t>max(self.receive.result, 0)
        self.receiving = False
        if self.state != SERVER_OPEN:
            self.ask_again()
        elif self.receive.result <= 0:
            self.close(SERVER_BY_CLOSE if self.receive.result == 0 else SERVER_BY_ERROR)
        elif self.direct:
            self.payload_arrived(self.current, bytes)
            self.go_on()
        else:
            self.filled += bytes
            self.go_on()

    cdef void go_on(self) noexcept nogil:
        self.parse()
        self.listen()

    cdef void parse(self) noexcept nogil:
        cdef bint stuck = False
        while self.state == SERVER_OPEN and not stuck:
            stuck = self.take_frame() if self.current is NULL else self.take_payload()

    cdef bint take_frame(self) noexcept nogil:
        """True: more input, an entry or a buffer is needed, or the connection is closed."""
        cdef PeerRequest* frame = <PeerRequest*>(self.received + self.begin)
        cdef ServerRequest* request = self.free_requests
        cdef uint32_t cost
        cdef char* buffer = NULL
        cdef Fault fault
        if self.filled - self.begin < FRAME_BYTES:
            return True
        fault = request_fault(frame)
        if fault.words is not NULL:
            self.words = fault.words
            self.close(SERVER_BY_MALFORMED)
            return True
        cost = frame_cost(frame)
        if self.credit_requests == CREDIT_REQUESTS or self.credit_bytes + cost > CREDIT_BYTES:
            self.close(SERVER_BY_CREDITS)
            return True
        if request is not NULL and cost and kind_known(frame.kind):
            buffer = self.pool.take(SMALL if cost <= SMALL_BUFFER_BYTES else LARGE)
        if request is NULL or (buffer is NULL and cost and kind_known(frame.kind)):
            self.starved = True
            return True
        self.free_requests = request.next
        self.open_requests += 1
        self.requests += 1
        self.credit_requests += 1
        self.credit_bytes += cost
        request.cost = cost
        request.arrived = request.visited = request.request.count = 0
        request.request.fence = 0
        request.request.unmapped = request.request.abandoned = False
        request.request.buffer = buffer
        request.request.result = 0
        request.request.frame = frame[0]
        self.begin += FRAME_BYTES
        if frame.payload_bytes:
            self.current = request
        else:
            self.dispatch(request)
        return False

    cdef bint take_payload(self) noexcept nogil:
        """Copy what was received of the current request's payload. True: more is needed."""
        cdef ServerRequest* request = self.current
        cdef uint32_t bytes = min(self.filled - self.begin, request.request.frame.payload_bytes - request.arrived)
        if request.request.buffer is not NULL:
            memcpy(request.request.buffer + request.arrived, self.received + self.begin, bytes)
        self.begin += bytes
        self.payload_arrived(request, bytes)
        return self.current is not NULL

    cdef void payload_arrived(self, ServerRequest* request, uint32_t bytes) noexcept nogil:
        request.arrived += bytes
        if request.arrived == request.request.frame.payload_bytes:
            self.current = NULL
            self.dispatch(request)

    # ------------------------------------------------------------------ requests

    cdef void dispatch(self, ServerRequest* request) noexcept nogil:
        cdef PeerRequest* frame = &request.request.frame
        cdef void* store
        if not kind_known(frame.kind):
            self.answer(request, -EOPNOTSUPP)
            return
        if frame.kind == PEER_HEARTBEAT:
            self.heartbeat_on(request)
            return
        if is_of_volume(frame.kind):
            self.ask_volume(request)
            return
        if frame.kind == PEER_WRITE and write_fault(frame, request.request.buffer).words is not NULL:
            self.answer(request, -EBADMSG)
            return
        store = self.stores.find(frame.device)
        if store is NULL:
            self.answer(request, -ENODEV)
        else:
            self.ask_store(request, store)

    cdef void ask_volume(self, ServerRequest* request) noexcept nogil:
        cdef VolumeRequest* frame = <VolumeRequest*>&request.request.frame
        request.store = NULL
        if self.begin_volume is NULL:
            self.answer(request, -EOPNOTSUPP)
        elif frame.payload_bytes and crc32c(request.request.buffer, frame.payload_bytes) != frame.payload_crc:
            self.answer(request, -EBADMSG)
        else:
            self.begin_volume(self.volume, &request.request)

    cdef void ask_store(self, ServerRequest* request, void* store) noexcept nogil:
        request.store = store
        if (<ServedStore>store).home is self.reactor:
            (<ServedStore>store).begin(&request.request)
        else:
            (<ServedStore>store).home.post(&request.there)

    cdef void request_done(self, ServerRequest* request) noexcept nogil:
        if request.request.frame.kind == PEER_HEARTBEAT:
            request.visited += 1
            self.heartbeat_on(request)
        else:
            self.answer(request, request.request.result)

    cdef void heartbeat_on(self, ServerRequest* request) noexcept nogil:
        """Ask the next store for its state. One that is being closed has none."""
        if request.visited < self.stores.count and request.request.count < request.request.frame.blocks:
            self.ask_store(request, self.stores.stores[request.visited])
        else:
            request.request.more = request.visited < self.stores.count
            self.answer(request, 0)

    # ------------------------------------------------------------------ output

    cdef void answer(self, ServerRequest* request, int result) noexcept nogil:
        cdef PeerRequest* frame = &request.request.frame
        cdef PeerReply* reply = <PeerReply*>request.reply.header
        memset(reply, 0, sizeof(PeerReply))
        reply.kind = frame.kind
        reply.id = frame.id
        reply.status = wire_status(result)
        reply.fence = request.request.fence
        request.reply.data = request.request.buffer
        request.reply.data_bytes = 0
        if frame.kind == PEER_HEARTBEAT:
            reply.counter = frame.counter
            reply.boot = self.io.boot
            reply.fence = 0 if self.stores.leases is None else self.stores.leases.give(self.io.monotonic_ns())
        if result == 0 and is_read(frame.kind):
            request.reply.data_bytes = frame.blocks * BLOCK_BYTES
        elif result == 0 and frame.kind == PEER_VOLUME_READ:
            reply.flags = PEER_UNMAPPED if request.request.unmapped else 0
            if not request.request.unmapped:
                request.reply.data_bytes = <uint32_t>(<VolumeRequest*>frame).blocks * BLOCK_BYTES
                reply.payload_crc = crc32c(request.request.buffer, request.reply.data_bytes)
        elif result == 0 and frame.kind == PEER_VOLUME_STATUS:
            reply.flags = PEER_UNMAPPED if request.request.unmapped else 0
            reply.count = request.request.count
        elif result == 0 and (frame.kind == PEER_LIST or frame.kind == PEER_HEARTBEAT):
            reply.count = request.request.count
            reply.flags = PEER_MORE if request.request.more else 0
            request.reply.data_bytes = reply.count * ENTRY_BYTES
        reply.payload_bytes = request.reply.data_bytes
        seal_reply(reply)
        if request.reply.data_bytes == 0:
            self.give_back_buffer(request)
        self.credit_requests -= 1                        # before the client can see the reply
        self.credit_bytes -= request.cost
        self.replies.add(&request.reply)

    cdef void reply_left(self, ServerRequest* request) noexcept nogil:
        self.over(request)

    cdef void over(self, ServerRequest* request) noexcept nogil:
        invariant(self.open_requests > 0, b"a request is over once")
        self.give_back_buffer(request)
        request.next = self.free_requests
        self.free_requests = request
        self.open_requests -= 1
        if self.starved or self.state != SERVER_OPEN:
            self.ask_again()

    cdef void give_back_buffer(self, ServerRequest* request) noexcept nogil:
        if request.request.buffer is not NULL:
            if request.request.result == -ETIMEDOUT:     # its device may still use the buffer
                self.pool.lose(request.request.buffer)
            else:
                self.pool.give_back(request.request.buffer)
            request.request.buffer = NULL
            if self.starved:
                self.ask_again()

    # ------------------------------------------------------------------ the end

    cdef void abandon(self) noexcept nogil:
        """What takes long ends soon: the client's next connection waits for it."""
        cdef int i
        for i in range(REQUESTS_MAX):
            self.table[i].request.abandoned = True

    cdef void drain(self, ServerEnd end) noexcept nogil:
        self.state = SERVER_DRAINING
        self.end = end
        self.abandon()
        self.grace_running = True
        self.io.after(&self.grace, GRACE_NS)
        self.ask_again()

    cdef void close(self, ServerEnd end) noexcept nogil:
        if self.state >= SERVER_CLOSED:
            return
        if self.state == SERVER_OPEN:
            self.end = end
        self.state = SERVER_CLOSED
        self.abandon()
        if self.grace_running and self.io.cancel(&self.grace):
            self.grace_running = False
        self.io.close(self.connection)
        self.replies.drop()
        self.ask_again()

    cdef void replies_changed(self) noexcept nogil:
        if self.replies.broken:
            self.close(SERVER_BY_ERROR)
        if self.state != SERVER_OPEN:
            self.ask_again()

    cdef void ask_again(self) noexcept nogil:
        if not self.asked_again:
            self.asked_again = True
            self.reactor.at_turn_end(&self.again)

    cdef void turn_ended(self) noexcept nogil:
        """The steps that must not run inside another callback."""
        cdef ServerRequest* request = self.current
        self.asked_again = False
        if self.state == SERVER_OPEN and self.starved:
            self.starved = False
            self.go_on()
        if self.state == SERVER_DRAINING and self.open_requests == (self.current is not NULL) and self.replies.idle():
            self.close(self.end)
        if self.state != SERVER_CLOSED or self.receiving:
            return
        request = self.current
        if request is not NULL:                          # the rest of its payload will not arrive
            self.current = NULL
            self.over(request)
        if self.open_requests == 0 and self.replies.idle() and not self.grace_running and not self.asked_again:
            self.state = SERVER_ENDED
            self.ended.result = self.end
            self.reactor.at_turn_end(&self.ended)


# ---------------------------------------------------------------------- callbacks

cdef void receive_ends(Operation* operation) noexcept nogil:
    (<Server>operation.owner).receive_done()


cdef void turn_ends(Operation* operation) noexcept nogil:
    (<Server>operation.owner).turn_ended()


cdef void grace_ends(Operation* operation) noexcept nogil:
    (<Server>operation.owner).grace_running = False
    (<Server>operation.owner).close(SERVER_BY_STOP)
    (<Server>operation.owner).ask_again()


cdef void replies_change(void* server) noexcept nogil:
    (<Server>server).replies_changed()


cdef void reply_leaves(SendItem* reply) noexcept nogil:
    cdef ServerRequest* request = <ServerRequest*>reply.owner
    (<Server>request.server).reply_left(request)


cdef void store_done(StoreRequest* done) noexcept nogil:
    """On the store's home."""
    cdef ServerRequest* request = <ServerRequest*>done.owner
    if request.store is NULL or (<ServedStore>request.store).home is (<Server>request.server).reactor:
        (<Server>request.server).request_done(request)
    else:
        (<Server>request.server).reactor.post(&request.back)


cdef void arrives_at_home(Message* message) noexcept nogil:
    cdef ServerRequest* request = <ServerRequest*>message.owner
    (<ServedStore>request.store).begin(&request.request)


cdef void comes_back(Message* message) noexcept nogil:
    cdef ServerRequest* request = <ServerRequest*>message.owner
    (<Server>request.server).request_done(request)
