"""The volumes that this node owns, from their record in the metadata service to a published export and back.

    (none) --create--> OPENING --recovered--> SERVING --delete--> DELETING --erased--> (none)
                          |                      |                   ^
                          '--error--> FAILED ----'------delete-------'

A volume that is deleted while it has clones is hidden: it loses its name and its exports, still serves its clones, and
is deleted with the last of them. A clone is opened after its parent and closed before it.

- Records are written first (iomesh.metadata.volumes has the order). The engine's part can be repeated, so a crash
  between the two leaves unfinished work but no ambiguity: the next start opens a READY volume, continues to create a
  MAKING one, and continues to erase a DELETING one.
- Opening raises the epoch in the log's record, once all of the node's devices are open; every later change of that
  record requires that epoch and owner still match.
- A metadata service that does not answer stops nothing: served volumes stay served; opening and deleting are retried.
- A volume with an unreadable record is listed as FAILED and left alone. It keeps no other volume from being served.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from iomesh.api.model import Export, Flattening, Policy, Space, Volume, VolumeState
from iomesh.engine import engine as compiled
from iomesh.engine.engine import Event, Pointer
from iomesh.errors import (
    AlreadyExists,
    Conflict,
    InUse,
    InvalidArgument,
    IomeshError,
    NoSpace,
    Unavailable,
    Unsupported,
)
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.records import (
    CloneRecord,
    ExportRecord,
    Lifecycle,
    LogRecord,
    PolicyRecord,
    VolumeRecord,
)
from iomesh.metadata.volumes import (
    Stored,
    Unreadable,
    create_records,
    is_hidden_name,
    read_volumes,
    release_name,
    release_stale,
    remove_records,
    reserve_name,
)
from iomesh.node.backoff import pauses
from iomesh.node.engine import NodeEngine
from iomesh.node.exports import NBD, Exports
from iomesh.node.health import volume_warnings, why_log_failed
from iomesh.node.hooks import Hooks
from iomesh.node.limits import check_name, check_size, choose_segment_bytes
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, until_answered
from iomesh.node.pointers import Pointers
from iomesh.node.snapshots import Snapshots, visible
from iomesh.node.stores import Stores
from iomesh.node.supervisor import STOP_SECONDS, Supervisor, end_all, settle
from iomesh.node.volume import OpenVolume, Registry, hide_record, is_hidden, take_over, write_record
from iomesh.node.windows import Asked, Windows, check_window, marks_of
from iomesh.sizes import exact_size
from iomesh.times import exact_moment, exact_span, time_of

log = logger("volumes")


class Volumes:
    def __init__(
        self,
        engine: NodeEngine,
        metadata: Metadata,
        stores: Stores,
        exports: Exports,
        volumes: Registry,
        snapshots: Snapshots,
        windows: Windows,
        supervisor: Supervisor,
        hooks: Hooks,
        node: str,
    ) -> None:
        self._engine = engine
        self._metadata = metadata
        self._stores = stores
        self._exports = exports
        self._node = node
        self._volumes = volumes
        self._snapshots = snapshots
        self._windows = windows
        self._supervisor = supervisor
        self._hooks = hooks
        self._pointers = Pointers(engine, metadata, supervisor, self._lost)
        self._withdrawing: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.Task[None] | None = None
        self.on_no_space: Callable[[], None] = lambda: None
        self.on_tight: Callable[[], None] = lambda: None

    # bring-up and shutdown

    async def open_all(self) -> None:
        """Opens every volume of this node. A volume that cannot be opened is FAILED and keeps no other from being
        served."""
        inventory = await until_answered(lambda: read_volumes(self._metadata))
        for unreadable in inventory.unreadable:
            self._keep_closed(unreadable)
        for stale in inventory.stale_names:
            if stale.holder is None or stale.holder.node == self._node:
                await until_answered(functools.partial(release_stale, self._metadata, stale))
                log.info("name released that no volume has any more", key=stale.entry.key)
        for stored in inventory.volumes:
            await self._take_up(stored, named=stored.volume.record.id not in inventory.unnamed)
        await self.retry()

    async def _take_up(self, stored: Stored, *, named: bool) -> None:
        """At the start. If a crash left an unfinished creation or deletion without a log, only its records are left to
        be removed."""
        record, version = stored.volume
        if stored.log is None and record.node == self._node:
            await until_answered(lambda: remove_records(self._metadata, record))
            log.info("volume removed that was half made or half deleted", volume=record.name, id=str(record.id))
            return
        its_log, log_version = stored.log or (LogRecord(id=record.id, epoch=0, owner=record.node), 0)
        deleting = record.state == Lifecycle.DELETING
        state = VolumeState.DELETING if deleting else VolumeState.OPENING
        volume = OpenVolume(record, its_log, version, log_version, state)
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

    async def _retry_until_answered(self) -> None:
        for pause in pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
            await asyncio.sleep(pause)
            waiting = [volume for volume in self._volumes.values() if volume.awaits_metadata]
            if not waiting:
                return
            await self._bring_up_all(waiting)

    async def _bring_up_all(self, left: list[OpenVolume]) -> None:
        """Opens each clone after its parent."""
        while left:
            ids = {volume.record.id for volume in left}
            later = [volume for volume in left if volume.log.clone_of is not None and volume.log.clone_of.volume in ids]
            await settle(self._bring_up(volume) for volume in left if volume not in later)
            left = later
        for volume in [volume for volume in self._volumes.values() if is_hidden(volume)]:
            await self._delete_if_needless(volume)

    async def close_all(self) -> None:
        """Ends all connections and closes every volume with a checkpoint, so that the next start replays nothing."""
        if self._retrying is not None:
            await end_all([self._retrying])
        left = [volume for volume in self._volumes.values() if volume.in_engine]
        while left:  # clones first: the engine does not close a parent before its clones
            parents = {volume.log.clone_of.volume for volume in left if volume.log.clone_of is not None}
            await settle(self._close(volume) for volume in left if volume.record.id not in parents)
            left = [volume for volume in left if volume.record.id in parents]
        if self._withdrawing:
            await asyncio.wait(self._withdrawing, timeout=STOP_SECONDS)

    async def _bring_up(self, volume: OpenVolume) -> None:
        await self._hooks.hold(f"volume {volume.record.name}")
        async with volume.changing:
            if (volume.in_engine and not volume.awaits_metadata) or not self._volumes.has(volume):
                return  # done by the task that held the lock before
            try:
                if volume.log.owner != self._node:
                    raise InUse(
                        f"volume {volume.record.name} is owned by node {volume.log.owner}, and this is {self._node}"
                    )
                if self._stores.missing:
                    raise Unavailable(
                        f"volume {volume.record.name} is not opened while part of its log may be elsewhere: "
                        f"{self._stores.missing}"
                    )
                if not self._stores.online():
                    raise Unavailable(f"volume {volume.record.name} is not opened: no device of this node is there")
                if volume.record.state == Lifecycle.DELETING or (
                    volume.state == VolumeState.DELETING and not volume.log_version
                ):
                    await self._erase(volume)
                elif volume.state == VolumeState.DELETING:
                    await self._delete(volume)
                else:
                    await self._open(volume)
            except IomeshError as error:
                self._fail(volume, error)
            except Exception as error:
                log.exception("internal error", volume=volume.record.name)
                self._fail(volume, IomeshError(f"internal error ({error!r}): see the node's log"))

    def _lost(self, volume: OpenVolume, error: Conflict) -> None:
        """Another node owns the volume: serving stops at once, for writes and for reads of what that node may have
        overwritten."""
        self._fail(volume, error)
        job = self._supervisor.spawn("withdraw exports", self._withdraw(volume), volume=volume.record.name)
        self._withdrawing.add(job)
        job.add_done_callback(self._withdrawing.discard)

    async def _withdraw(self, volume: OpenVolume) -> None:
        async with volume.changing:
            await self._exports.withdraw(volume.record.name)
            await self._snapshots.closing(volume)

    async def _close(self, volume: OpenVolume) -> None:
        name = volume.record.name
        try:
            async with volume.changing:
                await self._exports.withdraw(name)
                await self._snapshots.closing(volume)
                await self._engine.close_volume(volume.record.id, checkpoint=True)
        except IomeshError as error:
            # No data is lost: the log is unchanged, and the next start replays more of it.
            log.error("volume closed without a checkpoint", volume=name, reason=error.message)
        finally:
            await self._pointers.end(volume)
            volume.in_engine = False
            volume.state = VolumeState.OPENING

    # commands of users

    async def create(
        self, name: str, size_bytes: int, *, segment_bytes: int = 0, replicas: int = 0, window_seconds: int = 0
    ) -> Volume:
        check_name(name)
        check_size(size_bytes)
        check_window(window_seconds)
        if replicas not in (0, 1):
            raise Unsupported(f"{replicas} replicas: a volume has one in this version")
        policy = PolicyRecord(replicas=replicas or 1, window_seconds=window_seconds)
        while (existing := self._volumes.get(name)) is not None:
            if (described := await self._identical(existing, size_bytes, segment_bytes, policy)) is not None:
                return described
        record = VolumeRecord(
            id=uuid.uuid4(),
            name=name,
            node=self._node,
            size_bytes=size_bytes,
            segment_bytes=self._segment_bytes(segment_bytes),
            state=Lifecycle.MAKING,
            policy=policy,
            created_ns=time.time_ns(),
        )
        volume = await self._make(record)
        log.info(
            "volume created", volume=name, id=str(record.id), size_bytes=size_bytes, segment_bytes=record.segment_bytes
        )
        return self._describe(volume)

    async def clone(
        self, source: str, name: str, *, snapshot: str = "", at_ns: int = 0, ago_ns: int | None = None
    ) -> Volume:
        """Clones a snapshot, or a point in time of the restore window, given as a Unix time or as a time span before
        now."""
        check_name(name)
        if bool(snapshot) == bool(at_ns or ago_ns is not None):
            raise InvalidArgument(f"a clone of {source}: name either a snapshot of it or a point in time")
        asked = Asked(at_ns, ago_ns, time.monotonic_ns())
        async with self._volumes.holding(
            source
        ) as parent:  # keeps the parent and the snapshot from being deleted meanwhile
            point = None if snapshot else await self._windows.find(parent, asked)
            entry = point.mark if point else await self._snapshots.find(parent, snapshot)
            of = CloneRecord(
                volume=parent.record.id,
                snapshot=uuid.UUID(bytes=entry["id"]),
                name=f"{source}@{exact_moment(point.at_ns) if point else snapshot}",
                at_ns=point.at_ns if point else 0,
                until_ns=point.log_ns if point else 0,
            )
            existing = self._volumes.get(name)
            if existing is not None:
                if (
                    existing is not parent
                    and _same_clone(existing.log.clone_of, of)
                    and existing.state == VolumeState.SERVING
                ):
                    return self._describe(existing)
                raise AlreadyExists(
                    f"a volume {name} exists, and is not a clone of {of.name} that is served: take another name"
                )
            record = VolumeRecord(
                id=uuid.uuid4(),
                name=name,
                node=self._node,
                size_bytes=parent.record.size_bytes
                if point
                else entry["size_bytes"],  # it may have grown after the restore point
                segment_bytes=parent.record.segment_bytes,
                state=Lifecycle.MAKING,
                policy=msgspec.structs.replace(parent.record.policy, window_seconds=0),
                created_ns=time.time_ns(),
            )
            if point:  # the records to be rolled forward are on stable media before the creation is recorded
                await self._engine.checkpoint(parent.record.id)
            volume = await self._make(record, of)
        log.info("volume cloned", volume=name, id=str(record.id), of=of.name, snapshot=str(of.snapshot))
        return self._describe(volume)

    async def grow(self, name: str, size_bytes: int) -> Volume:
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
                    self._metadata, volume, lambda record: msgspec.structs.replace(record, size_bytes=size_bytes)
                )
            await self._engine.grow_volume(volume.record.id, size_bytes)
            self._publish(volume)
            return self._describe(volume)

    async def delete(self, name: str, *, force: bool = False, snapshots: bool = False) -> None:
        """snapshots: delete the volume even if it has snapshots, and delete those with it."""
        volume = self._volumes.find(name)
        async with volume.changing:
            if self._volumes.get(name) is not volume:
                return  # it was deleted concurrently
            await self._refuse_connections(name, "delete", force, self._snapshots.export_names(volume))
            self._refuse_snapshots(volume, snapshots)
            if volume.log.owner != self._node:
                raise InUse(f"volume {name} is owned by node {volume.log.owner}: delete it there")
            if self._stores.missing and not force:
                raise Unavailable(
                    f"volume {name} may have segments elsewhere, which would stay there: {self._stores.missing}"
                )
            if clones := self._volumes.clones(volume):
                await self._hide(volume)
                log.info(
                    "volume deleted, and hidden until its clones are",
                    volume=name,
                    id=str(volume.record.id),
                    clones=clones,
                )
                return
            await self._delete(volume)
        await self._delete_needless_parent(volume)

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
                self._publish(volume)
                log.info("volume exported", volume=name, read_only=read_only)
            return self._exports.describe(name)[0]

    async def unexport(self, name: str, *, force: bool = False) -> None:
        async with self._volumes.holding(name, serving=False) as volume:
            await self._refuse_connections(name, "unexport", force)
            if volume.record.exports:
                await write_record(self._metadata, volume, lambda record: msgspec.structs.replace(record, exports=[]))
            await self._exports.withdraw(name)
        log.info("volume not exported any more", volume=name)

    async def checkpoint(self, name: str = "") -> list[str]:
        """Writes a checkpoint of one volume, or of all that are served; volumes deleted meanwhile are skipped. Returns
        their names."""
        if name:
            await self._engine.checkpoint(self._volumes.serving(name).record.id)
            return [name]
        volumes = [volume for volume in self._volumes.named() if volume.state == VolumeState.SERVING]
        written = await settle(self._checkpoint_if_served(volume) for volume in volumes)
        return [volume.record.name for volume, done in zip(volumes, written, strict=True) if done]

    async def _checkpoint_if_served(self, volume: OpenVolume) -> bool:
        """False: the volume was deleted meanwhile."""
        try:
            await self._engine.checkpoint(volume.record.id)
        except IomeshError:
            if self._volumes.has(volume) and volume.state == VolumeState.SERVING:
                raise
            return False
        return True

    async def show(self, name: str) -> Volume:
        """Includes the space on devices, which the engine is asked for."""
        if (unreadable := self._volumes.unreadable.get(name)) is not None:
            return _describe_unreadable(unreadable)
        volume = self._volumes.find(name)
        described = self._describe(volume)
        if volume.state != VolumeState.SERVING:
            return described
        told = await self._engine.space(volume.record.id)
        live = told["physical_bytes"] - told["log_bytes"] - told["ahead_bytes"] - told["dead_bytes"]
        space = Space(**told, amplification=told["physical_bytes"] / live if live else 0.0)
        return msgspec.structs.replace(described, live_bytes=live, space=space)

    def list(self) -> list[Volume]:
        unreadable = (
            _describe_unreadable(each) for each in self._volumes.unreadable.values() if not is_hidden_name(each.name)
        )
        return sorted([*unreadable, *map(self._describe, self._volumes.named())], key=lambda volume: volume.name)

    def unanswered_seconds(self) -> Iterator[tuple[str, float]]:
        """For every visible volume: its name, and for how long the metadata service has not answered for it."""
        now = time.monotonic()
        return (
            (each.record.name, now - each.unanswered.since if each.unanswered else 0.0)
            for each in self._volumes.named()
        )

    @property
    def progress(self) -> str:
        """Describes the progress of the start."""
        volumes = self._volumes.values()
        done = sum(volume.state != VolumeState.OPENING for volume in volumes)
        return f"{done} of {len(volumes)} volumes" if volumes else ""

    @property
    def open_in_engine(self) -> int:
        """The number of volumes that are open in the engine, or will be when it answers."""
        return sum(volume.in_engine or volume.opening for volume in self._volumes.values())

    def serving(self) -> Iterator[tuple[str, uuid.UUID]]:
        """Name and id of every volume that the engine can be asked about."""
        return (
            (volume.record.name, volume.record.id)
            for volume in self._volumes.values()
            if volume.state == VolumeState.SERVING
        )

    # events of the engine

    def on_event(self, event: Event) -> None:
        volume = self._volumes.by_id(uuid.UUID(bytes=event.volume)) if event.volume else None
        name = volume.record.name if volume else None
        match event.kind:
            case "checkpoint" if volume is not None:
                self._pointers.move(volume, event.value)
            case "checksum" | "device":
                log.error(f"{event.kind} error", volume=name, **event.value)
            case "tight":
                self.on_tight()
            case "no_space":
                if volume is None or volume.waiting.begins(time.monotonic()):
                    log.warning("no space: writes wait for the cleaner to make some", volume=name)
                self.on_no_space()
            case "refused":
                if volume is None or volume.refusing.begins(time.monotonic()):
                    log.error(
                        "no space: writes are refused until there is; delete or trim something, or add a device",
                        volume=name,
                    )
            case _:
                log.info(event.kind.replace("_", " "), volume=name, **event.value)

    # steps

    async def _make(self, record: VolumeRecord, of: CloneRecord | None = None) -> OpenVolume:
        """Creates a volume. Afterwards it is open, or nothing is left of it. Raises AlreadyExists if the name is
        taken."""
        self._stores.refuse_while_changing()
        volume = OpenVolume(record, LogRecord(id=record.id, epoch=0, owner=self._node, clone_of=of))
        self._volumes.add(volume)
        async with volume.changing:
            try:
                volume.version, volume.log_version = await create_records(self._metadata, record, volume.log)
                await self._open(volume)
                if record.policy.window_seconds:
                    await self._windows.keep(volume)
                if self._engine.volume_state(record.id)[
                    "no_space"
                ]:  # a clone opens without, to be read: after a crash it must
                    raise NoSpace(
                        f"cannot create volume {record.name}: no device of this node has space for one segment"
                    )
            except BaseException:
                await self._discard(volume)
                raise
        return volume

    async def _open(self, volume: OpenVolume) -> None:
        """Takes ownership under a new epoch, recovers the volume, publishes its export."""
        volume.state, volume.reason = VolumeState.OPENING, ""
        if not volume.in_engine:  # else a previous attempt opened it but failed in a later step
            await self._recover(volume)
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
        self._publish(volume)
        log.info("volume open", volume=record.name, epoch=volume.log.epoch, **volume.recovery)

    async def _recover(self, volume: OpenVolume) -> None:
        of = volume.log.clone_of
        parent = self._volumes.by_id(of.volume) if of is not None else None
        if of is not None and parent is not None and parent.awaits_metadata:
            raise MetadataUnavailable(
                f"volume {volume.record.name} is a clone of {of.name}, which waits for the metadata service"
            )
        await take_over(self._metadata, volume, self._node)
        record, at = volume.record, volume.log.checkpoint
        self._stores.refuse_while_changing()
        volume.opening = True
        try:
            volume.recovery = await self._engine.open_volume(
                record.id,
                size_bytes=record.size_bytes,
                epoch=volume.log.epoch,
                segment_bytes=record.segment_bytes,
                checkpoint=Pointer(at.segment, at.block, at.crc) if at else None,
                clone_of=(of.volume, of.snapshot) if of else None,
                name=record.name,
                window_seconds=record.policy.window_seconds,
                replicas=record.policy.replicas,
            )
            volume.in_engine = True
        finally:
            volume.opening = False

    def _publish(self, volume: OpenVolume) -> None:
        record = volume.record
        for export in record.exports:
            self._exports.publish(
                record.id,
                record.name,
                size_bytes=record.size_bytes,
                read_only=export.read_only,
                volatile_cache=self._stores.volatile_cache,
            )

    async def _delete(self, volume: OpenVolume) -> None:
        """If the metadata service does not answer, the volume may already be recorded as deleted: then it is erased
        once the service answers."""
        try:
            await write_record(
                self._metadata,
                volume,
                lambda record: msgspec.structs.replace(
                    record, state=Lifecycle.DELETING, exports=[], snapshot_exports=[]
                ),
            )
            await self._erase(volume)
        except MetadataUnavailable as error:
            volume.state = VolumeState.DELETING
            await self._exports.withdraw(volume.record.name)
            self._fail(volume, error)
            raise
        except IomeshError as error:
            self._fail(volume, error)
            raise

    async def go_on_deleting(self, volume: OpenVolume) -> None:
        """Retries the rest of a deletion that was interrupted by an error."""
        async with volume.changing:
            if not self._volumes.has(volume) or volume.record.state != Lifecycle.DELETING:
                return
            if volume.log.owner != self._node or self._stores.missing:
                return  # another node owns it, or some of its devices are missing
            try:
                await self._erase(volume)
            except IomeshError as error:
                self._fail(volume, error)
                return
        await self._delete_needless_parent(volume)

    async def _hide(self, volume: OpenVolume) -> None:
        """The volume has clones: only its name, its exports, and the snapshots that no clone needs are removed now. The
        name becomes free only when no export uses it any more."""
        name = volume.record.name
        await hide_record(self._metadata, volume)
        try:
            await self._exports.withdraw(name)
            await self._snapshots.hide(volume, name)
            await release_name(self._metadata, name, volume.record.id)
        finally:
            self._volumes.release(volume)

    async def _delete_needless_parent(self, volume: OpenVolume) -> None:
        """After a clone is deleted."""
        if volume.log.clone_of is not None:
            await self.delete_needless(volume.log.clone_of.volume)

    async def delete_needless(self, parent: uuid.UUID) -> None:
        """Deletes a hidden parent without clones; if it still has some, deletes what it kept for the deleted clone."""
        volume = self._volumes.by_id(parent)
        if volume is not None:
            await self._delete_if_needless(volume)

    async def _delete_if_needless(self, volume: OpenVolume) -> None:
        async with volume.changing:
            name = volume.record.name
            if not self._volumes.has(volume) or not is_hidden(volume):
                return
            if self._volumes.clones(volume):
                await self._snapshots.hide(volume, name)
                return
            try:
                await self._delete(volume)
            except IomeshError as error:
                log.error(
                    "hidden volume not deleted; tried again when the node starts", volume=name, reason=error.message
                )
                return
        await self._delete_needless_parent(volume)

    async def _erase(self, volume: OpenVolume) -> None:
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
        segments = await self._engine.erase_volume(volume.record.id)
        await remove_records(self._metadata, volume.record)
        self._volumes.remove(volume)
        log.info("volume deleted", volume=name, id=str(volume.record.id), segments=segments)

    async def _discard(self, volume: OpenVolume) -> None:
        """Removes everything of a creation that failed. What cannot be removed now is removed once the metadata service
        answers, or at the next start of the node."""
        volume.state = VolumeState.DELETING
        try:
            if volume.log_version:
                await write_record(
                    self._metadata, volume, lambda record: msgspec.structs.replace(record, state=Lifecycle.DELETING)
                )
                await self._erase(volume)
            else:  # it was never opened
                await remove_records(self._metadata, volume.record)
                self._volumes.remove(volume)
        except IomeshError as error:
            self._fail(volume, error)

    def _fail(self, volume: OpenVolume, error: IomeshError) -> None:
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
            if self._retrying is None or self._retrying.done():
                self._retrying = self._supervisor.spawn("wait for the metadata service", self._retry_until_answered())
            return
        if volume.state != VolumeState.DELETING:
            volume.state = VolumeState.FAILED
        if (volume.state, volume.reason) != told:
            log.error("volume failed", volume=volume.record.name, state=volume.state.value, reason=error.message)

    # checks and answers

    def _refuse_snapshots(self, volume: OpenVolume, snapshots: bool) -> None:
        count = sum(visible(entry) for entry in volume.snapshots)
        if count and not snapshots:
            raise InUse(
                f"volume {volume.record.name} has {count} snapshot(s): delete it with its snapshots, if they may go too"
            )

    async def _refuse_connections(self, name: str, what: str, force: bool, snapshots: Iterable[str] = ()) -> None:
        """snapshots: the names of their exports."""
        if force:
            return
        exports = [name, *snapshots]
        await self._exports.let_leave(*exports)
        if connections := sum(self._exports.connections(export) for export in exports):
            raise InUse(f"volume {name} has {connections} connection(s): end them, or {what} with force")

    async def _identical(
        self, volume: OpenVolume, size_bytes: int, segment_bytes: int, policy: PolicyRecord
    ) -> Volume | None:
        """The answer to a repeated creation, finished or in progress. None: the name now belongs to another volume, or
        to none."""
        record = volume.record
        if is_hidden(volume):
            async with volume.changing:  # until its name is free
                return None
        wanted = (size_bytes, segment_bytes or record.segment_bytes, policy)
        if volume.state == VolumeState.DELETING:
            raise AlreadyExists(f"a volume {record.name} is being deleted: wait until it is gone, or take another name")
        if wanted != (record.size_bytes, record.segment_bytes, record.policy):
            raise AlreadyExists(
                f"a volume {record.name} exists and is different: {exact_size(record.size_bytes)}, segments of "
                f"{exact_size(record.segment_bytes)}, {record.policy.replicas} replica(s), a restore window of "
                f"{exact_span(record.policy.window_seconds)}: take another name, or `iomesh volume grow` or `set` "
                "that one"
            )
        async with volume.changing:  # until it is open or has failed
            if self._volumes.get(record.name) is not volume:
                return None
            return self._describe(self._volumes.serving(record.name))

    def _segment_bytes(self, asked: int) -> int:
        largest = self._stores.largest_bytes
        if not largest:
            raise NoSpace(
                "this node has no device: `iomesh device format` one, and name it in the configuration or add it"
            )
        return choose_segment_bytes(asked, largest)

    def _describe(self, volume: OpenVolume) -> Volume:
        record = volume.record
        state = self._engine.volume_state(record.id) if volume.state == VolumeState.SERVING else {}
        broken = bool(state) and bool(state["error"])
        return Volume(
            name=record.name,
            id=str(record.id),
            size_bytes=record.size_bytes,
            segment_bytes=record.segment_bytes,
            epoch=volume.log.epoch,
            owner=volume.log.owner,
            state=VolumeState.READ_ONLY if broken else volume.state,
            reason=why_log_failed(state) if broken else volume.reason,
            warnings=volume_warnings(volume),
            policy=Policy(replicas=record.policy.replicas, window_seconds=record.policy.window_seconds),
            created_at=time_of(record.created_ns),
            exports=self._exports.describe(record.name),
            live_bytes=state.get("live_blocks", 0) * compiled.BLOCK_BYTES,
            space=_mapped(state) if state else Space(),
            log_bytes_since_checkpoint=state.get("log_bytes_since_checkpoint", 0),
            segments=state.get("segments", 0),
            sequence=state.get("sequence", 0),
            reactor=volume.recovery.get("reactor", 0),
            recovery_seconds=volume.recovery.get("seconds", 0.0),
            snapshots=sum(visible(entry) for entry in volume.snapshots),
            clone_of=volume.log.clone_of.name if volume.log.clone_of else "",
            flattening=_progress(volume.flattening, state),
            recovery_bytes=volume.recovery.get("replayed_bytes", 0),
            # Rounded up to a restorable time.
            window_from=next((time_of(mark["time_ns"] + 999) for mark in marks_of(volume)), None),
        )


def _describe_unreadable(unreadable: Unreadable) -> Volume:
    """Nothing else is known of it."""
    return Volume(
        name=unreadable.name,
        id=str(unreadable.id or ""),
        size_bytes=0,
        segment_bytes=0,
        epoch=0,
        owner=unreadable.node,
        state=VolumeState.FAILED,
        reason=unreadable.reason,
        policy=Policy(replicas=0),
    )


def _mapped(state: dict[str, Any]) -> Space:
    """What is known without asking the engine's reactor."""
    mapped, exclusive, inherited = (
        state[f"{name}_blocks"] * compiled.BLOCK_BYTES for name in ("mapped", "exclusive", "inherited")
    )
    return Space(
        mapped_bytes=mapped,
        exclusive_bytes=exclusive,
        inherited_bytes=inherited,
        shared_bytes=max(mapped - exclusive - inherited, 0),
    )


def _progress(flattening: Flattening, state: dict[str, Any]) -> Flattening:
    if not flattening.running or not state:
        return flattening
    left = state["inherited_blocks"] * compiled.BLOCK_BYTES
    return msgspec.structs.replace(flattening, done_bytes=max(flattening.total_bytes - left, 0))


def _same_clone(one: CloneRecord | None, other: CloneRecord) -> bool:
    """Whether both are of the same snapshot or point in time. If nothing was written after that point yet, `until_ns`
    is the newest record's."""
    return one is not None and msgspec.structs.replace(one, until_ns=other.until_ns) == other
