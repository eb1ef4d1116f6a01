"""Speed and CPU per I/O: every workload on every target in turn.

The targets alternate within each run, so other load on the machine, and slow changes of its disk, affect all of them
alike; medians of the runs remove outliers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from iomesh_perf import fio
from iomesh_perf.results import Better, Measure
from iomesh_perf.settings import Settings
from iomesh_perf.targets import GIB, IOMESH, MIB, Iomesh, Qemu, RawFile, Target, better_aio, measured

# Reads run after the random writes: they are to be measured on blocks in the places that overwriting left them in.
WORKLOADS: Sequence[fio.Workload] = (
    *(fio.Workload(direction, random=False, block_bytes=MIB, depth=8) for direction in ("write", "read")),
    *(fio.Workload("write", random=True, block_bytes=4096, depth=depth) for depth in (1, 32, 128)),
    *(fio.Workload("read", random=True, block_bytes=4096, depth=depth) for depth in (1, 32, 128)),
)

SERVER_CPU = ", CPU of the server per I/O"
# The figures of a run: suffix to the workload's name, unit, and which direction is better.
FIGURES: Sequence[tuple[str, str, Better]] = (
    ("", "IOPS", "more"),
    (", mean latency", "µs", "less"),
    (", p50 latency", "µs", "less"),
    (", p99 latency", "µs", "less"),
    (", p99.9 latency", "µs", "less"),
    (SERVER_CPU, "µs", "less"),
    (", CPU of fio per I/O", "µs", "less"),
)


@dataclass
class Series:
    """The completed runs of one workload: figures by target. suffix: of the measures' names, before the figure's."""

    workload: fio.Workload
    suffix: str = ""
    runs: dict[str, dict[str, list[float]]] = field(default_factory=lambda: {suffix: {} for suffix, _, _ in FIGURES})

    def add(self, target: str, run: fio.Run, server_cpu_us: float | None) -> None:
        values = {
            "": run.iops if self.workload.random else run.bytes_per_second / MIB,
            ", mean latency": run.mean_us,
            ", p50 latency": run.p50_us,
            ", p99 latency": run.p99_us,
            ", p99.9 latency": run.p999_us,
            ", CPU of fio per I/O": run.client_cpu_us_per_io,
        }
        if server_cpu_us is not None:
            values[SERVER_CPU] = server_cpu_us / run.ios
        for suffix, value in values.items():
            self.runs[suffix].setdefault(target, []).append(value)

    def measures(self) -> Iterator[Measure]:
        """The measures so far; empty before iomesh's first run."""
        for suffix, unit, better in FIGURES:
            if IOMESH in self.runs[suffix]:
                unit = unit if self.workload.random or suffix else "MiB/s"
                yield Measure.of_runs(self.workload.name + self.suffix + suffix, unit, better, self.runs[suffix])


def measure_speed(
    settings: Settings,
    workloads: Sequence[fio.Workload],
    say: Callable[[str], None],
    progress: Callable[[Series, int], None],
) -> list[Measure]:
    """Executes all runs. `say` gets progress messages, `progress` the series and the number of completed fio runs."""
    span, series, done = settings.span_bytes, [], 0
    with ExitStack() as targets_up:
        say(f"writing the raw file, {span / GIB:g} GiB")
        raw = targets_up.enter_context(RawFile(settings.directory / "raw", span))
        say(f"iomesh: writing a device file of {settings.device_bytes / GIB:g} GiB, then the volume")
        iomesh = targets_up.enter_context(Iomesh(settings.directory / "trial", span, settings.device_bytes))
        aio, iops = better_aio(raw.path, span, settings.calibration_seconds)
        say(
            "qemu-storage-daemon: "
            + ", ".join(f"aio={name} does {value / 2:,.0f} IOPS" for name, value in iops.items())
            + f"; {aio} it is"
        )
        targets: list[Target] = [raw, iomesh, targets_up.enter_context(Qemu(raw.path, aio))]
        for workload in workloads:
            current = Series(workload)
            series.append(current)
            for number in range(settings.runs):
                for target in targets:
                    extent = fio.Extent(
                        span,
                        settings.seconds,
                        settings.most_written_bytes if workload.direction == "write" else None,
                        seed=number + 1,
                    )
                    if workload.direction == "write":
                        # At depth 1 every block is written with a header block; map nodes and footers are extra.
                        target.make_room(settings.most_written_bytes * (9 if workload.depth == 1 else 5) // 4)
                    run, cpu = measured(target, workload, extent)
                    current.add(target.name, run, cpu.total * 1e6 if cpu else None)
                    done += 1
                    progress(current, done)
    return [measure for current in series for measure in current.measures()]
