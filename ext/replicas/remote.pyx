# A member on another node: the copies are on one of its devices, which is asked over the reactor's connection to the
# node (replicas/remote_node.pyx).
#
# Always true:
#   - what is known of the device is at most as old as the last heartbeat; without a connection it does not work and is
#     stalled, so nothing new is appended to segments that it has a part in;
#   - a late write can do no harm: its node executes a SEAL or REMOVE behind it, and ends an old connection's requests
#     before it serves a new connection;
#   - a flush that failed has failed for good (docs/decisions/0019), also if it was the connection that broke.

from libc.errno cimport ECONNRESET, ENOMEM
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free as release, malloc, realloc
from libc.string cimport memcpy

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport wait, waited
from iomesh.engine.format.layout cimport BLOCK_BYTES
from iomesh.engine.format.peer cimport (
    DEVICE_WORKS, LIST_ENTRIES_MAX, PEER_COMPLETES, PEER_FOOTER, PEER_REPLACES, READ_BLOCKS_MAX, DeviceState,
    ListedReplica
)
from iomesh.engine.replicas.member cimport COPIES_MAX, Member, Piece, Transfer, transfer_call_step
from iomesh.engine.replicas.peer cimport PeerCall
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.store cimport Replica

cdef extern from "<errno.h>" nogil:
    int EEXIST, ENOENT, ESTALE

cdef enum:
    LAST_SEGMENT = 0xFFFFFFFF
    DEVICE_SHARE = 64                # a segment takes at most 1/64 of its device
    MARGIN = 4                       # segments that must find room, since others create some meanwhile


