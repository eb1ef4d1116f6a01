# The map: a copy-on-write radix tree of 4 KiB nodes, and the cache of its nodes. docs/formats.md, "Map nodes".
#
# The pointer to the node of level L at index i is in slot i % 256 of the node of level L + 1 at index i / 256; the
# pointer to the root (level 4, index 0) is in `root`. A pointer addresses the last committed *image* of a node. The
# newest state of a node that differs from it is in the cache, so a dirty node is never evicted.
#
# States of a frame:
#
#     FREE ──get, absent and create──────────> READY <──pins, sets, images──┐
#       ├───get, present──> LOADING ──read──────> │ ────────────────────────┘
#       ^                      └─error──┐         │
#       └───────────────────────────────┴─evicted─┘     only READY, clean, unpinned, no image in the log
#
# Always true:
#   - a cached node's parent is cached, READY and pinned by it: write-back never has to read a node or find a frame;
#   - only get() creates nodes and only take() evicts them. Neither runs callbacks: waiters are woken from the Io's
#     poll, and `on_starving` only requests a write-back at the end of the turn;
#   - only set() changes leaves and only image_committed() the levels above, both in the order of the log;
#   - every waiter in `starved` is woken. There are waiters only while no frame can be evicted (`no_free_frame`, and
#     `on_starving` was called), or the loads are at their limit, or `rousal` is pending; when either of the first two
#     ends, `rousal` is started. It wakes one waiter after another until one starves again: no waiter sleeps while a
#     frame is free, and one free frame does not wake all of them;
#   - a load holds at most five frames (its own and its ancestors'), and the limit on loads keeps these within half of
#     the cache: a waiter for a load gets a frame for the next level as long as pins and dirty nodes leave some.
#
# Write-back and exact checkpoints. An image of a node is logged like a write. image_taken() is called when it is
# copied; after that a change makes the node dirty again. image_committed() is called when its record commits: the
# parent's slot changes, which makes the parent dirty. Images commit in the order in which they were taken.
# `dirty_since` is the record that made a clean node dirty:
#   - a level's dirty list is ordered by dirty_since, oldest first, since records apply in order;
#   - a checkpoint at S sets `freeze` to S, the newest committed record. It needs exactly the nodes that are dirty since
#     S or before, in their state at S (the set). A node that became dirty after S, even after it was written for this
#     checkpoint, has a later dirty_since and waits for the next one;
#   - so before a leaf of the set changes, its image is taken (must_write_first), even if an older image of it is still
#     in flight; set() asserts this;
#   - while freeze is set, every image that commits belongs to the checkpoint: those taken before S show a state at S or
#     before, and those taken since are of the set. So a parent that such a commit makes dirty belongs to the set, too,
#     whatever the number of the image's record: it is dirty since min(record, S). Above the leaves, changes after S are
#     never mixed in;
#   - the set is finite and shrinks: a leaf leaves it once, an inner node once per commit of its children's images. The
#     checkpoint ends when next_dirty() has none at any level and no image is in the log (`images`): then `root` is the
#     tree at S.
# A node without pointers is not written: its image is the zero pointer, committed at once. That would overtake an image
# of the node that is still in the log, so is_empty() is False while there is one.
#
# Nothing is allocated after construction. Frames, hash table and nodes are mapped lazily and used from the front, so a
# small volume touches little memory.
# A hit costs one probe: its bucket, the first 64 bytes of the node.

from libc.errno cimport EAGAIN, EILSEQ, EIO, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from iomesh.engine.store.bitmaps cimport Bitmaps, place_of
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation, release_mapping
from iomesh.engine.format.layout cimport BLOCK_BYTES, MAP_LEVELS, NODE_POINTERS, POINTER_PRESENT, Pointer, node_valid
from iomesh.engine.base.planted cimport planted
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.base.task cimport Waiters, join, wait_in, wake_all, wake_one

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE

cdef Node absent
ABSENT = &absent


