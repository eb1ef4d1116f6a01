"""gRPC on a unix socket: messages to methods of the services, errors to the codes of the specification.

Every call runs to its end, even if its client gives up: what it has begun is then finished, and a repeated call finds
it so.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from iomesh.csi.errors import csi_code
from iomesh.errors import Conflict, InUse, IomeshError, Unavailable
from iomesh.node.logs import logger
from iomesh.node.sockets import claim_unix_socket, release

log = logger("csi")
GRACE_SECONDS = 5.0  # for the answers of running calls when the driver stops
DRAIN_SECONDS = 20.0  # for the calls themselves
Handler = Callable[[Any], Awaitable[Message]]
Context = grpc.aio.ServicerContext[Any, Any]


class Server:
    """services: each service of the contract, and the object with a method for each of its calls."""

    def __init__(self, socket: str, services: Mapping[ServiceDescriptor, object]) -> None:
        self.socket = socket
        self._services = services
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[Message]] = set()

    async def start(self) -> None:
        await asyncio.to_thread(claim_unix_socket, self.socket, "the driver's socket")
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(tuple(self._handlers(*each) for each in self._services.items()))
        try:
            self._server.add_insecure_port(f"unix:{self.socket}")
        except RuntimeError:  # gRPC logs the reason itself
            raise InUse(f"cannot listen on {self.socket}: choose another path") from None
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)
            self._server = None
            if self._tasks:
                _, left = await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
                for task in left:
                    task.cancel()  # it can be repeated, as after a crash
            release(self.socket)

    def _handlers(self, descriptor: ServiceDescriptor, service: object) -> grpc.GenericRpcHandler:
        """A method that the service does not have is UNIMPLEMENTED."""
        handlers = {}
        for name, method in descriptor.methods_by_name.items():
            handler = getattr(service, _snake_case(name), None)
            if handler is not None:
                handlers[name] = grpc.unary_unary_rpc_method_handler(
                    self._guarded(name, handler),
                    request_deserializer=GetMessageClass(method.input_type).FromString,
                    response_serializer=GetMessageClass(method.output_type).SerializeToString,
                )
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _guarded(self, name: str, handler: Handler) -> Callable[[Message, Context], Awaitable[Message]]:
        async def handle(request: Message, context: Context) -> Message:
            began = time.monotonic()
            about = _about(request)
            task = asyncio.ensure_future(handler(request))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            try:
                answer = await asyncio.shield(task)
                log.debug("answered", call=name, seconds=round(time.monotonic() - began, 3), **about)
                return answer
            except asyncio.CancelledError:
                if not task.cancelled():  # the client gave up: the call is completed
                    raise
                await _refuse(context, Unavailable(f"{name} was not finished: the driver stops"))
            except IomeshError as error:
                # What is under way is asked for again and again.
                write = log.debug if isinstance(error, Conflict) else log.info
                write("refused", call=name, code=csi_code(error), reason=error.message, **about)
                await _refuse(context, error)
            except Exception:
                log.exception("internal error", call=name, **about)
                await _refuse(context, IomeshError(f"{name} failed: internal error; see the driver's log"))

        return handle

    def _ended(self, task: asyncio.Task[Message]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the caller, if any is left, gets it


async def _refuse(context: Context, error: IomeshError) -> NoReturn:
    await context.abort(grpc.StatusCode[csi_code(error)], error.message)


def _about(request: Message) -> dict[str, str]:
    """What the call is about, for the log: never its secrets."""
    fields = request.DESCRIPTOR.fields_by_name
    return {
        shown: getattr(request, name)
        for name, shown in (("volume_id", "id"), ("name", "name"), ("snapshot_id", "snapshot"))
        if name in fields and getattr(request, name)
    }


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
