# What all of a life in the simulated world share: chance, what was drawn, the process, the trace. See simulation/run.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.volume.cleaning cimport Cleaned
from iomesh.engine.base.counters cimport COUNTERS, HISTOGRAM_BUCKETS, HISTOGRAMS
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.simulation.oracle cimport Ledger
from iomesh.engine.map.map cimport MapCache
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.simulation.world cimport World

cdef enum:
    SLOTS = 32                       # operations under way
    REGIONS_MAX = 64                 # of 256 blocks (one leaf of the map): where volumes are used
    REGION_SECTORS = 2048
    READ_BLOCKS = 256
    STORES = 2
    VOLUMES_MAX = 4                      # volumes at once
    TRACED = 1024                    # events that are kept

cdef enum ActionKind:                # what a life may do; to add one: here, in KIND_NAMES, draw_swarm() and Simulation.begin()
    READ, WRITE, ZERO, FLUSH, CHECKPOINT, GROW, PAUSE, CLEAN, SNAPSHOT, DELETE, LOOK, RESTORE, DAMAGE, CLONE, DROP, MARK, MOMENT, REWIND, DETACH, STRAY,
    VERIFY,                          # not drawn: a read after a recovery
    KINDS

cdef struct Slot:                    # an operation under way
    Request request                  # its first member
    Read read
    Operation when
    void* simulated                  # whose volume is asked
    char* buffer
    bint busy
    int kind
    uint32_t sector                  # of the model
    uint32_t sectors
    uint32_t done                    # sectors that the volume took
    uint32_t number                  # in the ledger
    uint64_t begun                   # on its clock
    bint damaged                     # something that it needs was, when it began
    int64_t started_ns

cdef struct TraceEvent:              # for people
    int64_t now_ns
    const char* words
    int64_t a
    int64_t b
    int64_t c

cdef class RunState:
    cdef readonly uint64_t seed
    cdef uint64_t state
    cdef uint8_t cluster[16]
    cdef World world
    cdef Ledger ledger
    # what lives until the process dies
    cdef Io io
    cdef Reactor reactor
    cdef Pool pool
    cdef MapCache cache
    cdef list stores
    cdef void* store_pointers[STORES]
    cdef uint64_t counters[COUNTERS]
    cdef uint64_t histograms[HISTOGRAMS * HISTOGRAM_BUCKETS]
    cdef void* volume_pointers[VOLUMES_MAX]
    cdef uint32_t volume_count
    cdef bint wanting                # a simulated volume wants to settle in: Python makes what that takes
    # what was drawn: simulation/swarm.pyx
    cdef readonly dict drawn         # for people
    cdef int store_count
    cdef uint32_t regions
    cdef uint64_t journal_bytes      # of one half
    cdef uint64_t leaves[REGIONS_MAX]
    cdef uint32_t used               # regions that the first volume has, as it begins
    cdef bint cloning
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
    cdef uint32_t outage             # of 256 updates: the metadata service does not answer, whether it takes place or not
    cdef int64_t outage_ns           # then it is asked again within
    cdef bint keeps_nothing_volatile    # no power is cut, or no device would lose anything
    cdef uint32_t power              # of 256 crashes: power cuts
    cdef uint32_t stops              # of 256 ends: clean stops
    cdef uint32_t hurried            # of 256 beginnings: crashed while they are under way
    cdef uint32_t unverified         # of 256 beginnings: nothing is compared before it goes on
    cdef uint32_t per_life           # operations between two ends, on average
    cdef uint32_t by_clients         # of 256 requests: a client's, over the network
    cdef uint32_t clients_most       # at once, of one volume
    cdef uint64_t clients_seed
    cdef readonly dict faults        # of the world, with their probabilities
    cdef uint64_t dropped            # caches that devices had dropped when the process began
    cdef bint damage_allowed         # ... of reads or writes: an open segment may not be what it was
    cdef bint errors_allowed         # ... now: some that devices tell of
    cdef bint hangs
    # how it goes
    cdef Slot slots[SLOTS]
    cdef char* memory                # of their buffers
    cdef uint32_t busy               # operations under way
    cdef uint32_t tasks              # control tasks under way
    cdef bint hungry                 # writes found no space
    cdef bint looking                # a snapshot is being read
    cdef char* look_buffer
    cdef uint64_t left               # operations until this beginning ends
    cdef uint64_t step
    cdef uint64_t crash_step         # NEVER_CRASHES: it is not to crash yet
    cdef bint armed_power            # of a crash that the world makes at a boundary
    cdef bint last                   # the last beginning: what is there is compared, and all ends well
    cdef bint wrong
    cdef char words[640]
    cdef uint32_t volumes_ever       # ever
    cdef uint32_t shot_count         # snapshots ever, of all volumes
    cdef uint64_t damaged_at         # on the ledger's clock: the newest
    cdef readonly uint64_t operations
    cdef readonly uint64_t done[KINDS]
    cdef readonly uint64_t crashes
    cdef readonly uint64_t power_cuts
    cdef readonly uint64_t clean_stops
    cdef readonly uint64_t moves
    cdef readonly uint64_t silences  # of the metadata service
    cdef readonly uint64_t restores
    cdef readonly uint64_t clones    # that were made
    cdef readonly uint64_t hidden    # volumes that were deleted while there were clones of them
    cdef readonly uint64_t drops     # volumes that are gone
    cdef readonly uint64_t detached  # clones that are none any more
    cdef readonly uint64_t rewinds   # to moments
    cdef readonly uint64_t undone    # restores to moments
    cdef readonly uint64_t unmade    # snapshots that were refused for want of space
    cdef readonly uint64_t refusals  # beginnings that ended with one: devices failed, or were damaged
    cdef readonly uint64_t damages   # blocks
    cdef readonly uint64_t astray    # writes that were lost, or arrived elsewhere
    cdef readonly uint64_t excused   # errors of reads and writes that met damage
    cdef readonly uint64_t failures  # operations that ended with an error
    cdef readonly uint64_t drops_of_caches   # processes in which a device dropped its cache
    cdef readonly uint64_t copied    # segments that another device took over
    cdef readonly uint64_t asked     # of clients, ...
    cdef readonly uint64_t vanished  # ... and never answered
    cdef readonly uint64_t walks
    cdef readonly uint64_t comparisons       # of what cleaning derives with what a walk has found
    cdef Cleaned cleaned             # in all
    cdef TraceEvent events[TRACED]
    cdef uint64_t event_count

    cdef uint64_t draw(self, uint64_t below) noexcept nogil
    cdef bint chance(self, uint32_t of_256) noexcept nogil
    cdef void count(self, int kind) noexcept nogil       # that it was done
    cdef void crash_soon(self, uint64_t within) noexcept nogil
    cdef uint64_t place_of(self, uint32_t sector) noexcept nogil         # in the volume, of one in the model
    cdef uint32_t regions_below(self, uint64_t size_blocks) noexcept nogil
    cdef void hurry(self) noexcept nogil                 # something begins that a crash may well interrupt
    cdef void note(self, const char* words, int64_t a, int64_t b, int64_t c) noexcept nogil
    cdef void fault(self, const char* words, int64_t a, int64_t b) noexcept nogil
    cdef void fail(self, const char* what, int error) noexcept nogil
    cdef Slot* take_slot(self, void* simulated, int kind) noexcept nogil
    cdef int64_t oldest_ns(self) noexcept nogil
    cdef void pass_time(self) noexcept nogil

cdef enum:
    NEVER_CRASHES = 2 * 1000 * 1000  # steps of one beginning: more is one that never ends
