"""The simulated world repeats its history, all of it from one seed, and its clock is its own."""

import random
from pathlib import Path

from iomesh.engine.views.world import WorldView, connect, crash
from support.worlds import BLOCK, MEBIBYTE, SECOND, filled, finished, made

# ---------------------------------------------------------------------- one seed, one history


EVERYTHING = {
    "read_error": 0.02, "write_error": 0.02, "flush_error": 0.02, "dropping_flush_error": 0.02,
    "forgetting_flush_error": 0.02, "lost_write": 0.02, "misdirected_write": 0.02, "rot": 0.02,
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


def test_the_digest_differs_when_one_written_byte_does() -> None:
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


def test_a_due_timer_that_was_not_returned_yet_can_be_cancelled() -> None:
    world, view, _ = made()
    other = WorldView(world)
    timer = view.after(100)
    assert other.poll() == 0
    assert world.now_ns >= 100 + SECOND
    assert view.cancel(timer)
    view.poll()
    assert not timer.over


def test_a_poll_keeps_to_its_timeout_and_a_loop_of_polls_ends() -> None:
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


def test_no_face_advances_the_clock_past_an_event_due_for_another() -> None:
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


# ---------------------------------------------------------------------- around it


def test_worlds_are_cheap_to_make_anew(tmp_path: Path) -> None:
    for seed in range(300):
        _world, view, device = made(seed, size=8 << 30)
        finished(view, view.write(device, (8 << 30) - BLOCK, filled(1)))
    small, view, device = made(size=MEBIBYTE)
    finished(view, view.write(device, 3 * BLOCK, filled(5)))
    small.save(device, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == filled(0, 3) + filled(5) + filled(0, 252)


def test_a_released_view_leaves_the_world_to_others() -> None:
    world, view, device = made()
    view.write(device, 0, filled(1))
    view.after(SECOND)
    del view
    other = WorldView(world)
    timer = other.after(2 * SECOND)
    finished(other, timer)
    assert world.events == 1


# ---------------------------------------------------------------------- several faces of one node


def test_the_faces_of_one_node_have_the_same_clocks_and_those_of_another_node_have_others() -> None:
    world, first, _ = made()
    second, stranger = WorldView(world, first), WorldView(world)
    world.faults = {"clock_jump": 1.0}
    first.after(SECOND)
    first.poll()
    for view in (second, stranger):
        view.poll(0)
    assert second.now_ns - first.now_ns < SECOND // 1000
    assert abs(stranger.now_ns - first.now_ns) > SECOND
    stepped = [first.unix_ns for _ in range(20)]
    world.faults = {"clock_jump": 0.0}
    assert abs(second.unix_ns - stepped[-1]) < SECOND // 1000, "a step of the clock is one for the whole node"


def test_the_faces_of_one_node_crash_together() -> None:
    world, first, device = made()
    second, stranger = WorldView(world, first), WorldView(world)
    second.add_device(device)
    asks = [first.write(device, 0, filled(1)), second.write(device, BLOCK, filled(2))]
    timer = stranger.after(SECOND)
    crash(world, view=second, power=False)
    assert not first.alive and not second.alive and stranger.alive
    assert [view.poll() for view in (first, second)] == [-1, -1]
    stranger.settle()
    assert timer.over and not any(ask.over for ask in asks)
