"""The restore windows of this node's volumes: the spans of time in which any second can be restored.

The engine keeps the whole log behind the oldest *restore point*, a snapshot that is not visible to users.
Restoring a point in time means going back to the restore point before it and rolling the log forward from there
(ext/history/roll_forward.pyx). So restore points bound two things: how far back a restore can go, and how much of the
log it has to replay. They are created at intervals while the volume is written; the oldest is deleted once the next one
is older than the window.

    created ──> oldest ──> deleted                      its part of the log may be cleaned from then on
                   '──> (a clone stands on it) ──> an ordinary hidden snapshot, deleted after the clone

A window keeps space that users may need: when a device runs out of space, windows are shortened before writes fail.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from iomesh.api.model import VolumeState
from iomesh.errors import Conflict, InvalidArgument, IomeshError, NoSpace
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.records import CloneRecord
from iomesh.node.engine import NodeEngine, counters_by_name
from iomesh.node.exports import Exports
from iomesh.node.log_time import TOLERANCE_NS, Sample, ago, available, log_times, sample_of, stretches
from iomesh.node.logs import logger
from iomesh.node.room import refuse_without_space, retry_for_space
from iomesh.node.snapshots import Snapshots, free_name, is_kept, new_restore_point, refuse_users, restored_name, visible
from iomesh.node.supervisor import SupervisedTask, Supervisor
from iomesh.node.volume import NodeVolume, Registry, at_generation, is_hidden, write_record
from iomesh.times import SECOND_NS, exact_span, exact_time

log = logger("windows")

LOOK_SECONDS = 1.0
RESTORE_POINTS = 512  # per window: its length divided by this is the interval between two, ...
INTERVAL_SECONDS = 10  # ... but at least this
LOG_BYTES = 1 << 30  # of log between two restore points, at most, while there are few of them
RESTORE_POINTS_MAX = 1024  # of a volume; the engine has room for four times as many snapshots
CHANGES = ("writes", "trims", "zeroes")  # without any of these, two restore points would be equal
MS = 10**6
RANGES_SHOWN = 8  # available ranges listed in a message: the nearest ones
SHORTEST_SECONDS, LONGEST_SECONDS = 10, 366 * 86400


class Asked(NamedTuple):
    """A point in time as requested: a Unix time, or a span before `asked_ns` of the monotonic clock."""

    at_ns: int
    ago_ns: int | None
    asked_ns: int

    def __str__(self) -> str:
        return f"at {exact_time(self.at_ns)}" if self.ago_ns is None else f"as it was {self.ago_ns / SECOND_NS:g} s ago"


class RestoreTime(NamedTuple):
    """A point in time in a volume's log: `restore_point`, as the engine lists it, and all records up to `log_ns`."""

    restore_point: dict[str, Any]
    log_ns: int
    at_ns: int  # the wall clock at that point


class Restored(NamedTuple):
    before: str  # the name of the snapshot of the volume's previous state; empty: discarded
    at_ns: int  # Unix time


@dataclass
class _Counters:
    """The counters when the newest restore point was created."""

    changes: int
    log_bytes: int


