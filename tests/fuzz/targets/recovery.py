"""A volume's log as a crash left it, with bytes of headers, footers, checkpoint, map and tables changed and every
checksum right again.

Checksums that cover each other are put right from the changed block upwards: a map node's in the node above it and in
the record that holds it, that record's in the next one and in the footer, and so on to the pointer in the metadata
service. So the engine is told a consistent lie, and must answer: with a volume, or with a reason. What then is read may
be an error; what is written is there when it is read again.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fuzz.driver import CLUSTER, DEVICE, VOLUME, Driver, new_device
from fuzz.patches import patch, patches
from iomesh.engine.engine import SEGMENT_NUMBER_MAX, Pointer, crc32c, structures
from support.forged import resealed
from support.places import DeviceAtRest
from support.wire import READ, TRIM, Wire

BLOCK = 4096
MAX_BYTES = 512
DEVICE_BYTES = 64 << 20
VOLUME_BYTES = 3 << 20
SEGMENT_BYTES = 1 << 20
READ_BYTES = 1 << 20
FROM_CHECKPOINT, STOP_WITH_CHECKPOINT, READ_ALL = 1, 2, 4  # the first byte of an input
SEALED_HEADERS = ("superblock", "superblock twin", "journal", "journal mirror", "header", "footer", "checkpoint")
# How many blocks live follows from both: after a lie about that only reading is right, a write may stop the process.
COUNTED = (
    "map",
    "table",
)
TABLE = -1  # Link.offset: under a checksum together with others
TABLE_CRC = next(offset for name, offset, _ in structures()["Footer"] if name == "table_crc")
LINKED = ("header", "footer", "footer table", "map", "table", "checkpoint")


@dataclass(frozen=True)
class Link:
    """Where the checksum of one place stands in another."""

    at: int  # number of the place
    offset: int


@dataclass
class Image:
    """The device after the crash."""

    path: Path
    descriptor: int
    blocks: dict[int, bytes]  # by offset; all others are zeros
    places: list[tuple[str, int]]  # kind, offset
    # Numbers of places that inputs change: of all kinds, not each of the many headers.
    reached: list[int] = field(default_factory=list)
    links: dict[int, list[Link]] = field(default_factory=dict)  # by number of the place whose checksum it is
    order: list[int] = field(default_factory=list)  # places, each before those that have its checksum
    pointer: Pointer | None = None
    footer_of: dict[int, int] = field(default_factory=dict)  # numbers: of a block of a footer's table, the footer

    def restore(self) -> None:
        os.ftruncate(self.descriptor, 0)
        os.ftruncate(self.descriptor, DEVICE_BYTES)
        for offset, run in runs(self.blocks):
            os.pwrite(self.descriptor, run, offset)


def runs(blocks: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Blocks that follow each other in one piece."""
    start, pieces = 0, list[bytes]()
    for offset, block in sorted(blocks.items()):
        if pieces and offset != start + BLOCK * len(pieces):
            yield start, b"".join(pieces)
            pieces = []
        if not pieces:
            start = offset
        pieces.append(block)
    if pieces:
        yield start, b"".join(pieces)


class Store:
    """A driver and the device as it is now."""

    def __init__(self, path: Path) -> None:
        self.driver = Driver()
        self.descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self.store = -1

    def open(self) -> None:
        ticket = self.driver.engine.open_store(self.descriptor, cluster=CLUSTER, volatile_cache=False)
        self.store = self.driver.done(ticket)["store"]

    def open_volume(self, epoch: int, checkpoint: Pointer | None) -> str | None:
        """None, or why it is not opened."""
        self.driver.pointer = checkpoint
        answer = self.driver.wait(
            self.driver.engine.open_volume(
                VOLUME,
                size_bytes=VOLUME_BYTES,
                epoch=epoch,
                segment_bytes=SEGMENT_BYTES,
                checkpoint=checkpoint,
                first_segment=1,
                promised=SEGMENT_NUMBER_MAX,
            )
        )
        assert not answer.error or answer.reason, f"refused without a reason: {answer}"
        return answer.reason if answer.error else None

    def close_volume(self, *, checkpoint: bool) -> None:
        self.driver.wait(self.driver.engine.close_volume(VOLUME, checkpoint=checkpoint))

    def close(self) -> None:
        self.driver.done(self.driver.engine.close_store(self.store))

    def connected(self) -> tuple[Wire, int]:
        return self.driver.wire(structured=True)


@cache
def store() -> Store:
    return Store(image().path)


@cache
def image() -> Image:
    path, descriptor = new_device(DEVICE_BYTES)
    os.close(descriptor)
    made = Store(path)
    driver = made.driver
    driver.done(
        driver.engine.format_store(
            made.descriptor, cluster=CLUSTER, device=DEVICE, device_bytes=DEVICE_BYTES, tier=1, label="fuzz"
        )
    )
    made.open()
    assert made.open_volume(1, None) is None
    wire, ticket = made.connected()
    write(wire, range(150))
    driver.done(driver.engine.checkpoint(VOLUME))
    write(wire, range(150, 300))
    wire.socket.close()
    driver.done(ticket)
    pointer = driver.pointer
    driver.engine.stop()  # as a crash
    return as_it_is(path, pointer)


