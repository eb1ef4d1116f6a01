"""The service Node: messages to calls of staging, and back."""

from __future__ import annotations

from iomesh.csi import capabilities
from iomesh.csi import csi_pb2 as pb
from iomesh.csi.attach.methods import Methods
from iomesh.csi.cluster import Cluster
from iomesh.csi.controller import need
from iomesh.csi.health import volume_health
from iomesh.csi.locks import Locks
from iomesh.csi.parameters import FS_TYPE
from iomesh.csi.placement import Topology
from iomesh.csi.staging import Staging, Use
from iomesh.errors import InUse, InvalidArgument, Unavailable

_Rpc = pb.NodeServiceCapability.RPC
CAPABILITIES = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.GET_STORAGE_HEALTH,
)


class Node:
    def __init__(
        self, cluster: Cluster, staging: Staging, attacher: Methods, topology: Topology, *, volumes_max: int
    ) -> None:
        self._cluster = cluster
        self._staging = staging
        self._attacher = attacher
        self._topology = topology
        self._volumes_max = volumes_max
        self._locks = Locks()

    async def node_get_capabilities(self, request: pb.NodeGetCapabilitiesRequest) -> pb.NodeGetCapabilitiesResponse:
        return pb.NodeGetCapabilitiesResponse(
            capabilities=[pb.NodeServiceCapability(rpc=_Rpc(type=each)) for each in CAPABILITIES]
        )

    async def node_get_info(self, request: pb.NodeGetInfoRequest) -> pb.NodeGetInfoResponse:
        node = await self._cluster.own_node()
        return pb.NodeGetInfoResponse(
            node_id=node, max_volumes_per_node=self._volumes_max, accessible_topology=self._topology.of(node)
        )

    async def node_stage_volume(self, request: pb.NodeStageVolumeRequest) -> pb.NodeStageVolumeResponse:
        need(request.volume_id, "volume_id")
        need(request.staging_target_path, "staging_target_path")
        capabilities.check([request.volume_capability] if request.HasField("volume_capability") else [])
        use = _use(request.volume_capability, request.volume_context.get(FS_TYPE, ""))
        with self._locks.hold("NodeStageVolume", request.volume_id, request.staging_target_path):
            await self._staging.stage(request.volume_id, request.staging_target_path, use)
        return pb.NodeStageVolumeResponse()

    async def node_unstage_volume(self, request: pb.NodeUnstageVolumeRequest) -> pb.NodeUnstageVolumeResponse:
        need(request.volume_id, "volume_id")
        need(request.staging_target_path, "staging_target_path")
        with self._locks.hold("NodeUnstageVolume", request.volume_id, request.staging_target_path):
            await self._staging.unstage(request.volume_id, request.staging_target_path)
        return pb.NodeUnstageVolumeResponse()

    async def node_publish_volume(self, request: pb.NodePublishVolumeRequest) -> pb.NodePublishVolumeResponse:
        need(request.volume_id, "volume_id")
        need(request.target_path, "target_path")
        capabilities.check([request.volume_capability] if request.HasField("volume_capability") else [])
        if not request.staging_target_path:
            raise InUse("the request has no staging_target_path: stage the volume first")
        use = _use(request.volume_capability, "")
        with self._locks.hold("NodePublishVolume", request.volume_id, request.target_path):
            await self._staging.publish(
                request.volume_id, request.staging_target_path, request.target_path, use, read_only=request.readonly
            )
        return pb.NodePublishVolumeResponse()

    async def node_unpublish_volume(self, request: pb.NodeUnpublishVolumeRequest) -> pb.NodeUnpublishVolumeResponse:
        need(request.volume_id, "volume_id")
        need(request.target_path, "target_path")
        with self._locks.hold("NodeUnpublishVolume", request.volume_id, request.target_path):
            await self._staging.unpublish(request.volume_id, request.target_path)
        return pb.NodeUnpublishVolumeResponse()

    async def node_expand_volume(self, request: pb.NodeExpandVolumeRequest) -> pb.NodeExpandVolumeResponse:
        need(request.volume_id, "volume_id")
        need(request.volume_path, "volume_path")
        block = request.volume_capability.WhichOneof("access_type") == "block"
        with self._locks.hold("NodeExpandVolume", request.volume_id):
            size = await self._staging.expand(request.volume_id, request.volume_path, block=block)
        required = request.capacity_range.required_bytes
        if size < required:
            raise InvalidArgument(
                f"volume {request.volume_id} has {size} bytes, and {required} are required: expand it in the "
                "controller first"
            )
        return pb.NodeExpandVolumeResponse(capacity_bytes=size)

    async def node_get_volume_stats(self, request: pb.NodeGetVolumeStatsRequest) -> pb.NodeGetVolumeStatsResponse:
        need(request.volume_id, "volume_id")
        need(request.volume_path, "volume_path")
        files, size = await self._staging.usage(request.volume_id, request.volume_path)
        if files is None:
            return pb.NodeGetVolumeStatsResponse(usage=[pb.VolumeUsage(unit=pb.VolumeUsage.BYTES, total=size)])
        block = files.f_frsize
        return pb.NodeGetVolumeStatsResponse(
            usage=[
                pb.VolumeUsage(
                    unit=pb.VolumeUsage.BYTES,
                    available=files.f_bavail * block,
                    total=files.f_blocks * block,
                    used=(files.f_blocks - files.f_bfree) * block,
                ),
                pb.VolumeUsage(
                    unit=pb.VolumeUsage.INODES,
                    available=files.f_favail,
                    total=files.f_files,
                    used=files.f_files - files.f_ffree,
                ),
            ]
        )

    async def node_get_volume_health(self, request: pb.NodeGetVolumeHealthRequest) -> pb.NodeGetVolumeHealthResponse:
        volume = await self._cluster.get(need(request.volume_id, "volume_id"))
        health = volume_health(volume)
        if self._attacher.failed(volume.id):
            health.health_statuses.add(
                status=pb.INACCESSIBLE,
                reason="DeviceFailed",
                message="the process that serves its device on this node has ended: delete the pods that use it",
            )
        return pb.NodeGetVolumeHealthResponse(volume_health=health)

    async def node_get_storage_health(self, request: pb.NodeGetStorageHealthRequest) -> pb.NodeGetStorageHealthResponse:
        """Whether volumes can be attached to this node."""
        answer = pb.NodeGetStorageHealthResponse()
        if lacking := self._attacher.lacking():
            answer.backend_health.add(status=pb.STORAGE_UNREACHABLE, reason="CannotAttach", message=lacking)
        try:
            await self._cluster.own_node()
        except Unavailable as error:
            answer.backend_health.add(status=pb.STORAGE_UNREACHABLE, reason="DaemonDown", message=error.message)
        return answer


def _use(capability: pb.VolumeCapability, fs_type: str) -> Use:
    block = capability.WhichOneof("access_type") == "block"
    return Use(
        block=block,
        fs_type="" if block else capability.mount.fs_type or fs_type,
        flags=() if block else tuple(capability.mount.mount_flags),
        read_only=capabilities.reads_only(capability),
        one_node=capabilities.one_node(capability),
        one_pod=capabilities.one_pod(capability),
    )
