"""fio: its command line for a profile on an NBD export, and its results."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from iomesh.benchmark.profiles import Job
from iomesh.errors import IomeshError, Unsupported

PREFILL = Job("fill", "write", 1 << 20, 8)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """The reads or writes of a job. Latencies are from submission to completion."""

    direction: str
    operations: int
    iops: float
    bytes_per_second: float
    mean_ns: float
    p50_ns: int
    p99_ns: int
    p999_ns: int


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """client_cpu_ns_per_operation: of fio, user and system time. flush: of fsync, without bytes."""

    job: str
    sides: list[Side]
    client_cpu_ns_per_operation: float


def command(jobs: Sequence[Job], uri: str, size_bytes: int, seconds: float | None) -> list[str]:
    """seconds None: each job passes over the volume once. Jobs that run at once have parts of their own."""
    part = size_bytes // len(jobs) >> 20 << 20
    words = ["fio", "--output-format=json", "--lat_percentiles=1", "--clat_percentiles=0"]
    words += ["--percentile_list=50:99:99.9", "--ioengine=nbd", f"--uri={uri}", "--norandommap=1"]
    if seconds is not None:
        words += ["--time_based=1", f"--runtime={max(1, round(seconds * 1000))}ms"]
    for number, job in enumerate(jobs):
        words += [f"--name={job.name}", f"--rw={job.mode}", f"--bs={job.block_bytes}", f"--iodepth={job.depth}"]
        words += [f"--rwmixread={job.read_percent}", f"--offset={number * part}", f"--size={part}"]
        # An NBD client has one kind of flush, and fio's engine takes fsync for it; it refuses fdatasync.
        words += [f"--fsync={job.sync_each}"] if job.sync_each else []
    return words


async def run(jobs: Sequence[Job], uri: str, size_bytes: int, seconds: float | None) -> list[JobResult]:
    """Runs fio; when cancelled, it is stopped and has ended before this returns. Raises Unsupported without fio."""
    words = command(jobs, uri, size_bytes, seconds)
    try:
        # In a session of its own, so that Ctrl-C reaches this process alone, which then stops it.
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
    except FileNotFoundError:
        raise Unsupported("fio is not installed: apt-get install fio") from None
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
    if process.returncode:
        said = (err.decode(errors="replace").strip() or out.decode(errors="replace").strip() or "nothing").splitlines()
        raise IomeshError(f"fio failed with status {process.returncode}: {' / '.join(said[:4])}")
    return parse(out.decode(errors="replace"))


def parse(text: str) -> list[JobResult]:
    """Reads fio's JSON. What fio writes before it (warnings) is skipped."""
    try:
        document = json.loads(text[max(0, text.find("{")) :])
        return [of_job(job) for job in document["jobs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise IomeshError(f"fio's JSON is not as expected: {type(error).__name__} {error}") from None


def of_job(job: dict[str, Any]) -> JobResult:
    if job["error"]:
        raise IomeshError(f"fio reports error {job['error']} of job {job['jobname']}")
    sides = [
        Side(
            direction=direction,
            operations=side["total_ios"],
            iops=side.get("iops", side["total_ios"] * 1000 / max(1, job["job_runtime"])),
            bytes_per_second=side.get("bw_bytes", 0),
            mean_ns=side["lat_ns"]["mean"],
            p50_ns=side["lat_ns"]["percentile"]["50.000000"],
            p99_ns=side["lat_ns"]["percentile"]["99.000000"],
            p999_ns=side["lat_ns"]["percentile"]["99.900000"],
        )
        for direction, side in (("read", job["read"]), ("write", job["write"]), ("flush", job["sync"]))
        if side["total_ios"]
    ]
    operations = sum(side.operations for side in sides)
    cpu_ns = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1e6
    return JobResult(
        job=job["jobname"], sides=sides, client_cpu_ns_per_operation=cpu_ns / operations if operations else 0.0
    )
