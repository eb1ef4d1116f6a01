# One seed's life of a volume in the simulated world. See simulation.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.audit cimport Audit
from iomesh.engine.cleaning cimport Cleaned, Cleaner, Plan
from iomesh.engine.counters cimport COUNTERS, HISTOGRAM_BUCKETS, HISTOGRAMS
from iomesh.engine.history cimport Making
from iomesh.engine.io cimport Io, Operation
from iomesh.engine.judge cimport Judge
from iomesh.engine.layout cimport Pointer
from iomesh.engine.log cimport Log
from iomesh.engine.map cimport Map, MapCache
from iomesh.engine.pool cimport Pool
from iomesh.engine.reactor cimport Reactor
from iomesh.engine.recovery cimport Recovery
from iomesh.engine.request cimport Read, Request
from iomesh.engine.segments cimport Segments
from iomesh.engine.snapshots cimport Wish
from iomesh.engine.store cimport Store
from iomesh.engine.volume cimport Volume
from iomesh.engine.world cimport World

cdef enum:
    SLOTS = 32                       # operations under way
    REGIONS_MAX = 64                 # of 256 blocks (one leaf of the map): where the volume is used
    REGION_SECTORS = 2048
    STORES = 2
    SHOTS = 6                        # snapshots at once: fewer than the judge keeps
    TRACED = 1024                    # events that are kept

cdef enum Kind:                      # what a life may do; to add one: here, in KINDS and in begin()
    READ, WRITE, ZERO, FLUSH, CHECKPOINT, GROW, PAUSE, CLEAN, SNAPSHOT, DELETE, LOOK, RESTORE, DAMAGE,
    VERIFY,                          # not drawn: a read after a recovery
    KINDS

cdef enum Phase:
    BOOTING, VERIFYING, LOOKING, WORKING, QUIETING, STOPPING, STOPPED, REFUSED

cdef enum End:
    END_STOPPED, END_CRASHED, END_POWER_CUT, END_REFUSED, END_WRONG

cdef struct Slot:                    # an operation under way
    Request request                  # its first member
    Read read
    Operation when
    void* life
    char* buffer
    bint busy
    int kind
    uint32_t sector                  # of the model
    uint32_t sectors
    uint32_t done                    # sectors that the volume took
    uint32_t number                  # in the model
    uint64_t begun                   # on the judge's clock
    bint damaged                     # something that it needs was, when it began
    int64_t started_ns

cdef enum ShotState:                 # of a snapshot, as its user knows it
    SHOT_NONE, SHOT_MAKING, SHOT_MADE, SHOT_DELETING,
    SHOT_UNKNOWN                     # a crash came while it was made or deleted

cdef struct Shot:
    ShotState state
    void* life
    uint8_t id[16]
    uint32_t number
    uint64_t begun                   # on the judge's clock
    uint64_t size_blocks
    int kept                         # what it may hold, by the judge's number
    bint looked_at                   # someone reads it
    Making making

cdef enum GoingState:                # of going back to a snapshot
    GOING_NOWHERE,
    GOING_WAITS,                     # until nothing is under way: nobody is connected then
    GOING_BACK

cdef struct Going:
    GoingState state
    Shot* target
    uint8_t id[16]                   # the target's
    int kept                         # what it may hold, by the judge's number: the snapshot itself may go meanwhile
    Shot* before                     # what was there until then; NULL: it is not to be kept
    Wish wish                        # ... as the engine is asked for it
    bint moved                       # the metadata service has been told: from now on the volume is what the target holds

cdef struct Event:                   # for people
    int64_t now_ns
    const char* words
    int64_t a
    int64_t b
    int64_t c