class Windows:
    def __init__(
        self,
        engine: NodeEngine,
        metadata: Metadata,
        exports: Exports,
        volumes: Registry,
        snapshots: Snapshots,
        supervisor: Supervisor,
    ) -> None:
        self._engine = engine
        self._metadata = metadata
        self._exports = exports
        self._volumes = volumes
        self._snapshots = snapshots
        self._at_restore_point: dict[uuid.UUID, _Counters] = {}
        # For volumes being restored by rolling forward: the sequence of the restore point at which that began.
        self._following: dict[uuid.UUID, int] = {}
        self._supervisor = supervisor
        self._task: SupervisedTask | None = None

    async def start(self) -> None:
        self._task = self._supervisor.start("windows", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            self._task = None

    # commands of users

    async def set(self, name: str, seconds: int, *, if_generation: int = 0) -> None:
        check_window(seconds)
        async with self._volumes.holding(name) as volume:
            await write_record(
                self._metadata,
                volume,
                at_generation(
                    if_generation,
                    lambda record: msgspec.structs.replace(
                        record, policy=msgspec.structs.replace(record.policy, window_seconds=seconds)
                    ),
                ),
            )
            await self._engine.describe_volume(volume.record)
            log.info("restore window set", volume=name, window=exact_span(seconds))
            await self.keep(volume)

    async def restore(
        self, name: str, at_ns: int = 0, *, ago_ns: int | None = None, discard: bool = False, force: bool = False
    ) -> Restored:
        """Restores the volume to a point in time, given as a Unix time or as a time span before now.

        Until the restore is complete the volume stands on an unsettled restore point; if it is interrupted, the volume
        goes back to its state before.
        """
        asked_of = self._volumes.serving(name)
        asked = Asked(at_ns, ago_ns, time.monotonic_ns())
        attempts = retry_for_space(lambda: self._restore(asked_of, asked, discard=discard, force=force))
        return await self._supervisor.carry_through("restore", attempts, volume=name)

    async def _restore(self, asked_of: NodeVolume, asked: Asked, *, discard: bool, force: bool) -> Restored:
        name, identity = asked_of.record.name, asked_of.record.id
        async with self._volumes.holding(name) as volume:
            if volume is not asked_of:
                raise Conflict(f"volume {name} was replaced by another volume meanwhile")
            point = await self.find(volume, asked)
            restore_point = uuid.UUID(bytes=point.restore_point["id"])
            await (self._exports.let_nodes_leave(identity) if force else self._exports.let_leave(name))
            kept, kept_name = uuid.uuid4(), free_name(volume, restored_name())
            with refuse_users(volume, self._exports), refuse_without_space(self._engine, [volume]):
                await self._engine.restore_volume(
                    identity,
                    restore_point,
                    before=kept,
                    name=kept_name,
                    discard=False,
                    force=force,
                    mark=new_restore_point(),
                    unsettled=True,
                )
            await self._snapshots.refresh(volume)
            self._following[identity] = point.restore_point["sequence"]
            try:
                told = await self._engine.roll_forward(identity, identity, restore_point, until_ns=point.log_ns)
                await self._engine.create_snapshots([(identity, *new_restore_point())], mark=True, urgent=True)
            except BaseException:
                await self.undo(volume)
                raise
            finally:
                del self._following[identity]
            if discard:
                await self._engine.delete_snapshot(identity, kept)
            await self._snapshots.refresh(volume)
            before = "" if discard else kept_name
            log.info("volume restored", volume=name, at=exact_time(point.at_ns), before=before, **told)
            return Restored(before, point.at_ns)

    async def undo(self, volume: NodeVolume) -> None:
        """If the volume stands on an unsettled restore point, an unfinished restore is undone. The caller holds its
        `changing`."""
        identity = volume.record.id
        before = self._engine.volume_state(identity)["unsettled"]
        if before is None:
            return
        discarded, restore_point = new_restore_point(), new_restore_point()
        await self._engine.restore_volume(
            identity,
            uuid.UUID(bytes=before),
            before=discarded[0],
            name=discarded[1],
            discard=True,
            force=True,
            mark=restore_point,
        )
        await self._engine.delete_snapshot(identity, uuid.UUID(bytes=before))
        await self._snapshots.refresh(volume)
        log.warning("unfinished restore undone: the volume has its previous content", volume=volume.record.name)

    # steps for one volume; the caller holds its `changing`

    async def find(self, volume: NodeVolume, asked: Asked) -> RestoreTime:
        """Finds that point in time in the volume's log. Raises InvalidArgument if it is outside the restore window, or
        if the wall clock was stepped, so that it never showed that time or showed it more than once."""
        name, window = volume.record.name, volume.record.policy.window_seconds
        at_ns, what = asked.at_ns, f"volume {name} {asked}"
        await self._snapshots.refresh(volume)
        restore_points, clock = restore_points_of(volume), await self._engine.log_clock(volume.record.id)
        if not restore_points and window:
            raise InvalidArgument(f"{what}: its restore window begins once there is space on its device")
        if not restore_points:
            how = f"`iomesh volume set {name} --window 24h` gives it one from now on"
            raise InvalidArgument(
                f"volume {name} has no restore window, so it can be restored to snapshots only: {how}"
            )
        samples = [
            *map(sample_of, restore_points),
            Sample(clock["time_ns"], clock["clock_ns"], clock["until_ns"], clock["since_ns"]),
        ]
        reach = f"its restore window of {exact_span(window)} reaches back to {exact_time(restore_points[0]['time_ns'])}"
        if asked.ago_ns is None:
            log_ns = _log_time(what, reach, samples, at_ns)
        elif (found := ago(samples, asked.ago_ns + time.monotonic_ns() - asked.asked_ns)) is None:
            raise InvalidArgument(f"{what}: that point in time is too long ago: {reach}")
        else:
            log_ns, at_ns = found
        restore_point = next((each for each in reversed(restore_points) if each["log_ns"] <= log_ns), restore_points[0])
        if restore_point["unsettled"]:
            was = f"it was being restored from {exact_time(restore_point['time_ns'])} on"
            raise InvalidArgument(f"{what}: {was}: choose a time before or after that")
        # After a crash, new records are only later than the current newest record: a clone may have to roll forward
        # again then.
        return RestoreTime(restore_point, max(restore_point["log_ns"], min(log_ns, clock["recorded_ns"])), at_ns)

    async def follow(self, clone: NodeVolume, of: CloneRecord) -> None:
        """Rolls a newly opened clone that stands on a restore point forward to its point in time. Idempotent."""
        told = await self._engine.roll_forward(
            clone.record.id, of.volume, of.snapshot, until_ns=of.until_ns or of.at_ns
        )
        log.info("clone rolled forward to its point in time", volume=clone.record.name, at=exact_time(of.at_ns), **told)

    def can_shorten(self, volume: NodeVolume) -> bool:
        """While a volume is being restored, only restore points before the one where that began can be deleted."""
        return any(
            each["sequence"] < self._following.get(volume.record.id, each["sequence"] + 1)
            for each in restore_points_of(volume)
        )

    async def shorten(self, volume: NodeVolume) -> None:
        """Deletes the oldest part of a window for its space, or all of it up to now. The caller does not hold
        `changing`; if another task does, it is done later."""
        if volume.record.id in self._following:
            if self.can_shorten(volume):
                await self._give_up_oldest(volume)
        elif not volume.changing.locked():
            async with volume.changing:
                if volume.in_engine and len(restore_points_of(volume)) == 1:
                    await self._create_restore_point(volume, urgent=True)
                if volume.in_engine:
                    await self._give_up_oldest(volume)

    async def _give_up_oldest(self, volume: NodeVolume) -> None:
        restore_points = restore_points_of(volume)
        if len(restore_points) < 2:
            return
        await self._drop(volume, restore_points[0])
        await self._snapshots.refresh(volume)
        log.warning(
            "restore window shortened: its device is full",
            volume=volume.record.name,
            window=exact_span(volume.record.policy.window_seconds),
            since=exact_time(restore_points[1]["time_ns"]),
        )

    async def forget(self, volume: NodeVolume, restore_points: list[dict[str, Any]]) -> None:
        """Deletes these restore points; if they are all, the window starts anew now. The caller holds its
        `changing`."""
        if len(restore_points) == len(restore_points_of(volume)):
            await self._create_restore_point(volume, urgent=True)
        for restore_point in restore_points:
            await self._drop(volume, restore_point)
        await self._snapshots.refresh(volume)

    # keeping restore points

    async def _run(self, task: SupervisedTask) -> None:
        while True:
            for volume in list(self._volumes.values()):
                if volume.state != VolumeState.SERVING or is_hidden(volume) or volume.changing.locked():
                    continue
                try:
                    async with volume.changing:
                        if volume.state == VolumeState.SERVING and not is_hidden(volume):
                            await self.keep(volume)
                except MetadataUnavailable:
                    continue  # reported by pointers.py; the next round tries again
                except IomeshError as error:
                    log.error("restore window not maintained", volume=volume.record.name, reason=error.message)
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)

    async def keep(self, volume: NodeVolume) -> None:
        """Creates the restore point that is due, if there is space, and deletes those no longer needed. The caller
        holds its `changing`.

        A restore whose undoing has failed is undone now, or retried in the next round: the volume is not served until
        then.
        """
        await self.undo(volume)
        window = volume.record.policy.window_seconds
        if not window and not volume.snapshots:
            return
        clock = await self._engine.log_clock(volume.record.id)
        if window and self._is_due(volume, window, clock):
            await self._create_if_there_is_space(volume)
        unneeded = expired(restore_points_of(volume), window, clock["time_ns"])
        unneeded += [entry for entry in volume.snapshots if is_left_over(entry) and not self._clones(volume, entry)]
        for entry in unneeded:
            await self._drop(volume, entry)
        if unneeded:
            await self._snapshots.refresh(volume)

    def _is_due(self, volume: NodeVolume, window: int, clock: dict[str, int]) -> bool:
        restore_points, marked = restore_points_of(volume), self._at_restore_point.get(volume.record.id)
        if not restore_points:
            return True
        is_old: bool = clock["time_ns"] - restore_points[-1]["log_ns"] >= interval_seconds(window) * SECOND_NS
        if clock["since_ns"] and (is_old or len(restore_points) < RESTORE_POINTS_MAX):
            return True  # the wall clock was stepped: a restore point records when, for as long as that matters
        if marked is None:  # it was created before the node started
            return is_old
        now = self._look(volume)
        much = now.log_bytes - marked.log_bytes >= LOG_BYTES and len(restore_points) < RESTORE_POINTS_MAX
        return now.changes != marked.changes and bool(much or is_old)

    def _look(self, volume: NodeVolume) -> _Counters:
        counters = counters_by_name(self._engine.counters(volume.record.id))
        return _Counters(
            sum(counters[each] for each in CHANGES), self._engine.volume_state(volume.record.id)["log_bytes"]
        )

    async def _create_if_there_is_space(self, volume: NodeVolume) -> None:
        """Without space, the next round tries again."""
        try:
            await self._create_restore_point(volume)
        except NoSpace:
            if volume.unmarked.begins(time.monotonic()):
                log.warning(
                    "no space: a restore point that is due is created once there is some",
                    volume=volume.record.name,
                )

    async def _create_restore_point(self, volume: NodeVolume, *, urgent: bool = False) -> None:
        """urgent: replace other restore points, which are deleted then."""
        await self.undo(volume)  # a new restore point would settle an unfinished restore
        now = self._look(volume)
        await self._engine.create_snapshots([(volume.record.id, *new_restore_point())], mark=True, urgent=urgent)
        self._at_restore_point[volume.record.id] = now
        await self._snapshots.refresh(volume)

    def _clones(self, volume: NodeVolume, entry: dict[str, Any]) -> list[str]:
        return self._volumes.clones(volume, uuid.UUID(bytes=entry["id"]))

    async def _drop(self, volume: NodeVolume, restore_point: dict[str, Any]) -> None:
        identity = uuid.UUID(bytes=restore_point["id"])
        if self._clones(volume, restore_point):
            await self._engine.unmark_snapshot(volume.record.id, identity)
        else:
            await self._engine.delete_snapshot(volume.record.id, identity)


