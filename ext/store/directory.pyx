# The directory, in memory: a device's segment replicas, their extents, and the volumes' fences.
#
# Always true:
#   - a replica whose state is not 0 equals what a replay of the journal would yield; only apply() changes it, which the
#     journal calls once the change is durable. So a snapshot of the directory can be taken between any two changes;
#   - a replica of state 0 is being created (its slabs are taken, its entry is being journaled) or was just deleted;
#     only the store sees it;
#   - a Replica's address is fixed until it is dropped, even when the hash table grows;
#   - the hash table has one replica per segment. A compacted copy stays outside until the journal has it; then
#     replace() puts it in the place of the old one, which the store releases when it is no longer in use.
#
# Called by store and journal on the store's reactor. Format: docs/formats.md, "Journal".

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release, realloc
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.base.atomics cimport store_uint8, store_uint32, store_uint64
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.planted cimport planted
from iomesh.engine.format.layout cimport BITMAP_COPIES, ENTRY_DELETE, ENTRY_FENCE, ENTRY_PUT, SEGMENT_OPEN

cdef extern from *:
    r"""
    static uint64_t last_serial;                       /* of all stores, on whatever reactors they live */
    #define next_serial() __atomic_add_fetch(&last_serial, 1, __ATOMIC_RELAXED)
    """
    uint64_t next_serial() noexcept nogil

cdef enum:
    BUCKETS_AT_FIRST = 256


