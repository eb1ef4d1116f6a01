"""Point-in-time restore: kills during the restore, and a target that cannot be reached."""

import asyncio
import random
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from iomesh.errors import InUse, IomeshError
from support.amount import Amount
from support.bench import Bench
from support.contents import everything
from support.daemon import MIB, Daemon
from support.interrupted import was_answered
from support.nbd import Connection

SIZE = 64 * MIB
BLOCK = 4096
HOUR = 3600
ROUNDS = 5
WRITES = 600  # between two points in time: enough that rolling forward takes a while
PAUSE_SECONDS = 0.01


async def scribble(uri: str, content: bytearray, draw: random.Random) -> tuple[int, bytes]:
    """Concurrent random writes, never two to the same block; returns a later point in time and the contents at it."""
    connection = await Connection.connect(uri)
    blocks = draw.sample(range(SIZE // BLOCK), WRITES)
    for first in range(0, WRITES, 50):
        writes = []
        for block in blocks[first : first + 50]:
            data = draw.randbytes(BLOCK)
            content[block * BLOCK : (block + 1) * BLOCK] = data
            writes.append(connection.write(block * BLOCK, data))
        await asyncio.gather(*writes)
    await connection.close()
    await asyncio.sleep(PAUSE_SECONDS)
    point = time.time_ns(), bytes(content)
    await asyncio.sleep(PAUSE_SECONDS)
    return point


@pytest.mark.timeout(1200)
async def test_a_kill_during_a_restore_leaves_the_previous_content_or_that_of_the_point_in_time(
    daemon: Daemon, draw: random.Random, amount: Amount
) -> None:
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
    content, points = bytearray(SIZE), []
    done = undone = 0
    took = 0.1
    for round_ in range(200 if amount.soak else ROUNDS):
        points.append(await scribble(uri, content, draw))
        at_ns, then = draw.choice(points[-8:])
        discard = draw.random() < 0.5
        async with daemon.client() as client:
            kept = {one.name for one in await client.snapshots("db")}
            began = time.monotonic()
            restoring = asyncio.ensure_future(client.restore_volume("db", "", at_ns=at_ns, discard=discard))
            await asyncio.wait({restoring}, timeout=draw.uniform(0, 1.2 * took))
            daemon.kill()
            if answered := await was_answered(restoring):
                took = time.monotonic() - began
        daemon.start()
        found = await everything(uri)
        assert found in (bytes(content), then), (
            f"round {round_}: neither the previous content nor that of the point in time"
        )
        if answered:
            assert found == then, "what was answered is not there"
        done, undone = done + (found == then), undone + (found == content)
        async with daemon.client() as client:
            for one in await client.snapshots("db"):
                if one.name not in kept:
                    assert not (answered and discard), "what was to be discarded is kept"
                    export = await client.export_snapshot("db", one.name)
                    assert await everything(export.uris[0]) == content
                    await client.unexport_snapshot("db", one.name, force=True)
                    await client.delete_snapshot("db", one.name)
        content = bytearray(found)
    print(f"{done} restored, {undone} as before")


async def test_kills_during_the_making_of_a_clone_leave_it_whole_or_not_there(
    daemon: Daemon, draw: random.Random, amount: Amount
) -> None:
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
    content = bytearray(SIZE)
    made = 0
    took = 0.1
    for round_ in range(100 if amount.soak else ROUNDS):
        at_ns, then = await scribble(uri, content, draw)
        async with daemon.client() as client:
            began = time.monotonic()
            cloning = asyncio.ensure_future(client.clone_volume("db", "", f"look{round_}", at_ns=at_ns))
            await asyncio.wait({cloning}, timeout=draw.uniform(0, 1.2 * took))
            daemon.kill()
            if answered := await was_answered(cloning):
                took = time.monotonic() - began
        daemon.start()
        async with daemon.client() as client:
            there = f"look{round_}" in {one.name for one in await client.volumes()}
            assert there or not answered, "what was answered is not there"
            if there:
                made += 1
                assert await everything((await client.export_volume(f"look{round_}")).uris[0]) == then
                await client.delete_volume(f"look{round_}")
        assert await everything(uri) == content
    print(f"{made} made of {round_ + 1}")


async def test_a_way_that_ends_in_damage_leads_back(daemon: Daemon, draw: random.Random) -> None:
    """A log record behind the restore point is damaged on the device: the volume keeps its state, and the error names
    the record.
    """
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        content = bytearray(SIZE)
        _, first = await scribble(uri, content, draw)
        at_ns, _ = await scribble(uri, content, draw)
        await scribble(uri, content, draw)
    daemon.stop()
    overwritten = next(
        block
        for block in range(0, SIZE, BLOCK)
        if first[block : block + BLOCK] not in (bytes(BLOCK), content[block : block + BLOCK])
    )
    device = Path(daemon.devices[0])
    image = bytearray(device.read_bytes())
    place = image.find(first[overwritten : overwritten + BLOCK])
    assert place > 0
    image[place] ^= 1
    device.write_bytes(image)
    daemon.start()
    async with daemon.client() as client:
        with pytest.raises(
            IomeshError, match=rf"block {overwritten // BLOCK} as record \d+ of the log has it is damaged"
        ):
            await client.restore_volume("db", "", at_ns=at_ns)
        assert await client.snapshots("db") == []
        assert await everything(uri) == content
        with pytest.raises(IomeshError, match="damaged"):
            await client.clone_volume("db", "", "look", at_ns=at_ns)
        assert [one.name for one in await client.volumes()] == ["db"]


async def test_only_a_mark_settles_a_volume_that_is_being_restored(room: Path, draw: random.Random) -> None:
    """Until then no client is served and no snapshot can be created; after a crash the state before is known."""
    bench = Bench(room, draw)
    await bench.format(1 << 30)

    def make(name: str, *, mark: bool) -> Awaitable[object]:
        wanted = [(bench.volume.bytes, draw.randbytes(16), name)]
        return bench.ask(lambda engine: engine.create_snapshots(wanted, mark=mark))

    async with bench.running():
        async with bench.connected() as connection:
            await bench.write(connection, 80)
        target, before, unsettled = (
            await bench.snapshot("target"),
            draw.randbytes(16),
            (draw.randbytes(16), "@unsettled"),
        )
        await bench.ask(
            lambda engine: engine.restore_volume(
                bench.volume.bytes,
                target,
                before=before,
                name="before",
                discard=False,
                force=False,
                mark=unsettled,
                unsettled=True,
            )
        )
        with pytest.raises(InUse, match="busy"):
            await make("half", mark=False)
    async with bench.running():
        assert bench.engine.volume_state(bench.volume)["unsettled"] == before
        with pytest.raises(InUse, match="busy"):
            await make("half", mark=False)
        await make("@settled", mark=True)
        assert bench.engine.volume_state(bench.volume)["unsettled"] is None
        await make("whole", mark=False)
        async with bench.connected() as connection:
            await bench.compare(connection)
        assert set(await bench.snapshots()) == {"target", "before", "@unsettled", "@settled", "whole"}
