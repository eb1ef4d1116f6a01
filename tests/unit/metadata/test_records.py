"""Records are JSON that later versions can extend; an unknown format is refused and affects nothing else."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import msgspec
import pytest

from iomesh.errors import Damaged, Unsupported
from iomesh.metadata import Entry, Metadata, Put
from iomesh.metadata.records import (
    CLUSTER_KEY,
    CheckpointPointer,
    CloneRecord,
    ClusterRecord,
    DeviceRecord,
    LogRecord,
    NameRecord,
    VolumeRecord,
    decode,
    device_key,
    get_or_create_cluster,
    list_devices,
    put_device,
    put_log,
    put_name,
    put_volume,
)

VOLUME = VolumeRecord(id=uuid.UUID(int=5), name="db", node="a", size_bytes=1 << 30, segment_bytes=1 << 20, created_ns=1)
OF = CloneRecord(volume=uuid.UUID(int=6), snapshot=uuid.UUID(int=7), name="parent@monday")
CHECKPOINT = CheckpointPointer(segment=1, block=2, crc=3, sequence=4)
LOG = LogRecord(id=uuid.UUID(int=5), epoch=3, owner="a", checkpoint=CHECKPOINT, clone_of=OF, promised=1024)
DEVICE = DeviceRecord(id=uuid.UUID(int=8), node="a", path="/dev/x", tier="ssd", label="", size_bytes=1 << 30)
CLUSTER = ClusterRecord(id=uuid.UUID(int=9), created_ns=1)
RECORDS = [VOLUME, LOG, NameRecord(volume=uuid.UUID(int=5)), DEVICE, CLUSTER]


def test_volumes_and_logs_read_back_as_they_were_written() -> None:
    put = put_volume(VOLUME, 7)
    assert (put.key, put.version) == (f"volumes/{VOLUME.id}", 7)
    assert decode(VolumeRecord, Entry(put.key, put.value, 8)) == (VOLUME, 8)
    put = put_log(LOG, 9)
    assert (put.key, put.version) == (f"logs/{LOG.id}", 9)
    assert decode(LogRecord, Entry(put.key, put.value, 10)) == (LOG, 10)
    put = put_name("db", VOLUME.id, 0)
    assert (put.key, decode(NameRecord, Entry(put.key, put.value, 1)).record.volume) == ("names/db", VOLUME.id)


def changed(record: Any, **fields: Any) -> Entry:
    return Entry("some/key", json.dumps(json.loads(msgspec.json.encode(record)) | fields).encode(), 1)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_fields_of_a_later_version_are_ignored(record: Any) -> None:
    assert decode(type(record), changed(record, colour="blue")).record == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_an_unknown_format_is_refused_whatever_the_record_holds(record: Any) -> None:
    for newer in (changed(record, format=record.format + 1), Entry("some/key", b'{"format":99}', 1)):
        with pytest.raises(Unsupported, match=r"some/key has format \d+, .* newer"):
            decode(type(record), newer)
    with pytest.raises(Unsupported, match="some/key has format 0 of an earlier version"):
        decode(type(record), changed(record, format=0))


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b"[]", b'{"format":"x"}', b'{"format":1}', b'{"format":2}'])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_no_record_is_named_by_its_key(record: Any, value: bytes) -> None:
    with pytest.raises((Damaged, Unsupported), match="some/key"):
        decode(type(record), Entry("some/key", value, 1))


async def test_a_device_whose_record_cannot_be_read_hides_no_other(metadata: Metadata) -> None:
    await metadata.commit(put_device(DEVICE, 0))
    await metadata.commit(Put(device_key(uuid.UUID(int=1)), b"{", 0))
    await metadata.commit(Put(device_key(uuid.UUID(int=2)), changed(DEVICE, format=2, label="other").value, 0))
    devices, unreadable = await list_devices(metadata)
    assert [one.record for one in devices] == [DEVICE]
    assert [(one.id, one.seen.label) for one in unreadable] == [(uuid.UUID(int=1), ""), (uuid.UUID(int=2), "other")]


async def test_all_who_ask_a_new_service_at_once_are_of_one_cluster(metadata: Metadata) -> None:
    records = await asyncio.gather(*(get_or_create_cluster(metadata) for _ in range(8)))
    assert len({record.id for record in records}) == 1
    assert (await get_or_create_cluster(metadata, uuid.uuid4())).id == records[0].id, (
        "a cluster does not change by asking"
    )


async def test_a_service_whose_keys_are_of_an_earlier_iomesh_is_refused(metadata: Metadata) -> None:
    await metadata.commit(Put(CLUSTER_KEY, changed(CLUSTER, format=1).value, 0))
    with pytest.raises(
        Unsupported, match=r"cluster has format 1 of an earlier version, which this one does not read .*start over"
    ):
        await get_or_create_cluster(metadata)
