"""Changes to blocks that are right otherwise: how an input says where it changes what.

    place (1 byte)  how (1 byte)  offset in the place (2 bytes)  1 to 32 bytes

`how` gives the count of bytes in its lowest five bits, less one; its highest says that the checksum is left as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass

UNSEALED = 0x80


@dataclass(frozen=True)
class Patch:
    place: int
    how: int
    offset: int
    data: bytes

    @property
    def sealed(self) -> bool:
        return not self.how & UNSEALED

    def applied(self, block: bytes) -> bytes:
        """The same length as before."""
        offset = self.offset % len(block)
        return (block[:offset] + self.data + block[offset + len(self.data) :])[: len(block)]


def patches(data: bytes) -> Iterator[Patch]:
    at = 0
    while at + 4 < len(data):
        place, how, offset = data[at], data[at + 1], int.from_bytes(data[at + 2 : at + 4], "little")
        count = (how & 31) + 1
        yield Patch(place, how, offset, data[at + 4 : at + 4 + count])
        at += 4 + count


def patch(place: int, offset: int, data: bytes, how: int = 0) -> bytes:
    return bytes([place, how | len(data) - 1]) + offset.to_bytes(2, "little") + data
