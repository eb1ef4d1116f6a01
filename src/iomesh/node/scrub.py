"""Scrub: every sealed segment of every device is read at a trickle, again and again, and compared with its checksums (ext/scrub.pyx)."""

from __future__ import annotations

import asyncio
import time
import uuid

from iomesh.errors import IomeshError, NotFound
from iomesh.node.config import ScrubConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.stores import OpenStore, Stores

log = logger("scrub")

BLOCK_BYTES = 4096
LOOK_SECONDS = 1.0  # between two looks whether a pass is due


class Scrub:
    """A task that goes over the devices, one segment of each at a time."""

    def __init__(self, config: ScrubConfig, engine: NodeEngine, stores: Stores) -> None:
        self._config = config
        self._engine = engine
        self._stores = stores
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._config.enabled:
            self._task = asyncio.create_task(self._run(), name="scrub")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            due = [store for store in self._stores.online() if self._is_due(store)]
            await asyncio.gather(*(self._pass_over(store) for store in due))
            await asyncio.sleep(LOOK_SECONDS)

    def _is_due(self, store: OpenStore) -> bool:
        return time.time_ns() >= store.scrub.ended_ns + self._config.interval_seconds * 1e9

    async def _pass_over(self, store: OpenStore) -> None:
        progress = store.scrub
        try:
            sealed = await self._engine.sealed(store.number)
            rows = sorted((bytes(row["volume"]), int(row["segment"]), int(row["blocks"])) for row in sealed)
            there = {(volume, segment) for volume, segment, _ in rows}
            progress.damaged = {which: blocks for which, blocks in progress.damaged.items() if which in there}
            progress.begin(sum(blocks for *_, blocks in rows) * BLOCK_BYTES)
            for volume, segment, blocks in rows:
                await self._verify(store, volume, segment)
                progress.done_bytes += blocks * BLOCK_BYTES
            if rows:
                progress.end(time.time_ns())
                log.info("pass complete", device=str(store.record.id), segments=len(rows), damaged_blocks=progress.damaged_blocks)
        except IomeshError as error:  # the device is being closed, or fails: that is told elsewhere
            log.info("pass interrupted", device=str(store.record.id), reason=error.message)

    async def _verify(self, store: OpenStore, volume: bytes, segment: int) -> None:
        progress = store.scrub
        try:
            told = await self._engine.scrub(store.number, uuid.UUID(bytes=volume), segment, bytes_per_second=self._config.bytes_per_second)
        except NotFound:  # it was compacted or deleted meanwhile: the next pass sees what there is then
            progress.damaged.pop((volume, segment), None)
            return
        progress.verified_bytes += told["blocks"] * BLOCK_BYTES
        if not told["damaged"]:
            progress.damaged.pop((volume, segment), None)
            return
        if progress.damaged.get((volume, segment)) != told["damaged"]:
            log.error(
                "damage found",
                device=str(store.record.id),
                path=store.record.path,
                volume=str(uuid.UUID(bytes=volume)),
                segment=segment,
                blocks=told["damaged"],
                first_block=told["first_damaged"],
            )
        progress.damaged[volume, segment] = told["damaged"]
