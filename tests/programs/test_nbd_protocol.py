"""NBD's transmission phase on the wire: every command, flag and error, requests of every shape, and invalid input."""

import errno
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.model import BLOCK
from support.run import eventually
from support.trial import Trial
from support.wire import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISCONNECT,
    ERROR,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    OFFSET_HOLE,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Answer,
    Ended,
    Wire,
    request,
)

MIB = 1 << 20
LEAF = MIB  # reads are cut at multiples of it
DATA, HOLE = 0, 3  # states of base:allocation
FORMS = pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])


@pytest.fixture
def wire(volume: str) -> Iterator[Wire]:
    """A connection with structured replies and base:allocation."""
    with Wire(volume, context=True) as connection:
        yield connection


def assert_served(volume: str) -> None:
    with Wire(volume) as other:
        assert other.write(0, b"still here") == 0
        assert other.read(0, 10) == b"still here"


# Commands, flags, errors

ALLOWED = {
    READ: FUA | DF,
    WRITE: FUA,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    WRITE_ZEROES: FUA | NO_HOLE | FAST_ZERO,
    BLOCK_STATUS: FUA | REQ_ONE,
}


@FORMS
def test_each_command_takes_its_own_flags_and_no_others(volume: str, structured: bool) -> None:
    with Wire(volume, context=structured) as wire:
        for command, allowed in ALLOWED.items():
            for flag in (1 << bit for bit in range(16)):
                data = bytes(BLOCK) if command == WRITE else b""
                answer = wire.do(command, 0, 0 if command == FLUSH else BLOCK, flags=flag, data=data)
                taken = allowed & flag and (structured or (command != BLOCK_STATUS and flag != DF))
                assert answer.error == (0 if taken else errno.EINVAL), f"command {command}, flag {flag:#x}"


@FORMS
def test_unknown_commands_are_refused(volume: str, structured: bool) -> None:
    with Wire(volume, structured=structured) as wire:
        for command in (8, 9, 77, 255, 256, 65535):
            assert wire.do(command, 0, BLOCK).error == errno.EINVAL, f"command {command}"
        assert wire.read(0, 1) == b"\0"


def test_cookies_come_back_as_they_were(volume: str) -> None:
    with Wire(volume) as wire:
        for cookie in (0, 1, 0x67446698, 2**63, 2**64 - 1):
            wire.ask(READ, 0, 512, cookie=cookie)
            assert wire.next_answer() == (cookie, Answer(data=bytes(512)))


@FORMS
def test_requests_of_no_bytes_do_nothing(volume: str, structured: bool) -> None:
    with Wire(volume, context=structured) as wire:
        for command in (READ, WRITE, TRIM, CACHE, WRITE_ZEROES):
            for offset in (0, 5, wire.size):
                assert wire.do(command, offset, 0).error == 0, f"command {command} at {offset}"
        assert wire.do(BLOCK_STATUS, 0, 0).error == errno.EINVAL
        assert wire.do(FLUSH, 0, 0).error == 0
        assert wire.do(FLUSH, 0, 1).error == errno.EINVAL
        assert wire.do(FLUSH, 1, 0).error == errno.EINVAL


@FORMS
def test_what_lies_beyond_the_end_is_refused(volume: str, structured: bool) -> None:
    with Wire(volume, context=structured) as wire:
        beyond = [
            (wire.size, 1),
            (wire.size - 1, 2),
            (wire.size + BLOCK, BLOCK),
            (2**64 - 1, 1),
            (2**64 - BLOCK, 2 * BLOCK),
            (1, 2**32 - 1),
        ]
        errors = {
            READ: errno.EINVAL,
            TRIM: errno.EINVAL,
            CACHE: errno.EINVAL,
            BLOCK_STATUS: errno.EINVAL,
            WRITE_ZEROES: errno.ENOSPC,
        }
        for offset, length in beyond:
            for command, error in errors.items():
                assert wire.do(command, offset, length).error == error, f"command {command}, {length} bytes at {offset}"
        assert wire.write(wire.size - 3, b"end") == 0
        assert wire.read(wire.size - 3, 3) == b"end"


