"""In-place restore to a snapshot: the result, the snapshot of the state before, and crashes in between.

Counts are compared with an independent walk of every tree (support/trees.py).
"""

import asyncio
import random
import time
from pathlib import Path

import pytest

from iomesh.errors import IomeshError, NotFound
from iomesh.node.engine import Outcome
from support.amount import Amount
from support.bench import BLOCK, Bench
from support.daemon import MIB, Daemon
from support.interrupted import was_answered
from support.stamps import Held, holding, put

SIZE = 64 * MIB  # of the volume that a daemon serves
ROUNDS = 8


@pytest.fixture
async def bench(room: Path, draw: random.Random) -> Bench:
    made = Bench(room, draw)
    await made.format(4 << 30)
    return made


async def compare_all(bench: Bench, everything: set[int]) -> None:
    """Compares the volume with its expected contents; the others of these blocks must be zeros."""
    async with bench.connected() as connection:
        await bench.compare(connection)
        for block in everything - bench.held.keys():
            assert await connection.read(block * BLOCK, BLOCK) == bytes(BLOCK), f"block {block} is not empty"


async def compare_snapshot(bench: Bench, identity: bytes, held: Held) -> None:
    async with bench.reading(identity) as snapshot:
        await bench.compare(snapshot, held)


async def alone(bench: Bench, *kept: str) -> None:
    """Wait until exactly these snapshots exist, including hidden ones."""
    for _ in range(3000):
        if set(await bench.snapshots()) == set(kept):
            break
        await asyncio.sleep(0.02)
    assert {one["name"] for one in (await bench.check()).snapshots} == set(kept)
    state = bench.engine.volume_state(bench.volume)
    assert (state["walk_disagreements"], state["walk_unreadable"]) == (0, 0)


async def write(bench: Bench, times: int) -> None:
    async with bench.connected() as connection:
        await bench.write(connection, times)


async def test_a_restore_keeps_the_previous_content(bench: Bench) -> None:
    """And forward again, to the kept state; exact counts each time, and the same after a crash."""
    async with bench.running():
        await write(bench, 400)
        one, first = await bench.snapshot("one"), dict(bench.held)
        await write(bench, 400)
        second, blocks = dict(bench.held), first.keys() | bench.held.keys()
        before = await bench.restore(one, "before")
        bench.held = dict(first)
        await compare_all(bench, blocks)
        await compare_snapshot(bench, before, second)
        await bench.check()
        await write(bench, 400)
        third, blocks = dict(bench.held), blocks | bench.held.keys()
        again = await bench.restore(before, "again")
        bench.held = dict(second)
        await compare_all(bench, blocks)
        await bench.check()
    async with bench.running():
        await compare_all(bench, blocks)
        for identity, held in ((one, first), (before, second), (again, third)):
            await compare_snapshot(bench, identity, held)
        listed = await bench.snapshots()
        assert [(listed[name]["parent"]) for name in ("one", "before", "again")] == [None, one, one]
        await bench.check()


async def test_what_is_discarded_gives_its_space_back(bench: Bench) -> None:
    async with bench.running():
        await write(bench, 800)
        one, first = await bench.snapshot("one"), dict(bench.held)
        live = bench.engine.volume_state(bench.volume)["live_blocks"]
        await write(bench, 1600)
        await bench.restore(one, "before", discard=True)
        bench.held = first
        await alone(bench, "one")
        assert bench.engine.volume_state(bench.volume)["live_blocks"] <= live
        await bench.delete(one)
        await alone(bench)
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == bench.blocks_in_use()
        await compare_all(bench, set(first))


async def test_a_snapshot_of_nothing_empties_the_volume(bench: Bench) -> None:
    async with bench.running():
        empty = await bench.snapshot("empty")
        await write(bench, 400)
        blocks, bench.held = set(bench.held), {}
        await bench.restore(empty, "before", discard=True)
        await compare_all(bench, blocks)
        await alone(bench, "empty")
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == 0
        await write(bench, 400)
        await compare_all(bench, blocks)


