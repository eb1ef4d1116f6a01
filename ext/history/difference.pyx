# Compares two of a volume's maps: two snapshots, or a snapshot and the head.
#
# Always true:
#   - where both trees have the same pointer, nothing below it is read, so the cost depends on the differences and not
#     on the volume's size;
#   - a range differs if it was written or trimmed between the two maps, even if it was overwritten with the same bytes;
#   - both trees stay readable during a comparison: a snapshot's reader count is raised, and for the head no space is
#     reclaimed (reclaim_holds).
#
# The head is compared as of its last checkpoint. The first call of a comparison writes one, so it includes every write
# acknowledged before the call; writes during the comparison may or may not be included.
#
# Called by the engine, in tasks on the volume's reactor.

from libc.errno cimport ENOENT, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, MAP_LEVELS, NODE_POINTERS, POINTER_PRESENT, SNAPSHOT_CLONE, SNAPSHOT_HIDDEN, Pointer
)
from iomesh.engine.map.map cimport ABSENT, Map, Node
from iomesh.engine.map.snapshot_table cimport Snapshot, is_zero_id
from iomesh.engine.base.task cimport wait, waited, wake_all
from iomesh.engine.volume.volume cimport Volume

cdef enum:
    STEPS_MAX = 1 << 18              # of one call; the next call continues


cdef int64_t compare(
    Map older, Map newer, uint64_t block, uint64_t most, bint* differ, bint* mapped, Operation* when
) noexcept nogil:
    cdef Node* one
    cdef Node* other
    cdef Pointer before = older.root, after = newer.root
    cdef int level = MAP_LEVELS
    cdef uint64_t covered, count = 1
    cdef uint32_t slot = 0
    while True:
        covered = <uint64_t>1 << (8 * level)             # blocks below `before` and `after`
        if same(before, after):
            differ[0] = False
            mapped[0] = False
            return min(most, covered - block % covered)
        if level == 0:
            break
        level -= 1
        one = other = ABSENT
        if before.flags & POINTER_PRESENT:
            one = older.get(level, block >> (8 * (level + 1)), False, when)
            if one is NULL:
                return 0
        if after.flags & POINTER_PRESENT:
            other = newer.get(level, block >> (8 * (level + 1)), False, when)
            if other is NULL:
                if one is not ABSENT:
                    older.unpin(one)
                return 0
        slot = (block >> (8 * level)) % NODE_POINTERS
        before = pointer_in(one, slot)
        after = pointer_in(other, slot)
        if level == 0:                                   # one lookup serves a run of blocks in one leaf
            mapped[0] = after.flags & POINTER_PRESENT
            while count < most and slot + count < NODE_POINTERS and joins(
                    before, after, pointer_in(one, slot + <uint32_t>count), pointer_in(other, slot + <uint32_t>count)):
                count += 1
        if one is not ABSENT:
            older.unpin(one)
        if other is not ABSENT:
            newer.unpin(other)
        if level == 0:
            differ[0] = not same(before, after)
            return count


cdef inline Pointer pointer_in(const Node* node, uint32_t slot) noexcept nogil:
    cdef Pointer nothing
    if node is not ABSENT:
        return node.pointers[slot]
    memset(&nothing, 0, sizeof(nothing))
    return nothing


cdef inline bint same(Pointer one, Pointer other) noexcept nogil:
    if not one.flags & POINTER_PRESENT or not other.flags & POINTER_PRESENT:
        return (one.flags & POINTER_PRESENT) == (other.flags & POINTER_PRESENT)
    return one.segment == other.segment and one.block == other.block


cdef inline bint joins(Pointer before, Pointer after, Pointer next_before, Pointer next_after) noexcept nogil:
    """Whether the next block belongs to the same range."""
    if same(before, after):
        return same(next_before, next_after)
    return not same(next_before, next_after) and (after.flags & POINTER_PRESENT) == (next_after.flags & POINTER_PRESENT)


# ---------------------------------------------------------------------- of a volume

cdef int find_changes(Volume volume, Comparing* comparing, Map older, Map newer) noexcept nogil:
    cdef bint now = is_zero_id(comparing.newer)
    cdef int result
    if volume.closing:
        return -ESHUTDOWN
    if now and comparing.block == 0:
        result = volume.checkpoints.run()
        if result < 0:
            return result
        if volume.closing:
            return -ESHUTDOWN
    if readable(volume, comparing.older) is NULL or (not now and readable(volume, comparing.newer) is NULL):
        return -ENOENT
    hold(volume, comparing.older, &older.root, &comparing.blocks)
    if now:
        newer.root = volume.map.root
        comparing.blocks = max(comparing.blocks, volume.blocks)
        volume.segments.reclaim_holds += 1
    else:
        hold(volume, comparing.newer, &newer.root, &comparing.blocks)
    result = collect(volume, comparing, older, newer)
    older.forget()
    newer.forget()
    release(volume, comparing.older)
    if now:
        volume.segments.reclaim_holds -= 1
    else:
        release(volume, comparing.newer)
    wake_all(&volume.connections_changed, 0)
    return result


cdef bint hold_older(Volume volume, const uint8_t* id, Map into) noexcept nogil:
    cdef uint64_t blocks = 0
    if volume.closing or readable(volume, id) is NULL:
        return False
    hold(volume, id, &into.root, &blocks)
    return True


cdef void release_older(Volume volume, const uint8_t* id, Map older) noexcept nogil:
    older.forget()
    release(volume, id)
    wake_all(&volume.connections_changed, 0)


cdef int collect(Volume volume, Comparing* comparing, Map older, Map newer) noexcept nogil:
    cdef Operation operation
    cdef uint64_t misses = newer.cache.misses, block = comparing.block
    cdef uint32_t steps = 0
    cdef int64_t found
    cdef bint differ = False, mapped = False
    cdef Range* last
    cdef int result = 0
    while block < comparing.blocks and steps < STEPS_MAX:
        waited(&operation)
        found = compare(older, newer, block, comparing.blocks - block, &differ, &mapped, &operation)
        if found == 0:
            result = wait(&operation)
            if result < 0:
                return result
            if volume.checkpoints.stopping:
                return -ESHUTDOWN
            continue
        if differ:
            last = &comparing.ranges[comparing.count - 1] if comparing.count else NULL
            if last is not NULL and last.block + last.count == block and last.mapped == mapped:
                last.count += found
            elif comparing.count == comparing.room:
                break
            else:
                comparing.ranges[comparing.count].block = block
                comparing.ranges[comparing.count].count = found
                comparing.ranges[comparing.count].mapped = mapped
                comparing.count += 1
        block += found
        steps += 1
    comparing.next = block
    comparing.nodes = newer.cache.misses - misses
    return 0


cdef Snapshot* readable(Volume volume, const uint8_t* id) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    return NULL if snapshot is NULL or snapshot.entry.flags & (SNAPSHOT_HIDDEN | SNAPSHOT_CLONE) else snapshot


cdef void hold(Volume volume, const uint8_t* id, Pointer* root, uint64_t* blocks) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    snapshot.readers += 1
    volume.readings += 1
    root[0] = snapshot.entry.root
    blocks[0] = max(blocks[0], snapshot.entry.size_bytes // BLOCK_BYTES)


cdef void release(Volume volume, const uint8_t* id) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    snapshot.readers -= 1
    volume.readings -= 1
    if snapshot.entry.flags & SNAPSHOT_HIDDEN:           # deleted while it was held
        volume.snapshots.changed()
        volume.checkpoints.due = True
        volume.checkpoints.poke()
