"""Every command has a type for what it prints as JSON, and the published schema is made of these types."""

import json
from pathlib import Path

import pytest
from generate_schema import WRITTEN, commands, documents

from iomesh.cli.documents import schema
from support.documents import faults
from unit.cli import image
from unit.cli.ran import Run

WITHOUT = {("completion",)}  # prints a script
AT_REST = [
    ("superblock",), ("journal", "--entries"), ("directory",), ("segment", "1", "--verify"), ("segment", "2"),
    ("record", "1:0"), ("footer", "1"), ("checkpoint",), ("node", "1:4"), ("node", "--offset", "20Ki"),
]  # fmt: skip


@pytest.mark.parametrize("words", [words for words, _ in commands() if words not in WITHOUT], ids=" ".join)
def test_a_command_has_a_type_for_its_document(words: tuple[str, ...]) -> None:
    assert " ".join(words) in documents(), (
        "name the document's type where the command is declared: @asks(documents.Something)"
    )


def test_the_published_schema_is_that_of_the_commands() -> None:
    assert json.loads(WRITTEN.read_text()) == schema(documents()), "run python tools/generate_schema.py"


def test_an_unknown_key_and_a_wrong_type_are_seen() -> None:
    assert faults("volume delete", {"name": "db", "deleted": True}) == []
    restored = {"volume": "db", "snapshot": "", "at": "2026-11-27T14:05:00.25Z", "before": ""}
    assert faults("volume restore", restored) == []
    for time in (1_764_252_300_250_000_000, "2026-11-27T15:05:00+01:00", "yesterday"):
        assert faults("volume restore", {**restored, "at": time})
    for wrong in ({"deleted": True}, {"name": 1, "deleted": True}, {"name": "db", "deleted": True, "more": 1}):
        assert faults("volume delete", wrong)


@pytest.mark.parametrize(
    "words", [("volume", "create", "db", "10Q"), ("status", "--address", "/nowhere.sock")], ids=" ".join
)
def test_an_error_is_a_document_of_its_own(iomesh: Run, words: tuple[str, ...]) -> None:
    assert faults("error", iomesh(*words, "--json").document) == []


@pytest.mark.parametrize("words", AT_REST, ids=" ".join)
def test_what_is_on_a_device_at_rest_is_as_the_schema_says_also_when_it_is_damaged(
    iomesh: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    device = tmp_path / "device"
    image.write_image(device)
    whole = ("inspect", words[0], str(device), *words[1:], "--json")
    sound = iomesh(*whole)
    assert sound.code == 0
    assert faults(f"inspect {words[0]}", sound.document) == []
    with device.open("r+b") as file:  # the newer superblock, the first record of segment 1, its checkpoint, a map node
        for offset in (
            128 << 10,
            *(image.SLABS_OFFSET + 3 * image.SLAB + block * 4096 for block in (0, 4, 12, 14, 15)),
        ):
            file.seek(offset + 40)
            file.write(b"\xff" * 60)
    damaged = iomesh(*whole)
    command = "error" if "error" in damaged.document else f"inspect {words[0]}"
    assert faults(command, damaged.document) == []


def test_the_configuration_matches_the_schema(iomesh: Run) -> None:
    assert faults("daemon run", iomesh("daemon", "run", "--check", "--json").document) == []


def test_times_of_structures_are_rfc_3339(iomesh: Run, tmp_path: Path) -> None:
    image.write_image(tmp_path / "device")
    one = iomesh("inspect", "superblock", str(tmp_path / "device"), "--json").document["superblocks"][0]
    assert one["created_at"] == "2023-11-14T22:13:20Z"
    assert not [key for key in one if key.endswith("_ns")]
