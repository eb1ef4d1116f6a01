"""A client of one node's control API.

    async with Client("/run/iomesh/control.sock") as node:
        volume = await node.create_volume("db", 10 << 30)

Every error is an IomeshError: the one that the node raised, or Unavailable if there is no answer. A Client is used in
one event loop.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.messages import to_struct
from iomesh.api.model import Counters, Device, Difference, Export, RestoreVolumeResponse, Snapshot, Status, Volume
from iomesh.errors import InvalidArgument, IomeshError, Unavailable, Unreachable, from_wire

DEFAULT_ADDRESS = "/run/iomesh/control.sock"
ERROR_KIND = "iomesh-error"  # trailing metadata: the name of the error's class
SERVICE = pb.DESCRIPTOR.services_by_name["Node"]

AnswerT = TypeVar("AnswerT", bound=Message)


def grpc_target(address: str) -> str:
    """The gRPC target of an address: a path is a unix socket, anything else host:port."""
    if address.startswith("unix:"):
        address = address.removeprefix("unix:")
        address = "/" + address.lstrip("/") if address.startswith("//") else address
    if "/" in address:
        return "unix:" + address
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise InvalidArgument(f"address {address!r} is neither the path of a unix socket nor host:port")
    return address


class Client:
    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_seconds: float | None = 120.0) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._target = grpc_target(address)
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        # A connection to one socket on this machine: no proxy, and no name but the path's. It is not shared: another
        # client's may lead to a daemon that was killed since.
        self._channel = grpc.aio.insecure_channel(
            self._target,
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", 64 << 20),
            ],
        )
        for name, method in SERVICE.methods_by_name.items():
            self._calls[name] = self._channel.unary_unary(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
            self._calls.clear()

    # the node

    async def status(self) -> Status:
        return to_struct(Status, await self._call("GetStatus", pb.GetStatusRequest(), pb.Status))

    async def counters(self) -> Counters:
        return to_struct(Counters, await self._call("GetCounters", pb.GetCountersRequest(), pb.Counters))

    # devices; `device` is a UUID, a label or a path

    async def devices(self) -> list[Device]:
        answer = await self._call("ListDevices", pb.ListDevicesRequest(), pb.ListDevicesResponse)
        return [to_struct(Device, device) for device in answer.devices]

    async def device(self, device: str) -> Device:
        return to_struct(Device, await self._call("GetDevice", pb.GetDeviceRequest(device=device), pb.Device))

    async def add_device(self, path: str) -> Device:
        return to_struct(Device, await self._call("AddDevice", pb.AddDeviceRequest(path=path), pb.Device))

    async def remove_device(self, device: str) -> None:
        await self._call("RemoveDevice", pb.RemoveDeviceRequest(device=device), pb.RemoveDeviceResponse)

    # volumes

    async def create_volume(
        self, name: str, size_bytes: int, *, segment_bytes: int = 0, replicas: int = 0, window_seconds: int = 0
    ) -> Volume:
        """segment_bytes, replicas: 0 is the node's choice. Returns an existing volume if it matches the request."""
        request = _build(
            pb.CreateVolumeRequest,
            name=name,
            size_bytes=size_bytes,
            segment_bytes=segment_bytes,
            policy=_build(pb.Policy, replicas=replicas, window_seconds=window_seconds),
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
        answer = await self._call("ListVolumes", pb.ListVolumesRequest(), pb.ListVolumesResponse)
        return [to_struct(Volume, volume) for volume in answer.volumes]

    async def volume(self, name: str) -> Volume:
        return to_struct(Volume, await self._call("GetVolume", pb.GetVolumeRequest(name=name), pb.Volume))

    async def grow_volume(self, name: str, size_bytes: int) -> Volume:
        return to_struct(
            Volume,
            await self._call("GrowVolume", _build(pb.GrowVolumeRequest, name=name, size_bytes=size_bytes), pb.Volume),
        )

    async def set_volume(self, name: str, *, window_seconds: int) -> Volume:
        """0: no restore window."""
        request = _build(pb.SetVolumeRequest, name=name, window_seconds=window_seconds)
        return to_struct(Volume, await self._call("SetVolume", request, pb.Volume))

    async def move_volume(self, name: str, node: str = "", *, force: bool = False) -> Volume:
        """Asked of the owner. node: empty: the first other one of the volume's replica set."""
        request = _build(pb.MoveVolumeRequest, name=name, node=node, force=force)
        return to_struct(Volume, await self._call("MoveVolume", request, pb.Volume))

    async def take_over_volume(self, name: str, *, force: bool = False) -> Volume:
        """Asked of the node that is to own the volume. force: although its owner runs."""
        request = _build(pb.TakeOverVolumeRequest, name=name, force=force)
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
        request = pb.ListSnapshotsRequest(volume=volume, hidden=hidden)
        answer = await self._call("ListSnapshots", request, pb.ListSnapshotsResponse)
        return [to_struct(Snapshot, snapshot) for snapshot in answer.snapshots]

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
        point = _point_in_time(at_ns, ago_ns)
        request = _build(
            pb.RestoreVolumeRequest, volume=volume, snapshot=snapshot, at=point, discard=discard, force=force
        )
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

    async def checkpoint(self, name: str = "") -> list[str]:
        """Of one volume, or of every volume; returns the names of those that were written."""
        return list((await self._call("Checkpoint", pb.CheckpointRequest(name=name), pb.CheckpointResponse)).volumes)

    async def _call(self, method: str, request: Message, kind: type[AnswerT]) -> AnswerT:
        if self._channel is None:
            raise RuntimeError("a Client is used inside `async with`")
        try:
            answer = await self._calls[method](request, timeout=self.timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        assert isinstance(answer, kind)
        return answer

    def _error(self, error: grpc.aio.AioRpcError) -> IomeshError:
        trailing = {str(key): value for key, value in (error.trailing_metadata() or ())}
        kind, code, details = str(trailing.get(ERROR_KIND, "")), error.code().name, error.details() or ""
        if kind:
            return from_wire(kind, code, details)
        if code == "DEADLINE_EXCEEDED":
            return Unavailable(
                f"the node at {self.address} has not answered within {self.timeout_seconds} s; the operation may "
                "still be running"
            )
        if code == "UNAVAILABLE":
            # gRPC repeats the address, and puts consequences before the last error
            reason = details.rpartition("error: ")[2]
            return Unreachable(
                f"no daemon answers at {self.address} ({reason}): check that `iomesh daemon run` is running with this "
                "control address",
                address=self.address,
                reason=reason,
            )
        return from_wire(kind, code, details)


def _point_in_time(at_ns: int, ago_ns: int | None) -> pb.PointInTime | None:
    if ago_ns is not None:
        duration = Duration()
        duration.FromNanoseconds(ago_ns)
        return pb.PointInTime(ago=duration)
    if at_ns:
        time = Timestamp()
        time.FromNanoseconds(at_ns)
        return pb.PointInTime(time=time)
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
