"""A stop at any time during a start: the process ends, nothing is used after it was closed, no data is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iomesh.api.model import VolumeState
from iomesh.metadata.volumes import find_volume
from iomesh.node.config import load_config
from iomesh.node.engine import NodeEngine
from iomesh.node.node import Node
from support.daemon import START_SECONDS, Daemon
from support.inside import node_config, node_in
from support.nbd import Connection

GIB = 1 << 30
DATA = b"kept" * 1024
VOLUMES = ("db", "wal")


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while not condition():  # noqa: ASYNC110 (what another process does)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {START_SECONDS} s: {what}") from None


async def write(uri: str) -> None:
    connection = await Connection.connect(uri)
    await connection.write(0, DATA)
    await connection.flush()
    await connection.close()


async def is_written(uri: str) -> bool:
    connection = await Connection.connect(uri)
    read = await connection.read(0, len(DATA))
    await connection.close()
    return read == DATA


async def test_a_stop_at_each_step_of_the_start_is_a_stop(daemon: Daemon) -> None:
    steps = [step.name for step in Node(load_config(None, {"name": "any"})).steps]
    daemon.start()
    async with daemon.client() as client:
        for name in VOLUMES:
            await client.create_volume(name, GIB)
            await write((await client.export_volume(name)).uris[0])
    daemon.kill()  # so that there is a log to recover
    Path(daemon.control).unlink()

    for place in [*steps, *(f"volume {name}" for name in VOLUMES)]:
        daemon.hooks.write_text(f"hold {place}\n")
        daemon.log.unlink()
        daemon.start_in_background()
        step = "recover the volumes" if place.startswith("volume ") else place
        await until(lambda step=step: step in {line["step"] for line in daemon.logged("step")}, f"it is at {place}")  # type: ignore[misc]
        assert daemon.stop() == 0, place
        assert daemon.logged("stopped"), place
        assert daemon.wrong() == [], place
        assert not Path(daemon.control).exists(), place

    daemon.hooks.write_text("")
    daemon.start()
    async with daemon.client() as client:
        for volume in await client.volumes():
            assert volume.state is VolumeState.SERVING
            assert await is_written(volume.exports[0].uris[0])
    assert daemon.stop() == 0


@pytest.mark.parametrize("asked", ["open_store", "open_volume"])
async def test_no_device_is_closed_while_the_engine_uses_it(
    room: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The start is cancelled right after the engine got the request to open a device or volume, before it answers."""
    async with node_in(room) as node:
        await node.volumes.create("db", GIB)
    await stop_after(room, monkeypatch, asked)
    monkeypatch.undo()
    gc.collect()  # the engine, whose ring holds the device's file open
    async with node_in(room) as node:
        assert [volume.state for volume in node.volumes.list()] == [VolumeState.SERVING]


async def stop_after(room: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    node = Node(node_config(room))
    original: Callable[..., Any] = getattr(NodeEngine, asked)
    open_store, stop = NodeEngine.open_store, NodeEngine.stop
    descriptors: list[int] = []
    stopped = asyncio.Event()

    async def ask(self: NodeEngine, *arguments: Any, **named: Any) -> Any:
        asyncio.get_running_loop().call_soon(starting.cancel)
        return await original(self, *arguments, **named)

    async def note_descriptor(self: NodeEngine, descriptor: int, **named: Any) -> Any:
        descriptors.append(descriptor)
        return await (ask if asked == "open_store" else open_store)(self, descriptor, **named)

    async def note_stop(self: NodeEngine) -> None:
        for descriptor in descriptors:
            os.fstat(descriptor)  # it is open
        await stop(self)
        stopped.set()

    if asked != "open_store":
        monkeypatch.setattr(NodeEngine, asked, ask)
    monkeypatch.setattr(NodeEngine, "open_store", note_descriptor)
    monkeypatch.setattr(NodeEngine, "stop", note_stop)
    starting = asyncio.create_task(node.up())
    async with asyncio.timeout(START_SECONDS):
        await asyncio.wait([starting])
    assert starting.cancelled()
    assert len(descriptors) == 1 and stopped.is_set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])


async def test_a_stop_in_the_midst_of_a_recovery_closes_the_volumes_that_are_open(daemon: Daemon) -> None:
    daemon.start()
    uris = {}
    async with daemon.client() as client:
        for name in VOLUMES:
            await client.create_volume(name, GIB)
            uris[name] = (await client.export_volume(name)).uris[0]
            await write(uris[name])
    daemon.kill()
    daemon.log.unlink()
    daemon.hooks.write_text("hold volume wal\n")
    daemon.start_in_background()
    await until(lambda: len(daemon.logged("volume open")) == 1, "db is open")
    connection = await Connection.connect(uris["db"])
    await connection.write(0, DATA)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(daemon.process.wait, START_SECONDS) == 0
    assert daemon.wrong() == []
    async with daemon.metadata() as metadata:
        for name, closed in (("db", True), ("wal", False)):
            found = await find_volume(metadata, name)
            assert found is not None and found.log is not None
            assert (found.log.record.checkpoint is not None) == closed, (
                f"{name}: closed with a checkpoint, or never opened"
            )


async def test_a_daemon_leaves_no_forgotten_coroutine_or_task(daemon: Daemon) -> None:
    """In asyncio's debug mode. It also lists slow callbacks; a busy machine can slow any of them, so they are only
    printed.
    """
    daemon.variables = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", GIB)
        await write((await client.export_volume("db")).uris[0])
        await client.create_snapshots(["db"], "s")
        await client.unexport_volume("db", force=True)
        await client.delete_volume("db", snapshots=True)
    assert daemon.stop() == 0
    assert daemon.wrong() == []
    text = daemon.log.read_text()
    for wrong in ("was never awaited", "was destroyed but it is pending", "exception was never retrieved", "unclosed"):
        assert wrong not in text
