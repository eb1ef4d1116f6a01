"""A volume's three records, each changed by a compare-and-swap of its own, and what a crash between two of them
leaves behind.

    volumes/<id>    its intended state           written first, removed last
    names/<name>    which volume has the name    exists only while volumes/<id> does
    logs/<id>       the state of its log         exists only while both do, or while the volume is hidden

    create   volumes (making), names, logs, (open), volumes (ready)
    hide     volumes (hidden, without its name), (its exports are withdrawn), names removed
    delete   volumes (deleting), (erase), logs removed, names removed, volumes removed

After a crash the volume's own record shows the interrupted operation:

    making, without a log    nothing was ever written to it: its records are removed
    making, with its log     it is opened, and its creation continues
    deleting                 its erasure continues; without a log, only its records are left to be removed
    a name whose volume does not exist, or is hidden or being deleted under another name:
                             free. The next volume that reserves the name removes the record, too
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import NamedTuple

from iomesh.errors import AlreadyExists, Conflict, Damaged, IomeshError
from iomesh.metadata.protocol import Delete, Entry, Metadata
from iomesh.metadata.records import (
    LOGS,
    NAMES,
    VOLUMES,
    Glimpse,
    Lifecycle,
    LogRecord,
    NameRecord,
    Versioned,
    VolumeRecord,
    decode,
    get_log,
    get_name,
    get_volume,
    glimpse,
    id_of,
    log_key,
    name_key,
    put_log,
    put_name,
    put_volume,
    volume_key,
)

NAME_ATTEMPTS = 5


class Stored(NamedTuple):
    """A volume as it is stored. log: None while it is being created or deleted."""

    volume: Versioned[VolumeRecord]
    log: Versioned[LogRecord] | None


class Unreadable(NamedTuple):
    """A volume with an unreadable record: it stays closed; other volumes are not affected."""

    id: uuid.UUID | None  # None: not even the key is a volume's
    name: str  # its own, if that is certain, else its id or its key
    node: str  # its owner's, if known, else empty
    reason: str
    log: LogRecord | None  # None: it may be a clone of any volume


class StaleName(NamedTuple):
    """A reservation without effect."""

    entry: Entry
    holder: VolumeRecord | None  # it has another name; None: it does not exist


@dataclass
class Inventory:
    """The records of all volumes."""

    volumes: list[Stored] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    stale_names: list[StaleName] = field(default_factory=list)
    unnamed: set[uuid.UUID] = field(default_factory=set)  # volumes whose name is not reserved, or reserved by another


async def read_volumes(metadata: Metadata) -> Inventory:
    """At the start of a node, while other nodes may change their volumes. So names are read first: unless a name is
    stale, its volume exists at that time, and still does when volumes are read."""
    names = (await metadata.list_prefix(NAMES)).entries
    volumes = {entry.key.removeprefix(VOLUMES): entry for entry in (await metadata.list_prefix(VOLUMES)).entries}
    logs = {entry.key.removeprefix(LOGS): entry for entry in (await metadata.list_prefix(LOGS)).entries}
    holders, broken = _holders(names)
    inventory = Inventory()
    for tail in sorted(volumes.keys() | logs.keys()):
        entry, log = volumes.get(tail), logs.get(tail)
        if entry is None or log is None:  # as it is, or because it is being created or removed
            entry, log = await metadata.get(VOLUMES + tail), await metadata.get(LOGS + tail)
        if entry is not None or log is not None:
            _read(inventory, tail, entry, log, holders, broken)
    known = {stored.volume.record.id: stored.volume.record for stored in inventory.volumes}
    unreadable = {each.id for each in inventory.unreadable}
    for entry in names:
        holder = holders.get(entry.key.removeprefix(NAMES))
        if holder is None or holder in unreadable:
            continue
        record = known.get(holder)
        if record is None or name_key(record.name) != entry.key:
            inventory.stale_names.append(StaleName(entry, record))
    inventory.unnamed = {
        record.id
        for record in known.values()
        if holders.get(record.name) != record.id and not is_hidden_name(record.name)
    }
    return inventory


def _holders(names: list[Entry]) -> tuple[dict[str, uuid.UUID], dict[str, str]]:
    """The volume of each name; for unreadable ones, the reason."""
    holders, broken = {}, {}
    for entry in names:
        name = entry.key.removeprefix(NAMES)
        try:
            holders[name] = decode(NameRecord, entry).record.volume
        except IomeshError as error:
            broken[name] = error.message
    return holders, broken


def _read(
    inventory: Inventory,
    tail: str,
    entry: Entry | None,
    log_entry: Entry | None,
    holders: dict[str, uuid.UUID],
    broken: dict[str, str],
) -> None:
    identity, volume, log, reasons = id_of(tail), None, None, []
    try:
        if entry is None:
            raise Damaged(f"metadata key {VOLUMES}{tail} is missing, although {LOGS}{tail} exists")
        if identity is None:
            raise Damaged(f"metadata key {entry.key}: {tail!r} is not the id of a volume")
        volume = decode(VolumeRecord, entry)
        if volume.record.id != identity:
            raise Damaged(f"metadata key {entry.key}: the record belongs to volume {volume.record.id}")
        if volume.record.name in broken:
            raise Damaged(broken[volume.record.name])
        if log_entry is None and volume.record.state in (Lifecycle.READY, Lifecycle.HIDDEN):
            raise Damaged(f"metadata key {LOGS}{tail} is missing, although the volume is {volume.record.state.value}")
    except IomeshError as error:
        reasons.append(error.message)
    try:
        if log_entry is not None:
            log = decode(LogRecord, log_entry)
            if log.record.id != identity:
                log = None
                raise Damaged(f"metadata key {log_entry.key}: the record belongs to another volume")
    except IomeshError as error:
        reasons.append(error.message)
    if volume is not None and not reasons:
        inventory.volumes.append(Stored(volume, log))
        return
    seen = glimpse(entry) if entry is not None else Glimpse()
    name = volume.record.name if volume is not None else seen.name
    its_own = identity is not None and (holders.get(name) == identity or name in broken)
    node = log.record.owner if log is not None else seen.node
    inventory.unreadable.append(
        Unreadable(
            identity, name if its_own else str(identity or VOLUMES + tail), node, "; ".join(reasons), log and log.record
        )
    )


async def find_volume(metadata: Metadata, name: str) -> Stored | None:
    """The volume of this name. Raises as `decode` does."""
    reserved = await get_name(metadata, name)
    volume = await get_volume(metadata, reserved.record.volume) if reserved is not None else None
    if reserved is None or volume is None or volume.record.name != name:
        return None
    return Stored(volume, await get_log(metadata, volume.record.id))


async def reserve_name(metadata: Metadata, name: str, volume: uuid.UUID) -> None:
    """For a volume whose record exists. Raises AlreadyExists if another volume has the name; a stale reservation left
    by a crash is cleared. Idempotent."""
    for _ in range(NAME_ATTEMPTS):
        try:
            await metadata.commit(put_name(name, volume, 0))
        except Conflict:
            found = await get_name(metadata, name)
        else:
            return
        if found is None:
            continue
        if found.record.volume == volume:
            return
        if not await _is_stale(metadata, name, found.record.volume):
            raise AlreadyExists(f"a volume {name} exists in this cluster: choose another name")
        await _remove(metadata, name_key(name), found.version)
    raise Conflict(f"the name {name} keeps changing: try again")


async def _is_stale(metadata: Metadata, name: str, holder: uuid.UUID) -> bool:
    """A volume's record is written before its name. So a name without a record belongs to no volume; neither does that
    of a volume that has given it up for good."""
    found = await get_volume(metadata, holder)
    return found is None or (found.record.name != name and found.record.state in (Lifecycle.HIDDEN, Lifecycle.DELETING))


async def release_name(metadata: Metadata, name: str, volume: uuid.UUID) -> None:
    """Removes the name if it is this volume's. Idempotent."""
    found = await get_name(metadata, name)
    if found is not None and found.record.volume == volume:
        await _remove(metadata, name_key(name), found.version)


