# A clone without its parent: what it inherits is copied into its own log, while it is used, and then nothing holds the parent any more.
#
#     copy     the head's map is walked; every block of data that lies below `branch` is written again as what it is, between whatever writes
#              there are to it, as cleaning's evacuation does; a node whose image lies there is written with the next write-back
#     check    a checkpoint; then neither its tree nor a snapshot's has a pointer below `branch`
#     cut off  once the record in the metadata service names no parent
#
# Always true:
#   - what was copied stays copied, and is counted (SegmentTable.inherited): after a crash, or an error, copying goes on with what is left;
#   - what the head does not inherit any more it never inherits again, unless it goes back to a snapshot that does. So a check holds as long
#     as there is no such snapshot: they are part of it;
#   - a crash finds the record with the parent, or without; a checkpoint that names it serves both, if it inherits nothing (volume/recovery.pyx);
#   - the space that is kept for checkpoints and cleaning stays theirs.
#
# Called by the engine. docs/decisions/0016.

from libc.errno cimport EBUSY, EINVAL, EIO, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from iomesh.engine.volume.cleaning cimport renew_node
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.history.snapshots cimport let_parent_go
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, MAP_LEVELS, NODE_POINTERS, POINTER_PRESENT, SNAPSHOT_CLONE, Pointer, SnapshotEntry, address_of)
from iomesh.engine.map.map cimport ABSENT, Map, Node
from iomesh.engine.base.planted cimport planted
from iomesh.engine.log.request cimport AwaitedRequest, end_awaited
from iomesh.engine.map.snapshot_table cimport Snapshot
from iomesh.engine.store.store cimport Store
from iomesh.engine.base.task cimport wait, waited, wake_all
from iomesh.engine.volume.volume cimport Volume, is_ending

cdef enum:
    PACED_BLOCKS = 64                # copied between two looks at the pace
    SPARE_SEGMENTS = 2               # room beyond the reserve for what users write meanwhile

cdef struct Copy:
    AwaitedRequest written           # its first member; of all blocks that are written again
    Throttle* throttle
    uint64_t asked                   # blocks


cdef int copy_inherited(Volume volume, Throttle* throttle) noexcept nogil:
    cdef Copy copy
    cdef int result
    if volume.parent is NULL:
        return -EINVAL
    if volume.copying or is_ending(volume):
        return -EBUSY
    volume.copying = True
    memset(&copy, 0, sizeof(copy))
    copy.throttle = throttle
    copy.written.request.finished = end_awaited
    waited(&copy.written.ended)
    result = copy_below(volume, &copy, MAP_LEVELS - 1, 0, volume.map.root)
    volume.complete(&copy.written.request)
    wait(&copy.written.ended)
    volume.copying = False
    wake_all(&volume.copying_ended, 0)
    return -copy.written.request.error if result == 0 else result


