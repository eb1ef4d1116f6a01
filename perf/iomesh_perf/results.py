"""Measures and goals. `build/bench.json` is a list of measures."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Better = Literal["more", "less"]


@dataclass
class Measure:
    """One figure: the median of its runs, and of the runs it is compared with.

    `over_raw` and `over_qemu` are value / raw and value / qemu, whatever the unit; None if there is nothing to compare
    with.
    """

    measure: str
    value: float
    unit: str
    better: Better
    over_raw: float | None = None
    over_qemu: float | None = None
    raw: float | None = None
    qemu: float | None = None
    runs: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of_runs(cls, measure: str, unit: str, better: Better, runs: dict[str, list[float]]) -> "Measure":
        """`runs` by target; iomesh must be among them."""
        medians = {target: statistics.median(values) for target, values in runs.items() if values}
        value, raw, qemu = medians["iomesh"], medians.get("raw"), medians.get("qemu")
        return cls(
            measure=measure,
            value=value,
            unit=unit,
            better=better,
            over_raw=value / raw if raw else None,
            over_qemu=value / qemu if qemu else None,
            raw=raw,
            qemu=qemu,
            runs=runs,
        )


@dataclass(frozen=True)
class Goal:
    """The goal of one measure. Bounds that are None do not apply."""

    measure: str
    least_over_raw: float | None = None
    least_over_qemu: float | None = None
    most_over_raw: float | None = None
    most_above_raw: float | None = None
    most: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class Verdict:
    measure: str
    reached: bool
    words: str


GOALS: Sequence[Goal] = (
    Goal("4 KiB random write, depth 32", least_over_raw=1.5, least_over_qemu=4),
    Goal("4 KiB random write, depth 1, mean latency", most_above_raw=40),
    Goal("4 KiB random read, depth 32", least_over_raw=0.8, least_over_qemu=1.5),
    Goal("4 KiB random read, depth 1, mean latency", most_above_raw=40),
    Goal("1 MiB sequential write, depth 8", least_over_qemu=1),
    Goal("1 MiB sequential read, depth 8", least_over_qemu=1),
    Goal("user-space instructions of the engine per 4 KiB write, depth 32", most=4000),
    Goal("resident memory, 100 GiB volume, 20 GiB written at random, 64 MiB map cache", most=350),
    Goal("start after SIGKILL with 4 GiB of log since the checkpoint", most=2),
    Goal("CPU of an idle node with an attached volume", most=1),
    *(
        Goal(f"4 KiB random {direction}, depth {depth}, with 100 snapshots", least=90)
        for direction in ("write", "read")
        for depth in (1, 32)
    ),
    Goal("write amplification, uniform", most=3.3),
    Goal("write amplification, 90 % of writes to 10 % of blocks", most=2.2),
    Goal("throughput in steady state, uniform", least=50),
    Goal("throughput in steady state, 90 % of writes to 10 % of blocks", least=50),
    Goal("segments, uniform", most=3),
    Goal("segments, 90 % of writes to 10 % of blocks", most=3),
    Goal("4 KiB random write, depth 32, 3 replicas", least_over_raw=0.6),
    Goal("4 KiB random write, depth 1, 3 replicas, mean latency", most_over_raw=4),
    Goal("4 KiB random read, depth 32, 3 replicas", least_over_raw=0.7),
    Goal("1 MiB sequential write, depth 8, 3 replicas", least_over_raw=0.2),
    Goal("4 KiB random write, depth 32, 3 replicas, CPU of all nodes per I/O", most=30),
    Goal("longest pause of acknowledgements when a member is killed", most=300),
    Goal("longest pause of acknowledgements when a member is silent", most=2500),
    Goal("take-over after the owner is killed", most=5),
    Goal("CPU of three idle nodes with an attached volume", most=3),
)


def verdicts(measures: Iterable[Measure]) -> list[Verdict]:
    """One result for each goal whose measure exists."""
    by_name = {measure.measure: measure for measure in measures}
    return [verdict(goal, by_name[goal.measure]) for goal in GOALS if goal.measure in by_name]


def verdict(goal: Goal, measure: Measure) -> Verdict:
    reached, words = True, []
    for least, over, name in (
        (goal.least_over_raw, measure.over_raw, "raw"),
        (goal.least_over_qemu, measure.over_qemu, "qemu-storage-daemon"),
    ):
        if least is None:
            continue
        if over is None:
            reached = False
            words.append(f"not compared with {name} (≥ {least:g} ×)")
            continue
        reached = reached and over >= least
        words.append(
            f"{over:.2f} × {name} (≥ {least:g})" + ("" if over >= least else f", {1 - over / least:.0%} short")
        )
    if goal.most_over_raw is not None:
        over = measure.over_raw
        reached = reached and over is not None and over <= goal.most_over_raw
        if over is None:
            words.append(f"not compared with raw (≤ {goal.most_over_raw:g} ×)")
        else:
            words.append(
                f"{over:.2f} × raw (≤ {goal.most_over_raw:g})"
                + ("" if over <= goal.most_over_raw else f", {over / goal.most_over_raw - 1:.0%} too much")
            )
    if goal.most_above_raw is not None:
        if measure.raw is None:
            reached = False
            words.append("not compared with raw")
        else:
            above = measure.value - measure.raw
            reached = reached and above <= goal.most_above_raw
            words.append(
                f"raw {above:+.1f} {measure.unit} (≤ +{goal.most_above_raw:g})"
                + ("" if above <= goal.most_above_raw else f", {above - goal.most_above_raw:.1f} too much")
            )
    if goal.most is not None:
        reached = reached and measure.value <= goal.most
        words.append(
            f"{figure(measure.value)} {measure.unit} (≤ {goal.most:g})"
            + ("" if measure.value <= goal.most else f", {measure.value / goal.most - 1:.0%} too much")
        )
    if goal.least is not None:
        reached = reached and measure.value >= goal.least
        words.append(
            f"{figure(measure.value)} {measure.unit} (≥ {goal.least:g})"
            + ("" if measure.value >= goal.least else f", {1 - measure.value / goal.least:.0%} short")
        )
    return Verdict(measure.measure, reached, "; ".join(words))


def figure(value: float) -> str:
    """A number with its significant digits: 123456 -> "123,456", 12.345 -> "12.3", 0.01234 -> "0.012"."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def save(measures: Iterable[Measure], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    measures = list(measures)
    goals = {verdict.measure: verdict for verdict in verdicts(measures)}
    document = []
    for measure in measures:
        record = {key: value for key, value in asdict(measure).items() if key != "note" or value}
        if measure.measure in goals:
            record |= {"reached": goals[measure.measure].reached, "goal": goals[measure.measure].words}
        document.append(record)
    path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> list[Measure]:
    """Read a file of save(); keys that a later version added are skipped."""
    known = set(Measure.__dataclass_fields__)
    document: list[dict[str, Any]] = json.loads(path.read_text())
    return [
        Measure(**{"better": "more", **{key: value for key, value in record.items() if key in known}})
        for record in document
    ]
