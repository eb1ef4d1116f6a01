# The shared state of a simulation run: random generator, drawn parameters, process, trace. See simulation/run.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.volume.cleaning cimport Cleaned
from iomesh.engine.base.counters cimport COUNTERS, HISTOGRAM_BUCKETS, HISTOGRAMS
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.simulation.base_run cimport BaseRun
from iomesh.engine.simulation.oracle cimport Ledger
from iomesh.engine.map.map cimport MapCache
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.log.request cimport Read, Request

cdef enum:
    SLOTS = 32                       # operations in flight
    EXTRA = 2 * SLOTS                # buffers instead of those that a stalled device may still use
    REGIONS_MAX = 64                 # of 256 blocks (one leaf of the map): the parts of volumes that are used
    REGION_SECTORS = 2048
    READ_BLOCKS = 256
    STORES = 2
    REACTORS = 2
    VOLUMES_MAX = 4                      # at once

cdef enum ActionKind:                # of a run; to add one: here, in KIND_NAMES, draw_swarm() and Simulation.begin()
    READ, WRITE, ZERO, FLUSH, CHECKPOINT, GROW, PAUSE, CLEAN, SNAPSHOT, DELETE, LOOK, RESTORE, DAMAGE, CLONE, DROP,
    MARK, MOMENT, REWIND, DETACH, STRAY,
    VERIFY,                          # not drawn: reads after a recovery
    KINDS

cdef struct Slot:                    # an operation in flight
    Request request                  # its first member
    Read read
    Operation when
    void* simulated                  # the SimulatedVolume it is issued to
    char* buffer
    bint busy
    int kind
    uint32_t sector                  # of the model
    uint32_t sectors
    uint32_t done                    # sectors that the volume has taken
    uint32_t number                  # in the ledger
    uint64_t begun                   # on the ledger's clock
    bint damaged                     # a block that it needs was damaged when it began
    int64_t started_ns

cdef class SimulatedReactor:         # a reactor of the process and the objects that only it uses
    cdef Io io
    cdef Reactor reactor
    cdef Pool pool
    cdef MapCache cache

