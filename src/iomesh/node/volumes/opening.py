"""Opens one volume: takes ownership under a new epoch, recovers the log, publishes the export."""

from __future__ import annotations

import msgspec

from iomesh.api.model import VolumeState
from iomesh.engine.engine import Pointer
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import Lifecycle
from iomesh.node.logs import logger
from iomesh.node.volume import NodeVolume, take_over, write_record
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class Opening:
    def __init__(self, parts: Parts) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._exports = parts.exports
        self._volumes = parts.volumes
        self._snapshots = parts.snapshots
        self._windows = parts.windows
        self._node = parts.node

    async def open(self, volume: NodeVolume, *, former: str | None = None) -> None:
        """Takes ownership under a new epoch, recovers the volume, publishes its export. former: the node that owned it
        so far, if it is another one."""
        volume.state, volume.reason = VolumeState.OPENING, ""
        if not volume.in_engine:  # else a previous attempt opened it but failed in a later step
            await self._recover(volume, former)
        record, of = volume.record, volume.log.clone_of
        await self._windows.undo(volume)
        if record.state == Lifecycle.MAKING:
            if of is not None and of.at_ns:
                await self._windows.follow(volume, of)
            await write_record(
                self._metadata, volume, lambda record: msgspec.structs.replace(record, state=Lifecycle.READY)
            )
        volume.state, volume.awaits_metadata = VolumeState.SERVING, False
        await self._snapshots.opened(volume)
        self.publish(volume)
        log.info("volume open", volume=record.name, epoch=volume.log.epoch, **volume.recovery)

    async def _recover(self, volume: NodeVolume, former: str | None) -> None:
        of = volume.log.clone_of
        parent = self._volumes.by_id(of.volume) if of is not None else None
        if of is not None and parent is not None and parent.awaits_metadata:
            raise MetadataUnavailable(
                f"volume {volume.record.name} is a clone of {of.name}, which waits for the metadata service"
            )
        first = await take_over(self._metadata, volume, self._node, former=former)
        record, at = volume.record, volume.log.checkpoint
        if record.policy.replicas > 1:
            current = {device for each in volume.log.fragments[-1:] for device in each.devices}
            await self._engine.await_peers(current - self._stores.numbers, record.policy.replicas - 1)
        self._stores.refuse_while_changing()
        volume.opening = True
        try:
            volume.recovery = await self._engine.open_volume(
                record.id,
                size_bytes=record.size_bytes,
                epoch=volume.log.epoch,
                segment_bytes=record.segment_bytes,
                checkpoint=Pointer(at.segment, at.block, at.crc) if at else None,
                first_segment=first.segment,
                promised=volume.log.promised,
                clone_of=(of.volume, of.snapshot) if of else None,
                name=record.name,
                window_seconds=record.policy.window_seconds,
                replicas=record.policy.replicas,
                fragments=volume.log.fragments,
                first_fragment=first.fragment,
            )
            volume.in_engine = True
        finally:
            volume.opening = False

    def publish(self, volume: NodeVolume) -> None:
        record = volume.record
        for export in record.exports:
            self._exports.publish(
                record.id,
                record.name,
                size_bytes=record.size_bytes,
                read_only=export.read_only,
                volatile_cache=self._stores.volatile_cache,
            )
