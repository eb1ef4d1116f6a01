"""CPU profile of the reactor's thread under load: `perf record` samples by engine part.

Sampling uses the kernel's CPU clock, which works without hardware counters (most virtual machines).
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from iomesh_perf import fio, process
from iomesh_perf.parts import by_part, short
from iomesh_perf.trial import TrialError

SAMPLES_PER_SECOND = 2999  # an odd rate avoids aliasing with periodic work
_ROW = re.compile(r"^\s*([\d.]+)%\s*\|\s*([^|]+?)\s*\|\s*\[([.kguH])\]\s*(.+?)\s*$")


@dataclass(frozen=True)
class Profile:
    """Shares of the thread's time, which add up to 1, and fio's results meanwhile."""

    workload: str
    iops: float
    busy: float  # of a core
    shares: dict[tuple[str, str], float]

    def parts(self) -> dict[str, float]:
        return by_part(self.shares)

    def functions(self, most: int) -> list[tuple[str, str, float]]:
        """(object file, function, share), largest first."""
        ordered = sorted(self.shares.items(), key=lambda item: -item[1])
        return [(Path(where).name, short(function), share) for (where, function), share in ordered[:most]]


def take(pid: int, workload: fio.Workload, endpoint: fio.Endpoint, extent: fio.Extent, scratch: Path) -> Profile:
    """Profile the busiest thread of `pid` while fio runs for `extent.seconds`."""
    scratch.mkdir(parents=True, exist_ok=True)
    data, seconds = scratch / "perf.data", extent.seconds or 10
    load = subprocess.Popen(
        fio.command(workload, endpoint, extent), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        thread = process.busiest_thread(pid, min(1.0, seconds / 4))
        before = process.thread_cpu(pid, thread).total
        watched = seconds / 2
        sampling = ["-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "-t", str(thread)]
        record = ["perf", "record", "-q", *sampling, "-o", str(data), "--", "sleep", str(watched)]
        try:
            outcome = subprocess.run(record, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise TrialError("perf is not installed: apt-get install linux-perf") from None
        if outcome.returncode:
            raise TrialError(
                f"perf record failed: {outcome.stderr.strip()[-500:]} (sysctl kernel.perf_event_paranoid=1 may be "
                "missing)"
            )
        busy = (process.thread_cpu(pid, thread).total - before) / watched
        printed, complaints = load.communicate()
    except BaseException:
        load.kill()
        load.communicate()
        raise
    if load.returncode:
        raise fio.FioError(f"fio failed with status {load.returncode}: {complaints.strip()[-500:]}")
    shown = [
        "--stdio",
        "--no-children",
        "--fields",
        "overhead,dso,sym",
        "--percent-limit",
        "0",
        "-g",
        "none",
        "-t",
        "|",
    ]
    report = subprocess.run(["perf", "report", "-i", str(data), *shown], capture_output=True, text=True, check=True)
    return Profile(workload.name, fio.parse(printed, workload.direction).iops, busy, parse_report(report.stdout))


def parse_report(text: str) -> dict[tuple[str, str], float]:
    """Shares by (object file, function) from `perf report --stdio --fields overhead,dso,sym -t "|"`."""
    percent: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if match := _ROW.match(line):
            share, where, space, function = match.groups()
            key = ("[kernel.kallsyms]" if space == "k" else where, function)
            percent[key] = percent.get(key, 0) + float(share)
    total = sum(percent.values())
    if not total:
        raise TrialError("perf report has no sample: was the engine busy at all?")
    return {key: share / total for key, share in percent.items()}
