"""Operations: calls that may take long, carried out behind the answer. Each is a record in the metadata service, so any
node answers for it, and it is found again after its client or its node was lost.

    running --the call was answered--> done | failed
    running --the node that follows it is lost--> adopted by another one, or by the same node after its restart

- A record is created by compare-and-swap under an id that the client may choose: repeated, the call begins nothing.
- The node that is asked follows the operation; the work is done by the owner of the volume, as for any other call.
- An adopted operation is continued if its work does (flattening, the deletion of a volume). Any other one has failed:
  whether its call took effect is not known, and it may not be repeated unasked.
- One that has ended is forgotten after a day.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf.message import Message
from google.rpc import status_pb2

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.status import status_of
from iomesh.errors import AlreadyExists, Conflict, InvalidArgument, IomeshError, NotFound, Unavailable
from iomesh.metadata import Delete, Put
from iomesh.metadata.records import (
    OPERATIONS,
    Lifecycle,
    OperationRecord,
    Versioned,
    decode,
    get_log,
    get_volume,
    operation_key,
    put_operation,
)
from iomesh.metadata.volumes import find_volume
from iomesh.node.control.paging import page
from iomesh.node.limits import is_id
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered, until_answered
from iomesh.node.supervisor import end_all
from iomesh.times import SECOND_NS, time_of

if TYPE_CHECKING:
    from iomesh.node.node import Node

log = logger("operations")
WAIT_SECONDS_MAX = 60.0  # of one call of WaitOperation
LOOK_SECONDS = 1.0  # between two looks at work that goes on elsewhere
END_SECONDS = 10.0  # for the records of what has ended when the node stops
KEPT_NS = 24 * 3600 * SECOND_NS  # after its end
FLATTEN, DELETE = "flatten_volume", "delete_volume"

Call = Callable[[str, Message], Awaitable[Message]]


class Operations:
    def __init__(self, node: Node, call: Call) -> None:
        """call: carries out a call of the control API by its name, here or by the node that is to answer it."""
        self._node = node
        self._call = call
        self._followed: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._woken: set[asyncio.Event] = set()
        self._stopping = False

    async def start(self) -> None:
        """Continues what this node, or one that is lost, has followed before."""
        self._node.cluster_view.on_nodes.append(self._adopt_all)
        self._adopt_all()

    async def stop(self) -> None:
        """Returns when nothing is followed any more. What has not ended is adopted later."""
        self.end()
        if self._followed:
            _, left = await asyncio.wait(self._followed.values(), timeout=END_SECONDS)
            await end_all(left)

    def end(self) -> None:
        """Nobody waits any more: the node stops."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        for event in self._woken:
            event.set()

    # calls

    async def begin(self, request: pb.StartOperationRequest) -> pb.Operation:
        field, work = work_of(request)
        if request.id and not is_id(request.id):
            raise InvalidArgument(f"id: {request.id!r} is not a UUID: choose a new one for each operation, or none")
        identity = uuid.UUID(request.id) if request.id else uuid.uuid4()
        found = await self._find(identity) if request.id else None
        if found is None:
            record = OperationRecord(
                id=identity,
                request=request.SerializeToString(deterministic=True),
                subject=subject_of(work),
                volume=await self._volume_of(work),
                node=self._node.name,
                incarnation=self._node.tenure.record.incarnation,
                started_ns=time.time_ns(),
            )
            try:
                version = await answered(self._node.metadata.commit(put_operation(record, 0)))
            except Conflict:  # the same request came twice, or an answer was lost
                found = await self._find(identity)
            else:
                log.info("operation begun", id=str(identity), kind=field, subject=record.subject)
                self._follow(Versioned(record, version))
                await self._forget_old()
                return self._described(record)
        if found is None:
            raise Conflict(f"operation {identity} was just forgotten: choose another id")
        if found.record.request != request.SerializeToString(deterministic=True):
            raise AlreadyExists(f"operation {identity} is another one, of {found.record.subject}: choose another id")
        return self._described(found.record)

    async def get(self, words: str) -> pb.Operation:
        return await self._with_progress((await self._existing(words)).record)

    async def list_page(self, request: pb.ListOperationsRequest) -> pb.ListOperationsResponse:
        entries = (await answered(self._node.metadata.list_prefix(OPERATIONS))).entries
        records = []
        for entry in entries:
            with contextlib.suppress(IomeshError):  # one that cannot be read hides no other
                records.append(decode(OperationRecord, entry).record)
        found, token = page(records, lambda each: f"{each.started_ns:020} {each.id}", request)
        return pb.ListOperationsResponse(
            operations=[await self._with_progress(each) for each in found], next_page_token=token
        )

    async def wait(self, request: pb.WaitOperationRequest) -> pb.Operation:
        seconds = WAIT_SECONDS_MAX
        if request.HasField("timeout"):
            seconds = min(max(request.timeout.ToNanoseconds() / SECOND_NS, 0.0), WAIT_SECONDS_MAX)
        end, woken = time.monotonic() + seconds, asyncio.Event()
        self._woken.add(woken)
        try:
            while True:
                woken.clear()
                found = await self._existing(request.id)
                left = end - time.monotonic()
                if found.record.ended_ns or left <= 0:
                    return await self._with_progress(found.record)
                if self._stopping:
                    raise Unavailable(f"node {self._node.name} stops: wait for the operation at another node")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await woken.wait()
        finally:
            self._woken.discard(woken)

    def known(self) -> list[pb.Operation]:
        """What this node has heard of, for those that watch; without progress."""
        return [self._described(each.record) for each in self._node.cluster_view.operations()]

    async def _existing(self, words: str) -> Versioned[OperationRecord]:
        found = await self._find(uuid.UUID(words)) if is_id(words) else None
        if found is None:
            raise NotFound(
                f"there is no operation {words!r}: `iomesh operation list` shows all, for a day after their end"
            )
        return found

    async def _find(self, identity: uuid.UUID) -> Versioned[OperationRecord] | None:
        entry = await answered(self._node.metadata.get(operation_key(identity)))
        return None if entry is None else decode(OperationRecord, entry)

    async def _volume_of(self, work: Any) -> uuid.UUID | None:
        words = volume_in(work)
        if is_id(words):
            return uuid.UUID(words)
        found = await answered(find_volume(self._node.metadata, words)) if words else None
        return None if found is None else found.volume.record.id

    # what is followed

    def _follow(self, stored: Versioned[OperationRecord], former: str = "") -> None:
        """former: the node that followed it before and is lost; empty: it has just begun."""
        identity = stored.record.id
        task = self._node.supervisor.spawn("operation", self._run(stored, former), id=str(identity))
        self._followed[identity] = task
        task.add_done_callback(lambda _: self._followed.pop(identity, None))

    async def _run(self, stored: Versioned[OperationRecord], former: str) -> None:
        record = stored.record
        try:
            answer = await self._carry_out(record, former)
        except _Stopped:
            return
        except Exception as error:
            known = error if isinstance(error, IomeshError) else IomeshError("internal error; see the node's log")
            failure = status_of(known, self._node.name).SerializeToString()
            ended = msgspec.structs.replace(record, ended_ns=time.time_ns(), error=failure)
            log.info("operation failed", id=str(record.id), subject=record.subject, reason=known.message)
            if not isinstance(error, IomeshError):
                log.exception("internal error", call="StartOperation", exc_info=error)
        else:
            ended = msgspec.structs.replace(record, ended_ns=time.time_ns(), response=answer.SerializeToString())
        with contextlib.suppress(Conflict):  # it was adopted; or an answer was lost, and it is written
            put: Put = put_operation(ended, stored.version)
            await until_answered(lambda: self._node.metadata.commit(put))
        self.wake()

    async def _carry_out(self, record: OperationRecord, former: str) -> Message:
        """The answer of the call."""
        request = pb.StartOperationRequest.FromString(record.request)
        field, work = work_of(request)
        if former and field == DELETE:
            return await self._deleted(record)
        if former and field != FLATTEN:
            raise Unavailable(
                f"node {former} ended while it carried this out, so it is not known whether it took effect: look "
                f"at {record.subject or 'the volume'}, and repeat it if it did not"
            )
        if former and record.volume is not None:
            work.name = str(record.volume)  # its name may be another's by now
            if await self._flattening(record.volume, ended=True):
                return await self._flattened(record.volume)
        try:
            answer = await self._call(method_of(field), work)
        except Unavailable:  # its owner was lost, maybe: what was begun goes on
            if record.volume is None:
                raise
            if field == DELETE and await self._deleting(record.volume):
                return await self._deleted(record)
            if field == FLATTEN and await self._flattening(record.volume):
                return await self._flattened(record.volume)
            raise
        if field == FLATTEN and record.volume is not None:
            return await self._flattened(record.volume)
        return answer

    async def _flattening(self, volume: uuid.UUID, *, ended: bool = False) -> bool:
        """Whether it goes on; with `ended`, also whether it is over, or the volume is gone."""
        found = await until_answered(lambda: get_volume(self._node.metadata, volume))
        its_log = await until_answered(lambda: get_log(self._node.metadata, volume))
        over = found is None or its_log is None or its_log.record.clone_of is None
        return (ended and over) or (found is not None and found.record.flattening)

    async def _flattened(self, volume: uuid.UUID) -> Message:
        async for _ in self._looks():
            found = await until_answered(lambda: get_volume(self._node.metadata, volume))
            if found is None or found.record.state is not Lifecycle.READY:
                raise NotFound("the clone was deleted before it was independent")
            its_log = await until_answered(lambda: get_log(self._node.metadata, volume))
            if not found.record.flattening and its_log is not None and its_log.record.clone_of is None:
                break
        return pb.Volume()

    async def _deleting(self, volume: uuid.UUID) -> bool:
        """Whether it goes on or is over."""
        found = await until_answered(lambda: get_volume(self._node.metadata, volume))
        return found is None or found.record.state in (Lifecycle.HIDDEN, Lifecycle.DELETING)

    async def _deleted(self, record: OperationRecord) -> Message:
        volume = record.volume
        async for _ in self._looks():
            found = None if volume is None else await until_answered(lambda: get_volume(self._node.metadata, volume))
            if found is None or found.record.state is Lifecycle.HIDDEN:
                break
            if found.record.state is not Lifecycle.DELETING:
                raise Unavailable(
                    f"a node ended before the deletion of volume {record.subject} had begun: the volume is as it was; "
                    "delete it again"
                )
        return pb.DeleteVolumeResponse()

    async def _looks(self) -> Any:
        """Whenever something may have changed. Raises _Stopped when the node stops."""
        woken = asyncio.Event()
        self._woken.add(woken)
        try:
            while not self._stopping:
                woken.clear()
                yield
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await woken.wait()
        finally:
            self._woken.discard(woken)
        raise _Stopped

    def _adopt_all(self) -> None:
        """Those whose node is lost, or is this one before its restart."""
        if self._stopping:
            return
        mine = self._node.tenure.record.incarnation
        for stored in list(self._node.cluster_view.operations()):
            record = stored.record
            former = record.node == self._node.name and record.incarnation != mine
            if not record.ended_ns and (former or self._node.cluster_view.is_lost(record.node)):
                self._node.supervisor.spawn("adopt operation", self._adopt(stored), id=str(record.id))

    async def _adopt(self, stored: Versioned[OperationRecord]) -> None:
        record = msgspec.structs.replace(
            stored.record, node=self._node.name, incarnation=self._node.tenure.record.incarnation
        )
        with contextlib.suppress(Conflict):  # another node adopts it, or it has just ended
            version = await answered(self._node.metadata.commit(put_operation(record, stored.version)))
            log.info("operation adopted", id=str(record.id), subject=record.subject, node=stored.record.node)
            self._follow(Versioned(record, version), stored.record.node)

    async def _forget_old(self) -> None:
        for stored in list(self._node.cluster_view.operations()):
            if stored.record.ended_ns and stored.record.ended_ns < time.time_ns() - KEPT_NS:
                with contextlib.suppress(Conflict):
                    await answered(self._node.metadata.commit(Delete(operation_key(stored.record.id), stored.version)))

    # as messages

    async def _with_progress(self, record: OperationRecord) -> pb.Operation:
        """What its owner knows of it."""
        message = self._described(record)
        if message.kind == kind_of(FLATTEN) and not record.ended_ns and record.volume is not None:
            with contextlib.suppress(IomeshError):  # it does not answer now
                volume = await self._call("GetVolume", pb.GetVolumeRequest(name=str(record.volume)))
                assert isinstance(volume, pb.Volume)
                message.done_bytes = volume.flattening.done_bytes
                message.total_bytes = volume.flattening.total_bytes
                message.waits_for = volume.flattening.reason
        return message

    def _described(self, record: OperationRecord) -> pb.Operation:
        field, _ = work_of(pb.StartOperationRequest.FromString(record.request))
        message = pb.Operation(
            id=str(record.id),
            kind=kind_of(field),
            subject=record.subject,
            volume_id=str(record.volume or ""),
            state=pb.OPERATION_STATE_RUNNING,
            node=record.node,
        )
        message.started_at.FromDatetime(time_of(record.started_ns))
        if not record.ended_ns:
            return message
        message.ended_at.FromDatetime(time_of(record.ended_ns))
        message.state = pb.OPERATION_STATE_FAILED if record.error else pb.OPERATION_STATE_DONE
        if record.error:
            message.error.CopyFrom(status_pb2.Status.FromString(record.error))
        elif field == "restore_volume":
            message.restored.ParseFromString(record.response)
            message.restored.SetInParent()
        elif field == "delete_snapshot":
            message.deleted.ParseFromString(record.response)
            message.deleted.SetInParent()
        return message


class _Stopped(Exception):
    """The node stops: what it followed is adopted later."""


def work_of(request: pb.StartOperationRequest) -> tuple[str, Any]:
    """The field that is set, and the request of the call. Raises InvalidArgument."""
    field = request.WhichOneof("work")
    if field is None:
        known = ", ".join(each.name for each in request.DESCRIPTOR.oneofs_by_name["work"].fields)
        raise InvalidArgument(f"the request names no work that this version knows: set one of {known}")
    return field, getattr(request, field)


def method_of(field: str) -> str:
    return field.title().replace("_", "")


def kind_of(field: str) -> str:
    return field.replace("_", "-")


def volume_in(work: Any) -> str:
    return str(work.volume if "volume" in work.DESCRIPTOR.fields_by_name else work.name)


def subject_of(work: Any) -> str:
    """For people."""
    snapshot = getattr(work, "snapshot", "")
    return f"{volume_in(work)}@{snapshot}" if snapshot else volume_in(work)
