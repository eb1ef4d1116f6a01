"""Nodes that speak the peer protocol in a simulated world, and the records that they exchange."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iomesh.engine.format.peer import make_frame
from iomesh.engine.format.structures import crc32c
from iomesh.engine.simulation.world import World
from iomesh.engine.views.peer import Call, HolderNode, OwnerNode, PeerWorld
from support import forged

BLOCK = 4096
MEBIBYTE = 1 << 20
DEVICE_BYTES = 64 * MEBIBYTE
DEVICE = 7  # its number in the cluster
V, W = b"volume-volume-vo", b"another-another-"


@dataclass
class Pair:
    """An owner's node and one that holds a device."""

    world: World
    nodes: PeerWorld
    holder: HolderNode
    owner: OwnerNode

    def done(self, *calls: Call) -> list[int]:
        """The results of calls, once nothing happens any more."""
        self.nodes.settle()
        return [call.result for call in calls]

    def until(self, holds: Callable[[], bool]) -> None:
        """Turns the nodes until something holds, and no further."""
        while not holds():
            assert self.nodes.turn(), "nothing happens any more, and it does not hold"


def pair(
    seed: int = 1, *, reactors: int = 1, devices: int = 1, attached: bool = True, volatile_cache: bool = True
) -> Pair:
    """reactors: of the holder; with two, connections and stores are on different ones. devices: their numbers begin at
    DEVICE."""
    world = World(seed)
    nodes = PeerWorld(world)
    numbers = {world.make_device(DEVICE_BYTES): DEVICE + number for number in range(devices)}
    holder = HolderNode(nodes, numbers, reactors=reactors, volatile_cache=volatile_cache)
    made = Pair(world, nodes, holder, OwnerNode(nodes))
    if attached:
        made.owner.attach(made.holder)
    return made


def block_of(number: int) -> bytes:
    """A block that is told from others by its number."""
    return random.Random(number).randbytes(BLOCK)


def record(
    segment: int,
    block: int,
    payload: Sequence[bytes],
    *,
    volume: bytes = V,
    epoch: int = 1,
    sequence: int = 10,
    stream: int = 0,
) -> bytes:
    """A valid record with these payload blocks."""
    entries = [forged.entry(forged.DATA, number, crc=crc32c(data)) for number, data in enumerate(payload)]
    header = forged.record(
        entries,
        volume=volume,
        segment=segment,
        block=block,
        epoch=epoch,
        sequence=sequence,
        stable=sequence - 1,
        stream=stream,
    )
    return header + b"".join(payload)


def footer(segment: int, counts: Sequence[int], *, volume: bytes = V, epoch: int = 1) -> bytes:
    """The footer, with its table, of records with so many payload blocks, which fill the segment up to it."""
    table = []
    for number, count in enumerate(counts):
        table.append(forged.entry(forged.RECORD, 10 + number, count))
        table += [forged.entry(forged.DATA, position) for position in range(count)]
    return forged.footer(table, volume=volume, segment=segment, epoch=epoch)


def request(kind: int, **fields: int | bytes) -> bytes:
    """A request's header, addressed to DEVICE, V and segment 1 unless it says otherwise."""
    usual: dict[str, int | bytes] = {"kind": kind, "device": DEVICE, "volume": V, "segment": 1}
    return make_frame("PeerRequest", **(usual | fields))
