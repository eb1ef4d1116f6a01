"""A volume's three records: names belong to one, a crash between two commits leaves what the next start recognizes, and
what cannot be read concerns one volume."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from iomesh.errors import AlreadyExists, Conflict, InvalidArgument, IomeshError
from iomesh.metadata import Delete, Entry, Metadata, Put
from iomesh.metadata.records import (
    CheckpointPointer,
    CloneRecord,
    ExportRecord,
    Lifecycle,
    LogRecord,
    VolumeRecord,
    get_name,
    log_key,
    name_key,
    put_log,
    put_name,
    put_volume,
    volume_key,
)
from iomesh.metadata.volumes import (
    create_records,
    find_volume,
    read_volumes,
    release_name,
    release_stale,
    remove_records,
    reserve_name,
)
from iomesh.node.limits import check_name
from iomesh.node.volume import NodeVolume, hide_record, write_log, write_record

Opener = Callable[[], Awaitable[Metadata]]
OF = CloneRecord(volume=uuid.UUID(int=6), snapshot=uuid.UUID(int=7), name="parent@monday")

POINTER = CheckpointPointer(segment=1, block=2, crc=3, sequence=4)


def records(name: str, number: int, state: Lifecycle = Lifecycle.MAKING) -> tuple[VolumeRecord, LogRecord]:
    identity = uuid.UUID(int=number)
    volume = VolumeRecord(
        id=identity, name=name, node="a", size_bytes=1 << 30, segment_bytes=1 << 20, state=state, created_ns=1
    )
    return volume, LogRecord(id=identity, epoch=0, owner="a", promised=0)


async def make(metadata: Metadata, name: str, number: int) -> NodeVolume:
    volume, log = records(name, number)
    opened = NodeVolume(volume, log, *await create_records(metadata, volume, log))
    await write_record(metadata, opened, lambda record: msgspec.structs.replace(record, state=Lifecycle.READY))
    return opened


async def keys(metadata: Metadata) -> list[str]:
    return [entry.key for entry in (await metadata.list_prefix("")).entries]


async def test_a_volume_is_found_by_its_name(metadata: Metadata) -> None:
    made = await make(metadata, "db", 1)
    found = await find_volume(metadata, "db")
    assert found is not None and found.log is not None
    assert (found.volume.record, found.log.record) == (made.record, made.log)
    assert await find_volume(metadata, "other") is None
    inventory = await read_volumes(metadata)
    assert [stored.volume.record for stored in inventory.volumes] == [made.record]
    assert not inventory.unreadable and not inventory.stale_names and not inventory.unnamed


async def test_a_name_that_is_taken_leaves_nothing_of_who_came_second(metadata: Metadata) -> None:
    await make(metadata, "db", 1)
    before = await keys(metadata)
    with pytest.raises(AlreadyExists, match="a volume db exists"):
        await create_records(metadata, *records("db", 2))
    assert await keys(metadata) == before


async def test_a_hidden_volume_has_no_name_that_a_user_gives_and_no_exports(metadata: Metadata) -> None:
    volume = await make(metadata, "db", 1)
    await write_record(metadata, volume, lambda it: msgspec.structs.replace(it, exports=[ExportRecord(protocol="nbd")]))
    await hide_record(metadata, volume)
    assert (volume.record.state, volume.record.exports) == (Lifecycle.HIDDEN, [])
    with pytest.raises(InvalidArgument):
        check_name(volume.record.name)
    assert [stale.entry.key for stale in (await read_volumes(metadata)).stale_names] == ["names/db"], "a crash here"
    await release_name(metadata, "db", volume.record.id)
    assert await keys(metadata) == [log_key(volume.record.id), volume_key(volume.record.id)]
    inventory = await read_volumes(metadata)
    assert [stored.volume.record for stored in inventory.volumes] == [volume.record]
    assert not inventory.unnamed and not inventory.stale_names
    await write_record(metadata, volume, lambda it: msgspec.structs.replace(it, size_bytes=2 << 30))
    await remove_records(metadata, volume.record)
    assert await keys(metadata) == []


class Crash(Exception):
    pass


class Dying:
    """A client of a metadata service whose process ends before its commit of this number."""

    def __init__(self, metadata: Metadata, commits: int) -> None:
        self._metadata = metadata
        self._left = commits

    async def commit(self, operation: Put | Delete) -> int:
        if not self._left:
            raise Crash
        self._left -= 1
        return await self._metadata.commit(operation)

    def __getattr__(self, name: str) -> object:
        return getattr(self._metadata, name)


CREATED = [["volumes"], ["names", "volumes"], ["logs", "names", "volumes"]]


@pytest.mark.parametrize("commits", [0, 1, 2])
async def test_of_a_creation_that_ends_early_the_name_can_be_had(metadata: Metadata, commits: int) -> None:
    volume, log = records("db", 1)
    with pytest.raises(Crash):
        await create_records(Dying(metadata, commits), volume, log)  # type: ignore[arg-type]
    assert [key.split("/")[0] for key in await keys(metadata)] == ([[], *CREATED])[commits]
    inventory = await read_volumes(metadata)
    assert [(stored.volume.record, stored.log) for stored in inventory.volumes] == ([(volume, None)] if commits else [])
    assert not inventory.unreadable and not inventory.stale_names
    await remove_records(metadata, volume)
    assert await keys(metadata) == []
    await make(metadata, "db", 2)


@pytest.mark.parametrize("commits", [0, 1, 2])
async def test_of_a_removal_that_ends_early_the_rest_can_be_removed(metadata: Metadata, commits: int) -> None:
    volume = await make(metadata, "db", 1)
    await write_record(metadata, volume, lambda record: msgspec.structs.replace(record, state=Lifecycle.DELETING))
    with pytest.raises(Crash):
        await remove_records(Dying(metadata, commits), volume.record)  # type: ignore[arg-type]
    assert [key.split("/")[0] for key in await keys(metadata)] == list(reversed(CREATED))[commits]
    inventory = await read_volumes(metadata)
    assert [stored.volume.record for stored in inventory.volumes] == [volume.record]
    assert not inventory.unreadable and not inventory.stale_names
    await remove_records(metadata, volume.record)
    assert await keys(metadata) == []


async def test_a_name_left_by_a_crash_can_be_reserved(metadata: Metadata) -> None:
    await metadata.commit(put_name("orphan", uuid.UUID(int=99), 0))
    hidden = await make(metadata, "given-up", 1)
    await hide_record(metadata, hidden)
    for number, name in enumerate(("orphan", "given-up"), 2):
        await make(metadata, name, number)
        found = await get_name(metadata, name)
        assert found is not None
        assert found.record.volume == uuid.UUID(int=number)


async def test_a_stale_name_that_was_reserved_again_is_not_released(metadata: Metadata) -> None:
    await metadata.commit(put_name("db", uuid.UUID(int=99), 0))
    (stale,) = (await read_volumes(metadata)).stale_names
    await make(metadata, "db", 1)
    await release_stale(metadata, stale)
    assert await find_volume(metadata, "db") is not None


async def test_a_lost_name_reservation_is_reported(metadata: Metadata) -> None:
    volume = await make(metadata, "db", 1)
    await metadata.commit(Delete(name_key("db"), None))
    assert (await read_volumes(metadata)).unnamed == {volume.record.id}
    await reserve_name(metadata, "db", volume.record.id)
    await reserve_name(metadata, "db", volume.record.id)
    assert not (await read_volumes(metadata)).unnamed


def newer(entry: Entry | None) -> Put:
    assert entry is not None
    fields = json.loads(entry.value)
    return Put(entry.key, json.dumps(fields | {"format": fields["format"] + 1}).encode(), entry.version)


@pytest.mark.parametrize("what", ["volume", "log", "name"])
@pytest.mark.parametrize("how", ["newer", "garbage"])
async def test_a_record_that_cannot_be_read_hides_no_other_volume(metadata: Metadata, what: str, how: str) -> None:
    kept, bad = await make(metadata, "kept", 1), await make(metadata, "bad", 2)
    key = {"volume": volume_key(bad.record.id), "log": log_key(bad.record.id), "name": name_key("bad")}[what]
    await metadata.commit(newer(await metadata.get(key)) if how == "newer" else Put(key, b"{", None))
    inventory = await read_volumes(metadata)
    assert [stored.volume.record for stored in inventory.volumes] == [kept.record]
    (unreadable,) = inventory.unreadable
    assert unreadable.id == bad.record.id
    assert key in unreadable.reason
    assert unreadable.name == ("bad" if (what, how) != ("volume", "garbage") else str(bad.record.id))
    assert (unreadable.log is None) == (what == "log")
    assert not inventory.stale_names, "its name stays its own"
    with pytest.raises(IomeshError, match=f"a volume bad exists|{key}"):
        await make(metadata, "bad", 3)


async def test_what_lies_under_a_key_that_is_no_volumes_is_told_and_no_more(metadata: Metadata) -> None:
    await make(metadata, "db", 1)
    volume, log = records("old", 2)
    await metadata.commit(Put("volumes/old", put_volume(volume, 0).value, 0))
    await metadata.commit(Put(volume_key(uuid.UUID(int=7)), put_volume(volume, 0).value, 0))
    await metadata.commit(put_log(msgspec.structs.replace(log, id=uuid.UUID(int=8)), 0))
    inventory = await read_volumes(metadata)
    assert [stored.volume.record.name for stored in inventory.volumes] == ["db"]
    assert sorted(each.name for each in inventory.unreadable) == [
        str(uuid.UUID(int=7)),
        str(uuid.UUID(int=8)),
        "volumes/old",
    ]


async def test_only_the_owner_of_the_epoch_changes_the_record_of_a_log(client: Opener) -> None:
    metadata, other = await client(), await client()
    volume = await make(metadata, "db", 1)
    version = await other.commit(put_log(msgspec.structs.replace(volume.log, clone_of=OF), volume.log_version))
    await write_log(metadata, volume, lambda log: msgspec.structs.replace(log, epoch=1))
    assert (volume.log.epoch, volume.log.clone_of) == (1, OF), "what was there under the same epoch is kept"
    assert volume.log_version > version
    await other.commit(put_log(msgspec.structs.replace(volume.log, epoch=2, owner="b"), volume.log_version))
    with pytest.raises(Conflict, match="taken over"):
        await write_log(metadata, volume, lambda log: msgspec.structs.replace(log, clone_of=None))
    await write_record(metadata, volume, lambda record: msgspec.structs.replace(record, size_bytes=2 << 30))


async def test_a_write_whose_answer_was_lost_is_done(metadata: Metadata) -> None:
    volume = await make(metadata, "db", 1)
    grown = msgspec.structs.replace(volume.record, size_bytes=2 << 30)
    version = await metadata.commit(put_volume(grown, volume.version))
    await write_record(metadata, volume, lambda record: msgspec.structs.replace(record, size_bytes=2 << 30))
    assert (volume.record, volume.version) == (grown, version)
    raised = msgspec.structs.replace(volume.log, checkpoint=POINTER)
    version = await metadata.commit(put_log(raised, volume.log_version))
    await write_log(metadata, volume, lambda log: msgspec.structs.replace(log, checkpoint=POINTER))
    assert (volume.log, volume.log_version) == (raised, version)
