"""What commands print with `--json`: one type for each document. A command names its type (`@asks(Volume)`), and the
JSON Schema of docs/cli-schema.json is written from these types (tools/generate_schema.py), so that there is one place
where a document is described.

Always so: keys are only ever added. Times are RFC 3339 in UTC, durations have their unit in their name. What the
control API answers with is printed as it is (iomesh.api.model).
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from iomesh.api.model import (
    ChangedRange,
    ClusterStatus,
    Device,
    Export,
    Node,
    Operation,
    Snapshot,
    Status,
    Time,
    Volume,
)


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    message: str
    exit_code: int


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """Instead of the document of any command that fails."""

    error: ErrorDetails


# devices


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    devices: list[Device]


class RemovedDevice(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    removed: Literal[True] = True


# volumes


class VolumeList(msgspec.Struct, frozen=True, kw_only=True):
    volumes: list[Volume]


class ChangedVolume(Volume, frozen=True, kw_only=True):
    """operation: the id of the one that changes it, or has changed it."""

    operation: str


class RestoredVolume(msgspec.Struct, frozen=True, kw_only=True):
    """at: the restored point in time, if it was one. before: the snapshot of the previous state; empty: discarded, or
    the restore is under way. operation: its id."""

    volume: str
    snapshot: str
    at: Time | None
    before: str
    operation: str = ""


class DeletedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """deleted: false while it is under way. operation: its id."""

    name: str
    deleted: bool
    operation: str = ""


class ExportedVolume(Export, frozen=True, kw_only=True):
    name: str


class UnexportedVolume(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    exported: Literal[False] = False


class CheckpointedVolume(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    checkpoint: Literal[True] = True


# snapshots


class SnapshotList(msgspec.Struct, frozen=True, kw_only=True):
    snapshots: list[Snapshot]


class DeletedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """deleted: false while it is under way. hidden: it stays, hidden, while a clone or the volume needs it. operation:
    its id."""

    volume: str
    name: str
    deleted: bool
    hidden: bool
    operation: str = ""


class ExportedSnapshot(Export, frozen=True, kw_only=True):
    volume: str
    name: str


class UnexportedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    volume: str
    name: str
    exported: Literal[False] = False


class ChangedRanges(msgspec.Struct, frozen=True, kw_only=True):
    """of: the older snapshot. to: the newer one; empty: the volume as it is now."""

    volume: str
    of: str = msgspec.field(name="from")
    to: str
    ranges: list[ChangedRange]


# operations


class OperationList(msgspec.Struct, frozen=True, kw_only=True):
    operations: list[Operation]


# the cluster


class ClusterMember(msgspec.Struct, frozen=True, kw_only=True):
    """directory: of the node's certificates and keys."""

    cluster: str
    node: str
    directory: str


