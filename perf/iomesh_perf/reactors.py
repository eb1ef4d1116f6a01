"""What a node with several reactors does beside a node with one: the same volumes, each under a load of its own at the
same time, in turn on both nodes.

Every load has a client process of its own. So on few cores the clients and the reactors take turns on them, and the
figure says what more reactors are worth there, not how the engine scales.
"""

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from iomesh_perf import fio
from iomesh_perf.cost import Say, need_room
from iomesh_perf.results import Measure
from iomesh_perf.settings import GIB, Settings
from iomesh_perf.targets import FILL
from iomesh_perf.trial import Trial, TrialError

WORKLOADS = [fio.Workload(direction, random=True, block_bytes=4096, depth=32) for direction in ("write", "read")]


class Volumes:
    """A trial with one device and as many volumes as the other trial has reactors; each volume is written once."""

    def __init__(self, directory: Path, *, reactors: int, volumes: int, span: int, device: int) -> None:
        self.directory, self.reactors, self.volumes, self.span, self.device = directory, reactors, volumes, span, device
        self.trial: Trial | None = None

    def up(self) -> None:
        self.trial = Trial(
            self.directory,
            device_bytes=self.device,
            volume_bytes=self.span,
            prewrite=True,
            reactors=self.reactors,
        ).__enter__()
        self.uris = [self.trial.uri, *(self.trial.make_volume(f"other-{n}", self.span) for n in range(1, self.volumes))]
        used = self.trial.reactors_of_volumes()
        if len(set(used)) != min(self.reactors, self.volumes):
            raise TrialError(f"{self.volumes} volumes on {self.reactors} reactors are on {sorted(used)}")
        for uri in self.uris:
            fio.run(FILL, fio.Nbd(uri), fio.Extent(self.span, seed=11))

    def down(self) -> None:
        if self.trial is not None:
            self.trial.__exit__(None, None, None)
            self.trial = None

    def make_room(self, bytes_to_write: int) -> None:
        """Before a run of writes."""
        assert self.trial is not None
        if self.trial.free_bytes() < bytes_to_write:
            self.down()
            self.up()

    def iops(self, workload: fio.Workload, extent: fio.Extent) -> float:
        """The sum over the volumes, all at once."""
        with ThreadPoolExecutor(len(self.uris)) as threads:
            running = [threads.submit(fio.run, workload, fio.Nbd(uri), extent) for uri in self.uris]
            return sum(each.result().iops for each in running)


def with_reactors(settings: Settings, say: Say) -> list[Measure]:
    count = settings.reactors
    if count < 2:
        raise TrialError(f"--reactors {count}: it is compared with one reactor, so name at least 2")
    span = settings.span_bytes // 4
    device = count * span + settings.device_bytes // 4
    need_room(settings.directory, 2 * device)
    say(f"reactors: {count} volumes of {span / GIB:g} GiB on one reactor, and on {count}")
    nodes = {
        reactors: Volumes(
            settings.directory / f"reactors-{reactors}", reactors=reactors, volumes=count, span=span, device=device
        )
        for reactors in (1, count)
    }
    measures = []
    with ExitStack() as ends:
        for node in nodes.values():
            ends.callback(node.down)
            node.up()
        for workload in WORKLOADS:
            runs: dict[int, list[float]] = {reactors: [] for reactors in nodes}
            for number in range(settings.runs):
                turn = list(nodes.items())
                for reactors, node in turn if number % 2 else reversed(turn):
                    most = span if workload.direction == "write" else None
                    if most:
                        node.make_room(count * most * 9 // 4)
                    runs[reactors].append(
                        node.iops(workload, fio.Extent(span, settings.seconds, most, seed=number + 1))
                    )
            one, several = statistics.median(runs[1]), statistics.median(runs[count])
            note = f"{several:,.0f} IOPS together, and {one:,.0f} on one reactor"
            say(f"{name_of(workload, count)}: {note}")
            measures.append(
                Measure(
                    name_of(workload, count),
                    100 * several / one,
                    "% of one reactor",
                    "more",
                    runs={f"{reactors} reactors": values for reactors, values in runs.items()},
                    note=note,
                )
            )
    return measures


def name_of(workload: fio.Workload, reactors: int) -> str:
    return f"{workload.name}, {reactors} volumes on {reactors} reactors"
