"""The services Controller and GroupController: messages to calls of volumes and snapshots, and back.

There is no ControllerPublishVolume: a volume is attached by its node alone (docs/csi.md says why).
"""

from __future__ import annotations

from iomesh.csi import capabilities, parameters
from iomesh.csi import csi_pb2 as pb
from iomesh.csi.cluster import Cluster
from iomesh.csi.health import volume_health
from iomesh.csi.snapshots import Snapshots
from iomesh.csi.volumes import Volumes, describe
from iomesh.errors import InvalidArgument

_Rpc = pb.ControllerServiceCapability.RPC
_GroupRpc = pb.GroupControllerServiceCapability.RPC
CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.MODIFY_VOLUME,
    _Rpc.GET_SNAPSHOT,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.LIST_VOLUME_HEALTH,
)


def need(value: str, field: str) -> str:
    """Raises InvalidArgument if the field is empty."""
    if not value:
        raise InvalidArgument(f"the request has no {field}")
    return value


class Controller:
    def __init__(self, cluster: Cluster, volumes: Volumes, snapshots: Snapshots) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._snapshots = snapshots

    async def controller_get_capabilities(
        self, request: pb.ControllerGetCapabilitiesRequest
    ) -> pb.ControllerGetCapabilitiesResponse:
        return pb.ControllerGetCapabilitiesResponse(
            capabilities=[pb.ControllerServiceCapability(rpc=_Rpc(type=each)) for each in CAPABILITIES]
        )

    async def create_volume(self, request: pb.CreateVolumeRequest) -> pb.CreateVolumeResponse:
        return await self._volumes.create(request)

    async def delete_volume(self, request: pb.DeleteVolumeRequest) -> pb.DeleteVolumeResponse:
        await self._volumes.delete(need(request.volume_id, "volume_id"))
        return pb.DeleteVolumeResponse()

    async def validate_volume_capabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        need(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise InvalidArgument("the request has no volume capabilities to validate")
        volume = await self._cluster.get(request.volume_id)
        try:
            capabilities.check(request.volume_capabilities)
            given = parameters.parse(request.parameters, request.mutable_parameters, list(request.volume_capabilities))
            if given.replicas not in (None, volume.policy.replicas):
                raise InvalidArgument(f"volume {volume.name} has {volume.policy.replicas} replica(s)")
        except InvalidArgument as error:
            return pb.ValidateVolumeCapabilitiesResponse(message=error.message)
        return pb.ValidateVolumeCapabilitiesResponse(
            confirmed=pb.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    async def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        found, token = await self._volumes.listed(most=request.max_entries, token=request.starting_token)
        entries = [pb.ListVolumesResponse.Entry(volume=describe(each)) for each in found]
        return pb.ListVolumesResponse(entries=entries, next_token=token)

    async def controller_get_volume(self, request: pb.ControllerGetVolumeRequest) -> pb.ControllerGetVolumeResponse:
        volume = await self._cluster.get(need(request.volume_id, "volume_id"))
        return pb.ControllerGetVolumeResponse(
            volume=describe(volume), status=pb.ControllerGetVolumeResponse.VolumeStatus()
        )

    async def controller_get_volume_health(
        self, request: pb.ControllerGetVolumeHealthRequest
    ) -> pb.ControllerGetVolumeHealthResponse:
        volume = await self._cluster.get(need(request.volume_id, "volume_id"))
        return pb.ControllerGetVolumeHealthResponse(volume_health=volume_health(volume))

    async def controller_list_volume_health(
        self, request: pb.ControllerListVolumeHealthRequest
    ) -> pb.ControllerListVolumeHealthResponse:
        """Of every volume, healthy ones included."""
        found, token = await self._volumes.listed(most=request.max_entries, token=request.starting_token)
        entries = [volume_health(each) for each in found]
        return pb.ControllerListVolumeHealthResponse(entries=entries, next_token=token)

    async def get_capacity(self, request: pb.GetCapacityRequest) -> pb.GetCapacityResponse:
        return await self._volumes.capacity(request)

    async def controller_expand_volume(
        self, request: pb.ControllerExpandVolumeRequest
    ) -> pb.ControllerExpandVolumeResponse:
        need(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise InvalidArgument("the request has no capacity_range, the size to grow to")
        size = await self._volumes.expand(request)
        return pb.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=True)

    async def controller_modify_volume(
        self, request: pb.ControllerModifyVolumeRequest
    ) -> pb.ControllerModifyVolumeResponse:
        need(request.volume_id, "volume_id")
        window_seconds = parameters.parse_mutable(request.mutable_parameters)
        await self._volumes.modify(request.volume_id, window_seconds)
        return pb.ControllerModifyVolumeResponse()

    async def create_snapshot(self, request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
        need(request.name, "name")
        need(request.source_volume_id, "source_volume_id")
        parameters.refuse_any(request.parameters, "parameter of a VolumeSnapshotClass")
        return pb.CreateSnapshotResponse(snapshot=await self._snapshots.create(request.source_volume_id, request.name))

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest) -> pb.DeleteSnapshotResponse:
        await self._snapshots.delete(need(request.snapshot_id, "snapshot_id"))
        return pb.DeleteSnapshotResponse()

    async def list_snapshots(self, request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        found, token = await self._snapshots.listed(request)
        entries = [pb.ListSnapshotsResponse.Entry(snapshot=each) for each in found]
        return pb.ListSnapshotsResponse(entries=entries, next_token=token)

    async def get_snapshot(self, request: pb.GetSnapshotRequest) -> pb.GetSnapshotResponse:
        return pb.GetSnapshotResponse(snapshot=await self._snapshots.get(need(request.snapshot_id, "snapshot_id")))


class GroupController:
    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    async def group_controller_get_capabilities(
        self, request: pb.GroupControllerGetCapabilitiesRequest
    ) -> pb.GroupControllerGetCapabilitiesResponse:
        kind = _GroupRpc(type=_GroupRpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        return pb.GroupControllerGetCapabilitiesResponse(capabilities=[pb.GroupControllerServiceCapability(rpc=kind)])

    async def create_volume_group_snapshot(
        self, request: pb.CreateVolumeGroupSnapshotRequest
    ) -> pb.CreateVolumeGroupSnapshotResponse:
        need(request.name, "name")
        if not request.source_volume_ids:
            raise InvalidArgument(f"group {request.name}: the request names no source volumes")
        parameters.refuse_any(request.parameters, "parameter of a VolumeGroupSnapshotClass")
        made = await self._snapshots.create_group(request.name, request.source_volume_ids)
        return pb.CreateVolumeGroupSnapshotResponse(group_snapshot=made)

    async def delete_volume_group_snapshot(
        self, request: pb.DeleteVolumeGroupSnapshotRequest
    ) -> pb.DeleteVolumeGroupSnapshotResponse:
        await self._snapshots.delete_group(need(request.group_snapshot_id, "group_snapshot_id"), request.snapshot_ids)
        return pb.DeleteVolumeGroupSnapshotResponse()

    async def get_volume_group_snapshot(
        self, request: pb.GetVolumeGroupSnapshotRequest
    ) -> pb.GetVolumeGroupSnapshotResponse:
        found = await self._snapshots.get_group(
            need(request.group_snapshot_id, "group_snapshot_id"), request.snapshot_ids
        )
        return pb.GetVolumeGroupSnapshotResponse(group_snapshot=found)
