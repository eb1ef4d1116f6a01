"""Each call of the peer protocol, from one node's client to another node's store, as a volume's owner makes them."""

import errno

import pytest

from iomesh.engine.format.peer import read_entries
from iomesh.engine.views.peer import Call
from support.peers import BLOCK, DEVICE, Pair, V, W, block_of, footer, pair, record


@pytest.fixture(params=[1, 2], ids=["store-on-the-connection-s-reactor", "store-on-another-reactor"])
def it(request: pytest.FixtureRequest) -> Pair:
    return pair(reactors=request.param)


def listed(call: Call) -> list[dict[str, int]]:
    return read_entries("ListedReplica", call.data[: call.entries * 32])


# ---------------------------------------------------------------------- a segment's life


def test_a_segment_is_created_written_flushed_sealed_read_and_removed(it: Pair) -> None:
    first, second = record(1, 0, [block_of(1), block_of(2)]), record(1, 3, [block_of(3)], sequence=11)
    end = footer(1, [2, 1])
    assert it.done(it.owner.create(DEVICE, V, 1, blocks=256, fragment=9)) == [0]
    assert it.holder.replicas(DEVICE) == {(V, 1): ("open", 256, 1, 9)}
    assert it.done(it.owner.write(DEVICE, V, 1, 0, first), it.owner.write(DEVICE, V, 1, 3, second)) == [0, 0]
    assert it.done(it.owner.write(DEVICE, V, 1, 5, end, footer=True)) == [0]
    assert it.done(it.owner.flush(DEVICE)) == [0]
    assert it.done(it.owner.seal(DEVICE, V, 1, 7, 5)) == [0]
    assert it.holder.replicas(DEVICE) == {(V, 1): ("sealed", 7, 1, 9)}
    assert it.holder.content(DEVICE, V, 1, 0, 7) == first + second + end
    read = it.owner.read(DEVICE, V, 1, 0, 7)
    assert it.done(read) == [0]
    assert read.data == first + second + end
    assert it.done(it.owner.remove(DEVICE, V, 1)) == [0]
    assert it.holder.replicas(DEVICE) == {}


def test_the_largest_record_and_the_largest_read(it: Pair) -> None:
    data = record(1, 0, [block_of(number) for number in range(248)])
    it.done(it.owner.create(DEVICE, V, 1, blocks=256))
    assert it.done(it.owner.write(DEVICE, V, 1, 0, data)) == [0]
    read = it.owner.read(DEVICE, V, 1, 0, 256)
    assert it.done(read) == [0]
    assert read.data[: len(data)] == data


def test_a_record_across_extents_is_written_and_read_whole(it: Pair) -> None:
    """Removing every other small segment leaves holes of one slab each, of which a large segment is then made."""
    count = 0
    while it.done(it.owner.create(DEVICE, W, count, blocks=1, urgent=True)) == [0]:
        count += 1
    for number in range(0, count, 2):
        assert it.done(it.owner.remove(DEVICE, W, number)) == [0]
    assert it.done(it.owner.create(DEVICE, V, 1, blocks=64, urgent=True)) == [0]
    data = record(1, 0, [block_of(number) for number in range(63)])
    assert it.done(it.owner.write(DEVICE, V, 1, 0, data)) == [0]
    assert it.holder.content(DEVICE, V, 1, 0, 64) == data
    read = it.owner.read(DEVICE, V, 1, 0, 64)
    assert it.done(read) == [0]
    assert read.data == data


# ---------------------------------------------------------------------- refusals


def test_what_does_not_exist_is_not_found(it: Pair) -> None:
    calls = [
        it.owner.write(DEVICE, V, 1, 0, record(1, 0, [])),
        it.owner.seal(DEVICE, V, 1, 1),
        it.owner.read(DEVICE, V, 1, 0),
        it.owner.remove(DEVICE, V, 1),
    ]
    assert it.done(*calls) == [-errno.ENOENT] * 4


def test_a_device_that_is_not_there_is_named_as_such(it: Pair) -> None:
    calls = [
        it.owner.create(99, V, 1),
        it.owner.write(99, V, 1, 0, record(1, 0, [])),
        it.owner.flush(99),
        it.owner.list(99, V),
        it.owner.fence(99, V, 1),
    ]
    assert it.done(*calls) == [-errno.ENODEV] * 5
    assert it.owner.attached


