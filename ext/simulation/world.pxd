# The simulated world: the second implementation of Io. See simulation/world.pyx.
#
#     world = World(seed)
#     world.faults = {"rot": 0.001, ...}        from Python, and device = world.make_device(1 << 30)
#     io = WorldIo(world)                       a face: a node's Io; Reactor(0, io, ADAPTIVE, 50000)
#     second = WorldIo(world, io)               another reactor's, of the same node
#     io.add_device(device)                     returns the same number
#     while ...: io.poll(wait_ns); reactor.turn()

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.event_queue cimport EventQueue, Event, EventKind
from iomesh.engine.simulation.prng cimport Prng
from iomesh.engine.simulation.disk cimport Disk
from iomesh.engine.simulation.faults cimport Injector
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.simulation.network cimport Network

cdef enum:
    DISKS_MAX = 64
    FACES_MAX = 64
    CRASHED = -1                     # what poll returns on a face whose node has ended

cdef struct Latencies:               # on average
    int64_t read_ns
    int64_t write_ns
    int64_t flush_ns
    int64_t discard_ns
    int64_t network_ns
    int64_t turn_ns                  # at most: one poll finds all events that fall due meanwhile

cdef struct Face:
    void* io                         # WorldIo; NULL: free
    uint32_t first_ready
    uint32_t last_ready
    int64_t clock_ns                 # its monotonic clock, relative to the world's ...
    int64_t drift_ppm                # ... and how much faster than that it runs, in millionths
    int64_t unix_ns                  # its wall clock, likewise: that of the face `node`
    int node                         # the first face of its node: faces of one node share clocks and crash together
    uint64_t devices                 # a bit for each added device: a crash of the face affects these

cdef class World:
    cdef EventQueue event_queue
    cdef Network network
    cdef Injector injector
    cdef Latencies latency
    cdef Prng prng                 # order and latencies
    cdef Prng crash_chance         # what survives crashes
    cdef Disk disks[DISKS_MAX]
    cdef Face faces[FACES_MAX]
    cdef uint32_t ready              # events not polled yet
    cdef readonly uint64_t seed
    cdef readonly uint64_t digest    # over every event
    cdef readonly uint64_t events    # that occurred
    cdef readonly uint64_t dropped           # caches of devices, by failed flushes
    cdef readonly uint64_t boundaries        # starts and completions of device writes, flushes and discards
    cdef readonly uint64_t crashes
    cdef uint64_t armed_at           # the boundary at which everything crashes; 0: none
    cdef bint armed_power
    cdef int armed_face              # -1: all
    cdef uint64_t power_cuts
    cdef readonly uint64_t altered           # writes whose data changed between the request and its completion

    # for the driver; probabilities are in injector.probability, fault counts in injector.counts
    # its number, -EMFILE or -ENOMEM
    cdef int add_disk(self, uint64_t bytes, bint volatile_cache, uint64_t cache_bytes) noexcept nogil
    # Cuts the power (power False: only kills the processes, caches stay) of one face or all (-1). Call it while the
    # callers' buffers are still in memory: it reads the writes in flight once more. Afterwards these faces poll
    # CRASHED, their operations are dropped, and new faces can be created.
    cdef void crash(self, int face, bint power) noexcept nogil
    # before the boundary; face -1: all. boundary 0: never
    cdef void crash_at(self, uint64_t boundary, bint power, int face=*) noexcept nogil
    cdef void cut(self, int device) noexcept nogil               # cuts its power, while no face is alive that uses it
    cdef int connect(self, int face_a, int face_b, int* a, int* b) noexcept nogil
    # For checks. A block is tainted if a lost write, a misdirected one or rot hit it since it was last written whole.
    cdef bint tainted(self, int device, uint64_t offset, uint64_t bytes) noexcept nogil
    cdef char* contents(self, int device) noexcept nogil         # what reads would return, caches included
    cdef uint32_t sum_of(self, int device, const char* block) noexcept nogil     # the CRC-32C of a block among them
    cdef bint advance(self, int64_t until_ns) noexcept nogil     # to the next event; False: none by then

    # for the faces
    cdef int enter(self, void* io, int node) noexcept nogil      # node: -1: of a node of its own
    cdef void leave(self, int face) noexcept nogil
    cdef void ask(self, int face, EventKind kind, Operation* operation) noexcept nogil
    cdef bint cancel(self, Operation* operation) noexcept nogil
    cdef int poll(self, int face) noexcept nogil                 # completes the ready operations
    cdef void after(self, int face, Operation* operation, int64_t delay_ns) noexcept nogil
    cdef int64_t monotonic_ns(self, int face) noexcept nogil
    cdef int64_t unix_ns(self, int face) noexcept nogil
    cdef void boundary(self) noexcept nogil
    cdef void occur(self, uint32_t event) noexcept nogil
    cdef void postpone(self, uint32_t event) noexcept nogil
    cdef void stall(self, Disk* disk) noexcept nogil
    cdef void make_ready(self, uint32_t event) noexcept nogil
    cdef void land(self, Disk* disk, int face, bint power) noexcept nogil
    cdef void forget(self, int face) noexcept nogil
    cdef int64_t latency_of(self, EventKind kind, const Operation* operation) noexcept nogil
    cdef bint is_of(self, int one, int face) noexcept nogil
    cdef bint under_way(self, const Event* event, const Disk* disk, int face) noexcept nogil
    cdef existing(self, int device, uint64_t offset=*, uint64_t bytes=*)
    cdef void note(self, uint64_t a, uint64_t b, uint64_t c) noexcept nogil

cdef class WorldIo(Io):
    cdef World world
    cdef readonly int number         # of this face
    cdef readonly bint alive
    cdef int64_t now
    cdef int64_t waited
    cdef Prng prng
