"""A volume that failed: it waits for an answer, or is FAILED; one that another node has taken over is closed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from iomesh.api.model import VolumeState
from iomesh.errors import Conflict, IomeshError
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import get_log
from iomesh.node.engine import NodesUnavailable, Outcome
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered
from iomesh.node.supervisor import STOP_SECONDS
from iomesh.node.volume import NodeVolume
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class Failures:
    def __init__(self, parts: Parts) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._exports = parts.exports
        self._forwarding = parts.forwarding
        self._snapshots = parts.snapshots
        self._supervisor = parts.supervisor
        self._volumes = parts.volumes
        self._node = parts.node
        self._closing: dict[uuid.UUID, asyncio.Task[None]] = {}  # of volumes that were lost
        self.on_waiting: Callable[[], None] = lambda: None  # a volume waits for an answer
        self.close: Callable[[NodeVolume], Awaitable[None]]  # without a checkpoint

    def fail(self, volume: NodeVolume, error: IomeshError) -> None:
        """A volume that only lacks an answer of the metadata service, or of other nodes, is retried in the
        background."""
        awaited, told = volume.awaits_answer, (volume.state, volume.reason)
        volume.reason = error.message
        volume.awaits_answer = isinstance(error, MetadataUnavailable | NodesUnavailable)
        if volume.awaits_answer:
            if not awaited:
                log.warning(
                    "volume waits for other nodes"
                    if isinstance(error, NodesUnavailable)
                    else "volume waits for the metadata service",
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
        overwritten; then the volume is closed here."""
        if volume.record.id in self._closing:
            return
        self.fail(volume, error)
        if self._forwarding is not None:
            self._forwarding.redirect(volume)  # the engine has the clients' open requests done by the next owner
        else:
            self._exports.cut(volume.record.name)  # first: a client does better without an answer than with an error
        for name in self._snapshots.export_names(volume):
            self._exports.cut(name)
        if volume.in_engine:
            self._engine.checkpoint_moved(volume.record.id, 0, Outcome.REFUSED)  # the log takes nothing more
        job = self._supervisor.spawn("close lost volume", self._close(volume), volume=volume.record.name)
        self._closing[volume.record.id] = job
        job.add_done_callback(lambda _: self._closing.pop(volume.record.id, None))

    async def _close(self, volume: NodeVolume) -> None:
        """Then it is not listed here any more, unless its record says that this node owns it after all."""
        async with volume.changing:
            if not self._volumes.has(volume):
                return
            await self.close(volume)
            found = await answered(get_log(self._metadata, volume.record.id))
            if found is not None and found.record.owner != self._node:
                self._volumes.remove(volume)
                log.info("volume closed: another node owns it", volume=volume.record.name, owner=found.record.owner)

    async def withdrawn(self) -> None:
        """Waits, at most STOP_SECONDS, until what another node has taken over is closed."""
        if self._closing:
            await asyncio.wait(self._closing.values(), timeout=STOP_SECONDS)