cdef class RunState(BaseRun):
    cdef uint8_t cluster[16]
    cdef Ledger ledger
    # of the process
    cdef Io io                       # of the first reactor, as `reactor`
    cdef Reactor reactor
    cdef list reactors               # SimulatedReactor
    cdef void* reactor_pointers[REACTORS]
    cdef uint32_t placed             # where volumes are opened: differs from process to process
    cdef list stores
    cdef void* store_pointers[STORES]
    cdef uint64_t counters[COUNTERS]
    cdef uint64_t histograms[HISTOGRAMS * HISTOGRAM_BUCKETS]
    cdef void* volume_pointers[VOLUMES_MAX]
    cdef uint32_t volume_count
    cdef bint wanting                # a simulated volume waits until Python has created its objects
    # drawn parameters: simulation/swarm.pyx
    cdef readonly dict drawn         # for people
    cdef int store_count
    cdef readonly uint32_t reactor_count
    cdef list pools                  # of each reactor
    cdef uint32_t regions
    cdef uint64_t journal_bytes      # of one half
    cdef uint64_t leaves[REGIONS_MAX]
    cdef uint32_t used               # regions of the first volume at the start
    cdef bint cloning
    cdef uint32_t weights[KINDS]
    cdef uint32_t weight
    cdef uint32_t depth
    cdef uint32_t size_max           # blocks
    cdef uint32_t odd                # of 256 requests: not in whole blocks
    cdef uint32_t hot                # of 256 requests: in the hot part
    cdef uint32_t hot_sectors
    cdef uint32_t stable             # of 256 writes: FUA
    cdef uint32_t frames
    cdef uint32_t records            # buffers
    cdef uint64_t interval
    cdef int64_t metadata_ns
    cdef uint32_t outage             # of 256 metadata updates: not answered, applied or not
    cdef int64_t outage_ns           # then the request is repeated within this time
    cdef bint keeps_nothing_volatile    # there are no power cuts, or no device would lose data
    cdef uint32_t power              # of 256 crashes: power cuts
    cdef uint32_t stops              # of 256 process ends: clean stops
    cdef uint32_t hurried            # of 256 process starts: crashed before they complete
    cdef uint32_t unverified         # of 256 process starts: no reads verify the content first
    cdef uint32_t per_life           # operations of one process, on average
    cdef uint32_t by_clients         # of 256 requests: from a client, over the network
    cdef uint32_t clients_most       # at once, of one volume
    cdef uint64_t clients_seed
    cdef readonly dict faults        # the world's faults and their probabilities
    cdef uint64_t dropped            # device caches dropped before the process started
    cdef bint damage_allowed         # this process may have read or write errors: open segments may be damaged
    cdef bint errors_allowed         # devices may report errors in this process
    cdef bint full_below             # in this process the storage under the devices may have no space
    cdef int patience                # how many times longer operations may take, for the faults of this process
    # progress
    cdef Slot slots[SLOTS]
    cdef char* memory                # of their buffers
    cdef uint32_t busy               # operations in flight
    cdef uint32_t tasks              # running control tasks
    cdef bint hungry                 # writes found no space
    cdef bint looking                # a snapshot is being read
    cdef char* look_buffer
    cdef char* extra[EXTRA]
    cdef uint64_t left               # operations until this process ends
    cdef uint64_t step
    cdef uint64_t crash_step         # NEVER_CRASHES: no crash is scheduled
    cdef bint armed_power            # a crash that the world triggers at a boundary is a power cut
    cdef bint last                   # the last process: everything is verified, and it must end cleanly
    cdef uint32_t volumes_ever       # in total
    cdef uint32_t shot_count         # snapshots of all volumes, in total
    cdef uint64_t damaged_at         # on the ledger's clock: the newest damage
    cdef readonly uint64_t operations
    cdef readonly uint64_t done[KINDS]
    cdef readonly uint64_t crashes
    cdef readonly uint64_t power_cuts
    cdef readonly uint64_t clean_stops
    cdef readonly uint64_t moves
    cdef readonly uint64_t silences  # requests that the metadata service did not answer
    cdef readonly uint64_t restores
    cdef readonly uint64_t clones    # created
    cdef readonly uint64_t hidden    # volumes deleted while they had clones
    cdef readonly uint64_t drops     # volumes whose deletion completed
    cdef readonly uint64_t detached  # clones flattened
    cdef readonly uint64_t rewinds   # restores to points in time
    cdef readonly uint64_t undone    # restores to points in time that were undone
    cdef readonly uint64_t unmade    # snapshots refused with ENOSPC
    cdef readonly uint64_t refusals  # process starts that refused a volume: devices failed or were damaged
    cdef readonly uint64_t damages   # blocks
    cdef readonly uint64_t astray    # writes lost or misdirected
    cdef readonly uint64_t excused   # errors of reads and writes caused by damage
    cdef readonly uint64_t failures  # operations that ended with an error
    cdef readonly uint64_t drops_of_caches   # processes during which a device dropped its cache
    cdef readonly uint64_t timeouts  # device requests whose time ran out
    cdef readonly uint64_t refused_below     # processes in which a log refused writes because of that
    cdef bint leaked                 # a dead snapshot's node stayed unreadable: what it alone had stays counted
    cdef readonly uint64_t late      # device requests answered after they were given up
    cdef readonly uint64_t copied    # segments moved to another device
    cdef readonly uint64_t asked     # client requests, ...
    cdef readonly uint64_t vanished  # ... and never answered
    cdef readonly uint64_t messages  # that arrived at one reactor, from the other
    cdef readonly uint64_t walks
    cdef readonly uint64_t comparisons       # of live blocks derived by cleaning with those found by a walk
    cdef Cleaned cleaned             # in total

    cdef void count(self, int kind) noexcept nogil       # counts it as done
    cdef void crash_soon(self, uint64_t within) noexcept nogil
    cdef uint64_t place_of(self, uint32_t sector) noexcept nogil         # the volume's sector of a sector in the model
    cdef uint32_t regions_below(self, uint64_t size_blocks) noexcept nogil
    cdef void hurry(self) noexcept nogil                 # schedules a crash soon, sometimes
    cdef void fail(self, const char* what, int error) noexcept nogil
    cdef Slot* take_slot(self, void* simulated, int kind) noexcept nogil
    cdef void renew(self, char** buffer) noexcept nogil  # replaces it if a stalled device may still write into it
    cdef bint is_held(self, const char* buffer) noexcept nogil
    cdef int64_t oldest_ns(self) noexcept nogil
    cdef void pass_time(self) noexcept nogil

cdef enum:
    NEVER_CRASHES = 2 * 1000 * 1000  # steps of one process: one that takes more hangs
