"""NBD's fixed newstyle handshake, the server's side: from an accepted socket to an export and its negotiated options.

Exactly the bytes of each message are read, from the socket itself: what a client sends after its last option belongs to
the transmission phase and stays in the kernel's buffer. docs/nbd.md lists what is implemented, and our choices where
the specification leaves one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from iomesh.engine.engine import VOLUME_BYTES_MAX

GREETING = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = b"IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9

FIXED_NEWSTYLE, NO_ZEROES = 1, 2  # flags of the handshake, the same bits in both directions

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    10,
)

ACK, SERVER, INFORMATION, META_CONTEXT = 1, 2, 3, 4
ERROR = 1 << 31
UNSUPPORTED, INVALID, UNKNOWN, TOO_BIG = ERROR + 1, ERROR + 3, ERROR + 6, ERROR + 9

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, BLOCK_BYTES_MAX = 1, 4096, 32 << 20
ALLOCATION = "base:allocation"
CHANGED_SINCE = "iomesh:changed-since:"  # followed by a snapshot's name
ALLOCATION_CONTEXT, CHANGED_CONTEXT = 1, 2  # their ids
GROWABLE = "+"  # behind an export's name: announce the largest size that a volume can have

STRING_BYTES_MAX = 4096  # the specification's: names, queries
OPTION_BYTES_MAX = 64 << 10  # of one option's data; the largest useful one is a few names
OPTIONS_MAX = 1024  # of one handshake: a client that sends options endlessly is cut off
QUERIES_MAX = 64


class NbdExport(Protocol):
    """A volume as its clients see it. `size_bytes` may grow; later connections see the new size."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def volatile_cache(self) -> bool: ...

    @property
    def comparable(self) -> Collection[str]:
        """The snapshots since which this export can report changes."""

    async def attach(self, fd: int, *, structured: bool, context_id: int | None, since: str | None) -> None:
        """Serves this connection until it ends. Block status reports what has changed `since` that snapshot; None: what
        is allocated. The callee owns the descriptor, in blocking mode, from now on, whatever happens."""


@dataclass(frozen=True)
class Agreement:
    """The result of a successful handshake."""

    export: NbdExport
    structured: bool
    context_id: int | None
    since: str | None  # the snapshot to compare with, from the context's name


class HandshakeEnded(Exception):
    """The handshake ended without an agreement: the client left, or is not an NBD client. The message is for the
    log."""


