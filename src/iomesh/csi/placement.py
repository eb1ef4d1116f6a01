"""On which node a volume is made, and how much room there is for one.

The node of its pod comes first (the preferred topology, with WaitForFirstConsumer), so that the volume's owner and a
replica are where it is used. A volume can be used from every node, so no answer restricts where its pod may run.
"""

from __future__ import annotations

from collections.abc import Sequence

from iomesh.api.model import NodeState, Status
from iomesh.csi import csi_pb2 as pb
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

    def nodes(self, requirement: pb.TopologyRequirement) -> list[str]:
        """The preferred ones first."""
        found = (self.node(each) for each in (*requirement.preferred, *requirement.requisite))
        return list(dict.fromkeys(each for each in found if each is not None))


def choose(nodes: Sequence[Status], silent: Sequence[str], wanted: Sequence[str], *, replicas: int, name: str) -> str:
    """The node that is to own a volume: the first of the wanted ones that can. Raises NoSpace (RESOURCE_EXHAUSTED) if
    no node can."""
    usable = [each for each in nodes if each.state in (NodeState.READY, NodeState.DEGRADED)]
    why = f" ({'; '.join(silent)})" if silent else ""
    if not usable:
        raise NoSpace(f"volume {name}: no node of the cluster is ready and has a device{why}: add a device to a node")
    names = [each.node for each in usable]
    if replicas > len(names):
        raise NoSpace(
            f"volume {name} with {replicas} replicas needs {replicas} nodes with a device, and {len(names)} are ready, "
            f"{', '.join(names)}{why}: add nodes, or choose a StorageClass with fewer replicas"
        )
    for node in wanted:
        if node in names:
            return node
    # None of them has devices: the volume is used over the network.
    return max(usable, key=lambda each: (each.free_bytes, each.node)).node


def room(nodes: Sequence[Status], node: str | None, replicas: int) -> int:
    """How many bytes a volume with so many replicas can take, with one on this node; None: on any."""
    free = {each.node: each.free_bytes for each in nodes}
    if node not in free:  # none is wanted, or the volume is used over the network
        smallest = sorted(free.values(), reverse=True)[:replicas]
    else:
        others = sorted((bytes_ for name, bytes_ in free.items() if name != node), reverse=True)
        smallest = [free[node], *others[: replicas - 1]]
    return min(smallest) if len(smallest) == replicas else 0


def largest(nodes: Sequence[Status], replicas: int) -> int:
    """What the largest volume can ever take: the capacity of the nodes, used or not."""
    capacities = sorted((each.capacity_bytes for each in nodes), reverse=True)
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


def refuse_too_large(nodes: Sequence[Status], size: int, replicas: int, name: str) -> None:
    most = largest(nodes, replicas)
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
