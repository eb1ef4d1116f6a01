"""Concurrent commands: a name belongs to one volume, and a failed or late command does not affect what belongs to
others.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from iomesh.api.model import DeviceState, Volume, VolumeState
from iomesh.errors import AlreadyExists, Conflict, InUse, InvalidArgument, IomeshError, Unavailable, Unsupported
from iomesh.metadata import Delete, Entry, Metadata, Put
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.node.node import Node
from support.daemon import names_of_records
from support.inside import Gate, make_device, node_in
from support.nbd import Connection

SIZE = 16 << 20


@pytest.fixture
async def node(room: Path) -> AsyncIterator[Node]:
    async with node_in(room) as node:
        yield node


async def with_window(node: Node, name: str) -> int:
    """Creates a volume; returns a time of which it can be cloned."""
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
    """It would discard the new volume's data."""
    at_ns = await with_window(node, "db")
    _, command = await replaced_while_it_waits(node, lambda: node.windows.restore("db", at_ns), window_seconds=3600)
    with pytest.raises(Conflict, match="replaced"):
        await command


async def replaced_while_it_waits(
    node: Node, command: Callable[[], Awaitable[Any]], window_seconds: int = 0
) -> tuple[Volume, asyncio.Future[Any]]:
    """Queues a command while `db` grows, behind a deletion and a re-creation of the volume."""
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
    """Otherwise it would withdraw the exports of the next volume of this name."""
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
        with pytest.raises(InUse, match="cannot be added while a volume is open"):
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


@pytest.mark.parametrize("what", ["unexport", "delete"])
async def test_a_client_that_shook_hands_while_its_export_was_withdrawn_is_not_served(node: Node, what: str) -> None:
    await node.volumes.create("db", SIZE)
    uri = (await node.volumes.export("db")).uris[0]
    with Gate(node.exports._published["db"], "attach") as gate:
        connecting = asyncio.create_task(Connection.connect(uri))
        await gate.reached()
        await getattr(node.volumes, what)("db")
        gate.open()
        connection = await connecting
        with pytest.raises(ConnectionError):
            await connection.read(0, 4096)
        await connection.close()


@pytest.mark.parametrize("stored", [True, False], ids=["answer-lost", "request-lost"])
async def test_a_creation_of_which_one_commit_is_not_answered_leaves_nothing(room: Path, stored: bool) -> None:
    """Whether or not that commit was applied. A retry succeeds."""
    commits = 0
    while True:
        folder = room / str(commits)
        folder.mkdir()
        async with node_in(folder) as node:
            at_ns = await with_window(node, "db")
            before = await names_of_records(node.metadata)
            with Unanswered(node.metadata, commits, stored=stored) as unanswered:
                outcome = (await asyncio.gather(node.volumes.clone("db", "new", at_ns=at_ns), return_exceptions=True))[
                    0
                ]
            if not unanswered.happened:
                break
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, Unavailable)
                assert await names_of_records(node.metadata) == before
                assert [volume.name for volume in node.volumes.list()] == ["db"]
                await node.volumes.clone("db", "new", at_ns=at_ns)
            assert await names_of_records(node.metadata) == ["db", "new"]
        async with node_in(folder) as node:
            assert [(volume.name, volume.state) for volume in node.volumes.list()] == [
                ("db", VolumeState.SERVING),
                ("new", VolumeState.SERVING),
            ]
        shutil.rmtree(folder)
        commits += 1
    assert commits >= 5


class Unanswered:
    """Answers the node's commit with this number with Unavailable; the commit is applied or not."""

    def __init__(self, metadata: Metadata, number: int, *, stored: bool) -> None:
        self._metadata = metadata
        self._left = number
        self._stored = stored
        self.happened = False

    def __enter__(self) -> Unanswered:
        self._carry_out = self._metadata.commit
        self._metadata.commit = self._commit  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._metadata.commit = self._carry_out  # type: ignore[method-assign]

    async def _commit(self, operation: Put | Delete) -> int:
        self._left -= 1
        if self._left != -1:
            return await self._carry_out(operation)
        self.happened = True
        if self._stored:
            await self._carry_out(operation)
        raise Unavailable("the metadata service does not answer")


