"""Processes of this machine as stored in records, so that a later reader can check whether they still run."""

from __future__ import annotations

import functools
import os
import uuid
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """Identifies one process for ever: its number is reused after its end, its start time is not."""

    number: int
    namespace: int  # inode of the PID namespace in which `number` is one
    started: int  # clock ticks after boot

    @property
    def runs(self) -> bool | None:
        """None: unknown, because it is in another PID namespace. Only for a process of this boot."""
        if self.namespace != _namespace():
            return None
        return _started(self.number) == self.started


def this_process() -> Process:
    return Process(os.getpid(), _namespace(), _started(os.getpid()))


@functools.cache
def boot_id() -> uuid.UUID:
    """The id of the running kernel's boot: different after every boot."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


@functools.cache
def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _started(number: int) -> int:
    """The start time of the process; 0 if there is no such process, or it is dead."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])
