"""Serves the control API: translates messages into calls of the node, and errors into codes.

Every call runs in a task of its own: a request is completed even if its client disconnects meanwhile.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.client import ERROR_KIND, SERVICE
from iomesh.api.messages import to_message
from iomesh.api.model import RestoreVolumeResponse
from iomesh.errors import InUse, InvalidArgument, IomeshError, Unavailable, meaning
from iomesh.node.config import ControlConfig, address_text, parse_address
from iomesh.node.logs import logger
from iomesh.node.sockets import claim_unix_socket, release, restrict
from iomesh.node.supervisor import end_all, in_thread
from iomesh.node.windows import check_point_in_time
from iomesh.times import time_of

if TYPE_CHECKING:
    from iomesh.node.node import Node

log = logger("control")
GRACE_SECONDS = 5.0  # for the answers of running calls when the daemon stops
DRAIN_SECONDS = 30.0  # for the calls themselves: then they are cancelled
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any], Awaitable[Message]]


class ControlServer:
    def __init__(self, config: ControlConfig, node: Node) -> None:
        self._config = config
        self._node = node
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[Message]] = set()

    async def start(self) -> None:
        await in_thread(lambda: claim_unix_socket(self._config.socket, "control.socket"))
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self._handlers(),))
        self._server = server
        try:
            _bind(server, f"unix:{self._config.socket}", f"control.socket: {self._config.socket}")
            if self._config.listen:
                address = address_text(*parse_address(self._config.listen, "control.listen"))
                _bind(server, address, f"control.listen: {address}")
            await server.start()
        except BaseException:
            await self.stop()
            raise
        restrict(self._config.socket)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)
            self._server = None
        await self.drain()
        release(self._config.socket)

    async def drain(self) -> None:
        """Waits for the running calls, DRAIN_SECONDS at most, and cancels the rest."""
        if not self._tasks:
            return
        _, left = await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        if left:
            log.warning(
                "calls cancelled: the node stops", calls=sorted(task.get_name() for task in left), seconds=DRAIN_SECONDS
            )
        await end_all(left)

    def _handlers(self) -> grpc.GenericRpcHandler:
        service = NodeService(self._node)
        handlers = {}
        for name, method in SERVICE.methods_by_name.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                self._guarded(name, getattr(service, snake_case(name))),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    def _guarded(self, name: str, handler: Handler) -> Callable[[Message, Context], Awaitable[Message]]:
        async def handle(request: Message, context: Context) -> Message:
            task = asyncio.create_task(_run(handler, request), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():  # the client disconnected: the call is completed
                    raise
                log.info("refused", call=name, error="Unavailable", reason="the node stops")
                await refuse(context, Unavailable(f"{name} was not finished: the node stops"))
            except IomeshError as error:
                log.info("refused", call=name, error=type(error).__name__, reason=error.message)
                await refuse(context, error)
            except Exception:
                log.exception("internal error", call=name)
                await refuse(context, IomeshError(f"{name} failed: internal error; see the node's log"))

        return handle

    def _ended(self, task: asyncio.Task[Message]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the caller, if any is left, gets it from the answer


async def _run(handler: Handler, request: Message) -> Message:
    return await handler(request)


def _bind(server: grpc.aio.Server, address: str, what: str) -> None:
    try:
        server.add_insecure_port(address)
    except RuntimeError:  # gRPC logs the reason itself
        raise InUse(
            f"{what}: cannot listen there, most likely because another process does: set another address"
        ) from None


async def refuse(context: Context, error: IomeshError) -> NoReturn:
    context.set_trailing_metadata(((ERROR_KIND, type(error).__name__),))
    await context.abort(grpc.StatusCode[meaning(error).grpc_code], error.message)


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


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class NodeService:
    """One method per call of iomesh.proto, named after it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def get_status(self, request: pb.GetStatusRequest) -> pb.Status:
        return to_message(pb.Status, self._node.status())

    async def get_counters(self, request: pb.GetCountersRequest) -> pb.Counters:
        return to_message(pb.Counters, self._ready().counters())

    async def list_devices(self, request: pb.ListDevicesRequest) -> pb.ListDevicesResponse:
        return pb.ListDevicesResponse(
            devices=[to_message(pb.Device, device) for device in self._assembled().stores.list()]
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
        volume = await node.volumes.clone(request.volume, request.name, snapshot=request.snapshot, **point)
        return to_message(pb.Volume, volume)

    async def flatten_volume(self, request: pb.FlattenVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().flattening.flatten(request.name))

    async def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(
            volumes=[to_message(pb.Volume, volume) for volume in self._assembled().volumes.list_all()]
        )

    async def get_volume(self, request: pb.GetVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().volumes.show(request.name))

    async def grow_volume(self, request: pb.GrowVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().volumes.grow(request.name, request.size_bytes))

    async def set_volume(self, request: pb.SetVolumeRequest) -> pb.Volume:
        await self._ready().windows.set(request.name, request.window_seconds)
        return to_message(pb.Volume, await self._ready().volumes.show(request.name))

    async def move_volume(self, request: pb.MoveVolumeRequest) -> pb.Volume:
        moved = await self._ready().volumes.move(request.name, request.node, force=request.force)
        return to_message(pb.Volume, moved)

    async def take_over_volume(self, request: pb.TakeOverVolumeRequest) -> pb.Volume:
        return to_message(pb.Volume, await self._ready().volumes.take_over(request.name, force=request.force))

    async def delete_volume(self, request: pb.DeleteVolumeRequest) -> pb.DeleteVolumeResponse:
        await self._ready().volumes.delete(request.name, force=request.force, snapshots=request.snapshots)
        return pb.DeleteVolumeResponse()

    async def export_volume(self, request: pb.ExportVolumeRequest) -> pb.Export:
        return to_message(pb.Export, await self._ready().volumes.export(request.name, read_only=request.read_only))

    async def unexport_volume(self, request: pb.UnexportVolumeRequest) -> pb.UnexportVolumeResponse:
        await self._ready().volumes.unexport(request.name, force=request.force)
        return pb.UnexportVolumeResponse()

    async def create_snapshots(self, request: pb.CreateSnapshotsRequest) -> pb.CreateSnapshotsResponse:
        made = await self._ready().snapshots.create(list(request.volumes), request.name)
        return pb.CreateSnapshotsResponse(snapshots=[to_message(pb.Snapshot, snapshot) for snapshot in made])

    async def list_snapshots(self, request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        found = await self._ready().snapshots.list(request.volume, hidden=request.hidden)
        return pb.ListSnapshotsResponse(snapshots=[to_message(pb.Snapshot, snapshot) for snapshot in found])

    async def get_snapshot(self, request: pb.GetSnapshotRequest) -> pb.Snapshot:
        return to_message(pb.Snapshot, await self._ready().snapshots.get(request.volume, request.snapshot))

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest) -> pb.DeleteSnapshotResponse:
        hidden = await self._ready().snapshots.delete(request.volume, request.snapshot, force=request.force)
        return pb.DeleteSnapshotResponse(hidden=hidden)

    async def export_snapshot(self, request: pb.ExportSnapshotRequest) -> pb.Export:
        return to_message(pb.Export, await self._ready().snapshots.export(request.volume, request.snapshot))

    async def unexport_snapshot(self, request: pb.UnexportSnapshotRequest) -> pb.UnexportSnapshotResponse:
        await self._ready().snapshots.unexport(request.volume, request.snapshot, force=request.force)
        return pb.UnexportSnapshotResponse()

    async def restore_volume(self, request: pb.RestoreVolumeRequest) -> pb.RestoreVolumeResponse:
        node, how, point = self._ready(), {"discard": request.discard, "force": request.force}, point_in_time(request)
        if bool(request.snapshot) == bool(point):
            raise InvalidArgument(f"volume {request.volume}: name either a snapshot or a point in time to restore")
        if point:
            done = await node.windows.restore(request.volume, discard=request.discard, force=request.force, **point)
            answer = RestoreVolumeResponse(before=done.before, at=time_of(done.at_ns))
        else:
            answer = RestoreVolumeResponse(before=await node.snapshots.restore(request.volume, request.snapshot, **how))
        return to_message(pb.RestoreVolumeResponse, answer)

    async def diff_snapshots(self, request: pb.DiffSnapshotsRequest) -> pb.DiffSnapshotsResponse:
        found = await self._ready().snapshots.diff(
            request.volume, request.snapshot, request.other, offset=request.offset, ranges=request.ranges
        )
        return to_message(pb.DiffSnapshotsResponse, found)

    async def checkpoint(self, request: pb.CheckpointRequest) -> pb.CheckpointResponse:
        return pb.CheckpointResponse(volumes=await self._ready().volumes.checkpoint(request.name))

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
