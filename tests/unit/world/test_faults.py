"""The simulated world breaks its promises exactly as it is told to."""

import errno
from collections.abc import Callable

import pytest

from iomesh.engine.simulation.world import World
from iomesh.engine.views.world import Ask, WorldView, crash
from support.worlds import BLOCK, SECOND, SECTOR, about, filled, finished, made, torn

TRIES = 4000


def one_by_one(
    ask: Callable[[WorldView, int, int], Ask], *, tries: int = TRIES, **faults: float
) -> tuple[World, int, list[Ask]]:
    world, view, device = made(11)
    world.faults = faults
    asks = []
    for number in range(tries):
        asks.append(ask(view, device, number))
        if number % 50 == 49:
            view.settle()
    view.settle()
    assert {name for name, count in world.counts.items() if count} <= set(faults)
    return world, device, asks


def write_of(view: WorldView, device: int, number: int) -> Ask:
    return view.write(device, number * BLOCK, filled(number % 250 + 1))


def test_without_configured_faults_nothing_fails() -> None:
    world, device, _asks = one_by_one(write_of)
    assert not any(world.counts.values())
    assert world.peek(device, 0, TRIES * BLOCK) == b"".join(filled(number % 250 + 1) for number in range(TRIES))


def test_reads_fail_at_the_configured_rate() -> None:
    world, _, asks = one_by_one(lambda view, device, number: view.read(device, number * BLOCK, BLOCK), read_error=0.05)
    failed = sum(ask.result == -errno.EIO for ask in asks)
    assert about(failed, TRIES * 0.05)
    assert failed == world.counts["read_error"]


def test_writes_fail_with_nothing_or_part_of_them_written() -> None:
    world, device, asks = one_by_one(write_of, write_error=0.1)
    failed = [number for number, ask in enumerate(asks) if ask.result == -errno.EIO]
    assert about(len(failed), TRIES * 0.1)
    assert len(failed) == world.counts["write_error"]
    partly = nothing = 0
    for number in failed:
        sectors = torn(world.peek(device, number * BLOCK, BLOCK))
        assert set(sectors) <= {0, number % 250 + 1}
        partly += len(set(sectors)) == 2
        nothing += not any(sectors)
    assert partly > 50
    assert nothing > 50


def test_a_flush_that_fails_makes_nothing_durable() -> None:
    world, view, device = made()
    world.faults = {"flush_error": 1}
    finished(view, view.write(device, 0, filled(1)))
    assert finished(view, view.flush(device)) == [-errno.EIO]
    assert world.unflushed(device) == 1


def test_a_flush_that_fails_may_drop_what_was_not_durable_at_once() -> None:
    lost = kept = 0
    for seed in range(100):
        world, view, device = made(seed)
        finished(view, view.write(device, 0, filled(1)))
        finished(view, view.flush(device))
        world.faults = {"dropping_flush_error": 1}
        finished(view, view.write(device, 0, filled(2)))
        assert finished(view, view.flush(device)) == [-errno.EIO]
        assert world.unflushed(device) == 0
        sectors = torn(world.peek(device, 0, BLOCK))
        assert set(sectors) <= {1, 2}
        lost += sectors == [1] * 8
        kept += sectors == [2] * 8
    assert lost > 10
    assert kept > 10


def test_a_flush_that_fails_may_forget_what_was_not_durable_and_later_ones_with_it() -> None:
    world, view, device = made()
    finished(view, view.write(device, 0, filled(1)), view.write(device, BLOCK, filled(1)))
    finished(view, view.flush(device))
    finished(view, view.write(device, 0, filled(2)), view.write(device, BLOCK, filled(2)))
    world.faults = {"forgetting_flush_error": 1}
    assert finished(view, view.flush(device)) == [-errno.EIO]
    world.faults = {"forgetting_flush_error": 0}
    finished(view, view.write(device, BLOCK, filled(2)), view.write(device, 2 * BLOCK, filled(3)))
    assert finished(view, view.flush(device)) == [0]
    assert world.peek(device, 0, BLOCK) == filled(2), "it is read as before"
    crash(world, power=True)
    assert world.peek(device, 0, BLOCK) == filled(1), "a later flush has made it durable"
    assert world.peek(device, BLOCK, BLOCK) == filled(2), "what was written again was not"
    assert world.peek(device, 2 * BLOCK, BLOCK) == filled(3)


def test_lost_writes_are_acknowledged_and_taint_their_place() -> None:
    world, device, asks = one_by_one(write_of, lost_write=0.05)
    assert all(ask.result == BLOCK for ask in asks)
    lost = [number for number in range(TRIES) if world.peek(device, number * BLOCK, BLOCK) == bytes(BLOCK)]
    assert about(len(lost), TRIES * 0.05)
    assert len(lost) == world.counts["lost_write"]
    assert lost == [number for number in range(TRIES) if world.is_tainted(device, number * BLOCK, BLOCK)]


def test_misdirected_writes_arrive_elsewhere_and_taint_both_places() -> None:
    world, device, asks = one_by_one(write_of, misdirected_write=0.05)
    assert all(ask.result == BLOCK for ask in asks)
    assert about(world.counts["misdirected_write"], TRIES * 0.05)
    wrong = {number for number in range(TRIES) if world.peek(device, number * BLOCK, BLOCK) != filled(number % 250 + 1)}
    tainted = {number for number in range(16384) if world.is_tainted(device, number * BLOCK, BLOCK)}
    assert wrong <= tainted
    assert len(wrong) > TRIES * 0.02
    last = world.struck[-1]
    assert last["fault"] == "misdirected_write"
    assert last["intended"] != last["offset"]
    assert last["bytes"] == BLOCK


