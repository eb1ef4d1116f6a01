# The checker: a walk from outside over everything that simulated volumes hold on devices. It complements the oracle:
# correct reads do not show that space is counted correctly.
#
# It follows every pointer of each volume's head and snapshots, directly in the memory of the simulated devices, and
# computes by itself where a block of a compacted segment lies. From the engine's memory it takes only what is not on a
# device yet: the cached nodes of the head's map.
#
# It checks that
#   - every pointer leads into an existing segment, to a block with the pointer's checksum;
#   - the live counts match the blocks found, for each segment and in total;
#   - the counts of mapped, exclusive and held data blocks match the blocks found;
#   - a compacted segment has every block with a pointer to it;
#   - the volume that a clone comes from holds every block that the clone inherits, and counts it;
#   - every slab of a store is free or belongs to exactly one replica, and both add up to the total;
#   - once the volumes are closed, every replica belongs to a segment of an existing volume.
#
# Called by simulation, while no change is in progress; nothing here waits.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.store.directory cimport Replica, replica_offset
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.format.layout cimport (
    MAP_LEVELS, NODE_POINTERS, POINTER_PRESENT, SNAPSHOT_CLONE, SNAPSHOT_DYING, Bitmap, Extent, Pointer, SnapshotEntry)
from iomesh.engine.map.map cimport NODE_READY, Node
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.store.store cimport Store
from iomesh.engine.volume.volume cimport Volume
from iomesh.engine.simulation.world cimport World


