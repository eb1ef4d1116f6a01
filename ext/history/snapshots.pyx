# Creating, deleting and restoring a volume's snapshots. Each operation is a task of several steps. They are atomic
# because the snapshot table changes only with a checkpoint (map/snapshot_table.pyx, volume/checkpoint.pyx).
#
# Several snapshots at one instant, on any reactors: claim all volumes (no checkpoint of theirs is running or can
# start), stop new writes on all of them, wait until everything is committed everywhere; that is the instant. Then each
# volume's checkpoint starts, which admits writes again at once. Volumes are claimed in the order of their identities,
# and before any writes are stopped: so there is no deadlock, and a volume's writes wait for the writes in flight in the
# other logs, never for their checkpoints.
#
# Restoring a snapshot: two consecutive checkpoints of a volume, without writes in between. The first one creates a
# snapshot of the current state, `before`. So no block belongs to the head alone any more, and the head can switch to
# another snapshot's tree without any block becoming live or dead. The second one makes that durable. After a crash,
# recovery starts at the first checkpoint, with the volume unchanged, or at the second. If the old state is not to be
# kept, `before` is hidden from the start: it has no descendants, so it dies with the second checkpoint, and its
# exclusive blocks are reclaimed as with any deletion. The second checkpoint may also create a restore point of the
# restored state: the restore window's history continues there.
#
# While writes wait for space or are refused, no snapshot is created that is to stay: its checkpoint would use the
# reserve (store/store.pyx), and the blocks that it pins cannot be reclaimed, so a few such snapshots would leave no
# room for cleaning. A snapshot that replaces another one, or that is deleted again at once, is *urgent*.

from libc.errno cimport EBUSY, ENOENT, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, MAP_LEVELS, SNAPSHOT_CLONE, SNAPSHOT_DYING, SNAPSHOT_HIDDEN, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED,
    Pointer, SnapshotEntry
)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.map.snapshot_table cimport Snapshot, SnapshotRequest
from iomesh.engine.base.task cimport start, wait, wait_in, waited, wake_all
from iomesh.engine.volume.volume cimport Volume

ctypedef int64_t (*Step)(void* making) noexcept nogil


# ---------------------------------------------------------------------- creating

cdef int make_snapshots(Reactor caller, Making* makings, uint32_t count) noexcept nogil:
    cdef uint32_t i
    cdef int result = 0
    cdef uint64_t time_ns
    for i in range(count):
        makings[i].caller = <void*>caller
        if result == 0:
            result = step(&makings[i], claim_step)
    for i in range(count):
        if result == 0:
            result = step(&makings[i], begin_drain_step)
    for i in range(count):
        if result == 0:
            result = step(&makings[i], drain_step)
    time_ns = caller.io.unix_ns()
    for i in range(count):
        if makings[i].claimed:
            makings[i].result = result
            if not makings[i].snapshot_request.entry.flags & SNAPSHOT_MARK:  # a restore point has its own log's time
                makings[i].snapshot_request.entry.time_ns = time_ns
            waited(&makings[i].ended)
            start(make_body, &makings[i], &makings[i].ended)       # concurrently: none waits for another
    for i in range(count):
        if makings[i].claimed and wait(&makings[i].ended) < 0 and result == 0:
            result = <int>makings[i].ended.result
    for i in range(count):
        if result < 0 and makings[i].snapshot_request.made:
            step(&makings[i], unmake_step)
    return result


cdef int step(Making* making, Step body) noexcept nogil:
    return <int>call_on((<Volume>making.volume).reactor, <Reactor>making.caller, body, making)


cdef int64_t claim_step(void* argument) noexcept nogil:
    return claim(<Volume>(<Making*>argument).volume, <Making*>argument)


cdef int claim(Volume volume, Making* making) noexcept nogil:
    cdef int result = -ESHUTDOWN if volume.closing else volume.checkpoints.claim()
    if result < 0:
        return result
    result = objection(volume, making)
    if result == 0:
        result = volume.snapshots.snapshot_request(&making.snapshot_request)
    if result < 0:
        volume.checkpoints.let_go()
        return result
    making.claimed = True
    return 0


