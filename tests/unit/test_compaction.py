"""Compaction keeps live blocks under their addresses, whatever interrupts it; the rest is gone and its space free."""

import errno
import random
from collections.abc import Collection
from pathlib import Path

import pytest

from iomesh.engine.format.structures import read_bitmap, read_footer, read_superblock
from iomesh.engine.views.store import StoreRefused, StoreView
from support import stores
from support.amount import Amount
from support.forged import DATA, RECORD, entry, resealed
from support.forged import footer as forged_footer
from support.segments import FOOTER_BLOCKS, block_of
from support.segments import fill as fill_blocks
from support.stores import (
    BLOCK,
    MEBIBYTE,
    SMALLEST,
    TWIN,
    Directory,
    V,
    W,
    formatted,
    new_device,
    opened,
    read_head,
    write_at,
)

BLOCKS = 1000
FOOTER = BLOCKS - FOOTER_BLOCKS
KEPT = set(range(FOOTER, BLOCKS))  # a footer and its table always


def fill(store: StoreView, path: Path, segment: int, blocks: int = BLOCKS) -> None:
    fill_blocks(store, path, segment, blocks)


def at(store: StoreView, path: Path, segment: int, number: int) -> bytes:
    """The n-th block of a replica's slabs."""
    place = store.place(V, segment, number)
    assert place is not None
    with path.open("rb") as file:
        file.seek(place[0])
        return file.read(BLOCK)


def assert_holds(store: StoreView, path: Path, segment: int, live: Collection[int]) -> None:
    """By docs/formats.md, with nothing of the engine but its word on where the slabs are."""
    bitmap = at(store, path, segment, 0)
    found = read_bitmap(bitmap)
    assert found["valid"], found["fault"]
    assert found["live_blocks"] == sorted(live)
    assert at(store, path, segment, 1 + len(live)) == bitmap, "the bitmap's second copy"
    for rank, number in enumerate(sorted(live)):
        assert at(store, path, segment, 1 + rank) == block_of(segment, number), f"block {number} of segment {segment}"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return formatted(tmp_path / "device")


PATTERNS = {
    "every third": set(range(0, BLOCKS, 3)) | KEPT,
    "one and the footer": {500} | KEPT,
    "only the footer": KEPT,
    "all": set(range(BLOCKS)),
    "the first half": set(range(500)) | KEPT,
    "words and their edges": {0, 1, 63, 64, 127, 128, 191, *range(256, 320), 383} | KEPT,
    "gaps that are read over and gaps that are not": {0, 30, 62, 63, 100, 101, 400, 433, 434} | KEPT,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_lives_is_there_and_the_rest_is_free(device: Path, pattern: str) -> None:
    live = PATTERNS[pattern]
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        free = store.state["free"] + 16
        assert store.compact(V, 1, live) == 0
        state, blocks, footer_block, extents = store.replicas()[V, 1]
        assert (state, blocks, footer_block) == ("compacted", BLOCKS, FOOTER), "what its log says of it stays"
        assert sum(count for _, count in extents) == (len(live) + 2 + 63) // 64
        assert store.state["free"] == free - (len(live) + 2 + 63) // 64
        assert_holds(store, device, 1, live)
        directory = store.replicas()
    with StoreView(device) as store:
        store.open()
        assert store.replicas() == directory
        assert store.repaired == []
        assert_holds(store, device, 1, live)


def test_random_patterns_in_scattered_slabs_again_and_again(device: Path, amount: Amount) -> None:
    """Each is compacted in several steps, as its blocks die, among others that come and go."""
    draw = random.Random(1)
    live: dict[int, set[int]] = {}
    with StoreView(device) as store:
        store.open()
        for segment in range(300 if amount.soak else 25):
            blocks = draw.randint(5, 1500)
            if store.has_room(blocks):
                fill(store, device, segment, blocks)
                live[segment] = set(range(blocks))
            for _ in range(2):
                chosen = draw.choice(list(live))
                footer = set(range(max(live[chosen]) + 1 - len(KEPT), max(live[chosen]) + 1))
                dying = draw.random() ** 2
                live[chosen] = {number for number in live[chosen] if draw.random() > dying} | footer
                assert store.compact(V, chosen, live[chosen]) == 0
                assert_holds(store, device, chosen, live[chosen])
            if draw.random() < 0.4:
                chosen = draw.choice(list(live))
                assert store.remove(V, chosen) == 0
                del live[chosen]
        for segment, blocks_there in live.items():
            if store.replicas()[V, segment][0] == "compacted":
                assert_holds(store, device, segment, blocks_there)
        taken = sum(count for *_, extents in store.replicas().values() for _, count in extents)
        assert store.state["free"] == store.state["slabs"] - taken
        directory = store.replicas()
    assert opened(device) == directory


@pytest.mark.parametrize("twice", [False, True], ids=["at once", "in two steps"])
def test_the_footer_of_a_copy_lists_what_it_has(device: Path, twice: bool) -> None:
    live, footer = {1, 2, 501, *range(601, 900, 4)}, BLOCKS - 5
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        assert store.seal(V, 1, BLOCKS, footer) == 0
        place = store.place(V, 1, footer)
        assert place is not None
        write_at(device, place[0], log_footer(footer))
        for kept in [live | {3, *range(5, 900, 4)}, live] if twice else [live]:
            assert store.compact(V, 1, kept) == 0
        data = at(store, device, 1, 1 + len(live)) + at(store, device, 1, 2 + len(live))
        assert len(read_bitmap(at(store, device, 1, 0))["live_blocks"]) == len(live) + 2
    found = read_footer(data)
    assert found["valid"], found["fault"]
    assert (found["brief"], found["block"], found["first_sequence"], found["table_blocks"]) == (1, footer, 1, 1)
    assert [(one["block"], one["position"], one["crc"]) for one in found["entries"]] == [
        (block, 7 * block, block) for block in sorted(live)
    ]


def log_footer(end: int) -> bytes:
    """Of records of four blocks up to the footer: a header and three of data."""
    table: list[bytes] = []
    for first in range(0, end, 4):
        blocks = range(first + 1, min(first + 4, end))
        table += [entry(RECORD, 1 + first, len(blocks)), *(entry(DATA, 7 * block, crc=block) for block in blocks)]
    return forged_footer(table, volume=V, segment=1)


def test_a_block_that_an_earlier_compaction_left_out_cannot_be_kept(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        assert store.compact(V, 1, {1, 2, 3} | KEPT) == 0
        before, free = store.replicas(), store.state["free"]
        assert store.compact(V, 1, {1, 4} | KEPT) == errno.EUCLEAN
        assert (store.replicas(), store.state["free"]) == (before, free)
        assert_holds(store, device, 1, {1, 2, 3} | KEPT)


def test_the_old_copy_stays_until_it_is_retired(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        old = store.place(V, 1, 0)
        free = store.state["free"]
        assert old is not None
        assert store.compact(V, 1, {7} | KEPT, retire=False) == 0
        assert store.state["free"] == free - 1
        for segment in range(2, 5):
            fill(store, device, segment)
        with device.open("rb") as file:
            file.seek(old[0])
            assert file.read(BLOCK) == block_of(1, 0)
        store.retire()
        assert store.state["free"] == free - 1 + 16 - 3 * 16
        assert store.remove(V, 1) == 0
        assert store.state["free"] == store.state["slabs"] - 3 * 16


def test_several_at_once_wait_for_each_other(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        for segment in range(4):
            fill(store, device, segment)
        live = [set(range(segment, BLOCKS, 5)) | KEPT for segment in range(4)]
        assert store.together([("compact", V, segment, live[segment]) for segment in range(4)]) == [0] * 4
        store.retire()
        for segment in range(4):
            assert_holds(store, device, segment, live[segment])


# ---------------------------------------------------------------------- programs that do not know it


def test_the_first_compaction_marks_the_device_for_programs_that_do_not_know_it(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        assert read_superblock(read_head(device)[:BLOCK])["features"] == 0
        assert store.compact(V, 1, KEPT) == 0
    head = read_head(device)
    assert head[:BLOCK] == head[TWIN : TWIN + BLOCK]
    assert (read_superblock(head[:BLOCK])["features"], read_superblock(head[:BLOCK])["generation"]) == (1, 2)
    with StoreView(device) as store:
        store.open()
        fill(store, device, 2)
        assert store.compact(V, 2, KEPT) == 0
    assert read_head(device)[:BLOCK] == head[:BLOCK], "once is enough"


# ---------------------------------------------------------------------- what goes wrong


def test_a_device_with_too_little_room_stays_as_it_is(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1, 64 * 100)
        segment = 2
        while store.create(V, segment, 64, urgent=True) == 0:
            segment += 1
        for gone in range(2, 2 + store.state["reserve"] // 2 + 2):
            assert store.remove(V, gone) == 0
        before, free = store.replicas(), store.state["free"]
        live = set(range(64 * 2)) | set(range(6396, 6400))
        assert store.compact(V, 1, live) == errno.ENOSPC, "3 slabs, and half of the reserve is not its own"
        assert (store.replicas(), store.state["free"]) == (before, free)
        assert store.compact(V, 1, set(range(100)) | set(range(6396, 6400))) == 0
        assert_holds(store, device, 1, set(range(100)) | set(range(6396, 6400)))


@pytest.mark.parametrize("writes", range(12))
def test_a_write_that_fails_leaves_the_old_copy(device: Path, writes: int) -> None:
    """Two of data, two of superblocks, two of the journal; flushes count too, but only when nothing is left."""
    live = set(range(0, BLOCKS, 2)) | KEPT
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        before, free = store.replicas(), store.state["free"]
        store.fail_writes(after=writes)
        error = store.compact(V, 1, live)
        store.fail_writes(after=-1)
        if error:
            assert error == errno.EIO
            assert store.replicas() == before
            assert at(store, device, 1, 77) == block_of(1, 77)
            if not store.state["failed"]:
                assert store.state["free"] == free
                assert store.compact(V, 1, live) == 0
                assert_holds(store, device, 1, live)
        else:
            assert_holds(store, device, 1, live)
    with StoreView(device) as store:
        store.open()
        if store.replicas()[V, 1][0] == "compacted":
            assert_holds(store, device, 1, live)
        else:
            assert at(store, device, 1, 77) == block_of(1, 77)


def test_a_bad_sector_among_the_dead_does_not_keep_the_living(device: Path) -> None:
    live = set(range(0, BLOCKS, 2)) | KEPT
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        place = store.place(V, 1, 333)
        assert place is not None
        store.break_range(place[0], BLOCK)
        assert store.compact(V, 1, live | {333}) == errno.EIO
        assert store.replicas()[V, 1][0] == "sealed"
        assert store.compact(V, 1, live) == 0
        assert_holds(store, device, 1, live)


@pytest.mark.parametrize("steps", range(5))
def test_work_that_its_pace_gives_up_is_as_if_it_had_not_begun(device: Path, steps: int) -> None:
    live = set(range(0, BLOCKS, 2)) | KEPT
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        before, free = store.replicas(), store.state["free"]
        assert store.compact(V, 1, live, give_up_after=steps) == errno.ECANCELED
        assert (store.replicas(), store.state["free"]) == (before, free)
        assert store.compact(V, 1, live, give_up_after=100) == 0
        assert_holds(store, device, 1, live)


@pytest.mark.parametrize("copy", [0, 1])
def test_a_replica_is_compacted_again_from_whichever_bitmap_is_whole(device: Path, copy: int) -> None:
    live = set(range(0, BLOCKS, 2)) | KEPT
    fewer = set(range(0, BLOCKS, 6)) | KEPT
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        assert store.compact(V, 1, live) == 0
        places = [store.place(V, 1, number) for number in (0, 1 + len(live))]
        bitmap = at(store, device, 1, 0)
        for place, broken in zip(places, (copy == 0, copy == 1), strict=True):
            assert place is not None
            if broken:
                wrong = bytearray(bitmap)
                wrong[100] ^= 1
                # Valid in itself even, but for its counts, and not what the journal means.
                write_at(device, place[0], resealed(bytes(wrong)))
        assert store.compact(V, 1, fewer) == 0
        assert_holds(store, device, 1, fewer)


def test_without_any_whole_bitmap_it_is_damaged_and_stays(device: Path) -> None:
    live = set(range(0, BLOCKS, 2)) | KEPT
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1)
        assert store.compact(V, 1, live) == 0
        for number in (0, 1 + len(live)):
            place = store.place(V, 1, number)
            assert place is not None
            write_at(device, place[0], bytes(BLOCK))
        before, free = store.replicas(), store.state["free"]
        assert store.compact(V, 1, KEPT) == errno.EUCLEAN
        assert (store.replicas(), store.state["free"]) == (before, free)


# ---------------------------------------------------------------------- crashes


def image_of(path: Path) -> bytes:
    return path.read_bytes()


def assert_one_of_both(path: Path, before: Directory, after: Directory, live: set[int], case: str) -> bool:
    with StoreView(path) as store:
        store.open()
        found = store.replicas()
        assert found in (before, after), f"{case}: neither the old nor the new"
        taken = sum(count for *_, extents in found.values() for _, count in extents)
        assert store.state["free"] == store.state["slabs"] - taken, f"{case}: the slabs of the other are free"
        if found[V, 1][0] == "compacted":
            assert_holds(store, path, 1, live)
        else:
            assert [at(store, path, 1, number) for number in range(0, 200, 7)] == [
                block_of(1, number) for number in range(0, 200, 7)
            ], case
        assert store.create(W, 999, 1) == 0
    return found == after


@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("full_half", [False, True], ids=["", "journal switches"])
def test_a_power_cut_at_any_time_leaves_the_old_or_the_new_whole(
    tmp_path: Path, again: bool, full_half: bool, amount: Amount
) -> None:
    path = new_device(tmp_path / "device", SMALLEST)
    live = set(range(0, 200, 3)) | set(range(196, 200))
    with StoreView(path) as store:
        store.format()
    with StoreView(path) as store:
        store.open()
        fill(store, path, 1, 200)
        if again:
            assert store.compact(V, 1, range(200)) == 0
            live = {number for number in live if number % 2} | set(range(196, 200))
        while full_half and store.state["journal_next"] < store.state["journal_blocks"]:
            assert store.create(W, 100, 1) == 0
            assert store.remove(W, 100) == 0
        head, before = image_of(path), store.replicas()
        if again:
            assert before[V, 1][0] == "compacted"
        store.forget_history()
        assert store.compact(V, 1, live, retire=False) == 0
        history, after = store.history, store.replicas()
    draw = random.Random(3)
    outcomes = []
    for number, (events, sectors) in enumerate(stores.crashes(history, draw, 30 if amount.soak else 3)):
        write_at(path, 0, stores.with_sectors(head, sectors))
        case = f"case {number}, after {events} of {len(history)} events"
        if again:  # the old one is compacted too: which it is tells the directory alone
            found = opened(path)
            assert not isinstance(found, StoreRefused), f"{case}: {found}"
            assert found in (before, after), case
            with StoreView(path) as store:
                store.open()
                assert_holds(store, path, 1, live if found == after else range(200))
            outcomes.append(found == after)
        else:
            outcomes.append(assert_one_of_both(path, before, after, live, case))
    assert set(outcomes) == {False, True}
    assert outcomes[-1], "once it was acknowledged it is the new one"
    assert len(head) == SMALLEST == 64 * MEBIBYTE
