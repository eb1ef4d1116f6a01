"""The oracle for a volume's contents: each acknowledged operation is applied, each other one is old or new, block by
block.

Data is self-describing: each 16 bytes written are {tag of the write, offset / 16}, so a wrong block identifies the
write it is from. Operations in flight never overlap in bytes (a claim is refused), but they do share blocks: so the
state of every byte is known, and two concurrent writes to one block must both be present. An operation without an
answer, or with an error, stays open until `settle_with` compares the volume: in each block all of it or nothing was
applied, and from then on it counts as acknowledged or as never sent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096


@dataclass(frozen=True)
class Operation:
    """A write (tag > 0) or an operation that zeroes (tag 0)."""

    number: int
    kind: str  # write, zero, trim: for messages
    offset: int
    length: int
    tag: int = 0

    def data(self) -> bytes:
        return content(self.tag, self.offset, self.length)

    def __str__(self) -> str:
        return f"{self.kind} #{self.number} of {self.length} bytes at {self.offset}"


def content(tag: int, offset: int, length: int) -> bytes:
    """The bytes that a write with this tag puts at an offset."""
    if tag == 0:
        return bytes(length)
    first, last = offset // 16, (offset + length - 1) // 16
    words = np.empty((last - first + 1, 2), "<u8")
    words[:, 0] = tag
    words[:, 1] = np.arange(first, last + 1)
    start = offset - first * 16
    return words.tobytes()[start : start + length]


class Mismatch(AssertionError):
    """No history of acknowledged and open operations explains the volume's contents."""


class Model:
    def __init__(self, size: int, *, run: int = 1) -> None:
        self.content: NDArray[np.uint8] = np.zeros(size, np.uint8)
        self.open: dict[int, Operation] = {}
        self._claimed: NDArray[np.bool_] = np.zeros(size, np.bool_)
        self._run = run
        self._numbers = 0
        self._written: dict[int, Operation] = {}

    @property
    def size(self) -> int:
        return len(self.content)

    def begin(self, kind: str, offset: int, length: int) -> Operation | None:
        """Claims a range for an operation; None while another operation in it is open."""
        if not self.claim(offset, length):
            return None
        self._numbers += 1
        tag = self._run << 40 | self._numbers if kind == "write" else 0
        operation = Operation(self._numbers, kind, offset, length, tag)
        self.open[operation.number] = operation
        if tag:
            self._written[tag] = operation
        return operation

    def acknowledge(self, operation: Operation) -> None:
        self._apply(operation, operation.offset, operation.length)
        self._close(operation)

    def abandon(self, operation: Operation) -> None:
        """The operation was not sent, or was refused as a whole by contract: it has no effect."""
        self._close(operation)

    def claim(self, offset: int, length: int) -> bool:
        """Reserves a range; a reader that must know the expected data claims it too."""
        place = self._claimed[offset : offset + length]
        if place.any():
            return False
        place[:] = True
        return True

    def release(self, offset: int, length: int) -> None:
        self._claimed[offset : offset + length] = False

    def check(self, offset: int, data: bytes) -> None:
        """Fails unless `data`, read at `offset`, is as expected. No open operation may overlap it."""
        actual = np.frombuffer(data, np.uint8)
        expected = self.content[offset : offset + len(data)]
        if not np.array_equal(actual, expected):
            raise Mismatch(self.describe(offset, actual, expected))

    def settle_with(self, volume: bytes | bytearray) -> None:
        """Compares the whole volume, decides the outcome of open operations, and closes them."""
        actual = np.frombuffer(volume, np.uint8)
        assert len(actual) == self.size, f"the volume is {len(actual)} bytes long, not {self.size}"
        for operation in list(self.open.values()):
            self._decide(operation, actual)
            self._close(operation)
        if not np.array_equal(actual, self.content):
            raise Mismatch(self.describe(0, actual, self.content))

    def describe(self, offset: int, actual: NDArray[np.uint8], expected: NDArray[np.uint8]) -> str:
        wrong = np.flatnonzero(actual != expected) + offset
        blocks = np.unique(wrong // BLOCK)
        lines = [f"{len(wrong)} bytes in {len(blocks)} blocks are not what was acknowledged:"]
        for block in blocks[:8]:
            first = int(wrong[wrong // BLOCK == block][0])
            wanted, found = self._name(expected, first, offset), self._name(actual, first, offset)
            lines.append(f"  block {block}, from byte {first}: expected {wanted}, read {found}")
        return "\n".join(lines)

    def _apply(self, operation: Operation, offset: int, length: int) -> None:
        self.content[offset : offset + length] = np.frombuffer(content(operation.tag, offset, length), np.uint8)

    def _decide(self, operation: Operation, actual: NDArray[np.uint8]) -> None:
        """Per block: the operation was applied if all of its bytes are new. Anything else is left to the comparison."""
        offset, end = operation.offset, operation.offset + operation.length
        while offset < end:
            length = min(end, (offset // BLOCK + 1) * BLOCK) - offset
            if actual[offset : offset + length].tobytes() == content(operation.tag, offset, length):
                self._apply(operation, offset, length)
            offset += length

    def _close(self, operation: Operation) -> None:
        del self.open[operation.number]
        self.release(operation.offset, operation.length)

    def _name(self, data: NDArray[np.uint8], place: int, offset: int) -> str:
        """The write that these 16 bytes are from, if they identify one."""
        start = place // 16 * 16 - offset
        piece = data[max(start, 0) : start + 16].tobytes()
        if not any(piece):
            return "zeros"
        tag, granule = (int(word) for word in np.frombuffer(piece.rjust(16, b"\0"), "<u8"))
        if tag in self._written:
            moved = "" if granule == place // 16 else f", but of byte {granule * 16}"
            return f"{self._written[tag]}{moved}"
        return f"bytes of no known write ({piece.hex()})"
