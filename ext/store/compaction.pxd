# Writing a replica again without its dead blocks. See store/compaction.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport EXTENTS_MAX, Bitmap

cdef struct Throttle:                    # of work that has time: asked before each of its steps
    # In a task; returns 0 once a step that reads or writes so many bytes may begin, or a negative errno: the work is given up with it.
    # io: of the reactor on which it goes on.
    int (*step)(void* owner, Io io, uint32_t bytes) noexcept nogil
    void* owner

cdef class Compactor:                # of one store, which has COMPACTIONS of them; one copy at a time each. Methods are called in a task
    cdef Io io
    cdef Bitmap* kept                # of the copy
    cdef Bitmap* there               # of the old one, if it is compacted itself
    cdef char* incoming              # what was read
    cdef char* outgoing              # what is written next
    cdef char* leaving               # what is being written meanwhile
    cdef char* footer                # the copy's, with its table ...
    cdef int footer_blocks           # ... which are so many; 0: it has the old one's, as it is
    cdef Operation writes[EXTENTS_MAX]    # of one piece: each extent that it touches
    cdef uint32_t writing            # of them are under way
    cdef uint32_t gathered           # blocks in `outgoing`
    cdef uint32_t written            # blocks of the copy, those under way included

    # Makes the bitmap `kept`. 0; -EUCLEAN: the old one lacks a block that `live` names, or its own bitmap is damaged; -EIO.
    cdef int make_footer(self, const Replica* old) noexcept nogil
    cdef int plan(self, const Replica* old, const uint64_t* live) noexcept nogil
    cdef uint32_t blocks(self) noexcept nogil      # that the copy needs on the device, once it is planned
    # Fills the slabs of `copy`; the caller flushes. 0, or a negative errno: of a device, or what `pace` said.
    cdef int copy(self, const Replica* old, const Replica* copy, Throttle* throttle) noexcept nogil
    cdef int read(self, const Replica* old, uint32_t block, uint32_t end, uint32_t first, uint32_t count, Throttle* throttle) noexcept nogil
    cdef int add(self, const void* block, const Replica* copy, Throttle* throttle) noexcept nogil
    cdef int write_out(self, const Replica* copy, Throttle* throttle) noexcept nogil
    cdef int await_writes(self) noexcept nogil
    cdef uint32_t place_in(self, const Replica* old, uint32_t block) noexcept nogil

# In a task: the bitmap of a compacted replica, from whichever of its copies is valid. 0, or -EUCLEAN (none is), or -EIO.
cdef int read_bitmap(Io io, const Replica* replica, Bitmap* into) noexcept nogil
# Whether it is the one that the directory means.
cdef bint bitmap_of(const Replica* replica, const Bitmap* bitmap) noexcept nogil
cdef bint bitmap_matches(const Bitmap* bitmap, const uint8_t* volume, uint32_t segment, uint32_t blocks, uint32_t live, uint32_t crc) noexcept nogil
# Among a compacted replica's blocks on the device: where the copies of its bitmap are.
cdef inline uint32_t bitmap_place(const Replica* replica, int which) noexcept nogil:
    return 1 + replica.live if which else 0

cdef extern from *:
    uint32_t bits_in "__builtin_popcountll" (uint64_t word) noexcept nogil
    uint32_t lowest_bit "__builtin_ctzll" (uint64_t word) noexcept nogil

# Of any valid bitmap, for a block below 16384.
cdef inline bint lives_in(const Bitmap* bitmap, uint32_t block) noexcept nogil:
    return bitmap.words[block // 64] >> (block % 64) & 1

cdef inline uint32_t rank_in(const Bitmap* bitmap, uint32_t block) noexcept nogil:       # how many live blocks there are before it
    return bitmap.before[block // 64] + bits_in(bitmap.words[block // 64] & ((<uint64_t>1 << (block % 64)) - 1))

# How many blocks from this one on live, without a gap; it does not look further than `most`, nor much.
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
