# The drawn parameters of a simulation run: which operations are common, their sizes, the queue depth, the devices and
# the faults. They are drawn once per run (swarm testing: Groce et al., "Swarm Testing", 2012): a run in which
# everything happens rarely finds a bug that needs many operations of one kind. All of it follows from the seed.

from libc.stdint cimport uint32_t, uint64_t

from iomesh.engine.simulation.prng cimport stirred
from iomesh.engine.simulation.clients cimport CLIENTS
from iomesh.engine.simulation.oracle cimport OPERATIONS_MAX
from iomesh.engine.format.layout cimport DEVICE_BYTES_MIN
from iomesh.engine.simulation.run cimport (
    CHECKPOINT, CLEAN, CLONE, DAMAGE, DELETE, DETACH, DROP, FLUSH, GROW, KINDS, LOOK, MARK, MOMENT, PAUSE, READ,
    RESTORE, REWIND, SLOTS, SNAPSHOT, STRAY, VERIFY, WRITE, ZERO, RunState
)
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.simulation.world cimport World

from iomesh.engine.simulation.run import KIND_NAMES

cdef enum Theme:                     # the focus of a run, in addition to the common parameters
    CLONING, WINDOWED, CONNECTED, STRAYING, UNANSWERED, FAILING_FLUSHES, STEPPED, TWO_REACTORS, STALLING, FILLING

cdef enum:
    THEMES_MAX = 16
    LONG_LIFE = 3                    # times the operations, with few process ends: the log reuses the device