def test_a_segment_is_created_once(it: Pair) -> None:
    assert it.done(it.owner.create(DEVICE, V, 1), it.owner.create(DEVICE, V, 1)) == [0, -errno.EEXIST]


def test_a_full_device_says_so_and_keeps_its_reserve_for_urgent_segments(it: Pair) -> None:
    number, results = 0, [0]
    while results == [0]:
        number += 1
        results = it.done(it.owner.create(DEVICE, V, number))
    assert results == [-errno.ENOSPC]
    assert it.done(it.owner.create(DEVICE, V, number, urgent=True)) == [0]


def test_damage_on_the_way_is_not_written(it: Pair) -> None:
    good = record(1, 0, [block_of(1)])
    damaged = bytearray(good)
    damaged[5000] ^= 1
    it.done(it.owner.create(DEVICE, V, 1))
    before = it.holder.content(DEVICE, V, 1, 0, 2)
    assert it.done(it.owner.write(DEVICE, V, 1, 0, bytes(damaged))) == [-errno.EBADMSG]
    assert it.done(it.owner.write(DEVICE, V, 1, 1, good)) == [-errno.EBADMSG]
    assert it.done(it.owner.write(DEVICE, V, 1, 0, good, footer=True)) == [-errno.EBADMSG]
    assert it.holder.content(DEVICE, V, 1, 0, 2) == before
    assert it.done(it.owner.write(DEVICE, V, 1, 0, good)) == [0]


def test_a_write_suits_the_replica_that_it_is_for(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1, epoch=2, blocks=8, stream=3))
    last = record(1, 7, [], epoch=2, stream=3)
    assert it.done(it.owner.write(DEVICE, V, 1, 7, last, epoch=2, stream=3)) == [0]
    beyond = record(1, 7, [block_of(1)], epoch=2, stream=3)
    assert it.done(it.owner.write(DEVICE, V, 1, 7, beyond, epoch=2, stream=3)) == [-errno.EINVAL]
    other = record(1, 0, [], epoch=2, stream=4)
    assert it.done(it.owner.write(DEVICE, V, 1, 0, other, epoch=2, stream=4)) == [-errno.EINVAL]
    for epoch in (1, 3):
        data = record(1, 0, [], epoch=epoch, stream=3)
        assert it.done(it.owner.write(DEVICE, V, 1, 0, data, epoch=epoch, stream=3)) == [-errno.ESTALE]


def test_a_newer_owner_completes_an_open_replica_of_an_earlier_one(it: Pair) -> None:
    lacking = record(1, 0, [block_of(1)], epoch=2)
    it.done(it.owner.create(DEVICE, V, 1, epoch=2))
    it.done(it.owner.fence(DEVICE, V, 5))
    assert it.done(it.owner.write(DEVICE, V, 1, 0, lacking, epoch=2)) == [-errno.ESTALE]
    assert it.done(it.owner.write(DEVICE, V, 1, 0, lacking, epoch=5)) == [-errno.EBADMSG]
    assert it.done(it.owner.write(DEVICE, V, 1, 0, lacking, epoch=4, completes=True)) == [-errno.ESTALE]
    foreign = record(1, 0, [block_of(2)], epoch=3)
    assert it.done(it.owner.write(DEVICE, V, 1, 0, foreign, epoch=5, completes=True)) == [-errno.ESTALE]
    assert it.done(it.owner.write(DEVICE, V, 1, 0, lacking, epoch=5, completes=True)) == [0]
    assert it.holder.content(DEVICE, V, 1, 0, 2) == lacking
    it.done(it.owner.seal(DEVICE, V, 1, 2, epoch=5))
    assert it.done(it.owner.write(DEVICE, V, 1, 0, lacking, epoch=5, completes=True)) == [-errno.EROFS]


def test_a_sealed_segment_takes_no_write(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1))
    it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(1)])))
    it.done(it.owner.seal(DEVICE, V, 1, 2))
    assert it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(2)]))) == [-errno.EROFS]
    assert it.holder.content(DEVICE, V, 1, 1, 1) == block_of(1)


