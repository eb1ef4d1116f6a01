"""Process statistics of Linux: CPU time and memory, from /proc."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """CPU time in seconds."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.user - earlier.user, self.system - earlier.system)


def parse_stat(text: str) -> Cpu:
    """CPU time from /proc/PID/stat. The command's name may contain spaces and parentheses: fields are counted after the
    last one.
    """
    fields = text[text.rindex(")") + 2 :].split()
    return Cpu(int(fields[11]) / TICKS_PER_SECOND, int(fields[12]) / TICKS_PER_SECOND)


def parse_memory(text: str) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes: VmRSS, VmHWM, ..."""
    sizes = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            sizes[name] = int(words[0]) * 1024
    return sizes


def cpu(pid: int) -> Cpu:
    """User and system time of a process, its threads and those that ended."""
    return parse_stat(Path(f"/proc/{pid}/stat").read_text())


def thread_cpu(pid: int, thread: int) -> Cpu:
    return parse_stat(Path(f"/proc/{pid}/task/{thread}/stat").read_text())


def memory(pid: int) -> dict[str, int]:
    return parse_memory(Path(f"/proc/{pid}/status").read_text())


@dataclass(frozen=True)
class Storage:
    """Bytes read from and written to storage by a process; reads of files in memory are not counted."""

    read: int
    written: int


def parse_io(text: str) -> Storage:
    """From /proc/PID/io."""
    sizes = {name: int(size) for name, size in (line.split(":") for line in text.splitlines())}
    return Storage(sizes["read_bytes"], sizes["write_bytes"])


def storage(pid: int) -> Storage:
    """Includes threads, and children that have ended."""
    return parse_io(Path(f"/proc/{pid}/io").read_text())


def threads(pid: int) -> list[int]:
    return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())


def busiest_thread(pid: int, seconds: float = 1.0) -> int:
    """The thread that used most CPU during the sample: under load the reactor's."""
    before = {thread: thread_cpu(pid, thread).total for thread in threads(pid)}
    time.sleep(seconds)
    used = {
        thread: thread_cpu(pid, thread).total - spent
        for thread, spent in before.items()
        if Path(f"/proc/{pid}/task/{thread}").exists()
    }
    return max(used, key=lambda thread: used[thread])


def signal_thread(pid: int, thread: int, number: signal.Signals) -> None:
    """tgkill: Python offers it for its own threads only."""
    ctypes.CDLL(None).syscall(234 if os.uname().machine == "x86_64" else 131, pid, thread, int(number))


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"


def end(pid: int, with_signal: signal.Signals = signal.SIGTERM, timeout_seconds: float = 60) -> None:
    """Send a signal and wait until the process has ended. It need not be our child."""
    try:
        os.kill(pid, with_signal)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + timeout_seconds
    while alive(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} is still there {timeout_seconds:g} s after {with_signal.name}")
        time.sleep(0.005)


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """Its threads are stopped while the `with` lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def parse_born(text: str) -> float:
    """Start time of the process, in seconds since boot, from /proc/PID/stat."""
    return int(text[text.rindex(")") + 2 :].split()[19]) / TICKS_PER_SECOND


def born(pid: int) -> float:
    """On the clock CLOCK_BOOTTIME."""
    return parse_born(Path(f"/proc/{pid}/stat").read_text())
