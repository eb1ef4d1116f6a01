"""The journal after a crash or damage: the last durable directory is read or the store is refused; never an older
one."""

import errno
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from iomesh.engine.views.store import StoreRefused, StoreView
from support import stores
from support.amount import Amount
from support.forged import journal_block, journal_entry, resealed
from support.stores import (
    BLOCK,
    MEBIBYTE,
    PLACES,
    TWIN,
    Directory,
    Event,
    Order,
    V,
    W,
    damages,
    formatted,
    opened,
    read_head,
    with_sectors,
    write_at,
)


@dataclass
class Written:
    """A device, what it held before some changes, every write that they took, and the directory after each of them."""

    path: Path
    head: bytes
    history: list[Event]
    acknowledged: list[tuple[int, Directory]]  # events until then, and the directory

    def allowed(self, events: int) -> list[Directory]:
        """After so many events: what was acknowledged, or that and the one change under way."""
        done = max(number for number, (at, _) in enumerate(self.acknowledged) if at <= events)
        return [directory for _, directory in self.acknowledged[done : done + 2]]

    def check(self, events: int, sectors: dict[int, bytes], case: str) -> None:
        write_at(self.path, 0, with_sectors(self.head, sectors))
        found = opened(self.path)
        assert not isinstance(found, StoreRefused), f"{case}: refused: {found}"
        assert found in self.allowed(events), (
            f"{case}: neither the directory before the change under way nor the one after"
        )
        with StoreView(self.path) as store:  # what was opened once opens again the same, with nothing left to restore
            store.open()
            assert store.replicas() == found, case
            assert store.repaired == [], case
            assert store.create(W, 999, 1) == 0
            found = store.replicas()
        assert opened(self.path) == found, f"{case}: what was changed afterwards is lost"


def changes(path: Path, before: Callable[[StoreView], None], count: int, volatile_cache: bool = True) -> Written:
    with StoreView(path, volatile_cache=volatile_cache) as store:
        store.open()
        before(store)
        head = read_head(path)
        store.forget_history()
        acknowledged = [(0, store.replicas())]
        for number in range(count):
            if number % 4 == 2:
                assert store.seal(V, number - 1, 30, 20) == 0
            elif number % 4 == 3:
                assert store.remove(V, number - 3) == 0
            else:
                assert store.create(V, number, 64 + number) == 0
            acknowledged.append((len(store.history), store.replicas()))
        return Written(path, head, store.history, acknowledged)


def nothing(store: StoreView) -> None:
    pass


def nearly_full_half(store: StoreView) -> None:
    """Some 70 replicas, so that a snapshot takes several blocks, and room for 4 more blocks in this half."""
    for segment in range(70):
        store.create(W, segment, 64)
    while store.state["journal_next"] < store.state["journal_blocks"] - 4:
        store.create(W, 100, 1)
        if store.state["journal_next"] < store.state["journal_blocks"] - 4:
            store.remove(W, 100)


@pytest.mark.parametrize("before", [nothing, nearly_full_half])
def test_a_power_cut_at_any_time_keeps_every_acknowledged_change(
    tmp_path: Path, before: Callable[[StoreView], None], amount: Amount
) -> None:
    draw = random.Random(1)
    written = changes(formatted(tmp_path / "device"), before, 12)
    for number, (events, sectors) in enumerate(stores.crashes(written.history, draw, 40 if amount.soak else 6)):
        written.check(events, sectors, f"case {number}, after {events} of {len(written.history)} events")


def test_a_kill_at_any_time_keeps_what_was_acknowledged_without_a_volatile_cache(
    tmp_path: Path, amount: Amount
) -> None:
    """Each pair of writes is awaited before the next: at most one pair is in doubt."""
    draw = random.Random(2)
    written = changes(formatted(tmp_path / "device"), nothing, 12, volatile_cache=False)
    awaited: list[Event] = []
    acknowledged = written.acknowledged[:1]
    for (start, _), (events, directory) in itertools.pairwise(written.acknowledged):
        awaited += [*written.history[start:events], ("flush",)]
        acknowledged.append((len(awaited), directory))
    written = Written(written.path, written.head, awaited, acknowledged)
    for number, (events, sectors) in enumerate(stores.crashes(awaited, draw, 40 if amount.soak else 6)):
        written.check(events, sectors, f"case {number}, after {events} of {len(awaited)} events")


