# One volume of a simulation run. See simulation/simulated_volume.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.simulation.checker cimport Checker
from iomesh.engine.volume.cleaning cimport Cleaner
from iomesh.engine.simulation.clients cimport Clients
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.history.snapshots cimport Making
from iomesh.engine.base.io cimport Operation
from iomesh.engine.simulation.oracle cimport Oracle
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.simulation.run cimport RunState, SimulatedReactor, Slot
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.log.request cimport Read
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.volume.volume cimport Volume

cdef enum:
    SHOTS = 6                        # snapshots at once
    SHOTS_AND_MARKS = SHOTS + 9      # the user's snapshots, then the restore points
    MOMENTS = 4                      # points in time that are remembered
    NUMBERS = 8                      # segment numbers that the metadata service promises at once; ...
    NUMBERS_LOW = 2                  # ... with fewer left, more are asked for

cdef enum SimulatedSnapshotState:                 # of a snapshot, as its user sees it
    SHOT_NONE, SHOT_MAKING, SHOT_MADE, SHOT_DELETING,
    SHOT_UNKNOWN                     # a crash interrupted its creation or deletion

cdef struct SimulatedSnapshot:
    SimulatedSnapshotState state
    void* simulated
    uint8_t id[16]
    uint32_t number
    uint64_t begun                   # on the ledger's clock
    uint64_t size_blocks
    int kept                         # its allowed content, by the oracle's number
    bint looked_at                   # it is being read
    bint unmarked                    # it was a restore point and stays for a clone
    Making making

cdef enum GoingState:                # of a restore
    GOING_NOWHERE,
    GOING_WAITS,                     # until nothing is in flight and no client is connected
    GOING_BACK

cdef struct PointInTime:                  # a remembered one
    bint used
    int64_t at_ns                    # log time
    uint64_t begun                   # on the ledger's clock
    int kept                         # the volume's content then, by the oracle's number

cdef struct Going:
    GoingState state
    bint to_point_in_time            # the target is a point in time, not a snapshot: ...
    int64_t at_ns                    # ... its log time; ...
    uint8_t settling[16]             # ... the restore point that completes the restore
    SimulatedSnapshot* target
    uint8_t id[16]                   # the target's
    int kept                        # its allowed content, by the oracle's number: the snapshot may be deleted meanwhile
    SimulatedSnapshot* before                     # a snapshot of the state before the restore; NULL: none is kept
    SnapshotRequest snapshot_request            # ... the engine's request for it
    SimulatedSnapshot* mark                       # with a restore window: the restore point of the restored state
    SnapshotRequest mark_request
    bint moved                       # the metadata service has the new pointer: the volume now has the target's content

cdef struct Shortages:               # of space
    uint64_t begun
    bint now

cdef enum StrayState:                # see simulation/damage.pyx
    HOME, TO_STRAY, ASTRAY, MISSED

cdef struct StrayWrite:              # a write to the log's open segment that does not arrive there
    StrayState state
    int device
    uint32_t segment
    uint32_t block
    uint64_t sequence                # of the record, unless it was the footer
    bint lost                        # a deleted snapshot's tree was unreadable: its blocks stay counted (map/walk.pyx)
    uint32_t left                    # earlier ones that sealed segments lack

cdef enum Leaving:                   # of a volume being deleted
    STAYS,
    IS_TO_LEAVE,                     # once nothing is in flight
    LEAVES

cdef struct MetadataRecord:          # a volume's record in the metadata service
    bint exists
    bint deleting
    bint hidden                      # deleted, but kept for its clones
    void* parent                     # of a clone: its parent, a SimulatedVolume, ...
    uint8_t snapshot[16]             # ... and the parent's snapshot
    bint making                      # that snapshot is a restore point, and the clone is still to be rolled forward ...
    int64_t at_ns                    # ... to this point in time
    bint detaching                   # the clone is being flattened
    uint8_t id[16]
    uint64_t epoch
    uint32_t promised                # no segment has a higher number yet
    Pointer checkpoint
    uint64_t size_blocks

