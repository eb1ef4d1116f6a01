"""A volume that failed: it waits for the metadata service, or is FAILED; one that another node owns is withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iomesh.api.model import VolumeState
from iomesh.errors import Conflict, IomeshError
from iomesh.metadata import MetadataUnavailable
from iomesh.node.logs import logger
from iomesh.node.supervisor import STOP_SECONDS
from iomesh.node.volume import NodeVolume
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class Failures:
    def __init__(self, parts: Parts) -> None:
        self._exports = parts.exports
        self._snapshots = parts.snapshots
        self._supervisor = parts.supervisor
        self._withdrawing: set[asyncio.Task[None]] = set()
        self.on_waiting: Callable[[], None] = lambda: None  # a volume waits for the metadata service

    def fail(self, volume: NodeVolume, error: IomeshError) -> None:
        """A volume that only lacks an answer of the metadata service is retried in the background."""
        awaited, told = volume.awaits_metadata, (volume.state, volume.reason)
        volume.reason = error.message
        volume.awaits_metadata = isinstance(error, MetadataUnavailable)
        if volume.awaits_metadata:
            if not awaited:
                log.warning(
                    "volume waits for the metadata service",
                    volume=volume.record.name,
                    state=volume.state.value,
                    reason=error.message,
                )
            self.on_waiting()
            return
        if volume.state != VolumeState.DELETING:
            volume.state = VolumeState.FAILED
        if (volume.state, volume.reason) != told:
            log.error("volume failed", volume=volume.record.name, state=volume.state.value, reason=error.message)

    def lost(self, volume: NodeVolume, error: Conflict) -> None:
        """Another node owns the volume: serving stops at once, for writes and for reads of what that node may have
        overwritten."""
        self.fail(volume, error)
        job = self._supervisor.spawn("withdraw exports", self._withdraw(volume), volume=volume.record.name)
        self._withdrawing.add(job)
        job.add_done_callback(self._withdrawing.discard)

    async def _withdraw(self, volume: NodeVolume) -> None:
        async with volume.changing:
            await self._exports.withdraw(volume.record.name)
            await self._snapshots.closing(volume)

    async def withdrawn(self) -> None:
        """Waits, at most STOP_SECONDS, until what another node has taken over is withdrawn."""
        if self._withdrawing:
            await asyncio.wait(self._withdrawing, timeout=STOP_SECONDS)
