"""The values of the control API as Python structs.

Each struct has the fields of the message of the same name in iomesh.proto, which documents them; iomesh.api.messages
converts between the two. `msgspec.json.encode` gives the form that `--json` prints. Times are in UTC with microseconds.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Annotated

import msgspec

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class DeviceState(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    ONLINE = "online"
    MISSING = "missing"
    FAILED = "failed"


class VolumeState(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    OPENING = "opening"
    SERVING = "serving"
    FAILED = "failed"
    DELETING = "deleting"
    READ_ONLY = "read-only"
    ELSEWHERE = "elsewhere"


class Scrub(msgspec.Struct, frozen=True, kw_only=True):
    running: bool = False
    done_bytes: int = 0
    pass_bytes: int = 0
    ended_at: Time | None = None
    verified_bytes: int = 0
    damaged_blocks: int = 0


class Device(msgspec.Struct, frozen=True, kw_only=True):
    node: str = ""
    id: str
    path: str
    tier: str
    label: str
    size_bytes: int
    free_bytes: int = 0
    reserve_bytes: int = 0
    replicas: int = 0
    volatile_cache: bool = False
    state: DeviceState = DeviceState.ONLINE
    reason: str = ""
    created_at: Time | None = None
    cluster: str = ""
    scrub: Scrub = Scrub()
    number: int = 0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    replicas: int = 1
    window_seconds: int = 0


class Export(msgspec.Struct, frozen=True, kw_only=True):
    protocol: str
    uris: list[str]
    read_only: bool = False
    connections: int = 0


class Space(msgspec.Struct, frozen=True, kw_only=True):
    mapped_bytes: int = 0
    exclusive_bytes: int = 0
    shared_bytes: int = 0
    inherited_bytes: int = 0
    snapshots_bytes: int = 0
    pinned_bytes: int = 0
    map_bytes: int = 0
    log_bytes: int = 0
    ahead_bytes: int = 0
    dead_bytes: int = 0
    physical_bytes: int = 0
    amplification: float = 0.0


class Flattening(msgspec.Struct, frozen=True, kw_only=True):
    running: bool = False
    total_bytes: int = 0
    done_bytes: int = 0
    reason: str = ""


class Redundancy(msgspec.Struct, frozen=True, kw_only=True):
    exposed_segments: int = 0
    exposed_bytes: int = 0
    rebuilt_segments: int = 0
    rebuilt_bytes: int = 0
    bytes_per_second: int = 0
    eta_seconds: float = 0.0
    reason: str = ""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    id: str
    size_bytes: int
    segment_bytes: int
    epoch: int
    owner: str
    state: VolumeState
    reason: str = ""
    policy: Policy
    created_at: Time | None = None
    exports: list[Export] = []
    live_bytes: int = 0
    log_bytes_since_checkpoint: int = 0
    segments: int = 0
    sequence: int = 0
    reactor: int = 0
    recovery_seconds: float = 0.0
    recovery_bytes: int = 0
    snapshots: int = 0
    clone_of: str = ""
    space: Space = Space()
    window_from: Time | None = None
    flattening: Flattening = Flattening()
    warnings: list[str] = []
    replica_nodes: list[str] = []
    generation: int = 0
    export_nodes: list[str] = []
    forwarding_nodes: list[str] = []
    redundancy: Redundancy = Redundancy()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    volume: str
    volume_id: str = ""
    name: str
    id: str
    sequence: int
    created_at: Time
    size_bytes: int
    parent: str = ""
    hidden: bool = False
    deleting: bool = False
    clones: int = 0
    new_bytes: int = 0
    exports: list[Export] = []
    mapped_bytes: int = 0


class ChangedRange(msgspec.Struct, frozen=True, kw_only=True):
    offset: int
    length: int
    zero: bool = False


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    ranges: list[ChangedRange] = []
    next: int = 0
    nodes: int = 0


class MembershipState(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    RUNNING = "running"
    DOWN = "down"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    id: str = ""
    state: MembershipState
    control_address: str = ""
    peer_address: str = ""
    host: str = ""
    version: str = ""
    started_at: Time | None = None
    devices: int = 0
    draining: bool = False


class Verdict(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class Reason(msgspec.Struct, frozen=True):
    verdict: Verdict
    kind: str
    node: str = ""
    volume: str = ""
    message: str = ""


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    cluster: str
    verdict: Verdict
    reasons: list[Reason] = []
    nodes: list[Node] = []
    volumes: int = 0
    capacity_bytes: int = 0
    free_bytes: int = 0


class OperationState(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A google.rpc.Status. kind: name of the error (docs/api.md, "Errors")."""

    kind: str
    message: str
    exit_code: int


class RestoreVolumeResponse(msgspec.Struct, frozen=True, kw_only=True):
    before: str = ""
    at: Time | None = None


class DeleteSnapshotResponse(msgspec.Struct, frozen=True, kw_only=True):
    hidden: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    subject: str
    volume_id: str = ""
    state: OperationState
    node: str = ""
    started_at: Time | None = None
    ended_at: Time | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    waits_for: str = ""
    error: Failure | None = msgspec.field(default=None, name="failure")  # with --json, `error` is that of the command
    restored: RestoreVolumeResponse | None = None
    deleted: DeleteSnapshotResponse | None = None


class ChangeKind(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    CURRENT = "current"
    SYNCED = "synced"
    CHANGED = "changed"
    REMOVED = "removed"


class WatchEvent(msgspec.Struct, frozen=True, kw_only=True):
    kind: ChangeKind
    node: Node | None = None
    volume: Volume | None = None
    operation: Operation | None = None


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    id: str
    expires_at: Time


class NodeState(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"


class BackgroundTask(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    up: bool
    restarts: int
    reason: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    cluster: str
    version: str
    process_id: int
    started_at: Time
    ready: bool
    reactors: int
    control_address: str
    metrics_address: str
    nbd_addresses: list[str]
    capacity_bytes: int
    free_bytes: int
    volumes: int
    devices: int
    warnings: list[str]
    state: NodeState = NodeState.UNSPECIFIED
    step: str = ""
    steps_done: int = 0
    steps: int = 0
    progress: str = ""
    problems: list[str] = []
    tasks: list[BackgroundTask] = []


class Bucket(msgspec.Struct, frozen=True):
    upper_ns: int
    count: int


class Latency(msgspec.Struct, frozen=True):
    buckets: list[Bucket] = []

    @property
    def count(self) -> int:
        return sum(bucket.count for bucket in self.buckets)

    def since(self, before: Latency) -> Latency:
        """The observations after `before` was read."""
        seen = {bucket.upper_ns: bucket.count for bucket in before.buckets}
        left = (Bucket(bucket.upper_ns, bucket.count - seen.get(bucket.upper_ns, 0)) for bucket in self.buckets)
        return Latency([bucket for bucket in left if bucket.count > 0])

    def quantile(self, share: float) -> int:
        """The latency in nanoseconds that this share of the observations stayed within (to the width of a bucket); 0
        without observations."""
        wanted, seen = share * self.count, 0
        for bucket in self.buckets:
            seen += bucket.count
            if seen >= wanted:
                return bucket.upper_ns
        return 0


class VolumeCounters(msgspec.Struct, frozen=True, kw_only=True):
    volume: str
    counters: dict[str, int]
    latencies: dict[str, Latency]
    connections: int = 0


class ReactorCounters(msgspec.Struct, frozen=True, kw_only=True):
    reactor: int
    counters: dict[str, int]


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    monotonic_ns: int
    volumes: list[VolumeCounters]
    reactors: list[ReactorCounters]
    devices: list[Device]
