"""Connections of the peer protocol that break, are cut off or end: every call is done, and the store is intact."""

import errno
from dataclasses import dataclass

import pytest

from iomesh.engine.format.peer import KINDS, make_frame, read_reply
from iomesh.engine.views.peer import Served
from iomesh.engine.views.world import WorldView, cut, half_open
from support.peers import BLOCK, DEVICE, Pair, V, block_of, pair, record, request

FRAME = 96


@dataclass
class Raw:
    """A client of the test's own."""

    it: Pair
    view: WorldView
    end: int
    served: Served

    def send(self, data: bytes) -> None:
        self.view.send(self.end, data)
        self.it.nodes.settle()

    def received(self, most: int = 1 << 20) -> bytes:
        """What has arrived, or b"" if the connection has ended."""
        receive = self.view.receive(self.end, most)
        self.it.nodes.settle()
        return receive.data if receive.over else b""

    def statuses(self) -> list[tuple[int, int]]:
        """(id, status) of the replies that have arrived; all without payload."""
        data = self.received()
        replies = [read_reply(data[at : at + FRAME]) for at in range(0, len(data), FRAME)]
        assert all(reply["fault"] is None for reply in replies)
        return [(reply["id"], reply["status"]) for reply in replies]


def raw(seed: int = 1, reactors: int = 1) -> Raw:
    it = pair(seed, reactors=reactors, attached=False)
    view = WorldView(it.world)
    it.nodes.add(view)
    end, served = it.holder.accept(view.number)
    return Raw(it, view, end, served)


def usable(it: Pair) -> None:
    """A new connection serves the same store."""
    if it.owner.attached:
        it.owner.detach()
        it.nodes.settle()
    it.owner.attach(it.holder)
    assert it.done(it.owner.create(DEVICE, V, 999, blocks=8)) == [0]
    assert it.done(it.owner.write(DEVICE, V, 999, 0, record(999, 0, [block_of(9)]))) == [0]
    read = it.owner.read(DEVICE, V, 999, 1)
    assert it.done(read) == [0]
    assert read.data == block_of(9)
    assert it.done(it.owner.remove(DEVICE, V, 999)) == [0]


# ---------------------------------------------------------------------- what a client may send


@pytest.mark.parametrize("size", [7, 95, 97, 4096])
def test_frames_may_arrive_in_pieces_of_any_size(size: int) -> None:
    client = raw()
    data = record(1, 0, [block_of(1), block_of(2)])
    sent = request(KINDS["create"], epoch=1, blocks=8, id=1)
    sent += request(KINDS["write"], epoch=1, blocks=3, payload_bytes=len(data), id=2) + data
    sent += request(255, payload_bytes=1000, id=3) + bytes(1000)
    sent += request(KINDS["write"], epoch=1, block=3, blocks=1, payload_bytes=BLOCK, id=4) + record(1, 3, [])
    for at in range(0, len(sent), size):
        client.send(sent[at : at + size])
    assert sorted(client.statuses()) == [(1, 0), (2, 0), (3, 11), (4, 0)]
    assert client.it.holder.content(DEVICE, V, 1, 0, 3) == data


@pytest.mark.parametrize("kind", [0, 19, 255])
def test_an_unknown_kind_is_answered_and_its_payload_skipped(kind: int) -> None:
    client = raw()
    client.send(make_frame("PeerRequest", kind=kind, id=7, payload_bytes=300_000) + b"\xff" * 300_000)
    client.send(request(KINDS["flush"], id=8, volume=bytes(16), segment=0))
    assert client.statuses() == [(7, 11), (8, 0)]
    assert client.served.end is None


