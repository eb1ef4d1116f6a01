"""Requests that are sent without waiting: what waits for what, at the store and at the client."""

import errno

import pytest

from iomesh.engine.views.peer import Call, OwnerNode
from support.peers import BLOCK, DEVICE, Pair, V, W, block_of, footer, pair, record

SEEDS = range(12)


def shared(seed: int, owners: int = 2, reactors: int = 1) -> tuple[Pair, list[OwnerNode]]:
    """Several owners' nodes with a connection to the same holder."""
    it = pair(seed, reactors=reactors)
    others = [OwnerNode(it.nodes) for _ in range(owners - 1)]
    for other in others:
        other.attach(it.holder)
    return it, [it.owner, *others]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("reactors", [1, 2])
def test_a_whole_segment_can_be_sent_without_waiting(seed: int, reactors: int) -> None:
    it = pair(seed, reactors=reactors)
    calls = [it.owner.create(DEVICE, V, 1)]
    for number in range(20):
        calls.append(
            it.owner.write(DEVICE, V, 1, 2 * number, record(1, 2 * number, [block_of(number)], sequence=10 + number))
        )
    calls.append(it.owner.write(DEVICE, V, 1, 40, footer(1, [1] * 20), footer=True))
    calls.append(it.owner.seal(DEVICE, V, 1, 42, 40))
    late = it.owner.write(DEVICE, V, 1, 42, record(1, 42, []))
    read = it.owner.read(DEVICE, V, 1, 0, 42)
    calls.append(it.owner.remove(DEVICE, V, 1))
    again = it.owner.create(DEVICE, V, 1, blocks=5)
    assert it.done(*calls) == [0] * len(calls)
    assert late.result == -errno.EROFS
    assert read.result == 0
    assert [read.data[BLOCK * (2 * n + 1) :][:BLOCK] for n in range(20)] == [block_of(n) for n in range(20)]
    assert again.result == 0
    assert it.holder.replicas(DEVICE) == {(V, 1): ("open", 5, 1, 0)}


@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_writes_to_the_same_block_the_later_one_counts(seed: int) -> None:
    it = pair(seed)
    it.done(it.owner.create(DEVICE, V, 1))
    calls = [
        it.owner.write(DEVICE, V, 1, number % 3, record(1, number % 3, [block_of(number), block_of(100 + number)]))
        for number in range(30)
    ]
    assert it.done(*calls) == [0] * 30
    assert it.holder.content(DEVICE, V, 1, 2, 3) == record(1, 2, [block_of(29), block_of(129)])


@pytest.mark.parametrize("seed", SEEDS)
def test_writes_that_do_not_overlap_do_not_wait_for_each_other(seed: int) -> None:
    it = pair(seed)
    it.done(it.owner.create(DEVICE, V, 1))
    it.world.latencies = {"write_ns": 1_000_000_000}
    calls = [it.owner.write(DEVICE, V, 1, number, record(1, number, [])) for number in range(40)]
    assert it.done(*calls) == [0] * 40
    assert sorted(calls, key=lambda call: call.order) != calls


@pytest.mark.parametrize("seed", SEEDS)
def test_replies_come_in_any_order_and_to_the_right_call(seed: int) -> None:
    it = pair(seed)
    it.done(it.owner.create(DEVICE, V, 1))
    it.done(it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(number) for number in range(60)])))
    reads = [it.owner.read(DEVICE, V, 1, 1 + number) for number in range(60)]
    missing = [it.owner.read(DEVICE, W, number, 0) for number in range(3)]
    assert it.done(*reads, *missing) == [0] * 60 + [-errno.ENOENT] * 3
    assert [read.data for read in reads] == [block_of(number) for number in range(60)]
    assert sorted(reads, key=lambda read: read.order) != reads


# ---------------------------------------------------------------------- fences


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("reactors", [1, 2])
def test_after_a_fence_is_answered_nothing_of_a_lower_epoch_is_written(seed: int, reactors: int) -> None:
    """The old owner goes on writing while the new one fences. After the fence's answer nothing changes any more."""
    it, (old, new) = shared(seed, reactors=reactors)
    it.done(old.create(DEVICE, V, 1, epoch=1, blocks=256), old.create(DEVICE, V, 2, epoch=1, blocks=256))
    it.world.latencies = {"write_ns": 200_000}
    writes: list[Call] = []
    for number in range(seed % 20):
        writes.append(old.write(DEVICE, V, 1, number, record(1, number, [])))
    it.nodes.run(seed)
    fence = new.fence(DEVICE, V, 2)
    seal = None
    for number in range(20, 200):
        if fence.over:
            break
        writes.append(old.write(DEVICE, V, 1, number, record(1, number, [])))
        if number == 40:
            seal = old.seal(DEVICE, V, 2, 1, epoch=1)
        it.nodes.run(3)
    assert fence.over and fence.result == 0
    at_the_answer = it.holder.content(DEVICE, V, 1, 0, 256)
    replicas = it.holder.replicas(DEVICE)
    late = [
        old.write(DEVICE, V, 1, 200, record(1, 200, [])),
        old.create(DEVICE, V, 3, epoch=1),
        old.remove(DEVICE, V, 1),
    ]
    assert it.done(*late) == [-errno.ESTALE] * 3
    assert it.holder.content(DEVICE, V, 1, 0, 256) == at_the_answer
    assert it.holder.replicas(DEVICE) == replicas
    refused = [write.result for write in writes]
    assert set(refused) <= {0, -errno.ESTALE}
    assert refused == sorted(refused, reverse=True), "once one is refused, so are all later ones"
    assert seal is None or seal.result in (0, -errno.ESTALE)
    assert all(call.fence == 2 for call in [*writes, *late] if call.result)


