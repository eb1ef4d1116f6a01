"""The records under each key, as JSON. docs/metadata.md describes every field.

A reader ignores unknown fields. A change of meaning raises the `format` of its kind of record: a reader refuses unknown
formats, newer and older, so that none is misread. A refused record affects only the volume, device or other object that
it describes.
"""

from __future__ import annotations

import contextlib
import enum
import time
import uuid
from typing import ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from iomesh.errors import Conflict, Damaged, IomeshError, Unsupported
from iomesh.metadata.protocol import Entry, Metadata, Put

CLUSTER_KEY = "cluster"
DEVICE_NUMBERS_KEY = "numbers/devices"
VOLUMES = "volumes/"
LOGS = "logs/"
NAMES = "names/"
DEVICES = "devices/"
MEMBERS = "members/"
TOKENS = "tokens/"
OPERATIONS = "operations/"

FRAGMENTS = 1024  # numbers of fragments that the owner of a log gets when it opens the log
PROMISE = 1024  # segment numbers that the owner of a log gets ahead: a crash costs no more of them
SEGMENT_NUMBER_MAX = 2**32 - 2


class Lifecycle(enum.StrEnum):
    """The intended state of a volume: making -> ready -> deleting -> (no record), or ready -> hidden -> deleting if it
    was deleted while it had clones. What its owner is currently doing with it is the node's state."""

    MAKING = "making"
    READY = "ready"
    HIDDEN = "hidden"
    DELETING = "deleting"


class CheckpointPointer(msgspec.Struct, frozen=True, kw_only=True):
    segment: int
    block: int
    crc: int
    sequence: int  # of the last record that it covers


class FragmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a volume's log that is written to one replica set (docs/ownership.md)."""

    number: int
    first: int  # record; it ends before the first one of any later fragment
    devices: list[int]  # of the replica set: their numbers in the cluster


class PolicyRecord(msgspec.Struct, frozen=True, kw_only=True):
    replicas: int = 1
    window_seconds: int = 0  # any second within that time can be restored; 0: there is no restore window


class ExportRecord(msgspec.Struct, frozen=True, kw_only=True):
    protocol: str
    read_only: bool = False


class SnapshotExportRecord(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: uuid.UUID
    protocol: str


class CloneRecord(msgspec.Struct, frozen=True, kw_only=True):
    volume: uuid.UUID
    snapshot: uuid.UUID
    name: str  # of both when the clone was created, VOLUME@SNAPSHOT or VOLUME@POINT-IN-TIME: for people
    at_ns: int = (
        0  # Unix time of the point in time; `snapshot` is the restore point before it. 0: a clone of the snapshot
    )
    until_ns: int = 0  # log time up to which the log is rolled forward from that restore point


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """volumes/<id>: the intended state of the volume. Any node may change it."""

    FORMAT: ClassVar[int] = 2

    format: int = FORMAT
    id: uuid.UUID
    name: str
    node: str  # that creates and deletes it
    size_bytes: int
    segment_bytes: int
    state: Lifecycle = Lifecycle.READY
    policy: PolicyRecord = PolicyRecord()
    exports: list[ExportRecord] = []
    snapshot_exports: list[SnapshotExportRecord] = []
    generation: int = 1  # of what its users asked for (SPEC); raised by one with each change of it
    flattening: bool = False  # a clone that is becoming independent of its parent
    created_ns: int  # Unix time


SPEC = ("size_bytes", "policy", "exports", "snapshot_exports", "flattening")  # fields that users change


def next_generation(before: VolumeRecord, after: VolumeRecord) -> VolumeRecord:
    """`after` with the generation that a change from `before` gives it."""
    changed = any(getattr(before, name) != getattr(after, name) for name in SPEC)
    return msgspec.structs.replace(after, generation=before.generation + changed)


class LogRecord(msgspec.Struct, frozen=True, kw_only=True):
    """logs/<id>: the state of the volume's log. Only its owner changes it, or a node that takes it over by raising the
    epoch."""

    FORMAT: ClassVar[int] = 2

    format: int = FORMAT
    id: uuid.UUID
    epoch: int  # of the owner's right; raised each time the log is opened; 0: never opened
    owner: str  # name of a node
    incarnation: uuid.UUID | None = None  # of the owner's daemon that opened the log last; None: it was never opened
    offered_to: str = ""  # the owner has closed the log, and this node is to open it; empty: none is
    isolated: bool = (
        False  # its owner reaches too few nodes to serve it: another one takes it over if it reaches enough
    )
    checkpoint: CheckpointPointer | None = None  # None: recovery starts with the first segment of the log
    clone_of: CloneRecord | None = None
    promised: int  # the owner numbers segments up to this one: the next owner begins above
    fragments: list[FragmentRecord] = []  # from the checkpoint on, oldest first; the last is the current one
    next_fragment: int = 1  # the owner numbers fragments below this one: the next owner begins with it


class NameRecord(msgspec.Struct, frozen=True, kw_only=True):
    """names/<name>: the volume that has the name."""

    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    volume: uuid.UUID


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True):
    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    id: uuid.UUID
    node: str
    path: str  # where it was last seen
    tier: str
    label: str
    size_bytes: int
    number: int = 0  # in the cluster, as in its superblock; 0: none yet


