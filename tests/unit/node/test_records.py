"""A change of a volume's records has three outcomes: done, refused, unknown. Repeating an unknown one completes it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from iomesh.errors import Conflict, InUse
from iomesh.metadata import Delete, MetadataUnavailable
from iomesh.metadata.records import (
    PROMISE,
    SEGMENT_NUMBER_MAX,
    CheckpointPointer,
    LogRecord,
    VolumeRecord,
    get_log,
    get_volume,
    log_key,
    put_log,
    put_volume,
    volume_key,
)
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.node.volume import NodeVolume, take_over, write_log, write_record
from support.faulty_metadata import Fault, FaultyMetadata

POINTER = CheckpointPointer(segment=1, block=2, crc=3, sequence=4)


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[FaultyMetadata]:
    metadata = FaultyMetadata(await SqliteMetadata.open(tmp_path / "metadata.db"))
    yield metadata
    await metadata.close()


def new_volume() -> NodeVolume:
    record = VolumeRecord(
        id=uuid.uuid4(), name="db", node="node-a", size_bytes=1 << 30, segment_bytes=1 << 20, created_ns=1
    )
    return NodeVolume(record, LogRecord(id=record.id, epoch=0, owner="node-a", promised=0))


@pytest.fixture
async def volume(metadata: FaultyMetadata) -> NodeVolume:
    """Its records are stored, and this node's."""
    volume = new_volume()
    await write_record(metadata, volume, lambda record: record)
    await take_over(metadata, volume, "node-a")
    return volume


def pointed(log: LogRecord) -> LogRecord:
    return msgspec.structs.replace(log, checkpoint=POINTER)


def grown(record: VolumeRecord) -> VolumeRecord:
    return msgspec.structs.replace(record, size_bytes=2 << 30)


async def stored(metadata: FaultyMetadata, volume: NodeVolume) -> LogRecord:
    found = await get_log(metadata, volume.record.id)
    assert found is not None
    return found.record


@pytest.mark.parametrize("fault", Fault)
async def test_a_change_whose_outcome_is_unknown_is_done_when_it_is_repeated(
    metadata: FaultyMetadata, volume: NodeVolume, fault: Fault
) -> None:
    metadata.faults = [fault, fault]
    for _ in range(2):
        with pytest.raises(MetadataUnavailable):
            await write_log(metadata, volume, pointed)
        assert volume.log.checkpoint is None, "what is not known to be stored does not count"
        if fault is Fault.DONE:
            metadata.faults = []
            break
    await write_log(metadata, volume, pointed)
    assert volume.log.checkpoint == POINTER
    assert await stored(metadata, volume) == volume.log


@pytest.mark.parametrize("fault", Fault)
async def test_a_change_of_what_the_volume_is_to_be_is_done_when_it_is_repeated(
    metadata: FaultyMetadata, volume: NodeVolume, fault: Fault
) -> None:
    metadata.faults = [fault]
    with pytest.raises(MetadataUnavailable):
        await write_record(metadata, volume, grown)
    await write_record(metadata, volume, grown)
    assert volume.record.size_bytes == 2 << 30
    assert await get_volume(metadata, volume.record.id) == (volume.record, volume.version)


async def test_a_repeated_change_that_finds_itself_stored_writes_nothing(
    metadata: FaultyMetadata, volume: NodeVolume
) -> None:
    metadata.faults = [Fault.DONE]
    with pytest.raises(MetadataUnavailable):
        await write_log(metadata, volume, pointed)
    before = await get_log(metadata, volume.record.id)
    await write_log(metadata, volume, pointed)
    assert await get_log(metadata, volume.record.id) == before == (volume.log, volume.log_version)


async def test_a_change_is_refused_when_another_epoch_is_stored(metadata: FaultyMetadata, volume: NodeVolume) -> None:
    taken = msgspec.structs.replace(volume.log, epoch=7, owner="node-b")
    await metadata.commit(put_log(taken, None))
    with pytest.raises(Conflict, match=r"node node-b owns it with epoch 7, and this node had epoch 1"):
        await write_log(metadata, volume, pointed)
    assert await stored(metadata, volume) == taken


async def test_a_change_is_refused_when_the_record_is_gone(metadata: FaultyMetadata, volume: NodeVolume) -> None:
    for key in (log_key(volume.record.id), volume_key(volume.record.id)):
        await metadata.commit(Delete(key, None))
    with pytest.raises(Conflict, match="was removed concurrently"):
        await write_log(metadata, volume, pointed)
    with pytest.raises(Conflict, match="was removed concurrently"):
        await write_record(metadata, volume, grown)


async def test_what_another_change_left_is_kept(metadata: FaultyMetadata, volume: NodeVolume) -> None:
    await metadata.commit(put_volume(msgspec.structs.replace(volume.record, flattening=True), None))
    await write_record(metadata, volume, grown)
    assert (volume.record.flattening, volume.record.size_bytes) == (True, 2 << 30)


@pytest.mark.parametrize("fault", Fault)
async def test_the_epoch_is_raised_above_what_an_attempt_with_an_unknown_outcome_left(
    metadata: FaultyMetadata, fault: Fault
) -> None:
    volume = new_volume()
    metadata.faults = [fault]
    with pytest.raises(MetadataUnavailable):
        await take_over(metadata, volume, "node-a")
    await take_over(metadata, volume, "node-a")
    assert await stored(metadata, volume) == volume.log
    assert volume.log.epoch == (2 if fault is Fault.DONE else 1), "an epoch that is stored may be another process's"


async def test_a_volume_of_another_node_is_not_taken_over(metadata: FaultyMetadata, volume: NodeVolume) -> None:
    taken = msgspec.structs.replace(volume.log, owner="node-b")
    await metadata.commit(put_log(taken, None))
    with pytest.raises(InUse, match="owned by node node-b"):
        await take_over(metadata, volume, "node-a")
    assert await stored(metadata, volume) == taken


@pytest.mark.parametrize("fault", Fault)
async def test_no_segment_number_is_promised_to_two_owners(metadata: FaultyMetadata, fault: Fault) -> None:
    volume = new_volume()
    metadata.faults = [fault]
    with pytest.raises(MetadataUnavailable):
        await take_over(metadata, volume, "node-a")
    first = (await take_over(metadata, volume, "node-a")).segment
    assert first == (PROMISE + 1 if fault is Fault.DONE else 1), "what is stored may be promised to another process"
    assert volume.log.promised == first + PROMISE - 1
    assert (await take_over(metadata, volume, "node-a")).segment == first + PROMISE
    assert await stored(metadata, volume) == volume.log


async def test_numbers_that_are_left_at_the_end_are_promised(metadata: FaultyMetadata, volume: NodeVolume) -> None:
    await write_log(metadata, volume, lambda log: msgspec.structs.replace(log, promised=SEGMENT_NUMBER_MAX - 3))
    assert (await take_over(metadata, volume, "node-a")).segment == SEGMENT_NUMBER_MAX - 2
    assert (await take_over(metadata, volume, "node-a")).segment == SEGMENT_NUMBER_MAX + 1, "none is left"
    assert volume.log.promised == SEGMENT_NUMBER_MAX
