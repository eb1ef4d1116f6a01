"""A volume with three replicas on three nodes of this machine, one device file each: its speed beside the raw file, the
CPU time of all nodes, how long acknowledgements pause when a node fails, and what the idle cluster costs.

The three nodes and fio share the cores and the disk: what the figures can be is bounded by one machine that writes all
data three times. They are not those of three machines.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from iomesh_perf import fio, process
from iomesh_perf.cost import Say, need_room
from iomesh_perf.nbd import Client, NbdError
from iomesh_perf.results import Measure
from iomesh_perf.settings import GIB, MIB, Settings
from iomesh_perf.speed import SERVER_CPU, Series
from iomesh_perf.targets import IOMESH, Iomesh, RawFile
from iomesh_perf.trial import Trial

NODES = REPLICAS = 3
SUFFIX = f", {REPLICAS} replicas"
NODES_CPU = ", CPU of all nodes per I/O"
WORKLOADS: Sequence[fio.Workload] = (
    fio.Workload("write", random=False, block_bytes=MIB, depth=8),
    *(fio.Workload("write", random=True, block_bytes=4096, depth=depth) for depth in (1, 32)),
    fio.Workload("read", random=True, block_bytes=4096, depth=32),
)
PAUSE = "longest pause of acknowledgements when a member is "
TAKE_OVER = "take-over after the owner is killed"
IDLE = "CPU of three idle nodes with an attached volume"
IN_FLIGHT = 8  # of the client that times acknowledgements
SETTLE_SECONDS = 1.0
SILENT_SECONDS = 4.0  # a paused node is given up after 2
BACK_SECONDS = 60.0
TAKE_OVER_SECONDS = 30.0  # without another owner by then, there is no take-over


def trial_of(directory: Path, device_bytes: int, volume_bytes: int, *, prewrite: bool) -> Trial:
    return Trial(
        directory,
        device_bytes=device_bytes,
        volume_bytes=volume_bytes,
        prewrite=prewrite,
        nodes=NODES,
        replicas=REPLICAS,
    )


class Replicated(Iomesh):
    """The volume of `Iomesh` with a replica on each of three nodes."""

    def new_trial(self) -> Trial:
        return trial_of(self.directory, self.device_bytes, self.size_bytes, prewrite=True)

    def cpu_seconds(self) -> float:
        return sum(process.cpu(pid).total for pid in self.trial.pids.values())


def speed(
    settings: Settings, workloads: Sequence[fio.Workload], say: Say, progress: Callable[[Series, int], None]
) -> list[Measure]:
    """Every workload on the raw file and on the volume in turn."""
    span, series, done = settings.cluster_span_bytes, list[Series](), 0
    need_room(settings.directory, span + NODES * settings.cluster_device_bytes)
    with ExitStack() as up:
        say(f"writing the raw file, {span / GIB:g} GiB")
        raw = up.enter_context(RawFile(settings.directory / "raw", span))
        say(f"iomesh: writing {NODES} device files of {settings.cluster_device_bytes / GIB:g} GiB, then the volume")
        volume = up.enter_context(Replicated(settings.directory / "cluster", span, settings.cluster_device_bytes))
        for workload in workloads:
            current = Series(workload, SUFFIX)
            series.append(current)
            for number in range(settings.runs):
                most = settings.cluster_most_written_bytes if workload.direction == "write" else None
                extent = fio.Extent(span, settings.seconds, most, seed=number + 1)
                current.add(raw.name, fio.run(workload, raw.endpoint, extent), None)
                progress(current, done := done + 1)
                if most is not None:
                    volume.make_room(most * (9 if workload.depth == 1 else 5) // 4)
                before = volume.cpu_seconds()
                run = fio.run(workload, volume.endpoint, extent)
                current.add(IOMESH, run, (volume.cpu_seconds() - before) * 1e6)
                progress(current, done := done + 1)
    measures = [measure for current in series for measure in current.measures()]
    for measure in measures:
        measure.measure = measure.measure.replace(SERVER_CPU, NODES_CPU)
    return measures


# ---------------------------------------------------------------------- pauses


class Acknowledged:
    """Writes 4 KiB blocks, a few at a time, and notes when each is acknowledged; in a thread of its own."""

    def __init__(self, uri: str, size_bytes: int) -> None:
        self.at: list[float] = []  # time.monotonic()
        self.error: Exception | None = None
        self._uri, self._blocks = uri, size_bytes // 4096
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
        if self.error is not None:
            raise self.error

    def longest_pause(self, since: float, until: float) -> float:
        """Seconds between two acknowledgements, of which the second one came after `since` and the first before
        `until`."""
        pairs = zip(self.at, self.at[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > since and earlier < until), default=0.0)

    def _run(self) -> None:
        try:
            with Client(self._uri, timeout_seconds=BACK_SECONDS) as client:
                block, in_flight = 0, 0
                while in_flight or not self._stopping.is_set():
                    while in_flight < IN_FLIGHT and not self._stopping.is_set():
                        client.send_write(block * 7919 % self._blocks * 4096, b"\x5a" * 4096)
                        block, in_flight = block + 1, in_flight + 1
                    client.receive_written()
                    in_flight -= 1
                    self.at.append(time.monotonic())
        except (OSError, NbdError) as error:
            self.error = error


def pauses(settings: Settings, say: Say) -> list[Measure]:
    """Members in turn are killed and started again; then they are paused until they are given up, and resumed."""
    found: dict[str, list[float]] = {"killed": [], "silent": []}
    usual: list[float] = []
    with trial_of(settings.directory / "pauses", 4 * GIB, GIB // 4, prewrite=False) as trial:
        client = Acknowledged(trial.uri, GIB // 4)
        with client.running():
            time.sleep(2 * SETTLE_SECONDS)
            for way, pauses_of in found.items():
                say(f"pauses: a member is {way}, {settings.runs} times")
                for number in range(settings.runs):
                    member = trial.members[number % len(trial.members)]
                    began = time.monotonic()
                    time.sleep(SETTLE_SECONDS)
                    at = time.monotonic()
                    usual.append(client.longest_pause(began, at))
                    if way == "killed":
                        os.kill(trial.pids[member], signal.SIGKILL)
                        time.sleep(SETTLE_SECONDS)
                        until = time.monotonic()
                        trial.start(member)
                    else:
                        with process.paused(trial.pids[member]):
                            time.sleep(SILENT_SECONDS)
                            until = time.monotonic()
                    until_written_again(trial, member)
                    pauses_of.append(client.longest_pause(at, until))
    note = f"the longest of {settings.runs}, {IN_FLIGHT} writes of 4 KiB in flight; without, up to "
    note += f"{max(usual) * 1000:.0f} ms in {SETTLE_SECONDS:g} s"
    return [
        Measure(PAUSE + way, max(times) * 1000, "ms", "less", note=note, runs={IOMESH: [one * 1000 for one in times]})
        for way, times in found.items()
    ]


def until_written_again(trial: Trial, member: str) -> None:
    """Returns once the node writes to its device: it is a member again. The volume is under load."""
    written, deadline = process.storage(trial.pids[member]).written, time.monotonic() + BACK_SECONDS
    while process.storage(trial.pids[member]).written < written + MIB:
        if time.monotonic() > deadline:
            raise TimeoutError(f"node {member} was not taken in again within {BACK_SECONDS:g} s")
        time.sleep(0.02)


# ---------------------------------------------------------------------- take-over


def take_over(settings: Settings, say: Say) -> list[Measure]:
    """From the owner's end to the first block that is written and read through another node."""
    seconds: list[float] = []
    with trial_of(settings.directory / "take-over", 4 * GIB, GIB // 2, prewrite=False) as trial:
        fill = fio.Workload("write", random=True, block_bytes=4096, depth=32)
        for number in range(settings.runs):
            fio.run(fill, fio.Nbd(trial.uri), fio.Extent(GIB // 2, settings.seconds, seed=number + 1))
            say(f"take-over {number + 1}: node {trial.owner} is killed")
            owner, pid, asked = trial.owner, trial.pid, time.monotonic()
            os.kill(pid, signal.SIGKILL)
            if not trial.await_take_over(TAKE_OVER_SECONDS):
                say(f"take-over: skipped: no other node served the volume within {TAKE_OVER_SECONDS:g} s")
                return []
            write_and_read(trial.uri)
            seconds.append(time.monotonic() - asked)
            trial.start(owner)
    note = f"the longest of {settings.runs}, until a block is written and read through the new owner"
    return [Measure(TAKE_OVER, max(seconds), "s", "less", note=note, runs={IOMESH: seconds})]


def write_and_read(uri: str) -> None:
    with Client(uri) as client:
        client.send_write(0, b"\xa5" * 4096)
        client.receive_written()
        if client.read(0, 4096) != b"\xa5" * 4096:
            raise OSError(f"{uri} does not return what was written")


# ---------------------------------------------------------------------- idle


def idle_cpu(settings: Settings, say: Say) -> list[Measure]:
    """CPU of all nodes with a client connected and idle."""
    say(f"idle: {settings.idle_seconds:g} s with a connected client that does nothing")
    with (
        trial_of(settings.directory / "idle", 4 * GIB, GIB, prewrite=False) as trial,
        Client(trial.uri) as client,
    ):
        client.send_write(0, bytes(4096))
        client.receive_written()
        time.sleep(2)
        before, began = {pid: process.cpu(pid).total for pid in trial.pids.values()}, time.monotonic()
        time.sleep(settings.idle_seconds)
        seconds = time.monotonic() - began
        spent = {name: process.cpu(pid).total - before[pid] for name, pid in trial.pids.items()}
    note = ", ".join(f"{name} {one * 1000:.0f} ms" for name, one in sorted(spent.items())) + f" in {seconds:.0f} s"
    return [Measure(IDLE, sum(spent.values()) / seconds * 100, "% of a core", "less", note=note)]
