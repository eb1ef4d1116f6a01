"""NBD byte by byte: a client that sends anything, valid or not, and returns every reply as received.

Blocking sockets, no thread: requests in flight are those sent and not yet received. A caller that sends more than the
socket buffers take must receive in between; `sending` does both at once.
"""

import select
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
OFFSET_DATA, OFFSET_HOLE, STATUS, ERROR, ERROR_OFFSET = 1, 2, 5, 0x8001, 0x8002
SIMPLE_MAGIC, CHUNK_MAGIC = 0x67446698, 0x668E33EF
SECONDS = 60.0  # timeout of a test that waits for a reply


@dataclass
class Chunk:
    kind: int
    last: bool
    body: bytes

    @property
    def offset(self) -> int:
        return int.from_bytes(self.body[:8], "big")


@dataclass
class Answer:
    """The complete answer to one request."""

    error: int = 0
    data: bytes = b""  # of a read, reassembled
    chunks: list[Chunk] = field(default_factory=list)  # empty for a simple reply

    @property
    def extents(self) -> list[tuple[int, int]]:
        [status] = self.chunks
        assert status.kind == STATUS, f"a block status was answered with a chunk of type {status.kind:#x}"
        return [(length, state) for length, state in struct.iter_unpack(">II", status.body[4:])]


@dataclass
class Asked:
    command: int
    offset: int
    length: int


class Ended(Exception):
    """The server closed the connection."""


def request(
    command: int, offset: int, length: int, *, flags: int = 0, cookie: int = 0, magic: int = 0x25609513
) -> bytes:
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)


