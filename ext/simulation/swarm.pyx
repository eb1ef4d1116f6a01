# What one life in the simulated world is like: which operations are common, how large they are, how much is under way, what the devices are like
# and what fails. It is drawn once (swarm testing: Groce et al., "Swarm Testing", 2012): a life in which everything happens shows little of what
# needs many of one kind. All of it follows from the seed.

from libc.stdint cimport uint32_t, uint64_t

from iomesh.engine.simulation.prng cimport stirred
from iomesh.engine.simulation.clients cimport CLIENTS
from iomesh.engine.simulation.oracle cimport OPERATIONS_MAX
from iomesh.engine.format.layout cimport DEVICE_BYTES_MIN
from iomesh.engine.simulation.run cimport (
    CHECKPOINT, CLEAN, CLONE, DAMAGE, DELETE, DETACH, DROP, FLUSH, GROW, KINDS, LOOK, MARK, MOMENT, PAUSE, READ, RESTORE, REWIND, SLOTS, SNAPSHOT,
    STRAY, VERIFY, WRITE, ZERO, Life)
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.simulation.world cimport World

from iomesh.engine.simulation.run import KIND_NAMES

cdef enum Theme:                     # what a life is about, beside what all are
    CLONING, WINDOWED, CONNECTED, STRAYING

cdef enum:
    THEMES_MAX = 16
    LONG_LIFE = 3                    # times the operations, where few of them end a process: the log comes round the device several times


