# Answers the reads of an NBD connection. A read is split into pieces at the leaves of the map. Each piece has a buffer
# of the reactor's pool until its bytes were sent.
#
#     read() -> wanting -> begun: pieces in flight <-> being sent -> over
#
# Always true:
#   - a read that has begun needs no further buffer to finish: it reuses its own, and where it cannot, it takes all that
#     it needs at once. So reads cannot deadlock on buffers, however small the pool is;
#   - a request returns to its owner (`over`) exactly once, when it has no piece and no part of its reply is being sent;
#   - every byte is verified before it is sent: an error is known before the first byte of its piece leaves.
#
# With structured replies, each piece is a chunk that is sent when it is ready, in any order (SCATTERED); a range that
# was never written is sent as a hole. A simple reply has one header before all its data. A read of up to four pieces
# waits for all of them, so that the header can report an error (GATHERED; also a read that must not be fragmented and
# crosses a leaf). A longer read sends its first piece when it is ready; a later error can only end the connection
# (STREAMED).

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS
from iomesh.engine.exports.nbd.request cimport ZEROS, NbdRequest, Piece, account
from iomesh.engine.exports.nbd.replies cimport Replies, Reply
from iomesh.engine.exports.nbd.wire cimport (
    FLAG_DF, put_data_chunk, put_error_chunk, put_error_offset_chunk, put_hole_chunk, put_simple, wire_error)
from iomesh.engine.base.pool cimport LARGE, LARGE_BUFFER_BYTES, SMALL, SMALL_BUFFER_BYTES
from iomesh.engine.log.request cimport Read
from iomesh.engine.base.task cimport Waiters, join, wake_one
from iomesh.engine.volume.target cimport Target


