"""Background work while volumes are created and deleted: cleaning rounds never overlap, failures do not spread."""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from iomesh.api.model import NodeState, VolumeState
from iomesh.engine.engine import Event
from iomesh.errors import NotFound, Unavailable
from iomesh.node import cleaning
from iomesh.node.node import Node
from iomesh.node.volume import ChangeLock
from support.bench import Bench
from support.daemon import Daemon
from support.failing import FailingDevice
from support.inside import Gate, node_in
from support.nbd import Connection

SIZE = 16 << 20
DEADLINE_SECONDS = 60  # against hangs


@pytest.fixture
async def node(room: Path) -> AsyncIterator[Node]:
    async with node_in(room) as node:
        yield node


@pytest.fixture
def failing(daemon: Daemon, room: Path) -> Iterator[FailingDevice]:
    """Replaces the daemon's device; the daemon is killed before the device is removed."""
    device = FailingDevice(Path(daemon.devices[0]), room)
    yield device
    device.thaw()
    if daemon.process is not None:
        daemon.kill()
    device.remove()


async def test_no_round_of_cleaning_begins_before_the_last_has_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round checks two volumes; one is deleted while the engine delays its answer for the other."""
    monkeypatch.setattr(cleaning, "LOOK_SECONDS", 0.001)
    kept, gone = [uuid.UUID((await node.volumes.create(name, SIZE)).id) for name in ("kept", "gone")]
    asked: dict[uuid.UUID, int] = {kept: 0, gone: 0}
    gates = {kept: asyncio.Event(), gone: asyncio.Event()}
    looked = asyncio.Event()
    at_once, most = 0, 0
    segments = node.engine.segments

    async def slow(volume: uuid.UUID) -> Any:
        nonlocal at_once, most
        asked[volume] += 1
        if all(asked.values()):
            looked.set()
        at_once += volume == kept
        most = max(most, at_once)
        try:
            await gates[volume].wait()
            return await segments(volume)
        finally:
            at_once -= volume == kept

    monkeypatch.setattr(node.engine, "segments", slow)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await looked.wait()
        await node.volumes.delete("gone")
        gates[gone].set()
        for _ in range(200):  # overlapping rounds would begin here
            await asyncio.sleep(0.002)
        assert (asked[kept], most) == (1, 1)
        gates[kept].set()
        while asked[kept] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert most == 1
    assert node.supervisor.tasks()["cleaning"] == (True, 0, "")


async def test_a_volume_that_is_closed_in_a_round_of_cleaning_ends_that_round_and_nothing_else(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.volumes.create("kept", SIZE)
    volume = await node.volumes.create("gone", SIZE)
    export = await node.volumes.export("gone")
    connection = await Connection.connect(export.uris[0])
    await connection.write(0, os.urandom(4 << 20))
    await connection.flush()
    await connection.close()
    with Gate(node.cleaning, "_checkpoint_for") as gate:  # the last query of a round about a volume
        async with asyncio.timeout(DEADLINE_SECONDS):
            await gate.reached()
            await node.volumes.delete("gone")
        with pytest.raises(NotFound, match=f"volume {volume.id} is not open"):
            node.engine.volume_state(uuid.UUID(volume.id))
        gate.open()
    looked = asyncio.Event()
    clean = node.cleaning._clean

    async def note(*arguments: Any) -> Any:
        looked.set()
        return await clean(*arguments)

    monkeypatch.setattr(node.cleaning, "_clean", note)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await looked.wait()
    assert node.supervisor.tasks()["cleaning"] == (True, 0, "")


async def test_a_failing_event_handler_loses_no_answer(room: Path) -> None:
    class Clumsy(Bench):
        events = 0

        def on_event(self, event: Event) -> None:
            self.events += 1
            raise RuntimeError("a bug in a handler")

    bench = Clumsy(room, random.Random(1))
    await bench.format(256 << 20)
    async with bench.running(), bench.connected() as connection:
        await connection.write(0, b"x" * 4096)
        checkpoint = asyncio.ensure_future(bench.engine.checkpoint(bench.volume))
        await asyncio.sleep(0)
        time.sleep(0.3)  # no events are collected meanwhile: the event is queued, and the new answer behind it
        asked = [asyncio.ensure_future(bench.engine.segments(bench.volume)) for _ in range(5)]
        await asyncio.sleep(0)
        time.sleep(0.3)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.wait(asked)
        checkpoint.cancel()
        assert bench.events


async def test_who_waits_for_a_volume_waits_not_for_ever_and_learns_for_what() -> None:
    lock = ChangeLock("db", seconds=0.01)
    held, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with lock:
            held.set()
            await done.wait()

    holder = asyncio.create_task(hold(), name="RestoreVolume")
    await held.wait()
    with pytest.raises(Unavailable, match=r"volume db is busy: RestoreVolume has not ended within 0\.01 s: try again"):
        async with lock:
            pass
    done.set()
    await holder
    async with lock:
        assert lock.locked()
    assert not lock.locked()


async def test_a_deletion_delayed_by_a_device_is_reported_and_can_be_repeated(
    daemon: Daemon, failing: FailingDevice
) -> None:
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE)
        await client.create_volume("other", SIZE)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        await connection.write(0, b"x" * 4096)
        await connection.flush()
        failing.freeze()
        writing = asyncio.create_task(connection.write(0, b"y" * 4096, flags=1))  # with FUA: it gets no answer
        with pytest.raises(Unavailable, match=r"export db: 1 connection.* not ended .* a device does not answer"):
            await client.delete_volume("db", force=True)
        volume = await client.volume("db")
        assert volume.state is VolumeState.DELETING
        assert "a device does not answer" in volume.reason
        status = await client.status()
        assert status.state is NodeState.DEGRADED
        assert status.problems[0].startswith("volume db is not deleted: export db: ")
        assert daemon.logged("internal error") == []
        failing.thaw()
        with pytest.raises((ConnectionError, OSError)):
            await writing
        async with asyncio.timeout(DEADLINE_SECONDS):
            while "db" in {volume.name for volume in await client.volumes()}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await client.status()).ready
    await connection.close()
    assert daemon.stop() == 0
