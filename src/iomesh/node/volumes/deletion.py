"""Deletes volumes: hides one that has clones, and erases it after the last of them.

The record says DELETING first and is removed last, so an interrupted deletion can be continued.
"""

from __future__ import annotations

import uuid

import msgspec

from iomesh.api.model import VolumeState
from iomesh.errors import InUse, IomeshError, Unavailable
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import Lifecycle
from iomesh.metadata.volumes import release_name, remove_records
from iomesh.node.logs import logger
from iomesh.node.pointers import Pointers
from iomesh.node.snapshots import visible
from iomesh.node.volume import NodeVolume, hide_record, is_hidden, write_record
from iomesh.node.volumes.changes import refuse_connections
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class Deletion:
    def __init__(self, parts: Parts, failures: Failures, pointers: Pointers) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._exports = parts.exports
        self._volumes = parts.volumes
        self._snapshots = parts.snapshots
        self._node = parts.node
        self._failures = failures
        self._pointers = pointers

    async def delete(self, name: str, *, force: bool = False, snapshots: bool = False) -> None:
        """snapshots: delete the volume even if it has snapshots, and delete those with it."""
        volume = self._volumes.find(name)
        async with volume.changing:
            if self._volumes.get(name) is not volume:
                return  # it was deleted concurrently
            await refuse_connections(self._exports, name, "delete", force, self._snapshots.export_names(volume))
            self._refuse_snapshots(volume, snapshots)
            if volume.log.owner != self._node:
                raise InUse(f"volume {name} is owned by node {volume.log.owner}: delete it there")
            if self._stores.missing and not force:
                raise Unavailable(
                    f"volume {name} may have segments on a missing device, which would remain there: "
                    f"{self._stores.missing}"
                )
            if clones := self._volumes.clones(volume):
                await self._hide(volume)
                log.info(
                    "volume deleted; hidden until its clones are deleted",
                    volume=name,
                    id=str(volume.record.id),
                    clones=clones,
                )
                return
            await self.record_and_erase(volume)
        await self._delete_unneeded_parent(volume)

    def _refuse_snapshots(self, volume: NodeVolume, snapshots: bool) -> None:
        count = sum(visible(entry) for entry in volume.snapshots)
        if count and not snapshots:
            raise InUse(
                f"volume {volume.record.name} has {count} snapshot(s): delete them first, or delete the volume with "
                "its snapshots"
            )

    async def _hide(self, volume: NodeVolume) -> None:
        """The volume has clones: only its name, its exports, and the snapshots that no clone needs are removed now. The
        name becomes free only when no export uses it any more."""
        name = volume.record.name
        await hide_record(self._metadata, volume)
        if volume.in_engine:
            await self._engine.describe_volume(volume.record)
        try:
            await self._exports.withdraw(name)
            await self._snapshots.hide(volume, name)
            await release_name(self._metadata, name, volume.record.id)
        finally:
            self._volumes.release(volume)

    async def record_and_erase(self, volume: NodeVolume) -> None:
        """Records the deletion, then erases the volume. If the metadata service does not answer, the record may already
        say DELETING: then the volume is erased once the service answers."""
        try:
            await write_record(
                self._metadata,
                volume,
                lambda record: msgspec.structs.replace(
                    record, state=Lifecycle.DELETING, exports=[], snapshot_exports=[]
                ),
            )
            await self.erase(volume)
        except MetadataUnavailable as error:
            volume.state = VolumeState.DELETING
            await self._exports.withdraw(volume.record.name)
            self._failures.fail(volume, error)
            raise
        except IomeshError as error:
            self._failures.fail(volume, error)
            raise

    async def finish_deletion(self, volume: NodeVolume) -> None:
        """Retries the rest of a deletion that was interrupted by an error."""
        async with volume.changing:
            if not self._volumes.has(volume) or volume.record.state != Lifecycle.DELETING:
                return
            if volume.log.owner != self._node or self._stores.missing:
                return  # another node owns it, or some of its devices are missing
            try:
                await self.erase(volume)
            except IomeshError as error:
                self._failures.fail(volume, error)
                return
        await self._delete_unneeded_parent(volume)

    async def erase(self, volume: NodeVolume) -> None:
        """Erases a volume in any state; its own record, in state DELETING, is removed last."""
        name = volume.record.name
        if volume.state != VolumeState.DELETING:  # else the error that interrupted the deletion may still apply
            volume.state, volume.reason = VolumeState.DELETING, ""
        await self._exports.withdraw(name)
        if volume.in_engine:
            await self._snapshots.closing(volume)
            await self._engine.close_volume(volume.record.id, checkpoint=False)
            await self._pointers.end(volume)
            volume.in_engine = False
        if volume.record.policy.replicas > 1:
            await self._engine.erase_copies(volume.record.id, volume.log.epoch)
        segments = await self._engine.erase_volume(volume.record.id)
        await remove_records(self._metadata, volume.record)
        self._volumes.remove(volume)
        log.info("volume deleted", volume=name, id=str(volume.record.id), segments=segments)

    async def discard(self, volume: NodeVolume) -> None:
        """Removes everything of a creation that failed. What cannot be removed now is removed once the metadata service
        answers, or at the next start of the node."""
        volume.state = VolumeState.DELETING
        try:
            if volume.log_version:
                await write_record(
                    self._metadata, volume, lambda record: msgspec.structs.replace(record, state=Lifecycle.DELETING)
                )
                await self.erase(volume)
            else:  # it was never opened
                await remove_records(self._metadata, volume.record)
                self._volumes.remove(volume)
        except IomeshError as error:
            self._failures.fail(volume, error)

    async def _delete_unneeded_parent(self, volume: NodeVolume) -> None:
        """After a clone is deleted."""
        if volume.log.clone_of is not None:
            await self.delete_unneeded(volume.log.clone_of.volume)

    async def delete_unneeded(self, parent: uuid.UUID) -> None:
        """Deletes a hidden parent without clones; if it still has some, deletes what it kept for the deleted clone."""
        volume = self._volumes.by_id(parent)
        if volume is not None:
            await self.delete_if_unneeded(volume)

    async def delete_if_unneeded(self, volume: NodeVolume) -> None:
        async with volume.changing:
            name = volume.record.name
            if not self._volumes.has(volume) or not is_hidden(volume):
                return
            if self._volumes.clones(volume):
                await self._snapshots.hide(volume, name)
                return
            try:
                await self.record_and_erase(volume)
            except IomeshError as error:
                log.error("hidden volume not deleted; retried when the node starts", volume=name, reason=error.message)
                return
        await self._delete_unneeded_parent(volume)