COMMANDS = """
import asyncio, os, sys
from pathlib import Path
from support.daemon import names_of_records
from support.inside import node_in

SIZE = 16 << 20

async def main(folder, commits, what):
    async with node_in(folder) as node:
        left, carry_out = commits, node.metadata.commit

        async def commit(operation):
            nonlocal left
            if not left:
                os._exit(9)
            left -= 1
            return await carry_out(operation)

        node.metadata.commit = commit
        match what:
            case "create":
                await node.volumes.create("new", SIZE)
            case "clone":
                await node.volumes.clone("db", "new", snapshot="monday")
            case "clone-at":
                await node.volumes.clone("db", "new", at_ns=int((folder / "at_ns").read_text()))
            case "delete":
                await node.volumes.delete("single")
            case "hide":
                await node.volumes.delete("db", snapshots=True)
            case "flatten":
                await node.flattening.flatten("copy")
                while (await node.volumes.show("copy")).flattening.running:
                    await asyncio.sleep(0.001)
        os._exit(0)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""


@pytest.mark.parametrize("what", ["create", "clone", "clone-at", "delete", "hide", "flatten"])
async def test_a_crash_before_any_commit_leaves_the_old_state_or_the_new_one(room: Path, what: str) -> None:
    """The process ends there; the next start leaves a consistent state, and the command can be retried."""
    commits = 0
    while True:
        folder = room / str(commits)
        folder.mkdir()
        async with node_in(folder) as node:
            at_ns = await with_window(node, "db")
            (folder / "at_ns").write_text(str(at_ns))
            await node.volumes.create("single", SIZE)
            await node.snapshots.create(["db"], "monday")
            await node.volumes.clone("db", "copy", snapshot="monday")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            COMMANDS,
            str(folder),
            str(commits),
            what,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert await process.wait() in (0, 9)
        async with node_in(folder) as node:
            await check_after(node, what, done=process.returncode == 0)
        shutil.rmtree(folder)
        if process.returncode == 0:
            break
        commits += 1
    assert commits >= 3


async def check_after(node: Node, what: str, *, done: bool) -> None:
    async with asyncio.timeout(60):  # for background work
        while any(volume.flattening.running for volume in node.volumes.list()):  # noqa: ASYNC110  # the node sends no event for this
            await asyncio.sleep(0.01)
    volumes = {volume.name: volume for volume in node.volumes.list()}
    assert all(volume.state is VolumeState.SERVING for volume in volumes.values())
    stored = await names_of_records(node.metadata)
    hidden = [name for name in stored if name.startswith("deleted:")]
    assert sorted([*volumes, *hidden]) == stored, "what is listed is what is stored"
    before = {"db", "single", "copy"}
    after = {"delete": {"db", "copy"}, "hide": {"single", "copy"}, "flatten": before}.get(what, before | {"new"})
    assert set(volumes) == after if done else set(volumes) in (before, after)
    assert len(hidden) == ("db" not in volumes)
    assert node.volumes.open_in_engine == len(stored)
    match what:
        case "create" | "clone" | "clone-at":
            if "new" in volumes:
                await node.volumes.delete("new")
            await node.volumes.create("new", SIZE)
        case "delete" | "hide":
            name = {"delete": "single", "hide": "db"}[what]
            if name in volumes:
                await node.volumes.delete(name, snapshots=True)
            await node.volumes.create(name, SIZE)
        case "flatten":
            if volumes["copy"].clone_of:
                assert not done
                await node.flattening.flatten("copy")
    for volume in node.volumes.list():
        await node.volumes.delete(volume.name, snapshots=True)
    assert await names_of_records(node.metadata) == []
    assert (await node.metadata.list_prefix("names/")).entries == []
    assert sum(device.replicas for device in node.stores.list()) == 0


def broken(entry: Entry | None, how: str) -> Put:
    assert entry is not None
    fields = json.loads(entry.value)
    value = json.dumps(fields | {"format": fields["format"] + 1}).encode() if how == "newer" else b"\xff"
    return Put(entry.key, value, entry.version)


@pytest.mark.parametrize("how", ["newer", "garbage"])
@pytest.mark.parametrize("what", ["volume", "log", "name"])
async def test_a_record_that_cannot_be_read_keeps_its_own_volume_closed(room: Path, what: str, how: str) -> None:
    async with node_in(room) as node:
        kept, bad = await node.volumes.create("kept", SIZE), await node.volumes.create("bad", SIZE)
        await node.snapshots.create(["kept"], "monday")
        await node.volumes.clone("kept", "clone", snapshot="monday")
        key = {"volume": f"volumes/{bad.id}", "log": f"logs/{bad.id}", "name": "names/bad"}[what]
        good = await node.metadata.get(key)
        await node.metadata.commit(broken(good, how))
        assert good is not None
        reason = "format" if how == "newer" else "metadata key"
    async with node_in(room) as node:
        name = "bad" if (what, how) != ("volume", "garbage") else bad.id
        listed = {volume.name: volume for volume in node.volumes.list()}
        assert set(listed) == {"kept", "clone", name}
        assert (listed[name].state, listed[name].id) == (VolumeState.FAILED, bad.id)
        assert key in listed[name].reason and reason in listed[name].reason
        assert await node.volumes.show(name) == listed[name]
        assert listed["kept"].state is listed["clone"].state is VolumeState.SERVING
        status = node.status()
        assert not status.ready
        assert [
            problem
            for problem in status.problems
            if problem.startswith(f"volume {name} has failed: ") and key in problem
        ]
        with pytest.raises(Unavailable, match=f"volume {name} has failed: "):
            await node.volumes.export(name)
        with pytest.raises(Unavailable, match=f"volume {name} has failed: "):
            await node.volumes.delete(name)
        with pytest.raises(IomeshError):
            await node.volumes.create("bad", SIZE)
        await node.volumes.delete("clone")
        await node.volumes.delete("kept", snapshots=True)
        hidden = await node.metadata.get(f"volumes/{kept.id}")
        assert (hidden is not None) == (what == "log"), "it is kept while what cannot be read might be a clone of it"
        await node.metadata.commit(Put(key, good.value, None))
    async with node_in(room) as node:
        assert [(volume.name, volume.id, volume.state) for volume in node.volumes.list()] == [
            ("bad", bad.id, VolumeState.SERVING)
        ]
        assert await names_of_records(node.metadata) == ["bad"]


@pytest.mark.parametrize("how", ["newer", "garbage"])
async def test_a_device_record_that_cannot_be_read_keeps_the_daemon_from_nothing(room: Path, how: str) -> None:
    """An attached device loses nothing. One that may be this node's and is not attached is missing, as it would be with
    its record, until it is removed.
    """
    async with node_in(room) as node:
        await node.volumes.create("db", SIZE)
        (device,) = node.stores.list()
        mine = broken(await node.metadata.get(f"devices/{device.id}"), how)
        await node.metadata.commit(mine)
    async with node_in(room) as node:
        assert [one.state for one in node.stores.list()] == [DeviceState.ONLINE]
        assert (await node.volumes.show("db")).state is VolumeState.SERVING
        entry = await node.metadata.get(mine.key)
        assert entry is not None
        assert (entry.value == mine.value) == (how == "newer"), "what a newer iomesh wrote stays"
        other = Put(f"devices/{uuid.UUID(int=1)}", mine.value, 0)
        await node.metadata.commit(other)
    async with node_in(room) as node:
        missing = [one for one in node.stores.list() if one.state is DeviceState.MISSING]
        assert [one.id for one in missing] == [str(uuid.UUID(int=1))]
        assert other.key in missing[0].reason
        shown = await node.volumes.show("db")
        assert shown.state is VolumeState.FAILED
        assert other.key in shown.reason
        await node.stores.remove(str(uuid.UUID(int=1)))
    async with node_in(room) as node:
        assert (await node.volumes.show("db")).state is VolumeState.SERVING


async def test_metadata_of_an_earlier_iomesh_is_refused_and_left_as_it_is(room: Path) -> None:
    """Volumes were keyed by name."""
    async with node_in(room):
        pass
    metadata = await SqliteMetadata.open(room / "state" / "metadata.db")
    cluster = await metadata.get("cluster")
    assert cluster is not None
    old = {
        "format": 1,
        "id": str(uuid.UUID(int=5)),
        "name": "db",
        "size_bytes": SIZE,
        "segment_bytes": 1 << 20,
        "epoch": 1,
        "owner": "node-a",
    }
    await metadata.commit(Put("volumes/db", json.dumps(old | {"created_ns": 1}).encode(), 0))
    await metadata.commit(Put("cluster", cluster.value.replace(b'"format":2', b'"format":1'), cluster.version))
    before = await metadata.list_prefix("")
    with pytest.raises(
        Unsupported, match="metadata key cluster has format 1 of an earlier version, which this one does not read"
    ):
        async with node_in(room):
            pass
    assert await metadata.list_prefix("") == before
    await metadata.close()
