# The simulated world: the second answer to Io. See simulation/world.pyx.
#
#     world = World(seed)                       Python: world.faults = {"rot": 0.001, ...}; device = world.make_device(1 << 30)
#     io = WorldIo(world)                       a node's face on it; Reactor(0, io, ADAPTIVE, 50000)
#     io.add_device(device)                     gives the same number back
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
    CRASHED = -1                     # what poll returns to a face whose node is gone

cdef struct Latencies:               # on average
    int64_t read_ns
    int64_t write_ns
    int64_t flush_ns
    int64_t discard_ns
    int64_t network_ns
    int64_t turn_ns                  # up to so much: what falls due meanwhile is found by one poll

cdef struct Face:
    void* io                         # WorldIo; NULL: free
    uint32_t first_ready
    uint32_t last_ready
    int64_t clock_ns                 # added to the world's: its monotonic clock
    int64_t unix_ns                  # likewise: its wall clock
    uint64_t devices                 # a bit for each that it has added: a crash of this face is one of these

cdef class World:
    cdef EventQueue event_queue
    cdef Network network
    cdef Injector injector
    cdef Latencies latency
    cdef Prng prng                 # order and latencies
    cdef Prng crash_chance         # what crashes leave
    cdef Disk disks[DISKS_MAX]
    cdef Face faces[FACES_MAX]
    cdef uint32_t ready              # events that no face has polled yet
    cdef readonly uint64_t seed
    cdef readonly uint64_t digest    # over every event
    cdef readonly uint64_t events    # that came
    cdef readonly uint64_t dropped           # caches of devices, by failed flushes
    cdef readonly uint64_t boundaries        # writes, flushes and discards of devices: each counts when asked for and when it comes
    cdef readonly uint64_t crashes
    cdef uint64_t armed_at           # the boundary at which everything crashes; 0: none
    cdef bint armed_power
    cdef uint64_t power_cuts

    # the driver's; probabilities are in injector.probability, what struck in injector.counts
    cdef int add_disk(self, uint64_t bytes, bint volatile_cache, uint64_t cache_bytes) noexcept nogil     # its number, -EMFILE or -ENOMEM
    # The power goes (or, without power, the processes alone are killed: caches stay), for one face or all (-1). Call it while whoever asked is still in
    # memory: writes under way are read once more. Afterwards these faces poll CRASHED, whatever they ask is dropped, and new ones can be made.
    cdef void crash(self, int face, bint power) noexcept nogil
    cdef void crash_at(self, uint64_t boundary, bint power) noexcept nogil      # before it; all faces. 0: not at all
    cdef int connect(self, int face_a, int face_b, int* a, int* b) noexcept nogil
    # The oracle's. A block is tainted if a lost write, a misdirected one or rot hit it since it was last written whole.
    cdef bint tainted(self, int device, uint64_t offset, uint64_t bytes) noexcept nogil
    cdef char* contents(self, int device) noexcept nogil         # what reads would find, caches and all
    cdef uint32_t sum_of(self, int device, const char* block) noexcept nogil     # the CRC-32C of a block among them
    cdef bint advance(self, int64_t until_ns) noexcept nogil     # to the next event, not beyond; False: none until then

    # the faces'
    cdef int enter(self, void* io) noexcept nogil
    cdef void leave(self, int face) noexcept nogil
    cdef void ask(self, int face, EventKind kind, Operation* operation) noexcept nogil
    cdef bint cancel(self, Operation* operation) noexcept nogil
    cdef int poll(self, int face) noexcept nogil                 # hand back what is ready
    cdef void after(self, int face, Operation* operation, int64_t delay_ns) noexcept nogil
    cdef int64_t unix_ns(self, int face) noexcept nogil
    cdef void boundary(self) noexcept nogil
    cdef void occur(self, uint32_t event) noexcept nogil
    cdef void make_ready(self, uint32_t event) noexcept nogil
    cdef void land(self, Disk* disk, int face, bint power) noexcept nogil
    cdef void forget(self, int face) noexcept nogil
    cdef int64_t latency_of(self, EventKind kind, const Operation* operation) noexcept nogil
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
    cdef void device_operation(self, EventKind kind, Operation* operation, int device, char* buffer, uint32_t bytes, uint64_t offset) noexcept nogil
