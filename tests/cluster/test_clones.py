"""Clones: their contents beside the parent's, deletion in either order, and that they survive a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess

import numpy as np
import pytest

from iomesh.api.client import Client
from iomesh.api.model import VolumeState
from iomesh.errors import AlreadyExists, InUse, IomeshError, NotFound, Unavailable
from support.daemon import MIB, Daemon, names_of_records
from support.load import Load, read_volume
from support.model import Model
from support.nbd import Connection
from support.trial import iomesh_command

SIZE = 32 * MIB
LOADED = 2000  # operations; enough to overwrite much of it, and for the log to be checkpointed


async def fill(client: Client, name: str, text: bytes, length: int = SIZE) -> None:
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    await asyncio.gather(*(connection.write(at, text * (MIB // len(text))) for at in range(0, length, MIB)))
    await connection.flush()
    await connection.close()


async def holds(client: Client, name: str, *texts: tuple[bytes, int]) -> None:
    """Checks that the volume consists of these texts, each repeated over the given number of bytes, from offset 0."""
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    assert connection.size == sum(length for _, length in texts)
    at = 0
    for text, length in texts:
        for offset in range(at, at + length, MIB):
            assert await connection.read(offset, MIB) == text * (MIB // len(text)), f"{name} at {offset}"
        at += length
    await connection.close()


async def answers(client: Client) -> None:
    """Waits for the daemon: gRPC delays its retry of a socket that was refused."""
    async with asyncio.timeout(300):
        while True:
            with contextlib.suppress(Unavailable):
                await client.status()
                return
            await asyncio.sleep(0.05)


async def free_bytes(client: Client) -> int:
    return sum(device.free_bytes for device in await client.devices())


async def comes_back(client: Client, free: int, but: int = 4 * MIB) -> None:
    """Waits until the free space is back, except for open segments."""
    async with asyncio.timeout(300):
        while await free_bytes(client) < free - but:  # noqa: ASYNC110  # the daemon sends no event for this
            await asyncio.sleep(0.05)


async def test_a_clone_is_the_snapshot_and_each_goes_its_own_way(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await fill(client, "db", b"headhead")
        free = await free_bytes(client)
        made = await client.clone_volume("db", "monday", "copy")
        assert (made.name, made.size_bytes, made.clone_of, made.state) == (
            "copy",
            SIZE,
            "db@monday",
            VolumeState.SERVING,
        )
        assert await free_bytes(client) >= free - 4 * MIB, "it takes no copy"
        assert (await client.clone_volume("db", "monday", "copy")).id == made.id, "twice is once"
        assert (await client.snapshot("db", "monday")).clones == 1
        await holds(client, "copy", (b"snapshot", SIZE))
        await fill(client, "copy", b"of clone", SIZE // 2)
        await holds(client, "copy", (b"of clone", SIZE // 2), (b"snapshot", SIZE // 2))
        await holds(client, "db", (b"headhead", SIZE))
    for end in (node.kill, node.stop):
        end()
        node.start()
        async with node.client() as client:
            await holds(client, "copy", (b"of clone", SIZE // 2), (b"snapshot", SIZE // 2))
            await holds(client, "db", (b"headhead", SIZE))
            assert (await client.volume("copy")).clone_of == "db@monday"


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_an_unwritten_clone_survives_a_restart_of_the_daemon(node: Daemon, how: str) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await fill(client, "db", b"headhead")
    for _ in range(2):
        getattr(node, how)()
        node.start()
        async with node.client() as client:
            await holds(client, "copy", (b"snapshot", SIZE))


async def test_a_clone_of_a_clone_and_a_snapshot_of_a_clone(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("a", SIZE)
        await fill(client, "a", b"all of a")
        await client.create_snapshots(["a"], "one")
        await client.clone_volume("a", "one", "b")
        await client.create_snapshots(["b"], "untouched")
        await fill(client, "b", b"from b..", SIZE // 2)
        await client.create_snapshots(["b"], "one")
        await client.clone_volume("b", "one", "c")
        await client.clone_volume("b", "untouched", "d")
        await fill(client, "c", b"from c..", SIZE // 4)
        await fill(client, "a", b"new in a")
        await fill(client, "b", b"new in b")

    async def check() -> None:
        async with node.client() as client:
            await holds(client, "c", (b"from c..", SIZE // 4), (b"from b..", SIZE // 4), (b"all of a", SIZE // 2))
            await holds(client, "d", (b"all of a", SIZE))

    await check()
    node.kill()
    node.start()
    await check()
    async with node.client() as client:
        await client.delete_volume("a", force=True, snapshots=True)
        await client.delete_volume("b", force=True, snapshots=True)
        assert [one.name for one in await client.volumes()] == ["c", "d"]
        for name in ("a", "b"):
            with pytest.raises(NotFound):
                await client.volume(name)
    await check()
    node.kill()
    node.start()
    await check()
    async with node.client() as client:
        await client.create_volume("a", SIZE)  # its name is free
        await client.delete_volume("a")
        await client.delete_volume("c")
        await holds(client, "d", (b"all of a", SIZE))
        await client.delete_volume("d")
        assert await client.volumes() == []
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == []


@pytest.mark.parametrize(
    "order", [("db", "one", "two"), ("one", "db", "two"), ("two", "one", "db"), ("one", "two", "db")]
)
async def test_parent_and_clones_are_deleted_in_any_order_and_all_space_is_freed(
    node: Daemon, order: tuple[str, ...]
) -> None:
    async with node.client() as client:
        free = await free_bytes(client)
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        for number, name in enumerate(("one", "two")):
            await client.clone_volume("db", "monday", name)
            await fill(client, name, b"clone %02d" % number, SIZE // 2)
        texts = {"one": b"clone 00", "two": b"clone 01"}
        for gone in order:
            await client.delete_volume(gone, force=True, snapshots=gone == "db")
            texts.pop(gone, None)
            for name, text in texts.items():
                await holds(client, name, (text, SIZE // 2), (b"snapshot", SIZE // 2))
        await comes_back(client, free)
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == []


async def test_a_deleted_parent_keeps_only_the_snapshots_that_clones_stand_on(node: Daemon) -> None:
    """The parent's own data and its other snapshots are freed; deleting the clone deletes the snapshot."""
    async with node.client() as client:
        free = await free_bytes(client)
        await client.create_volume("db", SIZE)
        for name in ("first", "second", "third"):
            await fill(client, "db", name.encode().ljust(8))
            await client.create_snapshots(["db"], name)
        await fill(client, "db", b"the head")
        await client.clone_volume("db", "first", "of-first")
        await client.clone_volume("db", "third", "of-third")
        await client.delete_volume("db", force=True, snapshots=True)
        await comes_back(client, free - 2 * SIZE, but=12 * MIB)
        await holds(client, "of-first", (b"first   ", SIZE))
        await client.delete_volume("of-third", force=True)
        await comes_back(client, free - SIZE, but=8 * MIB)
        await holds(client, "of-first", (b"first   ", SIZE))
        await client.delete_volume("of-first", force=True)
        await comes_back(client, free)