def _log_time(what: str, reach: str, samples: list[Sample], at_ns: int) -> int:
    """The log time of a Unix time. Raises InvalidArgument."""
    found, now = stretches(samples), samples[-1].log_ns + samples[-1].clock_ns
    if now < at_ns <= now + TOLERANCE_NS:
        at_ns = now
    times = log_times(found, at_ns)
    if len(times) == 1 and times[0] is not None:
        return times[0]
    if at_ns > now and not times:
        raise InvalidArgument(f"{what}: that is in the future")
    if at_ns < min(stretch.from_ns for stretch in found):
        raise InvalidArgument(f"{what}: {reach}")
    how_often = (
        "may have come more than once or never" if None in times else "came more than once" if times else "never came"
    )
    near = sorted(available(found), key=lambda one: max(one.from_ns - at_ns, at_ns - one.to_ns))[:RANGES_SHOWN]
    ranges = "; ".join(
        f"{exact_time(_round_up(one.from_ns))} to {exact_time(one.to_ns // MS * MS)}" for one in sorted(near)
    )
    remedy = f"choose a time in {ranges}, or give how" if ranges else "give how"
    raise InvalidArgument(
        f"{what}: the wall clock of the node was stepped, and that time {how_often}: {remedy} long ago ('90s ago')"
    )


