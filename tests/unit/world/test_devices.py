"""A simulated device keeps the promises of a real one, through crashes too."""

import errno
import itertools
import random

import pytest

from iomesh.engine.views.world import WorldView, crash, crash_at
from support.worlds import BLOCK, MEBIBYTE, SECOND, filled, finished, made, torn

# ---------------------------------------------------------------------- devices


def test_what_was_written_is_read_and_discarded_blocks_are_zeros() -> None:
    world, view, device = made()
    data = random.Random(3).randbytes(64 * BLOCK)
    assert finished(view, view.write(device, 10 * BLOCK, data)) == [len(data)]
    read = view.read(device, 10 * BLOCK, len(data))
    assert finished(view, read) == [len(data)]
    assert read.data == data
    assert finished(view, view.discard(device, 20 * BLOCK, 1000 * BLOCK)) == [0]
    assert world.peek(device, 10 * BLOCK, 64 * BLOCK) == data[: 10 * BLOCK] + bytes(54 * BLOCK)
    assert not world.is_tainted(device, 0, 64 * MEBIBYTE)


def test_beyond_the_end_of_a_device_is_an_error() -> None:
    _, view, device = made()
    asks = [view.read(device, 64 * MEBIBYTE - BLOCK, 2 * BLOCK), view.write(device, 64 * MEBIBYTE, filled(1))]
    assert finished(view, *asks) == [-errno.EIO, -errno.EIO]


def test_a_read_concurrent_with_a_write_returns_the_old_or_the_new_block() -> None:
    found = set()
    for seed in range(40):
        _, view, device = made(seed)
        write, read = view.write(device, 0, filled(1)), view.read(device, 0, BLOCK)
        finished(view, write, read)
        assert read.data in (filled(0), filled(1))
        found.add(read.data[0])
    assert found == {0, 1}


# ---------------------------------------------------------------------- crashes


def test_what_was_written_before_a_flush_was_asked_for_outlives_every_crash() -> None:
    for seed in range(60):
        world, view, device = made(seed)
        finished(view, *[view.write(device, number * BLOCK, filled(number + 1)) for number in range(50)])
        assert world.unflushed(device) == 50
        assert finished(view, view.flush(device)) == [0]
        assert world.unflushed(device) == 0
        crash(world)
        assert world.peek(device, 0, 50 * BLOCK) == b"".join(filled(number + 1) for number in range(50))
        assert not view.alive
        assert view.poll() == -1


def test_a_flush_does_not_cover_writes_in_flight_when_it_began() -> None:
    lost = 0
    for seed in range(100):
        world, view, device = made(seed)
        write, flush = view.write(device, 0, filled(1)), view.flush(device)
        finished(view, write, flush)
        crash(world)
        lost += world.peek(device, 0, BLOCK) != filled(1)
    assert 20 < lost < 90


def test_a_crash_keeps_any_of_the_unflushed_sectors_each_whole_and_each_as_one_write_left_it() -> None:
    in_order, out_of_order, torn_blocks = 0, 0, 0
    outcomes = set()
    for seed in range(200):
        world, view, device = made(seed)
        finished(view, view.write(device, 0, filled(1, 8)))
        finished(view, view.flush(device))
        for number in range(2, 5):  # one after the other: what is on top is known
            finished(view, view.write(device, 0, filled(number, 8)))
        crash(world)
        found = torn(world.peek(device, 0, 8 * BLOCK))
        assert set(found) <= {1, 2, 3, 4}
        outcomes.add(tuple(found))
        torn_blocks += any(len(set(found[block : block + 8])) > 1 for block in range(0, 64, 8))
        if len(set(found)) > 1:
            pairs = list(itertools.pairwise(found))
            in_order += all(one >= other for one, other in pairs) and max(found) - min(found) == 1
            out_of_order += any(one < other for one, other in pairs)
    assert len(outcomes) > 50
    assert torn_blocks > 30
    assert in_order > 10
    assert out_of_order > 30
    assert (1,) * 64 in outcomes, "everything lost"
    assert (4,) * 64 in outcomes, "everything kept"


def test_independent_writes_are_lost_and_kept_in_any_combination() -> None:
    later_without_earlier = 0
    for seed in range(100):
        world, view, device = made(seed)
        for number in range(10):
            finished(view, view.write(device, number * BLOCK, filled(1)))
        crash(world)
        kept = [any(world.peek(device, number * BLOCK, BLOCK)) for number in range(10)]
        later_without_earlier += kept != sorted(kept, reverse=True)
    assert later_without_earlier > 10


