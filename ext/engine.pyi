"""The engine of one node: reactors, stores, volumes and data connections, compiled and off the GIL.

This is the only module of the engine that Python imports. Nothing here blocks: a method that asks for something returns a ticket
(an int) at once, and the outcome comes later from `collect()`, which a caller runs whenever `fileno()` is readable. All methods are
called from one thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES: int                # 4096
SEGMENT_BYTES_MIN: int
SEGMENT_BYTES_MAX: int
VOLUME_BYTES_MAX: int
DEVICE_BYTES_MIN: int           # a smaller device is refused
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
SEALED_ROW: np.dtype[Any]

class Answer(NamedTuple):
    """What became of a ticket: error is 0 or a positive errno, reason says it for people, value depends on what was asked."""
    ticket: int
    error: int
    reason: str
    value: Any

class Event(NamedTuple):
    """Something that happened unasked.

    kind "checkpoint": the volume wrote one; `value` is {"pointer": Pointer, "sequence": int, "size_bytes": int}. Move the volume's pointer
    in the metadata service, then call checkpoint_moved. Others, for the log: "checksum" {"segment", "block", "offset_bytes"},
    "device" {"store", "error"}, "no_space" {}: writes wait for the cleaner, "refused" {}: since then one was refused for want of space.
    Not for the log: "tight" {}: a segment was begun where space is tight, so one has to be cleaned for the next.
    """
    kind: str
    volume: bytes | None
    value: dict[str, Any]

class EngineError(Exception):
    """The engine cannot run here; the message says what is missing and what to do."""

@final
class Engine:
    warnings: Sequence[str]     # what it goes on without, each with its remedy (locked memory, IOPOLL, ...)

    def __init__(self, *, reactors: int = 1, mode: Literal["adaptive", "busy", "sleep"] = "adaptive", poll_microseconds: int = 50,
                 map_cache_bytes: int = 256 << 20, checkpoint_bytes: int = 1 << 30, iopoll: bool = False,
                 register_buffers: bool = True) -> None:
        """map_cache_bytes: of the node, shared out evenly among the reactors. checkpoint_bytes: of log between two checkpoints of a volume.
        Raises EngineError (no io_uring, disabled, too old), ValueError."""
    def start(self) -> None: ...
    def stop(self) -> None:
        """Ends the reactors' threads at once, as a crash would: close volumes first. Open tickets stay unanswered."""
    def fileno(self) -> int:
        """An eventfd: readable when collect() has something to return."""
    def collect(self) -> list[Answer | Event]: ...

    # stores
    def format_store(self, fd: int, *, cluster: bytes, device: bytes, device_bytes: int, tier: int, label: str) -> int:
        """Write an empty store. fd: O_RDWR | O_DIRECT, kept open by the caller until the answer. Answers None."""
    def open_store(self, fd: int, *, cluster: bytes | None, volatile_cache: bool) -> int:
        """fd: O_RDWR | O_DIRECT, kept open until close_store is answered. cluster: refuse any other (None: take it as it is). Answers
        {"store": int, "cluster": bytes, "device": bytes, "tier": int, "label": str, "device_bytes": int, "created_ns": int,
        "repaired": list[str]}. EUCLEAN: damaged, EMEDIUMTYPE: not an iomesh device or another cluster's,
        EPROTONOSUPPORT: a newer format."""
    def close_store(self, store: int) -> int:
        """EBUSY while a volume is open. Answers None."""
    def store_space(self, store: int) -> dict[str, int]:
        """{"slabs", "free_slabs", "reserve_slabs", "slab_bytes", "replicas", "failed", "flush_failed"}: now, no ticket. failed: an errno;
        nothing changes there any more until the store is opened again. flush_failed: a flush's."""

    # volumes; all stores of the node are open before the first volume is
    def open_volume(
        self,
        volume: bytes,
        *,
        size_bytes: int,
        epoch: int,
        segment_bytes: int,
        checkpoint: Pointer | None,
        clone_of: tuple[bytes, bytes] | None = None,
        name: bytes = b"",
        window_seconds: int = 0,
        replicas: int = 1,
    ) -> int:
        """Recover the volume's log and serve it. epoch: higher than that of any owner before. Answers {"replayed_bytes": int,
        "replayed_records": int, "seconds": float, "sequence": int, "reactor": int}. EUCLEAN: its log is damaged, reason says where.
        name (UTF-8), window_seconds, replicas: each checkpoint has them, so that the devices describe their volumes.
        clone_of: (volume, snapshot): what the log has not changed is as in that snapshot of that volume, which has to be open (ENOENT).
        Neither the snapshot nor its volume is to be deleted before the clone is: who calls sees to that."""
    def close_volume(self, volume: bytes, *, checkpoint: bool) -> int:
        """Ends its connections, writes a checkpoint if asked (an Event like any other: answer it), frees it. Waits until its clones are
        closed. Answers None."""
    def checkpoint(self, volume: bytes) -> int:
        """Answers None once it was written and moved; joins one that is under way."""
    def checkpoint_moved(self, volume: bytes, sequence: int, outcome: int) -> None:
        """The metadata service's answer: POINTER_DONE, POINTER_REFUSED: another owner has the volume, whose log ends; POINTER_UNKNOWN, any
        number of times before one of these: the update is being repeated, the volume goes on, and who waits for the checkpoint gets
        EHOSTUNREACH. Nothing happens if the volume has been closed meanwhile."""
    def grow_volume(self, volume: bytes, size_bytes: int) -> int: ...
    def erase_volume(self, volume: bytes) -> int:
        """Delete every segment of a volume that is not open from all stores. Answers {"segments": int}."""
    def volume_state(self, volume: bytes) -> dict[str, Any]:
        """{"size_bytes", "sequence", "stable", "segments", "live_blocks", "mapped_blocks", "exclusive_blocks", "inherited_blocks",
        "head_parent" (the snapshot that it grew from, an id or None), "map_root", "connections",
        "log_bytes_since_checkpoint", "no_space" (writes wait, or are refused), "space_is_coming" (then they wait), ...}: now, no ticket."""
    def space(self, volume: bytes) -> int:
        """Answers what it takes and what for, of one moment (docs/space.md): {"mapped_bytes", of them "exclusive_bytes", "shared_bytes",
        "inherited_bytes" (in the logs of a clone's parents); "snapshots_bytes", "pinned_bytes", "map_bytes", "log_bytes", "ahead_bytes",
        "dead_bytes", "physical_bytes"}."""
    def counters(self, volume: bytes) -> NDArray[np.uint64]:
        """A view, in the order of COUNTER_NAMES; it changes as you look."""
    def histograms(self, volume: bytes) -> NDArray[np.uint64]:
        """A view of shape (len(HISTOGRAM_NAMES), HISTOGRAM_BUCKETS), counts by nanoseconds; see histogram_bounds."""
    def reactor_state(self, reactor: int) -> dict[str, Any]:
        """{"turns", "sleeps", "busy_ns", "map_frames", "map_used", "map_dirty", "map_hits", "map_misses", "thread_id", ...}"""

    # detaching
    def copy_inherited(self, volume: bytes, *, bytes_per_second: int = 0, share: int = 25) -> int:
        """Write what a clone has from its parents into its own log, while it is used: at up to bytes_per_second (0: as fast as it goes),
        and at `share` percent of that while users' requests come. Answers None once the head inherits nothing. After an error, or a crash,
        what was copied stays so: ask again. ENOSPC: what is free is kept for users and checkpoints; EBUSY; EINVAL: it is no clone."""
    def check_detached(self, volume: bytes) -> int:
        """Writes a checkpoint. Answers None if neither it nor a snapshot inherits anything; EBUSY: one does."""
    def cut_off(self, volume: bytes) -> int:
        """It is no clone any more: it is open without its parent, and will be opened without. After check_detached, and once it is
        durable elsewhere. Answers None."""

    # scrub
    def sealed(self, store: int) -> int:
        """Answers what there is to be scrubbed, a structured array of SEALED_ROW: volume (16 bytes), segment, blocks (on the device)."""
    def scrub(self, store: int, volume: bytes, segment: int, *, bytes_per_second: int = 0, share: int = 25) -> int:
        """Read a sealed segment's replica and compare each block with its checksum, at up to bytes_per_second (0: as fast as it goes), and
        at `share` percent of that while users' requests come. Answers {"blocks" (that are good), "damaged", "first_damaged"}. ENOENT: it is
        gone, or was changed meanwhile; EBUSY: the store is scrubbing another."""

    # cleaning
    def segments(self, volume: bytes) -> int:
        """Answers the segment table, a structured array of SEGMENT_ROW: segment (its number), blocks, live, slabs, footer (its blocks),
        flags (1 cleanable, 2 and to be evacuated, 4 compacted, 8 kept whole for the restore window). A copy, of the moment at which it was
        made."""
    def clean(self, volume: bytes, segments: Sequence[int] | NDArray[np.uint32], *, bytes_per_second: int = 0, share: int = 25) -> int:
        """Compact these, or evacuate those of which little lives, at up to bytes_per_second (read and written; 0: as fast as it goes), and
        at `share` percent of that while users' requests come. Answers {"compacted", "evacuated", "skipped" (nothing was to be gained),
        "postponed" (not now: a snapshot is being made or given back, or too little is free), "failed", "freed_bytes" (at once), "error"
        (the last one's errno, or 0)}. While others are being cleaned it goes on at their pace, or, without one, they go on without. EBUSY:
        the volume goes back to a snapshot."""
    def hurry_cleaning(self) -> None:
        """What is being cleaned is no longer held back by its pace."""
    def expect_space(self, volume: bytes, milliseconds: int) -> int:
        """Writes that find no space wait so long for some before they get ENOSPC. Answers None."""

    # snapshots
    def create_snapshots(self, snapshots: Sequence[tuple[bytes, bytes, str]], *, mark: bool = False, urgent: bool = False) -> int:
        """(volume, snapshot's id, name) each: all at one instant. Answers {"snapshots": [{"volume", "id", "sequence", "time_ns"}]} once
        they are durable. With an error none was made. EEXIST: an id or a name is taken, ENOSPC: no room, in
        the table (SNAPSHOTS_MAX), or on the device, where one of the volumes has "no_space"; EBUSY: the volume is unsettled, which only a
        mark ends. mark: they are marks of the restore window; behind the oldest one the log is kept whole. urgent: also without space,
        from what is kept for getting some back: for marks in the place of others, and those that settle a volume."""
    def unmark_snapshot(self, volume: bytes, id: bytes) -> int:
        """A mark is a snapshot like others from now on. Answers None once that is durable. ENOENT."""
    def delete_snapshot(self, volume: bytes, id: bytes) -> int:
        """Answers {"hidden": bool} once it is durable that it is gone, or going: what was its alone is given back behind the answer.
        hidden: it stays, out of sight, for clones or histories that go on from it, or until it is no longer read. ENOENT."""
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
        """The volume is what it was in the snapshot, at the size that it has; what it was until now is a snapshot of this id and name, or
        given back (discard). Answers None once that is durable. After an error, or a crash before the answer, it is wholly what it was or
        what it was in the snapshot. EBUSY: it has connections, and not force, which ends them; meanwhile none are taken. ENOENT, EEXIST;
        ENOSPC: as for create_snapshots, but for what is to be discarded.
        mark: (id, name) of one that is made of what it is then, with it or not at all. unsettled: nobody connects until another mark is
        made; as long as volume_state tells "unsettled", the id of `before`, whoever opens the volume takes it back there."""
    def roll_forward(self, volume: bytes, source: bytes, mark: bytes, *, until_ns: int) -> int:
        """A volume that stands on a mark of its own, or of the volume that it is a clone of, does what the log says behind that, up to a
        log time; nobody else writes to it. Answers {"records" (that were followed), "bytes" (that were written)}. ENOENT: the
        mark, or some of the log, is not there any more; EUCLEAN, ENOSPC; then the volume holds some of it. Again is as good as once."""
    def log_clock(self, volume: bytes) -> int:
        """Answers {"time_ns": log time now, "clock_ns": what the wall clock shows more, "until_ns", "since_ns": of the steps since the
        newest restore point, as in a SnapshotEntry, "recorded_ns": log time of the newest record}."""
    def list_snapshots(self, volume: bytes) -> int:
        """Answers [{"id", "name", "sequence", "time_ns" (Unix time by the wall clock), "log_ns" (log time), "clock_ns",
        "until_ns", "since_ns" (docs/formats.md), "size_bytes", "parent" (an id or None), "hidden", "dying", "mark", "clones" (how
        many), "mapped_blocks", "inherited_blocks", "new_blocks" (its parent does not hold), "unsettled"}]."""
    def diff_snapshots(self, volume: bytes, older: bytes, newer: bytes | None, *, offset: int, most: int) -> int:
        """What was written or trimmed between two snapshots, or since one (newer: None; with offset 0 a checkpoint is written first),
        from a byte
        on. Answers {"ranges": [(offset, bytes, whether the newer one has data there)], "next": int (go on from there; 0: that was all),
        "nodes": int (of the maps, that were read)}, at most so many ranges. ENOENT."""
    def open_snapshot(self, volume: bytes, id: bytes) -> int:
        """Makes it readable: serve_nbd(id, fd, read_only=True, ...) works with it until close_snapshot, or until its volume is closed.
        Answers {"size_bytes": int}. ENOENT, EEXIST: it is open."""
    def close_snapshot(self, id: bytes) -> int: ...

    # doors
    def serve_nbd(
        self, volume: bytes, fd: int, *, structured: bool, context_id: int | None, read_only: bool, since: bytes | None = None
    ) -> int:
        """Take over a connected socket after its handshake (the engine closes it). context_id: that of the metadata context, if one was
        negotiated. since: of an opened snapshot, an older one: block status tells what has changed since then, not what is allocated.
        Answered when the connection ends: {"requests": int, "end": "disconnect" | "closed" | "malformed" | "stopped"}. ENOENT: there is no
        such snapshot."""

def histogram_bounds() -> NDArray[np.uint64]:
    """Upper bounds of the buckets, in nanoseconds."""

def transmission_flags(*, read_only: bool, volatile_cache: bool, structured: bool) -> int:
    """The NBD transmission flags that this engine's connections honour."""

# Structures at rest, for `iomesh inspect` and tests. Each takes the bytes of its block(s) and returns its fields; "valid" is False when the
# magic, version, checksum or a bound is wrong, with "fault" saying which. Kinds, states and tiers are numbers, as they stand there.
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
    """Name of each on-disk structure -> (field, offset, bytes): what docs/formats.md is held against."""