def test_a_volumes_io_is_refused_on_a_connection_for_devices() -> None:
    client = raw()
    client.send(make_frame("VolumeRequest", kind=KINDS["volume_flush"], volume=V, id=7))
    fields: dict[str, int | bytes] = {"volume": V, "block": 1, "blocks": 1, "payload_bytes": BLOCK, "id": 8}
    client.send(make_frame("VolumeRequest", kind=KINDS["volume_write"], **fields) + bytes(BLOCK))
    assert client.statuses() == [(7, 11), (8, 11)]
    assert client.served.end is None


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET / HTTP/1.1\r\n".ljust(FRAME), "its magic is not that of this protocol"),
        (request(3, volume=bytes(16), segment=0, crc=1), "its checksum does not match"),
        (request(3, volume=bytes(16), segment=0, version=2), "its version is not the one that was agreed on"),
        (request(3, volume=bytes(16), segment=0, flags=4), "its flags are not known for its kind"),
        (request(3), "it sets a field that its kind does not use"),
        (request(5, blocks=257), "it reads no block, or more than one request may"),
        (request(77, payload_bytes=0xFFFFFFFF), "its payload is longer than any"),
    ],
)
def test_an_invalid_frame_ends_the_connection_with_a_reason(sent: bytes, words: str) -> None:
    client = raw()
    client.send(request(KINDS["create"], epoch=1, blocks=8, id=1) + sent)
    assert client.served.end == "malformed"
    assert client.served.words == words
    assert client.it.holder.replicas(DEVICE) == {(V, 1): ("open", 8, 1, 0)}, "what came before it is executed"
    usable(client.it)


def test_a_client_that_sends_more_requests_than_its_credit_is_cut_off() -> None:
    client = raw()
    client.it.world.latencies = {"flush_ns": 10_000_000_000}
    flush = request(KINDS["flush"], volume=bytes(16), segment=0)
    client.view.send(client.end, flush * 64)
    client.it.until(lambda: client.served.requests == 64)
    assert client.served.end != "credits"
    client.send(flush)
    assert client.served.end == "credits"
    usable(client.it)


def test_a_client_that_asks_for_more_bytes_than_its_credit_is_cut_off() -> None:
    client = raw()
    client.send(request(KINDS["create"], epoch=1, blocks=256, id=1))
    client.it.world.latencies = {"read_ns": 10_000_000_000}
    read = request(KINDS["read"], blocks=256)
    client.view.send(client.end, read * 8)
    client.it.until(lambda: client.served.requests == 9)
    assert client.served.end != "credits"
    client.send(request(KINDS["read"], blocks=1))
    assert client.served.end == "credits"
    usable(client.it)


def test_more_small_and_large_requests_than_there_are_buffers_are_all_served() -> None:
    client = raw()
    client.send(request(KINDS["create"], epoch=1, blocks=256, id=1))
    assert client.statuses() == [(1, 0)]
    client.view.send(client.end, b"".join(request(KINDS["read"], blocks=5, id=number) for number in range(64)))
    received = b""
    while len(received) < 64 * (FRAME + 5 * BLOCK):
        piece = client.received()
        assert piece, f"{len(received)} bytes came"
        received += piece
    assert client.served.end is None
    assert client.served.free_buffers == (64, 16)


def test_a_client_that_receives_nothing_holds_its_own_buffers_only() -> None:
    client = raw()
    client.send(request(KINDS["create"], epoch=1, blocks=256, id=1))
    client.send(request(KINDS["read"], blocks=256) * 8)
    assert client.served.free_buffers[1] < 16
    usable(client.it)
    client.served.stop()
    client.it.nodes.settle()
    assert client.served.end == "stopped"
    assert client.served.free_buffers == (64, 16)


# ---------------------------------------------------------------------- what a server may reply


@dataclass
class RawServer:
    it: Pair
    view: WorldView
    end: int


def raw_server() -> RawServer:
    """The test's own end of the owner's connection."""
    it = pair(attached=False)
    view = WorldView(it.world)
    it.nodes.add(view)
    ours, theirs = it.owner.connect_to(view.number)
    it.owner.join(ours)
    return RawServer(it, view, theirs)


REPLIES = [
    ({"id_of": False}, "it replies to no request under way"),
    ({"kind": KINDS["flush"]}, "it is of another kind than its request"),
    ({"crc": 5}, "its checksum does not match"),
    ({"status": 99}, "its status is not known"),
    ({"payload_bytes": BLOCK}, "it has not the blocks that were asked for"),
    ({"payload_bytes": 3 * BLOCK}, "it has not the blocks that were asked for"),
    ({"payload_bytes": 2 * BLOCK, "count": 1}, "it has not the blocks that were asked for"),
    ({"status": 1, "payload_bytes": 2 * BLOCK}, "it reports an error and has a payload"),
]


