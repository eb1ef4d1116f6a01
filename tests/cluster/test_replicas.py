"""A volume with three replicas on three nodes, each a daemon of its own: nodes are killed and paused under a load that
records what was acknowledged.

As long as two of the three nodes work, the owner among them, no request fails and everything that was acknowledged is
read. When the owner is killed or silent, another node takes the volume over, and everything acknowledged is there. When
all nodes are back, their replicas are equal, block by block.
"""

import asyncio
import errno
import random
import time
from collections.abc import Awaitable, Callable

import pytest

from support import replicas
from support.amount import Amount
from support.load import Load, read_volume
from support.model import Model
from support.nbd import Connection
from support.nodes import Nodes, until
from support.run import end

VOLUME = 32 << 20
SIZES = ("--device-size", "1Gi", "--size", str(VOLUME), "--segment-size", "4Mi", "--checkpoint-bytes", "8Mi")
FIRST_OWNER, FIRST_MEMBERS = "a", ("b", "c")
MORE = 40  # acknowledged requests that show that the volume goes on: more than are in flight
CONNECTIONS, DEPTH = 2, 12
CLEAR_EVERY = 20  # events between trims of the whole volume, which free the devices' space
SAMPLE_OF_EVENTS, SAMPLE_OF_WAYS = 5, 4  # without --soak; others in every run
QUIET_SECONDS = 2.0  # after the last write: segments are sealed, copies compared
LOST = frozenset({errno.EIO, errno.ESHUTDOWN})  # what an owner answers once another node has the volume


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)


Event = Callable[[Nodes, Load, random.Random], Awaitable[None]]


async def goes_on(load: Load, requests: int = MORE) -> None:
    """Until so many more requests are acknowledged; also returns when the load has found a fault."""
    before = load.counts.acknowledged
    await until(lambda: load.counts.acknowledged >= before + requests or load.ended, "requests are acknowledged")


async def start(nodes: Nodes, *names: str) -> None:
    await asyncio.to_thread(nodes.start_nodes, *names)


async def killed_while_starting(nodes: Nodes, name: str, draw: random.Random) -> None:
    """Before it is connected to the others, while it looks at replicas or is looked at, or when it is ready."""
    starting = await asyncio.to_thread(nodes.begin_to_start_node, name)
    await asyncio.sleep(draw.uniform(0, 1.5))
    if nodes.runs(name):
        end(nodes.pid_of(name))
    said = await asyncio.to_thread(starting.communicate)
    assert "Traceback" not in said[0] + said[1], said


# ---------------------------------------------------------------------- members


async def killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    member = draw.choice(FIRST_MEMBERS)
    nodes.kill(member)
    await goes_on(load)
    await start(nodes, member)


