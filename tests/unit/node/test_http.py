"""The HTTP endpoint answers its three pages, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest

from iomesh.errors import InUse
from iomesh.node.config import parse_address
from iomesh.node.http import REQUEST_BYTES_MAX, TEXT, HttpServer


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    server = HttpServer(
        {"/healthz": lambda: (HTTPStatus.OK, TEXT, b"ok\n"), "/metrics": lambda: (HTTPStatus.OK, TEXT, b"x 1\n")}
    )
    await server.listen("127.0.0.1:0")
    yield server
    await server.close()


async def ask(server: HttpServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*parse_address(server.address, "test"))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1", b"200 OK", b"ok\n"),
        (b"GET /metrics?name[]=x HTTP/1.0", b"200 OK", b"x 1\n"),
        (b"HEAD /metrics HTTP/1.1", b"200 OK", b""),
        (b"GET /secret HTTP/1.1", b"404 Not Found", b"there are /healthz, /metrics\n"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed", b"GET it\n"),
        (b"\xff\xfe", b"405 Method Not Allowed", b"GET it\n"),
        (b"", b"405 Method Not Allowed", b"GET it\n"),
    ],
)
async def test_each_request_has_its_answer(server: HttpServer, request_line: bytes, status: bytes, body: bytes) -> None:
    answer = await ask(server, request_line + b"\r\nHost: x\r\nAccept: */*\r\n\r\n")
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert rest == body


async def test_a_request_without_an_end_costs_a_connection_and_no_memory(server: HttpServer) -> None:
    assert await ask(server, b"GET /" + b"a" * (REQUEST_BYTES_MAX * 3)) == b""
    assert b"200 OK" in await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")


async def test_a_port_that_is_taken_is_named(server: HttpServer) -> None:
    with pytest.raises(InUse, match=rf"metrics\.listen: {server.address}"):
        await HttpServer({}).listen(server.address)
