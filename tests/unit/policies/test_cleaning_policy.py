"""What the cleaning policy chooses, of tables made by hand."""

import numpy as np
import pytest

from iomesh.policies.cleaning import CLEANABLE, KEPT, STRAGGLES, Memory, Need, Space, Table, choose, freed_blocks, kept_blocks, scores

ROW = np.dtype([(name, np.uint32) for name in ("segment", "blocks", "live", "space", "slab", "flags")])


def table(*rows: tuple[int, int, int, int]) -> Table:
    """Rows of (segment, live, slabs, flags); segments have 64 slabs of 64 blocks."""
    return np.array([(segment, 4096, live, slabs * 64, 64, flags) for segment, live, slabs, flags in rows], ROW)


def test_a_compacted_copy_needs_whole_slabs_with_its_bitmaps_and_a_footer_of_what_lives() -> None:
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
    everything = np.ones(4, np.bool_)
    assert list(choose(rows, everything, 100, 16, 64000)) == [1, 2, 0], "the one that cannot be cleaned is left out"
    assert list(choose(rows, everything, 100, 2, 64000)) == [1, 2]
    assert list(choose(rows, everything, 100, 16, 20 * 64)) == [1], "48 slabs come free with the first one"
    assert list(choose(rows, everything, 100, 16, 50 * 64)) == [1, 2]
    assert list(choose(rows, np.array([True, False, True, True]), 100, 16, 64000)) == [2, 0]


def test_of_two_with_as_much_to_gain_the_older_one_is_better() -> None:
    young, old = scores(table((99, 1000, 64, CLEANABLE), (1, 1000, 64, CLEANABLE)), newest=100)
    assert old > young > 0


def test_of_two_that_are_as_dead_the_one_that_dies_more_slowly_is_better() -> None:
    """Both have lost half; the young one did so in a tenth of the time, and will soon have lost more."""
    young, old = scores(table((90, 2048, 64, CLEANABLE), (1, 2048, 64, CLEANABLE)), newest=100)
    assert old == pytest.approx(9.9 * young)


def test_of_segments_whose_blocks_die_alike_the_most_dead_comes_first() -> None:
    """All lose a thousandth for each segment that is written, as uniform writes have it; the oldest is the most dead."""
    rows = table(*((1001 - age, int(4096 * 0.999**age), 64, CLEANABLE) for age in (1000, 500, 250)))
    score = scores(rows, newest=1001)
    assert score[0] > score[1] > score[2]
    compacted = table((1, 1500, 24, CLEANABLE), (501, 2484, 64, CLEANABLE))
    assert scores(compacted, newest=1001)[1] > scores(compacted, newest=1001)[0], "of the old one little is left to be had"


def test_a_dead_segment_whose_space_is_still_held_comes_before_all() -> None:
    dead, dying = scores(table((50, 0, 64, CLEANABLE), (1, 900, 64, CLEANABLE)), newest=100)
    assert dead > dying > 0
    assert list(freed_blocks(table((50, 0, 1, CLEANABLE)))) == [0], "only its footer and its bitmaps are left"


def test_nothing_is_gained_by_cleaning_a_full_segment() -> None:
    assert list(scores(table((1, 4079, 64, CLEANABLE), (2, 1000, 16, CLEANABLE)), newest=100)) == [0, 0]


@pytest.mark.parametrize(("free", "need"), [(1000, Need.NONE), (370, Need.SOON), (320, Need.URGENT), (10, Need.URGENT)])
def test_how_urgent_it_is(free: int, need: Need) -> None:
    space = Space(total=30000 * 64, free=free * 64, reserve=200 * 64)
    assert space.need(64 * 64) == need
    assert (space.missing(64 * 64) > 0) == (need == Need.URGENT)


def test_nothing_is_evacuated_from_what_checkpoints_need() -> None:
    assert Space(total=30000, free=201, reserve=200).has_spare()
    assert not Space(total=30000, free=150, reserve=200).has_spare()


def test_what_was_tried_is_not_tried_again_until_more_of_it_has_died() -> None:
    memory = Memory()
    before = table((1, 500, 64, CLEANABLE), (2, 600, 64, CLEANABLE))
    rest, tried = memory.look(before, 10.0)
    assert list(rest) == [0, 0]
    assert not tried.any()
    memory.try_rows(np.array([0]))
    rest, tried = memory.look(table((1, 500, 64, CLEANABLE), (2, 599, 64, CLEANABLE), (3, 700, 64, CLEANABLE)), 12.0)
    assert list(rest) == [2, 0, 0]
    assert list(tried) == [True, False, False]
    rest, tried = memory.look(table((1, 499, 64, CLEANABLE)), 13.0)
    assert list(rest) == [0]
    assert list(tried) == [False]
