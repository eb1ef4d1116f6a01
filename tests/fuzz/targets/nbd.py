"""What a client may send once hands are shaken: any bytes, or requests with any fields, whole or cut off, awaited or
not.

The first byte says how. Then follow bytes to send as they are (RAW), or eight bytes for each request: command and
units, flags, offset, length. Requests with IN_TURN each await their answer, and the volume must be what a few lines of
Python say it is. In any case: every request that went out whole is answered once, the connection ends, and a second one
to the same volume never notices.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from fuzz.driver import CLUSTER, DEVICE, VOLUME, Driver, new_device
from iomesh.engine.engine import SEGMENT_NUMBER_MAX
from support.wire import DISCONNECT, FUA, READ, TRIM, WRITE, WRITE_ZEROES, Answer, Wire, request

MAX_BYTES = 512
VOLUME_BYTES = (3 << 20) + 5 * 4096
DEVICE_BYTES = 2 << 30
PAYLOAD_BYTES = 4 << 20  # of one input: what is more is cut off
REQUEST_PAYLOAD_BYTES_MAX = 32 << 20

STRUCTURED, CONTEXT, READ_ONLY, RAW, IN_TURN = 1, 2, 4, 32, 64
ENDINGS = ("half closed", "disconnect", "closed", "shut down")
OFFSET_UNITS = (1, 512, 4096, 1 << 40)
LENGTH_UNITS = (1, 512, 4096, 1 << 16)
CUT_OFF = 0  # the cookie of a request that may be answered or not
OPERATION = struct.Struct(">BB3s3s")


@dataclass
class Asked:
    command: int
    flags: int
    offset: int
    length: int
    payload: bytes

    @property
    def malformed(self) -> bool:
        return self.command == WRITE and self.length > REQUEST_PAYLOAD_BYTES_MAX

    @property
    def whole(self) -> bool:
        return self.command != WRITE or len(self.payload) == self.length


class Served:
    """The volume, and a connection to it that lives as long as this process."""

    def __init__(self) -> None:
        self.driver = Driver(checkpoint_bytes=8 << 20)
        path, descriptor = new_device(DEVICE_BYTES)
        engine = self.driver.engine
        self.driver.done(
            engine.format_store(
                descriptor, cluster=CLUSTER, device=DEVICE, device_bytes=path.stat().st_size, tier=1, label="fuzz"
            )
        )
        self.driver.done(engine.open_store(descriptor, cluster=CLUSTER, volatile_cache=False))
        self.driver.done(
            engine.open_volume(
                VOLUME,
                size_bytes=VOLUME_BYTES,
                epoch=1,
                segment_bytes=1 << 20,
                checkpoint=None,
                first_segment=1,
                promised=SEGMENT_NUMBER_MAX,
            )
        )
        self.witness, _ = self.driver.wire()

    def check(self) -> None:
        """The volume serves others as ever, and is empty again."""
        assert self.witness.write(4096, b"witness." * 512) == 0
        assert self.witness.read(4096, 4096) == b"witness." * 512
        assert self.witness.do(WRITE_ZEROES, 0, VOLUME_BYTES).error == 0
        assert self.witness.read(0, 8192) == bytes(8192)


@cache
def served() -> Served:
    return Served()


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    how = data[0]
    context = how & CONTEXT != 0
    structured = context or how & STRUCTURED != 0
    driver = served().driver
    client, ticket = driver.connect(structured=structured, context=context, read_only=how & READ_ONLY != 0)
    with client:
        if how & RAW:
            send_raw(client, data[1:])
        elif how & IN_TURN:
            in_turn(
                Wire.over(client, structured=structured), list(operations(data[1:])), read_only=how & READ_ONLY != 0
            )
        else:
            at_once(Wire.over(client, structured=structured), list(operations(data[1:])))
        end(client, ENDINGS[how >> 3 & 3])
    ended = driver.done(ticket)
    assert ended["end"] in ("disconnect", "closed", "malformed"), f"the connection ended: {ended}"
    served().check()
    driver.collect()


def operations(data: bytes) -> Iterator[Asked]:
    left = PAYLOAD_BYTES
    for number, (command, flags, offset, length) in enumerate(OPERATION.iter_unpack(data[: len(data) // 8 * 8])):
        bytes_asked = int.from_bytes(length, "big") * LENGTH_UNITS[command >> 6] % 2**32
        if command & 15 == READ:
            bytes_asked %= 2 * REQUEST_PAYLOAD_BYTES_MAX  # who asks provides the memory
        asked = Asked(
            command & 15,
            flags & 31 | flags >> 5 << 8,
            int.from_bytes(offset, "big") * OFFSET_UNITS[command >> 4 & 3],
            bytes_asked,
            b"",
        )
        if asked.command == WRITE and not asked.malformed:
            asked.payload = bytes([number + 1]) * min(left, bytes_asked)
            left -= len(asked.payload)
        yield asked
        if asked.command == DISCONNECT or asked.malformed or not asked.whole:
            return  # what would follow is not looked at


def send_raw(client: socket.socket, data: bytes) -> None:
    """Fits the socket's buffer: nothing has to be received meanwhile."""
    client.sendall(data)


