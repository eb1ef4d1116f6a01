"""The owner of a replicated volume is killed, or does not run for a while: another node of the replica set takes the
volume over by itself, with everything that was acknowledged.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

import pytest

from iomesh.api.client import Client
from iomesh.api.model import Volume
from support.load import Load, read_volume
from support.model import Model
from support.run import eventually
from support.trial import Trial

SIZE = 32 << 20
THREE = ("--nodes", "3", "--replicas", "3", "--device-size", "4Gi", "--size", str(SIZE), "--checkpoint-bytes", "4Mi")


@pytest.fixture
def three(new_trial: Callable[..., Trial]) -> Trial:
    """Three nodes, and a volume with a replica on each."""
    return new_trial(*THREE)


def served(trial: Trial) -> tuple[str, str] | None:
    """The node that serves the volume, and its URI there; None: no node does."""
    volume = trial.look()["volumes"][0]
    return (volume["owner"], volume["uri"]) if volume["uri"] else None


def owner_after(trial: Trial, former: str) -> tuple[str, str]:
    """The next owner, and the volume's URI there."""
    found: list[tuple[str, str]] = []

    def moved() -> bool:
        now = served(trial)
        if now is not None and now[0] != former:
            found.append(now)
        return bool(found)

    eventually(moved, what=f"another node than {former} serves the volume")
    return found[0]


def ask(trial: Trial, node: str) -> Volume:
    """The volume, as this node describes it."""

    async def volume() -> Volume:
        async with Client(trial.control_of(node)) as client:
            return next(one for one in await client.volumes() if one.name == "trial")

    return asyncio.run(volume())


def await_all_replicas(trial: Trial, owner: str) -> None:
    eventually(
        lambda: sorted(ask(trial, owner).replica_nodes) == ["a", "b", "c"], what="the replica set has all three nodes"
    )


def strike_under_load(trial: Trial, model: Model, seed: int, uri: str, strike: Callable[[], None]) -> None:
    """Loads the volume, and strikes after some hundred acknowledged requests."""
    load = Load(uri, model, seed, connections=2, depth=8)

    async def strike_later() -> None:
        while load.counts.acknowledged < 300 and not load.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        load.expect_end()
        await asyncio.to_thread(strike)

    async def both() -> None:
        async with asyncio.timeout(600), asyncio.TaskGroup() as group:
            group.create_task(load.run())
            group.create_task(strike_later())

    asyncio.run(both())
    assert load.counts.acknowledged >= 300


@pytest.mark.timeout(1800)
def test_a_volume_goes_from_owner_to_owner_as_each_is_killed(three: Trial, draw: random.Random) -> None:
    """Each is started again, and becomes a member again: so in the end a volume is back where it was."""
    model = Model(SIZE)
    owner, uri = "a", three.uri
    owners = [owner]
    for _ in range(4):
        strike_under_load(three, model, draw.getrandbits(32), uri, partial(three.change, "kill", owner))
        former = owner
        owner, uri = owner_after(three, former)
        owners.append(owner)
        model.settle_with(read_volume(uri, SIZE))
        three.change("start", former)
        await_all_replicas(three, owner)
    print(owners)


@pytest.mark.timeout(1800)
def test_the_next_owner_is_killed_too(three: Trial, draw: random.Random) -> None:
    """Two of three nodes are left, then one is back and two are again enough."""
    model = Model(SIZE)
    strike_under_load(three, model, draw.getrandbits(32), three.uri, partial(three.change, "kill", "a"))
    second, uri = owner_after(three, "a")
    model.settle_with(read_volume(uri, SIZE))
    strike_under_load(three, model, draw.getrandbits(32), uri, partial(three.change, "kill", second))
    three.change("start", "a")
    _, uri = owner_after(three, second)
    model.settle_with(read_volume(uri, SIZE))