async def test_connected_clients_never_see_their_blocks_change(bench: Bench) -> None:
    async with bench.served() as connection:
        await bench.write(connection, 80)
        one, first = await bench.snapshot("one"), dict(bench.held)
        await bench.write(connection, 80)
        with pytest.raises(IomeshError, match="busy"):
            await bench.restore(one, "before")
        await bench.compare(connection)
        assert list(await bench.snapshots()) == ["one"]
        await bench.restore(one, "before", force=True)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await connection.read(0, BLOCK)
        bench.held = first
        await compare_all(bench, set(first))


async def test_what_is_not_there_or_taken_is_refused(bench: Bench) -> None:
    async with bench.running():
        await write(bench, 80)
        one = await bench.snapshot("one")
        gone = await bench.snapshot("gone")
        await bench.delete(gone)
        for unknown in (gone, bench.draw.randbytes(16)):
            with pytest.raises(NotFound):
                await bench.restore(unknown, "before")
        with pytest.raises(IomeshError, match="exists"):
            await bench.restore(one, "one")
        await compare_all(bench, set(bench.held))
        await alone(bench, "one")


@pytest.mark.parametrize("answered", [0, 1, 2])
async def test_a_crash_finds_the_volume_as_it_was_or_as_it_shall_be(bench: Bench, answered: int) -> None:
    """During the restore, after the metadata service has moved the volume's pointer `answered` times."""
    async with bench.running():
        await write(bench, 400)
        one, first = await bench.snapshot("one"), dict(bench.held)
        await write(bench, 400)
        second, blocks = dict(bench.held), first.keys() | bench.held.keys()
        bench.answers = False
        restoring = asyncio.ensure_future(bench.restore(one, "before"))
        for turn in range(answered + 1):
            bench.asked.clear()
            if not bench.unanswered:
                waiting = asyncio.ensure_future(bench.asked.wait())
                await asyncio.wait({waiting, restoring}, timeout=300, return_when=asyncio.FIRST_COMPLETED)
            if turn < answered:
                bench.answer()
        if answered == 2:
            await restoring
        assert restoring.done() == (answered == 2)
        restoring.cancel()
    bench.answers = True
    async with bench.running():
        bench.held = first if answered == 2 else second
        await compare_all(bench, blocks)
        assert list(await bench.snapshots()) == (["one"] if answered == 0 else ["one", "before"])
        await compare_snapshot(bench, one, first)
        await bench.check()
        await write(bench, 400)
        await bench.check()


async def test_what_fails_half_way_leaves_what_was_there(bench: Bench) -> None:
    """The second checkpoint is refused, as after a takeover: the volume fails and serves nobody, and has the old state
    when it is opened again.
    """
    async with bench.running():
        await write(bench, 400)
        one, first = await bench.snapshot("one"), dict(bench.held)
        await write(bench, 400)
        blocks = first.keys() | bench.held.keys()
        bench.answers = False
        bench.asked.clear()
        restoring = asyncio.ensure_future(bench.restore(one, "before"))
        for refused in (False, True):
            await asyncio.wait_for(bench.asked.wait(), 300)
            bench.asked.clear()
            if not refused:
                bench.answer()
        bench.engine.checkpoint_moved(bench.volume, bench.unanswered.pop().value["sequence"], Outcome.REFUSED)
        with pytest.raises(IomeshError):
            await restoring
        assert bench.engine.volume_state(bench.volume)["error"]
        with pytest.raises(ConnectionError):  # another node has it: what is here may be out of date
            await compare_all(bench, blocks)
    bench.answers = True
    async with bench.running():
        await compare_all(bench, blocks)
        await compare_snapshot(bench, one, first)
        await bench.check()
        await bench.restore(one, "again")
        bench.held = first
        await compare_all(bench, blocks)
        await bench.check()