async def killed_one_after_the_other(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """The second one when the first one has just begun to be a member again, or has not yet."""
    one, other = draw.sample(FIRST_MEMBERS, 2)
    nodes.kill(one)
    await goes_on(load)
    await start(nodes, one)
    await asyncio.sleep(draw.uniform(0, 1.5))
    nodes.kill(other)
    await goes_on(load)
    await start(nodes, other)


async def killed_while_it_starts(nodes: Nodes, load: Load, draw: random.Random) -> None:
    member = draw.choice(FIRST_MEMBERS)
    nodes.kill(member)
    for _ in range(draw.randint(1, 3)):
        await killed_while_starting(nodes, member, draw)
        await goes_on(load)
    await start(nodes, member)


async def both_killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """With the owner alone nothing is acknowledged, and nothing fails: requests wait."""
    nodes.kill(*FIRST_MEMBERS)
    await asyncio.sleep(0.5)  # answers that were under way
    acknowledged = load.counts.acknowledged
    await asyncio.sleep(draw.uniform(0.5, 3))
    assert load.counts.acknowledged == acknowledged, "requests were acknowledged by a single node"
    one, other = draw.sample(FIRST_MEMBERS, 2)
    await start(nodes, one)
    await goes_on(load)
    await start(nodes, other)


async def silent_for_a_moment(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """Less than the 2 seconds after which a member is given up."""
    member = draw.choice(FIRST_MEMBERS)
    nodes.pause(member)
    await asyncio.sleep(draw.uniform(0.05, 1.5))
    nodes.resume(member)
    await goes_on(load)


async def silent_until_it_is_given_up(nodes: Nodes, load: Load, draw: random.Random) -> None:
    member = draw.choice(FIRST_MEMBERS)
    nodes.pause(member)
    await goes_on(load)
    await asyncio.sleep(draw.uniform(0, 1))
    nodes.resume(member)


async def both_silent_for_a_moment(nodes: Nodes, load: Load, draw: random.Random) -> None:
    for member in draw.sample(FIRST_MEMBERS, 2):
        nodes.pause(member)
        await asyncio.sleep(draw.uniform(0, 0.5))
    for member in draw.sample(FIRST_MEMBERS, 2):
        await asyncio.sleep(draw.uniform(0, 0.5))
        nodes.resume(member)
    await goes_on(load)


async def silent_and_then_killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    member = draw.choice(FIRST_MEMBERS)
    nodes.pause(member)
    await asyncio.sleep(draw.uniform(0, 3))
    nodes.kill(member)
    await goes_on(load)
    await start(nodes, member)


async def stopped(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """As by an administrator."""
    member = draw.choice(FIRST_MEMBERS)
    await asyncio.to_thread(nodes.stop_nodes, member)
    await goes_on(load)
    await start(nodes, member)


EVENTS: tuple[Event, ...] = (
    killed,
    killed_one_after_the_other,
    killed_while_it_starts,
    both_killed,
    silent_for_a_moment,
    silent_until_it_is_given_up,
    both_silent_for_a_moment,
    silent_and_then_killed,
    stopped,
)


@pytest.mark.timeout(14400)
def test_no_request_fails_while_members_are_killed_and_paused(
    nodes: Nodes, draw: random.Random, seed: int, amount: Amount
) -> None:
    model = Model(VOLUME, run=seed & 0xFFFFF or 1)
    events = (
        [draw.choice(EVENTS) for _ in range(amount.kills)] if amount.soak else draw.sample(EVENTS, SAMPLE_OF_EVENTS)
    )
    for first in range(0, len(events), CLEAR_EVERY):
        if first:
            asyncio.run(clear(nodes.uri, model))
        load = Load(nodes.uri, model, draw.getrandbits(32), connections=CONNECTIONS, depth=DEPTH)
        asyncio.run(members_under_load(nodes, load, events[first : first + CLEAR_EVERY], draw))
        assert not model.open and not load.counts.errors
        model.settle_with(read_volume(nodes.uri, VOLUME))
        nodes.check_daemons()
    assert owner_of(nodes) == FIRST_OWNER
    compare_replicas(nodes, model)


async def members_under_load(nodes: Nodes, load: Load, events: list[Event], draw: random.Random) -> None:
    async def strike() -> None:
        for event in events:
            await goes_on(load, draw.randint(MORE, 10 * MORE))
            if load.ended:
                break
            before = load.counts.acknowledged
            await event(nodes, load, draw)
            print(f"{event.__name__}: {load.counts.acknowledged - before} acknowledged")
        load.stop()

    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(strike())


def owner_of(nodes: Nodes) -> str:
    return asyncio.run(nodes.until_served()).owner


def contents(nodes: Nodes) -> bytearray:
    """Of the volume. It may be about to move to another node: then it is read there."""
    failures: list[str] = []
    while len(failures) < 5:
        served = asyncio.run(nodes.until_served())
        try:
            return read_volume(served.uri, VOLUME)
        except OSError as error:
            failures.append(f"{served.owner}: {error}")
            time.sleep(1)
    raise AssertionError(f"the volume is served, and cannot be read: {failures}")


async def clear(uri: str, model: Model) -> None:
    """Trims the whole volume."""
    connection = await Connection.connect(uri)
    operation = model.begin("trim", 0, model.size)
    assert operation is not None
    await connection.trim(0, model.size)
    model.acknowledge(operation)
    await connection.close()


# ---------------------------------------------------------------------- the owner


async def owner_killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """It starts again once another node has the volume."""
    owner = await strike_at_owner(nodes, load)
    await nodes.until_served(other_than=owner)
    await start(nodes, owner)


async def owner_killed_and_started(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """It starts while others take the volume over."""
    owner = await strike_at_owner(nodes, load)
    await asyncio.sleep(draw.choice((0, draw.uniform(0, 1.5))))
    await start(nodes, owner)


async def owner_killed_repeatedly(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """Whatever node has the volume, or is about to have it."""
    owner = await strike_at_owner(nodes, load)
    for _ in range(draw.randint(1, 3)):
        await killed_while_starting(nodes, owner, draw)
    await start(nodes, owner)


async def new_owner_killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """One of the others, as it takes the volume over or right after."""
    owner = await strike_at_owner(nodes, load)
    await asyncio.sleep(draw.uniform(0, 2.5))
    nodes.kill(draw.choice([name for name in nodes.names if name != owner]))
    await start(nodes)


async def owner_and_a_member_killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    owner = await owner_under(nodes, load)
    both = [owner, draw.choice([name for name in nodes.names if name != owner])]
    nodes.kill(*draw.sample(both, 2))
    await asyncio.sleep(draw.choice((0, draw.uniform(0, 2))))
    await start(nodes)


async def all_killed(nodes: Nodes, load: Load, draw: random.Random) -> None:
    await owner_under(nodes, load)
    nodes.kill(*draw.sample(nodes.names, 3))
    await start(nodes)


async def owner_killed_without_a_member(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """The last node that is left waits for one of the two that have gone."""
    owner = await owner_under(nodes, load)
    member = draw.choice([name for name in nodes.names if name != owner])
    nodes.kill(member)
    await goes_on(load)
    nodes.kill(owner)
    for name in draw.sample((owner, member), 2):
        await asyncio.sleep(draw.choice((0, draw.uniform(0, 2))))
        await start(nodes, name)


async def owner_killed_as_it_gives_up_a_member(nodes: Nodes, load: Load, draw: random.Random) -> None:
    owner = await owner_under(nodes, load)
    nodes.kill(draw.choice([name for name in nodes.names if name != owner]))
    await asyncio.sleep(draw.choice((0, draw.uniform(0, 0.05), draw.uniform(0, 0.5))))
    nodes.kill(owner)
    await start(nodes)


async def owner_killed_as_a_member_comes_back(nodes: Nodes, load: Load, draw: random.Random) -> None:
    owner = await owner_under(nodes, load)
    member = draw.choice([name for name in nodes.names if name != owner])
    nodes.kill(member)
    await goes_on(load)
    await start(nodes, member)
    await asyncio.sleep(draw.uniform(0, 1.5))
    nodes.kill(owner)
    await asyncio.sleep(draw.choice((0, draw.uniform(0, 2))))
    await start(nodes, owner)


async def owner_killed_beside_a_silent_member(nodes: Nodes, load: Load, draw: random.Random) -> None:
    owner = await owner_under(nodes, load)
    member = draw.choice([name for name in nodes.names if name != owner])
    nodes.pause(member)
    await asyncio.sleep(draw.uniform(0, 3))
    nodes.kill(owner)
    await asyncio.sleep(draw.choice((0, draw.uniform(0, 2))))
    if draw.random() < 0.5:
        nodes.resume(member)
        await start(nodes, owner)
    else:
        await start(nodes, owner)
        nodes.resume(member)


async def owner_stopped(nodes: Nodes, load: Load, draw: random.Random) -> None:
    owner = await owner_under(nodes, load)
    await asyncio.to_thread(nodes.stop_nodes, owner)
    await asyncio.sleep(draw.choice((0, draw.uniform(0, 2))))
    await start(nodes, owner)


async def owner_silent_for_a_moment(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """Whether another node takes the volume over or not."""
    owner = await owner_under(nodes, load)
    nodes.pause(owner)
    await asyncio.sleep(draw.uniform(0.1, 6))
    nodes.resume(owner)
    await asyncio.sleep(draw.uniform(0, 2))
    load.stop()


async def owner_silent(nodes: Nodes, load: Load, draw: random.Random) -> None:
    """Another node takes the volume over and is written to. Then the former owner goes on: it must serve nothing that
    it does not know to be the newest, and acknowledge nothing by itself. Its clients go on with the new owner."""
    owner = await owner_under(nodes, load)
    nodes.pause(owner)
    served = await nodes.until_served(other_than=owner)
    other = Load(served.uri, load.model, draw.getrandbits(32), connections=1, depth=DEPTH)
    async with asyncio.TaskGroup() as group:
        group.create_task(other.run())
        await goes_on(other, 10 * MORE)
        nodes.resume(owner)
        await goes_on(load)
        await goes_on(other)
        other.stop()
    load.stop()


async def owner_under(nodes: Nodes, load: Load) -> str:
    """The owner; the load's connections may end, or be refused, from now on."""
    load.expect_end()
    return (await nodes.until_served()).owner


async def strike_at_owner(nodes: Nodes, load: Load) -> str:
    owner = await owner_under(nodes, load)
    nodes.kill(owner)
    return owner


WAYS: tuple[Event, ...] = (
    owner_killed,
    owner_killed_and_started,
    owner_killed_repeatedly,
    new_owner_killed,
    owner_and_a_member_killed,
    all_killed,
    owner_killed_without_a_member,
    owner_killed_as_it_gives_up_a_member,
    owner_killed_as_a_member_comes_back,
    owner_killed_beside_a_silent_member,
    owner_stopped,
    owner_silent_for_a_moment,
    owner_silent,
)


@pytest.mark.timeout(14400)
@pytest.mark.parametrize("part", [0, 1])
def test_what_was_acknowledged_survives_the_end_of_the_owner(
    nodes: Nodes, draw: random.Random, seed: int, amount: Amount, part: int
) -> None:
    model = Model(VOLUME, run=seed & 0xFFFFF or 1)
    some = WAYS[part::2]
    ways = [draw.choice(some) for _ in range(amount.kills // 2)] if amount.soak else draw.sample(some, SAMPLE_OF_WAYS)
    for number, way in enumerate(ways):
        uri = asyncio.run(nodes.until_served()).uri
        load = Load(uri, model, draw.getrandbits(32), connections=CONNECTIONS, depth=DEPTH, tolerate=LOST)
        asyncio.run(owner_under_load(nodes, load, way, draw))
        nodes.check_daemons()
        in_doubt = len(model.open)
        model.settle_with(contents(nodes))
        print(f"{way.__name__}: {load.counts.acknowledged} acknowledged, {in_doubt} in doubt, {load.counts.errors}")
        if number % CLEAR_EVERY == CLEAR_EVERY - 1:
            asyncio.run(clear(asyncio.run(nodes.until_served()).uri, model))
    compare_replicas(nodes, model)


async def owner_under_load(nodes: Nodes, load: Load, way: Event, draw: random.Random) -> None:
    async def strike() -> None:
        await goes_on(load, draw.randint(MORE, 20 * MORE))
        assert not load.counts.errors, "a request failed before anything had happened"
        if not load.ended:
            await way(nodes, load, draw)

    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(strike())


# ---------------------------------------------------------------------- what is on the devices


def compare_replicas(nodes: Nodes, model: Model) -> None:
    """When all nodes are members again and nothing is written, each sealed segment is the same on every node that has
    it, the newest one is on all, and no node has what the owner does not know."""
    served = asyncio.run(nodes.until_served())
    asyncio.run(until_whole(nodes, served.uri, model))
    model.settle_with(read_volume(served.uri, VOLUME))
    volume = asyncio.run(nodes.stored()).id
    nodes.check_daemons()
    nodes.kill(*nodes.names)  # a clean stop of the owner would move the volume
    compared = replicas.compare({name: nodes.devices_of(name) for name in nodes.names}, volume.bytes, served.owner)
    print(compared)
    newest = max(compared.holders)
    assert len(compared.holders[newest]) == 3, f"segment {newest} is only on {compared.holders[newest]}: {compared}"
    assert not compared.left_behind, compared.left_behind


async def until_whole(nodes: Nodes, uri: str, model: Model) -> None:
    """Writes now and then until the newest fragment has all three members, then more than a segment, then nothing."""
    connection = await Connection.connect(uri)

    async def write(offset: int, length: int) -> None:
        operation = model.begin("write", offset, length)
        assert operation is not None
        await connection.write(offset, operation.data())
        model.acknowledge(operation)

    async def is_whole() -> bool:
        await write(0, 4096)
        return await nodes.has_all_replicas(3)

    await until(is_whole, "all three nodes are members again")
    for offset in range(0, 8 << 20, 1 << 20):
        await write(offset, 1 << 20)
    await connection.close()
    await asyncio.sleep(QUIET_SECONDS)


def test_a_node_that_was_away_is_rid_of_deleted_segments(nodes: Nodes) -> None:
    model = Model(VOLUME)
    asyncio.run(overwrite_without(nodes, "b", model))
    compare_replicas(nodes, model)


async def overwrite_without(nodes: Nodes, member: str, model: Model) -> None:
    """Writes the volume whole, with the member and then four times without."""
    connection = await Connection.connect(nodes.uri)

    async def overwrite() -> None:
        for offset in range(0, VOLUME, 1 << 20):
            operation = model.begin("write", offset, 1 << 20)
            assert operation is not None
            await connection.write(offset, operation.data())
            model.acknowledge(operation)

    await overwrite()
    nodes.kill(member)
    for _ in range(4):
        await overwrite()
    await start(nodes, member)
    await connection.close()
