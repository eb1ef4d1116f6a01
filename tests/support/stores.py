"""A store on a file, its journal as bytes, and the effects of crashes and damage; deterministic for a seed."""

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iomesh.engine.views.store import StoreRefused, StoreView

BLOCK = 4096
MEBIBYTE = 1 << 20
SMALLEST = 64 * MEBIBYTE
TWIN = 128 << 10
JOURNAL = 256 << 10
V = b"volume-volume-vo"
W = b"another-another-"

Replica = tuple[str, int, int, list[tuple[int, int]]]  # state (open, sealed, compacted), blocks, footer_block, extents
Event = tuple[str, int, bytes] | tuple[str]  # ("write", offset, data) or ("flush",)
Order = (
    tuple[str, bytes, int]
    | tuple[str, bytes, int, int]
    | tuple[str, bytes, int, int, int]
    | tuple[str, bytes, int, Iterable[int]]
)
Directory = dict[tuple[bytes, int], Replica]


def new_device(path: Path, size: int = SMALLEST) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def formatted(path: Path, size: int = SMALLEST) -> Path:
    with StoreView(new_device(path, size)) as store:
        store.format()
    return path


@dataclass(frozen=True)
class Places:
    """Offsets of the journal's parts, by default for a device of the smallest size."""

    journal_bytes: int = MEBIBYTE

    @property
    def blocks(self) -> int:
        return self.journal_bytes // BLOCK

    @property
    def end(self) -> int:
        return JOURNAL + 4 * self.journal_bytes

    def block(self, copy: int, half: int, index: int) -> int:
        return JOURNAL + (2 * copy + half) * self.journal_bytes + index * BLOCK


PLACES = Places()


def read_head(path: Path) -> bytes:
    """Superblocks and journal: everything a store reads on open."""
    with path.open("rb") as file:
        return file.read(PLACES.end)


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the store bypasses the page cache


def opened(path: Path) -> Directory | StoreRefused:
    """The directory as a new process reads it, or the reason for refusal."""
    with StoreView(path) as store:
        try:
            store.open()
        except StoreRefused as refused:
            return refused
        return store.replicas()


def crashes(history: list[Event], draw: random.Random, per_point: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Possible contents after a power cut.

    For every point of the history: everything flushed before it, and any subset of the writes since then, in any order,
    each possibly torn between its sectors. Yields the number of events before the cut, and sectors by their offset.
    """
    flushed: dict[int, bytes] = {}
    since: list[tuple[int, bytes]] = []
    for point in range(len(history) + 1):
        for _ in range(per_point if since else 1):
            left = dict(flushed)
            for offset, data in draw.sample(since, draw.randint(0, len(since))):
                sectors = range(0, len(data), 512)
                for at in draw.sample(sectors, len(sectors) if draw.random() < 0.5 else draw.randint(0, len(sectors))):
                    left[offset + at] = data[at : at + 512]
            yield point, left
        if point == len(history):
            return
        match history[point]:
            case ("write", int(offset), bytes(data)):
                since.append((offset, data))
            case ("flush",):
                for offset, data in since:
                    flushed |= {offset + at: data[at : at + 512] for at in range(0, len(data), 512)}
                since = []


def with_sectors(head: bytes, sectors: dict[int, bytes]) -> bytes:
    image = bytearray(head)
    for offset, data in sectors.items():
        image[offset : offset + len(data)] = data
    return bytes(image)


def damages(data: bytes, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Every kind of damage to a range."""
    flipped = bytearray(data)
    flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    yield "a bit flipped", bytes(flipped)
    yield "zeros", bytes(len(data))
    yield "ones", b"\xff" * len(data)
    yield "noise", draw.randbytes(len(data))
    cut = draw.randrange(1, len(data) // 512) * 512 if len(data) > 512 else 256
    yield "its end cut off", data[:cut] + bytes(len(data) - cut)
    yield "its beginning cut off", bytes(cut) + data[cut:]
