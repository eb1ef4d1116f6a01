# The simulated world's connections. See simulation/network.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.event_queue cimport EventQueue, EventKind
from iomesh.engine.simulation.prng cimport Prng
from iomesh.engine.simulation.faults cimport Injector
from iomesh.engine.base.io cimport Operation

cdef enum:
    ENDS_MAX = 1024
    PIPE_BYTES = 256 * 1024          # the capacity of one direction, in flight or not yet received

cdef struct ConnectionSide:
    bint used
    bint closing                     # by its own node
    int face
    int peer                         # -1: none any more
    uint32_t generation
    int error                        # of every further operation: -ECONNRESET
    bint finished                    # the peer's orderly close has arrived
    bint deaf                        # data sent to it is lost, silently
    bint held                        # nothing that is sent to it arrives before hold() ends, ...
    uint64_t held_bytes              # ... then these
    bint held_end                    # ... and the peer's orderly close
    uint32_t endings                 # its operations that are ready and not completed
    char* pipe                       # incoming data: bytes of [taken, sent) at place % PIPE_BYTES
    uint64_t sent, arrived, taken
    int64_t last_ns                  # arrival time of the data sent last
    Operation* receiving
    Operation* sending

cdef class Network:
    cdef EventQueue event_queue
    cdef Injector* injector
    cdef Prng* prng
    cdef int64_t* delay_ns
    cdef ConnectionSide ends[ENDS_MAX]

    cdef int connect(self, int face_a, int face_b, int* a, int* b) noexcept nogil      # 0 or -EMFILE, -ENOMEM
    cdef void receive(self, int number, Operation* operation) noexcept nogil
    cdef void send(self, int number, Operation* operation) noexcept nogil
    cdef void close(self, int number) noexcept nogil
    cdef void cut(self, int number) noexcept nogil               # the whole connection: both ends are reset
    cdef void half_open(self, int number) noexcept nogil         # data that this end sends from now on never arrives
    # A partition, in one direction: whatever is sent from now on to the ends of face `to`, by face `sender`, arrives
    # once this ends. A reset is lost: the end learns of it when it sends.
    cdef void hold(self, int sender, int to, bint held) noexcept nogil
    cdef void leave(self, int face, bint silently) noexcept nogil        # a node ended; the world drops its operations
    cdef bint occur(self, uint32_t event) noexcept nogil         # an event of the world itself is due
    cdef void handed_back(self, int number) noexcept nogil       # an operation of it was completed
    cdef int take_end(self) noexcept nogil
    cdef void pump(self, int number) noexcept nogil
    cdef void put_into(self, int number, const char* data, uint32_t bytes) noexcept nogil
    cdef void arriving(self, int number, uint64_t bytes) noexcept nogil
    cdef void arriving_event(self, int number, EventKind kind, uint64_t bytes) noexcept nogil
    cdef void reset(self, int number) noexcept nogil
    cdef void deliver(self, int number) noexcept nogil
    cdef void fail(self, int number, int error) noexcept nogil
    cdef void end_operation(self, int number, Operation* operation, int64_t result) noexcept nogil
    cdef void give_up(self, int number) noexcept nogil
    cdef int64_t delay(self, int number) noexcept nogil
