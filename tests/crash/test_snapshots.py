"""Snapshots of the engine: contents, cost, and state after a crash.

Counts are compared with an independent walk of every tree (support/trees.py).
"""

import asyncio
import random
import time
from pathlib import Path

import pytest

from iomesh.errors import IomeshError
from support.amount import Amount
from support.bench import BLOCK, Bench
from support.daemon import MIB, Daemon
from support.interrupted import was_answered
from support.nbd import NbdError
from support.stamps import Held, holding, put

STALL_NS = 5_000_000
ATTEMPTS = 30
SIZE = 32 * MIB  # of the volume that a daemon serves
ROUNDS = 10


@pytest.fixture
async def bench(room: Path, draw: random.Random) -> Bench:
    made = Bench(room, draw)
    await made.format(4 << 30)
    return made


async def test_a_snapshot_keeps_what_was_there(bench: Bench) -> None:
    """Under changes of the volume and after a crash; with exact counts."""
    async with bench.served() as connection:
        await bench.write(connection, 400)
        one, held_then = await bench.snapshot("one"), dict(bench.held)
        await bench.write(connection, 400)
        async with bench.reading(one) as snapshot:
            await bench.compare(snapshot, held_then)
            for block in bench.held.keys() - held_then.keys():
                assert await snapshot.read(block * BLOCK, BLOCK) == bytes(BLOCK)
        await bench.check()
        await bench.compare(connection)
        await bench.write(connection, 400)
    async with bench.served() as connection:
        listed = await bench.snapshots()
        assert list(listed) == ["one"]
        assert (listed["one"]["id"], listed["one"]["parent"], listed["one"]["hidden"]) == (one, None, False)
        async with bench.reading(one) as snapshot:
            await bench.compare(snapshot, held_then)
        await bench.check()
        await bench.compare(connection)


async def test_a_snapshot_refuses_writes(bench: Bench) -> None:
    async with bench.served() as connection:
        await bench.write(connection, 80)
        async with bench.reading(await bench.snapshot("one")) as snapshot:
            for change in (
                snapshot.write(0, bytes(BLOCK)),
                snapshot.trim(0, BLOCK),
                snapshot.zero(0, BLOCK),
                snapshot.write(1, b"x"),
            ):
                with pytest.raises(NbdError):
                    await change


async def test_names_and_identities_are_taken_once(bench: Bench) -> None:
    async with bench.served() as connection:
        await bench.write(connection, 80)
        await bench.snapshot("one")
        with pytest.raises(IomeshError, match="exists"):
            await bench.snapshot("one")
        assert list(await bench.snapshots()) == ["one"]


async def test_a_volume_without_a_record_has_snapshots_too(bench: Bench) -> None:
    async with bench.served() as connection:
        empty = await bench.snapshot("empty")
        await bench.write(connection, 80)
        async with bench.reading(empty) as snapshot:
            assert await snapshot.read(0, 64 * BLOCK) == bytes(64 * BLOCK)
        await bench.check()


async def test_many_snapshots_under_load_count_to_the_block(bench: Bench) -> None:
    """Created one after the other under writes, with crashes between."""
    for turn in range(3):
        async with bench.served(checkpoint_bytes=1 << 20) as connection:
            writing = asyncio.ensure_future(bench.write(connection, 1600))
            for number in range(6):
                await bench.snapshot(f"{turn}-{number}")
                await asyncio.sleep(0.02)
            await writing
            await bench.check()
        async with bench.served() as connection:
            assert len(await bench.snapshots()) == 6 * (turn + 1)
            await bench.check()
            await bench.compare(connection)


async def test_a_checkpoint_that_fails_leaves_no_snapshot_and_exact_counts(bench: Bench) -> None:
    """The engine crashes before the metadata service answers: then there is no snapshot."""
    async with bench.served() as connection:
        await bench.write(connection, 800)
        await bench.snapshot("one")
        bench.answers = False
        bench.asked.clear()
        making = asyncio.ensure_future(bench.snapshot("two"))
        await asyncio.wait_for(bench.asked.wait(), 300)
        await bench.write(connection, 800)
        assert not making.done()
        making.cancel()
    bench.answers = True
    async with bench.served() as connection:
        assert list(await bench.snapshots()) == ["one"]
        await bench.check()
        await bench.compare(connection)


async def test_making_one_hardly_stalls_writes(bench: Bench) -> None:
    """Other load on the machine only adds to the cost, so the minimum counts."""
    stalled: list[int] = []
    async with bench.served() as connection:
        await bench.write(connection, 4000)
        for number in range(ATTEMPTS):
            writing = asyncio.ensure_future(bench.write(connection, 400))
            await bench.snapshot(f"{number}")
            stalled.append(bench.engine.volume_state(bench.volume)["stalled_ns"])
            await writing
            if len(stalled) >= 5 and min(stalled) < STALL_NS:
                break
    assert min(stalled) < STALL_NS, f"writes waited for at least {min(stalled) / 1e6:.1f} ms: {stalled}"