@pytest.mark.parametrize("milliseconds", [0, 3, 8, 15, 30, 60])
async def test_the_parent_is_hidden_whole_or_its_rest_goes_after_a_kill(node: Daemon, milliseconds: int) -> None:
    async with node.client() as client:
        free = await free_bytes(client)
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        await fill(client, "db", b"tuesday ")
        await client.create_snapshots(["db"], "tuesday")
        await fill(client, "db", b"the head")
        deleting = asyncio.create_task(client.delete_volume("db", force=True, snapshots=True))
        await asyncio.sleep(milliseconds / 1000)
        node.kill()
        with contextlib.suppress(IomeshError):
            await deleting
    node.start()
    async with node.client() as client:
        await answers(client)
        await holds(client, "copy", (b"snapshot", SIZE))
        if "db" in [one.name for one in await client.volumes()]:
            await holds(client, "db", (b"the head", SIZE))
            await client.delete_volume("db", force=True, snapshots=True)
        await comes_back(client, free - SIZE, but=8 * MIB)
        await holds(client, "copy", (b"snapshot", SIZE))
        await client.delete_volume("copy", force=True)
        await comes_back(client, free)
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == []


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8, 16])
async def test_a_clone_is_made_or_not_after_a_kill(node: Daemon, milliseconds: int) -> None:
    """An unanswered clone can be created again, or its parent deleted."""
    async with node.client() as client:
        free = await free_bytes(client)
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        cloning = asyncio.create_task(client.clone_volume("db", "monday", "copy"))
        await asyncio.sleep(milliseconds / 1000)
        node.kill()
        made = True
        try:
            await cloning
        except IomeshError:
            made = False
    node.start()
    async with node.client() as client:
        await answers(client)
        names = [one.name for one in await client.volumes()]
        assert names == ["copy", "db"] or (names == ["db"] and not made)
        await client.clone_volume("db", "monday", "copy")
        await holds(client, "copy", (b"snapshot", SIZE))
        assert (await client.snapshot("db", "monday")).clones == 1
        await client.delete_volume("db", force=True, snapshots=True)
        await client.delete_volume("copy", force=True)
        await comes_back(client, free)