async def test_histories_with_branches_are_cleaned_to_the_block(bench: Bench) -> None:
    """Snapshots are created and deleted in any order, the volume is restored back and forth, segments are cleaned
    concurrently, and the engine crashes.

    A segment in which the cleaner finds fewer live blocks than were counted is reported as failed.
    """
    kept: dict[str, tuple[bytes, Held]] = {}
    blocks: set[int] = set()
    number = cleaned = restored = 0

    async def clean() -> None:
        nonlocal cleaned
        told = await bench.clean()
        assert (told["failed"], told["error"]) == (0, 0), told
        cleaned += told["compacted"] + told["evacuated"]

    for _ in range(4):
        async with bench.running(checkpoint_bytes=1 << 20):
            await compare_all(bench, blocks)
            for _ in range(8):
                number += 1
                await write(bench, bench.draw.choice((80, 400, 800)))
                blocks |= bench.held.keys()
                match bench.draw.choice(["snapshot", "snapshot", "restore", "restore", "discard", "delete"]):
                    case "snapshot":
                        kept[f"{number}"] = (await bench.snapshot(f"{number}"), dict(bench.held))
                    case "delete" if kept:
                        await bench.delete(kept.pop(bench.draw.choice(sorted(kept)))[0])
                    case ("restore" | "discard") as how if kept:
                        identity, held = kept[bench.draw.choice(sorted(kept))]
                        cleaning = asyncio.ensure_future(bench.clean())
                        await asyncio.sleep(bench.draw.choice((0, 0.001, 0.01)))
                        before = await bench.restore(identity, f"{number}", discard=how == "discard")
                        told = await asyncio.gather(cleaning, return_exceptions=True)
                        if isinstance(told[0], dict):
                            assert told[0]["failed"] == 0, told
                        if how == "restore":
                            kept[f"{number}"] = (before, dict(bench.held))
                        bench.held = dict(held)
                        restored += 1
                if bench.draw.random() < 0.5:
                    await bench.engine.checkpoint(bench.volume)
                    await clean()
            await compare_all(bench, blocks)
            for identity, held in kept.values():
                await compare_snapshot(bench, identity, held)
            await bench.check()
            await clean()
            await bench.check()
    async with bench.running():
        for identity, _ in kept.values():
            await bench.delete(identity)
        await alone(bench)
        await clean()
        await compare_all(bench, blocks)
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == bench.blocks_in_use()
    print(f"{restored} restored, {cleaned} segments cleaned")
    assert restored and cleaned


@pytest.mark.timeout(1200)
async def test_a_kill_during_a_restore_leaves_the_previous_or_the_restored_content(
    daemon: Daemon, draw: random.Random, amount: Amount
) -> None:
    """Killed at a random time during restores that keep or discard the current state, back and forth between states."""
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE)
        uri = (await client.export_volume("db")).uris[0]
    stamp = done = undone = 0
    held: Held = {}
    kept: dict[str, Held] = {}
    took = 0.02
    for round_ in range(200 if amount.soak else ROUNDS):
        async with daemon.client() as client:
            for name in [f"{round_}"] if round_ % 4 == 0 else []:
                await client.create_snapshots(["db"], name)
                kept[name] = dict(held)
            written = {draw.randrange(SIZE // BLOCK): (stamp := stamp + 1) for _ in range(300)}
            await put(uri, written)
            held |= written
            target = draw.choice(sorted(kept))
            discard = draw.random() < 0.5
            began = time.monotonic()
            restoring = asyncio.ensure_future(client.restore_volume("db", target, discard=discard))
            await asyncio.wait({restoring}, timeout=draw.uniform(0, 2 * took))
            daemon.kill()
            if answered := await was_answered(restoring):
                took = max(0.02, time.monotonic() - began)
        daemon.start()
        found = await holding(uri)
        assert found in (held, kept[target]), f"round {round_}: neither what it was nor snapshot {target}"
        if answered:
            assert found == kept[target], "what was answered is not there"
        done, undone = done + (found == kept[target]), undone + (found == held)
        async with daemon.client() as client:
            for one in await client.snapshots("db"):
                if one.name not in kept:
                    assert not discard, "what was to be discarded is kept"
                    kept[one.name] = dict(held)
            name = draw.choice(sorted(kept))
            export = await client.export_snapshot("db", name)
            assert await holding(export.uris[0]) == kept[name], f"snapshot {name} has changed"
            await client.unexport_snapshot("db", name, force=True)
        held = found
    print(f"{done} restored, {undone} as before")
