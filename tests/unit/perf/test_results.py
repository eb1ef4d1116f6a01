"""Medians, ratios and verdicts say what the runs say."""

import dataclasses
import json
from pathlib import Path

import pytest

from iomesh_perf import amplification, results
from iomesh_perf.results import Goal, Measure

WRITES = "4 KiB random write, depth 32"


def measure(name: str = WRITES, unit: str = "IOPS", **runs: list[float]) -> Measure:
    return Measure.of_runs(name, unit, "more", runs)


def test_a_value_is_the_median_and_ratios_are_of_medians() -> None:
    one = measure(iomesh=[100, 1, 300], raw=[50, 50, 1000], qemu=[25, 25, 25])
    assert (one.value, one.over_raw, one.over_qemu) == (100, 2, 4)


def test_what_was_not_measured_has_no_ratio() -> None:
    one = measure(iomesh=[100])
    assert (one.over_raw, one.over_qemu) == (None, None)


def test_a_goal_of_two_bounds_needs_both() -> None:
    goal = Goal(WRITES, least_over_raw=1.5, least_over_qemu=4)
    assert results.verdict(goal, measure(iomesh=[150], raw=[100], qemu=[30])).reached
    missed = results.verdict(goal, measure(iomesh=[150], raw=[100], qemu=[50]))
    assert not missed.reached
    assert missed.words == "1.50 × raw (≥ 1.5); 3.00 × qemu-storage-daemon (≥ 4), 25% short"


def test_a_goal_that_cannot_be_compared_is_missed() -> None:
    assert not results.verdict(Goal(WRITES, least_over_raw=1), measure(iomesh=[1])).reached
    assert not results.verdict(Goal(WRITES, most_above_raw=1), measure(iomesh=[1])).reached


def test_latency_is_held_against_raw_plus_something() -> None:
    goal = Goal("latency", most_above_raw=40)
    assert results.verdict(goal, measure("latency", "µs", iomesh=[85], raw=[45])).reached
    missed = results.verdict(goal, measure("latency", "µs", iomesh=[95], raw=[45]))
    assert (missed.reached, missed.words) == (False, "raw +50.0 µs (≤ +40), 10.0 too much")


def test_latency_may_be_a_multiple_of_raw() -> None:
    goal = Goal("latency", most_over_raw=4)
    assert results.verdict(goal, measure("latency", "µs", iomesh=[180], raw=[45])).reached
    missed = results.verdict(goal, measure("latency", "µs", iomesh=[225], raw=[45]))
    assert (missed.reached, missed.words) == (False, "5.00 × raw (≤ 4), 25% too much")
    assert not results.verdict(goal, measure("latency", "µs", iomesh=[1])).reached


def test_a_missed_absolute_bound_reports_by_how_much() -> None:
    missed = results.verdict(Goal("memory", most=350), Measure("memory", 420, "MiB", "less"))
    assert (missed.reached, missed.words) == (False, "420 MiB (≤ 350), 20% too much")


def test_every_goal_names_a_measure_that_the_benchmark_takes() -> None:
    from iomesh_perf import cluster, snapshots
    from iomesh_perf.speed import FIGURES, WORKLOADS

    speed = {workload.name + suffix for workload in WORKLOADS for suffix, _, _ in FIGURES}
    speed |= {
        workload.name + cluster.SUFFIX + suffix
        for workload in cluster.WORKLOADS
        for suffix in [*(suffix for suffix, _, _ in FIGURES), cluster.NODES_CPU]
    }
    amplified = {measure.measure for shape in amplification.SHAPES for measure in course(shape).measures()}
    clustered = {cluster.PAUSE + "killed", cluster.PAUSE + "silent", cluster.TAKE_OVER, cluster.IDLE}
    assert clustered <= {goal.measure for goal in results.GOALS}
    costs = {goal.measure for goal in results.GOALS if goal.most is not None} - amplified - clustered - speed
    with_snapshots = {snapshots.name_of(workload) for workload in snapshots.WORKLOADS}
    assert {goal.measure for goal in results.GOALS} - costs - amplified - with_snapshots - clustered <= speed
    assert with_snapshots <= {goal.measure for goal in results.GOALS}
    assert len(costs) == 4
    assert {name for name in amplified if not name.startswith("what the device does")} <= {
        goal.measure for goal in results.GOALS
    }


def course(shape: str) -> amplification.Course:
    """Ten samples: each time the client writes 100 bytes, of which 150 more are written by compaction, and 20 that no
    counter tells."""
    samples = [
        amplification.Sample(
            at=second,
            parts={part: {"user data": 100, "compaction": 150}.get(part, 0) * second for part in amplification.PARTS},
            read_bytes=230 * second,
            device_bytes=270 * second,
            free_bytes=0,
            segments=10 + second,
        )
        for second in range(10)
    ]
    return amplification.Course(shape, 1000, 800, 100, 200.0, 1000.0, samples)


def test_amplification_is_split_into_its_parts_and_a_rest() -> None:
    whole, speed, segments, device = course("uniform").measures()
    assert whole.value == pytest.approx(2.7)
    assert whole.note == (
        "user data 1.00, headers 0.00, map 0.00, compaction 1.50, evacuation 0.00, other 0.20; over 0.3 × the capacity"
    )
    assert speed.value == pytest.approx(50)
    assert segments.value == pytest.approx(19 / 8)
    assert device.value == pytest.approx(50), "100 bytes of the client, 500 of the device, which has 1000"
    assert device.note.endswith("all of them would be 100% of fresh")


def test_a_device_in_memory_reports_only_its_bytes() -> None:
    on_disk = course("uniform")
    in_memory = dataclasses.replace(
        on_disk, samples=[dataclasses.replace(sample, read_bytes=0) for sample in on_disk.samples]
    )
    assert [measure.measure for measure in in_memory.measures()] == [measure.measure for measure in on_disk.measures()][
        :-1
    ]


def test_what_is_saved_has_the_documented_keys_and_is_read_back(tmp_path: Path) -> None:
    saved = [
        measure(iomesh=[150, 160], raw=[100, 100], qemu=[30, 30]),
        Measure("memory", 1.5, "MiB", "less", note="peak"),
    ]
    results.save(saved, tmp_path / "build" / "bench.json")
    document = json.loads((tmp_path / "build" / "bench.json").read_text())
    assert all({"measure", "value", "unit", "over_raw", "over_qemu"} <= set(record) for record in document)
    assert document[0]["reached"] is True
    assert results.load(tmp_path / "build" / "bench.json") == saved


@pytest.mark.parametrize(
    ("value", "text"), [(123456.7, "123,457"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012")]
)
def test_figures_have_the_digits_that_mean_something(value: float, text: str) -> None:
    assert results.figure(value) == text
