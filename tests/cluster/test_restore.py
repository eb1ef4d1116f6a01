"""The control API's contract for in-place restore to a snapshot: the result, the kept state, connected clients."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import uuid

import pytest

from iomesh.api.client import Client
from iomesh.api.model import RestoreVolumeResponse
from iomesh.errors import InUse, NotFound
from support.contents import everything, fill
from support.daemon import MIB, Daemon
from support.nbd import Connection
from support.trial import iomesh_command

SIZE = 32 * MIB


async def exported(client: Client, snapshot: str) -> bytes:
    return await everything((await client.export_snapshot("db", snapshot)).uris[0])


async def test_a_volume_restored_back_and_forth_stays_so_after_restarts(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"monday..")
        await client.create_snapshots(["db"], "monday")
        await fill(uri, b"tuesday.")
        before = (await client.restore_volume("db", "monday")).before
        assert before.startswith("before-restore-")
        assert await everything(uri) == b"monday.." * (SIZE // 8)
        assert await exported(client, before) == b"tuesday." * (SIZE // 8)
        assert [one.name for one in await client.snapshots("db")] == ["monday", before]
    node.kill()
    node.start()
    async with node.client() as client:
        assert await everything(uri) == b"monday.." * (SIZE // 8)
        again = (await client.restore_volume("db", before)).before
        assert again not in ("monday", before)
        assert await everything(uri) == b"tuesday." * (SIZE // 8)
        assert await exported(client, again) == b"monday.." * (SIZE // 8)
        assert await client.restore_volume("db", "monday", discard=True) == RestoreVolumeResponse()
        assert await everything(uri) == b"monday.." * (SIZE // 8)
        assert [one.name for one in await client.snapshots("db")] == ["monday", before, again]


async def test_a_volume_that_has_grown_keeps_its_size_and_is_empty_behind_the_snapshot(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"small...")
        await client.create_snapshots(["db"], "small")
        await client.grow_volume("db", 2 * SIZE)
        await fill(uri, b"large...")
        before = (await client.restore_volume("db", "small")).before
        assert (await client.volume("db")).size_bytes == 2 * SIZE
        assert await everything(uri) == b"small..." * (SIZE // 8) + bytes(SIZE)
        await client.restore_volume("db", before)
        assert await everything(uri) == b"large..." * (2 * SIZE // 8)


async def test_connected_clients_prevent_a_restore_or_are_disconnected(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"first...")
        await client.create_snapshots(["db"], "first")
        await fill(uri, b"second..")
        connection = await Connection.connect(uri)
        with pytest.raises(InUse, match=r"has 1 connection.*unmount.*force"):
            await client.restore_volume("db", "first")
        assert await connection.read(0, 8) == b"second.."
        assert [one.name for one in await client.snapshots("db")] == ["first"]
        await client.restore_volume("db", "first", force=True)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await connection.read(0, 8)
        assert await everything(uri) == b"first..." * (SIZE // 8)
        with pytest.raises(NotFound, match="no snapshot 'third'"):
            await client.restore_volume("db", "third")


async def leaves_meanwhile(client: Client, uri: str) -> None:
    """A client disconnects while a restore waits for it. The wait is one second; if the disconnect took longer, it
    tries again.
    """
    async with asyncio.timeout(300):
        while True:
            connection = await Connection.connect(uri)
            restore = asyncio.create_task(client.restore_volume("db", "first", discard=True))
            began = time.monotonic()
            await asyncio.sleep(0.1)
            assert not restore.done() or time.monotonic() - began > 1, "it has not waited"
            connection.leave()
            left = time.monotonic()
            try:
                await restore
                return
            except InUse:
                assert left - began > 0.5, "a client that left at once was a reason to refuse"


async def test_clients_that_are_just_disconnecting_do_not_prevent_a_restore(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        await client.create_snapshots(["db"], "first")
        for _ in range(20):
            connection = await Connection.connect(uri)
            await connection.write(0, b"second.." * 512)
            connection.leave()
            await client.restore_volume("db", "first", discard=True)
        await leaves_meanwhile(client, uri)
        snapshot_uri = (await client.export_snapshot("db", "first")).uris[0]
        (await Connection.connect(snapshot_uri)).leave()
        await client.unexport_snapshot("db", "first")
        (await Connection.connect(uri)).leave()
        await client.delete_volume("db", snapshots=True)


async def test_the_command_line_restores_snapshots(node: Daemon) -> None:
    def iomesh(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
        )

    assert iomesh("volume", "create", "db", "32Mi", "--export").returncode == 0
    assert iomesh("snapshot", "create", "db@monday").returncode == 0
    done = iomesh("volume", "restore", "db@monday")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "volume db: restored to db@monday"
    assert second.startswith("previous content: db@before-restore-")
    before = second.rpartition("@")[2]
    answer = json.loads(iomesh("volume", "restore", f"db@{before}", "--discard", "--json").stdout)
    assert uuid.UUID(answer.pop("operation"))
    assert answer == {"volume": "db", "snapshot": before, "at": None, "before": ""}
    for words, code, said in (
        (("volume", "restore", "db"), 2, "write either db@SNAPSHOT, or db and --at TIME"),
        (("volume", "restore", "db@x"), 3, "volume db has no snapshot 'x'"),
        (("volume", "restore", "x@x"), 3, "there is no volume 'x'"),
    ):
        done = iomesh(*words)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
