"""The calls of the control API, from messages to this node's parts and back: one method per call of iomesh.proto."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.message import Message

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.messages import to_message, to_struct
from iomesh.api.model import MembershipState, RestoreVolumeResponse, Snapshot, Volume, VolumeState
from iomesh.api.model import Node as Member
from iomesh.errors import InvalidArgument, IomeshError, NotFound, Unavailable
from iomesh.metadata.volumes import find_volume
from iomesh.node.control.draining import set_draining
from iomesh.node.control.forwarding import Forwarding
from iomesh.node.control.joining import Joining, remove_member
from iomesh.node.control.operations import Call, Operations
from iomesh.node.control.paging import page
from iomesh.node.control.verdict import cluster_status
from iomesh.node.control.watching import Watching
from iomesh.node.metadata_calls import answered
from iomesh.node.supervisor import settle
from iomesh.node.windows import check_point_in_time
from iomesh.times import time_of

if TYPE_CHECKING:
    from iomesh.node.node import Node

OPEN_SECONDS = 10.0  # for the new owner of a volume to open it
LOOK_SECONDS = 2.0
OPEN_POLL_SECONDS = 0.02


def point_in_time(request: pb.CloneVolumeRequest | pb.RestoreVolumeRequest) -> dict[str, int]:
    """The requested point in time, `at_ns` (Unix time) or `ago_ns`; empty: none is requested. Raises
    InvalidArgument."""
    if not request.HasField("at"):
        return {}
    try:
        at_ns = request.at.time.ToNanoseconds() if request.at.HasField("time") else None
        ago_ns = request.at.ago.ToNanoseconds() if request.at.HasField("ago") else None
    except ValueError as error:  # from protobuf: outside the range of its types
        raise InvalidArgument(f"volume {request.volume}: the point in time is invalid: {error}") from None
    check_point_in_time(at_ns=at_ns, ago_ns=ago_ns)
    return {"at_ns": at_ns} if at_ns is not None else {"ago_ns": ago_ns or 0}


class ClusterService:
    def __init__(self, node: Node, forwarding: Forwarding, address: Callable[[], str], call: Call) -> None:
        """address: of this node's control API, for others. call: as for Operations."""
        self.address = address
        self._node = node
        self._forwarding = forwarding
        self.operations = Operations(node, call)
        self.watching = Watching(node, self.members, self.operations.known)

    async def get_status(self, request: pb.GetStatusRequest) -> pb.Status:
        return to_message(pb.Status, self._node.status())

    async def get_counters(self, request: pb.GetCountersRequest) -> pb.Counters:
        return to_message(pb.Counters, self._ready().counters())

    async def get_cluster_status(self, request: pb.GetClusterStatusRequest) -> pb.ClusterStatus:
        return to_message(pb.ClusterStatus, await cluster_status(self._ready(), self.members(), self._forwarding))

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        self._ready()
        nodes, token = page(self.members(), lambda node: node.name, request)
        return pb.ListNodesResponse(nodes=[to_message(pb.Node, node) for node in nodes], next_page_token=token)

    async def watch(self, request: pb.WatchRequest) -> AsyncIterator[pb.WatchEvent]:
        self._ready()
        async for event in self.watching.watch(request):
            yield event

    async def create_join_token(self, request: pb.CreateJoinTokenRequest) -> pb.JoinToken:
        return to_message(pb.JoinToken, await self._joining().create_token(request.seconds))

    async def join(self, request: pb.JoinRequest, token: str = "") -> pb.JoinResponse:
        """token: the id in the client's certificate."""
        return await self._joining().join(request, token)

    async def remove_node(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        node = self._ready()
        await remove_member(node.metadata, node.cluster_view, request.name, forget_devices=request.forget_devices)
        return pb.RemoveNodeResponse()

    async def drain_node(self, request: pb.DrainNodeRequest) -> pb.DrainNodeResponse:
        node = self._ready()
        await set_draining(node.metadata, node.cluster_view, request.name, draining=not request.undo)
        return pb.DrainNodeResponse()

    def _joining(self) -> Joining:
        return Joining(self._ready(), self.address())

    async def list_devices(self, request: pb.ListDevicesRequest) -> pb.ListDevicesResponse:
        devices, token = page(self._assembled().stores.list(), lambda device: f"{device.path}\0{device.id}", request)
        return pb.ListDevicesResponse(
            devices=[to_message(pb.Device, device) for device in devices], next_page_token=token
        )

    async def get_device(self, request: pb.GetDeviceRequest) -> pb.Device:
        return to_message(pb.Device, await self._ready().stores.find(request.device))

    async def add_device(self, request: pb.AddDeviceRequest) -> pb.Device:
        return to_message(pb.Device, await self._ready().add_device(request.path))

    async def remove_device(self, request: pb.RemoveDeviceRequest) -> pb.RemoveDeviceResponse:
        await self._ready().stores.remove(request.device)
        return pb.RemoveDeviceResponse()

    async def create_volume(self, request: pb.CreateVolumeRequest) -> pb.Volume:
        volume = await self._ready().volumes.create(
            request.name,
            request.size_bytes,
            segment_bytes=request.segment_bytes,
            replicas=request.policy.replicas,
            window_seconds=request.policy.window_seconds,
        )
        return to_message(pb.Volume, volume)

    async def clone_volume(self, request: pb.CloneVolumeRequest) -> pb.Volume:
        node, point = self._ready(), point_in_time(request)
        name = await self._snapshot(request.volume, request.snapshot)
        volume = await node.volumes.clone(request.volume, request.name, snapshot=name, **point)
        return to_message(pb.Volume, volume)

    async def flatten_volume(self, request: pb.FlattenVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().flattening.flatten(request.name))

    async def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        volumes, token = page(self._assembled().volumes.list_all(), lambda volume: volume.name, request)
        return pb.ListVolumesResponse(
            volumes=[to_message(pb.Volume, volume) for volume in volumes], next_page_token=token
        )

    async def get_volume(self, request: pb.GetVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().volumes.show(request.name))

    async def grow_volume(self, request: pb.GrowVolumeRequest) -> pb.Volume:
        grown = await self._ready().volumes.grow(request.name, request.size_bytes, if_generation=request.if_generation)
        return to_message(pb.Volume, grown)

    async def set_volume(self, request: pb.SetVolumeRequest) -> pb.Volume:
        windows = self._ready().windows
        await windows.set(request.name, request.window_seconds, if_generation=request.if_generation)
        return to_message(pb.Volume, await self._ready().volumes.show(request.name))

    async def move_volume(self, request: pb.MoveVolumeRequest) -> pb.Volume:
        moved = await self._ready().volumes.move(request.name, request.node, force=request.force)
        await self._until_served(moved)
        return to_message(pb.Volume, moved)

    async def _until_served(self, moved: Volume) -> None:
        """The new owner has it, and may still be opening it. Raises Unavailable."""
        deadline = time.monotonic() + OPEN_SECONDS
        while moved.owner != self._ready().name:
            reason = "it is being opened"
            try:
                answer = await self._forwarding.call(
                    moved.owner, "GetVolume", pb.GetVolumeRequest(name=moved.name), seconds=LOOK_SECONDS
                )
                if to_struct(Volume, answer).state in (VolumeState.SERVING, VolumeState.READ_ONLY):
                    return
            except (NotFound, Unavailable) as error:
                reason = error.message
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"volume {moved.name} was moved, and node {moved.owner} does not serve it after "
                    f"{OPEN_SECONDS:g} s: {reason}; see that node's log"
                )
            await asyncio.sleep(OPEN_POLL_SECONDS)

    async def take_over_volume(self, request: pb.TakeOverVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().volumes.take_over(request.name, force=request.force))

    async def delete_volume(self, request: pb.DeleteVolumeRequest) -> pb.DeleteVolumeResponse:
        await self._ready().volumes.delete(request.name, force=request.force, snapshots=request.snapshots)
        return pb.DeleteVolumeResponse()

    async def export_here(
        self, request: pb.ExportVolumeRequest, ask_owner: Callable[[], Awaitable[Message]]
    ) -> Message:
        """Of a volume that another node owns: this node's export, which forwards requests to the owner. The owner is
        asked in any case: an export that this node still has may be one that the owner has just ended."""
        node = self._ready()
        exported = await ask_owner()
        stored = await answered(find_volume(node.metadata, request.name))
        if node.forwarding is None or stored is None or not stored.volume.record.exports:  # ended again
            return exported
        (here,) = await node.forwarding.exported(stored.volume.record)
        return to_message(pb.Export, here)

    async def export_volume(self, request: pb.ExportVolumeRequest) -> pb.Export:
        return to_message(pb.Export, await self._ready().volumes.export(request.name, read_only=request.read_only))

    async def unexport_volume(self, request: pb.UnexportVolumeRequest) -> pb.UnexportVolumeResponse:
        await self._ready().volumes.unexport(request.name, force=request.force)
        return pb.UnexportVolumeResponse()

    async def create_snapshots(self, request: pb.CreateSnapshotsRequest) -> pb.CreateSnapshotsResponse:
        made = await self._ready().snapshots.create(list(request.volumes), request.name)
        return pb.CreateSnapshotsResponse(snapshots=[to_message(pb.Snapshot, snapshot) for snapshot in made])

    async def list_snapshots(self, request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        return self._page_of_snapshots(
            await self._ready().snapshots.list(request.volume, hidden=request.hidden), request
        )

    async def list_all_snapshots(self, request: pb.ListSnapshotsRequest, seconds: float | None) -> Message:
        """Those of all nodes that run."""
        mine = await self._ready().snapshots.list(hidden=request.hidden)
        others = [name for name in self._node.cluster_view.running if name != self._node.name]
        found = await settle(self._snapshots_of(node, request.hidden, seconds) for node in others)
        return self._page_of_snapshots([*mine, *(each for several in found for each in several)], request)

    async def _snapshots_of(self, node: str, hidden: bool, seconds: float | None) -> list[Snapshot]:
        request, found = pb.ListSnapshotsRequest(hidden=hidden), list[Snapshot]()
        while True:
            answer = await self._forwarding.call(node, "ListSnapshots", request, seconds)
            assert isinstance(answer, pb.ListSnapshotsResponse)
            found += [to_struct(Snapshot, each) for each in answer.snapshots]
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return found

    def _page_of_snapshots(self, found: list[Snapshot], request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        snapshots, token = page(
            found, lambda snapshot: f"{snapshot.volume}\0{snapshot.sequence:020}\0{snapshot.id}", request
        )
        return pb.ListSnapshotsResponse(
            snapshots=[to_message(pb.Snapshot, snapshot) for snapshot in snapshots], next_page_token=token
        )

    async def get_snapshot(self, request: pb.GetSnapshotRequest) -> pb.Snapshot:
        name = await self._snapshot(request.volume, request.snapshot)
        return to_message(pb.Snapshot, await self._ready().snapshots.get(request.volume, name))

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest) -> pb.DeleteSnapshotResponse:
        name = await self._snapshot(request.volume, request.snapshot)
        hidden = await self._ready().snapshots.delete(request.volume, name, force=request.force)
        return pb.DeleteSnapshotResponse(hidden=hidden)

    async def export_snapshot(self, request: pb.ExportSnapshotRequest) -> pb.Export:
        name = await self._snapshot(request.volume, request.snapshot)
        return to_message(pb.Export, await self._ready().snapshots.export(request.volume, name))

    async def unexport_snapshot(self, request: pb.UnexportSnapshotRequest) -> pb.UnexportSnapshotResponse:
        name = await self._snapshot(request.volume, request.snapshot)
        await self._ready().snapshots.unexport(request.volume, name, force=request.force)
        return pb.UnexportSnapshotResponse()

    async def restore_volume(self, request: pb.RestoreVolumeRequest) -> pb.RestoreVolumeResponse:
        node, how, point = self._ready(), {"discard": request.discard, "force": request.force}, point_in_time(request)
        if bool(request.snapshot) == bool(point):
            raise InvalidArgument(f"volume {request.volume}: name either a snapshot or a point in time to restore")
        if point:
            done = await node.windows.restore(request.volume, discard=request.discard, force=request.force, **point)
            answer = RestoreVolumeResponse(before=done.before, at=time_of(done.at_ns))
        else:
            name = await self._snapshot(request.volume, request.snapshot)
            answer = RestoreVolumeResponse(before=await node.snapshots.restore(request.volume, name, **how))
        return to_message(pb.RestoreVolumeResponse, answer)

    async def diff_snapshots(self, request: pb.DiffSnapshotsRequest) -> pb.DiffSnapshotsResponse:
        name, other = [await self._snapshot(request.volume, each) for each in (request.snapshot, request.other)]
        found = await self._ready().snapshots.diff(
            request.volume, name, other, offset=request.offset, ranges=request.ranges
        )
        return to_message(pb.DiffSnapshotsResponse, found)

    async def checkpoint(self, request: pb.CheckpointRequest) -> pb.CheckpointResponse:
        return pb.CheckpointResponse(volumes=await self._ready().volumes.checkpoint(request.name))

    async def start_operation(self, request: pb.StartOperationRequest) -> pb.Operation:
        self._ready()
        return await self.operations.begin(request)

    async def get_operation(self, request: pb.GetOperationRequest) -> pb.Operation:
        self._ready()
        return await self.operations.get(request.id)

    async def list_operations(self, request: pb.ListOperationsRequest) -> pb.ListOperationsResponse:
        self._ready()
        return await self.operations.list_page(request)

    async def wait_operation(self, request: pb.WaitOperationRequest) -> pb.Operation:
        self._ready()
        return await self.operations.wait(request)

    # what other nodes are asked for

    def members(self) -> list[Member]:
        """The nodes that run, and those that have devices."""
        view = self._node.cluster_view
        devices: dict[str, int] = {}
        for device in view.devices():
            devices[device.node] = devices.get(device.node, 0) + 1
        running = view.running
        found = []
        for name in sorted(running.keys() | devices.keys()):
            record, count = running.get(name), devices.get(name, 0)
            if record is None:
                down = Member(name=name, state=MembershipState.DOWN, devices=count, draining=view.is_draining(name))
                found.append(down)
                continue
            found.append(
                Member(
                    name=name,
                    id=str(record.state),
                    state=MembershipState.RUNNING,
                    control_address=record.control_address,
                    peer_address=record.peer_address,
                    host=record.host,
                    version=record.version,
                    started_at=time_of(record.started_ns),
                    devices=count,
                    draining=view.is_draining(name),
                )
            )
        return found

    async def _snapshot(self, volume: str, words: str) -> str:
        """The name of a snapshot that is addressed by its name or its id."""
        return await self._ready().snapshots.name_of(volume, words)

    async def stored_volume(self, request: pb.GetVolumeRequest, why: IomeshError) -> pb.Volume:
        """What the metadata service has of a volume whose owner does not answer."""
        volume = await self._node.volumes.show(request.name)
        return to_message(pb.Volume, msgspec.structs.replace(volume, reason=volume.reason or why.message))

    def _ready(self) -> Node:
        if not self._node.serving:
            raise self._unavailable()
        return self._node

    def _assembled(self) -> Node:
        """For calls that can also be answered while the node starts."""
        if not self._node.assembled:
            raise self._unavailable()
        return self._node

    def _unavailable(self) -> Unavailable:
        status = self._node.status()
        step = f" ({status.step})" if status.step else ""
        return Unavailable(f"node {status.node} is {status.state.value}{step}: try again shortly")
