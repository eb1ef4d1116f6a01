"""The map finds what was set, whatever was evicted, written back or lost; a checkpoint is exact."""

import errno
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from iomesh.engine.views.map import CacheView, MapView, NodeRequest, checksum

Pointer = tuple[int, int, int]
Node = tuple[int, int]  # level, index
LEVELS = 5
ROOT: Node = (LEVELS - 1, 0)
DATA = 1000  # segment number of data blocks: the map points there and never looks


def settled(cache: CacheView, ask: NodeRequest) -> NodeRequest:
    for _ in range(1000):
        if ask.state not in ("waiting", "woken"):
            return ask
        if ask.state == "woken":
            ask.again()
        else:
            cache.poll()
    raise AssertionError(
        f"get of level {ask.level} index {ask.index} is still {ask.state} after 1000 polls: {cache.state}"
    )


def leaf(cache: CacheView, tree: MapView, index: int, *, create: bool = False) -> NodeRequest:
    return settled(cache, tree.ask(0, index, create))


def put(cache: CacheView, tree: MapView, block: int, pointer: Pointer | None, sequence: int) -> Pointer | None:
    ask = leaf(cache, tree, block // 256, create=True)
    before = tree.set(ask, block % 256, pointer, sequence)
    ask.release()
    return before


class Images:
    """Where images of nodes go: the segments of a cache's device, one block after another."""

    def __init__(self, cache: CacheView) -> None:
        self.cache = cache
        self.room = iter(
            [(segment, block) for segment in cache.segment_numbers for block in range(cache.segment_blocks)]
        )

    def write(self, data: bytes) -> Pointer:
        segment, block = next(self.room)
        self.cache.write_block(segment, block, data)
        return segment, block, checksum(data)

    def write_back(self, tree: MapView, sequence: int) -> Pointer | None:
        """Everything that is dirty, bottom up; returns the root."""
        for level in range(LEVELS):
            while (index := tree.next_dirty(level, sequence)) is not None:
                empty = tree.is_empty(level, index)
                data = tree.take_image(level, index)
                tree.image_committed(level, index, None if empty else self.write(data), sequence)
        return tree.root

    def read(self, root: Pointer | None) -> dict[int, Pointer]:
        """The whole tree below a root, straight from the device."""
        return {block: pointer for (level, block), pointer in self.walk(root) if level == 0}

    def nodes(self, root: Pointer | None) -> set[Pointer]:
        """Every image that the tree below a root consists of."""
        return ({root} if root else set()) | {pointer for (level, _), pointer in self.walk(root) if level}

    def walk(self, pointer: Pointer | None, level: int = LEVELS - 1, index: int = 0) -> Iterator[tuple[Node, Pointer]]:
        """Each pointer below, as (level of the node it is in, number of what it points to)."""
        if pointer is None:
            return
        data = self.cache.read_block(*pointer[:2])
        assert checksum(data) == pointer[2], (
            f"the image of level {level} index {index} at {pointer} is not what its pointer says"
        )
        for slot in range(256):
            segment, block, crc, flags = (
                int.from_bytes(data[slot * 16 + at : slot * 16 + at + 4], "little") for at in range(0, 16, 4)
            )
            if flags:
                yield (level, index * 256 + slot), (segment, block, crc)
                if level:
                    yield from self.walk((segment, block, crc), level - 1, index * 256 + slot)


@pytest.fixture
def cache() -> CacheView:
    return CacheView(64)


@pytest.fixture
def tree(cache: CacheView) -> MapView:
    return MapView(cache)


def test_nothing_is_mapped_in_an_empty_map(cache: CacheView, tree: MapView) -> None:
    assert leaf(cache, tree, 12345).state == "absent"
    assert cache.state["used"] == 0


def test_what_was_set_is_found_and_the_pointer_before_is_returned(cache: CacheView, tree: MapView) -> None:
    assert put(cache, tree, 700, (DATA, 1, 11), 1) is None
    assert put(cache, tree, 700, (DATA, 2, 22), 2) == (DATA, 1, 11)
    ask = leaf(cache, tree, 2)
    assert ask.pointers() == {700 % 256: (DATA, 2, 22)}
    ask.release()
    assert leaf(cache, tree, 3).state == "absent"


def test_the_first_and_the_last_block_of_the_tree_have_a_leaf(cache: CacheView, tree: MapView) -> None:
    last = 256**LEVELS - 1
    put(cache, tree, 0, (DATA, 1, 1), 1)
    put(cache, tree, last, (DATA, 2, 2), 2)
    images = Images(cache)
    assert images.read(images.write_back(tree, 2)) == {0: (DATA, 1, 1), last: (DATA, 2, 2)}


def test_a_map_read_back_from_its_root_is_the_same(cache: CacheView, tree: MapView) -> None:
    images = Images(cache)
    blocks = [0, 1, 255, 256, 65536, 2**24 - 1, 2**33]
    for sequence, block in enumerate(blocks, 1):
        put(cache, tree, block, (DATA, sequence, sequence), sequence)
    root = images.write_back(tree, len(blocks))
    assert cache.state["dirty"] == 0
    again = MapView(cache)
    again.root = root
    for sequence, block in enumerate(blocks, 1):
        ask = leaf(cache, again, block // 256)
        assert ask.pointers()[block % 256] == (DATA, sequence, sequence)
        ask.release()


def test_those_who_want_the_same_node_share_one_read(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    again = MapView(cache)
    again.root = Images(cache).write_back(tree, 1)
    asks = [again.ask(0, 0) for _ in range(10)]
    asks = [settled(cache, ask) for ask in asks]
    assert cache.state["misses"] == LEVELS
    assert all(ask.pointers() == {0: (DATA, 1, 1)} for ask in asks)


def test_what_is_expected_is_loaded_with_all_that_is_above_it(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    put(cache, tree, 256, (DATA, 2, 2), 2)
    again = MapView(cache)
    again.root = Images(cache).write_back(tree, 2)
    for index in (0, 1, 0, 7, 2**30):
        again.expect(0, index)
    while cache.poll():
        pass
    assert cache.state["misses"] == LEVELS + 1, "what is absent is not loaded"
    assert again.ask(0, 0).pointers() == {0: (DATA, 1, 1)}
    assert again.ask(0, 1).pointers() == {0: (DATA, 2, 2)}


def test_expectations_beyond_number_or_room_are_dropped() -> None:
    cache = CacheView(512)
    tree = MapView(cache)
    for index in range(300):
        put(cache, tree, index * 256, (DATA, index, index), index + 1)
    root = Images(cache).write_back(tree, 300)
    held = [leaf(cache, tree, index, create=True) for index in range(300, 500)]
    again = MapView(cache)
    again.root = root
    for index in range(300):
        again.expect(0, index)
    while cache.poll():
        pass
    assert cache.state == cache.state | {"loading": 0, "starving": False}
    assert LEVELS < cache.state["misses"] <= LEVELS - 1 + 64
    for ask in held:
        ask.release()
    assert leaf(cache, again, 299).pointers() == {0: (DATA, 299, 299)}


def test_an_unreadable_expectation_is_ignored(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    again = MapView(cache)
    again.root = Images(cache).write_back(tree, 1)
    cache.fail_reads(1)
    again.expect(0, 0)
    while cache.poll():
        pass
    assert again.load_errors == 1
    leaf(cache, again, 0).release()
    again.forget()


def test_a_volume_whose_log_broke_forgets_images_that_will_never_commit(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    tree.take_image(0, 0)
    tree.forget()
    assert cache.state == cache.state | {"used": 0, "dirty": 0}


def test_a_damaged_node_is_an_error_and_is_read_again_next_time(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    again = MapView(cache)
    again.root = (segment, block, _) = Images(cache).write_back(tree, 1) or (0, 0, 0)
    good = cache.read_block(segment, block)
    for byte in (0, 1, 2048, 4095):
        cache.write_block(segment, block, good[:byte] + bytes([good[byte] ^ 0x10]) + good[byte + 1 :])
        asks = [settled(cache, ask) for ask in [again.ask(0, 0), again.ask(0, 0)]]
        assert [(ask.state, ask.error) for ask in asks] == [("failed", errno.EILSEQ)] * 2
    assert again.load_errors == 4
    cache.write_block(segment, block, good)
    assert leaf(cache, again, 0).pointers() == {0: (DATA, 1, 1)}


def test_a_read_error_reaches_all_waiters_and_frees_the_frame(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    again = MapView(cache)
    again.root = (segment, block, _) = Images(cache).write_back(tree, 1) or (0, 0, 0)
    tree.forget()
    cache.fail_block(segment, block, True)
    asks = [settled(cache, ask) for ask in [again.ask(0, 0), again.ask(0, 1), again.ask(1, 0)]]
    assert [(ask.state, ask.error) for ask in asks] == [("failed", errno.EIO)] * 3
    assert cache.state["used"] == 0
    cache.fail_block(segment, block, False)
    assert leaf(cache, again, 0).state == "ready"


@pytest.mark.parametrize("pointer", [(77, 0, 1), (1, CacheView.segment_blocks, 1), (1, 2**32 - 1, 1)])
def test_a_pointer_to_a_missing_block_is_an_error(cache: CacheView, tree: MapView, pointer: Pointer) -> None:
    tree.root = pointer
    ask = tree.ask(0, 0, create=True)
    assert ask.state == "waiting", "an error is not told before get returns"
    assert (settled(cache, ask).state, ask.error) == ("failed", errno.EIO)


def test_a_map_that_empties_leaves_no_tree(cache: CacheView, tree: MapView) -> None:
    images = Images(cache)
    for block in (5, 2**30):
        put(cache, tree, block, (DATA, 1, 1), 1)
    images.write_back(tree, 1)
    put(cache, tree, 5, None, 2)
    root = images.write_back(tree, 2)
    assert images.read(root) == {2**30: (DATA, 1, 1)}
    assert len(images.nodes(root)) == LEVELS, "the empty half of the tree is gone"
    put(cache, tree, 2**30, None, 3)
    assert images.write_back(tree, 3) is None


def test_a_node_that_was_never_filled_dirties_nothing(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 5, None, 1)
    tree.take_image(0, 0)
    assert tree.image_committed(0, 0, None, 1) is None
    assert cache.state["dirty"] == 0, "its parent had no pointer to it and has none"


def test_an_empty_node_is_not_empty_while_an_older_image_of_it_is_in_the_log(cache: CacheView, tree: MapView) -> None:
    images = Images(cache)
    put(cache, tree, 5, (DATA, 1, 1), 1)
    older = images.write(tree.take_image(0, 0))
    put(cache, tree, 5, None, 2)
    assert not tree.is_empty(0, 0), "the older image would be committed over it"
    newer = images.write(tree.take_image(0, 0))
    assert tree.image_committed(0, 0, older, 3) is None
    assert tree.image_committed(0, 0, newer, 3) == older
    assert images.read(images.write_back(tree, 3)) == {}


def test_a_checkpoint_needs_a_node_that_changed_again_behind_its_image(cache: CacheView, tree: MapView) -> None:
    images = Images(cache)
    put(cache, tree, 0, (DATA, 1, 1), 1)
    older = images.write(tree.take_image(0, 0))
    put(cache, tree, 0, (DATA, 2, 2), 2)
    tree.freeze = 2
    assert tree.must_write_first(0, 0), "the image under way is of record 1"
    newer = images.write(tree.take_image(0, 0))
    put(cache, tree, 0, (DATA, 3, 3), 3)
    tree.image_committed(0, 0, older, 4)
    assert tree.images == 1
    tree.image_committed(0, 0, newer, 4)
    assert images.read(images.write_back(tree, 2)) == {0: (DATA, 2, 2)}


def test_a_node_with_an_image_in_the_log_waits_for_its_commit_before_the_next(cache: CacheView, tree: MapView) -> None:
    put(cache, tree, 0, (DATA, 1, 1), 1)
    put(cache, tree, 256, (DATA, 2, 2), 2)
    first = Images(cache).write(tree.take_image(0, 0))
    put(cache, tree, 0, (DATA, 3, 3), 3)
    assert tree.next_dirty(0, 3) == 1, "oldest first"
    assert tree.take_image(0, 1)
    assert tree.next_dirty(0, 3) is None, "it is dirty again, but its image is under way"
    tree.image_committed(0, 0, first, 4)
    assert tree.next_dirty(0, 3) == 0
    assert tree.next_dirty(1, 3) is None
    assert tree.next_dirty(1, 4) == 0, "its parent became dirty by the record that carried it"


def test_a_checkpoint_holds_what_was_and_not_what_came_after(cache: CacheView, tree: MapView) -> None:
    images = Images(cache)
    put(cache, tree, 0, (DATA, 1, 1), 1)
    put(cache, tree, 256, (DATA, 2, 2), 2)
    tree.freeze = 2
    assert tree.must_write_first(0, 0)
    pointer = images.write(tree.take_image(0, 0))
    assert not tree.must_write_first(0, 0)
    put(cache, tree, 0, (DATA, 3, 3), 3)
    put(cache, tree, 512, (DATA, 4, 4), 4)
    for index in (0, 2):
        assert not tree.must_write_first(0, index), "what became dirty since is none of its business"
    tree.image_committed(0, 0, pointer, 5)
    assert tree.next_dirty(1, 2) == 0, "the parent belongs to the checkpoint although a later record carried the image"
    root = images.write_back(tree, 2)
    assert images.read(root) == {0: (DATA, 1, 1), 256: (DATA, 2, 2)}
    assert tree.images == 0
    tree.freeze = 0
    assert images.read(images.write_back(tree, 5)) == {0: (DATA, 3, 3), 256: (DATA, 2, 2), 512: (DATA, 4, 4)}


def test_who_finds_no_frame_is_woken_when_one_is_unpinned(cache: CacheView) -> None:
    cache = CacheView(16)
    tree = MapView(cache)
    held = [leaf(cache, tree, index, create=True) for index in range(12)]
    assert cache.state["used"] == 16
    asks = [tree.ask(0, index, create=True) for index in range(12, 15)]
    for _ in range(10):
        cache.poll()
    assert [ask.state for ask in asks] == ["waiting"] * 3
    assert not cache.wants_writeback, "nothing is dirty"
    held.pop().release()
    assert settled(cache, asks[0]).state == "ready"
    assert [ask.state for ask in asks[1:]] == ["waiting"] * 2
    assert [ask.wakes for ask in asks] == [1, 1, 0], "one frame does not wake a crowd"
    for ask in held:
        ask.release()
    assert [settled(cache, ask).state for ask in asks] == ["ready"] * 3


def test_who_finds_every_frame_dirty_is_woken_by_a_write_back() -> None:
    cache = CacheView(16)
    tree, images = MapView(cache), Images(CacheView(16))
    images.cache = cache
    for index in range(12):
        put(cache, tree, index * 256, (DATA, index, index), index + 1)
        assert cache.wants_writeback == (index >= 8), "more than half is dirty"
    ask = tree.ask(0, 12, create=True)
    for _ in range(10):
        cache.poll()
    assert ask.state == "waiting"
    pointer = images.write(tree.take_image(0, 0))
    cache.poll()
    assert ask.state == "waiting", "an image in the log does not free its node"
    tree.image_committed(0, 0, pointer, 13)
    assert settled(cache, ask).state == "ready"
    assert leaf(cache, tree, 1).pointers() == {0: (DATA, 1, 1)}


def test_a_clean_node_that_was_used_lately_outlives_one_that_was_not() -> None:
    cache = CacheView(16)
    tree = MapView(cache)
    images = Images(cache)
    for index in range(64):
        put(cache, tree, index * 256, (DATA, index, index), index + 1)
        if index % 4 == 3:
            images.write_back(tree, index + 1)
    leaf(cache, tree, 0).release()
    misses = cache.state["misses"]
    for index in range(1, 64):
        leaf(cache, tree, index).release()
        leaf(cache, tree, 0).release()
    assert cache.state["misses"] - misses <= 63, "the hot leaf was evicted"


def test_a_crowd_that_needs_more_than_the_cache_holds_is_served_in_turn() -> None:
    """Every one of 300 wants a leaf of its own, spread over the whole tree, in a cache of 16 nodes."""
    cache = CacheView(16, seed=3)
    tree, images = MapView(cache), Images(cache)
    spread = [index * 0x01010101 % 2**32 for index in range(1, 301)]
    for sequence, index in enumerate(spread, 1):
        put(cache, tree, index * 256, (DATA, sequence, sequence), sequence)
        images.write_back(tree, sequence)
    for eager in (True, False):
        again = MapView(cache, eager)
        again.root = tree.root
        waiting = {sequence: again.ask(0, index) for sequence, index in enumerate(spread, 1)}
        polls = 0
        while waiting:
            polls += 1
            assert polls < 20_000, f"{len(waiting)} of 300 still wait: {cache.state}"
            cache.poll()
            for sequence, ask in list(waiting.items()):
                if ask.state == "woken":
                    ask.again()
                if ask.state == "ready":
                    assert ask.pointers() == {0: (DATA, sequence, sequence)}
                    ask.release()
                    del waiting[sequence]
        assert cache.state == cache.state | {"starving": False, "loading": 0}
        again.forget()


def test_a_volume_that_closes_gives_its_frames_back() -> None:
    cache = CacheView(32)
    one, other = MapView(cache), MapView(cache)
    for index in range(10):
        put(cache, one, index * 256, (DATA, 1, 1), index + 1)
        put(cache, other, index * 256, (DATA, 2, 2), index + 1)
    one.forget()
    assert cache.state == cache.state | {"used": 14, "dirty": 10}
    assert leaf(cache, other, 3).pointers() == {0: (DATA, 2, 2)}
    assert leaf(cache, one, 3).state == "absent"


def test_a_cache_too_small_for_a_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="a map cache of 15 nodes is too small: it needs at least 16"):
        CacheView(15)


# ---------------------------------------------------------------------- any order of everything


@dataclass
class Change:
    """A write that holds its leaf until its record commits."""

    blocks: dict[int, Pointer | None]
    ask: NodeRequest


@dataclass
class Image:
    node: Node
    pointer: Pointer


@dataclass
class Record:
    sequence: int
    parts: list[Change | Image] = field(default_factory=list)


@dataclass
class Checkpoint:
    sequence: int
    blocks: dict[int, Pointer]


class Volume:
    """A volume on its map, as the engine's log drives it: changes and images join records, records commit in order."""

    def __init__(self, cache: CacheView, images: Images, draw: random.Random, *, eager: bool) -> None:
        self.cache, self.images, self.draw = cache, images, draw
        self.tree = MapView(cache, eager)
        self.model: dict[int, Pointer] = {}
        self.born: set[Pointer] = set()
        self.building = Record(1)
        self.under_way: list[Record] = []
        self.committed = 0
        self.stamp = 0
        # with what to change, or None to look
        self.asks: list[tuple[NodeRequest, dict[int, Pointer | None] | None]] = []
        self.checkpoint: Checkpoint | None = None
        self.checkpoints = 0
        self.leaves = [draw.randrange(2 ** draw.choice((3, 5, 10, 32))) for _ in range(draw.randint(4, 60))]

    def fresh(self) -> Pointer:
        self.stamp += 1
        return DATA, self.stamp, self.stamp

    def ask(self) -> None:
        index = self.leaves[0] if self.draw.random() < 0.3 else self.draw.choice(self.leaves)
        slots = self.draw.sample(range(256), self.draw.randint(1, 5))
        kind = self.draw.random()
        blocks: dict[int, Pointer | None] | None = None
        if kind < 0.5:
            blocks = {index * 256 + slot: self.fresh() for slot in slots}
        elif kind < 0.7:
            blocks = {index * 256 + slot: None for slot in range(256)}
        self.asks.append((self.tree.ask(0, index, create=blocks is not None), blocks))

    def serve(self) -> None:
        """What the map has answered: looks are compared, changes join the record that is being built."""
        for ask, blocks in list(self.asks):
            if ask.state == "woken":
                ask.again()
            if ask.state == "waiting":
                continue
            if ask.state == "failed":
                assert ask.error == errno.EIO
                ask.again()
                continue
            self.asks.remove((ask, blocks))
            if blocks is not None:
                assert ask.state == "ready"
                self.building.parts.append(Change(blocks, ask))
                continue
            there = {block: pointer for block, pointer in self.model.items() if block // 256 == ask.index}
            if ask.state == "absent":
                assert not there, f"leaf {ask.index} is absent and has {len(there)} blocks"
            else:
                assert {ask.index * 256 + slot: pointer for slot, pointer in ask.pointers().items()} == there
                ask.release()

    def close_record(self) -> None:
        if self.building.parts:
            self.under_way.append(self.building)
            self.building = Record(self.building.sequence + 1)

    def died(self, pointer: Pointer | None) -> None:
        if pointer is not None:
            assert pointer in self.born, f"{pointer} died twice"
            self.born.remove(pointer)

    def append_image(self, node: Node) -> None:
        if self.tree.is_empty(*node):
            self.tree.take_image(*node)
            self.died(self.tree.image_committed(*node, None, self.committed))
        else:
            self.building.parts.append(Image(node, self.images.write(self.tree.take_image(*node))))

    def commit(self) -> None:
        if not self.under_way:
            return
        record = self.under_way.pop(0)
        self.committed = record.sequence
        for part in record.parts:
            if isinstance(part, Image):
                self.born.add(part.pointer)
                self.died(self.tree.image_committed(*part.node, part.pointer, record.sequence))
                continue
            if self.tree.must_write_first(0, part.ask.index):
                self.append_image((0, part.ask.index))
            for block, pointer in part.blocks.items():
                before = self.tree.set(part.ask, block % 256, pointer, record.sequence)
                assert before == self.model.pop(block, None), f"block {block}"
                self.died(before)
                if pointer is not None:
                    self.model[block] = pointer
                    self.born.add(pointer)
            part.ask.release()

    def begin_checkpoint(self) -> None:
        if self.checkpoint is None and self.committed:
            self.checkpoint = Checkpoint(self.committed, dict(self.model))
            self.tree.freeze = self.committed

    def write_back(self) -> None:
        """One node, if a checkpoint runs or the cache wants it; the checkpoint ends here."""
        if self.checkpoint is None and not self.cache.wants_writeback and self.draw.random() < 0.9:
            return
        up_to = self.tree.freeze or self.committed
        levels = range(LEVELS) if self.draw.random() < 0.8 else self.draw.sample(range(LEVELS), LEVELS)
        for level in levels:
            if (index := self.tree.next_dirty(level, up_to)) is not None:
                self.append_image((level, index))
                return
            if level == 0 and self.tree.images and self.draw.random() < 0.9:
                return  # usually the leaves' images commit first
        if self.checkpoint is not None and self.tree.images == 0:
            self.end_checkpoint(self.checkpoint)

    def end_checkpoint(self, checkpoint: Checkpoint) -> None:
        assert self.images.read(self.tree.root) == checkpoint.blocks, (
            f"the checkpoint is not the map at record {checkpoint.sequence}"
        )
        self.checkpoint = None
        self.tree.freeze = 0
        self.checkpoints += 1

    def wind_down(self) -> bool:
        """A turn without new work; whether nothing is left and the last checkpoint holds everything."""
        self.cache.poll()
        self.serve()
        self.write_back()
        self.close_record()
        self.commit()
        if self.asks or self.under_way or self.building.parts or self.checkpoint is not None:
            return False
        if self.tree.next_dirty(0, self.committed) is None and self.images.read(self.tree.root) == self.model:
            return True
        self.begin_checkpoint()
        return False

    def close(self) -> None:
        """What lives is exactly what the tree reaches."""
        assert self.born == set(self.model.values()) | self.images.nodes(self.tree.root)
        self.tree.forget()


@pytest.mark.parametrize("seed", range(24))
def test_any_order_of_changes_evictions_and_checkpoints_agrees_with_a_dictionary(seed: int) -> None:
    draw = random.Random(seed)
    cache = CacheView(draw.choice((20, 24, 32, 64)), seed)
    images = Images(cache)
    volumes = [Volume(cache, images, draw, eager=draw.random() < 0.5) for _ in range(draw.randint(1, 2))]
    held = cache.state["frames"] // 12  # of each volume; each holds a leaf and its ancestors
    for _ in range(6000):
        volume = draw.choice(volumes)
        match draw.random():
            case chance if chance < 0.25:
                if len(volume.asks) + sum(len(record.parts) for record in [volume.building, *volume.under_way]) < held:
                    volume.ask()
            case chance if chance < 0.50:
                cache.poll()
                volume.serve()
            case chance if chance < 0.65:
                volume.close_record()
            case chance if chance < 0.80:
                volume.commit()
            case chance if chance < 0.81:
                volume.begin_checkpoint()
            case chance if chance < 0.812:
                cache.fail_reads(draw.randint(1, 3))
            case _:
                volume.write_back()
    for _ in range(5000):
        quiet = [volume.wind_down() for volume in volumes]
        if all(quiet):
            break
    else:
        raise AssertionError(f"{[len(volume.asks) for volume in volumes]} gets are not answered: {cache.state}")
    for volume in volumes:
        volume.close()
    assert all(volume.checkpoints for volume in volumes)
    assert cache.state == cache.state | {"used": 0, "dirty": 0, "loading": 0, "starving": False}
