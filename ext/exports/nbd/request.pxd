# One open request of an NBD client. The connection owns it (exports/nbd/connection.pyx) and lends reads to its
# NbdReader (exports/nbd/read.pyx).

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.counters cimport (
    FLUSH_LATENCY, FLUSHES, READ_BYTES, READ_LATENCY, READS, TRIMMED_BYTES, TRIMS, WRITE_ERRORS, WRITE_LATENCY, WRITES,
    WRITTEN_BYTES, ZEROED_BYTES, ZEROES, observe
)
from iomesh.engine.base.io cimport Operation
from iomesh.engine.exports.nbd.replies cimport Reply
from iomesh.engine.exports.nbd.wire cimport CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES
from iomesh.engine.log.request cimport Read, Request

cdef struct NbdRequest

cdef struct Piece:                   # of a read: at most one leaf of the map, 1 MiB
    Read read                        # first member: the volume returns a pointer to it
    Reply reply
    void* reader
    void* asked                      # the Target that reads it
    NbdRequest* request
    Piece* next
    char* buffer
    int kind                         # of buffer
    uint64_t offset                  # of the first requested byte
    uint32_t bytes
    bint ready

cdef struct NbdRequest:
    Request request                  # first member: the volume returns a pointer to it
    Operation when                   # completed by the volume: retry now
    Reply reply                      # of a read: used only without data
    void* connection
    void* reader
    NbdRequest* next                 # in the current owner's list
    uint64_t cookie
    uint64_t offset                  # bytes, as requested
    uint64_t position                # bytes: the part from here on is still to be done
    uint64_t end
    int64_t began_ns
    uint32_t bytes                   # as requested
    uint16_t command
    uint16_t flags
    int error                        # a positive errno; 0: none
    bint with_volume                 # passed to the volume, which needs a complete() call
    # of a read:
    int form                         # ReplyForm
    uint32_t pieces                  # held
    uint32_t under_way               # of these being read by the volume
    Piece* first                     # in order; unused in SCATTERED
    Piece* last
    bint header_sent
    bint failed                      # `reply` reports it, and nothing else is sent
    bint replying                    # `reply` is queued or being sent

cdef extern from *:
    """
    static char nbd_zeros[1024 * 1024] __attribute__((aligned(4096)));     /* never written: costs no memory */
    """
    const char* ZEROS "nbd_zeros"

# Updates the counters, once for each request that was not refused, when its result is known. Errors of reads and of
# logged requests are counted where they occur; a write that the volume did not accept is counted here.
cdef inline void account(
    uint64_t* counters, uint64_t* latencies, const NbdRequest* request, int64_t now_ns
) noexcept nogil:
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