cdef object draw_swarm(Life life, operations):
    """operations: of the whole life, drawn unless given."""
    cdef int i
    cdef uint64_t leaf = 0
    life.world = World(life.draw(1 << 62))
    life.store_count = 2 if life.draw(4) == 0 else 1
    volatile = life.draw(4) != 0
    for i in range(life.store_count):
        if life.world.add_disk(DEVICE_BYTES_MIN, volatile and (i == 0 or life.draw(2)), [4, 32, 256][life.draw(3)] * <uint64_t>(1 << 18)) != i:
            raise MemoryError("no memory for a device")
    life.journal_bytes = [256, 256, 256, 1024][life.draw(4)] << 10      # short ones go from one half to the other
    life.regions = [1, 2, 4, 8, 12, 16][life.draw(6)]
    spread = [1, 1, 1, 3, 300, 70000][life.draw(6)]          # leaves between two regions, at most
    for i in range(life.regions):
        life.leaves[i] = leaf
        leaf += 1 + life.draw(spread)
    life.used = life.regions if life.draw(2) else 1 + life.draw(life.regions)
    common = [0, 1, 4, 16]
    life.weights[<int>READ] = common[life.draw(4)]
    life.weights[<int>WRITE] = 16
    life.weights[<int>ZERO] = common[life.draw(4)] // 2
    life.weights[<int>FLUSH] = common[life.draw(4)] // 2
    life.weights[<int>CHECKPOINT] = life.draw(2)
    life.weights[<int>GROW] = life.draw(2)
    life.weights[<int>PAUSE] = life.draw(2)
    life.weights[<int>CLEAN] = [0, 1, 1, 2][life.draw(4)]
    life.weights[<int>SNAPSHOT] = [0, 0, 1, 2][life.draw(4)]
    life.weights[<int>DELETE] = life.draw(3) if life.weights[<int>SNAPSHOT] else 0
    life.weights[<int>LOOK] = life.draw(2) if life.weights[<int>SNAPSHOT] else 0
    life.weights[<int>RESTORE] = life.draw(2) if life.weights[<int>SNAPSHOT] else 0
    life.weights[<int>DAMAGE] = life.draw(12) == 0
    life.cloning = has_theme(life.seed, CLONING)
    if life.cloning:
        life.weights[<int>CLONE] = 1 + life.draw(2)
        life.weights[<int>DROP] = life.draw(3)
        life.weights[<int>DETACH] = life.draw(2)
        life.weights[<int>SNAPSHOT] = max(life.weights[<int>SNAPSHOT], <uint32_t>1)
    if has_theme(life.seed, WINDOWED):
        life.weights[<int>MARK] = 1 + life.draw(2)
        life.weights[<int>MOMENT] = 1 + life.draw(2)
        life.weights[<int>REWIND] = 1
    if has_theme(life.seed, STRAYING):
        life.weights[<int>STRAY] = 1
    life.weight = sum([life.weights[kind] for kind in range(<int>KINDS)])
    life.depth = [1, 2, 4, 8, 16, SLOTS][life.draw(6)]
    life.size_max = [1, 1, 2, 4, 4, 8, 16, 64, 250][life.draw(9)]
    life.odd = [0, 16, 64, 160][life.draw(4)]
    life.hot = [0, 128, 230][life.draw(3)]
    life.hot_sectors = [64, 512, 2048][life.draw(3)]
    life.stable = [0, 8, 64][life.draw(3)]
    life.frames = [48, 64, 256, 1024][life.draw(4)]        # the engine has 256 at least; fewer make it evict
    life.records = [2, 3, 8, 24][life.draw(4)]
    life.interval = <uint64_t>[1, 2, 4, 16, 64][life.draw(5)] << 20
    life.metadata_ns = [1000, 1000 * 1000, 100 * 1000 * 1000][life.draw(3)]
    life.power = [0, 128, 200, 256][life.draw(4)] if volatile else [0, 128][life.draw(2)]
    if life.power:                                   # without, what a power cut may leave grows and grows
        life.weights[<int>FLUSH] += 1
        life.weight += 1
    life.stops = [0, 32, 128][life.draw(3)]
    life.hurried = [0, 64, 128][life.draw(3)]
    life.unverified = [0, 64, 128][life.draw(3)]
    life.per_life = [20, 100, 400, 1500][life.draw(4)]
    life.operations = operations if operations is not None else [300, 1000, 3000][life.draw(3)] * (LONG_LIFE if life.per_life >= 400 else 1)
    life.operations = min(life.operations, <uint64_t>(OPERATIONS_MAX // 2))
    life.pool = Pool(4, 2, life.records)
    life.faults = {}
    for name in ("slow", "hang", "timer_early", "timer_late", "read_error", "write_error", "flush_error"):
        if life.draw(12) == 0:
            life.faults[name] = [0.0003, 0.003, 0.03][life.draw(3)]
    if has_theme(life.seed, CONNECTED):
        draw_clients(life)
    life.keeps_nothing_volatile = not volatile or not life.power
    life.drawn = {
        "stores": life.store_count, "journal_bytes": life.journal_bytes, "volatile": bool(volatile), "regions": life.regions, "spread": spread,
        "depth": life.depth, "size_max": life.size_max, "odd": life.odd,
        "hot": life.hot, "stable": life.stable, "frames": life.frames, "records": life.records, "interval": life.interval,
        "power": life.power, "stops": life.stops, "hurried": life.hurried, "unverified": life.unverified, "per_life": life.per_life,
        "by_clients": life.by_clients, "clients_most": life.clients_most, "network_ns": life.world.latencies["network_ns"], "faults": life.faults,
        "weights": {KIND_NAMES[kind]: life.weights[kind] for kind in range(<int>VERIFY)}, "operations": life.operations}


cdef object draw_clients(Life life):
    """How much is asked by clients, how many there are, and what their connections are like; the longer these delay, the more they overtake each other."""
    life.by_clients = [48, 160, 256][life.draw(3)]
    life.clients_most = 1 + <uint32_t>life.draw(CLIENTS)
    life.clients_seed = life.draw(1 << 62)
    life.world.latencies = {"network_ns": [4 * 1000, 40 * 1000, 1000 * 1000, 20 * 1000 * 1000][life.draw(4)]}
    for name in ("network_slow", "connection_cut", "connection_half_open"):
        if life.draw(2) == 0:
            life.faults[name] = [0.0003, 0.003, 0.03][life.draw(3)]


cdef bint has_theme(uint64_t seed, Theme theme) noexcept nogil:
    """One life in five; the others are as if there were no such theme."""
    return stirred(seed * THEMES_MAX + <int>theme) % 5 == 0
