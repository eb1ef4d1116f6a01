"""Space by purpose: the numbers always add up, and equal those of a walk over every block."""

import asyncio
import random
from pathlib import Path

import pytest

from support.bench import BLOCK, Bench

MAPPED = ("exclusive_bytes", "shared_bytes", "inherited_bytes")
LIVE = ("exclusive_bytes", "shared_bytes", "snapshots_bytes", "pinned_bytes", "map_bytes")
PHYSICAL = (*LIVE, "log_bytes", "ahead_bytes", "dead_bytes")


async def space(bench: Bench) -> dict[str, int]:
    """Space figures; they must add up."""
    lived = bench.engine.volume_state(bench.volume)["live_blocks"] * BLOCK
    told: dict[str, int] = await bench.engine.space(bench.volume)
    live = bench.engine.volume_state(bench.volume)["live_blocks"] * BLOCK
    assert sum(told[name] for name in MAPPED) == told["mapped_bytes"], told
    assert sum(told[name] for name in PHYSICAL) == told["physical_bytes"], told
    if live == lived:  # no deleted snapshot was freed meanwhile, and no checkpoint wrote nodes
        assert sum(told[name] for name in LIVE) == live, told
    assert told["mapped_bytes"] == len(bench.held) * BLOCK, told
    assert min(told.values()) >= 0, told
    return told


async def given_back(bench: Bench) -> None:
    """Deletes all snapshots and waits until their space is free."""
    async with asyncio.timeout(300):
        while await bench.snapshots():
            await bench.engine.checkpoint(bench.volume)
    await bench.check()


async def test_what_is_shared_and_what_only_snapshots_hold(room: Path) -> None:
    bench = Bench(room, random.Random(1))
    await bench.format(256 << 20)
    async with bench.served() as connection:
        await connection.write(0, bytes([1]) * 100 * BLOCK)
        bench.held = dict.fromkeys(range(100), 1)
        told = await space(bench)
        assert (told["exclusive_bytes"], told["shared_bytes"], told["snapshots_bytes"]) == (100 * BLOCK, 0, 0)
        first = await bench.snapshot("first")
        told = await space(bench)
        assert (told["exclusive_bytes"], told["shared_bytes"], told["snapshots_bytes"]) == (0, 100 * BLOCK, 0)
        await connection.write(0, bytes([2]) * 30 * BLOCK)
        await connection.trim(90 * BLOCK, 10 * BLOCK)
        bench.held = dict.fromkeys(range(90), 2)
        told = await space(bench)
        assert (told["exclusive_bytes"], told["shared_bytes"], told["snapshots_bytes"]) == (
            30 * BLOCK,
            60 * BLOCK,
            40 * BLOCK,
        )
        second = await bench.snapshot("second")
        # 10 that only the second has, and 10 shared by both.
        await connection.write(20 * BLOCK, bytes([3]) * 20 * BLOCK)
        told = await space(bench)
        assert (told["exclusive_bytes"], told["shared_bytes"], told["snapshots_bytes"]) == (
            20 * BLOCK,
            70 * BLOCK,
            60 * BLOCK,
        )
        await bench.delete(first)
        async with asyncio.timeout(300):
            while "first" in await bench.snapshots():
                await bench.engine.checkpoint(bench.volume)
        told = await space(bench)
        assert (told["exclusive_bytes"], told["shared_bytes"], told["snapshots_bytes"]) == (
            20 * BLOCK,
            70 * BLOCK,
            20 * BLOCK,
        )
        await bench.delete(second)
        await given_back(bench)
        told = await space(bench)
        assert (told["exclusive_bytes"], told["shared_bytes"], told["snapshots_bytes"]) == (90 * BLOCK, 0, 0)
        assert told["dead_bytes"] >= 70 * BLOCK
        await bench.check()
    async with bench.served():
        assert (await space(bench))["exclusive_bytes"] == 90 * BLOCK, "as it was before the crash"


@pytest.mark.parametrize("seed", range(4))
async def test_a_life_of_snapshots_restores_and_crashes(room: Path, seed: int) -> None:
    """In any order, with deletions in progress at a crash; the checkpoint's counts equal those of a walk."""
    draw = random.Random(seed)
    bench = Bench(room, draw)
    await bench.format(512 << 20)
    kept: dict[bytes, dict[int, int]] = {}
    async with bench.served() as connection:
        await bench.write(connection, 400)
    for _ in range(4):
        async with bench.running():
            await space(bench)
            for number in range(6):
                match draw.choice(
                    ["write", "write", "snapshot", "snapshot", "delete", "restore", "checkpoint", "clean"]
                ):
                    case "write":
                        async with bench.connected() as connection:
                            await bench.write(connection, 400)
                    case "snapshot":
                        kept[await bench.snapshot(f"{bench.epoch}-{number}")] = dict(bench.held)
                    case "delete" if kept:
                        identity = draw.choice(list(kept))
                        del kept[identity]
                        await bench.delete(identity)
                    case "restore" if kept:
                        identity = draw.choice(list(kept))
                        discard = draw.random() < 0.5
                        before = await bench.restore(identity, f"before-{bench.epoch}-{number}", discard=discard)
                        if not discard:
                            kept[before] = dict(bench.held)
                        bench.held = dict(kept[identity])
                    case "checkpoint":
                        await bench.check()
                    case "clean":
                        await bench.clean()
                await space(bench)
    async with bench.served() as connection:
        await bench.compare(connection)
        await bench.check()
        await space(bench)
        for identity in kept:
            await bench.delete(identity)
        await given_back(bench)
        told = await space(bench)
        assert told["shared_bytes"] == told["snapshots_bytes"] == 0, "nothing is shared with nobody"