cdef class Directory:
    """Raises MemoryError."""

    def __cinit__(self):
        self.bucket_count = BUCKETS_AT_FIRST
        self.buckets = <Replica**>calloc(self.bucket_count, sizeof(Replica*))
        if self.buckets is NULL:
            raise MemoryError("no memory for a directory of segment replicas")

    def __dealloc__(self):
        cdef uint32_t i
        cdef Replica* replica
        if self.buckets is not NULL:
            for i in range(self.bucket_count):
                while self.buckets[i] is not NULL:
                    replica = self.buckets[i]
                    self.buckets[i] = replica.next
                    release(replica)
        release(self.buckets)
        release(self.fences)
        release(self.boots)

    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil:
        return self.place(volume, segment)[0]

    cdef Replica* add(
        self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count
    ) noexcept nogil:
        cdef Replica* replica = self.new(volume, segment, extents, extent_count)
        cdef Replica** place
        if replica is NULL:
            return NULL
        if self.filled >= self.bucket_count:
            self.grow()
        place = self.place(volume, segment)
        invariant(place[0] is NULL, b"a replica is added once")
        place[0] = replica
        self.filled += 1
        return replica

    cdef Replica* new(
        self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count
    ) noexcept nogil:
        cdef Replica* replica = <Replica*>calloc(1, sizeof(Replica) - (EXTENTS_MAX - extent_count) * sizeof(Extent))
        if replica is NULL:
            return NULL
        memcpy(replica.volume, volume, 16)
        replica.segment = segment
        memcpy(replica.extents, extents, extent_count * sizeof(Extent))
        replica.extent_count = extent_count
        replica.serial = next_serial()
        self.count_entry_bytes(<int64_t>sizeof(JournalEntry) + extent_count * <int64_t>sizeof(Extent))
        return replica

    cdef void drop(self, Replica* replica) noexcept nogil:
        self.unlink(replica)
        release(replica)

    cdef void unlink(self, Replica* replica) noexcept nogil:
        cdef Replica** place = self.place(replica.volume, replica.segment)
        invariant(place[0] is replica and replica.state == 0, b"a replica is dropped when the journal does not have it")
        place[0] = replica.next
        self.filled -= 1
        self.count_entry_bytes(-<int64_t>sizeof(JournalEntry) - replica.extent_count * <int64_t>sizeof(Extent))

    cdef Replica* copy_of(self, const Replica* old, const Extent* extents, int extent_count) noexcept nogil:
        cdef Replica* copy = self.new(old.volume, old.segment, extents, extent_count)
        if copy is not NULL:
            copy.device = old.device
            copy.slabs_offset = old.slabs_offset
            copy.slab_shift = old.slab_shift
        return copy

    cdef void replace(self, Replica* old, Replica* copy) noexcept nogil:
        cdef Replica** place = self.place(old.volume, old.segment)
        invariant(
            place[0] is old and old.state != 0 and copy.state == 0,
            b"a replica that exists is replaced by one that does not yet",
        )
        copy.next = old.next
        place[0] = copy
        old.state = 0
        self.count -= 1
        self.count_entry_bytes(-<int64_t>sizeof(JournalEntry) - old.extent_count * <int64_t>sizeof(Extent))

    cdef void discard(self, Replica* copy) noexcept nogil:
        self.count_entry_bytes(-<int64_t>sizeof(JournalEntry) - copy.extent_count * <int64_t>sizeof(Extent))
        release(copy)

    cdef void count_entry_bytes(self, int64_t more) noexcept nogil:
        store_uint64(self.entry_bytes, self.entry_bytes + <uint64_t>more)

    cdef void apply(self, Replica* replica, const JournalEntry* entry) noexcept nogil:
        # Another reactor may read blocks of the replica meanwhile: its volume's, while it is sealed. So only what
        # changes is written; and what such a reader uses of that, the extents, word by word.
        cdef const Extent* extents = extents_of(entry)
        cdef int i
        self.count -= replica.state != 0
        if entry.kind == ENTRY_DELETE:
            replica.state = 0
            return
        self.count += 1
        self.count_entry_bytes((entry.extent_count - <int64_t>replica.extent_count) * <int64_t>sizeof(Extent))
        for i in range(entry.extent_count):
            if replica.extents[i].first != extents[i].first:
                store_uint32(replica.extents[i].first, extents[i].first)
            if replica.extents[i].count != extents[i].count:
                store_uint32(replica.extents[i].count, extents[i].count)
        store_uint8(replica.extent_count, entry.extent_count)
        replica.state = entry.state
        if replica.stream != entry.stream:
            replica.stream = entry.stream
        if replica.epoch != entry.epoch:
            replica.epoch = entry.epoch
        replica.boot = self.number_of(entry.boot) if entry.state == SEGMENT_OPEN else 0
        if replica.fragment != entry.fragment:
            replica.fragment = entry.fragment
        replica.blocks = entry.blocks
        store_uint32(replica.footer_block, entry.footer_block)
        if replica.live != entry.live:
            replica.live = <uint16_t>entry.live
        if replica.bitmap_crc != entry.bitmap_crc:
            replica.bitmap_crc = entry.bitmap_crc

    cdef const char* replay(self, const JournalEntry* entry) noexcept nogil:
        cdef Replica* replica
        if entry.kind == ENTRY_FENCE:
            if planted(b"fence_forgotten"):
                return NULL
            if not self.make_fence_room():
                return b"there is no memory for the directory"
            self.set_fence(entry.volume, entry.epoch)
            return NULL
        replica = self.find(entry.volume, entry.segment)
        if replica is not NULL and entry.extent_count > replica.extent_count:    # a compacted copy with more extents
            replica.state = 0
            self.count -= 1
            self.drop(replica)
            replica = NULL
        if entry.kind == ENTRY_DELETE and replica is NULL:
            return b"it deletes a segment replica that does not exist"
        if replica is NULL:
            replica = self.add(entry.volume, entry.segment, extents_of(entry), entry.extent_count)
            if replica is NULL:
                return b"there is no memory for the directory"
        self.apply(replica, entry)
        if entry.kind == ENTRY_DELETE:
            self.drop(replica)
        return NULL

    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil:
        cdef uint32_t i, found = 0
        cdef Replica* replica
        for i in range(self.bucket_count):
            replica = self.buckets[i]
            while replica is not NULL:
                if replica.state != 0 and (volume is NULL or memcmp(replica.volume, volume, 16) == 0):
                    if found < room:
                        into[found] = replica
                    found += 1
                replica = replica.next
        return found

    cdef uint32_t entry_of(self, const Replica* replica, JournalEntry* into) noexcept nogil:
        memset(into, 0, sizeof(JournalEntry))
        into.kind = ENTRY_PUT
        into.state = replica.state
        into.extent_count = replica.extent_count
        into.segment = replica.segment
        memcpy(into.volume, replica.volume, 16)
        into.epoch = replica.epoch
        into.boot = self.boot_of(replica)
        into.fragment = replica.fragment
        into.blocks = replica.blocks
        into.footer_block = replica.footer_block
        into.stream = replica.stream
        into.bitmap_blocks = BITMAP_COPIES if replica.live else 0
        into.bitmap_crc = replica.bitmap_crc
        into.live = replica.live
        memcpy(<void*>extents_of(into), replica.extents, replica.extent_count * sizeof(Extent))
        return sizeof(JournalEntry) + replica.extent_count * sizeof(Extent)

    cdef uint64_t boot_of(self, const Replica* replica) noexcept nogil:
        return self.boots[replica.boot] if replica.boot else 0

    cdef uint16_t number_of(self, uint64_t boot) noexcept nogil:
        """Number of a boot id. Boots are few, and a number takes less memory in a replica than the id."""
        cdef uint64_t* boots
        cdef uint32_t i
        for i in range(1, self.boot_count):
            if self.boots[i] == boot:
                return <uint16_t>i
        i = max(self.boot_count, <uint32_t>1)
        if boot == 0 or i > 0xFFFF:
            return 0
        boots = <uint64_t*>realloc(self.boots, (i + 1) * sizeof(uint64_t))
        if boots is NULL:
            return 0
        self.boots = boots
        boots[0] = 0
        boots[i] = boot
        self.boot_count = i + 1
        return <uint16_t>i

    cdef uint64_t fenced(self, const uint8_t* volume) noexcept nogil:
        cdef uint32_t i
        for i in range(self.fence_count):
            if memcmp(self.fences[i].volume, volume, 16) == 0:
                return self.fences[i].epoch
        return 0

    cdef bint make_fence_room(self) noexcept nogil:
        cdef Fence* fences
        if self.fence_count + self.fences_coming == self.fence_room:
            fences = <Fence*>realloc(self.fences, (2 * self.fence_room + 16) * sizeof(Fence))
            if fences is NULL:
                return False
            self.fences = fences
            self.fence_room = 2 * self.fence_room + 16
        self.fences_coming += 1
        return True

    cdef void set_fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil:
        cdef uint32_t i = 0
        invariant(self.fences_coming != 0, b"a fence has its room before the journal has it")
        self.fences_coming -= 1
        while i < self.fence_count and memcmp(self.fences[i].volume, volume, 16) != 0:
            i += 1
        if i < self.fence_count and epoch:
            self.fences[i].epoch = max(self.fences[i].epoch, epoch)
        elif i < self.fence_count:
            self.fence_count -= 1
            self.fences[i] = self.fences[self.fence_count]
            self.count_entry_bytes(-<int64_t>sizeof(JournalEntry))
        elif epoch:
            memcpy(self.fences[i].volume, volume, 16)
            self.fences[i].epoch = epoch
            self.fence_count += 1
            self.count_entry_bytes(<int64_t>sizeof(JournalEntry))

    cdef Replica** place(self, const uint8_t* volume, uint32_t segment) noexcept nogil:
        """The link in the hash table that points to the replica, or would."""
        cdef uint64_t[2] words
        memcpy(words, volume, 16)
        # the golden ratio: spreads similar keys
        cdef uint64_t mixed = (words[0] ^ words[1] ^ segment) * <uint64_t>0x9E3779B97F4A7C15
        cdef Replica** place = &self.buckets[(mixed >> 32) & (self.bucket_count - 1)]
        while place[0] is not NULL and (place[0].segment != segment or memcmp(place[0].volume, volume, 16) != 0):
            place = &place[0].next
        return place

    cdef void grow(self) noexcept nogil:
        cdef Replica** old = self.buckets
        cdef Replica** place
        cdef Replica** buckets = <Replica**>calloc(2 * <size_t>self.bucket_count, sizeof(Replica*))
        cdef Replica* replica
        cdef uint32_t i, old_count = self.bucket_count
        if buckets is NULL:
            return                                       # longer chains are acceptable
        self.buckets = buckets
        self.bucket_count = 2 * old_count
        for i in range(old_count):
            while old[i] is not NULL:
                replica = old[i]
                old[i] = replica.next
                replica.next = NULL
                place = self.place(replica.volume, replica.segment)
                place[0] = replica
        release(old)


cdef uint32_t fence_entry(const uint8_t* volume, uint64_t epoch, JournalEntry* into) noexcept nogil:
    memset(into, 0, sizeof(JournalEntry))
    into.kind = ENTRY_FENCE
    memcpy(into.volume, volume, 16)
    into.epoch = epoch
    return sizeof(JournalEntry)
