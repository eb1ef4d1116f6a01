"""The simulated world keeps the promises of real devices and connections, and breaks them exactly as it is told to."""

import errno
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from iomesh.engine.world import World
from iomesh.engine.worldview import Ask, WorldView, connect, crash, crash_at, cut, half_open

BLOCK = 4096
SECTOR = 512
MEBIBYTE = 1 << 20
SECOND = 1_000_000_000


def filled(byte: int, blocks: int = 1) -> bytes:
    return bytes([byte]) * (blocks * BLOCK)


def made(seed: int = 1, *, volatile_cache: bool = True, size: int = 64 * MEBIBYTE, **options: int) -> tuple[World, WorldView, int]:
    world = World(seed)
    device = world.make_device(size, volatile_cache=volatile_cache, **options)
    view = WorldView(world)
    assert view.add_device(device) == device
    return world, view, device


def finished(view: WorldView, *asks: Ask) -> list[int]:
    view.settle()
    return [ask.result for ask in asks]


# ---------------------------------------------------------------------- one seed, one history


EVERYTHING = {
    "read_error": 0.02, "write_error": 0.02, "flush_error": 0.02, "lost_write": 0.02, "misdirected_write": 0.02, "rot": 0.02,
    "slow": 0.02, "hang": 0.005, "timer_early": 0.1, "timer_late": 0.1, "clock_jump": 0.1, "network_slow": 0.05,
}  # fmt: skip


def history(seed: int) -> tuple[int, int, list[tuple[int, int]], bytes]:
    """Devices, timers, a connection and a crash, under all faults."""
    world, view, device = made(seed, size=2 * MEBIBYTE)
    other = WorldView(world)
    world.faults = EVERYTHING
    here, there = connect(view, other)
    draw = random.Random(0)
    outcomes: list[tuple[int, int]] = []
    for number in range(40):
        place = draw.randrange(400) * BLOCK
        asks = [
            view.write(device, place, filled(number)),
            view.read(device, place, BLOCK),
            view.flush(device),
            view.after(draw.randrange(10**6)),
        ]
        asks += [view.send(here, bytes(1000)), view.discard(device, place, 8 * BLOCK)]
        received = other.receive(there, 1000)
        view_or_other = [view, other]
        while not all(ask.over for ask in [*asks, received]):
            view_or_other.reverse()
            view_or_other[0].poll()
        outcomes += [(ask.result, ask.done_ns) for ask in [*asks, received]] + [(view.unix_ns, other.random())]
    view.write(device, 0, filled(1, 100))
    crash(world)
    return world.digest, world.events, outcomes, world.peek(device, 0, 2 * MEBIBYTE)


def test_a_seed_repeats_its_history_exactly_and_another_seed_has_another() -> None:
    first = history(7)
    assert history(7) == first
    others = [history(seed) for seed in range(8, 12)]
    assert len({first[0], *(other[0] for other in others)}) == 5
    assert len({str(first[2]), *(str(other[2]) for other in others)}) == 5


def test_the_digest_tells_two_runs_apart_that_differ_in_one_written_byte() -> None:
    digests = []
    for last in b"ab":
        world, view, device = made()
        finished(view, view.write(device, 0, bytes(BLOCK - 1) + bytes([last])))
        digests.append(world.digest)
    assert digests[0] != digests[1]


def test_a_loop_without_python_makes_hundreds_of_thousands_of_events_and_repeats_them() -> None:
    digests = []
    for _ in range(2):
        world, view, device = made()
        assert view.churn(device, 300_000, 32, 1000) == 300_000
        assert world.events == 300_000
        digests.append(world.digest)
    assert digests[0] == digests[1]


# ---------------------------------------------------------------------- time


def test_nothing_is_done_before_poll_and_time_moves_only_there() -> None:
    _world, view, device = made()
    before = view.now_ns
    asks = [view.write(device, 0, filled(1)), view.after(0)]
    assert not any(ask.over for ask in asks)
    assert view.now_ns == before
    view.settle()
    assert all(ask.over for ask in asks)
    assert view.now_ns > before


def test_timers_come_when_they_are_due_and_in_order_and_a_cancelled_one_never() -> None:
    world, view, _ = made()
    start = world.now_ns
    delays = [5 * SECOND, SECOND, 3 * SECOND, 10, 3 * SECOND]
    asks = [view.after(delay) for delay in delays]
    gone = view.after(2 * SECOND)
    assert view.cancel(gone)
    assert not view.cancel(gone)
    for _ in range(len(delays)):
        view.poll()
    for ask, delay in zip(asks, delays, strict=True):
        assert delay <= ask.done_ns - start <= delay + world.latencies["turn_ns"]
    assert not gone.over
    assert not view.cancel(asks[0])


