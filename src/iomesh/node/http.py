"""The HTTP server for monitoring: /metrics for Prometheus, /healthz and /readyz for the service manager.

A dozen lines of HTTP/1.1, one answer per connection: for three fixed pages a web framework would be more than the rest
of the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from iomesh.node.config import address_text, parse_address
from iomesh.node.logs import logger
from iomesh.node.sockets import listen_error

log = logger("http")

REQUEST_BYTES_MAX = 16 * 1024
REQUEST_SECONDS = 10.0
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

# Status, content type, body.
Page = Callable[[], tuple[HTTPStatus, str, bytes]]


class HttpServer:
    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self.address = ""

    async def listen(self, address: str) -> None:
        host, port = parse_address(address, "metrics.listen")
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=REQUEST_BYTES_MAX)
        except OSError as error:
            raise listen_error(error, f"metrics.listen: {address}") from None
        self.address = address_text(host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # no complete request: no answer is owed
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        page = self._pages.get(path)
        if method not in ("GET", "HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET it\n"
        elif page is None:
            status, kind, body = HTTPStatus.NOT_FOUND, TEXT, f"there are {', '.join(self._pages)}\n".encode()
        else:
            try:
                status, kind, body = page()
            except Exception:
                log.exception("internal error", page=path)
                status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"internal error: see the node's log\n"
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        header = "\r\n".join(lines) + "\r\n\r\n"
        return header.encode() + (b"" if method == "HEAD" else body)
