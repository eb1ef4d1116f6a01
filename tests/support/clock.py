"""The wall clock of a running daemon, stepped with libfaketime. The monotonic clock stays the kernel's."""

from __future__ import annotations

import time
from pathlib import Path

SECOND_NS = 10**9


class WallClock:
    """The clock of the daemon whose environment has `variables`: this machine's time plus `ahead_seconds`."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "wall-clock"
        self.ahead_seconds = 0
        self.step(0)

    @property
    def variables(self) -> dict[str, str]:
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        assert library is not None, "libfaketime is not installed: `make packages-test` does it"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "NO_FAKE_STAT": "1",
        }

    def step(self, seconds: int) -> None:
        """Steps forward, or back if `seconds` is negative. The step is complete on return."""
        self.ahead_seconds += seconds
        following = self._file.with_suffix(".new")
        following.write_text(f"{self.ahead_seconds:+d}\n")
        following.rename(self._file)

    def now_ns(self) -> int:
        """Unix time in nanoseconds, as the daemon reads it."""
        return time.time_ns() + self.ahead_seconds * SECOND_NS
