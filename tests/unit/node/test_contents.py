"""What a device holds is known before it is formatted, and only `force` overwrites it."""

from __future__ import annotations

import os
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from iomesh.errors import Damaged, Foreign, InUse, InvalidArgument, NotFound
from iomesh.node.contents import identify
from iomesh.node.devices import open_device
from iomesh.node.offline import format_device, inspect_device

MIB = 1 << 20
DEVICE_BYTES = 320 * MIB
CLUSTER = uuid.UUID("0b5dbb32-8c8c-4f0b-9d7c-3b1f4d5c6a77")
Maker = Callable[[int], str]


@pytest.fixture
def device(file_of: Maker) -> str:
    return file_of(DEVICE_BYTES)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["mkfs.ext4", "-q", "-L", "photos"], "a ext4 filesystem labelled 'photos'"),
        (["mkfs.xfs", "-q", "-f"], "a xfs filesystem"),
        (["mkswap"], "a swap signature"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_a_filesystem_is_refused_by_its_name_and_left_alone(device: str, command: list[str], words: str) -> None:
    subprocess.run([*command, device], check=True, capture_output=True)
    before = Path(device).read_bytes()
    with pytest.raises(Foreign) as raised:
        await format_device(device, cluster=CLUSTER)
    assert raised.value.message.startswith(f"{device} holds {words}: `--force`")
    assert Path(device).read_bytes() == before


@pytest.mark.parametrize("table", ["gpt", "dos"])
async def test_a_partition_table_is_refused(device: str, table: str) -> None:
    overwrite(
        device,
        446,
        struct.pack("<BxxxBxxxII", 0, 0xEE if table == "gpt" else 0x83, 1 if table == "gpt" else 2048, 200_000),
    )
    overwrite(device, 510, b"\x55\xaa")
    if table == "gpt":
        overwrite(device, 512, gpt_header())
    with pytest.raises(Foreign, match=f"holds a {table} partition table"):
        await format_device(device, cluster=CLUSTER)


async def test_a_member_of_an_array_is_refused(device: str) -> None:
    """The superblock that mdadm leaves (version 1.2), by hand: no array is needed to be refused one."""
    with Path(device).open("r+b") as file:
        file.seek(4096)
        superblock = bytearray(256)
        superblock[0:8] = bytes.fromhex("fc4e2ba901000000")
        superblock[16:32] = uuid.uuid4().bytes
        superblock[128:136] = (8).to_bytes(8, "little")
        superblock[144:152] = (8).to_bytes(8, "little")
        total = sum(int.from_bytes(superblock[at : at + 4], "little") for at in range(0, 256, 4))
        superblock[216:220] = ((total & 0xFFFFFFFF) + (total >> 32)).to_bytes(4, "little")
        file.write(superblock)
    with pytest.raises(Foreign, match="holds a linux_raid_member array member"):
        await format_device(device, cluster=CLUSTER)


async def test_a_formatted_device_names_its_cluster(device: str) -> None:
    formatted = await format_device(device, cluster=CLUSTER, tier="hdd", label="shelf 3")
    seen = inspect_device(device)
    assert (seen.id, seen.cluster, seen.tier, seen.label) == (formatted.id, str(CLUSTER), "hdd", "shelf 3")
    assert seen.size_bytes == DEVICE_BYTES
    assert uuid.UUID(seen.id).version == 4


async def test_a_device_of_iomesh_is_refused_with_its_cluster_and_label(device: str) -> None:
    await format_device(device, cluster=CLUSTER, label="shelf 3")
    with pytest.raises(Foreign, match=f"is device 'shelf 3' .* of iomesh cluster {CLUSTER}"):
        await format_device(device, cluster=uuid.uuid4())


async def test_force_formats_what_ever_it_holds(device: str) -> None:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    await format_device(device, cluster=CLUSTER, force=True)
    assert inspect_device(device).cluster == str(CLUSTER)
    first = inspect_device(device).id
    await format_device(device, cluster=CLUSTER, force=True)
    assert inspect_device(device).id != first, "a device that was formatted again is another one"


async def test_not_even_force_formats_what_is_in_use(device: str) -> None:
    held = open_device(device)
    with pytest.raises(InUse):
        await format_device(device, cluster=CLUSTER, force=True)
    held.close()


async def test_not_even_force_formats_what_is_mounted(loop_of: Maker, tmp_path: Path) -> None:
    path = loop_of(DEVICE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", path, str(tmp_path / "mounted")], check=True)
    try:
        with pytest.raises(InUse, match="mounted at"):
            await format_device(path, cluster=CLUSTER, force=True)
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


async def test_formatting_a_block_device_hides_its_former_filesystem(loop_of: Maker) -> None:
    path = loop_of(DEVICE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    assert identify(path).foreign == "a ext4 filesystem"
    await format_device(path, cluster=CLUSTER, force=True)
    assert inspect_device(path).cluster == str(CLUSTER)
    found = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "TYPE", path], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == ""


async def test_a_superblock_that_is_damaged_is_taken_from_its_twin(device: str) -> None:
    formatted = await format_device(device, cluster=CLUSTER)
    overwrite(device, 100, b"\xff")
    assert inspect_device(device).id == formatted.id


async def test_two_damaged_superblocks_are_named_and_not_taken_for_an_empty_device(device: str) -> None:
    await format_device(device, cluster=CLUSTER)
    overwrite(device, 100, b"\xff")
    overwrite(device, 128 * 1024 + 100, b"\xff")
    with pytest.raises(Damaged, match="neither superblock is valid"):
        inspect_device(device)
    with pytest.raises(Foreign, match="superblocks are damaged"):
        await format_device(device, cluster=CLUSTER)


@pytest.mark.parametrize("size", [0, 4096, MIB])
async def test_a_device_that_is_too_small_is_refused_with_the_size_needed(file_of: Maker, size: int) -> None:
    with pytest.raises(InvalidArgument, match=r"is too small: it has .*, a device needs"):
        await format_device(file_of(size), cluster=CLUSTER)


async def test_labels_and_tiers_have_to_make_sense(device: str) -> None:
    with pytest.raises(InvalidArgument, match="at most 63 bytes"):
        await format_device(device, cluster=CLUSTER, label="ä" * 32)
    with pytest.raises(InvalidArgument, match="there is no tier 'tape'"):
        await format_device(device, cluster=CLUSTER, tier="tape")
    assert identify(device) == (None, "", "")


def test_what_is_not_ours_is_said_to_be_what_it_is(device: str, tmp_path: Path) -> None:
    with pytest.raises(Foreign, match=r"is not an iomesh device: `iomesh device format .*` makes it one$"):
        inspect_device(device)
    subprocess.run(["mkfs.xfs", "-q", device], check=True)
    with pytest.raises(Foreign, match="it holds a xfs filesystem"):
        inspect_device(device)
    with pytest.raises(NotFound, match="absent"):
        inspect_device(str(tmp_path / "absent"))


def gpt_header() -> bytes:
    """The primary header of a table of 128 empty entries, as the UEFI specification (5.3.2) has it."""
    last = DEVICE_BYTES // 512 - 1
    header = bytearray(
        struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x10000,
            92,
            0,
            0,
            1,
            last,
            34,
            last - 33,
            CLUSTER.bytes_le,
            2,
            128,
            128,
            0,
        )
    )
    header[88:92] = struct.pack("<I", zlib.crc32(bytes(128 * 128)))
    header[16:20] = struct.pack("<I", zlib.crc32(header))
    return bytes(header)


def overwrite(path: str, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, data, offset)
    os.fsync(descriptor)
    os.close(descriptor)
