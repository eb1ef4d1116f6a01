"""User-space instructions of the reactor's thread, counted while fio writes.

Hardware counters are used where available (`perf stat`), which is rare in virtual machines. Elsewhere the thread is
single-stepped: ptrace stops it after each instruction and records its address. That is exact and some ten thousand
times slower. So slow a reactor always finds the client's whole queue, and every device write complete when it polls:
records are full, and the figure excludes idle polling, which occurs in real time and delays no request.

(callgrind would be faster, but valgrind 3.19, Debian 12's, holds its one lock through io_uring_enter: a sleeping
reactor stops the whole process.)
"""

import bisect
import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from iomesh_perf import fio, process
from iomesh_perf.trial import TrialError

PTRACE_PEEKUSER, PTRACE_SINGLESTEP, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 3, 9, 17, 0x4206, 0x4207
RIP_OFFSET = 16 * 8  # of struct user on x86-64
WALL = 0x40000000  # __WALL: also threads that are not children

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Mappings:
    """Maps addresses to files."""

    def __init__(self, text: str) -> None:
        """text: of /proc/PID/maps."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._files: list[str] = []
        for line in text.splitlines():
            words = line.split(maxsplit=5)
            start, _, end = words[0].partition("-")
            self._starts.append(int(start, 16))
            self._ends.append(int(end, 16))
            self._files.append(words[5] if len(words) > 5 else "?")

    def file_at(self, address: int) -> str:
        index = bisect.bisect_right(self._starts, address) - 1
        return self._files[index] if index >= 0 and address < self._ends[index] else "?"


def counters_there() -> bool:
    """Whether this machine can count user-space instructions."""
    try:
        outcome = subprocess.run(
            ["perf", "stat", "-x,", "-e", "instructions:u", "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return False
    return outcome.returncode == 0 and parse_stat(outcome.stderr) is not None


def parse_stat(text: str) -> int | None:
    """Instructions from `perf stat -x,`; None if they were not counted."""
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2].startswith("instructions"):
            return int(fields[0]) if fields[0].isdigit() else None
    return None


def by_counters(
    pid: int, thread: int, workload: fio.Workload, endpoint: fio.Endpoint, extent: fio.Extent
) -> tuple[int, int]:
    """Instructions of `thread` and operations of fio in one run."""
    watch = subprocess.Popen(
        ["perf", "stat", "-x,", "-e", "instructions:u", "-t", str(thread)], stderr=subprocess.PIPE, text=True
    )
    try:
        run = fio.run(workload, endpoint, extent)
    finally:
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate()
    counted = parse_stat(said)
    if counted is None:
        raise TrialError(f"perf stat counted nothing for thread {thread} of {pid}: {said.strip()[-300:]}")
    return counted, run.ios


def by_steps(
    pid: int, thread: int, workload: fio.Workload, endpoint: fio.Endpoint, extent: fio.Extent
) -> tuple[Counter[str], int]:
    """Instructions of `thread` by object file, and operations of fio, in one single-stepped run."""
    if platform.machine() != "x86_64":
        raise TrialError(
            f"instructions are stepped on x86-64 only and this is {platform.machine()}: a machine with hardware "
            "counters needs no steps"
        )
    at: Counter[int] = Counter()
    printed: list[str] = []
    with traced(pid, thread):
        load = subprocess.Popen(
            fio.command(workload, endpoint, extent), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

        def end_with_fio() -> None:
            printed.extend(load.communicate())
            # It may sleep in the kernel, where nothing can be stepped.
            process.signal_thread(pid, thread, signal.SIGSTOP)

        waiter = threading.Thread(target=end_with_fio)
        waiter.start()
        try:
            step_until_stopped(thread, at)
        finally:
            if load.poll() is None:
                load.kill()
            waiter.join()
    if load.returncode:
        raise fio.FioError(f"fio failed with status {load.returncode}: {printed[1].strip()[-500:]}")
    mappings = Mappings(Path(f"/proc/{pid}/maps").read_text())
    files: Counter[str] = Counter()
    for address, times in at.items():
        files[mappings.file_at(address)] += times
    return files, fio.parse(printed[0], workload.direction).ios


@contextlib.contextmanager
def traced(pid: int, thread: int) -> Iterator[None]:
    """Seizes the thread and interrupts it, for single-stepping; afterwards it runs on normally."""
    _ptrace(PTRACE_SEIZE, thread)
    try:
        _ptrace(PTRACE_INTERRUPT, thread)
        yield
    finally:
        libc.ptrace(PTRACE_DETACH, thread, None, None)
        process.signal_thread(pid, thread, signal.SIGCONT)


def step_until_stopped(thread: int, at: Counter[int]) -> None:
    """Step a seized thread, one instruction at a time, until it receives SIGSTOP."""
    ptrace, waitpid = libc.ptrace, os.waitpid
    begun = False
    while True:
        _, status = waitpid(thread, WALL)
        if not os.WIFSTOPPED(status):
            raise TrialError(f"thread {thread} ended while it was stepped (status {status:#x})")
        stopped_by = os.WSTOPSIG(status)
        if stopped_by == signal.SIGSTOP:
            return
        if stopped_by == signal.SIGTRAP:
            if begun:
                at[ptrace(PTRACE_PEEKUSER, thread, RIP_OFFSET, None) & (2**64 - 1)] += 1
            begun, stopped_by = True, 0
        if ptrace(PTRACE_SINGLESTEP, thread, None, stopped_by):
            raise OSError(ctypes.get_errno(), f"stepping thread {thread}")


def _ptrace(request: int, thread: int) -> None:
    if libc.ptrace(request, thread, None, None):
        error = ctypes.get_errno()
        raise TrialError(
            f"thread {thread} cannot be traced ({os.strerror(error)}): run as root, or set the sysctl "
            "kernel.yama.ptrace_scope to 0"
        )