cdef int objection(Volume volume, const Making* making) noexcept nogil:
    """Why the snapshot cannot be created now: a negative errno; 0: it can."""
    if volume.snapshots.unsettled() is not NULL and not making.snapshot_request.entry.flags & SNAPSHOT_MARK:
        return -EBUSY                                    # it would capture and settle half a restore
    return 0 if making.urgent else lack_of_space(volume)


cdef int lack_of_space(Volume volume) noexcept nogil:
    if volume.log.refusing_below:
        return -ENOSPC
    return -ENOSPC if volume.log.open_segments.no_space and not planted(b"snapshot_without_space") else 0


cdef int64_t begin_drain_step(void* argument) noexcept nogil:
    return (<Volume>(<Making*>argument).volume).checkpoints.begin_drain()


cdef int64_t drain_step(void* argument) noexcept nogil:
    return (<Volume>(<Making*>argument).volume).checkpoints.drain()


cdef int64_t make_body(void* argument) noexcept nogil:
    return step(<Making*>argument, make_step)


cdef int64_t make_step(void* argument) noexcept nogil:
    return make(<Volume>(<Making*>argument).volume, <Making*>argument)


cdef int make(Volume volume, Making* making) noexcept nogil:
    """The volume is claimed. After an error it is only released."""
    cdef int result = making.result
    if result == 0:
        result = volume.checkpoints.go()
        while volume.checkpoints.running and not making.snapshot_request.made:  # a waiter has started another one
            wait_in(&volume.checkpoints.ended)
        if making.snapshot_request.made:
            result = 0
    else:
        volume.checkpoints.let_go()
    if not making.snapshot_request.made:
        invariant(result < 0, b"a checkpoint makes what was wished for when it began")
        volume.snapshots.withdraw(&making.snapshot_request)
    return result


cdef int64_t unmake_step(void* argument) noexcept nogil:
    unmake(<Volume>(<Making*>argument).volume, <Making*>argument)
    return 0


cdef void unmake(Volume volume, Making* making) noexcept nogil:
    """Deletes a snapshot because another one of its group could not be created."""
    cdef Snapshot* snapshot = volume.snapshots.find(making.snapshot_request.entry.id)
    if snapshot is not NULL:
        snapshot.entry.flags |= SNAPSHOT_HIDDEN
        have_it_written(volume)


cdef void have_it_written(Volume volume) noexcept nogil:
    volume.snapshots.changed()
    volume.checkpoints.due = True
    volume.checkpoints.poke()


# ---------------------------------------------------------------------- deleting

cdef int delete_snapshot(Volume volume, const uint8_t* id, bint* hidden) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    cdef int result
    if snapshot is NULL or snapshot.entry.flags & (SNAPSHOT_HIDDEN | SNAPSHOT_CLONE):
        return -ENOENT
    snapshot.entry.flags |= SNAPSHOT_HIDDEN
    volume.snapshots.changed()
    result = volume.checkpoints.run_for(volume.snapshots.version)
    snapshot = volume.snapshots.find(id)
    hidden[0] = (
        snapshot is not NULL
        and not snapshot.entry.flags & SNAPSHOT_DYING
        and not volume.snapshots.may_die(&snapshot.entry)
    )
    return result


cdef int unmark_snapshot(Volume volume, const uint8_t* id) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    if snapshot is NULL or not snapshot.entry.flags & SNAPSHOT_MARK or snapshot.entry.flags & SNAPSHOT_HIDDEN:
        return -ENOENT
    snapshot.entry.flags &= ~<uint32_t>(SNAPSHOT_MARK | SNAPSHOT_UNSETTLED)
    volume.snapshots.changed()
    return volume.checkpoints.run_for(volume.snapshots.version)


# ---------------------------------------------------------------------- restoring