@pytest.mark.parametrize(("changes", "words"), REPLIES)
def test_a_reply_that_fits_no_call_ends_the_connection(changes: dict[str, int | bool], words: str) -> None:
    server = raw_server()
    read, flush = server.it.owner.read(DEVICE, V, 1, 0, 2), server.it.owner.flush(DEVICE)
    asked = server.view.receive(server.end, 2 * FRAME)
    server.it.nodes.settle()
    fields = dict(changes)
    number = int.from_bytes(asked.data[16:24], "little") if fields.pop("id_of", True) else 0xABCDEF01
    reply = {"kind": KINDS["read"], "id": number, "payload_bytes": 2 * BLOCK} | fields
    server.view.send(server.end, make_frame("PeerReply", **reply) + bytes(2 * BLOCK))
    server.it.nodes.settle()
    assert (server.it.owner.end, server.it.owner.words) == ("malformed", words)
    assert (read.result, flush.result) == (-errno.ECONNRESET, -errno.ECONNRESET)
    assert server.it.owner.lost == 1


def test_a_reply_counts_once() -> None:
    server = raw_server()
    flushes = [server.it.owner.flush(DEVICE) for _ in range(2)]
    asked = server.view.receive(server.end, 2 * FRAME)
    server.it.nodes.settle()
    number = int.from_bytes(asked.data[16:24], "little")
    reply = make_frame("PeerReply", kind=KINDS["flush"], id=number)
    server.view.send(server.end, reply + reply)
    server.it.nodes.settle()
    assert sorted(flush.result for flush in flushes) == [-errno.ECONNRESET, 0]
    assert server.it.owner.words == "it replies to no request under way"


def test_a_reply_for_a_call_of_an_earlier_connection_matches_none() -> None:
    server = raw_server()
    flush = server.it.owner.flush(DEVICE)
    asked = server.view.receive(server.end, FRAME)
    server.it.nodes.settle()
    old = int.from_bytes(asked.data[16:24], "little")
    cut(server.it.world, server.end)
    server.it.nodes.settle()
    assert flush.result == -errno.ECONNRESET
    ours, theirs = server.it.owner.connect_to(server.view.number)
    server.it.owner.join(ours)
    again = server.it.owner.flush(DEVICE)
    server.it.nodes.settle()
    server.view.send(theirs, make_frame("PeerReply", kind=KINDS["flush"], id=old))
    server.it.nodes.settle()
    assert again.result == -errno.ECONNRESET
    assert server.it.owner.words == "it replies to no request under way"


# ---------------------------------------------------------------------- the end of a connection


@pytest.mark.parametrize("rounds", range(0, 120, 7))
@pytest.mark.parametrize("reactors", [1, 2])
def test_a_cut_ends_every_call_and_the_store_is_intact(rounds: int, reactors: int) -> None:
    it = pair(rounds, reactors=reactors)
    it.done(it.owner.create(DEVICE, V, 1, blocks=8000))
    calls = []
    for number in range(100):
        data = record(1, 50 * number, [block_of(number + k) for k in range(number % 30)])
        calls.append(it.owner.write(DEVICE, V, 1, 50 * number, data))
    calls.append(it.owner.seal(DEVICE, V, 1, 7000))
    calls += [it.owner.read(DEVICE, V, 1, number, 100) for number in range(20)]
    calls.append(it.owner.create(DEVICE, V, 2))
    it.nodes.run(rounds)
    cut(it.world, it.owner.connection)
    results = it.done(*calls)
    assert set(results) <= {0, -errno.ECONNRESET}
    assert rounds > 0 or set(results) == {-errno.ECONNRESET}
    assert not it.owner.attached and it.owner.lost == 1
    for number in range(1, 100):
        if results[number] == 0 and number % 30:
            assert it.holder.content(DEVICE, V, 1, 50 * number + 1, 1) == block_of(number)
    usable(it)


def test_without_a_connection_calls_fail_at_once() -> None:
    it = pair(attached=False)
    call = it.owner.flush(DEVICE)
    assert not call.over, "not before it returns"
    assert it.done(call) == [-errno.ECONNRESET]
    usable(it)
    it.owner.detach()
    calls = [it.owner.flush(DEVICE) for _ in range(3)]
    assert it.done(*calls) == [-errno.ECONNRESET] * 3


