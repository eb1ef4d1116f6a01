"""Names of what a restore keeps."""

import uuid

from iomesh.metadata.records import LogRecord, PolicyRecord, VolumeRecord
from iomesh.node.snapshots import free_name
from iomesh.node.volume import NodeVolume


def volume(*snapshots: str) -> NodeVolume:
    record = VolumeRecord(
        id=uuid.UUID(int=1),
        name="db",
        node="a",
        size_bytes=4096,
        segment_bytes=1 << 20,
        policy=PolicyRecord(replicas=1),
        created_ns=0,
    )
    entries = [{"name": name, "hidden": name.startswith("gone"), "dying": False, "mark": False} for name in snapshots]
    return NodeVolume(record, LogRecord(id=record.id, epoch=1, owner="a", promised=0), snapshots=entries)


def test_a_name_that_is_free_is_taken_as_it_is() -> None:
    assert free_name(volume(), "before") == "before"
    assert free_name(volume("other"), "before") == "before"
    assert free_name(volume("gone"), "gone") == "gone", (
        "a snapshot that was deleted and is still needed has no name any more"
    )


def test_a_name_that_is_taken_gets_the_first_number_that_is_not() -> None:
    assert free_name(volume("before"), "before") == "before-2"
    assert free_name(volume("before", "before-2", "before-4"), "before") == "before-3"
