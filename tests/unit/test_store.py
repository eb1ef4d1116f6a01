"""The segment store: durable state is there after a reopen, and a bad device is refused with a reason."""

import errno
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from iomesh.engine.format.structures import read_journal_block, read_superblock
from iomesh.engine.views.store import StoreRefused, StoreView
from support import forged
from support.stores import (
    BLOCK,
    JOURNAL,
    MEBIBYTE,
    PLACES,
    SMALLEST,
    TWIN,
    Directory,
    Order,
    V,
    W,
    formatted,
    new_device,
    opened,
    read_head,
    write_at,
)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return formatted(tmp_path / "device")


@pytest.fixture
def store(device: Path) -> Iterator[StoreView]:
    with StoreView(device) as store:
        store.open()
        yield store


def refusal(path: Path, **how: object) -> StoreRefused:
    with StoreView(path) as store, pytest.raises(StoreRefused) as refused:
        store.open(**how)  # type: ignore[arg-type]
    return refused.value


# ---------------------------------------------------------------------- formatting


def test_a_formatted_device_opens_empty(store: StoreView) -> None:
    assert store.replicas() == {}
    assert store.repaired == []
    assert store.state["free"] == store.state["slabs"] == 239


def test_both_superblocks_are_equal_and_as_requested(tmp_path: Path) -> None:
    path = new_device(tmp_path / "device", 100 * MEBIBYTE + 4096)
    with StoreView(path) as store:
        store.format(cluster=b"C" * 16, device=b"D" * 16, tier=3, label="the slow one", created_ns=5)
    head = read_head(path)
    assert head[:BLOCK] == head[TWIN : TWIN + BLOCK]
    fields = read_superblock(head[:BLOCK])
    assert fields["valid"]
    assert (fields["cluster"], fields["device"], fields["tier"], fields["label"]) == (
        b"C" * 16,
        b"D" * 16,
        3,
        "the slow one",
    )
    assert (fields["device_bytes"], fields["created_ns"], fields["generation"]) == (100 * MEBIBYTE + 4096, 5, 1)
    assert fields["slabs_offset"] + (fields["slabs"] + 1) * (256 << 10) > fields["device_bytes"]


@pytest.mark.parametrize(
    ("size", "journal_bytes"),
    [
        (SMALLEST, MEBIBYTE),
        (64 << 30, MEBIBYTE),
        ((64 << 30) + (16 << 30), MEBIBYTE + (256 << 10)),
        (4 << 40, 64 << 20),
    ],
)
def test_the_journal_grows_with_the_device(tmp_path: Path, size: int, journal_bytes: int) -> None:
    path = new_device(tmp_path / "device", size)
    with StoreView(path) as store:
        store.format()
    with StoreView(path) as store:
        store.open()
        assert store.state["journal_blocks"] * BLOCK == journal_bytes
        assert store.create(V, 1) == 0
    assert (V, 1) in opened(path)  # type: ignore[operator]


def test_a_device_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with (
        StoreView(new_device(tmp_path / "device", SMALLEST - BLOCK)) as store,
        pytest.raises(StoreRefused, match="too small"),
    ):
        store.format()


def test_formatting_again_forgets_everything(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        for segment in range(300):
            store.create(V, segment, 1)
            store.remove(V, segment)
        store.create(V, 1)
    with StoreView(device) as store:
        store.format()
    assert opened(device) == {}


@pytest.mark.parametrize("writes", range(9))
def test_formatting_that_was_cut_short_leaves_nothing_that_opens_or_all(device: Path, writes: int) -> None:
    """It takes 4 writes for the journal, 2 for its first block, 2 before and 2 after for the superblocks."""
    with StoreView(device) as store:
        store.open()
        store.create(V, 1)
    with StoreView(device) as store:
        store.fail_writes(after=writes)
        with pytest.raises(StoreRefused, match="cannot be formatted"):
            store.format()
    found = opened(device)
    if writes <= 1:  # the twin is still the old one, and so is the journal
        assert isinstance(found, dict)
        assert list(found) == [(V, 1)]
    else:
        assert isinstance(found, StoreRefused)
        assert found.errno == errno.EMEDIUMTYPE


# ---------------------------------------------------------------------- whose device it is


def test_a_device_that_holds_nothing_of_ours_is_not_touched(tmp_path: Path) -> None:
    path = new_device(tmp_path / "device")
    write_at(path, 0, b"a filesystem, perhaps")
    before = read_head(path)
    refused = refusal(path)
    assert refused.errno == errno.EMEDIUMTYPE
    assert "not an iomesh device" in refused.reason
    assert read_head(path) == before


def test_a_device_of_another_cluster_is_not_touched_even_if_it_could_be_repaired(device: Path) -> None:
    write_at(device, TWIN, bytes(BLOCK))
    write_at(device, PLACES.block(1, 0, 0), bytes(BLOCK))
    before = read_head(device)
    refused = refusal(device, cluster=b"x" * 16)
    assert refused.errno == errno.EMEDIUMTYPE
    assert "another cluster" in refused.reason
    assert read_head(device) == before
    with StoreView(device) as store:
        store.open(b"c" * 16)


@pytest.mark.parametrize("offset", [0, TWIN])
def test_a_device_of_a_newer_format_is_not_touched(device: Path, offset: int) -> None:
    newer = bytearray(read_head(device)[:BLOCK])
    newer[12] = 2
    write_at(device, offset, forged.resealed(bytes(newer)))
    before = read_head(device)
    refused = refusal(device)
    assert refused.errno == errno.EPROTONOSUPPORT
    assert "format version 2" in refused.reason
    assert read_head(device) == before


def test_a_device_that_needs_unknown_features_is_not_touched(device: Path) -> None:
    newer = bytearray(read_head(device)[:BLOCK])
    newer[104] = 4
    write_at(device, 0, forged.resealed(bytes(newer)))
    refused = refusal(device)
    assert refused.errno == errno.EPROTONOSUPPORT
    assert "features 0x4" in refused.reason


def test_a_device_that_was_cut_short_is_refused(device: Path) -> None:
    with device.open("r+b") as file:
        file.truncate(SMALLEST - MEBIBYTE)
    refused = refusal(device)
    assert refused.errno == errno.EUCLEAN
    assert str(SMALLEST) in refused.reason
    assert str(SMALLEST - MEBIBYTE) in refused.reason


def test_a_device_that_grew_opens(device: Path) -> None:
    with device.open("r+b") as file:
        file.truncate(2 * SMALLEST)
    assert opened(device) == {}


# ---------------------------------------------------------------------- superblocks


@pytest.mark.parametrize(("offset", "name"), [(0, "first superblock"), (TWIN, "second superblock")])
def test_a_superblock_is_restored_from_its_twin(device: Path, offset: int, name: str) -> None:
    before = read_head(device)
    write_at(device, offset, bytes(BLOCK))
    with StoreView(device) as store:
        store.open()
        assert len(store.repaired) == 1
        assert name in store.repaired[0]
    assert read_head(device) == before
    with StoreView(device) as store:
        store.open()
        assert store.repaired == []


def test_of_two_valid_superblocks_the_later_generation_counts(device: Path) -> None:
    later = bytearray(read_head(device)[:BLOCK])
    later[48] = 2
    later[120:125] = b"later"
    write_at(device, TWIN, forged.resealed(bytes(later)))
    with StoreView(device) as store:
        store.open()
        assert "first superblock" in store.repaired[0]
    assert read_superblock(read_head(device)[:BLOCK])["label"] == "later"


def test_two_superblocks_of_one_generation_that_differ_are_refused(device: Path) -> None:
    other = bytearray(read_head(device)[:BLOCK])
    other[120:125] = b"other"
    write_at(device, TWIN, forged.resealed(bytes(other)))
    assert "differ" in refusal(device).reason


def test_both_superblocks_damaged_are_refused(device: Path) -> None:
    write_at(device, 100, b"xxxx")
    write_at(device, TWIN + 200, b"xxxx")
    refused = refusal(device)
    assert refused.errno == errno.EUCLEAN
    assert "both superblocks are damaged: its checksum does not match" in refused.reason


def test_an_unreadable_superblock_is_reported_and_the_other_is_used(device: Path) -> None:
    with StoreView(device) as store:
        store.break_range(0, BLOCK)
        store.open()
        assert "cannot be rewritten" in store.repaired[0]


def test_superblocks_that_cannot_be_read_are_an_error_of_the_device(device: Path) -> None:
    with StoreView(device) as store:
        store.break_range(0, TWIN + BLOCK)
        with pytest.raises(StoreRefused, match="neither superblock can be read") as refused:
            store.open()
        assert refused.value.errno == errno.EIO


# ---------------------------------------------------------------------- replicas


def test_what_was_created_sealed_and_removed_is_so_when_it_opens_again(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        assert store.create(V, 1, 256) == 0
        assert store.create(V, 2, 256) == 0
        assert store.create(W, 1, 100) == 0
        assert store.create(V, 3, 64) == 0
        assert store.seal(V, 2, 200, 190) == 0
        assert store.remove(V, 3) == 0
        before = store.replicas()
        assert store.state["replicas"] == 3
    assert before == {
        (V, 1): ("open", 256, 0, [(0, 4)]),
        (V, 2): ("sealed", 200, 190, [(4, 4)]),
        (W, 1): ("open", 100, 0, [(8, 2)]),
    }
    with StoreView(device) as store:
        store.open()
        assert store.replicas() == before
        assert store.replicas(W) == {(W, 1): before[W, 1]}
        assert store.state["replicas"] == 3
        assert store.state["free"] == 239 - 10


def test_a_block_lies_where_its_slab_does(store: StoreView) -> None:
    slabs_offset = PLACES.end
    store.create(V, 1, 64)
    store.create(V, 2, 64)
    store.create(V, 3, 64)
    store.remove(V, 1)
    store.remove(V, 3)
    assert store.create(V, 4, 238 * 64, urgent=True) == 0  # all there is: around what segment 2 holds
    assert store.replicas()[V, 4][3] == [(2, 237), (0, 1)]
    assert store.place(V, 4, 0) == (slabs_offset + 2 * (256 << 10), 237 * 64)
    assert store.place(V, 4, 237 * 64 - 1) == (slabs_offset + 239 * (256 << 10) - BLOCK, 1)
    assert store.place(V, 4, 237 * 64 + 3) == (slabs_offset + 3 * BLOCK, 61)


def test_sealing_frees_the_slabs_behind_the_end(store: StoreView) -> None:
    store.create(V, 1, 256)
    assert store.seal(V, 1, 65) == 0
    assert store.replicas()[V, 1] == ("sealed", 65, 0, [(0, 2)])
    assert store.state["free"] == 239 - 2
    store.create(V, 2, 256)
    assert store.seal(V, 2, 0) == 0
    assert store.replicas()[V, 2] == ("sealed", 0, 0, [])
    assert store.state["free"] == 239 - 2


def test_what_is_sealed_can_be_sealed_again_shorter(store: StoreView) -> None:
    store.create(V, 1, 256)
    assert store.seal(V, 1, 200, 190) == 0
    assert store.seal(V, 1, 70, 69) == 0
    assert store.replicas()[V, 1] == ("sealed", 70, 69, [(0, 2)])
    assert store.state["free"] == 239 - 2


def test_sealing_a_replica_of_several_extents_keeps_its_beginning(store: StoreView) -> None:
    for segment in range(8):
        store.create(V, segment, 64)
    for segment in range(0, 8, 2):
        store.remove(V, segment)
    whole = store.state["free"]
    assert store.create(W, 1, 235 * 64, urgent=True) == 0
    extents = store.replicas()[W, 1][3]
    assert extents[0] == (8, 231)
    assert len(extents) == 5
    blocks = (extents[0][1] + 1) * 64 - 5
    assert store.seal(W, 1, blocks, blocks - 3) == 0
    assert store.replicas()[W, 1] == ("sealed", blocks, blocks - 3, [extents[0], (extents[1][0], 1)])
    assert store.state["free"] == whole - extents[0][1] - 1


def test_a_segment_is_there_once(store: StoreView) -> None:
    assert store.create(V, 1) == 0
    assert store.create(V, 1) == errno.EEXIST
    assert store.together([("create", V, 2, 64), ("create", V, 2, 64)]) == [0, errno.EEXIST]
    assert store.state["free"] == 239 - 4 - 1


def test_concurrent_changes_share_blocks_of_the_journal(store: StoreView) -> None:
    store.forget_history()
    assert store.together([("create", V, segment, 64) for segment in range(50)]) == [0] * 50
    writes = [event for event in store.history if event[0] == "write"]
    assert len(writes) == 4, "the first has a block of its own, the other 49 share the next; each is written twice"
    assert len(store.history) - len(writes) == 2, "each block is flushed"


def test_a_device_without_a_volatile_cache_is_not_flushed(device: Path) -> None:
    with StoreView(device, volatile_cache=False) as store:
        store.open()
        store.create(V, 1)
        assert {event[0] for event in store.history} == {"write"}


def test_no_two_replicas_ever_share_a_slab(device: Path) -> None:
    draw = random.Random(1)
    model: Directory = {}
    for _ in range(4):
        with StoreView(device) as store:
            store.open()
            assert store.replicas() == model
            for _ in range(100):
                orders: list[Order] = []
                for segment in draw.sample(range(60), draw.randint(1, 12)):
                    if (V, segment) not in model:
                        orders.append(("create", V, segment, draw.randint(1, 500)))
                    elif model[V, segment][0] == "open" and draw.random() < 0.5:
                        blocks = draw.randint(0, model[V, segment][1])
                        orders.append(("seal", V, segment, blocks, draw.randrange(blocks) if blocks else 0))
                    else:
                        orders.append(("remove", V, segment))
                for order, error in zip(orders, store.together(orders), strict=True):
                    assert error == 0 or (order[0] == "create" and error == errno.ENOSPC)
                model = store.replicas()
                slabs = [
                    slab
                    for *_, extents in model.values()
                    for first, count in extents
                    for slab in range(first, first + count)
                ]
                assert len(slabs) == len(set(slabs)) == store.state["slabs"] - store.state["free"]
                assert all(slab < store.state["slabs"] for slab in slabs)
                assert store.state["replicas"] == len(model)


# ---------------------------------------------------------------------- a full device


def test_a_full_device_keeps_a_reserve_for_what_makes_it_less_full(store: StoreView) -> None:
    reserve = store.state["reserve"]
    assert reserve == 4 * 4 + 239 // 256
    for segment in range(239 - reserve):
        assert store.create(V, segment, 64) == 0
    assert not store.has_room(64)
    assert store.create(V, 1000, 64) == errno.ENOSPC
    assert store.has_room(64, urgent=True)
    for segment in range(reserve):
        assert store.create(W, segment, 64, urgent=True) == 0
    assert store.create(W, 1000, 64, urgent=True) == errno.ENOSPC
    assert store.state["free"] == 0
    assert store.seal(V, 0, 10) == 0
    for segment in range(reserve + 1):
        assert store.remove(V, segment) == 0
    assert store.create(V, 1000, 64) == 0


def test_free_slabs_in_too_many_pieces_count_as_no_space(store: StoreView) -> None:
    for segment in range(220):
        store.create(V, segment, 64)
    while store.create(W, store.state["replicas"], 64, urgent=True) == 0:
        pass
    for segment in range(0, 220, 2):
        store.remove(V, segment)
    assert store.create(W, 1000, 33 * 64) == errno.ENOSPC
    assert store.create(W, 1000, 32 * 64) == 0
    assert len(store.replicas()[W, 1000][3]) == 32


def test_a_directory_larger_than_the_journal_is_refused_as_no_space(tmp_path: Path) -> None:
    path = formatted(tmp_path / "device", 64 << 30)
    with StoreView(path) as store:
        store.open()
        segment, error = 0, 0
        while error == 0:
            error = max(store.together([("create", V, segment + i, 1) for i in range(250)]))
            segment += 250
        assert error == errno.ENOSPC
        assert store.state["free"] > 200000
        assert not store.has_room(1, urgent=True)
        count = store.state["replicas"]
        assert count > 9000
        for _ in range(2):  # it still switches halves, and what is removed makes room
            store.together([("remove", V, i) for i in range(250)])
            assert max(store.together([("create", V, i, 1) for i in range(200)])) == 0
            store.together([("remove", V, i) for i in range(200)])
            store.together([("create", V, i, 1) for i in range(250)])
        before = store.replicas()
    assert opened(path) == before


# ---------------------------------------------------------------------- the journal's halves


def test_the_journal_switches_halves_under_load_and_loses_nothing(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        for segment in range(100):
            store.create(W, segment, 64)
        for turn in range(700):
            store.create(V, turn, 1)
            store.seal(V, turn, 1)
            if turn >= 5:
                store.remove(V, turn - 5)
            if turn % 50 == 0:
                before = store.replicas()
                with StoreView(device) as other:  # as if the first had died now
                    other.open()
                    assert other.replicas() == before
                    assert other.repaired == []
                    assert other.state["journal_next"] == store.state["journal_next"]
        assert store.state["journal_generation"] > 5
        before = store.replicas()
    assert opened(device) == before


def test_a_switch_while_many_changes_wait_loses_none(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        while store.state["journal_next"] < 255:
            store.create(W, 1, 1)
            store.remove(W, 1)
        assert store.together([("create", V, segment, 1) for segment in range(150)]) == [0] * 150
        assert store.state["journal_generation"] == 2
        before = store.replicas()
    assert len(before) == 150
    assert opened(device) == before


# ---------------------------------------------------------------------- errors of the device


@pytest.mark.parametrize("writes", [0, 1])
def test_an_error_of_the_journal_stops_changes_and_nothing_else(device: Path, writes: int) -> None:
    with StoreView(device) as store:
        store.open()
        store.create(V, 1, 256)
        store.create(V, 2, 256)
        before = store.replicas()
        place = store.place(V, 1, 5)
        store.fail_writes(after=writes)
        orders: list[Order] = [("create", V, 3, 64), ("seal", V, 1, 100, 90), ("remove", V, 2)]
        assert store.together(orders) == [errno.EIO] * 3
        assert store.state["failed"] == errno.EIO
        assert not store.has_room(1, urgent=True)
        assert store.replicas() == before
        assert store.place(V, 1, 5) == place
        store.fail_writes(after=-1)
        assert store.together(orders) == [errno.EIO] * 3, (
            "what stands on the device is not known: only opening finds out"
        )
    found = opened(device)
    assert isinstance(found, dict)
    assert {key: found[key] for key in before} == before
    assert set(found) - set(before) <= {(V, 3)}, "the first change was on its way: one of its two copies may be there"


def test_a_change_whose_flush_failed_is_written_again_when_the_store_opens(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        store.create(V, 1, 64)
        store.fail_writes(after=2)  # both copies of the block arrive, and the flush behind them fails
        assert store.create(V, 2, 64) == errno.EIO
        store.fail_writes(after=-1)
        assert store.create(V, 3, 64) == errno.EIO, "a flush that succeeds later proves nothing"
        assert store.state["failed"] == errno.EIO
    with StoreView(device) as store:
        store.open()
        assert set(store.replicas()) == {(V, 1), (V, 2)}
        newest = store.state["journal_next"] - 1
        places = [PLACES.block(copy, store.state["journal_half"], newest) for copy in (0, 1)]
        last = store.history[-3:]
        assert [event[0] for event in last] == ["write", "write", "flush"]
        written = sorted(event[1] for event in last if len(event) == 3)
        assert written == sorted(places), "what was read may be in a cache that is never written"


def test_an_error_while_the_journal_switches_halves_keeps_the_old_one(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        while store.state["journal_next"] < 256:
            store.create(W, 1, 1)
            store.remove(W, 1)
            if store.state["journal_next"] == 255:
                store.create(W, 2, 1)
        before = store.replicas()
        store.fail_writes(after=1)
        assert store.create(V, 1) == errno.EIO
    assert opened(device) == before


def test_a_bad_sector_in_one_copy_of_the_journal_does_not_hide_its_neighbours(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        for segment in range(20):
            store.create(V, segment, 64)
        before = store.replicas()
    for index in (3, 9):  # one block each of both copies: neither is whole, together they are
        write_at(device, PLACES.block(1, 0, index), b"x" * BLOCK)
    with StoreView(device) as store:
        store.break_range(PLACES.block(0, 0, 5), BLOCK)
        store.open()
        assert store.replicas() == before
        assert len(store.repaired) == 3
        assert "blocks 5 to 5 of half 0 are damaged and cannot be rewritten" in " ".join(
            " ".join(store.repaired).split()
        )


def test_slabs_that_two_segments_own_are_refused(device: Path) -> None:
    entries = [
        forged.journal_entry([(10, 4)], segment=1, blocks=256),
        forged.journal_entry([(13, 1)], segment=2, blocks=64),
    ]
    block = forged.journal_block(entries, device=b"d" * 16, kind=2)
    write_at(device, JOURNAL, block)
    write_at(device, JOURNAL + 2 * MEBIBYTE, block)
    refused = refusal(device)
    assert refused.errno == errno.EUCLEAN
    assert "belong to another segment too" in refused.reason


def test_slabs_beyond_the_device_are_refused(device: Path) -> None:
    block = forged.journal_block([forged.journal_entry([(238, 2)], blocks=128)], device=b"d" * 16, kind=2)
    write_at(device, JOURNAL, block)
    write_at(device, JOURNAL + 2 * MEBIBYTE, block)
    assert "beyond the device" in refusal(device).reason


def test_deleting_what_does_not_exist_is_refused(device: Path) -> None:
    block = forged.journal_block([forged.journal_entry([], kind=2, state=0, blocks=0)], device=b"d" * 16, index=1)
    write_at(device, JOURNAL + BLOCK, block)
    write_at(device, JOURNAL + 2 * MEBIBYTE + BLOCK, block)
    assert "block 1 of half 0: it deletes a segment replica that does not exist" in refusal(device).reason


# ---------------------------------------------------------------------- fences, device number, newer formats


def test_a_fence_refuses_lower_epochs_also_after_the_device_was_opened_again(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        assert store.fence(V, 7) == 0
        assert store.create(V, 1, epoch=6) == errno.ESTALE
        assert store.create(W, 1, epoch=1) == 0
    with StoreView(device) as store:
        store.open()
        assert (store.fenced(V), store.fenced(W)) == (7, 0)
        assert store.create(V, 1, epoch=6) == errno.ESTALE
        assert store.create(V, 1, epoch=7) == 0
        assert store.fence(V, 6) == errno.ESTALE
        assert store.fence(V, 7) == 0
        assert store.fence(V, 9) == 0
        assert store.create(V, 2, epoch=8) == errno.ESTALE


def test_of_two_fences_at_once_the_higher_one_stays(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        higher, lower = store.together([("fence", V, 0, 9), ("fence", V, 0, 7)])
        assert higher == 0
        assert lower in (0, errno.ESTALE)  # it was durable first, or it came too late
        assert store.fenced(V) == 9
    with StoreView(device) as store:
        store.open()
        assert store.fenced(V) == 9


def test_a_device_with_a_fence_has_the_feature_bit_in_its_superblocks(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        assert store.fence(V, 2) == 0
    head = read_head(device)
    assert [read_superblock(head[at : at + BLOCK])["features"] & 2 for at in (0, TWIN)] == [2, 2]


def test_fences_outlast_the_half_of_the_journal_that_they_were_written_in(device: Path) -> None:
    volumes = [bytes([i]) * 16 for i in range(1, 100)]
    with StoreView(device) as store:
        store.open()
        assert store.together([("fence", volume, 0, 3 + i) for i, volume in enumerate(volumes)]) == [0] * len(volumes)
        assert store.fence(volumes[0], 0) == 0
        half = store.state["journal_half"]
        while store.state["journal_half"] == half:
            assert store.create(V, 1) == 0
            assert store.remove(V, 1) == 0
    with StoreView(device) as store:
        store.open()
        assert [store.fenced(volume) for volume in volumes] == [0] + [3 + i for i in range(1, len(volumes))]


def test_a_fence_whose_writes_fail_is_not_answered_as_durable(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        assert store.fence(V, 2) == 0
        store.fail_writes(0)
        assert store.fence(V, 3) == errno.EIO
    with StoreView(device) as store:
        store.open()
        assert store.fenced(V) in (2, 3)


def test_a_device_gets_its_number_once(device: Path) -> None:
    with StoreView(device) as store:
        store.open()
        assert store.set_number(12) == 0
        assert store.set_number(12) == 0
        assert store.set_number(13) == errno.EEXIST
    assert [read_superblock(read_head(device)[at : at + BLOCK])["number"] for at in (0, TWIN)] == [12, 12]


def boots(path: Path) -> dict[tuple[int, int], int]:
    """(generation, segment) -> the boot that the newest entry of a replica names."""
    head = read_head(path)
    found: dict[tuple[int, int], int] = {}
    for half in range(2):
        for index in range(PLACES.blocks):
            at = PLACES.block(0, half, index)
            block = read_journal_block(head[at : at + BLOCK])
            if block["valid"]:
                found |= {
                    (block["generation"], entry["segment"]): entry["boot"]
                    for entry in block["entries"]
                    if entry["kind"] == 1
                }
    return found


def test_an_open_replica_names_the_boot_that_it_was_opened_under(device: Path) -> None:
    boot = int.from_bytes(uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes[:8], "little")
    with StoreView(device) as store:
        store.open()
        assert store.create(V, 1) == store.create(V, 2) == 0
        assert store.seal(V, 2, 200) == 0
        assert (boots(device)[1, 1], boots(device)[1, 2]) == (boot, 0)
        while store.state["journal_generation"] == 1:
            assert store.create(W, 1) == 0
            assert store.remove(W, 1) == 0
    assert (boots(device)[2, 1], boots(device)[2, 2]) == (boot, 0)
