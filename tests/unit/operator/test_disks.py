"""What the agent sees on disks before it touches one. Files stand for disks."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from iomesh.node.offline import format_device
from iomesh.operator.agent import wanted_on
from iomesh.operator.disks import Holds, find_disks, look_at

MIB = 1 << 20
OURS, OTHERS = uuid.uuid4(), uuid.uuid4()


def disk(folder: Path, name: str = "disk", size: int = 256 * MIB) -> str:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def test_an_empty_disk_holds_nothing(tmp_path: Path) -> None:
    assert look_at(disk(tmp_path), OURS).holds is Holds.NOTHING


def test_a_filesystem_is_data(tmp_path: Path) -> None:
    path = disk(tmp_path)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", path], check=True)
    found = look_at(path, OURS)
    assert (found.holds, "ext4" in found.what) == (Holds.FOREIGN, True)


@pytest.mark.parametrize("offset", [0, 4096, 256 * MIB - 1])
def test_bytes_without_a_signature_are_data(tmp_path: Path, offset: int) -> None:
    path = disk(tmp_path)
    with Path(path).open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    assert look_at(path, OURS).holds is Holds.FOREIGN


async def test_a_device_of_this_cluster_is_told_from_one_of_another(tmp_path: Path) -> None:
    path = disk(tmp_path)
    device = await format_device(path, cluster=OTHERS)
    found = look_at(path, OURS)
    assert (found.holds, str(found.device)) == (Holds.FOREIGN, device.id)
    assert str(OTHERS) in found.what
    assert look_at(path, OTHERS).holds is Holds.IOMESH


def test_a_disk_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    assert look_at(str(tmp_path / "none"), OURS).holds is Holds.UNREADABLE


def test_named_disks_are_found_by_wildcards_and_need_no_size(tmp_path: Path) -> None:
    paths = [disk(tmp_path, f"disk-{number}", MIB) for number in (1, 2)]
    found = find_disks([str(tmp_path / "disk-*"), paths[0]], discover=False, least_bytes=1 << 40)
    assert [(each.path, each.size_bytes, each.named) for each in found] == [(path, MIB, True) for path in paths]


def test_discovery_finds_whole_disks_alone() -> None:
    for each in find_disks([], discover=True, least_bytes=0):
        assert not Path(each.path).name.startswith(("loop", "dm-", "ram", "nbd")), each
        assert each.size_bytes > 0


def test_a_node_gets_the_disks_of_all_and_its_own() -> None:
    devices = {
        "discover": True,
        "minimumSize": "1Gi",
        "paths": ["/dev/a"],
        "nodes": [{"name": "n", "paths": ["/dev/b"]}],
    }
    wanted = wanted_on("n", {"spec": {"devices": devices}})
    assert (wanted.discover, wanted.least_bytes, wanted.paths) == (True, 1 << 30, ["/dev/a", "/dev/b"])
    assert wanted_on("m", {"spec": {"devices": devices}}).paths == ["/dev/a"]
    assert wanted_on("n", None) == (False, 10 << 30, [])