def test_rot_stays_until_the_block_is_written_again() -> None:
    world, view, device = made()
    finished(view, *[view.write(device, number * BLOCK, filled(7)) for number in range(1000)])
    finished(view, view.flush(device))
    world.faults = {"rot": 0.1}
    reads = [view.read(device, number * BLOCK, BLOCK) for number in range(1000)]
    view.settle()
    rotten = [number for number, read in enumerate(reads) if read.data != filled(7)]
    assert about(len(rotten), 100)
    assert len(rotten) == world.counts["rot"]
    assert rotten == [number for number in range(1000) if world.is_tainted(device, number * BLOCK, BLOCK)]
    changed = [sum(one != 7 for one in reads[number].data) for number in rotten]
    assert min(changed) == 1
    assert max(changed) > SECTOR
    world.faults = {"rot": 0}
    again = view.read(device, rotten[0] * BLOCK, BLOCK)
    finished(view, again)
    assert again.data == reads[rotten[0]].data
    finished(view, view.write(device, rotten[0] * BLOCK, filled(8)))
    assert not world.is_tainted(device, rotten[0] * BLOCK, BLOCK)
    assert world.peek(device, rotten[0] * BLOCK, BLOCK) == filled(8)


def test_a_crash_that_brings_back_a_tainted_block_brings_back_its_taint() -> None:
    brought_back = 0
    for seed in range(40):
        world, view, device = made(seed)
        world.poke(device, 0, filled(6))
        assert world.is_tainted(device, 0, BLOCK)
        finished(view, view.write(device, 0, filled(1)))
        assert not world.is_tainted(device, 0, BLOCK)
        crash(world)
        if 6 in torn(world.peek(device, 0, BLOCK)):
            brought_back += 1
            assert world.is_tainted(device, 0, BLOCK)
    assert brought_back > 10


def test_corruption_stays_within_the_range_that_it_was_given() -> None:
    world, view, device = made()
    world.corruptible(device, 100 * BLOCK, 200 * BLOCK)
    world.faults = {"lost_write": 0.3, "misdirected_write": 0.5, "rot": 0.5}
    for number in range(300):
        finished(view, view.write(device, number * BLOCK, filled(1)), view.read(device, number * BLOCK, BLOCK))
    assert sum(world.counts.values()) > 50
    assert not world.is_tainted(device, 0, 100 * BLOCK)
    assert not world.is_tainted(device, 200 * BLOCK, 200 * BLOCK)
    assert world.is_tainted(device, 100 * BLOCK, 100 * BLOCK)
    assert world.peek(device, 0, 100 * BLOCK) == filled(1, 100)


def test_slow_and_hanging_devices_take_longer_and_do_end() -> None:
    def longest(**faults: float) -> float:
        world, view, device = made()
        world.faults = faults
        asks = [view.read(device, 0, BLOCK) for _ in range(200)]
        start = world.now_ns
        view.settle()
        assert world.counts == dict.fromkeys(world.counts, 0) | dict.fromkeys(faults, 200)
        return max(ask.done_ns - start for ask in asks) / SECOND

    assert longest() < 0.01
    assert 0.005 < longest(slow=1) < 1
    assert 30 < longest(hang=1) < 700


def test_timers_are_early_and_late_by_a_bit() -> None:
    for fault, least, most in [("timer_early", 15 / 16, 1.0), ("timer_late", 1.0, 1.26)]:
        world, view, _ = made()
        world.faults = {fault: 0.5}
        world.latencies = {"turn_ns": 0}
        took = []
        for _ in range(400):
            start = world.now_ns
            timer = view.after(10 * SECOND)
            finished(view, timer)
            took.append((timer.done_ns - start) / (10 * SECOND))
        assert min(took) >= least
        assert max(took) <= most
        assert about(sum(one != 1.0 for one in took), 200)


def test_the_wall_clock_begins_in_2026_goes_with_the_world_and_jumps_when_told() -> None:
    world, view, _ = made()
    first = view.unix_ns
    assert 1767225600 <= first / SECOND < 1767225600 + 366 * 86400
    finished(view, view.after(SECOND))
    assert first + SECOND <= view.unix_ns <= first + SECOND + 10_000
    world.faults = {"clock_jump": 0.5}
    jumps = 0
    before = view.unix_ns
    for _ in range(400):
        now = view.unix_ns
        assert abs(now - before) <= 10 * SECOND
        jumps += now != before
        before = now
    assert about(jumps, 200)


def test_settings_that_do_not_exist_are_refused() -> None:
    world = World(1)
    with pytest.raises(ValueError, match="'rust' is no fault; there are read_error"):
        world.faults = {"rust": 0.1}
    with pytest.raises(ValueError, match="rot: 2 is no probability"):
        world.faults = {"rot": 2}
    with pytest.raises(ValueError, match="there is no device 3"):
        world.peek(3, 0, 1)
    with pytest.raises(ValueError, match="a device is whole blocks"):
        world.make_device(5000)
