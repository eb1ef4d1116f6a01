"""The engine of one node: reactors, stores, volumes and data connections, compiled and off the GIL.

This is the only module of the engine that Python imports. Nothing here blocks: a method that starts a command returns a
ticket (an int) at once. `collect()` returns the outcome later; call it whenever `fileno()` is readable. All methods
must be called from one thread.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES: int                # 4096
SEGMENT_BYTES_MIN: int
SEGMENT_BYTES_MAX: int
VOLUME_BYTES_MAX: int
SEGMENT_NUMBER_MAX: int
DEVICE_BYTES_MIN: int           # a smaller device is refused
REPLICAS_MAX: int  # of a volume
PEER_CREDIT_REQUESTS: int  # of a connection that this node serves: requests without a reply, ...
PEER_CREDIT_BYTES: int  # ... and the bytes of their payloads
COUNTER_NAMES: tuple[str, ...]          # of a volume, see Engine.counters
HISTOGRAM_NAMES: tuple[str, ...]        # "read_latency", "write_latency", "flush_latency"
HISTOGRAM_BUCKETS: int
TIERS: Mapping[str, int]                # "nvme", "ssd", "hdd" -> the number in a superblock

class Pointer(NamedTuple):
    """Where a block lies in a volume's log, and its CRC32C."""
    segment: int
    block: int
    crc: int

SNAPSHOTS_MAX: int
POINTER_REFUSED: int
POINTER_DONE: int
POINTER_UNKNOWN: int
SEGMENT_ROW: np.dtype[Any]
COPIES_ROW: np.dtype[Any]
SEALED_ROW: np.dtype[Any]

class Answer(NamedTuple):
    """The outcome of a ticket: error is 0 or a positive errno, reason explains it to people, value depends on the
    command."""
    ticket: int
    error: int
    reason: str
    value: Any

class Event(NamedTuple):
    """Something that happened without a command.

    kind "checkpoint": the volume wrote one; `value` is {"pointer": Pointer, "sequence": int, "size_bytes": int,
    "next_segment": int}. Move the volume's pointer in the metadata service, and raise the promise of segment numbers
    above next_segment with it; then call checkpoint_moved. "numbers" {"next_segment"}: few numbers are left; raise the
    promise, then call checkpoint_moved with sequence 0.

    To be logged: "checksum" {"segment", "block", "offset_bytes"}; "device" {"store", "error"}; "no_space" {}: writes
    wait for the cleaner; "refused" {}: a write has since failed with ENOSPC. Not to be logged: "tight" {}: a segment
    was opened while space is tight; clean one before the next. Of no
    volume: "stalled" {"store"}: the store's device has not answered a request in time; "full_below" and "space_below"
    {"store"}: the storage under the device has no space, or has some again.
    """
    kind: str
    volume: bytes | None
    value: dict[str, Any]

class EngineError(Exception):
    """The engine cannot run here; the message says what is missing and what to do."""