def test_a_fence_waits_for_the_writes_under_way_and_later_ones_wait_for_it() -> None:
    it = pair(attached=False)
    old, new = it.owner, OwnerNode(it.nodes)
    of_old, of_new = old.attach(it.holder), new.attach(it.holder)
    it.done(old.create(DEVICE, V, 1))
    it.world.latencies = {"write_ns": 1_000_000_000, "flush_ns": 1_000_000}
    write = old.write(DEVICE, V, 1, 0, record(1, 0, [block_of(1)]))
    it.until(lambda: of_old.requests == 2)
    fence = new.fence(DEVICE, V, 2)
    it.until(lambda: of_new.requests == 1)
    late = old.write(DEVICE, V, 1, 2, record(1, 2, [block_of(2)]))
    other = old.create(DEVICE, W, 1)
    it.until(lambda: of_old.requests == 4)
    assert not any(call.over for call in (write, fence, late))
    it.until(lambda: fence.over)
    assert write.over
    assert it.done(write, fence, late, other) == [0, 0, -errno.ESTALE, 0]
    assert it.holder.content(DEVICE, V, 1, 1, 1) == block_of(1)
    assert it.holder.content(DEVICE, V, 1, 3, 1) != block_of(2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_highest_of_fences_at_once_counts(seed: int) -> None:
    it, owners = shared(seed, owners=4)
    fences = [owner.fence(DEVICE, V, epoch) for owner, epoch in zip(owners, (3, 5, 4, 5), strict=True)]
    results = it.done(*fences)
    assert results[1] == results[3] == 0
    assert set(results) <= {0, -errno.ESTALE}
    assert it.holder.fenced(DEVICE, V) == 5


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize(("requests", "bytes_"), [(1, 1 << 20), (3, 1 << 20), (64, 1 << 20), (64, 8 << 20)])
def test_calls_beyond_the_credits_wait_and_all_are_done(requests: int, bytes_: int) -> None:
    it = pair(3, attached=False)
    served = it.owner.attach(it.holder, requests=requests, bytes=bytes_)
    it.done(it.owner.create(DEVICE, V, 1, blocks=12400))
    writes = []
    for number in range(300):
        size = number % 40
        data = record(1, 41 * number, [block_of(number + k) for k in range(size)])
        writes.append(it.owner.write(DEVICE, V, 1, 41 * number, data))
    reads = [it.owner.read(DEVICE, V, 1, number, 256) for number in range(30)]
    assert it.done(*writes, *reads) == [0] * 330
    assert served.end is None
    assert served.free_buffers == (64, 16)
    for number in (1, 39, 299):
        assert it.holder.content(DEVICE, V, 1, 41 * number + 1, 1) == block_of(number)


@pytest.mark.parametrize("seed", range(6))
def test_a_client_may_use_its_credit_again_as_soon_as_it_has_the_reply(seed: int) -> None:
    """Here a reply, and the request that it permits, may overtake the completion of the server's send."""
    it = pair(seed, attached=False, volatile_cache=False)
    it.world.latencies = {"network_ns": 0}
    served = it.owner.attach(it.holder)
    calls = [it.owner.flush(DEVICE) for _ in range(4000)]
    assert it.done(*calls) == [0] * 4000
    assert served.end is None


def test_calls_of_one_turn_leave_as_one_send() -> None:
    it = pair()
    it.done(it.owner.create(DEVICE, V, 1))
    before = it.owner.sends
    calls = [it.owner.write(DEVICE, V, 1, number, record(1, number, [])) for number in range(40)]
    it.nodes.run(1)
    assert it.owner.sends - before == 1
    assert it.done(*calls) == [0] * 40
    assert it.owner.sends - before == 1


def test_the_queue_of_calls_that_wait_is_bounded() -> None:
    it = pair()
    calls = [it.owner.flush(DEVICE) for _ in range(64 + 4096)]
    beyond = it.owner.flush(DEVICE)
    assert it.done(*calls, beyond) == [0] * len(calls) + [-errno.ENOBUFS]
    assert it.done(it.owner.flush(DEVICE)) == [0]
