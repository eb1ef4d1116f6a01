# One client in NBD's transmission phase. exports/nbd/connection.pyx receives requests; exports/nbd/read.pyx answers
# reads.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.exports.nbd.read cimport NbdReader
from iomesh.engine.exports.nbd.replies cimport Replies, Reply
from iomesh.engine.exports.nbd.request cimport NbdRequest
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.map.map cimport Map
from iomesh.engine.volume.target cimport Target

cdef enum ConnectionState:
    OPEN, DRAINING, CLOSED, ENDED

cdef enum ConnectionEnd:             # reason for the end; names in ENDS
    BY_DISCONNECT, BY_CLOSE, BY_MALFORMED, BY_STOP

cdef enum:
    REQUESTS_MAX = 256               # of one connection at a time; further ones stay in the socket
    RECEIVE_BYTES = 264 * 1024       # limit of one receive: 64 writes of 4 KiB with their headers
    STATUS_EXTENTS = 1024            # of one block status reply

cdef class NbdConnection:
    # set before start():
    cdef int connection              # its number in the Io
    cdef Operation ended             # completes once nothing refers to the connection any more; result: a ConnectionEnd
    cdef void* next_connection       # in the volume's list
    # read by others:
    cdef uint64_t requests           # received so far
    cdef ConnectionState state
    cdef ConnectionEnd end

    cdef Target volume
    cdef Target successor            # set with the reader's, before leave(): where it moves to; then: whence it came
    cdef bint leaving                # it moves once no request is open; until then no request is begun
    cdef Io io
    cdef Reactor reactor
    cdef Replies replies
    cdef NbdReader reader
    cdef bint structured
    cdef bint read_only
    cdef bint has_context            # for block status; its id is `context`
    cdef Map older                   # block status reports changes since this snapshot; None: allocation
    cdef uint8_t since[16]           # the id of `older`
    cdef void* compared              # the Volume of both snapshots; NULL: no comparison
    cdef uint32_t context
    # input: received[begin:filled] is not parsed yet
    cdef char* received
    cdef uint32_t begin
    cdef uint32_t filled
    cdef uint32_t ahead              # the leaves of writes up to here were prefetched
    cdef Operation receive
    cdef bint receiving
    cdef bint finished_sending       # end of input from the client
    cdef NbdRequest* current         # a write whose payload is still arriving
    cdef bint blocked                # current.when is under way
    # requests
    cdef NbdRequest* table
    cdef NbdRequest* free_requests
    cdef uint32_t open_requests
    cdef bint starved                # input waits for a free entry in the table
    cdef Operation again             # parse at the turn's end
    cdef bint asked_again
    # block status: one at a time
    cdef NbdRequest* status_first
    cdef NbdRequest* status_last
    cdef NbdRequest* status_begun
    cdef char* status                # the reply's payload: the context's id, then extents
    cdef uint32_t status_extents
    cdef uint32_t status_state       # of the last extent
    cdef uint32_t status_length
    # the end
    cdef Operation grace
    cdef bint grace_running

    cdef void start(self) noexcept nogil          # on the volume's reactor
    cdef void stop(self) noexcept nogil           # on the volume's reactor: finish open requests, then end
    cdef void join_volume(self) noexcept nogil    # be in its list of connections; leave_volume(): not any more
    cdef void leave_volume(self) noexcept nogil
    # The volume gets, or has got, another owner: go on with `successor`, which is on the same reactor.
    cdef void leave(self) noexcept nogil
    cdef void stay(self) noexcept nogil           # not yet moved: do not
    cdef void move(self) noexcept nogil
    cdef void switch_over(self) noexcept nogil    # now: the volume was lost; it leaves open requests to `successor`
    cdef bint is_left(self, const NbdRequest* request, int64_t result) noexcept nogil
    # events
    cdef void receive_done(self) noexcept nogil
    cdef void when_done(self, NbdRequest* request) noexcept nogil
    cdef void turn_ended(self) noexcept nogil
    cdef void grace_ended(self) noexcept nogil
    cdef void changed(self) noexcept nogil
    cdef void request_over(self, NbdRequest* request) noexcept nogil
    cdef void break_off(self) noexcept nogil
    # steps
    cdef void listen(self) noexcept nogil
    cdef void go_on(self) noexcept nogil
    cdef void parse(self) noexcept nogil
    cdef void take_request(self, const char* header) noexcept nogil
    cdef int check(self, const NbdRequest* request) noexcept nogil
    cdef void dispatch(self, NbdRequest* request) noexcept nogil
    cdef bint take_payload(self) noexcept nogil
    cdef void look_ahead(self) noexcept nogil
    cdef void complete(self, NbdRequest* request) noexcept nogil
    cdef void advance(self, NbdRequest* request) noexcept nogil
    cdef void abandon(self) noexcept nogil
    cdef void queue_status(self, NbdRequest* request) noexcept nogil
    cdef void find_status(self) noexcept nogil
    cdef int64_t alike(self, uint64_t block, uint64_t most, uint32_t* state, Operation* when) noexcept nogil
    cdef void answer(self, NbdRequest* request) noexcept nogil
    cdef void drain(self, ConnectionEnd end) noexcept nogil
    cdef void give_grace(self) noexcept nogil
    cdef void close(self) noexcept nogil
    cdef void ask_again(self) noexcept nogil
