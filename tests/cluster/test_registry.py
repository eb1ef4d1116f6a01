"""Commands at once: a name belongs to one volume, and a command that fails or comes too late leaves what belongs to others alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from iomesh.api.model import Volume, VolumeState
from iomesh.errors import AlreadyExists, Conflict, InUse, InvalidArgument, Unavailable
from iomesh.node.node import Node
from support.inside import Gate, make_device, node_in

SIZE = 16 << 20


@pytest.fixture
async def node(room: Path) -> AsyncIterator[Node]:
    async with node_in(room) as node:
        yield node


async def with_window(node: Node, name: str) -> int:
    """Makes a volume, and says of which moment there can be a clone."""
    await node.volumes.create(name, SIZE, window_seconds=3600)
    return time.time_ns()


async def test_a_volume_that_is_created_while_a_clone_gets_its_name_stays(node: Node) -> None:
    at_ns = await with_window(node, "db")
    with Gate(node.engine, "checkpoint") as gate:
        cloning = asyncio.create_task(node.volumes.clone("db", "new", at_ns=at_ns))
        await gate.reached()
        created = await node.volumes.create("new", SIZE)
        gate.open()
        with pytest.raises(AlreadyExists, match="a volume new exists"):
            await cloning
    assert [volume.name for volume in node.volumes.list()] == ["db", "new"]
    assert (await node.volumes.show("new")).id == created.id
    with pytest.raises(AlreadyExists):
        await node.volumes.create("new", 2 * SIZE)
    await node.volumes.delete("new")
    assert [volume.name for volume in node.volumes.list()] == ["db"]
    await node.volumes.create("new", 2 * SIZE)


async def test_a_clone_whose_name_is_taken_leaves_nothing(node: Node) -> None:
    at_ns = await with_window(node, "db")
    with Gate(node.engine, "checkpoint") as gate:
        cloning = asyncio.create_task(node.volumes.clone("db", "new", at_ns=at_ns))
        await gate.reached()
        await node.volumes.create("new", SIZE)
        gate.open()
        with pytest.raises(AlreadyExists):
            await cloning
    assert node.volumes.open_in_engine == 2
    assert len((await node.metadata.list_prefix("volumes/")).entries) == 2


async def test_a_creation_waits_for_one_that_fails_and_then_is_its_own(node: Node) -> None:
    await node.volumes.create("db", SIZE)
    with Gate(node.engine, "open_volume") as gate:
        first = asyncio.create_task(node.volumes.create("new", SIZE))
        await gate.reached()
        second = asyncio.create_task(node.volumes.create("new", SIZE))
        await asyncio.sleep(0)
        first.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await first
    made = await second
    assert made.state is VolumeState.SERVING
    assert [volume.name for volume in node.volumes.list()] == ["db", "new"]


@pytest.mark.parametrize("what", ["grow", "export", "unexport", "snapshot", "window", "flatten"])
async def test_a_command_that_waited_is_about_the_volume_that_has_the_name_by_then(node: Node, what: str) -> None:
    commands = {
        "grow": lambda: node.volumes.grow("db", 3 * SIZE),
        "export": lambda: node.volumes.export("db", read_only=True),
        "unexport": lambda: node.volumes.unexport("db"),
        "snapshot": lambda: node.snapshots.create(["db"], "monday"),
        "window": lambda: node.windows.set("db", 3600),
        "flatten": lambda: node.flattening.flatten("db"),
    }
    old = await node.volumes.create("db", SIZE)
    created, command = await replaced_while_it_waits(node, commands[what])
    outcome: Any = (await asyncio.gather(command, return_exceptions=True))[0]
    new = await node.volumes.show("db")
    assert old.id != new.id == created.id
    assert new.state is VolumeState.SERVING
    done = {
        "grow": new.size_bytes == 3 * SIZE,
        "export": [export.read_only for export in new.exports] == [True],
        "unexport": outcome is None,
        "snapshot": new.snapshots == 1,
        "window": new.policy.window_seconds == 3600,
        "flatten": isinstance(outcome, InvalidArgument),
    }
    assert done[what], outcome


async def test_a_restore_that_waited_is_not_of_the_volume_that_has_the_name_by_then(node: Node) -> None:
    """It would give up what that one holds."""
    at_ns = await with_window(node, "db")
    _, command = await replaced_while_it_waits(node, lambda: node.windows.restore("db", at_ns), window_seconds=3600)
    with pytest.raises(Conflict, match="replaced"):
        await command


async def replaced_while_it_waits(
    node: Node, command: Callable[[], Awaitable[Any]], window_seconds: int = 0
) -> tuple[Volume, asyncio.Future[Any]]:
    """Asks for a command while `db` grows; before it, others have asked that the volume is deleted and created again."""
    with Gate(node.engine, "grow_volume") as gate:
        growing = asyncio.create_task(node.volumes.grow("db", 2 * SIZE))
        await gate.reached()
        deleting = asyncio.create_task(node.volumes.delete("db"))
        creating = asyncio.create_task(node.volumes.create("db", 2 * SIZE, window_seconds=window_seconds))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(command())
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(growing, deleting)
        return await creating, waiting


async def test_a_hidden_volume_keeps_its_name_until_its_snapshots_have_no_exports(node: Node) -> None:
    """Else it would withdraw those that the next volume of this name has."""
    await node.volumes.create("db", SIZE)
    await node.snapshots.create(["db"], "monday")
    await node.snapshots.export("db", "monday")
    await node.volumes.clone("db", "copy", snapshot="monday")
    with Gate(node.engine, "close_snapshot") as gate:
        deleting = asyncio.create_task(node.volumes.delete("db", snapshots=True))
        await gate.reached()
        creating = asyncio.create_task(node.volumes.create("db", SIZE))
        await asyncio.sleep(0.01)
        assert not creating.done()
        gate.open()
        await deleting
    created = await creating
    assert created.state is VolumeState.SERVING
    await node.snapshots.create(["db"], "monday")
    assert (await node.snapshots.export("db", "monday")).connections == 0
    assert [volume.name for volume in node.volumes.list()] == ["copy", "db"]


async def test_no_device_is_added_while_a_volume_is_being_opened(node: Node, room: Path) -> None:
    (room / "other").mkdir()
    path = await make_device(room / "other")
    with Gate(node.engine, "open_volume") as gate:
        creating = asyncio.create_task(node.volumes.create("db", SIZE))
        await gate.reached()
        with pytest.raises(InUse, match="while no volume is open"):
            await node.add_device(str(path))
        gate.open()
        await creating


async def test_no_volume_is_opened_while_a_device_is_being_added(node: Node, room: Path) -> None:
    (room / "other").mkdir()
    path = await make_device(room / "other")
    with Gate(node.engine, "open_store") as gate:
        adding = asyncio.create_task(node.add_device(str(path)))
        await gate.reached()
        with pytest.raises(Unavailable, match="being added or removed"):
            await node.volumes.create("db", SIZE)
        gate.open()
        await adding
    assert (await node.volumes.create("db", SIZE)).state is VolumeState.SERVING
