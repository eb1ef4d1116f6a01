"""The NBD server: listens, does the handshake, and passes each connection to its export, whose engine serves it from
then on.

A misbehaving client costs one descriptor for the duration of a handshake, and nothing else: handshakes are limited in
time, in the length of each message and in number; when there are too many, the oldest is ended.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from iomesh.engine.engine import transmission_flags
from iomesh.exports.nbd_handshake import Handshake, HandshakeEnded, NbdExport

__all__ = ["NbdExport", "NbdServer"]

BACKLOG = 128
HANDSHAKE_SECONDS = 30.0
HANDSHAKES_MAX = 256
ACCEPT_PAUSE_SECONDS = 0.2  # when no descriptor is left for another client
SEND_BUFFER_BYTES = 4 << 20  # a whole batch of replies fits: the reactor's send ends at once
SO_SNDBUFFORCE = 32  # the same beyond net.core.wmem_max, with the privilege
# Seconds: a vanished client machine is noticed within 90.
KEEPALIVE = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 6,
}

log = structlog.get_logger(part="nbd")


class NbdServer:
    """Belongs to the event loop that it is used in. `keep(work)` restarts `work`, which accepts clients, when it fails;
    without it no one restarts it."""

    def __init__(
        self, keep: Callable[[Callable[[], Coroutine[Any, Any, None]]], asyncio.Task[None]] | None = None
    ) -> None:
        self._keep = keep or (lambda work: asyncio.get_running_loop().create_task(work()))
        self._exports: dict[str, NbdExport] = {}
        self._listeners: list[socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._attached: set[asyncio.Task[None]] = set()

    async def listen_unix(self, path: str) -> None:
        """Raises OSError; the path must be free."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._listen(listener, path)

    async def listen_tcp(self, host: str, port: int) -> int:
        """On all addresses of `host`; returns the port (0 chooses one). Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            listener = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._listen(listener, (address[0], port, *address[2:]))
            port = listener.getsockname()[1]
        return port

    def publish(self, export: NbdExport) -> None:
        """New clients can choose it from now on."""
        if export.name in self._exports:
            raise ValueError(f"an export {export.name} is published already: withdraw it first")
        self._exports[export.name] = export

    def withdraw(self, name: str) -> None:
        """New clients cannot choose it any more; connected ones stay."""
        self._exports.pop(name, None)

    async def close(self) -> None:
        """Stops listening and ends handshakes; connections already passed to their exports are not affected."""
        for task in [*self._accepting, *self._handshakes]:
            task.cancel()
        await asyncio.gather(*self._accepting, *self._handshakes, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _listen(self, listener: socket.socket, address: Any) -> None:
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listeners.append(listener)
        accepting = self._keep(lambda: self._accept(listener))
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepting.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many open files, or a client that disconnected before accept
                log.warning("no connection accepted", reason=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            if len(self._handshakes) >= HANDSHAKES_MAX:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            task = loop.create_task(self._shake_hands(client))
            self._handshakes[task] = None
            task.add_done_callback(self._handshake_over)

    def _handshake_over(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _shake_hands(self, client: socket.socket) -> None:
        with client:
            try:
                _prepare(client)
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    agreement = await Handshake(client, self._exports, _flags).run()
            except HandshakeEnded as ended:
                log.debug("handshake ended", reason=str(ended))
                return
            except TimeoutError:
                log.info("handshake ended", reason=f"it took longer than {HANDSHAKE_SECONDS:.0f} s")
                return
            except OSError as error:
                log.debug("handshake ended", reason=error.strerror)
                return
            client.setblocking(True)
            fd = client.detach()
        serve = agreement.export.attach(
            fd, structured=agreement.structured, context_id=agreement.context_id, since=agreement.since
        )
        _start(_logged(agreement.export.name, serve), self._attached)


def _flags(export: NbdExport, structured: bool) -> int:
    return transmission_flags(read_only=export.read_only, volatile_cache=export.volatile_cache, structured=structured)


def _prepare(client: socket.socket) -> None:
    client.setblocking(False)
    if client.family == socket.AF_UNIX:
        try:
            client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        except OSError:
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    else:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            client.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _logged(name: str, serve: Coroutine[Any, Any, None]) -> None:
    try:
        await serve
    except Exception as error:  # in the export's own code; the server continues
        log.warning("connection not served", export=name, reason=str(error))
