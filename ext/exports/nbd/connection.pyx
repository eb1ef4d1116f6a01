# One client in NBD's transmission phase (docs/nbd.md): receives bytes, passes requests to the volume, sends replies.
# Python does the handshake.
#
#     OPEN --- DISC, end of input, bad input, stop() --> DRAINING --- no request is open any more --> CLOSED --> ENDED
#       \------------- the socket broke -------------------\-------------------------------------------^
#
#   OPEN: requests are accepted. DRAINING: no new ones; open requests are finished and answered. CLOSED: the socket is
#   gone; requests that the volume still works on complete, and their replies are dropped. ENDED: nothing refers to the
#   connection any more; `ended` is done.
#
# The states of a request:
#
#     taken ---> payload <-> blocked ---> complete ---> finished ---+      a write: passed on as it arrives, copied once
#       |------> advancing <-> waiting -> complete ---> finished ---+      trim, write-zeroes, cache, block status
#       |------> flushing ------------------------------ finished ---+---> answered ---> over
#       |------> refused --------------------------------------------+
#       \------> read: exports/nbd/read.pyx ------------------------------------------------------> over
#
# Always true:
#   - an entry of the table is free or has one request; a request ends exactly once, after its reply was sent or
#     dropped;
#   - received[begin:filled] is the input that is not parsed yet; it is moved only while no receive is under way;
#   - while the volume accepts nothing of a write (`blocked`), later input is scanned only for the blocks of writes, to
#     prefetch their map leaves;
#   - a connection that follows its volume to another owner (leave) moves between two requests: what was begun is
#     answered before, nothing is begun until it has moved;
#   - a client's input can end its own connection and nothing else. The limits are those of docs/nbd.md.

from libc.errno cimport EINVAL, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM, ESHUTDOWN
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memmove, memset

from iomesh.engine.history.difference cimport compare
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS
from iomesh.engine.exports.nbd.read cimport UNFRAGMENTED_BYTES, NbdReader
from iomesh.engine.exports.nbd.replies cimport Replies, Reply
from iomesh.engine.exports.nbd.request cimport ZEROS, NbdRequest, account
from iomesh.engine.exports.nbd.wire cimport (
    CAN_MULTI_CONN, CHUNK_BLOCK_STATUS, CHUNK_NONE, CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLUSH, CMD_READ,
    CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE, HAS_FLAGS,
    PAYLOAD_BYTES_MAX, READ_ONLY, REQUEST_BYTES, REQUEST_MAGIC, SEND_CACHE, SEND_DF, SEND_FAST_ZERO, SEND_FLUSH,
    SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, STATE_CHANGED, STATE_HOLE, STATE_ZERO, get16, get32, get64, get_cookie,
    put32, put_chunk, put_error_chunk, put_simple, wire_error
)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport wake_all
from iomesh.engine.log.request cimport Request
from iomesh.engine.volume.target cimport Target, exchange
from iomesh.engine.volume.volume cimport Volume

cdef extern from "<errno.h>" nogil:
    int ESTALE

cdef enum:
    GRACE_NS = 2 * 1000000000        # for a client to receive its last replies when the server ends the connection
    COMPACT_BYTES = 8 * 1024         # moving this much to the front of the buffer costs little
    ROOM_BYTES = 64 * 1024           # with less room than this, moving pays
    STATUS_STEPS = 1024              # map look-ups for one block status: 1 GiB of a densely mapped volume

ENDS = ("disconnect", "closed", "malformed", "stopped")      # by ConnectionEnd


def transmission_flags(*, bint read_only, bint volatile_cache, bint structured) -> int:
    """The NBD transmission flags that this engine's connections support."""
    cdef int flags = HAS_FLAGS | CAN_MULTI_CONN | SEND_CACHE
    if structured:
        flags |= SEND_DF
    if read_only:
        return flags | READ_ONLY
    if volatile_cache:
        flags |= SEND_FLUSH | SEND_FUA
    return flags | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO


