# How an NBD connection answers reads. See exports/nbd/read.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.exports.nbd.replies cimport Replies
from iomesh.engine.exports.nbd.request cimport NbdRequest, Piece
from iomesh.engine.volume.volume cimport Volume

cdef enum:
    PIECES_MAX = 128                 # of one connection at a time
    PIECES_PER_REQUEST = 4           # at a time: 4 MiB under way keep a device and a client busy
    UNFRAGMENTED_BYTES = 1024 * 1024     # what a read that must not be fragmented may ask for

cdef enum ReplyForm:
    SCATTERED                        # chunks, each when it is ready
    GATHERED                         # one header, then the data in order, sent when all of it is there
    STREAMED                         # one header, then the data in order, sent as it comes

cdef class NbdReader:
    cdef Volume volume
    cdef Replies replies
    cdef bint structured
    cdef void (*over)(NbdRequest* request) noexcept nogil     # all of a read's answer has left: the request is its owner's again
    cdef void (*broken)(void* owner) noexcept nogil           # an answer could not be finished: end the connection
    cdef void* owner
    cdef Piece* pieces
    cdef Piece* free_pieces
    cdef uint32_t free_count
    cdef uint32_t held[2]            # buffers, by kind
    cdef uint32_t held_most[2]
    cdef NbdRequest* wanting_first   # reads that have no buffers yet
    cdef NbdRequest* wanting_last
    cdef Operation buffer            # waits for one in the pool
    cdef bint waiting
    cdef int waiting_kind
    cdef bint streaming              # one at a time
    cdef bint closed
    cdef void read(self, NbdRequest* request) noexcept nogil      # its offset and bytes (at least 1) lie within the volume
    cdef void close(self) noexcept nogil                          # answers matter no more; what is under way comes back through `over`
    cdef void go_on(self) noexcept nogil
    cdef bint begin(self, NbdRequest* request) noexcept nogil
    cdef void issue(self, Piece* piece) noexcept nogil
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
