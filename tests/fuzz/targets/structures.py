"""Every reader of a structure at rest, on any bytes.

The first byte of an input chooses the reader and whether magic, version and checksums are put right before it reads:
without that a fuzzer would hardly get beyond the checksum. The rest is the structure; what is missing of its block(s)
is zeros.
"""

from collections.abc import Callable
from typing import Any

from iomesh.engine.format import structures
from support import forged

BLOCK = forged.BLOCK
MAX_BYTES = 1 + 3 * BLOCK
SEALED = 0x80
READERS: list[tuple[str, Callable[[bytes], Any]]] = [
    ("Superblock", structures.read_superblock),
    ("JournalBlock", structures.read_journal_block),
    ("RecordHeader", structures.read_record),
    ("Footer", structures.read_footer),
    ("Checkpoint", structures.read_checkpoint),
    ("Pointer", structures.read_node),
    ("TableEntry", structures.read_table),
    ("Claim", structures.read_claim),
]
FOOTER = {name: offset for name, offset, _ in structures.structures()["Footer"]}


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    name, read = READERS[data[0] % 8 % len(READERS)]
    blocks = max(1, -(-(len(data) - 1) // BLOCK)) if name == "Footer" else 1
    block = data[1 : 1 + blocks * BLOCK].ljust(blocks * BLOCK, b"\0")
    if data[0] & SEALED and name in forged.MAGICS:
        block = sealed(name, block)
    try:
        fields = read(block)
    except ValueError:
        assert name == "Footer", f"{name}: a whole block was refused for its length"
        return
    if name in forged.MAGICS:
        assert fields["valid"] == (fields["fault"] is None), (
            f"{name}: valid is {fields['valid']}, its fault is {fields['fault']!r}"
        )
        if fields["valid"] and fields.get("entries") is not None and "entry_count" in fields:
            assert len(fields["entries"]) == fields["entry_count"], (
                f"{name}: valid, with {len(fields['entries'])} entries shown"
            )


def sealed(name: str, block: bytes) -> bytes:
    """With the right magic, version and checksums."""
    if name == "Footer":
        table = block[BLOCK : (1 + int.from_bytes(block[FOOTER["table_blocks"] :][:4], "little")) * BLOCK]
        at = FOOTER["table_crc"]
        block = block[:at] + structures.crc32c(table).to_bytes(4, "little") + block[at + 4 :]
    return forged.resealed(forged.MAGICS[name] + bytes(4) + (1).to_bytes(4, "little") + block[16:BLOCK]) + block[BLOCK:]


def seeds() -> list[bytes]:
    table = [forged.entry(forged.RECORD, 10, 2), forged.entry(forged.DATA, 5), forged.entry(forged.ZERO, 6, 3)]
    valid = [
        forged.superblock(),
        forged.journal_block([forged.journal_entry([(0, 4), (9, 1)]), forged.journal_entry([], kind=2)]),
        forged.record([forged.entry(forged.DATA, 5), forged.entry(forged.ZERO, 6, 3), forged.entry(forged.CHECKPOINT)]),
        forged.footer(table),
        forged.checkpoint(),
        forged.pointer(7, 9) * 3,
        forged.forged("TableEntry", segment=3, blocks=256, live=7, state=2, replicas=1),
        forged.forged("Claim", process=1, node=b"a", path=b"/b"),
    ]
    return [bytes([number | flag]) + data.rstrip(b"\0") for number, data in enumerate(valid) for flag in (0, SEALED)]
