"""Flattening of clones: under load, across kills, and the effect on their parents."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time

import numpy as np
import pytest

from iomesh.api.client import Client
from iomesh.errors import InUse, InvalidArgument, NotFound
from support.daemon import MIB, Daemon, names_of_records
from support.load import Load, read_volume
from support.model import Model
from support.nbd import Connection
from support.trial import iomesh_command

SIZE = 32 * MIB
SLOWLY = {"cleaning.bytes_per_second": 4 * MIB}


async def fill(client: Client, name: str, text: bytes, length: int = SIZE) -> None:
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    await asyncio.gather(*(connection.write(at, text * (MIB // len(text))) for at in range(0, length, MIB)))
    await connection.flush()
    await connection.close()


async def trim(client: Client, name: str, at: int, length: int) -> None:
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    await connection.trim(at, length)
    await connection.close()


async def content(client: Client, name: str) -> bytes:
    return bytes(await asyncio.to_thread(read_volume, (await client.export_volume(name)).uris[0], SIZE))


async def flattened(client: Client, name: str) -> None:
    """Wait until the volume is no clone and no flattening is under way: its own record is written after its log's."""
    async with asyncio.timeout(300):
        while (volume := await client.volume(name)).clone_of or volume.flattening.running:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def alone(client: Client, name: str) -> None:
    """Wait until this is the only volume: none is hidden for it or being erased."""
    async with asyncio.timeout(300):
        while [one.name for one in await client.volumes()] != [name]:  # noqa: ASYNC110  # that too continues after the answer
            await asyncio.sleep(0.05)


