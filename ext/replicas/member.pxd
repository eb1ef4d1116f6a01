# Who keeps copies of a log's segments: a device of this node, or of a peer. See replicas/member.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.format.layout cimport EXTENTS_MAX
from iomesh.engine.format.peer cimport ListedReplica
from iomesh.engine.replicas.peer cimport PeerCall
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.store cimport Replica

cdef enum:
    REPLICAS_MAX = 4                 # of a segment
    COPIES_MAX = REPLICAS_MAX - 1    # besides the first one
    MEMBERS_MAX = 512                # of a log

cdef struct Transfer:                # a write of a record or footer to all members of a replica set
    Operation operations[EXTENTS_MAX + 1]    # on the member of this node
    uint32_t count                   # of them
    uint16_t member                  # that member's number
    PeerCall calls[COPIES_MAX]       # on members of other nodes
    uint16_t members[COPIES_MAX]     # their numbers
    uint32_t call_count
    uint32_t calls_left              # not answered yet; until they are, `calls` and the memory written from are in use
    uint32_t left                    # operations and calls that are not answered yet; none once it is abandoned
    bint abandoned
    int error                        # the first negative errno ...
    uint16_t failed                  # ... and the number of its member
    # Once all is answered. Of an abandoned transfer: once no call is under way any more, if one was.
    void (*done)(Transfer* transfer) noexcept nogil
    void* owner

cdef struct Piece:                   # what a transfer writes, and where
    uint32_t segment
    uint64_t epoch
    uint16_t stream
    uint32_t block
    uint32_t blocks
    const char* head                 # its first block, if it does not lie before the others in `data`; or NULL
    const char* data
    bint footer

