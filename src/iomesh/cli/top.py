"""`iomesh top`: the current activity of a node's volumes.

A sample is the difference of two readings of the daemon's counters and histograms, over the time between them; a
counter that decreased belongs to a volume or daemon that was reopened, and counts from zero.
"""

import asyncio
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from iomesh.cli.documents import LatencySample, NodeSample, ReactorSample, VolumeSample
from iomesh.cli.output import table
from iomesh.cli.session import Seconds, Session, asks
from iomesh.errors import Unavailable
from iomesh.sizes import short_count, short_size, short_time

if TYPE_CHECKING:
    from iomesh.api.model import Counters, Latency, ReactorCounters, VolumeCounters


def sample(before: "Counters", now: "Counters") -> NodeSample:
    """The activity between two readings."""
    seconds = max(1, now.monotonic_ns - before.monotonic_ns) / 1e9
    volumes = {one.volume: one for one in before.volumes}
    reactors = {one.reactor: one for one in before.reactors}
    return NodeSample(
        seconds=seconds,
        volumes=[
            of_volume(volumes.get(one.volume), one, seconds) for one in sorted(now.volumes, key=lambda one: one.volume)
        ],
        reactors=[of_reactor(reactors.get(one.reactor), one, seconds) for one in now.reactors],
        capacity_bytes=sum(one.size_bytes for one in now.devices),
        free_bytes=sum(one.free_bytes for one in now.devices),
    )


def since(before: dict[str, int], now: dict[str, int], *names: str) -> int:
    """The total increase of the named counters."""
    rises = 0
    for name in names:
        was, value = before.get(name, 0), now.get(name, 0)
        rises += value - was if value >= was else value
    return rises


def of_volume(before: "VolumeCounters | None", now: "VolumeCounters", seconds: float) -> VolumeSample:
    was = before.counters if before else {}

    def rate(*names: str) -> float:
        return since(was, now.counters, *names) / seconds

    def latency(name: str) -> LatencySample:
        return of_latency(before.latencies.get(name) if before else None, now.latencies.get(name))

    return VolumeSample(
        volume=now.volume,
        clients=now.connections,
        read_iops=rate("reads"),
        write_iops=rate("writes"),
        flush_iops=rate("flushes"),
        trim_iops=rate("trims", "zeroes"),
        read_bytes_per_second=rate("read_bytes"),
        written_bytes_per_second=rate("written_bytes"),
        log_bytes_per_second=rate("record_bytes"),
        records_per_second=rate("records"),
        errors_per_second=rate("read_errors", "write_errors", "checksum_errors", "no_space_errors"),
        read_latency=latency("read_latency"),
        write_latency=latency("write_latency"),
        flush_latency=latency("flush_latency"),
    )


def of_latency(before: "Latency | None", now: "Latency | None") -> LatencySample:
    if now is None:
        return LatencySample()
    seen = now.since(before) if before is not None and before.count <= now.count else now
    return LatencySample(seen.count, seen.quantile(0.5), seen.quantile(0.99), seen.quantile(0.999))


def of_reactor(before: "ReactorCounters | None", now: "ReactorCounters", seconds: float) -> ReactorSample:
    was = before.counters if before else {}
    hits, misses = since(was, now.counters, "map_hits"), since(was, now.counters, "map_misses")
    return ReactorSample(
        reactor=now.reactor,
        volumes=now.counters.get("volumes", 0),
        busy=min(1.0, since(was, now.counters, "busy_ns") / 1e9 / seconds),
        map_frames=now.counters.get("map_frames", 0),
        map_used=now.counters.get("map_used", 0),
        map_dirty=now.counters.get("map_dirty", 0),
        map_hits=hits / (hits + misses) if hits + misses else None,
    )


def view(now: NodeSample, title: str) -> RenderableType:
    """Renders the screen."""
    rows = [
        (
            one.volume,
            one.clients,
            short_count(one.read_iops),
            short_count(one.write_iops),
            short_size(one.read_bytes_per_second),
            short_size(one.written_bytes_per_second),
            percentiles(one.read_latency),
            percentiles(one.write_latency),
            short_size(one.log_bytes_per_second),
            Text(short_count(one.errors_per_second), style="red" if one.errors_per_second else ""),
        )
        for one in now.volumes
    ]
    volumes: RenderableType = (
        table(
            "VOLUME",
            ">CLIENTS",
            ">READ/s",
            ">WRITE/s",
            ">READ B/s",
            ">WRITE B/s",
            ">READ p50 / p99 / p99.9",
            ">WRITE p50 / p99 / p99.9",
            ">LOG B/s",
            ">ERR/s",
            rows=rows,
        )
        if rows
        else Text("no volumes", style="dim")
    )
    reactors = table(
        "REACTOR",
        ">VOLUMES",
        ">BUSY",
        ">MAP CACHE",
        ">DIRTY",
        ">HITS",
        rows=[
            (
                one.reactor,
                one.volumes,
                f"{one.busy:.1%}",
                f"{one.map_used} of {one.map_frames} nodes",
                one.map_dirty,
                f"{one.map_hits:.1%}" if one.map_hits is not None else "-",
            )
            for one in now.reactors
        ],
    )
    space = f"{short_size(now.capacity_bytes - now.free_bytes)} of {short_size(now.capacity_bytes)} used"
    return Group(Text(f"{title}   {space}", style="bold"), "", volumes, "", reactors)


def percentiles(one: LatencySample) -> str:
    return " / ".join(short_time(value) for value in (one.p50_ns, one.p99_ns, one.p999_ns)) if one.count else "-"


@click.command()
@click.option("--interval", type=Seconds(min=0.1, max=3600), default=1.0, show_default=True, help="Seconds per sample.")
@click.option("--once", is_flag=True, help="Take one sample and exit.")
@asks(NodeSample)
def top(session: Session, interval: float, once: bool) -> None:
    """Watch the volumes: rates, latencies, log, map cache. Ctrl-C ends it.

    With --json, one document per line and interval.
    """
    try:
        asyncio.run(watch(session, interval, once))
    except KeyboardInterrupt:
        if once:
            raise


async def watch(session: Session, interval: float, once: bool) -> None:
    output = session.output
    async with session.connect(max(10.0, interval)) as node:
        name, before = (await node.status()).node, await node.counters()
        if once or output.as_json or not output.console.is_terminal:
            while True:
                await asyncio.sleep(interval)
                now = await node.counters()
                seen, before = sample(before, now), now
                if output.as_json:
                    output.line(seen)
                else:
                    output.show(view(seen, name))
                if once:
                    return
        with Live(
            Text(f"{name}: the first sample is being taken", style="dim"),
            console=output.console,
            screen=True,
            auto_refresh=False,
        ) as live:
            while True:
                await asyncio.sleep(interval)
                try:
                    now = await node.counters()
                except Unavailable as error:
                    live.update(Text(f"{error.message}\nwaiting for it", style="yellow"), refresh=True)
                    continue
                live.update(view(sample(before, now), f"{name}   every {interval:g} s"), refresh=True)
                before = now