@pytest.mark.parametrize("before", [nothing, nearly_full_half])
def test_a_power_cut_in_the_middle_of_many_changes_keeps_them_up_to_one(
    tmp_path: Path, before: Callable[[StoreView], None], amount: Amount
) -> None:
    """Changes that share blocks become durable in the order in which they were asked for."""
    draw = random.Random(5)
    path = formatted(tmp_path / "device")
    with StoreView(path) as store:
        store.open()
        before(store)
        for segment in range(40):
            store.create(V, segment, 64)
        head, start = read_head(path), store.replicas()
        store.forget_history()
        orders: list[Order] = [("seal", V, segment, 20, 0) for segment in range(0, 40, 2)]
        orders += [("remove", V, segment) for segment in range(1, 40, 2)]
        orders += [("create", V, segment, 1) for segment in range(40, 90)]
        draw.shuffle(orders)
        assert store.together(orders) == [0] * len(orders)
        history, end = store.history, store.replicas()
    directories = [start]
    for order in orders:
        key = order[1:3]
        after = {one: replica for one, replica in directories[-1].items() if one != key}
        directories.append(after | {key: end[key]} if key in end else after)
    assert directories[-1] == end
    for number, (events, sectors) in enumerate(stores.crashes(history, draw, 100 if amount.soak else 10)):
        write_at(path, 0, with_sectors(head, sectors))
        assert opened(path) in directories, (
            f"case {number}, after {events} events: not all changes up to one, and none behind"
        )


def test_any_end_of_the_journal_may_be_lost(tmp_path: Path) -> None:
    """As if the device had forgotten everything from one block on: what is left is the directory as it was then."""
    path = formatted(tmp_path / "device")
    after: list[Directory] = []
    with StoreView(path) as store:
        store.open()
        after.append({})
        for number in range(40):
            if number % 3 == 2:
                store.remove(V, number - 1)
            else:
                store.create(V, number, 64)
            assert store.state["journal_next"] == number + 2, "one change is one block here"
            after.append(store.replicas())
    head = read_head(path)
    for kept in range(1, 42):
        image = bytearray(head)
        for copy in range(2):
            image[PLACES.block(copy, 0, kept) : PLACES.block(copy, 1, 0)] = bytes(MEBIBYTE - kept * BLOCK)
        write_at(path, 0, bytes(image))
        assert opened(path) == after[kept - 1], f"blocks 0 to {kept - 1} are left"


# ---------------------------------------------------------------------- damage


@pytest.fixture
def used(tmp_path: Path) -> tuple[Path, bytes, Directory]:
    """A device on its second journal half: a snapshot of several blocks, some changes after it, and the old half still
    there."""
    path = formatted(tmp_path / "device")
    with StoreView(path) as store:
        store.open()
        nearly_full_half(store)
        for segment in range(10):
            assert store.create(V, segment, 64) == 0
        assert store.state["journal_half"] == 1
        assert store.state["journal_generation"] == 2
        return path, read_head(path), store.replicas()


def snapshot_and_changes(path: Path) -> int:
    with StoreView(path) as store:
        store.open()
        return store.state["journal_next"]


def test_a_damaged_range_of_superblocks_or_journal_is_repaired(
    used: tuple[Path, bytes, Directory], amount: Amount
) -> None:
    path, head, directory = used
    draw = random.Random(3)
    blocks = snapshot_and_changes(path)
    ranges = [(0, BLOCK), (TWIN, BLOCK), (0, TWIN), (TWIN, TWIN)]
    ranges += [(PLACES.block(copy, 1, index), BLOCK) for copy in range(2) for index in range(blocks)]
    ranges += [(PLACES.block(copy, half, 0), MEBIBYTE) for copy in range(2) for half in range(2)]
    # Everything between the middle of one half and the middle of the other's mirror.
    ranges += [(PLACES.block(0, 0, 128), 2 * MEBIBYTE)]
    if amount.soak:
        ranges += [(start, 512) for start in range(0, PLACES.end, 512) if any(head[start : start + 512])]
    for offset, length in ranges:
        for name, wrong in damages(head[offset : offset + length], draw):
            case = f"bytes {offset} to {offset + length}: {name}"
            write_at(path, 0, head[:offset] + wrong + head[offset + length :])
            with StoreView(path) as store:
                store.open()
                assert store.replicas() == directory, case
                told = store.repaired
            first = slice(offset, offset + min(BLOCK, length))
            of_the_chosen_half = any(
                PLACES.block(copy, 1, 0) <= offset < PLACES.block(copy, 1, blocks) for copy in range(2)
            )
            if (of_the_chosen_half or offset in (0, TWIN)) and wrong[:BLOCK] != head[first]:
                assert told, f"{case}: restored without a word"
                assert read_head(path)[first] == head[first], f"{case}: not restored"


def test_a_block_that_is_damaged_in_both_copies_is_refused_unless_it_is_the_last(
    used: tuple[Path, bytes, Directory],
) -> None:
    path, head, directory = used
    blocks = snapshot_and_changes(path)
    draw = random.Random(4)
    for index in range(blocks):
        image = bytearray(head)
        for copy in range(2):
            place = PLACES.block(copy, 1, index)
            image[place + draw.randrange(BLOCK)] ^= 1
        write_at(path, 0, bytes(image))
        found = opened(path)
        if (
            index == blocks - 1
        ):  # as a crash in the middle of its two writes would leave it: no one was told of the change
            assert isinstance(found, dict)
            assert set(directory) - set(found) == {(V, 9)}
            continue
        assert isinstance(found, StoreRefused), f"block {index} is lost and the store opened"
        assert found.errno == errno.EUCLEAN
        assert "the journal is damaged" in found.reason
        assert f"block {index} of half 1 is not valid in either copy" in found.reason or "has no end" in found.reason
        assert read_head(path) == bytes(image), "a device that is refused is left as it is"


