"""A lost node's copies are made on others without anyone asking, and survive what they are made for; what a node that
is back has is not copied again, and copies that are too many go."""

import asyncio
from collections.abc import Callable

import pytest

from iomesh.api.model import Redundancy
from support import replicas
from support.load import read_volume
from support.model import content
from support.nbd import Connection
from support.nodes import Nodes, until

VOLUME = 48 << 20
TAG, LATER = 0x2B2B2B2B, 0x3C3C3C3C
OWNER = "a"
SIZES = (
    *("--device-size", "1Gi", "--size", str(VOLUME), "--segment-size", "4Mi", "--checkpoint-bytes", "8Mi"),
    *("--rebuild-delay", "0"),
)


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "2", *SIZES, kind=Nodes)


async def write(nodes: Nodes, tag: int, *, step: int = 1 << 20) -> None:
    """1 MiB of each `step` bytes."""
    connection = await Connection.connect((await nodes.until_served()).uri)
    for offset in range(0, VOLUME, step):
        await connection.write(offset, content(tag, offset, 1 << 20))
    await connection.flush()
    await connection.close()


async def member(nodes: Nodes) -> str:
    """The node besides the owner that has what is written now."""
    return next(node for node in (await nodes.seen_by(OWNER)).replica_nodes if node != OWNER)


async def rebuilt(nodes: Nodes, more_than: int = 0) -> Redundancy:
    """Once more bytes than that were copied, and no copy is missing."""
    seen = [Redundancy()]

    async def done() -> bool:
        seen.append((await nodes.seen_by(OWNER)).redundancy)
        return seen[-1].rebuilt_bytes > more_than and not seen[-1].exposed_bytes

    try:
        await until(done, "copies are made again")
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen[-1]}") from None
    return seen[-1]


def check(nodes: Nodes, expected: bytes) -> None:
    served = asyncio.run(nodes.until_served())
    assert bytes(read_volume(served.uri, VOLUME)) == expected


def test_a_volume_survives_a_second_loss_once_the_first_is_rebuilt(nodes: Nodes) -> None:
    asyncio.run(write(nodes, TAG))
    lost = asyncio.run(member(nodes))
    nodes.kill(lost)
    assert asyncio.run(rebuilt(nodes)).rebuilt_bytes >= VOLUME
    (third,) = set(nodes.names) - {OWNER, lost}
    nodes.kill(OWNER)
    assert asyncio.run(nodes.until_served()).owner == third
    check(nodes, content(TAG, 0, VOLUME))


def test_compacted_segments_are_rebuilt_as_they_are(nodes: Nodes) -> None:
    """The blocks that cleaning has left out are not copied."""
    asyncio.run(write(nodes, TAG))
    asyncio.run(write(nodes, LATER, step=2 << 20))
    asyncio.run(cleaned(nodes))
    nodes.kill(asyncio.run(member(nodes)))
    assert asyncio.run(rebuilt(nodes)).rebuilt_bytes < VOLUME * 1.4, "cleaning freed the half of the first 48 MiB"
    nodes.kill(OWNER)
    expected = bytearray(content(TAG, 0, VOLUME))
    for offset in range(0, VOLUME, 2 << 20):
        expected[offset : offset + (1 << 20)] = content(LATER, offset, 1 << 20)
    check(nodes, bytes(expected))


def test_what_a_node_that_is_back_has_is_not_copied_again(nodes: Nodes) -> None:
    """It was away for so long that its copies were made elsewhere: of each segment two copies are left."""
    asyncio.run(write(nodes, TAG))
    lost = asyncio.run(member(nodes))
    nodes.kill(lost)
    before = asyncio.run(rebuilt(nodes))
    nodes.start_nodes(lost)
    asyncio.run(until_two_copies(nodes))
    assert asyncio.run(nodes.seen_by(OWNER)).redundancy.rebuilt_bytes == before.rebuilt_bytes
    check(nodes, content(TAG, 0, VOLUME))
    nodes.kill(*nodes.names)
    compared = replicas.compare(
        {name: nodes.devices_of(name) for name in nodes.names}, asyncio.run(nodes.stored()).id.bytes, OWNER
    )
    assert len(compared.holders) >= VOLUME // (4 << 20), compared
    assert {len(holders) for holders in compared.holders.values()} == {2}, compared


def test_a_target_that_is_lost_delays_the_rebuild_and_no_more(nodes: Nodes) -> None:
    """Its node is killed while it gets copies; then it is back, and the first lost one is too."""
    asyncio.run(write(nodes, TAG))
    lost = asyncio.run(member(nodes))
    (third,) = set(nodes.names) - {OWNER, lost}
    nodes.kill(lost)
    asyncio.run(until(lambda: begun(nodes), "a copy is made"))
    nodes.kill(third)
    check(nodes, content(TAG, 0, VOLUME))
    nodes.start_nodes(third)
    asyncio.run(rebuilt(nodes))
    nodes.kill(OWNER)
    check(nodes, content(TAG, 0, VOLUME))


async def begun(nodes: Nodes) -> bool:
    return (await nodes.seen_by(OWNER)).redundancy.rebuilt_segments > 0


async def cleaned(nodes: Nodes) -> None:
    """Until the copies of the first writes take half of their space."""

    async def done() -> bool:
        async with nodes.client(OWNER) as client:
            (volume,) = (await client.counters()).volumes
            return dict(volume.counters)["segments_compacted"] >= VOLUME // (4 << 20) // 2

    await until(done, "segments are compacted")


async def until_two_copies(nodes: Nodes) -> None:
    async def done() -> bool:
        async with nodes.client(OWNER) as client:
            found = {name: sum(one.replicas for one in await client.devices(name)) for name in nodes.names}
        return sum(found.values()) <= 2 * found[OWNER]

    await until(done, "copies that are too many are dropped")