def test_a_timer_that_is_due_but_not_handed_back_can_still_be_cancelled() -> None:
    world, view, _ = made()
    other = WorldView(world)
    timer = view.after(100)
    assert other.poll() == 0
    assert world.now_ns >= 100 + SECOND
    assert view.cancel(timer)
    view.poll()
    assert not timer.over


def test_a_poll_waits_no_longer_than_it_is_told_and_a_loop_of_polls_ends() -> None:
    world, view, _ = made()
    timer = view.after(SECOND)
    start = world.now_ns
    assert view.poll(1000) == 0
    assert world.now_ns == start + 1000
    assert view.poll(0) == 0
    assert start + 1000 < world.now_ns < start + 2000
    assert view.poll(2 * SECOND) == 1
    assert timer.over
    assert view.waited_ns == world.now_ns - start
    assert view.poll(2**63 - 1) == 0
    assert start < world.now_ns, "the clock does not run over"


def test_no_face_moves_the_clock_past_what_another_has_not_been_told() -> None:
    world, view, _device = made()
    other = WorldView(world)
    mine, later = view.after(1000), view.after(SECOND)
    assert other.poll() == 0
    now = world.now_ns
    assert other.poll() == 0
    assert world.now_ns == now
    assert view.poll() == 1
    assert mine.over
    assert not later.over


def test_completions_come_in_any_order_and_not_all_at_once() -> None:
    _world, view, device = made()
    asks = [view.read(device, 0, BLOCK) for _ in range(200)]
    polls = 0
    while not all(ask.over for ask in asks):
        view.poll()
        polls += 1
    order = sorted(range(200), key=lambda number: asks[number].done_ns)
    assert order != list(range(200))
    assert 20 < polls < 200


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


def test_a_read_beside_a_write_of_the_same_block_finds_the_old_or_the_new() -> None:
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


def test_a_flush_promises_nothing_for_a_write_that_was_under_way_when_it_was_asked_for() -> None:
    lost = 0
    for seed in range(100):
        world, view, device = made(seed)
        write, flush = view.write(device, 0, filled(1)), view.flush(device)
        finished(view, write, flush)
        crash(world)
        lost += world.peek(device, 0, BLOCK) != filled(1)
    assert 20 < lost < 90


def torn(contents: bytes) -> list[int]:
    """Which byte fills each sector; fails if one is mixed."""
    sectors = [contents[at : at + SECTOR] for at in range(0, len(contents), SECTOR)]
    for sector in sectors:
        assert len(set(sector)) == 1, "a sector is written whole or not at all"
    return [sector[0] for sector in sectors]


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


def test_a_block_that_is_written_again_and_again_goes_back_to_what_was_durable() -> None:
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
            assert set(torn(world.peek(device, block * BLOCK, BLOCK))) <= set(versions[block]), f"block {block} of seed {seed}"


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


def test_a_crash_of_one_face_leaves_the_others_and_their_devices_alone() -> None:
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


def test_a_crash_strikes_at_each_boundary_in_turn_and_poll_tells_of_it() -> None:
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


# ---------------------------------------------------------------------- faults


TRIES = 4000


def about(count: int, expected: float) -> bool:
    """Within five standard deviations of a binomial draw: a seed that fails here is no accident."""
    return abs(count - expected) < 5 * math.sqrt(expected) + 1


def one_by_one(ask: Callable[[WorldView, int, int], Ask], *, tries: int = TRIES, **faults: float) -> tuple[World, int, list[Ask]]:
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


def test_nothing_goes_wrong_unless_it_is_asked_for() -> None:
    world, device, _asks = one_by_one(write_of)
    assert not any(world.counts.values())
    assert world.peek(device, 0, TRIES * BLOCK) == b"".join(filled(number % 250 + 1) for number in range(TRIES))


def test_reads_fail_about_as_often_as_told() -> None:
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


def test_lost_writes_are_acknowledged_never_arrive_and_taint_their_place() -> None:
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


# ---------------------------------------------------------------------- connections


def together(*views: WorldView, rounds: int = 100_000) -> None:
    """Every face in turn until none has anything to do."""
    quiet = 0
    for number in range(rounds):
        found = views[number % len(views)].poll(SECOND)
        quiet = 0 if found else quiet + 1
        if quiet > 3 * len(views):
            return
    raise AssertionError("they never come to rest")


def pair(seed: int = 1) -> tuple[World, WorldView, WorldView, int, int]:
    world = World(seed)
    one, other = WorldView(world), WorldView(world)
    return world, one, other, *connect(one, other)