cdef class NbdConnection:
    """structured: structured replies were negotiated. context_id: the id of the metadata context, or None. Raises
    MemoryError."""

    def __cinit__(self, Target volume, *, bint structured, context_id, bint read_only):
        cdef NbdRequest* request
        cdef uint32_t i
        self.volume = volume
        self.io = volume.io
        self.reactor = volume.reactor
        self.structured = structured
        self.read_only = read_only
        self.has_context = context_id is not None
        self.context = context_id or 0
        self.connection = -1
        self.replies = Replies(volume.reactor, volume.io, volume.pool)
        self.replies.owner = <void*>self
        self.replies.changed = replies_changed
        self.reader = NbdReader(volume, self.replies, structured)
        self.reader.owner = <void*>self
        self.reader.over = read_over
        self.reader.broken = read_broken
        self.received = <char*>malloc(RECEIVE_BYTES)
        self.status = <char*>malloc(4 + 8 * STATUS_EXTENTS)
        self.table = <NbdRequest*>calloc(REQUESTS_MAX, sizeof(NbdRequest))
        if self.received is NULL or self.status is NULL or self.table is NULL:
            raise MemoryError("no memory for a connection's requests")
        for i in range(REQUESTS_MAX, 0, -1):
            request = &self.table[i - 1]
            request.connection = <void*>self
            request.when.done = request_goes_on
            request.when.owner = request
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
        free(self.status)
        free(self.table)

    cdef void start(self) noexcept nogil:
        self.replies.connection = self.connection
        self.listen()

    cdef void stop(self) noexcept nogil:
        if self.state <= DRAINING:
            self.drain(BY_STOP)
            self.give_grace()
            self.ask_again()

    # ------------------------------------------------------------------ another owner

    cdef void join_volume(self) noexcept nogil:
        self.next_connection = self.volume.connection_list
        self.volume.connection_list = <void*>self
        self.volume.connections += 1

    cdef void leave_volume(self) noexcept nogil:
        cdef void** place = &self.volume.connection_list
        while place[0] is not <void*>self:
            place = &(<NbdConnection>place[0]).next_connection
        place[0] = self.next_connection
        self.volume.connections -= 1
        wake_all(&self.volume.connections_changed, 0)

    cdef void leave(self) noexcept nogil:
        if self.state == OPEN:
            self.leaving = True
            self.ask_again()

    cdef void stay(self) noexcept nogil:
        self.leaving = False
        self.ask_again()

    cdef void move(self) noexcept nogil:
        invariant(self.open_requests == 0, b"a connection moves without open requests")
        if self.successor.lost:
            self.leaving = False
        else:
            self.switch_over()

    cdef void switch_over(self) noexcept nogil:
        cdef uint32_t i
        for i in range(REQUESTS_MAX):
            self.table[i].request.mixed = True           # a new request begins with False
        self.leaving = False
        self.leave_volume()
        exchange(self.volume, self.successor)
        exchange(self.reader.volume, self.reader.successor)
        self.join_volume()

    cdef bint is_left(self, const NbdRequest* request, int64_t result) noexcept nogil:
        """Whether it failed because the volume was lost: it is tried again with the volume's next owner."""
        return result == -ESTALE and request.request.mixed

    # ------------------------------------------------------------------ input

    cdef void listen(self) noexcept nogil:
        """Start the next receive, if there is room."""
        cdef uint32_t pending = self.filled - self.begin
        if self.receiving or self.state != OPEN or self.finished_sending:
            return
        if self.begin and (pending <= COMPACT_BYTES or RECEIVE_BYTES - self.filled < ROOM_BYTES):
            memmove(self.received, self.received + self.begin, pending)
            self.ahead = self.ahead - self.begin if self.ahead > self.begin else 0
            self.begin = 0
            self.filled = pending
        if self.filled < RECEIVE_BYTES:
            self.receiving = True
            self.io.receive(&self.receive, self.connection, self.received + self.filled, RECEIVE_BYTES - self.filled)

    cdef void receive_done(self) noexcept nogil:
        self.receiving = False
        if self.state >= CLOSED:
            self.ask_again()
        elif self.receive.result < 0:
            self.break_off()
        elif self.state == OPEN:
            self.filled += <uint32_t>self.receive.result
            self.finished_sending = self.receive.result == 0
            if self.blocked:
                self.look_ahead()
            self.go_on()

    cdef void go_on(self) noexcept nogil:
        self.parse()
        if self.state == OPEN and self.finished_sending and not (self.blocked or self.starved or self.leaving):
            self.drain(BY_CLOSE)                         # every complete request was accepted
            self.ask_again()
        self.listen()

    cdef void parse(self) noexcept nogil:
        while self.state == OPEN and not self.blocked:
            if self.current is not NULL:
                if not self.take_payload():
                    return
            elif self.leaving or self.filled - self.begin < REQUEST_BYTES:
                return
            elif self.free_requests is NULL:
                self.starved = True
                return
            else:
                self.take_request(self.received + self.begin)

    cdef void take_request(self, const char* header) noexcept nogil:
        cdef NbdRequest* request
        cdef uint16_t command = get16(header + 6)
        cdef uint32_t bytes = get32(header + 24)
        if get32(header) != REQUEST_MAGIC or (command == CMD_WRITE and bytes > PAYLOAD_BYTES_MAX):
            self.drain(BY_MALFORMED)                     # the start of the next request is unknown
            self.give_grace()
            self.ask_again()
            return
        self.begin += REQUEST_BYTES
        if command == CMD_DISC:
            self.drain(BY_DISCONNECT)
            self.ask_again()
            return
        self.requests += 1
        request = self.free_requests
        self.free_requests = request.next
        self.open_requests += 1
        memset(&request.request, 0, sizeof(Request))
        request.request.finished = request_finished
        request.request.session = <void*>self
        request.request.stable = get16(header + 4) & FLAG_FUA != 0 and not planted(b"fua_not_passed_on")
        request.reply.left = reply_left
        request.reply.owner = request
        request.next = NULL
        request.command = command
        request.flags = get16(header + 4)
        request.cookie = get_cookie(header + 8)
        request.offset = request.position = get64(header + 16)
        request.bytes = bytes
        request.end = request.offset + bytes             # may wrap; check() then refuses the request
        self.reactor.users_there()
        request.began_ns = self.reactor.users_ns
        request.with_volume = False
        request.pieces = request.under_way = 0
        request.first = request.last = NULL
        request.header_sent = request.failed = request.replying = False
        request.error = self.check(request)
        if command == CMD_WRITE:
            if request.error:
                request.position = 0                     # only its payload matters now, and its end may have wrapped
                request.end = bytes
            self.current = request
        elif request.error:
            self.answer(request)
        else:
            self.dispatch(request)

    cdef int check(self, const NbdRequest* request) noexcept nogil:
        """The errno to refuse the request with, or 0."""
        cdef uint64_t size = self.volume.blocks * BLOCK_BYTES
        cdef uint16_t command = request.command
        cdef int allowed = FLAG_FUA                      # with every command: some clients send it with any
        cdef bint changes = command == CMD_WRITE or command == CMD_TRIM or command == CMD_WRITE_ZEROES
        if command > CMD_BLOCK_STATUS:
            return EINVAL
        if command == CMD_READ and self.structured:
            allowed |= FLAG_DF
        elif command == CMD_WRITE_ZEROES:
            allowed |= FLAG_NO_HOLE | FLAG_FAST_ZERO
        elif command == CMD_BLOCK_STATUS:
            allowed |= FLAG_REQ_ONE
        if request.flags & ~allowed:
            return EINVAL
        if command == CMD_FLUSH:
            return EINVAL if request.offset or request.bytes else 0
        if changes and self.read_only:
            return EPERM
        if request.offset > size or request.bytes > size - request.offset:
            return ENOSPC if command == CMD_WRITE or command == CMD_WRITE_ZEROES else EINVAL
        if command == CMD_READ and request.bytes > PAYLOAD_BYTES_MAX:
            return EINVAL
        if request.flags & FLAG_DF and request.bytes > UNFRAGMENTED_BYTES:
            return EOVERFLOW
        if request.flags & FLAG_FAST_ZERO and request.flags & FLAG_NO_HOLE:
            return EOPNOTSUPP                            # blocks that must be allocated are written: not fast
        if command == CMD_BLOCK_STATUS and (not self.has_context or request.bytes == 0):
            return EINVAL
        return 0

    cdef void dispatch(self, NbdRequest* request) noexcept nogil:
        cdef uint64_t misfit = BLOCK_BYTES - 1
        if request.command == CMD_READ:
            if request.bytes == 0:
                self.answer(request)
            else:
                self.reader.read(request)
        elif request.command == CMD_FLUSH and planted(b"flush_told_early"):
            self.answer(request)
        elif request.command == CMD_FLUSH:
            request.with_volume = True
            self.volume.flush(&request.request)
        elif request.command == CMD_BLOCK_STATUS:
            self.queue_status(request)
        else:
            if request.command == CMD_TRIM:              # whole blocks only
                request.position = (request.position + misfit) & ~misfit
                request.end = request.end & ~misfit
            elif request.command == CMD_CACHE:
                request.position = request.position & ~misfit
                request.end = (request.end + misfit) & ~misfit
            self.advance(request)

    # ------------------------------------------------------------------ writes

    cdef bint take_payload(self) noexcept nogil:
        """Pass the received payload of the current write to the volume. False: more input is needed, or the volume
        accepts nothing now."""
        cdef NbdRequest* request = self.current
        cdef const char* data
        cdef uint32_t available, left, start, blocks
        cdef uint64_t block
        cdef int64_t taken
        while request.position < request.end:
            available = self.filled - self.begin
            left = <uint32_t>(request.end - request.position)
            start = request.position % BLOCK_BYTES
            block = request.position // BLOCK_BYTES
            data = self.received + self.begin
            if request.error:                            # refused or failed: skip the rest of its payload
                taken = left if left < available else available
                if taken == 0:
                    return False
            elif start or left < BLOCK_BYTES:
                if left > BLOCK_BYTES - start:
                    left = BLOCK_BYTES - start
                if available < left:
                    return False
                request.with_volume = True
                taken = self.volume.merge(&request.request, block, start, left, data, &request.when)
                taken = left if taken > 0 else taken
            else:
                blocks = (available if available < left else left) // BLOCK_BYTES
                if blocks == 0:
                    return False
                if blocks > NODE_POINTERS - block % NODE_POINTERS:
                    blocks = NODE_POINTERS - block % NODE_POINTERS
                request.with_volume = True
                taken = self.volume.write(&request.request, block, blocks, data, &request.when)
                if taken > 0:
                    taken *= BLOCK_BYTES
            if taken > 0:
                self.begin += <uint32_t>taken
                request.position += taken
            elif taken < 0 and not self.is_left(request, taken):
                request.error = <int>-taken
            elif taken == 0:
                self.blocked = True
                self.look_ahead()
                return False
        self.current = NULL
        self.complete(request)
        return True

    cdef void look_ahead(self) noexcept nogil:
        """While a write waits, prefetch the map leaves of the requests behind it."""
        cdef uint64_t at = self.begin + (self.current.end - self.current.position)
        cdef uint64_t size = self.volume.blocks * BLOCK_BYTES
        cdef uint64_t offset
        cdef uint16_t command
        cdef const char* header
        if at < self.ahead:
            at = self.ahead
        while at + REQUEST_BYTES <= self.filled:
            header = self.received + at
            command = get16(header + 6)
            offset = get64(header + 16)
            if get32(header) != REQUEST_MAGIC:
                break
            at += REQUEST_BYTES
            if command == CMD_WRITE or command == CMD_WRITE_ZEROES or command == CMD_TRIM:
                if offset < size:
                    self.volume.expect(offset // BLOCK_BYTES)
            if command == CMD_WRITE:
                at += get32(header + 24)
        self.ahead = <uint32_t>at if at < <uint32_t>-1 else 0

    cdef void complete(self, NbdRequest* request) noexcept nogil:
        if request.with_volume:
            self.volume.complete(&request.request)
        else:
            self.answer(request)

    # ------------------------------------------------------------------ trim, write-zeroes, cache

    cdef void advance(self, NbdRequest* request) noexcept nogil:
        """Continue a request without payload until it is complete or must wait."""
        cdef uint64_t block, left
        cdef uint32_t start, bytes, blocks
        cdef int64_t taken
        cdef bint mapped = False
        while request.position < request.end and request.error == 0:
            block = request.position // BLOCK_BYTES
            start = request.position % BLOCK_BYTES
            left = request.end - request.position
            if self.state >= CLOSED:
                taken = -ESHUTDOWN
            elif request.command == CMD_CACHE:           # data is not cached: warm the map
                taken = self.volume.alike(block, left // BLOCK_BYTES, &mapped, &request.when)
            elif start or left < BLOCK_BYTES:
                bytes = BLOCK_BYTES - start if left > BLOCK_BYTES - start else <uint32_t>left
                request.with_volume = True
                taken = self.volume.merge(&request.request, block, start, bytes, NULL, &request.when)
                if taken > 0:
                    request.position += bytes
                    continue
            elif request.flags & FLAG_NO_HOLE:
                blocks = NODE_POINTERS - block % NODE_POINTERS
                if left // BLOCK_BYTES < blocks:
                    blocks = <uint32_t>(left // BLOCK_BYTES)
                request.with_volume = True
                taken = self.volume.write(&request.request, block, blocks, ZEROS, &request.when)
            else:
                request.with_volume = True
                taken = self.volume.zero(&request.request, block, left // BLOCK_BYTES, &request.when)
            if taken == 0:
                return                                   # when_done() continues
            if taken > 0:
                request.position += <uint64_t>taken * BLOCK_BYTES
            elif not self.is_left(request, taken):
                request.error = <int>-taken
        self.complete(request)

    cdef void when_done(self, NbdRequest* request) noexcept nogil:
        if request.when.result < 0 and request.error == 0 and not self.is_left(request, request.when.result):
            request.error = <int>-request.when.result    # a retry would fail again
        if request is self.current:
            self.blocked = False
            if self.state == OPEN:
                self.go_on()
            else:
                self.abandon()
        elif request.command == CMD_BLOCK_STATUS:
            self.find_status()
        else:
            self.advance(request)

    cdef void abandon(self) noexcept nogil:
        """Complete the current write: the rest of its payload will not arrive."""
        cdef NbdRequest* request = self.current
        if request is not NULL and not self.blocked:
            self.current = NULL
            if request.error == 0 and not planted(b"half_a_write_told"):
                request.error = ESHUTDOWN
            self.complete(request)

    # ------------------------------------------------------------------ block status

    cdef void queue_status(self, NbdRequest* request) noexcept nogil:
        if self.status_last is NULL:
            self.status_first = self.status_last = self.status_begun = request
            self.find_status()
        else:
            self.status_last.next = request
            self.status_last = request

    cdef void find_status(self) noexcept nogil:
        """Continue the first request's extents. The request owns `status` until its reply was sent."""
        cdef NbdRequest* request = self.status_first
        cdef uint32_t extents_max = 1 if request.flags & FLAG_REQ_ONE else STATUS_EXTENTS
        cdef uint32_t state = 0, steps = 0
        cdef uint64_t block, up_to, end = request.end
        cdef int64_t found
        if request.position == request.offset:
            self.status_extents = 0
        while request.position < end and request.error == 0:
            block = request.position // BLOCK_BYTES
            found = (
                self.alike(block, (end - 1) // BLOCK_BYTES - block + 1, &state, &request.when)
                if self.state < CLOSED
                else -ESHUTDOWN
            )
            if found == 0:
                return                                   # when_done() continues
            if found < 0:
                if self.status_extents == 0:
                    request.error = <int>-found
                break
            up_to = (block + found) * BLOCK_BYTES
            if up_to > end:
                up_to = end
            if self.status_extents and self.status_state == state:
                self.status_length += <uint32_t>(up_to - request.position)
            elif self.status_extents == extents_max:
                break
            else:
                self.status_extents += 1
                self.status_state = state
                self.status_length = <uint32_t>(up_to - request.position)
            put32(self.status + 8 * self.status_extents - 4, self.status_length)
            put32(self.status + 8 * self.status_extents, state)
            request.position = up_to
            steps += 1
            if steps == STATUS_STEPS:
                break                                    # NBD allows fewer extents than requested
        put32(self.status, self.context)
        self.answer(request)

    cdef int64_t alike(self, uint64_t block, uint64_t most, uint32_t* state, Operation* when) noexcept nogil:
        """The number of blocks from `block` on with the same state in the negotiated context; 0: `when` completes when
        a retry makes sense; or a negative errno."""
        cdef bint mapped = False, differ = False
        cdef int64_t found
        if self.compared is NULL:
            found = self.volume.alike(block, most, &mapped, when)
            state[0] = 0 if mapped else STATE_HOLE | STATE_ZERO
        else:
            found = compare(self.older, (<Volume>self.volume).map, block, most, &differ, &mapped, when)
            state[0] = STATE_CHANGED if differ else 0
        return found

    # ------------------------------------------------------------------ output

    cdef void answer(self, NbdRequest* request) noexcept nogil:
        """Queue the reply of a completed request. Only the reply to a block status carries data."""
        cdef Reply* reply = &request.reply
        cdef uint64_t cookie = (
            self.table.cookie if planted(b"cookie_of_another") and self.open_requests > 1 else request.cookie
        )
        if request.error == 0 or request.with_volume:
            account(self.volume.counters, self.volume.latencies, request, self.io.now_ns())
        reply.data_bytes = 0
        if not self.structured or (request.command != CMD_READ and request.command != CMD_BLOCK_STATUS):
            reply.header_bytes = put_simple(reply.header, cookie, wire_error(request.error))
        elif request.error:
            reply.header_bytes = put_error_chunk(reply.header, cookie, True, wire_error(request.error))
        elif request.command == CMD_READ:                # of zero bytes
            reply.header_bytes = put_chunk(reply.header, cookie, CHUNK_NONE, True, 0)
        else:
            reply.data = self.status
            reply.data_bytes = 4 + 8 * self.status_extents
            reply.header_bytes = put_chunk(reply.header, cookie, CHUNK_BLOCK_STATUS, True, reply.data_bytes)
        self.replies.add(reply)

    cdef void request_over(self, NbdRequest* request) noexcept nogil:
        invariant(self.open_requests > 0, b"a request is over once")
        self.reactor.users_there()
        if request is self.status_first:
            self.status_begun = NULL
            self.status_first = request.next
            if self.status_first is NULL:
                self.status_last = NULL
        request.next = self.free_requests
        self.free_requests = request
        self.open_requests -= 1
        if self.starved or self.leaving or self.state != OPEN or self.status_first is not NULL:
            self.ask_again()

    # ------------------------------------------------------------------ the end

    cdef void drain(self, ConnectionEnd end) noexcept nogil:
        if self.state == OPEN:
            self.state = DRAINING
            self.end = end
            self.abandon()

    cdef void give_grace(self) noexcept nogil:
        if not self.grace_running:
            self.grace_running = True
            self.io.after(&self.grace, GRACE_NS)

    cdef void close(self) noexcept nogil:
        """Close the socket, after draining or after an error."""
        cdef uint32_t i
        if self.state != DRAINING:
            return
        self.state = CLOSED
        if self.grace_running and self.io.cancel(&self.grace):
            self.grace_running = False
        self.io.close(self.connection)
        self.replies.drop()
        self.reader.close()
        self.volume.abandon(<void*>self)
        for i in range(REQUESTS_MAX):
            self.table[i].request.session = NULL         # a volume that is lost leaves nothing of them to its heir
        self.ask_again()

    cdef void break_off(self) noexcept nogil:
        self.drain(BY_CLOSE)
        self.close()

    cdef void grace_ended(self) noexcept nogil:
        self.grace_running = False
        self.close()
        self.ask_again()

    cdef void changed(self) noexcept nogil:
        if self.replies.broken or self.replies.stalled:
            self.break_off()
        if self.state != OPEN:
            self.ask_again()

    cdef void ask_again(self) noexcept nogil:
        if not self.asked_again:
            self.asked_again = True
            self.reactor.at_turn_end(&self.again)

    cdef void turn_ended(self) noexcept nogil:
        """The steps that must not run inside another callback."""
        self.asked_again = False
        if self.status_first is not self.status_begun:
            self.status_begun = self.status_first
            self.find_status()
        if self.state == OPEN and self.leaving and self.open_requests == 0:
            self.move()
        if self.state == OPEN:
            self.starved = False
            self.go_on()
        if self.state == DRAINING and self.open_requests == 0 and self.replies.idle():
            self.close()
        if self.state == CLOSED and self.open_requests == 0 and not self.receiving and self.replies.idle() \
                and not self.grace_running and not self.replies.watching and not self.asked_again:
            self.state = ENDED
            self.ended.result = self.end
            self.reactor.at_turn_end(&self.ended)


# ---------------------------------------------------------------------- callbacks

cdef void receive_ends(Operation* operation) noexcept nogil:
    (<NbdConnection>operation.owner).receive_done()


cdef void turn_ends(Operation* operation) noexcept nogil:
    (<NbdConnection>operation.owner).turn_ended()


cdef void grace_ends(Operation* operation) noexcept nogil:
    (<NbdConnection>operation.owner).grace_ended()


cdef void request_goes_on(Operation* operation) noexcept nogil:
    cdef NbdRequest* request = <NbdRequest*>operation.owner
    (<NbdConnection>request.connection).when_done(request)


cdef void request_finished(Request* finished) noexcept nogil:
    cdef NbdRequest* request = <NbdRequest*>finished
    if request.error == 0:
        request.error = finished.error
    (<NbdConnection>request.connection).answer(request)


cdef void reply_left(Reply* reply) noexcept nogil:
    cdef NbdRequest* request = <NbdRequest*>reply.owner
    (<NbdConnection>request.connection).request_over(request)


cdef void replies_changed(void* connection) noexcept nogil:
    (<NbdConnection>connection).changed()


cdef void read_over(NbdRequest* request) noexcept nogil:
    (<NbdConnection>request.connection).request_over(request)


cdef void read_broken(void* connection) noexcept nogil:
    (<NbdConnection>connection).break_off()
