"""Restore windows: a volume, or a clone of it, has its state of any time in the window; cost and refusals."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time

import pytest

from iomesh.api.model import RestoreVolumeResponse
from iomesh.errors import InUse, InvalidArgument
from iomesh.times import time_of
from support.contents import everything, fill
from support.daemon import MIB, Daemon
from support.nbd import Connection
from support.trial import iomesh_command

SIZE = 16 * MIB
BLOCK = 4096
APART_SECONDS = 0.003  # two operations, so that a point in time lies between them
HOUR = 3600
SECOND_NS = 10**9


class History:
    """A volume changed by one operation after the other, and its contents at times between them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.content = bytearray(SIZE)
        self.points: list[tuple[int, bytes]] = []

    async def go_on(self, uri: str, operations: int, *, points: int) -> None:
        remembered = set(self.draw.sample(range(operations), points))
        connection = await Connection.connect(uri)
        for number in range(operations):
            length = self.draw.choice((512, BLOCK, 3 * BLOCK, 17 * BLOCK))
            at = self.draw.randrange(0, SIZE - length, 512)
            if self.draw.random() < 0.25:
                await connection.trim(at - at % BLOCK, length + BLOCK - length % BLOCK)
                self.content[at - at % BLOCK : at - at % BLOCK + length + BLOCK - length % BLOCK] = bytes(
                    length + BLOCK - length % BLOCK
                )
            else:
                data = self.draw.randbytes(length)
                await connection.write(at, data)
                self.content[at : at + length] = data
            await asyncio.sleep(APART_SECONDS)
            if number in remembered:
                self.points.append((time.time_ns(), bytes(self.content)))
                await asyncio.sleep(APART_SECONDS)
        await connection.close()


async def test_clones_have_the_content_of_any_point_in_time(node: Daemon) -> None:
    """After operations of every kind and alignment, with checkpoints, cleaning and a crash in between."""
    history = History(7)
    async with node.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        await history.go_on(uri, 120, points=3)
        await client.checkpoint("db")
        await history.go_on(uri, 120, points=3)
    node.kill()
    node.start()
    async with node.client() as client:
        assert await everything(uri) == history.content
        await history.go_on(uri, 120, points=3)
        for number, (at_ns, content) in enumerate(history.points):
            made = await client.clone_volume("db", "", f"look{number}", at_ns=at_ns)
            assert made.clone_of.startswith("db@20")
            assert await everything((await client.export_volume(made.name)).uris[0]) == content, (
                f"point in time {number}"
            )
        assert await everything(uri) == history.content
        again = await client.clone_volume("db", "", "look0", at_ns=history.points[0][0])
        assert again.name == "look0"


async def test_the_volume_itself_goes_back_and_what_it_was_is_kept(node: Daemon) -> None:
    """To times before and after earlier targets, forward again, and the same after a restart."""
    history = History(8)
    async with node.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        for _ in range(4):
            await history.go_on(uri, 60, points=2)
            at_ns, content = history.draw.choice(history.points)
            now = bytes(history.content)
            before = (await client.restore_volume("db", "", at_ns=at_ns)).before
            assert await everything(uri) == content
            assert await everything((await client.export_snapshot("db", before)).uris[0]) == now
            history.content = bytearray(content)
    node.kill()
    node.start()
    async with node.client() as client:
        assert await everything(uri) == history.content
        names = {one.name for one in await client.snapshots("db")}
        for at_ns, content in history.points:
            assert await client.restore_volume("db", "", at_ns=at_ns, discard=True) == RestoreVolumeResponse(
                at=time_of(at_ns)
            )
            assert await everything(uri) == content
        assert {one.name for one in await client.snapshots("db")} == names, "no mark is a user's snapshot"
        for name in names:
            await client.unexport_snapshot("db", name, force=True)
            await client.delete_snapshot("db", name)
        at_ns, content = history.points[0]
        await client.restore_volume("db", "", at_ns=at_ns)
        assert await everything(uri) == content


