# One client of the peer protocol, at the node that holds the devices. See replicas/server.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Message, Reactor
from iomesh.engine.format.peer cimport PeerRequest
from iomesh.engine.replicas.send_queue cimport SendItem, SendQueue
from iomesh.engine.replicas.served_store cimport ServedStores, StoreRequest

cdef enum ServerState:
    SERVER_OPEN, SERVER_DRAINING, SERVER_CLOSED, SERVER_ENDED

cdef enum ServerEnd:                 # why it ended; names in SERVER_ENDS
    SERVER_BY_CLOSE, SERVER_BY_ERROR, SERVER_BY_MALFORMED, SERVER_BY_CREDITS, SERVER_BY_STOP

cdef enum:
    # The credits of a client, which it is told in the handshake.
    CREDIT_REQUESTS = 64             # without a reply yet
    CREDIT_BYTES = 8 * 1024 * 1024   # payloads of these requests and of their replies
    REQUESTS_MAX = 96                # entries: one is in use until its reply has left, which the client may see earlier
    SMALL_BUFFERS = 64
    LARGE_BUFFERS = 16               # of 1 MiB; without a free one, input waits in the socket
    RECEIVE_BYTES = 64 * 1024

cdef struct ServerRequest:
    StoreRequest request             # first member: the store returns a pointer to it
    SendItem reply
    Message there                    # to the store's home, ...
    Message back                     # ... and back
    void* server
    void* store                      # ServedStore; NULL: it is of a volume
    ServerRequest* next              # free
    uint32_t arrived                 # bytes of the payload
    uint32_t cost                    # bytes of credit
    uint32_t visited                 # HEARTBEAT: stores

cdef class Server:                   # Server(reactor, stores): the stores as this reactor knows them
    # set before start():
    cdef int connection              # its number in the Io
    # of a connection for a volume's I/O (exports/forwarding/served_volume.pyx); NULL: no such request is served
    cdef void (*begin_volume)(void* volume, StoreRequest* request) noexcept nogil
    cdef void* volume
    cdef Operation ended             # completes once nothing refers to the connection any more; result: a ServerEnd
    # read by others:
    cdef readonly uint64_t requests
    cdef ServerState state
    cdef ServerEnd end
    cdef const char* words           # what was wrong with the frame, SERVER_BY_MALFORMED

    cdef Reactor reactor
    cdef Io io
    cdef ServedStores stores
    cdef Pool pool                   # its own, so that no client can keep buffers from another
    cdef SendQueue replies
    # input: received[begin:filled] is not parsed yet
    cdef char* received
    cdef uint32_t begin
    cdef uint32_t filled
    cdef Operation receive
    cdef bint receiving
    cdef bint direct                 # ... into the buffer of `current`
    cdef ServerRequest* current      # its payload is still arriving
    cdef bint starved                # input waits for an entry or a buffer
    # requests
    cdef ServerRequest* table
    cdef ServerRequest* free_requests
    cdef uint32_t open_requests
    cdef uint32_t credit_requests
    cdef uint64_t credit_bytes
    cdef Operation again             # steps at the turn's end
    cdef bint asked_again
    cdef Operation grace
    cdef bint grace_running

    cdef void start(self) noexcept nogil          # on its reactor
    cdef void stop(self) noexcept nogil           # on its reactor: finish open requests, then end
    # events
    cdef void receive_done(self) noexcept nogil
    cdef void request_done(self, ServerRequest* request) noexcept nogil
    cdef void reply_left(self, ServerRequest* request) noexcept nogil
    cdef void replies_changed(self) noexcept nogil
    cdef void turn_ended(self) noexcept nogil
    # steps
    cdef void listen(self) noexcept nogil
    cdef void go_on(self) noexcept nogil
    cdef void parse(self) noexcept nogil
    cdef bint take_frame(self) noexcept nogil
    cdef bint take_payload(self) noexcept nogil
    cdef void payload_arrived(self, ServerRequest* request, uint32_t bytes) noexcept nogil
    cdef void dispatch(self, ServerRequest* request) noexcept nogil
    cdef void ask_volume(self, ServerRequest* request) noexcept nogil
    cdef void ask_store(self, ServerRequest* request, void* store) noexcept nogil
    cdef void heartbeat_on(self, ServerRequest* request) noexcept nogil
    cdef void answer(self, ServerRequest* request, int result) noexcept nogil
    cdef void over(self, ServerRequest* request) noexcept nogil
    cdef void give_back_buffer(self, ServerRequest* request) noexcept nogil
    cdef void abandon(self) noexcept nogil
    cdef void drain(self, ServerEnd end) noexcept nogil
    cdef void close(self, ServerEnd end) noexcept nogil
    cdef void ask_again(self) noexcept nogil
