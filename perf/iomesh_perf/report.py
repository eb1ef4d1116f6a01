"""Tables for people: results, goals, and changes since an older run."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from iomesh_perf.results import Measure, Verdict, figure


def ratio(value: float | None) -> str:
    return f"{value:.2f} ×" if value is not None else ""


def table_of(measures: Iterable[Measure], title: str = "") -> Table:
    table = Table(title=title or None, title_justify="left")
    table.add_column("measure")
    for heading in ("iomesh", "raw", "qemu"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for heading in ("over raw", "over qemu"):
        table.add_column(heading, justify="right")
    for measure in measures:
        table.add_row(
            measure.measure,
            Text(figure(measure.value), style="bold"),
            figure(measure.raw) if measure.raw is not None else "",
            figure(measure.qemu) if measure.qemu is not None else "",
            measure.unit,
            ratio(measure.over_raw),
            ratio(measure.over_qemu),
        )
    return table


def verdict_lines(verdicts: Iterable[Verdict]) -> list[Text]:
    lines = []
    for verdict in verdicts:
        word = Text("reached  ", style="bold green") if verdict.reached else Text("missed   ", style="bold red")
        lines.append(word + Text(f"{verdict.measure}: {verdict.words}", style="default"))
    return lines


def comparison(old: Sequence[Measure], new: Sequence[Measure]) -> Table:
    """Measures that both runs have, side by side; the ratio's colour is the direction of changes above noise (5 %)."""
    table = Table(title="compared with the older run", title_justify="left")
    table.add_column("measure")
    for heading in ("before", "now"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for heading in ("change", "over raw before", "over raw now"):
        table.add_column(heading, justify="right")
    before = {measure.measure: measure for measure in old}
    for measure in new:
        if (was := before.get(measure.measure)) is None:
            continue
        change = measure.value / was.value - 1 if was.value else 0.0
        gain = change if measure.better == "more" else -change
        style = "green" if gain > 0.05 else "red" if gain < -0.05 else ""
        table.add_row(
            measure.measure,
            figure(was.value),
            figure(measure.value),
            measure.unit,
            Text(f"{change:+.1%}", style=style),
            ratio(was.over_raw),
            ratio(measure.over_raw),
        )
    return table
