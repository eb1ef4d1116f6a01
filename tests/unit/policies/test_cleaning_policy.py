"""What the cleaning policy chooses, from tables written for the test."""

import numpy as np
import pytest

from iomesh.policies.cleaning import (
    CLEANABLE,
    KEPT,
    STRAGGLES,
    DeviceSpace,
    Memory,
    Need,
    Table,
    choose,
    freed_blocks,
    kept_blocks,
    scores,
)

ROW = np.dtype([(name, np.uint32) for name in ("segment", "blocks", "live", "space", "slab", "flags")])


def table(*rows: tuple[int, int, int, int]) -> Table:
    """Rows of (segment, live, slabs, flags); segments have 64 slabs of 64 blocks."""
    return np.array([(segment, 4096, live, slabs * 64, 64, flags) for segment, live, slabs, flags in rows], ROW)


def test_a_compacted_replica_needs_slabs_for_bitmaps_footer_and_live_blocks() -> None:
    exactly = 10 * 64 - 4 - 2
    assert list(freed_blocks(table((1, exactly, 64, CLEANABLE), (2, exactly + 1, 64, CLEANABLE)))) == [54 * 64, 53 * 64]


def test_what_straggles_needs_only_its_blocks() -> None:
    assert list(freed_blocks(table((1, 320, 64, CLEANABLE | STRAGGLES)))) == [4096 - 320]


def test_what_the_restore_window_keeps_is_not_to_be_had_but_by_shortening_it() -> None:
    rows = table((1, 1000, 64, CLEANABLE), (2, 0, 64, KEPT))
    assert list(freed_blocks(rows)) == [48 * 64, 0]
    assert list(kept_blocks(rows)) == [0, 63 * 64]


def test_the_best_come_first_and_no_more_than_are_needed() -> None:
    rows = table((1, 3000, 64, CLEANABLE), (2, 1000, 64, CLEANABLE), (3, 2000, 64, CLEANABLE), (4, 500, 64, 0))
    everything, alike = np.ones(4, np.bool_), np.ones(4)
    assert list(choose(rows, everything, alike, 16, 64000)) == [1, 2, 0], "the one that cannot be cleaned is left out"
    assert list(choose(rows, everything, alike, 2, 64000)) == [1, 2]
    assert list(choose(rows, everything, alike, 16, 20 * 64)) == [1], "48 slabs come free with the first one"
    assert list(choose(rows, everything, alike, 16, 50 * 64)) == [1, 2]
    assert list(choose(rows, np.array([True, False, True, True]), alike, 16, 64000)) == [2, 0]


def test_of_two_that_are_as_dead_the_one_that_dies_more_slowly_is_better() -> None:
    fast, slow = scores(table((99, 1000, 64, CLEANABLE), (1, 1000, 64, CLEANABLE)), np.array([0.02, 0.01]))
    assert slow == pytest.approx(2 * fast)


def test_of_segments_with_equal_death_rates_the_most_dead_comes_first() -> None:
    rows = table((1, 1500, 64, CLEANABLE), (2, 2500, 64, CLEANABLE), (3, 1500, 24, CLEANABLE))
    most, less, compacted = scores(rows, np.full(3, 0.001))
    assert most > less > compacted, "of the compacted one little is left to be had"


def test_a_dead_segment_that_still_has_space_is_chosen_first() -> None:
    dead, dying = scores(table((50, 0, 64, CLEANABLE), (1, 900, 64, CLEANABLE)), np.array([0.1, 0.001]))
    assert dead > dying > 0
    assert list(freed_blocks(table((50, 0, 1, CLEANABLE)))) == [0], "only its footer and its bitmaps are left"


def test_nothing_is_gained_by_cleaning_a_full_segment() -> None:
    assert list(scores(table((1, 4079, 64, CLEANABLE), (2, 1000, 16, CLEANABLE)), np.ones(2))) == [0, 0]


@pytest.mark.parametrize(("free", "need"), [(1000, Need.NONE), (370, Need.SOON), (290, Need.URGENT), (10, Need.URGENT)])
def test_how_urgent_it_is(free: int, need: Need) -> None:
    space = DeviceSpace(total=30000 * 64, free=free * 64, reserve=200 * 64)
    assert space.need(64 * 64) == need
    assert (space.missing(64 * 64) > 0) == (need == Need.URGENT)


def test_space_is_tight_below_twice_the_reserve() -> None:
    assert DeviceSpace(total=30000, free=400, reserve=200).is_tight()
    assert not DeviceSpace(total=30000, free=401, reserve=200).is_tight()


def test_nothing_is_evacuated_from_what_checkpoints_need() -> None:
    assert DeviceSpace(total=30000, free=201, reserve=200).has_spare()
    assert not DeviceSpace(total=30000, free=150, reserve=200).has_spare()


def test_what_was_tried_is_not_tried_again_until_more_of_it_has_died() -> None:
    memory = Memory()
    before = table((1, 500, 64, CLEANABLE), (2, 600, 64, CLEANABLE))
    seen = memory.look(before, 10.0)
    assert list(seen.rest_seconds) == [0, 0]
    assert not seen.tried.any()
    memory.try_rows(np.array([0]))
    seen = memory.look(table((1, 500, 64, CLEANABLE), (2, 599, 64, CLEANABLE), (3, 700, 64, CLEANABLE)), 12.0)
    assert list(seen.rest_seconds) == [2, 0, 0]
    assert list(seen.tried) == [True, False, False]
    seen = memory.look(table((1, 499, 64, CLEANABLE)), 13.0)
    assert list(seen.rest_seconds) == [0]
    assert list(seen.tried) == [False]


def test_what_was_postponed_is_tried_again() -> None:
    memory = Memory()
    rows = table((1, 500, 64, CLEANABLE), (2, 600, 64, CLEANABLE))
    memory.look(rows, 10.0)
    memory.try_rows(np.array([0, 1]))
    memory.retry(np.array([2], np.uint32))
    assert list(memory.look(rows, 11.0).tried) == [True, False]


def test_what_is_evacuated_comes_last() -> None:
    straggling = CLEANABLE | STRAGGLES
    rows = table((1, 10, 64, straggling), (2, 500, 64, CLEANABLE), (3, 400, 64, CLEANABLE))
    assert list(choose(rows, np.ones(3, bool), np.ones(3), 3, 1e9)) == [2, 1, 0]


def test_a_volume_is_quiet_while_no_segment_is_created() -> None:
    memory = Memory()
    looks = [(3, 1.0), (3, 4.0), (4, 5.0), (4, 7.0)]
    assert [memory.look(table((newest, 500, 64, 0)), now).quiet_seconds for newest, now in looks] == [0, 3, 0, 2]


def test_the_death_rate_of_a_segment_follows_from_its_past() -> None:
    memory = Memory()
    memory.look(table((1, 4000, 64, CLEANABLE), (2, 2000, 64, 0)), 1.0)
    memory.look(table((1, 3000, 64, CLEANABLE), (2, 4000, 64, 0), (12, 50, 64, 0)), 2.0)
    seen = memory.look(table((1, 2000, 64, CLEANABLE), (2, 1000, 64, CLEANABLE), (22, 4000, 64, 0)), 3.0)
    halved, quartered, new = seen.rate
    assert halved == pytest.approx(np.log(2) / 20), "to a half while twenty segments were written"
    assert quartered == pytest.approx(np.log(4) / 10), "since ten, from what it was when it was full"
    assert 0 < new < 0.01
