"""Changes of a volume that is served: grow, export, unexport, checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from iomesh.api.model import Export, Volume, VolumeState
from iomesh.errors import AlreadyExists, InUse, InvalidArgument, IomeshError
from iomesh.metadata.records import ExportRecord
from iomesh.node.exports import NBD, Exports
from iomesh.node.limits import check_size
from iomesh.node.logs import logger
from iomesh.node.supervisor import settle
from iomesh.node.volume import NodeVolume, at_generation, write_record
from iomesh.node.volumes.opening import Opening
from iomesh.node.volumes.parts import Parts
from iomesh.node.volumes.view import View
from iomesh.sizes import exact_size

log = logger("volumes")


class Changes:
    def __init__(self, parts: Parts, opening: Opening, view: View) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._exports = parts.exports
        self._volumes = parts.volumes
        self._opening = opening
        self._view = view

    async def grow(self, name: str, size_bytes: int, *, if_generation: int = 0) -> Volume:
        check_size(size_bytes)
        async with self._volumes.holding(name) as volume:
            if size_bytes < volume.record.size_bytes:
                raise InvalidArgument(
                    f"volume {name} has {exact_size(volume.record.size_bytes)}: it cannot shrink to "
                    f"{exact_size(size_bytes)}"
                )
            # The record first: after a crash, a volume is never smaller than a size that a client has seen.
            if size_bytes > volume.record.size_bytes:
                await write_record(
                    self._metadata,
                    volume,
                    at_generation(if_generation, lambda record: msgspec.structs.replace(record, size_bytes=size_bytes)),
                )
            await self._engine.grow_volume(volume.record.id, size_bytes)
            self._opening.publish(volume)
            return self._view.describe(volume)

    async def export(self, name: str, *, read_only: bool = False) -> Export:
        async with self._volumes.holding(name) as volume:
            wanted = ExportRecord(protocol=NBD, read_only=read_only)
            if volume.record.exports and volume.record.exports != [wanted]:
                how = "read-only" if volume.record.exports[0].read_only else "for reading and writing"
                raise AlreadyExists(f"volume {name} is exported {how} already: unexport it first")
            if not volume.record.exports:
                await write_record(
                    self._metadata, volume, lambda record: msgspec.structs.replace(record, exports=[wanted])
                )
                self._opening.publish(volume)
                log.info("volume exported", volume=name, read_only=read_only)
            return self._exports.describe(name)[0]

    async def unexport(self, name: str, *, force: bool = False) -> None:
        async with self._volumes.holding(name, serving=False) as volume:
            await refuse_connections(self._exports, name, "unexport", force)
            if volume.record.exports:
                await write_record(self._metadata, volume, lambda record: msgspec.structs.replace(record, exports=[]))
            await self._exports.withdraw(name)
        log.info("volume unexported", volume=name)

    async def checkpoint(self, name: str = "") -> list[str]:
        """Writes a checkpoint of one volume, or of all that are served; volumes deleted meanwhile are skipped. Returns
        their names."""
        if name:
            await self._engine.checkpoint(self._volumes.serving(name).record.id)
            return [name]
        volumes = [volume for volume in self._volumes.named() if volume.state == VolumeState.SERVING]
        written = await settle(self._checkpoint_if_served(volume) for volume in volumes)
        return [volume.record.name for volume, done in zip(volumes, written, strict=True) if done]

    async def _checkpoint_if_served(self, volume: NodeVolume) -> bool:
        """False: the volume was deleted meanwhile."""
        try:
            await self._engine.checkpoint(volume.record.id)
        except IomeshError:
            if self._volumes.has(volume) and volume.state == VolumeState.SERVING:
                raise
            return False
        return True


async def refuse_connections(
    exports: Exports, name: str, what: str, force: bool, snapshots: Iterable[str] = (), *, followed: bool = False
) -> None:
    """Raises InUse while clients are connected, after a pause in which they may leave. snapshots: the names of their
    exports. followed: by the clients of the volume itself, which do not count."""
    if force:
        return
    names = [*snapshots] if followed else [name, *snapshots]
    await exports.let_leave(*names)
    if connections := sum(exports.connections(each) for each in names):
        raise InUse(f"volume {name} has {connections} connection(s): end them, or {what} with force")
