"""What either side of the peer handshake may send before it has proved anything: any bytes, or messages with any
content.

The first byte of an input chooses the side that is fuzzed and whether messages are framed. A handshake ends with a
failure that has a reason, in bounded time; never with an agreement, since no input holds the key.
"""

import asyncio
import socket

import msgspec

from iomesh.peers import messages
from iomesh.peers.handshake import Credits, HandshakeFailed, Identity, accept, connect, make_hello, make_terms

MAX_BYTES = 600
CLIENT, FRAMED = 1, 2
SECONDS = 60.0
ME = Identity(b"cluster-of-fuzz-", "here", b"k" * 32)
OTHER = Identity(b"cluster-of-fuzz-", "there", b"k" * 32)


def fuzz_one(data: bytes) -> None:
    if data:
        asyncio.run(shake_hands(data[0], data[1:]))


async def shake_hands(how: int, data: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs:
        if how & CLIENT:
            handshake = asyncio.create_task(
                connect(ours, ME, server="there", reactor=0, server_reactor=0, seconds=SECONDS)
            )
        else:
            handshake = asyncio.create_task(
                accept(ours, ME, knows=lambda node: True, credits=Credits(64, 8 << 20), seconds=SECONDS)
            )
        await asyncio.get_running_loop().sock_sendall(theirs, framed(data) if how & FRAMED else data)
        theirs.shutdown(socket.SHUT_WR)
        outcome = (await asyncio.gather(handshake, return_exceptions=True))[0]
    assert isinstance(outcome, HandshakeFailed), f"without the key: {outcome!r}"
    assert str(outcome), "it failed without a reason"
    assert ours.fileno() == -1, "the socket is still open"


def framed(data: bytes) -> bytes:
    """Messages: length (2 bytes), body."""
    sent, at = b"", 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + 2 + size]
        sent += len(body).to_bytes(4, "big") + body
        at += 2 + size
    return sent


def message(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def seeds() -> list[bytes]:
    hello = make_hello(OTHER, "here", 1, 2)
    hello = msgspec.structs.replace(hello, nonce=b"n" * 32)
    terms = msgspec.structs.replace(make_terms(OTHER, hello, Credits(64, 8 << 20)), nonce=b"m" * 32)
    known: list[messages.Message] = [
        hello,
        msgspec.structs.replace(hello, cluster=b"another-cluster-"),
        msgspec.structs.replace(hello, versions=(7, 9)),
        msgspec.structs.replace(hello, protocol="nbd"),
        messages.Challenge(messages.encode(terms), bytes(32)),
        messages.Proof(bytes(32)),
        messages.Welcome(),
        messages.Refused("key", "no"),
    ]
    bodies = [messages.encode(one) for one in known]
    found = [bytes([how]) + message(body) for how in (FRAMED, FRAMED | CLIENT) for body in bodies]
    found += [bytes([FRAMED]) + message(bodies[0]) + message(body) for body in bodies]
    return [*found, bytes([0]) + messages.framed(bodies[0])[:60], bytes([CLIENT]) + b"\xff" * 10, bytes([0])]