cdef class Member:                   # of one log's replica sets
    cdef Reactor reactor             # the log's
    cdef Io io
    cdef uint8_t volume[16]
    cdef readonly uint32_t number    # among the members of its log
    cdef readonly bint volatile_cache
    cdef uint32_t errors             # failed requests of this log; members with fewer are preferred
    cdef bint leaving                # its device is drained: others get new segments, if there are enough, and copies
    cdef void* node                  # RemoteNode; NULL: this node

    cdef void count_error(self) noexcept nogil

    # ---- the device, as far as is known now
    cdef uint32_t device(self) noexcept nogil                      # its number in the cluster; 0: none
    # Of its machine: another one after a power cut, which took what was not flushed. 0: it does not answer
    cdef uint64_t boot(self) noexcept nogil
    cdef bint works(self) noexcept nogil                           # takes new segments
    cdef bint has_failed(self) noexcept nogil                      # a flush of it has failed
    cdef bint is_stalled(self) noexcept nogil                      # it does not answer
    cdef bint is_full_below(self) noexcept nogil                   # the storage under it has no space
    cdef void set_full_below(self, bint full) noexcept nogil
    cdef bint may_be_written(self) noexcept nogil                  # a write that the log has abandoned may still arrive

    # ---- its space
    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil
    # Three quarters of the reserve stay free after `blocks` are taken: enough for evacuation and checkpoints.
    cdef bint spares(self, uint32_t blocks) noexcept nogil
    cdef bint is_tight(self) noexcept nogil                        # each new segment requires cleaning
    cdef uint32_t free_share(self) noexcept nogil                  # free slabs of all, × 2^31
    # Length of a new segment: at most `most` blocks, smaller on a small device; with the reserve, the length that the
    # reserve is planned for.
    cdef uint32_t length(self, uint32_t most, bint urgent) noexcept nogil

    # ---- a copy that is being written. `replica`: NULL on a member that is not of this node
    # In a task: creates the segment's copy; 0 or a negative errno.
    cdef int create(
        self, uint32_t segment, uint64_t epoch, uint32_t fragment, uint32_t blocks, bint urgent, Replica** replica
    ) noexcept nogil
    # Adds this member to a transfer that begin_transfer() has begun; all are added in one turn. `piece.blocks` blocks
    # are written: a record or a footer.
    cdef void write(self, Transfer* transfer, const Piece* piece, Replica* replica) noexcept nogil
    # Makes all completed writes stable. A failure is final (docs/decisions/0019).
    cdef void flush(self, Operation* when) noexcept nogil
    cdef int make_stable(self) noexcept nogil                      # the same, in a task; 0 or a negative errno

    # ---- in a task; 0 or a negative errno; as in store/store.pxd
    # completed: of a copy that was compared with another one, and got what it lacked
    cdef int seal(
        self, uint32_t segment, uint64_t epoch, Replica* replica, uint32_t blocks, uint32_t footer_block,
        bint completed
    ) noexcept nogil
    cdef int remove(self, uint32_t segment, uint64_t epoch, Replica* replica) noexcept nogil
    cdef int read(self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
    # On a member of another node: writes a record of an earlier owner, which an open replica there lacks. epoch: this
    # owner's.
    cdef int complete(
        self, uint32_t segment, uint64_t epoch, uint16_t stream, uint32_t block, uint32_t count, const void* record
    ) noexcept nogil
    # A copy of a segment that another member failed to make stable, or one in the place of the replica that is here:
    # reserve, fill, then keep or discard.
    cdef int reserve(self, uint32_t segment, uint32_t blocks, Replica** replica) noexcept nogil
    cdef int fill(
        self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, const void* data
    ) noexcept nogil
    cdef int keep(
        self,
        uint32_t segment,
        Replica* replica,
        uint64_t epoch,
        uint16_t stream,
        uint32_t blocks,
        uint32_t footer_block,
        uint8_t state,
    ) noexcept nogil
    cdef void discard(self, uint32_t segment, Replica* replica) noexcept nogil
    # Rewrites a sealed copy without its dead blocks, and frees the old one: `replica` is the new one then.
    cdef int compact(
        self, uint32_t segment, uint64_t epoch, Replica** replica, const uint64_t* live, Throttle* throttle
    ) noexcept nogil
    # On a member of another node: it gets a sealed segment from the device `source` (its number in the cluster): see
    # Puller.pull(). end: the block behind the last record; rate: KiB per second at most, 0: no limit; replaces: the
    # replica that it has is damaged.
    cdef int pull(
        self, uint32_t segment, uint64_t epoch, uint32_t source, uint32_t end, uint64_t segment_epoch, uint32_t rate,
        bint replaces
    ) noexcept nogil
    # Replicas of the volume on a device of this node; at most `room`. Returns their total number.
    cdef uint32_t list(self, Replica** into, uint32_t room) noexcept nogil
    cdef bint is_doubtful(self, Replica* replica) noexcept nogil   # an open one, since before the node's last boot
    # In a task: the log is open from now on, or is not any more and no write of it is in flight. on_fenced: see
    # store/store.pxd. Only for devices of this node.
    cdef void enter(
        self, uint64_t epoch, void* log, int64_t (*on_fenced)(void* log) noexcept nogil
    ) noexcept nogil
    cdef void leave(self) noexcept nogil
    # This node's word, or the other node's, that it has accepted no other owner (rule 3 of docs/ownership.md).
    cdef bint holds_lease(self, int64_t now_ns) noexcept nogil     # now: Io.monotonic_ns
    # In a task: 0, the lease counts again; -ESTALE: a higher epoch is known there; or another negative errno.
    cdef int verify(self, uint64_t epoch) noexcept nogil
    # From now on the device refuses epochs below this one.
    cdef int fence(self, uint64_t epoch) noexcept nogil
    # What a device of another node has of the volume, by segment number: an array for the caller to free, and its
    # length.
    cdef int list_there(self, ListedReplica** into, uint32_t* count) noexcept nogil

cdef void begin_transfer(Transfer* transfer) noexcept nogil
# Its answers change nothing any more. Its memory is in use while Io.holds(), or `calls_left` is above 0.
cdef void abandon_transfer(Io io, Transfer* transfer) noexcept nogil
cdef void transfer_step(Operation* operation) noexcept nogil             # `done` of each of its operations
cdef void transfer_call_step(Operation* operation) noexcept nogil        # `done` of each of its calls