async def test_how_long_ago_is_resolved_by_the_node_which_answers_with_the_time(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"monday..")
        await asyncio.sleep(APART_SECONDS)
        then = time.time_ns()
        await asyncio.sleep(APART_SECONDS)
        await fill(uri, b"tuesday.")
        ago_ns, asked = time.time_ns() - then, time.time_ns()
        done = await client.restore_volume("db", "", ago_ns=ago_ns, discard=True)
        assert done.at is not None
        assert time_of(asked - ago_ns) <= done.at <= time_of(time.time_ns() - ago_ns)
        again = await client.restore_volume("db", "", at_ns=then, discard=True)
        assert again.at == time_of(then)
        assert await everything(uri) == b"monday.." * (SIZE // 8)
        for ago_ns in (-1, 2 * time.time_ns()):
            with pytest.raises(InvalidArgument, match="point in time"):
                await client.restore_volume("db", "", ago_ns=ago_ns)


async def test_points_in_time_before_a_restore_remain_restorable(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"monday..")
        await client.create_snapshots(["db"], "monday")
        await fill(uri, b"tuesday.")
        await asyncio.sleep(APART_SECONDS)
        tuesday = time.time_ns()
        await client.restore_volume("db", "monday", discard=True)
        await asyncio.sleep(APART_SECONDS)
        monday_again = time.time_ns()
        await fill(uri, b"thursday")
        await client.restore_volume("db", "", at_ns=monday_again, discard=True)
        assert await everything(uri) == b"monday.." * (SIZE // 8)
        await client.restore_volume("db", "", at_ns=tuesday, discard=True)
        assert await everything(uri) == b"tuesday." * (SIZE // 8)


async def test_what_cannot_be_gone_back_to_is_refused_and_says_why(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        with pytest.raises(InvalidArgument, match=r"has no restore window.*volume set db --window"):
            await client.restore_volume("db", "", at_ns=time.time_ns())
        await client.set_volume("db", window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"content.")
        with pytest.raises(InvalidArgument, match="future"):
            await client.clone_volume("db", "", "look", at_ns=time.time_ns() + 60 * SECOND_NS)
        with pytest.raises(InvalidArgument, match=r"restore window of 1h reaches back to 20"):
            await client.restore_volume("db", "", at_ns=time.time_ns() - 60 * SECOND_NS)
        with pytest.raises(InvalidArgument, match="either a snapshot"):
            await client.restore_volume("db", "monday", at_ns=time.time_ns())
        with pytest.raises(InvalidArgument, match="use 10s to 366d"):
            await client.set_volume("db", window_seconds=5)
        connection = await Connection.connect(uri)
        with pytest.raises(InUse, match="1 connection"):
            await client.restore_volume("db", "", at_ns=time.time_ns())
        assert await connection.read(0, 8) == b"content."
        await client.restore_volume("db", "", at_ns=time.time_ns(), force=True)
        assert await everything(uri) == b"content." * (SIZE // 8)
        await connection.close()


async def test_space_is_freed_after_the_window_or_when_it_is_off(node: Daemon) -> None:
    """Overwritten data is kept for the window, not longer."""
    async with node.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        free = (await client.devices())[0].free_bytes
        for text in (b"first...", b"second..", b"third...", b"fourth.."):
            await fill(uri, text)
        await client.checkpoint("db")
        await asyncio.sleep(2)
        assert (await client.devices())[0].free_bytes < free - 4 * SIZE + MIB, "nothing of it may be cleaned"
        space = (await client.volume("db")).space
        assert (space.mapped_bytes, space.exclusive_bytes, space.shared_bytes, space.snapshots_bytes) == (
            SIZE,
            SIZE,
            0,
            0,
        )
        assert 3 * SIZE <= space.pinned_bytes <= 3 * SIZE + MIB
        parts = (
            space.exclusive_bytes
            + space.pinned_bytes
            + space.map_bytes
            + space.log_bytes
            + space.ahead_bytes
            + space.dead_bytes
        )
        assert parts == space.physical_bytes
        assert (await client.set_volume("db", window_seconds=0)).window_from is None
        async with asyncio.timeout(300):
            while (await client.devices())[0].free_bytes < free - 2 * SIZE:
                await client.checkpoint("db")
                await asyncio.sleep(0.1)
        assert await everything(uri) == b"fourth.." * (SIZE // 8)


async def test_a_full_device_makes_the_window_shorter_before_it_refuses_writes(node: Daemon) -> None:
    async with node.client() as client:
        device = (await client.devices())[0]
        await client.create_volume("db", SIZE, window_seconds=10)
        uri = (await client.export_volume("db")).uris[0]
        written = 0
        connection = await Connection.connect(uri)
        while written < 2 * device.size_bytes:
            await asyncio.gather(
                *(connection.write(at, bytes([written >> 24 & 255]) * MIB) for at in range(0, SIZE, MIB))
            )
            written += SIZE
        await connection.close()
        window_from = (await client.volume("db")).window_from
        assert window_from, "there is a window still"


async def test_a_volume_is_restored_on_a_device_filled_by_its_window(node: Daemon) -> None:
    """Repeatedly; the log is not deleted while the restore rolls forward along it."""
    async with node.client() as client:
        device = (await client.devices())[0]
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        points = []
        for round_ in range(3 * device.size_bytes // SIZE):
            text = f"{round_:8}".encode()
            await fill(uri, text)
            await asyncio.sleep(APART_SECONDS)
            points.append((time.time_ns(), text))
            await asyncio.sleep(APART_SECONDS)
            if round_ % 3 == 2:
                at_ns, text = points[-2]
                await client.restore_volume("db", "", at_ns=at_ns, discard=True)
                assert await everything(uri) == text * (SIZE // 8)
        reach = (await client.volume("db")).window_from
        assert reach is not None and reach > time_of(points[0][0]), "the window was never too long: this shows nothing"


async def test_clones_outlive_the_window_and_what_they_stood_on_goes_with_them(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"first...")
        await asyncio.sleep(APART_SECONDS)
        await client.clone_volume("db", "", "look", at_ns=time.time_ns())
        await fill(uri, b"second..")
        await client.set_volume("db", window_seconds=0)
    node.kill()
    node.start()
    async with node.client() as client:
        look = (await client.export_volume("look")).uris[0]
        assert await everything(look) == b"first..." * (SIZE // 8)
        assert await everything(uri) == b"second.." * (SIZE // 8)
        assert await client.snapshots("db") == []
        await client.delete_volume("look")
        async with asyncio.timeout(300):
            while await client.snapshots("db", hidden=True):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_deleted_volume_keeps_no_window_for_its_clones(node: Daemon) -> None:
    async with node.client() as client:
        free = (await client.devices())[0].free_bytes
        await client.create_volume("db", SIZE, window_seconds=HOUR)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"first...")
        await asyncio.sleep(APART_SECONDS)
        await client.clone_volume("db", "", "look", at_ns=time.time_ns())
        for text in (b"second..", b"third...", b"fourth.."):
            await fill(uri, text)
        await client.delete_volume("db", force=True)
        async with asyncio.timeout(300):
            while (await client.devices())[0].free_bytes < free - 3 * SIZE:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await everything((await client.export_volume("look")).uris[0]) == b"first..." * (SIZE // 8)


def test_the_command_line_takes_times_as_people_write_them(node: Daemon) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    assert "db: 16Mi" in run("volume", "create", "db", "16Mi", "--window", "24h", "--export")
    assert "restore window  1d, reaches back to 20" in run("volume", "show", "db")
    time.sleep(1.1)
    assert "volume db: restored to 20" in run("volume", "restore", "db", "--at", "1 second ago")
    assert "volume look: a clone of db@20" in run("volume", "clone", "db", "look", "--at", "0s ago") + run(
        "volume", "clone", "db", "look", "--at", "now"
    )
    assert "write either db@SNAPSHOT, or db and --at TIME" in run("volume", "restore", "db")
    assert "'yesterday' is not a point in time" in run("volume", "restore", "db", "--at", "yesterday")
    assert json.loads(run("volume", "set", "db", "--window", "off", "--json"))["policy"]["window_seconds"] == 0
