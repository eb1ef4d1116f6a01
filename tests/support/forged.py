"""Device structures built from docs/formats.md: valid ones, and ones with one wrong field and a correct checksum."""

import struct
from collections.abc import Collection
from typing import Any

from iomesh.engine.format.structures import crc32c, structures

BLOCK = 4096
MAGICS = {
    "Superblock": b"IOMSBLK\0",
    "JournalBlock": b"IOMJNL\0\0",
    "RecordHeader": b"IOMRCD\0\0",
    "Footer": b"IOMFOTR\0",
    "Checkpoint": b"IOMCKPT\0",
    "Bitmap": b"IOMBMAP\0",
    "Claim": b"IOMCLM\0\0",
}
VOLUME = b"volume-volume-vo"
DEVICE = b"device-device-de"
CLUSTER = b"cluster-cluster-"
DATA, ZERO, MAP, TABLE, CHECKPOINT, RECORD = 1, 2, 3, 4, 6, 7


def forged(structure: str, **fields: Any) -> bytes:
    """A structure with these fields, zeros elsewhere. A block with its own header also gets magic, version and a valid
    checksum.
    """
    places = {name: (offset, size) for name, offset, size in structures()[structure]}
    data = bytearray(sum(size for _, size in places.values()))
    if structure in MAGICS:
        data[:8] = MAGICS[structure]
        fields = {"version": 1} | fields
    for name, value in fields.items():
        offset, size = places[name]
        raw = value.to_bytes(size, "little") if isinstance(value, int) else value
        data[offset : offset + len(raw)] = raw
    return resealed(bytes(data)) if structure in MAGICS and "crc" not in fields else bytes(data)


def resealed(data: bytes) -> bytes:
    """Recomputes the checksum after a change, as an attacker would."""
    return data[:8] + crc32c(data[12:BLOCK]).to_bytes(4, "little") + data[12:]


def superblock(**changes: Any) -> bytes:
    mebibyte = 1 << 20
    fields = {
        "cluster": CLUSTER,
        "device": DEVICE,
        "generation": 1,
        "device_bytes": 64 * mebibyte,
        "journal_offset": 256 << 10,
        "journal_bytes": mebibyte,
        "slabs_offset": (256 << 10) + 4 * mebibyte,
        "slabs": 239,
        "slab_bytes": 256 << 10,
        "created_ns": 1,
        "tier": 1,
        "label": b"a label",
    }
    return forged("Superblock", **(fields | changes))


def journal_entry(extents: list[tuple[int, int]], **changes: Any) -> bytes:
    fields = {
        "kind": 1,
        "state": 1,
        "extent_count": len(extents),
        "segment": 7,
        "volume": VOLUME,
        "epoch": 1,
        "blocks": 64,
    }
    return forged("JournalEntry", **(fields | changes)) + b"".join(struct.pack("<II", *extent) for extent in extents)


def journal_block(entries: list[bytes], **changes: Any) -> bytes:
    together = b"".join(entries)
    fields = {"device": DEVICE, "generation": 1, "index": 0, "kind": 3, "bytes": len(together), "entries": together}
    return forged("JournalBlock", **(fields | changes))


def bitmap(blocks: Collection[int], /, **changes: Any) -> bytes:
    bits = sum(1 << block for block in set(blocks))
    words = [bits >> 64 * i & (1 << 64) - 1 for i in range(256)]
    before = [sum(word.bit_count() for word in words[:i]) for i in range(256)]
    fields = {"volume": VOLUME, "segment": 7, "blocks": max(blocks) + 1, "live": bits.bit_count()}
    packed = {"words": struct.pack("<256Q", *words), "before": struct.pack("<256H", *before)}
    return forged("Bitmap", **(fields | packed | changes))


def entry(kind: int, position: int = 0, count: int = 1, crc: int = 0, flags: int = 0) -> bytes:
    return forged("Entry", kind=kind, position=position, count=count, crc=crc, flags=flags)


def record(entries: list[bytes], **changes: Any) -> bytes:
    fields = {
        "volume": VOLUME,
        "epoch": 1,
        "segment": 7,
        "block": 0,
        "sequence": 10,
        "stable": 9,
        "entry_count": len(entries),
        "payload_blocks": sum(one[14] != ZERO for one in entries),
        "entries": b"".join(entries),
    }
    return forged("RecordHeader", **(fields | changes))


def footer(table: list[bytes], *, table_data: bytes | None = None, **changes: Any) -> bytes:
    """A footer with its table. table: for each record an entry of kind RECORD, then the record's entries."""
    together = b"".join(table)
    blocks = -(-len(together) // BLOCK)
    padded = together.ljust(blocks * BLOCK, b"\0") if table_data is None else table_data
    sequences = [int.from_bytes(one[:8], "little") for one in table if one[14] == RECORD]
    fields = {
        "volume": VOLUME,
        "epoch": 1,
        "segment": 7,
        "block": sum(one[14] != ZERO for one in table),
        "first_sequence": sequences[0] if sequences else 0,
        "last_sequence": sequences[-1] if sequences else 0,
        "entry_count": len(table),
        "table_blocks": blocks,
        "table_crc": crc32c(padded),
    }
    return forged("Footer", **(fields | changes)) + padded


def pointer(segment: int, block: int, crc: int = 1) -> bytes:
    return forged("Pointer", segment=segment, block=block, crc=crc, flags=1)


def checkpoint(**changes: Any) -> bytes:
    fields = {
        "volume": VOLUME,
        "epoch": 1,
        "sequence": 10,
        "size_bytes": 1 << 30,
        "root": pointer(6, 100),
        "next_segment": 8,
        "table_entries": 65,
        "table_blocks": 2,
        "index_count": 1,
        "index": pointer(6, 90),
    }
    return forged("Checkpoint", **(fields | changes))
