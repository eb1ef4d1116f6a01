"""Flattening: a clone becomes independent of its parent. Inherited blocks are copied at a limited rate; then its record
names no parent.

    (clone) --asked--> flattening --copied, no snapshot inherits, record--> (no clone)

- The volume's record has the request, so flattening continues after a restart, with the rest, until it is done or the
  clone is deleted.
- The log's record without a parent is written while nothing changes the volume's snapshots, and after a checkpoint for
  which the engine has verified that it needs no other log. The engine releases the parent after that; a crash between
  the two has the same result as one after both.
- The part of the clone's own restore window from before it had all blocks is deleted then: those restore points
  inherit.
- A reason not to continue (no space, a snapshot that inherits) is reported, and checked again after a while.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec

from iomesh.api.model import Flattening as Progress
from iomesh.api.model import Volume, VolumeState
from iomesh.engine import engine as compiled
from iomesh.errors import InUse, InvalidArgument, IomeshError, NoSpace
from iomesh.metadata import Metadata
from iomesh.metadata.records import CloneRecord
from iomesh.node.config import CleaningConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.snapshots import Snapshots, visible
from iomesh.node.supervisor import SupervisedTask, Supervisor, settle
from iomesh.node.volume import NodeVolume, Registry, is_hidden, write_log, write_record
from iomesh.node.volumes import Volumes
from iomesh.node.windows import Windows, restore_points_of

log = logger("flattening")

AGAIN_SECONDS = 2.0  # after an interruption


class Flattener:
    """config: of cleaning, whose throttle it shares."""

    def __init__(
        self,
        config: CleaningConfig,
        engine: NodeEngine,
        metadata: Metadata,
        registry: Registry,
        volumes: Volumes,
        snapshots: Snapshots,
        windows: Windows,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._engine = engine
        self._metadata = metadata
        self._registry = registry
        self._volumes = volumes
        self._snapshots = snapshots
        self._windows = windows
        self._supervisor = supervisor
        self._tasks: dict[uuid.UUID, SupervisedTask] = {}

    async def start(self) -> None:
        for volume in self._registry.values():
            self._go_on(volume)

    async def stop(self) -> None:
        await settle(task.stop() for task in self._tasks.values())
        self._tasks.clear()

    async def flatten(self, name: str) -> Volume:
        """Starts flattening, or returns its progress."""
        async with self._registry.holding(name) as volume:
            of = volume.log.clone_of
            if of is None:
                raise InvalidArgument(f"volume {name} is not a clone, or was flattened already")
            if not volume.record.flattening:
                await self._snapshots.refresh(volume)
                if holders := [entry["name"] for entry in inheriting(volume) if not entry["mark"]]:
                    raise InUse(
                        f"volume {name} has snapshots that hold blocks of {of.name}, {', '.join(holders)}: blocks of "
                        "a snapshot are not copied, so delete the snapshots first"
                    )
                await write_record(
                    self._metadata, volume, lambda record: msgspec.structs.replace(record, flattening=True)
                )
                log.info("flattening", volume=name, parent=of.name)
            self._go_on(volume)
        return await self._volumes.show(name)

    def _go_on(self, volume: NodeVolume) -> None:
        identity = volume.record.id
        if (
            volume.record.flattening
            and volume.in_engine
            and (identity not in self._tasks or self._tasks[identity].ended)
        ):
            inherited = self._engine.volume_state(identity)["inherited_blocks"] * compiled.BLOCK_BYTES
            volume.flattening = Progress(running=True, total_bytes=inherited)
            self._tasks[identity] = self._supervisor.start(
                "flattening", lambda task: self._run(volume, task), until_done=True, volume=volume.record.name
            )

    async def _run(self, volume: NodeVolume, task: SupervisedTask) -> None:
        while self._is_wanted(volume):
            volume.flattening = msgspec.structs.replace(volume.flattening, reason="")
            try:
                if volume.log.clone_of is not None:  # else only the volume's record is left to be written
                    await self._engine.copy_inherited(volume.record.id, bytes_per_second=self._config.bytes_per_second)
                if await self._finish(volume):
                    return
            except NoSpace:
                self._wait_for(
                    volume, "what is free is kept for users and checkpoints: it goes on when there is more space"
                )
            except IomeshError as error:
                self._wait_for(volume, error.message)
            task.progress()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _finish(self, volume: NodeVolume) -> bool:
        """Nothing is left to copy. The log's record is written first: from then on it is no clone, whatever the
        volume's record states."""
        async with volume.changing:
            if not self._is_wanted(volume):
                return True
            of = volume.log.clone_of
            if of is not None and not await self._cut_off(volume, of):
                return False
        if of is not None:
            await self._volumes.delete_unneeded(of.volume)
        async with volume.changing:
            if self._is_wanted(volume):
                await write_record(
                    self._metadata, volume, lambda record: msgspec.structs.replace(record, flattening=False)
                )
                volume.flattening = Progress()
        return True

    async def _cut_off(self, volume: NodeVolume, of: CloneRecord) -> bool:
        """False: a snapshot still inherits."""
        await self._snapshots.refresh(volume)
        if restore_points := up_to_inheriting(restore_points_of(volume)):
            await self._windows.forget(volume, restore_points)
        if holders := inheriting(volume):
            names = [entry["name"] for entry in holders if visible(entry)]
            until = f"{', '.join(names)} are deleted" if names else "those that were deleted are given back"
            self._wait_for(volume, f"snapshots hold blocks of {of.name}: it goes on once {until}")
            return False
        await self._engine.check_detached(volume.record.id)
        await write_log(self._metadata, volume, lambda log: msgspec.structs.replace(log, clone_of=None))
        await self._engine.cut_off(volume.record.id)
        log.info("volume flattened", volume=volume.record.name, parent=of.name)
        return True

    def _is_wanted(self, volume: NodeVolume) -> bool:
        return volume.record.flattening and volume.state == VolumeState.SERVING and not is_hidden(volume)

    def _wait_for(self, volume: NodeVolume, reason: str) -> None:
        if self._is_wanted(volume) and volume.flattening.reason != reason:
            volume.flattening = msgspec.structs.replace(volume.flattening, reason=reason)
            log.warning("flattening waits", volume=volume.record.name, reason=reason)


def up_to_inheriting(restore_points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those up to the newest that inherits. (An older one that does not inherit is from before a restore of the volume:
    without those after it, the log would be rolled forward from there as if there had been no restore.)"""
    return restore_points[: max((n for n, each in enumerate(restore_points, 1) if each["inherited_blocks"]), default=0)]


def inheriting(volume: NodeVolume) -> list[dict[str, Any]]:
    """The snapshots that inherit, as the engine listed them last, including deleted ones that still exist."""
    return [entry for entry in volume.snapshots if entry["inherited_blocks"]]