def test_a_seal_may_be_repeated_and_shorten_but_not_lengthen(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1, blocks=100))
    assert it.done(it.owner.seal(DEVICE, V, 1, 101)) == [-errno.EINVAL]
    assert it.done(it.owner.seal(DEVICE, V, 1, 50, 40)) == [0]
    assert it.done(it.owner.seal(DEVICE, V, 1, 50, 40)) == [0]
    assert it.done(it.owner.seal(DEVICE, V, 1, 51, 40)) == [-errno.EINVAL]
    assert it.done(it.owner.seal(DEVICE, V, 1, 30, epoch=2)) == [0]
    assert it.holder.replicas(DEVICE)[V, 1] == ("sealed", 30, 1, 0)


def test_an_owner_with_a_lower_epoch_neither_seals_nor_removes(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1, epoch=5))
    calls = [it.owner.seal(DEVICE, V, 1, 1, epoch=4), it.owner.remove(DEVICE, V, 1, epoch=4)]
    assert it.done(*calls) == [-errno.ESTALE] * 2
    assert it.holder.replicas(DEVICE)[V, 1] == ("open", 256, 5, 0)


def test_what_the_server_would_cut_the_connection_for_is_refused_before_it_is_sent(it: Pair) -> None:
    calls = [
        it.owner.create(0, V, 1),
        it.owner.create(DEVICE, V, 1, epoch=0),
        it.owner.create(DEVICE, bytes(16), 1),
        it.owner.read(DEVICE, V, 1, 16384),
        it.owner.write(DEVICE, V, 1, 0, b""),
        it.owner.fence(DEVICE, V, 0),
    ]
    assert not any(call.over for call in calls), "a call is never done before it returns"
    assert it.done(*calls) == [-errno.EINVAL] * 6
    assert it.owner.attached


# ---------------------------------------------------------------------- flush


def test_only_flushed_writes_survive_a_power_cut_for_certain(it: Pair) -> None:
    data = record(1, 0, [block_of(number) for number in range(100)])
    it.done(it.owner.create(DEVICE, V, 1))
    it.done(it.owner.write(DEVICE, V, 1, 0, data))
    assert it.world.unflushed(0) > 0
    assert it.done(it.owner.flush(DEVICE)) == [0]
    assert it.world.unflushed(0) == 0
    it.holder.crash()
    it.holder.restart()
    assert it.holder.content(DEVICE, V, 1, 0, 101) == data


def test_a_failed_flush_is_final_and_reads_go_on(it: Pair) -> None:
    data = record(1, 0, [block_of(1)])
    it.done(it.owner.create(DEVICE, V, 1))
    it.done(it.owner.write(DEVICE, V, 1, 0, data))
    it.world.faults = {"flush_error": 1.0}
    assert it.done(it.owner.flush(DEVICE)) == [-errno.EIO]
    it.world.faults = {"flush_error": 0.0}
    later = [
        it.owner.flush(DEVICE),
        it.owner.write(DEVICE, V, 1, 2, record(1, 2, [])),
        it.owner.create(DEVICE, V, 2),
        it.owner.seal(DEVICE, V, 1, 2),
        it.owner.remove(DEVICE, V, 1),
        it.owner.fence(DEVICE, V, 9),
    ]
    assert it.done(*later) == [-errno.EIO] * 6
    read, beat = it.owner.read(DEVICE, V, 1, 0, 2), it.owner.heartbeat(1)
    assert it.done(read, beat) == [0, 0]
    assert read.data == data
    assert read_entries("DeviceState", beat.data[:32])[0]["state"] == 2


def test_errors_of_the_device_are_reported(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1))
    it.world.faults = {"write_error": 1.0}
    assert it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(1)]))) == [-errno.EIO]
    it.world.faults = {"write_error": 0.0, "read_error": 1.0}
    assert it.done(it.owner.read(DEVICE, V, 1, 0)) == [-errno.EIO]
    it.world.faults = {"read_error": 0.0}
    assert it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(1)]))) == [0]


# ---------------------------------------------------------------------- compacted replicas


