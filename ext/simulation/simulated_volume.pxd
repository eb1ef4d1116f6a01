# One volume of a life in the simulated world. See simulation/simulated_volume.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.simulation.checker cimport Checker
from iomesh.engine.volume.cleaning cimport Cleaner
from iomesh.engine.simulation.clients cimport Clients
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.history.snapshots cimport Making
from iomesh.engine.base.io cimport Operation
from iomesh.engine.simulation.oracle cimport Oracle
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.simulation.run cimport RunState, Slot
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
    SHOTS_AND_MARKS = SHOTS + 9      # behind those of users the marks of the restore window
    MOMENTS = 4                      # that are kept in mind

cdef enum SimulatedSnapshotState:                 # of a snapshot, as its user knows it
    SHOT_NONE, SHOT_MAKING, SHOT_MADE, SHOT_DELETING,
    SHOT_UNKNOWN                     # a crash came while it was made or deleted

cdef struct SimulatedSnapshot:
    SimulatedSnapshotState state
    void* simulated
    uint8_t id[16]
    uint32_t number
    uint64_t begun                   # on the ledger's clock
    uint64_t size_blocks
    int kept                         # what it may hold, by the oracle's number
    bint looked_at                   # someone reads it
    bint unmarked                    # it was a mark, and stays for a clone
    Making making

cdef enum GoingState:                # of going back to a snapshot
    GOING_NOWHERE,
    GOING_WAITS,                     # until nothing is under way: nobody is connected then
    GOING_BACK

cdef struct PointInTime:                  # of the past
    bint used
    int64_t at_ns                    # log time
    uint64_t begun                   # on the ledger's clock
    int kept                         # what the volume was then, by the oracle's number

cdef struct Going:
    GoingState state
    bint to_point_in_time            # not to a snapshot, ...
    int64_t at_ns                    # ... but to what was then; ...
    uint8_t settling[16]             # ... the mark with which it is done
    SimulatedSnapshot* target
    uint8_t id[16]                   # the target's
    int kept                         # what it may hold, by the oracle's number: the snapshot itself may go meanwhile
    SimulatedSnapshot* before                     # what was there until then; NULL: it is not to be kept
    SnapshotRequest snapshot_request            # ... as the engine is asked for it
    SimulatedSnapshot* mark                       # of a volume with a restore window: what is there from then on
    SnapshotRequest mark_request
    bint moved                       # the metadata service has been told: from now on the volume is what the target holds

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
    bint lost                        # a deleted snapshot's tree could not be read meanwhile: what it had is counted for ever (map/walk.pyx)
    uint32_t left                    # earlier ones that sealed segments lack

cdef enum Leaving:                   # of a volume that is to be deleted
    STAYS,
    IS_TO_LEAVE,                     # once nothing is under way
    LEAVES

cdef struct MetadataRecord:          # what the metadata service has of a volume
    bint exists
    bint deleting
    bint hidden                      # it is deleted, and stays for its clones
    void* parent                     # of a clone: the SimulatedVolume that it is one of ...
    uint8_t snapshot[16]             # ... and the snapshot of that one
    bint making                      # that snapshot is a mark, and the clone is yet to be taken ...
    int64_t at_ns                    # ... to this moment
    bint detaching                   # it is to be a clone no more
    uint8_t id[16]
    uint64_t epoch
    Pointer checkpoint
    uint64_t size_blocks

