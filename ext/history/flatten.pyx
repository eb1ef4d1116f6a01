# Flattening: copies what a clone inherits into its own log, while the clone is in use. Afterwards the clone does not
# need its parent.
#
#     copy     walk the head's map; append every data block in a segment below `branch` to the log again, ordered with
#              concurrent writes to that block, as evacuation does; a node whose image lies there is written by the next
#              write-back
#     check    write a checkpoint, then verify that neither its tree nor a snapshot's has a pointer below `branch`
#     cut off  once the record in the metadata service names no parent
#
# Always true:
#   - what was copied stays copied, and is counted (SegmentTable.inherited): after a crash or an error, copying
#     continues with the rest;
#   - the head never inherits a block again after it was copied, unless a snapshot that inherits it is restored. So the
#     check covers the snapshots too, and its result stays true;
#   - after a crash the record names the parent or it does not; a checkpoint that names the parent but inherits nothing
#     opens in both cases (volume/recovery.pyx);
#   - copying never uses the space reserved for checkpoints and cleaning.
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
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.base.task cimport wait, waited, wake_all
from iomesh.engine.volume.volume cimport Volume, is_ending

cdef enum:
    THROTTLED_BLOCKS = 64            # copied between two calls of the throttle
    SPARE_SEGMENTS = 2               # left free beyond the reserve, for users' writes during the copy

cdef struct Copy:
    AwaitedRequest written           # its first member; covers all blocks that are copied
    Throttle* throttle
    uint64_t asked                   # blocks requested


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
    """Copies a node and everything below it. image: the pointer to the node."""
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
    if result == 0 and is_inherited(volume, image):      # unchanged since, or everything below is trimmed
        result = min(renew_node(volume, level, index, image.segment, image.block), 0)
    return result


cdef int copy_block(Volume volume, Copy* copy, uint64_t block) noexcept nogil:
    cdef Operation operation
    cdef int64_t taken = 0
    cdef int result = 0
    if copy.throttle is not NULL and copy.asked % THROTTLED_BLOCKS == 0:
        result = copy.throttle.step(copy.throttle.owner, volume.io, THROTTLED_BLOCKS * BLOCK_BYTES)
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
    """The node, pinned. NULL: it does not exist, or reading it failed with `error`."""
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


# ---------------------------------------------------------------------- the check

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
    volume.segments.reclaim_holds += 1                   # no block of these trees is reclaimed during the check
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
        result = (
            -EBUSY
            if entry.inherited
            else look_into(volume, tree, entry.root, 0 if parent is NULL else parent.entry.node_cut)
        )
    return result


cdef int look_into(Volume volume, Map tree, Pointer root, uint64_t known) noexcept nogil:
    """known: nodes below this address are shared with the parent snapshot, which is checked itself."""
    cdef int result
    tree.root = root
    result = look_below(volume, tree, root, MAP_LEVELS - 1, 0, known)
    tree.forget()
    return result


cdef int look_below(Volume volume, Map tree, Pointer image, int level, uint64_t index, uint64_t known) noexcept nogil:
    """Checks pointers to nodes only: inherited data blocks are counted."""
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
    volume.checkpoints.writer.changes += 1


cdef inline bint is_inherited(Volume volume, Pointer pointer) noexcept nogil:
    return pointer.flags & POINTER_PRESENT and pointer.segment < volume.segments.branch


cdef bint has_room(Volume volume) noexcept nogil:
    cdef uint32_t spare = SPARE_SEGMENTS * volume.log.open_segments.segment_blocks
    cdef int i
    for i in range(volume.log.open_segments.local_count):
        if (<Member>volume.log.open_segments.members[i]).has_room(spare, False):
            return True
    return False
