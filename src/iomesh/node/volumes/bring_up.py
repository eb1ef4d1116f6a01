"""Opens every volume when the node starts, retries those that could not be opened, and closes all when it stops.

A clone is opened after its parent and closed before it.
"""

from __future__ import annotations

import asyncio
import functools

from iomesh.api.model import VolumeState
from iomesh.errors import AlreadyExists, IomeshError, Unavailable
from iomesh.metadata.records import Lifecycle, LogRecord
from iomesh.metadata.volumes import Stored, Unreadable, read_volumes, release_stale, remove_records, reserve_name
from iomesh.node.backoff import pauses
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, until_answered
from iomesh.node.supervisor import end_all, settle
from iomesh.node.volume import NodeVolume, is_hidden
from iomesh.node.volumes.closing import Closing
from iomesh.node.volumes.deletion import Deletion
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.opening import Opening
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class BringUp:
    def __init__(
        self, parts: Parts, opening: Opening, closing: Closing, deletion: Deletion, failures: Failures
    ) -> None:
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._volumes = parts.volumes
        self._supervisor = parts.supervisor
        self._hooks = parts.hooks
        self._node = parts.node
        self._opening = opening
        self._closing = closing
        self._deletion = deletion
        self._failures = failures
        self._retrying: asyncio.Task[None] | None = None
        failures.on_waiting = self._start_retrying

    async def open_all(self) -> None:
        """Opens every volume of this node. A volume that cannot be opened is FAILED and keeps no other from being
        served."""
        inventory = await until_answered(lambda: read_volumes(self._metadata))
        for unreadable in inventory.unreadable:
            self._keep_closed(unreadable)
        for stale in inventory.stale_names:
            if stale.holder is None or stale.holder.node == self._node:
                await until_answered(functools.partial(release_stale, self._metadata, stale))
                log.info("released the name of a volume that no longer exists", key=stale.entry.key)
        for stored in inventory.volumes:
            await self._take_up(stored, named=stored.volume.record.id not in inventory.unnamed)
        await self.retry()

    async def _take_up(self, stored: Stored, *, named: bool) -> None:
        """At the start. If a crash left an unfinished creation or deletion without a log, only its records are left to
        be removed."""
        record, version = stored.volume
        if stored.log is None and record.node == self._node:
            await until_answered(lambda: remove_records(self._metadata, record))
            log.info("removed a partly created or partly deleted volume", volume=record.name, id=str(record.id))
            return
        its_log, log_version = stored.log or (LogRecord(id=record.id, epoch=0, owner=record.node, promised=0), 0)
        if its_log.owner != self._node:
            return
        deleting = record.state == Lifecycle.DELETING
        state = VolumeState.DELETING if deleting else VolumeState.OPENING
        volume = NodeVolume(record, its_log, version, log_version, state)
        try:
            if not named and record.node == self._node:
                await until_answered(lambda: reserve_name(self._metadata, record.name, record.id))
            self._volumes.add(volume)
        except AlreadyExists as error:
            self._keep_closed(Unreadable(record.id, str(record.id), its_log.owner, error.message, its_log))

    def _keep_closed(self, unreadable: Unreadable) -> None:
        self._volumes.unreadable[unreadable.name] = unreadable
        log.error("volume failed", volume=unreadable.name, id=str(unreadable.id or ""), reason=unreadable.reason)

    async def retry(self) -> None:
        """Opens volumes that are not open: at the start, and when a missing device has returned."""
        await self._bring_up_all([volume for volume in self._volumes.values() if not volume.in_engine])

    def _start_retrying(self) -> None:
        if self._retrying is None or self._retrying.done():
            self._retrying = self._supervisor.spawn("retry volumes", self._retry_until_answered())

    async def _retry_until_answered(self) -> None:
        for pause in pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
            await asyncio.sleep(pause)
            waiting = [volume for volume in self._volumes.values() if volume.awaits_answer]
            if not waiting:
                return
            await self._bring_up_all(waiting)

    async def _bring_up_all(self, left: list[NodeVolume]) -> None:
        """Opens each clone after its parent."""
        while left:
            ids = {volume.record.id for volume in left}
            later = [volume for volume in left if volume.log.clone_of is not None and volume.log.clone_of.volume in ids]
            await settle(self._bring_up(volume) for volume in left if volume not in later)
            left = later
        for volume in [volume for volume in self._volumes.values() if is_hidden(volume)]:
            await self._deletion.delete_if_unneeded(volume)

    async def _bring_up(self, volume: NodeVolume) -> None:
        await self._hooks.hold(f"volume {volume.record.name}")
        async with volume.changing:
            if (volume.in_engine and not volume.awaits_answer) or not self._volumes.has(volume):
                return  # done by the task that held the lock before
            try:
                if self._stores.missing:
                    raise Unavailable(
                        f"volume {volume.record.name} is not opened, because part of its log may be on a missing "
                        f"device: {self._stores.missing}"
                    )
                if not self._stores.online():
                    raise Unavailable(f"volume {volume.record.name} is not opened: no device of this node is available")
                if volume.record.state == Lifecycle.DELETING or (
                    volume.state == VolumeState.DELETING and not volume.log_version
                ):
                    await self._deletion.erase(volume)
                elif volume.state == VolumeState.DELETING:
                    await self._deletion.record_and_erase(volume)
                else:
                    await self._opening.open(volume)
            except IomeshError as error:
                self._failures.fail(volume, error)
            except Exception as error:
                log.exception("internal error", volume=volume.record.name)
                self._failures.fail(volume, IomeshError(f"internal error ({error!r}): see the node's log"))

    async def close_all(self) -> None:
        """Ends all connections and closes every volume with a checkpoint, so that the next start replays nothing."""
        if self._retrying is not None:
            await end_all([self._retrying])
        left = [volume for volume in self._volumes.values() if volume.in_engine]
        while left:  # clones first: the engine does not close a parent before its clones
            parents = {volume.log.clone_of.volume for volume in left if volume.log.clone_of is not None}
            await settle(self._close(volume) for volume in left if volume.record.id not in parents)
            left = [volume for volume in left if volume.record.id in parents]
        await self._failures.withdrawn()

    async def _close(self, volume: NodeVolume) -> None:
        name = volume.record.name
        try:
            async with volume.changing:
                await self._closing.close(volume)
        except IomeshError as error:
            # No data is lost: the log is unchanged, and the next start replays more of it.
            log.error("volume closed without a checkpoint", volume=name, reason=error.message)
        finally:
            volume.in_engine = False
            volume.state = VolumeState.OPENING
