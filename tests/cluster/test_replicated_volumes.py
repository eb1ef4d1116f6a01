"""Replicated volumes as a cluster has them: several with different owners, with two replicas only, with snapshots and
clones, and while the metadata service does not answer."""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from iomesh.api.client import Client
from support.amount import Amount
from support.load import Load, read_volume
from support.model import Model
from support.nodes import Nodes, until

VOLUME = 16 << 20
SIZES = ("--device-size", "1Gi", "--size", str(VOLUME), "--segment-size", "2Mi", "--checkpoint-bytes", "4Mi")
MORE = 40
OUTAGE_SECONDS = 9.0  # more than two of a node's leases
TAKE_OVER_SECONDS = 4.0  # in which a node that may take a volume over has done so, if it is not too slow


@pytest.fixture
def three(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)


@pytest.fixture
def two(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "2", "--replicas", "2", *SIZES, kind=Nodes)


async def goes_on(load: Load, requests: int = MORE) -> None:
    """Until so many more requests are acknowledged; also returns when the load has found a fault."""
    before = load.counts.acknowledged
    await until(lambda: load.counts.acknowledged >= before + requests or load.ended, "requests are acknowledged")


async def start(nodes: Nodes, *names: str) -> None:
    await asyncio.to_thread(nodes.start_nodes, *names)


async def write_some(uri: str, model: Model, seed: int, requests: int = 500) -> None:
    load = Load(uri, model, seed, connections=1, depth=8)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await goes_on(load, requests)
        load.stop()


def compare(nodes: Nodes, model: Model, volume: str = "") -> None:
    model.settle_with(read_volume(asyncio.run(nodes.until_served(volume)).uri, model.size))


# ---------------------------------------------------------------------- several volumes


