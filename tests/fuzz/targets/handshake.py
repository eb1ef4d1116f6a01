"""What a client may send before it has an export: any bytes, or options with any data.

The first byte of an input says how; then follow bytes to send as they are (RAW), or the client's flags (1 byte) and
options: number (1 byte), length (1 byte), data. The handshake ends with an agreement about an export that exists, or
because the client left or is none; until then each option is answered, in its own words.
"""

import asyncio
import socket
import struct
from dataclasses import dataclass

from iomesh.exports.nbd_handshake import (
    ABORT,
    ACK,
    ERROR,
    EXPORT_NAME,
    GO,
    GREETING,
    INFO,
    LIST,
    LIST_META_CONTEXT,
    OPTION_MAGIC,
    OPTIONS_MAX,
    REPLY_MAGIC,
    SET_META_CONTEXT,
    STRUCTURED_REPLY,
    Agreement,
    Handshake,
    HandshakeEnded,
    NbdExport,
)

MAX_BYTES = 600
RAW, ONE_EXPORT, HANGS_UP = 1, 2, 4
SECONDS = 60.0


@dataclass
class Export:
    name: str
    size_bytes: int = 1 << 30
    read_only: bool = False
    volatile_cache: bool = False
    comparable: tuple[str, ...] = ("s0",)

    async def attach(self, fd: int, *, structured: bool, context_id: int | None, since: str | None) -> None:
        raise AssertionError("a handshake attaches nothing")


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    how, rest = data[0], data[1:]
    sent = rest if how & RAW else framed(rest)
    exports: dict[str, NbdExport] = {"a": Export("a")}
    if not how & ONE_EXPORT:
        exports["volume"] = Export("volume", read_only=True)
    received, outcome = asyncio.run(shake_hands(exports, sent, hangs_up=how & HANGS_UP != 0))
    if isinstance(outcome, Agreement):
        assert outcome.export in exports.values(), f"agreed about {outcome.export}, which is no export"
        assert outcome.structured or outcome.context_id is None, "a context without structured replies"
        assert outcome.since is None or (outcome.context_id == 2 and outcome.since in outcome.export.comparable)
    else:
        assert str(outcome), "the handshake ended without a reason"
    if not how & HANGS_UP:
        check_replies(received, agreed=isinstance(outcome, Agreement))


def framed(data: bytes) -> bytes:
    """Flags, and options that are as long as they say."""
    sent, at = struct.pack(">I", data[0] if data else 3), 1
    while at + 2 <= len(data):
        option, length = data[at], data[at + 1]
        body = data[at + 2 : at + 2 + length]
        sent += OPTION_MAGIC + struct.pack(">II", option, len(body)) + body
        at += 2 + length
    return sent


async def shake_hands(
    exports: dict[str, NbdExport], sent: bytes, *, hangs_up: bool
) -> tuple[bytes, Agreement | HandshakeEnded]:
    """All that the server said, and how it ended."""
    loop = asyncio.get_running_loop()
    client, server = socket.socketpair()
    with client, server:
        client.setblocking(False)
        server.setblocking(False)
        handshake = loop.create_task(
            Handshake(server, exports, lambda export, structured: 0x0581 if structured else 0x0501).run()
        )
        await loop.sock_sendall(client, sent)  # fits the socket's buffer
        if hangs_up:
            client.close()
        else:
            client.shutdown(socket.SHUT_WR)
        received = bytearray()
        outcome: Agreement | HandshakeEnded
        async with asyncio.timeout(SECONDS):
            reading = loop.create_task(read_all(client, received)) if not hangs_up else None
            try:
                outcome = await handshake
            except HandshakeEnded as ended:
                outcome = ended
            server.close()
            if reading is not None:
                await reading
    return bytes(received), outcome


async def read_all(client: socket.socket, into: bytearray) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            arrived = await loop.sock_recv(client, 65536)
        except ConnectionResetError:  # the server left with some of what was sent unread
            return
        if not arrived:
            return
        into += arrived


def check_replies(received: bytes, *, agreed: bool) -> None:
    """The greeting, then whole replies, none after what ends the handshake; the export, if NBD_OPT_EXPORT_NAME chose
    it."""
    assert received.startswith(GREETING), f"the server greets with {received[:16]!r}"
    at, answered = len(GREETING) + 2, 0
    while at + 20 <= len(received):
        magic, option, kind, length = struct.unpack(">QIII", received[at : at + 20])
        if magic != REPLY_MAGIC:
            break
        assert at + 20 + length <= len(received), f"the reply to option {option} is cut off"
        at += 20 + length
        answered += kind == ACK or kind & ERROR != 0
    assert answered <= OPTIONS_MAX, f"{answered} options were answered"
    left = len(received) - at
    assert left == 0 or (agreed and left in (10, 134)), f"{left} bytes that are no reply"


def option(number: int, data: bytes = b"") -> bytes:
    return bytes([number, len(data)]) + data


def seeds() -> list[bytes]:
    name = struct.pack(">I", 1) + b"a"
    context = name + struct.pack(">II", 1, 15) + b"base:allocation"
    begin = (
        option(STRUCTURED_REPLY)
        + option(LIST)
        + option(LIST_META_CONTEXT, name + bytes(4))
        + option(SET_META_CONTEXT, context)
    )
    ends = [
        option(GO, name + struct.pack(">H4H", 4, 0, 1, 2, 3)),
        option(INFO, name + bytes(2)),
        option(EXPORT_NAME, b"a"),
        option(EXPORT_NAME, b"missing"),
        option(ABORT),
        option(5) + option(99, b"data"),
    ]
    found = [bytes([how, 3]) + begin + end for how in (0, ONE_EXPORT, HANGS_UP) for end in ends]
    found += [bytes([0, 0]) + end for end in ends] + [
        bytes([0, 3]) + option(GO, bytes(6)),
        bytes([ONE_EXPORT, 3]) + option(GO, bytes(6)),
    ]
    return [
        *found,
        bytes([RAW]) + framed(b"\3" + begin + ends[0]),
        bytes([RAW]) + framed(b"\3" + begin)[:50],
        bytes([RAW]),
    ]