cdef class RemoteMember(Member):
    """reactor: the log's. number: among the log's members. device: its number in the cluster. volume: 16 bytes."""

    def __cinit__(self, Reactor reactor, uint32_t number, RemoteNode remote, uint32_t device, bytes volume):
        self.reactor, self.io, self.number, self.remote = reactor, reactor.io, number, remote
        self.node = <void*>remote
        self.device_number = device
        self.volatile_cache = True                       # unless it is known better, which costs a round trip per flush
        memcpy(self.volume, <const char*>volume, 16)
        self.flushing.operation.done = flush_answered
        self.flushing.operation.owner = <void*>self

    # ------------------------------------------------------------------ the device and its space

    cdef uint32_t device(self) noexcept nogil:
        return self.device_number

    cdef uint64_t boot(self) noexcept nogil:
        return self.remote.boot if self.remote.ready else 0

    cdef bint works(self) noexcept nogil:
        cdef const DeviceState* state = self.remote.state_of(self.device_number)
        return state is not NULL and state.state == DEVICE_WORKS and not self.flush_failed

    cdef bint has_failed(self) noexcept nogil:
        return self.flush_failed

    cdef bint is_stalled(self) noexcept nogil:
        return self.remote.state_of(self.device_number) is NULL

    cdef bint is_full_below(self) noexcept nogil:
        return False

    cdef void set_full_below(self, bint full) noexcept nogil:
        pass                                             # its node knows

    cdef bint may_be_written(self) noexcept nogil:
        return False

    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil:
        cdef const DeviceState* state = self.remote.state_of(self.device_number)
        return state is not NULL and state.free_bytes >= <uint64_t>MARGIN * blocks * BLOCK_BYTES

    cdef bint spares(self, uint32_t blocks) noexcept nogil:
        return self.has_room(blocks, False)

    cdef bint is_tight(self) noexcept nogil:
        return False

    cdef uint32_t free_share(self) noexcept nogil:
        cdef const DeviceState* state = self.remote.state_of(self.device_number)
        if state is NULL or state.device_bytes == 0:
            return 0
        return <uint32_t>((state.free_bytes >> 12 << 31) // (state.device_bytes >> 12))

    cdef uint32_t length(self, uint32_t most, bint urgent) noexcept nogil:
        cdef const DeviceState* state = self.remote.state_of(self.device_number)
        if state is NULL:
            return most
        return <uint32_t>min(
            <uint64_t>most, max(<uint64_t>state.segment_blocks, state.device_bytes // BLOCK_BYTES // DEVICE_SHARE)
        )

    # ------------------------------------------------------------------ a copy that is being written

    cdef int create(
        self, uint32_t segment, uint64_t epoch, uint32_t fragment, uint32_t blocks, bint urgent, Replica** replica
    ) noexcept nogil:
        cdef PeerCall call
        cdef int result
        replica[0] = NULL
        waited(&call.operation)
        self.remote.peer.create(
            &call, self.device_number, self.volume, segment, epoch, 0, fragment, blocks, urgent
        )
        result = self.ended(&call)
        return 0 if result == -EEXIST else result        # repeated

    cdef void write(self, Transfer* transfer, const Piece* piece, Replica* replica) noexcept nogil:
        cdef PeerCall* call = &transfer.calls[transfer.call_count]
        invariant(transfer.call_count < <uint32_t>COPIES_MAX, b"a segment has few replicas")
        transfer.members[transfer.call_count] = <uint16_t>self.number
        transfer.call_count += 1
        transfer.calls_left += 1
        transfer.left += 1
        call.operation.done = transfer_call_step
        call.operation.owner = transfer
        self.remote.peer.write(
            call, self.device_number, self.volume, piece.segment, piece.epoch, piece.stream, piece.block, piece.head,
            piece.data, piece.blocks, PEER_FOOTER if piece.footer else 0
        )

    cdef void flush(self, Operation* when) noexcept nogil:
        invariant(self.flushed is NULL, b"a log flushes a device once at a time")
        self.flushed = when
        self.remote.peer.flush(&self.flushing, self.device_number)

    cdef int make_stable(self) noexcept nogil:
        cdef PeerCall call
        cdef int result
        waited(&call.operation)
        self.remote.peer.flush(&call, self.device_number)
        result = self.ended(&call)
        self.flush_failed |= result < 0 and result != -ECONNRESET
        return result

    # ------------------------------------------------------------------ in a task

    cdef int ended(self, PeerCall* call) noexcept nogil:
        return <int>min(wait(&call.operation), 0)

    cdef int seal(
        self, uint32_t segment, uint64_t epoch, Replica* replica, uint32_t blocks, uint32_t footer_block,
        bint completed
    ) noexcept nogil:
        cdef PeerCall call
        waited(&call.operation)
        self.remote.peer.seal(
            &call, self.device_number, self.volume, segment, epoch, blocks, footer_block,
            PEER_COMPLETES if completed else 0
        )
        return self.ended(&call)

    cdef int remove(self, uint32_t segment, uint64_t epoch, Replica* replica) noexcept nogil:
        cdef PeerCall call
        cdef int result
        waited(&call.operation)
        self.remote.peer.remove(&call, self.device_number, self.volume, segment, epoch)
        result = self.ended(&call)
        return 0 if result == -ENOENT else result        # repeated

    cdef int read(self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil:
        cdef PeerCall call
        cdef uint32_t piece
        cdef int result = 0
        while count and result == 0:
            piece = min(count, <uint32_t>READ_BLOCKS_MAX)
            waited(&call.operation)
            self.remote.peer.read(&call, self.device_number, self.volume, segment, block, piece, into, False)
            result = self.ended(&call)
            block += piece
            count -= piece
            into = <char*>into + <size_t>piece * BLOCK_BYTES
        return result

    cdef int complete(
        self, uint32_t segment, uint64_t epoch, uint16_t stream, uint32_t block, uint32_t count, const void* record
    ) noexcept nogil:
        cdef PeerCall call
        waited(&call.operation)
        self.remote.peer.write(
            &call, self.device_number, self.volume, segment, epoch, stream, block, NULL, record, count, PEER_COMPLETES
        )
        return self.ended(&call)

    cdef int compact(
        self, uint32_t segment, uint64_t epoch, Replica** replica, const uint64_t* live, Throttle* throttle
    ) noexcept nogil:
        cdef PeerCall call
        waited(&call.operation)
        self.remote.peer.compact(&call, self.device_number, self.volume, segment, epoch, live)
        return self.ended(&call)

    cdef int pull(
        self, uint32_t segment, uint64_t epoch, uint32_t source, uint32_t end, uint64_t segment_epoch, uint32_t rate,
        bint replaces
    ) noexcept nogil:
        cdef PeerCall call
        waited(&call.operation)
        self.remote.peer.pull(
            &call, self.device_number, self.volume, segment, epoch, source, end, segment_epoch, rate,
            PEER_REPLACES if replaces else 0
        )
        return self.ended(&call)

    cdef uint32_t list(self, Replica** into, uint32_t room) noexcept nogil:
        return 0                                         # none is on this node

    cdef bint holds_lease(self, int64_t now_ns) noexcept nogil:
        return (
            self.remote.ready
            and now_ns < self.remote.held_until_ns
            and self.verified_in == self.remote.readies
            and self.verified == self.remote.fences
        )

    cdef int verify(self, uint64_t epoch) noexcept nogil:
        cdef ListedReplica unused
        cdef PeerCall call
        cdef uint64_t fences = self.remote.fences
        cdef uint32_t readies = self.remote.readies
        cdef int result
        if not self.remote.ready:
            return -ECONNRESET
        if self.verified_in == readies and self.verified == fences:
            return 0                                     # the next heartbeat renews it
        waited(&call.operation)
        self.remote.peer.list(&call, self.device_number, self.volume, LAST_SEGMENT, &unused, 1)
        result = self.ended(&call)
        if result < 0:
            return result
        if call.fence > epoch:
            return -ESTALE
        self.verified, self.verified_in = fences, readies
        return 0

    cdef int fence(self, uint64_t epoch) noexcept nogil:
        cdef PeerCall call
        waited(&call.operation)
        self.remote.peer.fence(&call, self.device_number, self.volume, epoch)
        return self.ended(&call)

    cdef int list_there(self, ListedReplica** into, uint32_t* count) noexcept nogil:
        cdef PeerCall call
        cdef ListedReplica* page = <ListedReplica*>malloc(LIST_ENTRIES_MAX * sizeof(ListedReplica))
        cdef ListedReplica* all
        cdef uint32_t first = 0
        cdef int result = 0 if page is not NULL else -ENOMEM
        into[0], count[0] = NULL, 0
        while result == 0:
            waited(&call.operation)
            self.remote.peer.list(&call, self.device_number, self.volume, first, page, LIST_ENTRIES_MAX)
            result = self.ended(&call)
            if result < 0 or call.count == 0:
                break
            all = <ListedReplica*>realloc(into[0], (count[0] + call.count) * sizeof(ListedReplica))
            if all is NULL:
                result = -ENOMEM
                break
            into[0] = all
            memcpy(all + count[0], page, call.count * sizeof(ListedReplica))
            count[0] += call.count
            if not call.more:
                break
            first = all[count[0] - 1].segment + 1
        release(page)
        if result < 0:
            release(into[0])
            into[0], count[0] = NULL, 0
        return result


cdef void flush_answered(Operation* operation) noexcept nogil:
    cdef Operation* when = (<RemoteMember>operation.owner).flushed
    (<RemoteMember>operation.owner).flushed = NULL
    if operation.result < 0 and operation.result != -ECONNRESET:
        (<RemoteMember>operation.owner).flush_failed = True
    when.result = operation.result
    when.done(when)