cdef uint64_t MENDED = ~<uint64_t>0                      # Node.serial of a node that comes from elsewhere


cdef class Map:
    """A volume's map. The caller sets `root` and fills `segments`."""

    def __cinit__(self, MapCache cache, Io io, SegmentTable segments):
        self.cache = cache
        self.io = io
        self.segments = segments

    # ------------------------------------------------------------------ reading and changing

    cdef Node* get(self, int level, uint64_t index, bint create, Operation* when) noexcept nogil:
        cdef Node* node = cached(self, level, index)
        if node is NULL:
            return self.fetch(level, index, create, when)
        if node.state != NODE_READY:
            if when is not NULL:
                join(&node.waiters, when)
            return NULL
        node.pins += 1
        node.recent = True
        self.cache.hits += 1
        return node

    cdef Node* peek(self, int level, uint64_t index) noexcept nogil:
        cdef Node* node = cached(self, level, index)
        return node if node is not NULL and node.state == NODE_READY else NULL

    cdef void unpin(self, Node* node) noexcept nogil:
        invariant(node.pins > 0, b"a node is unpinned as often as it was pinned")
        node.pins -= 1
        if node.pins == 0 and self.cache.no_free_frame:
            fell_idle(self.cache, node)

    cdef Pointer set(self, Node* node, uint32_t slot, Pointer pointer, uint64_t sequence) noexcept nogil:
        cdef Pointer before = node.pointers[slot]
        invariant(node.pins > 0 and node.level == 0, b"a leaf that changes is pinned")
        if not node.dirty:
            self.mark_dirty(node, sequence)
        else:
            invariant(
                node.dirty_since > self.freeze or sequence <= self.freeze,
                b"what a checkpoint needs is written before it changes",
            )
        node.pointers[slot] = pointer
        return before

    cdef bint renew(self, Node* node, uint32_t segment, uint32_t block, uint64_t since) noexcept nogil:
        cdef Pointer* image = pointer_to(self, node)
        invariant(self.freeze == 0, b"what a checkpoint needs is settled when it begins")
        if (
            node.dirty
            or node.in_log
            or not image.flags & POINTER_PRESENT
            or image.segment != segment
            or image.block != block
        ):
            return False
        self.mark_dirty(node, since)
        return True

    # ------------------------------------------------------------------ writing back

    cdef Node* next_dirty(self, int level, uint64_t up_to) noexcept nogil:
        cdef Node* node = self.dirty_first[level]
        while node is not NULL and node.in_log and node.dirty_since <= up_to:
            node = node.dirty_next
        return node if node is not NULL and node.dirty_since <= up_to else NULL

    cdef bint must_write_first(self, Node* node) noexcept nogil:
        return node.dirty and node.dirty_since <= self.freeze and not planted(b"changed_under_checkpoint")

    cdef bint is_empty(self, Node* node) noexcept nogil:
        # the second half compares the node with itself, one pointer on
        return (
            node.in_log == 0
            and is_zero(node.pointers)
            and memcmp(node.pointers, node.pointers + 1, BLOCK_BYTES - sizeof(Pointer)) == 0
        )

    cdef void image_taken(self, Node* node) noexcept nogil:
        invariant(
            node.dirty and (self.freeze == 0 or node.dirty_since <= self.freeze),
            b"a checkpoint writes only what it needs",
        )
        self.mark_clean(node)
        node.in_log += 1
        self.images += 1

    cdef Pointer image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil:
        cdef Node* node = cached(self, level, index)
        cdef Node* parent
        cdef Pointer* slot
        cdef Pointer before
        invariant(node is not NULL and node.in_log > 0, b"a node stays cached until its images are committed")
        parent = node.parent
        slot = &self.root if parent is NULL else &parent.pointers[index % NODE_POINTERS]
        before = slot[0]
        slot[0] = image
        if parent is not NULL and not parent.dirty and not (is_zero(&before) and is_zero(&image)):
            self.mark_dirty(parent, self.freeze if 0 < self.freeze < sequence else sequence)
        node.in_log -= 1
        self.images -= 1
        if self.cache.no_free_frame:
            fell_idle(self.cache, node)
        return before

    cdef void mark_dirty(self, Node* node, uint64_t since) noexcept nogil:
        cdef Node* last = self.dirty_last[node.level]
        invariant(since > 0 and (last is NULL or last.dirty_since <= since), b"records apply in order")
        node.dirty = True
        node.dirty_since = since
        node.dirty_next = NULL
        node.dirty_previous = last
        if last is NULL:
            self.dirty_first[node.level] = node
        else:
            last.dirty_next = node
        self.dirty_last[node.level] = node
        self.cache.dirty += 1

    cdef void mark_clean(self, Node* node) noexcept nogil:
        if node.dirty_previous is NULL:
            self.dirty_first[node.level] = node.dirty_next
        else:
            node.dirty_previous.dirty_next = node.dirty_next
        if node.dirty_next is NULL:
            self.dirty_last[node.level] = node.dirty_previous
        else:
            node.dirty_next.dirty_previous = node.dirty_previous
        node.dirty = False
        self.cache.dirty -= 1

    # ------------------------------------------------------------------ a node that is not cached

    cdef Node* fetch(self, int level, uint64_t index, bint create, Operation* when) noexcept nogil:
        cdef Node* parent = NULL
        cdef Node* node = NULL
        cdef Pointer pointer = self.root
        cdef bint present
        invariant(0 <= level < MAP_LEVELS and index >> (8 * (MAP_LEVELS - 1 - level)) == 0, b"a node lies in the tree")
        if level < MAP_LEVELS - 1:
            parent = self.get(level + 1, index // NODE_POINTERS, create, when)
            if parent is NULL or parent is ABSENT:
                return parent
            pointer = parent.pointers[index % NODE_POINTERS]
        present = pointer.flags & POINTER_PRESENT
        if present or create:
            if not present or self.cache.loading < self.cache.loads_max:
                node = self.cache.take()
            if node is NULL:
                starve(self.cache, when)
        if node is NULL:
            if parent is not NULL:
                parent.pins -= 1     # undoes the pin of get() above: this frees no frame for others
            if not present and not create:
                self.absent_level = level
                return ABSENT
            return NULL
        invariant(node.waiters.first is NULL and not node.dirty and not node.in_log, b"a free frame has no past")
        node.map = <void*>self
        node.level = level
        node.index = index
        node.parent = parent
        node.recent = True
        hash_in(self.cache, node)
        if present:
            node.pins = 0
            if when is not NULL:
                join(&node.waiters, when)
            self.load(node)
            return NULL
        memset(node.pointers, 0, BLOCK_BYTES)
        node.state = NODE_READY
        node.pins = 1
        return node

    cdef void load(self, Node* node) noexcept nogil:
        node.state = NODE_LOADING
        node.serial = 0
        self.cache.loading += 1
        self.under_way += 1
        self.cache.misses += 1
        node.load.owner = node
        self.ask(node)

    cdef void ask(self, Node* node) noexcept nogil:
        cdef Pointer* pointer = pointer_to(self, node)
        cdef Segment* segment = self.segments.locate(pointer.segment)
        cdef int64_t offset = -EIO
        cdef uint32_t contiguous
        if segment is not NULL and segment.replica is not NULL:
            node.serial = segment.replica.serial
            node.load.done = load_asked_again
            offset = place_of(self.cache.bitmaps, segment.replica, pointer.block, &contiguous, &node.load)
        if offset >= 0:
            node.load.done = load_done
            self.io.read(&node.load, segment.replica.device, node.pointers, BLOCK_BYTES, offset)
        elif offset != -EAGAIN:
            node.load.done = load_lost   # a damaged log: the address does not exist
            self.io.after(&node.load, 1)

    cdef void ask_again(self, Node* node, int64_t result) noexcept nogil:
        if result < 0:
            self.loaded(node, -EIO)
        else:
            self.ask(node)

    cdef void loaded(self, Node* node, int64_t result) noexcept nogil:
        cdef Pointer* pointer = pointer_to(self, node)
        cdef Segment* segment
        cdef Waiters waiters
        if result == BLOCK_BYTES:
            result = 0 if crc32c(node.pointers, BLOCK_BYTES) == pointer.crc and node_valid(node.pointers) else -EILSEQ
        elif result >= 0:
            result = -EIO
        if result < 0 and result != -ETIMEDOUT and node.serial != MENDED:
            segment = self.segments.locate(pointer.segment)
            if segment is not NULL and segment.replica is not NULL and segment.replica.serial != node.serial:
                self.ask(node)           # it was compacted meanwhile, and the slabs that were read may have been reused
                return
            if self.mend is not NULL:
                node.serial = MENDED
                node.load.done = load_done
                self.mend(self.mender, pointer[0], node.pointers, &node.load)
                return
        self.cache.loading -= 1
        if result == 0:
            node.state = NODE_READY
            node.pins = 1            # so that it is not evicted before all waiters have run
            wake_all(&node.waiters, 0)
            self.unpin(node)
            self.cache.rouse()
        else:
            self.load_errors += 1
            waiters = node.waiters
            node.waiters.first = node.waiters.last = NULL
            unhook(self.cache, node)
            self.cache.give_back(node)
            wake_all(&waiters, result)
        self.ended()

    # ------------------------------------------------------------------ prefetch

    cdef void expect(self, int level, uint64_t index) noexcept nogil:
        cdef Expectation* expectation = self.cache.free_expectations
        if expectation is NULL or cached(self, level, index) is not NULL:
            return
        self.cache.free_expectations = expectation.next
        self.under_way += 1
        expectation.when.done = expectation_woken
        expectation.when.owner = expectation
        expectation.map = <void*>self
        expectation.level = level
        expectation.index = index
        self.pursue(expectation)

    cdef void expectation_woken(self, Expectation* expectation, int64_t result) noexcept nogil:
        if result == 0:
            self.pursue(expectation)
        else:
            self.forgo(expectation)

    cdef void pursue(self, Expectation* expectation) noexcept nogil:
        """Descend until the node is cached or cannot be loaded."""
        cdef Node* node
        expectation.when.result = 0
        node = self.get(expectation.level, expectation.index, False, &expectation.when)
        if node is NULL and expectation.when.result == 0:
            return
        if node is not NULL and node is not ABSENT:
            self.unpin(node)
        self.forgo(expectation)

    cdef void forgo(self, Expectation* expectation) noexcept nogil:
        expectation.next = self.cache.free_expectations
        self.cache.free_expectations = expectation
        self.ended()

    cdef void ended(self) noexcept nogil:
        invariant(self.under_way > 0, b"what ends has begun")
        self.under_way -= 1
        if self.under_way == 0:
            wake_all(&self.quiet, 0)

    # ------------------------------------------------------------------ closing

    cdef void forget(self) noexcept nogil:
        cdef Node* node
        cdef uint32_t i
        cdef int level
        while self.under_way:
            wait_in(&self.quiet)
        for level in range(MAP_LEVELS):
            while self.dirty_first[level] is not NULL:
                self.mark_clean(self.dirty_first[level])
        for i in range(self.cache.touched):
            node = &self.cache.nodes[i]
            if node.state != NODE_FREE and node.map == <void*>self:
                node.in_log = 0      # images that a failed log does not commit
                hash_out(self.cache, node)
                if node.parent is not NULL:
                    node.parent.pins -= 1
        for i in range(self.cache.touched):
            node = &self.cache.nodes[i]
            if node.state != NODE_FREE and node.map == <void*>self:
                invariant(node.pins == 0, b"nobody holds a node of a volume when it closes")
                self.cache.give_back(node)
        self.images = 0


cdef inline Node* cached(Map map, int level, uint64_t index) noexcept nogil:
    cdef Node* node = map.cache.buckets[bucket_of(map.cache.hash_shift, <void*>map, level, index)]
    while node is not NULL and (node.index != index or node.level != level or node.map != <void*>map):
        node = node.hash_next
    return node


cdef inline Pointer* pointer_to(Map map, Node* node) noexcept nogil:
    return &map.root if node.parent is NULL else &node.parent.pointers[node.index % NODE_POINTERS]


cdef void load_asked_again(Operation* operation) noexcept nogil:
    cdef Node* node = <Node*>operation.owner
    (<Map>node.map).ask_again(node, operation.result)


cdef void load_done(Operation* operation) noexcept nogil:
    cdef Node* node = <Node*>operation.owner
    (<Map>node.map).loaded(node, operation.result)


cdef void load_lost(Operation* operation) noexcept nogil:
    cdef Node* node = <Node*>operation.owner
    (<Map>node.map).loaded(node, -EIO)


cdef void expectation_woken(Operation* operation) noexcept nogil:
    cdef Expectation* expectation = <Expectation*>operation.owner
    (<Map>expectation.map).expectation_woken(expectation, operation.result)


cdef inline bint is_zero(const Pointer* pointer) noexcept nogil:
    return (pointer.segment | pointer.block | pointer.crc | pointer.flags) == 0


# ---------------------------------------------------------------------- the cache

cdef class MapCache:
    """The frames of one reactor's maps.

    frames: number of nodes it holds, 4 KiB each. Raises ValueError, MemoryError.
    """

    def __cinit__(self, uint32_t frames, Io io):
        cdef uint64_t buckets = 64
        cdef int i
        if frames < CACHE_FRAMES_MIN:
            raise ValueError(
                f"a map cache of {frames} nodes is too small: it needs at least {CACHE_FRAMES_MIN} (64 KiB)"
            )
        invariant(sizeof(Node) == 256, b"a node's frame takes four cache lines")
        self.hash_shift = 58
        while buckets < 2 * <uint64_t>frames:
            buckets *= 2
            self.hash_shift -= 1
        self.frames = frames
        self.io = io
        self.loads_max = min(<uint32_t>LOADS_MAX, frames // (2 * MAP_LEVELS))
        self.bitmaps = Bitmaps(frames // 16, io)
        self.buckets_bytes = buckets * sizeof(Node*)
        self.nodes_bytes = frames * <uint64_t>sizeof(Node)
        self.memory_bytes = frames * <uint64_t>BLOCK_BYTES
        self.buckets = <Node**>lazily(self.buckets_bytes)
        self.nodes = <Node*>lazily(self.nodes_bytes)
        self.memory = <char*>lazily(self.memory_bytes)
        if self.buckets is NULL or self.nodes is NULL or self.memory is NULL:
            raise MemoryError(f"no memory for a map cache of {frames} nodes")
        for i in range(EXPECTATIONS):
            self.expectations[i].next = self.free_expectations
            self.free_expectations = &self.expectations[i]

    def __dealloc__(self):
        if self.buckets is not NULL:
            munmap(self.buckets, self.buckets_bytes)
        if self.nodes is not NULL:
            munmap(self.nodes, self.nodes_bytes)
        release_mapping(self.io, self.memory, self.memory_bytes)

    cdef Node* take(self) noexcept nogil:
        cdef Node* node
        cdef Node** place = &self.late_list
        while place[0] is not NULL:
            node = place[0]
            if self.io.holds(node.pointers, BLOCK_BYTES):
                place = &node.hash_next
            else:
                place[0] = node.hash_next
                self.used += 1
                return node
        node = self.free_list
        if node is not NULL:
            self.free_list = node.hash_next
            self.used += 1
        elif self.touched < self.frames:
            node = &self.nodes[self.touched]
            node.pointers = <Pointer*>(self.memory + self.touched * <uint64_t>BLOCK_BYTES)
            self.touched += 1
            self.used += 1
        elif not self.no_free_frame:
            node = evict(self)
            self.no_free_frame = node is NULL
        return node

    cdef void give_back(self, Node* node) noexcept nogil:
        cdef bint late = self.io.abandoned and self.io.holds(node.pointers, BLOCK_BYTES)
        cdef Node** into = &self.late_list if late else &self.free_list
        node.state = NODE_FREE
        node.hash_next = into[0]
        into[0] = node
        self.used -= 1
        self.no_free_frame = False
        self.rouse()

    cdef void rouse(self) noexcept nogil:
        if self.starved.first is not NULL and not self.rousing:
            self.rousing = True
            self.rousal.done = roused
            self.rousal.owner = <void*>self
            self.io.after(&self.rousal, 1)   # not 0: the next poll, not this one, handles what the waiters do

    cdef bint wants_writeback(self) noexcept nogil:
        return (
            self.dirty > self.frames // 2 or (self.dirty > 0 and self.no_free_frame and self.starved.first is not NULL)
        )


cdef Node* evict(MapCache cache) noexcept nogil:
    """The clock algorithm: a node used since the clock hand last passed is skipped once."""
    cdef Node* node
    cdef uint64_t _step
    for _step in range(2 * <uint64_t>cache.frames):
        node = &cache.nodes[cache.clock_hand]
        cache.clock_hand = cache.clock_hand + 1 if cache.clock_hand + 1 < cache.frames else 0
        if not evictable(node):
            continue
        if node.recent:
            node.recent = False
            continue
        unhook(cache, node)
        return node
    return NULL


cdef void starve(MapCache cache, Operation* when) noexcept nogil:
    """Queue `when` in `starved`: there is no frame, or no load may begin."""
    if when is NULL:
        return
    if when.done is expectation_woken:
        when.result = -EAGAIN        # a prefetch is given up: the node is loaded when it is needed
        return
    join(&cache.starved, when)
    cache.starvations += 1
    if cache.on_starving is not NULL and cache.no_free_frame:
        cache.on_starving(cache.keepers)


cdef inline bint evictable(const Node* node) noexcept nogil:
    return node.state == NODE_READY and not node.pins and not node.dirty and not node.in_log


cdef void unhook(MapCache cache, Node* node) noexcept nogil:
    """Remove a node from the hash table and unpin its parent."""
    cdef Node* parent = node.parent
    hash_out(cache, node)
    if parent is not NULL:
        parent.pins -= 1             # no rouse(): the caller gets this node's frame


cdef void fell_idle(MapCache cache, const Node* node) noexcept nogil:
    """A node was unpinned or its image committed while no frame was available: it may be evictable now."""
    if evictable(node):
        cache.no_free_frame = False
        cache.rouse()


cdef void roused(Operation* operation) noexcept nogil:
    wake_starved(<MapCache>operation.owner)


cdef void wake_starved(MapCache cache) noexcept nogil:
    cdef uint64_t before = cache.starvations
    cache.rousing = False
    while cache.starved.first is not NULL and cache.starvations == before:
        wake_one(&cache.starved, 0)


cdef inline uint64_t bucket_of(int shift, const void* map, int level, uint64_t index) noexcept nogil:
    cdef uint64_t key = (index << 3 | <uint64_t>level) ^ (<uint64_t>map >> 4) * <uint64_t>0xD6E8FEB86659FD93
    return (key * <uint64_t>0x9E3779B97F4A7C15) >> shift


cdef void hash_in(MapCache cache, Node* node) noexcept nogil:
    cdef Node** bucket = &cache.buckets[bucket_of(cache.hash_shift, node.map, node.level, node.index)]
    node.hash_next = bucket[0]
    bucket[0] = node


cdef void hash_out(MapCache cache, Node* node) noexcept nogil:
    cdef Node** place = &cache.buckets[bucket_of(cache.hash_shift, node.map, node.level, node.index)]
    while place[0] is not node:
        place = &place[0].hash_next
    place[0] = node.hash_next


cdef void* lazily(uint64_t count) noexcept:
    cdef void* memory = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory
