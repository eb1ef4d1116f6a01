# The drawn parameters of a simulation run of several nodes: nodes, devices and replicas, the clients' requests, and the
# faults. They are drawn once per run, as those of a run of one node (simulation/swarm.pyx).

from libc.stdint cimport uint32_t, uint64_t

from iomesh.engine.format.layout cimport DEVICE_BYTES_MIN
from iomesh.engine.simulation.cluster_node cimport ClusterNode
from iomesh.engine.simulation.cluster_run cimport (
    CLIENT_CHECKPOINT, CLIENT_FLUSH, CLIENT_KINDS, CLIENT_READ, CLIENT_WRITE, CLIENT_ZERO, CLUSTER_FAULTS,
    CUT_ALL_POWER, CUT_POWER, GROUPS_MAX, KILL_NODE
)
from iomesh.engine.simulation.registers cimport WRITES_MAX
from iomesh.engine.simulation.world cimport World

from iomesh.engine.simulation.cluster_run import CLIENT_NAMES, FAULT_NAMES

DEVICE_FAULTS = (
    "read_error", "write_error", "flush_error", "dropping_flush_error", "forgetting_flush_error", "stall", "hang",
    "full_below",
)
RUN_FAULTS = (
    "slow", "timer_early", "timer_late", "network_slow", "connection_cut", "connection_half_open", "clock_jump",
)
DIRECTED = 8                         # of so many seeds, one runs Cluster.direct()
REBUILDS = 3                         # likewise, without these: owners rebuild
MS, SECOND = 1000 * 1000, 1000 * 1000 * 1000


