"""The restore windows of this node's volumes: the spans of time in which any second can be gone back to.

Behind the oldest *mark*, a snapshot that no user sees, the engine keeps the log whole. Going to a moment means going to the mark before it,
and along the log from there (ext/history/roll_forward.pyx). So marks bound two things: how far back one can go, and how much of the log
has to be followed. One is made every so often while something is written; the oldest goes once the one behind it is older than the window.

    made ──> oldest ──> deleted                      its part of the log may be cleaned from then on
                   '──> (a clone stands on it) ──> a snapshot without a mark, deleted after the clone

What the window keeps is space that users may need: when a device runs out of it, windows become shorter before writes fail.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from iomesh.api.model import VolumeState
from iomesh.errors import Conflict, InvalidArgument, IomeshError, NoSpace
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.records import CloneRecord
from iomesh.node.engine import NodeEngine, counters_by_name
from iomesh.node.exports import Doors
from iomesh.node.logs import logger
from iomesh.node.room import patiently, refuse_without_space
from iomesh.node.snapshots import Snapshots, free_name, is_kept, new_mark, refuse_users, restored_name, visible
from iomesh.node.supervisor import BackgroundTask, Supervisor
from iomesh.node.volume import OpenVolume, Registry, is_hidden, write_record
from iomesh.times import SECOND_NS, exact_moment, exact_span

log = logger("windows")

LOOK_SECONDS = 1.0
MARKS = 512  # of one window: its length over so many is how far they are apart, ...
INTERVAL_SECONDS = 10  # ... but not less
LOG_BYTES = 1 << 30  # of log between two marks, at most, as long as there are few
MARKS_MAX = 1024  # of a volume; the engine has room for four times as many snapshots
CHANGES = ("writes", "trims", "zeroes")  # without any of them, one mark is like the other
SHORTEST_SECONDS, LONGEST_SECONDS = 10, 366 * 86400


@dataclass
class _Marked:
    """What the counters were when the newest mark was made."""

    changes: int
    log_bytes: int


class Windows:
    def __init__(
        self, engine: NodeEngine, metadata: Metadata, doors: Doors, volumes: Registry, snapshots: Snapshots, supervisor: Supervisor
    ) -> None:
        self._engine = engine
        self._metadata = metadata
        self._doors = doors
        self._volumes = volumes
        self._snapshots = snapshots
        self._marked: dict[uuid.UUID, _Marked] = {}
        # Of those that are being restored along their log: the sequence of the mark at which that began.
        self._following: dict[uuid.UUID, int] = {}
        self._supervisor = supervisor
        self._task: BackgroundTask | None = None

    async def start(self) -> None:
        self._task = self._supervisor.start("windows", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            self._task = None

    # what users ask

    async def set(self, name: str, seconds: int) -> None:
        check_window(seconds)
        async with self._volumes.holding(name) as volume:
            await write_record(
                self._metadata,
                volume,
                lambda record: msgspec.structs.replace(record, policy=msgspec.structs.replace(record.policy, window_seconds=seconds)),
            )
            log.info("restore window set", volume=name, window=exact_span(seconds))
            await self.keep(volume)

    async def restore(self, name: str, at_ns: int, *, discard: bool = False, force: bool = False) -> str:
        """The volume becomes what it was at that moment. The name of the snapshot of what it is now; empty: it is discarded.

        Until it is done the volume stands on an unsettled mark; whatever ends it before, the volume goes back to what it is now.
        """
        asked_of = self._volumes.serving(name)
        attempts = patiently(lambda: self._restore(asked_of, at_ns, discard=discard, force=force))
        return await self._supervisor.carry_through("restore", attempts, volume=name)

    async def _restore(self, asked_of: OpenVolume, at_ns: int, *, discard: bool, force: bool) -> str:
        name, identity = asked_of.record.name, asked_of.record.id
        async with self._volumes.holding(name) as volume:
            if volume is not asked_of:
                raise Conflict(f"volume {name} has been replaced by another one meanwhile")
            begin = await self.mark_before(volume, at_ns)
            mark = uuid.UUID(bytes=begin["id"])
            if not force:
                await self._doors.let_leave(name)
            kept, kept_name = uuid.uuid4(), free_name(volume, restored_name())
            with refuse_users(volume, self._doors), refuse_without_space(self._engine, [volume]):
                await self._engine.restore_volume(
                    identity, mark, before=kept, name=kept_name, discard=False, force=force, mark=new_mark(), unsettled=True
                )
            await self._snapshots.refresh(volume)
            self._following[identity] = begin["sequence"]
            try:
                told = await self._engine.roll_forward(identity, identity, mark, until_ns=at_ns)
                await self._engine.create_snapshots([(identity, *new_mark())], mark=True, urgent=True)
            except BaseException:
                await self.undo(volume)
                raise
            finally:
                del self._following[identity]
            if discard:
                await self._engine.delete_snapshot(identity, kept)
            await self._snapshots.refresh(volume)
            log.info("volume restored", volume=name, at=exact_moment(at_ns), before="" if discard else kept_name, **told)
            return "" if discard else kept_name

    async def undo(self, volume: OpenVolume) -> None:
        """If it stands on an unsettled mark: what was not done is not done. The caller holds its `changing`."""
        identity = volume.record.id
        before = self._engine.volume_state(identity)["unsettled"]
        if before is None:
            return
        discarded, mark = new_mark(), new_mark()
        await self._engine.restore_volume(
            identity, uuid.UUID(bytes=before), before=discarded[0], name=discarded[1], discard=True, force=True, mark=mark
        )
        await self._engine.delete_snapshot(identity, uuid.UUID(bytes=before))
        await self._snapshots.refresh(volume)
        log.warning("a restore that was not finished is undone: the volume is what it was before", volume=volume.record.name)

    # what happens to a volume; the caller holds its `changing`

    async def mark_before(self, volume: OpenVolume, at_ns: int) -> dict[str, Any]:
        """The mark from which that moment is reached."""
        name, window = volume.record.name, volume.record.policy.window_seconds
        await self._snapshots.refresh(volume)
        marks = marks_of(volume)
        if not marks and window:
            raise InvalidArgument(f"volume {name} at {exact_moment(at_ns)}: its restore window begins once there is space on its device")
        if not marks:
            how = f"`iomesh volume set {name} --window 24h` gives it one, from then on"
            raise InvalidArgument(f"volume {name} has no restore window, so it goes back to snapshots only: {how}")
        if at_ns > time.time_ns():
            raise InvalidArgument(f"volume {name} at {exact_moment(at_ns)}: that is in the future")
        earlier = [mark for mark in marks if mark["time_ns"] <= at_ns]
        if not earlier:
            reach = f"its restore window of {exact_span(window)} reaches back to {exact_moment(marks[0]['time_ns'])}"
            raise InvalidArgument(f"volume {name} at {exact_moment(at_ns)}: {reach}")
        if earlier[-1]["unsettled"]:
            was = f"it was being restored from {exact_moment(earlier[-1]['time_ns'])} on"
            raise InvalidArgument(f"volume {name} at {exact_moment(at_ns)}: {was}: choose a time before or after that")
        return earlier[-1]

    async def follow(self, clone: OpenVolume, of: CloneRecord) -> None:
        """A clone that was just opened, and stands on a mark, is taken to its moment. Doing it again does no harm."""
        told = await self._engine.roll_forward(clone.record.id, of.volume, of.snapshot, until_ns=of.at_ns)
        log.info("clone taken to its moment", volume=clone.record.name, at=exact_moment(of.at_ns), **told)

    def can_shorten(self, volume: OpenVolume) -> bool:
        """Of one that is being restored, only what lies before the mark where that began."""
        return any(mark["sequence"] < self._following.get(volume.record.id, mark["sequence"] + 1) for mark in marks_of(volume))

    async def shorten(self, volume: OpenVolume) -> None:
        """Gives up the oldest part of a window for its space, or all of it up to now. The caller does not hold its `changing`; who holds it
        for something else has it done later."""
        if volume.record.id in self._following:
            if self.can_shorten(volume):
                await self._give_up_oldest(volume)
        elif not volume.changing.locked():
            async with volume.changing:
                if volume.in_engine and len(marks_of(volume)) == 1:
                    await self._mark(volume, urgent=True)
                if volume.in_engine:
                    await self._give_up_oldest(volume)

    async def _give_up_oldest(self, volume: OpenVolume) -> None:
        marks = marks_of(volume)
        if len(marks) < 2:
            return
        await self._drop(volume, marks[0])
        await self._snapshots.refresh(volume)
        log.warning(
            "restore window shortened: its device is full",
            volume=volume.record.name,
            window=exact_span(volume.record.policy.window_seconds),
            since=exact_moment(marks[1]["time_ns"]),
        )

    async def forget(self, volume: OpenVolume, marks: list[dict[str, Any]]) -> None:
        """These marks are given up; if there are no others, the window begins anew now. The caller holds its `changing`."""
        if len(marks) == len(marks_of(volume)):
            await self._mark(volume, urgent=True)
        for mark in marks:
            await self._drop(volume, mark)
        await self._snapshots.refresh(volume)

    # keeping them

    async def _run(self, task: BackgroundTask) -> None:
        while True:
            for volume in list(self._volumes.values()):
                if volume.state != VolumeState.SERVING or is_hidden(volume) or volume.changing.locked():
                    continue
                try:
                    async with volume.changing:
                        if volume.state == VolumeState.SERVING and not is_hidden(volume):
                            await self.keep(volume)
                except MetadataUnavailable:
                    continue  # told by pointers.py; the next look tries again
                except IomeshError as error:
                    log.error("restore window not kept", volume=volume.record.name, reason=error.message)
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)

    async def keep(self, volume: OpenVolume) -> None:
        """Makes the mark that is due, if there is space, and deletes those that are not needed any more. The caller holds its `changing`.

        A restore that could not even be undone is undone now, or tried again with the next look: nobody is served until then.
        """
        await self.undo(volume)
        window = volume.record.policy.window_seconds
        if window and self._is_due(volume, window):
            await self._mark_if_there_is_space(volume)
        unneeded = expired(marks_of(volume), window, time.time_ns())
        unneeded += [entry for entry in volume.snapshots if is_left_over(entry) and not self._clones(volume, entry)]
        for entry in unneeded:
            await self._drop(volume, entry)
        if unneeded:
            await self._snapshots.refresh(volume)

    def _is_due(self, volume: OpenVolume, window: int) -> bool:
        marks, marked = marks_of(volume), self._marked.get(volume.record.id)
        if not marks:
            return True
        age = (time.time_ns() - marks[-1]["time_ns"]) / SECOND_NS
        if marked is None:  # it was made before the node started
            return bool(abs(age) >= interval_seconds(window))
        now = self._look(volume)
        much = now.log_bytes - marked.log_bytes >= LOG_BYTES and len(marks) < MARKS_MAX
        return now.changes != marked.changes and bool(much or abs(age) >= interval_seconds(window))

    def _look(self, volume: OpenVolume) -> _Marked:
        counters = counters_by_name(self._engine.counters(volume.record.id))
        return _Marked(sum(counters[each] for each in CHANGES), self._engine.volume_state(volume.record.id)["log_bytes"])

    async def _mark_if_there_is_space(self, volume: OpenVolume) -> None:
        """If not, the next look tries again."""
        try:
            await self._mark(volume)
        except NoSpace:
            if volume.unmarked.begins(time.monotonic()):
                log.warning("no space: a mark of the restore window that is due is made when there is", volume=volume.record.name)

    async def _mark(self, volume: OpenVolume, *, urgent: bool = False) -> None:
        """urgent: in the place of others, which are given up then."""
        await self.undo(volume)  # a mark would end a restore that is not finished as if it were
        now = self._look(volume)
        await self._engine.create_snapshots([(volume.record.id, *new_mark())], mark=True, urgent=urgent)
        self._marked[volume.record.id] = now
        await self._snapshots.refresh(volume)

    def _clones(self, volume: OpenVolume, entry: dict[str, Any]) -> list[str]:
        return self._volumes.clones(volume, uuid.UUID(bytes=entry["id"]))

    async def _drop(self, volume: OpenVolume, mark: dict[str, Any]) -> None:
        identity = uuid.UUID(bytes=mark["id"])
        if self._clones(volume, mark):
            await self._engine.unmark_snapshot(volume.record.id, identity)
        else:
            await self._engine.delete_snapshot(volume.record.id, identity)


def resolve(*, at_ns: int | None, ago_ns: int | None) -> int:
    """The point in time that a client asks for, Unix time in nanoseconds: absolute, or how long ago by this node's clock. The times of
    records are this node's, so a client's clock, which may differ, has no say. Raises InvalidArgument."""
    if at_ns is not None:
        if at_ns <= 0:
            raise InvalidArgument("a point in time is after 1970")
        return at_ns
    if ago_ns is None:
        raise InvalidArgument("a point in time is a time or how long ago: neither is given")
    if not 0 <= ago_ns < (now_ns := time.time_ns()):
        raise InvalidArgument(f"a point in time {ago_ns / SECOND_NS:g} s ago is outside any restore window")
    return now_ns - ago_ns


def check_window(seconds: int) -> None:
    if seconds and not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise InvalidArgument(
            f"a restore window of {exact_span(seconds)}: from {exact_span(SHORTEST_SECONDS)} to {exact_span(LONGEST_SECONDS)}, or off"
        )


def interval_seconds(window: int) -> float:
    return max(window / MARKS, INTERVAL_SECONDS)


def marks_of(volume: OpenVolume) -> list[dict[str, Any]]:
    """The oldest first, as the engine listed them last."""
    return [entry for entry in volume.snapshots if entry["mark"] and is_kept(entry)]


def expired(marks: list[dict[str, Any]], window: int, now_ns: int) -> list[dict[str, Any]]:
    """Those that no moment of the window is reached from; with no window, all."""
    if not window:
        return marks
    from_ns = now_ns - window * SECOND_NS
    return [mark for mark, following in itertools.pairwise(marks) if following["time_ns"] <= from_ns]


def is_left_over(entry: dict[str, Any]) -> bool:
    """It was a mark that a clone stood on."""
    return is_kept(entry) and not visible(entry) and not entry["mark"]
