"""Simulated connections keep the promises of TCP, and are cut as it is told."""

import errno
import random

from iomesh.engine.simulation.world import World
from iomesh.engine.views.world import WorldView, connect, crash, cut, half_open
from support.worlds import MEBIBYTE, SECOND, about


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


def test_connections_are_cut_and_half_opened_at_the_configured_rate() -> None:
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
