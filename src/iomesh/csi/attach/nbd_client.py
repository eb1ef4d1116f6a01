"""NBD's handshake, the client's side: a socket in the transmission phase, for the kernel to use. docs/nbd.md has the
server's."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from iomesh.errors import Unavailable

_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _ACK, _INFO = 7, 1, 3
_INFO_EXPORT = 0
_REPLY_MAGIC = 0x3E889045565A9
_ERROR = 1 << 31
_LENGTH_MAX = 1 << 16  # of a reply
SECONDS = 30.0

READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 1, 1 << 2, 1 << 3  # transmission flags


@dataclass(frozen=True)
class Connected:
    """The caller closes the socket."""

    socket: socket.socket
    size_bytes: int
    flags: int


async def connect(uri: str) -> Connected:
    """With simple replies. Raises Unavailable: the daemon does not answer, or has no such export."""
    parts = urlsplit(uri)
    name = unquote(parts.path.removeprefix("/"))
    try:
        async with asyncio.timeout(SECONDS):
            connection = await _opened(uri)
            try:
                size, flags = await _go(connection, name.encode())
                connection.setblocking(True)
            except BaseException:
                connection.close()
                raise
    except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise Unavailable(
            f"export {name} cannot be reached at {uri}: {reason or f'no answer in {SECONDS:g} s'}: see whether this "
            "node's daemon runs"
        ) from None
    return Connected(connection, size, flags)


async def size_bytes(uri: str) -> int:
    """As the daemon knows it. Raises Unavailable."""
    found = await connect(uri)
    found.socket.close()
    return found.size_bytes


async def _opened(uri: str) -> socket.socket:
    parts, loop = urlsplit(uri), asyncio.get_running_loop()
    unix = parts.scheme == "nbd+unix"
    connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        if unix:
            await loop.sock_connect(connection, parse_qs(parts.query)["socket"][0])
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await loop.sock_connect(connection, (parts.hostname, parts.port or 10809))
    except BaseException:
        connection.close()
        raise
    return connection


async def _go(connection: socket.socket, name: bytes) -> tuple[int, int]:
    loop = asyncio.get_running_loop()
    greeting, flags = struct.unpack(">16sH", await _read(connection, 18))
    if greeting != _GREETING or not flags & _FIXED_NEWSTYLE:
        raise ValueError("no NBD server with the fixed newstyle handshake answers there")
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    option = struct.pack(">8sII", b"IHAVEOPT", _GO, len(data)) + data
    await loop.sock_sendall(connection, struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)) + option)
    found: tuple[int, int] | None = None
    while True:
        magic, _, kind, length = struct.unpack(">QIII", await _read(connection, 20))
        if magic != _REPLY_MAGIC or length > _LENGTH_MAX:
            raise ValueError("the NBD server answers something else than a reply to an option")
        content = await _read(connection, length)
        if kind & _ERROR:
            raise ValueError(content.decode(errors="replace") or f"the NBD server refuses with {kind:#x}")
        if kind == _INFO and struct.unpack_from(">H", content)[0] == _INFO_EXPORT:
            _, size, transmission = struct.unpack(">HQH", content)
            found = size, transmission
        if kind == _ACK:
            if found is None:
                raise ValueError("the NBD server does not say how large the export is")
            return found


async def _read(connection: socket.socket, length: int) -> bytes:
    """Exactly so many bytes: what follows the handshake is the kernel's."""
    data = b""
    while len(data) < length:
        part = await asyncio.get_running_loop().sock_recv(connection, length - len(data))
        if not part:
            raise EOFError("the NBD server closed the connection")
        data += part
    return data