cdef object draw_cluster(ClusterRun run, operations):
    """operations: of the whole run, drawn unless given."""
    cdef int number, i
    cdef uint32_t device = 0
    run.world = World(run.draw(1 << 62))
    run.node_count = [2, 2, 3, 3, 3, 4, 5][run.draw(7)]
    run.directed = run.seed % DIRECTED == 1
    run.rebuilds = run.seed % REBUILDS == 1 and not run.directed
    if run.directed:
        run.node_count = 2 + (run.seed >> 3 & 1)
    run.replicas = 2 if run.node_count == 2 or run.draw(2) or run.directed else 3
    run.minimum = (run.replicas + 1) // 2
    run.reactor_count = 1 if run.draw(4) else 2
    run.journal_bytes = [256, 256, 256, 1024][run.draw(4)] << 10
    volatile = run.draw(5) != 0
    two_stores = run.draw(4) == 0
    for number in range(run.node_count):
        devices = []
        for _ in range(2 if two_stores and run.draw(2) else 1):
            cache_bytes = [4, 32, 256][run.draw(3)] * <uint64_t>(1 << 18)
            if run.world.add_disk(DEVICE_BYTES_MIN, volatile and run.draw(8), cache_bytes) != <int>device:
                raise MemoryError("no memory for a device")
            devices.append(device)
            device += 1
        run.records = [3, 8, 16][run.draw(3)]
        run.nodes.append(ClusterNode(run, number, devices))
        run.node_pointers[number] = <void*>run.nodes[number]
        (<ClusterNode>run.nodes[number]).drift_ppm = [0, 20, -50, 200, -1000, 20000][run.draw(6)]
    run.blocks = [8, 16, 64, 128][run.draw(4)]
    run.group_blocks = max(run.blocks // [1, 1, 2, 4, GROUPS_MAX][run.draw(5)], <uint32_t>4)
    run.spread = [1, 1, 3, 300][run.draw(4)]
    run.weights[<int>CLIENT_READ] = [1, 4, 16][run.draw(3)]
    run.weights[<int>CLIENT_WRITE] = 16
    run.weights[<int>CLIENT_ZERO] = [0, 0, 1, 4][run.draw(4)]
    run.weights[<int>CLIENT_FLUSH] = [0, 1, 4][run.draw(3)]
    run.weights[<int>CLIENT_CHECKPOINT] = [0, 0, 1][run.draw(3)]
    run.weight = sum([run.weights[i] for i in range(<int>CLIENT_KINDS)])
    run.depth = [1, 2, 4, 8, 14][run.draw(5)]
    run.size_max = [1, 2, 4, 8, 16][run.draw(5)]
    run.stable = [0, 16, 64][run.draw(3)]
    run.gap_ns = [0, 50 * 1000, MS, 10 * MS, 50 * MS][run.draw(5)]
    run.frames = [48, 64, 256][run.draw(3)]
    run.interval = <uint64_t>[1, 2, 4, 64][run.draw(4)] << 20
    run.numbers = [8, 64][run.draw(2)]
    run.fragment_numbers = 1024
    run.metadata_ns = [1000, MS, 20 * MS, 200 * MS][run.draw(4)]
    run.silent = [0, 0, 8, 48][run.draw(4)]
    run.link_ns = [2 * MS, 50 * MS, 1000 * MS][run.draw(3)]
    run.world.latencies = {"network_ns": [4 * 1000, 40 * 1000, MS, 10 * MS][run.draw(4)]}
    run.total = operations if operations is not None else [150, 400, 800][run.draw(3)]
    run.total = min(run.total, <uint64_t>(WRITES_MAX // 2))
    run.limit_ns = [20, 40, 60][run.draw(3)] * SECOND
    draw_faults(run, volatile)
    if run.directed:
        direct(run)
    run.drawn = {
        "nodes": run.node_count,
        "stores": [(<ClusterNode>node).store_count for node in run.nodes],
        "replicas": run.replicas,
        "reactors": run.reactor_count,
        "volatile": bool(volatile),
        "blocks": run.blocks,
        "group_blocks": run.group_blocks,
        "spread": run.spread,
        "depth": run.depth,
        "size_max": run.size_max,
        "stable": run.stable,
        "gap_ns": run.gap_ns,
        "frames": run.frames,
        "records": run.records,
        "interval": run.interval,
        "numbers": run.numbers,
        "metadata_ns": run.metadata_ns,
        "silent": run.silent,
        "link_ns": run.link_ns,
        "network_ns": run.world.latencies["network_ns"],
        "weights": {CLIENT_NAMES[i]: run.weights[i] for i in range(<int>CLIENT_KINDS)},
        "fault_weights": {FAULT_NAMES[i]: run.fault_weights[i] for i in range(<int>CLUSTER_FAULTS)},
        "between": run.between,
        "between_ns": run.between_ns,
        "down_ns": run.down_ns,
        "pause_ns": run.pause_ns,
        "part_ns": run.part_ns,
        "open_within_ns": run.open_within_ns,
        "faults": run.faults,
        "operations": run.total,
        "directed": bool(run.directed),
        "rebuilds": bool(run.rebuilds),
    }


cdef object direct(ClusterRun run):
    """Only the faults of Cluster.direct(), and a fast cluster: what it shows lasts for less than a second."""
    run.faults = {}
    run.device_errors = False
    run.between, run.between_ns = WRITES_MAX, 1000 * SECOND
    run.blocks, run.group_blocks = 16, 16
    run.weights[<int>CLIENT_READ], run.weights[<int>CLIENT_ZERO] = 16, 16
    run.weight = sum([run.weights[i] for i in range(<int>CLIENT_KINDS)])
    run.depth = min(run.depth, <uint32_t>8)
    run.gap_ns = 50 * MS
    run.metadata_ns = min(run.metadata_ns, MS)
    run.silent = 0
    run.link_ns = 2 * MS
    run.world.latencies = {"network_ns": 40 * 1000}
    run.down_ns = 20 * MS
    run.total = WRITES_MAX // 2
    run.limit_ns = 40 * SECOND


cdef object draw_faults(ClusterRun run, bint caches):
    cdef int i
    often = [0, 1, 4]
    for i in range(<int>CLUSTER_FAULTS):
        run.fault_weights[i] = often[run.draw(3)]
    if not caches:
        run.fault_weights[<int>CUT_ALL_POWER] = 0
    if run.draw(4) == 0:                                 # no power is cut
        run.fault_weights[<int>CUT_POWER] = run.fault_weights[<int>CUT_ALL_POWER] = 0
    run.fault_weights[<int>KILL_NODE] += 1
    run.fault_weight = sum([run.fault_weights[i] for i in range(<int>CLUSTER_FAULTS)])
    run.between = [10, 40, 150][run.draw(3)]
    run.between_ns = [SECOND, 4 * SECOND][run.draw(2)]
    run.down_ns = [50 * MS, SECOND, 6 * SECOND][run.draw(3)]
    run.pause_ns = [200 * MS, 3 * SECOND, 8 * SECOND, 90 * SECOND][run.draw(4)]
    run.limit_ns += run.pause_ns
    run.part_ns = [300 * MS, 3 * SECOND, 8 * SECOND][run.draw(3)]
    run.open_within_ns = [MS, 300 * MS, 3 * SECOND][run.draw(3)]
    run.faults = {}
    for name in RUN_FAULTS:
        if run.draw(8) == 0:
            run.faults[name] = [0.0003, 0.003, 0.02][run.draw(3)]
    if run.draw(5) == 0:
        for name in DEVICE_FAULTS:
            if run.draw(3) == 0:
                run.faults[name] = [0.0003, 0.003, 0.02][run.draw(3)]
    run.device_errors = any([name in run.faults for name in DEVICE_FAULTS])
