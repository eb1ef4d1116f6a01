"""Runs external programs: each succeeds, or fails the test with all of its output."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# Not on every user's PATH, though mkfs and losetup are there.
SYSTEM_FOLDERS = (
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
)


def tool(name: str, package: str) -> str:
    """The path of a program. Skips the test with an install hint if it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM_FOLDERS))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def run(
    command: Sequence[str | Path], *, timeout: float = 300, stdin: str | None = None, succeeds: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a command to completion; fails the test unless it succeeds (with `succeeds` False the caller checks)."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if succeeds and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def eventually(true: Callable[[], bool], *, what: str, seconds: float = 120) -> None:
    """Waits until a condition is true. The limit only ends hung tests; it is not a performance limit."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"gave up after {seconds:g} s: {what}")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pause(pid: int) -> None:
    """Returns once none of the process's threads runs."""
    os.kill(pid, signal.SIGSTOP)
    eventually(
        lambda: all(" T " in stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")),
        what=f"process {pid} stops",
    )


def end(pid: int, sign: signal.Signals = signal.SIGKILL, *, seconds: float = 120) -> None:
    """Ends a process, whoever its parent is, and returns once it has ended."""
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return
    eventually(lambda: not alive(pid), what=f"process {pid} ends after {sign.name}", seconds=seconds)
