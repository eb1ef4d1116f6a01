"""A node is cut off from the others: connections stay, and nothing arrives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from support.load import Load
from support.model import Model
from support.nbd import FLAG_FUA, Connection
from support.nodes import Nodes, until

SIZES = ("--device-size", "1Gi", "--size", "32Mi", "--segment-size", "4Mi", "--map-cache", "16Mi")
DATA = bytes(range(256)) * 16
MORE = 40  # acknowledged requests that show that clients go on: more than are in flight


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


async def test_an_owner_that_is_cut_off_is_replaced_and_its_clients_go_on(nodes: Nodes) -> None:
    """It runs and renews its record, and reaches nobody. Clients of a third node go on with the next owner at once, its
    own ones when it is reached again."""
    model = Model(16 << 20)
    own = await Connection.connect(nodes.uri)
    await own.write(20 << 20, DATA)
    load = Load(await nodes.uri_of("c"), model, random.randrange(1 << 30), connections=2, depth=12)
    running = asyncio.create_task(load.run())
    await goes_on(load)
    nodes.cut("a")
    written = [asyncio.create_task(own.write((21 + i) << 20, DATA, flags=FLAG_FUA)) for i in range(4)]
    served = await nodes.until_served(other_than="a")
    await goes_on(load)
    assert not (over := [each for each in written if each.done()]), over
    nodes.heal("a")
    await asyncio.gather(*written)
    await goes_on(load)
    load.stop()
    await running
    for name in nodes.names:
        model.settle_with(await read(await nodes.uri_of(name), model.size))
    for i in range(5):
        assert await own.read((20 + i) << 20, len(DATA)) == DATA
    await own.close()
    await until(lambda: nodes.has_replicas(served.owner, *nodes.names), "the former owner keeps a replica")
    assert not await says_isolated(nodes)
    nodes.check_daemons()


async def read(uri: str, length: int) -> bytearray:
    connection = await Connection.connect(uri)
    content = bytearray()
    while len(content) < length:
        content += await connection.read(len(content), 1 << 20)
    await connection.close()
    return content


async def goes_on(load: Load) -> None:
    before = load.counts.acknowledged
    await until(lambda: load.counts.acknowledged >= before + MORE or load.ended, "requests are acknowledged")


async def test_an_owner_whose_members_are_all_cut_off_keeps_its_volume(nodes: Nodes) -> None:
    """Nobody reaches another one: the volume waits, and goes on once a member is back."""
    connection = await Connection.connect(nodes.uri)
    await connection.write(0, DATA)
    for name in ("c", "b"):
        nodes.cut(name)
    written = asyncio.create_task(connection.write(1 << 20, DATA))
    await until(lambda: says_isolated(nodes), "the owner says that it is isolated")
    await asyncio.sleep(3)
    assert (await nodes.stored()).owner == "a"
    assert not written.done()
    for name in ("c", "b"):
        nodes.heal(name)
    await written
    served = await nodes.until_served()
    await until(lambda: nodes.has_replicas(served.owner, *nodes.names), "all nodes keep a replica")
    assert not await says_isolated(nodes)
    assert await connection.read(0, len(DATA)) == DATA
    await connection.close()


async def says_isolated(nodes: Nodes) -> bool:
    return (await nodes.stored()).isolated


async def test_an_idle_volume_gives_a_member_up_and_takes_it_in_again(nodes: Nodes) -> None:
    nodes.cut("c")
    await until(lambda: nodes.has_replicas("a", "a", "b"), "the owner goes on without node c")
    nodes.heal("c")
    await until(lambda: nodes.has_replicas("a", *nodes.names), "node c keeps a replica again")


async def until_all_keep(nodes: Nodes, connection: Connection, owner: str) -> None:
    """A replica set gets its members back with the next writes."""

    async def keep() -> bool:
        await connection.write(30 << 20, DATA)
        return await nodes.has_replicas(owner, *nodes.names)

    await until(keep, "all nodes keep a replica")
