# Who keeps copies of a log's segments. A member is one device, seen by one log; a replica set is a few of them, on
# different nodes. The log, checkpoints, recovery and cleaning ask a Member and know no Store, so that a device of a
# peer can take the place of one of this node's.
#
# Always true:
#   - a member is used on the reactor of its log;
#   - its calls complete as those of a Store do, with the same errors: docs/decisions/0019 (a failed flush is final) and
#     0023 (a device that does not answer) hold for every kind of member;
#   - nothing in memory that a transfer writes from changes before the transfer is done, or, if it was abandoned, while
#     Io.holds() says so, or while one of its calls to another node is under way.
#
# replicas/local.pyx is the implementation for devices of this node, replicas/remote.pyx for those of other nodes.

from libc.errno cimport EDQUOT, EIO, ENOSPC
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.format.peer cimport ListedReplica
from iomesh.engine.replicas.peer cimport PeerCall
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.store cimport Replica


cdef class Member:
    cdef void count_error(self) noexcept nogil:
        self.errors += 1

    cdef uint32_t device(self) noexcept nogil:
        invariant(False, b"a member implements device")
        return 0

    cdef uint64_t boot(self) noexcept nogil:
        invariant(False, b"a member implements boot")
        return 0

    cdef bint works(self) noexcept nogil:
        invariant(False, b"a member implements works")
        return False

    cdef bint has_failed(self) noexcept nogil:
        invariant(False, b"a member implements has_failed")
        return False

    cdef bint is_stalled(self) noexcept nogil:
        invariant(False, b"a member implements is_stalled")
        return False

    cdef bint is_full_below(self) noexcept nogil:
        invariant(False, b"a member implements is_full_below")
        return False

    cdef void set_full_below(self, bint full) noexcept nogil:
        invariant(False, b"a member implements set_full_below")

    cdef bint may_be_written(self) noexcept nogil:
        invariant(False, b"a member implements may_be_written")
        return False

    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil:
        invariant(False, b"a member implements has_room")
        return False

    cdef bint spares(self, uint32_t blocks) noexcept nogil:
        invariant(False, b"a member implements spares")
        return False

    cdef bint is_tight(self) noexcept nogil:
        invariant(False, b"a member implements is_tight")
        return False

    cdef uint32_t free_share(self) noexcept nogil:
        invariant(False, b"a member implements free_share")
        return 0

    cdef uint32_t length(self, uint32_t most, bint urgent) noexcept nogil:
        invariant(False, b"a member implements length")
        return 0

    cdef int create(
        self, uint32_t segment, uint64_t epoch, uint32_t fragment, uint32_t blocks, bint urgent, Replica** replica
    ) noexcept nogil:
        invariant(False, b"a member implements create")
        return 0

    cdef void write(self, Transfer* transfer, const Piece* piece, Replica* replica) noexcept nogil:
        invariant(False, b"a member implements write")

    cdef void flush(self, Operation* when) noexcept nogil:
        invariant(False, b"a member implements flush")

    cdef int make_stable(self) noexcept nogil:
        invariant(False, b"a member implements make_stable")
        return 0

    cdef int seal(
        self, uint32_t segment, uint64_t epoch, Replica* replica, uint32_t blocks, uint32_t footer_block,
        bint completed
    ) noexcept nogil:
        invariant(False, b"a member implements seal")
        return 0

    cdef int remove(self, uint32_t segment, uint64_t epoch, Replica* replica) noexcept nogil:
        invariant(False, b"a member implements remove")
        return 0

    cdef int read(self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil:
        invariant(False, b"a member implements read")
        return 0

    cdef int complete(
        self, uint32_t segment, uint64_t epoch, uint16_t stream, uint32_t block, uint32_t count, const void* record
    ) noexcept nogil:
        invariant(False, b"a member of another node implements complete")
        return 0

    cdef int reserve(self, uint32_t segment, uint32_t blocks, Replica** replica) noexcept nogil:
        invariant(False, b"a member implements reserve")
        return 0

    cdef int fill(
        self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, const void* data
    ) noexcept nogil:
        invariant(False, b"a member implements fill")
        return 0

    cdef int keep(
        self,
        uint32_t segment,
        Replica* replica,
        uint64_t epoch,
        uint16_t stream,
        uint32_t blocks,
        uint32_t footer_block,
        uint8_t state,
    ) noexcept nogil:
        invariant(False, b"a member implements keep")
        return 0

    cdef void discard(self, uint32_t segment, Replica* replica) noexcept nogil:
        invariant(False, b"a member implements discard")

    cdef int compact(
        self, uint32_t segment, uint64_t epoch, Replica** replica, const uint64_t* live, Throttle* throttle
    ) noexcept nogil:
        invariant(False, b"a member implements compact")
        return 0

    cdef int pull(
        self, uint32_t segment, uint64_t epoch, uint32_t source, uint32_t end, uint64_t segment_epoch, uint32_t rate,
        bint replaces
    ) noexcept nogil:
        invariant(False, b"a member of another node implements pull")
        return 0

    cdef uint32_t list(self, Replica** into, uint32_t room) noexcept nogil:
        invariant(False, b"a member implements list")
        return 0

    cdef bint is_doubtful(self, Replica* replica) noexcept nogil:
        invariant(False, b"a member of this node implements is_doubtful")
        return False

    cdef void enter(
        self, uint64_t epoch, void* log, int64_t (*on_fenced)(void* log) noexcept nogil
    ) noexcept nogil:
        invariant(False, b"a member of this node implements enter")

    cdef void leave(self) noexcept nogil:
        invariant(False, b"a member of this node implements leave")

    cdef bint holds_lease(self, int64_t now_ns) noexcept nogil:
        invariant(False, b"a member implements holds_lease")
        return False

    cdef int verify(self, uint64_t epoch) noexcept nogil:
        invariant(False, b"a member implements verify")
        return 0

    cdef int fence(self, uint64_t epoch) noexcept nogil:
        invariant(False, b"a member implements fence")
        return 0

    cdef int list_there(self, ListedReplica** into, uint32_t* count) noexcept nogil:
        invariant(False, b"a member of another node implements list_there")
        return 0


cdef void begin_transfer(Transfer* transfer) noexcept nogil:
    transfer.count = transfer.call_count = transfer.calls_left = transfer.left = 0
    transfer.error = 0
    transfer.abandoned = False


cdef void abandon_transfer(Io io, Transfer* transfer) noexcept nogil:
    cdef uint32_t i
    for i in range(transfer.count):
        io.abandon(&transfer.operations[i])              # no effect on one that is answered
    transfer.left = 0
    transfer.abandoned = True


cdef void transfer_step(Operation* operation) noexcept nogil:
    cdef Transfer* transfer = <Transfer*>operation.owner
    answered(transfer, <int>min(operation.result, 0), transfer.member)


cdef void transfer_call_step(Operation* operation) noexcept nogil:
    cdef Transfer* transfer = <Transfer*>operation.owner
    cdef size_t which = (<char*>operation - <char*>transfer.calls) // sizeof(PeerCall)
    cdef int error = <int>min(operation.result, 0)
    if error == -ENOSPC or error == -EDQUOT:             # only of a device of this node is space waited for
        error = -EIO
    if planted(b"copy_error_ignored"):
        error = 0
    transfer.calls_left -= 1
    if not transfer.abandoned:
        answered(transfer, error, transfer.members[which])
    elif transfer.calls_left == 0:
        transfer.done(transfer)


cdef void answered(Transfer* transfer, int error, uint16_t member) noexcept nogil:
    if error < 0 and transfer.error == 0:
        transfer.error, transfer.failed = error, member
    transfer.left -= 1
    if transfer.left == 0:
        transfer.done(transfer)
