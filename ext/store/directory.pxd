# Which segment replicas a device holds, and where, and which epochs may write. See store/directory.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport EXTENTS_MAX, Extent, JournalEntry

cdef struct Replica:                 # a node's copy of a segment; stays at its address until it is dropped
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks                  # `blocks` and `footer_block` are of the segment, whatever a compacted one still has of it
    uint32_t footer_block
    uint16_t live                    # of a compacted one: how many blocks there are, see layout.Bitmap; 0: it is not compacted
    uint16_t device                  # the Io's number of the store's device
    uint64_t epoch
    Replica* next                    # in the directory's bucket
    uint64_t serial                  # no other replica in this process has or had it: what a cache knows it by
    uint64_t slabs_offset
    uint32_t bitmap_crc
    uint32_t fragment
    uint16_t stream
    uint16_t boot                    # of an open one: the number of the boot that it was opened under, see boot_of(); 0: not known
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED; 0: not in the journal (yet, or no longer)
    uint8_t extent_count
    uint8_t slab_shift               # a slab of its device has 1 << slab_shift blocks
    uint8_t changing                 # a change of it is on its way into the journal
    Extent extents[EXTENTS_MAX]      # only as many are there as it had when it was made: 88 bytes with one

cdef struct Fence:                   # epochs of this volume below this one may not create segments here
    uint8_t volume[16]
    uint64_t epoch

cdef union EntryBytes:               # a journal entry with the room for its extents
    JournalEntry entry
    char bytes[320]

cdef class Directory:
    cdef readonly uint32_t count     # replicas whose state is not 0
    cdef uint64_t entry_bytes        # of a journal entry for each, those of state 0 included: what a snapshot takes at most
    cdef Replica** buckets
    cdef uint32_t bucket_count
    cdef uint32_t filled             # replicas in the buckets
    cdef Fence* fences
    cdef uint32_t fence_count
    cdef uint32_t fence_room
    cdef uint64_t* boots             # that open replicas were opened under, by number; [0] is 0
    cdef uint32_t boot_count
    cdef uint32_t fences_coming      # for which there is room, and which set_fence() has not had yet

    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    cdef Replica* add(self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count) noexcept nogil   # of state 0; NULL: no memory
    cdef void drop(self, Replica* replica) noexcept nogil                          # of state 0
    # Another copy of the same segment, not to be found yet: of state 0; NULL: no memory. Then one of the two:
    cdef Replica* copy_of(self, const Replica* old, const Extent* extents, int extent_count) noexcept nogil
    cdef void replace(self, Replica* old, Replica* copy) noexcept nogil            # the old one is of state 0 from now on, and the caller's to release
    cdef void discard(self, Replica* copy) noexcept nogil
    cdef Replica* new(self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count) noexcept nogil
    cdef void apply(self, Replica* replica, const JournalEntry* entry) noexcept nogil       # it is as the entry says
    cdef const char* replay(self, const JournalEntry* entry) noexcept nogil        # when the journal is read; NULL, or why it cannot be
    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil
    cdef uint32_t entry_of(self, const Replica* replica, JournalEntry* into) noexcept nogil    # an ENTRY_PUT; returns its length with the extents
    cdef uint64_t boot_of(self, const Replica* replica) noexcept nogil             # see Io.boot; 0: not known
    cdef uint16_t number_of(self, uint64_t boot) noexcept nogil                    # 0: there is no memory for it, or it is 0
    cdef uint64_t fenced(self, const uint8_t* volume) noexcept nogil               # the lowest epoch that may write; 0: any
    cdef bint make_fence_room(self) noexcept nogil                                 # for one more that is coming; False: no memory
    # One that was coming, once it is durable: a lower epoch than there is changes nothing, 0 removes the fence.
    cdef void set_fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil
    cdef Replica** place(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    cdef void grow(self) noexcept nogil

cdef uint32_t fence_entry(const uint8_t* volume, uint64_t epoch, JournalEntry* into) noexcept nogil   # an ENTRY_FENCE; returns its length
cdef inline uint32_t slabs_of(const Replica* replica) noexcept nogil:
    cdef uint32_t slabs = 0
    cdef int i
    for i in range(replica.extent_count):
        slabs += replica.extents[i].count
    return slabs

cdef inline const Extent* extents_of(const JournalEntry* entry) noexcept nogil:
    return <const Extent*>(entry + 1)

# Where the n-th block of a replica's slabs lies on its device, in bytes, and how many from it on are contiguous; 0: it has no such. Of one
# that is not compacted that is block n of the segment; of any that may be compacted, ask store/bitmaps.pyx.
cdef inline uint64_t replica_offset(const Replica* replica, uint32_t block, uint32_t* contiguous) noexcept nogil:
    cdef uint32_t first = 0, blocks
    cdef int i
    for i in range(replica.extent_count):
        blocks = replica.extents[i].count << replica.slab_shift
        if block < first + blocks:
            contiguous[0] = first + blocks - block
            return replica.slabs_offset + ((<uint64_t>replica.extents[i].first << replica.slab_shift) + block - first) * 4096
        first += blocks
    contiguous[0] = 0
    return 0