cdef int restore_volume(
    Volume volume, const uint8_t* id, SnapshotRequest* before, SnapshotRequest* mark
) noexcept nogil:
    cdef int result
    invariant(volume.restoring, b"nobody comes while a volume goes back")
    while volume.cleaning:
        wait_in(&volume.cleaning_ended)
    while volume.copying:
        wait_in(&volume.copying_ended)
    invariant(volume.merging == 0, b"nobody writes while a volume goes back")
    result = volume.checkpoints.claim()
    if result < 0:
        return result
    result = go_back(volume, id, before, mark)
    volume.checkpoints.let_go()
    if result < 0 and before.made:
        volume.snapshots.find(before.entry.id).entry.flags |= SNAPSHOT_HIDDEN
        have_it_written(volume)
    return result


cdef int go_back(Volume volume, const uint8_t* id, SnapshotRequest* before, SnapshotRequest* mark) noexcept nogil:
    """The caller has claimed the volume's checkpoints."""
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    cdef Snapshot* unsettled
    cdef int result
    if snapshot is NULL or snapshot.entry.flags & (SNAPSHOT_HIDDEN | SNAPSHOT_CLONE):
        return -ENOENT
    unsettled = volume.snapshots.unsettled()
    if unsettled is not NULL and not planted(b"half_undone_served"):     # until the second checkpoint
        before.entry.flags |= SNAPSHOT_MARK | SNAPSHOT_UNSETTLED
        memcpy(before.entry.before, unsettled.entry.before, 16)
    result = 0 if before.entry.flags & SNAPSHOT_HIDDEN else lack_of_space(volume)
    if result == 0:
        result = volume.snapshots.snapshot_request(before)
    if result < 0:
        return result
    snapshot.readers += 1                                # held during the restore
    volume.checkpoints.held = True
    volume.checkpoints.write()
    result = volume.checkpoints.result
    if not before.made:
        invariant(result < 0, b"a checkpoint makes what was wished for when it began")
        volume.snapshots.withdraw(before)
    else:
        stand_upon(volume, id, volume.snapshots.find(id).entry.root)
        if mark is not NULL and planted(b"half_a_restore_served"):
            mark.entry.flags &= ~<uint32_t>SNAPSHOT_UNSETTLED
        result = 0 if mark is NULL else volume.snapshots.snapshot_request(mark)
        if result == 0 and not planted(b"restore_told_early"):
            volume.checkpoints.write()
            result = volume.checkpoints.result
        if result < 0:                                   # the first checkpoint is the valid one
            if mark is not NULL:
                volume.snapshots.withdraw(mark)
            stand_upon(volume, before.entry.id, volume.checkpoints.root)
    snapshot = volume.snapshots.find(id)
    snapshot.readers -= 1
    if snapshot.entry.flags & SNAPSHOT_HIDDEN:           # deleted while it was held
        have_it_written(volume)
    return result


cdef void stand_upon(Volume volume, const uint8_t* id, Pointer root) noexcept nogil:
    """Switches the head to this snapshot. Until now the head was identical to its parent snapshot, block by block."""
    cdef const Snapshot* snapshot = volume.snapshots.find(id)
    cdef int level
    for level in range(MAP_LEVELS):
        invariant(volume.map.dirty_first[level] is NULL, b"a map is written whole before it is left")
    invariant(volume.map.images == 0, b"a map is written whole before it is left")
    if not planted(b"restore_keeps_nodes"):
        volume.map.forget()
    volume.map.root = root
    volume.segments.recount(snapshot.entry.mapped, snapshot.entry.inherited, 0)
    if not planted(b"restore_pins_nothing"):
        memcpy(volume.snapshots.head_parent, id, 16)
    volume.snapshots.changed()


cdef void walk_dying(void* volume) noexcept nogil:
    if (
        (<Volume>volume).snapshots.dying() is not NULL
        and not (<Volume>volume).walk.running
        and not (<Volume>volume).walk.stopping
    ):
        (<Volume>volume).walk.running = True
        start(walk_body, volume, NULL)