cdef class Simulation:
    cdef readonly uint64_t seed
    cdef uint64_t state
    cdef uint8_t cluster[16]
    cdef World world
    cdef Io io
    cdef Judge judge
    cdef readonly dict drawn         # what the swarm drew, for people
    # what lives until the process dies
    cdef Reactor reactor
    cdef Pool pool
    cdef MapCache cache
    cdef list stores
    cdef void* store_pointers[STORES]
    cdef Segments segments
    cdef Map map
    cdef Log log
    cdef Volume volume
    cdef Recovery recovery
    cdef Cleaner cleaner
    cdef Volume reading              # a snapshot, one at a time
    cdef Audit audit
    cdef uint64_t counters[COUNTERS]
    cdef uint64_t histograms[HISTOGRAMS * HISTOGRAM_BUCKETS]
    # the metadata service
    cdef uint64_t epoch
    cdef Pointer checkpoint
    cdef uint64_t size_blocks
    cdef uint64_t moving_sequence
    cdef Pointer moving
    cdef Operation metadata          # the request to it, then its answer
    cdef bint metadata_moved
    cdef Shot shots[SHOTS]
    cdef uint32_t shot_count         # ever
    cdef Going going
    # what was drawn
    cdef int store_count
    cdef uint32_t regions
    cdef uint64_t leaves[REGIONS_MAX]
    cdef uint32_t weights[KINDS]
    cdef uint32_t weight
    cdef uint32_t depth
    cdef uint32_t size_max           # blocks
    cdef uint32_t odd                # of 256: not whole blocks
    cdef uint32_t hot                # of 256: in the hot part
    cdef uint32_t hot_sectors
    cdef uint32_t stable             # of 256: FUA
    cdef uint32_t frames
    cdef uint32_t records            # buffers
    cdef uint64_t interval
    cdef int64_t metadata_ns
    cdef uint32_t power              # of 256 crashes: power cuts
    cdef uint32_t stops              # of 256 ends: clean stops
    cdef uint32_t hurried            # of 256 beginnings: crashed while they are under way
    cdef uint32_t unverified         # of 256 beginnings: nothing is compared before it goes on
    cdef uint32_t per_life           # operations between two ends, on average
    cdef readonly dict faults        # of the world, with their probabilities
    cdef bint errors_allowed         # ... now: some that devices tell of
    cdef bint hangs
    # how it goes
    cdef Phase phase
    cdef bint armed_power            # of a crash that the world makes at a boundary
    cdef Slot slots[SLOTS]
    cdef uint32_t busy
    cdef uint32_t tasks              # control tasks under way
    cdef char* memory
    cdef bint paused
    cdef bint hungry                 # writes found no space
    cdef Operation pause
    cdef uint32_t verify_next        # the next region to be read after a recovery, and the one behind the last
    cdef uint32_t verify_end
    cdef bint looking
    cdef Read look
    cdef Operation looked
    cdef char* look_buffer
    cdef uint32_t usable             # regions inside the volume as it is
    cdef uint64_t left               # operations until this beginning ends
    cdef uint64_t step
    cdef uint64_t crash_step
    cdef bint last                   # the last beginning: what is there is compared, and all ends well
    cdef bint wrong
    cdef char words[640]
    cdef readonly uint64_t operations
    cdef readonly uint64_t done[KINDS]
    cdef readonly uint64_t crashes
    cdef readonly uint64_t power_cuts
    cdef readonly uint64_t clean_stops
    cdef readonly uint64_t moves
    cdef readonly uint64_t restores
    cdef readonly uint64_t refusals  # beginnings that ended with one: devices failed, or were damaged, or full
    cdef readonly uint64_t damages   # blocks
    cdef readonly uint64_t unread    # nodes that walks of dying snapshots could not read, in beginnings that are over
    cdef uint64_t damaged_at         # on the judge's clock: the newest
    cdef readonly uint64_t excused   # errors of reads and writes that met damage
    cdef readonly uint64_t failures  # operations that ended with an error
    cdef readonly uint64_t walks
    cdef readonly uint64_t comparisons       # of what cleaning derives with what a walk has found
    cdef Cleaned cleaned             # in all
    cdef Event events[TRACED]
    cdef uint64_t event_count

    cdef uint64_t draw(self, uint64_t below) noexcept nogil
    cdef bint chance(self, uint32_t of_256) noexcept nogil
    cdef void note(self, const char* words, int64_t a, int64_t b, int64_t c) noexcept nogil
    cdef void fault(self, const char* words, int64_t a, int64_t b) noexcept nogil
    cdef object draw_life(self, operations)
    cdef object set_faults(self)
    cdef object format(self)
    cdef object enter(self)
    cdef object boot(self)
    cdef object drop(self)
    cdef End crash(self, bint power) noexcept nogil
    cdef void crash_soon(self, uint64_t within) noexcept nogil
    cdef End hang(self) noexcept nogil
    cdef int64_t oldest_ns(self) noexcept nogil
    cdef void refused(self, const char* reason, int error) noexcept nogil
    cdef End live(self) noexcept nogil
    cdef void issue(self) noexcept nogil
    cdef void verify_more(self) noexcept nogil
    cdef void work_more(self) noexcept nogil
    cdef void begin(self, int kind) noexcept nogil
    cdef void begin_task(self, int kind) noexcept nogil
    cdef void name_shot(self, Shot* shot) noexcept nogil
    cdef void begin_restore(self) noexcept nogil
    cdef Shot* any_shot(self, ShotState state) noexcept nogil
    cdef void doubt_shots(self) noexcept nogil
    cdef bint settle_shots(self) noexcept nogil
    cdef void note_oldest_read(self) noexcept nogil
    cdef bint walk(self) noexcept nogil
    cdef bint has_leaked(self) noexcept nogil
    cdef void damage(self) noexcept nogil
    cdef bint meets_damage(self, Slot* slot) noexcept nogil
    cdef bint excuses(self, Slot* slot, int error) noexcept nogil
    cdef Slot* take_slot(self, int kind) noexcept nogil
    cdef bint place(self, Slot* slot) noexcept nogil
    cdef void write_more(self, Slot* slot) noexcept nogil
    cdef void give(self, Slot* slot) noexcept nogil
    cdef void read_done(self, Slot* slot) noexcept nogil
    cdef void write_done(self, Slot* slot) noexcept nogil
    cdef uint64_t place_of(self, uint32_t sector) noexcept nogil
