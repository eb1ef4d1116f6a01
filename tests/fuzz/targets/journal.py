"""What a store reads when it opens: superblocks and journal, valid ones with some bytes changed and the checksums right
again.

Opening ends with a directory or with a reason. A directory holds together: it is the same when the store opens once
more, with nothing left to repair, and what is done on it then is there afterwards.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fuzz.driver import new_device
from fuzz.patches import patch, patches
from iomesh.engine.format.structures import structures
from iomesh.engine.views.store import StoreRefused, StoreView
from support.forged import resealed
from support.stores import BLOCK, PLACES, SMALLEST, TWIN, Directory, V, W

MAX_BYTES = 512
CHANGES = 300  # more than a half of the journal takes: both halves are in use
ONE_COPY = 0x40  # Patch.how: of a journal block the mirror stays as it was
INDICES = (0, 1, 2, 3, 40, 41, 42, 254, 255)


@dataclass
class Device:
    path: Path
    descriptor: int
    head: bytes  # as it should be
    changed: set[int]  # offsets of blocks that are not as they should be

    def write(self, offset: int, block: bytes) -> None:
        os.pwrite(self.descriptor, block, offset)
        self.changed.add(offset)

    def restore(self) -> None:
        for offset in self.changed:
            os.pwrite(self.descriptor, self.head[offset : offset + BLOCK].ljust(BLOCK, b"\0"), offset)
        self.changed.clear()


@cache
def device() -> Device:
    path, _ = new_device(SMALLEST)
    with StoreView(path, volatile_cache=False) as store:
        store.format()
        store.open()
        for number in range(1, 6):
            assert store.create(V, number) == 0
        assert store.seal(V, 1, 100, 90) == 0
        assert store.seal(V, 2, 64) == 0
        for number in range(CHANGES // 3):
            assert store.create(W, number) == 0
            assert store.seal(W, number, 3) == 0
            assert store.remove(W, number) == 0
        assert store.together([("create", W, 1000 + number, 64) for number in range(9)]) == [0] * 9
        assert store.state["journal_generation"] > 1, "only one half of the journal is in use"
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return Device(path, descriptor, os.pread(descriptor, PLACES.end, 0), set())


def places(number: int) -> list[int]:
    """Offsets of the copies of a structure."""
    number %= 2 + 2 * len(INDICES)
    if number < 2:
        return [0 if number == 0 else TWIN]
    half, index = divmod(number - 2, len(INDICES))
    return [PLACES.block(copy, half, INDICES[index]) for copy in (0, 1)]


def fuzz_one(data: bytes) -> None:
    it = device()
    it.restore()
    blocks: dict[int, bytes] = {}
    left_as_is: set[int] = set()
    for each in patches(data):
        for offset in places(each.place)[: 1 if each.how & ONE_COPY else 2]:
            blocks[offset] = each.applied(blocks.get(offset, it.head[offset : offset + BLOCK]))
            if not each.sealed:
                left_as_is.add(offset)
    for offset, block in blocks.items():
        it.write(offset, block if offset in left_as_is else resealed(block))
    found = opened(it)
    if found is None:
        return
    again = opened(it, change=True)
    assert again == found, "a store that opened once is not the same the second time"


def opened(it: Device, *, change: bool = False) -> Directory | None:
    """The directory; None: the store was refused. With `change`: it has nothing to repair, and takes changes that are
    there afterwards."""
    with StoreView(it.path, volatile_cache=False) as store:
        refused = None
        try:
            store.open()
        except StoreRefused as reason:
            refused = reason
        if refused is None:
            check(store, store.replicas())
            replicas = store.replicas()
            if change:
                assert not [line for line in store.repaired if "restored" in line], f"repaired twice: {store.repaired}"
                use(store, replicas)
        for event in store.history:
            if len(event) == 3:
                it.changed.add(event[1])
    if refused is not None:
        assert refused.errno, f"refused without a reason: {refused!r}"
        assert refused.reason, f"refused without a reason: {refused!r}"
        assert not change, f"a store that opened once is refused: {refused}"
        return None
    return replicas


def check(store: StoreView, replicas: Directory) -> None:
    """No slab belongs to two, or to none that is not free."""
    extents = [extent for replica in replicas.values() for extent in replica[3]]
    taken = [slab for first, count in extents for slab in range(first, first + count)]
    assert len(taken) == len(set(taken)), "a slab is taken twice"
    assert all(slab < store.state["slabs"] for slab in taken), "a slab lies beyond the device"
    assert len(taken) + store.state["free"] == store.state["slabs"], (
        f"{len(taken)} slabs taken, {store.state['free']} free"
    )


def use(store: StoreView, replicas: Directory) -> None:
    name = (b"made by a fuzzer", 7)
    if name in replicas:
        return
    made = store.create(*name, 64)
    assert made == 0 or not store.has_room(64), f"no segment can be created: error {made}"
    if made == 0:
        assert store.seal(*name, 10) == 0
        assert store.replicas()[name][:2] == ("sealed", 10)
    for volume, segment in list(replicas)[:2]:
        assert store.remove(volume, segment) == 0
    check(store, store.replicas())


def seeds() -> list[bytes]:
    places_of = {name: {field: offset for field, offset, _ in fields} for name, fields in structures().items()}
    superblock, block, entry = places_of["Superblock"], places_of["JournalBlock"], places_of["JournalEntry"]
    found = [b""]
    for place in (0, 1):
        found += [
            patch(place, offset, b"\1")
            for field, offset in superblock.items()
            if field not in ("padding", "magic", "crc")
        ]
    for place in (2, 3, 2 + len(INDICES), 3 + len(INDICES)):
        found += [patch(place, block[field], b"\2") for field in ("generation", "index", "kind", "bytes", "device")]
        found += [
            patch(place, block["entries"] + offset, b"\1") for field, offset in entry.items() if field != "reserved"
        ]
        found += [
            patch(place, block["entries"] + 64, b"\3\0\0\0", ONE_COPY),
            patch(place, 9, b"torn", ONE_COPY | 0x80),
            patch(place, 9, b"torn", 0x80),
        ]
    return found
