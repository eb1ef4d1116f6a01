"""Notices commits in a SQLite file, those of other processes included, and leases that end: wakes the watches.

SQLite sends no event, so a thread asks LOOKS_PER_SECOND times whether the file's data version has changed. In a thread
of its own a question takes a few microseconds; through the event loop it would take several hundred.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

LOOKS_PER_SECOND = 20


class CommitLookout:
    """Calls `wake` in its thread from `start` to `stop`: for every commit after `start`, and also without one."""

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        self._path = path
        self._wake = wake
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="metadata commits", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Returns once the file is closed."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(sqlite3.Error, MemoryError), closing(self._connect()) as database:
                self._look(database)
            # The file cannot be read: the watches find out why, and raise it.
            self._wake()
            self._stopping.wait(1 / LOOKS_PER_SECOND)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", timeout=0.0, isolation_level=None, uri=True)

    def _look(self, database: sqlite3.Connection) -> None:
        """Until it is stopped. Raises sqlite3.Error."""
        seen: int | None = None
        revision: int | None = None
        ends: float | None = None
        while not self._stopping.is_set():
            (version,) = database.execute("PRAGMA data_version").fetchone()
            before = revision
            if version != seen:  # a renewal of a lease changes the data version, and no revision
                seen = version
                (revision,) = database.execute("SELECT now FROM revision").fetchone()
                (ends,) = database.execute("SELECT min(ends) FROM leases").fetchone()
            if revision != before or (ends is not None and ends <= time.clock_gettime(time.CLOCK_BOOTTIME)):
                self._wake()
            self._stopping.wait(1 / LOOKS_PER_SECOND)