cdef int64_t walk_body(void* volume) noexcept nogil:
    give_back(<Volume>volume)
    return 0


cdef void give_back(Volume volume) noexcept nogil:
    """Counts the dying snapshot's exclusive blocks as dead and removes it; the next checkpoint makes that durable."""
    cdef SnapshotEntry entry = volume.snapshots.dying()[0]
    cdef Snapshot* parent = volume.snapshots.find(entry.parent)
    cdef Pointer root
    cdef uint64_t disagreements = 0
    memset(&root, 0, sizeof(root))
    if parent is not NULL:
        root = parent.entry.root
    if volume.walk.doom(entry.root, root, entry.successor) == 0:
        volume.walk.carry_out(&disagreements)
        volume.walk.disagreements += disagreements
        volume.snapshots.disown(volume.walk.doomed_data, volume.segments)
        volume.snapshots.walked = True
        volume.snapshots.remove(entry.id)
    volume.walk.running = False
    wake_all(&volume.walk_ended, 0)
    if volume.snapshots.walked:
        have_it_written(volume)


# ---------------------------------------------------------------------- clones

cdef int branch_off(Volume volume, Volume parent, const uint8_t* id) noexcept nogil:
    """On the reactor of both, before the clone is recovered: the head starts as the parent's snapshot."""
    cdef Snapshot* snapshot
    if parent.closing:
        return -ESHUTDOWN
    if not hold_snapshot(parent, id):
        return -ENOENT
    snapshot = parent.snapshots.find(id)
    volume.parent = <void*>parent
    memcpy(volume.parent_snapshot, id, 16)
    memcpy(volume.checkpoints.writer.lineage_volume, parent.identity, 16)
    memcpy(volume.checkpoints.writer.lineage_snapshot, id, 16)
    volume.segments.parent = <void*>parent.segments
    # above the snapshot's segments
    volume.segments.branch = <uint32_t>(snapshot.entry.node_cut >> 32) + (not planted(b"branch_one_low"))
    volume.log.open_segments.next_segment = max(volume.log.open_segments.next_segment, volume.segments.branch)
    volume.map.root = volume.checkpoints.root = snapshot.entry.root
    volume.segments.recount(snapshot.entry.mapped, snapshot.entry.mapped, 0)
    return 0


cdef void let_parent_go(Volume volume) noexcept nogil:
    """The clone is closed."""
    let_snapshot_go(<Volume>volume.parent, volume.parent_snapshot)
    volume.parent = NULL


cdef bint hold_snapshot(Volume volume, const uint8_t* id) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    if snapshot is NULL or snapshot.entry.flags & (SNAPSHOT_HIDDEN | SNAPSHOT_CLONE):
        return False
    snapshot.readers += 1
    volume.readings += 1
    return True


cdef void let_snapshot_go(Volume volume, const uint8_t* id) noexcept nogil:
    cdef Snapshot* snapshot = volume.snapshots.find(id)
    invariant(snapshot is not NULL and snapshot.readers > 0, b"a snapshot that is read stays")
    snapshot.readers -= 1
    volume.readings -= 1
    wake_all(&volume.connections_changed, 0)
    if snapshot.entry.flags & SNAPSHOT_HIDDEN:
        have_it_written(volume)


# ---------------------------------------------------------------------- reading

cdef int open_snapshot(Volume volume, Volume reading, const uint8_t* id) noexcept nogil:
    cdef Snapshot* snapshot
    if volume.closing:
        return -ESHUTDOWN
    if not hold_snapshot(volume, id):
        return -ENOENT
    snapshot = volume.snapshots.find(id)
    reading.map.root = snapshot.entry.root
    reading.blocks = snapshot.entry.size_bytes // BLOCK_BYTES
    return 0


cdef void close_snapshot(Volume volume, Volume reading) noexcept nogil:
    """Its last connection is closed."""
    reading.close()
    let_snapshot_go(volume, reading.identity)
