"""Records are JSON that a later version can add to."""

from __future__ import annotations

import asyncio
import json
import uuid

import msgspec
import pytest

from iomesh.errors import Conflict, Damaged, InvalidArgument
from iomesh.metadata import Entry, Metadata
from iomesh.metadata.records import (
    CheckpointPointer,
    CloneRecord,
    ExportRecord,
    Lifecycle,
    VolumeRecord,
    decode,
    get_or_create_cluster,
    list_volumes,
    put_volume,
)
from iomesh.node.limits import check_name
from iomesh.node.volume import OpenVolume, hide_record, write_record

VOLUME = VolumeRecord(
    id=uuid.UUID(int=5),
    name="db",
    size_bytes=1 << 30,
    segment_bytes=1 << 20,
    epoch=3,
    owner="a",
    checkpoint=CheckpointPointer(segment=1, block=2, crc=3, sequence=4),
    created_ns=1,
)


def test_a_volume_reads_back_as_it_was_written() -> None:
    put = put_volume(VOLUME, 7)
    assert (put.key, put.version) == ("volumes/db", 7)
    assert decode(VolumeRecord, Entry(put.key, put.value, 8)) == (VOLUME, 8)


def test_a_clone_reads_back_as_it_was_written() -> None:
    of = CloneRecord(volume=uuid.UUID(int=6), snapshot=uuid.UUID(int=7), name="parent@monday")
    for clone in (msgspec.structs.replace(VOLUME, clone_of=of), msgspec.structs.replace(VOLUME, clone_of=of, flattening=True)):
        assert decode(VolumeRecord, Entry("volumes/db", put_volume(clone, 1).value, 1)).record == clone


def test_a_record_from_before_there_were_clones_is_of_none() -> None:
    fields = json.loads(msgspec.json.encode(VOLUME))
    del fields["clone_of"], fields["flattening"]
    assert decode(VolumeRecord, Entry("volumes/db", json.dumps(fields).encode(), 1)).record == VOLUME


async def test_a_hidden_volume_has_no_name_that_a_user_gives_and_no_doors(metadata: Metadata) -> None:
    record = msgspec.structs.replace(VOLUME, exports=[ExportRecord(protocol="nbd")])
    volume = OpenVolume(record, await metadata.commit(put_volume(record, 0)))
    await hide_record(metadata, volume)
    found = await list_volumes(metadata)
    assert [one.record for one in found] == [volume.record]
    assert (volume.record.id, volume.record.state, volume.record.exports) == (record.id, Lifecycle.HIDDEN, [])
    assert found[0].version == volume.version
    with pytest.raises(InvalidArgument):
        check_name(volume.record.name)
    await write_record(metadata, volume, lambda it: msgspec.structs.replace(it, size_bytes=2 << 30))
    assert [one.record.size_bytes for one in await list_volumes(metadata)] == [2 << 30], "what changes it finds it where it is"


async def test_a_volume_that_somebody_else_took_is_not_hidden(metadata: Metadata) -> None:
    volume = OpenVolume(VOLUME, await metadata.commit(put_volume(VOLUME, 0)))
    await metadata.commit(put_volume(msgspec.structs.replace(VOLUME, epoch=4, owner="b"), volume.version))
    with pytest.raises(Conflict):
        await hide_record(metadata, volume)
    assert [one.record.owner for one in await list_volumes(metadata)] == ["b"]
    assert volume.record == VOLUME


def test_fields_of_a_later_version_are_ignored() -> None:
    fields = json.loads(msgspec.json.encode(VOLUME)) | {"colour": "blue"}
    assert decode(VolumeRecord, Entry("volumes/db", json.dumps(fields).encode(), 1)).record == VOLUME


def test_what_is_no_record_is_named_by_its_key() -> None:
    with pytest.raises(Damaged, match="volumes/db"):
        decode(VolumeRecord, Entry("volumes/db", b"{}", 1))


async def test_all_who_ask_a_new_service_at_once_are_of_one_cluster(metadata: Metadata) -> None:
    records = await asyncio.gather(*(get_or_create_cluster(metadata) for _ in range(8)))
    assert len({record.id for record in records}) == 1
    assert (await get_or_create_cluster(metadata, uuid.uuid4())).id == records[0].id, "a cluster does not change by asking"
