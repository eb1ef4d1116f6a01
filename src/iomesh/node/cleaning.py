"""The cleaner's clock: looks at every volume's segment table, lets the policy choose, and has the engine clean what it chose.

When space runs out writes wait for the cleaner (Engine.expect_space) as long as it finds something worth cleaning, in whichever volume;
only when there is no dead space any more do they get ENOSPC. Volumes share their devices: all are cleaned for the one that needs most.
While there is plenty, cleaning keeps to a pace and gives way to users (ext/store/token_bucket.pyx).
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from iomesh.engine import engine as compiled
from iomesh.errors import InUse, IomeshError
from iomesh.metadata import MetadataUnavailable
from iomesh.node.config import CleaningConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.stores import Stores
from iomesh.node.supervisor import BackgroundTask, Supervisor, end_all, settle
from iomesh.node.volume import OpenVolume, Registry
from iomesh.node.windows import Windows
from iomesh.policies.cleaning import CLEANABLE, REST_SHARE, Memory, Need, choose, freed_blocks, kept_blocks, straggles

log = logger("cleaning")

LOOK_SECONDS = 1.0  # between two looks while there is plenty
SOON_SECONDS = 0.1
CHECKPOINT_SECONDS = 0.5  # between two checkpoints that are asked for to get at dead segments while there is nothing else to clean
CHECKPOINT_SEGMENTS = 64  # of log between two while there is
AT_ONCE = 8  # segments that are asked for in one go; in haste the next go is asked for before the last has ended
HOPE_MILLISECONDS = 2000  # writes wait so long for what was found, and for longer when more is
WORTH_SEGMENTS = 2  # of dead space are worth waiting for: as much as open segments may look like, which have still to be written


@dataclass
class Cleaned:
    """What came of it, since the volume was opened."""

    memory: Memory = field(default_factory=Memory)
    need: Need = Need.NONE
    spare_blocks: float = 0.0  # that cleaning would give back, beyond WORTH_SEGMENTS
    kept_blocks: float = 0.0  # that a shorter restore window would
    chosen: int = 0
    compacted: int = 0
    evacuated: int = 0
    skipped: int = 0
    failed: int = 0
    freed_bytes: int = 0
    checkpoint_at: float = 0.0
    in_hand: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))  # the segments asked for last
    under_way: asyncio.Task[bool] | None = None  # that they are cleaned


class Cleaning:
    def __init__(
        self, config: CleaningConfig, engine: NodeEngine, stores: Stores, volumes: Registry, windows: Windows, supervisor: Supervisor
    ) -> None:
        self._config = config
        self._engine = engine
        self._stores = stores
        self._volumes = volumes
        self._windows = windows
        self._supervisor = supervisor
        self._wake = asyncio.Event()
        self._task: BackgroundTask | None = None
        self.cleaned: dict[uuid.UUID, Cleaned] = {}

    async def start(self) -> None:
        if self._config.enabled:
            self._task = self._supervisor.start("cleaning", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            await end_all(cleaned.under_way for cleaned in self.cleaned.values() if cleaned.under_way is not None)
            self._task = None

    def wake(self) -> None:
        """Space is tight, and there is less of it: look now."""
        self._wake.set()

    def hurry(self) -> None:
        """Space has run out: look now, and what is being cleaned at leisure is hurried."""
        self._engine.hurry_cleaning()
        self._wake.set()

    async def _run(self, task: BackgroundTask) -> None:
        while True:
            self._wake.clear()
            need = await self._look()
            task.progress()
            if need == Need.URGENT:
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), SOON_SECONDS if need == Need.SOON else LOOK_SECONDS)
            except TimeoutError:
                continue

    async def _look(self) -> Need:
        """One round over all volumes; how soon the next one is needed. It ends when that of every volume has, so rounds never overlap."""
        volumes = [volume for volume in self._volumes.values() if volume.in_engine]
        identities = {volume.record.id for volume in volumes}
        self.cleaned = {
            identity: cleaned for identity, cleaned in self.cleaned.items() if identity in identities or _is_under_way(cleaned.under_way)
        }
        largest_blocks = max((_segment_blocks(volume) for volume in volumes), default=0)
        needs = await settle((self._clean_if_open(volume, largest_blocks) for volume in volumes), at_once=max(len(volumes), 1))
        return max(needs, default=Need.NONE)

    async def _clean_if_open(self, volume: OpenVolume, largest_blocks: int) -> Need:
        """What a volume fails with keeps no other from being cleaned."""
        try:
            return await self._clean(volume, largest_blocks)
        except MetadataUnavailable:
            return Need.NONE  # pointers.py reports it
        except IomeshError as error:  # it was closed meanwhile, or its device fails: that is reported elsewhere
            log.info("cleaning interrupted", volume=volume.record.name, reason=error.message)
            return Need.NONE

    async def _clean(self, volume: OpenVolume, largest_blocks: int) -> Need:
        """One round of one volume. NONE when nothing can be done for it, whatever it needs. largest_blocks: the largest segment here,
        of any volume's."""
        identity = volume.record.id
        cleaned = self.cleaned.setdefault(identity, Cleaned())
        table = await self._engine.segments(identity)
        if not len(table):
            cleaned.spare_blocks = cleaned.kept_blocks = 0.0
            return Need.NONE
        segment_blocks = _segment_blocks(volume)
        spaces = self._stores.spaces()
        cleaned.need = min(space.need(largest_blocks) for space in spaces)  # of several devices, the log takes the emptiest
        seen = cleaned.memory.look(table, time.monotonic())
        urgent = cleaned.need == Need.URGENT
        worth = np.where(seen.tried, 0.0, freed_blocks(table))
        in_hand = np.isin(table["segment"], cleaned.in_hand)
        wanted = (worth > 0) & ~in_hand
        if not urgent:
            mostly_dead = (worth >= REST_SHARE * np.maximum(table["space"], 1)) | straggles(table)
            wanted &= mostly_dead & (seen.rest_seconds >= self._config.rest_seconds)
            if all(space.is_tight() for space in spaces) and seen.quiet_seconds < self._config.rest_seconds:
                wanted[:] = False  # it will be urgent soon, and until then more of them dies
        if not any(space.has_spare() for space in spaces):
            wanted &= ~straggles(table)
        coming = freed_blocks(table)[in_hand].sum()
        missing = min(space.missing(largest_blocks) for space in spaces) - coming
        rows = choose(table, wanted, seen.rate, AT_ONCE, missing + largest_blocks if urgent else math.inf)
        cleaned.spare_blocks = worth.sum() - WORTH_SEGMENTS * segment_blocks
        cleaned.kept_blocks = kept_blocks(table).sum() if self._windows.can_shorten(volume) else 0.0
        if urgent:
            await self._give_hope(volume, cleaned)
        behind = wanted & (table["flags"] & CLEANABLE == 0)
        nothing = not len(rows) and not in_hand.any()
        pressing = nothing or all(space.free + coming < space.reserve for space in spaces)  # writes wait, or soon will
        await self._checkpoint_for(volume, cleaned, float(worth[behind].sum()), segment_blocks, pressing=pressing)
        cleaned.memory.try_rows(rows)
        done = await self._go_on(volume, cleaned, table["segment"][rows], urgent=urgent)
        return max(cleaned.need, Need.SOON) if done else min(cleaned.need, Need.SOON)

    async def _give_hope(self, volume: OpenVolume, cleaned: Cleaned) -> None:
        """Has a volume's writes wait if there is space to be had for them, in whichever volume. Where only restore windows keep it, that is
        shortened which keeps most."""
        segment_blocks = _segment_blocks(volume)
        spare = sum(max(each.spare_blocks, 0.0) for each in self.cleaned.values())
        most_kept = max(each.kept_blocks for each in self.cleaned.values())
        enough_dead = cleaned.spare_blocks >= 0 or spare >= segment_blocks
        enough_kept = not enough_dead and most_kept >= WORTH_SEGMENTS * segment_blocks
        if enough_dead or enough_kept:
            await self._engine.expect_space(volume.record.id, HOPE_MILLISECONDS)
        if enough_kept and cleaned.kept_blocks == most_kept:
            await self._windows.shorten(volume)

    async def _go_on(self, volume: OpenVolume, cleaned: Cleaned, segments: NDArray[np.uint32], *, urgent: bool) -> bool:
        """Begins to clean these, and waits for those before: the engine is busy while the next are chosen. At leisure it waits for these
        too. False: nothing was done, or something was postponed."""
        before, cleaned.in_hand = cleaned.under_way, segments
        cleaned.under_way = None
        if len(segments):
            work = self._carry_out(volume, cleaned, urgent=urgent)
            cleaned.under_way = self._supervisor.spawn("clean segments", work, volume=volume.record.name)
        done = await before if before is not None else len(segments) > 0
        if cleaned.under_way is not None and not urgent:
            done &= await cleaned.under_way
            cleaned.under_way = None
        return done

    async def _carry_out(self, volume: OpenVolume, cleaned: Cleaned, *, urgent: bool) -> bool:
        """Cleans what is in hand. False: some of it was postponed, and is to be asked for again a little later."""
        segments = cleaned.in_hand
        try:
            told = await self._engine.clean(volume.record.id, segments, bytes_per_second=0 if urgent else self._config.bytes_per_second)
        except InUse:  # it goes back to a snapshot
            cleaned.memory.retry(segments)
            return False
        except IomeshError as error:  # the volume was closed meanwhile, or its device fails: that is told elsewhere
            log.info("cleaning interrupted", reason=error.message)
            return False
        cleaned.chosen += len(segments)
        cleaned.compacted += told["compacted"]
        cleaned.evacuated += told["evacuated"]
        cleaned.skipped += told["skipped"] + told["postponed"]
        cleaned.failed += told["failed"]
        cleaned.freed_bytes += told["freed_bytes"]
        if told["failed"]:
            log.warning("segments not cleaned", volume=volume.record.name, segments=told["failed"], error=told["error"])
        if told["postponed"]:
            cleaned.memory.retry(segments)
        return told["postponed"] == 0

    async def _checkpoint_for(self, volume: OpenVolume, cleaned: Cleaned, gain: float, segment_blocks: int, *, pressing: bool) -> None:
        """Writes one when there is much to be had behind it: segments that are dead as a whole go with it, and younger ones can be cleaned
        then. It writes what changed of the map, so not before much was logged, unless it is pressing."""
        state = self._engine.volume_state(volume.record.id)
        now = time.monotonic()
        much = CHECKPOINT_SEGMENTS * volume.record.segment_bytes
        due = state["log_bytes_since_checkpoint"] >= much if not pressing else now - cleaned.checkpoint_at >= CHECKPOINT_SECONDS
        if gain >= WORTH_SEGMENTS * segment_blocks and due and state["committed"] > state["checkpoint_sequence"]:
            cleaned.checkpoint_at = now
            await self._engine.checkpoint(volume.record.id)


def _is_under_way(task: asyncio.Task[bool] | None) -> bool:
    return task is not None and not task.done()


def _segment_blocks(volume: OpenVolume) -> int:
    return volume.record.segment_bytes // compiled.BLOCK_BYTES
