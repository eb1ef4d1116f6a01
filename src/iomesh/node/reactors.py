"""The load of the reactors, and which of them a volume is opened on.

A volume stays on its reactor until it is closed, so the choice is made once, at its opening: the reactor with the
least load, then the one with the fewest volumes, then the lowest number. A clone is not placed: it reads its parent's
log, on its parent's reactor.

Load is the share of the last WINDOW_SECONDS that a reactor was busy, plus OPENED for each volume that was opened on
it in that time: what those will do is not seen yet, and at the node's start all volumes are opened at once. Loads that
differ by less than ALIKE count as equal: a little noise must not decide over an even distribution.
"""

from collections import deque
from collections.abc import Sequence

WINDOW_SECONDS = 5.0
SAMPLE_SECONDS = 1.0
OPENED = 0.1
ALIKE = 0.1


class ReactorLoads:
    """count: of the reactors. Times are monotonic, in seconds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()  # when, and the busy seconds so far of each
        self._opened: deque[tuple[float, int]] = deque()

    def sample(self, now: float, busy_seconds: Sequence[float]) -> None:
        """Every SAMPLE_SECONDS, and before a choice. busy_seconds: of each reactor since its start."""
        self._samples.append((now, tuple(busy_seconds)))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_SECONDS:
            self._samples.popleft()
        while self._opened and self._opened[0][0] <= now - WINDOW_SECONDS:
            self._opened.popleft()

    def opened(self, now: float, reactor: int) -> None:
        self._opened.append((now, reactor))

    def busy(self) -> list[float]:
        """The share of the last WINDOW_SECONDS that each reactor was busy. Before the first sample it was idle: the
        work of the node's first moments says nothing yet."""
        if not self._samples:
            return [0.0] * self._count
        (since, before), (now, after) = self._samples[0], self._samples[-1]
        seconds = max(WINDOW_SECONDS, now - since)
        return [min(1.0, (late - early) / seconds) for early, late in zip(before, after, strict=True)]

    def loads(self) -> list[float]:
        loads = self.busy()
        for _, reactor in self._opened:
            loads[reactor] += OPENED
        return loads

    def choose(self, volumes: Sequence[int]) -> int:
        """The reactor for a volume. volumes: how many each reactor has."""
        loads = self.loads()
        least = min(loads)
        return min((count, reactor) for reactor, count in enumerate(volumes) if loads[reactor] < least + ALIKE)[1]