cdef class NbdReader:
    """Raises MemoryError."""

    def __cinit__(self, Target volume, Replies replies, bint structured):
        cdef uint64_t[2] bytes_of = [SMALL_BUFFER_BYTES, LARGE_BUFFER_BYTES]
        cdef uint32_t i
        cdef int kind
        self.volume = volume
        self.replies = replies
        self.structured = structured
        self.buffer.done = pool_wakes
        self.buffer.owner = <void*>self
        self.pieces = <Piece*>calloc(PIECES_MAX, sizeof(Piece))          # pages are allocated on first use
        if self.pieces is NULL:
            raise MemoryError("no memory for a connection's reads")
        for i in range(PIECES_MAX):
            self.pieces[i].read.done = read_done
            self.pieces[i].read.owner = &self.pieces[i]
            self.pieces[i].reply.left = piece_left
            self.pieces[i].reply.owner = &self.pieces[i]
            self.pieces[i].reader = <void*>self
            self.pieces[i].next = self.free_pieces
            self.free_pieces = &self.pieces[i]
        self.free_count = PIECES_MAX
        for kind in range(2):                            # half: one slow client leaves enough to others
            self.held_most[kind] = <uint32_t>(
                (volume.pool.starts[kind + 1] - volume.pool.starts[kind]) // bytes_of[kind] // 2
            )
            if self.held_most[kind] < PIECES_PER_REQUEST:
                self.held_most[kind] = PIECES_PER_REQUEST

    def __dealloc__(self):
        free(self.pieces)

    cdef void read(self, NbdRequest* request) noexcept nogil:
        cdef uint64_t leaves = (
            (request.end - 1) // (BLOCK_BYTES * NODE_POINTERS) - request.offset // (BLOCK_BYTES * NODE_POINTERS) + 1
        )
        if self.structured and (leaves == 1 or not request.flags & FLAG_DF):
            request.form = SCATTERED
        else:
            request.form = GATHERED if leaves <= PIECES_PER_REQUEST else STREAMED
        request.next = NULL
        if self.wanting_last is NULL:
            self.wanting_first = request
        else:
            self.wanting_last.next = request
        self.wanting_last = request
        self.go_on()

    cdef void close(self) noexcept nogil:
        cdef NbdRequest* request
        self.closed = True
        if self.waiting:
            leave(&self.volume.pool.waiters[self.waiting_kind], &self.buffer)
            self.waiting = False
        while self.wanting_first is not NULL:
            request = self.wanting_first
            self.wanting_first = request.next
            self.over(request)
        self.wanting_last = NULL

    # ------------------------------------------------------------------ starting a read

    cdef void go_on(self) noexcept nogil:
        """Start reads in arrival order while there are pieces and buffers."""
        cdef NbdRequest* request
        while self.wanting_first is not NULL and not self.waiting and self.begin(self.wanting_first):
            request = self.wanting_first
            self.wanting_first = request.next
            if self.wanting_first is NULL:
                self.wanting_last = NULL
            request.next = NULL

    cdef bint begin(self, NbdRequest* request) noexcept nogil:
        cdef uint64_t first = request.offset // BLOCK_BYTES
        cdef uint64_t last = (request.end - 1) // BLOCK_BYTES
        cdef uint64_t leaves = last // NODE_POINTERS - first // NODE_POINTERS + 1
        cdef int kind = SMALL if (last - first + 1) * BLOCK_BYTES <= SMALL_BUFFER_BYTES else LARGE
        cdef uint32_t needed = <uint32_t>leaves if request.form == GATHERED else 1
        cdef uint32_t wanted = <uint32_t>leaves if leaves < PIECES_PER_REQUEST else PIECES_PER_REQUEST
        cdef Piece* piece
        if (
            self.free_count < needed
            or self.held[kind] + needed > self.held_most[kind]
            or (request.form == STREAMED and self.streaming)
        ):
            return False                                 # the release of a piece, or the stream's end, retries
        if self.volume.pool.free[kind] < needed:
            self.waiting = True
            self.waiting_kind = kind
            join(&self.volume.pool.waiters[kind], &self.buffer)
            return False
        if request.form == STREAMED:
            self.streaming = True
        while wanted and self.free_count and self.held[kind] < self.held_most[kind] and self.volume.pool.free[kind]:
            piece = self.free_pieces
            self.free_pieces = piece.next
            self.free_count -= 1
            piece.buffer = self.volume.pool.take(kind)
            piece.kind = kind
            self.held[kind] += 1
            piece.request = request
            request.pieces += 1
            self.issue(piece)
            wanted -= 1
        return True

    cdef void issue(self, Piece* piece) noexcept nogil:
        """Read the next range of the request into this piece's buffer."""
        cdef NbdRequest* request = piece.request
        cdef uint64_t block = request.position // BLOCK_BYTES
        cdef uint64_t end = (block // NODE_POINTERS + 1) * NODE_POINTERS * BLOCK_BYTES
        if end > request.end:
            end = request.end
        piece.offset = request.position
        piece.bytes = <uint32_t>(end - request.position)
        piece.ready = False
        piece.next = NULL
        piece.read.block = block
        piece.read.count = <uint32_t>((end - 1) // BLOCK_BYTES - block + 1)
        piece.read.into = piece.buffer
        piece.read.session = self.owner
        piece.read.error = 0
        piece.read.unmapped = False
        request.position = end
        request.under_way += 1
        if request.form != SCATTERED:
            if request.first is NULL:
                request.first = piece
            else:
                request.last.next = piece
            request.last = piece
        self.ask(piece)

    cdef void ask(self, Piece* piece) noexcept nogil:
        piece.asked = <void*>self.volume
        self.volume.read(&piece.read)

    # ------------------------------------------------------------------ answering

    cdef void piece_done(self, Piece* piece) noexcept nogil:
        cdef NbdRequest* request = piece.request
        if piece.read.error and piece.asked is not <void*>self.volume and not self.closed:
            piece.read.error = 0
            self.ask(piece)                              # the volume was lost meanwhile: its next owner reads it
            return
        request.under_way -= 1
        piece.ready = True
        if piece.read.error and request.error == 0:
            request.error = piece.read.error
        piece.reply.header_bytes = 0
        piece.reply.data_bytes = piece.bytes
        piece.reply.data = ZEROS if piece.read.unmapped else piece.buffer + piece.offset % BLOCK_BYTES
        if request.form == SCATTERED:
            if self.closed:
                self.release(piece)
            else:
                self.scatter(piece)
        elif self.closed:
            self.release_ready(request)
        elif request.form == GATHERED:
            if request.under_way == 0:
                self.gather(request)
        elif request.error:
            self.stream_failed(request)
        else:
            self.stream(request)

    cdef void scatter(self, Piece* piece) noexcept nogil:
        cdef NbdRequest* request = piece.request
        cdef Reply* reply = &piece.reply
        cdef bint last = request.under_way == 0 and request.position == request.end
        if piece.read.error:
            reply.header_bytes = put_error_offset_chunk(
                reply.header, request.cookie, last, wire_error(piece.read.error), piece.offset
            )
            reply.data_bytes = 0
        elif piece.read.unmapped:
            reply.header_bytes = put_hole_chunk(reply.header, request.cookie, last, piece.offset, piece.bytes)
            reply.data_bytes = 0
        else:
            reply.header_bytes = put_data_chunk(reply.header, request.cookie, last, piece.offset, piece.bytes)
        if last:
            account(self.volume.counters, self.volume.latencies, request, self.volume.io.now_ns())
        self.replies.add(reply)

    cdef void gather(self, NbdRequest* request) noexcept nogil:
        cdef Piece* piece = request.first
        cdef Piece* following
        request.first = request.last = NULL
        if request.error:
            self.fail(request)
        else:
            account(self.volume.counters, self.volume.latencies, request, self.volume.io.now_ns())
            if self.structured:
                piece.reply.header_bytes = put_data_chunk(
                    piece.reply.header, request.cookie, True, request.offset, request.bytes
                )
            else:
                piece.reply.header_bytes = put_simple(piece.reply.header, request.cookie, 0)
        while piece is not NULL:
            following = piece.next
            if request.error:
                self.release(piece)
            else:
                self.replies.add(&piece.reply)
            piece = following

    cdef void stream(self, NbdRequest* request) noexcept nogil:
        """Send the ready pieces in order, up to the first that is not ready."""
        cdef Piece* piece
        cdef bint last = False
        while not last and request.first is not NULL and request.first.ready:
            piece = request.first
            request.first = piece.next
            if request.first is NULL:
                request.last = NULL
            last = piece.offset + piece.bytes == request.end
            if not request.header_sent:
                request.header_sent = True
                piece.reply.header_bytes = put_simple(piece.reply.header, request.cookie, 0)
            self.replies.add_to_stream(&piece.reply)
        if last:
            account(self.volume.counters, self.volume.latencies, request, self.volume.io.now_ns())
            self.streaming = False
            self.replies.end_stream()
            self.go_on()

    cdef void stream_failed(self, NbdRequest* request) noexcept nogil:
        """A piece completed after one of the pieces failed: nothing more is read or sent."""
        if request.header_sent:
            self.broken(self.owner)                      # closes this reader; pieces are released as they complete
        elif not request.failed:
            self.streaming = False
            self.fail(request)
        self.release_ready(request)

    cdef void fail(self, NbdRequest* request) noexcept nogil:
        """Reply with the error alone."""
        cdef Reply* reply = &request.reply
        account(self.volume.counters, self.volume.latencies, request, self.volume.io.now_ns())
        if self.structured:
            reply.header_bytes = put_error_chunk(reply.header, request.cookie, True, wire_error(request.error))
        else:
            reply.header_bytes = put_simple(reply.header, request.cookie, wire_error(request.error))
        reply.data_bytes = 0
        reply.left = error_left
        request.reader = <void*>self
        request.failed = request.replying = True
        self.replies.add(reply)

    # ------------------------------------------------------------------ finishing a read

    cdef void release_ready(self, NbdRequest* request) noexcept nogil:
        """Of pieces that are sent in order: release the ready ones, which will not be sent."""
        cdef Piece* piece = request.first
        cdef Piece* following
        request.first = request.last = NULL
        while piece is not NULL:
            following = piece.next
            if piece.ready:
                self.release(piece)
            else:
                piece.next = NULL
                if request.last is NULL:
                    request.first = piece
                else:
                    request.last.next = piece
                request.last = piece
            piece = following

    cdef void release(self, Piece* piece) noexcept nogil:
        """The piece was sent or dropped: read the request's next range with it, or free it."""
        cdef NbdRequest* request = piece.request
        cdef char* buffer = piece.buffer
        if request.position < request.end and not self.closed and (request.error == 0 or request.form == SCATTERED):
            self.issue(piece)
            return
        piece.request = NULL
        piece.buffer = NULL
        piece.next = self.free_pieces
        self.free_pieces = piece
        self.free_count += 1
        self.held[piece.kind] -= 1
        request.pieces -= 1
        self.settle(request)
        self.volume.pool.give_back(buffer)
        self.go_on()

    cdef void settle(self, NbdRequest* request) noexcept nogil:
        if request.pieces == 0 and not request.replying:
            self.over(request)

    cdef void woken(self) noexcept nogil:
        self.waiting = False
        self.go_on()
        if self.wanting_first is not NULL and not self.waiting:
            wake_one(&self.volume.pool.waiters[self.waiting_kind], 0)    # not usable here: let another waiter have it


cdef void read_done(Read* read) noexcept nogil:
    cdef Piece* piece = <Piece*>read.owner
    (<NbdReader>piece.reader).piece_done(piece)


cdef void piece_left(Reply* reply) noexcept nogil:
    cdef Piece* piece = <Piece*>reply.owner
    (<NbdReader>piece.reader).release(piece)


cdef void error_left(Reply* reply) noexcept nogil:
    cdef NbdRequest* request = <NbdRequest*>reply.owner
    request.replying = False
    (<NbdReader>request.reader).settle(request)


cdef void pool_wakes(Operation* operation) noexcept nogil:
    (<NbdReader>operation.owner).woken()


cdef void leave(Waiters* waiters, Operation* operation) noexcept nogil:
    """Remove an operation from the queue of waiters."""
    cdef Operation* before = NULL
    cdef Operation* place = waiters.first
    while place is not operation:
        invariant(place is not NULL, b"who waits for a buffer is in the queue")
        before = place
        place = place.next
    if before is NULL:
        waiters.first = operation.next
    else:
        before.next = operation.next
    if waiters.last is operation:
        waiters.last = before
    operation.next = NULL