class Wire:
    def __init__(self, uri: str, *, structured: bool = False, context: bool = False) -> None:
        parts = urlsplit(uri)
        if parts.scheme == "nbd+unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(SECONDS)
            self.socket.connect(parse_qs(parts.query)["socket"][0])
        else:
            self.socket = socket.create_connection((parts.hostname, parts.port or 10809), timeout=SECONDS)
        self._begin(structured or context)
        name = unquote(parts.path.removeprefix("/")).encode()
        self.receive(18)
        self.socket.sendall(struct.pack(">I", 3))
        if self.structured:
            self._option(8)
        if context:
            query = b"base:allocation"
            self._option(10, struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query)
        [export, *_] = self._option(7, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        self.size, self.flags = struct.unpack(">QH", export[2:])

    @classmethod
    def over(cls, connected: socket.socket, *, structured: bool) -> Self:
        """A connection on a socket that is past the handshake."""
        wire = cls.__new__(cls)
        wire.socket = connected
        wire._begin(structured)
        return wire

    def _begin(self, structured: bool) -> None:
        self.structured = structured
        self.asked: dict[int, Asked] = {}
        self._chunks: dict[int, list[Chunk]] = {}  # of incomplete answers
        self._cookies = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # sending

    def ask(
        self, command: int, offset: int, length: int, *, flags: int = 0, data: bytes = b"", cookie: int | None = None
    ) -> int:
        """Sends a request and returns its cookie."""
        header = self.header(command, offset, length, flags=flags, cookie=cookie)
        self.socket.sendall(header + data)
        return int.from_bytes(header[8:16], "big")

    def header(self, command: int, offset: int, length: int, *, flags: int = 0, cookie: int | None = None) -> bytes:
        """A request as bytes; its answer is registered as expected."""
        self._cookies += 1
        cookie = self._cookies if cookie is None else cookie
        assert cookie not in self.asked
        self.asked[cookie] = Asked(command, offset, length)
        return request(command, offset, length, flags=flags, cookie=cookie)

    def sending(self, data: bytes, answered: Callable[[int, Answer], None]) -> None:
        """Sends everything and passes each answer to `answered` as it arrives."""
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self.socket], [self.socket], [], SECONDS)
            assert readable or writable, "the server takes nothing and answers nothing"
            if readable:
                answered(*self.next_answer())
            if writable:
                view = view[self.socket.send(view[:65536], socket.MSG_DONTWAIT) :]

    # receiving

    def do(self, command: int, offset: int, length: int, *, flags: int = 0, data: bytes = b"") -> Answer:
        """One request and its answer, with nothing else in flight."""
        assert not self.asked
        cookie = self.ask(command, offset, length, flags=flags, data=data)
        answered, answer = self.next_answer()
        assert answered == cookie
        return answer

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> int:
        return self.do(WRITE, offset, len(data), data=data, flags=flags).error

    def read(self, offset: int, length: int) -> bytes:
        answer = self.do(READ, offset, length)
        assert answer.error == 0, f"reading {length} bytes at {offset}: error {answer.error}"
        return answer.data

    def answers(self) -> dict[int, Answer]:
        """The answers to everything in flight, by cookie."""
        answered = {}
        while self.asked:
            cookie, answer = self.next_answer()
            answered[cookie] = answer
        return answered

    def next_answer(self) -> tuple[int, Answer]:
        """The next complete answer; its chunks may be interleaved with chunks of others."""
        while True:
            magic = int.from_bytes(self.receive(4), "big")
            if magic == SIMPLE_MAGIC:
                error, cookie = struct.unpack(">IQ", self.receive(12))
                asked = self.asked.pop(cookie)
                assert not (self.structured and asked.command in (READ, BLOCK_STATUS)), (
                    "a simple reply where a structured one was agreed"
                )
                return cookie, Answer(error, self.receive(asked.length) if asked.command == READ and not error else b"")
            assert magic == CHUNK_MAGIC, f"a reply begins with {magic:#x}"
            assert self.structured, "a chunk, and structured replies were not agreed"
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            assert flags in (0, 1), f"a chunk has flags {flags:#x}"
            chunks = self._chunks.setdefault(cookie, [])
            chunks.append(Chunk(kind, bool(flags), self.receive(length)))
            if flags:
                del self._chunks[cookie]
                return cookie, assembled(self.asked.pop(cookie), chunks)

    def receive(self, count: int) -> bytes:
        received = bytearray(count)
        view = memoryview(received)
        while view:
            try:
                arrived = self.socket.recv_into(view)
            except ConnectionResetError:
                arrived = 0
            if arrived == 0:
                raise Ended(f"the server closed the connection {len(view)} bytes before the end of {count}")
            view = view[arrived:]
        return bytes(received)

    def ended(self) -> bool:
        """Waits for the connection's end; False if data arrives instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _option(self, option: int, data: bytes = b"") -> list[bytes]:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
        replies = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.receive(20))
            replies.append(self.receive(length))
            assert not kind & 1 << 31, f"option {option} was refused: {replies[-1].decode(errors='replace')}"
            if kind == 1:
                return replies


def assembled(asked: Asked, chunks: Iterable[Chunk]) -> Answer:
    """Reassembles chunks and checks them against the specification."""
    answer = Answer(chunks=list(chunks))
    data, covered = bytearray(asked.length if asked.command == READ else 0), 0
    told: list[tuple[int, int]] = []
    for chunk in answer.chunks:
        if chunk.kind == OFFSET_DATA:
            assert len(chunk.body) > 8, "a data chunk without data"
            told.append((chunk.offset, len(chunk.body) - 8))
            data[chunk.offset - asked.offset : chunk.offset - asked.offset + len(chunk.body) - 8] = chunk.body[8:]
        elif chunk.kind == OFFSET_HOLE:
            assert len(chunk.body) == 12, "a hole is 12 bytes"
            told.append((chunk.offset, int.from_bytes(chunk.body[8:], "big")))
        elif chunk.kind in (ERROR, ERROR_OFFSET):
            answer.error = answer.error or int.from_bytes(chunk.body[:4], "big")
            assert int.from_bytes(chunk.body[4:6], "big") == len(chunk.body) - (6 if chunk.kind == ERROR else 14)
        else:
            assert chunk.kind in (0, STATUS), f"a chunk of type {chunk.kind:#x}"
    end = asked.offset
    for offset, length in sorted(told):
        assert length > 0, "a chunk of no bytes"
        assert offset >= end, f"two chunks tell of byte {offset}"
        end = offset + length
        covered += length
    assert end <= asked.offset + asked.length, "a chunk tells of bytes that were not asked for"
    if asked.command == READ and not answer.error:
        assert covered == asked.length, f"{covered} of {asked.length} bytes were told"
        answer.data = bytes(data)
    return answer
