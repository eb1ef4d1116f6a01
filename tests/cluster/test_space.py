"""Space in `volume show`, for volumes that a daemon serves; and which creations are refused when space runs out."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import subprocess
import time
from collections.abc import Awaitable, Callable

import pytest

from iomesh.api.client import Client
from iomesh.api.model import Snapshot, Space
from iomesh.errors import InvalidArgument, NoSpace
from support.daemon import MIB, Daemon
from support.nbd import Connection, NbdError
from support.trial import iomesh_command

SIZE = 64 * MIB
LARGE = 512 * MIB  # more than the device has
HOUR = 3600
REMEDY = "delete snapshots, shorten the restore window, trim or delete something, or add a device"
REFUSED = (
    "volume db has no space left on the node's devices, and a snapshot would pin space that cleaning must free: "
    f"{REMEDY}"
)


def iomesh(node: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
    )


async def write_until_full(client: Client, name: str, at: int = 0) -> int:
    """Returns the offset of the first ENOSPC."""
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    while True:
        assert at < LARGE, "the device never became full"
        try:
            await connection.write(at, name.encode()[:1] * MIB)
        except NbdError as error:
            if error.errno != errno.ENOSPC:
                raise
            await connection.close()
            return at
        at += MIB


async def trim(client: Client, name: str, at: int, length: int) -> None:
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    for offset in range(at, at + length, MIB):
        await connection.trim(offset, MIB)
    await connection.close()


async def once_there_is_space(make: Callable[[], Awaitable[list[Snapshot]]]) -> list[Snapshot]:
    """Space is freed with a delay, so the request is repeated until then."""
    async with asyncio.timeout(300):
        while True:
            try:
                return await make()
            except NoSpace:
                await asyncio.sleep(0.1)


async def names(client: Client, volume: str) -> list[str]:
    return [one.name for one in await client.snapshots(volume, hidden=True)]


async def write(client: Client, name: str, at: int, length: int) -> None:
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    for offset in range(at, at + length, MIB):
        await connection.write(offset, name.encode()[:1] * MIB)
    await connection.close()


async def space(client: Client, name: str) -> Space:
    """Space figures; they must add up."""
    it = (await client.volume(name)).space
    held = it.exclusive_bytes + it.shared_bytes
    assert it.mapped_bytes == held + it.inherited_bytes
    live = held + it.snapshots_bytes + it.pinned_bytes + it.map_bytes
    assert it.physical_bytes == live + it.log_bytes + it.ahead_bytes + it.dead_bytes
    assert it.amplification == (it.physical_bytes / live if live else 0)
    return it


async def test_a_volume_its_snapshot_and_a_clone_of_it(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        it = await space(client, "db")
        assert (it.mapped_bytes, it.physical_bytes, it.amplification) == (0, it.ahead_bytes, 0), (
            "nothing was ever written"
        )
        await write(client, "db", 0, 16 * MIB)
        it = await space(client, "db")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes) == (16 * MIB, 16 * MIB, 0)
        await client.create_snapshots(["db"], "one")
        await write(client, "db", 0, 4 * MIB)
        it = await space(client, "db")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.snapshots_bytes) == (
            16 * MIB,
            4 * MIB,
            12 * MIB,
            4 * MIB,
        )
        await client.create_snapshots(["db"], "two")
        shown = {one.name: (one.mapped_bytes, one.new_bytes) for one in await client.snapshots("db")}
        assert shown == {"one": (16 * MIB, 16 * MIB), "two": (16 * MIB, 4 * MIB)}
        await client.delete_snapshot("db", "two")
        async with asyncio.timeout(300):
            # The space is freed after the answer.
            while (await space(client, "db")).exclusive_bytes != 4 * MIB:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await client.clone_volume("db", "one", "copy")
        await write(client, "copy", 0, MIB)
        it = await space(client, "copy")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.inherited_bytes) == (
            16 * MIB,
            MIB,
            0,
            15 * MIB,
        )
    node.kill()
    node.start()
    async with node.client() as client:
        it = await space(client, "db")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.snapshots_bytes) == (
            16 * MIB,
            4 * MIB,
            12 * MIB,
            4 * MIB,
        )
        it = await space(client, "copy")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.inherited_bytes) == (
            16 * MIB,
            MIB,
            0,
            15 * MIB,
        )

    def show(*words: str) -> str:
        command = [iomesh_command(), "volume", "show", *words, "--address", node.control]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert re.search(r"^  inherited +15 Mi +from db@one", show("copy"), re.MULTILINE)
    assert "inherited" not in show("db")
    assert json.loads(show("db", "--json"))["space"]["shared_bytes"] == 12 * MIB


@pytest.mark.parametrize("reactors", [1, 2])
async def test_what_is_dead_in_one_volume_is_space_for_another_one_with_larger_segments(daemon: Daemon) -> None:
    """The first volume is not cleaned for itself: it has room for many of its segments, and never counts as idle."""
    daemon.settings["cleaning.rest_seconds"] = HOUR
    daemon.start()
    piece = MIB // 16
    async with daemon.client() as client:
        await client.create_volume("old", 96 * MIB, segment_bytes=MIB)
        await write(client, "old", 0, 96 * MIB)
        connection = await Connection.connect((await client.export_volume("old")).uris[0])
        for part in range(3):
            for offset in range(part * piece, 96 * MIB, 4 * piece):
                await connection.write(offset, b"n" * piece)
        await connection.close()
        dead = (await space(client, "old")).dead_bytes
        assert dead > 64 * MIB
        free = (await client.devices())[0].free_bytes
        await client.create_volume("db", 128 * MIB, segment_bytes=16 * MIB)
        await write(client, "db", 0, (free + dead // 2) // MIB * MIB)
        assert (await space(client, "old")).dead_bytes < dead // 2


async def test_snapshots_are_refused_without_space_and_work_again_with_space(node: Daemon) -> None:
    """However often it is requested, for one volume or several: the reserve stays, so deletion and trims can free
    space.
    """
    async with node.client() as client:
        await client.create_volume("db", LARGE)
        await client.create_volume("wal", SIZE)
        await write(client, "wal", 0, MIB)
        full = await write_until_full(client, "db")
        device = (await client.devices())[0]
        for number in range(20):
            with pytest.raises(NoSpace, match=f"^{REFUSED}$"):
                await client.create_snapshots(["db"], f"number{number}")
            with pytest.raises(NoSpace, match=f"^{REFUSED}$"):
                await client.create_snapshots(["wal", "db"], f"group{number}")
        done = iomesh(node, "snapshot", "create", "db@monday")
        assert (done.returncode, done.stderr) == (8, f"iomesh: {REFUSED}\n")
        assert (await names(client, "db"), await names(client, "wal")) == ([], [])
        assert (await client.devices())[0].free_bytes >= device.free_bytes - MIB, (
            "the reserve was taken for what was not made"
        )
        await trim(client, "db", 0, full // 2)
        made = await once_there_is_space(lambda: client.create_snapshots(["wal", "db"], "tuesday"))
        assert [one.volume for one in made] == ["wal", "db"]


async def test_without_space_a_volume_goes_back_if_what_it_is_is_discarded_and_snapshots_are_deleted(
    node: Daemon,
) -> None:
    async with node.client() as client:
        await client.create_volume("db", LARGE)
        await write(client, "db", 0, 8 * MIB)
        await client.create_snapshots(["db"], "monday")
        await write_until_full(client, "db", 8 * MIB)
        with pytest.raises(
            NoSpace, match=re.escape(f"must free: discard what the volume is now (`--discard`), {REMEDY}")
        ):
            await client.restore_volume("db", "monday")
        assert await names(client, "db") == ["monday"]
        done = iomesh(node, "volume", "restore", "db@monday")
        assert (done.returncode, "discard what the volume is now" in done.stderr) == (8, True), done
        assert (await space(client, "db")).mapped_bytes > 64 * MIB, "it is what it was"
        done = iomesh(node, "volume", "restore", "db@monday", "--discard", "--yes")
        assert done.returncode == 0, done.stderr
        assert (await space(client, "db")).mapped_bytes == 8 * MIB
        await once_there_is_space(lambda: client.create_snapshots(["db"], "tuesday"))
        await write_until_full(client, "db")
        await client.delete_snapshot("db", "monday")
        await client.delete_snapshot("db", "tuesday")
        async with asyncio.timeout(300):
            while await names(client, "db"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_a_restore_window_begins_once_there_is_space(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", LARGE)
        full = await write_until_full(client, "db")
        await client.set_volume("db", window_seconds=HOUR)
        told = "no space: a restore point that is due is created once there is some"
        async with asyncio.timeout(300):
            while not node.logged(told):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(2)  # more checks for due restore points
        assert (await client.volume("db")).window_from is None
        assert "restore window  1h\n" in iomesh(node, "volume", "show", "db").stdout
        assert len(node.logged(told)) == 1, "it is told once"
        with pytest.raises(InvalidArgument, match="its restore window begins once there is space"):
            await client.restore_volume("db", "", at_ns=time.time_ns())
        await trim(client, "db", 0, full // 2)
        async with asyncio.timeout(300):
            while not (await client.volume("db")).window_from:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_a_clone_without_space_leaves_nothing(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", LARGE)
        await write(client, "db", 0, MIB)
        await client.create_snapshots(["db"], "monday")
        await write_until_full(client, "db", MIB)
        done = iomesh(node, "volume", "clone", "db@monday", "copy")
        assert (done.returncode, done.stdout) == (8, ""), done
        assert [one.name for one in await client.volumes()] == ["db"]
        await client.delete_snapshot("db", "monday")
