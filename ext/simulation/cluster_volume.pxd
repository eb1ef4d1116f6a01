# A volume with replicas that a node of a simulated cluster has open. See simulation/cluster_volume.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.log.log cimport Log
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.map.map cimport Map
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.simulation.cluster_metadata cimport (
    FRAGMENTS_KEPT, ClusterMetadata, FragmentRecord, LogRecord, Waiting
)
from iomesh.engine.simulation.cluster_node cimport ClusterNode
from iomesh.engine.simulation.cluster_run cimport NODES_MAX, ClusterRun
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.volume.volume cimport Volume

cdef enum:
    # Rule 3 of docs/ownership.md: a former owner serves no reads that a newer one has made stale. 0: it may.
    LEASES = 1
    CLIENT_SLOTS = 16                # requests in flight
    PEERS_NS = 705 * 1000 * 1000     # a new owner waits so long for the members of the current fragment; a daemon 5 s
    UPDATE_FRAGMENTS = 64            # of one update

cdef enum SharedState:
    SHARED_OPENING,                  # takes the volume over, and recovers its log
    SHARED_VERIFYING,                # reads all of it
    SHARED_SERVING,
    SHARED_CLOSING,
    SHARED_CLOSED,                   # or it could not be opened; Python drops its objects
    SHARED_GONE                      # its process has ended

cdef struct ClientSlot:              # a request in flight
    Request request                  # its first member
    Read read
    Operation when
    void* volume                     # SharedVolume
    char* buffer
    bint busy
    int kind
    uint32_t block                   # of the model
    uint32_t count
    uint32_t done                    # blocks that the volume has taken
    uint32_t number                  # of a write, in the history
    uint64_t begun                   # of a read or flush, on its clock
    int64_t started_ns

cdef struct Update:                  # of the log's record, as node/pointers.py
    uint64_t generation              # 0: none
    bint moves                       # the checkpoint's pointer
    Pointer checkpoint
    uint64_t sequence
    uint32_t next_segment            # numbers from this one on are needed; 0: none
    uint32_t fragment_count          # that begin
    FragmentRecord fragments[UPDATE_FRAGMENTS]

cdef struct Reconciliation:          # of what a node that is back has
    void* volume
    int node
    bint under_way
    uint32_t readies                 # of the node, as of the last one that succeeded
    int64_t again_ns                 # the next one begins then, at the earliest

cdef struct Rebuilding:              # of one copy at a time
    bint under_way
    int64_t again_ns                 # the next one begins then, at the earliest

cdef class SharedVolume:             # SharedVolume(run, node, metadata, former)
    cdef list kept_copies            # Copies
    cdef ClusterRun run
    cdef ClusterNode node
    cdef ClusterMetadata metadata
    cdef readonly uint32_t number    # of this opening
    cdef int former                  # the node from which it may be taken over ...
    cdef uint64_t former_epoch       # ... if it has not opened the volume anew
    cdef SharedState state
    cdef int error                   # why it could not be opened: a negative errno ...
    cdef char reason[512]            # ... and in words
    cdef bint lost                   # the metadata service has said that there is a newer owner
    cdef bint noticed                # ... and the volume is to be closed
    cdef int reactor_number
    cdef Reactor reactor
    cdef Io io
    cdef LogRecord log_record        # as this node knows it
    cdef uint64_t version
    cdef uint32_t first_segment
    cdef uint32_t first_fragment
    cdef bint wants                  # Python is to create the engine's objects
    cdef Operation settled
    cdef uint32_t tasks              # of this object, running
    cdef bint checkpoint_last        # when it closes
    cdef bint closes_faultless       # the faults were over when it began to
    # the engine's objects
    cdef SegmentTable segments
    cdef Map map
    cdef Log log
    cdef Volume volume
    cdef Recovery recovery
    # updates of the record
    cdef Update update               # in flight
    cdef uint64_t generations
    cdef Waiting* waiting            # of the update in flight, for the metadata service; NULL: it does not wait
    cdef uint32_t later_count        # fragments that begin after it
    cdef FragmentRecord later[UPDATE_FRAGMENTS]
    cdef bint checkpointing
    # clients
    cdef ClientSlot slots[CLIENT_SLOTS]
    cdef char* memory
    cdef char* look_buffer
    cdef Read look
    cdef Operation looked
    cdef bint verifying
    cdef uint32_t busy
    cdef Reconciliation reconciliations[NODES_MAX]
    cdef Rebuilding rebuilding

    cdef object settle_in(self)
    cdef object members(self)
    cdef object drop(self)
    cdef list describe(self)
    cdef void open(self) noexcept nogil                  # starts to
    cdef void close(self, bint checkpoint) noexcept nogil
    cdef void process_ended(self) noexcept nogil
    cdef bint serves(self) noexcept nogil
    cdef uint64_t answered(self) noexcept nogil          # a bit for each device that answered the recovery
    cdef bint is_updating(self) noexcept nogil           # the record: an earlier answer may be lost
    cdef bint has_lost(self) noexcept nogil              # its right, or its log has failed
    cdef bint issue(self, int kind) noexcept nogil       # False: too many are in flight
    cdef void look_after_copies(self) noexcept nogil     # of nodes that are back; and rebuild
    cdef const Segment* any_sealed(self) noexcept nogil
    cdef void drain_some(self) noexcept nogil
    cdef void rebuild_one(self, uint32_t segment) noexcept nogil
    cdef void drop_one(self, const Segment* segment) noexcept nogil
    cdef int64_t oldest_ns(self) noexcept nogil          # age of the oldest request in flight
    cdef int take_over(self) noexcept nogil
    cdef int reach_copies(self) noexcept nogil
    cdef bint is_reachable(self, uint32_t device) noexcept nogil
    cdef int refuse(self, int error, const char* reason) noexcept nogil
    cdef bint verify(self) noexcept nogil
    cdef void end_updates(self) noexcept nogil
    cdef void pause(self, int64_t ns) noexcept nogil
    cdef bint start_update(self, Update* update) noexcept nogil
    cdef void carry_out(self, uint64_t generation) noexcept nogil
    cdef int write_log(self, uint64_t generation, Waiting* waiting) noexcept nogil
    cdef void change(self, const Update* update, LogRecord* record) noexcept nogil
    cdef void tell(self, int outcome) noexcept nogil
    cdef uint32_t holders(self) noexcept nogil
    cdef void write_more(self, ClientSlot* slot) noexcept nogil
    cdef void write_done(self, ClientSlot* slot) noexcept nogil
    cdef void read_done(self, ClientSlot* slot) noexcept nogil
    cdef void is_settled(self) noexcept nogil
    cdef void end_task(self) noexcept nogil
    cdef void tell_state(self) noexcept nogil
    cdef bint compare_copies(self) noexcept nogil        # with no task running: False, and a fault