@final
class Engine:
    warnings: Sequence[str]     # what is unavailable, each with its remedy (locked memory, IOPOLL, ...)

    def __init__(
        self,
        *,
        reactors: int = 1,
        mode: Literal["adaptive", "busy", "sleep"] = "adaptive",
        poll_microseconds: int = 50,
        map_cache_bytes: int = 256 << 20,
        checkpoint_bytes: int = 1 << 30,
        iopoll: bool = False,
        register_buffers: bool = True,
        request_timeout_seconds: float = 30.0,
        space_below_wait_seconds: float = 5.0,
    ) -> None:
        """map_cache_bytes: for the whole node, divided evenly among the reactors. checkpoint_bytes: log written between
        two checkpoints of a volume. request_timeout_seconds: a device that has not answered a request for so long has
        failed. space_below_wait_seconds: how long writes wait for space in the storage under the devices. Raises
        EngineError (io_uring is missing, disabled or too old), ValueError."""
    def start(self) -> None: ...
    def stop(self) -> None:
        """End the reactors' threads at once, as a crash would: close volumes first. Open tickets are never answered."""
    def fileno(self) -> int:
        """An eventfd: readable when collect() has something to return."""
    def collect(self) -> list[Answer | Event]: ...

    # stores
    def format_store(self, fd: int, *, cluster: bytes, device: bytes, device_bytes: int, tier: int, label: str) -> int:
        """Write an empty store. fd: O_RDWR | O_DIRECT; the caller keeps it open until the answer. Answers None."""
    def open_store(self, fd: int, *, cluster: bytes | None, volatile_cache: bool) -> int:
        """fd: O_RDWR | O_DIRECT; the caller keeps it open until close_store is answered. cluster: refuse a device of
        any other cluster (None: accept all). Answers {"store": int, "cluster": bytes, "device": bytes, "tier": int,
        "label": str, "device_bytes": int, "created_ns": int, "number": int (in the cluster; 0: none yet), "repaired":
        list[str]}. EUCLEAN: damaged; EMEDIUMTYPE: not
        an iomesh device, or of another cluster; EPROTONOSUPPORT: a newer format."""
    def number_device(self, store: int, number: int) -> int:
        """Write the device's number in its cluster to its superblocks. Answers None. EEXIST: it has another number."""
    def close_store(self, store: int) -> int:
        """EBUSY while a volume is open. Answers None."""
    def store_space(self, store: int) -> dict[str, int]:
        """Returns {"slabs", "free_slabs", "reserve_slabs", "slab_bytes", "replicas", "failed", "flush_failed",
        "stalled"} at once,
        without a ticket. failed: an errno; the store is read-only until it is opened again. flush_failed: the errno of
        a failed flush. stalled: ETIMEDOUT if the device did not answer a request in time."""

    # volumes; open all stores of the node before the first volume
    def open_volume(
        self,
        volume: bytes,
        *,
        size_bytes: int,
        epoch: int,
        segment_bytes: int,
        checkpoint: Pointer | None,
        first_segment: int,
        promised: int,
        clone_of: tuple[bytes, bytes] | None = None,
        name: bytes = b"",
        window_seconds: int = 0,
        replicas: int = 1,
        minimum: int = 1,
        fragments: Sequence[tuple[int, int, Sequence[int]]] = (),
        first_fragment: int = 1,
        reactor: int | None = None,
    ) -> int:
        """Recover the volume's log and serve it. epoch: higher than that of every earlier owner. Answers
        {"replayed_bytes": int, "replayed_records": int, "seconds": float, "sequence": int, "reactor": int}. EUCLEAN:
        the log is damaged; reason gives the place. name (UTF-8), window_seconds, replicas: stored in each checkpoint,
        so that the devices describe their volumes. first_segment, promised: segments get numbers from the former on (or
        higher, after those that exist), and none above the latter, see checkpoint_moved.

        reactor: the one that the volume lives on until it is closed; None: the one with the fewest volumes. A clone is
        opened on its parent's, whatever this says.

        clone_of: (volume, snapshot). Blocks that the log has not changed are read from that snapshot; its volume must
        be open (ENOENT). The caller must not delete the snapshot or its volume before the clone."""
    def close_volume(self, volume: bytes, *, checkpoint: bool) -> int:
        """End the volume's connections, write a checkpoint if requested (its Event needs checkpoint_moved as usual),
        free the volume. Waits until its clones are closed. Answers None."""
    def checkpoint(self, volume: bytes, *, renew: bool = False) -> int:
        """Answers None once the checkpoint is written and the pointer has moved. Joins a running checkpoint. renew:
        also if nothing has changed since the last one."""
    def checkpoint_moved(self, volume: bytes, sequence: int, outcome: int, promised: int) -> None:
        """The metadata service's answer. POINTER_DONE; POINTER_REFUSED: another owner has the volume, the log accepts
        no more writes; POINTER_UNKNOWN, any number of times before one of the other two: the update is being retried,
        the volume stays in service, and commands that wait for the checkpoint fail with EHOSTUNREACH. No effect if the
        volume has been closed. promised: with POINTER_DONE, the highest segment number that the service holds as
        promised; once it is used up, new segments wait for a higher one. sequence 0: only that was asked for."""
    def fragment_agreed(self, volume: bytes, number: int, outcome: int) -> None:
        """The outcome of the update that an event "fragment" asks for (POINTER_*). DONE: its records may commit.
        REFUSED: the volume has another owner, and its log fails. UNKNOWN: its log fails if the volume is being
        closed."""
    def tend_members(self, volume: bytes) -> None:
        """While nothing is written to a volume with replicas, its log gives up members that do not answer, and takes
        those in that are back. No effect if the volume is not open."""
    def reconcile(self, volume: bytes, node: str) -> int:
        """A node is back: what it has of the volume's sealed segments counts as copies again, and what the volume does
        not need is removed there. Answers None. ECONNRESET: it is not attached."""
    def erase_copies(self, volume: bytes, node: str, *, epoch: int) -> int:
        """Remove what another node has of a volume that is not open. Answers {"segments": int}. ECONNRESET: the node is
        not attached; ESTALE: it knows a higher epoch."""
    def grow_volume(self, volume: bytes, size_bytes: int) -> int: ...
    def describe_volume(self, volume: bytes, *, name: bytes, window_seconds: int, replicas: int) -> int:
        """Change what open_volume was told: the next checkpoint has it. Answers None."""
    def erase_volume(self, volume: bytes) -> int:
        """Delete every segment of a volume from all stores; the volume must not be open. Answers {"segments": int}."""
    def volume_state(self, volume: bytes) -> dict[str, Any]:
        """Returns {"size_bytes", "sequence", "stable", "segments", "live_blocks", "mapped_blocks", "exclusive_blocks",
        "inherited_blocks", "head_parent" (id of the snapshot that the head is based on, or None), "map_root",
        "connections", "log_bytes_since_checkpoint", "no_space" (writes wait or fail), "space_is_coming" (they wait),
        "awaits_numbers" (they wait for the metadata service), "reactor", ...}, all of one moment: read by its reactor
        between two operations, while the caller waits."""
    def space(self, volume: bytes) -> int:
        """Answers the volume's space usage by purpose, at one point in time (docs/space.md): {"mapped_bytes", of these
        "exclusive_bytes", "shared_bytes", "inherited_bytes" (in the logs of a clone's parents); "snapshots_bytes",
        "pinned_bytes", "map_bytes", "log_bytes", "ahead_bytes", "dead_bytes", "physical_bytes"}."""
    def counters(self, volume: bytes) -> NDArray[np.uint64]:
        """A live view of the counters, in the order of COUNTER_NAMES."""
    def histograms(self, volume: bytes) -> NDArray[np.uint64]:
        """A live view of shape (len(HISTOGRAM_NAMES), HISTOGRAM_BUCKETS): counts by latency; see histogram_bounds."""
    def reactor_state(self, reactor: int) -> dict[str, Any]:
        """{"turns", "sleeps", "busy_ns", "map_frames", "map_used", "map_dirty", "map_hits", "map_misses", "thread_id",
        "volumes", ...}, read as with volume_state."""
    def volumes_by_reactor(self) -> list[int]:
        """How many volumes each reactor has, including those that are being opened or closed."""
    def busy_ns(self) -> list[int]:
        """How long each reactor has worked since its start; it is not disturbed by the question."""

    # flattening a clone
    def copy_inherited(self, volume: bytes, *, bytes_per_second: int = 0, share: int = 25) -> int:
        """Copy the blocks that a clone inherits into its own log, while the clone is in use, at up to bytes_per_second
        (0: no limit), and at `share` percent of that while users' requests arrive. Answers None once the head inherits
        nothing. After an error or a crash, copied blocks stay copied: call again. ENOSPC: the free space is reserved
        for users and checkpoints; EBUSY: already copying; EINVAL: not a clone."""
    def check_detached(self, volume: bytes) -> int:
        """Write a checkpoint. Answers None if neither the head nor a snapshot inherits a block; EBUSY: one does."""
    def cut_off(self, volume: bytes) -> int:
        """Release the clone's parent: from now on the volume is opened without it. Call after check_detached, and once
        the metadata service has recorded it durably. Answers None."""

    # scrub
    def sealed(self, store: int) -> int:
        """Answers the sealed segments, a structured array of SEALED_ROW: volume (16 bytes), segment, blocks (on the
        device)."""
    def scrub(self, store: int, volume: bytes, segment: int, *, bytes_per_second: int = 0, share: int = 25) -> int:
        """Read a sealed segment's replica and compare each block with its checksum, at up to bytes_per_second (0: no
        limit), and at `share` percent of that while users' requests arrive. Answers {"blocks" (good ones), "damaged",
        "first_damaged", "known" (of at most 64 damaged blocks: block, its checksum, whether it is a record's header)}.
        ENOENT: the replica was deleted, or changed during the scrub; EBUSY: the store is scrubbing
        another segment."""

    # rebuild
    def copies(self, volume: bytes) -> int:
        """Answers a structured array of COPIES_ROW, for the segments that have not as many working copies as
        the volume wants, or have others besides: segment (its number), blocks (that a copy takes on a device), devices
        (that have it: numbers in the cluster, the owner's first, 0: none), states (1 works, 2 its node does not answer,
        3 failed, 4 works and is drained), progress (0 it is not sealed yet,
        1 a checkpoint has to cover it, 2 it can be rebuilt)."""
    def rebuild_copy(self, volume: bytes, segment: int, *, device: int, source: int, rate: int) -> int:
        """`device` of another node gets the segment from `source`, another device that has it. rate: KiB per second at
        most, 0: no limit. Answers None once the copy counts. EAGAIN: not now; ENOENT: it is gone; ENODEV: a device does
        not answer; ENOSPC; ESTALE: the source has not all of it; EBADMSG: the source's copy is damaged."""
    def drop_copy(self, volume: bytes, segment: int, *, device: int) -> int:
        """Remove the copy on a device of another node. Answers None. EBUSY: without it there were fewer working copies
        than the volume wants; EAGAIN, ENOENT as above."""

    def drain_devices(self, devices: Collection[int]) -> None:
        """These of the cluster's devices, and no others, get no new segments where others can take them, and what they
        have does not count as copies."""
    def repair_blocks(self, volume: bytes, segment: int, blocks: Sequence[tuple[int, int, bool]]) -> int:
        """Get blocks of an open volume's segment from copies on other nodes: (block, its checksum, whether it is a
        record's header) each. Answers how many were found intact; they are written to this node's replica again."""
    def refetch(self, store: int, volume: bytes, segment: int, *, source: int) -> int:
        """Replace a damaged replica of a volume that is not open here by what device `source` of another node has.
        Answers None. EBUSY: the volume is open; ENOENT: no such replica is sealed here; others as of rebuild_copy."""

    # cleaning
    def segments(self, volume: bytes) -> int:
        """Answers a copy of the segment table, a structured array of SEGMENT_ROW: segment (its number), blocks, live,
        slabs, footer (its blocks), flags (1 cleanable, 2 and to be evacuated, 4 compacted, 8 kept whole for the restore
        window)."""
    def clean(
        self, volume: bytes, segments: Sequence[int] | NDArray[np.uint32], *, bytes_per_second: int = 0, share: int = 25
    ) -> int:
        """Compact these segments; evacuate those with few live blocks. Rate: up to bytes_per_second (read and written;
        0: no limit), and `share` percent of that while users' requests arrive. Answers {"compacted", "evacuated",
        "skipped" (nothing to gain), "postponed" (a snapshot is being created or deleted, or too little space is free),
        "failed", "freed_bytes" (at once), "error" (the last errno, or 0)}. If the volume is already being cleaned, the
        running rate applies to this call as well; a call without a limit lifts it for both. EBUSY: the volume is being
        restored to a snapshot."""
    def hurry_cleaning(self) -> None:
        """Lift the rate limit of all cleaning that is running."""
    def expect_space(self, volume: bytes, milliseconds: int) -> int:
        """Move the ENOSPC deadline: until then, writes without space wait for the cleaner. Answers None."""

    # snapshots
    def create_snapshots(
        self, snapshots: Sequence[tuple[bytes, bytes, str]], *, mark: bool = False, urgent: bool = False
    ) -> int:
        """Create snapshots (volume, snapshot id, name) of several volumes at one point in time. Answers {"snapshots":
        [{"volume", "id", "sequence", "time_ns"}]} once they are durable. After an error none exists. EEXIST: an id or a
        name is taken; ENOSPC: the table is full (SNAPSHOTS_MAX), or one of the volumes has "no_space"; EBUSY: the
        volume is unsettled, which only a new restore point ends.

        mark: create restore points; behind the oldest one the log is kept whole. urgent: succeed without free space,
        from the reserve for cleaning; for restore points that replace others or settle a volume."""
    def unmark_snapshot(self, volume: bytes, id: bytes) -> int:
        """Turn a restore point into an ordinary snapshot. Answers None once that is durable. ENOENT."""
    def delete_snapshot(self, volume: bytes, id: bytes) -> int:
        """Answers {"hidden": bool} once the deletion is durable; blocks that only this snapshot used are freed after
        the answer. hidden: the snapshot stays, invisible, while clones or several histories are based on it or it is
        being read. ENOENT."""
    def restore_volume(
        self,
        volume: bytes,
        snapshot: bytes,
        *,
        before: bytes,
        name: str,
        discard: bool,
        force: bool,
        mark: tuple[bytes, str] | None = None,
        unsettled: bool = False,
    ) -> int:
        """Restore the volume's content from the snapshot; its size does not change. The previous content becomes a
        snapshot with the id `before` and this name, or is freed (discard). Answers None once that is durable. After an
        error, or a crash before the answer, the volume has either the previous content or the snapshot's, never a
        mixture. EBUSY: the volume has connections; force ends them. No connection is accepted meanwhile. ENOENT,
        EEXIST; ENOSPC: as for create_snapshots, except with discard.

        mark: (id, name) of a restore point of the restored content, created atomically with the restore. unsettled: no
        connection is accepted until another restore point is created. While volume_state reports "unsettled" (the id
        `before`), the caller that opens the volume must restore it to that snapshot."""
    def roll_forward(self, volume: bytes, source: bytes, mark: bytes, *, until_ns: int) -> int:
        """Roll the volume forward along the log of `source` (the volume itself or its clone parent), from the restore
        point that the volume was restored to or cloned from, up to a log time. Nothing else may write to the volume.
        Idempotent. Answers {"records" (replayed), "bytes" (written)}. ENOENT: the restore point or a part of the log is
        gone; EUCLEAN, ENOSPC. After an error the log is applied in part."""
    def log_clock(self, volume: bytes) -> int:
        """Answers {"time_ns": log time now, "clock_ns": wall clock minus log time, "until_ns", "since_ns": clock steps
        since the newest restore point, as in a SnapshotEntry, "recorded_ns": log time of the newest record}."""
    def list_snapshots(self, volume: bytes) -> int:
        """Answers [{"id", "name", "sequence", "time_ns" (Unix time by the wall clock), "log_ns" (log time), "clock_ns",
        "until_ns", "since_ns" (docs/formats.md), "size_bytes", "parent" (an id or None), "hidden", "dying", "mark",
        "clones" (count), "mapped_blocks", "inherited_blocks", "new_blocks" (not in its parent), "unsettled"}]."""
    def diff_snapshots(self, volume: bytes, older: bytes, newer: bytes | None, *, offset: int, most: int) -> int:
        """Find the ranges that were written or trimmed between two snapshots, or since one (newer: None; with offset 0
        a checkpoint is written first), starting at offset. Answers at most `most` ranges: {"ranges": [(offset, bytes,
        whether the newer one has data there)], "next": int (offset to continue at; 0: done), "nodes": int (map nodes
        read)}. ENOENT."""
    def open_snapshot(self, volume: bytes, id: bytes) -> int:
        """Open a snapshot for reading: serve_nbd(id, fd, read_only=True, ...) accepts its id until close_snapshot, or
        until its volume is closed. Answers {"size_bytes": int}. ENOENT; EEXIST: it is open already."""
    def close_snapshot(self, id: bytes) -> int: ...

    # exports
    def serve_nbd(
        self,
        volume: bytes,
        fd: int,
        *,
        structured: bool,
        context_id: int | None,
        read_only: bool,
        since: bytes | None = None,
    ) -> int:
        """Take over a connected socket after its handshake; the engine closes it. context_id: of the metadata context,
        if one was negotiated. since: for an open snapshot, the id of an older one: block status reports changes since
        then instead of allocation. Answered when the connection ends: {"requests": int, "end": "disconnect" | "closed"
        | "malformed" | "stopped"}. ENOENT: no such snapshot."""

    # volumes of other nodes
    def forward_volume(self, volume: bytes, *, size_bytes: int, reactor: int) -> None:
        """Clients of this node's exports may use the volume from now on, which another node owns: their requests wait
        until there is a connection to that node. Raises ValueError if it is forwarded already."""
    def serve_forwarded(
        self, volume: bytes, fd: int, *, structured: bool, context_id: int | None, read_only: bool
    ) -> int:
        """As serve_nbd, of a forwarded volume."""
    def attach_forwarded(self, volume: bytes, fd: int, *, requests: int, bytes: int) -> int:
        """Take over a connection to the volume's owner after its handshake; the engine closes it. requests, bytes: its
        credits. What was not answered on an earlier connection is sent again. Answered when the connection has ended:
        {"end": as of attach_peer}. EEXIST: it has one."""
    def detach_forwarded(self, volume: bytes) -> None: ...
    def follow_owner(self, volume: bytes, *, here: bool, milliseconds: int) -> int:
        """The clients of an open volume go on with the forwarded one (here: the other way round): each once its
        requests are answered. Those that still have some after this time are ended; here: they stay. EXDEV: the two are
        on different reactors. EBUSY: the volume is being closed or restored."""
    def grow_forwarded(self, volume: bytes, size_bytes: int) -> None: ...
    def close_forwarded(self, volume: bytes) -> int:
        """Ends the connection to the owner as well. EBUSY: it has clients."""
    def forwarded_state(self, volume: bytes) -> dict[str, Any]:
        """{"attached": bool (the owner answers), "open": int (requests without an answer), "repeated": int (requests
        that were sent again), "reactor": int, "connections": int (clients)}. Raises KeyError."""
    def serve_volume(self, volume: bytes, fd: int) -> int:
        """Take over a connection of another node for the I/O of an open volume, after its handshake; the engine closes
        it. Answered when it has ended, as serve_peer; ended by end_served_peer. EBUSY: the volume is being closed or
        restored."""

    # other nodes
    def serve_peer(self, fd: int, *, reactor: int) -> int:
        """Take over a connection from another node after its handshake; the engine closes it. Answered when the
        connection has ended: {"requests": int, "end": "closed" | "error" | "malformed" | "credits" | "stopped"}. All
        stores of this node with a number in the cluster are served."""
    def end_served_peer(self, ticket: int) -> None:
        """End that connection once its requests under way are answered."""
    def attach_peer(self, node: str, fd: int, *, reactor: int, requests: int, bytes: int) -> int:
        """Take over a connection to another node after its handshake; the engine closes it. requests, bytes: its
        credits. Answered when the connection has ended: {"calls": int (on all connections to the node), "end": "closed"
        | "error" | "malformed" | "detached" | "silent"}. EEXIST: this reactor has a connection to the node."""
    def detach_peer(self, node: str, *, reactor: int) -> None: ...
    def know_devices(self, node: str, devices: Iterable[int]) -> None:
        """The numbers in the cluster of another node's devices; replaces what was known."""
    def peers(self) -> list[dict[str, Any]]:
        """For each other node and reactor: {"node": str, "reactor": int, "attached": bool (it answers), "calls": int,
        "devices": list[int], "readies": int (how often it was attached and answered)}."""

