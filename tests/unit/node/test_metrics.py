"""The engine's histograms as Prometheus wants them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from iomesh.engine import engine
from iomesh.node.metrics import LARGEST_BOUND_NS, SMALLEST_BOUND_NS, prometheus_buckets


def observed(*nanoseconds: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Counts as the engine keeps them: in the first bucket whose upper bound is above."""
    counts = np.zeros(engine.HISTOGRAM_BUCKETS, dtype=np.uint64)
    for each in nanoseconds:
        counts[int(np.searchsorted(engine.histogram_bounds(), each, side="right"))] += np.uint64(1)
    return counts


def test_the_engines_bounds_rise() -> None:
    bounds = engine.histogram_bounds()
    assert len(bounds) == engine.HISTOGRAM_BUCKETS
    used = bounds[(bounds >= SMALLEST_BOUND_NS // 2) & (bounds <= LARGEST_BOUND_NS)]
    assert (np.diff(used.astype(np.int64)) > 0).all()


def test_every_power_of_two_is_one_of_the_engines_bounds() -> None:
    bounds = set(engine.histogram_bounds().tolist())
    buckets, _ = prometheus_buckets(observed(), engine.histogram_bounds())
    for bound, _ in buckets[:-1]:
        assert round(float(bound) * 1e9) in bounds, bound


def test_buckets_are_cumulative_exact_and_end_with_all() -> None:
    draw = random.Random(7)
    times = [int(10 ** draw.uniform(2, 11)) for _ in range(2000)]
    buckets, _ = prometheus_buckets(observed(*times), engine.histogram_bounds())
    assert buckets[-1] == ("+Inf", 2000.0)
    for bound, count in buckets[:-1]:
        assert count == sum(each < round(float(bound) * 1e9) for each in times), bound


@pytest.mark.parametrize("nanoseconds", [5_000, 80_000, 1_000_000, 3_000_000_000])
def test_the_sum_is_right_to_within_an_eighth(nanoseconds: int) -> None:
    _, total = prometheus_buckets(observed(*[nanoseconds] * 10), engine.histogram_bounds())
    assert total == pytest.approx(10 * nanoseconds / 1e9, rel=1 / 8)


def test_nothing_observed_is_nothing() -> None:
    buckets, total = prometheus_buckets(observed(), engine.histogram_bounds())
    assert total == 0.0
    assert {count for _, count in buckets} == {0.0}
