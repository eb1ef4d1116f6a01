"""One volume of this node as everything here holds it: its records, what it is at, and the locks under which that changes.

`changing` is held by whoever moves it from state to state, or changes what belongs to it; `writing` only while a record is written, so
that the checkpoint which closing waits for can be recorded.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from iomesh.api.model import Flattening, VolumeState
from iomesh.errors import AlreadyExists, Conflict, InUse, NotFound, Unavailable
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.records import Lifecycle, LogRecord, VolumeRecord, get_log, get_volume, put_log, put_volume
from iomesh.metadata.volumes import Unreadable, hidden_name
from iomesh.node.backoff import pauses
from iomesh.node.metadata_calls import answered

ATTEMPTS = 12  # of a change of a record that others change, too: about ten seconds
CHANGE_SECONDS = 60.0  # to wait for whoever changes the volume; an operation itself may take longer
QUIET_SECONDS = 60.0


@dataclass
class Phase:
    """Something that comes and goes many times a second, and is told once: when it comes after it stayed away for a while."""

    seen: float = -math.inf

    def begins(self, now: float) -> bool:
        """It is there at this moment (seconds, monotonic): whether that is new."""
        begins = now - self.seen > QUIET_SECONDS
        self.seen = now
        return begins


class ChangeLock(asyncio.Lock):
    """Whoever enters waits CHANGE_SECONDS at most, then gets Unavailable with the name of the task that holds it."""

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
            raise Unavailable(f"volume {self.of} is busy: {self._holder} has not ended within {self.seconds:g} s: try again") from None
        task = asyncio.current_task()
        self._holder = task.get_name() if task is not None else "something"
        return True


@dataclass
class Unanswered:
    """Since when the metadata service has not said whether the pointer of a checkpoint was moved, and why."""

    since: float  # monotonic
    since_ns: int  # Unix time
    reason: str
    logged: float = -math.inf  # monotonic


@dataclass
class OpenVolume:
    record: VolumeRecord
    log: LogRecord
    version: int = 0  # of its record; 0: it is not stored yet
    log_version: int = 0
    state: VolumeState = VolumeState.OPENING
    reason: str = ""
    recovery: dict[str, Any] = field(default_factory=dict)
    opening: bool = False  # the engine has been asked to
    in_engine: bool = False
    awaits_metadata: bool = False  # it is not opened, or not deleted, because the metadata service did not answer: tried again
    unanswered: Unanswered | None = None
    snapshots: list[dict[str, Any]] = field(default_factory=list)  # as the engine listed them last
    flattening: Flattening = field(default_factory=Flattening)  # without done_bytes
    waiting: Phase = field(default_factory=Phase)  # writes, for space
    refusing: Phase = field(default_factory=Phase)  # ... them, for want of it
    unmarked: Phase = field(default_factory=Phase)  # marks are due, and there is no space
    changing: ChangeLock = field(init=False)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.changing = ChangeLock(self.record.name)


def is_hidden(volume: OpenVolume) -> bool:
    """Deleted, and kept for its clones."""
    return volume.record.state == Lifecycle.HIDDEN


class Registry:
    """The volumes of this node, and the one table of who has which name.

    - A volume is in it from before its record is written until after the record is gone; a hidden one is in it without a name.
    - `add` reserves the name: between that and whatever the caller checked before, nothing has to be assumed.
    - `remove` and `hide` change the entry of that very volume, never that of another one that has the name by now.
    - A command that waits works on a volume inside `holding`, not on what it found before it waited.
    """

    def __init__(self) -> None:
        self._volumes: dict[uuid.UUID, OpenVolume] = {}
        self._names: dict[str, OpenVolume] = {}
        self.unreadable: dict[str, Unreadable] = {}  # volumes of which a record cannot be read, by name

    def add(self, volume: OpenVolume) -> None:
        """Raises AlreadyExists if another volume has its name."""
        name = volume.record.name
        if name in self._names or name in self.unreadable:
            raise AlreadyExists(f"a volume {name} exists: take another name")
        self._volumes[volume.record.id] = volume
        if not is_hidden(volume):
            self._names[name] = volume

    def remove(self, volume: OpenVolume) -> None:
        """It is gone, and its name is free."""
        self.release(volume)
        self._volumes.pop(volume.record.id, None)

    def release(self, volume: OpenVolume) -> None:
        """Its name is free; it stays."""
        for name in [name for name, each in self._names.items() if each is volume]:
            del self._names[name]

    def has(self, volume: OpenVolume) -> bool:
        return self._volumes.get(volume.record.id) is volume

    def get(self, name: str) -> OpenVolume | None:
        return self._names.get(name)

    def by_id(self, identity: uuid.UUID) -> OpenVolume | None:
        return self._volumes.get(identity)

    def values(self) -> list[OpenVolume]:
        """All of them, hidden ones too, by name, as they are now: one may be gone as soon as the caller has awaited something."""
        return sorted(self._volumes.values(), key=lambda volume: volume.record.name)

    def named(self) -> list[OpenVolume]:
        """Those that users see, by name."""
        return [volume for _, volume in sorted(self._names.items())]

    @asynccontextmanager
    async def holding(self, name: str, *, serving: bool = True) -> AsyncIterator[OpenVolume]:
        """The volume of that name, with its `changing` held. Waits for who holds it, and if the name belongs to another volume by then,
        for that one. serving: it has to be served. Raises NotFound, Unavailable."""
        volume = self.serving(name) if serving else self.find(name)
        while True:
            async with volume.changing:
                if self.get(name) is volume:
                    if serving:
                        self.serving(name)
                    yield volume
                    return
            volume = self.find(name)  # one that is being made is waited for, too

    def find(self, name: str) -> OpenVolume:
        volume = self.get(name)
        if name in self.unreadable:
            raise Unavailable(f"volume {name} is failed: {self.unreadable[name].reason}")
        if volume is None or is_hidden(volume):
            raise NotFound(f"there is no volume {name!r}: `iomesh volume list` shows those that there are")
        return volume

    def serving(self, name: str) -> OpenVolume:
        volume = self.find(name)
        if volume.state != VolumeState.SERVING:
            raise Unavailable(f"volume {name} is {volume.state.value}" + (f": {volume.reason}" if volume.reason else ""))
        return volume

    def clones(self, volume: OpenVolume, snapshot: uuid.UUID | None = None) -> list[str]:
        """The names of those that stand on a snapshot of it, or on this one. One whose record cannot be read may be a clone of any."""
        logs = [(other.record.name, other.log) for other in self._volumes.values()]
        found = [
            name
            for name, log in [*logs, *((each.name, each.log) for each in self.unreadable.values() if each.log is not None)]
            if (of := log.clone_of) is not None and of.volume == volume.record.id and snapshot in (None, of.snapshot)
        ]
        return sorted([*found, *(each.name for each in self.unreadable.values() if each.log is None)])


# Changes of a volume's records have three outcomes. Done: they return. Refused: Conflict. Unknown: MetadataUnavailable, or any other error;
# then a change is repeated, and one that finds itself stored is done.


async def write_record(metadata: Metadata, volume: OpenVolume, change: Callable[[VolumeRecord], VolumeRecord]) -> None:
    """Writes what the volume is to be; if somebody else wrote it meanwhile, changes what they left. Raises Conflict if they removed it."""
    async with volume.writing:
        async for _ in _attempts(f"volume {volume.record.name}: its record"):
            record = change(volume.record)
            try:
                volume.version = await answered(metadata.commit(put_volume(record, volume.version)))
            except Conflict:
                found = await answered(get_volume(metadata, record.id))
                if found is None and volume.version:
                    raise Conflict(f"volume {record.name} has been removed by somebody else") from None
                volume.record, volume.version = found if found is not None else (volume.record, 0)
                if found is not None and change(found.record) == found.record:
                    return  # an answer was lost
            else:
                volume.record = record
                return


async def write_log(metadata: Metadata, volume: OpenVolume, change: Callable[[LogRecord], LogRecord]) -> None:
    """Writes what the volume's log is, provided that it is still ours. Raises Conflict if the right to it is lost: another epoch or
    owner is stored, or no record at all."""
    ours = volume.log

    def check(found: LogRecord) -> None:
        if _right(found) != _right(ours):
            raise Conflict(
                f"volume {volume.record.name} has been taken over: node {found.owner} owns it with epoch {found.epoch}, and this node had "
                f"epoch {ours.epoch}"
            )

    await _write_log(metadata, volume, change, check)


async def take_over(metadata: Metadata, volume: OpenVolume, node: str) -> None:
    """Raises the epoch above what is stored, which may be that of an earlier attempt whose outcome was unknown. Raises InUse if another
    node owns the volume, Conflict if its record is gone."""

    def check(found: LogRecord) -> None:
        if found.owner != node:
            raise InUse(f"volume {volume.record.name} is owned by node {found.owner}, and this is {node}")

    await _write_log(metadata, volume, lambda log: msgspec.structs.replace(log, epoch=log.epoch + 1, owner=node), check)


async def _write_log(
    metadata: Metadata, volume: OpenVolume, change: Callable[[LogRecord], LogRecord], check: Callable[[LogRecord], None]
) -> None:
    """check: raises if what was found may not be changed."""
    async with volume.writing:
        async for _ in _attempts(f"volume {volume.record.name}: the record of its log"):
            log = change(volume.log)
            try:
                volume.log_version = await answered(metadata.commit(put_log(log, volume.log_version)))
            except Conflict:
                found = await answered(get_log(metadata, log.id))
                if found is None:
                    raise Conflict(f"volume {volume.record.name} has been removed by somebody else") from None
                check(found.record)
                volume.log, volume.log_version = found
                if found.record == change(found.record):
                    return  # an answer was lost
            else:
                volume.log = log
                return


async def _attempts(what: str) -> AsyncIterator[None]:
    """With pauses between them. Raises MetadataUnavailable when there have been too many."""
    for _, pause in zip(range(ATTEMPTS), pauses(0.01, 2.0), strict=False):
        yield
        await asyncio.sleep(pause)
    raise MetadataUnavailable(f"{what} keeps changing, {ATTEMPTS} times in a row")


def _right(log: LogRecord) -> tuple[int, str]:
    """By which its owner may write and change it."""
    return log.epoch, log.owner


async def hide_record(metadata: Metadata, volume: OpenVolume) -> None:
    """It has no name and no exports from now on; what it was called stays reserved until `release_name`."""
    hidden = {"name": hidden_name(volume.record.id), "state": Lifecycle.HIDDEN, "exports": [], "snapshot_exports": []}
    await write_record(metadata, volume, lambda record: msgspec.structs.replace(record, **hidden))
