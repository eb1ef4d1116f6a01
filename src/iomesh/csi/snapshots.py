"""Snapshots of volumes, one at a time or of several volumes at one instant (a group). Each is durable, and ready to
use, when the call answers."""

from __future__ import annotations

from collections.abc import Sequence

from iomesh.api.model import Snapshot, Volume
from iomesh.csi import csi_pb2 as pb
from iomesh.csi import hooks
from iomesh.csi.cluster import Cluster
from iomesh.csi.locks import Locks
from iomesh.csi.names import (
    CLONE_PREFIX,
    GROUP_PREFIX,
    SnapshotId,
    group_snapshot_name,
    is_uuid,
    parse_snapshot_id,
    snapshot_name,
)
from iomesh.csi.paging import page
from iomesh.errors import AlreadyExists, InUse, InvalidArgument, NotFound
from iomesh.node.logs import logger

log = logger("snapshots")


class Snapshots:
    def __init__(self, cluster: Cluster, locks: Locks) -> None:
        self._cluster = cluster
        self._locks = locks

    async def create(self, source_id: str, csi_name: str) -> pb.Snapshot:
        name = snapshot_name(csi_name)
        with self._locks.hold("CreateSnapshot", f"snapshot {name}"):
            volume = await self._cluster.get(source_id)
            known = await self._cluster.all_snapshots(complete=False)
            other = next((of.name for of, each in known if each.name == name and of.id != volume.id), None)
            if other is not None:
                raise AlreadyExists(f"a snapshot {name} exists, and is of volume {other}: choose another name")
            async with self._cluster.connect() as node:
                (made,) = await node.create_snapshots([volume.id], name)
            hooks.passed("snapshot: made")
            return describe(volume, made)

    async def delete(self, snapshot_id: str) -> None:
        """Also if it is not there. Raises InUse (FAILED_PRECONDITION) while volumes depend on it."""
        identity = parse_snapshot_id(snapshot_id)
        if identity is None:
            return
        with self._locks.hold("DeleteSnapshot", snapshot_id):
            found = await self._cluster.find_snapshot(identity)
            if found is None:
                return
            if found[1].name.startswith(GROUP_PREFIX):
                raise InvalidArgument(
                    f"snapshot {found[1].name} of volume {found[0].name} is one of a group: delete the group"
                )
            await self._delete(*found)

    async def get(self, snapshot_id: str) -> pb.Snapshot:
        """Raises NotFound."""
        identity = parse_snapshot_id(snapshot_id)
        found = await self._cluster.find_snapshot(identity) if identity is not None else None
        if found is None:
            raise NotFound(f"there is no snapshot with the id {snapshot_id!r}")
        return describe(*found)

    async def listed(self, request: pb.ListSnapshotsRequest) -> tuple[list[pb.Snapshot], str]:
        entries = [describe(volume, each) for volume, each in await self._chosen(request) if _is_users(each)]
        return page(
            entries,
            lambda entry: entry.snapshot_id,
            most=request.max_entries,
            token=request.starting_token,
            valid=lambda token: parse_snapshot_id(token) is not None,
        )

    async def _chosen(self, request: pb.ListSnapshotsRequest) -> Sequence[tuple[Volume, Snapshot]]:
        if request.snapshot_id:
            identity = parse_snapshot_id(request.snapshot_id)
            found = await self._cluster.find_snapshot(identity) if identity is not None else None
            matches = found is not None and request.source_volume_id in ("", found[0].id)
            return [found] if found is not None and matches else []
        if request.source_volume_id:
            volume = await self._cluster.find(request.source_volume_id) if is_uuid(request.source_volume_id) else None
            return [(volume, each) for each in await self._cluster.snapshots(volume)] if volume is not None else []
        return await self._cluster.all_snapshots()

    # groups

    async def create_group(self, csi_name: str, source_ids: Sequence[str]) -> pb.VolumeGroupSnapshot:
        name = group_snapshot_name(csi_name)
        with self._locks.hold("CreateVolumeGroupSnapshot", name):
            volumes = [await self._cluster.get(each) for each in source_ids]
            owners = {each.owner for each in volumes}
            if len(owners) > 1:
                raise InUse(
                    f"the volumes {', '.join(each.name for each in volumes)} are owned by different nodes, "
                    f"{', '.join(sorted(owners))}, and a snapshot at one instant needs one: move them to one node "
                    "(`iomesh volume move`)"
                )
            async with self._cluster.connect() as node:
                made = await node.create_snapshots([each.id for each in volumes], name)
            hooks.passed("snapshot: made")
            return _group(name, list(zip(volumes, made, strict=True)))

    async def delete_group(self, group_id: str, snapshot_ids: Sequence[str]) -> None:
        with self._locks.hold("DeleteVolumeGroupSnapshot", group_id):
            for volume, snapshot in await self._members(group_id, snapshot_ids):
                await self._delete(volume, snapshot)

    async def get_group(self, group_id: str, snapshot_ids: Sequence[str]) -> pb.VolumeGroupSnapshot:
        """Raises NotFound unless all of these snapshots are of this group."""
        members = await self._members(group_id, snapshot_ids)
        if not members or (snapshot_ids and {_identity(*each) for each in members} != set(snapshot_ids)):
            raise NotFound(
                f"there is no group of snapshots {group_id!r} with {', '.join(snapshot_ids) or 'any member'}"
            )
        return _group(group_id, members)

    async def _members(self, group_id: str, snapshot_ids: Sequence[str]) -> list[tuple[Volume, Snapshot]]:
        if not group_id.startswith(GROUP_PREFIX):
            return []
        found = await self._cluster.all_snapshots()
        members = [(volume, each) for volume, each in found if each.name == group_id]
        strangers = {each for each in snapshot_ids if parse_snapshot_id(each) is None}
        if strangers:
            raise InvalidArgument(f"{', '.join(sorted(strangers))}: no snapshots of this driver")
        return [each for each in members if _identity(*each) in snapshot_ids] if snapshot_ids else members

    async def _delete(self, volume: Volume, snapshot: Snapshot) -> None:
        async with self._cluster.connect() as node:
            try:
                await node.delete_snapshot(volume.id, snapshot.id)
            except NotFound:
                return
        hooks.passed("delete: snapshot gone")
        log.info("snapshot deleted", volume=volume.name, snapshot=snapshot.name)


def _is_users(snapshot: Snapshot) -> bool:
    return not snapshot.name.startswith(CLONE_PREFIX)


def _identity(volume: Volume, snapshot: Snapshot) -> str:
    return str(SnapshotId(volume.id, snapshot.id))


def describe(volume: Volume, snapshot: Snapshot) -> pb.Snapshot:
    answer = pb.Snapshot(
        size_bytes=snapshot.size_bytes,
        snapshot_id=_identity(volume, snapshot),
        source_volume_id=volume.id,
        ready_to_use=True,
        group_snapshot_id=snapshot.name if snapshot.name.startswith(GROUP_PREFIX) else "",
    )
    answer.creation_time.FromDatetime(snapshot.created_at)
    return answer


def _group(group_id: str, members: Sequence[tuple[Volume, Snapshot]]) -> pb.VolumeGroupSnapshot:
    answer = pb.VolumeGroupSnapshot(
        group_snapshot_id=group_id, snapshots=[describe(*each) for each in members], ready_to_use=True
    )
    answer.creation_time.FromDatetime(members[0][1].created_at)
    return answer
