"""A node is cut off from the others: connections stay, and nothing arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from iomesh.errors import Unavailable
from support.nbd import Connection
from support.nodes import Nodes, until

SIZES = ("--device-size", "1Gi", "--size", "32Mi", "--segment-size", "4Mi", "--map-cache", "16Mi")
DATA = bytes(range(256)) * 16


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)


async def test_a_member_that_is_cut_off_is_a_pause(nodes: Nodes) -> None:
    connection = await Connection.connect(nodes.uri)
    await connection.write(0, DATA)
    nodes.cut("c")
    for i in range(1, 20):
        await connection.write(i << 16, DATA)
    served = await nodes.until_served()
    assert served.owner == "a"
    await until(lambda: nodes.has_replicas("a", "a", "b"), "the owner goes on without node c")
    nodes.heal("c")
    await until_all_keep(nodes, connection, "a")
    assert await connection.read(19 << 16, len(DATA)) == DATA
    await connection.close()


async def test_an_owner_that_is_cut_off_gives_its_volume_to_the_others(nodes: Nodes) -> None:
    """It runs and renews its record; it can neither write nor read. When it is back, its clients connect anew."""
    former = await Connection.connect(nodes.uri)
    await former.write(0, DATA)
    nodes.cut("a")
    late = asyncio.create_task(former.write(1 << 20, DATA))
    served = await nodes.until_served(other_than="a")
    connection = await Connection.connect(served.uri)
    assert await connection.read(0, len(DATA)) == DATA
    await connection.write(0, DATA[::-1])
    await connection.flush()
    with pytest.raises(ConnectionError):
        await late
    nodes.heal("a")
    await until_all_keep(nodes, connection, served.owner)
    assert await connection.read(0, len(DATA)) == DATA[::-1]
    await connection.close()
    await former.close()


async def test_an_owner_that_reaches_nobody_for_a_moment_goes_on(nodes: Nodes) -> None:
    """The others are cut off from each other as well, so nobody can take the volume. Then the offer is withdrawn,
    unless another node is faster."""
    connection = await Connection.connect(nodes.uri)
    await connection.write(0, DATA)
    for name in ("c", "b"):
        nodes.cut(name)
    written = asyncio.create_task(connection.write(1 << 20, DATA))
    await until(lambda: is_offered(nodes), "the owner offers the volume")
    assert not written.done()
    async with nodes.client("b") as b:
        with pytest.raises(Unavailable):
            await b.take_over_volume("trial", force=True)
    for name in ("c", "b"):
        nodes.heal(name)
    outcome = (await asyncio.gather(written, return_exceptions=True))[0]
    served = await nodes.until_served()
    assert outcome is None or served.owner != "a"
    after = await Connection.connect(served.uri)
    await until_all_keep(nodes, after, served.owner)
    assert (await nodes.stored()).offered_to == ""
    assert await after.read(0, len(DATA)) == DATA
    await after.close()
    await connection.close()


async def until_all_keep(nodes: Nodes, connection: Connection, owner: str) -> None:
    """A replica set gets its members back with the next writes."""

    async def keep() -> bool:
        await connection.write(30 << 20, DATA)
        return await nodes.has_replicas(owner, *nodes.names)

    await until(keep, "all nodes keep a replica")


async def is_offered(nodes: Nodes) -> bool:
    return (await nodes.stored()).offered_to == "*"
