"""`iomesh bench`: what a volume does under the load of a database."""

import asyncio
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from iomesh.benchmark.comparison import VolumeBenchmark, check_same_load, compare, read
from iomesh.benchmark.fio import PREFILL, JobResult, run
from iomesh.benchmark.profiles import PROFILES
from iomesh.cli.output import table
from iomesh.cli.session import Seconds, Session, Size, asks
from iomesh.errors import IomeshError
from iomesh.sizes import short_size, short_time

if TYPE_CHECKING:
    from iomesh.api.client import Client

LEAST_BYTES = 16 << 20  # a part of 1 MiB and more for each job
COLUMNS = ("JOB", "", ">IOPS", ">BYTES/S", ">MEAN", ">P50", ">P99", ">P99.9", ">CLIENT CPU")


@click.group()
def bench() -> None:
    """Measure with fio what volumes do under the load of a database."""


@bench.command("volume")
@click.option(
    "--scratch", "size", type=Size(least=LEAST_BYTES), required=True, help="Make a volume of this size, and delete it."
)
@click.option("--profile", type=click.Choice(tuple(PROFILES)), default="oltp", show_default=True, help="The load.")
@click.option("--seconds", type=Seconds(min=0.1, max=86400), default=10.0, show_default=True, help="Length of the run.")
@click.option("--replicas", type=click.IntRange(1, 4), default=1, show_default=True, help="Of the scratch volume.")
@click.option(
    "--compare",
    "older",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Show this run beside an older one, whose --json output is in FILE.",
)
@asks(VolumeBenchmark)
def volume(session: Session, size: int, profile: str, seconds: float, replicas: int, older: Path | None) -> None:
    """Measure a scratch volume: make it, write all of it once, run the load, delete it, after Ctrl-C as well.

    No other volume is touched. The daemon's devices need room for it, and share their speed with other volumes.
    """
    size = session.whole_blocks(size)
    old = read(older) if older else None
    if old is not None:
        check_same_load(old, profile, size, replicas)
    try:
        jobs = asyncio.run(measured(session, size, profile, seconds, replicas))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    compared = compare(old.jobs, jobs) if old is not None else []
    done = VolumeBenchmark(
        profile=profile, size_bytes=size, replicas=replicas, seconds=seconds, jobs=jobs, compared=compared
    )
    shown = [
        (
            one.job,
            one.direction,
            f"{one.iops_before:,.0f}",
            f"{one.iops:,.0f}",
            f"{one.change:+.1%}",
            short_time(one.p99_ns_before),
            short_time(one.p99_ns),
        )
        for one in compared
    ]
    columns = ("JOB", "", ">IOPS BEFORE", ">NOW", ">CHANGE", ">P99 BEFORE", ">NOW")
    renderables: list[RenderableType] = [table(*COLUMNS, rows=rows(jobs))]
    if shown:
        renderables += ["", table(*columns, rows=shown)]
    session.output.answer(done, *renderables)


async def measured(session: Session, size: int, profile: str, seconds: float, replicas: int) -> list[JobResult]:
    """Raises CancelledError after SIGINT or SIGTERM, once the scratch volume is gone."""
    stop_on_signals()
    async with session.connect(session.timeout_seconds) as node:
        name = f"bench-scratch-{uuid.uuid4().hex[:12]}"  # nobody has a volume of this name
        made = asyncio.ensure_future(node.create_volume(name, size, replicas=replicas))
        try:
            await asyncio.shield(made)
            uri = (await node.export_volume(name)).uris[0]
            with session.output.step(f"writing {name} once"):
                await run((PREFILL,), uri, size, None)
            with session.output.step(f"{profile} for {seconds:g} s"):
                return await run(PROFILES[profile], uri, size, seconds)
        finally:
            await asyncio.wait([made])  # a call that was given up might make the volume after it was looked for
            await deleted(session, node, name)


def stop_on_signals() -> None:
    """Cancels this task at the first SIGINT or SIGTERM. A second one does not interrupt what the first began."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    seen: list[bool] = []

    def stop() -> None:
        if task is not None and not seen:
            seen.append(True)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


async def deleted(session: Session, node: "Client", name: str) -> None:
    """Deletes the scratch volume; names it if that fails."""
    try:
        if name in {one.name for one in await node.volumes()}:
            await node.delete_volume(name, force=True)
    except IomeshError as error:
        session.output.warn(f"scratch volume {name} is still there ({error.message}): `iomesh volume delete {name}`")


def rows(jobs: list[JobResult]) -> list[tuple[object, ...]]:
    return [
        (
            job.job,
            side.direction,
            f"{side.iops:,.0f}",
            short_size(int(side.bytes_per_second)) if side.bytes_per_second else "",
            *(short_time(value) for value in (side.mean_ns, side.p50_ns, side.p99_ns, side.p999_ns)),
            short_time(job.client_cpu_ns_per_operation),
        )
        for job in jobs
        for side in job.sides
    ]
