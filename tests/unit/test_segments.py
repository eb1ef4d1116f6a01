"""The segment table: found by number, listed in order, and its sum of live blocks is never off by one."""

import random

import numpy as np

from iomesh.engine.map.segment_table import SegmentTableView
from iomesh.policies.cleaning import Memory


def test_segments_are_listed_by_number() -> None:
    segments = SegmentTableView()
    for number in (5, 1, 9, 7, 0):
        segments.add(number)
    assert [number for number, _ in segments] == [0, 1, 5, 7, 9]
    assert [number for number, _ in reversed(segments)] == [9, 7, 5, 1, 0]


def test_blocks_that_are_born_and_die_are_counted_where_they_lie() -> None:
    segments = SegmentTableView()
    segments.add(3)
    segments.add(4)
    for _ in range(5):
        segments.born(3)
    segments.born(4)
    segments.died(3)
    assert list(segments) == [(3, 4), (4, 1)]
    assert segments.live == 5


def test_pointers_to_nothing_or_into_deleted_segments_do_not_count() -> None:
    segments = SegmentTableView()
    segments.add(3)
    segments.born(3, present=False)
    segments.died(3, present=False)
    segments.born(8)
    segments.died(8)
    assert list(segments) == [(3, 0)]
    assert segments.live == 0


def test_any_order_of_adding_and_removing_agrees_with_a_dictionary() -> None:
    draw = random.Random(1)
    segments, model = SegmentTableView(), dict[int, int]()
    for _ in range(20000):
        number = draw.randrange(2000)
        choice = draw.random()
        if number not in model:
            assert number not in segments
            segments.add(number)
            model[number] = 0
        elif choice < 0.3:
            segments.remove(number)
            del model[number]
        elif choice < 0.5 and model[number]:
            segments.died(number)
            model[number] -= 1
        else:
            segments.born(number)
            model[number] += 1
        assert len(segments) == len(model)
        assert segments.live == sum(model.values())
    assert list(segments) == sorted(model.items())
    assert list(reversed(segments)) == sorted(model.items(), reverse=True)


def test_a_segment_takes_256_bytes_of_memory_at_most() -> None:
    """Its entry in the table, its replica of one extent, what the policy remembers, and its share of two hash tables of
    pointers, which have one to two buckets for each."""
    allocated = sum(
        (size + 8 + 15) // 16 * 16 for size in (SegmentTableView.segment_bytes, SegmentTableView.replica_bytes)
    )
    remembered = sum(array.itemsize for array in vars(Memory()).values() if isinstance(array, np.ndarray))
    assert allocated + remembered + 2 * 1.5 * 8 <= 256
