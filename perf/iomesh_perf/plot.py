"""build/bench.png: a chart of the ratios.

Throughput relative to raw and qemu-storage-daemon above, mean latency below; one group of bars per workload, raw is
always 1.
"""

from collections.abc import Sequence
from pathlib import Path

from iomesh_perf.results import Measure, figure

COLOURS = {"raw": "#b0b7bf", "iomesh": "#1f6feb", "qemu": "#e3a008"}
LABELS = {"raw": "raw file, io_uring", "iomesh": "iomesh over NBD", "qemu": "qemu-storage-daemon over NBD"}


def throughput_of(measures: Sequence[Measure]) -> list[Measure]:
    return [measure for measure in measures if measure.unit in ("IOPS", "MiB/s") and measure.raw]


def latency_of(measures: Sequence[Measure]) -> list[Measure]:
    return [
        measure
        for measure in measures
        if measure.measure.endswith(", mean latency") and " depth 8" not in measure.measure and measure.raw
    ]


def draw(measures: Sequence[Measure], path: Path, title: str) -> bool:
    """Returns False if there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("Throughput: higher is better", throughput_of(measures)),
        ("Mean latency: lower is better", latency_of(measures)),
    ]
    panels = [(name, chosen) for name, chosen in panels if chosen]
    if not panels:
        return False
    figure_, axes = pyplot.subplots(len(panels), 1, figsize=(13, 4.6 * len(panels)), squeeze=False)
    figure_.suptitle(title, fontsize=13)
    for axis, (name, chosen) in zip(axes[:, 0], panels, strict=True):
        targets = ["raw", "iomesh"] + (["qemu"] if all(measure.qemu for measure in chosen) else [])
        width = 0.8 / len(targets)
        highest = 0.0
        for position, target in enumerate(targets):
            values = [measure.value if target == "iomesh" else getattr(measure, target) for measure in chosen]
            ratios = [value / (measure.raw or 1) for value, measure in zip(values, chosen, strict=True)]
            highest = max(highest, *ratios)
            places = [index + (position - (len(targets) - 1) / 2) * width for index in range(len(chosen))]
            bars = axis.bar(places, ratios, width * 0.94, color=COLOURS[target], label=LABELS[target])
            marks = [f"{figure(value)}\n{ratio:.2f}×" for value, ratio in zip(values, ratios, strict=True)]
            axis.bar_label(bars, marks, fontsize=7.5, padding=2)
        axis.axhline(1, color="#57606a", linewidth=0.8, linestyle=":")
        axis.set_ylim(0, highest * 1.2)
        axis.set_xticks(range(len(chosen)), [label_of(measure) for measure in chosen], fontsize=9)
        axis.set_ylabel("ratio to the raw file")
        axis.set_title(name, loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=9, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.14))
    figure_.tight_layout(rect=(0, 0, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_.savefig(path, dpi=120)
    pyplot.close(figure_)
    return True


def label_of(measure: Measure) -> str:
    """ "4 KiB random write, depth 32, mean latency" in two short lines, with the unit."""
    words = measure.measure.removesuffix(", mean latency").split(", ")
    return f"{words[0]}\n{', '.join(words[1:])}  [{measure.unit}]"
