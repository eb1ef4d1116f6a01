"""Structures at rest: every damaged bit is noticed, and what cannot be true is refused even under a right checksum."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from iomesh.engine.format import structures
from support import forged
from support.forged import BLOCK, CHECKPOINT, DATA, MAP, RECORD, TABLE, ZERO, entry, journal_entry

Reader = Callable[[bytes], dict[str, Any]]

RECORDS = [
    entry(RECORD, 10, 2, crc=1),
    entry(DATA, 5),
    entry(ZERO, 256, 256),
    entry(RECORD, 12, 1, crc=2),
    entry(MAP, 0),
]
BRIEF = [entry(DATA, 5, 1), entry(MAP, 0, 2), entry(DATA, 9, 15999)]  # the count is the block


def brief(table: list[bytes]) -> bytes:
    """A footer as compaction writes it."""
    return forged.footer(table, brief=1, block=16000, first_sequence=1, last_sequence=9)


WHOLE: dict[str, tuple[Reader, bytes]] = {
    "superblock": (structures.read_superblock, forged.superblock()),
    "claim": (structures.read_claim, forged.forged("Claim", process=7, node=b"node-a", path=b"/dev/sdb")),
    "journal block": (
        structures.read_journal_block,
        forged.journal_block(
            [journal_entry([(0, 1), (5, 1)], blocks=128), journal_entry([], kind=2, state=0, blocks=0)]
        ),
    ),
    "record": (
        structures.read_record,
        forged.record([entry(DATA, 5, crc=77), entry(ZERO, 0, 256), entry(MAP, 4 << 56)]),
    ),
    "footer": (structures.read_footer, forged.footer(RECORDS)),
    "footer without its table": (structures.read_footer, forged.footer(RECORDS)[:BLOCK]),
    "empty record": (structures.read_record, forged.record([])),
    "footer of empty records": (
        structures.read_footer,
        forged.footer([entry(RECORD, 10, 0), entry(RECORD, 11, 1), entry(DATA), entry(RECORD, 12, 0)]),
    ),
    "empty footer": (structures.read_footer, forged.footer([])),
    "brief footer": (structures.read_footer, brief(BRIEF)),
    "brief footer of nothing": (structures.read_footer, brief([])),
    "checkpoint": (structures.read_checkpoint, forged.checkpoint()),
    "bitmap": (structures.read_bitmap, forged.bitmap([0, 5, 63, 64, 200, 16383])),
}


@pytest.fixture(params=WHOLE)
def whole(request: pytest.FixtureRequest) -> tuple[Reader, bytes]:
    return WHOLE[request.param]


def test_a_whole_one_is_valid(whole: tuple[Reader, bytes]) -> None:
    read, data = whole
    assert read(data)["fault"] is None
    assert read(data)["valid"]


def test_every_byte_that_is_flipped_is_noticed(whole: tuple[Reader, bytes]) -> None:
    read, data = whole
    draw = random.Random(1)
    unnoticed = []
    for place in range(len(data)):
        for bit in range(8) if place < 256 else [draw.randrange(8)]:
            wrong = bytearray(data)
            wrong[place] ^= 1 << bit
            if read(bytes(wrong))["valid"]:
                unnoticed.append((place, bit))
    assert not unnoticed, f"bytes and bits: {unnoticed[:10]}"


def test_zeros_and_noise_are_refused_and_never_read_beyond(whole: tuple[Reader, bytes]) -> None:
    read, data = whole
    draw = random.Random(2)
    for wrong in [bytes(len(data)), b"\xff" * len(data), *(draw.randbytes(len(data)) for _ in range(200))]:
        assert not read(wrong)["valid"]
        assert read(wrong)["fault"] == "its magic is not that of this structure"


def test_noise_under_a_right_checksum_is_refused_or_shown_whole(whole: tuple[Reader, bytes]) -> None:
    read, data = whole
    draw = random.Random(3)
    for _ in range(2000):
        wrong = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(16, len(data))
            wrong[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        if read == structures.read_footer and int.from_bytes(wrong[72:76], "little") != len(data) // BLOCK - 1:
            continue  # of a table longer than what was given: see below
        fields = read(forged.resealed(bytes(wrong)))
        assert fields["valid"] == (fields["fault"] is None)


def test_a_length_that_is_not_blocks_is_an_error_of_the_caller(whole: tuple[Reader, bytes]) -> None:
    read, data = whole
    for wrong in (b"", data[:-1], data + b"x", data[:2048]):
        with pytest.raises(ValueError, match="is 4096 bytes"):
            read(wrong)


def test_a_footer_without_all_of_its_table_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="a table of 2 blocks is 12288 bytes, not 8192"):
        structures.read_footer(forged.footer([entry(RECORD, 1, 248), *[entry(ZERO, 0, 1)] * 248] * 2)[: 2 * BLOCK])


# ---------------------------------------------------------------------- what stands there


def test_a_superblock_is_shown_by_its_fields() -> None:
    fields = structures.read_superblock(forged.superblock(label="Übungsgerät".encode(), tier=3))
    assert fields["cluster"] == forged.CLUSTER
    assert fields["device"] == forged.DEVICE
    assert fields["label"] == "Übungsgerät"
    assert (fields["tier"], fields["slabs"], fields["device_bytes"]) == (3, 239, 64 << 20)
    assert "padding" not in fields


def test_a_journal_block_is_shown_with_its_entries() -> None:
    read, data = WHOLE["journal block"]
    put, delete = read(data)["entries"]
    assert (put["kind"], put["state"], put["segment"], put["volume"]) == (1, 1, 7, forged.VOLUME)
    assert put["extents"] == [(0, 1), (5, 1)]
    assert (delete["kind"], delete["extents"]) == (2, [])


def test_a_record_is_shown_with_its_entries() -> None:
    read, data = WHOLE["record"]
    fields = read(data)
    assert (fields["sequence"], fields["stable"], fields["payload_blocks"]) == (10, 9, 2)
    assert [(one["kind"], one["position"], one["count"]) for one in fields["entries"]] == [
        (DATA, 5, 1),
        (ZERO, 0, 256),
        (MAP, 4 << 56, 1),
    ]
    assert (fields["entries"][2]["level"], fields["entries"][2]["index"]) == (4, 0)


def test_a_footer_is_shown_with_its_table_if_that_was_given() -> None:
    assert len(structures.read_footer(forged.footer(RECORDS))["entries"]) == 5
    assert structures.read_footer(forged.footer(RECORDS)[:BLOCK])["entries"] is None


def test_entries_of_a_footer_give_their_blocks() -> None:
    assert [one["block"] for one in structures.read_footer(forged.footer(RECORDS))["entries"]] == [0, 1, 2, 2, 3]
    entries = structures.read_footer(brief(BRIEF))["entries"]
    assert [(one["block"], one["count"]) for one in entries] == [(1, 1), (2, 1), (15999, 1)]


def test_a_checkpoint_is_shown_with_its_pointers() -> None:
    fields = structures.read_checkpoint(forged.checkpoint())
    assert (fields["root"], fields["snapshots"], fields["index"]) == ((6, 100, 1), None, [(6, 90, 1)])


def test_a_bitmap_is_shown_with_the_blocks_that_live() -> None:
    fields = structures.read_bitmap(forged.bitmap([0, 5, 63, 64, 200]))
    assert (fields["segment"], fields["blocks"], fields["live"], fields["live_blocks"]) == (
        7,
        201,
        5,
        [0, 5, 63, 64, 200],
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"blocks": 200}, "a block behind the segment's end lives by it"),
        ({"blocks": 16385}, "its segment is longer than any"),
        ({"live": 2}, "its count of live blocks is not that of its bits"),
        ({"before": bytes(512)}, "its counts are not those of its bits"),
    ],
)
def test_a_bitmap_that_contradicts_itself_is_refused(changes: dict[str, Any], fault: str) -> None:
    assert structures.read_bitmap(forged.bitmap([5, 100, 200], **changes))["fault"] == fault


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"blocks": 200, "footer_block": 199}, None),
        ({"state": 1}, "it is compacted in a way that this program does not know"),
        ({"bitmap_blocks": 1}, "it is compacted in a way that this program does not know"),
        ({"live": 0}, "it is compacted and its count of live blocks is impossible"),
        ({"live": 101, "blocks": 100}, "it is compacted and its count of live blocks is impossible"),
        ({"blocks": 16385}, "it is compacted and its count of live blocks is impossible"),
        ({"live": 63}, "it has more live blocks than its slabs hold"),
        ({"bitmap_blocks": 0}, "it is not compacted and has a count of live blocks"),
        ({"footer_block": 16384}, "its footer lies beyond its blocks"),
    ],
)
def test_a_compacted_replica_in_the_journal_has_space_for_its_live_blocks(
    changes: dict[str, Any], fault: str | None
) -> None:
    fields = {"state": 2, "blocks": 16384, "bitmap_blocks": 2, "bitmap_crc": 99, "live": 62} | changes
    found = structures.read_journal_block(forged.journal_block([journal_entry([(0, 1)], **fields)]))
    assert found["fault"] == (f"entry 0: {fault}" if fault else None)


def test_a_node_is_256_pointers() -> None:
    assert structures.read_node(forged.pointer(1, 2, 3) + bytes(BLOCK - 16)) == [(1, 2, 3), *[None] * 255]


def test_a_table_block_shows_the_segments_it_names() -> None:
    one = forged.forged(
        "TableEntry",
        segment=4,
        blocks=256,
        live=9,
        state=2,
        replicas=1,
        first_sequence=3,
        last_sequence=8,
        epoch=2,
        devices=(12).to_bytes(4, "little"),
        fragment=3,
        key_generation=5,
    )
    assert structures.read_table(one + bytes(BLOCK - 64)) == [
        {
            "segment": 4,
            "blocks": 256,
            "live": 9,
            "stream": 0,
            "state": 2,
            "replicas": 1,
            "first_sequence": 3,
            "last_sequence": 8,
            "epoch": 2,
            "devices": [12],
            "fragment": 3,
            "key_generation": 5,
        }
    ]


def test_fields_cover_every_byte_of_every_structure() -> None:
    for name, fields in structures.structures().items():
        end = 0
        for field, offset, size in fields:
            assert offset == end, f"{name}.{field} begins at {offset}, and what is before it ends at {end}"
            end += size
        assert end == {
            "Extent": 8,
            "JournalEntry": 64,
            "TableEntry": 64,
            "SnapshotEntry": 256,
            "Pointer": 16,
            "Entry": 16,
        }.get(name, BLOCK), f"{name} is {end} bytes"


def test_the_checksum_is_castagnoli() -> None:
    assert structures.crc32c(b"123456789") == 0xE3069283  # the check value that every description of CRC-32C gives


# ---------------------------------------------------------------------- what cannot be true

NEAR = 2**64 - 1
IMPOSSIBLE: list[tuple[Reader, bytes, str]] = [
    (structures.read_superblock, forged.superblock(version=2), "format version"),
    (structures.read_superblock, forged.superblock(features=1 << 63), "features"),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)], flags=1)]),
        "entry 0: its flags are not known",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([], kind=3, state=0, blocks=0, segment=5)]),
        "entry 0: it is a fence",
    ),
    (structures.read_record, forged.record([entry(DATA)], flags=1), "flags"),
    (structures.read_record, forged.record([entry(DATA)], version=2), "newer"),
    (structures.read_record, forged.record([entry(DATA, flags=1)]), "entry 0: its flags are not known"),
    (structures.read_record, forged.record([entry(TABLE, flags=3)]), "entry 0: its flags are not known"),
    (structures.read_footer, forged.footer(RECORDS, version=2), "newer"),
    (structures.read_checkpoint, forged.checkpoint(features=1), "features"),
    (structures.read_checkpoint, forged.checkpoint(name=b"x" * 136), "name of its volume has no end"),
    (structures.read_superblock, forged.superblock(generation=0), "generation"),
    (structures.read_superblock, forged.superblock(device_bytes=(64 << 20) - 1), "smaller"),
    (structures.read_superblock, forged.superblock(journal_offset=0), "journal does not begin"),
    (structures.read_superblock, forged.superblock(journal_bytes=0), "length of its journal"),
    (structures.read_superblock, forged.superblock(journal_bytes=(1 << 20) + 4096), "length of its journal"),
    (structures.read_superblock, forged.superblock(journal_bytes=NEAR - 0x3FFFF), "length of its journal"),
    (structures.read_superblock, forged.superblock(slabs_offset=4 << 20), "slabs do not begin"),
    (structures.read_superblock, forged.superblock(slabs_offset=(8 << 20) + 1), "slabs do not begin"),
    (structures.read_superblock, forged.superblock(slabs_offset=NEAR - 4095), "slabs end"),
    (structures.read_superblock, forged.superblock(slabs=0), "slabs end"),
    (structures.read_superblock, forged.superblock(slabs=240), "slabs end"),
    (structures.read_superblock, forged.superblock(slabs=2**32 - 1), "slabs end"),
    (structures.read_superblock, forged.superblock(slab_bytes=4096), "size of its slabs"),
    (structures.read_superblock, forged.superblock(tier=0), "tier"),
    (structures.read_superblock, forged.superblock(tier=4), "tier"),
    (structures.read_superblock, forged.superblock(label=b"x" * 64), "label"),
    (structures.read_journal_block, forged.journal_block([], version=2), "format version"),
    (structures.read_journal_block, forged.journal_block([], generation=0), "generation"),
    (structures.read_journal_block, forged.journal_block([], kind=0), "kind"),
    (structures.read_journal_block, forged.journal_block([], kind=4), "kind"),
    (structures.read_journal_block, forged.journal_block([], bytes=4033), "longer than the block"),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)])], bytes=60),
        "entry 0: it is cut off",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)])], bytes=64),
        "entry 0: its extents are cut off",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)])] * 2, bytes=140),
        "entry 1: its extents are cut off",
    ),
    (structures.read_journal_block, forged.journal_block([journal_entry([(0, 1)], kind=4)]), "entry 0: its kind"),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)], kind=2)]),
        "entry 0: it deletes and has extents",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([], kind=2)], kind=1),
        "entry 0: it deletes a segment replica in a",
    ),
    (structures.read_journal_block, forged.journal_block([journal_entry([(0, 1)], state=0)]), "entry 0: its state"),
    (structures.read_journal_block, forged.journal_block([journal_entry([(0, 1)], state=3)]), "entry 0: its state"),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(i, 1) for i in range(33)])]),
        "entry 0: it has more than 32",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1), (1, 0)])]),
        "entry 0: one of its extents is empty",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 257)])]),
        "entry 0: it has more slabs than a segment",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 2**32 - 1)] * 2)]),
        "entry 0: it has more slabs than a",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)], blocks=65)]),
        "entry 0: it has more blocks than",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)], blocks=0)]),
        "entry 0: it is open and has no room",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)], footer_block=9)]),
        "entry 0: its footer",
    ),
    (
        structures.read_journal_block,
        forged.journal_block([journal_entry([(0, 1)], state=2, footer_block=64)]),
        "entry 0: its footer",
    ),
    (structures.read_record, forged.record([entry(DATA)], version=0), "format version"),
    (structures.read_record, forged.record([entry(DATA)], sequence=0, stable=0), "sequence"),
    (structures.read_record, forged.record([entry(DATA)], stable=10), "sequence"),
    (structures.read_record, forged.record([entry(DATA)], entry_count=249), "count of entries"),
    (structures.read_record, forged.record([entry(DATA)], payload_blocks=2), "payload ends beyond"),
    (structures.read_record, forged.record([entry(DATA)], payload_blocks=0), "count of payload blocks"),
    (structures.read_record, forged.record([entry(DATA)], block=16383), "payload ends beyond"),
    (structures.read_record, forged.record([entry(DATA)], block=2**32 - 1), "payload ends beyond"),
    (structures.read_record, forged.record([entry(DATA), entry(DATA, 1 << 34)]), "entry 1: its block lies beyond"),
    (structures.read_record, forged.record([entry(ZERO, 1 << 34)]), "entry 0: its range lies beyond"),
    (structures.read_record, forged.record([entry(ZERO, 5, 0)]), "entry 0: its range is empty"),
    (structures.read_record, forged.record([entry(ZERO, 5, 252)]), "entry 0: its range is empty or crosses"),
    (structures.read_record, forged.record([entry(ZERO, 0, 65535)]), "entry 0: its range is empty or crosses"),
    (structures.read_record, forged.record([entry(MAP, 5 << 56)]), "entry 0: its level"),
    (structures.read_record, forged.record([entry(MAP, 1 << 26)]), "entry 0: its node lies beyond"),
    (structures.read_record, forged.record([entry(MAP, 4 << 56 | 1)]), "entry 0: its node lies beyond"),
    (
        structures.read_record,
        forged.record([entry(TABLE, 192 * 256)]),
        "entry 0: its block lies beyond any segment table",
    ),
    (
        structures.read_record,
        forged.record([entry(TABLE, 192, flags=1)]),
        "entry 0: its block lies beyond any segment table",
    ),
    (structures.read_record, forged.record([entry(0)]), "entry 0: its kind"),
    (structures.read_record, forged.record([entry(5, 256)]), "entry 0: its block lies beyond any snapshot table"),
    (structures.read_record, forged.record([entry(RECORD, 1)]), "entry 0: its kind"),
    (structures.read_footer, forged.footer(RECORDS, entry_count=257), "table is not as long"),
    (structures.read_footer, forged.footer(RECORDS, table_blocks=2**32 - 1), "table is not as long"),
    (
        structures.read_footer,
        forged.footer(RECORDS, entry_count=2**32 - 1, table_blocks=1 << 24),
        "table ends beyond the segment",
    ),
    (structures.read_footer, forged.footer(RECORDS, block=16383), "table ends beyond the segment"),
    (structures.read_footer, forged.footer([], first_sequence=1), "holds no record"),
    (structures.read_footer, forged.footer([], block=1), "holds no record"),
    (structures.read_footer, forged.footer(RECORDS, first_sequence=0), "sequence is impossible"),
    (structures.read_footer, forged.footer(RECORDS, last_sequence=9), "sequence is impossible"),
    (structures.read_footer, forged.footer(RECORDS, table_crc=1), "checksum of its table"),
    (structures.read_footer, forged.footer(RECORDS[1:], first_sequence=10), "entry 0: it is not the record"),
    (structures.read_footer, forged.footer(RECORDS, first_sequence=9), "entry 0: it is not the record"),
    (
        structures.read_footer,
        forged.footer([*RECORDS[:3], entry(RECORD, 10, 1), RECORDS[4]], last_sequence=12),
        "entry 3: it is not the",
    ),
    (structures.read_footer, forged.footer([entry(RECORD, 10, 3), *RECORDS[1:]]), "entry 3: its kind"),
    (
        structures.read_footer,
        forged.footer([*RECORDS[:3], entry(RECORD, 12, 2), RECORDS[4]]),
        "entry 3: its count of entries",
    ),
    (structures.read_footer, forged.footer([entry(RECORD, 10, 0), *RECORDS[1:]]), "entry 1: it is not the record"),
    (structures.read_footer, forged.footer(RECORDS, last_sequence=13), "does not end with its last record"),
    (structures.read_footer, forged.footer(RECORDS, block=5), "do not fill the blocks before it"),
    (structures.read_footer, forged.footer(RECORDS, brief=2), "its form"),
    (structures.read_footer, brief([entry(RECORD, 1, 7)]), "entry 0: it has no block that a compaction keeps"),
    (
        structures.read_footer,
        brief([entry(DATA, 1, 7), entry(ZERO, 1, 8)]),
        "entry 1: it has no block that a compaction keeps",
    ),
    (structures.read_footer, brief([entry(DATA, 1, 7), entry(DATA, 2, 7)]), "entry 1: its block does not lie"),
    (structures.read_footer, brief([entry(DATA, 1, 7), entry(DATA, 2, 5)]), "entry 1: its block does not lie"),
    (structures.read_footer, brief([entry(DATA, 1, 16000)]), "entry 0: its block does not lie"),
    (structures.read_footer, brief([entry(DATA, 2**40, 7)]), "entry 0: its block lies beyond any volume"),
    (structures.read_checkpoint, forged.checkpoint(version=2), "format version"),
    (structures.read_checkpoint, forged.checkpoint(size_bytes=0), "size of its volume"),
    (structures.read_checkpoint, forged.checkpoint(size_bytes=4097), "size of its volume"),
    (structures.read_checkpoint, forged.checkpoint(size_bytes=(64 << 40) + 4096), "size of its volume"),
    (structures.read_checkpoint, forged.checkpoint(root=forged.pointer(8, 1)), "root of its map"),
    (structures.read_checkpoint, forged.checkpoint(root=forged.pointer(7, 16384)), "root of its map"),
    (structures.read_checkpoint, forged.checkpoint(table_blocks=3), "segment table is not as long"),
    (
        structures.read_checkpoint,
        forged.checkpoint(table_entries=NEAR >> 32, table_blocks=1 << 26),
        "segment table is not as long",
    ),
    (structures.read_checkpoint, forged.checkpoint(index_count=0), "index is not as long"),
    (structures.read_checkpoint, forged.checkpoint(index_count=193), "index is not as long"),
    (structures.read_checkpoint, forged.checkpoint(index=bytes(16)), "entry 0: its index block"),
    (structures.read_checkpoint, forged.checkpoint(index=forged.pointer(8, 0)), "entry 0: its index block"),
]


@pytest.mark.parametrize(
    ("read", "data", "words"), IMPOSSIBLE, ids=[f"{n}: {words}" for n, (_, _, words) in enumerate(IMPOSSIBLE)]
)
def test_what_cannot_be_true_is_refused_under_a_right_checksum(read: Reader, data: bytes, words: str) -> None:
    if read is structures.read_footer:
        try:
            fields = read(data)
        except ValueError:  # its table is longer than what was given: the footer alone must be refused
            fields = read(data[:BLOCK])
    else:
        fields = read(data)
    assert not fields["valid"]
    assert words in fields["fault"]


def test_every_kind_may_be_logged() -> None:
    entries = [
        entry(DATA, (1 << 34) - 1),
        entry(ZERO, 255),
        entry(MAP, (1 << 26) - 1),
        entry(MAP, 4 << 56),
        entry(TABLE, 49151),
    ]
    entries += [entry(TABLE, 191, flags=1), entry(CHECKPOINT)]
    assert structures.read_record(forged.record(entries))["fault"] is None
    assert structures.read_record(forged.record([entry(DATA)] * 248, block=16384 - 249))["fault"] is None
