"""etcd's API, version 3, as far as the metadata service needs it.

One member at a time is asked. After one that does not answer, or has no leader, the next one's turn comes: calls are
not repeated here, because only the caller knows what a second one would do. Three answers are kept apart: it was
carried out; it was refused; or nobody knows (MetadataUnavailable).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from iomesh.errors import ConfigError, Damaged, InvalidArgument, IomeshError, NotFound, PermissionDenied
from iomesh.metadata import etcd_pb2 as pb
from iomesh.metadata.protocol import HistoryLost, MetadataUnavailable

ANSWER_SECONDS = 1.5  # shorter than callers wait, so that the next member is asked in time
NEEDS_LEADER = (("hasleader", "true"),)  # a watch of a member that lost the others ends, instead of hearing nothing

# A member that vanished is noticed by a watch too. etcd refuses pings that come more often than every 5 s.
CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 64 << 20),
]

AnswerT = TypeVar("AnswerT", bound=Message)


class EtcdAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Where the members are, and who we are to them. In PEM; without an authority the connections are not encrypted."""

    endpoints: tuple[str, ...]  # host:port
    authority: bytes = b""
    certificate: bytes = b""
    key: bytes = b""


def etcd_access(endpoints: Sequence[str], authority: str = "", certificate: str = "", key: str = "") -> EtcdAccess:
    """The files are named by path; empty: none. Raises ConfigError, NotFound, PermissionDenied."""
    if not endpoints:
        raise ConfigError("metadata.endpoints is empty: name the members of etcd, as host:port")
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        if not host or "/" in endpoint or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"metadata.endpoints: {endpoint!r} is not host:port, such as 10.0.0.1:2379")
    if bool(certificate) != bool(key):
        raise ConfigError("metadata.certificate_file and metadata.key_file are used together: name both or none")
    if certificate and not authority:
        raise ConfigError("metadata.certificate_file needs metadata.ca_file, the authority of etcd's certificates")
    return EtcdAccess(
        endpoints=tuple(endpoints), authority=_content(authority), certificate=_content(certificate), key=_content(key)
    )