async def test_a_flattened_clone_is_independent_and_its_hidden_parent_is_deleted(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await trim(client, "db", 4 * MIB, MIB)
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await fill(client, "copy", b"of clone", SIZE // 4)
        await trim(client, "copy", SIZE // 2, 3 * MIB)
        held = await content(client, "copy")
        before = (await client.volume("copy")).space
        assert before.inherited_bytes == SIZE - SIZE // 4 - 3 * MIB
        await client.delete_volume("db", force=True, snapshots=True)
        begun = await client.flatten_volume("copy")
        assert begun.flattening.running
        assert begun.flattening.total_bytes <= before.inherited_bytes
        await flattened(client, "copy")
        after = await client.volume("copy")
        assert (after.space.inherited_bytes, after.space.mapped_bytes) == (0, before.mapped_bytes)
        with pytest.raises(InvalidArgument, match="not a clone"):
            await client.flatten_volume("copy")
        async with asyncio.timeout(300):
            while sum(device.replicas for device in await client.devices()) > after.segments + 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await content(client, "copy") == held
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == ["copy"], "the hidden parent is gone"
    for number, end in enumerate((node.kill, node.stop, node.kill)):
        end()
        node.start()
        async with node.client() as client:
            assert await content(client, "copy") == held
            await fill(client, "copy", b"snapshot", MIB)
            await fill(client, "copy", b"of clone", MIB)
            await client.create_snapshots(["copy"], f"number-{number}")


async def test_a_parent_that_was_not_deleted_stays(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        with pytest.raises(InvalidArgument):
            await client.flatten_volume("db")
        with pytest.raises(NotFound):
            await client.flatten_volume("nobody")
        await client.flatten_volume("copy")
        await flattened(client, "copy")
        assert (await client.snapshot("db", "monday")).clones == 0
        await client.delete_snapshot("db", "monday")
        assert await content(client, "db") == await content(client, "copy") == b"snapshot" * (SIZE // 8)
        await client.create_snapshots(["db"], "tuesday")
        await client.clone_volume("db", "tuesday", "other")
        await client.delete_volume("db", force=True, snapshots=True)
        assert await content(client, "copy") == await content(client, "other")


async def test_snapshots_that_inherit_are_in_its_way(node: Daemon) -> None:
    """Existing ones are reported at once; the flattening waits for those created later."""
    node.settings = dict(SLOWLY)
    node.kill()
    node.start()
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await client.create_snapshots(["copy"], "early")
        with pytest.raises(InUse, match="early"):
            await client.flatten_volume("copy")
        await client.delete_snapshot("copy", "early")
        async with asyncio.timeout(300):
            while True:
                try:
                    await client.flatten_volume("copy")
                    break
                except InUse:  # its space is being freed
                    await asyncio.sleep(0.05)
        await client.create_snapshots(["copy"], "late")
    node.settings = {}
    node.kill()
    node.start()
    async with node.client() as client:
        async with asyncio.timeout(300):
            while "late" not in (await client.volume("copy")).flattening.reason:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.volume("copy")).space.inherited_bytes == 0, "all is copied"
        await client.delete_snapshot("copy", "late")
        await flattened(client, "copy")
        assert await content(client, "copy") == b"snapshot" * (SIZE // 8)


async def test_a_clone_begins_its_own_restore_window(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await client.set_volume("copy", window_seconds=3600)
        begun = (await client.volume("copy")).window_from
        assert begun
        await client.delete_volume("db", force=True, snapshots=True)
        await client.flatten_volume("copy")
        await flattened(client, "copy")
        later = (await client.volume("copy")).window_from
        assert later is not None and later > begun
        at_ns = time.time_ns()
        await fill(client, "copy", b"of clone", MIB)
        await client.restore_volume("copy", "", at_ns=at_ns, force=True)
        assert await content(client, "copy") == b"snapshot" * (SIZE // 8)


async def test_flattening_continues_under_load_and_after_kills(node: Daemon, draw: random.Random) -> None:
    """Reads of the clone return what was acknowledged, whatever was copied when the daemon was killed."""
    node.settings = {"engine.checkpoint_bytes": 4 * MIB, **SLOWLY}
    node.kill()
    node.start()
    model = Model(SIZE, run=1)
    left = []
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await client.delete_volume("db", force=True, snapshots=True)
        model.content[:] = np.frombuffer(b"snapshot" * (SIZE // 8), np.uint8)
        await client.export_volume("copy")
        await client.flatten_volume("copy")
    for round_ in range(4):
        async with node.client() as client:
            left.append((await client.volume("copy")).space.inherited_bytes)
            load = Load(
                (await client.export_volume("copy")).uris[0], model, draw.getrandbits(32), connections=1, depth=8
            )
            running = asyncio.create_task(load.run())
            async with asyncio.timeout(300):
                while load.counts.acknowledged < 300:  # noqa: ASYNC110  # only a counter
                    await asyncio.sleep(0.01)
            load.expect_end()
        node.kill()
        await running
        if round_ == 2:
            node.settings = {"engine.checkpoint_bytes": 4 * MIB}
        node.start()
        async with node.client() as client:
            model.settle_with(await content(client, "copy"))
    assert left[0] > left[-1], f"what was copied stays copied: {left}"
    async with node.client() as client:
        await flattened(client, "copy")
        model.settle_with(await content(client, "copy"))
    node.kill()
    node.start()
    async with node.client() as client:
        model.settle_with(await content(client, "copy"))
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == ["copy"]


@pytest.mark.parametrize("milliseconds", [0, 30, 60, 90, 120, 180, 250])
async def test_a_kill_at_any_time_leaves_a_clone_or_an_independent_volume(node: Daemon, milliseconds: int) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await client.delete_volume("db", force=True, snapshots=True)
        await client.flatten_volume("copy")
        await asyncio.sleep(milliseconds / 1000)
    node.kill()
    node.start()
    async with node.client() as client:
        assert await content(client, "copy") == b"snapshot" * (SIZE // 8)
        await flattened(client, "copy")
        assert await content(client, "copy") == b"snapshot" * (SIZE // 8)
    node.kill()
    node.start()
    async with node.client() as client:
        assert await content(client, "copy") == b"snapshot" * (SIZE // 8)
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == ["copy"]


async def test_the_middle_of_a_line_of_clones_is_flattened(node: Daemon) -> None:
    """Its clone keeps reading from it."""
    async with node.client() as client:
        await client.create_volume("a", SIZE)
        await fill(client, "a", b"all of a")
        await client.create_snapshots(["a"], "one")
        await client.clone_volume("a", "one", "b")
        await fill(client, "b", b"all of b")
        await client.create_snapshots(["b"], "one")
        await client.clone_volume("b", "one", "c")
        await client.flatten_volume("b")
        await flattened(client, "b")
        await client.delete_volume("a", force=True, snapshots=True)
        assert await content(client, "c") == b"all of b" * (SIZE // 8)
        await client.delete_volume("b", force=True, snapshots=True)
    node.kill()
    node.start()
    async with node.client() as client:
        assert await content(client, "c") == b"all of b" * (SIZE // 8)
        await client.flatten_volume("c")
        await flattened(client, "c")
        assert await content(client, "c") == b"all of b" * (SIZE // 8)
        await alone(client, "c")


async def test_the_command_waits_and_reports_the_outcome(node: Daemon) -> None:
    def iomesh(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
        )

    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
    done = iomesh("volume", "flatten", "copy")
    assert (done.returncode, done.stdout) == (0, "volume copy: independent of its parent\n"), done
    refused = iomesh("volume", "flatten", "db")
    assert "is not a clone" in refused.stderr
    assert refused.returncode != 0


async def test_a_full_device_is_waited_for_and_users_keep_what_is_left(node: Daemon) -> None:
    """Copying leaves the last space free, and continues by itself when space is freed."""
    async with node.client() as client:
        await client.create_volume("db", SIZE * 3)
        await fill(client, "db", b"snapshot", SIZE * 3)
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await client.create_volume("other", SIZE * 3)
        await fill(client, "other", b"in a way", SIZE * 3)
        await client.flatten_volume("copy")
        async with asyncio.timeout(300):
            while not (reason := (await client.volume("copy")).flattening.reason):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "it goes on when there is more space" in reason
        assert (await client.volume("copy")).space.inherited_bytes > 0
        await fill(client, "other", b"go on...", 2 * MIB)
        await client.delete_volume("other", force=True)
        await flattened(client, "copy")
        connection = await Connection.connect((await client.export_volume("copy")).uris[0])
        for at in range(0, SIZE * 3, MIB):
            assert await connection.read(at, MIB) == b"snapshot" * (MIB // 8)
        await connection.close()