def test_a_journal_without_any_snapshot_is_refused(used: tuple[Path, bytes, Directory]) -> None:
    path, head, _ = used
    write_at(path, 0, head[:TWIN] + head[TWIN : TWIN + BLOCK] + bytes(PLACES.end - TWIN - BLOCK))
    found = opened(path)
    assert isinstance(found, StoreRefused)
    assert found.errno == errno.EUCLEAN
    assert "neither half has a complete snapshot" in found.reason


def test_two_copies_that_are_valid_and_differ_are_refused(used: tuple[Path, bytes, Directory]) -> None:
    path, head, _ = used
    blocks = snapshot_and_changes(path)
    newest, before = (head[PLACES.block(0, 1, index) :][:BLOCK] for index in (blocks - 1, blocks - 2))
    other = bytearray(before)
    other[40:44] = newest[40:44]  # the index
    write_at(path, PLACES.block(1, 1, blocks - 1), resealed(bytes(other)))
    found = opened(path)
    assert isinstance(found, StoreRefused)
    assert "its two copies are valid and differ" in found.reason


def test_a_block_that_was_written_to_the_wrong_place_is_as_good_as_none(used: tuple[Path, bytes, Directory]) -> None:
    path, head, directory = used
    index = snapshot_and_changes(path) - 4
    misplaced = head[PLACES.block(0, 1, index - 1) :][:BLOCK]
    write_at(path, PLACES.block(0, 1, index), misplaced)
    assert opened(path) == directory
    assert read_head(path) == head, "restored from the mirror"
    for copy in range(2):
        write_at(path, PLACES.block(copy, 1, index), misplaced)
    found = opened(path)
    assert isinstance(found, StoreRefused)
    assert f"block {index} of half 1 is not valid in either copy" in found.reason


def test_what_an_unfinished_snapshot_left_behind_is_no_part_of_the_next(tmp_path: Path) -> None:
    path = formatted(tmp_path / "device")
    left = journal_block([journal_entry([(200, 1)], volume=W)], device=b"d" * 16, generation=2, index=5, kind=1)
    for copy in range(2):
        write_at(path, PLACES.block(copy, 1, 5), left)
    with StoreView(path) as store:
        store.open()
        while store.state["journal_half"] == 0:
            assert store.create(V, 1) == 0
            assert store.remove(V, 1) == 0
        for segment in range(10):
            found = opened(path)
            assert found == store.replicas()
            assert store.create(V, 10 + segment, 64) == 0
        assert opened(path) == store.replicas()


def test_blocks_of_another_device_are_not_part_of_the_journal(tmp_path: Path) -> None:
    """Left behind by an earlier life of the device: valid in themselves, and of another identity."""
    path = formatted(tmp_path / "device")
    other = formatted(tmp_path / "other")
    with StoreView(other) as store:
        store.format(device=b"o" * 16)
    with StoreView(other) as store:
        store.open()
        for segment in range(10):
            store.create(V, segment, 64)
    strange = read_head(other)
    for copy in range(2):
        place = PLACES.block(copy, 0, 1)
        write_at(path, place, strange[place : place + 10 * BLOCK])
    assert opened(path) == {}


def test_a_journal_that_an_enemy_wrote_opens_or_is_refused_with_a_reason(
    used: tuple[Path, bytes, Directory], amount: Amount
) -> None:
    """Any fields wrong, under right checksums, alike in both copies: nothing is taken on trust."""
    path, head, _ = used
    blocks = snapshot_and_changes(path)
    draw = random.Random(6)
    reasons = set()
    for _ in range(20000 if amount.soak else 400):
        image = bytearray(head)
        for _ in range(draw.randint(1, 3)):
            index = draw.choice([*range(blocks), blocks, 255])
            place = PLACES.block(0, 1, index)
            source = place if draw.random() < 0.9 else PLACES.block(0, 1, draw.randrange(blocks))
            block = image[source : source + BLOCK]
            for _ in range(draw.randint(0, 3)):
                at = draw.choice([draw.randrange(12, 64), draw.randrange(64, 64 + 400)])
                block[at] = draw.choice([0, 1, 2, 3, 0x40, 0x80, 0xFF, block[at] ^ 1 << draw.randrange(8)])
            if draw.random() < 0.5:
                block[40:44] = index.to_bytes(4, "little")
            for copy in range(2):
                image[PLACES.block(copy, 1, index) : PLACES.block(copy, 1, index) + BLOCK] = resealed(bytes(block))
        write_at(path, 0, bytes(image))
        found = opened(path)
        if isinstance(found, StoreRefused):
            assert found.errno in (errno.EUCLEAN, errno.EPROTONOSUPPORT)
            reasons.add(found.reason.split(": ")[-1])
        else:
            slabs = [
                slab
                for *_, extents in found.values()
                for first, count in extents
                for slab in range(first, first + count)
            ]
            assert len(slabs) == len(set(slabs))
            assert all(slab < 239 for slab in slabs)
    assert len(reasons) > 5, reasons
