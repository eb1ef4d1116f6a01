"""An NBD client that shows exactly what was sent and answered: asyncio, many requests in flight.

Simple or structured replies; fixed newstyle. When a connection ends, everything in flight fails with ConnectionError;
an error of the server raises NbdError with its number.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8, 16

_OPTION_GO, _OPTION_STRUCTURED, _OPTION_SET_META_CONTEXT = 7, 8, 10
_REPLY_ACK, _REPLY_INFO, _REPLY_META_CONTEXT = 1, 3, 4
CLOSE_SECONDS = 5  # limit for the server to end a connection
_SIMPLE_MAGIC, _STRUCTURED_MAGIC, _REQUEST_MAGIC = 0x67446698, 0x668E33EF, 0x25609513
_CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS, _CHUNK_ERROR_BIT = 1, 2, 5, 0x8000
_CHUNK_DONE = 1


class NbdError(OSError):
    """The server answered a request with an error."""


@dataclass
class _Pending:
    answer: asyncio.Future[bytes]
    kind: int
    offset: int
    data: bytearray
    error: int = 0
    covered: int = 0  # bytes of a structured read that chunks have covered


class Connection:
    """One connection to an export; see `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.size = 0
        self.flags = 0
        self.structured = False
        self._reader, self._writer = reader, writer
        self._pending: dict[int, _Pending] = {}
        self._cookie = 0
        self._replies: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, uri: str, *, structured: bool = False, block_status: bool = False) -> Self:
        parts = urlsplit(uri)
        if parts.scheme == "nbd+unix":
            streams = await asyncio.open_unix_connection(parse_qs(parts.query)["socket"][0], limit=1 << 22)
        else:
            streams = await asyncio.open_connection(parts.hostname, parts.port or 10809, limit=1 << 22)
        connection = cls(*streams)
        await connection._handshake(
            unquote(parts.path.removeprefix("/")).encode(), structured or block_status, block_status
        )
        connection._replies = asyncio.create_task(connection._receive())
        return connection

    @classmethod
    async def over(cls, connected: socket.socket) -> Self:
        """A connection on a socket whose peer is past the handshake."""
        connection = cls(*await asyncio.open_connection(sock=connected, limit=1 << 22))
        connection._replies = asyncio.create_task(connection._receive())
        return connection

    async def read(self, offset: int, length: int) -> bytes:
        return await self.request(READ, offset, length)

    async def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        await self.request(WRITE, offset, len(data), flags, data)

    async def zero(self, offset: int, length: int, *, flags: int = 0) -> None:
        await self.request(WRITE_ZEROES, offset, length, flags)

    async def trim(self, offset: int, length: int, *, flags: int = 0) -> None:
        await self.request(TRIM, offset, length, flags)

    async def flush(self) -> None:
        await self.request(FLUSH, 0, 0)

    async def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Lengths and states of base:allocation from `offset` on; bit 0: a hole, bit 1: reads as zeros."""
        words = struct.iter_unpack(">II", await self.request(BLOCK_STATUS, offset, length))
        return [(int(count), int(state)) for count, state in words]

    def request(self, kind: int, offset: int, length: int, flags: int = 0, data: bytes = b"") -> asyncio.Future[bytes]:
        """Sends at once; the future completes with the server's answer."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._replies is None or self._replies.done() or self._writer.transport.is_closing():
            answer.set_exception(ConnectionError("the connection has ended"))
            return answer
        self._cookie += 1
        room = length if kind == READ else 0
        self._pending[self._cookie] = _Pending(answer, kind, offset, bytearray(room))
        self._writer.write(struct.pack(">IHHQQI", _REQUEST_MAGIC, flags, kind, self._cookie, offset, length) + data)
        return answer

    def leave(self) -> None:
        """Disconnects with NBD_CMD_DISC, without waiting for the server to notice."""
        self._writer.write(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        self._writer.close()

    async def close(self) -> None:
        if self._replies is not None and not self._replies.done():
            self._writer.write(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
            # After the server's close it no longer counts the connection.
            await asyncio.wait({self._replies}, timeout=CLOSE_SECONDS)
        self._writer.close()
        with contextlib.suppress(OSError):  # if the server closed first
            await self._writer.wait_closed()
        if self._replies is not None:
            self._replies.cancel()

    async def _handshake(self, name: bytes, structured: bool, block_status: bool) -> None:
        magic, option_magic, flags = struct.unpack(">QQH", await self._reader.readexactly(18))
        assert (magic, option_magic) == (0x4E42444D41474943, 0x49484156454F5054), "not a newstyle NBD server"
        assert flags & 1, "not a fixed newstyle NBD server"
        self._writer.write(struct.pack(">I", flags & 3))
        if structured:
            replies = await self._option(_OPTION_STRUCTURED, b"")
            self.structured = replies[-1][0] == _REPLY_ACK
        if block_status:
            context = b"base:allocation"
            await self._option(
                _OPTION_SET_META_CONTEXT,
                struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(context)) + context,
            )
        for kind, data in await self._option(
            _OPTION_GO, struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3)
        ):
            if kind == _REPLY_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:12])
            elif kind & 0x80000000:
                raise ConnectionError(f"the server refused the export {name!r}: {data.decode(errors='replace')}")

    async def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        self._writer.write(struct.pack(">QII", 0x49484156454F5054, option, len(data)) + data)
        replies = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", await self._reader.readexactly(20))
            replies.append((kind, await self._reader.readexactly(length)))
            if kind == _REPLY_ACK or kind & 0x80000000:
                return replies

    async def _receive(self) -> None:
        ended: BaseException = ConnectionError("the connection has ended")
        try:
            while True:
                magic = int.from_bytes(await self._reader.readexactly(4), "big")
                if magic == _SIMPLE_MAGIC:
                    await self._simple_reply()
                elif magic == _STRUCTURED_MAGIC:
                    await self._chunk()
                else:
                    raise ConnectionError(f"the server sent a reply with the magic {magic:#x}")
        except (OSError, asyncio.IncompleteReadError) as error:
            ended = ConnectionError(f"the connection has ended: {error}")
        finally:
            for pending in self._pending.values():
                if not pending.answer.done():
                    pending.answer.set_exception(ended)
            self._pending.clear()

    async def _simple_reply(self) -> None:
        error, cookie = struct.unpack(">IQ", await self._reader.readexactly(12))
        pending = self._pending[cookie]
        pending.error = error
        if pending.kind == READ and not error:
            pending.data[:] = await self._reader.readexactly(len(pending.data))
        self._finish(cookie)

    async def _chunk(self) -> None:
        flags, kind, cookie, length = struct.unpack(">HHQI", await self._reader.readexactly(16))
        body = await self._reader.readexactly(length)
        pending = self._pending[cookie]
        if kind == _CHUNK_DATA:
            start = int.from_bytes(body[:8], "big") - pending.offset
            pending.data[start : start + length - 8] = body[8:]
            pending.covered += length - 8
        elif kind == _CHUNK_HOLE:
            pending.covered += int.from_bytes(body[8:12], "big")  # the buffer is already zeros
        elif kind == _CHUNK_STATUS:
            pending.data[:] = body[4:]
        elif kind & _CHUNK_ERROR_BIT:
            pending.error = int.from_bytes(body[:4], "big")
        if flags & _CHUNK_DONE:
            if pending.kind == READ and not pending.error and pending.covered != len(pending.data):
                raise ConnectionError(f"the server's chunks tell {pending.covered} of {len(pending.data)} bytes read")
            self._finish(cookie)

    def _finish(self, cookie: int) -> None:
        pending = self._pending.pop(cookie)
        if pending.answer.done():
            return  # cancelled meanwhile
        if pending.error:
            pending.answer.set_exception(NbdError(pending.error, "the server answered with an error"))
        else:
            pending.answer.set_result(bytes(pending.data))
