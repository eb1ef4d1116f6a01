"""Costs besides I/O: memory of a large volume, start time after a crash, CPU when idle."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from iomesh_perf import fio, process
from iomesh_perf.nbd import Client, served_after
from iomesh_perf.results import Measure
from iomesh_perf.settings import GIB, MIB, Settings
from iomesh_perf.trial import Trial, TrialError

Say = Callable[[str], None]
RANDOM_WRITES = fio.Workload("write", random=True, block_bytes=4096, depth=32)


def resident_memory(settings: Settings, say: Say) -> list[Measure]:
    """Peak memory of the node (VmHWM), under 4 KiB random writes over a volume whose map far exceeds its cache."""
    need_room(settings.directory, settings.memory_device_bytes)
    volume, written = settings.memory_volume_bytes, settings.memory_written_bytes
    say(f"memory: {written / GIB:g} GiB at random over {volume / GIB:g} GiB with a map cache of 64 MiB")
    with Trial(
        settings.directory / "memory",
        device_bytes=settings.memory_device_bytes,
        volume_bytes=volume,
        prewrite=False,
        map_cache_bytes=64 * MIB,
    ) as trial:
        before = process.memory(trial.pid)
        fio.run(RANDOM_WRITES, fio.Nbd(trial.uri), fio.Extent(volume, most_bytes=written))
        after = process.memory(trial.pid)
    name = f"resident memory, {volume / GIB:g} GiB volume, {written / GIB:g} GiB written at random, 64 MiB map cache"
    note = (
        f"the peak; {after['VmRSS'] / MIB:.0f} MiB at the end, {before['VmRSS'] / MIB:.0f} MiB before the first write"
    )
    return [Measure(name, after["VmHWM"] / MIB, "MiB", "less", note=note)]


def start_after_crash(settings: Settings, say: Say) -> list[Measure]:
    """SIGKILL with this much log since the last checkpoint, then the time from the new process's start to its first
    read reply.
    """
    wanted = settings.restart_log_bytes
    need_room(settings.directory, 3 * wanted)
    say(f"restart: {wanted / GIB:g} GiB of log since the checkpoint, in 4 KiB writes at random")
    with Trial(
        settings.directory / "restart",
        device_bytes=3 * wanted,
        volume_bytes=wanted,
        prewrite=False,
        checkpoint_bytes=1 << 40,
    ) as trial:
        seed, log = 1, 0
        while log < wanted:
            extent = fio.Extent(wanted, most_bytes=max(16 * MIB, (wanted - log) * 9 // 10), seed=seed)
            fio.run(RANDOM_WRITES, fio.Nbd(trial.uri), extent)
            seed, log = seed + 1, trial.log_bytes_since_checkpoint()
        trial.crash()
        asked = time.monotonic()
        trial.start()
        served_after(trial.uri, asked)
        served = time.clock_gettime(time.CLOCK_BOOTTIME)
        seconds = served - process.born(trial.pid)
        recovery = trial.recovery_seconds()
    name = f"start after SIGKILL with {wanted / GIB:g} GiB of log since the checkpoint"
    note = (
        f"from the process's start to its first answer; {log / GIB:.2f} GiB of log, whose recovery took "
        f"{recovery:.2f} s"
    )
    return [Measure(name, seconds, "s", "less", note=note)]


def idle_cpu(settings: Settings, say: Say) -> list[Measure]:
    """CPU with a client connected and idle."""
    say(f"idle: {settings.idle_seconds:g} s with a connected client that does nothing")
    with (
        Trial(settings.directory / "idle", device_bytes=4 * GIB, volume_bytes=GIB, prewrite=False) as trial,
        Client(trial.uri) as client,
    ):
        client.read(0, 4096)
        time.sleep(2)
        before, began = process.cpu(trial.pid), time.monotonic()
        time.sleep(settings.idle_seconds)
        spent, seconds = process.cpu(trial.pid) - before, time.monotonic() - began
    note = f"{spent.total * 1000:.0f} ms in {seconds:.0f} s"
    return [
        Measure(
            "CPU of an idle node with an attached volume", spent.total / seconds * 100, "% of a core", "less", note=note
        )
    ]


def need_room(directory: Path, wanted: int) -> None:
    """Fail before anything is written, not when the file system is full."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < wanted + GIB:
        raise TrialError(
            f"{directory} has {free / GIB:.1f} GiB free, and {wanted / GIB + 1:.1f} GiB are needed: choose another "
            "place with --directory"
        )
