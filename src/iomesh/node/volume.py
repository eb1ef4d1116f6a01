"""One volume of this node as everything here holds it: its record, what it is at, and the locks under which that changes.

`changing` is held by whoever moves it from state to state, or changes what belongs to it; `writing` only while its record is written, so
that the checkpoint which closing waits for can be recorded.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from iomesh.api.model import Detaching, VolumeState
from iomesh.errors import Conflict, NotFound, Unavailable
from iomesh.metadata import Metadata
from iomesh.metadata.records import Lifecycle, VolumeRecord, delete_volume, get_volume, put_volume

RECORD_ATTEMPTS = 5
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


@dataclass
class OpenVolume:
    record: VolumeRecord
    version: int
    state: VolumeState = VolumeState.OPENING
    reason: str = ""
    recovery: dict[str, Any] = field(default_factory=dict)
    in_engine: bool = False
    snapshots: list[dict[str, Any]] = field(default_factory=list)  # as the engine listed them last
    detaching: Detaching = field(default_factory=Detaching)  # without done_bytes
    waiting: Phase = field(default_factory=Phase)  # writes, for space
    refusing: Phase = field(default_factory=Phase)  # ... them, for want of it
    unmarked: Phase = field(default_factory=Phase)  # marks are due, and there is no space
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


def is_hidden(volume: OpenVolume) -> bool:
    """Deleted, and kept for its clones."""
    return volume.record.state == Lifecycle.HIDDEN


class Registry(dict[str, OpenVolume]):
    """The volumes of this node by name."""

    def find(self, name: str) -> OpenVolume:
        volume = self.get(name)
        if volume is None or is_hidden(volume):
            raise NotFound(f"there is no volume {name!r}: `iomesh volume list` shows those that there are")
        return volume

    def serving(self, name: str) -> OpenVolume:
        volume = self.find(name)
        if volume.state != VolumeState.SERVING:
            raise Unavailable(f"volume {name} is {volume.state.value}" + (f": {volume.reason}" if volume.reason else ""))
        return volume

    def clones(self, volume: OpenVolume, snapshot: uuid.UUID | None = None) -> list[str]:
        """The names of those that stand on a snapshot of it, or on this one."""
        return sorted(
            name
            for name, other in self.items()
            if (of := other.record.clone_of) is not None and of.volume == volume.record.id and snapshot in (None, of.snapshot)
        )


async def write_record(metadata: Metadata, volume: OpenVolume, change: Callable[[VolumeRecord], VolumeRecord]) -> None:
    """Writes the changed record; if somebody else wrote it meanwhile, changes what they left, provided that it is ours still."""
    async with volume.writing:
        for _ in range(RECORD_ATTEMPTS):
            record = change(volume.record)
            try:
                volume.version = await metadata.commit(put_volume(record, volume.version))
            except Conflict:
                found = await get_volume(metadata, record.name)
                ours = volume.record
                if found is None or _right(found.record) != _right(ours):
                    raise Conflict(f"volume {record.name} has been taken over or replaced by somebody else") from None
                volume.record, volume.version = found
            else:
                volume.record = record
                return
        raise Conflict(f"volume {volume.record.name}: its record keeps changing")


def _right(record: VolumeRecord) -> tuple[uuid.UUID, int, str]:
    """By which its owner may write and change it."""
    return record.id, record.epoch, record.owner


async def hide_record(metadata: Metadata, volume: OpenVolume) -> None:
    """Its name is free from now on: it has one that no user can give."""
    async with volume.writing:
        before = volume.record
        record = msgspec.structs.replace(before, name=f"deleted:{before.id}", state=Lifecycle.HIDDEN, exports=[], snapshot_exports=[])
        volume.version = await metadata.commit(delete_volume(before, volume.version), put_volume(record, 0))
        volume.record = record
