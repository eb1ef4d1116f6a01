"""Checkpoints of the engine itself, without a daemon around it: exact whatever is written meanwhile, and in nobody's way.

The metadata service is this test: it answers when it likes. An engine that is stopped has crashed, as far as its volume can tell.
"""

import asyncio
import os
import random
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iomesh.engine.engine import Event, Pointer
from iomesh.node.config import EngineConfig
from iomesh.node.engine import NodeEngine, counters_by_name
from support.nbd import Connection

BLOCK = 4096
VOLUME = 16 << 40
LEVELS = 5


class Bench:
    """A device, a volume on it, and the engine that serves it now."""

    def __init__(self, room: Path, draw: random.Random) -> None:
        self.draw = draw
        self.volume = uuid.UUID(int=draw.getrandbits(128))
        self.cluster = uuid.UUID(int=draw.getrandbits(128))
        self.path = room / "device"
        self.pointer: Pointer | None = None
        self.epoch = 0
        self.answers = True  # whether the metadata service does
        self.unanswered: list[Event] = []
        self.asked = asyncio.Event()  # the metadata service was
        self.held: dict[int, int] = {}
        self.stamp = 0

    def on_event(self, event: Event) -> None:
        if event.kind == "checkpoint":
            self.unanswered.append(event)
            self.asked.set()
            if self.answers:
                self.answer()

    def answer(self) -> None:
        for event in self.unanswered:
            self.pointer = event.value["pointer"]
            self.engine.checkpoint_moved(self.volume, event.value["sequence"], moved=True)
        self.unanswered.clear()

    async def format(self, size_bytes: int) -> None:
        with self.path.open("wb") as file:
            file.truncate(size_bytes)
        engine = NodeEngine(EngineConfig(map_cache_bytes=1 << 20, register_buffers=False), self.on_event)
        engine.start()
        descriptor = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        device = uuid.UUID(int=self.draw.getrandbits(128))
        await engine.format_store(descriptor, cluster=self.cluster, device=device, size_bytes=size_bytes, tier="nvme", label="bench")
        engine.stop()
        os.close(descriptor)

    @asynccontextmanager
    async def served(self, *, checkpoint_bytes: int = 1 << 30) -> AsyncIterator[Connection]:
        """The volume recovered and served; ends as a crash does."""
        config = EngineConfig(map_cache_bytes=1 << 20, checkpoint_bytes=checkpoint_bytes, register_buffers=False)
        self.engine = NodeEngine(config, self.on_event)
        self.engine.start()
        descriptor = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.epoch += 1
        await self.engine.open_store(descriptor, cluster=self.cluster, volatile_cache=False)
        await self.engine.open_volume(self.volume, size_bytes=VOLUME, epoch=self.epoch, segment_bytes=2 << 20, checkpoint=self.pointer)
        ours, theirs = socket.socketpair()
        serving = asyncio.ensure_future(
            self.engine.serve_nbd(self.volume, theirs.detach(), structured=False, allocation_context=None, read_only=False)
        )
        connection = await Connection.over(ours)
        try:
            yield connection
            await connection.close()
            await serving
        finally:
            serving.cancel()
            self.engine.stop()
            os.close(descriptor)
            self.unanswered.clear()

    def some_block(self, worker: int) -> int:
        """Of this worker alone, here and there in the volume."""
        return self.draw.randrange(2 ** self.draw.choice((12, 18, 24, 32))) // 8 * 8 + worker

    async def write(self, connection: Connection, times: int) -> None:
        """By eight workers; one operation in eight is a trim."""

        async def work(worker: int) -> None:
            mine: list[int] = []
            for _ in range(times // 8):
                self.stamp += 1
                block, stamp = self.draw.choice(mine) if mine and self.draw.random() < 0.4 else self.some_block(worker), self.stamp
                mine.append(block)
                if stamp % 8:
                    await connection.write(block * BLOCK, stamp.to_bytes(8, "little") * 512)
                    self.held[block] = stamp
                else:
                    await connection.trim(block * BLOCK, BLOCK)
                    self.held.pop(block, None)

        async with asyncio.timeout(120):
            await asyncio.gather(*(work(worker) for worker in range(8)))

    async def compare(self, connection: Connection) -> None:
        for block, stamp in self.held.items():
            data = await connection.read(block * BLOCK, BLOCK)
            assert data == stamp.to_bytes(8, "little") * 512, f"block {block}: {int.from_bytes(data[:8], 'little')} instead of {stamp}"

    def blocks_in_use(self) -> int:
        """What is mapped, and every node of the tree above it."""
        return len(self.held) + sum(len({block >> 8 * (level + 1) for block in self.held}) for level in range(LEVELS))


@pytest.fixture
async def bench(room: Path, draw: random.Random) -> Bench:
    made = Bench(room, draw)
    await made.format(4 << 30)
    return made


async def test_writes_go_on_while_the_metadata_service_does_not_answer(bench: Bench) -> None:
    """Many times what the map's cache holds is written while a checkpoint waits to be moved."""
    async with bench.served() as connection:
        await bench.write(connection, 400)
        bench.answers = False
        bench.asked.clear()
        waiting = asyncio.ensure_future(bench.engine.checkpoint(bench.volume))
        await asyncio.wait_for(bench.asked.wait(), 60)
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
    """What recovery counts as alive, from a checkpoint's counters and the log behind it, is what is alive; whenever the crash comes."""
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
