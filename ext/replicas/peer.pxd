# The devices of another node, as a volume's owner uses them: the client of the peer protocol. See replicas/peer.pyx.
#
#     cdef PeerCall call                        in the caller's object; must not move until it is done
#     call.operation.done = ...; call.operation.owner = ...       in a task: waited(&call.operation)
#     peer.write(&call, device, volume, segment, epoch, stream, block, data, blocks, False)
#     call.operation.result                     0, or a negative errno: see docs/protocols.md, "Requests"

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.format.peer cimport DeviceState, ListedReplica, PeerReply, VolumeRequest
from iomesh.engine.replicas.send_queue cimport SendItem, SendQueue

cdef enum PeerState:
    PEER_DETACHED, PEER_ATTACHED, PEER_ENDING

cdef enum PeerEnd:                   # why a connection ended; names in PEER_ENDS
    PEER_BY_CLOSE, PEER_BY_ERROR, PEER_BY_MALFORMED, PEER_BY_US

cdef enum:
    SLOTS = 256                      # calls that were sent and are not done
    WAITING_MAX = 4096               # calls that wait for a slot or for credit; further ones fail with ENOBUFS
    PEER_RECEIVE_BYTES = 64 * 1024

cdef struct PeerCall:
    Operation operation              # first member: done, owner are the caller's; result: 0 or a negative errno
    # with the result:
    uint32_t count                   # LIST, HEARTBEAT: entries; VOLUME_STATUS: blocks
    bint unmapped                    # VOLUME_READ, VOLUME_STATUS: no block is mapped; a READ left `into` as it was
    uint32_t payload_crc             # VOLUME_READ: of what was read, as the other node sent it
    bint more                        # LIST, HEARTBEAT: there are entries behind them
    uint64_t fence                   # LIST, and -ESTALE: of the volume, 0: none
    uint64_t boot                    # HEARTBEAT: of the node, see Io.boot
    # the client's:
    SendItem item                    # its header is a PeerRequest
    char* into                       # for the reply's payload
    uint32_t room                    # bytes there: a READ's reply has as many, any other at most
    uint32_t arrived
    uint32_t expected                # bytes of the reply's payload
    uint32_t cost                    # bytes of credit
    int slot                         # -1: not sent
    bint leaving                     # the kernel may still read header and payload
    bint replied
    void* peer
    PeerCall* next