cdef class SimulatedVolume:
    cdef RunState run
    cdef Checker checker
    cdef Oracle oracle
    cdef MetadataRecord record
    cdef StrayWrite stray
    cdef readonly uint32_t number    # among those that the life has at once
    # what lives until the process dies
    cdef SegmentTable segments
    cdef Map map
    cdef Log log
    cdef Volume volume
    cdef Recovery recovery
    cdef Cleaner cleaner
    cdef Clients clients             # None: all requests are given to the volume, with no door between
    cdef Volume reading              # a snapshot, one at a time; None: this life has none
    cdef uint32_t tasks              # control tasks of it under way
    cdef uint32_t changes            # ... that change its history
    cdef bint open                   # it is recovered, and not closed
    cdef bint between                # it is being opened, or closed and erased
    cdef bint planned                # its record is being written
    cdef Leaving leaving
    cdef bint changing               # somebody changes what it is, and no one else changes its history meanwhile
    cdef Waiters changed             # who waits for the end of that
    cdef bint wants_in               # Python is to settle it in, ...
    cdef Operation settled           # ... and then this is done
    cdef void* follows               # or to make `retrace`, for the log of this SimulatedVolume
    cdef RollForward roll_forward
    cdef bint wants_tree             # or to make `tree`
    cdef Map tree                    # to look at others than the head's with
    cdef bint copying                # a task of it detaches it
    cdef Throttle throttle
    cdef Read look
    cdef Operation looked
    # the metadata service, while its pointer is moved
    cdef Operation metadata          # the request to it, then its answer
    cdef uint64_t moving_sequence
    cdef uint64_t stored_sequence    # of the pointer that it has, if this process wrote it
    cdef bint asking                 # a request or its answer is under way
    cdef Pointer moving
    # its doors
    cdef uint32_t busy               # operations under way
    cdef uint32_t usable             # regions inside the volume as it is
    cdef uint32_t verify_next        # the next region to be read after a recovery, and the one behind the last
    cdef uint32_t verify_end
    # its history
    cdef SimulatedSnapshot shots[SHOTS_AND_MARKS]
    cdef PointInTime moments[MOMENTS]
    cdef bint pausing                # nobody asks anything until nothing is under way: that is to be a moment
    cdef bint shortening             # its device is full, and its window becomes shorter
    cdef uint64_t shortages_begun    # since it was opened
    cdef bint stuck                  # a restore could not be undone: nobody is served
    cdef Going going

    cdef object settle_in(self)      # in a new process: everything that an open volume consists of; it is not open yet
    cdef object make_reading(self)
    cdef object move_out(self)       # the process is gone
    cdef void begin_life(self, uint64_t size_blocks) noexcept nogil
    cdef void await_metadata(self) noexcept nogil
    cdef void begin_task(self) noexcept nogil
    cdef void end_task(self) noexcept nogil
    cdef void begin_change(self) noexcept nogil          # a task that changes its history
    cdef void end_change(self) noexcept nogil
    cdef void take(self) noexcept nogil                  # in a task: from now on it is `changing`
    cdef void let_go(self) noexcept nogil
    cdef void await_settling(self) noexcept nogil        # in a task, in the midst of a process
    cdef object make_retrace(self)
    cdef object make_tree(self)
    cdef void await_tree(self) noexcept nogil
    cdef void await_retrace(self, SimulatedVolume source) noexcept nogil
    cdef void has_settled(self) noexcept nogil
    cdef bint is_idle(self) noexcept nogil               # nothing is under way that its doors or its history wait for
    cdef uint32_t ancestors(self) noexcept nogil
    cdef uint32_t clones(self, const uint8_t* snapshot) noexcept nogil     # of it, or of all its snapshots (NULL)
    cdef int come_up(self) noexcept nogil                # in a task: it is recovered and open; or a negative errno, and recovery.reason
    cdef void choose_verified(self) noexcept nogil
    cdef void will_be_of(self, int64_t at_ns) noexcept nogil     # a clone that is planned: not of the mark, but of this moment
    cdef bint serves(self) noexcept nogil                # its doors are open
    cdef void operate(self, int kind) noexcept nogil     # a read, write, trim or flush
    cdef bint verify(self) noexcept nogil                # reads the next region; False: all are asked for
    cdef void grow(self) noexcept nogil
    cdef Slot* take_slot(self, int kind) noexcept nogil
    cdef void note_oldest_read(self) noexcept nogil
    cdef bint meets_damage(self, Slot* slot) noexcept nogil
    cdef bint excuses(self, Slot* slot, int error) noexcept nogil
    cdef void place(self, Slot* slot) noexcept nogil
    cdef void give(self, Slot* slot) noexcept nogil
    cdef bint give_to_client(self, Slot* slot) noexcept nogil
    cdef bint let_clients_leave(self) noexcept nogil     # call it until nobody is left
    cdef void await_clients(self) noexcept nogil         # in a task: until they have all left
    cdef void turn_clients(self) noexcept nogil          # between two turns of the reactor
    cdef void write_more(self, Slot* slot) noexcept nogil
    cdef void write_done(self, Slot* slot) noexcept nogil
    cdef void read_done(self, Slot* slot) noexcept nogil
    cdef int go_back(self, const uint8_t* id, SnapshotRequest* snapshot_request, SnapshotRequest* mark) noexcept nogil  # as engine.pyx has it done; in a task
    cdef Shortages shortages(self) noexcept nogil
    cdef void check_making(self, Shortages before, int result) noexcept nogil            # of a snapshot that was not urgent
    cdef void name_shot(self, SimulatedSnapshot* shot) noexcept nogil
    cdef SimulatedSnapshot* free_mark(self) noexcept nogil
    cdef uint32_t marks(self) noexcept nogil
    cdef SimulatedSnapshot* any_shot(self, SimulatedSnapshotState state) noexcept nogil
