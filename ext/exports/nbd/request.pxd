# One request of an NBD client while the engine has it. The connection owns it (exports/nbd/connection.pyx);
# a read is lent to its NbdReader (exports/nbd/read.pyx).

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.counters cimport (
    FLUSH_LATENCY, FLUSHES, READ_BYTES, READ_LATENCY, READS, TRIMMED_BYTES, TRIMS, WRITE_ERRORS, WRITE_LATENCY, WRITES, WRITTEN_BYTES, ZEROED_BYTES,
    ZEROES, observe)
from iomesh.engine.base.io cimport Operation
from iomesh.engine.exports.nbd.replies cimport Reply
from iomesh.engine.exports.nbd.wire cimport CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES
from iomesh.engine.log.request cimport Read, Request

cdef struct NbdRequest

cdef struct Piece:                   # of a read: at most one leaf of the map, 1 MiB
    Read read                        # first: the volume hands back a pointer to it
    Reply reply
    void* reader
    NbdRequest* request
    Piece* next
    char* buffer
    int kind                         # of buffer
    uint64_t offset                  # bytes, of the first one that was asked for
    uint32_t bytes
    bint ready

cdef struct NbdRequest:
    Request request                  # first: the volume hands back a pointer to it
    Operation when                   # the volume's: worth trying again
    Reply reply                      # its last word; of a read only when there is no data
    void* connection
    void* reader
    NbdRequest* next                 # of whoever holds it
    uint64_t cookie
    uint64_t offset                  # bytes, as asked
    uint64_t position                # bytes: from here on it is not dealt with yet
    uint64_t end
    int64_t began_ns
    uint32_t bytes                   # as asked
    uint16_t command
    uint16_t flags
    int error                        # a positive errno; 0: none
    bint with_volume                 # the volume has seen it and must be told that it is complete
    # of a read:
    int form                         # ReplyForm
    uint32_t pieces                  # held
    uint32_t under_way               # of them with the volume
    Piece* first                     # in order, unless it is scattered
    Piece* last
    bint header_sent
    bint failed                      # `reply` says so, and nothing more of it is sent
    bint replying                    # `reply` is on its way

cdef extern from *:
    """
    static char nbd_zeros[1024 * 1024] __attribute__((aligned(4096)));     /* never written: costs no memory */
    """
    const char* ZEROS "nbd_zeros"

# The books: called once for each request that was not refused, when its answer is known. Errors of reads and of what was logged are counted
# where they happen; a write that the volume did not take is counted here.
cdef inline void account(uint64_t* counters, uint64_t* latencies, const NbdRequest* request, int64_t now_ns) noexcept nogil:
    cdef int64_t took_ns = now_ns - request.began_ns
    if request.command == CMD_READ:
        count(counters, request, READS, READ_BYTES)
        observe(latencies, READ_LATENCY, took_ns)
    elif request.command == CMD_WRITE:
        count(counters, request, WRITES, WRITTEN_BYTES)
        observe(latencies, WRITE_LATENCY, took_ns)
    elif request.command == CMD_TRIM:
        count(counters, request, TRIMS, TRIMMED_BYTES)
    elif request.command == CMD_WRITE_ZEROES:
        count(counters, request, ZEROES, ZEROED_BYTES)
    elif request.command == CMD_FLUSH:
        counters[<int>FLUSHES] += 1
        observe(latencies, FLUSH_LATENCY, took_ns)
    if request.error and request.with_volume and not request.request.error:
        counters[<int>WRITE_ERRORS] += 1

cdef inline void count(uint64_t* counters, const NbdRequest* request, int requests, int bytes) noexcept nogil:
    counters[requests] += 1
    if request.error == 0:
        counters[bytes] += request.bytes
