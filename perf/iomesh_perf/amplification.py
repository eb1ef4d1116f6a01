"""Write amplification: device writes per client write, once the log must clean as fast as it is written.

The volume is 80 % of its device and full. A client then overwrites three times the device's capacity in 4 KiB blocks at
depth 32. Samples are taken throughout; the figures are of the last third, when the log is in its steady state.
"""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iomesh_perf import fio, process
from iomesh_perf.cost import Say, need_room
from iomesh_perf.results import Measure
from iomesh_perf.settings import GIB, MIB, Settings
from iomesh_perf.targets import FILL, RawFile
from iomesh_perf.trial import Trial

BLOCK = 4096
FILLED = 0.8  # share of the device that the volume takes
FRESH_SHARE, FRESH_RUNS = 0.02, 5  # share of the device per run; several, because short runs are noisy
STEADY_FROM = 2 / 3  # share of what is written before the steady state
SAMPLE_SECONDS = 2.0
CLEANING = fio.Workload("rw", random=True, block_bytes=128 << 10, depth=8)  # compaction's access pattern
CLEANING_SECONDS = 10.0
OVERWRITE = fio.Workload("write", random=True, block_bytes=BLOCK, depth=32)

# Distributions of the writes, by name, in fio's syntax.
SHAPES: dict[str, str] = {"uniform": "", "90 % of writes to 10 % of blocks": "zoned:90/10:10/90"}

# Parts by name: their counters, and the bytes of one count. Everything else that reached the device is "other".
PARTS: dict[str, tuple[tuple[str, ...], int]] = {
    "user data": (("written_bytes",), 1),
    "headers": (("records",), BLOCK),
    "map": (("map_blocks", "table_blocks"), BLOCK),
    "compaction": (("compaction_bytes",), 1),
    "evacuation": (("evacuated_bytes",), 1),
}


@dataclass(frozen=True)
class Sample:
    """All but the last two fields count from the node's start."""

    at: float  # monotonic clock, seconds
    parts: dict[str, int]  # bytes
    read_bytes: int  # read from the device by the node's process; none are counted for one in memory
    device_bytes: int  # written to it likewise
    free_bytes: int
    segments: int

    @property
    def client_bytes(self) -> int:
        return self.parts["user data"]


@dataclass(frozen=True)
class Course:
    """The results of one distribution: samples from the first overwrite on; the speed of the first overwrites, with
    nothing to clean yet (median); and the bytes that fio moves on the same file system, half reads and half writes, as
    compaction does.
    """

    shape: str
    capacity_bytes: int
    volume_bytes: int
    segment_bytes: int
    fresh_bytes_per_second: float
    device_bytes_per_second: float
    samples: Sequence[Sample]

    def steady(self) -> tuple[Sample, Sample]:
        """The first and the last sample of the steady state."""
        first, last = self.samples[0].client_bytes, self.samples[-1].client_bytes
        begin = next(sample for sample in self.samples if sample.client_bytes >= first + STEADY_FROM * (last - first))
        return (begin if begin is not self.samples[-1] else self.samples[-2]), self.samples[-1]

    def measures(self) -> list[Measure]:
        begin, end = self.steady()
        client = end.client_bytes - begin.client_bytes
        shares = amplification(begin, end)
        seconds = end.at - begin.at
        speed = client / seconds
        least = self.volume_bytes / self.segment_bytes
        segments = max(sample.segments for sample in self.samples if sample.at >= begin.at)
        words = ", ".join(f"{part} {share:.2f}" for part, share in shares.items())
        note = f"{words}; over {client / self.capacity_bytes:.1f} × the capacity"
        told = [
            Measure(f"write amplification, {self.shape}", sum(shares.values()), "×", "less", note=note),
            Measure(
                f"throughput in steady state, {self.shape}", speed / self.fresh_bytes_per_second * 100, "% of fresh",
                "more",
                note=f"{speed / MIB:.0f} MiB/s of {self.fresh_bytes_per_second / MIB:.0f} MiB/s",
            ),
            Measure(
                f"segments, {self.shape}", segments / least, "× the least possible", "less",
                note=f"{segments} of {least:.0f}",
            ),
        ]  # fmt: skip
        if end.read_bytes > begin.read_bytes:
            moved = (end.read_bytes - begin.read_bytes + end.device_bytes - begin.device_bytes) / seconds
            used = moved / self.device_bytes_per_second
            most = speed / used / self.fresh_bytes_per_second
            note = (
                f"{moved / MIB:.0f} MiB/s of the {self.device_bytes_per_second / MIB:.0f} that fio moves, half read, "
                f"half written, 128 KiB at depth {CLEANING.depth}: all of them would be {most:.0%} of fresh"
            )
            told.append(
                Measure(
                    f"what the device does in steady state, {self.shape}", used * 100, "% of fio's", "more", note=note
                )
            )
        return told