def histogram_bounds() -> NDArray[np.uint64]:
    """Upper bounds of the buckets, in nanoseconds."""

def transmission_flags(*, read_only: bool, volatile_cache: bool, structured: bool) -> int:
    """The NBD transmission flags that this engine's connections honour."""

# Structures on a device, for `iomesh inspect` and tests. Each function takes the bytes of its block(s) and returns the
# fields. "valid" is False when the magic, version, checksum or a bound is wrong; "fault" names the cause. Kinds, states
# and tiers are the stored numbers.
def read_superblock(data: bytes) -> dict[str, Any]: ...
def read_claim(data: bytes) -> dict[str, Any]: ...
def make_claim(
    *, device: bytes, boot: bytes, process_namespace: int, process_started: int, process: int, node: str, path: str
) -> bytes: ...
def read_journal_block(data: bytes, slab_bytes: int = ...) -> dict[str, Any]: ...
def read_record(data: bytes) -> dict[str, Any]: ...
def read_footer(data: bytes) -> dict[str, Any]: ...
def read_checkpoint(data: bytes) -> dict[str, Any]: ...
def read_node(data: bytes) -> list[Pointer | None]: ...
def read_bitmap(data: bytes) -> dict[str, Any]: ...
def read_table(data: bytes) -> list[dict[str, int]]: ...
def read_snapshots(data: bytes) -> list[dict[str, Any]]: ...
def crc32c(data: bytes) -> int: ...
def structures() -> dict[str, list[tuple[str, int, int]]]:
    """Name of each on-disk structure -> (field, offset, bytes); a test compares docs/formats.md with this."""
