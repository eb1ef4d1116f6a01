"""`iomesh inspect` shows what is on a device; damage is shown with its fault and never ends in a crash."""

import json
import random
from pathlib import Path

import pytest

from iomesh.engine.engine import crc32c
from unit.cli import image
from unit.cli.ran import Run

COMMANDS = [
    ("superblock",), ("journal", "--entries"), ("directory",), ("segment", "1", "--verify", "--entries"),
    ("segment", "2", "--verify"), ("record", "1:0"), ("footer", "1"), ("checkpoint",), ("checkpoint", "1:14"),
    ("node", "1:4"), ("node", "--offset", "20Ki"),
]  # fmt: skip


def words(device: Path, command: tuple[str, ...]) -> tuple[str, ...]:
    return "inspect", command[0], str(device), *command[1:]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    image.write_image(path)
    return path


def damage(device: Path, offset: int, data: bytes) -> None:
    with device.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_sound_device_is_shown_to_people_and_to_programs(iomesh: Run, device: Path, command: tuple[str, ...]) -> None:
    shown, told = iomesh(*words(device, command)), iomesh(*words(device, command), "--json")
    assert (shown.code, shown.err) == (0, "")
    assert "not valid" not in shown.out
    assert (told.code, told.err) == (0, "")
    assert told.document


def test_both_superblocks_are_shown_and_which_one_counts(iomesh: Run, device: Path) -> None:
    document = iomesh(*words(device, ("superblock",)), "--json").document
    assert [(one["offset"], one["generation"], one["valid"]) for one in document["superblocks"]] == [
        (0, 1, True),
        (131072, 2, True),
    ]
    assert document["current"] == 131072
    assert document["superblocks"][0]["label"] == "first"
    assert document["superblocks"][0]["cluster"] == image.CLUSTER.hex()


def test_the_directory_is_that_of_the_newer_half_with_its_changes(iomesh: Run, device: Path) -> None:
    document = iomesh(*words(device, ("directory",)), "--json").document
    assert (document["half"], document["generation"], document["journal_blocks"]) == (1, 7, 3)
    assert [(one["segment"], one["state"], one["extents"]) for one in document["segments"]] == [
        (1, "sealed", [[3, 1]]),
        (2, "open", [[4, 2], [9, 2]]),
    ]


def test_a_segment_is_walked_record_by_record(iomesh: Run, device: Path) -> None:
    document = iomesh(*words(device, ("segment", "1", "--verify")), "--json").document
    assert [(one["at"], one["sequence"], one["entry_count"], one["payload_faults"]) for one in document["records"]] == [
        ("1:0", 10, 3, []), ("1:3", 11, 1, []), ("1:5", 12, 1, []), ("1:7", 13, 1, []), ("1:9", 14, 1, []),
        ("1:11", 15, 1, []), ("1:13", 16, 1, []),
    ]  # fmt: skip
    assert document["footer"]["valid"]
    assert document["footer"]["block"] == 15
    assert iomesh(*words(device, ("segment", "2")), "--json").document["ends"] == "2:2"


def test_the_newest_checkpoint_is_found_through_the_footer(iomesh: Run, device: Path) -> None:
    document = iomesh(*words(device, ("checkpoint",)), "--json").document
    assert (document["at"], document["record"], document["sequence"], document["root"][:2]) == ("1:14", 16, 15, [1, 12])


def test_the_map_is_walked_from_the_root_to_the_block(iomesh: Run, device: Path) -> None:
    nodes = iomesh(*words(device, ("node", "--offset", "20Ki")), "--json").document["nodes"]
    assert [(one["at"], one["level"], one["slot"]) for one in nodes] == [
        ("1:12", 4, 0),
        ("1:10", 3, 0),
        ("1:8", 2, 0),
        ("1:6", 1, 0),
        ("1:4", 0, 5),
    ]
    assert nodes[-1]["pointers"][5][:2] == [1, 1]


@pytest.mark.parametrize(
    ("offset", "command", "fault"),
    [
        (40, ("superblock",), "its checksum does not match"),
        (image.SLABS_OFFSET + 3 * image.SLAB + 100, ("record", "1:0"), "its checksum does not match"),
        (image.SLABS_OFFSET + 3 * image.SLAB + 5000, ("record", "1:0"), "1:1 has checksum"),
        (image.SLABS_OFFSET + 3 * image.SLAB + 15 * 4096 + 50, ("footer", "1"), "its checksum does not match"),
        (
            image.SLABS_OFFSET + 3 * image.SLAB + 16 * 4096 + 50,
            ("footer", "1"),
            "the checksum of its table does not match",
        ),
        (image.SLABS_OFFSET + 3 * image.SLAB + 14 * 4096 + 50, ("checkpoint",), "its checksum"),
        (image.SLABS_OFFSET + 3 * image.SLAB + 12 * 4096 + 50, ("node", "--offset", "20Ki"), "the pointer to it tells"),
        (image.SLABS_OFFSET + 3 * image.SLAB + 4 * 4096 + 50, ("node", "1:4"), "its record tells"),
    ],
)
def test_damage_is_shown_with_its_fault_and_an_exit_code(
    iomesh: Run, device: Path, offset: int, command: tuple[str, ...], fault: str
) -> None:
    damage(device, offset, b"\xa5\xa5")
    ran = iomesh(*words(device, command))
    assert ran.code == 7
    assert fault in ran.out
    assert fault in iomesh(*words(device, command), "--json").out


