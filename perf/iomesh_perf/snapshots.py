"""Cost of a hundred snapshots for a volume's clients: the same runs on it and on a volume without, in turn."""

import statistics
from contextlib import ExitStack
from pathlib import Path

from iomesh_perf import fio
from iomesh_perf.cost import Say, need_room
from iomesh_perf.results import Measure
from iomesh_perf.settings import GIB, Settings
from iomesh_perf.targets import Iomesh, measured
from iomesh_perf.trial import iomesh

SNAPSHOTS = 100
CHANGED_SHARE = 400  # one part in this many of the volume is overwritten between two
WORKLOADS = [
    fio.Workload(direction, random=True, block_bytes=4096, depth=depth)
    for direction in ("write", "read")
    for depth in (1, 32)
]


class Changed(Iomesh):
    """A volume with scattered overwrites; with snapshots, each differs from the next."""

    def __init__(self, directory: Path, size_bytes: int, device_bytes: int, *, snapshots: bool) -> None:
        super().__init__(directory, size_bytes, device_bytes)
        self.snapshots = snapshots

    def precondition(self) -> None:
        super().precondition()
        change = fio.Workload("write", random=True, block_bytes=4096, depth=32)
        for number in range(SNAPSHOTS):
            if self.snapshots:
                iomesh("snapshot", "create", f"{self.trial.volume}@s{number}", "--address", self.trial.control)
            fio.run(
                change,
                self.endpoint,
                fio.Extent(self.size_bytes, most_bytes=self.size_bytes // CHANGED_SHARE, seed=100 + number),
            )


def with_snapshots(settings: Settings, say: Say) -> list[Measure]:
    span = settings.span_bytes // 4
    device = span + settings.device_bytes // 4
    need_room(settings.directory, 2 * device)
    say(f"snapshots: two volumes of {span / GIB:g} GiB, one with {SNAPSHOTS} snapshots")
    measures = []
    with ExitStack() as up:
        plain = up.enter_context(Changed(settings.directory / "plain", span, device, snapshots=False))
        many = up.enter_context(Changed(settings.directory / "many", span, device, snapshots=True))
        for workload in WORKLOADS:
            runs: dict[str, list[float]] = {"without": [], "with": []}
            for number in range(settings.runs):
                turn = (("without", plain), ("with", many))
                for name, target in (
                    turn if number % 2 else reversed(turn)
                ):  # alternating: the first run may affect the second
                    most = span if workload.direction == "write" else None
                    if most:
                        target.make_room(most * 9 // 4)
                    run, _ = measured(target, workload, fio.Extent(span, settings.seconds, most, seed=number + 1))
                    runs[name].append(run.iops)
            without, there = statistics.median(runs["without"]), statistics.median(runs["with"])
            note = f"{there:,.0f} IOPS, and {without:,.0f} without"
            measures.append(
                Measure(name_of(workload), 100 * there / without, "% of without", "more", runs=runs, note=note)
            )
    return measures


def name_of(workload: fio.Workload) -> str:
    return f"{workload.name}, with {SNAPSHOTS} snapshots"
