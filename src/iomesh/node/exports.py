"""The exports of this node's volumes: which are published, at which addresses, and how many clients are connected.

A connection belongs to the engine once its handshake is done. A second descriptor of its socket stays here for one
purpose: to cut the connection when its export is withdrawn.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote

from iomesh.api.model import Export
from iomesh.errors import IomeshError, Unavailable
from iomesh.exports.nbd import NbdServer
from iomesh.node.config import NbdConfig, address_text, parse_address
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.sockets import claim_unix_socket, listen_error, release, restrict
from iomesh.node.supervisor import SupervisedTask, Supervisor, in_thread

log = logger("exports")
NBD = "nbd"
END_SECONDS = 10.0  # for the engine to notice that connections were cut
LOOK_SECONDS = 0.02
LEAVE_SECONDS = 1.0  # for the next client's disconnection to be noticed, and for its last requests to arrive


class Serve(Protocol):
    """Serves a client's connection, past its handshake; returns when it has ended."""

    def __call__(
        self, volume: uuid.UUID, fd: int, *, structured: bool, context_id: int | None, read_only: bool
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...


class Connections:
    """The open connections of one export."""

    def __init__(self) -> None:
        self.sockets: set[socket.socket] = set()
        self.ended = False  # no new connection is accepted
        self._none_left = asyncio.Event()
        self._none_left.set()

    @contextmanager
    def hold(self, fd: int) -> Iterator[None]:
        connection = socket.socket(fileno=os.dup(fd))
        self.sockets.add(connection)
        self._none_left.clear()
        try:
            yield
        finally:
            self.sockets.discard(connection)
            connection.close()
            if not self.sockets:
                self._none_left.set()

    def cut(self) -> None:
        """Cuts every connection: no answer is sent any more. One in its handshake is cut when that is over."""
        self.ended = True
        for connection in self.sockets:
            with suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    async def end(self) -> None:
        """Cuts every connection and waits until the engine has released them."""
        self.cut()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.none_left()
        except TimeoutError:
            raise Unavailable(
                f"{len(self.sockets)} connection(s) were cut, and the engine has not ended their requests within "
                f"{END_SECONDS:g} s, most likely because a device does not answer: try again"
            ) from None

    async def none_left(self) -> None:
        await self._none_left.wait()


class VolumeExport:
    """What an NbdServer publishes (see iomesh.exports.nbd.NbdExport)."""

    def __init__(
        self,
        engine: NodeEngine,
        volume: uuid.UUID,
        name: str,
        *,
        size_bytes: int,
        read_only: bool,
        volatile_cache: bool,
        earlier: Callable[[], Mapping[str, uuid.UUID]],
        before: VolumeExport | None = None,
        forward: Serve | None = None,
    ) -> None:
        """earlier: of a snapshot, the snapshots that it can be compared with, by name; called whenever a client may
        request them. before: a withdrawn export of that name whose connections have not ended yet. forward: serves the
        clients while another node owns the volume."""
        self.name = name
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.volatile_cache = volatile_cache
        self.volume = volume
        self.forward = forward
        self._engine = engine
        self._earlier = earlier
        self._before = before
        self._connections = Connections()
        self.withdrawn = False

    @property
    def connections(self) -> int:
        return len(self._connections.sockets) + (self._before.connections if self._before is not None else 0)

    @property
    def comparable(self) -> Collection[str]:
        return self._earlier().keys()

    async def attach(self, fd: int, *, structured: bool, context_id: int | None, since: str | None) -> None:
        """Passes a connected socket to the engine, which closes it; returns when the connection has ended."""
        older = None if since is None else self._earlier().get(since)
        if self._connections.ended or (
            since is not None and older is None
        ):  # withdrawn, or the snapshot deleted, since then
            os.close(fd)
            return
        with self._connections.hold(fd):
            if self.forward is not None:
                ended = await self.forward(
                    self.volume, fd, structured=structured, context_id=context_id, read_only=self.read_only
                )
            else:
                ended = await self._engine.serve_nbd(
                    self.volume, fd, structured=structured, context_id=context_id, since=older, read_only=self.read_only
                )
        log.debug("connection ended", volume=self.name, **ended)

    def cut(self) -> None:
        if self._before is not None:
            self._before.cut()
        self._connections.cut()

    def cut_clients(self) -> None:
        self._connections.cut()
        self._connections = Connections()

    async def end_connections(self) -> None:
        if self._before is not None:
            await self._before.end_connections()
            self._before = None
        await self._connections.end()


class Exports:
    """The node's NBD server: one unix socket, and TCP if configured, for all volumes; an export is named after its
    volume."""

    def __init__(self, config: NbdConfig, engine: NodeEngine, supervisor: Supervisor) -> None:
        self._config = config
        self._engine = engine
        self._supervisor = supervisor
        self._server = NbdServer(self._keep_accepting)
        self._published: dict[str, VolumeExport] = {}
        self._listens: str = ""
        # the other nodes that forward their clients' requests for a volume to this one
        self.forwarding_nodes: Callable[[uuid.UUID], list[str]] = lambda volume: []

    async def listen(self) -> None:
        await in_thread(lambda: claim_unix_socket(self._config.socket, "nbd.socket"))
        try:
            await self._server.listen_unix(self._config.socket)
            restrict(self._config.socket)
            if self._config.listen:
                host, port = parse_address(self._config.listen, "nbd.listen")
                self._listens = address_text(host, await self._server.listen_tcp(host, port))
        except OSError as error:
            await self.close()
            where = ", ".join(filter(None, (self._config.socket, self._config.listen)))
            raise listen_error(error, f"nbd.socket, nbd.listen: {where}") from None

    def _keep_accepting(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        async def accept(task: SupervisedTask) -> None:
            task.progress()  # it listens; when the next client connects is unknown
            await work()

        return self._supervisor.start("accept clients", accept).handle

    async def close(self) -> None:
        await self._server.close()
        release(self._config.socket)

    @property
    def addresses(self) -> list[str]:
        return [self._config.socket, *([self._listens] if self._listens else [])]

    def publish(
        self,
        volume: uuid.UUID,
        name: str,
        *,
        size_bytes: int,
        read_only: bool,
        volatile_cache: bool,
        earlier: Callable[[], Mapping[str, uuid.UUID]] = dict,
    ) -> None:
        """Publishes the export; if it is published already, new connections see the new size."""
        export = self._published.get(name)
        if export is not None and not export.withdrawn and export.volume == volume:
            export.size_bytes = size_bytes
            export.forward = None  # connections that are forwarded stay so
            return
        export = VolumeExport(
            self._engine,
            volume,
            name,
            size_bytes=size_bytes,
            read_only=read_only,
            volatile_cache=volatile_cache,
            earlier=earlier,
            before=export,
        )
        self._server.publish(export)
        self._published[name] = export

    def forward(self, volume: uuid.UUID, name: str, *, size_bytes: int, read_only: bool, serve: Serve) -> None:
        """Publishes the export of a volume that another node owns; if it is published, new connections see the new
        size."""
        export = self._published.get(name)
        if export is not None and not export.withdrawn and export.volume == volume:
            export.size_bytes, export.forward = size_bytes, serve
            return
        export = VolumeExport(
            self._engine,
            volume,
            name,
            size_bytes=size_bytes,
            read_only=read_only,
            volatile_cache=True,  # the next owner may have one
            earlier=dict,
            before=export,
            forward=serve,
        )
        self._server.publish(export)
        self._published[name] = export

    def cut_clients(self, name: str) -> None:
        """They may connect again."""
        if (export := self._published.get(name)) is not None:
            export.cut_clients()

    def cut(self, name: str) -> None:
        """Withdraws the export and cuts its connections, without waiting for the engine."""
        if (export := self._published.get(name)) is not None:
            self._server.withdraw(name)
            export.withdrawn = True
            export.cut()

    async def withdraw(self, name: str) -> None:
        """Withdraws the export and ends its connections. Raises Unavailable if the engine does not release them in
        time: no client can connect from then on, and the next call waits for the connections again."""
        export = self._published.get(name)
        if export is None:
            return
        self._server.withdraw(name)
        export.withdrawn = True
        try:
            await export.end_connections()
        except IomeshError as error:
            raise type(error)(f"export {name}: {error.message}") from None
        if self._published.get(name) is export:
            del self._published[name]

    def is_published(self, name: str, *, read_only: bool) -> bool:
        """Whether new clients can connect, and have this right."""
        export = self._published.get(name)
        return export is not None and not export.withdrawn and export.read_only == read_only

    def describe(self, name: str) -> list[Export]:
        export = self._published.get(name)
        return (
            []
            if export is None
            else [
                Export(protocol=NBD, uris=self._uris(name), read_only=export.read_only, connections=export.connections)
            ]
        )

    def connections(self, name: str) -> int:
        """Of clients, and of other nodes for their clients."""
        export = self._published.get(name)
        return 0 if export is None else export.connections + len(self.forwarding_nodes(export.volume))

    async def let_leave(self, *names: str) -> None:
        """Waits for connections to end, as long as one does within LEAVE_SECONDS: a user may disconnect and at once run
        a command that requires no connections."""
        await _all_leave(lambda: sum(self.connections(name) for name in names))

    async def let_nodes_leave(self, volume: uuid.UUID) -> None:
        """Like let_leave, for the other nodes that forward requests to this one."""
        await _all_leave(lambda: len(self.forwarding_nodes(volume)))

    def _uris(self, name: str) -> list[str]:
        uris = [f"nbd+unix:///{quote(name, safe='@')}?socket={quote(self._config.socket, safe='/')}"]
        if self._listens:
            host, port = parse_address(self._listens, "nbd.listen")
            host = platform.node() if host in ("0.0.0.0", "::") else host
            uris.append(f"nbd://{address_text(host, port)}/{quote(name, safe='@')}")
        return uris


async def _all_leave(count: Callable[[], int]) -> None:
    left, deadline = count(), time.monotonic() + LEAVE_SECONDS
    while left and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
        if (now := count()) < left:
            deadline = time.monotonic() + LEAVE_SECONDS
        left = now
