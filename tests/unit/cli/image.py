"""A small device at rest, written byte by byte from the declared offsets: what `iomesh inspect` is tested on."""

from pathlib import Path

from iomesh.engine.engine import crc32c, structures

BLOCK = 4096
DEVICE_BYTES = 64 << 20
JOURNAL_OFFSET, JOURNAL_BYTES = 256 << 10, 256 << 10
SLABS_OFFSET = 2 << 20
SLAB = 256 << 10
CLUSTER, DEVICE, VOLUME = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))
MAGICS = {
    "Superblock": b"IOMSBLK",
    "JournalBlock": b"IOMJNL",
    "RecordHeader": b"IOMRCD",
    "Footer": b"IOMFOTR",
    "Checkpoint": b"IOMCKPT",
}
DATA, ZERO, MAP, CHECKPOINT, RECORD = 1, 2, 3, 6, 7
OFFSETS = {
    structure: {name: (offset, size) for name, offset, size in fields} for structure, fields in structures().items()
}

Entry = tuple[int, int, int, bytes]  # kind, position, count, payload


def structure(name: str, size: int, **fields: int | bytes) -> bytes:
    """The bytes of one structure; one that stands alone gets its magic, version and checksum."""
    data = bytearray(size)
    for field, value in fields.items():
        offset, length = OFFSETS[name][field]
        data[offset : offset + length] = (
            value.to_bytes(length, "little") if isinstance(value, int) else value.ljust(length, b"\0")[:length]
        )
    if name in MAGICS:
        data[0:8] = MAGICS[name].ljust(8, b"\0")
        data[12:16] = (1).to_bytes(4, "little")
        data[8:12] = crc32c(bytes(data[12:BLOCK])).to_bytes(4, "little")
    return bytes(data)


def superblock(generation: int) -> bytes:
    return structure(
        "Superblock", BLOCK, cluster=CLUSTER, device=DEVICE, generation=generation, device_bytes=DEVICE_BYTES,
        journal_offset=JOURNAL_OFFSET, journal_bytes=JOURNAL_BYTES, slabs_offset=SLABS_OFFSET,
        slabs=(DEVICE_BYTES - SLABS_OFFSET) // SLAB, slab_bytes=SLAB, tier=1,
        created_ns=1_700_000_000 * 10**9, label=b"first",
    )  # fmt: skip


def put(segment: int, state: int, blocks: int, footer_block: int, extents: list[tuple[int, int]]) -> bytes:
    entry = structure(
        "JournalEntry", 64, kind=1, state=state, extent_count=len(extents), segment=segment, volume=VOLUME, epoch=3,
        blocks=blocks, footer_block=footer_block,
    )  # fmt: skip
    return entry + b"".join(first.to_bytes(4, "little") + count.to_bytes(4, "little") for first, count in extents)


def journal_block(generation: int, index: int, kind: int, entries: bytes) -> bytes:
    return structure(
        "JournalBlock",
        BLOCK,
        device=DEVICE,
        generation=generation,
        index=index,
        kind=kind,
        bytes=len(entries),
        entries=entries,
    )


def pointer(segment: int, block: int, data: bytes) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in (segment, block, crc32c(data), 1))


def entry(kind: int, position: int, count: int, crc: int) -> bytes:
    return structure("Entry", 16, kind=kind, position=position, count=count, crc=crc)


class Segment:
    """A segment as it grows: records, and at the end perhaps a footer."""

    def __init__(self, number: int, sequence: int) -> None:
        self.number, self.sequence = number, sequence
        self.first = sequence
        self.data = bytearray()
        self.table = bytearray()
        self.previous_crc = 0

    def record(self, *logged: Entry) -> None:
        entries = b"".join(
            entry(kind, at, count, crc32c(payload) if payload else 0) for kind, at, count, payload in logged
        )
        payloads = b"".join(payload for *_, payload in logged)
        header = structure(
            "RecordHeader", BLOCK, volume=VOLUME, epoch=3, segment=self.number, block=len(self.data) // BLOCK,
            sequence=self.sequence, stable=self.sequence - 1, previous_crc=self.previous_crc, entry_count=len(logged),
            payload_blocks=len(payloads) // BLOCK, time_ns=1_700_000_001 * 10**9, entries=entries,
        )  # fmt: skip
        self.previous_crc = int.from_bytes(header[8:12], "little")
        self.table += entry(RECORD, self.sequence, len(logged), self.previous_crc) + entries
        self.data += header + payloads
        self.sequence += 1

    def seal(self) -> int:
        """Returns the footer's block."""
        at, count = len(self.data) // BLOCK, len(self.table) // 16
        table = bytes(self.table).ljust(-(-len(self.table) // BLOCK) * BLOCK, b"\0")
        self.data += structure(
            "Footer", BLOCK, volume=VOLUME, epoch=3, segment=self.number, block=at, first_sequence=self.first,
            last_sequence=self.sequence - 1, last_crc=self.previous_crc, entry_count=count,
            table_blocks=len(table) // BLOCK, table_crc=crc32c(table),
        ) + table  # fmt: skip
        return at


def write_image(path: Path) -> None:
    """Segment 1 is sealed: data, a zeroed range, the map's nodes for block 5, a checkpoint. Segment 2 is open and holds
    one write. Segment 3 was deleted."""
    first, block = Segment(1, 10), b"\x5a" * BLOCK
    first.record((DATA, 5, 1, block), (ZERO, 256, 16, b""), (DATA, 6, 1, b"\x33" * BLOCK))
    child, at = block, 1  # the header is block 0, its first payload block 1
    slots = (5, 0, 0, 0, 0)
    for level in range(5):
        node = (b"\0" * 16 * slots[level] + pointer(1, at, child)).ljust(BLOCK, b"\0")
        at = len(first.data) // BLOCK + 1
        first.record((MAP, level << 56, 1, node))
        child = node
    checkpoint = structure(
        "Checkpoint", BLOCK, volume=VOLUME, epoch=3, sequence=15, size_bytes=1 << 30, root=pointer(1, at, child),
        next_segment=3,
    )  # fmt: skip
    first.record((CHECKPOINT, 0, 1, checkpoint))
    footer = first.seal()
    second = Segment(2, first.sequence)
    second.record((DATA, 7, 1, b"\x77" * BLOCK))

    snapshot = put(1, 2, len(first.data) // BLOCK, footer, [(3, 1)])
    changes = put(2, 1, 256, 0, [(4, 2), (9, 2)]) + put(3, 1, 64, 0, [(20, 1)])
    gone = structure("JournalEntry", 64, kind=2, segment=3, volume=VOLUME)
    journal = [journal_block(7, 0, 2, snapshot), journal_block(7, 1, 3, changes), journal_block(7, 2, 3, gone)]
    older = [journal_block(6, 0, 2, put(99, 1, 64, 0, [(50, 1)]))]
    with path.open("wb") as file:
        file.truncate(DEVICE_BYTES)
        for offset, data in (
            (0, superblock(1)), (128 << 10, superblock(2)),
            *(
                (JOURNAL_OFFSET + area * JOURNAL_BYTES, b"".join(blocks))
                for area, blocks in enumerate((older, journal, older, journal))
            ),
            (SLABS_OFFSET + 3 * SLAB, bytes(first.data)), (SLABS_OFFSET + 4 * SLAB, bytes(second.data)),
        ):  # fmt: skip
            file.seek(offset)
            file.write(data)
