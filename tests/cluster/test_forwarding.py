"""Every node exports a volume: one that does not own it forwards requests to the owner, and follows the owner without
dropping its clients."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iomesh.api.client import Client
from iomesh.api.model import Volume
from iomesh.errors import AlreadyExists, InUse
from support.load import Load, read_volume
from support.model import Model
from support.nbd import FLAG_FUA, Connection
from support.nodes import Nodes, until

SIZES = ("--device-size", "1Gi", "--size", "32Mi", "--segment-size", "4Mi", "--map-cache", "16Mi")
BLOCK = 4096


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)


@asynccontextmanager
async def client_of(nodes: Nodes, name: str) -> AsyncIterator[Client]:
    async with Client(str(nodes.described_node(name)["control"])) as client:
        yield client


async def seen_by(nodes: Nodes, name: str, volume: str = "trial") -> Volume:
    async with client_of(nodes, name) as client:
        return next(one for one in await client.volumes() if one.name == volume)


async def knows(client: Client, volume: str) -> bool:
    return volume in [one.name for one in await client.volumes()]


def data_of(number: int, length: int = BLOCK) -> bytes:
    return (number.to_bytes(8, "little") * (length // 8 + 1))[:length]


async def test_requests_of_every_kind_reach_the_owner_through_another_node(nodes: Nodes) -> None:
    there = await Connection.connect(nodes.uri)
    for structured in (False, True):
        here = await Connection.connect(await nodes.uri_of("b"), structured=structured, block_status=structured)
        assert here.size == there.size
        large = b"".join(data_of(number) for number in range(700))  # three leaves of the map, in part
        await here.write(123 * BLOCK, large)
        assert await there.read(123 * BLOCK, len(large)) == large
        assert await here.read(123 * BLOCK, len(large)) == large
        await here.write(5 * BLOCK + 100, b"inside", flags=FLAG_FUA)
        await here.write(6 * BLOCK - 3, b"across")
        assert await there.read(5 * BLOCK + 98, 10) == b"\0\0inside\0\0"
        assert await here.read(6 * BLOCK - 4, 8) == b"\0across\0"
        await here.zero(124 * BLOCK, 2 * BLOCK)
        await here.trim(200 * BLOCK, 300 * BLOCK)
        await here.flush()
        expected = bytearray(large)
        expected[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)
        expected[77 * BLOCK : 377 * BLOCK] = bytes(300 * BLOCK)
        assert await there.read(123 * BLOCK, len(large)) == expected
        assert await here.read(123 * BLOCK, len(large)) == expected
        if structured:
            assert await here.status(100 * BLOCK, 150 * BLOCK) == [
                (23 * BLOCK, 3),
                (1 * BLOCK, 0),
                (2 * BLOCK, 3),
                (74 * BLOCK, 0),
                (50 * BLOCK, 3),
            ]
        await here.trim(0, 1024 * BLOCK)
        await here.close()
    await there.close()


# ---------------------------------------------------------------------- under load

MORE = 40  # acknowledged requests that show that clients go on: more than are in flight
Event = Callable[[Nodes, Load], Awaitable[None]]


async def goes_on(load: Load) -> None:
    before = load.counts.acknowledged
    await until(lambda: load.counts.acknowledged >= before + MORE or load.ended, "requests are acknowledged")


async def start(nodes: Nodes, name: str) -> None:
    await asyncio.to_thread(nodes.start_nodes, name)


async def owner_killed(nodes: Nodes, load: Load) -> None:
    owner = (await nodes.until_served()).owner
    if owner == HERE:  # its clients would be cut off
        return
    nodes.kill(owner)
    await goes_on(load)
    await start(nodes, owner)


async def owner_silent(nodes: Nodes, load: Load) -> None:
    """Longer than its lease: another node takes the volume over. Then it is back, and must not answer."""
    owner = (await nodes.until_served()).owner
    if owner == HERE:
        return
    nodes.pause(owner)
    await goes_on(load)
    nodes.resume(owner)
    await goes_on(load)


async def owner_silent_for_a_moment(nodes: Nodes, load: Load) -> None:
    """The connection ends, and another one to the same owner follows."""
    owner = (await nodes.until_served()).owner
    if owner == HERE:
        return
    nodes.pause(owner)
    await asyncio.sleep(2.5)
    nodes.resume(owner)
    await goes_on(load)


async def moved(nodes: Nodes, load: Load) -> None:
    owner = (await nodes.until_served()).owner
    for target in [name for name in nodes.names if name not in (owner, HERE)]:
        await until(lambda: nodes.has_all_replicas(3), "every node has a replica")
        async with client_of(nodes, owner) as client:
            assert (await client.move_volume("trial", target, force=True)).owner == target
        await goes_on(load)
        owner = target


EVENTS: tuple[Event, ...] = (owner_killed, owner_silent, owner_silent_for_a_moment, moved)
HERE = "b"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
async def test_clients_of_another_node_go_on_when_the_owner_is_lost(nodes: Nodes, event: Event) -> None:
    model = Model(32 << 20)
    load = Load(await nodes.uri_of(HERE), model, random.randrange(1 << 30), connections=2, depth=12)
    running = asyncio.create_task(load.run())
    await goes_on(load)
    await event(nodes, load)
    load.stop()
    await running
    served = await nodes.until_served()
    for uri in (served.uri, await nodes.uri_of(HERE)):
        model.settle_with(await asyncio.to_thread(read_volume, uri, model.size))
    nodes.check_daemons()


async def test_a_node_is_asked_to_export_a_volume_of_another_one(nodes: Nodes) -> None:
    """It answers with its own address. Clients come back to it after a restart, and see the volume grow."""
    async with client_of(nodes, "a") as a, client_of(nodes, "c") as c:
        await a.create_volume("second", 8 << 20, replicas=3)
        await until(lambda: knows(c, "second"), "node c knows the volume")
        exported = await c.export_volume("second")
        assert str(nodes.directory / "c") in exported.uris[0]
        assert (await c.export_volume("second")).uris == exported.uris
        with pytest.raises(AlreadyExists, match="volume second is exported for reading and writing already"):
            await c.export_volume("second", read_only=True)
        connection = await Connection.connect(exported.uris[0])
        await connection.write(0, data_of(1))
        with pytest.raises(InUse, match=r"volume second has 1 connection\(s\)"):
            await a.unexport_volume("second")
        nodes.kill("c")
        await start(nodes, "c")
        connection = await Connection.connect(await nodes.uri_of("c", "second"))
        assert await connection.read(0, BLOCK) == data_of(1)
        await a.grow_volume("second", 16 << 20)

        async def is_seen() -> bool:
            return (await seen_by(nodes, "c", "second")).size_bytes == 16 << 20

        await until(is_seen, "node c knows the size")
        grown = await Connection.connect(exported.uris[0])
        assert grown.size == 16 << 20
        for each in (grown, connection):
            await each.write(12 << 20, data_of(2))
            await each.close()
        await a.unexport_volume("second", force=True)

        async def is_over() -> bool:
            return not (await seen_by(nodes, "c", "second")).exports

        await until(is_over, "node c does not export the volume any more")


async def test_an_export_that_is_ended_and_asked_for_again_at_once_is_there(nodes: Nodes) -> None:
    """The node that is asked may still have the export that has just ended."""
    async with client_of(nodes, "b") as b:
        for number in range(20):
            await b.unexport_volume("trial")
            exported = await b.export_volume("trial", read_only=bool(number % 2))
            assert exported.read_only == bool(number % 2)
            connection = await Connection.connect(exported.uris[0])
            assert await connection.read(0, BLOCK) == bytes(BLOCK)
            await connection.close()


async def test_a_volume_is_not_restored_under_the_clients_of_another_node(nodes: Nodes) -> None:
    async with client_of(nodes, "a") as a:
        await a.create_snapshots(["trial"], "monday")
        connection = await Connection.connect(await nodes.uri_of("b"))
        await connection.write(0, data_of(1))
        for force in (False, True):
            with pytest.raises(InUse, match="has clients on node b"):
                await a.restore_volume("trial", "monday", force=force)
        assert await connection.read(0, BLOCK) == data_of(1)
        await connection.close()
        await a.restore_volume("trial", "monday")
    connection = await Connection.connect(await nodes.uri_of("b"))
    assert await connection.read(0, BLOCK) == bytes(BLOCK)
    await connection.close()


async def test_clients_follow_a_volume_that_moves_away_and_comes_back(nodes: Nodes) -> None:
    """The node's own clients: of the owner that it moves from, and of the one that it moves to."""
    model = Model(32 << 20)
    load = Load(nodes.uri, model, random.randrange(1 << 30), connections=2, depth=12)
    running = asyncio.create_task(load.run())
    await goes_on(load)
    owner = "a"
    for target in ("b", "a", "c", "a"):
        await until(lambda: nodes.has_all_replicas(3), "every node has a replica")
        async with client_of(nodes, owner) as client:
            assert (await client.move_volume("trial", target)).owner == target
        await goes_on(load)
        owner = target

    log = Path(nodes.described_node("a")["log"])
    await until(
        lambda: log.read_text().count("clients use this node's own volume") >= 2, "clients use the volume again"
    )
    await goes_on(load)
    load.stop()
    await running
    model.settle_with(await asyncio.to_thread(read_volume, nodes.uri, model.size))
    nodes.check_daemons()


@pytest.mark.parametrize("how", ["silent", "by force"])
async def test_clients_of_an_owner_that_is_turned_away_go_on_with_the_next_one(nodes: Nodes, how: str) -> None:
    """Their requests under way are done by the next owner."""
    model = Model(32 << 20)
    load = Load(nodes.uri, model, random.randrange(1 << 30), connections=2, depth=12)
    running = asyncio.create_task(load.run())
    await goes_on(load)
    if how == "silent":
        nodes.pause("a")
        served = await nodes.until_served(other_than="a")
        nodes.resume("a")
    else:
        async with client_of(nodes, "c") as client:
            assert (await client.take_over_volume("trial", force=True, node="c")).owner == "c"
        served = await nodes.until_served(other_than="a")
    await goes_on(load)
    load.stop()
    await running
    for uri in (served.uri, nodes.uri):
        model.settle_with(await asyncio.to_thread(read_volume, uri, model.size))
    nodes.check_daemons()
