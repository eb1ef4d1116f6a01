"""What is known of the copies of a volume's segments: how many are missing, and how their rebuild proceeds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

RATE_SECONDS = 15.0  # over which the present speed is measured


@dataclass
class Redundancy:
    exposed_segments: int = 0  # that have fewer working copies than the volume wants
    exposed_bytes: int = 0  # that the missing copies take
    rebuilt_segments: int = 0  # since this node opened the volume
    rebuilt_bytes: int = 0
    dropped_segments: int = 0  # copies that were too many
    reason: str = ""  # what keeps exposed segments from being rebuilt; empty: nothing
    failure: str = ""  # of the last copy, if it was not made
    _done: list[tuple[float, int]] = field(default_factory=list)  # when, bytes: of the last RATE_SECONDS

    def note_rebuilt(self, bytes_: int) -> None:
        self.failure = ""
        self.rebuilt_segments += 1
        self.rebuilt_bytes += bytes_
        self.exposed_segments = max(self.exposed_segments - 1, 0)
        self.exposed_bytes = max(self.exposed_bytes - bytes_, 0)
        self._done.append((time.monotonic(), bytes_))

    @property
    def bytes_per_second(self) -> float:
        now = time.monotonic()
        self._done = [each for each in self._done if each[0] >= now - RATE_SECONDS]
        if not self._done:
            return 0.0
        return sum(bytes_ for _, bytes_ in self._done) / max(now - self._done[0][0], 1.0)

    @property
    def eta_seconds(self) -> float:
        """0: nothing is exposed, or the speed is not known."""
        speed = self.bytes_per_second
        return self.exposed_bytes / speed if speed else 0.0
