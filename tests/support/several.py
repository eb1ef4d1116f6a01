"""Several volumes on several devices, served by one engine with one or more reactors in this process.

Stopping the engine is a crash for its volumes. The metadata service answers at once.
"""

import asyncio
import os
import random
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iomesh.engine.engine import Event, Pointer
from iomesh.metadata.records import promised_from
from iomesh.node.config import EngineConfig
from iomesh.node.engine import NodeEngine, Outcome
from support.load import Load
from support.model import Model
from support.nbd import Connection

DEVICE = 256 << 20
SEGMENT = 2 << 20
PIECE = 1 << 20


@dataclass
class Served:
    """A volume, and what the metadata service knows of it."""

    size: int
    model: Model
    id: uuid.UUID
    epoch: int = 0
    pointer: Pointer | None = None
    promised: int = 0  # the highest segment number
    clone_of: tuple[uuid.UUID, uuid.UUID] | None = None
    serving: list[asyncio.Future[Any]] = field(default_factory=list)


class Several:
    def __init__(
        self, room: Path, draw: random.Random, *, reactors: int, devices: int, volumes: int, size: int
    ) -> None:
        self.draw = draw
        self.reactors = reactors
        self.paths = [room / f"device{number}" for number in range(devices)]
        self.cluster = self.new_id()
        self.volumes = [Served(size, Model(size), self.new_id()) for _ in range(volumes)]
        self.clones: list[Served] = []
        self.stores: list[int] = []

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self.draw.getrandbits(128))

    def on_event(self, event: Event) -> None:
        if event.kind not in ("checkpoint", "numbers"):
            return
        (volume,) = (one for one in self.volumes + self.clones if one.id.bytes == event.volume)
        volume.promised = max(volume.promised, promised_from(event.value["next_segment"]))
        if event.kind == "checkpoint":
            volume.pointer = event.value["pointer"]
        sequence = event.value.get("sequence", 0)
        self.engine.checkpoint_moved(volume.id, sequence, Outcome.DONE, promised=volume.promised)

    async def format(self) -> None:
        async with self.engine_on(self.paths, create=True) as descriptors:
            for number, descriptor in enumerate(descriptors):
                await self.engine.format_store(
                    descriptor,
                    cluster=self.cluster,
                    device=self.new_id(),
                    size_bytes=DEVICE,
                    tier="nvme",
                    label=f"device{number}",
                )

    @asynccontextmanager
    async def engine_on(self, paths: list[Path], *, create: bool = False) -> AsyncIterator[list[int]]:
        if create:
            for path in paths:
                path.touch()
                os.truncate(path, DEVICE)
        config = EngineConfig(
            reactors=self.reactors,
            map_cache_bytes=self.reactors << 20,
            checkpoint_bytes=4 << 20,
            register_buffers=False,
        )
        self.engine = NodeEngine(config, self.on_event)
        await self.engine.start()
        descriptors = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths]
        try:
            yield descriptors
        finally:
            await self.engine.stop()
            for descriptor in descriptors:
                os.close(descriptor)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All devices and volumes, open; it ends with a crash."""
        async with self.engine_on(self.paths) as descriptors:
            opened = [
                await self.engine.open_store(descriptor, cluster=self.cluster, volatile_cache=True)
                for descriptor in descriptors
            ]
            self.stores = [store["store"] for store in opened]
            await asyncio.gather(*(self.open(volume) for volume in self.volumes))
            yield

    async def open(self, volume: Served) -> int:
        """Returns the number of the volume's reactor."""
        volume.epoch += 1
        first_segment = volume.promised + 1
        volume.promised = promised_from(first_segment)
        volume.serving = []
        opened = await self.engine.open_volume(
            volume.id,
            size_bytes=volume.size,
            epoch=volume.epoch,
            segment_bytes=SEGMENT,
            checkpoint=volume.pointer,
            first_segment=first_segment,
            promised=volume.promised,
            clone_of=volume.clone_of,
            name=str(volume.id),
            window_seconds=0,
            replicas=1,
            fragments=[],
            first_fragment=1,
        )
        return int(opened["reactor"])

    def reactor_of(self, volume: Served) -> int:
        return int(self.engine.volume_state(volume.id)["reactor"])

    async def connect(self, volume: Served) -> Connection:
        connection, serving = await self._connect(volume.id, read_only=False)
        volume.serving.append(serving)
        return connection

    async def _connect(self, identity: uuid.UUID, *, read_only: bool) -> tuple[Connection, asyncio.Future[Any]]:
        ours, serving = self._serve(identity, read_only=read_only)
        return await Connection.over(ours), serving

    def serve(self, identity: uuid.UUID) -> socket.socket:
        """A connected socket on which the volume is served; past the handshake."""
        return self._serve(identity, read_only=False)[0]

    def _serve(self, identity: uuid.UUID, *, read_only: bool) -> tuple[socket.socket, asyncio.Future[Any]]:
        ours, theirs = socket.socketpair()
        serving = asyncio.ensure_future(
            self.engine.serve_nbd(identity, theirs.detach(), structured=False, context_id=None, read_only=read_only)
        )
        serving.add_done_callback(asyncio.Future.exception)  # a crash of the engine is none of the test's faults
        return ours, serving

    async def ask(self, ask: Callable[[Any], int]) -> Any:
        """Calls a method of the engine's internal interface."""
        return await self.engine._answer(ask(self.engine._engine), "ask")

    async def clean(self, volume: Served) -> None:
        """Cleans every segment that can be cleaned."""
        rows = await self.engine.segments(volume.id)
        await self.engine.clean(volume.id, rows["segment"][rows["flags"] & 1 != 0], bytes_per_second=0)

    async def snapshot(self, volumes: list[Served], name: str) -> list[uuid.UUID]:
        """Of all these volumes at one instant; returns the snapshots' ids in the volumes' order."""
        ids = [self.new_id() for _ in volumes]
        await self.engine.create_snapshots([(one.id, id, name) for one, id in zip(volumes, ids, strict=True)])
        return ids

    async def read_snapshot(self, volume: Served, snapshot: uuid.UUID, length: int) -> bytes:
        """The first bytes of a snapshot."""
        await self.engine.open_snapshot(volume.id, snapshot)
        connection, serving = await self._connect(snapshot, read_only=True)
        data = await connection.read(0, length)
        await connection.close()
        await serving
        await self.engine.close_snapshot(snapshot)
        return data

    async def read(self, volume: Served) -> bytes:
        connection = await self.connect(volume)
        pieces = [await connection.read(offset, PIECE) for offset in range(0, volume.size, PIECE)]
        await connection.close()
        return b"".join(pieces)

    async def compare(self) -> None:
        """Every volume holds what was acknowledged; each other request is applied or not, block by block."""
        for volume in self.volumes:
            volume.model.settle_with(await self.read(volume))


class LoadOn(Load):
    """A load on a volume of Several. The engine's crash ends it."""

    def __init__(self, several: Several, volume: Served, seed: int, **options: Any) -> None:
        super().__init__("", volume.model, seed, **options)
        self._several, self._volume = several, volume

    async def _connect(self, number: int) -> Connection:
        return await self._several.connect(self._volume)
