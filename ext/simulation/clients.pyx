# Clients of a simulation run: they speak NBD's transmission phase over the world's network, and the engine's own code
# (exports/nbd/connection.pyx) answers them.
#
#     AWAY ── a request ──> CONNECTED ── reset, or timeout ──> LEAVING ── the engine's side has ended ──> AWAY
#                               └─ leave(): DISC or stop() ─────^
#
# Always true:
#   - a call is answered once or vanishes once; it vanishes only when the engine's side of its connection has ended. So
#     it has no effect after that, and the oracle can treat it as failed;
#   - replies follow the protocol: each is to an open call, and a read gets all of its bytes or an error;
#   - a connection that has ended holds no request;
#   - if the other end of a connection dies silently, the network cuts the connection in the end, as the kernel does for
#     TCP; if it is alive and takes nothing, the client disconnects.
#
# Called by simulation/simulated_volume.pyx, on the run's thread.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.simulation.prng cimport below, seed_prng
from iomesh.engine.exports.nbd.connection cimport BY_MALFORMED, CLOSED, ENDED, NbdConnection
from iomesh.engine.exports.nbd.wire cimport (
    CHUNK_BYTES, CHUNK_DONE, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_MAGIC, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, CMD_DISC, CMD_READ, CMD_WRITE, REQUEST_BYTES, REQUEST_MAGIC, SIMPLE_BYTES, SIMPLE_MAGIC, get16,
    get32, get64, get_cookie, put16, put32, put64, put_cookie
)

cdef enum:
    MAGIC_BYTES = 4
    CONNECTIONS_MAX = 40             # in one process: each costs some memory
    LEAVES_OF_256 = 1                # calls after which a client closes without DISC

cdef int64_t PATIENCE_NS = 20 * <int64_t>(1000 * 1000 * 1000)         # the client's receive timeout
cdef int64_t KEEPALIVE_NS = 20 * <int64_t>(1000 * 1000 * 1000)        # the network's timeout for a dead other end