cdef int copy_below(Volume volume, Copy* copy, int level, uint64_t index, Pointer image) noexcept nogil:
    """Of a node and what is below it. image: what leads to it."""
    cdef uint64_t found[4]
    cdef Node* node
    cdef Pointer one
    cdef uint32_t slot
    cdef int result = 0
    memset(found, 0, sizeof(found))
    node = hold(volume, volume.map, level, index, &result)
    if node is NULL:
        return result
    for slot in range(NODE_POINTERS):
        one = node.pointers[slot]
        if not one.flags & POINTER_PRESENT:
            continue
        if level:
            result = copy_below(volume, copy, level - 1, index * NODE_POINTERS + slot, one)
            if result < 0:
                break
        elif is_inherited(volume, one):
            found[slot // 64] |= <uint64_t>1 << (slot % 64)
    volume.map.unpin(node)
    for slot in range(NODE_POINTERS if level == 0 else 0):
        if result == 0 and found[slot // 64] >> (slot % 64) & 1:
            result = copy_block(volume, copy, index * NODE_POINTERS + slot)
    if result == 0 and is_inherited(volume, image):      # nothing below it has changed, or the last of what it held is trimmed
        result = min(renew_node(volume, level, index, image.segment, image.block), 0)
    return result


cdef int copy_block(Volume volume, Copy* copy, uint64_t block) noexcept nogil:
    cdef Operation operation
    cdef int64_t taken = 0
    cdef int result = 0
    if copy.throttle is not NULL and copy.asked % PACED_BLOCKS == 0:
        result = copy.throttle.step(copy.throttle.owner, volume.io, PACED_BLOCKS * BLOCK_BYTES)
    copy.asked += 1
    while taken == 0 and result == 0:
        if is_ending(volume):
            return -ESHUTDOWN
        if copy.written.request.error:
            return -copy.written.request.error
        if not has_room(volume):
            return -ENOSPC
        waited(&operation)
        taken = volume.rewrite(&copy.written.request, block, NULL, 0, &operation)
        if taken == 0 and wait(&operation) < 0:
            result = <int>operation.result
    return <int>min(taken, <int64_t>0) if result == 0 else result


cdef Node* hold(Volume volume, Map tree, int level, uint64_t index, int* error) noexcept nogil:
    """Pinned. NULL: there is none, or it cannot be had for `error`."""
    cdef Node* node = NULL
    cdef Operation operation
    while node is NULL:
        if is_ending(volume):
            error[0] = -ESHUTDOWN
            return NULL
        waited(&operation)
        node = tree.get(level, index, False, &operation)
        if node is ABSENT:
            return NULL
        if node is NULL:
            volume.checkpoints.poke()
            if wait(&operation) < 0:
                error[0] = -EIO
                return NULL
    return node


# ---------------------------------------------------------------------- looking

cdef int check_detached(Volume volume, Map tree) noexcept nogil:
    cdef int result = volume.checkpoints.claim()
    cdef uint64_t version
    if result < 0:
        return result
    if planted(b"detached_unchecked"):
        volume.checkpoints.let_go()
        return 0
    volume.checkpoints.write()
    result = volume.checkpoints.result
    volume.checkpoints.let_go()
    if result < 0:
        return result
    volume.segments.reclaim_holds += 1                   # of these trees nothing goes while they are looked at
    while True:
        version = volume.snapshots.version
        result = look(volume, tree)
        if result < 0 or volume.snapshots.version == version:
            break
    volume.segments.reclaim_holds -= 1
    return result


cdef int look(Volume volume, Map tree) noexcept nogil:
    cdef SnapshotEntry entry
    cdef Snapshot* parent
    cdef uint32_t i = 0
    cdef int result = -EBUSY if volume.checkpoints.inherited else look_into(volume, tree, volume.checkpoints.root, 0)
    while result == 0 and i < volume.snapshots.count:
        entry = volume.snapshots.all[i].entry
        i += 1
        if entry.flags & SNAPSHOT_CLONE:
            continue
        parent = volume.snapshots.find(entry.parent)
        result = -EBUSY if entry.inherited else look_into(volume, tree, entry.root, 0 if parent is NULL else parent.entry.node_cut)
    return result


cdef int look_into(Volume volume, Map tree, Pointer root, uint64_t known) noexcept nogil:
    """known: nodes below this address are its parent's, too."""
    cdef int result
    tree.root = root
    result = look_below(volume, tree, root, MAP_LEVELS - 1, 0, known)
    tree.forget()
    return result


cdef int look_below(Volume volume, Map tree, Pointer image, int level, uint64_t index, uint64_t known) noexcept nogil:
    """Of nodes; what leads to data is counted."""
    cdef Node* node
    cdef uint32_t slot
    cdef int result = 0
    if is_inherited(volume, image):
        return -EBUSY
    if level == 0 or address_of(image) < known or not image.flags & POINTER_PRESENT:
        return 0
    node = hold(volume, tree, level, index, &result)
    if node is NULL:
        return result
    for slot in range(NODE_POINTERS):
        if result == 0:
            result = look_below(volume, tree, node.pointers[slot], level - 1, index * NODE_POINTERS + slot, known)
    tree.unpin(node)
    return result


cdef void cut_off(Volume volume) noexcept nogil:
    let_parent_go(volume)
    volume.segments.parent = NULL
    volume.segments.branch = 0
    memset(volume.checkpoints.writer.lineage_volume, 0, 16)
    memset(volume.checkpoints.writer.lineage_snapshot, 0, 16)


cdef inline bint is_inherited(Volume volume, Pointer pointer) noexcept nogil:
    return pointer.flags & POINTER_PRESENT and pointer.segment < volume.segments.branch


cdef bint has_room(Volume volume) noexcept nogil:
    cdef uint32_t spare = SPARE_SEGMENTS * volume.log.open_segments.segment_blocks
    cdef int i
    for i in range(volume.log.open_segments.store_count):
        if (<Store>volume.log.open_segments.stores[i]).has_room(spare, False):
            return True
    return False
