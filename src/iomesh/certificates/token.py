"""A join token as text: what a node that is to join needs to reach the cluster, to recognize it, and to be let in once.

`iomesh-join-1.` and base64 of a checksum and a MessagePack map. It has a client certificate with its key, so it is a
secret; that certificate may only join, and is refused once the token was used or has expired (docs/certificates.md).
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
import zlib

import msgspec

from iomesh.errors import InvalidArgument
from iomesh.times import SECOND_NS, exact_time

PREFIX = "iomesh-join-1."


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    id: uuid.UUID
    cluster: uuid.UUID
    expires_ns: int  # Unix time
    addresses: list[str]  # of nodes that let others join: host:port
    authority: bytes  # in PEM, as the two below
    certificate: bytes
    key: bytes

    def text(self) -> str:
        packed = msgspec.msgpack.encode(self)
        whole = zlib.crc32(packed).to_bytes(4, "big") + zlib.compress(packed, 9)
        return PREFIX + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def read_token(text: str) -> JoinToken:
    """Raises InvalidArgument for what is no token, incomplete, or has expired by this machine's clock."""
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise InvalidArgument(f"the join token does not begin with {PREFIX!r}: copy what `iomesh cluster token` prints")
    try:
        encoded = text.removeprefix(PREFIX)
        whole = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        packed = zlib.decompress(whole[4:])
        if zlib.crc32(packed).to_bytes(4, "big") != whole[:4]:
            raise ValueError
        token = msgspec.msgpack.decode(packed, type=JoinToken)
    except (binascii.Error, ValueError, zlib.error, msgspec.MsgspecError):
        raise InvalidArgument(
            "the join token is incomplete or was changed: copy all of what `iomesh cluster token` printed"
        ) from None
    if token.expires_ns <= time.time_ns():
        raise InvalidArgument(
            f"the join token expired at {exact_time(token.expires_ns // SECOND_NS * SECOND_NS)}: make another with "
            "`iomesh cluster token` (if it should not have, compare the clocks of the two machines)"
        )
    return token