cdef class Checker:
    """Raises MemoryError."""

    def __cinit__(self, World world):
        self.world = world
        self.marks = <Marks*>calloc(CHECKED_SEGMENTS_MAX, sizeof(Marks))
        if self.marks is NULL:
            raise MemoryError("no memory for the checker")

    def __dealloc__(self):
        release(self.marks)

    cdef void begin(self) noexcept nogil:
        self.volume_count = self.closed_count = 0

    cdef void add(self, Volume volume) noexcept nogil:
        invariant(self.volume_count < CHECKED_VOLUMES_MAX, b"the checker has room for all volumes")
        self.volumes[self.volume_count].volume = <void*>volume
        self.volume_count += 1

    cdef void add_closed(self, const uint8_t* identity) noexcept nogil:
        invariant(self.closed_count < CHECKED_VOLUMES_MAX, b"the checker has room for all volumes")
        memcpy(self.closed[self.closed_count], identity, 16)
        self.closed_count += 1

    cdef bint walk(self) noexcept nogil:
        cdef Segment* segment
        cdef CheckedVolume* audited
        cdef uint32_t i, count = 0
        for i in range(self.volume_count):
            audited = &self.volumes[i]
            audited.marks = &self.marks[count]
            audited.count = 0
            segment = (<Volume>audited.volume).segments.first
            while segment is not NULL:
                if count == CHECKED_SEGMENTS_MAX:
                    return self.wrong(b"there are more than %llu segments", CHECKED_SEGMENTS_MAX, 0, 0)
                memset(&self.marks[count], 0, sizeof(Marks))
                self.marks[count].segment = segment.number
                count += 1
                audited.count += 1
                segment = segment.next
        for i in range(self.volume_count):
            if not self.walk_one(<Volume>self.volumes[i].volume, &self.volumes[i]):
                return False
        return True

    cdef bint walk_one(self, Volume volume, const CheckedVolume* audited) noexcept nogil:
        cdef Segment* segment = volume.segments.first
        cdef SnapshotEntry* entry
        cdef uint32_t i
        cdef uint64_t live = 0
        self.mapped = self.inherited = self.exclusive = self.data = 0
        self.in_head = True
        if not self.head(volume):
            return False
        self.in_head = False
        for i in range(volume.snapshots.count):
            entry = &volume.snapshots.all[i].entry
            if entry.flags & SNAPSHOT_DYING:
                if not self.alone(volume, entry.root, entry.successor, MAP_LEVELS - 1):
                    return False
            elif not entry.flags & SNAPSHOT_CLONE and not self.below(volume, entry.root, MAP_LEVELS - 1):
                return False
        for i in range(audited.count):
            if segment.live != audited.marks[i].count:
                return self.wrong(
                    b"segment %llu counts %llu live blocks, and %llu are pointed to",
                    segment.number, segment.live, audited.marks[i].count
                )
            live += segment.live
            segment = segment.next
        if live != volume.segments.live:
            return self.wrong(b"%llu blocks live by the segments' counts, %llu in all", live, volume.segments.live, 0)
        return self.counts(volume)

    cdef bint counts(self, Volume volume) noexcept nogil:
        cdef uint64_t held = volume.snapshots.held(volume.segments), exclusive = volume.segments.exclusive
        if volume.segments.mapped != self.mapped:
            return self.wrong(
                b"%llu blocks are mapped by the count, and %llu are found", volume.segments.mapped, self.mapped, 0
            )
        if volume.segments.inherited != self.inherited:
            return self.wrong(
                b"%llu blocks are inherited by the count, and %llu are found",
                volume.segments.inherited, self.inherited, 0
            )
        if held != self.data:
            return self.wrong(b"%llu blocks of data are held by the counts, and %llu are found", held, self.data, 0)
        # While a snapshot is dying, its heir may still own its exclusive blocks.
        if exclusive != self.exclusive and volume.snapshots.dying() is NULL:
            return self.wrong(
                b"%llu blocks are the head's alone by the count, and %llu are found", exclusive, self.exclusive, 0
            )
        return True

    cdef bint is_damaged(
        self, Volume volume, const Pointer* root, uint64_t block, uint64_t count, bint data
    ) noexcept nogil:
        cdef uint64_t i
        for i in range(block, block + count):
            if (data or i == block or i % NODE_POINTERS == 0) and self.path_is_damaged(volume, root, i, data):
                return True
        return False

    cdef bint path_is_damaged(self, Volume volume, const Pointer* root, uint64_t block, bint data) noexcept nogil:
        cdef int level = MAP_LEVELS - 1
        cdef Pointer pointer = volume.map.root if root is NULL else root[0]
        cdef Segment* segment
        cdef Node* node
        cdef const char* content
        while level >= (-1 if data else 0):
            node = volume.map.peek(level, block >> (8 * (level + 1))) if root is NULL and level >= 0 else NULL
            if node is not NULL:
                pointer = node.pointers[(block >> (8 * level)) % NODE_POINTERS]
            elif not pointer.flags & POINTER_PRESENT:
                return False
            else:
                segment = volume.segments.locate(pointer.segment)
                content = NULL
                if segment is not NULL and segment.replica is not NULL and pointer.block < segment.blocks:
                    content = self.content(segment.replica, pointer.block)
                if content is NULL:                      # not damage: the block was removed
                    return False
                if self.world.sum_of(segment.replica.device, content) != pointer.crc:
                    return True
                if level >= 0:
                    pointer = (<const Pointer*>content)[(block >> (8 * level)) % NODE_POINTERS]
            level -= 1
        return False

    cdef bint head(self, Volume volume) noexcept nogil:
        """Walks the head's map: cached nodes from memory, others from the device."""
        cdef Node* node
        cdef Pointer pointer
        cdef const char* content
        cdef bint again
        cdef uint32_t i, slot
        if volume.map.peek(MAP_LEVELS - 1, 0) is NULL:
            return self.below(volume, volume.map.root, MAP_LEVELS - 1)
        if volume.map.root.flags & POINTER_PRESENT and not self.visit(volume, volume.map.root, False, &content, &again):
            return False
        for i in range(volume.map.cache.touched):
            node = &volume.map.cache.nodes[i]
            if node.state != NODE_READY or node.map != <void*>volume.map:
                continue
            for slot in range(NODE_POINTERS):
                pointer = node.pointers[slot]
                if not pointer.flags & POINTER_PRESENT:
                    continue
                if node.level and volume.map.peek(node.level - 1, node.index * NODE_POINTERS + slot) is NULL:
                    if not self.below(volume, pointer, node.level - 1):
                        return False
                elif not self.visit(volume, pointer, False, &content, &again):
                    return False
                elif node.level == 0:
                    self.hold(volume, pointer, not again)
        return True

    cdef void hold(self, Volume volume, Pointer pointer, bint anew) noexcept nogil:
        """Counts a visited data block. anew: this is its first visit."""
        cdef Marks* marks = self.find(volume.segments, pointer.segment)
        cdef uint64_t bit = <uint64_t>1 << (pointer.block % 64)
        if pointer.segment < volume.segments.branch:
            self.mapped += self.in_head
            self.inherited += self.in_head
            return
        self.data += anew
        if self.in_head:
            self.mapped += 1
            self.exclusive += 1
            marks.heads[pointer.block // 64] |= bit
        elif marks.heads[pointer.block // 64] & bit:
            marks.heads[pointer.block // 64] &= ~bit
            self.exclusive -= 1

    cdef bint below(self, Volume volume, Pointer pointer, int level) noexcept nogil:
        """Walks a node on the device (level -1: a data block) and everything below it."""
        cdef const char* content = NULL
        cdef bint again = False
        cdef uint32_t slot
        cdef Pointer* pointers
        if not pointer.flags & POINTER_PRESENT:
            return True
        if not self.visit(volume, pointer, level >= 0, &content, &again):
            return False
        if level < 0:
            self.hold(volume, pointer, not again)
        if level < 0 or again or content is NULL:
            return True
        pointers = <Pointer*>content
        for slot in range(NODE_POINTERS):
            if pointers[slot].flags & POINTER_PRESENT and not self.below(volume, pointers[slot], level - 1):
                return False
        return True

    cdef bint alone(self, Volume volume, Pointer pointer, Pointer successor, int level) noexcept nogil:
        """Walks the blocks that a dying snapshot does not share with its successor; shared ones belong to the
        successor's history."""
        cdef const char* content = NULL
        cdef const char* followed = NULL
        cdef bint again = False
        cdef uint32_t slot
        cdef Pointer* pointers
        cdef Pointer nothing
        cdef Segment* segment
        memset(&nothing, 0, sizeof(nothing))
        if (
            not pointer.flags & POINTER_PRESENT
            or (
                successor.flags & POINTER_PRESENT
                and successor.segment == pointer.segment
                and successor.block == pointer.block
            )
        ):
            return True
        if not self.visit(volume, pointer, level >= 0, &content, &again):
            return False
        if level < 0:
            self.hold(volume, pointer, not again)
        if level < 0 or again or content is NULL:
            return True
        segment = volume.segments.locate(successor.segment) if successor.flags & POINTER_PRESENT else NULL
        if segment is not NULL and segment.replica is not NULL and successor.block < segment.blocks:
            followed = self.content(segment.replica, successor.block)
        if successor.flags & POINTER_PRESENT and (
                followed is NULL or self.world.sum_of(segment.replica.device, followed) != successor.crc):
            return self.wrong(
                b"what follows a dying snapshot needs block %llu of segment %llu, which is not there",
                successor.block, successor.segment, 0
            )
        pointers = <Pointer*>content
        for slot in range(NODE_POINTERS):
            if not self.alone(
                volume, pointers[slot], nothing if followed is NULL else (<Pointer*>followed)[slot], level - 1
            ):
                return False
        return True

    cdef bint visit(self, Volume volume, Pointer pointer, bint node, const char** content, bint* again) noexcept nogil:
        """Checks and marks the block that a pointer leads to. node: its pointers will be followed. again: they were
        followed already, or, for a data block, it was visited already. (The device's copy of a cached node is not
        followed. The head's nodes are followed once, even if snapshots share them; nodes that a snapshot inherits are
        not.)"""
        cdef Marks* marks = self.find(volume.segments, pointer.segment)
        cdef Segment* segment = volume.segments.locate(pointer.segment)
        cdef uint64_t bit = <uint64_t>1 << (pointer.block % 64)
        cdef bint seen, inherited = pointer.segment < volume.segments.branch
        if marks is NULL or segment is NULL or segment.replica is NULL:
            return self.wrong(
                b"a pointer leads to segment %llu, block %llu: it is not there", pointer.segment, pointer.block, 0
            )
        if pointer.block >= segment.blocks:
            return self.wrong(
                b"a pointer leads to segment %llu, block %llu, which has %llu",
                pointer.segment, pointer.block, segment.blocks
            )
        seen = (marks.pointed[pointer.block // 64] & bit) != 0
        if inherited:
            again[0] = not self.in_head
            if not seen:
                return self.wrong(
                    b"a clone has block %llu of segment %llu, which the volume that it comes from does not hold",
                    pointer.block, pointer.segment, 0
                )
            if node and self.in_head:
                content[0] = self.content(segment.replica, pointer.block)
            return True
        again[0] = (marks.walked[pointer.block // 64] & bit) != 0 if node else seen
        if node and not self.in_head:
            marks.walked[pointer.block // 64] |= bit
        if not seen:
            marks.pointed[pointer.block // 64] |= bit
            marks.count += 1
        if seen and (again[0] or not node):
            return True
        self.blocks += 1
        content[0] = self.content(segment.replica, pointer.block)
        if content[0] is NULL:
            return self.wrong(
                b"segment %llu was compacted without block %llu, which is pointed to", pointer.segment, pointer.block, 0
            )
        if self.world.sum_of(segment.replica.device, content[0]) != pointer.crc:
            content[0] = NULL
            return self.wrong(
                b"segment %llu, block %llu is not what its pointer says", pointer.segment, pointer.block, 0
            )
        return True

    cdef const char* content(self, const Replica* replica, uint32_t block) noexcept nogil:
        """Returns the block's content; NULL: the replica does not have it. It counts bits one by one, to check the
        engine's faster way."""
        cdef char* memory = self.world.contents(replica.device)
        cdef const Bitmap* bitmap
        cdef uint32_t contiguous = 0, place = block, i
        cdef uint64_t offset
        if replica.live:
            offset = replica_offset(replica, 0, &contiguous)
            bitmap = <const Bitmap*>(memory + offset)
            if bitmap.crc != replica.bitmap_crc:
                offset = replica_offset(replica, 1 + replica.live, &contiguous)
                bitmap = <const Bitmap*>(memory + offset)
            if bitmap.crc != replica.bitmap_crc or not bitmap.words[block // 64] >> (block % 64) & 1:
                return NULL
            place = 1
            for i in range(block):
                place += bitmap.words[i // 64] >> (i % 64) & 1
        offset = replica_offset(replica, place, &contiguous)
        return NULL if contiguous == 0 else memory + offset

    cdef bint agrees(self, Volume volume, uint32_t segment, uint32_t blocks, const uint64_t* live) noexcept nogil:
        cdef Marks* marks = self.find(volume.segments, segment)
        cdef uint32_t block
        for block in range(blocks if marks is not NULL else 0):      # NULL: the segment was created after the walk
            if (live[block // 64] ^ marks.pointed[block // 64]) >> (block % 64) & 1:
                return self.wrong(
                    b"block %llu of segment %llu is derived to be dead or alive (%llu), and it is not",
                    block, segment, live[block // 64] >> (block % 64) & 1
                )
        return True

    cdef bint add_up(self, Store store, bint closed) noexcept nogil:
        cdef uint32_t bucket, used = 0, slab, replicas = 0
        cdef Replica* replica
        cdef Extent* extent
        cdef int i
        cdef uint8_t* owned = <uint8_t*>calloc(store.slabs.total, 1)
        cdef bint right = owned is not NULL
        for bucket in range(store.directory.bucket_count):
            replica = store.directory.buckets[bucket]
            while replica is not NULL and right:
                replicas += replica.state != 0
                if right and closed and not self.belongs(replica):
                    right = self.wrong(
                        b"segment %llu of volume ...%llx lies on a device; there is no such volume, "
                        b"or it does not know of it (state %llu)",
                        replica.segment, replica.volume[15], replica.state
                    )
                for i in range(replica.extent_count):
                    extent = &replica.extents[i]
                    for slab in range(extent.first, extent.first + extent.count):
                        if right and slab >= store.slabs.total:
                            right = self.wrong(
                                b"segment %llu has slab %llu, beyond the device", replica.segment, slab, 0
                            )
                        elif right and owned[slab]:
                            right = self.wrong(
                                b"segment %llu has slab %llu, which another one has, too", replica.segment, slab, 0
                            )
                        elif right and not store.slabs.is_taken(slab):
                            right = self.wrong(b"segment %llu has slab %llu, which is free", replica.segment, slab, 0)
                        if right:
                            owned[slab] = 1
                            used += 1
                replica = replica.next
        release(owned)
        if right and used + store.slabs.free != store.slabs.total:
            right = self.wrong(b"%llu slabs are used and %llu free, of %llu", used, store.slabs.free, store.slabs.total)
        if right and replicas != store.directory.count:
            right = self.wrong(b"the directory counts %llu replicas and has %llu", store.directory.count, replicas, 0)
        return right

    cdef bint belongs(self, const Replica* replica) noexcept nogil:
        """Whether the replica belongs to an existing volume, and an open volume has it in its segment table."""
        cdef Segment* segment
        cdef uint32_t i
        for i in range(self.closed_count):
            if memcmp(self.closed[i], replica.volume, 16) == 0:
                return True
        for i in range(self.volume_count):
            if memcmp((<Volume>self.volumes[i].volume).identity, replica.volume, 16) == 0:
                segment = (<Volume>self.volumes[i].volume).segments.find(replica.segment)
                return segment is not NULL and segment.replica is replica
        return False

    cdef Marks* find(self, SegmentTable segments, uint32_t segment) noexcept nogil:
        cdef void* owner = <void*>segments
        cdef uint32_t low = 0, high, middle, i = 0
        cdef const CheckedVolume* audited
        while segment < (<SegmentTable>owner).branch:
            owner = (<SegmentTable>owner).parent
        while i < self.volume_count and <void*>(<Volume>self.volumes[i].volume).segments != owner:
            i += 1
        if i == self.volume_count:
            return NULL
        audited = &self.volumes[i]
        high = audited.count
        while low < high:
            middle = (low + high) // 2
            if audited.marks[middle].segment < segment:
                low = middle + 1
            else:
                high = middle
        return &audited.marks[low] if low < audited.count and audited.marks[low].segment == segment else NULL

    cdef bint wrong(self, const char* words, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
        snprintf(self.words, sizeof(self.words), words, a, b, c)
        return False