def test_detaching_ends_the_connection_at_both_sides() -> None:
    it = pair(attached=False)
    served = it.owner.attach(it.holder)
    assert it.done(it.owner.flush(DEVICE)) == [0]
    waiting = [it.owner.flush(DEVICE) for _ in range(200)]
    it.owner.detach()
    assert it.done(*waiting) == [-errno.ECONNRESET] * 200
    assert it.owner.end == "detached"
    assert served.end in ("closed", "error")
    assert it.owner.lost == 1


def test_a_write_is_not_done_while_the_kernel_may_read_its_data() -> None:
    """Nobody receives at the other end, so the send is stuck in the middle of the payload."""
    server = raw_server()
    write = server.it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(n) for n in range(248)]))
    server.it.nodes.settle()
    assert not write.over
    server.it.owner.detach()
    assert not write.over, "the send has not ended yet"
    server.it.nodes.settle()
    assert write.result == -errno.ECONNRESET


def test_a_half_open_connection_is_silent_until_the_client_gives_it_up() -> None:
    it = pair(attached=False)
    served = it.owner.attach(it.holder)
    it.done(it.owner.create(DEVICE, V, 1))
    half_open(it.world, it.owner.connection)
    calls = [it.owner.write(DEVICE, V, 1, number, record(1, number, [])) for number in range(5)]
    it.nodes.settle()
    assert not any(call.over for call in calls)
    it.owner.detach()
    assert it.done(*calls) == [-errno.ECONNRESET] * 5
    served.stop()
    it.nodes.settle()
    assert served.end == "stopped"
    usable(it)


def test_a_server_that_stops_answers_what_it_has_accepted() -> None:
    it = pair(attached=False)
    served = it.owner.attach(it.holder)
    it.done(it.owner.create(DEVICE, V, 1))
    it.world.latencies = {"write_ns": 50_000_000}
    writes = [it.owner.write(DEVICE, V, 1, number, record(1, number, [])) for number in range(30)]
    it.until(lambda: served.requests == 31)
    served.stop()
    assert it.done(*writes) == [0] * 30
    assert served.end == "stopped"
    assert not it.owner.attached


@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_of_the_holder_ends_the_calls_and_keeps_what_was_flushed(seed: int) -> None:
    it = pair(seed)
    data = record(1, 0, [block_of(number) for number in range(50)])
    assert it.done(it.owner.create(DEVICE, V, 1)) == [0]
    assert it.done(it.owner.write(DEVICE, V, 1, 0, data)) == [0]
    assert it.done(it.owner.flush(DEVICE)) == [0]
    calls = [it.owner.write(DEVICE, V, 1, 51 + number, record(1, 51 + number, [])) for number in range(40)]
    create = it.owner.create(DEVICE, V, 2)
    it.nodes.run(10 * seed)
    it.holder.crash()
    it.nodes.settle()
    if it.owner.attached:  # it crashed silently: nothing tells the client until it gives up
        it.owner.detach()
        it.nodes.settle()
    assert all(call.over for call in calls)
    assert {call.result for call in calls} <= {0, -errno.ECONNRESET}
    it.holder.restart()
    assert it.holder.content(DEVICE, V, 1, 0, 51) == data
    assert create.result == -errno.ECONNRESET or (V, 2) in it.holder.replicas(DEVICE)
    usable(it)


@pytest.mark.parametrize("reactors", [1, 2])
def test_a_store_is_withdrawn_when_its_requests_are_finished(reactors: int) -> None:
    it = pair(reactors=reactors, devices=2, attached=False)
    served = it.owner.attach(it.holder)
    it.done(it.owner.create(DEVICE, V, 1), it.owner.create(DEVICE + 1, V, 1))
    it.world.latencies = {"write_ns": 50_000_000}
    writes = [it.owner.write(DEVICE, V, 1, number, record(1, number, [])) for number in range(20)]
    it.until(lambda: served.requests > 10)
    it.holder.withdraw(DEVICE)
    later, other = it.owner.flush(DEVICE), it.owner.flush(DEVICE + 1)
    assert it.done(later, other) == [-errno.ENODEV, 0]
    assert {write.result for write in writes} <= {0, -errno.ENODEV}
    assert writes[0].result == 0
