"""`iomesh top`: a sample is what happened between two readings, per second."""

import io

from rich.console import Console

from iomesh.api.model import Bucket, Counters, Device, Latency, ReactorCounters, VolumeCounters
from iomesh.cli.top import sample, view


def reading(at: int, counters: dict[str, int], latency: list[Bucket], reactor: dict[str, int]) -> Counters:
    return Counters(
        monotonic_ns=at,
        volumes=[
            VolumeCounters(volume="db", counters=counters, latencies={"write_latency": Latency(latency)}, connections=2)
        ],
        reactors=[ReactorCounters(reactor=0, counters=reactor)],
        devices=[Device(id="0", path="/dev/x", tier="ssd", label="", size_bytes=1000, free_bytes=400)],
    )


BEFORE = reading(
    0,
    {"writes": 1000, "written_bytes": 4096_000, "record_bytes": 8192_000},
    [Bucket(1000, 50)],
    {"busy_ns": 0, "map_hits": 10, "map_misses": 10},
)
AFTER = reading(
    2_000_000_000,
    {"writes": 21000, "written_bytes": 4096_000 + 20000 * 4096, "record_bytes": 8192_000 + 20000 * 4300, "reads": 10},
    [Bucket(1000, 50), Bucket(20_000, 19_000), Bucket(500_000, 1000)],
    {
        "volumes": 3,
        "busy_ns": 500_000_000,
        "map_hits": 100,
        "map_misses": 20,
        "map_frames": 64,
        "map_used": 32,
        "map_dirty": 4,
    },
)


def test_rates_are_differences_over_the_time_between() -> None:
    (volume,) = sample(BEFORE, AFTER).volumes
    assert (
        volume.write_iops,
        volume.written_bytes_per_second,
        volume.log_bytes_per_second,
        volume.read_iops,
        volume.clients,
    ) == (
        10_000,
        40_960_000,
        43_000_000,
        5,
        2,
    )


def test_latencies_are_those_of_the_interval_alone() -> None:
    (volume,) = sample(BEFORE, AFTER).volumes
    assert (volume.write_latency.count, volume.write_latency.p50_ns, volume.write_latency.p99_ns) == (
        20_000,
        20_000,
        500_000,
    )
    assert volume.read_latency.count == 0


def test_the_reactors_share_of_time_and_its_cache_are_reported() -> None:
    (reactor,) = sample(BEFORE, AFTER).reactors
    figures = (reactor.volumes, reactor.busy, reactor.map_frames, reactor.map_used, reactor.map_dirty, reactor.map_hits)
    assert figures == (
        3,
        0.25,
        64,
        32,
        4,
        0.9,
    )
    assert sample(AFTER, AFTER).reactors[0].map_hits is None


def test_a_volume_that_was_opened_again_counts_from_zero() -> None:
    (volume,) = sample(AFTER, reading(4_000_000_000, {"writes": 100}, [Bucket(1000, 100)], {})).volumes
    assert volume.write_iops == 50
    assert volume.write_latency.count == 100


def test_the_screen_shows_it_to_people() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view(sample(BEFORE, AFTER), "node-0"))
    shown = console.export_text()
    for word in (
        "db",
        "10k",
        "39.1 Mi",
        "20 µs / 500 µs / 500 µs",
        "25.0%",
        "32 of 64 nodes",
        "90.0%",
        "600 B of 1000 B used",
    ):
        assert word in shown
