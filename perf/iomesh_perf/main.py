"""The command line: `python -m iomesh_perf [bench] ...`, and `profile` and `amplification`."""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from iomesh_perf import (
    amplification,
    cluster,
    cost,
    fio,
    instructions,
    plot,
    process,
    profiler,
    reactors,
    report,
    results,
    snapshots,
)
from iomesh_perf.parts import by_part
from iomesh_perf.results import Measure, figure
from iomesh_perf.settings import GIB, MIB, QUICK, Settings
from iomesh_perf.speed import WORKLOADS, Series, measure_speed
from iomesh_perf.targets import FILL
from iomesh_perf.trial import Trial, TrialError

COSTS: dict[str, Callable[[Settings, cost.Say], list[Measure]]] = {
    "instructions": lambda settings, say: instructions_per_write(settings, say),
    "memory": cost.resident_memory,
    "restart": cost.start_after_crash,
    "idle": cost.idle_cpu,
    "snapshots": snapshots.with_snapshots,
    "reactors": reactors.with_reactors,
}
CLUSTER_COSTS: dict[str, Callable[[Settings, cost.Say], list[Measure]]] = {
    "pauses": cluster.pauses,
    "take-over": cluster.take_over,
    "idle": cluster.idle_cpu,
}
SPEED = "speed"


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "bench")
    options = parser().parse_args(words)
    console = Console(stderr=options.json, highlight=False)
    try:
        return int(options.run(options, console))
    except (fio.FioError, TrialError, TimeoutError, OSError) as error:
        console.print(f"iomesh-perf: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="iomesh-perf", description="How fast iomesh is, beside the raw file and qemu-storage-daemon."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    bench = commands.add_parser("bench", help="measure; writes bench.json and bench.png (the default command)")
    bench.set_defaults(run=run_bench)
    bench.add_argument(
        "--quick", action="store_true", help="short runs: shows that everything works, not how fast it is"
    )
    bench.add_argument(
        "--only", action="append", metavar="WORD", default=[],
        help="only these: speed, instructions, memory, restart, idle, snapshots, reactors, or the end of a part of a "
        "workload's name",
    )  # fmt: skip
    bench.add_argument("--runs", type=positive, help="of each workload on each target (5)")
    bench.add_argument("--seconds", type=positive, help="of one run (5)")
    bench.add_argument(
        "--reactors", type=positive, help="of the node that is compared with one of a single reactor (2)"
    )
    bench.add_argument("--compare", type=Path, metavar="OLD.json", help="an older bench.json to set this run beside")
    bench.add_argument(
        "--output", type=Path, default=Path("build"), metavar="DIR", help="where bench.json and bench.png go (build)"
    )
    clustered = commands.add_parser(
        "cluster",
        help="measure a volume with three replicas on three nodes of this machine; writes bench-cluster.json and .png",
    )
    clustered.set_defaults(run=run_cluster)
    clustered.add_argument(
        "--quick", action="store_true", help="short runs: shows that everything works, not how fast it is"
    )
    clustered.add_argument(
        "--only",
        action="append",
        choices=[SPEED, *CLUSTER_COSTS],
        default=[],
        help="only these: speed, pauses, take-over, idle",
    )
    clustered.add_argument("--runs", type=positive, help="of each workload, and of each failure (5)")
    clustered.add_argument("--seconds", type=positive, help="of one run (5)")
    clustered.add_argument(
        "--output",
        type=Path,
        default=Path("build"),
        metavar="DIR",
        help="where bench-cluster.json and .png go (build)",
    )
    profile = commands.add_parser("profile", help="profile the reactor's thread under load, by part of the engine")
    profile.set_defaults(run=run_profile)
    profile.add_argument(
        "--mode",
        choices=["randwrite", "randread", "write", "read"],
        default="randwrite",
        help="what fio does (randwrite)",
    )
    profile.add_argument("--depth", type=positive, default=32)
    profile.add_argument(
        "--replicas", type=positive, default=1, help="of the volume, each on a node of its own on this machine (1)"
    )
    profile.add_argument(
        "--node", help="the node whose reactor is profiled: a is the volume's owner, b and c are members (a)"
    )
    profile.add_argument("--seconds", type=positive, default=10)
    profile.add_argument("--functions", type=positive, default=25, help="how many to list (25)")
    amplify = commands.add_parser(
        "amplification", help="overwrite a full volume; writes amplification.json and amplification.png"
    )
    amplify.set_defaults(run=run_amplification)
    amplify.add_argument(
        "--quick", action="store_true", help="a small device, written once: shows that everything works"
    )
    amplify.add_argument("--only", choices=["uniform", "skewed"], help="one of the two ways to write")
    amplify.add_argument("--device-gib", type=positive, help="size of the device file (8)")
    amplify.add_argument("--output", type=Path, default=Path("build"), metavar="DIR", help="where the files go (build)")
    for command in (bench, clustered, profile, amplify):
        command.add_argument(
            "--json", action="store_true", help="results as JSON on standard output, the rest on standard error"
        )
        command.add_argument(
            "--directory", type=Path, help="where the files lie that are measured on (a directory made under build/)"
        )
    return top


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def run_bench(options: argparse.Namespace, console: Console) -> int:
    older = results.load(options.compare) if options.compare else []
    workloads, costs = chosen(options.only)
    with Scratch(options.directory) as directory:
        settings = replace(settings_of(options, directory), reactors=options.reactors or Settings.reactors)
        console.print(machine(directory), style="dim")
        say = lambda text: console.print(text, style="dim", markup=False)  # noqa: E731
        measures: list[Measure] = []
        if workloads:
            cost.need_room(directory, settings.span_bytes + settings.device_bytes)
            runs = len(workloads) * settings.runs * 3
            measures += speed_with_table(
                console, runs, lambda progress: measure_speed(settings, workloads, say, progress)
            )
            console.print(report.table_of(measures, "all of it"))
        costing = [measure for name in costs for measure in COSTS[name](settings, say)]
        if costing:
            console.print(report.table_of(costing))
        measures += costing
    document = save(measures, options.output / "bench.json", console)
    if older:
        console.print(report.comparison(older, measures))
    if options.json:
        print(document.read_text(), end="")
    return 0


def run_cluster(options: argparse.Namespace, console: Console) -> int:
    only = options.only or [SPEED, *CLUSTER_COSTS]
    with Scratch(options.directory) as directory:
        settings = settings_of(options, directory)
        console.print(machine(directory), style="dim")
        say = lambda text: console.print(text, style="dim", markup=False)  # noqa: E731
        measures: list[Measure] = []
        if SPEED in only:
            runs = len(cluster.WORKLOADS) * settings.runs * 2
            measures += speed_with_table(
                console, runs, lambda progress: cluster.speed(settings, cluster.WORKLOADS, say, progress)
            )
            console.print(report.table_of(measures, "all of it"))
        costing = [measure for name, take in CLUSTER_COSTS.items() if name in only for measure in take(settings, say)]
        if costing:
            console.print(report.table_of(costing))
        measures += costing
    document = save(measures, options.output / "bench-cluster.json", console)
    if options.json:
        print(document.read_text(), end="")
    return 0


def settings_of(options: argparse.Namespace, directory: Path) -> Settings:
    settings = Settings(directory)
    if options.quick:
        settings = replace(settings, **QUICK)  # type: ignore[arg-type]
    return replace(settings, runs=options.runs or settings.runs, seconds=float(options.seconds or settings.seconds))


def save(measures: Sequence[Measure], document: Path, console: Console) -> Path:
    """Writes the measures and their chart, and prints a verdict for each goal."""
    picture = document.with_suffix(".png")
    results.save(measures, document)
    drawn = plot.draw(measures, picture, f"iomesh {version()}: {machine(None)}")
    console.print(f"written: {document}" + (f", {picture}" if drawn else ""), style="dim")
    for line in report.verdict_lines(results.verdicts(measures)):
        console.print(line)
    return document


def chosen(words: Sequence[str]) -> tuple[list[fio.Workload], list[str]]:
    """Workloads and costs that `--only` names; all of them without it."""
    if not words:
        return list(WORKLOADS), list(COSTS)
    costs = [name for name in COSTS if name in words]
    names = [word for word in words if word not in COSTS]
    workloads = [
        workload
        for workload in WORKLOADS
        if any(word == SPEED or f"{word.lower()}," in f"{workload.name.lower()}," for word in names)
    ]
    unknown = [
        word
        for word in names
        if word != SPEED and not any(f"{word.lower()}," in f"{workload.name.lower()}," for workload in WORKLOADS)
    ]
    if unknown:
        raise TrialError(
            f"--only {unknown[0]!r} names nothing: choose {', '.join([SPEED, *COSTS])} or the end of a part of "
            f"{WORKLOADS[2].name!r}"
        )
    return workloads, costs


def speed_with_table(
    console: Console, runs: int, take: Callable[[Callable[[Series, int], None]], list[Measure]]
) -> list[Measure]:
    """The table grows with each run, above a progress bar. take: measures, and reports progress."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("preparing", total=runs)
    finished: dict[str, list[Measure]] = {}
    with Live(bar, console=console, refresh_per_second=4) as live:

        def progress(series: Series, done: int) -> None:
            finished[series.workload.name] = [
                m for m in series.measures() if m.unit in ("IOPS", "MiB/s") or m.measure.endswith("mean latency")
            ]
            bar.update(task, completed=done, description=series.workload.name)
            live.update(Group(report.table_of(m for measures in finished.values() for m in measures), bar))

        return take(progress)


def instructions_per_write(settings: Settings, say: cost.Say) -> list[Measure]:
    workload = fio.Workload("write", random=True, block_bytes=4096, depth=32)
    span = GIB // 2
    with Trial(settings.directory / "instructions", device_bytes=4 * GIB, volume_bytes=span, prewrite=False) as trial:
        endpoint = fio.Nbd(trial.uri)
        fio.run(FILL, endpoint, fio.Extent(span))
        load = subprocess.Popen(fio.command(workload, endpoint, fio.Extent(span, seconds=2)), stdout=subprocess.DEVNULL)
        reactor = process.busiest_thread(trial.pid)
        load.wait()
        if instructions.counters_there():
            say("instructions: hardware counters")
            counted, writes = instructions.by_counters(
                trial.pid, reactor, workload, endpoint, fio.Extent(span, seconds=settings.seconds, seed=2)
            )
            total, note = counted / writes, f"hardware counters over {writes:,} writes, polling included"
        else:
            say(f"instructions: stepping through {settings.instruction_writes:,} writes, some minutes")
            extent = fio.Extent(span, most_bytes=settings.instruction_writes * workload.block_bytes, seed=2)
            files, writes = instructions.by_steps(trial.pid, reactor, workload, endpoint, extent)
            total = files.total() / writes
            parts = by_part({(file, ""): spent / writes for file, spent in files.items()})
            note = f"stepped through {writes:,} writes: " + ", ".join(
                f"{part} {spent:,.0f}" for part, spent in parts.items() if spent >= 1
            )
    return [
        Measure(
            f"user-space instructions of the engine per 4 KiB write, depth {workload.depth}",
            total,
            "instructions",
            "less",
            note=note,
        )
    ]


def run_profile(options: argparse.Namespace, console: Console) -> int:
    workload = fio.Workload(
        "write" if options.mode.endswith("write") else "read",
        options.mode.startswith("rand"),
        4096 if options.mode.startswith("rand") else MIB,
        options.depth,
    )
    with Scratch(options.directory) as directory:
        span = 2 * GIB
        device = 14 * GIB if options.replicas == 1 else 8 * GIB
        cost.need_room(directory, options.replicas * device)
        console.print(f"profiling {workload.name}", style="dim")
        with Trial(
            directory / "profile",
            device_bytes=device,
            volume_bytes=span,
            prewrite=True,
            nodes=options.replicas,
            replicas=options.replicas,
        ) as trial:
            node = options.node or trial.owner
            if node not in trial.pids:
                raise TrialError(f"--node {node}: the nodes are {', '.join(trial.pids)}")
            fio.run(FILL, fio.Nbd(trial.uri), fio.Extent(span))
            found = profiler.take(
                trial.pids[node], workload, fio.Nbd(trial.uri), fio.Extent(span, options.seconds), directory / "perf"
            )
    if options.json:
        parts = [{"part": part, "share": share} for part, share in found.parts().items()]
        functions = [
            {"object": where, "function": name, "share": share}
            for where, name, share in found.functions(options.functions)
        ]
        print(
            json.dumps(
                {
                    "workload": found.workload,
                    "iops": found.iops,
                    "busy": found.busy,
                    "parts": parts,
                    "functions": functions,
                },
                indent=1,
            )
        )
        return 0
    console.print(
        f"{found.workload}: {figure(found.iops)} operations per second, the reactor's thread used {found.busy:.0%} of "
        "a core"
    )
    parts_table, functions_table = Table("part", "share", "µs per operation"), Table("function", "of", "share")
    for part, share in found.parts().items():
        if share >= 0.002:
            parts_table.add_row(Text(part), f"{share:.1%}", figure(share * found.busy / found.iops * 1e6))
    for where, name, share in found.functions(options.functions):
        functions_table.add_row(Text(name), Text(where), f"{share:.1%}")
    console.print(parts_table, functions_table)
    return 0


def run_amplification(options: argparse.Namespace, console: Console) -> int:
    shapes = list(amplification.SHAPES)
    if options.only:
        shapes = shapes[:1] if options.only == "uniform" else shapes[1:]
    say = lambda text: console.print(text, style="dim", markup=False)  # noqa: E731
    with Scratch(options.directory) as directory:
        settings = Settings(directory)
        if options.quick:
            settings = replace(settings, **QUICK)  # type: ignore[arg-type]
        if options.device_gib:
            settings = replace(settings, amplification_device_bytes=options.device_gib * GIB)
        console.print(machine(directory), style="dim")
        courses = [amplify_with_bar(settings, shape, console, say) for shape in shapes]
    measures = [measure for course in courses for measure in course.measures()]
    document = options.output / "amplification.json"
    results.save(measures, document)
    amplification.draw(courses, options.output / "amplification.png", f"iomesh {version()}: {machine(None)}")
    for measure in measures:
        console.print(f"{measure.measure}: {figure(measure.value)} {measure.unit} ({measure.note})", markup=False)
    for line in report.verdict_lines(results.verdicts(measures)):
        console.print(line)
    console.print(f"written: {document}, {options.output / 'amplification.png'}", style="dim")
    if options.json:
        print(document.read_text(), end="")
    return 0


def amplify_with_bar(settings: Settings, shape: str, console: Console, say: cost.Say) -> amplification.Course:
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )
    task = bar.add_task(shape, total=1.0)
    with bar:

        def progress(done: float, before: amplification.Sample, now: amplification.Sample) -> None:
            total = sum(amplification.amplification(before, now).values())
            speed = (now.client_bytes - before.client_bytes) / (now.at - before.at) / MIB
            bar.update(task, completed=done, description=f"{shape}: {total:.2f} ×, {speed:.0f} MiB/s")

        return amplification.measure(settings, shape, say, progress)


class Scratch:
    """A temporary directory in `where`, or in the build directory; removed at the end."""

    def __init__(self, where: Path | None) -> None:
        self.where = where if where is not None else Path("build")

    def __enter__(self) -> Path:
        self.where.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="perf-", dir=self.where)).absolute()
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of("iomesh")
    except PackageNotFoundError:
        return "(not installed)"


def machine(directory: Path | None) -> str:
    """The machine in one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    words = f"{cpuinfo.count('processor' + chr(9))} × {model}, Linux {platform.release().split('-')[0]}"
    if directory is None:
        return words
    found = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", str(directory)], capture_output=True, text=True, check=False
    ).stdout.split()
    disk = " on ".join(found) if found else "unknown file system"
    return f"{words}, {disk}, {first_line('fio', '--version')}, {first_line('qemu-storage-daemon', '--version')}"


def first_line(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()[0]
    except (OSError, IndexError):
        return f"no {words[0]}"
