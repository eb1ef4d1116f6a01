"""A client of a cluster's control API, at any of its nodes.

    async with Client("/run/iomesh/control.sock") as node:
        volume = await node.create_volume("db", 10 << 30)

A volume is named by its name or its id, a snapshot likewise. `node`: the node that is to answer; empty: the one that is
asked. Every error is an IomeshError: the one that a node raised, or Unavailable if there is no answer. A Client is used
in one event loop.

This package, iomesh.api, and iomesh.errors need nothing else of iomesh: no engine, no daemon.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.channel import Channel, Credentials, grpc_target
from iomesh.api.messages import to_struct
from iomesh.api.model import (
    ClusterStatus,
    Counters,
    Device,
    Difference,
    Export,
    JoinToken,
    Node,
    Operation,
    OperationState,
    RestoreVolumeResponse,
    Snapshot,
    Status,
    Volume,
    WatchEvent,
)
from iomesh.errors import InvalidArgument

__all__ = ["DEFAULT_ADDRESS", "Client", "Credentials"]

DEFAULT_ADDRESS = "/run/iomesh/control.sock"
WAIT_SECONDS = 30.0  # of one call that waits for an operation

AnswerT = TypeVar("AnswerT", bound=Message)


class Client:
    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_seconds: float | None = 120.0,
        credentials: Credentials | None = None,
    ) -> None:
        """credentials: for a node at host:port that has certificates; a unix socket needs none."""
        grpc_target(address)
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._credentials = credentials
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = Channel(self.address, self._credentials)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    # nodes

    async def status(self, node: str = "") -> Status:
        return to_struct(Status, await self._call("GetStatus", pb.GetStatusRequest(node=node), pb.Status))

    async def counters(self, node: str = "") -> Counters:
        return to_struct(Counters, await self._call("GetCounters", pb.GetCountersRequest(node=node), pb.Counters))

    async def cluster_status(self) -> ClusterStatus:
        """Of all nodes together, with one verdict."""
        request = pb.GetClusterStatusRequest()
        return to_struct(ClusterStatus, await self._call("GetClusterStatus", request, pb.ClusterStatus))

    async def nodes(self) -> list[Node]:
        """Of the cluster, by name: those that run, and those that have devices."""

        async def page(token: str) -> tuple[list[Node], str]:
            request = pb.ListNodesRequest(page_token=token)
            answer = await self._call("ListNodes", request, pb.ListNodesResponse)
            return [to_struct(Node, node) for node in answer.nodes], answer.next_page_token

        return await _all(page)

    async def watch(
        self, *, nodes: bool = True, volumes: bool = True, operations: bool = False
    ) -> AsyncGenerator[WatchEvent]:
        """First what exists (`current`), then `synced`, then each change, until the caller stops. Ends with an error
        when the connection does: then watch again, which begins anew."""
        if self._channel is None:
            raise RuntimeError("a Client is used inside `async with`")
        request = pb.WatchRequest(nodes=nodes, volumes=volumes, operations=operations)
        async with aclosing(self._channel.stream("Watch", request, pb.WatchEvent)) as events:
            async for event in events:
                yield to_struct(WatchEvent, event)

    async def create_join_token(self, seconds: int = 0) -> JoinToken:
        """seconds: that it is valid; 0: an hour."""
        request = _build(pb.CreateJoinTokenRequest, seconds=seconds)
        return to_struct(JoinToken, await self._call("CreateJoinToken", request, pb.JoinToken))

    async def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """With the credentials of a join token."""
        return await self._call("Join", request, pb.JoinResponse)

    async def remove_node(self, name: str, *, forget_devices: bool = False) -> None:
        """forget_devices: as for a node that was drained: they are lost, and copies are made elsewhere."""
        request = pb.RemoveNodeRequest(name=name, forget_devices=forget_devices)
        await self._call("RemoveNode", request, pb.RemoveNodeResponse)

    async def drain_node(self, name: str, *, undo: bool = False) -> None:
        """Its volumes and copies go to other nodes; undo: they need not any more."""
        await self._call("DrainNode", pb.DrainNodeRequest(name=name, undo=undo), pb.DrainNodeResponse)

    # devices; `device` is a UUID, a label or a path

    async def devices(self, node: str = "") -> list[Device]:
        async def page(token: str) -> tuple[list[Device], str]:
            request = pb.ListDevicesRequest(node=node, page_token=token)
            answer = await self._call("ListDevices", request, pb.ListDevicesResponse)
            return [to_struct(Device, device) for device in answer.devices], answer.next_page_token

        return await _all(page)

    async def device(self, device: str, node: str = "") -> Device:
        request = pb.GetDeviceRequest(device=device, node=node)
        return to_struct(Device, await self._call("GetDevice", request, pb.Device))

    async def add_device(self, path: str, node: str = "") -> Device:
        return to_struct(Device, await self._call("AddDevice", pb.AddDeviceRequest(path=path, node=node), pb.Device))

    async def remove_device(self, device: str, node: str = "") -> None:
        request = pb.RemoveDeviceRequest(device=device, node=node)
        await self._call("RemoveDevice", request, pb.RemoveDeviceResponse)

    # volumes

    async def create_volume(
        self,
        name: str,
        size_bytes: int,
        *,
        segment_bytes: int = 0,
        replicas: int = 0,
        window_seconds: int = 0,
        node: str = "",
    ) -> Volume:
        """segment_bytes, replicas: 0 is the node's choice. node: that is to own it. Returns an existing volume if it
        matches the request."""
        request = _build(
            pb.CreateVolumeRequest,
            name=name,
            size_bytes=size_bytes,
            segment_bytes=segment_bytes,
            policy=_build(pb.Policy, replicas=replicas, window_seconds=window_seconds),
            node=node,
        )
        return to_struct(Volume, await self._call("CreateVolume", request, pb.Volume))

    async def clone_volume(
        self, volume: str, snapshot: str, name: str, *, at_ns: int = 0, ago_ns: int | None = None
    ) -> Volume:
        """Clones a snapshot, or, if that is empty, a point in time of the restore window: Unix time, or how long ago by
        the node's clock."""
        request = _build(
            pb.CloneVolumeRequest, volume=volume, snapshot=snapshot, name=name, at=_point_in_time(at_ns, ago_ns)
        )
        return to_struct(Volume, await self._call("CloneVolume", request, pb.Volume))

    async def flatten_volume(self, name: str) -> Volume:
        return to_struct(Volume, await self._call("FlattenVolume", pb.FlattenVolumeRequest(name=name), pb.Volume))

    async def volumes(self) -> list[Volume]:
        async def page(token: str) -> tuple[list[Volume], str]:
            answer = await self._call("ListVolumes", pb.ListVolumesRequest(page_token=token), pb.ListVolumesResponse)
            return [to_struct(Volume, volume) for volume in answer.volumes], answer.next_page_token

        return await _all(page)

    async def volume(self, name: str) -> Volume:
        return to_struct(Volume, await self._call("GetVolume", pb.GetVolumeRequest(name=name), pb.Volume))

    async def grow_volume(self, name: str, size_bytes: int, *, if_generation: int = 0) -> Volume:
        """if_generation: raises Conflict if the volume has another; 0: whatever it has."""
        request = _build(pb.GrowVolumeRequest, name=name, size_bytes=size_bytes, if_generation=if_generation)
        return to_struct(Volume, await self._call("GrowVolume", request, pb.Volume))

    async def set_volume(self, name: str, *, window_seconds: int, if_generation: int = 0) -> Volume:
        """window_seconds: 0: no restore window. if_generation: as in grow_volume."""
        request = _build(pb.SetVolumeRequest, name=name, window_seconds=window_seconds, if_generation=if_generation)
        return to_struct(Volume, await self._call("SetVolume", request, pb.Volume))

    async def move_volume(self, name: str, node: str = "", *, force: bool = False) -> Volume:
        """node: empty: the first other one of the volume's replica set."""
        request = _build(pb.MoveVolumeRequest, name=name, node=node, force=force)
        return to_struct(Volume, await self._call("MoveVolume", request, pb.Volume))

    async def take_over_volume(self, name: str, *, force: bool = False, node: str = "") -> Volume:
        """node: that is to own the volume. force: although its owner runs."""
        request = _build(pb.TakeOverVolumeRequest, name=name, force=force, node=node)
        return to_struct(Volume, await self._call("TakeOverVolume", request, pb.Volume))

    async def delete_volume(self, name: str, *, force: bool = False, snapshots: bool = False) -> None:
        """snapshots: delete the volume even if it has snapshots, and delete those with it."""
        await self._call(
            "DeleteVolume", pb.DeleteVolumeRequest(name=name, force=force, snapshots=snapshots), pb.DeleteVolumeResponse
        )

    async def export_volume(self, name: str, *, read_only: bool = False) -> Export:
        return to_struct(
            Export, await self._call("ExportVolume", pb.ExportVolumeRequest(name=name, read_only=read_only), pb.Export)
        )

    async def unexport_volume(self, name: str, *, force: bool = False) -> None:
        await self._call("UnexportVolume", pb.UnexportVolumeRequest(name=name, force=force), pb.UnexportVolumeResponse)

    # snapshots

    async def create_snapshots(self, volumes: list[str], name: str) -> list[Snapshot]:
        """One of each volume, all at one instant. Returns the existing ones if they were created together."""
        request = pb.CreateSnapshotsRequest(volumes=volumes, name=name)
        answer = await self._call("CreateSnapshots", request, pb.CreateSnapshotsResponse)
        return [to_struct(Snapshot, snapshot) for snapshot in answer.snapshots]

    async def snapshots(self, volume: str = "", *, hidden: bool = False) -> list[Snapshot]:
        """Of one volume, or of every volume. hidden: include deleted ones that are still needed."""

        async def page(token: str) -> tuple[list[Snapshot], str]:
            request = pb.ListSnapshotsRequest(volume=volume, hidden=hidden, page_token=token)
            answer = await self._call("ListSnapshots", request, pb.ListSnapshotsResponse)
            return [to_struct(Snapshot, snapshot) for snapshot in answer.snapshots], answer.next_page_token

        return await _all(page)

    async def snapshot(self, volume: str, snapshot: str) -> Snapshot:
        return to_struct(
            Snapshot,
            await self._call("GetSnapshot", pb.GetSnapshotRequest(volume=volume, snapshot=snapshot), pb.Snapshot),
        )

    async def delete_snapshot(self, volume: str, snapshot: str, *, force: bool = False) -> bool:
        """Returns whether it stays, hidden, because something depends on it."""
        request = pb.DeleteSnapshotRequest(volume=volume, snapshot=snapshot, force=force)
        return bool((await self._call("DeleteSnapshot", request, pb.DeleteSnapshotResponse)).hidden)

    async def export_snapshot(self, volume: str, snapshot: str) -> Export:
        request = pb.ExportSnapshotRequest(volume=volume, snapshot=snapshot)
        return to_struct(Export, await self._call("ExportSnapshot", request, pb.Export))

    async def unexport_snapshot(self, volume: str, snapshot: str, *, force: bool = False) -> None:
        request = pb.UnexportSnapshotRequest(volume=volume, snapshot=snapshot, force=force)
        await self._call("UnexportSnapshot", request, pb.UnexportSnapshotResponse)

    async def restore_volume(
        self,
        volume: str,
        snapshot: str,
        *,
        at_ns: int = 0,
        ago_ns: int | None = None,
        discard: bool = False,
        force: bool = False,
    ) -> RestoreVolumeResponse:
        """To a snapshot, or, if that is empty, to a point in time of the restore window: Unix time, or how long ago by
        the node's clock."""
        request = restore_request(volume, snapshot, at_ns=at_ns, ago_ns=ago_ns, discard=discard, force=force)
        return to_struct(RestoreVolumeResponse, await self._call("RestoreVolume", request, pb.RestoreVolumeResponse))

    async def diff_snapshots(
        self, volume: str, snapshot: str, other: str = "", *, offset: int = 0, ranges: int = 0
    ) -> Difference:
        """A part of the differences; an empty `other` is the current volume. Repeat with the answer's `next` as offset
        until that is 0."""
        request = _build(
            pb.DiffSnapshotsRequest, volume=volume, snapshot=snapshot, other=other, offset=offset, ranges=ranges
        )
        return to_struct(Difference, await self._call("DiffSnapshots", request, pb.DiffSnapshotsResponse))

    # operations: calls that may take long, carried out behind the answer

    async def start_operation(self, work: Message, identity: str = "") -> Operation:
        """work: a request of iomesh_pb2 such as DeleteVolumeRequest. identity: a new UUID; repeated with it, the call
        returns the operation that it began."""
        for field in pb.StartOperationRequest.DESCRIPTOR.oneofs_by_name["work"].fields:
            if field.message_type is work.DESCRIPTOR:
                request = pb.StartOperationRequest(id=identity)
                getattr(request, field.name).MergeFrom(work)
                getattr(request, field.name).SetInParent()
                return to_struct(Operation, await self._call("StartOperation", request, pb.Operation))
        raise InvalidArgument(f"{work.DESCRIPTOR.name} is not the request of an operation")

    async def operation(self, identity: str) -> Operation:
        return to_struct(Operation, await self._call("GetOperation", pb.GetOperationRequest(id=identity), pb.Operation))

    async def operations(self) -> list[Operation]:
        """Those that are under way, and those that ended within a day; the oldest first."""

        async def page(token: str) -> tuple[list[Operation], str]:
            request = pb.ListOperationsRequest(page_token=token)
            answer = await self._call("ListOperations", request, pb.ListOperationsResponse)
            return [to_struct(Operation, each) for each in answer.operations], answer.next_page_token

        return await _all(page)

    async def wait_operation(self, identity: str, timeout_seconds: float | None = None) -> Operation:
        """Until it has ended, or the timeout is over (None: without one). Its error is a field of it."""
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = WAIT_SECONDS if end is None else min(WAIT_SECONDS, max(0.0, end - time.monotonic()))
            request = pb.WaitOperationRequest(id=identity)
            request.timeout.FromNanoseconds(int(left * 1e9))
            found = to_struct(Operation, await self._call("WaitOperation", request, pb.Operation))
            if found.state is not OperationState.RUNNING or (end is not None and time.monotonic() >= end):
                return found

    async def checkpoint(self, name: str = "") -> list[str]:
        """Of one volume, or of every volume of this node; returns the names of those that were written."""
        return list((await self._call("Checkpoint", pb.CheckpointRequest(name=name), pb.CheckpointResponse)).volumes)

    async def _call(self, method: str, request: Message, kind: type[AnswerT]) -> AnswerT:
        if self._channel is None:
            raise RuntimeError("a Client is used inside `async with`")
        return await self._channel.call(method, request, kind, seconds=self.timeout_seconds)