def test_what_is_sent_arrives_in_order_and_in_pieces_however_long_it_is() -> None:
    for seed in range(5):
        _world, one, other, here, there = pair(seed)
        data = random.Random(seed).randbytes(3 * MEBIBYTE + 17)
        send = one.send(here, data)
        found = b""
        pieces = 0
        while len(found) < len(data):
            receive = other.receive(there, 100_000)
            together(one, other)
            found += receive.data
            pieces += 1
        assert found == data
        assert send.result == len(data)
        assert pieces > 31


def test_a_pipe_that_no_one_empties_holds_a_send_back() -> None:
    _, one, other, here, there = pair()
    send = one.send(here, bytes(MEBIBYTE))
    together(one, other)
    assert not send.over
    received = 0
    while received < MEBIBYTE:
        receive = other.receive(there, MEBIBYTE)
        together(one, other)
        received += receive.result
    assert send.result == MEBIBYTE


def test_connections_overtake_each_other_but_nothing_within_one() -> None:
    overtakes = 0
    for seed in range(30):
        world = World(seed)
        one, other = WorldView(world), WorldView(world)
        (a, b), (c, d) = connect(one, other), connect(one, other)
        receives = [other.receive(b, 10), other.receive(d, 10)]
        one.send(a, b"1")
        one.send(c, b"2")
        together(one, other)
        assert [receive.data for receive in receives] == [b"1", b"2"]
        overtakes += receives[0].done_ns > receives[1].done_ns
    assert 3 < overtakes < 27


def test_a_close_lets_everything_arrive_and_then_the_end() -> None:
    _world, one, other, here, there = pair()
    mine = one.receive(here, 10)
    send = one.send(here, b"farewell")
    together(one, other)
    one.close(here)
    together(one, other)
    assert send.result == 8
    assert mine.result == -errno.ECANCELED
    found = [other.receive(there, 100)]
    together(one, other)
    found.append(other.receive(there, 100))
    reply = other.send(there, b"are you there?")
    together(one, other)
    assert [receive.data for receive in found] == [b"farewell", b""]
    assert reply.result == -errno.EPIPE
    other.close(there)
    assert set(connect(one, other)) == {here, there}, "the numbers are free again"


def test_a_cut_resets_both_ends() -> None:
    world, one, other, here, there = pair()
    receives = [one.receive(here, 10), other.receive(there, 10)]
    cut(world, here)
    together(one, other)
    assert [receive.result for receive in receives] == [-errno.ECONNRESET] * 2
    send = one.send(here, b"x")
    together(one, other)
    assert send.result == -errno.ECONNRESET
    one.close(here)
    other.close(there)


def test_a_half_open_connection_swallows_one_direction_without_a_word() -> None:
    world, one, other, here, there = pair()
    half_open(world, here)
    receives = [one.receive(here, 10), other.receive(there, 10)]
    sends = [one.send(here, b"lost"), other.send(there, b"arrives")]
    together(one, other)
    assert [send.result for send in sends] == [4, 7]
    assert receives[0].data == b"arrives"
    assert not receives[1].over
    stuck = one.send(here, bytes(MEBIBYTE))
    together(one, other)
    assert not stuck.over, "no one acknowledges it: the pipe is full"


def test_connections_are_cut_and_half_opened_about_as_often_as_told() -> None:
    for fault in ("connection_cut", "connection_half_open"):
        world, one, other, here, there = pair()
        world.faults = {fault: 0.1}
        for _ in range(1000):
            one.send(here, b"x")
            together(one, other)
            one.close(here)
            other.close(there)
            together(one, other)
            assert set(connect(one, other)) == {here, there}
        assert about(world.counts[fault], 100)


def test_the_peers_of_a_face_that_crashed_are_reset_at_once_or_when_they_send() -> None:
    at_once = 0
    for seed in range(40):
        world, one, other, _here, there = pair(seed)
        receive = other.receive(there, 10)
        crash(world, view=one)
        together(other)
        at_once += receive.over
        send = other.send(there, b"x")
        together(other)
        assert receive.result == -errno.ECONNRESET
        assert send.result in (1, -errno.ECONNRESET)
    assert 5 < at_once < 35


# ---------------------------------------------------------------------- around it


def test_worlds_are_cheap_to_make_anew(tmp_path: Path) -> None:
    for seed in range(300):
        _world, view, device = made(seed, size=8 << 30)
        finished(view, view.write(device, (8 << 30) - BLOCK, filled(1)))
    small, view, device = made(size=MEBIBYTE)
    finished(view, view.write(device, 3 * BLOCK, filled(5)))
    small.save(device, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == filled(0, 3) + filled(5) + filled(0, 252)


def test_a_view_that_is_let_go_leaves_the_world_to_others() -> None:
    world, view, device = made()
    view.write(device, 0, filled(1))
    view.after(SECOND)
    del view
    other = WorldView(world)
    timer = other.after(2 * SECOND)
    finished(other, timer)
    assert world.events == 1