async def release_stale(metadata: Metadata, name: StaleName) -> None:
    """Removes the name unless another volume has reserved it meanwhile."""
    await _remove(metadata, name.entry.key, name.entry.version)


async def _remove(metadata: Metadata, key: str, version: int) -> None:
    """Removes the entry unless it was changed meanwhile: then it belongs to another volume."""
    try:
        await metadata.commit(Delete(key, version))
    except Conflict:
        return


async def create_records(metadata: Metadata, record: VolumeRecord, log: LogRecord) -> tuple[int, int]:
    """Creates the records of a new volume, which is MAKING afterwards. Returns the versions of the two. Raises
    AlreadyExists; its own record is removed again then. After any other error, `remove_records` cleans up."""
    version = await metadata.commit(put_volume(record, 0))
    try:
        await reserve_name(metadata, record.name, record.id)
    except AlreadyExists:
        await metadata.commit(Delete(volume_key(record.id), None))
        raise
    return version, await metadata.commit(put_log(log, 0))


async def remove_records(metadata: Metadata, record: VolumeRecord) -> None:
    """Removes the records of a volume of which nothing else is left. An id is never reused, so this needs no versions,
    and is idempotent."""
    await metadata.commit(Delete(log_key(record.id), None))
    await release_name(metadata, record.name, record.id)
    await metadata.commit(Delete(volume_key(record.id), None))


def hidden_name(volume: uuid.UUID) -> str:
    """A name that no user can choose, and that is never reserved."""
    return f"deleted:{volume}"


def is_hidden_name(name: str) -> bool:
    return name.startswith("deleted:")
