"""Device requests that are not answered in time, and requests that nobody waits for any more (base/io.pyx)."""

import errno

from support.worlds import BLOCK, SECOND, filled, made

LIMIT = 5 * SECOND
STALL_SECONDS_MAX = 120


def test_a_request_that_is_not_answered_in_time_fails_and_its_late_answer_changes_nothing() -> None:
    world, view, device = made()
    view.limit(LIMIT)
    world.faults = {"hang": 1}  # half a minute at least
    began = world.now_ns
    write, read, flush = view.write(device, 0, filled(1)), view.read(device, BLOCK, BLOCK), view.flush(device)
    while not all(ask.over for ask in (write, read, flush)):
        view.poll()
    assert [ask.result for ask in (write, read, flush)] == [-errno.ETIMEDOUT] * 3
    assert LIMIT <= world.now_ns - began <= LIMIT + 2 * SECOND, "one scan a second"
    assert (view.timeouts, view.abandoned) == (3, 3)
    assert view.holds(write) and view.holds(read)
    assert world.peek(device, 0, BLOCK) == bytes(BLOCK), "the write has not arrived yet"
    view.settle()
    assert view.abandoned == 0
    assert not view.holds(write) and not view.holds(read)
    assert world.peek(device, 0, BLOCK) == filled(1), "a late write arrives where it was meant for"
    assert write.result == -errno.ETIMEDOUT


def test_an_answer_in_time_is_an_answer() -> None:
    _, view, device = made()
    view.limit(LIMIT)
    asks = [view.write(device, number * BLOCK, filled(number)) for number in range(100)]
    view.settle()
    assert [ask.result for ask in asks] == [BLOCK] * 100
    assert (view.timeouts, view.abandoned) == (0, 0)


def test_an_abandoned_request_never_calls_back_and_keeps_its_memory_until_it_is_answered() -> None:
    world, view, device = made()
    ask, other = view.write(device, 0, filled(3)), view.write(device, BLOCK, filled(4))
    assert view.abandon(ask)
    assert not view.abandon(ask), "once"
    assert view.holds(ask) and not view.holds(other)
    view.settle()
    assert other.result == BLOCK
    assert not ask.over
    assert not view.holds(ask)
    assert world.peek(device, 0, BLOCK) == filled(3)


def test_a_device_with_many_unanswered_reads_fails_further_ones_at_once_and_still_takes_writes() -> None:
    world, view, device = made()
    view.limit(LIMIT)
    world.faults = {"hang": 1}
    late = [view.read(device, number * BLOCK, BLOCK) for number in range(8)]
    while not all(ask.over for ask in late):
        view.poll()
    world.faults = {"hang": 0}
    began = world.now_ns
    refused, write = view.read(device, 0, BLOCK), view.write(device, 0, filled(1))
    while not (refused.over and write.over):
        view.poll()
    assert (refused.result, write.result) == (-errno.ETIMEDOUT, BLOCK)
    assert world.now_ns - began < SECOND
    view.settle()  # the late answers
    read = view.read(device, 0, BLOCK)
    view.settle()
    assert read.data == filled(1)


def test_what_watches_a_device_learns_of_the_first_request_whose_time_runs_out() -> None:
    world, view, device = made()
    view.limit(LIMIT)
    assert view.stalled(device) == 0
    world.faults = {"hang": 1}
    ask = view.write(device, 0, filled(1))
    view.poll(SECOND)
    assert view.stalled(device) == 0
    while not ask.over:
        view.poll()
    assert view.stalled(device) == 1
    view.settle()


def test_a_stalled_device_completes_nothing_and_then_all_of_it() -> None:
    world, view, device = made()
    world.faults = {"stall": 1}
    first = view.write(device, 0, filled(1))
    world.faults = {"stall": 0}
    others = [view.write(device, number * BLOCK, filled(1)) for number in range(1, 50)]
    began = world.now_ns
    view.poll(SECOND // 2)
    assert not any(ask.over for ask in (first, *others))
    crash_after = 200_000 * SECOND
    while not all(ask.over for ask in (first, *others)) and world.now_ns - began < crash_after:
        view.poll()
    assert all(ask.result == BLOCK for ask in (first, *others))
    assert world.counts["stall"] == 1
