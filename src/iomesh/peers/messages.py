"""The messages of the peer handshake, their encoding and their proofs: pure functions (docs/protocols.md, "Handshake").

A message is its length (4 bytes, big-endian) and a MessagePack map. `decode` refuses what lacks a documented key or has
a value of another form. Unknown keys are ignored, since a proof covers them and a later version may add some.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

import msgspec

PROTOCOL = "iomesh-peer"
MESSAGE_BYTES_MAX = 4096
LENGTH_BYTES = 4
NONCE_BYTES = 32
PROOF_BYTES = 32
CREDIT_BYTES_MIN = 1 << 20  # the largest request needs as much

Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
ProofBytes = Annotated[bytes, msgspec.Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
VolumeId = Annotated[bytes, msgspec.Meta(max_length=16)]
NodeName = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Number = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Versions = tuple[Number, Number]  # lowest, highest


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    """The client's first message."""

    protocol: str
    cluster: Id
    node: NodeName
    reactor: Number
    server: NodeName
    server_reactor: Number
    versions: Versions
    nonce: Nonce
    volume: VolumeId = b""  # for the I/O of this volume alone; empty: for the node's devices


class Terms(msgspec.Struct, frozen=True):
    """What the server's proof covers, encoded on its own within Challenge."""

    cluster: Id
    node: NodeName
    versions: Versions
    version: Number
    requests: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
    bytes: Annotated[int, msgspec.Meta(ge=CREDIT_BYTES_MIN, le=1 << 40)]
    nonce: Nonce
    time_ns: int = 0  # Unix time, by the server's clock; 0: an earlier version sent it


class Challenge(msgspec.Struct, frozen=True, tag_field="type", tag="challenge"):
    """The server's answer to Hello."""

    terms: Annotated[bytes, msgspec.Meta(max_length=MESSAGE_BYTES_MAX)]
    proof: ProofBytes


class Proof(msgspec.Struct, frozen=True, tag_field="type", tag="proof"):
    """The client's proof."""

    proof: ProofBytes


class Welcome(msgspec.Struct, frozen=True, tag_field="type", tag="welcome"):
    """The server's last message."""


class Refused(msgspec.Struct, frozen=True, tag_field="type", tag="refused"):
    """Instead of Challenge or Welcome."""

    code: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=1024)]


Message = Hello | Challenge | Proof | Welcome | Refused

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_terms_decoder = msgspec.msgpack.Decoder(Terms)


class Malformed(Exception):
    """The bytes are no message, or not the one that belongs here; the text says what is wrong with them."""


def encode(message: Message | Terms) -> bytes:
    """Without its length."""
    return _encoder.encode(message)


def framed(body: bytes) -> bytes:
    """With its length before it. Raises ValueError if it is longer than a message may be."""
    if len(body) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of the handshake has {len(body)} bytes, more than {MESSAGE_BYTES_MAX}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def length(prefix: bytes) -> int:
    """The length of the message that follows. Raises Malformed."""
    found = int.from_bytes(prefix, "big")
    if not 0 < found <= MESSAGE_BYTES_MAX:
        raise Malformed(f"a message claims to have {found} bytes, and 1 to {MESSAGE_BYTES_MAX} are allowed")
    return found


def decode(body: bytes) -> Message:
    """Raises Malformed."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"a message cannot be decoded: {error}") from None


def decode_terms(body: bytes) -> Terms:
    """Raises Malformed."""
    try:
        return _terms_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the terms cannot be decoded: {error}") from None


def proof(key: bytes, role: str, hello: bytes, terms: bytes) -> bytes:
    """Of `role` ("server" or "client"): that it has the key, and saw these bytes of Hello and of the terms."""
    said = f"{PROTOCOL} {role}".encode() + b"\0" + hashlib.sha256(hello).digest() + hashlib.sha256(terms).digest()
    return hmac.digest(key, said, "sha256")


def proves(found: bytes, key: bytes, role: str, hello: bytes, terms: bytes) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(found, proof(key, role, hello, terms))


def common_version(ours: Versions, theirs: Versions) -> int | None:
    """The highest version in both ranges."""
    highest = min(ours[1], theirs[1])
    return highest if highest >= max(ours[0], theirs[0]) else None
