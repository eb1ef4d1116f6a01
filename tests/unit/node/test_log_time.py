"""Which log time a Unix time stands for, beside a model that knows what the wall clock showed at every log time."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest

from iomesh.node.log_time import Range, Sample, ago, available, log_times, stretches


@dataclass
class History:
    """A log whose wall clock is stepped, and that is closed at times: what the engine does (ext/base/log_clock.pxd), in
    ticks, with a look at the clock at some of them only."""

    draw: random.Random
    shown: list[tuple[int, int, int]] = field(default_factory=list)  # log time, wall clock, passed
    samples: list[Sample] = field(default_factory=list)
    log: int = 100
    wall: int = 1_000_000
    passed: int = 0
    offset: int = 0
    checked: int = 0
    until: int = 0
    since: int = 0

    def begin(self) -> None:
        self.offset, self.checked = self.wall - self.log, self.log
        self.show()
        self.sample()

    def show(self) -> None:
        self.shown.append((self.log, self.wall, self.passed))

    def look(self) -> None:
        if self.wall - self.log != self.offset:
            if not self.since:
                self.until = self.checked
            self.offset = self.wall - self.log
            self.since = self.log
        self.checked = self.log

    def sample(self) -> None:
        self.look()
        self.samples.append(Sample(self.log, self.offset, self.until, self.since))
        self.until = self.since = 0

    def tick(self) -> None:
        self.log, self.wall, self.passed = self.log + 1, self.wall + 1, self.passed + 1
        self.show()
        if self.draw.random() < 0.3:
            self.look()
        if self.draw.random() < (0.5 if self.since else 0.1):  # the node makes a restore point soon after a step
            self.sample()

    @property
    def settled(self) -> bool:
        """The restore points tell of all steps. Others that follow before are taken for one with them."""
        return not self.since and self.wall - self.log == self.offset

    def step(self) -> None:
        self.wall += self.draw.choice((-1, 1)) * self.draw.choice((3, 40, 1000))
        self.tick()

    def close(self) -> None:
        """The wall clock may be stepped meanwhile."""
        self.until = self.log
        closed = self.draw.randrange(50)
        self.passed += closed
        self.log += 1
        self.wall += 1 + closed + self.draw.choice((0, 0, -30, 500))
        self.since = self.log
        self.offset, self.checked = self.wall - self.log, self.log
        self.show()


def made(seed: int) -> History:
    history = History(random.Random(seed))
    history.begin()
    for _ in range(300):
        chance = history.draw.random()
        if chance < 0.02 and history.settled:
            history.step()
        elif chance < 0.03 and history.settled:
            history.close()
        else:
            history.tick()
    history.sample()
    return history


@pytest.mark.parametrize("seed", range(200))
def test_a_time_leads_to_the_one_log_time_at_which_the_wall_clock_showed_it(seed: int) -> None:
    history = made(seed)
    found = stretches(history.samples)
    ranges = available(found)
    assert all(one.to_ns < other.from_ns for one, other in itertools.pairwise(ranges))
    answered = 0
    for at in {wall for _, wall, _ in history.shown}:
        truth = {log for log, wall, _ in history.shown if wall == at}
        times = log_times(found, at)
        assert (len(times) == 1 and times[0] is not None) == any(one.from_ns <= at <= one.to_ns for one in ranges)
        if len(times) == 1 and times[0] is not None:
            assert truth == {times[0]}, f"{at} was shown at {truth}"
            answered += 1
    assert answered, "no time is available"


@pytest.mark.parametrize("seed", range(200))
def test_a_time_that_never_came_leads_nowhere_or_to_where_the_log_was_closed(seed: int) -> None:
    history = made(seed)
    found, walls = stretches(history.samples), {wall for _, wall, _ in history.shown}
    for at in range(min(walls), max(walls)):
        times = log_times(found, at)
        if at not in walls and len(times) == 1 and times[0] is not None:
            assert all(one.still for one in found if one.from_ns <= at < one.to_ns)


def test_times_of_one_run_are_log_times_and_an_offset() -> None:
    samples = [Sample(100, 900, 0, 0), Sample(150, 900, 0, 0), Sample(200, 900, 0, 0)]
    assert available(stretches(samples)) == [Range(1000, 1100)]
    assert log_times(stretches(samples), 1020) == [120]
    assert log_times(stretches(samples), 999) == log_times(stretches(samples), 1101) == []
    assert ago(samples, 0) == (200, 1100)
    assert ago(samples, 70) == (130, 1030)
    assert ago(samples, 100) == (100, 1000)
    assert ago(samples, 101) is None


def test_a_step_forward_leaves_a_gap_and_a_step_back_an_overlap() -> None:
    forward = [Sample(100, 900, 0, 0), Sample(200, 5900, 149, 152)]
    assert available(stretches(forward)) == [Range(1000, 1049), Range(6052, 6100)]
    assert log_times(stretches(forward), 3000) == []
    assert ago(forward, 90) == (110, 1010)
    back = [Sample(100, 900, 0, 0), Sample(200, 880, 149, 152)]
    assert available(stretches(back)) == [Range(1000, 1029), Range(1052, 1080)]
    assert log_times(stretches(back), 1032) == [132, 152]
    assert ago(back, 90) == (110, 1010)


def test_while_the_volume_was_closed_it_was_what_it_was() -> None:
    samples = [Sample(100, 900, 0, 0), Sample(201, 1899, 150, 151)]
    assert available(stretches(samples)) == [Range(1000, 2100)]
    assert log_times(stretches(samples), 1700) == [150]
    assert ago(samples, 50) == (151, 2050)
    assert ago(samples, 400) == (150, 1700)
    assert ago(samples, 1100) == (100, 1000)
    assert ago(samples, 1101) is None


def test_without_the_restore_point_that_tells_of_a_step_nothing_between_its_neighbours_is_available() -> None:
    samples = [Sample(100, 900, 0, 0), Sample(150, 900, 0, 0), Sample(200, 5900, 0, 0), Sample(250, 5900, 0, 0)]
    assert available(stretches(samples)) == [Range(1000, 1049), Range(6100, 6150)]