def check_point_in_time(*, at_ns: int | None, ago_ns: int | None) -> None:
    """Validates a client's request: a Unix time, or a span of log time before now, in nanoseconds. Raises
    InvalidArgument."""
    if at_ns is None and ago_ns is None:
        raise InvalidArgument("the point in time is missing: give a time or how long ago")
    if at_ns is not None and at_ns <= 0:
        raise InvalidArgument("the point in time is before 1970")
    if ago_ns is not None and ago_ns < 0:
        raise InvalidArgument(f"the point in time, {ago_ns / SECOND_NS:g} s ago, is in the future")


def _round_up(nanoseconds: int) -> int:
    return -(-nanoseconds // MS) * MS


def check_window(seconds: int) -> None:
    if seconds and not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise InvalidArgument(
            f"a restore window of {exact_span(seconds)} is out of range: use {exact_span(SHORTEST_SECONDS)} to "
            f"{exact_span(LONGEST_SECONDS)}, or off"
        )


def interval_seconds(window: int) -> float:
    return max(window / RESTORE_POINTS, INTERVAL_SECONDS)


def restore_points_of(volume: NodeVolume) -> list[dict[str, Any]]:
    """Oldest first, as the engine listed them last."""
    return [entry for entry in volume.snapshots if entry["mark"] and is_kept(entry)]


def expired(restore_points: list[dict[str, Any]], window: int, now_ns: int) -> list[dict[str, Any]]:
    """Those that no point in time of the window needs; with no window, all. now_ns: log time, which a wrong clock does
    not affect."""
    if not window:
        return restore_points
    from_ns = now_ns - window * SECOND_NS
    return [each for each, following in itertools.pairwise(restore_points) if following["log_ns"] <= from_ns]


def is_left_over(entry: dict[str, Any]) -> bool:
    """It was a restore point that a clone stood on."""
    return is_kept(entry) and not visible(entry) and not entry["mark"]