cdef object draw_swarm(RunState run, operations):
    """operations: of the whole run, drawn unless given."""
    cdef int i
    cdef uint64_t leaf = 0
    run.world = World(run.draw(1 << 62))
    failing_flushes = has_theme(run.seed, FAILING_FLUSHES)
    run.reactor_count = 2 if has_theme(run.seed, TWO_REACTORS) else 1
    two_stores = run.draw(4) == 0 or ((failing_flushes or run.reactor_count == 2) and run.seed % 2)
    run.store_count = 2 if two_stores else 1
    if has_theme(run.seed, STALLING):
        run.store_count = 2
    volatile = run.draw(4) != 0 or failing_flushes
    for i in range(run.store_count):
        if run.world.add_disk(
            DEVICE_BYTES_MIN, volatile and (i == 0 or run.draw(2)), [4, 32, 256][run.draw(3)] * <uint64_t>(1 << 18)
        ) != i:
            raise MemoryError("no memory for a device")
    run.journal_bytes = [256, 256, 256, 1024][run.draw(4)] << 10        # short ones often switch halves
    run.regions = [1, 2, 4, 8, 12, 16][run.draw(6)]
    spread = [1, 1, 1, 3, 300, 70000][run.draw(6)]           # leaves between two regions, at most
    for i in range(run.regions):
        run.leaves[i] = leaf
        leaf += 1 + run.draw(spread)
    run.used = run.regions if run.draw(2) else 1 + run.draw(run.regions)
    common = [0, 1, 4, 16]
    run.weights[<int>READ] = common[run.draw(4)]
    run.weights[<int>WRITE] = 16
    run.weights[<int>ZERO] = common[run.draw(4)] // 2
    run.weights[<int>FLUSH] = common[run.draw(4)] // 2
    run.weights[<int>CHECKPOINT] = run.draw(2)
    run.weights[<int>GROW] = run.draw(2)
    run.weights[<int>PAUSE] = run.draw(2)
    run.weights[<int>CLEAN] = [0, 1, 1, 2][run.draw(4)]
    run.weights[<int>SNAPSHOT] = [0, 0, 1, 2][run.draw(4)]
    run.weights[<int>DELETE] = run.draw(3) if run.weights[<int>SNAPSHOT] else 0
    run.weights[<int>LOOK] = run.draw(2) if run.weights[<int>SNAPSHOT] else 0
    run.weights[<int>RESTORE] = run.draw(2) if run.weights[<int>SNAPSHOT] else 0
    run.weights[<int>DAMAGE] = run.draw(12) == 0
    run.cloning = has_theme(run.seed, CLONING)
    if run.cloning:
        run.weights[<int>CLONE] = 1 + run.draw(2)
        run.weights[<int>DROP] = run.draw(3)
        run.weights[<int>DETACH] = run.draw(2)
        run.weights[<int>SNAPSHOT] = max(run.weights[<int>SNAPSHOT], <uint32_t>1)
    if has_theme(run.seed, WINDOWED):
        run.weights[<int>MARK] = 1 + run.draw(2)
        run.weights[<int>MOMENT] = 1 + run.draw(2)
        run.weights[<int>REWIND] = 1
    if has_theme(run.seed, STRAYING):
        run.weights[<int>STRAY] = 1
    run.weight = sum([run.weights[kind] for kind in range(<int>KINDS)])
    run.depth = [1, 2, 4, 8, 16, SLOTS][run.draw(6)]
    run.size_max = [1, 1, 2, 4, 4, 8, 16, 64, 250][run.draw(9)]
    run.odd = [0, 16, 64, 160][run.draw(4)]
    run.hot = [0, 128, 230][run.draw(3)]
    run.hot_sectors = [64, 512, 2048][run.draw(3)]
    run.stable = [0, 8, 64][run.draw(3)]
    run.frames = [48, 64, 256, 1024][run.draw(4)]          # the engine has 256 at least; fewer make it evict
    run.records = [2, 3, 8, 24][run.draw(4)]
    run.interval = <uint64_t>[1, 2, 4, 16, 64][run.draw(5)] << 20
    run.metadata_ns = [1000, 1000 * 1000, 100 * 1000 * 1000][run.draw(3)]
    run.power = [0, 128, 200, 256][run.draw(4)] if volatile else [0, 128][run.draw(2)]
    if run.power:                                    # unflushed, the outcomes to allow grow without limit
        run.weights[<int>FLUSH] += 1
        run.weight += 1
    run.stops = [0, 32, 128][run.draw(3)]
    run.hurried = [0, 64, 128][run.draw(3)]
    run.unverified = [0, 64, 128][run.draw(3)]
    run.per_life = [20, 100, 400, 1500][run.draw(4)]
    run.operations = (
        operations
        if operations is not None
        else [300, 1000, 3000][run.draw(3)] * (LONG_LIFE if run.per_life >= 400 else 1)
    )
    run.operations = min(run.operations, <uint64_t>(OPERATIONS_MAX // 2))
    run.pools = [Pool(4, 2, run.records) for _ in range(run.reactor_count)]
    run.faults = {}
    for name in ("slow", "hang", "timer_early", "timer_late", "read_error", "write_error", "flush_error"):
        if run.draw(12) == 0:
            run.faults[name] = [0.0003, 0.003, 0.03][run.draw(3)]
    if failing_flushes:
        for name in ("flush_error", "dropping_flush_error", "forgetting_flush_error"):
            if run.draw(2) == 0:
                run.faults[name] = [0.003, 0.02, 0.1][run.draw(3)]
    if has_theme(run.seed, CONNECTED):
        draw_clients(run)
    if has_theme(run.seed, UNANSWERED):
        run.outage = [16, 64, 160][run.draw(3)]
        run.outage_ns = [1000 * 1000, 100 * 1000 * 1000, 20 * 1000 * 1000 * 1000][run.draw(3)]
    if has_theme(run.seed, STEPPED):
        run.faults["clock_jump"] = [0.001, 0.01, 0.1][run.draw(3)]
    if has_theme(run.seed, STALLING):
        run.faults["stall"] = [0.0003, 0.001, 0.005][run.draw(3)]
        if run.draw(2):                              # a failed write while others are in flight on a slow device
            run.faults["slow"], run.faults["write_error"] = [0.03, 0.2][run.draw(2)], [0.0003, 0.003][run.draw(2)]
    if has_theme(run.seed, FILLING):
        run.faults["full_below"] = [0.0003, 0.003, 0.02][run.draw(3)]
    run.keeps_nothing_volatile = not volatile or not (run.power or failing_flushes)
    run.drawn = {
        "stores": run.store_count,
        "reactors": run.reactor_count,
        "journal_bytes": run.journal_bytes,
        "volatile": bool(volatile),
        "regions": run.regions,
        "spread": spread,
        "depth": run.depth,
        "size_max": run.size_max,
        "odd": run.odd,
        "hot": run.hot,
        "stable": run.stable,
        "frames": run.frames,
        "records": run.records,
        "interval": run.interval,
        "outage": run.outage,
        "power": run.power,
        "stops": run.stops,
        "hurried": run.hurried,
        "unverified": run.unverified,
        "per_life": run.per_life,
        "by_clients": run.by_clients,
        "clients_most": run.clients_most,
        "network_ns": run.world.latencies["network_ns"],
        "faults": run.faults,
        "weights": {KIND_NAMES[kind]: run.weights[kind] for kind in range(<int>VERIFY)},
        "operations": run.operations,
    }


cdef object draw_clients(RunState run):
    """Draws the share of client requests, the number of clients and their connections' delays; longer delays cause more
    reordering."""
    run.by_clients = [48, 160, 256][run.draw(3)]
    run.clients_most = 1 + <uint32_t>run.draw(CLIENTS)
    run.clients_seed = run.draw(1 << 62)
    run.world.latencies = {"network_ns": [4 * 1000, 40 * 1000, 1000 * 1000, 20 * 1000 * 1000][run.draw(4)]}
    for name in ("network_slow", "connection_cut", "connection_half_open"):
        if run.draw(2) == 0:
            run.faults[name] = [0.0003, 0.003, 0.03][run.draw(3)]


cdef bint has_theme(uint64_t seed, Theme theme) noexcept nogil:
    """Applies to one run in five; the others are as without this theme."""
    return stirred(seed * THEMES_MAX + <int>theme) % 5 == 0