def amplification(begin: Sample, end: Sample) -> dict[str, float]:
    """Bytes to the device per byte from the client between two samples, by part."""
    client = max(end.client_bytes - begin.client_bytes, 1)
    shares = {part: (end.parts[part] - begin.parts[part]) / client for part in PARTS}
    shares["other"] = max((end.device_bytes - begin.device_bytes) / client - sum(shares.values()), 0.0)
    return shares


def measure(settings: Settings, shape: str, say: Say, progress: Callable[[float, Sample, Sample], None]) -> Course:
    """progress: called with the completed share, the previous sample and the newest one."""
    capacity = settings.amplification_device_bytes
    volume = int(capacity * FILLED) // MIB * MIB
    need_room(settings.directory, capacity)
    say(f"{shape}: filling {volume / GIB:.1f} of {capacity / GIB:.1f} GiB")
    with Trial(
        settings.directory / "amplification", device_bytes=capacity, volume_bytes=volume, prewrite=True
    ) as trial:
        endpoint = fio.Nbd(trial.uri)
        fio.run(FILL, endpoint, fio.Extent(volume))
        extent = fio.Extent(volume, most_bytes=int(FRESH_SHARE * capacity), distribution=SHAPES[shape])
        fresh = [
            fio.run(OVERWRITE, endpoint, replace(extent, seed=2 + run)).bytes_per_second for run in range(FRESH_RUNS)
        ]
        wanted = int(settings.amplification_times * capacity)
        say(f"{shape}: overwriting {wanted / GIB:.1f} GiB")
        samples = [sample(trial)]
        words = fio.command(OVERWRITE, endpoint, fio.Extent(volume, most_bytes=wanted, distribution=SHAPES[shape]))
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
            try:
                while load.poll() is None:
                    time.sleep(SAMPLE_SECONDS)
                    samples.append(sample(trial))
                    done = (samples[-1].client_bytes - samples[0].client_bytes) / wanted
                    progress(min(done, 1.0), samples[-2], samples[-1])
            finally:
                load.kill()
            said = load.stderr.read() if load.stderr else ""
            if load.returncode:
                raise fio.FioError(f"fio failed with status {load.returncode}: {said[:300]}")
        segment_bytes = trial.segment_bytes()
    with RawFile(settings.directory / "raw", capacity // 4) as raw:
        device = fio.run_mixed(CLEANING, raw.endpoint, fio.Extent(capacity // 4, seconds=CLEANING_SECONDS))
    return Course(shape, capacity, volume, segment_bytes, statistics.median(fresh), device, samples)


def sample(trial: Trial) -> Sample:
    from iomesh.api.client import Client

    async def ask() -> Sample:
        async with Client(trial.control) as client:
            told = await client.counters()
        counters, device = told.volumes[0].counters, told.devices[0]
        parts = {
            part: bytes_each * sum(counters[name] for name in names) for part, (names, bytes_each) in PARTS.items()
        }
        moved = process.storage(trial.pid)
        return Sample(time.monotonic(), parts, moved.read, moved.written, device.free_bytes, device.replicas)

    return asyncio.run(ask())


def draw(courses: Sequence[Course], path: Path, title: str) -> None:
    """For each shape: amplification by part, throughput and free space, over what the client has written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = ["#1f6feb", "#8c959f", "#8250df", "#e3a008", "#cf222e", "#d0d7de"]
    figure, axes = pyplot.subplots(
        2, len(courses), figsize=(7 * len(courses), 7), squeeze=False, sharex="col", height_ratios=[2, 1]
    )
    figure.suptitle(title, fontsize=12)
    for column, course in enumerate(courses):
        pairs = list(zip(course.samples, course.samples[1:], strict=False))
        written = [(end.client_bytes - course.samples[0].client_bytes) / course.capacity_bytes for _, end in pairs]
        shares = [amplification(begin, end) for begin, end in pairs]
        above, below = axes[0, column], axes[1, column]
        above.stackplot(
            written, *([each[part] for each in shares] for part in shares[0]), labels=list(shares[0]), colors=colours
        )
        above.set_title(
            f"{course.shape}: {course.measures()[0].value:.2f} × in the steady state", loc="left", fontsize=11
        )
        above.set_ylabel("bytes written per byte of the client")
        above.set_ylim(0, 8)
        speeds = [(end.client_bytes - begin.client_bytes) / (end.at - begin.at) / MIB for begin, end in pairs]
        below.plot(written, speeds, color="#1f6feb", label="MiB/s of the client")
        below.axhline(course.fresh_bytes_per_second / MIB, color="#1f6feb", linewidth=0.8, linestyle=":", label="fresh")
        below.set_ylim(0)
        below.set_ylabel("MiB/s")
        below.set_xlabel("written by the client, in capacities of the device")
        free = below.twinx()
        free.plot(
            written,
            [end.free_bytes / course.capacity_bytes * 100 for _, end in pairs],
            color="#57606a",
            linewidth=0.8,
            label="free",
        )
        free.set_ylim(0, 20)
        free.set_ylabel("% of the device free")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
    axes[1, 0].legend(frameon=False, fontsize=9, loc="upper right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