cdef class Clients:
    """io: of a face of `world`, which `volume` uses, too. most: clients at once. seed: of their random generator.
    lossy: the network may lose data. Raises MemoryError."""

    def __cinit__(self, World world, Io io, int face, Volume volume, uint32_t most, uint64_t seed, *, bint lossy):
        cdef uint32_t i
        self.world, self.io, self.face, self.volume = world, io, face, volume
        self.most = most
        seed_prng(&self.prng, seed)
        self.lossy = lossy
        self.servers = [None] * CLIENTS
        self.all = <Client*>calloc(CLIENTS, sizeof(Client))
        if self.all is NULL:
            raise MemoryError("no memory for clients")
        for i in range(CLIENTS):
            self.all[i].all = <void*>self
            self.all[i].place = i
            self.all[i].receive.owner = self.all[i].send.owner = self.all[i].clock.owner = &self.all[i]
            self.all[i].receive.done = received
            self.all[i].send.done = sent
            self.all[i].clock.done = clock_rang

    def __dealloc__(self):
        release(self.all)

    cdef uint64_t draw(self, uint64_t limit) noexcept nogil:
        return below(&self.prng, limit)

    # ------------------------------------------------------------------ requests

    cdef bint ask(
        self, uint16_t command, uint16_t flags, uint64_t offset, uint32_t bytes, char* data, void* tag
    ) noexcept nogil:
        cdef Client* client = &self.all[self.draw(self.most)]
        cdef ClientCall* call = NULL
        cdef uint32_t i
        if self.leaving or client.state == LEAVING or (client.state == AWAY and not self.connect(client)):
            return False
        for i in range(CALLS):
            if client.calls[i].tag is NULL:
                call = &client.calls[i]
                break
        if call is NULL or client.over:
            return False
        self.calls += 1
        self.cookies += 1
        call.tag = tag
        call.command = command
        call.cookie = self.cookies
        call.offset = offset
        call.bytes = bytes
        call.came = 0
        call.error = 0
        call.data = data
        put32(call.header, REQUEST_MAGIC)
        put16(call.header + 4, flags)
        put16(call.header + 6, command)
        put_cookie(call.header + 8, call.cookie)
        put64(call.header + 16, offset)
        put32(call.header + 24, bytes)
        call.next = NULL
        if client.unsent_first is NULL:
            client.unsent_first = call
        else:
            client.unsent_last.next = call
        client.unsent_last = call
        if client.open_calls == 0:
            client.heard_ns = self.io.now_ns()
        client.open_calls += 1
        self.watch(client)
        self.begin_send(client)
        if self.draw(256) < LEAVES_OF_256:
            self.hang_up(client)
        return True

    cdef bint connect(self, Client* client) noexcept with gil:
        """Raises nothing: without memory there is no connection."""
        cdef NbdConnection server
        cdef int here, there
        if self.connections == CONNECTIONS_MAX or self.world.connect(self.face, self.face, &here, &there) < 0:
            return False
        client.structured = self.draw(2)
        server = NbdConnection(self.volume, structured=client.structured, context_id=None, read_only=False)
        server.connection = self.io.add_connection(there)
        server.ended.owner = client
        server.ended.done = server_ended
        self.servers[client.place] = server
        self.connections += 1
        client.server = <void*>server
        client.connection = here
        client.state = CONNECTED
        client.server_ended = client.over = client.parting = False
        client.have, client.need = 0, MAGIC_BYTES
        client.left = 0
        client.reading = client.unsent_first = client.unsent_last = NULL
        server.start()
        self.begin_receive(client)
        return True

    cdef void begin_send(self, Client* client) noexcept nogil:
        cdef ClientCall* call
        cdef int parts = 0
        if client.sending or client.over or client.unsent_first is NULL:
            return
        while client.unsent_first is not NULL and parts + 2 <= 2 * CALLS_PER_SEND:
            call = client.unsent_first
            client.unsent_first = call.next
            client.parts[parts].iov_base = call.header
            client.parts[parts].iov_len = REQUEST_BYTES
            parts += 1
            if call.command == CMD_WRITE:
                client.parts[parts].iov_base = call.data
                client.parts[parts].iov_len = call.bytes
                parts += 1
        client.sending = True
        self.io.send(&client.send, client.connection, client.parts, parts)

    cdef void begin_receive(self, Client* client) noexcept nogil:
        client.receiving = True
        self.io.receive(
            &client.receive,
            client.connection,
            client.received,
            RECEIVED_BYTES if self.draw(4) else 1 + <uint32_t>self.draw(4096),
        )

    # ------------------------------------------------------------------ replies

    cdef void heard(self, Client* client, const char* data, uint32_t bytes) noexcept nogil:
        cdef uint32_t piece
        client.heard_ns = self.io.now_ns()
        while bytes and self.words[0] == 0:
            if client.left:
                piece = min(bytes, client.left)
                memcpy(client.into, data, piece)
                client.into += piece
                client.left -= piece
                if client.left == 0 and client.ends:
                    self.end_call(client, client.reading, client.reading.error)
            else:
                piece = min(bytes, client.need - client.have)
                memcpy(&client.reply[client.have], data, piece)
                client.have += piece
                if client.have == client.need:
                    self.header_came(client)
            data += piece
            bytes -= piece

    cdef void header_came(self, Client* client) noexcept nogil:
        """Handles the header bytes received so far: the magic first, then the rest."""
        cdef uint32_t magic = get32(client.reply), length
        cdef uint16_t kind
        cdef bint last
        cdef ClientCall* call
        if client.have == MAGIC_BYTES:
            client.need = SIMPLE_BYTES if magic == SIMPLE_MAGIC else CHUNK_BYTES
            if magic != SIMPLE_MAGIC and (magic != CHUNK_MAGIC or not client.structured):
                self.fault(b"a reply begins with %llx", magic, 0)
            return
        call = self.call_of(client)
        if call is NULL:
            return
        if magic == SIMPLE_MAGIC:
            client.have, client.need = 0, MAGIC_BYTES
            if call.command == CMD_READ and get32(client.reply + 4) == 0:
                self.data_comes(client, call, call.offset, call.bytes, True)
            else:
                self.end_call(client, call, <int>get32(client.reply + 4))
            return
        kind = get16(client.reply + 6)
        length = get32(client.reply + 16)
        last = get16(client.reply + 4) & CHUNK_DONE
        if client.have == CHUNK_BYTES and kind != CHUNK_NONE:
            client.need = CHUNK_BYTES + (8 if kind == CHUNK_OFFSET_DATA else length)
            if call.command != CMD_READ or client.need > REPLY_BYTES_MAX or length < 6:
                self.fault(b"a chunk of type %llx has %llu bytes", kind, length)
            return
        client.have, client.need = 0, MAGIC_BYTES
        if kind == CHUNK_OFFSET_DATA:
            self.data_comes(client, call, get64(client.reply + CHUNK_BYTES), length - 8, last)
            return
        if kind == CHUNK_OFFSET_HOLE:
            self.data_comes(
                client, call, get64(client.reply + CHUNK_BYTES), get32(client.reply + CHUNK_BYTES + 8), last
            )
            memset(client.into, 0, client.left)
            client.left = 0
        elif kind == CHUNK_ERROR or kind == CHUNK_ERROR_OFFSET:
            call.error = <int>get32(client.reply + CHUNK_BYTES)
        elif kind != CHUNK_NONE:
            self.fault(b"a chunk is of type %llx", kind, 0)
        if last:
            self.end_call(client, call, call.error)

    cdef ClientCall* call_of(self, Client* client) noexcept nogil:
        cdef uint64_t cookie = get_cookie(client.reply + 8)
        cdef uint32_t i
        for i in range(CALLS):
            if client.calls[i].tag is not NULL and client.calls[i].cookie == cookie:
                return &client.calls[i]
        self.fault(b"a reply is to request %llu, which nobody waits for", cookie, 0)
        return NULL

    cdef void data_comes(
        self, Client* client, ClientCall* call, uint64_t offset, uint32_t bytes, bint ends
    ) noexcept nogil:
        if offset < call.offset or offset + bytes > call.offset + call.bytes:
            self.fault(b"a read is answered with bytes of %llu, %llu of them, which it did not ask for", offset, bytes)
            return
        client.reading = call
        client.into = call.data + (offset - call.offset)
        client.left = bytes
        client.ends = ends
        call.came += bytes

    cdef void end_call(self, Client* client, ClientCall* call, int error) noexcept nogil:
        cdef void* tag = call.tag
        if call.command == CMD_READ and error == 0 and call.came != call.bytes:
            self.fault(b"a read is answered with %llu bytes instead of %llu", call.came, call.bytes)
        call.tag = NULL
        client.open_calls -= 1
        self.answered(self.owner, tag, error)

    # ------------------------------------------------------------------ the end

    cdef bint leave(self) noexcept nogil:
        cdef Client* client
        cdef uint32_t i
        cdef bint anyone = False
        self.leaving = True
        for i in range(CLIENTS):
            client = &self.all[i]
            anyone = anyone or client.state != AWAY
            if client.state == CONNECTED and not client.parting:
                client.parting = True
                if client.open_calls or client.sending or self.draw(2):
                    (<NbdConnection>client.server).stop()
                else:
                    self.leave_politely(client)
        return not anyone

    cdef void leave_politely(self, Client* client) noexcept nogil:
        memset(client.calls[0].header, 0, REQUEST_BYTES)
        put32(client.calls[0].header, REQUEST_MAGIC)
        put16(client.calls[0].header + 6, CMD_DISC)
        client.parts[0].iov_base = client.calls[0].header
        client.parts[0].iov_len = REQUEST_BYTES
        client.sending = True
        self.io.send(&client.send, client.connection, client.parts, 1)
        client.heard_ns = self.io.now_ns()
        self.watch(client)

    cdef void hang_up(self, Client* client) noexcept nogil:
        """Closes the client's end, even if more data may arrive."""
        if client.state != CONNECTED:
            return
        client.state = LEAVING
        client.over = True
        client.left_ns = self.io.now_ns()
        self.io.close(client.connection)
        self.watch(client)

    cdef void watch(self, Client* client) noexcept nogil:
        if self.lossy and not client.watching:
            client.watching = True
            self.io.after(&client.clock, PATIENCE_NS // 4)

    cdef void look(self, Client* client) noexcept nogil:
        cdef int64_t now_ns = self.io.now_ns()
        client.watching = False
        if client.state == CONNECTED and (client.open_calls or client.sending or self.leaving):
            if now_ns - client.heard_ns > PATIENCE_NS:
                self.hang_up(client)
            self.watch(client)
        elif client.state == LEAVING and not client.server_ended:
            if now_ns - client.left_ns > KEEPALIVE_NS and (<NbdConnection>client.server).state < CLOSED:
                self.world.network.cut((<NbdConnection>client.server).connection)
            self.watch(client)

    cdef void turn(self) noexcept nogil:
        cdef uint32_t i
        for i in range(CLIENTS):
            if self.all[i].state == LEAVING and self.all[i].server_ended:
                self.settle(&self.all[i], <NbdConnection>self.all[i].server)

    cdef void settle(self, Client* client, NbdConnection server) noexcept nogil:
        """Releases a client with both ends closed."""
        cdef void* tag
        cdef uint32_t i
        if client.watching and self.io.cancel(&client.clock):
            client.watching = False
        if client.receiving or client.sending or client.watching or self.words[0]:
            return
        if server.open_requests or server.state != ENDED:
            self.fault(b"a connection has ended with %llu requests in state %llu", server.open_requests, server.state)
        if server.end == BY_MALFORMED:
            self.fault(b"the engine takes what a client has sent for malformed", 0, 0)
        for i in range(CALLS):
            tag = client.calls[i].tag
            client.calls[i].tag = NULL
            if tag is not NULL:
                self.lost += 1
                self.vanished(self.owner, tag)
        client.open_calls = 0
        client.state = AWAY
        self.forget(client)

    cdef void forget(self, Client* client) noexcept with gil:
        client.server = NULL
        self.servers[client.place] = None

    cdef void fault(self, const char* words, uint64_t a, uint64_t b) noexcept nogil:
        if self.words[0] == 0:
            snprintf(self.words, sizeof(self.words), words, <unsigned long long>a, <unsigned long long>b)


# ---------------------------------------------------------------------- completion callbacks

cdef void received(Operation* operation) noexcept nogil:
    take_in(<Clients>(<Client*>operation.owner).all, <Client*>operation.owner)


cdef void take_in(Clients self, Client* client) noexcept nogil:
    client.receiving = False
    if client.receive.result > 0 and not client.over:
        self.heard(client, client.received, <uint32_t>client.receive.result)
        self.begin_receive(client)
    else:
        self.hang_up(client)


cdef void sent(Operation* operation) noexcept nogil:
    cdef Client* client = <Client*>operation.owner
    client.sending = False
    (<Clients>client.all).begin_send(client)             # an error is reported by the receive


cdef void clock_rang(Operation* operation) noexcept nogil:
    (<Clients>(<Client*>operation.owner).all).look(<Client*>operation.owner)


cdef void server_ended(Operation* operation) noexcept nogil:
    (<Client*>operation.owner).server_ended = True
