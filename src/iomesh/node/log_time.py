"""The log time that a Unix time stands for, derived from a volume's restore points and its clock
(docs/decisions/0020-log-time.md).

The engine counts log time, which never runs back. The wall clock showed log time plus an offset, which each step of
that clock changed:

    log time     0 ---- 1 ---- 2 ---- 3 ---- 4
    wall clock  10     11     12 | 62     63     a step forward: no time between 12 and 62 ever came
    wall clock  10     11     12 | 11     12     a step back: 11.5 came twice

Nothing here reads a clock. All times are in nanoseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

TOLERANCE_NS = 5 * 10**6  # the engine cannot distinguish a smaller step of the wall clock from noise
SEEN, STILL, UNKNOWN = range(3)


class Sample(NamedTuple):
    """A restore point, or the present. The wall clock may have been stepped between it and the sample before it."""

    log_ns: int
    clock_ns: int  # wall clock minus log time
    until_ns: int  # the offset of the sample before was valid until this log time ...
    # ... and this one's since this one; 0: there was no step in between. until_ns + 1: the volume was closed meanwhile
    since_ns: int


class Stretch(NamedTuple):
    """Unix times from `from_ns` up to and without `to_ns`, which the wall clock showed in sequence."""

    from_ns: int
    to_ns: int
    log_ns: int | None  # log time at `from_ns`; None: unknown whether, and when, the wall clock showed these
    still: bool = False  # the volume was closed: log time stood still

    def log_time(self, at_ns: int) -> int | None:
        return self.log_ns if self.still or self.log_ns is None else self.log_ns + at_ns - self.from_ns


class Range(NamedTuple):
    """Unix times, both ends included."""

    from_ns: int
    to_ns: int


def sample_of(point: dict[str, Any]) -> Sample:
    """`point`: a restore point as the engine lists it."""
    return Sample(point["log_ns"], point["clock_ns"], point["until_ns"], point["since_ns"])


def stretches(samples: Sequence[Sample]) -> list[Stretch]:
    """What the wall clock showed between the first sample and the last one, which is the present. Ordered by log
    time."""
    found = [stretch for before, after in itertools.pairwise(samples) for stretch in _between(before, after)]
    now = samples[-1]
    found.append(Stretch(now.log_ns + now.clock_ns, now.log_ns + now.clock_ns + 1, now.log_ns))
    return [stretch for stretch in found if stretch.from_ns < stretch.to_ns]


def _between(before: Sample, after: Sample) -> Iterator[Stretch]:
    if not after.since_ns:
        if before.clock_ns == after.clock_ns:
            yield Stretch(before.log_ns + before.clock_ns, after.log_ns + before.clock_ns, before.log_ns)
        else:  # a restore point in between, which would show it, was deleted
            yield from _unknown(before.log_ns, after.log_ns, before, after)
        return
    until = max(before.log_ns, after.until_ns)
    yield Stretch(before.log_ns + before.clock_ns, until + 1 + before.clock_ns, before.log_ns)
    if _was_closed(after):
        yield Stretch(until + 1 + before.clock_ns, after.since_ns + after.clock_ns, until, still=True)
    else:
        yield from _unknown(until + 1, after.since_ns, before, after)
    yield Stretch(after.since_ns + after.clock_ns, after.log_ns + after.clock_ns, after.since_ns)


def _unknown(from_ns: int, to_ns: int, before: Sample, after: Sample) -> Iterator[Stretch]:
    for clock_ns in (before.clock_ns, after.clock_ns):
        yield Stretch(from_ns + clock_ns, to_ns + clock_ns, None)


def _was_closed(after: Sample) -> bool:
    return after.since_ns == after.until_ns + 1


def log_times(found: Sequence[Stretch], at_ns: int) -> list[int | None]:
    """Each log time at which the wall clock showed `at_ns`; None stands for an unknown one. Times that it may have
    shown, unobserved, while the volume was closed count only if it showed `at_ns` at no other time."""
    covering = [stretch for stretch in found if stretch.from_ns <= at_ns < stretch.to_ns]
    seen = [stretch for stretch in covering if not stretch.still]
    return [stretch.log_time(at_ns) for stretch in seen or covering]


def available(found: Sequence[Stretch]) -> list[Range]:
    """The Unix times that stand for exactly one log time, in order."""
    ends = sorted(end for one in found for end in ((one.from_ns, 1, _kind(one)), (one.to_ns, -1, _kind(one))))
    ranges: list[Range] = []
    covering, began = [0, 0, 0], 0
    for at_ns, group in itertools.groupby(ends, key=lambda end: end[0]):
        if not covering[UNKNOWN] and (covering[SEEN] == 1 or (not covering[SEEN] and covering[STILL] == 1)):
            ranges.append(Range(began, at_ns - 1))
        for _, change, kind in group:
            covering[kind] += change
        began = at_ns
    merged: list[Range] = []
    for one in ranges:
        if merged and merged[-1].to_ns + 1 == one.from_ns:
            merged[-1] = Range(merged[-1].from_ns, one.to_ns)
        else:
            merged.append(one)
    return merged


def _kind(stretch: Stretch) -> int:
    return UNKNOWN if stretch.log_ns is None else STILL if stretch.still else SEEN


def ago(samples: Sequence[Sample], ago_ns: int) -> tuple[int, int] | None:
    """(log time, wall clock then) of `ago_ns` before the present; None: that is before the first sample.

    The span is measured in log time; while the volume was closed, only by the wall clock, provided that it did not run
    back meanwhile.
    """
    for before, after in reversed(list(itertools.pairwise(samples))):
        began = after.since_ns or before.log_ns
        if ago_ns <= after.log_ns - began:
            return after.log_ns - ago_ns, after.log_ns - ago_ns + after.clock_ns
        ago_ns -= after.log_ns - began
        if not after.since_ns:
            continue
        until = max(before.log_ns, after.until_ns)
        length = max(0, began + after.clock_ns - until - before.clock_ns) if _was_closed(after) else began - until
        if ago_ns <= length:
            return (until if _was_closed(after) else began - ago_ns), began + after.clock_ns - ago_ns
        ago_ns -= length
        if ago_ns <= until - before.log_ns:
            return until - ago_ns, until - ago_ns + before.clock_ns
        ago_ns -= until - before.log_ns
    return (samples[0].log_ns, samples[0].log_ns + samples[0].clock_ns) if ago_ns == 0 else None
