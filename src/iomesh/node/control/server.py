"""Serves the control API: binds its addresses, and guards every call.

Every call runs in a task of its own: a request is completed even if its client disconnects meanwhile. A call that
another node is to answer is passed on to it, unless another node did that already.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from iomesh.api.channel import SERVICE
from iomesh.api.status import trailing_of
from iomesh.certificates.authority import JOIN, NODE, Role, fingerprint, role_in, role_of
from iomesh.certificates.files import Identity
from iomesh.errors import (
    AlreadyExists,
    ConfigError,
    InUse,
    IomeshError,
    NotFound,
    PermissionDenied,
    Unavailable,
    meaning,
)
from iomesh.node.config import Config, address_text, advertised, is_loopback, parse_address
from iomesh.node.control.forwarding import FORWARDED_BY, Forwarding
from iomesh.node.control.routing import Routing, refuse_second_hop
from iomesh.node.control.service import ClusterService
from iomesh.node.logs import logger
from iomesh.node.sockets import claim_unix_socket, release, restrict
from iomesh.node.supervisor import end_all, in_thread

if TYPE_CHECKING:
    from iomesh.node.node import Node

log = logger("control")
GRACE_SECONDS = 5.0  # for the answers of running calls when the daemon stops
DRAIN_SECONDS = 30.0  # for the calls themselves: then they are cancelled
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any], Awaitable[Message]]
Streamer = Callable[[Any], AsyncIterator[Message]]


class ControlServer:
    def __init__(self, config: Config, node: Node) -> None:
        self._config = config.control
        self._all = config
        self._node = node
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[Message]] = set()
        self._health = health.aio.HealthServicer()
        self.forwarding = Forwarding(node.name, lambda: node.cluster_view.running)
        self._routing = Routing(node)
        self._service = ClusterService(node, self.forwarding, lambda: self.address, self.carry_out)
        self.operations = self._service.operations
        self.watching = self._service.watching
        self.address = ""  # for other nodes: host:port, or the path of the unix socket

    async def start(self) -> None:
        await in_thread(lambda: claim_unix_socket(self._config.socket, "control.socket"))
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self._server = server
        await self.report(serving=False)
        try:
            _bind(server, f"unix:{self._config.socket}", f"control.socket: {self._config.socket}")
            self.address = self._config.socket
            if self._config.listen:
                host, port = parse_address(self._config.listen, "control.listen")
                address = address_text(host, port)
                bound = _bind(server, address, f"control.listen: {address}", self._tls(host))
                self.address = address_text(advertised(host, self._all), bound)
            await server.start()
        except BaseException:
            await self.stop()
            raise
        restrict(self._config.socket)

    def _tls(self, host: str) -> grpc.ServerCredentials | None:
        """None: in plain text, which is for this machine alone. Raises ConfigError."""
        identity = self._node.certificates
        if identity is None:
            if is_loopback(host):
                return None
            raise ConfigError(
                f"control.listen: {self._config.listen} is reached from other machines, and this node has no "
                "certificates: `iomesh cluster init` makes a cluster, `iomesh cluster join` joins one; or use a "
                "loopback address"
            )
        self.forwarding.credentials = identity.credentials
        return grpc.dynamic_ssl_server_credentials(
            _server_certificate(identity), self._newest_certificate, require_client_authentication=True
        )

    def use(self, identity: Identity) -> None:
        """A certificate that was renewed, for connections from now on."""
        self.forwarding.credentials = identity.credentials

    def _newest_certificate(self) -> grpc.ServerCertificateConfiguration:
        """Asked in a thread of gRPC's at each connection."""
        identity = self._node.certificates
        assert identity is not None
        return _server_certificate(identity)

    async def report(self, *, serving: bool) -> None:
        """To the standard health service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE.full_name):
            await self._health.set(name, status)

    async def stop(self) -> None:
        if self._server is not None:
            self.watching.end()
            self.operations.end()
            await self._server.stop(GRACE_SECONDS)
            self._server = None
        await self.drain()
        await self.forwarding.close()
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
        handlers: dict[str, Any] = {}
        for name, method in SERVICE.methods_by_name.items():
            codec: dict[str, Any] = {
                "request_deserializer": GetMessageClass(method.input_type).FromString,
                "response_serializer": GetMessageClass(method.output_type).SerializeToString,
            }
            handler = getattr(self._service, snake_case(name))
            handlers[name] = (
                grpc.unary_stream_rpc_method_handler(self._guarded_stream(name, handler), **codec)
                if method.server_streaming
                else grpc.unary_unary_rpc_method_handler(self._guarded(name, handler), **codec)
            )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    def _guarded(self, name: str, handler: Handler) -> Callable[[Message, Context], Awaitable[Message]]:
        async def handle(request: Message, context: Context) -> Message:
            task = asyncio.create_task(self._run(name, handler, request, context), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():  # the client disconnected: the call is completed
                    raise
                await self._refuse(context, name, Unavailable(f"{name} was not finished: the node stops"))
            except Exception as error:
                await self._refuse(context, name, error)

        return handle

    def _guarded_stream(self, name: str, handler: Streamer) -> Callable[[Message, Context], AsyncIterator[Message]]:
        async def handle(request: Message, context: Context) -> AsyncIterator[Message]:
            try:
                self._check(name, context)
                async for answer in handler(request):
                    yield answer
            except Exception as error:
                await self._refuse(context, name, error)

        return handle

    async def _run(self, name: str, handler: Handler, request: Any, context: Context) -> Message:
        """Here, or by the node that is to answer it."""
        self._check(name, context)
        if name == "Join":
            return await self._service.join(request, _token_of(context))
        if not self._node.serving:  # what is answered while the node starts is about this node alone
            return await handler(request)
        by = dict(context.invocation_metadata() or ()).get(FORWARDED_BY)
        return await self._answer(name, handler, request, context.time_remaining(), by)

    async def carry_out(self, name: str, request: Message) -> Message:
        """A call that no client waits for. Like theirs, it is completed when the node stops."""
        handler = getattr(self._service, snake_case(name))
        task = asyncio.create_task(self._answer(name, handler, request, None, None), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Unavailable(f"{name} was not finished: node {self._node.name} stopped") from None

    async def _answer(self, name: str, handler: Handler, request: Any, seconds: float | None, by: Any) -> Message:
        """seconds: for another node's answer. by: the node that has forwarded the call; None: none has."""
        await self._routing.resolve(name, request)
        node = self._routing.node_for(name, request)
        if by is not None:
            refuse_second_hop(self._node, name, node, str(by))
        if name == "ListSnapshots" and by is None and not request.volume:
            return await self._service.list_all_snapshots(request, seconds)
        if name == "ExportVolume" and node:
            return await self._service.export_here(request, lambda: self._forward(node, name, request, seconds))
        try:
            return await (self._forward(node, name, request, seconds) if node else handler(request))
        except (AlreadyExists, NotFound):
            # What this node knows of the others may be a moment old: another node may just have created the volume. It
            # is to answer a repeated creation, and what is asked about the volume.
            node = await self._routing.owner_now(name, request) if by is None and not node else ""
            if not node:
                raise
            return await self._forward(node, name, request, seconds)
        except Unavailable as error:
            if name != "GetVolume" or not node:
                raise
            return await self._service.stored_volume(request, error)

    async def _forward(self, node: str, name: str, request: Message, seconds: float | None) -> Message:
        log.debug("forwarded", call=name, node=node)
        about = self._routing.about(name, request)
        return await self.forwarding.call(node, name, request, seconds, about)

    def _check(self, name: str, context: Context) -> None:
        """Whether the client's certificate allows the call. Raises PermissionDenied."""
        _check_role(name, context)
        for pem in context.auth_context().get("x509_pem_cert") or ():
            role, key = _known(pem)
            if role.kind == NODE and self._node.assembled and self._node.cluster_view.refuses(role.name, key):
                raise PermissionDenied(
                    f"the certificate of node {role.name} is not accepted any more: the node was removed from the "
                    "cluster, or another one has joined under its name; let it join again (`iomesh cluster join`)"
                )

    async def _refuse(self, context: Context, name: str, error: Exception) -> NoReturn:
        if not isinstance(error, IomeshError):
            log.exception("internal error", call=name, exc_info=error)
            error = IomeshError(f"{name} failed: internal error; see the node's log")
        else:
            log.info("refused", call=name, error=type(error).__name__, reason=error.message)
        context.set_trailing_metadata(trailing_of(error, self._node.name))
        await context.abort(grpc.StatusCode[meaning(error).grpc_code], error.message)

    def _ended(self, task: asyncio.Task[Message]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the caller, if any is left, gets it from the answer


def _server_certificate(identity: Identity) -> grpc.ServerCertificateConfiguration:
    pair = (identity.certificate.key, identity.certificate.certificate)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=identity.authority.certificate)


@lru_cache(maxsize=1024)
def _known(certificate: bytes) -> tuple[Role, str]:
    """Of a certificate that TLS has verified: its role, and the fingerprint of its key. There are few."""
    return role_of(certificate), fingerprint(certificate)


def _token_of(context: Context) -> str:
    (name,) = context.auth_context()["x509_common_name"]
    return role_in(name.decode()).name


def _check_role(name: str, context: Context) -> None:
    """A join token's certificate may join and nothing else. Raises PermissionDenied."""
    names = context.auth_context().get("x509_common_name") or ()
    joins = any(role_in(each.decode(errors="replace")).kind == JOIN for each in names)
    if joins and name != "Join":
        raise PermissionDenied(f"{name}: the certificate of a join token may do nothing but join")
    if name == "Join" and not joins:
        raise PermissionDenied("Join needs the certificate of a join token: `iomesh cluster join TOKEN` uses it")


def _bind(server: grpc.aio.Server, address: str, what: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Returns the port."""
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError:  # gRPC logs the reason itself
        raise InUse(
            f"{what}: cannot listen there, most likely because another process does: set another address"
        ) from None


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
