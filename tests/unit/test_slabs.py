"""Free space: slabs are taken in long runs, come back, and are never counted twice."""

import random

import pytest

from iomesh.engine.store.slabs import SlabsView


def test_a_fresh_device_gives_one_run() -> None:
    slabs = SlabsView(1000)
    assert slabs.take(256) == [(0, 256)]
    assert slabs.free == 744


def test_what_does_not_fit_takes_nothing() -> None:
    slabs = SlabsView(100)
    assert slabs.take(101) == []
    assert slabs.free == 100


def test_a_fragmented_device_gives_its_longest_runs_first() -> None:
    slabs = SlabsView(100)
    slabs.take(100)
    slabs.give_back(10, 5)
    slabs.give_back(40, 20)
    assert slabs.take(22) == [(40, 20), (10, 2)]


def test_too_many_pieces_are_refused_and_given_back() -> None:
    slabs = SlabsView(100)
    slabs.take(100)
    for first in range(0, 100, 10):
        slabs.give_back(first, 1)
    assert slabs.take(9, room=8) == []
    assert slabs.free == 10


def test_what_the_directory_names_is_claimed_once() -> None:
    slabs = SlabsView(100)
    assert slabs.claim(10, 5)
    assert slabs.free == 95
    assert not slabs.claim(14, 2)
    assert not slabs.claim(5, 6)
    assert slabs.claim(15, 2)
    assert slabs.take(83) == [(17, 83)]


@pytest.mark.parametrize(("first", "count"), [(0, 0), (100, 1), (99, 2), (0, 101), (2**32 - 1, 1), (1, 2**32 - 1)])
def test_what_lies_beyond_the_device_is_not_claimed(first: int, count: int) -> None:
    slabs = SlabsView(100)
    assert not slabs.claim(first, count)
    assert slabs.free == 100


@pytest.mark.parametrize("total", [1, 63, 64, 65, 777])
def test_any_order_of_taking_and_giving_back_keeps_every_slab_once(total: int) -> None:
    draw = random.Random(total)
    slabs, held = SlabsView(total), list[tuple[int, int]]()
    for _ in range(5000):
        if held and draw.random() < 0.5:
            slabs.give_back(*held.pop(draw.randrange(len(held))))
        else:
            held += slabs.take(draw.randint(1, 40))
        numbers = [n for first, count in held for n in range(first, first + count)]
        assert len(numbers) == len(set(numbers)) == total - slabs.free
        assert all(0 <= n < total for n in numbers)
