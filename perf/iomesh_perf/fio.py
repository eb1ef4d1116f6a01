"""fio: its command line and its results.

One command line for every target: only the connection differs (a file through io_uring with direct I/O, or an NBD URI).
Buffers, seeds and offsets are identical, so a run over iomesh does exactly what the run over the raw file did.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Direction = Literal["read", "write", "rw"]  # "rw": as many reads as writes


class FioError(Exception):
    """fio could not run, or reports an error; the message is fio's own."""


@dataclass(frozen=True)
class File:
    """A file on the raw file system, opened with O_DIRECT."""

    path: Path

    def options(self) -> list[str]:
        return ["--ioengine=io_uring", "--direct=1", f"--filename={self.path}"]


@dataclass(frozen=True)
class Nbd:
    """An NBD server. fio holds one connection to it."""

    uri: str

    def options(self) -> list[str]:
        return ["--ioengine=nbd", f"--uri={self.uri}"]


Endpoint = File | Nbd


@dataclass(frozen=True)
class Workload:
    """fio's workload. `span_bytes` from the start of the target is the range it uses."""

    direction: Direction
    random: bool
    block_bytes: int
    depth: int

    @property
    def mode(self) -> str:
        return f"{'rand' if self.random else ''}{self.direction}"

    @property
    def name(self) -> str:
        """Its name in tables: "4 KiB random write, depth 32"."""
        size = f"{self.block_bytes >> 20} MiB" if self.block_bytes >= 1 << 20 else f"{self.block_bytes >> 10} KiB"
        return f"{size} {'random' if self.random else 'sequential'} {self.direction}, depth {self.depth}"


@dataclass(frozen=True)
class Extent:
    """Length of a run: over the first `span_bytes` of the target, until `seconds` or `most_bytes`."""

    span_bytes: int
    seconds: float | None = None
    most_bytes: int | None = None
    seed: int = 1
    distribution: str = ""  # of random offsets, in fio's syntax; uniform by default


@dataclass(frozen=True)
class Run:
    """The result of one fio run. Latencies are from submission to completion, in microseconds."""

    ios: int
    seconds: float
    iops: float
    bytes_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    client_cpu_us_per_io: float


def command(workload: Workload, endpoint: Endpoint, extent: Extent) -> list[str]:
    """The fio command line. Its first word is `fio`."""
    words = [
        "fio",
        "--name=bench",
        "--output-format=json",
        *endpoint.options(),
        f"--rw={workload.mode}",
        f"--bs={workload.block_bytes}",
        f"--iodepth={workload.depth}",
        f"--size={extent.span_bytes}",
        # Random offsets without fio's map of written blocks: it costs client time, and databases do not write each
        # block once.
        "--norandommap=1",
        "--randrepeat=1",
        f"--randseed={extent.seed}",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--percentile_list=50:99:99.9",
    ]
    if extent.distribution:
        words.append(f"--random_distribution={extent.distribution}")
    if extent.most_bytes is not None:
        words.append(f"--io_size={extent.most_bytes}")
    if extent.seconds is not None:
        words.append(f"--runtime={max(1, round(extent.seconds * 1000))}ms")
        if extent.most_bytes is None:
            words.append("--time_based=1")
    return words


def run(workload: Workload, endpoint: Endpoint, extent: Extent) -> Run:
    """Run fio to completion."""
    return parse(output(workload, endpoint, extent), workload.direction)


def run_mixed(workload: Workload, endpoint: Endpoint, extent: Extent) -> float:
    """Of reads and writes together, bytes per second."""
    text = output(workload, endpoint, extent)
    return parse(text, "read").bytes_per_second + parse(text, "write").bytes_per_second


def output(workload: Workload, endpoint: Endpoint, extent: Extent) -> str:
    words = command(workload, endpoint, extent)
    try:
        outcome = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FioError("fio is not installed: apt-get install fio") from None
    if outcome.returncode:
        said = (outcome.stderr.strip() or outcome.stdout.strip() or "nothing").splitlines()
        raise FioError(f"fio failed with status {outcome.returncode} on {' '.join(words)}: {' / '.join(said[:4])}")
    return outcome.stdout


def parse(text: str, direction: Direction) -> Run:
    """Read fio's JSON of a run with one job. What fio writes before the JSON (warnings) is skipped."""
    begin = text.find("{")
    if begin < 0:
        raise FioError(f"fio printed no JSON but {text[:200]!r}")
    try:
        document: dict[str, Any] = json.loads(text[begin:])
        job = document["jobs"][0]
        side, latency = job[direction], job[direction]["lat_ns"]
        ios = int(side["total_ios"])
        if job["error"]:
            raise FioError(f"fio reports error {job['error']} after {ios} operations")
        if not ios:
            raise FioError("fio did no operation at all")
        percentiles = latency["percentile"]
        cpu_us = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
        return Run(
            ios=ios,
            seconds=side["runtime"] / 1000,
            iops=float(side["iops"]),
            bytes_per_second=float(side["bw_bytes"]),
            mean_us=latency["mean"] / 1000,
            p50_us=percentiles["50.000000"] / 1000,
            p99_us=percentiles["99.000000"] / 1000,
            p999_us=percentiles["99.900000"] / 1000,
            client_cpu_us_per_io=cpu_us / ios,
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FioError(f"fio's JSON is not as expected: {type(error).__name__} {error}") from None
