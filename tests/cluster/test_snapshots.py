"""The control API's contract for snapshots: contents, exports, and that they survive a restart."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path

import pytest

from iomesh.api.client import Client
from iomesh.errors import AlreadyExists, InUse, InvalidArgument, NotFound
from support.contents import everything, fill
from support.daemon import MIB, Daemon
from support.load import Load
from support.model import Model
from support.nbd import Connection
from support.run import run, tool
from support.trial import iomesh_command

SIZE = 32 * MIB


async def acknowledged(load: Load, operations: int) -> None:
    """Waits for a count, not for a time: a fast machine would fill the device."""
    while load.counts.acknowledged < operations:  # noqa: ASYNC110  # the load counts, it sends no event
        await asyncio.sleep(0.01)


async def test_a_snapshot_under_load_is_of_one_instant_and_does_not_change(
    node: Daemon, room: Path, draw: random.Random
) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        model = Model(SIZE, run=7)
        load = Load(uri, model, draw.getrandbits(32), connections=2, depth=8)
        running = asyncio.create_task(load.run())
        await acknowledged(load, 1000)
        ((made,), (more,)) = (
            await client.create_snapshots(["db"], "monday"),
            await client.create_snapshots(["db"], "tuesday"),
        )
        assert made.sequence <= more.sequence and made.created_at <= more.created_at
        snapshot_uri = (await client.export_snapshot("db", "monday")).uris[0]
        copy = room / "monday.raw"
        await asyncio.to_thread(run, [tool("nbdcopy", "libnbd-bin"), snapshot_uri, str(copy)])
        await acknowledged(load, load.counts.acknowledged + 100)
        load.stop()
        await running
        await fill(uri, b"after...")
        compare = [tool("qemu-img", "qemu-utils"), "compare", "-f", "raw", "-F", "raw", snapshot_uri, str(copy)]
        await asyncio.to_thread(run, compare)
        assert await everything(uri) == b"after..." * (SIZE // 8)
    node.kill()
    node.start()
    await asyncio.to_thread(run, compare)
    async with node.client() as client:
        assert [one.name for one in await client.snapshots("db")] == ["monday", "tuesday"]
        assert [len(one.exports) for one in await client.snapshots("db")] == [1, 0]


async def test_a_snapshot_holds_what_was_answered_before_and_nothing_that_was_sent_after(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        for number in range(5):
            await fill(uri, b"round %02d" % number)
            (made,) = await client.create_snapshots(["db"], f"round-{number}")
            assert (made.volume, made.name, made.size_bytes) == ("db", f"round-{number}", SIZE)
        await client.grow_volume("db", 2 * SIZE)
        for number in (3, 0, 4):
            snapshot_uri = (await client.export_snapshot("db", f"round-{number}")).uris[0]
            assert await everything(snapshot_uri) == b"round %02d" % number * (SIZE // 8), f"snapshot {number}"
            writer = await Connection.connect(snapshot_uri)
            assert writer.size == SIZE, "a snapshot has the size that its volume had"
            with pytest.raises(OSError, match="error"):
                await writer.write(0, b"x" * 4096)
            await writer.close()
        page = await node.page("/metrics")
        assert 'iomesh_volume_snapshots{volume="db"} 5.0' in page
        (newest,) = [
            line
            for line in page.splitlines()
            if line.startswith('iomesh_volume_newest_snapshot_timestamp_seconds{volume="db"}')
        ]
        assert float(newest.split()[1]) == pytest.approx(made.created_at.timestamp(), abs=2e-6)


@pytest.mark.parametrize("reactors", [1, 2])
async def test_snapshots_of_several_volumes_are_of_one_instant(node: Daemon) -> None:
    names = ["log", "data"]
    async with node.client() as client:
        uris = []
        for name in names:
            await client.create_volume(name, SIZE)
            uris.append((await client.export_volume(name)).uris[0])
        log, data = [await Connection.connect(uri) for uri in uris]
        ended = asyncio.Event()

        async def write() -> None:
            """Writes each number to the log, and after its acknowledgement to the data."""
            number = 0
            while not ended.is_set():
                number += 1
                for connection in (log, data):
                    await connection.write(0, number.to_bytes(8, "big") * 512)

        writing = asyncio.create_task(write())
        pairs = []
        for number in range(5):
            await asyncio.sleep(0.05)
            made = await client.create_snapshots(names, f"both-{number}")
            assert [one.volume for one in made] == names
            assert len({one.created_at for one in made}) == 1
            snapshot_uris = [(await client.export_snapshot(name, f"both-{number}")).uris[0] for name in names]
            pairs.append(
                [int.from_bytes((await everything(snapshot_uri))[:8], "big") for snapshot_uri in snapshot_uris]
            )
        ended.set()
        await writing
        for in_log, in_data in pairs:
            assert in_data <= in_log <= in_data + 1, f"the log holds {in_log}, the data {in_data}: never at one instant"
        assert pairs[0][0] < pairs[-1][0], "nothing was written meanwhile: this shows nothing"
        assert await client.create_snapshots(names, "both-0") == [
            await client.snapshot(name, "both-0") for name in names
        ]
        await client.create_snapshots(["log"], "alone")
        with pytest.raises(AlreadyExists, match="not taken at one instant"):
            await client.create_snapshots(names, "alone")
        for connection in (log, data):
            await connection.close()


async def test_doing_it_again_is_the_same_and_what_makes_no_sense_is_named(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        made, *others = await asyncio.gather(*(client.create_snapshots(["db"], "monday") for _ in range(4)))
        assert others == [made] * 3
        with pytest.raises(InvalidArgument, match="is not a valid snapshot name"):
            await client.create_snapshots(["db"], "a@b")
        with pytest.raises(InvalidArgument, match="at most 63"):
            await client.create_snapshots(["db"], "a" * 64)
        with pytest.raises(InvalidArgument, match="several different ones"):
            await client.create_snapshots(["db", "db"], "twice")
        with pytest.raises(NotFound, match="there is no volume 'x'"):
            await client.create_snapshots(["x"], "monday")
        for call in (
            client.snapshot("db", "x"),
            client.unexport_snapshot("db", "x"),
            client.export_snapshot("db", "x"),
        ):
            with pytest.raises(NotFound, match="volume db has no snapshot 'x'"):
                await call
        with pytest.raises(InUse, match=r"volume db has 1 snapshot\(s\)"):
            await client.delete_volume("db")
        await client.delete_volume("db", snapshots=True)
        (device,) = await client.devices()
        assert (await client.volumes(), device.replicas) == ([], 0)


async def test_an_export_lasts_until_it_is_withdrawn_and_one_in_use_by_force_alone(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill((await client.export_volume("db")).uris[0], b"kept....")
        await client.create_snapshots(["db"], "monday")
        export = await client.export_snapshot("db", "monday")
        assert await client.export_snapshot("db", "monday") == export
        reader = await Connection.connect(export.uris[0])
        with pytest.raises(InUse, match=r"snapshot db@monday has 1 connection\(s\): end them, or unexport with force"):
            await client.unexport_snapshot("db", "monday")
        await client.unexport_snapshot("db", "monday", force=True)
        with pytest.raises(ConnectionError):
            await reader.read(0, 4096)
        await reader.close()
        await client.unexport_snapshot("db", "monday")
    node.kill()
    node.start()
    async with node.client() as client:
        assert (await client.snapshot("db", "monday")).exports == [], "what was withdrawn does not come back"
        assert await everything((await client.export_snapshot("db", "monday")).uris[0]) == b"kept...." * (SIZE // 8)
    assert node.stop() == 0
    node.start()
    assert await everything(export.uris[0]) == b"kept...." * (SIZE // 8)


async def test_the_command_line_makes_shows_and_exports_them(node: Daemon) -> None:
    def iomesh(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
        )

    for name in ("db", "log"):
        assert iomesh("volume", "create", name, "32Mi").returncode == 0
    assert iomesh("snapshot", "create", "db@monday").stdout.startswith("snapshot db@monday: 32Mi, ")
    made = json.loads(iomesh("snapshot", "create", "db@both", "log@both", "--json").stdout)["snapshots"]
    assert [(one["volume"], one["name"]) for one in made] == [("db", "both"), ("log", "both")]
    uri = iomesh("snapshot", "export", "db@monday").stdout.strip()
    assert uri.startswith("nbd+unix:///db@monday?socket=")
    assert json.loads(iomesh("snapshot", "show", "db@monday", "--json").stdout)["exports"][0]["uris"] == [uri]
    assert "db@monday" in iomesh("snapshot", "list", "db").stdout
    assert iomesh("snapshot", "unexport", "db@monday").returncode == 0
    listed = json.loads(iomesh("snapshot", "list", "--json").stdout)["snapshots"]
    assert [(one["name"], one["exports"]) for one in listed] == [("monday", []), ("both", []), ("both", [])]
    for words, code, said in (
        (("snapshot", "create", "db", "log"), 2, "'db' does not name a snapshot: write VOLUME@SNAPSHOT"),
        (("snapshot", "create", "db@x", "log@y"), 2, "snapshots of one instant have one name, not x and y"),
        (("snapshot", "show", "monday"), 2, "write VOLUME@SNAPSHOT"),
        (("snapshot", "show", "db@x"), 3, "volume db has no snapshot 'x'"),
        (("volume", "delete", "db"), 5, "delete the volume with its snapshots"),
    ):
        done = iomesh(*words)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
    assert iomesh("volume", "delete", "db", "--snapshots").returncode == 0


async def changes(client: Client, older: str, newer: str = "", *, ranges: int = 0) -> tuple[list[tuple[int, int]], int]:
    """All ranges of `diff`, piece by piece, as (offset, length), and the number of nodes read for it."""
    found, offset, nodes = [], 0, 0
    while True:
        piece = await client.diff_snapshots("db", older, newer, offset=offset, ranges=ranges)
        found += [(one.offset, one.length) for one in piece.ranges]
        nodes += piece.nodes
        offset = piece.next
        if not offset:
            return found, nodes


def blocks_in(ranges: list[tuple[int, int]]) -> set[int]:
    return {block for offset, length in ranges for block in range(offset // 4096, (offset + length) // 4096)}


def other_blocks(before: bytes, after: bytes) -> set[int]:
    return {at // 4096 for at in range(0, len(after), 4096) if before[at : at + 4096] != after[at : at + 4096]}


async def test_what_differs_between_snapshots_is_what_a_comparison_of_their_bytes_finds(
    node: Daemon, draw: random.Random
) -> None:
    held: list[bytes] = []
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"at first")
    for number in range(4):
        async with node.client() as client:
            connection = await Connection.connect(uri)
            for _ in range(100 if number else 0):
                at, length = draw.randrange(SIZE // 4096) * 4096, draw.randint(1, 8) * 4096
                length = min(length, SIZE - at)
                if draw.random() < 0.3:
                    await connection.trim(at, length)
                else:
                    await connection.write(at, draw.randbytes(length))
            await connection.close()
            await client.create_snapshots(["db"], f"s{number}")
            held.append(await everything((await client.export_snapshot("db", f"s{number}")).uris[0]))
            for other in range(number + 1):
                for older, newer in ((other, number), (number, other)):
                    found, _ = await changes(client, f"s{older}", f"s{newer}", ranges=draw.choice((0, 7)))
                    missed = other_blocks(held[older], held[newer]) - blocks_in(found)
                    assert not missed, f"s{older} and s{newer} differ at blocks {sorted(missed)[:9]}, which is not told"
                    if older + 1 == newer:  # across several steps a block may be trimmed, written and trimmed again
                        assert blocks_in(found) == other_blocks(held[older], held[newer])
                    if older < newer:
                        by_nbd = changes_by_nbd((await client.export_snapshot("db", f"s{newer}")).uris[0], f"s{older}")
                        assert blocks_in(by_nbd) == blocks_in(found)
            found, _ = await changes(client, "s0")
            assert blocks_in(found) >= other_blocks(held[0], held[number]), "until now"
            assert await changes(client, f"s{number}", f"s{number}") == ([], 0)
        node.kill()
        node.start()


def changes_by_nbd(uri: str, since: str) -> list[tuple[int, int]]:
    """As a tool for incremental backups reads it."""
    extents = json.loads(
        run([tool("nbdinfo", "libnbd-bin"), f"--map=iomesh:changed-since:{since}", "--json", uri]).stdout
    )
    assert sum(extent["length"] for extent in extents) == SIZE
    return [(extent["offset"], extent["length"]) for extent in extents if extent["type"] == 1]


async def test_comparing_reads_only_what_differs(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
        await fill(uri, b"at first")
        await client.create_snapshots(["db"], "one")
        connection = await Connection.connect(uri)
        await connection.write(5 * MIB, b"x" * 8192)
        await connection.trim(9 * MIB, 4096)
        await client.create_snapshots(["db"], "two")
        found, nodes = await changes(client, "one", "two")
        assert found == [(5 * MIB, 8192), (9 * MIB, 4096)]
        assert 0 < nodes <= 2 * (4 + 2), f"{nodes} nodes were read of two trees that share 30 of 32 leaves"
        assert [one.zero for one in (await client.diff_snapshots("db", "one", "two")).ranges] == [False, True]
        await connection.write(0, b"y" * 4096)
        assert (await changes(client, "two"))[0] == [(0, 4096)], "since then"
        await connection.close()
        with pytest.raises(NotFound, match="volume db has no snapshot 'x'"):
            await client.diff_snapshots("db", "one", "x")
        with pytest.raises(InvalidArgument, match="not a multiple of 4096"):
            await client.diff_snapshots("db", "one", "two", offset=5)
        with pytest.raises(InvalidArgument, match="too many for one answer"):
            await client.diff_snapshots("db", "one", "two", ranges=65537)
    command = [iomesh_command(), "snapshot", "diff", "db@one", "db@two", "--json", "--address", str(node.control)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert told["ranges"] == [
        {"offset": 5 * MIB, "length": 8192, "zero": False},
        {"offset": 9 * MIB, "length": 4096, "zero": True},
    ]
