"""Checkpoints of the engine, without a daemon: exact under concurrent writes, and they never block writes."""

import asyncio
import random
from pathlib import Path

import pytest

from iomesh.node.engine import counters_by_name
from support.bench import BLOCK, Bench


@pytest.fixture
async def bench(room: Path, draw: random.Random) -> Bench:
    made = Bench(room, draw)
    await made.format(4 << 30)
    return made


async def test_writes_go_on_while_the_metadata_service_does_not_answer(bench: Bench) -> None:
    """Many times the map cache's size is written while a checkpoint waits for the metadata service."""
    async with bench.served() as connection:
        await bench.write(connection, 400)
        bench.answers = False
        bench.asked.clear()
        waiting = asyncio.ensure_future(bench.engine.checkpoint(bench.volume))
        await asyncio.wait_for(bench.asked.wait(), 300)
        await bench.write(connection, 4000)
        await bench.compare(connection)
        assert not waiting.done(), "a checkpoint counts only when the metadata service says so"
        bench.answers = True
        bench.answer()
        await waiting
        assert bench.engine.reactor_state(0)["map_misses"] > 1000, "the map fitted into its cache: this shows nothing"
    async with bench.served() as connection:
        await bench.compare(connection)


async def test_checkpoints_are_exact_while_everything_changes(bench: Bench) -> None:
    """The live blocks that recovery counts, from a checkpoint and the log after it, are exact wherever the crash is."""
    for _ in range(4):
        async with bench.served(checkpoint_bytes=1 << 20) as connection:
            await bench.compare(connection)
            await bench.write(connection, bench.draw.randint(800, 2000))
            moved = counters_by_name(bench.engine.counters(bench.volume))["checkpoints"]
            assert moved > 0
        async with bench.served() as connection:
            await bench.engine.checkpoint(bench.volume)
            assert bench.engine.volume_state(bench.volume)["live_blocks"] == bench.blocks_in_use()
            await bench.compare(connection)


async def test_nothing_is_left_of_a_map_that_empties(bench: Bench) -> None:
    async with bench.served() as connection:
        await bench.write(connection, 400)
        await bench.engine.checkpoint(bench.volume)
        for block in list(bench.held):
            await connection.trim(block * BLOCK, BLOCK)
        bench.held.clear()
        await bench.engine.checkpoint(bench.volume)
        state = bench.engine.volume_state(bench.volume)
        assert (state["live_blocks"], state["map_root"]) == (0, None)
    async with bench.served() as connection:
        assert bench.engine.volume_state(bench.volume)["live_blocks"] == 0
        assert await connection.read(0, BLOCK) == bytes(BLOCK)
