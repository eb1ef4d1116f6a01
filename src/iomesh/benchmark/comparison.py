"""This run beside an older one of the same load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from iomesh.benchmark.fio import JobResult
from iomesh.errors import InvalidArgument


class VolumeBenchmark(msgspec.Struct, frozen=True, kw_only=True):
    """Of a scratch volume, which is gone. compared: with an older run, if one was named."""

    profile: str
    size_bytes: int
    replicas: int
    seconds: float
    jobs: list[JobResult]
    compared: list[Compared] = []


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a job, before and now. change: of the operations per second, 0.1 is 10 % more."""

    job: str
    direction: str
    iops_before: float
    iops: float
    change: float
    p99_ns_before: int
    p99_ns: int


def read(path: Path) -> VolumeBenchmark:
    """The run that `iomesh bench volume --json` printed into the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=VolumeBenchmark)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"{path} is not a run of `iomesh bench volume --json` ({error})") from None


def check_same_load(old: VolumeBenchmark, profile: str, size_bytes: int, replicas: int) -> None:
    """Raises InvalidArgument unless both runs have the same load on the same kind of volume."""
    before, now = (old.profile, old.size_bytes, old.replicas), (profile, size_bytes, replicas)
    for name, was, given in zip(("profile", "scratch", "replicas"), before, now, strict=True):
        if was != given:
            raise InvalidArgument(f"the older run has --{name} {was}, this one {given}: they cannot be compared")


def compare(old: Sequence[JobResult], new: Sequence[JobResult]) -> list[Compared]:
    """The sides that both runs have."""
    before = {(job.job, side.direction): side for job in old for side in job.sides}
    return [
        Compared(
            job=job.job,
            direction=side.direction,
            iops_before=was.iops,
            iops=side.iops,
            change=side.iops / was.iops - 1 if was.iops else 0.0,
            p99_ns_before=was.p99_ns,
            p99_ns=side.p99_ns,
        )
        for job in new
        for side in job.sides
        if (was := before.get((job.job, side.direction))) is not None
    ]
