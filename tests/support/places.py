"""Where every structure lies on a device at rest: superblocks, journal blocks, headers, payload blocks, footers, with
byte offsets.

The parsers are the engine's; the walk is independent of it, over the journal's directory (docs/formats.md).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iomesh.engine import engine

BLOCK = 4096
PUT, DELETE = 1, 2  # kinds of journal entries
SEALED = 2
ZERO = 2
KINDS = {1: "data", 3: "map", 4: "table", 5: "snapshot", 6: "checkpoint"}
Fields = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One structure on the device. `kind`: superblock, superblock twin, journal, journal mirror, header, footer, footer
    table, or the type of a payload block: data, map, table, checkpoint.
    """

    kind: str
    offset: int
    length: int
    what: str  # which one of its kind, for messages
    position: int = 0  # of data: the volume's block; of map: level << 56 | index
    sequence: int = 0  # of the record that it belongs to

    @property
    def structure(self) -> str | None:
        """Its name in engine.structures(), if it has fields."""
        return {
            "superblock": "Superblock",
            "superblock twin": "Superblock",
            "journal": "JournalBlock",
            "journal mirror": "JournalBlock",
            "header": "RecordHeader",
            "footer": "Footer",
            "checkpoint": "Checkpoint",
        }.get(self.kind)

    def __str__(self) -> str:
        return f"{self.kind} {self.what} at byte {self.offset}"


@dataclass(frozen=True)
class Segment:
    number: int
    sealed: bool
    footer_block: int
    offsets: tuple[int, ...]  # of each block, in bytes


class DeviceAtRest:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.superblock: Fields = next(
            fields
            for fields in map(engine.read_superblock, (self._block(0), self._block(128 << 10)))
            if fields["valid"]
        )
        self.segments = self._directory()

    def places(self) -> list[Place]:
        return [
            Place("superblock", 0, BLOCK, ""),
            Place("superblock twin", 128 << 10, BLOCK, ""),
            *self._journal(),
            *(place for segment in self.segments for place in self._log(segment)),
        ]

    def stable(self) -> int:
        """The highest `stable` of all headers: everything up to this sequence was acknowledged and stable."""
        return max((record["stable"] for segment in self.segments for _, record in self._records(segment)), default=0)

    def last_sequence(self) -> int:
        return max((record["sequence"] for segment in self.segments for _, record in self._records(segment)), default=0)

    def _block(self, offset: int) -> bytes:
        return self._data[offset : offset + BLOCK].ljust(BLOCK, b"\0")

    def _areas(self) -> Iterator[tuple[int, list[tuple[int, Fields]]]]:
        """The four areas of the journal, each as the valid blocks of its newest generation."""
        size = self.superblock["journal_bytes"]
        for area in range(4):
            blocks: list[tuple[int, Fields]] = []
            for index in range(size // BLOCK):
                offset = self.superblock["journal_offset"] + area * size + index * BLOCK
                fields = engine.read_journal_block(self._block(offset), self.superblock["slab_bytes"])
                if (
                    not fields["valid"]
                    or fields["index"] != index
                    or (blocks and fields["generation"] != blocks[0][1]["generation"])
                ):
                    break
                blocks.append((offset, fields))
            yield area, blocks

    def _journal(self) -> Iterator[Place]:
        for area, blocks in self._areas():
            for offset, fields in blocks:
                yield Place(
                    "journal mirror" if area >= 2 else "journal",
                    offset,
                    BLOCK,
                    f"{area % 2}/{fields['index']} (generation {fields['generation']})",
                    position=fields["generation"],
                )

    def _directory(self) -> list[Segment]:
        halves = [blocks for area, blocks in self._areas() if area < 2 and blocks]
        newest = max(halves, key=lambda blocks: int(blocks[0][1]["generation"]))
        replicas: dict[tuple[bytes, int], Fields] = {}
        for _, fields in newest:
            for entry in fields["entries"]:
                key = (entry["volume"], entry["segment"])
                if entry["kind"] == PUT:
                    replicas[key] = entry
                elif entry["kind"] == DELETE:
                    replicas.pop(key, None)
        return [self._segment(entry) for _, entry in sorted(replicas.items())]

    def _segment(self, entry: Fields) -> Segment:
        start, slab = self.superblock["slabs_offset"], self.superblock["slab_bytes"]
        offsets = [
            start + number * slab + block * BLOCK
            for first, count in entry["extents"]
            for number in range(first, first + count)
            for block in range(slab // BLOCK)
        ]
        return Segment(
            entry["segment"], entry["state"] == SEALED, entry["footer_block"], tuple(offsets[: entry["blocks"]])
        )

    def _records(self, segment: Segment) -> Iterator[tuple[int, Fields]]:
        """Block and header of each valid record, up to the first break in the chain."""
        block, previous = 0, 0
        while block < len(segment.offsets) and (not segment.footer_block or block < segment.footer_block):
            record = engine.read_record(self._block(segment.offsets[block]))
            if (
                not record["valid"]
                or record["segment"] != segment.number
                or record["block"] != block
                or record["previous_crc"] != previous
            ):
                return
            yield block, record
            previous = record["crc"]
            block += 1 + record["payload_blocks"]

    def _log(self, segment: Segment) -> Iterator[Place]:
        for block, record in self._records(segment):
            name = f"of record {record['sequence']} ({segment.number}:{block})"
            yield Place("header", segment.offsets[block], BLOCK, name, sequence=record["sequence"])
            payload = block
            for entry in record["entries"]:
                if entry["kind"] == ZERO:
                    continue
                payload += 1
                yield Place(
                    KINDS[entry["kind"]],
                    segment.offsets[payload],
                    BLOCK,
                    f"block {segment.number}:{payload}",
                    position=entry["position"],
                    sequence=record["sequence"],
                )
        if segment.footer_block:
            footer = engine.read_footer(self._block(segment.offsets[segment.footer_block]))
            yield Place("footer", segment.offsets[segment.footer_block], BLOCK, f"of segment {segment.number}")
            for number in range(footer["table_blocks"]):
                yield Place(
                    "footer table",
                    segment.offsets[segment.footer_block + 1 + number],
                    BLOCK,
                    f"{number} of segment {segment.number}",
                )