def restore_request(
    volume: str,
    snapshot: str,
    *,
    at_ns: int = 0,
    ago_ns: int | None = None,
    discard: bool = False,
    force: bool = False,
) -> pb.RestoreVolumeRequest:
    """As of Client.restore_volume, for an operation."""
    point = _point_in_time(at_ns, ago_ns)
    return _build(pb.RestoreVolumeRequest, volume=volume, snapshot=snapshot, at=point, discard=discard, force=force)


ItemT = TypeVar("ItemT")


async def _all(page: Callable[[str], Awaitable[tuple[list[ItemT], str]]]) -> list[ItemT]:
    """All pages of a list."""
    found, token = await page("")
    while token:
        items, token = await page(token)
        found += items
    return found


def _point_in_time(at_ns: int, ago_ns: int | None) -> pb.PointInTime | None:
    if ago_ns is not None:
        duration = Duration()
        duration.FromNanoseconds(ago_ns)
        return pb.PointInTime(ago=duration)
    if at_ns:
        when = Timestamp()
        when.FromNanoseconds(at_ns)
        return pb.PointInTime(time=when)
    return None


def _build(kind: type[AnswerT], **fields: Any) -> AnswerT:
    """Builds a message whose numbers may be out of range: protobuf's own error is not meant for users."""
    try:
        return kind(**fields)
    except ValueError:
        wrong = ", ".join(
            f"{name} {value}" for name, value in fields.items() if isinstance(value, int) and not 0 <= value < 1 << 63
        )
        raise InvalidArgument(f"{wrong or 'a number'} is out of range") from None