class _Refused(Exception):
    """An option that is answered with an error; the handshake continues."""

    def __init__(self, kind: int, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Fields:
    """Reads an option's data field by field; an option shorter than its fields require is INVALID."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, width: int, what: str) -> int:
        return int.from_bytes(self._take(width, what), "big")

    def string(self, what: str) -> str:
        length = self.number(4, f"the length of {what}")
        if length > STRING_BYTES_MAX:
            raise _Refused(INVALID, f"{what} has {length} bytes, more than {STRING_BYTES_MAX}")
        return _text(self._take(length, what), what)

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Refused(INVALID, f"{len(self._data) - self._at} bytes too many")

    def _take(self, count: int, what: str) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise _Refused(INVALID, f"the option ends within {what}")
        self._at += count
        return taken


def _text(data: bytes, what: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _Refused(INVALID, f"{what} is not UTF-8") from None
    if "\0" in text:
        raise _Refused(INVALID, f"{what} contains a zero byte")
    return text


class Handshake:
    """The handshake of one client. `exports` is read whenever the client names one; `flags` returns the transmission
    flags of an export, given whether structured replies were negotiated."""

    def __init__(
        self, client: socket.socket, exports: Mapping[str, NbdExport], flags: Callable[[NbdExport, bool], int]
    ) -> None:
        self._client = client  # non-blocking
        self._exports = exports
        self._flags = flags
        self._no_zeroes = False
        self._structured = False
        self._context_of: NbdExport | None = None  # the export for which a context was chosen
        self._since: str | None = None  # the context's snapshot; None: base:allocation

    async def run(self) -> Agreement:
        """Raises HandshakeEnded."""
        try:
            return await self._negotiate()
        except OSError as error:
            raise HandshakeEnded(f"the connection broke: {error.strerror}") from None

    async def _negotiate(self) -> Agreement:
        await self._send(GREETING + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES))
        (flags,) = struct.unpack(">I", await self._receive(4))
        if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
            raise HandshakeEnded(f"it sent flags that do not exist: {flags:#x}")
        self._no_zeroes = bool(flags & NO_ZEROES)
        for _ in range(OPTIONS_MAX):
            magic, option, length = struct.unpack(">8sII", await self._receive(16))
            if magic != OPTION_MAGIC:
                raise HandshakeEnded(f"an option begins with {magic!r}")
            if length > OPTION_BYTES_MAX:
                raise HandshakeEnded(f"option {option} has {length} bytes of data, more than {OPTION_BYTES_MAX}")
            export = await self._answer(option, await self._receive(length))
            if export is not None:
                return self._agreement(export)
        raise HandshakeEnded(f"it sent {OPTIONS_MAX} options and chose no export")

    def _agreement(self, export: NbdExport) -> Agreement:
        if not self._structured or self._context_of is not export:
            return Agreement(export, self._structured, None, None)
        return Agreement(export, True, ALLOCATION_CONTEXT if self._since is None else CHANGED_CONTEXT, self._since)

    async def _answer(self, option: int, data: bytes) -> NbdExport | None:
        """Replies to one option; returns the export if that was the last option."""
        if option == EXPORT_NAME:
            return await self._export_name(data)
        try:
            if option == ABORT:
                await self._abort()
            if option in (INFO, GO):
                export = await self._info(option, data)
                return export if option == GO else None
            if option == LIST:
                _nothing_in(data)
                for export in list(self._exports.values()):
                    name = export.name.encode()
                    await self._reply(option, SERVER, struct.pack(">I", len(name)) + name)
            elif option == STRUCTURED_REPLY:
                _nothing_in(data)
                self._structured = True
            elif option in (LIST_META_CONTEXT, SET_META_CONTEXT):
                await self._meta_context(option, data)
            elif option == STARTTLS:
                raise _Refused(
                    UNSUPPORTED, "this server does not encrypt NBD: use a unix socket or a network that you trust"
                )
            else:
                raise _Refused(UNSUPPORTED, f"this server does not know option {option}")
            await self._reply(option, ACK)
        except _Refused as refused:
            await self._reply(option, refused.kind, str(refused).encode()[:STRING_BYTES_MAX])
        return None

    async def _export_name(self, data: bytes) -> NbdExport:
        """The old way to choose an export: an error can only be reported by closing the connection."""
        try:
            export = self._find(_text(data, "the export's name"))
        except _Refused as refused:
            raise HandshakeEnded(str(refused)) from None
        zeroes = b"" if self._no_zeroes else bytes(124)
        size = _announced_bytes(export, data.decode())
        await self._send(struct.pack(">QH", size, self._flags(export, self._structured)) + zeroes)
        return export

    async def _abort(self) -> NoReturn:
        await self._reply(ABORT, ACK)
        raise HandshakeEnded("it left")

    async def _info(self, option: int, data: bytes) -> NbdExport:
        fields = _Fields(data)
        name = fields.string("the export's name")
        wanted = {
            fields.number(2, "the information requests")
            for _ in range(fields.number(2, "the number of information requests"))
        }
        fields.end()
        export = self._find(name)
        size = _announced_bytes(export, name)
        information = struct.pack(">HQH", INFO_EXPORT, size, self._flags(export, self._structured))
        await self._reply(option, INFORMATION, information)
        if INFO_NAME in wanted:
            await self._reply(option, INFORMATION, struct.pack(">H", INFO_NAME) + export.name.encode())
        if INFO_DESCRIPTION in wanted:
            await self._reply(
                option, INFORMATION, struct.pack(">H", INFO_DESCRIPTION) + f"iomesh volume {export.name}".encode()
            )
        if INFO_BLOCK_SIZE in wanted:
            sizes = struct.pack(">HIII", INFO_BLOCK_SIZE, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, BLOCK_BYTES_MAX)
            await self._reply(option, INFORMATION, sizes)
        await self._reply(option, ACK)
        return export

    async def _meta_context(self, option: int, data: bytes) -> None:
        choose = option == SET_META_CONTEXT
        if choose:
            self._context_of = None
        if not self._structured:
            raise _Refused(INVALID, "metadata contexts need structured replies: ask for those first")
        fields = _Fields(data)
        name = fields.string("the export's name")
        count = fields.number(4, "the number of queries")
        if count > QUERIES_MAX:
            raise _Refused(TOO_BIG, f"{count} queries are too many: {QUERIES_MAX} at most")
        queries = {fields.string("a query") for _ in range(count)}
        fields.end()
        export = self._find(name)
        known = [*(CHANGED_SINCE + snapshot for snapshot in export.comparable), ALLOCATION]
        if not choose:
            for context in known:
                if not count or any(
                    query == context or (query.endswith(":") and context.startswith(query)) for query in queries
                ):
                    await self._reply(option, META_CONTEXT, struct.pack(">I", 0) + context.encode())
            return
        chosen = next((context for context in known if context in queries), None)
        if chosen is not None:
            self._context_of = export
            self._since = None if chosen == ALLOCATION else chosen.removeprefix(CHANGED_SINCE)
            identifier = ALLOCATION_CONTEXT if chosen == ALLOCATION else CHANGED_CONTEXT
            await self._reply(option, META_CONTEXT, struct.pack(">I", identifier) + chosen.encode())

    def _find(self, name: str) -> NbdExport:
        """The export with this name; an empty name stands for the only one."""
        name = name.removesuffix(GROWABLE)
        if name in self._exports:
            return self._exports[name]
        if name == "" and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        raise _Refused(UNKNOWN, f"there is no export {name!r}" if name else "there is no default export: name one")

    async def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        await self._send(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._client, data)

    async def _receive(self, count: int) -> bytes:
        """Receives exactly `count` bytes."""
        received = bytearray(count)
        view = memoryview(received)
        while view:
            arrived = await asyncio.get_running_loop().sock_recv_into(self._client, view)
            if arrived == 0:
                raise HandshakeEnded("it hung up")
            view = view[arrived:]
        return bytes(received)


def _announced_bytes(export: NbdExport, name: str) -> int:
    """The size that the client is told, which asked for the export by this name. One that cannot be told of a growing
    volume (nbdfuse) asks for room to grow; its requests behind the volume's present end fail, as everybody's do."""
    return VOLUME_BYTES_MAX if name.endswith(GROWABLE) else export.size_bytes


def _nothing_in(data: bytes) -> None:
    if data:
        raise _Refused(INVALID, f"this option has no data, and {len(data)} bytes came with it")