@pytest.mark.parametrize("volatile_cache", [True, False])
def test_writes_under_way_when_the_power_goes_may_have_reached_any_of_their_sectors(volatile_cache: bool) -> None:
    outcomes = set()
    for seed in range(60):
        world, view, device = made(seed, volatile_cache=volatile_cache)
        view.write(device, 0, filled(1, 2))
        crash(world)
        outcomes.add(tuple(torn(world.peek(device, 0, 2 * BLOCK))))
    assert len(outcomes) > 10
    assert {(0,) * 16, (1,) * 16} < outcomes


def test_a_device_without_a_volatile_cache_loses_nothing_that_it_completed() -> None:
    for seed in range(30):
        world, view, device = made(seed, volatile_cache=False)
        finished(view, view.write(device, 0, filled(1, 10)))
        crash(world)
        assert world.peek(device, 0, 10 * BLOCK) == filled(1, 10)


def test_a_kill_loses_nothing_that_was_completed_until_the_power_goes_as_well() -> None:
    lost = 0
    for seed in range(40):
        world, view, device = made(seed)
        finished(view, view.write(device, 0, filled(1, 10)))
        view.write(device, 10 * BLOCK, filled(2, 3))
        crash(world, power=False)
        assert world.peek(device, 0, 10 * BLOCK) == filled(1, 10)
        under_way = world.peek(device, 10 * BLOCK, 3 * BLOCK)
        assert under_way in [filled(2, blocks) + filled(0, 3 - blocks) for blocks in range(4)]
        crash(world)
        lost += world.peek(device, 0, 10 * BLOCK) != filled(1, 10)
    assert lost > 10


def test_a_cache_holds_so_much_and_destages_the_oldest() -> None:
    for seed in range(20):
        world, view, device = made(seed, cache_bytes=16 * BLOCK)
        for number in range(100):
            finished(view, view.write(device, number * BLOCK, filled(1)))
            assert world.unflushed(device) <= 16
        crash(world)
        assert world.peek(device, 0, 84 * BLOCK) == filled(1, 84)


def test_a_block_overwritten_many_times_falls_back_to_its_durable_content() -> None:
    for seed in range(100):
        world, view, device = made(seed, cache_bytes=64 * BLOCK)
        draw = random.Random(seed)
        versions: list[list[int]] = [[0] for _ in range(4)]
        for number in range(1, 200):
            block = draw.randrange(4)
            finished(view, view.write(device, block * BLOCK, filled(number)))
            versions[block].append(number)
            if draw.random() < 0.1:
                finished(view, view.flush(device))
                versions = [[of_block[-1]] for of_block in versions]
        crash(world)
        for block in range(4):
            assert set(torn(world.peek(device, block * BLOCK, BLOCK))) <= set(versions[block]), (
                f"block {block} of seed {seed}"
            )


def test_a_new_face_finds_what_the_crash_left_and_the_old_one_is_never_called_again() -> None:
    world, view, device = made()
    finished(view, view.write(device, 0, filled(1)), view.flush(device))
    finished(view, view.flush(device))
    left = [view.read(device, 0, BLOCK), view.after(10), view.flush(device)]
    crash(world)
    again = WorldView(world)
    view.write(device, 0, filled(9))
    read = again.read(device, 0, BLOCK)
    again.settle()
    assert read.data == filled(1)
    assert again.poll(SECOND) == 0
    assert not any(ask.over for ask in left)
    assert world.peek(device, 0, BLOCK) == filled(1)


def test_a_crash_of_one_face_does_not_affect_the_others() -> None:
    for seed in range(20):
        world, view, _device = made(seed)
        other = WorldView(world)
        second = other.add_device(world.make_device(MEBIBYTE))
        finished(other, other.write(second, 0, filled(3)))
        timer = other.after(SECOND)
        crash(world, view=view)
        assert not view.alive
        assert other.alive
        assert world.peek(second, 0, BLOCK) == filled(3)
        assert world.unflushed(second) == 1
        finished(other, timer)


def boundaries_of(view: WorldView, device: int) -> None:
    for number in range(5):
        view.write(device, number * BLOCK, filled(number + 1))
    view.settle()
    view.flush(device)
    view.settle()


def test_a_crash_occurs_at_each_boundary_in_turn_and_poll_reports_it() -> None:
    world, view, device = made()
    boundaries_of(view, device)
    last = world.boundaries
    assert last == 12, "five writes and a flush, each when it is asked for and when it comes"
    for boundary in range(1, last + 1):
        world, view, device = made()
        crash_at(world, boundary)
        boundaries_of(view, device)
        assert not view.alive, f"boundary {boundary}"
        assert view.poll() == -1
        assert world.boundaries == boundary
        assert world.crashes == 1
        if boundary == 1:
            assert not any(world.peek(device, 0, 5 * BLOCK)), "it strikes before the write is asked for"
    world, view, device = made()
    crash_at(world, last + 1)
    boundaries_of(view, device)
    assert view.alive
