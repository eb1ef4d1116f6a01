# A device's segment replicas, their extents, and the volumes' fences. See store/directory.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.atomics cimport load_uint8, load_uint32
from iomesh.engine.format.layout cimport EXTENTS_MAX, Extent, JournalEntry

cdef struct Replica:                 # a device's copy of a segment; its address is fixed until it is dropped
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks                  # `blocks` and `footer_block` are the segment's, also in a compacted replica
    uint32_t footer_block
    uint16_t live                    # of a compacted one: number of kept blocks, see layout.Bitmap; 0: not compacted
    uint16_t device                  # the Io's device number
    uint64_t epoch
    Replica* next                    # in the directory's bucket
    uint64_t serial                  # never reused in this process: the key in caches
    uint64_t slabs_offset
    uint32_t bitmap_crc
    uint32_t fragment
    uint16_t stream
    uint16_t boot                    # of an open one: number of the boot that opened it, see boot_of(); 0: unknown
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED; 0: not in the journal, yet or any more
    uint8_t extent_count
    uint8_t slab_shift               # a slab of its device has 1 << slab_shift blocks
    uint8_t changing                 # a change of it is being journaled
    Extent extents[EXTENTS_MAX]      # allocated only for its initial number of extents: 88 bytes with one

cdef struct Fence:                   # no segment of this volume is created here with a lower epoch
    uint8_t volume[16]
    uint64_t epoch

cdef union EntryBytes:               # a journal entry with room for its extents
    JournalEntry entry
    char bytes[320]

cdef class Directory:
    cdef readonly uint32_t count     # replicas whose state is not 0
    # upper bound of a snapshot's entries, including those of state 0; read by other threads, too
    cdef uint64_t entry_bytes
    cdef Replica** buckets
    cdef uint32_t bucket_count
    cdef uint32_t filled             # replicas in the buckets
    cdef Fence* fences
    cdef uint32_t fence_count
    cdef uint32_t fence_room
    cdef uint64_t* boots             # boots in which open replicas were opened, by number; [0] is 0
    cdef uint32_t boot_count
    cdef uint32_t fences_coming      # room reserved by make_fence_room() and not used by set_fence() yet

    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    # of state 0; NULL: no memory
    cdef Replica* add(
        self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count
    ) noexcept nogil
    cdef void drop(self, Replica* replica) noexcept nogil                          # of state 0
    cdef void unlink(self, Replica* replica) noexcept nogil                        # the same, but the caller frees it
    # A new replica of the same segment, of state 0 and not in the hash table; NULL: no memory. Then replace() or
    # discard():
    cdef Replica* copy_of(self, const Replica* old, const Extent* extents, int extent_count) noexcept nogil
    # the old one's state becomes 0; the caller frees it
    cdef void replace(self, Replica* old, Replica* copy) noexcept nogil
    cdef void discard(self, Replica* copy) noexcept nogil
    cdef Replica* new(
        self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count
    ) noexcept nogil
    cdef void apply(self, Replica* replica, const JournalEntry* entry) noexcept nogil   # sets its fields from the entry
    # during journal replay; NULL, or the reason for failure
    cdef const char* replay(self, const JournalEntry* entry) noexcept nogil
    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil
    # an ENTRY_PUT; returns its length including the extents
    cdef uint32_t entry_of(self, const Replica* replica, JournalEntry* into) noexcept nogil
    cdef uint64_t boot_of(self, const Replica* replica) noexcept nogil             # see Io.boot; 0: unknown
    cdef uint16_t number_of(self, uint64_t boot) noexcept nogil    # 0: no memory or number for it, or boot is 0
    # the lowest epoch that may create segments; 0: any
    cdef uint64_t fenced(self, const uint8_t* volume) noexcept nogil
    cdef bint make_fence_room(self) noexcept nogil    # reserves room for one more fence; False: no memory
    # Sets a fence that is durable and has its room. An epoch below the current one changes nothing; 0 removes the
    # fence.
    cdef void set_fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil
    cdef Replica** place(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    cdef void grow(self) noexcept nogil
    cdef void count_entry_bytes(self, int64_t more) noexcept nogil

# an ENTRY_FENCE; returns its length
cdef uint32_t fence_entry(const uint8_t* volume, uint64_t epoch, JournalEntry* into) noexcept nogil
cdef inline uint32_t slabs_of(const Replica* replica) noexcept nogil:
    cdef uint32_t slabs = 0
    cdef int i
    for i in range(load_uint8(replica.extent_count)):
        slabs += load_uint32(replica.extents[i].count)
    return slabs

cdef inline const Extent* extents_of(const JournalEntry* entry) noexcept nogil:
    return <const Extent*>(entry + 1)

# Device offset, in bytes, of the n-th block of a replica's slabs, and the number of contiguous blocks from it on; 0:
# there is no such block. Without compaction that is block n of the segment; otherwise use store/bitmaps.pyx.
cdef inline uint64_t replica_offset(const Replica* replica, uint32_t block, uint32_t* contiguous) noexcept nogil:
    cdef uint32_t first = 0, blocks
    cdef int i
    for i in range(load_uint8(replica.extent_count)):
        blocks = load_uint32(replica.extents[i].count) << replica.slab_shift
        if block < first + blocks:
            contiguous[0] = first + blocks - block
            return replica.slabs_offset + (
                (<uint64_t>load_uint32(replica.extents[i].first) << replica.slab_shift) + block - first
            ) * 4096
        first += blocks
    contiguous[0] = 0
    return 0
