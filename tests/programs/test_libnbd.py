"""libnbd's tools: copy in and out, the map of data and holes, what the export says about itself."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.run import run, tool

HOLE = "hole,zero"


def export(uri: str) -> dict[str, Any]:
    # Without file(1) nbdinfo prints some of its memory, which may be no UTF-8, as the content that it guesses with it.
    exports = json.loads(run([tool("nbdinfo", "libnbd-bin"), "--no-content", "--json", uri]).stdout)["exports"]
    assert len(exports) == 1
    first: dict[str, Any] = exports[0]
    return first


def extents(uri: str) -> list[tuple[int, int, str]]:
    """Offset, length and kind of each extent, neighbours of one kind made one."""
    merged: list[tuple[int, int, str]] = []
    for extent in json.loads(run([tool("nbdinfo", "libnbd-bin"), "--map", "--json", uri]).stdout):
        offset, length, kind = int(extent["offset"]), int(extent["length"]), str(extent["description"])
        if merged and merged[-1][2] == kind and merged[-1][0] + merged[-1][1] == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length, kind)
        else:
            merged.append((offset, length, kind))
    return merged


def qemu_io(uri: str, *commands: str) -> None:
    """Writes, zeroes and discards at given places, by qemu-io."""
    run(
        [
            tool("qemu-io", "qemu-utils"),
            "-f",
            "raw",
            "-d",
            "unmap",
            *(word for command in commands for word in ("-c", command)),
            uri,
        ]
    )


def test_the_export_advertises_its_abilities(volume: str) -> None:
    said = export(volume)
    assert said["export-size"] == 256 << 20
    assert said["is_read_only"] is False
    for ability in (
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
        "can_flush",
    ):
        assert said[ability] is True, f"the export says that it has not {ability}"
    assert "base:allocation" in said["contexts"]
    assert said["block_size_maximum"] >= 32 << 20
    assert 512 <= said["block_size_preferred"] <= 64 << 10


def test_the_server_lists_its_exports(volume: str) -> None:
    listed = json.loads(run([tool("nbdinfo", "libnbd-bin"), "--list", "--json", volume]).stdout)["exports"]
    assert len(listed) >= 1
    assert any(one["export-size"] == 256 << 20 for one in listed)


def test_an_unknown_export_is_refused(volume: str) -> None:
    scheme, _, rest = volume.partition(":///")
    assert scheme == "nbd+unix"
    unknown = f"nbd+unix:///no-such-volume?{rest.partition('?')[2]}"
    done = run([tool("nbdinfo", "libnbd-bin"), unknown], succeeds=False)
    assert done.returncode != 0
    assert export(volume)["export-size"] == 256 << 20, "the export that exists is still served"


def test_a_new_volume_is_one_hole(volume: str) -> None:
    assert extents(volume) == [(0, 256 << 20, HOLE)]


def test_data_is_mapped_after_writes_and_unmapped_after_a_trim(volume: str) -> None:
    qemu_io(volume, "write -P 1 1M 2M", "write -P 2 64M 8k")
    assert extents(volume) == [
        (0, 1 << 20, HOLE),
        (1 << 20, 2 << 20, "data"),
        (3 << 20, 61 << 20, HOLE),
        (64 << 20, 8192, "data"),
        ((64 << 20) + 8192, (192 << 20) - 8192, HOLE),
    ]
    qemu_io(volume, "discard 1M 1M", "write -z -u 64M 8k")
    assert extents(volume) == [(0, 2 << 20, HOLE), (2 << 20, 1 << 20, "data"), (3 << 20, 253 << 20, HOLE)]
    qemu_io(volume, "read -P 0 0 2M", "read -P 1 2M 1M", "read -P 0 3M 253M")


def test_a_write_of_a_few_bytes_makes_one_block_of_data(volume: str) -> None:
    qemu_io(volume, "write -P 7 10241 30")
    assert extents(volume)[:2] == [(0, 8192, HOLE), (8192, 4096, "data")]
    qemu_io(volume, "read -P 0 0 10241", "read -P 7 10241 30", "read -P 0 10271 100k")


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("request_bytes", [4096, 262144, 33554432])
def test_what_nbdcopy_brings_in_it_brings_out(volume: str, room: Path, connections: int, request_bytes: int) -> None:
    source, back = room / "source", room / "back"
    source.write_bytes(os.urandom(40 << 20) + bytes(8 << 20) + os.urandom((16 << 20) + 512))
    copy = [tool("nbdcopy", "libnbd-bin"), f"--connections={connections}", f"--request-size={request_bytes}"]
    run([*copy, "--flush", source, volume])
    run([*copy, volume, back])
    with back.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == digest_with_zeros(source, 256 << 20)


def test_nbdcopy_streams_a_whole_volume_out(volume: str) -> None:
    qemu_io(volume, "write -P 5 3M 20M", "write -P 6 100M 1M")
    packed = subprocess.run(
        [tool("nbdcopy", "libnbd-bin"), volume, "-"], stdout=subprocess.PIPE, check=True, timeout=120
    ).stdout
    assert len(packed) == 256 << 20
    expected = bytes(3 << 20) + b"\5" * (20 << 20) + bytes(77 << 20) + b"\6" * (1 << 20) + bytes(155 << 20)
    assert hashlib.sha256(packed).digest() == hashlib.sha256(expected).digest()


def digest_with_zeros(path: Path, length: int) -> bytes:
    """SHA-256 of a file's bytes with zeros up to a length."""
    digest = hashlib.sha256(path.read_bytes())
    digest.update(bytes(length - path.stat().st_size))
    return digest.digest()