class EtcdApi:
    """Opened and used in one event loop."""

    def __init__(self, access: EtcdAccess) -> None:
        self._members = [Member(endpoint, access) for endpoint in access.endpoints]
        self._turn = 0
        self._cluster = 0  # etcd's identifier of itself
        self._revision = 0  # the highest that an answer had

    async def close(self) -> None:
        for member in self._members:
            await member.close()

    @property
    def place(self) -> str:
        return f"etcd at {self._members[self._turn].endpoint}"

    async def call(self, method: str, request: Message, kind: type[AnswerT]) -> AnswerT:
        """KV or Lease. Raises MetadataUnavailable if nobody knows whether it was done, NotFound for a lease that is
        gone, HistoryLost, InvalidArgument, PermissionDenied, Damaged if this is not the etcd that it was."""
        member, before = self._members[self._turn], self._revision
        try:
            answer = await member.call(method, request)
        except grpc.aio.AioRpcError as error:
            raise self._error(member, error) from None
        assert isinstance(answer, kind)
        header = answer.header  # type: ignore[attr-defined]  # all answers of etcd have one
        self._same_cluster(member, header)
        if method.startswith("KV/"):
            self._no_earlier(member, header, before)
        return answer

    async def watch(self, request: pb.WatchCreateRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        """Answers with events, endlessly. Raises HistoryLost, MetadataUnavailable, PermissionDenied, Damaged."""
        member = self._members[self._turn]
        call = member.watch()
        try:
            await call.write(pb.WatchRequest(create_request=request))
            while (answer := await call.read()) is not grpc.aio.EOF:
                assert isinstance(answer, pb.WatchResponse)
                self._same_cluster(member, answer.header)
                if answer.compact_revision:
                    raise HistoryLost(f"etcd keeps no changes before revision {answer.compact_revision}")
                if answer.canceled:
                    self._next(member)
                    raise MetadataUnavailable(f"etcd at {member.endpoint} ended a watch: {answer.cancel_reason}")
                yield answer
            self._next(member)
            raise MetadataUnavailable(f"etcd at {member.endpoint} ended a watch")
        except grpc.aio.AioRpcError as error:
            raise self._error(member, error) from None
        finally:
            call.cancel()

    def _next(self, member: Member) -> None:
        """After `member`; another call may have seen to it."""
        if self._members[self._turn] is member:
            self._turn = (self._turn + 1) % len(self._members)

    def _error(self, member: Member, error: grpc.aio.AioRpcError) -> IomeshError:
        code, details = error.code(), error.details() or ""
        place, reason = f"etcd at {member.endpoint}", details.removeprefix("etcdserver: ")
        match code:
            case grpc.StatusCode.NOT_FOUND:
                return NotFound(f"{place}: {reason}")
            case grpc.StatusCode.OUT_OF_RANGE:
                return HistoryLost(f"{place}: {reason}")
            case grpc.StatusCode.INVALID_ARGUMENT:
                return InvalidArgument(f"{place}: {reason}")
            case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
                return PermissionDenied(f"{place}: {reason}: check metadata.certificate_file and the roles of etcd")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                reason = "no answer in time"
            case grpc.StatusCode.UNAVAILABLE:
                reason = reason.rpartition("error: ")[2].rpartition(f"{member.endpoint}: ")[2]
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "space" in reason:
                reason += ": it takes no writes until it is compacted and defragmented, and the alarm is disarmed"
        self._next(member)
        return MetadataUnavailable(f"{place}: {reason or code.name}")

    def _same_cluster(self, member: Member, header: pb.ResponseHeader) -> None:
        if self._cluster and header.cluster_id != self._cluster:
            raise Damaged(
                f"etcd at {member.endpoint} is of cluster {header.cluster_id:x}, the others of {self._cluster:x}: "
                "metadata.endpoints must name members of one etcd"
            )
        self._cluster = header.cluster_id

    def _no_earlier(self, member: Member, header: pb.ResponseHeader, before: int) -> None:
        """What reads and commits see only grows. An etcd restored from a backup has lost what the daemons know."""
        if header.revision < before:
            raise Damaged(
                f"etcd at {member.endpoint} is at revision {header.revision}, and was at {before}: it was restored "
                "from a backup and lacks later changes; restore the newest one, then restart the daemons"
            )
        self._revision = max(self._revision, header.revision)


class Member:
    """The calls of one member of etcd."""

    def __init__(self, endpoint: str, access: EtcdAccess) -> None:
        self.endpoint = endpoint
        if access.authority:
            credentials = grpc.ssl_channel_credentials(access.authority, access.key or None, access.certificate or None)
            self._channel = grpc.aio.secure_channel(endpoint, credentials, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        self._calls: dict[str, Any] = {}
        for service in pb.DESCRIPTOR.services_by_name.values():
            for name, method in service.methods_by_name.items():
                streams = method.client_streaming
                self._calls[f"{service.name}/{name}"] = (
                    self._channel.stream_stream if streams else self._channel.unary_unary
                )(
                    f"/{service.full_name}/{name}",
                    request_serializer=GetMessageClass(method.input_type).SerializeToString,
                    response_deserializer=GetMessageClass(method.output_type).FromString,
                )

    async def call(self, method: str, request: Message) -> Message:
        call = self._calls[method]
        if method != "Lease/LeaseKeepAlive":
            return await call(request, timeout=ANSWER_SECONDS)  # type: ignore[no-any-return]
        renewal = call(timeout=ANSWER_SECONDS)  # a stream, of which one request is used
        try:
            await renewal.write(request)
            answer = await renewal.read()
            assert isinstance(answer, Message), "etcd answers each request of the stream"
            return answer
        finally:
            renewal.cancel()

    def watch(self) -> Any:
        return self._calls["Watch/Watch"](metadata=NEEDS_LEADER)

    async def close(self) -> None:
        await self._channel.close()


def _content(path: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist: it is named by the configuration's section metadata") from None
    except OSError as error:
        raise PermissionDenied(f"{path} is not readable ({error.strerror})") from None