cdef class SimulatedVolume:
    cdef RunState run
    cdef Checker checker
    cdef Oracle oracle
    cdef MetadataRecord record
    cdef StrayWrite stray
    cdef readonly uint32_t number    # among the volumes that the run has at once
    # of the process
    cdef SimulatedReactor home       # where it lives
    cdef SegmentTable segments
    cdef Map map
    cdef Log log
    cdef Volume volume
    cdef Recovery recovery
    cdef Cleaner cleaner
    cdef Clients clients             # None: all requests go to the volume directly, not through an export
    cdef Volume reading              # for reading snapshots, one at a time; None: the run has none
    cdef uint32_t tasks              # its running control tasks
    cdef uint32_t changes            # ... of them those that change its history
    cdef bint open                   # recovered and not closed
    cdef bint between                # being opened, or closed and erased
    cdef bint planned                # its record is being written
    cdef Leaving leaving
    cdef bint changing               # held by the task that changes it; no other task changes its history meanwhile
    cdef Waiters changed             # tasks that wait for its release
    cdef bint wants_in               # Python is to create its objects; ...
    cdef Operation settled           # ... this completes afterwards
    cdef void* follows               # or to create `roll_forward`, for the log of this SimulatedVolume
    cdef RollForward roll_forward
    cdef bint wants_tree             # or to create `tree`
    cdef Map tree                    # for reading maps other than the head's
    cdef bint copying                # a task flattens it
    cdef Throttle throttle
    cdef Read look
    cdef Operation looked
    # the metadata service, while its pointer is moved
    cdef Operation metadata          # the request to it, then its answer
    cdef uint64_t moving_sequence
    cdef uint64_t stored_sequence    # of the stored pointer, if this process wrote it
    cdef bint asking                 # a request or its answer is in flight
    cdef Pointer moving
    cdef uint32_t moving_next        # segment numbers from this one on are asked for together with it
    cdef Operation numbers           # the request for segment numbers alone, then its answer
    cdef bint numbering              # ... is in flight
    cdef uint32_t wanted_next        # numbers from this one on
    cdef uint32_t highest_given      # by earlier processes
    # client requests
    cdef uint32_t busy               # operations in flight
    cdef uint32_t usable             # regions inside the volume's current size
    cdef uint32_t verify_next        # the next region to read after a recovery; below, the end of the range
    cdef uint32_t verify_end
    # its history
    cdef SimulatedSnapshot shots[SHOTS_AND_MARKS]
    cdef PointInTime moments[MOMENTS]
    cdef bint pausing                # no new requests until nothing is in flight: then a point in time is recorded
    cdef bint shortening             # its device is full, and its restore window is being shortened
    cdef uint64_t shortages_begun    # since it was opened
    cdef bint stuck                  # a restore could not be undone: no requests are served
    cdef Going going

    cdef object settle_in(self)      # in a new process: creates the objects of an open volume; it is not open yet
    cdef SimulatedReactor find_home(self)
    cdef object make_reading(self)
    cdef object move_out(self)       # the process has ended
    cdef void begin_life(self, uint64_t size_blocks) noexcept nogil
    cdef void check_numbers(self) noexcept nogil
    cdef void await_metadata(self) noexcept nogil
    cdef void begin_task(self) noexcept nogil
    cdef void end_task(self) noexcept nogil
    cdef void begin_change(self) noexcept nogil          # starts a task that changes its history
    cdef void end_change(self) noexcept nogil
    cdef void take(self) noexcept nogil                  # in a task: waits for `changing` and takes it
    cdef void let_go(self) noexcept nogil
    cdef void await_settling(self) noexcept nogil        # in a task, while the process runs
    cdef object make_retrace(self)
    cdef object make_tree(self)
    cdef void await_tree(self) noexcept nogil
    cdef void await_retrace(self, SimulatedVolume source) noexcept nogil
    cdef void has_settled(self) noexcept nogil
    cdef bint is_idle(self) noexcept nogil               # no request and no change of its history is in flight
    cdef uint32_t ancestors(self) noexcept nogil
    cdef uint32_t clones(self, const uint8_t* snapshot) noexcept nogil     # of it, or of all its snapshots (NULL)
    cdef void notice_leaks(self) noexcept nogil
    cdef int come_up(self) noexcept nogil                # in a task: recovers and opens it; 0 or a negative errno
    cdef void choose_verified(self) noexcept nogil
    cdef void will_be_of(self, int64_t at_ns) noexcept nogil     # a planned clone: to be rolled forward to this time
    cdef bint serves(self) noexcept nogil                # it accepts requests
    cdef void operate(self, int kind) noexcept nogil     # issues a read, write, trim or flush
    cdef bint verify(self) noexcept nogil                # reads the next region; False: all reads are issued
    cdef void grow(self) noexcept nogil
    cdef Slot* take_slot(self, int kind) noexcept nogil
    cdef void note_oldest_read(self) noexcept nogil
    cdef bint meets_damage(self, Slot* slot) noexcept nogil
    cdef bint excuses(self, Slot* slot, int error) noexcept nogil
    cdef void place(self, Slot* slot) noexcept nogil
    cdef void give(self, Slot* slot) noexcept nogil
    cdef bint give_to_client(self, Slot* slot) noexcept nogil
    cdef bint let_clients_leave(self) noexcept nogil     # call it until it returns True: no client is left
    cdef void await_clients(self) noexcept nogil         # in a task: waits until all clients have disconnected
    cdef void turn_clients(self) noexcept nogil          # between two turns of the reactor
    cdef void write_more(self, Slot* slot) noexcept nogil
    cdef void write_done(self, Slot* slot) noexcept nogil
    cdef void read_done(self, Slot* slot) noexcept nogil
    # In a task; restores as engine.pyx does.
    cdef int go_back(self, const uint8_t* id, SnapshotRequest* snapshot_request, SnapshotRequest* mark) noexcept nogil
    cdef Shortages shortages(self) noexcept nogil
    cdef void check_making(self, Shortages before, int result) noexcept nogil        # of a snapshot that was not urgent
    cdef void name_shot(self, SimulatedSnapshot* shot) noexcept nogil
    cdef SimulatedSnapshot* free_mark(self) noexcept nogil
    cdef uint32_t marks(self) noexcept nogil
    cdef SimulatedSnapshot* any_shot(self, SimulatedSnapshotState state) noexcept nogil
