"""On which node a volume is made, and how much room there is for one.

The node of its pod comes first (the preferred topology, with WaitForFirstConsumer), so that the volume's owner and a
replica are where it is used. A volume can be used from every node, so no answer restricts where its pod may run.
"""

from __future__ import annotations

from iomesh.api.model import NodeState
from iomesh.csi import csi_pb2 as pb
from iomesh.csi.cluster import Daemon, View
from iomesh.csi.errors import OutOfRange
from iomesh.errors import InvalidArgument, NoSpace
from iomesh.sizes import exact_size, short_size, whole_blocks

TOPOLOGY_KEY = "node"  # behind the driver's name and a slash
DEFAULT_BYTES = 1 << 30  # of a request without a capacity
VOLUME_BYTES_MAX = 64 << 40


class Topology:
    def __init__(self, driver: str) -> None:
        self.key = f"topology.{driver}/{TOPOLOGY_KEY}"

    def of(self, node: str) -> pb.Topology:
        return pb.Topology(segments={self.key: node})

    def node(self, topology: pb.Topology) -> str | None:
        """None: the topology says nothing of iomesh's nodes."""
        return topology.segments.get(self.key)


def choose(view: View, topology: Topology, wanted: pb.TopologyRequirement, *, replicas: int, name: str) -> Daemon:
    """The daemon that makes a volume. Raises NoSpace (RESOURCE_EXHAUSTED) if no node can."""
    usable = [each for each in view.daemons if each.status.state in (NodeState.READY, NodeState.DEGRADED)]
    usable = [each for each in usable if each.status.devices]
    if not usable:
        raise NoSpace(
            f"volume {name}: no node of the cluster is ready and has a device: add a device to a node"
            + (f" ({'; '.join(view.silent)})" if view.silent else "")
        )
    if replicas > len(usable):
        raise NoSpace(
            f"volume {name} with {replicas} replicas needs {replicas} nodes with a device, and {len(usable)} are "
            f"ready ({', '.join(each.node for each in usable)}): add nodes, or choose a StorageClass with fewer "
            "replicas"
        )
    for each in (*wanted.preferred, *wanted.requisite):
        node = topology.node(each)
        if node is not None and (found := next((one for one in usable if one.node == node), None)) is not None:
            return found
    # None of them has devices: the volume is used over the network.
    return max(usable, key=lambda each: (each.status.free_bytes, each.node))


def room(view: View, node: str | None, replicas: int) -> int:
    """How many bytes a volume with so many replicas can take, with one on this node; None: on any."""
    daemons = {each.node: each.status.free_bytes for each in view.daemons if each.status.devices}
    if node is not None:
        if node not in daemons:
            return room(view, None, replicas)  # used over the network
        others = sorted((free for name, free in daemons.items() if name != node), reverse=True)
        smallest = [daemons[node], *others[: replicas - 1]]
    else:
        smallest = sorted(daemons.values(), reverse=True)[:replicas]
    return min(smallest) if len(smallest) == replicas else 0


def largest(view: View, replicas: int) -> int:
    """What the largest volume can ever take: the capacity of the nodes, used or not."""
    capacities = sorted((each.status.capacity_bytes for each in view.daemons if each.status.devices), reverse=True)
    return min(capacities[replicas - 1] if len(capacities) >= replicas else 0, VOLUME_BYTES_MAX)


def choose_size(asked: pb.CapacityRange, *, least: int = 0, name: str) -> int:
    """The size of a volume: what is required, in whole blocks, but not below `least`. Raises OutOfRange."""
    check_range(asked)
    required, limit = asked.required_bytes, asked.limit_bytes
    size = whole_blocks(max(required or (min(DEFAULT_BYTES, limit) if limit else DEFAULT_BYTES), least))
    if limit and size > limit:
        size = max(required, least) + -max(required, least) % 4096  # the next block instead of the next MiB
        if not required and not least:
            size = limit - limit % 4096
    if size > VOLUME_BYTES_MAX:
        raise OutOfRange(f"volume {name}: {exact_size(size)} is too large: at most {exact_size(VOLUME_BYTES_MAX)}")
    if limit and (size > limit or not size):
        raise OutOfRange(
            f"volume {name}: no size is within {required} and {limit} bytes: volumes have whole blocks of 4096 bytes"
            + (f", and this one needs {exact_size(least)} at least" if least else "")
        )
    return size


def refuse_too_large(view: View, size: int, replicas: int, name: str) -> None:
    most = largest(view, replicas)
    if size > most:
        raise OutOfRange(
            f"volume {name} of {exact_size(size)} can never be filled: with {replicas} replica(s) a volume has room "
            f"for {short_size(most)}: ask for less, or add devices"
        )


def check_range(asked: pb.CapacityRange) -> None:
    if asked.required_bytes < 0 or asked.limit_bytes < 0:
        raise InvalidArgument("a capacity is negative: required_bytes and limit_bytes are 0 or more")
    if asked.limit_bytes and asked.required_bytes > asked.limit_bytes:
        raise InvalidArgument(f"required_bytes {asked.required_bytes} is more than limit_bytes {asked.limit_bytes}")


def within(size: int, asked: pb.CapacityRange) -> bool:
    return size >= asked.required_bytes and (not asked.limit_bytes or size <= asked.limit_bytes)