class DeviceNumbersRecord(msgspec.Struct, frozen=True, kw_only=True):
    """numbers/devices: see iomesh.metadata.numbers."""

    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    last: int  # the highest number that was given to a device


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True):
    """members/<name>: a node that has joined the cluster, whether it runs or not."""

    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    name: str
    token: uuid.UUID | None = None  # with which it joined; None: it made the cluster
    joined_ns: int  # Unix time
    key: str = ""  # SHA-256 of the public key of its certificate, in hexadecimal; empty: not known
    removed_ns: int = 0  # since when its certificate is refused, and its name is free; 0: it is one of the cluster
    draining: bool = False  # it gives its volumes and copies to other nodes


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """tokens/<id>: a join token. Its secret is not stored anywhere."""

    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    id: uuid.UUID
    expires_ns: int  # Unix time
    used_by: str = ""  # the node that joined with it; empty: none has
    used_ns: int = 0


class OperationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """operations/<id>: work that a client has asked for, until a day after its end. The node that follows it changes
    it, or one that adopts it because that node is lost."""

    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    id: uuid.UUID
    request: bytes  # a StartOperationRequest of the control API
    subject: str  # for people
    volume: uuid.UUID | None = None
    node: str  # that follows it
    incarnation: uuid.UUID  # of its daemon
    started_ns: int  # Unix time
    ended_ns: int = 0  # 0: it is under way
    error: bytes = b""  # a google.rpc.Status; empty: none
    response: bytes = b""  # the call's answer


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """cluster: the first record that is read. Its format is also that of the keys: 1 had volumes by name, 2 has them by
    id."""

    FORMAT: ClassVar[int] = 2

    format: int = FORMAT
    id: uuid.UUID
    created_ns: int


RecordT = TypeVar(
    "RecordT",
    VolumeRecord,
    LogRecord,
    NameRecord,
    DeviceRecord,
    DeviceNumbersRecord,
    ClusterRecord,
    MemberRecord,
    TokenRecord,
    OperationRecord,
)


class Versioned(NamedTuple, Generic[RecordT]):
    record: RecordT
    version: int


class _Header(msgspec.Struct):
    format: int


class Glimpse(msgspec.Struct):
    """What is known of an unreadable record, for people: nothing depends on it."""

    name: str = ""
    node: str = ""
    path: str = ""
    label: str = ""


def decode(kind: type[RecordT], entry: Entry) -> Versioned[RecordT]:
    """Raises Unsupported (a format unknown to this version of iomesh), Damaged (not such a record at all)."""
    try:
        header = msgspec.json.decode(entry.value, type=_Header)
        if header.format == kind.FORMAT:
            return Versioned(msgspec.json.decode(entry.value, type=kind), entry.version)
    except msgspec.MsgspecError as error:
        raise Damaged(f"metadata key {entry.key}: {error}") from error
    if header.format > kind.FORMAT:
        raise Unsupported(
            f"metadata key {entry.key} has format {header.format}, and this version knows formats up to {kind.FORMAT}: "
            "a newer version wrote it; update this node"
        )
    raise Unsupported(
        f"metadata key {entry.key} has format {header.format} of an earlier version, which this one does not read (it "
        f"reads {kind.FORMAT}): use the version that wrote it, or start over with an empty metadata service and "
        "formatted devices"
    )


def glimpse(entry: Entry) -> Glimpse:
    try:
        return msgspec.json.decode(entry.value, type=Glimpse)
    except msgspec.MsgspecError:
        return Glimpse()


def promised_from(segment: int) -> int:
    """The promise of an owner that needs numbers of segments from this one on."""
    return min(segment + PROMISE - 1, SEGMENT_NUMBER_MAX)