def write(wire: Wire, stamps: range) -> None:
    """One at a time, and none larger than one receive: so each gets a record, the same in every process."""
    for stamp in stamps:
        block = stamp * 37 % (VOLUME_BYTES // BLOCK - 3)
        if stamp % 16 == 15:
            assert wire.do(TRIM, block * BLOCK, 3 * BLOCK).error == 0
        else:
            assert wire.write(block * BLOCK, stamp.to_bytes(8, "little") * 512 * (1 + stamp % 3)) == 0


def as_it_is(path: Path, pointer: Pointer | None) -> Image:
    content = path.read_bytes()
    blocks = {at: content[at : at + BLOCK] for at in range(0, len(content), BLOCK) if any(content[at : at + BLOCK])}
    places = [(place.kind, place.offset) for place in DeviceAtRest(path).places() if place.kind in LINKED]
    footer_of: dict[int, int] = {}
    for number, (kind, _) in enumerate(places):
        if kind == "footer table":
            footer_of[number] = footer_of.get(number - 1, number - 1)
    words: dict[bytes, list[Link]] = {}
    for number, (_, offset) in enumerate(places):
        for at in range(0, BLOCK, 4):
            words.setdefault(blocks[offset][at : at + 4], []).append(Link(number, at))
    it = Image(path, os.open(path, os.O_RDWR | os.O_CLOEXEC), blocks, places, pointer=pointer, footer_of=footer_of)
    for number, (kind, offset) in enumerate(places):
        crc = checksum(kind, blocks[offset]).to_bytes(4, "little")
        it.links[number] = [link for link in words.get(crc, []) if link.at != number]
        if number in footer_of:
            it.links[number].append(Link(footer_of[number], TABLE))
    headers = [number for number, (kind, _) in enumerate(places) if kind == "header"]
    it.reached = (
        [number for number in range(len(places)) if number not in headers]
        + headers[:8]
        + headers[-24:]
        + headers[8:-24:6]
    )
    begun: set[int] = set()

    def visit(number: int) -> None:
        if number not in begun:
            begun.add(number)
            for link in it.links[number]:
                visit(link.at)
            it.order.insert(0, number)

    for number in range(len(places)):
        visit(number)
    return it


def checksum(kind: str, block: bytes) -> int:
    """As others name it: a header's is what it says, anything else's that of the whole block."""
    return int.from_bytes(block[8:12], "little") if kind in ("header", "footer") else crc32c(block)


def fuzz_one(data: bytes) -> None:
    how = data[0] if data else FROM_CHECKPOINT | READ_ALL
    it = image()
    it.restore()
    pointer = forged(it, data[1:])
    lied = any(it.places[it.reached[each.place % len(it.reached)]][0] in COUNTED for each in patches(data[1:]))
    it_store = store()
    it_store.open()
    refused = it_store.open_volume(2, pointer if how & FROM_CHECKPOINT else None)
    if refused is None:
        use(it_store, how, writes=not lied)
        checkpoint = it_store.driver.pointer
        it_store.close_volume(checkpoint=not lied and how & STOP_WITH_CHECKPOINT != 0)
        checkpoint = it_store.driver.pointer or checkpoint
        if it_store.open_volume(3, checkpoint) is None:
            it_store.close_volume(checkpoint=False)
    it_store.close()


def forged(it: Image, data: bytes) -> Pointer | None:
    """Applies what an input changes, and returns the pointer of the metadata service as it is then."""
    changed: dict[int, bytes] = {}
    torn: set[int] = set()
    for each in patches(data):
        number = it.reached[each.place % len(it.reached)]
        changed[number] = each.applied(changed.get(number, it.blocks[it.places[number][1]]))
        if not each.sealed:
            torn.add(number)
    pointer = it.pointer
    for number in it.order:
        if number not in changed or number in torn:
            continue
        kind, offset = it.places[number]
        block = resealed(changed[number]) if kind in SEALED_HEADERS else changed[number]
        changed[number] = block
        crc = checksum(kind, block)
        for link in it.links[number]:
            if link.offset == TABLE:
                crc, link = table_checksum(it, changed, link.at), Link(link.at, TABLE_CRC)
            above = changed.get(link.at, it.blocks[it.places[link.at][1]])
            changed[link.at] = above[: link.offset] + crc.to_bytes(4, "little") + above[link.offset + 4 :]
        if pointer is not None and checksum(kind, it.blocks[offset]) == pointer.crc:
            pointer = pointer._replace(crc=crc)
    for number, block in changed.items():
        os.pwrite(it.descriptor, block, it.places[number][1])
    return pointer


def table_checksum(it: Image, changed: dict[int, bytes], footer: int) -> int:
    """Of all blocks of a footer's table."""
    table = [number for number, of in it.footer_of.items() if of == footer]
    return crc32c(b"".join(changed.get(number, it.blocks[it.places[number][1]]) for number in table))


def use(it: Store, how: int, *, writes: bool) -> None:
    wire, ticket = it.connected()
    for offset in range(0, VOLUME_BYTES if how & READ_ALL else READ_BYTES, READ_BYTES):
        wire.do(READ, offset, READ_BYTES)
    if writes:
        if wire.write(5 * BLOCK, b"anew" * 1024) == 0:
            again = wire.do(READ, 5 * BLOCK, BLOCK)
            assert again.error == 0 and again.data == b"anew" * 1024, (
                f"what was written is not there: error {again.error}"
            )
        wire.do(TRIM, VOLUME_BYTES // 2, VOLUME_BYTES // 4)
    wire.socket.close()
    it.driver.done(ticket)


def seeds() -> list[bytes]:
    found = [bytes([how]) for how in range(8)]
    kinds: dict[str, list[int]] = {}
    for place, number in enumerate(image().reached):
        kinds.setdefault(image().places[number][0], []).append(place)
    for places in kinds.values():
        for place in {places[0], places[len(places) // 2], places[-1]}:
            for offset in (0, 12, 32, 40, 44, 48, 56, 64, 68, 72, 80, 128, 136, 140, 142):
                found.append(bytes([FROM_CHECKPOINT | READ_ALL]) + patch(place, offset, b"\1"))
            found.append(bytes([READ_ALL]) + patch(place, 200, b"torn", 0x80))
    return found
