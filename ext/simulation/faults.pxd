# The simulated world's faults: their probabilities and counts. They are drawn from a Prng of their own: switching a
# fault off leaves the order of events unchanged up to the first event that it would have hit.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.prng cimport Prng, happens

cdef enum FaultKind:                 # in the order of the fields of Faults
    READ_ERROR                       # EIO for this one read
    WRITE_ERROR                      # EIO; nothing or any of its sectors were written
    FLUSH_ERROR                      # EIO; makes nothing durable, and the next flush may succeed
    DROPPING_FLUSH_ERROR             # EIO; loses any part of the cache, as a power cut does. The next flush may succeed
    FORGETTING_FLUSH_ERROR           # EIO; cached data stays readable, but no later flush makes it durable
    LOST_WRITE                       # acknowledged, never arrives
    MISDIRECTED_WRITE                # acknowledged, arrives elsewhere on the device
    ROT                              # permanent, of data being read: a bit, a sector or a block
    SLOW                             # the operation takes up to 100 times as long
    HANG                             # the operation takes 30 s to 10 min
    TIMER_EARLY                      # by up to a sixteenth
    TIMER_LATE                       # by up to a quarter and 10 ms
    CLOCK_JUMP                       # a face's unix_ns jumps by up to 10 s, either way
    CONNECTION_CUT                   # both ends are reset, data in flight is lost; per send
    CONNECTION_HALF_OPEN             # sent data never arrives from then on, silently; per send
    NETWORK_SLOW                     # up to 100 times the delay
    STALL                            # the device answers nothing for some time, or never again
    FULL_BELOW                       # for some time, writes to blocks that were never written get ENOSPC
    FAULTS

cdef struct Faults:                  # probabilities, 0 to 1, each per operation that it may hit
    double read_error
    double write_error
    double flush_error
    double dropping_flush_error
    double forgetting_flush_error
    double lost_write
    double misdirected_write
    double rot
    double slow
    double hang
    double timer_early
    double timer_late
    double clock_jump
    double connection_cut
    double connection_half_open
    double network_slow
    double stall
    double full_below

cdef enum:
    FAULTS_KEPT = 1024

cdef struct FaultRecord:
    int64_t time_ns
    int fault                        # a Fault
    int target                       # device or connection
    uint64_t offset                  # where it occurred (a misdirected write: where it arrived)
    uint64_t intended                # a misdirected write: where it should have arrived
    uint32_t bytes

cdef struct Injector:
    Faults probability
    Prng prng
    uint64_t counts[FAULTS]
    uint64_t recorded
    FaultRecord records[FAULTS_KEPT]      # the last ones, by recorded % FAULTS_KEPT

cdef inline bint strikes(Injector* injector, FaultKind fault) noexcept nogil:
    return happens(&injector.prng, (<double*>&injector.probability)[<int>fault])

cdef inline FaultRecord* record_fault(
    Injector* injector, FaultKind fault, int64_t time_ns, int target, uint64_t offset, uint32_t bytes
) noexcept nogil:
    cdef FaultRecord* record = &injector.records[injector.recorded % FAULTS_KEPT]
    injector.recorded += 1
    injector.counts[<int>fault] += 1
    record.time_ns = time_ns
    record.fault = fault
    record.target = target
    record.offset = offset
    record.intended = offset
    record.bytes = bytes
    return record