def minimum_replicas(replicas: int) -> int:
    """With fewer members answering, nothing is written: 1 of 1 or 2, 2 of 3 or 4."""
    return (replicas + 1) // 2


def fragments_from(fragments: list[FragmentRecord], sequence: int) -> list[FragmentRecord]:
    """Those that may have records after `sequence`, a checkpoint's, or that record itself."""
    return [
        fragment
        for at, fragment in enumerate(fragments)
        if at == len(fragments) - 1 or min(later.first for later in fragments[at + 1 :]) > sequence
    ]


def volume_key(volume: uuid.UUID) -> str:
    return VOLUMES + str(volume)


def log_key(volume: uuid.UUID) -> str:
    return LOGS + str(volume)


def name_key(name: str) -> str:
    return NAMES + name


def device_key(device: uuid.UUID) -> str:
    return DEVICES + str(device)


def put_volume(record: VolumeRecord, version: int | None) -> Put:
    return Put(volume_key(record.id), msgspec.json.encode(record), version)


def put_log(record: LogRecord, version: int | None) -> Put:
    return Put(log_key(record.id), msgspec.json.encode(record), version)


def put_name(name: str, volume: uuid.UUID, version: int | None) -> Put:
    return Put(name_key(name), msgspec.json.encode(NameRecord(volume=volume)), version)


def member_key(name: str) -> str:
    return MEMBERS + name


def token_key(token: uuid.UUID) -> str:
    return TOKENS + str(token)


def operation_key(operation: uuid.UUID) -> str:
    return OPERATIONS + str(operation)


def put_operation(record: OperationRecord, version: int | None) -> Put:
    return Put(operation_key(record.id), msgspec.json.encode(record), version)


def put_member(record: MemberRecord, version: int | None) -> Put:
    return Put(member_key(record.name), msgspec.json.encode(record), version)


def put_token(record: TokenRecord, version: int | None) -> Put:
    return Put(token_key(record.id), msgspec.json.encode(record), version)


def put_device(record: DeviceRecord, version: int | None) -> Put:
    return Put(device_key(record.id), msgspec.json.encode(record), version)


def put_device_numbers(record: DeviceNumbersRecord, version: int) -> Put:
    return Put(DEVICE_NUMBERS_KEY, msgspec.json.encode(record), version)


async def get_volume(metadata: Metadata, volume: uuid.UUID) -> Versioned[VolumeRecord] | None:
    entry = await metadata.get(volume_key(volume))
    return None if entry is None else decode(VolumeRecord, entry)


async def get_log(metadata: Metadata, volume: uuid.UUID) -> Versioned[LogRecord] | None:
    entry = await metadata.get(log_key(volume))
    return None if entry is None else decode(LogRecord, entry)


async def get_name(metadata: Metadata, name: str) -> Versioned[NameRecord] | None:
    entry = await metadata.get(name_key(name))
    return None if entry is None else decode(NameRecord, entry)


class UnreadableDevice(NamedTuple):
    id: uuid.UUID | None  # None: not even the key is a device's
    seen: Glimpse
    reason: str


async def list_devices(metadata: Metadata) -> tuple[list[Versioned[DeviceRecord]], list[UnreadableDevice]]:
    """The devices with readable records, and the others."""
    devices, unreadable = [], []
    for entry in (await metadata.list_prefix(DEVICES)).entries:
        try:
            devices.append(decode(DeviceRecord, entry))
        except IomeshError as error:
            unreadable.append(UnreadableDevice(id_of(entry.key), glimpse(entry), error.message))
    return devices, unreadable


def id_of(key: str) -> uuid.UUID | None:
    """None: the key does not end in an id as this version of iomesh writes them."""
    text = key.rpartition("/")[2]
    with contextlib.suppress(ValueError):
        if str(uuid.UUID(text)) == text:
            return uuid.UUID(text)
    return None


async def get_or_create_cluster(metadata: Metadata, wanted: uuid.UUID | None = None) -> ClusterRecord:
    """The cluster of this metadata service. A new service gets the cluster `wanted`, or a new one. Raises Unsupported
    if its contents are in the formats of another version of iomesh."""
    entry = await metadata.get(CLUSTER_KEY)
    if entry is None:
        record = ClusterRecord(id=wanted or uuid.uuid4(), created_ns=time.time_ns())
        with contextlib.suppress(Conflict):  # another process was first: then its cluster counts
            await metadata.commit(Put(CLUSTER_KEY, msgspec.json.encode(record), 0))
        entry = await metadata.get(CLUSTER_KEY)
        assert entry is not None
    return decode(ClusterRecord, entry).record