def test_a_damaged_journal_block_is_read_from_its_mirror(iomesh: Run, device: Path) -> None:
    damage(device, image.JOURNAL_OFFSET + image.JOURNAL_BYTES + 4096 + 80, b"\xff")
    document = iomesh(*words(device, ("directory",)), "--json").document
    assert [one["segment"] for one in document["segments"]] == [1, 2]
    assert document["notes"] == ["half 1, block 1: its checksum does not match; its twin counts"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("segment", "9"), 3, "segment 9 of volume"),
        (("segment", "1", "--volume", "ff"), 3, "no volume ff on"),
        (("record", "2:900"), 7, "unreadable or behind the segment's end"),
        (("record", "2:5"), 7, "empty"),
        (("record", "1:1"), 7, "magic"),
        (("checkpoint", "1:1"), 7, "not valid"),
        (("node", "1:0"), 7, "no record of the segment tells of a payload block here"),
        (("node", "1:1"), 7, "is of kind data"),
        (("node", "--offset", "2Mi"), 0, "nothing is mapped"),
        (("node", "--offset", "1Ti"), 2, "--offset: 1Ti is beyond the end of the volume, which has"),
    ],
    ids=str,
)
def test_what_is_not_there_is_said(iomesh: Run, device: Path, command: tuple[str, ...], code: int, said: str) -> None:
    ran = iomesh(*words(device, command))
    assert said in ran.out + ran.err
    assert ran.code == code


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, b"IOMSBLK\0" + b"\xff" * 8192], ids=["empty", "zeros", "magic alone"]
)
def test_what_is_no_device_is_said_to_be_none(iomesh: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    ran = iomesh(*words(tmp_path / "other", ("superblock",)))
    assert ran.code == 7
    assert (
        "empty" if content == b"\0" * 4096 else f"behind the end: {tmp_path}/other has {len(content)} bytes"
    ) in ran.out
    for command in COMMANDS[1:]:
        ran = iomesh(*words(tmp_path / "other", command))
        assert ran.code == 6
        assert "holds no valid iomesh superblock" in ran.err


def written(device: Path) -> list[tuple[int, int]]:
    """Where the image has bytes: (offset, length)."""
    return [
        (0, 4096), (128 << 10, 4096),
        *((image.JOURNAL_OFFSET + area * image.JOURNAL_BYTES, 3 * 4096) for area in range(4)),
        (image.SLABS_OFFSET + 3 * image.SLAB, 17 * 4096), (image.SLABS_OFFSET + 4 * image.SLAB, 2 * 4096),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_ends_in_a_crash_nor_in_silence(iomesh: Run, device: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 40)):
        start, length = draw.choice(written(device))
        size = draw.choice([1, 1, 2, 16, 512])
        damage(
            device, start + draw.randrange(length), draw.choice([draw.randbytes(size), b"\0" * size, b"\xff" * size])
        )
    if draw.random() < 0.2:
        with device.open("r+b") as file:
            file.truncate(draw.randrange(1, image.DEVICE_BYTES))
    for command in COMMANDS:
        ran = iomesh(*words(device, command), "--json")
        assert ran.code in (0, 3, 6, 7), command
        assert json.loads(ran.out), command
        shown = iomesh(*words(device, command))
        assert shown.code == ran.code
        assert shown.out or shown.err.startswith("iomesh: ")


@pytest.mark.parametrize("seed", range(40))
def test_damage_under_a_correct_checksum_is_handled_too(iomesh: Run, device: Path, seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray(device.read_bytes())
    for start, length in written(device):
        for block in range(start, start + length, 4096):
            if data[block : block + 3] == b"IOM" and draw.random() < 0.5:
                at = block + draw.randrange(16, 400)
                data[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", draw.randbytes(4)])
                data[block + 8 : block + 12] = crc32c(bytes(data[block + 12 : block + 4096])).to_bytes(4, "little")
    device.write_bytes(data)
    for command in COMMANDS:
        ran = iomesh(*words(device, command), "--json")
        assert ran.code in (0, 3, 6, 7), command
        assert json.loads(ran.out), command
        assert iomesh(*words(device, command)).code == ran.code