async def test_a_snapshot_stays_while_there_are_clones_of_it(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await client.create_snapshots(["db"], "monday")
        await client.clone_volume("db", "monday", "copy")
        with pytest.raises(InUse, match="copy"):
            await client.delete_snapshot("db", "monday", force=True)
        with pytest.raises(InUse):
            await client.delete_volume("db")
        with pytest.raises(AlreadyExists):
            await client.clone_volume("db", "monday", "db")
        with pytest.raises(NotFound):
            await client.clone_volume("db", "tuesday", "other")
        await client.delete_volume("copy")
        await client.delete_snapshot("db", "monday")


async def test_both_under_load_are_what_was_acknowledged_after_kills(node: Daemon, draw: random.Random) -> None:
    """Parent, clone, and a clone of the clone, each compared with a model of its own."""
    node.settings = {"engine.checkpoint_bytes": 4 * MIB}
    node.kill()
    node.start()
    models = {"db": Model(SIZE, run=1)}
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await client.export_volume("db")
    for round_ in range(4):
        async with node.client() as client:
            loads = []
            for name, model in models.items():
                uri = (await client.export_volume(name)).uris[0]
                loads.append(Load(uri, model, draw.getrandbits(32), connections=1, depth=8))
            running = [asyncio.create_task(load.run()) for load in loads]
            async with asyncio.timeout(300):
                while any(load.counts.acknowledged < LOADED // len(loads) for load in loads):  # noqa: ASYNC110  # only a counter
                    await asyncio.sleep(0.01)
            for load in loads:
                load.expect_end()
        node.kill()
        await asyncio.gather(*running)
        node.start()
        async with node.client() as client:
            for name, model in models.items():
                uri = (await client.export_volume(name)).uris[0]
                model.settle_with(await asyncio.to_thread(read_volume, uri, SIZE))
            if round_ < 2:  # a clone of the state that is now certain
                parent, name = ("db", "copy") if round_ == 0 else ("copy", "copy-of-copy")
                await client.create_snapshots([parent], f"round-{round_}")
                await client.clone_volume(parent, f"round-{round_}", name)
                uri = (await client.export_volume(parent)).uris[0]
                held = await asyncio.to_thread(read_volume, uri, SIZE)
                assert held == await asyncio.to_thread(read_volume, (await client.export_volume(name)).uris[0], SIZE)
                models[name] = Model(SIZE, run=2 + round_)
                models[name].content[:] = np.frombuffer(held, np.uint8)


async def test_parent_and_clone_are_restored_independently(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await fill(client, "db", b"snapshot")
        await client.create_snapshots(["db"], "monday")
        await fill(client, "db", b"headhead")
        await client.clone_volume("db", "monday", "copy")
        await client.create_snapshots(["copy"], "fresh")
        await fill(client, "copy", b"of clone")
        before = (await client.restore_volume("copy", "fresh")).before
        await holds(client, "copy", (b"snapshot", SIZE))
        await client.restore_volume("copy", before)
        await client.restore_volume("db", "monday", discard=True)
    node.kill()
    node.start()
    async with node.client() as client:
        await holds(client, "copy", (b"of clone", SIZE))
        await holds(client, "db", (b"snapshot", SIZE))


async def test_the_command_line_makes_shows_and_guards_clones(node: Daemon) -> None:
    def iomesh(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
        )

    assert iomesh("volume", "create", "db", "32Mi").returncode == 0
    assert iomesh("snapshot", "create", "db@monday").returncode == 0
    made = iomesh("volume", "clone", "db@monday", "copy", "--export")
    assert made.stdout.splitlines()[0] == "volume copy: a clone of db@monday"
    assert made.stdout.splitlines()[1].startswith("nbd+unix:///copy?")
    told = json.loads(iomesh("volume", "clone", "db@monday", "copy", "--json").stdout)
    assert (told["name"], told["clone_of"], told["size_bytes"]) == ("copy", "db@monday", SIZE)
    assert "db@monday" in iomesh("volume", "show", "copy").stdout
    refused = iomesh("snapshot", "delete", "db@monday")
    assert refused.returncode != 0
    assert "has clones, copy: delete them first" in refused.stderr
    assert iomesh("volume", "delete", "db", "--snapshots", "--yes").returncode == 0
    assert [one["name"] for one in json.loads(iomesh("volume", "list", "--json").stdout)["volumes"]] == ["copy"]