@pytest.mark.timeout(7200)
def test_only_the_volumes_of_a_node_that_is_killed_move(three: Nodes, draw: random.Random, amount: Amount) -> None:
    """Each node owns a volume at first, and all are under load at once."""
    names = {"a": three.volume, "b": "volume-b", "c": "volume-c"}
    models = {volume: Model(VOLUME, run=number + 1) for number, volume in enumerate(names.values())}
    asyncio.run(create(three, "b", names["b"]))
    asyncio.run(create(three, "c", names["c"]))
    for round_ in range(max(2, amount.kills // 10)):
        victim = draw.choice(three.names)
        counts = asyncio.run(kill_under_loads(three, victim, models, draw))
        for volume, model in models.items():
            compare(three, model, volume)
        three.check_daemons()
        print(f"round {round_}: {victim} killed, {counts} acknowledged")


async def create(nodes: Nodes, node: str, volume: str) -> None:
    async with Client(nodes.control_of(node)) as client:
        await client.create_volume(volume, VOLUME, segment_bytes=2 << 20, replicas=3)
        await client.export_volume(volume)


async def kill_under_loads(nodes: Nodes, victim: str, models: dict[str, Model], draw: random.Random) -> dict[str, int]:
    served = {volume: await nodes.until_served(volume) for volume in models}
    loads = {
        volume: Load(served[volume].uri, model, draw.getrandbits(32), connections=1, depth=8)
        for volume, model in models.items()
    }
    async with asyncio.TaskGroup() as group:
        for load in loads.values():
            group.create_task(load.run())
        for load in loads.values():
            await goes_on(load)
        for volume, load in loads.items():
            if served[volume].owner == victim:
                load.expect_end()
        nodes.kill(victim)
        for volume, load in loads.items():
            if served[volume].owner == victim:
                await nodes.until_served(volume, other_than=victim)
            else:
                await goes_on(load)
        await start(nodes, victim)
        for volume, load in loads.items():
            if served[volume].owner != victim:
                await goes_on(load)
            load.stop()
    for volume in models:
        if served[volume].owner != victim:
            assert (await nodes.until_served(volume)).owner == served[volume].owner, f"{volume} has moved"
    return {volume: load.counts.acknowledged for volume, load in loads.items()}


# ---------------------------------------------------------------------- two replicas


def test_of_two_nodes_one_goes_on_and_the_other_does_not_serve_what_it_lacks(two: Nodes, draw: random.Random) -> None:
    model = Model(VOLUME)
    asyncio.run(without_the_member(two, model, draw))
    two.kill("a")
    asyncio.run(start(two, "b"))
    asyncio.run(asyncio.sleep(TAKE_OVER_SECONDS))
    served = asyncio.run(two.served())
    assert served is None, f"{served.owner} serves the volume without its newest writes"
    two.start_nodes("a")
    compare(two, model)
    asyncio.run(until_whole(two, model, 2))
    compare(two, model)
    two.check_daemons()


async def without_the_member(two: Nodes, model: Model, draw: random.Random) -> None:
    load = Load(two.uri, model, draw.getrandbits(32), connections=1, depth=8)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await goes_on(load)
        two.kill("b")
        await goes_on(load, 500)
        load.stop()


async def until_whole(nodes: Nodes, model: Model, replicas: int) -> None:
    seeds = iter(range(1, 1_000_000))

    async def is_whole() -> bool:
        await write_some((await nodes.until_served()).uri, model, next(seeds), 10)
        return await nodes.has_all_replicas(replicas)

    await until(is_whole, f"the newest fragment has {replicas} members")


# ---------------------------------------------------------------------- snapshots and clones


def test_snapshots_and_clones_go_with_their_volume(three: Nodes, draw: random.Random) -> None:
    """A snapshot is taken, the owner killed, the snapshot cloned on the next owner, and that one killed as well."""
    model = Model(VOLUME)
    asyncio.run(write_some(three.uri, model, draw.getrandbits(32)))
    asyncio.run(snapshot(three, "first"))
    then = model.content.copy()
    asyncio.run(write_some(three.uri, model, draw.getrandbits(32)))
    three.kill("a")
    second = asyncio.run(three.until_served(other_than="a")).owner
    compare(three, model)
    three.start_nodes("a")
    of_clone = Model(VOLUME, run=2)
    of_clone.content[:] = then
    asyncio.run(clone(three, "first", "clone"))
    compare(three, of_clone, "clone")
    asyncio.run(write_some(asyncio.run(three.until_served("clone")).uri, of_clone, draw.getrandbits(32)))
    asyncio.run(write_some(asyncio.run(three.until_served()).uri, model, draw.getrandbits(32)))
    three.kill(second)
    owners = {asyncio.run(three.until_served(volume, other_than=second)).owner for volume in ("", "clone")}
    assert len(owners) == 1, "a clone is where its parent is"
    compare(three, model)
    compare(three, of_clone, "clone")
    three.start_nodes(second)
    compare(three, of_clone, "clone")
    three.check_daemons()


async def snapshot(nodes: Nodes, name: str) -> None:
    async with Client(nodes.control_of((await nodes.until_served()).owner)) as client:
        await client.create_snapshots([nodes.volume], name)


async def clone(nodes: Nodes, of: str, name: str) -> None:
    async with Client(nodes.control_of((await nodes.until_served()).owner)) as client:
        assert [one.name for one in await client.snapshots(nodes.volume)] == [of]
        await client.clone_volume(nodes.volume, of, name)
        await client.export_volume(name)


# ---------------------------------------------------------------------- the metadata service


def test_an_outage_of_the_metadata_service_moves_no_volume_and_fails_no_request(
    three: Nodes, draw: random.Random
) -> None:
    """For longer than the nodes' leases. A member that is killed meanwhile makes writes wait for its end."""
    model = Model(VOLUME)
    load = Load(three.uri, model, draw.getrandbits(32), connections=2, depth=8)
    asyncio.run(through_an_outage(three, load))
    assert not model.open and not load.counts.errors
    assert asyncio.run(three.until_served()).owner == "a"
    compare(three, model)
    three.check_daemons()


async def through_an_outage(three: Nodes, load: Load) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await goes_on(load)
        with locked_metadata(three):
            await goes_on(load)
            await asyncio.sleep(OUTAGE_SECONDS / 2)
            three.kill("b")
            await asyncio.sleep(OUTAGE_SECONDS / 2)
        await goes_on(load)
        await start(three, "b")
        await asyncio.sleep(TAKE_OVER_SECONDS)
        await goes_on(load)
        load.stop()


@contextmanager
def locked_metadata(nodes: Nodes) -> Iterator[None]:
    """Nothing can be written to the metadata."""
    database = sqlite3.connect(nodes.directory / "metadata.db", timeout=60, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")
    finally:
        database.close()
