"""A block of a compacted segment is found where it lies, or not at all, however few bitmaps fit into memory."""

import errno
import random
from collections.abc import Collection
from pathlib import Path

import pytest

from iomesh.engine.views.store import StoreView
from support.amount import Amount
from support.segments import FOOTER_BLOCKS, block_of, fill
from support.stores import BLOCK, V, formatted, write_at


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return formatted(tmp_path / "device")


def compacted(store: StoreView, path: Path, segment: int, blocks: int, live: Collection[int]) -> set[int]:
    """Returns what lives in it, its footer included."""
    kept = set(live) | set(range(blocks - FOOTER_BLOCKS, blocks))
    fill(store, path, segment, blocks)
    assert store.compact(V, segment, kept) == 0
    return kept


def expected(segment: int, live: Collection[int], blocks: range) -> list[bytes | int]:
    return [block_of(segment, number) if number in live else errno.ENODATA for number in blocks]


def naive_run(live: Collection[int], block: int, most: int) -> int:
    count = 0
    while count < most and block + count in live:
        count += 1
    return count


def test_live_blocks_are_data_and_dead_ones_an_error(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        live = compacted(store, device, 1, 1000, range(0, 1000, 3))
        assert store.read(V, [1], 0, 1000) == [expected(1, live, range(1000))]
        behind = [errno.ENODATA] * 2
        assert store.read(V, [1], 998, 4) == [[block_of(1, 998), block_of(1, 999), *behind]], (
            "nothing is behind its end"
        )
        assert store.bitmap_cache == {"frames": 16, "hits": store.bitmap_cache["hits"], "misses": 1, "errors": 0}


def test_a_segment_that_is_not_compacted_needs_no_bitmap(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        fill(store, device, 1, 300)
        assert store.read(V, [1], 0, 300) == [[block_of(1, number) for number in range(300)]]
        assert store.read(V, [1], 320, 1) == [[errno.ENODATA]], "no slab holds it"
        assert store.bitmap_cache["misses"] == 0


def test_any_pattern_is_found_as_a_naive_count_finds_it(device: Path, amount: Amount) -> None:
    """Runs of random lengths, dense and sparse, in as many pieces of the device as there are."""
    draw = random.Random(1)
    with StoreView(device) as store:
        store.open()
        for segment in range(40):
            assert store.create(V, 1000 + segment, 64) == 0
        for segment in range(0, 40, 2):
            assert store.remove(V, 1000 + segment) == 0
        for segment in range(200 if amount.soak else 20):
            blocks = draw.choice([5, 63, 64, 65, 128, 1500, 4000])
            live: set[int] = set()
            at = 0
            mean = draw.choice([1, 2, 20, 100, 1000])
            while at < blocks:
                length = draw.randint(1, 2 * mean)
                if draw.random() < 0.5:
                    live |= set(range(at, min(at + length, blocks)))
                at += length
            live = compacted(store, device, segment, blocks, live)
            assert store.read(V, [segment], 0, blocks) == [expected(segment, live, range(blocks))], f"segment {segment}"
            extents = store.replicas()[V, segment][3]
            for number in sorted(live):
                run = store.run_of(V, segment, number)
                rank = 1 + sum(one < number for one in live) if blocks < 200 else None
                assert 1 <= run <= naive_run(live, number, 256), (
                    f"block {number} of segment {segment}: contiguous in the segment"
                )
                if len(extents) == 1:
                    assert run == naive_run(live, number, 256), f"block {number} of segment {segment}"
                if rank is not None:
                    place = store.place(V, segment, rank)
                    assert place is not None
                    assert run <= place[1], "contiguous on the device"
            assert store.remove(V, segment) == 0


def test_more_segments_than_bitmaps_fit_are_read_at_once(device: Path) -> None:
    """40 readers, 16 frames: whoever waits for a bitmap finds it when woken."""
    with StoreView(device) as store:
        store.open()
        live = {
            segment: compacted(store, device, segment, 70, range(segment % 5, 60, 1 + segment % 4))
            for segment in range(40)
        }
        for _ in range(3):
            assert store.read(V, range(40), 0, 70) == [
                expected(segment, live[segment], range(70)) for segment in range(40)
            ]
        assert store.bitmap_cache["misses"] >= 3 * 40 - 16 * 3
        assert store.bitmap_cache["errors"] == 0


def test_a_segment_that_is_compacted_again_is_read_by_its_new_bitmap(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        live = compacted(store, device, 1, 500, range(0, 500, 2))
        assert store.read(V, [1], 0, 500) == [expected(1, live, range(500))]
        fewer = {number for number in live if number % 4 == 0 or number >= 496}
        assert store.compact(V, 1, fewer) == 0
        compacted(store, device, 2, 500, range(100))  # in the slabs that were released, perhaps
        assert store.read(V, [1], 0, 500) == [expected(1, fewer, range(500))]
        assert store.bitmap_cache["misses"] == 2


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("how", ["unreadable", "damaged"])
def test_one_bitmap_of_the_two_is_enough(device: Path, copy: int, how: str) -> None:
    with StoreView(device) as store:
        store.open()
        live = compacted(store, device, 1, 500, range(0, 500, 2))
        place = store.place(V, 1, 1 + len(live) if copy else 0)
        assert place is not None
        if how == "unreadable":
            store.break_range(place[0], BLOCK)
        else:
            write_at(device, place[0] + 200, b"?")
        assert store.read(V, [1], 0, 500) == [expected(1, live, range(500))]
        assert store.bitmap_cache["errors"] == 0


def test_without_a_bitmap_nothing_is_data_and_others_are_read(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        live = {segment: compacted(store, device, segment, 200, range(0, 200, 2)) for segment in (1, 2)}
        for number in (0, 1 + len(live[1])):
            place = store.place(V, 1, number)
            assert place is not None
            write_at(device, place[0], bytes(BLOCK))
        first, second = store.read(V, [1, 2], 0, 200)
        assert first == [errno.EUCLEAN] * 200
        assert second == expected(2, live[2], range(200))
        assert store.bitmap_cache["errors"] == 200, "asked again each time: it may have been the cable"


def test_a_bitmap_of_another_segment_is_not_used(device: Path) -> None:
    """Valid in itself, with as many live blocks, and written to the wrong place."""
    with StoreView(device) as store:
        store.open()
        live = {segment: compacted(store, device, segment, 200, range(segment, 190, 2)) for segment in (1, 2)}
        places = {
            (segment, number): store.place(V, segment, number)
            for segment in (1, 2)
            for number in (0, 1 + len(live[segment]))
        }
        other = places[2, 0]
        assert other is not None
        with device.open("rb") as file:
            file.seek(other[0])
            strange = file.read(BLOCK)
        for (segment, _), place in places.items():
            assert place is not None
            if segment == 1:
                write_at(device, place[0], strange)
        assert set(store.read(V, [1], 0, 200)[0]) == {errno.EUCLEAN}
