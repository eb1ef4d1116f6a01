"""One volume of this node as all parts share it: its records, its state, and the locks under which that changes.

A task that changes the volume's state, or what belongs to the volume, holds `changing`; `writing` is held only while a
record is written, so that the checkpoint which closing waits for can be recorded.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from iomesh.api.model import Flattening, VolumeState
from iomesh.errors import AlreadyExists, Conflict, InUse, NotFound, Unavailable
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.records import (
    FRAGMENTS,
    Lifecycle,
    LogRecord,
    VolumeRecord,
    get_log,
    get_volume,
    next_generation,
    promised_from,
    put_log,
    put_volume,
)
from iomesh.metadata.volumes import Unreadable, hidden_name
from iomesh.node.backoff import pauses
from iomesh.node.cluster import Cluster, StoredVolume
from iomesh.node.metadata_calls import answered
from iomesh.node.redundancy import Redundancy

ATTEMPTS = 12  # to change a record with concurrent writers: about ten seconds
CHANGE_SECONDS = 60.0  # to wait for `changing`; the operation itself may take longer
QUIET_SECONDS = 60.0


@dataclass
class Phase:
    """A condition that starts and stops many times a second. It is reported once: when it starts after a longer
    absence."""

    seen: float = -math.inf

    def begins(self, now: float) -> bool:
        """The condition holds at `now` (seconds, monotonic). Returns whether it is to be reported as new."""
        begins = now - self.seen > QUIET_SECONDS
        self.seen = now
        return begins


class ChangeLock(asyncio.Lock):
    """Acquiring waits at most CHANGE_SECONDS, then raises Unavailable with the name of the task that holds the lock."""

    def __init__(self, of: str, seconds: float = CHANGE_SECONDS) -> None:
        super().__init__()
        self.of = of
        self.seconds = seconds
        self._holder = ""

    async def acquire(self) -> Literal[True]:
        try:
            async with asyncio.timeout(self.seconds):
                await super().acquire()
        except TimeoutError:
            raise Unavailable(
                f"volume {self.of} is busy: {self._holder} has not ended within {self.seconds:g} s: try again"
            ) from None
        task = asyncio.current_task()
        self._holder = task.get_name() if task is not None else "something"
        return True


@dataclass
class Unanswered:
    """Since when, and why, the metadata service has not confirmed whether a checkpoint pointer was moved, or segment
    numbers were promised."""

    since: float  # monotonic
    since_ns: int  # Unix time
    reason: str
    logged: float = -math.inf  # monotonic


@dataclass
class NodeVolume:
    record: VolumeRecord
    log: LogRecord
    version: int = 0  # of its record; 0: not stored yet
    log_version: int = 0
    state: VolumeState = VolumeState.OPENING
    reason: str = ""
    recovery: dict[str, Any] = field(default_factory=dict)
    opening: bool = False  # an open request to the engine is in flight
    in_engine: bool = False
    awaits_answer: bool = (
        False  # opening or deleting failed because the metadata service or other nodes did not answer; it is retried
    )
    moving: bool = False  # to another node, by a command
    readies: dict[str, int] = field(default_factory=dict)  # of other nodes, when their copies were last compared
    unanswered: Unanswered | None = None
    snapshots: list[dict[str, Any]] = field(default_factory=list)  # as the engine listed them last
    flattening: Flattening = field(default_factory=Flattening)  # without done_bytes
    redundancy: Redundancy = field(default_factory=Redundancy)
    waiting: Phase = field(default_factory=Phase)  # writes wait for space
    refusing: Phase = field(default_factory=Phase)  # writes are refused for lack of space
    unmarked: Phase = field(default_factory=Phase)  # restore points are due, but there is no space
    changing: ChangeLock = field(init=False)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.changing = ChangeLock(self.record.name)


def is_hidden(volume: NodeVolume) -> bool:
    """Whether the volume was deleted but is kept for its clones."""
    return volume.record.state == Lifecycle.HIDDEN


class Registry:
    """The volumes of this node, and the only table of their names.

    - A volume is listed from before its record is written until after the record is deleted; a hidden one is listed
      without a name.
    - `add` reserves the name: the caller need not check first.
    - `remove` and `hide` change the entry of that same volume, never that of another volume that has taken the name.
    - A command that waits uses the volume inside `holding`, not one that it looked up before waiting.
    """

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster = cluster
        self._node = node
        self._volumes: dict[uuid.UUID, NodeVolume] = {}
        self._names: dict[str, NodeVolume] = {}
        self.unreadable: dict[str, Unreadable] = {}  # volumes with an unreadable record, by name

    def add(self, volume: NodeVolume) -> None:
        """Raises AlreadyExists if another volume has its name."""
        name = volume.record.name
        if name in self._names or name in self.unreadable:
            raise AlreadyExists(f"a volume {name} exists: choose another name")
        self._volumes[volume.record.id] = volume
        if not is_hidden(volume):
            self._names[name] = volume

    def remove(self, volume: NodeVolume) -> None:
        """Removes a deleted volume and frees its name."""
        self.release(volume)
        self._volumes.pop(volume.record.id, None)

    def release(self, volume: NodeVolume) -> None:
        """Frees its name; the volume stays listed."""
        for name in [name for name, each in self._names.items() if each is volume]:
            del self._names[name]

    def has(self, volume: NodeVolume) -> bool:
        return self._volumes.get(volume.record.id) is volume

    def get(self, name: str) -> NodeVolume | None:
        return self._names.get(name)

    def by_id(self, identity: uuid.UUID) -> NodeVolume | None:
        return self._volumes.get(identity)

    def values(self) -> list[NodeVolume]:
        """All volumes, hidden ones included, by name. A snapshot in time: after an await of the caller, some may be
        deleted."""
        return sorted(self._volumes.values(), key=lambda volume: volume.record.name)

    def named(self) -> list[NodeVolume]:
        """The volumes visible to users, by name."""
        return [volume for _, volume in sorted(self._names.items())]

    @asynccontextmanager
    async def holding(self, name: str, *, serving: bool = True) -> AsyncIterator[NodeVolume]:
        """The volume of that name, with its `changing` held. Waits for the current holder; if the name belongs to
        another volume by then, waits for that one. serving: require that it is served. Raises NotFound, Unavailable."""
        volume = self.serving(name) if serving else self.find(name)
        while True:
            async with volume.changing:
                if self.get(name) is volume:
                    if serving:
                        self.serving(name)
                    yield volume
                    return
            volume = self.find(name)  # also waits for a volume that is being created

    def elsewhere(self) -> Iterator[StoredVolume]:
        """The volumes that other nodes own, as far as is known."""
        for stored in self._cluster.volumes():
            if stored.log.record.owner != self._node and stored.log.record.id not in self._volumes:
                yield stored

    def owned_elsewhere(self, name: str) -> StoredVolume | None:
        return next((each for each in self.elsewhere() if each.volume.record.name == name), None)

    def find(self, name: str) -> NodeVolume:
        volume = self.get(name)
        if name in self.unreadable:
            raise Unavailable(f"volume {name} has failed: {self.unreadable[name].reason}")
        if volume is None and (stored := self.owned_elsewhere(name)) is not None:
            owner = stored.log.record.owner
            raise NotFound(f"this node has no volume {name!r}: node {owner} owns it; name that node's address")
        if volume is None or is_hidden(volume):
            raise NotFound(f"there is no volume {name!r}: `iomesh volume list` shows all volumes")
        return volume

    def serving(self, name: str) -> NodeVolume:
        volume = self.find(name)
        if volume.state != VolumeState.SERVING:
            raise Unavailable(
                f"volume {name} is {volume.state.value}" + (f": {volume.reason}" if volume.reason else "")
            )
        return volume

    def clones(self, volume: NodeVolume, snapshot: uuid.UUID | None = None) -> list[str]:
        """The names of the volumes that stand on a snapshot of it, or on this snapshot. A volume with an unreadable
        record may be a clone of any volume."""
        logs = [(other.record.name, other.log) for other in self._volumes.values()]
        found = [
            name
            for name, log in [
                *logs,
                *((each.volume.record.name, each.log.record) for each in self.elsewhere()),
                *((each.name, each.log) for each in self.unreadable.values() if each.log is not None),
            ]
            if (of := log.clone_of) is not None and of.volume == volume.record.id and snapshot in (None, of.snapshot)
        ]
        return sorted([*found, *(each.name for each in self.unreadable.values() if each.log is None)])


# A change of a volume's records has three outcomes. Done: the call returns. Refused: Conflict. Unknown:
# MetadataUnavailable, or any other error; the change is then repeated, and one that finds its own value stored is done.


async def write_record(metadata: Metadata, volume: NodeVolume, change: Callable[[VolumeRecord], VolumeRecord]) -> None:
    """Writes the volume's record; after a concurrent write, applies the change to the newer record. Raises Conflict if
    it was removed."""
    async with volume.writing:
        async for _ in _attempts(f"volume {volume.record.name}: its record"):
            record = next_generation(volume.record, change(volume.record))
            try:
                volume.version = await answered(metadata.commit(put_volume(record, volume.version)))
            except Conflict:
                found = await answered(get_volume(metadata, record.id))
                if found is None and volume.version:
                    raise Conflict(f"volume {record.name} was removed concurrently") from None
                volume.record, volume.version = found if found is not None else (volume.record, 0)
                if found is not None and change(found.record) == found.record:
                    return  # the answer to an earlier attempt was lost
            else:
                volume.record = record
                return


def at_generation(
    expected: int, change: Callable[[VolumeRecord], VolumeRecord]
) -> Callable[[VolumeRecord], VolumeRecord]:
    """`change`, which raises Conflict for a record of another generation unless it changes nothing there. expected: 0:
    any."""

    def checked(record: VolumeRecord) -> VolumeRecord:
        changed = change(record)
        if expected not in (0, record.generation) and changed != record:
            raise Conflict(
                f"volume {record.name} has generation {record.generation}, not {expected}: it was changed meanwhile; "
                "read it again"
            )
        return changed

    return checked


async def write_log(metadata: Metadata, volume: NodeVolume, change: Callable[[LogRecord], LogRecord]) -> None:
    """Writes the record of the volume's log, provided that this node still has the right to it. Raises Conflict if that
    is lost: another epoch or owner is stored, or no record at all."""
    ours = volume.log

    def check(found: LogRecord) -> None:
        if _right(found) != _right(ours):
            raise Conflict(
                f"volume {volume.record.name} has been taken over: node {found.owner} owns it with epoch "
                f"{found.epoch}, and this node had epoch {ours.epoch}"
            )

    await _write_log(metadata, volume, change, check)


class FirstNumbers(NamedTuple):
    """That a new owner of a log may give."""

    segment: int
    fragment: int


async def take_over(
    metadata: Metadata,
    volume: NodeVolume,
    node: str,
    *,
    former: str | None = None,
    incarnation: uuid.UUID | None = None,
) -> FirstNumbers:
    """Raises the epoch above the stored one, which may be that of an earlier attempt with unknown outcome, and promises
    numbers of segments and fragments. Returns the first of each: no earlier owner was promised it. former: another node
    from which the volume is taken over, provided that it has not opened the volume anew, and if the record says that it
    is isolated, still is. incarnation: of this daemon.
    Raises InUse if another node owns the volume, Conflict if its record is deleted."""
    first = first_fragment = 0
    before = volume.log

    def change(log: LogRecord) -> LogRecord:
        nonlocal first, first_fragment
        first, first_fragment = log.promised + 1, log.next_fragment
        return msgspec.structs.replace(
            log,
            epoch=log.epoch + 1,
            owner=node,
            incarnation=incarnation,
            offered_to="",
            isolated=False,
            promised=promised_from(first),
            next_fragment=first_fragment + FRAGMENTS,
        )

    def check(found: LogRecord) -> None:
        withdrawn = before.isolated and not found.isolated
        if found.owner != node and (withdrawn or (found.owner, found.epoch) != (former, before.epoch)):
            raise InUse(f"volume {volume.record.name} is owned by node {found.owner}, and this is {node}")

    await _write_log(metadata, volume, change, check)
    return FirstNumbers(first, first_fragment)


async def _write_log(
    metadata: Metadata, volume: NodeVolume, change: Callable[[LogRecord], LogRecord], check: Callable[[LogRecord], None]
) -> None:
    """check: raises if the stored record may not be changed."""
    async with volume.writing:
        async for _ in _attempts(f"volume {volume.record.name}: the record of its log"):
            log = change(volume.log)
            try:
                volume.log_version = await answered(metadata.commit(put_log(log, volume.log_version)))
            except Conflict:
                found = await answered(get_log(metadata, log.id))
                if found is None:
                    raise Conflict(f"volume {volume.record.name} was removed concurrently") from None
                check(found.record)
                volume.log, volume.log_version = found
                if found.record == change(found.record):
                    return  # the answer to an earlier attempt was lost
            else:
                volume.log = log
                return


async def _attempts(what: str) -> AsyncIterator[None]:
    """Yields once per attempt, with pauses between them. Raises MetadataUnavailable after too many."""
    for _, pause in zip(range(ATTEMPTS), pauses(0.01, 2.0), strict=False):
        yield
        await asyncio.sleep(pause)
    raise MetadataUnavailable(f"{what} keeps changing, {ATTEMPTS} times in a row")


def _right(log: LogRecord) -> tuple[int, str]:
    """The owner's right to write and change the log: its epoch and its name."""
    return log.epoch, log.owner


async def hide_record(metadata: Metadata, volume: NodeVolume) -> None:
    """Removes its name and exports from the record; the old name stays reserved until `release_name`."""
    hidden = {"name": hidden_name(volume.record.id), "state": Lifecycle.HIDDEN, "exports": [], "snapshot_exports": []}
    await write_record(metadata, volume, lambda record: msgspec.structs.replace(record, **hidden))