class ClientCertificate(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    directory: str
    expires_at: Time


class NodeList(msgspec.Struct, frozen=True, kw_only=True):
    nodes: list[Node]


class DrainedNode(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    draining: bool
    copies: int  # of segments that are left on its devices; 0 unless they were waited for


class RemovedNode(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    removed: Literal[True] = True


# the node

Health = Literal["ready", "starting", "stopping", "degraded", "failed"]


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """cluster: of all nodes together; null while the node starts or stops. health: of this node, the worst of all;
    problems: what is wrong, in words. Devices and volumes are empty early in a start."""

    cluster: ClusterStatus | None = None
    health: Health
    problems: list[str]
    node: Status
    devices: list[Device]
    volumes: list[Volume]


class LatencySample(msgspec.Struct, frozen=True):
    """Of the operations that ended in the interval."""

    count: int = 0
    p50_ns: int = 0
    p99_ns: int = 0
    p999_ns: int = 0


class VolumeSample(msgspec.Struct, frozen=True, kw_only=True):
    """One volume in one interval. log_bytes_per_second: appended to its log, headers and map included."""

    volume: str
    clients: int
    read_iops: float
    write_iops: float
    flush_iops: float
    trim_iops: float
    read_bytes_per_second: float
    written_bytes_per_second: float
    log_bytes_per_second: float
    records_per_second: float
    errors_per_second: float
    read_latency: LatencySample
    write_latency: LatencySample
    flush_latency: LatencySample


class ReactorSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reactor in one interval. volumes: that live on it; busy: share of the time; map_hits: hit rate of its map
    cache, None without look-ups."""

    reactor: int
    volumes: int
    busy: float
    map_frames: int
    map_used: int
    map_dirty: int
    map_hits: float | None


class NodeSample(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float
    volumes: list[VolumeSample]
    reactors: list[ReactorSample]
    capacity_bytes: int
    free_bytes: int


# a trial


class ListedTrialNode(msgspec.Struct, frozen=True, kw_only=True):
    """pid: null while the daemon does not run."""

    name: str
    pid: int | None
    state: Literal["running", "cut", "paused", "stopped"]
    control: str
    config: str
    log: str
    devices: list[str]


class ListedTrialVolume(msgspec.Struct, frozen=True, kw_only=True):
    """owner: the node that serves it at present; null: none does. uri: on that node; null: it is not exported."""

    name: str
    size: int
    uri: str | None
    owner: str | None


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """How long the recovery of a volume took, and how much of its log it read."""

    volume: str
    seconds: float
    bytes: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """volumes: that of `trial up` first."""

    directory: str
    nodes: list[ListedTrialNode]
    volumes: list[ListedTrialVolume]
    cluster: str


class StartedTrial(Trial, frozen=True, kw_only=True):
    start_seconds: float
    recovered: list[Recovered]


class TrialEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    environment: dict[str, str]


class RemovedTrial(msgspec.Struct, frozen=True, kw_only=True):
    directory: str
    removed: Literal[True] = True


# devices at rest; bytes are hexadecimal


class Structure(TypedDict):
    """A structure of docs/formats.md: beside these keys it has its fields under their names there; `created_ns` is
    shown as `created_at`; a record has its log time as `log_time`, and what the wall clock showed as `written_at`. One
    that is damaged may lack fields."""

    valid: bool
    fault: NotRequired[str | None]
    at: NotRequired[str]  # SEGMENT:BLOCK
    offset: NotRequired[int]  # on the device
    payload_faults: NotRequired[list[str]]


class Superblocks(TypedDict):
    """current: offset of the one that counts; null: none is valid."""

    device: str
    current: int | None
    superblocks: list[Structure]


class JournalArea(TypedDict):
    area: int
    name: str
    blocks: list[Structure]


class JournalDocument(TypedDict):
    device: str
    areas: list[JournalArea]


class ReplicaDocument(TypedDict):
    """A segment's copy on the device. extents: first slab and number of slabs. live: the blocks that compaction
    kept."""

    volume: str
    segment: int
    state: str | int
    epoch: int
    stream: int
    blocks: int
    footer_block: int
    extents: list[tuple[int, int]]
    slab_blocks: int
    live: int


class DirectoryDocument(TypedDict):
    """half: of the journal, the one that counts; null: none is valid."""

    device: str
    half: int | None
    generation: int
    journal_blocks: int
    notes: list[str]
    segments: list[ReplicaDocument]
    slabs: int
    slabs_taken: int


class CompactedBlock(TypedDict):
    """A payload block that the footer of a compacted segment lists."""

    at: str  # SEGMENT:BLOCK
    block: int
    kind: str | int
    position: int
    count: int
    flags: int
    crc: int
    level: NotRequired[int]  # of a map node, and its index
    index: NotRequired[int]
    state: Literal["live", "dropped"]
    fault: str | None


class Compacted(TypedDict):
    """fault: of its bitmap. live_blocks: with the footer's own. blocks: those that the footer lists."""

    fault: str | None
    live_blocks: int
    dropped_blocks: int
    blocks: list[CompactedBlock]


class Segment(TypedDict):
    """ends: SEGMENT:BLOCK behind the last record, if nothing was written there yet. compacted: null if it is not; if it
    is, it has no records."""

    device: str
    segment: ReplicaDocument
    records: list[Structure]
    ends: str | None
    footer: Structure | None
    compacted: Compacted | None


class MapNodes(TypedDict):
    device: str
    nodes: list[Structure]


OPEN = (Structure,)  # types with more keys than are listed here


def schema(documents: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of documents, by command: {"volume list": VolumeList} gives "properties" with that name, and
    "$defs"."""
    (*found, error), components = msgspec.json.schema_components(
        [*documents.values(), Error], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What iomesh prints with --json, by command; with an error, `error`",
        "type": "object",
        "properties": dict(zip(documents, found, strict=True)) | {"error": error},
        "$defs": components,
    }
