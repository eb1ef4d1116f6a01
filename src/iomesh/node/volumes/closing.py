"""Closes one volume: withdraws its exports, and closes it in the engine with a checkpoint."""

from __future__ import annotations

from iomesh.node.pointers import Pointers
from iomesh.node.volume import NodeVolume
from iomesh.node.volumes.parts import Parts


class Closing:
    def __init__(self, parts: Parts, pointers: Pointers) -> None:
        self._engine = parts.engine
        self._exports = parts.exports
        self._forwarding = parts.forwarding
        self._snapshots = parts.snapshots
        self._pointers = pointers

    async def close(self, volume: NodeVolume, *, checkpoint: bool = True, follow: bool = False) -> None:
        """The caller holds `changing`. follow: the clients of its export go on with the next owner, where this node
        forwards requests. After an error the engine may have closed it: without a checkpoint, which loses nothing."""
        if follow and self._forwarding is not None:
            await self._forwarding.leave(volume)
        else:
            await self._exports.withdraw(volume.record.name)
        if not volume.in_engine:
            return
        await self._snapshots.closing(volume)
        try:
            await self._engine.close_volume(volume.record.id, checkpoint=checkpoint)
        finally:
            await self._pointers.end(volume)
            volume.in_engine = False