def test_a_refused_writes_payload_is_passed_over(volume: str, draw: random.Random) -> None:
    with Wire(volume) as wire:
        refused = {}
        for _ in range(40):
            length = draw.choice([1, 27, 28, 4096, 70000, MIB])
            offset = draw.choice([wire.size, wire.size - length + 1, 2**64 - 1, 2**64 - length])
            # Looks like requests, and must not be taken for any.
            payload = request(WRITE, 0, length) * (length // 28 + 1)
            flags = draw.choice([0, 0x8000])
            cookie = wire.ask(WRITE, offset, length, flags=flags, data=payload[:length])
            refused[cookie] = errno.EINVAL if flags else errno.ENOSPC
        answered = wire.answers()
        assert {cookie: answer.error for cookie, answer in answered.items()} == refused
        assert wire.read(0, BLOCK) == bytes(BLOCK)


def test_fast_zeroes_are_taken_where_they_are_fast(wire: Wire) -> None:
    assert wire.flags & 1 << 11, "the export does not announce fast zeroes"
    assert wire.write(0, b"x" * MIB) == 0
    assert wire.do(WRITE_ZEROES, 0, MIB, flags=FAST_ZERO | NO_HOLE).error == errno.ENOTSUP
    assert wire.read(0, 10) == b"x" * 10, "a refused request has changed something"
    assert wire.do(WRITE_ZEROES, 0, MIB, flags=FAST_ZERO).error == 0
    assert wire.do(BLOCK_STATUS, 0, MIB).extents == [(MIB, HOLE)]


def test_zeroes_that_must_not_be_holes_are_data(wire: Wire) -> None:
    assert wire.do(WRITE_ZEROES, 10, 3 * MIB, flags=NO_HOLE).error == 0
    assert wire.do(BLOCK_STATUS, 0, 3 * MIB + BLOCK).extents == [(3 * MIB + BLOCK, DATA)]
    assert not any(wire.read(0, 3 * MIB + BLOCK))


def test_block_status_without_a_context_is_refused(volume: str) -> None:
    with Wire(volume, structured=True) as wire:
        answer = wire.do(BLOCK_STATUS, 0, MIB)
        assert [(chunk.kind, chunk.last) for chunk in answer.chunks] == [(ERROR, True)]
        assert answer.error == errno.EINVAL


# Reads and their shapes


def test_a_hole_is_reported_and_not_sent(wire: Wire) -> None:
    answer = wire.do(READ, 100, 5 * MIB)
    assert not any(answer.data)
    assert {chunk.kind for chunk in answer.chunks} == {OFFSET_HOLE}


def test_chunks_end_where_leaves_do(wire: Wire) -> None:
    content = os.urandom(4 * MIB)
    assert wire.write(0, content) == 0
    answer = wire.do(READ, 7, 4 * MIB - 9)
    assert answer.data == content[7:-2]
    assert sorted((chunk.offset, len(chunk.body) - 8) for chunk in answer.chunks) == [
        (7, LEAF - 7),
        (LEAF, LEAF),
        (2 * LEAF, LEAF),
        (3 * LEAF, LEAF - 2),
    ]
    assert [chunk.last for chunk in answer.chunks] == [False, False, False, True]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (5, 65536), (LEAF - 10, 20), (LEAF - 40000, 65536), (1, MIB), (0, MIB)]
)
def test_an_unfragmented_read_is_one_chunk(wire: Wire, offset: int, length: int) -> None:
    content = os.urandom(MIB // 2)
    assert wire.write(LEAF - MIB // 4, content) == 0  # data on both sides of a leaf's end, holes around it
    expected = (bytes(LEAF - MIB // 4) + content + bytes(3 * MIB))[offset : offset + length]
    answer = wire.do(READ, offset, length, flags=DF)
    assert answer.data == expected
    assert len(answer.chunks) == 1


def test_an_unfragmented_read_that_is_too_long_is_refused(wire: Wire) -> None:
    assert wire.do(READ, 0, MIB + 1, flags=DF).error == errno.EOVERFLOW
    assert wire.do(READ, 0, 32 * MIB + 1).error == errno.EINVAL


@FORMS
@pytest.mark.parametrize("offset", [0, 1, 4095, LEAF - 1])
def test_the_longest_requests(volume: str, structured: bool, offset: int) -> None:
    content = os.urandom(32 * MIB)
    with Wire(volume, structured=structured) as wire:
        assert wire.write(offset, content) == 0
        assert wire.read(offset, len(content)) == content
        assert wire.do(WRITE_ZEROES, offset, wire.size - offset - 5).error == 0
        assert not any(wire.read(offset, len(content)))


@FORMS
def test_long_reads_at_once_do_not_wait_for_each_other_for_ever(volume: str, structured: bool) -> None:
    """More buffers are asked for than there are, with every kind of read in between."""
    content = os.urandom(40 * MIB)
    with Wire(volume, structured=structured) as wire:
        for offset in range(0, len(content), 8 * MIB):
            assert wire.write(offset, content[offset : offset + 8 * MIB]) == 0
        lengths = [32 * MIB, 3 * MIB, BLOCK, 20 * MIB, 512, 4 * MIB, 5 * MIB, 16 * MIB, 17000] * 3
        asked = {
            wire.ask(READ, number * 4099, length): (number * 4099, length) for number, length in enumerate(lengths)
        }
        for cookie, answer in wire.answers().items():
            offset, length = asked[cookie]
            assert answer.data == content[offset : offset + length], f"{length} bytes at {offset}"


def test_a_client_that_takes_nothing_holds_no_one_up(volume: str) -> None:
    content = os.urandom(16 * MIB)
    with Wire(volume) as first:
        assert first.write(0, content) == 0
    with Wire(volume) as lazy, Wire(volume, structured=True) as busy:
        for _ in range(8):
            lazy.ask(READ, 0, 16 * MIB)
        for number in range(200):
            assert busy.write(20 * MIB + number * BLOCK, bytes([number]) * BLOCK) == 0
            assert busy.read(20 * MIB + number * BLOCK, BLOCK) == bytes([number]) * BLOCK
        assert all(answer.data == content for answer in lazy.answers().values())


def test_clients_that_receive_nothing_lose_their_buffers_to_waiting_ones(volume: str) -> None:
    content = os.urandom(4 * MIB)
    with Wire(volume, structured=True) as busy, ExitStack() as stack:
        assert busy.write(0, content) == 0
        lazy = [stack.enter_context(Wire(volume, structured=True)) for _ in range(4)]
        for wire in lazy:
            for _ in range(40):
                wire.ask(READ, 0, 4 * MIB)
        for _ in range(20):
            assert busy.read(0, 4 * MIB) == content
        ended = 0
        for wire in lazy:
            try:
                assert all(answer.data == content for answer in wire.answers().values())
            except Ended:
                ended += 1
        assert ended > 0, "nobody was made to give back what others waited for"


# Many requests


@FORMS
def test_five_hundred_requests_in_flight(volume: str, structured: bool, draw: random.Random) -> None:
    with Wire(volume, structured=structured) as wire:
        content = bytearray(500 * BLOCK)
        stream = b""
        for number in range(500):
            content[number * BLOCK : (number + 1) * BLOCK] = bytes([number % 251 + 1]) * BLOCK
            stream += wire.header(WRITE, number * BLOCK, BLOCK) + content[number * BLOCK : (number + 1) * BLOCK]
        answered: dict[int, Answer] = {}
        wire.sending(stream, answered.__setitem__)
        answered |= wire.answers()
        assert len(answered) == 500
        assert not any(answer.error for answer in answered.values())
        asked: dict[int, int] = {}
        stream = b""
        for number in draw.sample(range(500), 500):
            header = wire.header(READ, number * BLOCK, BLOCK)
            asked[int.from_bytes(header[8:16], "big")] = number
            stream += header
        answered.clear()
        wire.sending(stream, answered.__setitem__)
        answered |= wire.answers()
        for cookie, number in asked.items():
            assert answered[cookie].data == content[number * BLOCK : (number + 1) * BLOCK], f"block {number}"


@FORMS
def test_any_sequence_of_requests_is_what_a_byte_array_would_be(
    volume: str, structured: bool, draw: random.Random
) -> None:
    """Sequences in flight that touch disjoint ranges, so the outcome is certain; replies come in any order."""
    with Wire(volume, context=structured) as wire:
        content = bytearray(24 * MIB)
        for _ in range(25):
            asked: dict[int, tuple[int, int, int]] = {}
            stream, place = b"", draw.randrange(5000)
            while place < len(content) and len(asked) < 300:
                length = min(
                    draw.choice([1, 511, 512, 4095, 4096, 4097, 8192, 16384, 20000, 65536, 300000, 2 * MIB]),
                    len(content) - place,
                )
                command = draw.choice([READ, READ, WRITE, WRITE, WRITE, WRITE_ZEROES, TRIM, CACHE])
                flags = draw.choice([0, 0, FUA, NO_HOLE if command == WRITE_ZEROES else 0])
                data = os.urandom(length) if command == WRITE else b""
                header = wire.header(command, place, length, flags=flags)
                stream += header + data
                asked[int.from_bytes(header[8:16], "big")] = command, place, length
                if command == WRITE:
                    content[place : place + length] = data
                elif command == WRITE_ZEROES:
                    content[place : place + length] = bytes(length)
                elif command == TRIM:
                    first, last = -(-place // BLOCK) * BLOCK, (place + length) // BLOCK * BLOCK
                    content[first:last] = bytes(max(0, last - first))
                place += length + draw.choice([0, 0, 1, 4096, 100000])
            answered: dict[int, Answer] = {}
            wire.sending(stream, answered.__setitem__)
            answered |= wire.answers()
            for cookie, (command, offset, length) in asked.items():
                assert answered[cookie].error == 0, f"command {command}, {length} bytes at {offset}"
                if command == READ:
                    assert answered[cookie].data == content[offset : offset + length], f"{length} bytes at {offset}"
        for offset in range(0, len(content), 3 * MIB):
            assert wire.read(offset, 3 * MIB) == content[offset : offset + 3 * MIB], f"3 MiB at {offset}"


def test_a_request_may_come_byte_by_byte(volume: str) -> None:
    with Wire(volume) as wire:
        stream = (
            wire.header(WRITE, 4000, 200) + bytes(range(200)) + wire.header(READ, 4000, 200) + wire.header(FLUSH, 0, 0)
        )
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for byte in stream:
            wire.socket.sendall(bytes([byte]))
            time.sleep(0.0002)
        wire.answers()
        assert wire.read(4000, 200) == bytes(range(200))


# Block status


def test_block_status_extents_differ_from_their_neighbours(wire: Wire) -> None:
    for block in (1, 2, 5, 256, 257, 600):
        assert wire.write(block * BLOCK, b"x" * BLOCK) == 0
    assert [(length // BLOCK, state) for length, state in wire.do(BLOCK_STATUS, 0, 700 * BLOCK).extents] == [
        (1, HOLE), (2, DATA), (2, HOLE), (1, DATA), (250, HOLE), (2, DATA), (342, HOLE), (1, DATA), (99, HOLE),
    ]  # fmt: skip


def test_block_status_covers_the_requested_range(wire: Wire) -> None:
    assert wire.write(5 * BLOCK, b"x") == 0
    assert wire.do(BLOCK_STATUS, 4 * BLOCK + 100, BLOCK + 5).extents == [(BLOCK - 100, HOLE), (105, DATA)]
    assert wire.do(BLOCK_STATUS, 5 * BLOCK + 1, 1).extents == [(1, DATA)]
    assert wire.do(BLOCK_STATUS, wire.size - 1, 1).extents == [(1, HOLE)]


def test_one_extent_if_one_is_requested(wire: Wire) -> None:
    assert wire.write(10 * BLOCK, b"x" * 3 * BLOCK) == 0
    assert wire.do(BLOCK_STATUS, 0, MIB, flags=REQ_ONE).extents == [(10 * BLOCK, HOLE)]
    assert wire.do(BLOCK_STATUS, 10 * BLOCK, MIB, flags=REQ_ONE).extents == [(3 * BLOCK, DATA)]
    assert wire.do(BLOCK_STATUS, 10 * BLOCK, BLOCK, flags=REQ_ONE).extents == [(BLOCK, DATA)]


def test_a_status_of_many_extents_takes_several_replies(wire: Wire) -> None:
    for block in range(0, 4000, 2):
        wire.ask(WRITE, block * BLOCK, BLOCK, data=b"x" * BLOCK)
        if block % 100 == 0:
            wire.answers()
    wire.answers()
    at, states = 0, []
    while at < 4000 * BLOCK:
        extents = wire.do(BLOCK_STATUS, at, 4000 * BLOCK - at).extents
        assert 0 < len(extents) <= 1024
        for length, state in extents:
            assert length == BLOCK
            states.append(state)
            at += length
    assert states == [DATA, HOLE] * 2000


def test_each_block_status_in_flight_gets_its_own_reply(wire: Wire, draw: random.Random) -> None:
    mapped = sorted(draw.sample(range(1000), 300))
    for block in mapped:
        assert wire.write(block * BLOCK, b"x") == 0
    asked = {}
    for _ in range(100):
        block = draw.randrange(1000)
        asked[wire.ask(BLOCK_STATUS, block * BLOCK, BLOCK)] = block
    answered = wire.answers()
    for cookie, block in asked.items():
        [chunk] = answered[cookie].chunks
        assert (chunk.kind, chunk.body[:4]) == (STATUS, struct.pack(">I", 1))
        assert answered[cookie].extents == [(BLOCK, DATA if block in mapped else HOLE)], f"block {block}"


# Ends


def test_disconnecting_finishes_what_is_under_way(volume: str) -> None:
    with Wire(volume) as wire:
        for number in range(100):
            wire.ask(WRITE, number * 10000, 10000, data=bytes([number + 1]) * 10000)
        wire.socket.sendall(request(DISCONNECT, 0, 0) + b"and this is no request")
        assert not any(answer.error for answer in wire.answers().values())
        assert wire.ended()
    with Wire(volume) as wire:
        for number in range(100):
            assert wire.read(number * 10000, 10000) == bytes([number + 1]) * 10000


@FORMS
def test_a_client_that_sends_no_more_gets_all_its_answers(volume: str, structured: bool) -> None:
    with Wire(volume, structured=structured) as wire:
        for number in range(60):
            wire.ask(WRITE, number * MIB, 50000, data=bytes([number + 1]) * 50000)
            wire.ask(READ, 100 * MIB, MIB)
        wire.socket.shutdown(socket.SHUT_WR)
        answers = wire.answers()
        assert len(answers) == 120
        assert not any(answer.error for answer in answers.values())
        assert wire.ended()


@pytest.mark.parametrize(
    "garbage",
    [
        request(READ, 0, BLOCK, magic=0x25609514),
        request(READ, 0, BLOCK)[4:] * 2,
        bytes(28),
        b"\xff" * 1000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        request(WRITE, 0, 32 * MIB + 1),
        request(WRITE, 0, 2**32 - 1),
    ],
)
def test_malformed_input_ends_that_connection_alone(volume: str, garbage: bytes) -> None:
    with Wire(volume) as wire, Wire(volume) as other:
        cookies = [wire.ask(WRITE, number * BLOCK, BLOCK, data=b"w" * BLOCK) for number in range(20)]
        wire.socket.sendall(garbage)
        answered = wire.answers()
        assert sorted(answered) == cookies
        assert not any(answer.error for answer in answered.values())
        assert wire.ended()
        assert other.read(0, 20 * BLOCK) == b"w" * 20 * BLOCK
    assert_served(volume)


@pytest.mark.parametrize("kept", [1, 27, 28, 29, 28 + BLOCK - 1, 28 + BLOCK, 28 + 3 * BLOCK + 5])
def test_a_request_that_ends_in_the_middle(volume: str, kept: int) -> None:
    with Wire(volume) as wire:
        assert wire.write(0, b"a" * 8 * BLOCK) == 0
        wire.socket.sendall((request(WRITE, 0, 8 * BLOCK) + b"b" * 8 * BLOCK)[:kept])
        wire.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(Ended):
            wire.receive(100)
    with Wire(volume) as wire:
        content = wire.read(0, 8 * BLOCK)
        for block in range(8):
            piece = content[block * BLOCK : (block + 1) * BLOCK]
            arrived = kept >= 28 + (block + 1) * BLOCK
            assert piece in ([b"a" * BLOCK, b"b" * BLOCK] if arrived else [b"a" * BLOCK]), (
                f"block {block} holds {set(piece)}"
            )


def test_connections_leave_nothing_behind(trial: Trial, draw: random.Random) -> None:
    """However they end, in the middle of whatever: descriptors and buffers come back, and what is served goes on."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{trial.pid}/fd"))  # noqa: PTH208

    with Wire(trial.uri) as wire:
        assert wire.write(0, os.urandom(16 * MIB)) == 0
    before = descriptors()
    for number in range(150):
        wire = Wire(trial.uri, structured=draw.random() < 0.5)
        for _ in range(draw.randrange(12)):
            kinds = [(READ, 16 * MIB), (READ, BLOCK), (WRITE, 30000), (TRIM, MIB), (FLUSH, 0), (WRITE_ZEROES, 2 * MIB)]
            command, length = draw.choice(kinds)
            wire.ask(
                command, 0 if command == FLUSH else 17, length, data=os.urandom(length) if command == WRITE else b""
            )
        match number % 4:
            case 0:
                wire.socket.sendall(os.urandom(28))
            case 1:
                wire.socket.sendall(request(WRITE, 0, MIB) + bytes(draw.randrange(100000)))
            case 2:
                wire.socket.shutdown(socket.SHUT_RD)
            case 3:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.socket.close()
    eventually(lambda: descriptors() <= before, what=f"the daemon has {before} descriptors again")
    assert_served(trial.uri)
    with Wire(trial.uri) as wire:
        for _ in range(40):
            wire.ask(READ, 0, 16 * MIB)
        assert len(wire.answers()) == 40