def at_once(wire: Wire, asked: list[Asked]) -> None:
    """Sends all requests at once and takes replies as they come; a second reply to one request is an error."""
    for each in asked:
        taken = each.command != DISCONNECT and not each.malformed and each.whole
        header = wire.header(
            each.command, each.offset, each.length, flags=each.flags, cookie=None if taken else CUT_OFF
        )
        wire.sending(header + each.payload, lambda _cookie, _answer: None)
    wire.socket.shutdown(socket.SHUT_WR)
    while wire.asked.keys() - {CUT_OFF}:
        wire.next_answer()


def in_turn(wire: Wire, asked: list[Asked], *, read_only: bool) -> None:
    """Each awaited, and compared with what the volume must be."""
    model = bytearray(VOLUME_BYTES)
    for each in asked:
        if each.command == DISCONNECT or each.malformed or not each.whole:
            wire.socket.sendall(request(each.command, each.offset, each.length, flags=each.flags) + each.payload)
            return
        cookie = wire.ask(each.command, each.offset, each.length, flags=each.flags, data=each.payload)
        _, answer = wire.next_answer()
        compare(each, answer, model, read_only=read_only)
        assert not wire.asked, f"request {cookie} was not the one that was answered"


def compare(asked: Asked, answer: Answer, model: bytearray, *, read_only: bool) -> None:
    end = asked.offset + asked.length
    allowed = end <= VOLUME_BYTES and not asked.flags & ~FUA and not (read_only and asked.command != READ)
    if asked.command in (READ, WRITE, TRIM, WRITE_ZEROES) and allowed:
        assert answer.error == 0, f"error {answer.error} for {asked.command} of {asked.length} bytes at {asked.offset}"
    if answer.error:
        return
    if asked.command in (READ, WRITE, TRIM, WRITE_ZEROES):
        assert end <= VOLUME_BYTES, (
            f"{asked.command} of {asked.length} bytes at {asked.offset}, beyond the volume's end, was done"
        )
    if asked.command == READ:
        assert answer.data == model[asked.offset : end], (
            f"{asked.length} bytes at {asked.offset} are not what was written"
        )
    elif asked.command == WRITE:
        model[asked.offset : end] = asked.payload
    elif asked.command == WRITE_ZEROES:
        model[asked.offset : end] = bytes(asked.length)
    elif asked.command == TRIM:
        first, last = -(-asked.offset // 4096) * 4096, end // 4096 * 4096
        model[first:last] = bytes(max(0, last - first))


def end(client: socket.socket, how: str) -> None:
    try:
        if how == "disconnect":
            client.sendall(request(DISCONNECT, 0, 0))
        if how in ("half closed", "disconnect"):
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 20):
                pass
        elif how == "shut down":
            client.shutdown(socket.SHUT_RDWR)
    except TimeoutError:
        raise
    except OSError:  # it has ended already
        pass


def operation(command: int, offset: int, length: int, flags: int = 0) -> bytes:
    """Offset and length in blocks."""
    return OPERATION.pack(command | 2 << 4 | 2 << 6, flags, offset.to_bytes(3, "big"), length.to_bytes(3, "big"))


def seeds() -> list[bytes]:
    all_commands = b"".join(operation(command, 1, 3) for command in (WRITE, READ, 3, TRIM, 5, WRITE_ZEROES, 7, READ))
    odd = OPERATION.pack(WRITE, 1, b"\0\0\5", b"\0\x20\1") + OPERATION.pack(READ, 0, b"\0\0\0", b"\0\x30\0")
    raw = request(WRITE, 0, 8, cookie=1) + b"payload." + request(READ, 0, 16, cookie=2) + request(DISCONNECT, 0, 0)
    found = [bytes([how]) + sent for how in (0, 1, 3, 7, 64, 67, 8, 16, 24) for sent in (all_commands, odd)]
    return [*found, bytes([RAW]) + raw, bytes([RAW | CONTEXT]) + raw, bytes([RAW | 16]) + raw[:40]]
