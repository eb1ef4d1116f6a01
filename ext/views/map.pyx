# A map by itself, for tests: over an Io that reads from memory; the test plays the log. The engine does not use it.
#
#     cache = CacheView(frames=16, seed=1)          the cache, its device and its segments
#     tree = MapView(cache)                         a volume's map; several may share a cache
#     ask = tree.ask(0, leaf, create=True)          get(): retries by itself when it is woken, unless `eager` is off
#     cache.poll()                                  completions, in an order drawn from the seed
#
# To measure a hit and a change: python -c 'from iomesh.engine.views.map import cost; print(cost())'

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, NODE_POINTERS, POINTER_PRESENT, SLAB_BLOCKS_MAX, SLAB_BYTES_MAX, Pointer
)
from iomesh.engine.map.map cimport ABSENT, Map, MapCache, Node
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.store.store cimport Replica, replica_offset

import time
from random import Random
from typing import Any

cdef enum:
    ASKED_MAX = 1024
    SEGMENTS = 8                     # numbered from 1
    SEGMENT_SLABS = 32               # each an extent of its own, in any order
    DEVICE = 3                       # its number in the Io


cdef class MemoryIo(Io):
    """Reads from memory, and timers; each poll completes some of the operations, in any order."""

    cdef char* device
    cdef bint* failing               # per block
    cdef Operation* asked[ASKED_MAX]
    cdef int count
    cdef uint64_t state
    cdef int failures                # the number of reads to fail, of any block

    def __cinit__(self, uint64_t device_bytes, uint64_t seed):
        self.device = <char*>calloc(device_bytes, 1)
        self.failing = <bint*>calloc(device_bytes // BLOCK_BYTES, sizeof(bint))
        self.state = seed * 2 + 1
        if self.device is NULL or self.failing is NULL:
            raise MemoryError(f"no memory for a device of {device_bytes} bytes")

    def __dealloc__(self):
        release(self.device)
        release(self.failing)

    cdef void read(self, Operation* operation, int device, void* into, uint32_t count, uint64_t offset) noexcept nogil:
        invariant(
            device == DEVICE and offset % BLOCK_BYTES == 0 and self.count < ASKED_MAX,
            b"the map reads blocks of the device",
        )
        operation.buffer = <char*>into
        operation.bytes = count
        operation.offset = offset
        self.asked[self.count] = operation
        self.count += 1

    cdef void after(self, Operation* operation, int64_t delay_ns) noexcept nogil:
        invariant(self.count < ASKED_MAX, b"there is room for a timer")
        operation.buffer = NULL
        self.asked[self.count] = operation
        self.count += 1

    cdef uint64_t random(self) noexcept nogil:
        self.state ^= self.state << 13
        self.state ^= self.state >> 7
        self.state ^= self.state << 17
        return self.state

    cdef int poll(self, int64_t wait_ns) noexcept nogil:
        cdef int left = (self.count * 3 + 3) // 4, found = 0
        cdef uint64_t drawn
        cdef Operation* operation
        while left:
            drawn = self.random() % (<uint64_t>left)     # operations issued meanwhile are appended
            operation = self.asked[drawn]
            left -= 1
            self.count -= 1
            self.asked[drawn] = self.asked[left]
            self.asked[left] = self.asked[self.count]
            operation.result = 0
            if operation.buffer is not NULL:
                if self.failures or self.failing[operation.offset // BLOCK_BYTES]:
                    self.failures -= 1 if self.failures else 0
                    operation.result = -EIO
                else:
                    memcpy(operation.buffer, self.device + operation.offset, operation.bytes)
                    operation.result = operation.bytes
            operation.done(operation)
            found += 1
        return found


cdef class CacheView:
    """A cache of `frames` nodes and the device that its maps' images are on."""

    cdef MapCache cache
    cdef MemoryIo io
    cdef SegmentTable segments
    cdef Replica* replicas

    segment_blocks = SEGMENT_SLABS * SLAB_BLOCKS_MAX
    segment_numbers = range(1, SEGMENTS + 1)

    def __init__(self, frames: int, seed: int = 1) -> None:
        cdef Segment* segment
        slabs = list(range(SEGMENTS * SEGMENT_SLABS))
        Random(seed).shuffle(slabs)
        self.io = MemoryIo(SEGMENTS * SEGMENT_SLABS * <uint64_t>SLAB_BYTES_MAX, seed)
        self.cache = MapCache(frames, self.io)
        self.segments = SegmentTable()
        self.replicas = <Replica*>calloc(SEGMENTS, sizeof(Replica))
        for number in self.segment_numbers:
            segment = self.segments.add(number)
            segment.replica = &self.replicas[number - 1]
            segment.replica.segment = number
            segment.replica.blocks = self.segment_blocks
            segment.replica.device = DEVICE
            segment.replica.extent_count = SEGMENT_SLABS
            segment.replica.slab_shift = 6               # SLAB_BLOCKS_MAX
            for i in range(SEGMENT_SLABS):
                segment.replica.extents[i].first = slabs.pop()
                segment.replica.extents[i].count = 1

    def __dealloc__(self):
        release(self.replicas)

    @property
    def state(self) -> dict[str, int]:
        return {
            "frames": self.cache.frames,
            "used": self.cache.used,
            "dirty": self.cache.dirty,
            "hits": self.cache.hits,
            "misses": self.cache.misses,
            "loading": self.cache.loading,
            "starving": self.cache.starved.first is not NULL,
        }

    @property
    def wants_writeback(self) -> bool:
        return self.cache.wants_writeback()

    def poll(self) -> int:
        return self.io.poll(0)

    def fail_reads(self, count: int) -> None:
        self.io.failures = count

    def fail_block(self, segment: int, block: int, fails: bool) -> None:
        self.io.failing[self.offset(segment, block) // BLOCK_BYTES] = fails

    def write_block(self, segment: int, block: int, data: bytes) -> None:
        assert len(data) == BLOCK_BYTES, f"a block has {BLOCK_BYTES} bytes, not {len(data)}"
        memcpy(self.io.device + <uint64_t>self.offset(segment, block), <const char*>data, BLOCK_BYTES)

    def read_block(self, segment: int, block: int) -> bytes:
        return (self.io.device + <uint64_t>self.offset(segment, block))[:BLOCK_BYTES]

    def offset(self, segment: int, block: int) -> int:
        cdef uint32_t contiguous = 0
        cdef uint64_t offset = replica_offset(self.segments.find(segment).replica, block, &contiguous)
        assert contiguous, f"segment {segment} has no block {block}"
        return offset


cdef class NodeRequest:
    """One get(). `state` is "waiting", "woken" (retry), "ready" (pinned until release), "absent", "failed" (see
    `error`), or "released"."""

    cdef MapView tree
    cdef Node* node
    cdef Operation when
    cdef readonly int level
    cdef readonly uint64_t index
    cdef readonly bint create
    cdef readonly str state
    cdef readonly int error
    cdef readonly int wakes

    def again(self) -> None:
        cdef Node* node
        self.when.done = ask_done
        self.when.owner = <void*>self
        node = self.tree.map.get(self.level, self.index, self.create, &self.when)
        if node is NULL:
            self.state = "waiting"
            self.tree.asks.add(self)
        elif node is ABSENT:
            self.state = "absent"
        else:
            self.state = "ready"
            self.node = node

    def release(self) -> None:
        assert self.state == "ready", f"level {self.level} index {self.index} is {self.state}"
        self.state = "released"
        self.tree.map.unpin(self.node)

    def pointers(self) -> dict[int, tuple[int, int, int]]:
        assert self.state == "ready", f"level {self.level} index {self.index} is {self.state}"
        return {slot: (self.node.pointers[slot].segment, self.node.pointers[slot].block, self.node.pointers[slot].crc)
                for slot in range(NODE_POINTERS) if self.node.pointers[slot].flags & POINTER_PRESENT}


cdef void ask_done(Operation* operation) noexcept with gil:
    cdef NodeRequest ask = <NodeRequest>operation.owner
    ask.tree.asks.discard(ask)
    ask.wakes += 1
    if operation.result < 0:
        ask.state = "failed"
        ask.error = -operation.result
    elif ask.tree.eager:
        ask.again()
    else:
        ask.state = "woken"


cdef class MapView:
    """A map. Pointers are (segment, block, crc) or None; `eager`: a woken get() retries at once."""

    cdef Map map
    cdef set asks
    cdef public bint eager

    def __init__(self, cache: CacheView, eager: bool = True) -> None:
        self.map = Map(cache.cache, cache.io, cache.segments)
        self.asks = set()
        self.eager = eager

    def ask(self, level: int, index: int, create: bool = False) -> NodeRequest:
        cdef NodeRequest ask = NodeRequest.__new__(NodeRequest)
        ask.tree, ask.level, ask.index, ask.create = self, level, index, create
        ask.again()
        return ask

    def expect(self, level: int, index: int) -> None:
        self.map.expect(level, index)

    def set(
        self, NodeRequest ask, slot: int, pointer: tuple[int, int, int] | None, sequence: int
    ) -> tuple[int, int, int] | None:
        assert ask.state == "ready", f"level {ask.level} index {ask.index} is {ask.state}"
        return unpack(self.map.set(ask.node, slot, pack(pointer), sequence))

    @property
    def root(self) -> tuple[int, int, int] | None:
        return unpack(self.map.root)

    @root.setter
    def root(self, pointer: tuple[int, int, int] | None) -> None:
        self.map.root = pack(pointer)

    @property
    def freeze(self) -> int:
        return self.map.freeze

    @freeze.setter
    def freeze(self, sequence: int) -> None:
        self.map.freeze = sequence

    @property
    def images(self) -> int:
        return self.map.images

    @property
    def load_errors(self) -> int:
        return self.map.load_errors

    def next_dirty(self, level: int, up_to: int) -> int | None:
        cdef Node* node = self.map.next_dirty(level, up_to)
        return None if node is NULL else node.index

    def must_write_first(self, level: int, index: int) -> bool:
        return self.map.must_write_first(self.cached(level, index))

    def is_empty(self, level: int, index: int) -> bool:
        return self.map.is_empty(self.cached(level, index))

    def take_image(self, level: int, index: int) -> bytes:
        cdef Node* node = self.cached(level, index)
        self.map.image_taken(node)
        return (<char*>node.pointers)[:BLOCK_BYTES]

    def image_committed(
        self, level: int, index: int, pointer: tuple[int, int, int] | None, sequence: int
    ) -> tuple[int, int, int] | None:
        return unpack(self.map.image_committed(level, index, pack(pointer), sequence))

    def forget(self) -> None:
        self.map.forget()

    cdef Node* cached(self, int level, uint64_t index) except NULL:
        cdef Node* node = self.map.get(level, index, False, NULL)
        if node is NULL or node is ABSENT:
            raise LookupError(f"level {level} index {index} is not cached")
        self.map.unpin(node)
        return node


cdef Pointer pack(pointer) except *:
    cdef Pointer packed
    memset(&packed, 0, sizeof(Pointer))
    if pointer is not None:
        packed.segment, packed.block, packed.crc = pointer
        packed.flags = POINTER_PRESENT
    return packed


cdef unpack(Pointer pointer):
    return (pointer.segment, pointer.block, pointer.crc) if pointer.flags & POINTER_PRESENT else None


def checksum(data: bytes) -> int:
    return crc32c(<const char*>data, len(data))


def cost(leaves: int = 16384, times: int = 5_000_000) -> dict[str, Any]:
    """Nanoseconds of this thread for a get() that hits (with its unpin) and for a set(), over random leaves."""
    cdef CacheView cache = CacheView(leaves + 1024)
    cdef MapView tree = MapView(cache)
    cdef Map map = tree.map
    cdef uint64_t state = 1, i, _i, checked = 0, leaf_count = leaves, rounds = times
    cdef Node* node
    cdef Pointer pointer
    memset(&pointer, 1, sizeof(Pointer))
    for leaf in range(leaves):
        tree.ask(0, leaf, create=True).release()
    began = time.thread_time_ns()
    with nogil:
        for _i in range(rounds):
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            checked += state % leaf_count
    drawn = time.thread_time_ns()
    with nogil:
        for _i in range(rounds):
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            node = map.get(0, state % leaf_count, False, NULL)
            map.unpin(node)
    hit = time.thread_time_ns()
    with nogil:
        for i in range(rounds):
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            node = map.get(0, state % leaf_count, False, NULL)
            map.set(node, (state >> 32) % 256, pointer, i + 1)
            map.unpin(node)
    done = time.thread_time_ns()
    return {
        "leaves": leaves,
        "hit_ns": ((hit - drawn) - (drawn - began)) / times,
        "set_ns": ((done - hit) - (hit - drawn)) / times,
        "checked": checked % 2,
    }
