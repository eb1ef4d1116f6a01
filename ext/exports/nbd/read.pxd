# Answers the reads of an NBD connection. See exports/nbd/read.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.exports.nbd.replies cimport Replies
from iomesh.engine.exports.nbd.request cimport NbdRequest, Piece
from iomesh.engine.volume.target cimport Target

cdef enum:
    PIECES_MAX = 128                 # of one connection at a time
    PIECES_PER_REQUEST = 4           # at a time: 4 MiB in flight keep a device and a client busy
    UNFRAGMENTED_BYTES = 1024 * 1024     # limit of a read that must not be fragmented

cdef enum ReplyForm:
    SCATTERED                        # chunks, each sent when it is ready
    GATHERED                         # one header, then the data in order, sent when all of it is read
    STREAMED                         # one header, then the data in order, sent as it is read

cdef class NbdReader:
    cdef Target volume
    cdef Target successor            # see NbdConnection
    cdef Replies replies
    cdef bint structured
    cdef void (*over)(NbdRequest* request) noexcept nogil     # the whole reply was sent or dropped
    cdef void (*broken)(void* owner) noexcept nogil           # a reply cannot be completed: end the connection
    cdef void* owner
    cdef Piece* pieces
    cdef Piece* free_pieces
    cdef uint32_t free_count
    cdef uint32_t held[2]            # buffers, by kind
    cdef uint32_t held_most[2]
    cdef NbdRequest* wanting_first   # reads without buffers
    cdef NbdRequest* wanting_last
    cdef Operation buffer            # waits for a buffer of the pool
    cdef bint waiting
    cdef int waiting_kind
    cdef bint streaming              # at most one read at a time
    cdef bint closed
    cdef void read(self, NbdRequest* request) noexcept nogil      # at least 1 byte, within the volume
    cdef void close(self) noexcept nogil                          # drop all replies; reads under way end with `over`
    cdef void go_on(self) noexcept nogil
    cdef bint begin(self, NbdRequest* request) noexcept nogil
    cdef void issue(self, Piece* piece) noexcept nogil
    cdef void ask(self, Piece* piece) noexcept nogil
    cdef void piece_done(self, Piece* piece) noexcept nogil
    cdef void scatter(self, Piece* piece) noexcept nogil
    cdef void gather(self, NbdRequest* request) noexcept nogil
    cdef void stream(self, NbdRequest* request) noexcept nogil
    cdef void stream_failed(self, NbdRequest* request) noexcept nogil
    cdef void fail(self, NbdRequest* request) noexcept nogil
    cdef void release_ready(self, NbdRequest* request) noexcept nogil
    cdef void release(self, Piece* piece) noexcept nogil
    cdef void settle(self, NbdRequest* request) noexcept nogil
    cdef void woken(self) noexcept nogil
