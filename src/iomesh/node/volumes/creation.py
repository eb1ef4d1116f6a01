"""Creates volumes, empty ones and clones. The records are written first, so the next start can finish or remove what a
crash interrupted.
"""

from __future__ import annotations

import time
import uuid

import msgspec

from iomesh.api.model import Volume, VolumeState
from iomesh.errors import AlreadyExists, InvalidArgument, NoSpace, Unavailable
from iomesh.metadata.nodes import node_names
from iomesh.metadata.records import CloneRecord, Lifecycle, LogRecord, PolicyRecord, VolumeRecord, list_devices
from iomesh.metadata.volumes import create_records
from iomesh.node.limits import check_name, check_replicas, check_size, choose_segment_bytes
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered
from iomesh.node.volume import NodeVolume, is_hidden
from iomesh.node.volumes.deletion import Deletion
from iomesh.node.volumes.opening import Opening
from iomesh.node.volumes.parts import Parts
from iomesh.node.volumes.view import View
from iomesh.node.windows import Asked, check_window
from iomesh.sizes import exact_size
from iomesh.times import exact_span, exact_time

log = logger("volumes")


class Creation:
    def __init__(self, parts: Parts, opening: Opening, deletion: Deletion, view: View) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._volumes = parts.volumes
        self._snapshots = parts.snapshots
        self._windows = parts.windows
        self._node = parts.node
        self._opening = opening
        self._deletion = deletion
        self._view = view

    async def create(
        self, name: str, size_bytes: int, *, segment_bytes: int = 0, replicas: int = 0, window_seconds: int = 0
    ) -> Volume:
        check_name(name)
        check_size(size_bytes)
        check_window(window_seconds)
        policy = PolicyRecord(replicas=replicas or 1, window_seconds=window_seconds)
        check_replicas(policy.replicas)
        while (existing := self._volumes.get(name)) is not None:
            if (described := await self._identical(existing, size_bytes, segment_bytes, policy)) is not None:
                return described
        await self._refuse_replicas_without_nodes(name, policy.replicas)
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
        return self._view.describe(volume)

    async def _refuse_replicas_without_nodes(self, name: str, replicas: int) -> None:
        """Each replica is on another node."""
        if replicas == 1:
            return
        running = await answered(node_names(self._metadata))
        devices, _ = await answered(list_devices(self._metadata))
        nodes = [node for node in running if any(device.record.node == node for device in devices)]
        if replicas > len(nodes):
            empty = ", ".join(node for node in running if node not in nodes)
            raise Unavailable(
                f"volume {name} with {replicas} replicas needs {replicas} nodes, and {len(nodes)} of this cluster run "
                f"({', '.join(nodes)}{f'; without a device: {empty}' if empty else ''}): start more, or choose fewer "
                "replicas"
            )

    async def _identical(
        self, volume: NodeVolume, size_bytes: int, segment_bytes: int, policy: PolicyRecord
    ) -> Volume | None:
        """The answer to a repeated creation, finished or in progress. None: the name now belongs to another volume, or
        to none."""
        record = volume.record
        if is_hidden(volume):
            async with volume.changing:  # until its name is free
                return None
        wanted = (size_bytes, segment_bytes or record.segment_bytes, policy)
        if volume.state == VolumeState.DELETING:
            raise AlreadyExists(
                f"a volume {record.name} is being deleted: wait until it is gone, or choose another name"
            )
        if wanted != (record.size_bytes, record.segment_bytes, record.policy):
            raise AlreadyExists(
                f"a volume {record.name} exists and is different: {exact_size(record.size_bytes)}, segments of "
                f"{exact_size(record.segment_bytes)}, {record.policy.replicas} replica(s), a restore window of "
                f"{exact_span(record.policy.window_seconds)}: choose another name, or `iomesh volume grow` or `set` "
                "that one"
            )
        async with volume.changing:  # until it is open or has failed
            if self._volumes.get(record.name) is not volume:
                return None
            return self._view.describe(self._volumes.serving(record.name))

    def _segment_bytes(self, asked: int) -> int:
        largest = self._stores.largest_bytes
        if not largest:
            raise NoSpace(
                "this node has no device: `iomesh device format` one, and name it in the configuration or add it"
            )
        return choose_segment_bytes(asked, largest)

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
            entry = point.restore_point if point else await self._snapshots.find(parent, snapshot)
            of = CloneRecord(
                volume=parent.record.id,
                snapshot=uuid.UUID(bytes=entry["id"]),
                name=f"{source}@{exact_time(point.at_ns) if point else snapshot}",
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
                    return self._view.describe(existing)
                raise AlreadyExists(
                    f"a volume {name} exists, and is not a clone of {of.name} that is served: choose another name"
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
            # Its segments are numbered above the snapshot's.
            volume = await self._make(record, of, promised=entry["branch"] - 1)
        log.info("volume cloned", volume=name, id=str(record.id), of=of.name, snapshot=str(of.snapshot))
        return self._view.describe(volume)

    async def _make(self, record: VolumeRecord, of: CloneRecord | None = None, *, promised: int = 0) -> NodeVolume:
        """Creates a volume, whose segments are numbered above `promised`. Afterwards it is open, or nothing is left of
        it. Raises AlreadyExists if the name is taken."""
        self._stores.refuse_while_changing()
        volume = NodeVolume(record, LogRecord(id=record.id, epoch=0, owner=self._node, clone_of=of, promised=promised))
        self._volumes.add(volume)
        async with volume.changing:
            try:
                volume.version, volume.log_version = await create_records(self._metadata, record, volume.log)
                await self._opening.open(volume)
                if record.policy.window_seconds:
                    await self._windows.keep(volume)
                if self._engine.volume_state(record.id)[
                    "no_space"
                ]:  # a clone opens without, to be read: after a crash it must
                    raise NoSpace(
                        f"cannot create volume {record.name}: no device of this node has space for one segment"
                    )
            except BaseException:
                await self._deletion.discard(volume)
                raise
        return volume


def _same_clone(one: CloneRecord | None, other: CloneRecord) -> bool:
    """Whether both are of the same snapshot or point in time. If nothing was written after that point yet, `until_ns`
    is the newest record's."""
    return one is not None and msgspec.structs.replace(one, until_ns=other.until_ns) == other