def test_a_compacted_replica_is_read_by_the_same_addresses(it: Pair) -> None:
    payload = [block_of(number) for number in range(40)]
    it.done(it.owner.create(DEVICE, V, 1))
    it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, payload)))
    it.done(it.owner.write(DEVICE, V, 1, 41, footer(1, [40]), footer=True))
    assert it.done(it.owner.seal(DEVICE, V, 1, 43, 41)) == [0]
    kept = [3, 4, 5, 20, 31, 40]
    it.holder.compact(DEVICE, V, 1, kept)
    assert it.holder.replicas(DEVICE)[V, 1][0] == "compacted"
    for block in range(41):
        read = it.owner.read(DEVICE, V, 1, block)
        assert it.done(read) == [0 if block in kept else -errno.ENOENT], f"block {block}"
        if block in kept:
            assert read.data == payload[block - 1], f"block {block}"
    whole, torn = it.owner.read(DEVICE, V, 1, 3, 3), it.owner.read(DEVICE, V, 1, 3, 4)
    assert it.done(whole, torn) == [0, -errno.ENOENT]
    assert whole.data == b"".join(payload[2:5])
    assert it.done(it.owner.seal(DEVICE, V, 1, 20)) == [-errno.EINVAL]
    entries = it.owner.list(DEVICE, V)
    assert it.done(entries) == [0]
    live = len(kept) + 2  # with the footer and its table
    assert (listed(entries)[0]["blocks"], listed(entries)[0]["live"]) == (43, live)


def test_an_owner_compacts_a_copy(it: Pair) -> None:
    payload = [block_of(number) for number in range(40)]
    it.done(it.owner.create(DEVICE, V, 1))
    it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, payload)))
    assert it.done(it.owner.compact(DEVICE, V, 1, [3])) == [-errno.EINVAL], "it is open"
    it.done(it.owner.write(DEVICE, V, 1, 41, footer(1, [40]), footer=True))
    it.done(it.owner.seal(DEVICE, V, 1, 43, 41))
    assert it.done(it.owner.compact(DEVICE, V, 2, [3])) == [-errno.ENOENT]
    assert it.done(it.owner.fence(DEVICE, V, 5)) == [0]
    assert it.done(it.owner.compact(DEVICE, V, 1, [3], epoch=4)) == [-errno.ESTALE]
    compact, read = it.owner.compact(DEVICE, V, 1, [3, 40], epoch=5), it.owner.read(DEVICE, V, 1, 3)
    assert it.done(compact, read) == [0, 0]
    assert read.data == payload[2]
    assert it.holder.replicas(DEVICE)[V, 1][0] == "compacted"
    assert it.done(it.owner.read(DEVICE, V, 1, 4), it.owner.read(DEVICE, V, 1, 40)) == [-errno.ENOENT, 0]
    assert it.done(it.owner.compact(DEVICE, V, 1, [3, 4], epoch=5)) == [-errno.EUCLEAN], "4 was left out"
    assert it.done(it.owner.compact(DEVICE, V, 1, [40], epoch=5)) == [0]
    assert it.done(it.owner.read(DEVICE, V, 1, 40), it.owner.read(DEVICE, V, 1, 3)) == [0, -errno.ENOENT]


def test_a_read_beyond_a_segment_s_end_finds_nothing(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1, blocks=100))
    it.done(it.owner.seal(DEVICE, V, 1, 50))
    assert it.done(it.owner.read(DEVICE, V, 1, 49), it.owner.read(DEVICE, V, 1, 49, 2)) == [0, -errno.ENOENT]


# ---------------------------------------------------------------------- list, heartbeat


def test_a_list_has_a_volume_s_replicas_in_pages(it: Pair) -> None:
    for number in (9, 2, 30, 4, 17):
        it.done(it.owner.create(DEVICE, V, number, blocks=1, epoch=number, fragment=number + 1, stream=2))
    it.done(it.owner.create(DEVICE, W, 3, blocks=1))
    it.done(it.owner.seal(DEVICE, V, 9, 1, epoch=9))
    found, first, pages = [], 0, 0
    while True:
        page = it.owner.list(DEVICE, V, first, 2)
        assert it.done(page) == [0]
        found += listed(page)
        pages += 1
        if not page.more:
            break
        assert page.entries == 2
        first = found[-1]["segment"] + 1
    assert [one["segment"] for one in found] == [2, 4, 9, 17, 30]
    assert pages == 3
    assert [one["state"] for one in found] == [1, 1, 2, 1, 1]
    for one in found:
        assert (one["epoch"], one["fragment"], one["stream"]) == (one["segment"], one["segment"] + 1, 2)
        assert (one["blocks"], one["footer_block"], one["live"], one["flags"]) == (1, 0, 0, 0)
    empty = it.owner.list(DEVICE, V, 31)
    assert it.done(empty) == [0]
    assert (empty.entries, empty.more) == (0, False)


