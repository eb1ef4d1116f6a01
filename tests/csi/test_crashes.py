"""The driver is killed between any two steps, started again, and called again, as Kubernetes does: every call then
succeeds, the data is there, and in the end nothing is left."""

import os
from pathlib import Path

import pytest

from iomesh.csi import csi_pb2 as pb
from iomesh.csi import hooks
from iomesh.csi.mounts import mount_at
from support.amount import Amount
from support.csi import GIB, Driver, from_snapshot, from_volume, mounted, raw


def life(driver: Driver, fs_type: str) -> None:
    """Everything that a volume goes through, on one node."""
    capability = mounted(fs_type=fs_type)
    volume = driver.create("life", GIB)
    driver.stage(volume, capability)
    folder = driver.publish(volume, capability)
    (folder / "file").write_bytes(b"kept" * 100_000)
    os.sync()
    driver.expand(volume.volume_id, 2 * GIB)
    assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 1.8 * GIB
    snapshot = driver.snapshot(volume.volume_id, "then")
    (folder / "file").write_bytes(b"lost")
    os.sync()
    restored = driver.create("restored", 3 * GIB, volume_content_source=from_snapshot(snapshot.snapshot_id))
    clone = driver.create("cloned", 3 * GIB, volume_content_source=from_volume(volume.volume_id))
    driver.unpublish(volume.volume_id)
    driver.unstage(volume.volume_id)

    for each, content in ((restored, b"kept" * 100_000), (clone, b"lost")):
        driver.stage(each, capability)
        folder = driver.publish(each, capability, readonly=True)
        assert (folder / "file").read_bytes() == content
        found = mount_at(str(folder))
        assert found is not None and found.read_only
        assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 2.8 * GIB
        driver.unpublish(each.volume_id)
        driver.unstage(each.volume_id)

    block = driver.create("block", GIB, volume_capabilities=[raw()])
    driver.stage(block, raw())
    assert driver.publish(block, raw()).is_block_device()
    driver.unpublish(block.volume_id)
    driver.unstage(block.volume_id)

    for each in (clone, restored):
        driver.delete(each.volume_id)
    driver.delete_snapshot(snapshot.snapshot_id)
    for each in (block, volume):
        driver.delete(each.volume_id)


def check_ended(driver: Driver, before: set[str]) -> None:
    assert driver.kills.read_text().splitlines() == [], "points that were never passed"
    assert driver.remains() == []
    assert {each.volume.volume_id for each in listed(driver)} == before


def listed(driver: Driver) -> list[pb.ListVolumesResponse.Entry]:
    return list(driver.until_done("ListVolumes", pb.ListVolumesRequest()).entries)


def test_killed_once_at_every_step_of_a_volumes_life(driver: Driver) -> None:
    before = {each.volume.volume_id for each in listed(driver)}
    points = hooks.points(driver.method)
    driver.kills.write_text("\n".join(points))
    life(driver, "xfs")
    check_ended(driver, before)
    assert driver.restarts == len(points)


def grows_mounted_ext4() -> bool:
    """CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & 1 << 24)


@pytest.mark.parametrize("point", hooks.POINTS)
def test_killed_at_one_step(driver: Driver, point: str, amount: Amount) -> None:
    if not amount.soak:
        pytest.skip("--soak; the test before kills at all of them")
    if point not in hooks.points(driver.method):
        pytest.skip(f"no step of {driver.method}")
    before = {each.volume.volume_id for each in listed(driver)}
    driver.kills.write_text(point)
    life(driver, "ext4" if grows_mounted_ext4() else "xfs")
    check_ended(driver, before)
    assert driver.restarts == 1
