# Rewriting a replica without its dead blocks. See store/compaction.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport EXTENTS_MAX, Bitmap

cdef struct Throttle:                    # limits background work: called before each step
    # In a task: returns 0 once a step that reads or writes `bytes` may begin; a negative errno aborts the work.
    # io: that of the reactor on which the work runs.
    int (*step)(void* owner, Io io, uint32_t bytes) noexcept nogil
    void* owner

cdef class Compactor:                # COMPACTIONS per store, each makes one copy at a time. Methods run in a task
    cdef Io io
    cdef Bitmap* kept                # bitmap of the copy
    cdef Bitmap* there               # bitmap of the old replica, if it is compacted
    cdef char* incoming              # the piece that was read
    cdef char* outgoing              # the piece that is written next
    cdef char* leaving               # the piece that is being written
    cdef char* footer                # the copy's footer and table ...
    cdef int footer_blocks           # ... and their length in blocks; 0: the old ones are copied unchanged
    cdef Operation writes[EXTENTS_MAX]    # of one piece, one per extent
    cdef uint32_t writing            # number of them in flight
    cdef uint32_t gathered           # blocks in `outgoing`
    cdef uint32_t written            # blocks of the copy, including those in flight

    # Builds the bitmap `kept`. 0; -EUCLEAN: the old one lacks a block that `live` names, or its bitmap is damaged;
    # -EIO.
    cdef int make_footer(self, const Replica* old) noexcept nogil
    cdef int plan(self, const Replica* old, const uint64_t* live) noexcept nogil
    cdef uint32_t blocks(self) noexcept nogil      # length of the planned copy on the device
    # Fills the slabs of `copy`; the caller flushes. 0, or a negative errno of the device or of the throttle.
    cdef int copy(self, const Replica* old, const Replica* copy, Throttle* throttle) noexcept nogil
    cdef int read(
        self, const Replica* old, uint32_t block, uint32_t end, uint32_t first, uint32_t count, Throttle* throttle
    ) noexcept nogil
    cdef int add(self, const void* block, const Replica* copy, Throttle* throttle) noexcept nogil
    cdef int write_out(self, const Replica* copy, Throttle* throttle) noexcept nogil
    cdef int await_writes(self) noexcept nogil
    cdef uint32_t place_in(self, const Replica* old, uint32_t block) noexcept nogil

# In a task: reads a compacted replica's bitmap from a valid copy. 0, or -EUCLEAN (none is valid), or -EIO.
cdef int read_bitmap(Io io, const Replica* replica, Bitmap* into) noexcept nogil
# Whether the bitmap is valid and is the one that the directory records.
cdef bint bitmap_of(const Replica* replica, const Bitmap* bitmap) noexcept nogil
cdef bint bitmap_matches(
    const Bitmap* bitmap, const uint8_t* volume, uint32_t segment, uint32_t blocks, uint32_t live, uint32_t crc
) noexcept nogil
# Index of a bitmap copy among a compacted replica's blocks on the device.
cdef inline uint32_t bitmap_place(const Replica* replica, int which) noexcept nogil:
    return 1 + replica.live if which else 0

cdef extern from *:
    uint32_t bits_in "__builtin_popcountll" (uint64_t word) noexcept nogil
    uint32_t lowest_bit "__builtin_ctzll" (uint64_t word) noexcept nogil

# For any valid bitmap and a block below 16384.
cdef inline bint lives_in(const Bitmap* bitmap, uint32_t block) noexcept nogil:
    return bitmap.words[block // 64] >> (block % 64) & 1

cdef inline uint32_t rank_in(const Bitmap* bitmap, uint32_t block) noexcept nogil:    # number of live blocks before it
    return bitmap.before[block // 64] + bits_in(bitmap.words[block // 64] & ((<uint64_t>1 << (block % 64)) - 1))

# Length of the run of live blocks from this one on, at most `most`.
cdef inline uint32_t run_in(const Bitmap* bitmap, uint32_t block, uint32_t most) noexcept nogil:
    cdef uint32_t word = block // 64, count
    cdef uint64_t dead = ~bitmap.words[word] >> (block % 64)
    if dead:
        return min(lowest_bit(dead), most)
    count = 64 - block % 64
    word += 1
    while count < most and word < 256 and bitmap.words[word] == ~<uint64_t>0:
        count += 64
        word += 1
    if count < most and word < 256:
        count += lowest_bit(~bitmap.words[word])
    return min(count, most)
