"""Devices are opened by one of us, and not at all while anyone else has them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iomesh.errors import InUse, InvalidArgument, NotFound
from iomesh.node.devices import open_device

MIB = 1 << 20
Maker = Callable[[int], str]

HOLDER = """
import sys
from iomesh.node.devices import open_device
device = open_device(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_file_has_its_size_in_whole_blocks_and_counts_as_volatile(file_of: Maker) -> None:
    device = open_device(file_of(MIB + 5000))
    assert (device.size_bytes, device.block_device, device.volatile_cache, device.tier) == (
        MIB + 4096,
        False,
        True,
        "ssd",
    )
    device.close()


def test_a_file_is_opened_once(file_of: Maker) -> None:
    path = file_of(MIB)
    device = open_device(path)
    with pytest.raises(InUse, match=rf"{path} is held by another iomesh process"):
        open_device(path)
    device.close()
    open_device(path).close()


def test_another_name_of_the_same_file_is_the_same_file(file_of: Maker, tmp_path: Path) -> None:
    path = file_of(MIB)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    device = open_device(path)
    for other in ("link", "hard"):
        with pytest.raises(InUse):
            open_device(str(tmp_path / other))
    device.close()


def test_a_process_that_is_killed_holds_nothing(file_of: Maker) -> None:
    path = file_of(MIB)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(InUse, match=f"process {holder.pid} has its lock"):
            open_device(path)
        holder.kill()
        holder.wait()
    open_device(path).close()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent: there is no such device or file"):
        open_device(str(tmp_path / "absent"))


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
def test_what_is_neither_block_device_nor_file_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{path} is neither"):
        open_device(path)


def test_a_block_device_has_its_size_and_the_cache_mode_of_sysfs(loop_of: Maker) -> None:
    path = loop_of(64 * MIB)
    device = open_device(path)
    said = Path("/sys/block", Path(path).name, "queue/write_cache").read_text().strip()
    assert (device.size_bytes, device.block_device, device.volatile_cache) == (64 * MIB, True, said != "write through")
    with pytest.raises(InUse, match="in use"):
        open_device(path)
    device.close()


def test_a_mounted_device_is_refused_with_its_mount_point(loop_of: Maker, tmp_path: Path) -> None:
    path = loop_of(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    target = tmp_path / "mounted"
    target.mkdir()
    subprocess.run(["mount", path, str(target)], check=True)
    try:
        with pytest.raises(InUse, match=f"mounted at {target}"):
            open_device(path)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    open_device(path).close()


def test_a_device_that_is_swapped_to_is_refused(loop_of: Maker) -> None:
    path = loop_of(64 * MIB)
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    if subprocess.run(["swapon", path], capture_output=True, check=False).returncode:
        pytest.skip("no swap here")
    try:
        with pytest.raises(InUse, match="swap"):
            open_device(path)
    finally:
        subprocess.run(["swapoff", path], check=True)


def test_the_descriptor_is_not_left_to_children(file_of: Maker) -> None:
    device = open_device(file_of(MIB))
    assert not os.get_inheritable(device.descriptor)
    device.close()
