"""The snapshots of this node's volumes, and their exports. The engine stores each snapshot in its volume's own log.

- The engine creates a snapshot under an id that is generated here; the snapshot exists once the engine has answered,
  not before.
- An exported snapshot is open in the engine and listed in its volume's record, so that it is exported again after a
  restart.
- Every change to a volume's snapshots is made with the volume's `changing` held.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import msgspec

from iomesh.api.model import ChangedRange, Difference, Export, Snapshot, VolumeState
from iomesh.engine import engine as compiled
from iomesh.errors import AlreadyExists, InUse, InvalidArgument, IomeshError, NotFound
from iomesh.metadata import Metadata
from iomesh.metadata.records import SnapshotExportRecord, VolumeRecord
from iomesh.node.engine import NodeEngine
from iomesh.node.exports import NBD, Exports
from iomesh.node.limits import check_snapshot_name, is_id
from iomesh.node.logs import logger
from iomesh.node.room import refuse_without_space, retry_for_space
from iomesh.node.volume import NodeVolume, Registry, write_record
from iomesh.times import time_of

log = logger("snapshots")

MARK = "@"
RANGES_MAX = 65536  # of one answer about what differs: a few MiB
DISCARD = "discard what the volume is now (`--discard`), "


class Snapshots:
    def __init__(self, engine: NodeEngine, metadata: Metadata, exports: Exports, volumes: Registry) -> None:
        self._engine = engine
        self._metadata = metadata
        self._exports = exports
        self._volumes = volumes

    # commands of users

    async def create(self, volumes: list[str], name: str) -> list[Snapshot]:
        """Of several volumes: all at one instant. Returns the existing snapshots if one earlier call created them."""
        check_snapshot_name(name)
        if not volumes or len(set(volumes)) < len(volumes):
            raise InvalidArgument(f"snapshot {name}: name one volume, or several different ones")
        return await retry_for_space(lambda: self._create(volumes, name))

    async def _create(self, volumes: list[str], name: str) -> list[Snapshot]:
        async with AsyncExitStack() as held:
            by_name = {}
            for each in sorted(volumes):  # one order for all calls: no two wait for each other
                by_name[each] = await held.enter_async_context(self._volumes.holding(each))
            opened = [by_name[each] for each in volumes]
            # One of the pending commands may create these snapshots.
            self._engine.refuse_pending([volume.record.id for volume in opened])
            existing = [found for volume in opened if (found := await self._look_for(volume, name)) is not None]
            if existing:
                if len(existing) < len(opened) or len({entry["time_ns"] for entry in existing}) > 1:
                    raise AlreadyExists(
                        f"snapshots named {name} of {', '.join(volumes)} exist, but were not taken at one instant: "
                        "choose another name"
                    )
                return [self._describe(volume, entry) for volume, entry in zip(opened, existing, strict=True)]
            with refuse_without_space(self._engine, opened):
                await self._engine.create_snapshots([(volume.record.id, uuid.uuid4(), name) for volume in opened])
            made = []
            for volume in opened:
                entry = await self.find(volume, name)
                made.append(self._describe(volume, entry))
                log.info(
                    "snapshot made",
                    volume=volume.record.name,
                    snapshot=name,
                    id=made[-1].id,
                    sequence=entry["sequence"],
                )
            return made

    async def list(self, volume: str = "", *, hidden: bool = False) -> list[Snapshot]:
        """The snapshots of one volume, or of all served volumes, oldest first. hidden: include deleted ones that are
        still needed."""
        wanted = (
            [self._volumes.serving(volume)] if volume else [each for each in self._volumes.named() if each.in_engine]
        )
        found = []
        for each in wanted:
            try:
                await self.refresh(each)
            except IomeshError:
                if not volume and not each.in_engine:
                    continue  # the volume was deleted concurrently
                raise
            found += [self._describe(each, entry) for entry in each.snapshots if hidden or visible(entry)]
        return found

    async def get(self, volume: str, name: str) -> Snapshot:
        opened = self._volumes.serving(volume)
        return self._describe(opened, await self.find(opened, name))

    async def delete(self, volume: str, name: str, *, force: bool = False) -> bool:
        """Returns whether it stays, hidden, because something depends on it. Its space is freed after the answer."""
        async with self._volumes.holding(volume) as opened:
            entry = await self.find(opened, name)
            await self._refuse_connections(opened, name, "delete", force)
            identity = uuid.UUID(bytes=entry["id"])
            if clones := self._volumes.clones(opened, identity):
                raise InUse(f"snapshot {export_name(volume, name)} has clones, {', '.join(clones)}: delete them first")
            await self._withdraw(opened, identity, name)
            hidden = await self._engine.delete_snapshot(opened.record.id, identity)
            await self.refresh(opened)
            log.info("snapshot deleted", volume=volume, snapshot=name, id=str(identity), hidden=hidden)
            return hidden

    async def export(self, volume: str, name: str) -> Export:
        async with self._volumes.holding(volume) as opened:
            entry = await self.find(opened, name)
            identity, export = uuid.UUID(bytes=entry["id"]), export_name(volume, name)
            if not self._exports.describe(export):
                await self._engine.open_snapshot(opened.record.id, identity)
                try:
                    await write_record(self._metadata, opened, lambda record: _with_export(record, identity))
                except BaseException:
                    await self._engine.close_snapshot(identity)
                    raise
                self._publish(opened, entry)
                log.info("snapshot exported", volume=volume, snapshot=name)
            return self._exports.describe(export)[0]

    async def unexport(self, volume: str, name: str, *, force: bool = False) -> None:
        async with self._volumes.holding(volume) as opened:
            entry = await self.find(opened, name)
            await self._refuse_connections(opened, name, "unexport", force)
            await self._withdraw(opened, uuid.UUID(bytes=entry["id"]), name)

    async def restore(self, volume: str, name: str, *, discard: bool = False, force: bool = False) -> str:
        """Restores the volume to a snapshot. Returns the name of the snapshot of its state before; empty: that was
        discarded."""
        return await retry_for_space(lambda: self._restore(volume, name, discard=discard, force=force))

    async def _restore(self, volume: str, name: str, *, discard: bool, force: bool) -> str:
        async with self._volumes.holding(volume) as opened:
            identity = uuid.UUID(bytes=(await self.find(opened, name))["id"])
            before = free_name(opened, restored_name())
            restore_point = new_restore_point() if opened.record.policy.window_seconds else None
            await (self._exports.let_nodes_leave(opened.record.id) if force else self._exports.let_leave(volume))
            with (
                refuse_users(opened, self._exports),
                refuse_without_space(self._engine, [opened], "" if discard else DISCARD),
            ):
                await self._engine.restore_volume(
                    opened.record.id,
                    identity,
                    before=uuid.uuid4(),
                    name=before,
                    discard=discard,
                    force=force,
                    mark=restore_point,
                )
            await self.refresh(opened)
            kept = "" if discard else before
            log.info("volume restored", volume=volume, snapshot=name, id=str(identity), before=kept)
            return kept

    async def diff(self, volume: str, older: str, newer: str, *, offset: int, ranges: int) -> Difference:
        """newer: empty stands for the current volume."""
        if offset % compiled.BLOCK_BYTES:
            block = compiled.BLOCK_BYTES
            raise InvalidArgument(
                f"offset {offset} is not a multiple of {block}: start at 0, then where the last answer ended"
            )
        if ranges > RANGES_MAX:
            raise InvalidArgument(f"{ranges} ranges are too many for one answer: request at most {RANGES_MAX}")
        opened = self._volumes.serving(volume)
        first = await self.find(opened, older)
        second = await self.find(opened, newer) if newer else None
        found = await self._engine.diff_snapshots(
            opened.record.id,
            uuid.UUID(bytes=first["id"]),
            uuid.UUID(bytes=second["id"]) if second else None,
            offset=offset,
            most=ranges or RANGES_MAX,
        )
        changed = [ChangedRange(offset=at, length=length, zero=not mapped) for at, length, mapped in found["ranges"]]
        return Difference(ranges=changed, next=found["next"], nodes=found["nodes"])

    def made_ns(self) -> Iterator[tuple[str, Sequence[int]]]:
        """For every served volume: its name and the creation times of its snapshots, as the engine listed them last."""
        for volume in self._volumes.named():
            if volume.state == VolumeState.SERVING:
                yield volume.record.name, [entry["time_ns"] for entry in volume.snapshots if visible(entry)]

    # steps for their volume; the caller holds its `changing`

    async def opened(self, volume: NodeVolume) -> None:
        """Publishes the recorded exports. One that cannot be published is reported, and keeps no other from being
        served."""
        await self.refresh(volume)
        entries = {uuid.UUID(bytes=entry["id"]): entry for entry in volume.snapshots}
        for export in volume.record.snapshot_exports:
            entry = entries.get(export.snapshot)
            if entry is None or not visible(entry):
                continue  # it was deleted, but the daemon was killed before the record was updated
            try:
                await self._engine.open_snapshot(volume.record.id, export.snapshot)
                self._publish(volume, entry)
            except IomeshError as error:
                log.error(
                    "snapshot not exported", volume=volume.record.name, snapshot=entry["name"], reason=error.message
                )

    async def closing(self, volume: NodeVolume) -> None:
        """Ends their connections and closes them; the record still lists them as exported."""
        for entry in volume.snapshots:
            export = export_name(volume.record.name, entry["name"])
            if self._exports.describe(export):
                await self._exports.withdraw(export)
                await self._engine.close_snapshot(uuid.UUID(bytes=entry["id"]))

    async def hide(self, volume: NodeVolume, name: str) -> None:
        """The volume, which had this name, is hidden for its clones: ends exports, gives up its head, deletes snapshots
        that no clone needs. A failure is reported; the rest is retried when the next clone is deleted or the node
        starts."""
        if not volume.in_engine:
            return
        try:
            await self.refresh(volume)
            for entry in [entry for entry in volume.snapshots if is_kept(entry)]:
                identity, export = uuid.UUID(bytes=entry["id"]), export_name(name, entry["name"])
                if self._exports.describe(export):
                    await self._exports.withdraw(export)
                    await self._engine.close_snapshot(identity)
            await self._give_up_head(volume)
            for entry in [entry for entry in volume.snapshots if is_kept(entry)]:
                identity = uuid.UUID(bytes=entry["id"])
                if not self._volumes.clones(volume, identity):
                    await self._engine.delete_snapshot(volume.record.id, identity)
                elif entry["mark"]:
                    await self._engine.unmark_snapshot(volume.record.id, identity)
            await self.refresh(volume)
        except IomeshError as error:
            log.error("snapshots of a hidden volume not deleted", volume=volume.record.name, reason=error.message)

    async def _give_up_head(self, volume: NodeVolume) -> None:
        """Restores a hidden volume to a snapshot that has clones, completely or not at all, and discards its head: so
        it holds no space that they do not need."""
        needed = [entry for entry in volume.snapshots if self._volumes.clones(volume, uuid.UUID(bytes=entry["id"]))]
        state = self._engine.volume_state(volume.record.id)
        if not needed or (state["head_parent"] in [entry["id"] for entry in needed] and not state["exclusive_blocks"]):
            return
        identity = uuid.UUID(bytes=needed[-1]["id"])
        await self._engine.restore_volume(
            volume.record.id, identity, before=uuid.uuid4(), name="given-up", discard=True, force=True
        )
        await self.refresh(volume)

    def export_names(self, volume: NodeVolume) -> Sequence[str]:
        return [export_name(volume.record.name, entry["name"]) for entry in volume.snapshots]

    async def refresh(self, volume: NodeVolume) -> None:
        volume.snapshots = sorted(
            await self._engine.list_snapshots(volume.record.id), key=lambda entry: int(entry["sequence"])
        )

    # helpers

    async def _look_for(self, volume: NodeVolume, name: str) -> dict[str, Any] | None:
        await self.refresh(volume)
        return next((entry for entry in volume.snapshots if visible(entry) and entry["name"] == name), None)

    async def find(self, volume: NodeVolume, name: str) -> dict[str, Any]:
        entry = await self._look_for(volume, name)
        if entry is None:
            raise NotFound(
                f"volume {volume.record.name} has no snapshot {name!r}: `iomesh snapshot list` shows all snapshots"
            )
        return entry

    async def name_of(self, volume: str, words: str) -> str:
        """The name of the snapshot with this name or id. Raises NotFound."""
        if not is_id(words):
            return words
        opened = self._volumes.serving(volume)
        await self.refresh(opened)
        for entry in opened.snapshots:
            if str(uuid.UUID(bytes=entry["id"])) == words and visible(entry):
                return str(entry["name"])
        raise NotFound(f"volume {volume} has no snapshot with the id {words}: `iomesh snapshot list` shows all")

    def _publish(self, volume: NodeVolume, entry: dict[str, Any]) -> None:
        self._exports.publish(
            uuid.UUID(bytes=entry["id"]),
            export_name(volume.record.name, entry["name"]),
            size_bytes=entry["size_bytes"],
            read_only=True,
            volatile_cache=False,
            earlier=lambda: {
                each["name"]: uuid.UUID(bytes=each["id"])
                for each in volume.snapshots
                if visible(each) and each["sequence"] < entry["sequence"]
            },
        )

    async def _withdraw(self, volume: NodeVolume, identity: uuid.UUID, name: str) -> None:
        export = export_name(volume.record.name, name)
        if any(export.snapshot == identity for export in volume.record.snapshot_exports):
            await write_record(self._metadata, volume, lambda record: _without_export(record, identity))
        if self._exports.describe(export):
            await self._exports.withdraw(export)
            await self._engine.close_snapshot(identity)
            log.info("snapshot unexported", volume=volume.record.name, snapshot=name)

    async def _refuse_connections(self, volume: NodeVolume, name: str, what: str, force: bool) -> None:
        if force:
            return
        export = export_name(volume.record.name, name)
        await self._exports.let_leave(export)
        if connections := self._exports.connections(export):
            raise InUse(f"snapshot {export} has {connections} connection(s): end them, or {what} with force")

    def _describe(self, volume: NodeVolume, entry: dict[str, Any]) -> Snapshot:
        return Snapshot(
            volume=volume.record.name,
            volume_id=str(volume.record.id),
            name=entry["name"],
            id=str(uuid.UUID(bytes=entry["id"])),
            sequence=entry["sequence"],
            created_at=time_of(entry["time_ns"]),
            size_bytes=entry["size_bytes"],
            parent=str(uuid.UUID(bytes=entry["parent"])) if entry["parent"] else "",
            hidden=bool(entry["hidden"]),
            deleting=bool(entry["dying"]),
            clones=len(self._volumes.clones(volume, uuid.UUID(bytes=entry["id"]))),
            mapped_bytes=entry["mapped_blocks"] * compiled.BLOCK_BYTES,
            new_bytes=entry["new_blocks"] * compiled.BLOCK_BYTES,
            exports=self._exports.describe(export_name(volume.record.name, entry["name"])) if visible(entry) else [],
        )


def visible(entry: dict[str, Any]) -> bool:
    """Whether it was created by a user and is not deleted."""
    return is_kept(entry) and not entry["name"].startswith(MARK)


def is_kept(entry: dict[str, Any]) -> bool:
    """Whether it is not deleted. A deleted snapshot may stay listed while something depends on it."""
    return not (entry["hidden"] or entry["dying"])


def new_restore_point() -> tuple[uuid.UUID, str]:
    """Id and name of a restore point: a name that no user can choose."""
    return uuid.uuid4(), f"{MARK}{time.time_ns()}"


def export_name(volume: str, snapshot: str) -> str:
    """The name of a snapshot's export. No volume's name has an @."""
    return f"{volume}@{snapshot}"


def restored_name() -> str:
    return f"before-restore-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@contextmanager
def refuse_users(volume: NodeVolume, exports: Exports) -> Iterator[None]:
    """Adds a remedy to the error when the engine refuses to go back because clients are connected. Refuses it itself
    while other nodes forward requests of their clients: these would connect again, and their clients not notice."""
    if nodes := exports.forwarding_nodes(volume.record.id):
        raise InUse(
            f"volume {volume.record.name} has clients on node {', '.join(sorted(set(nodes)))}, and a restore would "
            "change blocks under their file systems: disconnect them there, then restore"
        )
    try:
        yield
    except InUse:
        name = volume.record.name
        raise InUse(
            f"volume {name} has {exports.connections(name)} connection(s), and a restore would change blocks under "
            "their file systems: stop the database, unmount, disconnect, then restore; or restore with force, which "
            "closes the connections"
        ) from None


def free_name(volume: NodeVolume, name: str) -> str:
    """`name`; if there is such a snapshot, with a number appended."""
    taken = {entry["name"] for entry in volume.snapshots if visible(entry)}
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _with_export(record: VolumeRecord, snapshot: uuid.UUID) -> VolumeRecord:
    others = _without_export(record, snapshot).snapshot_exports
    return msgspec.structs.replace(
        record, snapshot_exports=[*others, SnapshotExportRecord(snapshot=snapshot, protocol=NBD)]
    )


def _without_export(record: VolumeRecord, snapshot: uuid.UUID) -> VolumeRecord:
    return msgspec.structs.replace(
        record, snapshot_exports=[each for each in record.snapshot_exports if each.snapshot != snapshot]
    )
