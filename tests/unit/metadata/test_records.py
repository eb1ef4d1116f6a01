"""Records are JSON that a later version can add to."""

from __future__ import annotations

import asyncio
import json
import uuid

import msgspec
import pytest

from iomesh.errors import Damaged
from iomesh.metadata import Entry, Metadata
from iomesh.metadata.records import CheckpointPointer, VolumeRecord, decode, get_or_create_cluster, put_volume

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
