# The free space of one device.
#
# Always true:
#   - a slab is free, or it belongs to exactly one segment replica;
#   - `free` is the number of zero bits in `taken`;
#   - nothing here is durable: the store rebuilds it from its directory when it opens, so a disagreement cannot outlive
#     the process.
#
# Called by the store alone, on the reactor's thread. Format: none (docs/formats.md, "Slabs").
#
# A segment's slabs are taken at once, in long runs, so that few records span extents. Each take searches the bitmap
# once around for the longest run, from the end of the last one, and skips runs of equal bits. The worst case, a 16 TiB
# device (8 MiB of bitmap) with every word mixed, takes 4 ms per search (measured), at most a few times per 64 MiB
# written.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.atomics cimport store_uint32
from iomesh.engine.base.invariant cimport invariant

cdef extern from *:
    uint32_t trailing_zeros "__builtin_ctzll" (uint64_t bits) noexcept nogil


cdef class Slabs:
    """Which slabs of a device are taken; none exists before begin()."""

    def __dealloc__(self):
        release(self.taken)

    cdef bint begin(self, uint32_t total) noexcept nogil:
        """There are `total` slabs and all are free. False: no memory for them."""
        invariant(self.taken is NULL, b"the slabs of a device are counted once")
        self.words = (total + 63) // 64
        self.taken = <uint64_t*>calloc(self.words, sizeof(uint64_t))
        if self.taken is NULL:
            return False
        self.total = self.free = total
        if total % 64:
            self.taken[self.words - 1] = ~<uint64_t>0 << (total % 64)
        return True

    cdef int take(self, uint32_t wanted, Extent* into, int room) noexcept nogil:
        """Take `wanted` slabs in few extents. Returns the number of extents written to `into`; 0: that many slabs are
        not free in at most `room` extents, and nothing was taken."""
        cdef uint32_t got = 0
        cdef int count = 0
        if wanted > self.free:
            return 0
        while got < wanted and count < room:
            into[count] = self.longest_run(wanted - got)
            self.mark(into[count], True)
            got += into[count].count
            count += 1
        if got < wanted:
            self.give_back(into, count)
            return 0
        return count

    cdef void give_back(self, const Extent* extents, int count) noexcept nogil:
        cdef int i
        for i in range(count):
            self.mark(extents[i], False)

    cdef bint claim(self, Extent extent) noexcept nogil:
        """Take exactly these slabs, for the directory. False: one lies beyond the device or is taken; nothing was
        taken."""
        cdef uint32_t slab
        if extent.count == 0 or extent.first >= self.total or extent.count > self.total - extent.first:
            return False
        for slab in range(extent.first, extent.first + extent.count):
            if self.is_taken(slab):
                return False
        self.mark(extent, True)
        return True

    cdef bint is_taken(self, uint32_t slab) noexcept nogil:
        invariant(slab < self.total, b"a slab number lies on the device")
        return (self.taken[slab // 64] >> (slab % 64)) & 1

    cdef Extent longest_run(self, uint32_t wanted) noexcept nogil:
        """The longest free run, cut to `wanted` slabs; a run that is long enough ends the search."""
        cdef Extent best, run
        cdef uint32_t looked, word, bit, length
        best.first = best.count = run.first = run.count = 0
        for looked in range(self.words + 1):    # the first word twice: a run may begin in it and end at the cursor
            word = (self.cursor + looked) % self.words
            if word == 0:
                run.count = 0                                 # a run does not wrap around at the device's end
            bit = 0
            while bit < 64 and best.count < wanted:
                length = equal_bits(self.taken[word], bit)
                if self.taken[word] >> bit & 1:
                    run.count = 0
                else:
                    if run.count == 0:
                        run.first = word * 64 + bit
                    run.count += length
                    if run.count > best.count:
                        best = run
                bit += length
            if best.count >= wanted:
                best.count = wanted
                break
        self.cursor = (best.first + best.count) // 64 % self.words
        return best

    cdef void mark(self, Extent extent, bint taken) noexcept nogil:
        cdef uint32_t slab
        cdef uint64_t bit
        for slab in range(extent.first, extent.first + extent.count):
            invariant(self.is_taken(slab) != taken, b"a slab is taken once and given back once")
            bit = <uint64_t>1 << (slab % 64)
            self.taken[slab // 64] ^= bit
        if taken:
            store_uint32(self.free, self.free - extent.count)
        else:
            store_uint32(self.free, self.free + extent.count)


cdef inline uint32_t equal_bits(uint64_t word, uint32_t start) noexcept nogil:
    """The number of bits of `word` from `start` on that equal the bit at `start`."""
    cdef uint64_t differing = (word if word >> start & 1 == 0 else ~word) >> start
    return 64 - start if differing == 0 else trailing_zeros(differing)


cdef class SlabsView:
    """The same, for tests and `iomesh inspect`: extents as (first, count)."""

    cdef Slabs slabs

    def __init__(self, total: int) -> None:
        self.slabs = Slabs()
        if not self.slabs.begin(total):
            raise MemoryError(f"no memory for the bitmap of {total} slabs")

    @property
    def free(self) -> int:
        return self.slabs.free

    def take(self, wanted: int, room: int = 8) -> list[tuple[int, int]]:
        cdef Extent[32] extents
        if not 1 <= room <= 32:
            raise ValueError(f"room is 1 to 32 extents, not {room}")
        return [(extents[i].first, extents[i].count) for i in range(self.slabs.take(wanted, extents, room))]

    def give_back(self, first: int, count: int) -> None:
        cdef Extent extent
        extent.first, extent.count = first, count
        self.slabs.give_back(&extent, 1)

    def claim(self, first: int, count: int) -> bool:
        cdef Extent extent
        extent.first, extent.count = first, count
        return self.slabs.claim(extent)