def test_open_replicas_from_before_a_power_cut_are_doubtful(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1), it.owner.create(DEVICE, V, 2))
    it.done(it.owner.seal(DEVICE, V, 2, 1))
    it.holder.crash()
    it.holder.restart()
    it.nodes.settle()
    it.owner.detach()
    it.nodes.settle()
    it.owner.attach(it.holder)
    it.done(it.owner.create(DEVICE, V, 3))
    entries = it.owner.list(DEVICE, V)
    assert it.done(entries) == [0]
    assert [one["flags"] for one in listed(entries)] == [1, 0, 0]


def test_a_heartbeat_echoes_its_counter_and_reports_every_device(it: Pair) -> None:
    both = pair(devices=2)
    beat = both.owner.heartbeat(0xFEDCBA9876543210)
    assert both.done(beat) == [0]
    states = read_entries("DeviceState", beat.data[: beat.entries * 32])
    assert [state["device"] for state in states] == [DEVICE, DEVICE + 1]
    for state in states:
        assert (state["state"], state["tier"], state["volatile_cache"]) == (1, 1, 1)
        assert state["device_bytes"] == 64 << 20
        assert 0 < state["free_bytes"] < 64 << 20
        assert state["segment_blocks"] == 256
    assert beat.boot == 1
    short, none = both.owner.heartbeat(1, 1), both.owner.heartbeat(2, 0)
    assert both.done(short, none) == [0, 0]
    assert (short.entries, short.more) == (1, True)
    assert (none.entries, none.more) == (0, True)


def test_a_heartbeat_counts_what_segments_take(it: Pair) -> None:
    before, after = it.owner.heartbeat(1), None
    it.done(before)
    it.done(it.owner.create(DEVICE, V, 1, blocks=256))
    after = it.owner.heartbeat(2)
    it.done(after)
    free = [read_entries("DeviceState", beat.data[:32])[0]["free_bytes"] for beat in (before, after)]
    assert free[0] - free[1] == 256 * BLOCK


def test_a_replica_from_before_a_power_cut_goes_on_only_once_it_was_completed(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1))
    assert it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, []))) == [0]
    it.holder.crash()
    it.holder.restart()
    it.nodes.settle()
    it.owner.detach()
    it.nodes.settle()
    it.owner.attach(it.holder)
    assert it.done(it.owner.write(DEVICE, V, 1, 1, record(1, 1, []))) == [-errno.EIO]
    assert it.done(it.owner.seal(DEVICE, V, 1, 1)) == [-errno.EIO]
    assert it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, []), completes=True)) == [0]
    assert it.done(it.owner.flush(DEVICE), it.owner.seal(DEVICE, V, 1, 1, completes=True)) == [0, 0]
    it.done(it.owner.create(DEVICE, V, 2))
    assert it.done(it.owner.write(DEVICE, V, 2, 0, record(2, 0, []))) == [0], "it was opened since"


# ---------------------------------------------------------------------- fences


def test_a_fence_is_durable_and_keeps_lower_epochs_out(it: Pair) -> None:
    it.done(it.owner.create(DEVICE, V, 1, epoch=3))
    assert it.done(it.owner.fence(DEVICE, V, 4)) == [0]
    it.holder.crash()
    it.holder.restart()
    it.nodes.settle()
    it.owner.detach()
    it.nodes.settle()
    it.owner.attach(it.holder)
    assert it.holder.fenced(DEVICE, V) == 4
    lower = [
        it.owner.create(DEVICE, V, 2, epoch=3),
        it.owner.write(DEVICE, V, 1, 0, record(1, 0, [], epoch=3), epoch=3),
        it.owner.seal(DEVICE, V, 1, 1, epoch=3),
        it.owner.remove(DEVICE, V, 1, epoch=3),
        it.owner.fence(DEVICE, V, 3),
    ]
    assert it.done(*lower) == [-errno.ESTALE] * 5
    assert [call.fence for call in lower] == [4] * 5
    higher = [
        it.owner.fence(DEVICE, V, 4),
        it.owner.create(DEVICE, V, 2, epoch=4),
        it.owner.seal(DEVICE, V, 1, 1, epoch=4, completes=True),
        it.owner.remove(DEVICE, V, 1, epoch=5),
    ]
    assert it.done(*higher) == [0] * 4
    assert it.done(it.owner.create(DEVICE, W, 1, epoch=1)) == [0], "another volume is not fenced"
    entries = it.owner.list(DEVICE, V)
    it.done(entries)
    assert entries.fence == 4