cdef class Peer:                     # Peer(reactor)
    # read by others:
    cdef readonly uint64_t calls
    cdef PeerState state
    cdef PeerEnd end                 # of the last connection
    cdef const char* words           # what was wrong with the frame, PEER_BY_MALFORMED
    # set by the owner, optional: called once for each connection, when it has ended and every call on it is done
    cdef void (*lost)(void* owner) noexcept nogil
    cdef void* owner

    cdef Reactor reactor
    cdef Io io
    cdef SendQueue requests
    cdef int connection
    cdef uint32_t credit_requests    # left
    cdef uint64_t credit_bytes       # left
    cdef PeerCall* slots[SLOTS]
    cdef int16_t free_slots[SLOTS]
    cdef int free_count
    cdef uint64_t last_id
    cdef PeerCall* waiting           # for a slot or credit, oldest first
    cdef PeerCall* waiting_last
    cdef uint32_t waiting_count
    cdef PeerCall* refused           # done at the turn's end
    cdef PeerCall* refused_last
    cdef Operation at_turn
    cdef bint asked
    # input: received[begin:filled] is not parsed yet
    cdef char* received
    cdef uint32_t begin
    cdef uint32_t filled
    cdef Operation receive
    cdef bint receiving
    cdef bint direct                 # ... into the memory of `current`
    cdef PeerCall* current           # its payload is still arriving

    # On the reactor; so are all other methods. The state is PEER_DETACHED. requests, bytes: the credits from the
    # handshake, of which bytes are at least 1 MiB.
    cdef void attach(self, int connection, uint32_t requests, uint64_t bytes) noexcept nogil
    # Ends the connection. Calls that are not done fail with ECONNRESET, whether or not they were executed.
    cdef void detach(self) noexcept nogil

    # Each call completes call.operation, never before it returns. Without a connection: -ECONNRESET.
    cdef void create(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint16_t stream,
        uint32_t fragment,
        uint32_t blocks,
        bint urgent,
    ) noexcept nogil
    # A record, or with PEER_FOOTER a footer and its table: `blocks` blocks to the segment's block `block`. `head`: the
    # first of them, if it does not lie before the others in `data`; or NULL. Neither may change until the call is done.
    cdef void write(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint16_t stream,
        uint32_t block,
        const void* head,
        const void* data,
        uint32_t blocks,
        uint8_t flags,
    ) noexcept nogil
    # All writes to the device that were done before this call are on stable media.
    cdef void flush(self, PeerCall* call, uint32_t device) noexcept nogil
    cdef void seal(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint32_t blocks,
        uint32_t footer_block,
        uint8_t flags,                                             # PEER_COMPLETES or 0
    ) noexcept nogil
    # 1 to READ_BLOCKS_MAX blocks, unverified. stored: as they lie on the device; else blocks of the segment.
    cdef void read(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint32_t block,
        uint32_t blocks,
        void* into,
        bint stored,
    ) noexcept nogil
    # The device's node gets the segment from the device `source` of another node, or of its own. end: the block behind
    # its last record; segment_epoch: in which it was written; rate: KiB per second at most, 0: no limit.
    cdef void pull(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint32_t source,
        uint32_t end,
        uint64_t segment_epoch,
        uint32_t rate,
        uint8_t flags,
    ) noexcept nogil
    cdef void remove(
        self, PeerCall* call, uint32_t device, const uint8_t* volume, uint32_t segment, uint64_t epoch
    ) noexcept nogil
    # live: as of Store.compact(); it must not change until the call is done.
    cdef void compact(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        const uint64_t* live,
    ) noexcept nogil
    # The volume's replicas on the device with this segment number or a higher one, ascending, at most `room` (1 to
    # LIST_ENTRIES_MAX) of them.
    cdef void list(
        self,
        PeerCall* call,
        uint32_t device,
        const uint8_t* volume,
        uint32_t first_segment,
        ListedReplica* into,
        uint32_t room,
    ) noexcept nogil
    # From now on the device takes no CREATE, WRITE, SEAL or REMOVE for the volume with an epoch below this one, which
    # is at least 1.
    cdef void fence(self, PeerCall* call, uint32_t device, const uint8_t* volume, uint64_t epoch) noexcept nogil
    # A volume's I/O, on a connection for one volume: the request behind the first 28 bytes is the caller's, except that
    # payload_bytes and payload_crc are set for `data`. of_volume() is called first, and returns the frame to be filled.
    cdef VolumeRequest* of_volume(self, PeerCall* call, uint8_t kind, const uint8_t* volume) noexcept nogil
    cdef void ask_volume(
        self, PeerCall* call, const void* data, uint32_t bytes, uint32_t crc, void* into
    ) noexcept nogil
    # The states of the node's devices, at most `room` (up to HEARTBEAT_ENTRIES_MAX).
    cdef void heartbeat(self, PeerCall* call, uint64_t counter, DeviceState* into, uint32_t room) noexcept nogil

    cdef void prepare(
        self, PeerCall* call, uint8_t kind, uint32_t device, const uint8_t* volume, uint32_t segment
    ) noexcept nogil
    cdef void submit(self, PeerCall* call) noexcept nogil
    cdef void refuse(self, PeerCall* call, int error) noexcept nogil
    cdef bint may_send(self, const PeerCall* call) noexcept nogil
    cdef void send(self, PeerCall* call) noexcept nogil
    cdef void send_waiting(self) noexcept nogil
    cdef void listen(self) noexcept nogil
    cdef void receive_done(self) noexcept nogil
    cdef void parse(self) noexcept nogil
    cdef bint take_frame(self) noexcept nogil
    cdef bint take_payload(self) noexcept nogil
    cdef void payload_arrived(self, PeerCall* call, uint32_t bytes) noexcept nogil
    cdef const char* reply_fault_of(self, const PeerReply* reply) noexcept nogil
    cdef const char* volume_reply_fault_of(self, const PeerReply* reply, const VolumeRequest* asked) noexcept nogil
    cdef void left(self, PeerCall* call) noexcept nogil
    cdef void finish(self, PeerCall* call) noexcept nogil
    cdef void lose(self, PeerEnd end) noexcept nogil
    cdef void requests_changed(self) noexcept nogil
    cdef void ended(self) noexcept nogil
    cdef void ask(self) noexcept nogil
    cdef void turn_ended(self) noexcept nogil