async def gone(bench: Bench, *names: str) -> None:
    """Wait until deleted snapshots have been walked and are in no checkpoint."""
    async with asyncio.timeout(300):
        while set(names) & (await bench.snapshots()).keys():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    walked = await bench.check()
    assert not {one["name"] for one in walked.snapshots} & set(names)
    state = bench.engine.volume_state(bench.volume)
    assert (state["walk_disagreements"], state["walk_unreadable"]) == (0, 0)


async def test_deleting_gives_back_what_was_its_alone(bench: Bench) -> None:
    """In any order; exact counts each time, and at the end only the head is live."""
    async with bench.served() as connection:
        made = {}
        for number in range(5):
            await bench.write(connection, 400)
            made[f"{number}"] = await bench.snapshot(f"{number}")
        await bench.write(connection, 400)
        for name in bench.draw.sample(sorted(made), len(made)):
            writing = asyncio.ensure_future(bench.write(connection, 160))
            assert not await bench.delete(made[name])
            await writing
            await gone(bench, name)
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == bench.blocks_in_use()
        await bench.compare(connection)
    async with bench.served() as connection:
        await bench.check()
        await bench.compare(connection)


async def test_a_deletion_continues_after_a_crash(bench: Bench) -> None:
    async with bench.served() as connection:
        await bench.write(connection, 800)
        one = await bench.snapshot("one")
        await bench.write(connection, 800)
        two = await bench.snapshot("two")
        await bench.write(connection, 800)
        await bench.delete(two)
        await bench.delete(one)
        await bench.write(connection, 80)
    async with bench.served() as connection:
        await gone(bench, "one", "two")
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == bench.blocks_in_use()
        await bench.compare(connection)


async def test_a_snapshot_that_is_read_stays_until_it_is_not(bench: Bench) -> None:
    async with bench.served() as connection:
        await bench.write(connection, 400)
        one, held_then = await bench.snapshot("one"), dict(bench.held)
        await bench.write(connection, 400)
        async with bench.reading(one) as snapshot:
            assert await bench.delete(one)
            await bench.check()
            await bench.compare(snapshot, held_then)
        await gone(bench, "one")
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == bench.blocks_in_use()


@pytest.mark.timeout(1200)
async def test_kills_during_making_and_deleting_leave_each_there_or_not(
    daemon: Daemon, draw: random.Random, amount: Amount
) -> None:
    """Of the daemon, at a random time during both, under writes. A snapshot that exists has its contents, and no space
    leaks.
    """
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
    held: Held = {}
    kept: dict[str, Held] = {}
    stamp = made = deleted = undone = 0
    took = 0.02
    for round_ in range(200 if amount.soak else ROUNDS):
        written = {draw.randrange(SIZE // BLOCK): (stamp := stamp + 1) for _ in range(200)}
        await put(uri, written)
        held |= written
        making = not kept or draw.random() < 0.6
        name = f"{round_}" if making else draw.choice(sorted(kept))
        async with daemon.client() as client:
            asked: asyncio.Future[object] = asyncio.ensure_future(
                client.create_snapshots(["db"], name) if making else client.delete_snapshot("db", name)
            )
            began = time.monotonic()
            await asyncio.wait({asked}, timeout=draw.uniform(0, 1.5 * took))
            daemon.kill()
            if answered := await was_answered(asked):
                took = max(0.02, time.monotonic() - began)
        daemon.start()
        assert await holding(uri) == held
        async with daemon.client() as client:
            there = {one.name for one in await client.snapshots("db")}
            assert there - {name} == kept.keys() - {name}
            if answered:
                assert (name in there) == making, "what was answered has not happened"
            made, deleted = made + (making and name in there), deleted + (not making and name not in there)
            undone += (name in there) != making
            if making and name in there:
                kept[name] = dict(held)
            if name not in there:
                kept.pop(name, None)
            if kept:
                looked_at = draw.choice(sorted(kept))
                export = await client.export_snapshot("db", looked_at)
                assert await holding(export.uris[0]) == kept[looked_at], f"snapshot {looked_at} has changed"
                await client.unexport_snapshot("db", looked_at, force=True)
    async with daemon.client() as client:
        for name in kept:
            await client.delete_snapshot("db", name)
        async with asyncio.timeout(300):
            while (await client.volume("db")).space.snapshots_bytes or await client.snapshots("db", hidden=True):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.volume("db")).space.exclusive_bytes == len(held) * BLOCK
    print(f"{made} made, {deleted} deleted, {undone} as before")
