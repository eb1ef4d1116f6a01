"""Which copies of a volume's segments are made where, and which are dropped.

The engine lists the segments that have not as many working copies as their volume wants, or have others besides
(compiled.COPIES_ROW). A device that has not answered for a short time still counts: its node may be restarting, and
what it has is not copied. What is on a drained device does not count, but is a source. Most exposed first: segments
with the fewest working copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from numpy import void
from numpy.typing import NDArray

BLOCK_BYTES = 4096


class CopyState(IntEnum):
    """As in volume/rebuild.pxd."""

    NONE = 0
    WORKS = 1
    SILENT = 2
    FAILED = 3
    LEAVING = 4


class CopyProgress(IntEnum):
    """As in volume/rebuild.pxd."""

    WRITTEN = 0
    NEEDED = 1
    SETTLED = 2


class Rebuild(NamedTuple):
    """Device `target` gets the segment from device `source`: numbers in the cluster."""

    segment: int
    working: int  # copies
    bytes: int
    source: int
    target: int


class Drop(NamedTuple):
    segment: int
    device: int


@dataclass
class Plan:
    """Of one volume."""

    rebuilds: list[Rebuild] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    exposed_segments: int = 0  # that have fewer working copies than wanted
    exposed_bytes: int = 0  # that copies of them are missing
    moving_segments: int = 0  # that have copies on devices that are drained, which others get
    moving_bytes: int = 0
    written: int = 0  # of these segments: they are not sealed yet
    unsettled: int = 0  # of these segments: they need a checkpoint first
    awaited: int = 0  # of these segments: a device may come back
    homeless: int = 0  # of these segments: no device takes them


@dataclass
class Devices:
    """Those that can get copies. A plan takes space and turns from them."""

    free_bytes: dict[int, int]  # by number: of other nodes' devices that work
    node_of: Callable[[int], str]
    unsuitable: Collection[int] = ()  # that shall get nothing: they are drained, or suspect
    turns: dict[int, int] = field(default_factory=dict)  # as a source

    def take_target(self, has: Iterable[int], bytes_: int) -> int:
        """The emptiest device on a node that has none of these devices; 0: none has space."""
        nodes = {self.node_of(device) for device in has}
        suitable = [
            (free, device)
            for device, free in self.free_bytes.items()
            if free > bytes_ and device not in self.unsuitable and self.node_of(device) not in nodes
        ]
        if not suitable:
            return 0
        _, device = max(suitable)
        self.free_bytes[device] -= bytes_
        return device

    def take_source(self, of: Iterable[int]) -> int:
        """The one that was taken the least often; 0: there is none."""
        device = min(of, key=lambda each: self.turns.get(each, 0), default=0)
        self.turns[device] = self.turns.get(device, 0) + 1
        return device


def plan(rows: NDArray[void], wanted: int, devices: Devices, awaited: Callable[[int], bool]) -> Plan:
    """rows: COPIES_ROW, of one volume. wanted: copies. awaited: whether a device that does not answer may come back
    soon."""
    found = Plan()
    for row in rows:
        copies = dict(_copies(row))
        working = [device for device, state in copies.items() if state is CopyState.WORKS]
        leaving = [device for device, state in copies.items() if state is CopyState.LEAVING]
        if row["progress"] != CopyProgress.SETTLED and len(working) >= wanted:
            continue
        if len(working) > wanted:
            _drop(found, int(row["segment"]), working, devices)
        elif len(working) == wanted:
            owners = int(row["devices"][0])
            found.drops += [Drop(int(row["segment"]), device) for device in leaving if device != owners]
        elif len(working) < wanted:
            _restore(found, row, working, wanted, copies, devices, awaited)
    found.rebuilds.sort(key=lambda each: each.working)
    return found


def _copies(row: void) -> Iterator[tuple[int, CopyState]]:
    for device, state in zip(row["devices"].tolist(), row["states"].tolist(), strict=True):
        if state != CopyState.NONE:
            yield device, CopyState(state)


def _drop(found: Plan, segment: int, working: list[int], devices: Devices) -> None:
    """Never the owner's, which is the first. Rather one of an unsuitable device, or of the fullest."""
    others = working[1:]
    found.drops.append(
        Drop(
            segment,
            min(others, key=lambda each: (each not in devices.unsuitable, devices.free_bytes.get(each, 0))),
        )
    )


def _restore(
    found: Plan,
    row: void,
    working: list[int],
    wanted: int,
    copies: Mapping[int, CopyState],
    devices: Devices,
    awaited: Callable[[int], bool],
) -> None:
    bytes_ = int(row["blocks"]) * BLOCK_BYTES
    silent = [device for device, state in copies.items() if state is CopyState.SILENT and awaited(device)]
    leaving = [device for device, state in copies.items() if state is CopyState.LEAVING]
    missing = wanted - len(working)
    if len(working) + len(leaving) < wanted:
        found.exposed_segments += 1
        found.exposed_bytes += (missing - len(leaving)) * bytes_
    else:
        found.moving_segments += 1
        found.moving_bytes += missing * bytes_
    if missing <= len(silent):
        found.awaited += 1
        return
    progress = CopyProgress(int(row["progress"]))
    if progress is not CopyProgress.SETTLED:
        found.unsettled += progress is CopyProgress.NEEDED
        found.written += progress is CopyProgress.WRITTEN
        return
    has = [*working, *silent]
    for _ in range(missing - len(silent)):
        target = devices.take_target(has, bytes_)
        if not target:
            found.homeless += 1
            return
        has.append(target)
        found.rebuilds.append(
            Rebuild(int(row["segment"]), len(working), bytes_, devices.take_source([*working, *leaving]), target)
        )
