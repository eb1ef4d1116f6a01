"""The connections of other nodes to this one: their handshakes, and the turn in which the engine serves them.

One reactor of another node has one connection here, and so has each volume whose requests that node forwards. A new one
ends the older, and is served only when the engine has
answered that no request of the older is under way (docs/protocols.md, "Handshake").
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any

from iomesh.errors import IomeshError
from iomesh.node.config import PeersConfig, address_text, parse_address
from iomesh.node.engine import NodeEngine, ServedConnection
from iomesh.node.logs import logger
from iomesh.node.sockets import listen_error
from iomesh.node.supervisor import SupervisedTask, Supervisor, end_all, in_thread
from iomesh.peers.handshake import Credits, HandshakeFailed, Identity, NotServed, PeerAgreement, accept

log = logger("peers")

CREDITS = Credits(64, 8 << 20)  # as the engine grants them (ext/replicas/server.pxd)
BACKLOG = 128
HANDSHAKES_MAX = 256  # when there are more, the oldest is ended
ACCEPT_PAUSE_SECONDS = 0.2  # when no descriptor is left for another connection
END_SECONDS = 10.0  # for the engine to end the connections when the node stops
HARMLESS_ENDS = ("closed", "error", "stopped")


class PeerSockets:
    """Where other nodes reach this one. The address is known once it is bound; nobody can connect before `listen`."""

    def __init__(self, config: PeersConfig) -> None:
        self._config = config
        self.address = ""  # "host:port", for the node's record
        self.sockets: list[socket.socket] = []

    async def bind(self) -> None:
        host, port = parse_address(self._config.listen, "peers.listen")
        try:
            found = await in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            for family, kind, protocol, _, place in found:
                listener = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
                self.sockets.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((place[0], port, *place[2:]))
                port = listener.getsockname()[1]
        except OSError as error:
            self.close()
            raise listen_error(error, f"peers.listen: {self._config.listen}") from None
        self.address = address_text(host, port)

    def listen(self) -> None:
        try:
            for listener in self.sockets:
                listener.listen(BACKLOG)
        except OSError as error:  # two processes may bind one port, and only one of them can listen
            raise listen_error(error, f"peers.listen: {self._config.listen}") from None

    def close(self) -> None:
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()


class PeerServer:
    def __init__(
        self,
        engine: NodeEngine,
        me: Identity,
        sockets: PeerSockets,
        supervisor: Supervisor,
        knows: Callable[[str], bool],
        serves: Callable[[bytes], bool],
    ) -> None:
        """knows: whether a node of this name belongs to the cluster. serves: whether this one serves the volume of this
        id."""
        self._engine = engine
        self._me = me
        self._sockets = sockets
        self._supervisor = supervisor
        self._knows = knows
        self._serves = serves
        self._accepting: list[SupervisedTask] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._newest: dict[tuple[str, int, bytes], _Served] = {}  # by the other node, its reactor, and the volume

    def start(self) -> None:
        """Raises an IomeshError if the address is taken."""
        self._sockets.listen()
        for listener in self._sockets.sockets:
            self._accepting.append(self._supervisor.start("accept peers", functools.partial(self._accept, listener)))

    def forwarding_nodes(self, volume: uuid.UUID) -> list[str]:
        """The nodes that forward requests for this volume here."""
        return sorted(node for node, _, served in self._newest if served == volume.bytes)

    def end_of(self, ended: Callable[[str], bool]) -> None:
        """Ends the connections of these nodes."""
        for (node, _, _), served in list(self._newest.items()):
            if ended(node):
                served.end()

    async def stop(self) -> None:
        """Ends every connection once its requests under way are answered, or after END_SECONDS leaves them to the
        engine's stop."""
        for task in self._accepting:
            await task.stop()
        self._sockets.close()
        await end_all(self._handshakes)
        served = list(self._newest.values())
        for one in served:
            one.end()
        if served:
            _, left = await asyncio.wait([one.over for one in served], timeout=END_SECONDS)
            if left:
                log.warning("connections of other nodes not ended in time", connections=len(left), seconds=END_SECONDS)

    async def _accept(self, listener: socket.socket, task: SupervisedTask) -> None:
        task.progress()  # it listens; when the next node connects is unknown
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:  # too many open files, or a client that disconnected before accept
                log.warning("no connection of another node accepted", reason=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            if len(self._handshakes) >= HANDSHAKES_MAX:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            handshake = self._supervisor.spawn("peer handshake", self._shake_hands(connection))
            self._handshakes[handshake] = None
            handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _shake_hands(self, connection: socket.socket) -> None:
        with connection:
            try:
                agreement = await accept(connection, self._me, knows=self._knows, serves=self._serves, credits=CREDITS)
            except NotServed as failed:  # it looks for the volume's owner
                log.debug("connection of another node refused", reason=str(failed))
                return
            except HandshakeFailed as failed:
                log.warning("connection of another node refused", reason=str(failed))
                return
        key = agreement.node, agreement.reactor, agreement.volume
        served = self._newest[key] = _Served(self._engine, agreement, self._newest.get(key))
        self._supervisor.spawn("serve peer", self._serve(key, served), node=agreement.node)

    async def _serve(self, key: tuple[str, int, bytes], served: _Served) -> None:
        try:
            await served.run()
        finally:
            if self._newest.get(key) is served:
                del self._newest[key]


class _Served:
    """A connection past its handshake. `over`: neither it nor an older one in its place has requests under way."""

    def __init__(self, engine: NodeEngine, agreement: PeerAgreement, older: _Served | None) -> None:
        self._engine = engine
        self._agreement = agreement
        self._older = older
        self._connection: ServedConnection | None = None
        self._ending = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if older is not None:
            older.end()

    def end(self) -> None:
        self._ending = True
        if self._connection is not None:
            self._engine.end_served_peer(self._connection)

    async def run(self) -> None:
        fd, node = self._agreement.fd, self._agreement.node
        try:
            if self._older is not None:
                await asyncio.wait((self._older.over,))
                self._older = None
            if self._ending:  # a still newer one has come meanwhile
                return
            # A client that knows an earlier number of reactors of this node may want one that there is not.
            reactor = self._agreement.server_reactor % self._engine.reactors
            if self._agreement.volume:
                volume = uuid.UUID(bytes=self._agreement.volume)
                self._connection, fd = self._engine.serve_volume(volume, fd), -1
            else:
                self._connection, fd = self._engine.serve_peer(fd, reactor=reactor), -1
            self._connection.ended.add_done_callback(
                asyncio.Future.exception
            )  # retrieves it: after a stop nothing else does
            log.info("node connected", node=node, **self._what)
            await asyncio.wait((self._connection.ended,))
            self._report(self._connection.ended.result())
        except IomeshError as error:
            log.warning("connection of node not served", node=node, reason=error.message)
        finally:
            if fd >= 0:
                os.close(fd)
            self.over.set_result(None)

    @property
    def _what(self) -> dict[str, Any]:
        """The connection, for the log."""
        volume = self._agreement.volume
        return {"volume": str(uuid.UUID(bytes=volume))} if volume else {"reactor": self._agreement.reactor}

    def _report(self, ended: dict[str, Any]) -> None:
        about = {"node": self._agreement.node, **self._what, **ended}
        if ended["end"] in HARMLESS_ENDS:
            log.info("node disconnected", **about)
        else:
            log.warning("node cut off: what it sent breaks the peer protocol", **about)
