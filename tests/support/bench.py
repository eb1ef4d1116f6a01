"""A volume on a device and the engine that serves it, without a daemon. The test controls when the metadata service
answers.

Stopping the engine is a crash for its volume.
"""

import asyncio
import os
import random
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from iomesh.engine.engine import Event, Pointer
from iomesh.metadata.records import promised_from
from iomesh.node.config import EngineConfig
from iomesh.node.engine import NodeEngine, Outcome
from support.nbd import Connection
from support.trees import Walked, check

BLOCK = 4096
VOLUME = 16 << 40
LEVELS = 5


class Bench:
    """A device, a volume on it, and the engine that serves it."""

    def __init__(self, room: Path, draw: random.Random) -> None:
        self.draw = draw
        self.volume = uuid.UUID(int=draw.getrandbits(128))
        self.cluster = uuid.UUID(int=draw.getrandbits(128))
        self.path = room / "device"
        self.pointer: Pointer | None = None
        self.epoch = 0
        self.promised = 0  # the highest segment number
        self.answers = True  # whether the metadata service answers at once
        self.unanswered: list[Event] = []
        self.asked = asyncio.Event()  # set when the metadata service is called
        self.held: dict[int, int] = {}
        self.stamp = 0

    def on_event(self, event: Event) -> None:
        if event.kind == "checkpoint":
            self.unanswered.append(event)
            self.asked.set()
            if self.answers:
                self.answer()
        elif event.kind == "numbers":
            self.promised = max(self.promised, promised_from(event.value["next_segment"]))
            self.engine.checkpoint_moved(self.volume, 0, Outcome.DONE, promised=self.promised)

    def answer(self) -> None:
        for event in self.unanswered:
            self.pointer = event.value["pointer"]
            self.promised = max(self.promised, promised_from(event.value["next_segment"]))
            self.engine.checkpoint_moved(self.volume, event.value["sequence"], Outcome.DONE, promised=self.promised)
        self.unanswered.clear()

    async def format(self, size_bytes: int) -> None:
        with self.path.open("wb") as file:
            file.truncate(size_bytes)
        engine = NodeEngine(EngineConfig(map_cache_bytes=1 << 20, register_buffers=False), self.on_event)
        await engine.start()
        descriptor = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        device = uuid.UUID(int=self.draw.getrandbits(128))
        await engine.format_store(
            descriptor, cluster=self.cluster, device=device, size_bytes=size_bytes, tier="nvme", label="bench"
        )
        await engine.stop()
        os.close(descriptor)

    @asynccontextmanager
    async def served(self, *, checkpoint_bytes: int = 1 << 30) -> AsyncIterator[Connection]:
        """The volume, recovered and served; it ends with a crash."""
        async with self.running(checkpoint_bytes=checkpoint_bytes), self.connected() as connection:
            yield connection

    @asynccontextmanager
    async def running(self, *, checkpoint_bytes: int = 1 << 30) -> AsyncIterator[None]:
        """The volume, recovered and without a connection; it ends with a crash."""
        config = EngineConfig(map_cache_bytes=1 << 20, checkpoint_bytes=checkpoint_bytes, register_buffers=False)
        self.engine = NodeEngine(config, self.on_event)
        await self.engine.start()
        descriptor = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.epoch += 1
        first_segment = self.promised + 1
        self.promised = promised_from(first_segment)
        await self.engine.open_store(descriptor, cluster=self.cluster, volatile_cache=False)
        await self.engine.open_volume(
            self.volume,
            size_bytes=VOLUME,
            epoch=self.epoch,
            segment_bytes=2 << 20,
            checkpoint=self.pointer,
            first_segment=first_segment,
            promised=self.promised,
            name="bench",
            window_seconds=0,
            replicas=1,
            fragments=[],
            first_fragment=1,
        )
        try:
            yield
        finally:
            await self.engine.stop()
            os.close(descriptor)
            self.unanswered.clear()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        ours, theirs = socket.socketpair()
        serving = asyncio.ensure_future(
            self.engine.serve_nbd(self.volume, theirs.detach(), structured=False, context_id=None, read_only=False)
        )
        connection = await Connection.over(ours)
        try:
            yield connection
            await connection.close()
            await serving
        finally:
            serving.cancel()

    def some_block(self, worker: int) -> int:
        """A random block that only this worker writes."""
        return self.draw.randrange(2 ** self.draw.choice((12, 18, 24, 32))) // 8 * 8 + worker

    async def write(self, connection: Connection, times: int) -> None:
        """Eight workers write at random; one operation in eight is a trim."""

        async def work(worker: int) -> None:
            mine: list[int] = []
            for _ in range(times // 8):
                self.stamp += 1
                block, stamp = (
                    self.draw.choice(mine) if mine and self.draw.random() < 0.4 else self.some_block(worker),
                    self.stamp,
                )
                mine.append(block)
                if stamp % 8:
                    await connection.write(block * BLOCK, stamp.to_bytes(8, "little") * 512)
                    self.held[block] = stamp
                else:
                    await connection.trim(block * BLOCK, BLOCK)
                    self.held.pop(block, None)

        async with asyncio.timeout(600):
            await asyncio.gather(*(work(worker) for worker in range(8)))

    async def compare(self, connection: Connection, held: dict[int, int] | None = None) -> None:
        for block, stamp in (self.held if held is None else held).items():
            data = await connection.read(block * BLOCK, BLOCK)
            assert data == stamp.to_bytes(8, "little") * 512, (
                f"block {block}: {int.from_bytes(data[:8], 'little')} instead of {stamp}"
            )

    async def ask(self, ask: Callable[[Any], int]) -> Any:
        """Calls a method of the engine's internal interface."""
        return await self.engine._answer(ask(self.engine._engine), "ask")

    async def snapshot(self, name: str) -> bytes:
        identity = self.draw.randbytes(16)
        made = await self.ask(lambda engine: engine.create_snapshots([(self.volume.bytes, identity, name)]))
        assert [one["id"] for one in made["snapshots"]] == [identity]
        return identity

    async def restore(self, snapshot: bytes, name: str, *, discard: bool = False, force: bool = False) -> bytes:
        """Returns the id of the snapshot of the state before."""
        before = self.draw.randbytes(16)
        await self.ask(
            lambda engine: engine.restore_volume(
                self.volume.bytes, snapshot, before=before, name=name, discard=discard, force=force
            )
        )
        return before

    async def clean(self) -> dict[str, int]:
        """Cleans every segment that can be cleaned."""
        rows = await self.ask(lambda engine: engine.segments(self.volume.bytes))
        wanted = rows["segment"][rows["flags"] & 1 != 0]
        cleaned: dict[str, int] = await self.ask(lambda engine: engine.clean(self.volume.bytes, wanted))
        return cleaned

    async def snapshots(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in await self.ask(lambda engine: engine.list_snapshots(self.volume.bytes))}

    async def delete(self, identity: bytes) -> bool:
        """Returns whether the snapshot is only hidden."""
        answer = await self.ask(lambda engine: engine.delete_snapshot(self.volume.bytes, identity))
        return bool(answer["hidden"])

    @asynccontextmanager
    async def reading(self, identity: bytes) -> AsyncIterator[Connection]:
        """A snapshot, served read-only."""
        await self.ask(lambda engine: engine.open_snapshot(self.volume.bytes, identity))
        ours, theirs = socket.socketpair()
        serving = asyncio.ensure_future(
            self.engine.serve_nbd(
                uuid.UUID(bytes=identity), theirs.detach(), structured=False, context_id=None, read_only=True
            )
        )
        connection = await Connection.over(ours)
        yield connection
        await connection.close()
        await serving
        await self.ask(lambda engine: engine.close_snapshot(identity))

    async def check(self) -> Walked:
        """Write a checkpoint and compare its counts with a walk of the trees."""
        await self.engine.checkpoint(self.volume)
        assert self.pointer is not None
        return check(str(self.path), self.volume.bytes, self.pointer)

    def blocks_in_use(self) -> int:
        """Mapped blocks, and all map nodes above them."""
        return len(self.held) + sum(len({block >> 8 * (level + 1) for block in self.held}) for level in range(LEVELS))
