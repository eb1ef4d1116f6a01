"""The peer protocol over io_uring, TCP and a file: what the simulated world cannot show about the kernel."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from iomesh.engine.format.peer import read_entries
from iomesh.engine.views.peer import RingPair, Served
from support.peers import BLOCK, DEVICE, MEBIBYTE, V, block_of, footer, record


def sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def attached(rings: RingPair) -> Served:
    ours, theirs = sockets()
    return rings.attach(ours.detach(), theirs.detach())


@pytest.fixture
def rings(tmp_path: Path) -> Iterator[RingPair]:
    path = tmp_path / "device"
    with path.open("wb") as file:
        file.truncate(64 * MEBIBYTE)
    rings = RingPair(path, DEVICE)
    yield rings
    rings.close()


def ended(rings: RingPair, served: Served) -> None:
    """Both sides have noticed that the connection is over."""
    while served.end is None or rings.attached or rings.lost == 0:
        rings.turn()


def test_a_segment_s_life(rings: RingPair) -> None:
    served = attached(rings)
    payload = [[block_of(100 * number + k) for k in range(size)] for number, size in enumerate((0, 1, 17, 100, 248))]
    calls, block = [rings.create(DEVICE, V, 1, blocks=400)], 0
    written = b""
    for number, blocks in enumerate(payload):
        data = record(1, block, blocks, sequence=10 + number)
        calls.append(rings.write(DEVICE, V, 1, block, data))
        written += data
        block += 1 + len(blocks)
    end = footer(1, [len(blocks) for blocks in payload])
    calls.append(rings.write(DEVICE, V, 1, block, end, footer=True))
    calls.append(rings.flush(DEVICE))
    rings.settle(*calls)
    assert [call.result for call in calls] == [0] * len(calls)
    seal, listed, beat = (
        rings.seal(DEVICE, V, 1, block + len(end) // BLOCK, block),
        rings.list(DEVICE, V),
        rings.heartbeat(3),
    )
    whole = [rings.read(DEVICE, V, 1, at, min(200, block - at)) for at in range(0, block, 200)]
    rings.settle(seal, listed, beat, *whole)
    assert [call.result for call in (seal, listed, beat, *whole)] == [0] * (3 + len(whole))
    assert b"".join(read.data for read in whole) == written
    assert [entry["segment"] for entry in read_entries("ListedReplica", listed.data[: listed.entries * 32])] == [1]
    assert beat.boot != 0
    remove = rings.remove(DEVICE, V, 1)
    rings.settle(remove)
    assert remove.result == 0
    rings.detach()
    ended(rings, served)
    assert served.free_buffers == (64, 16)


def test_more_calls_than_any_buffer_or_pipe_holds(rings: RingPair) -> None:
    served = attached(rings)
    create = rings.create(DEVICE, V, 1, blocks=8000)
    data = [record(1, 40 * number, [block_of(number)] * (number % 40)) for number in range(200)]
    writes = [rings.write(DEVICE, V, 1, 40 * number, one) for number, one in enumerate(data)]
    rings.settle(create, *writes)
    assert {write.result for write in writes} == {0}
    reads = [rings.read(DEVICE, V, 1, 40 * number, 1 + number % 40) for number in range(200)]
    rings.settle(*reads)
    assert [read.data for read in reads] == data
    assert served.end is None
    rings.detach()
    ended(rings, served)


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 100, 500])
def test_detaching_with_calls_in_flight(rings: RingPair, turns: int) -> None:
    served = attached(rings)
    create = rings.create(DEVICE, V, 1, blocks=8000)
    rings.settle(create)
    data = record(1, 0, [block_of(1)] * 248)
    writes = [rings.write(DEVICE, V, 1, 249 * n, record(1, 249 * n, [block_of(n)] * 248)) for n in range(20)]
    reads = [rings.read(DEVICE, V, 1, n, 256) for n in range(20)]
    for _ in range(turns):
        rings.turn()
    rings.detach()
    rings.settle(*writes, *reads)
    assert {call.result for call in (*writes, *reads)} <= {0, -errno.ECONNRESET}
    ended(rings, served)
    again = attached(rings)
    write, read = rings.write(DEVICE, V, 1, 0, data), rings.read(DEVICE, V, 1, 249 * 19, 1)
    rings.settle(write, read)
    assert (write.result, read.result) == (0, 0)
    assert served.free_buffers == again.free_buffers == (64, 16)
    rings.detach()
    ended(rings, again)


@pytest.mark.parametrize("side", ["owner", "holder"])
def test_a_connection_that_breaks(rings: RingPair, side: str) -> None:
    ours, theirs = sockets()
    outside = socket.socket(fileno=os.dup((ours if side == "owner" else theirs).fileno()))
    served = rings.attach(ours.detach(), theirs.detach())
    flushes = [rings.flush(DEVICE) for _ in range(30)]
    rings.turn()
    with outside:
        outside.shutdown(socket.SHUT_RDWR)
        rings.settle(*flushes)
        ended(rings, served)
    assert {flush.result for flush in flushes} <= {0, -errno.ECONNRESET}
    assert rings.end in ("closed", "error")
    assert served.end in ("closed", "error")


def test_a_server_that_stops_answers_first(rings: RingPair) -> None:
    served = attached(rings)
    flushes = [rings.flush(DEVICE) for _ in range(30)]
    while served.requests < 30:
        rings.turn()
    served.stop()
    rings.settle(*flushes)
    assert {flush.result for flush in flushes} == {0}
    ended(rings, served)
    assert (rings.end, served.end) == ("closed", "stopped")
