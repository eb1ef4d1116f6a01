"""What is kept under each key, as JSON. docs/metadata.md describes every field.

Unknown fields are kept out of the way of older readers by being ignored; a change of meaning raises `format`.
"""

from __future__ import annotations

import contextlib
import enum
import time
import uuid
from typing import Generic, NamedTuple, TypeVar

import msgspec

from iomesh.errors import Conflict, Damaged
from iomesh.metadata.protocol import Delete, Entry, Metadata, Put

CLUSTER_KEY = "cluster"
VOLUMES = "volumes/"
DEVICES = "devices/"


class Lifecycle(enum.StrEnum):
    """A volume's state as the cluster knows it: ready -> deleting -> (no record), or ready -> hidden -> deleting if it was deleted while
    there were clones of it. A clone of a moment is making until it is taken there. What its owner is doing with it is the node's."""

    MAKING = "making"
    READY = "ready"
    HIDDEN = "hidden"
    DELETING = "deleting"


class CheckpointPointer(msgspec.Struct, frozen=True, kw_only=True):
    segment: int
    block: int
    crc: int
    sequence: int  # of the last record that it covers


class PolicyRecord(msgspec.Struct, frozen=True, kw_only=True):
    replicas: int = 1
    window_seconds: int = 0  # any second so far back can be restored; 0: there is no restore window


class ExportRecord(msgspec.Struct, frozen=True, kw_only=True):
    protocol: str
    read_only: bool = False


class SnapshotExportRecord(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: uuid.UUID
    protocol: str


class CloneRecord(msgspec.Struct, frozen=True, kw_only=True):
    volume: uuid.UUID
    snapshot: uuid.UUID
    name: str  # of both when the clone was made, VOLUME@SNAPSHOT or VOLUME@MOMENT: for people
    at_ns: int = 0  # Unix time of the moment, and the snapshot is the mark before it; 0: it is a clone of the snapshot


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    id: uuid.UUID
    name: str
    size_bytes: int
    segment_bytes: int
    epoch: int  # of the owner's right; raised by whoever opens it
    owner: str  # name of a node
    state: Lifecycle = Lifecycle.READY
    checkpoint: CheckpointPointer | None = None  # None: recovery starts at the beginning of the log
    policy: PolicyRecord = PolicyRecord()
    exports: list[ExportRecord] = []
    snapshot_exports: list[SnapshotExportRecord] = []
    clone_of: CloneRecord | None = None
    flattening: bool = False  # a clone that is being made independent of its parent
    created_ns: int  # Unix time


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    id: uuid.UUID
    node: str
    path: str  # where it was seen last
    tier: str
    label: str
    size_bytes: int


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    id: uuid.UUID
    created_ns: int


RecordT = TypeVar("RecordT", VolumeRecord, DeviceRecord, ClusterRecord)


class Versioned(NamedTuple, Generic[RecordT]):
    record: RecordT
    version: int


def decode(kind: type[RecordT], entry: Entry) -> Versioned[RecordT]:
    try:
        return Versioned(msgspec.json.decode(entry.value, type=kind), entry.version)
    except msgspec.MsgspecError as error:
        raise Damaged(f"metadata key {entry.key}: {error}") from error


def volume_key(name: str) -> str:
    return VOLUMES + name


def device_key(device: uuid.UUID) -> str:
    return DEVICES + str(device)


def put_volume(record: VolumeRecord, version: int | None) -> Put:
    return Put(volume_key(record.name), msgspec.json.encode(record), version)


def delete_volume(record: VolumeRecord, version: int | None) -> Delete:
    return Delete(volume_key(record.name), version)


def put_device(record: DeviceRecord, version: int | None) -> Put:
    return Put(device_key(record.id), msgspec.json.encode(record), version)


async def get_volume(metadata: Metadata, name: str) -> Versioned[VolumeRecord] | None:
    entry = await metadata.get(volume_key(name))
    return None if entry is None else decode(VolumeRecord, entry)


async def list_volumes(metadata: Metadata) -> list[Versioned[VolumeRecord]]:
    return [decode(VolumeRecord, entry) for entry in (await metadata.list_prefix(VOLUMES)).entries]


async def list_devices(metadata: Metadata) -> list[Versioned[DeviceRecord]]:
    return [decode(DeviceRecord, entry) for entry in (await metadata.list_prefix(DEVICES)).entries]


async def get_or_create_cluster(metadata: Metadata, wanted: uuid.UUID | None = None) -> ClusterRecord:
    """The cluster that this metadata service is of. A new service becomes that of `wanted`, or of a new cluster."""
    entry = await metadata.get(CLUSTER_KEY)
    if entry is None:
        record = ClusterRecord(id=wanted or uuid.uuid4(), created_ns=time.time_ns())
        with contextlib.suppress(Conflict):  # somebody else was first: then it is theirs
            await metadata.commit(Put(CLUSTER_KEY, msgspec.json.encode(record), 0))
        entry = await metadata.get(CLUSTER_KEY)
        assert entry is not None
    return decode(ClusterRecord, entry).record
