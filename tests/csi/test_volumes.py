"""The controller's calls: what each answers, and the code and the words with which it refuses."""

from collections.abc import Callable

import pytest

from iomesh.csi import csi_pb2 as pb
from support.csi import GIB, Driver, Refused, from_snapshot, from_volume, mounted, raw

_Mode = pb.VolumeCapability.AccessMode
UNKNOWN = "5f0c6f0e-0000-4000-8000-000000000000"


def asked(name: str = "bad", size: int = GIB, **fields: object) -> pb.CreateVolumeRequest:
    range_ = pb.CapacityRange(required_bytes=size)
    fields = {"volume_capabilities": [mounted()], "capacity_range": range_, **fields}
    return pb.CreateVolumeRequest(name=name, **fields)  # type: ignore[arg-type]


REFUSED = {
    "unknown parameter": (asked(parameters={"replica": "2"}), "INVALID_ARGUMENT", "did you mean replicas"),
    "contradictory file systems": (
        asked(parameters={"fsType": "xfs"}, volume_capabilities=[mounted(fs_type="ext4")]),
        "INVALID_ARGUMENT",
        "give one of them",
    ),
    "file system": (asked(volume_capabilities=[mounted(fs_type="ntfs")]), "INVALID_ARGUMENT", "use xfs or ext4"),
    "more replicas than nodes": (asked(parameters={"replicas": "4"}), "RESOURCE_EXHAUSTED", "add nodes"),
    "larger than the nodes": (asked(size=1 << 45), "OUT_OF_RANGE", "add devices"),
    "larger than any volume": (asked(size=1 << 55), "OUT_OF_RANGE", "64Ti"),
    "many writers of a file system": (
        asked(volume_capabilities=[mounted(_Mode.MULTI_NODE_MULTI_WRITER)]),
        "INVALID_ARGUMENT",
        "volumeMode Block",
    ),
    "no access mode": (asked(volume_capabilities=[mounted(_Mode.UNKNOWN)]), "INVALID_ARGUMENT", "access mode"),
    "snapshot of another driver": (
        asked(volume_content_source=from_snapshot("snap-0123456789")),
        "NOT_FOUND",
        "snap-0123456789",
    ),
    "volume that is gone": (asked(volume_content_source=from_volume(UNKNOWN)), "NOT_FOUND", UNKNOWN),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_for_a_volume_is_refused(driver: Driver, case: str) -> None:
    request, code, words = REFUSED[case]
    with pytest.raises(Refused, match=words) as refused:
        driver.call("CreateVolume", request)
    assert refused.value.code == code


def test_a_name_belongs_to_one_volume(driver: Driver) -> None:
    volume = driver.create("taken", GIB, parameters={"replicas": "2"})
    assert driver.create("taken", GIB, parameters={"replicas": "2"}).volume_id == volume.volume_id
    for other in (
        asked("taken", 2 * GIB),
        asked("taken", parameters={"replicas": "1"}),
        asked("taken", volume_content_source=from_volume(volume.volume_id)),
    ):
        with pytest.raises(Refused) as refused:
            driver.call("CreateVolume", other)
        assert refused.value.code == "ALREADY_EXISTS"
    driver.delete(volume.volume_id)
    driver.delete(volume.volume_id)


def test_a_volume_is_made_on_the_node_of_its_pod(driver: Driver) -> None:
    key = next(iter(driver.call("NodeGetInfo", pb.NodeGetInfoRequest()).accessible_topology.segments))
    for node in ("c", "b"):
        wanted = pb.TopologyRequirement(preferred=[pb.Topology(segments={key: node})])
        volume = driver.create(f"on-{node}", GIB, accessibility_requirements=wanted)
        assert driver.owner_of(volume.volume_id) == node
        driver.delete(volume.volume_id)


def test_a_snapshot_keeps_its_volume_and_a_clone_its_snapshot(driver: Driver) -> None:
    volume = driver.create("source", GIB)
    snapshot = driver.snapshot(volume.volume_id, "taken-then")
    assert driver.snapshot(volume.volume_id, "taken-then").snapshot_id == snapshot.snapshot_id
    clone = driver.create("copy", GIB, volume_content_source=from_snapshot(snapshot.snapshot_id))
    assert driver.create("copy", GIB, volume_content_source=from_snapshot(snapshot.snapshot_id)) == clone
    for call, request in (
        ("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume.volume_id)),
        ("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id)),
    ):
        with pytest.raises(Refused) as refused:
            driver.call(call, request)
        assert refused.value.code == "FAILED_PRECONDITION"
    smaller = pb.CapacityRange(required_bytes=GIB // 2, limit_bytes=GIB // 2)
    source = from_snapshot(snapshot.snapshot_id)
    with pytest.raises(Refused) as refused:
        driver.call("CreateVolume", asked("less", volume_content_source=source, capacity_range=smaller))
    assert refused.value.code == "OUT_OF_RANGE"
    with pytest.raises(Refused, match="a clone has those of its source") as refused:
        driver.call("CreateVolume", asked("more", volume_content_source=source, parameters={"replicas": "3"}))
    assert refused.value.code == "INVALID_ARGUMENT"
    driver.delete(clone.volume_id)
    driver.delete_snapshot(snapshot.snapshot_id)
    driver.delete(volume.volume_id)


def test_source_and_clone_of_a_volume_are_deleted_in_any_order(driver: Driver) -> None:
    for source_first in (True, False):
        volume = driver.create("source", GIB)
        clone = driver.create("copy", 2 * GIB, volume_content_source=from_volume(volume.volume_id))
        assert clone.capacity_bytes == 2 * GIB
        asked_of = pb.ListSnapshotsRequest(source_volume_id=volume.volume_id)
        assert not driver.call("ListSnapshots", asked_of).entries  # what the clone was made from is nobody's
        for each in (volume, clone) if source_first else (clone, volume):
            driver.delete(each.volume_id)


def test_lists_have_each_entry_once_although_others_come_and_go(driver: Driver) -> None:
    volumes = [driver.create(f"listed-{number}", 1 << 20, volume_capabilities=[raw()]) for number in range(5)]
    kept, seen, token = {each.volume_id for each in volumes}, list[str](), ""
    while True:
        answer = driver.call("ListVolumes", pb.ListVolumesRequest(max_entries=2, starting_token=token))
        assert len(answer.entries) <= 2
        seen += [each.volume.volume_id for each in answer.entries]
        token = answer.next_token
        if not token:
            break
        if seen[-1] in kept:  # the last entry of a page goes, and the next page is where it was
            driver.delete(seen[-1])
            kept.discard(seen[-1])
    assert len(seen) == len(set(seen)) and kept <= set(seen)
    snapshots = [driver.snapshot(each, f"listed-{number}") for number, each in enumerate(sorted(kept))]
    listed, token = list[str](), ""
    while True:
        answer = driver.call("ListSnapshots", pb.ListSnapshotsRequest(max_entries=1, starting_token=token))
        listed += [each.snapshot.snapshot_id for each in answer.entries]
        token = answer.next_token
        if not token:
            break
    assert sorted(each.snapshot_id for each in snapshots) == listed
    with pytest.raises(Refused) as refused:
        driver.call("ListSnapshots", pb.ListSnapshotsRequest(starting_token="nothing"))
    assert refused.value.code == "ABORTED"
    for each in snapshots:
        driver.delete_snapshot(each.snapshot_id)
    for identity in kept:
        driver.delete(identity)


def test_a_group_is_taken_at_one_instant_and_deleted_as_one(driver: Driver) -> None:
    key = next(iter(driver.call("NodeGetInfo", pb.NodeGetInfoRequest()).accessible_topology.segments))
    volumes = [
        driver.create(
            f"member-{number}-{node}",
            1 << 20,
            volume_capabilities=[raw()],
            accessibility_requirements=pb.TopologyRequirement(preferred=[pb.Topology(segments={key: node})]),
        )
        for number, node in enumerate("aab")
    ]
    ids = [each.volume_id for each in volumes]
    with pytest.raises(Refused, match="volume move") as refused:
        driver.call("CreateVolumeGroupSnapshot", pb.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=ids))
    assert refused.value.code == "FAILED_PRECONDITION"
    request = pb.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=ids[:2])
    group = driver.call("CreateVolumeGroupSnapshot", request).group_snapshot
    assert driver.call("CreateVolumeGroupSnapshot", request).group_snapshot == group
    assert [each.source_volume_id for each in group.snapshots] == ids[:2]
    assert len({each.creation_time.ToNanoseconds() for each in group.snapshots}) == 1
    members = [each.snapshot_id for each in group.snapshots]
    told = pb.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=members)
    assert driver.call("GetVolumeGroupSnapshot", told).group_snapshot == group
    with pytest.raises(Refused, match="delete the group") as refused:
        driver.call("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=members[0]))
    assert refused.value.code == "INVALID_ARGUMENT"
    end = pb.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=members)
    driver.call("DeleteVolumeGroupSnapshot", end)
    driver.call("DeleteVolumeGroupSnapshot", end)
    for identity in ids:
        driver.delete(identity)


def test_capacity_follows_the_nodes(driver: Driver) -> None:
    key = next(iter(driver.call("NodeGetInfo", pb.NodeGetInfoRequest()).accessible_topology.segments))
    whole = driver.call("GetCapacity", pb.GetCapacityRequest())
    one = pb.GetCapacityRequest(accessible_topology=pb.Topology(segments={key: "b"}), parameters={"replicas": "3"})
    assert 20 * GIB < driver.call("GetCapacity", one).available_capacity <= whole.available_capacity
    assert whole.maximum_volume_size.value >= whole.available_capacity
    assert driver.call("GetCapacity", pb.GetCapacityRequest(parameters={"replicas": "4"})).available_capacity == 0
    impossible = pb.GetCapacityRequest(volume_capabilities=[mounted(_Mode.MULTI_NODE_MULTI_WRITER)])
    assert driver.call("GetCapacity", impossible).available_capacity == 0


def test_a_window_is_changed_by_a_class_of_attributes(driver: Driver) -> None:
    volume = driver.create("windowed", GIB, mutable_parameters={"window": "10m"})
    request = pb.ControllerModifyVolumeRequest(volume_id=volume.volume_id, mutable_parameters={"window": "1h"})
    driver.call("ControllerModifyVolume", request)
    assert driver.described(volume.volume_id).policy.window_seconds == 3600
    request.mutable_parameters["replicas"] = "3"
    with pytest.raises(Refused, match="VolumeAttributesClass") as refused:
        driver.call("ControllerModifyVolume", request)
    assert refused.value.code == "INVALID_ARGUMENT"
    driver.delete(volume.volume_id)


def test_a_driver_of_nodes_alone_has_no_controller(new_driver: Callable[..., Driver]) -> None:
    driver = new_driver(1, "--mode", "node")
    assert driver.call("NodeGetInfo", pb.NodeGetInfoRequest()).node_id == "b"
    with pytest.raises(Refused) as refused:
        driver.call("ListVolumes", pb.ListVolumesRequest())
    assert refused.value.code == "UNIMPLEMENTED"
