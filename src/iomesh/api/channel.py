"""A connection to one node's control API, and the certificates that it may need.

An address is the path of a unix socket, or host:port. TCP is used with credentials, both sides with a certificate of
the cluster's authority, or, to a loopback address, without.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.status import sent_error
from iomesh.errors import InvalidArgument, IomeshError, NotFound, PermissionDenied, Unavailable, Unreachable, from_wire

SERVICE = pb.DESCRIPTOR.services_by_name["Cluster"]
SERVER_NAME = "node.iomesh"  # in every node's certificate, whatever its address; no client's has it
MESSAGE_BYTES_MAX = 64 << 20
AUTHORITY_FILE = "ca.crt"
NAMES = ("client", "node")  # of the files with a certificate and its key, the preferred first

AnswerT = TypeVar("AnswerT", bound=Message)


@dataclass(frozen=True)
class Credentials:
    """In PEM: the cluster's authority, and a certificate of it with its key."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """From ca.crt, and client.crt and client.key or node.crt and node.key. Raises NotFound, PermissionDenied."""
        folder = Path(directory)
        name = next((name for name in NAMES if (folder / f"{name}.crt").exists()), NAMES[0])
        try:
            found = [(folder / file).read_bytes() for file in (AUTHORITY_FILE, f"{name}.crt", f"{name}.key")]
        except FileNotFoundError as error:
            raise NotFound(
                f"certificates: {error.filename} does not exist: name a directory with {AUTHORITY_FILE}, {name}.crt "
                f"and {name}.key, as `iomesh cluster certificate` makes one"
            ) from None
        except OSError as error:
            raise PermissionDenied(f"certificates: {error.filename} is not readable ({error.strerror})") from None
        return cls(*found)


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


class Channel:
    """Calls of the service by name. Opened and used in one event loop."""

    def __init__(self, address: str, credentials: Credentials | None = None, *, name: str = "") -> None:
        """name: the name of the node there, for messages; empty: the node at that address."""
        self.address = address
        self.name = name or f"the node at {address}"
        target = grpc_target(address)
        # No proxy, and no name but the address's. The connection is not shared: another client's may lead to a daemon
        # that was killed since.
        options: list[tuple[str, Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ]
        self.secure = credentials is not None and not target.startswith("unix:")
        if credentials is not None and self.secure:
            self._channel = grpc.aio.secure_channel(
                target,
                grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate),
                options=[*options, ("grpc.ssl_target_name_override", SERVER_NAME)],
            )
        else:
            self._channel = grpc.aio.insecure_channel(
                target, options=[*options, ("grpc.default_authority", "localhost")]
            )
        self._calls: dict[str, Any] = {}
        for name, method in SERVICE.methods_by_name.items():
            kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
            self._calls[name] = kind(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )

    async def close(self) -> None:
        await self._channel.close()

    async def call(
        self,
        method: str,
        request: Message,
        kind: type[AnswerT],
        *,
        seconds: float | None,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> AnswerT:
        """Raises the IomeshError that the node raised, or Unavailable if there is no answer."""
        try:
            answer = await self._calls[method](request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, seconds) from None
        assert isinstance(answer, kind)
        return answer

    async def stream(self, method: str, request: Message, kind: type[AnswerT]) -> AsyncGenerator[AnswerT]:
        """Until the caller stops, or the connection ends with an error as in `call`."""
        call = self._calls[method](request)
        try:
            async for answer in call:
                assert isinstance(answer, kind)
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._error(error, None) from None
        finally:
            call.cancel()

    def _error(self, error: grpc.aio.AioRpcError, seconds: float | None) -> IomeshError:
        if (sent := sent_error(error)) is not None:
            return sent
        code, details = error.code().name, error.details() or ""
        if code == "DEADLINE_EXCEEDED":
            return Unavailable(
                f"{self.name} has not answered {f'within {seconds:g} s' if seconds else 'in time'}; the operation may "
                "still be running"
            )
        if code == "UNAVAILABLE":
            # gRPC repeats the address, and puts consequences before the last error
            reason = details.rpartition("error: ")[2]
            if self.secure and any(word in details for word in ("SSL", "andshake", "Socket closed", "reset by peer")):
                reason = "it may not accept this certificate, or be of another cluster"
            return Unreachable(
                f"no daemon answers at {self.address} ({reason}): check that `iomesh daemon run` is running with this "
                "control address",
                address=self.address,
                reason=reason,
            )
        return from_wire("", code, details)
