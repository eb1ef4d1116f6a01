"""The cleaner's clock: looks at every volume's segment table, lets the policy choose, and has the engine clean what it chose.

When space runs out writes wait for the cleaner (Engine.expect_space) as long as it finds something worth cleaning; only when there is
no dead space any more do they get ENOSPC.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field

import numpy as np

from iomesh.errors import IomeshError
from iomesh.node.config import CleaningConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.stores import Stores
from iomesh.node.volume import OpenVolume, Registry
from iomesh.policies.cleaning import CLEANABLE, REST_SHARE, Need, Rest, Space, choose, freed_slabs, straggles

log = logger("cleaning")

LOOK_SECONDS = 1.0  # between two looks while there is plenty
SOON_SECONDS = 0.1
CHECKPOINT_SECONDS = 2.0  # between two checkpoints that are asked for to get at dead segments
AT_ONCE = 16  # segments that are asked for in one go when it is urgent
AT_REST = 8
HOPE_MILLISECONDS = 2000  # writes wait so long for what was found, and for longer when more is
SLAB_BYTES = 256 << 10
WORTH_SEGMENTS = 2  # of dead space are worth waiting for


@dataclass
class Cleaned:
    """What came of it, since the volume was opened."""

    rest: Rest = field(default_factory=Rest)
    need: Need = Need.NONE
    chosen: int = 0
    compacted: int = 0
    evacuated: int = 0
    skipped: int = 0
    failed: int = 0
    freed_bytes: int = 0
    checkpoint_at: float = 0.0


class Cleaning:
    def __init__(self, config: CleaningConfig, engine: NodeEngine, stores: Stores, volumes: Registry) -> None:
        self._config = config
        self._engine = engine
        self._stores = stores
        self._volumes = volumes
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.cleaned: dict[uuid.UUID, Cleaned] = {}

    async def start(self) -> None:
        if self._config.enabled:
            self._task = asyncio.create_task(self._run(), name="cleaning")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def wake(self) -> None:
        """Space has run out: look now."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                need = await self._look()
            except IomeshError as error:  # a volume was closed meanwhile, or its device fails: that is told elsewhere
                log.info("cleaning interrupted", reason=error.message)
                need = Need.NONE
            if need == Need.URGENT:
                continue
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), SOON_SECONDS if need == Need.SOON else LOOK_SECONDS)
            except TimeoutError:
                continue

    async def _look(self) -> Need:
        """One round over all volumes; how soon the next one is needed."""
        volumes = [volume for volume in self._volumes.values() if volume.in_engine]
        identities = {volume.record.id for volume in volumes}
        self.cleaned = {identity: cleaned for identity, cleaned in self.cleaned.items() if identity in identities}
        needs = await asyncio.gather(*(self._clean(volume) for volume in volumes))
        return max(needs, default=Need.NONE)

    async def _clean(self, volume: OpenVolume) -> Need:
        """One round of one volume. NONE when nothing can be done for it, whatever it needs."""
        identity = volume.record.id
        cleaned = self.cleaned.setdefault(identity, Cleaned())
        table = await self._engine.segments(identity)
        if not len(table):
            return Need.NONE
        segment_slabs = volume.record.segment_bytes // SLAB_BYTES
        cleaned.need = min(Space(*store).need(segment_slabs) for store in self._stores.slabs())  # of several, the log takes the emptiest
        now = time.monotonic()
        rested = cleaned.rest.look(table, now) >= self._config.rest_seconds
        newest = int(table["segment"].max())
        worth = freed_slabs(table)
        at_rest = rested & ((worth >= REST_SHARE * np.maximum(table["slabs"], 1)) | straggles(table))
        urgent = cleaned.need == Need.URGENT
        chosen = choose(table, np.ones(len(table), np.bool_) if urgent else at_rest, newest, AT_ONCE if urgent else AT_REST)
        if urgent and worth.sum() >= WORTH_SEGMENTS * segment_slabs:
            await self._engine.expect_space(identity, HOPE_MILLISECONDS)
        cleanable = table["flags"] & CLEANABLE > 0
        behind_checkpoint = worth[~cleanable if urgent else at_rest & ~cleanable].sum()
        if behind_checkpoint >= WORTH_SEGMENTS * segment_slabs:
            await self._write_checkpoint(volume, cleaned, now)
        if not len(chosen):
            return min(cleaned.need, Need.SOON)
        told = await self._engine.clean(identity, chosen)
        cleaned.chosen += len(chosen)
        cleaned.compacted += told["compacted"]
        cleaned.evacuated += told["evacuated"]
        cleaned.skipped += told["skipped"]
        cleaned.failed += told["failed"]
        cleaned.freed_bytes += told["freed_bytes"]
        if told["failed"]:
            log.warning("segments not cleaned", volume=volume.record.name, segments=told["failed"], error=told["error"])
        progress = told["compacted"] + told["evacuated"] > 0
        return max(cleaned.need, Need.SOON) if progress else min(cleaned.need, Need.SOON)

    async def _write_checkpoint(self, volume: OpenVolume, cleaned: Cleaned, now: float) -> None:
        """What is dead as a whole goes with it, and what is older than it can be cleaned."""
        state = self._engine.volume_state(volume.record.id)
        pause = CHECKPOINT_SECONDS / 8 if cleaned.need == Need.URGENT else CHECKPOINT_SECONDS
        if state["committed"] > state["checkpoint_sequence"] and now - cleaned.checkpoint_at >= pause:
            cleaned.checkpoint_at = now
            await self._engine.checkpoint(volume.record.id)
