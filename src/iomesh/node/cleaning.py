"""The cleaner: in rounds, it reads every volume's segment table, lets the policy choose victims, and has the engine
clean them.

When space runs out, writes wait for the cleaner (Engine.expect_space) as long as it finds segments worth cleaning, in
any volume; they fail with ENOSPC only when no dead space is left. Volumes share their devices: all are cleaned for the
one that needs space most. While there is plenty of space, cleaning is throttled and yields to users' I/O
(ext/store/token_bucket.pyx).
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
from iomesh.node.supervisor import SupervisedTask, Supervisor, end_all, settle
from iomesh.node.volume import NodeVolume, Registry
from iomesh.node.windows import Windows
from iomesh.policies.cleaning import CLEANABLE, REST_SHARE, Memory, Need, choose, freed_blocks, kept_blocks, straggles

log = logger("cleaning")

LOOK_SECONDS = 1.0  # between two rounds while there is plenty
SOON_SECONDS = 0.1
CHECKPOINT_SECONDS = 0.5  # between two checkpoints requested to release dead segments when nothing else can be cleaned
CHECKPOINT_SEGMENTS = 64  # of log between two such checkpoints while something can be
AT_ONCE = 8  # segments per request; when urgent, the next request is sent before the last has ended
ENOSPC_DEADLINE_MILLISECONDS = 2000  # deadline of waiting writes once dead space was found; extended when more is found
WORTH_SEGMENTS = (
    2  # of dead space are worth waiting for: open segments may seem to have as much, in blocks not yet written
)


@dataclass
class Cleaned:
    """The results since the volume was opened."""

    memory: Memory = field(default_factory=Memory)
    need: Need = Need.NONE
    spare_blocks: float = 0.0  # dead space that cleaning would free, beyond WORTH_SEGMENTS
    kept_blocks: float = 0.0  # that a shorter restore window would free
    chosen: int = 0
    compacted: int = 0
    evacuated: int = 0
    skipped: int = 0
    failed: int = 0
    freed_bytes: int = 0
    checkpoint_at: float = 0.0
    requested: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))  # the segments requested last
    under_way: asyncio.Task[bool] | None = None  # cleaning them


class Cleaning:
    def __init__(
        self,
        config: CleaningConfig,
        engine: NodeEngine,
        stores: Stores,
        volumes: Registry,
        windows: Windows,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._engine = engine
        self._stores = stores
        self._volumes = volumes
        self._windows = windows
        self._supervisor = supervisor
        self._wake = asyncio.Event()
        self._task: SupervisedTask | None = None
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
        """Space is tight and shrinking: start a round now."""
        self._wake.set()

    def hurry(self) -> None:
        """Space has expired: start a round now, and lift the throttle of running cleaning."""
        self._engine.hurry_cleaning()
        self._wake.set()

    async def _run(self, task: SupervisedTask) -> None:
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
        """One round over all volumes; returns how soon the next one is needed. It waits for every volume, so rounds
        never overlap."""
        volumes = [volume for volume in self._volumes.values() if volume.in_engine]
        identities = {volume.record.id for volume in volumes}
        self.cleaned = {
            identity: cleaned
            for identity, cleaned in self.cleaned.items()
            if identity in identities or _is_under_way(cleaned.under_way)
        }
        largest_blocks = max((_segment_blocks(volume) for volume in volumes), default=0)
        needs = await settle(
            (self._clean_if_open(volume, largest_blocks) for volume in volumes), at_once=max(len(volumes), 1)
        )
        return max(needs, default=Need.NONE)

    async def _clean_if_open(self, volume: NodeVolume, largest_blocks: int) -> Need:
        """A failure of one volume keeps no other from being cleaned."""
        try:
            return await self._clean(volume, largest_blocks)
        except MetadataUnavailable:
            return Need.NONE  # pointers.py reports it
        except IomeshError as error:  # it was closed concurrently, or its device fails: that is reported elsewhere
            log.info("cleaning interrupted", volume=volume.record.name, reason=error.message)
            return Need.NONE

    async def _clean(self, volume: NodeVolume, largest_blocks: int) -> Need:
        """One round of one volume. NONE when nothing can be done for it, whatever its need. largest_blocks: the largest
        segment of any volume of the node."""
        identity = volume.record.id
        cleaned = self.cleaned.setdefault(identity, Cleaned())
        table = await self._engine.segments(identity)
        if not len(table):
            cleaned.spare_blocks = cleaned.kept_blocks = 0.0
            return Need.NONE
        segment_blocks = _segment_blocks(volume)
        spaces = self._stores.spaces()
        # Of several devices, the log uses the emptiest.
        cleaned.need = min(space.need(largest_blocks) for space in spaces)
        seen = cleaned.memory.look(table, time.monotonic())
        urgent = cleaned.need == Need.URGENT
        worth = np.where(seen.tried, 0.0, freed_blocks(table))
        is_requested = np.isin(table["segment"], cleaned.requested)
        wanted = (worth > 0) & ~is_requested
        if not urgent:
            mostly_dead = (worth >= REST_SHARE * np.maximum(table["space"], 1)) | straggles(table)
            wanted &= mostly_dead & (seen.rest_seconds >= self._config.rest_seconds)
            if all(space.is_tight() for space in spaces) and seen.quiet_seconds < self._config.rest_seconds:
                wanted[:] = False  # cleaning becomes urgent soon, and more blocks die until then
        if not any(space.has_spare() for space in spaces):
            wanted &= ~straggles(table)
        coming = freed_blocks(table)[is_requested].sum()
        missing = min(space.missing(largest_blocks) for space in spaces) - coming
        rows = choose(table, wanted, seen.rate, AT_ONCE, missing + largest_blocks if urgent else math.inf)
        cleaned.spare_blocks = worth.sum() - WORTH_SEGMENTS * segment_blocks
        cleaned.kept_blocks = kept_blocks(table).sum() if self._windows.can_shorten(volume) else 0.0
        if urgent:
            await self._extend_enospc_deadline(volume, cleaned)
        behind = wanted & (table["flags"] & CLEANABLE == 0)
        nothing = not len(rows) and not is_requested.any()
        pressing = nothing or all(space.free + coming < space.reserve for space in spaces)  # writes wait, or soon will
        await self._checkpoint_for(volume, cleaned, float(worth[behind].sum()), segment_blocks, pressing=pressing)
        cleaned.memory.try_rows(rows)
        done = await self._go_on(volume, cleaned, table["segment"][rows], urgent=urgent)
        return max(cleaned.need, Need.SOON) if done else min(cleaned.need, Need.SOON)

    async def _extend_enospc_deadline(self, volume: NodeVolume, cleaned: Cleaned) -> None:
        """Extends the deadline of a volume's waiting writes if any volume has space to free. If only restore windows
        keep space, shortens the one that keeps most."""
        segment_blocks = _segment_blocks(volume)
        spare = sum(max(each.spare_blocks, 0.0) for each in self.cleaned.values())
        most_kept = max(each.kept_blocks for each in self.cleaned.values())
        enough_dead = cleaned.spare_blocks >= 0 or spare >= segment_blocks
        enough_kept = not enough_dead and most_kept >= WORTH_SEGMENTS * segment_blocks
        if enough_dead or enough_kept:
            await self._engine.expect_space(volume.record.id, ENOSPC_DEADLINE_MILLISECONDS)
        if enough_kept and cleaned.kept_blocks == most_kept:
            await self._windows.shorten(volume)

    async def _go_on(self, volume: NodeVolume, cleaned: Cleaned, segments: NDArray[np.uint32], *, urgent: bool) -> bool:
        """Starts cleaning these segments and waits for the previous ones: the engine stays busy while the next are
        chosen. Unless urgent, waits for these too. False: nothing was done, or something was postponed."""
        before, cleaned.requested = cleaned.under_way, segments
        cleaned.under_way = None
        if len(segments):
            work = self._carry_out(volume, cleaned, urgent=urgent)
            cleaned.under_way = self._supervisor.spawn("clean segments", work, volume=volume.record.name)
        done = await before if before is not None else len(segments) > 0
        if cleaned.under_way is not None and not urgent:
            done &= await cleaned.under_way
            cleaned.under_way = None
        return done

    async def _carry_out(self, volume: NodeVolume, cleaned: Cleaned, *, urgent: bool) -> bool:
        """Cleans the requested segments. False: some were postponed, and are to be requested again a little later."""
        segments = cleaned.requested
        try:
            told = await self._engine.clean(
                volume.record.id, segments, bytes_per_second=0 if urgent else self._config.bytes_per_second
            )
        except InUse:  # it is being restored to a snapshot
            cleaned.memory.retry(segments)
            return False
        except (
            IomeshError
        ) as error:  # the volume was closed concurrently, or its device fails: that is reported elsewhere
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

    async def _checkpoint_for(
        self, volume: NodeVolume, cleaned: Cleaned, gain: float, segment_blocks: int, *, pressing: bool
    ) -> None:
        """Writes a checkpoint when much space depends on it: completely dead segments are deleted after it, and younger
        segments become cleanable. It writes the changed part of the map, so unless pressing, only after much was
        logged."""
        state = self._engine.volume_state(volume.record.id)
        now = time.monotonic()
        much = CHECKPOINT_SEGMENTS * volume.record.segment_bytes
        due = (
            state["log_bytes_since_checkpoint"] >= much
            if not pressing
            else now - cleaned.checkpoint_at >= CHECKPOINT_SECONDS
        )
        if gain >= WORTH_SEGMENTS * segment_blocks and due and state["committed"] > state["checkpoint_sequence"]:
            cleaned.checkpoint_at = now
            await self._engine.checkpoint(volume.record.id)


def _is_under_way(task: asyncio.Task[bool] | None) -> bool:
    return task is not None and not task.done()


def _segment_blocks(volume: NodeVolume) -> int:
    return volume.record.segment_bytes // compiled.BLOCK_BYTES
