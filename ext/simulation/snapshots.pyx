# A volume's snapshots in a simulation run: they are created, deleted, read and restored, as the engine's commands and
# exports do it; after a crash it is determined which of them exist.

from libc.errno cimport ENOENT, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from iomesh.engine.history.snapshots cimport close_snapshot, delete_snapshot, make_snapshots, open_snapshot
from iomesh.engine.simulation.oracle cimport BLOCK_SECTORS
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS, SNAPSHOT_HIDDEN, SNAPSHOT_MARK
from iomesh.engine.simulation.run cimport DELETE, LOOK, READ_BLOCKS, REGION_SECTORS, RESTORE, SNAPSHOT
from iomesh.engine.log.request cimport Read
from iomesh.engine.map.snapshot_table cimport Snapshot
from iomesh.engine.base.task cimport start, wait, waited


cdef void begin_with_snapshots(SimulatedVolume simulated, int kind) noexcept nogil:
    cdef SimulatedSnapshot* shot = NULL
    if kind == SNAPSHOT:
        shot = simulated.any_shot(SHOT_NONE)
    elif kind != RESTORE or simulated.run.chance(64):      # a restore stalls the others: rarely
        shot = simulated.any_shot(SHOT_MADE)
    if (
        shot is NULL
        or (kind == LOOK and simulated.run.looking)
        or simulated.changing
        or (kind == DELETE and simulated.clones(shot.id))
    ):
        return
    simulated.begin_change()
    simulated.run.count(kind)
    if kind == SNAPSHOT:
        simulated.name_shot(shot)
        simulated.run.note(b"snapshot %lld begins", shot.number, 0, 0)
        start(snapshot_body, shot, NULL)
    elif kind == DELETE:
        shot.state = SHOT_DELETING
        simulated.run.note(b"snapshot %lld is being deleted", shot.number, 0, 0)
        start(delete_body, shot, NULL)
    elif kind == RESTORE:
        simulated.going.state = GOING_WAITS
        simulated.going.target = shot
    else:
        simulated.run.looking = shot.looked_at = True
        start(look_body, shot, NULL)


cdef bint begin_restore(SimulatedVolume simulated) noexcept nogil:
    """Starts a restore once no client is connected; other tasks continue. False: the snapshot was deleted, or there is
    no room for a restore point that is needed."""
    cdef Going* going = &simulated.going
    if going.target.state != SHOT_MADE or (simulated.marks() and simulated.free_mark() is NULL):
        going.state = GOING_NOWHERE
        simulated.end_change()
        return False
    going.state = GOING_BACK
    going.moved = False
    memcpy(going.id, going.target.id, 16)
    going.kept = simulated.oracle.keep_again(going.target.kept)
    memset(&going.snapshot_request, 0, sizeof(SnapshotRequest))
    going.before = simulated.any_shot(SHOT_NONE) if simulated.run.chance(160) else NULL
    if going.before is not NULL:
        simulated.name_shot(going.before)
        name_snapshot_request(&going.snapshot_request, going.before)
    else:
        hide_request(simulated, &going.snapshot_request)
    going.mark = simulated.free_mark() if simulated.marks() else NULL
    if going.mark is not NULL:
        simulated.name_shot(going.mark)
        going.mark.kept = simulated.oracle.keep_again(going.kept)
        memset(&going.mark_request, 0, sizeof(SnapshotRequest))
        name_snapshot_request(&going.mark_request, going.mark)
        going.mark_request.entry.flags = SNAPSHOT_MARK
    simulated.run.note(b"goes back to snapshot %lld; what was there is to be snapshot %lld", going.target.number,
                       0 if going.before is NULL else going.before.number, 0)
    start(restore_body, <void*>simulated, NULL)
    return True


cdef void name_snapshot_request(SnapshotRequest* snapshot_request, const SimulatedSnapshot* shot) noexcept nogil:
    memcpy(snapshot_request.entry.id, shot.id, 16)
    snprintf(snapshot_request.entry.name, sizeof(snapshot_request.entry.name), b"number %u", shot.number)


cdef void hide_request(SimulatedVolume simulated, SnapshotRequest* snapshot_request) noexcept nogil:
    memset(snapshot_request, 0, sizeof(SnapshotRequest))
    simulated.run.shot_count += 1
    memcpy(snapshot_request.entry.id, &simulated.run.shot_count, sizeof(simulated.run.shot_count))
    snapshot_request.entry.flags = SNAPSHOT_HIDDEN


# ---------------------------------------------------------------------- tasks

cdef int64_t snapshot_body(void* argument) noexcept nogil:
    make_snapshot(<SimulatedVolume>(<SimulatedSnapshot*>argument).simulated, <SimulatedSnapshot*>argument)
    return 0


cdef void make_snapshot(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil:
    cdef Shortages shortages = simulated.shortages()
    cdef int result
    memset(&shot.making, 0, sizeof(Making))
    shot.making.volume = <void*>simulated.volume
    name_snapshot_request(&shot.making.snapshot_request, shot)
    result = make_snapshots(simulated.home.reactor, &shot.making, 1)
    simulated.check_making(shortages, result)
    simulated.end_change()
    shot.state = SHOT_NONE
    if result == 0:
        shot.kept = simulated.oracle.keep(shot.begun)
        simulated.oracle.holds(shot.begun)
        shot.size_blocks = simulated.volume.snapshots.find(shot.id).entry.size_bytes // BLOCK_BYTES
        shot.state = SHOT_MADE
        simulated.run.note(b"snapshot %lld is made", shot.number, 0, 0)
    simulated.run.fail(b"making a snapshot", result)
    simulated.note_oldest_read()


cdef int64_t restore_body(void* argument) noexcept nogil:
    restore(<SimulatedVolume>argument)
    return 0


cdef void restore(SimulatedVolume simulated) noexcept nogil:
    """Restores as engine.pyx does, with no client connected."""
    cdef Going* going = &simulated.going
    cdef Shortages shortages = simulated.shortages()
    cdef int result = simulated.go_back(
        going.id, &going.snapshot_request, NULL if going.mark is NULL else &going.mark_request
    )
    if going.before is not NULL:
        simulated.check_making(shortages, result)
    simulated.end_change()
    if going.mark is not NULL:
        going.mark.state = SHOT_MADE if result == 0 else SHOT_NONE
        going.mark.size_blocks = going.mark_request.entry.size_bytes // BLOCK_BYTES
        if result < 0:
            simulated.oracle.let_go(going.mark.kept)
    if going.before is not NULL:
        going.before.state = SHOT_NONE
    if going.before is not NULL and going.snapshot_request.made:  # after an error it is dying
        going.before.kept = simulated.oracle.keep(going.before.begun)
        simulated.oracle.holds(going.before.begun)
        going.before.size_blocks = going.snapshot_request.entry.size_bytes // BLOCK_BYTES
        going.before.state = SHOT_MADE if result == 0 else SHOT_DELETING
    if (result == 0) != going.moved:
        simulated.run.fault(
            b"going back to a snapshot ends with error %lld, and a pointer was moved (%lld)", -result, going.moved
        )
    elif result == 0:
        went_back(simulated)
    elif result != -ENOENT or going.target.state == SHOT_MADE:
        simulated.run.fail(b"going back to a snapshot", result)
    simulated.run.note(b"going back ends with error %lld", -result, 0, 0)
    simulated.oracle.let_go(going.kept)
    going.state = GOING_NOWHERE
    simulated.note_oldest_read()


cdef int64_t delete_body(void* argument) noexcept nogil:
    drop_snapshot(<SimulatedVolume>(<SimulatedSnapshot*>argument).simulated, <SimulatedSnapshot*>argument)
    (<SimulatedVolume>(<SimulatedSnapshot*>argument).simulated).end_change()
    return 0


cdef void drop_snapshot(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil:
    cdef bint hidden = False
    cdef int result
    shot.state = SHOT_DELETING
    result = delete_snapshot(simulated.volume, shot.id, &hidden)
    if result == 0:
        shot.state = SHOT_NONE
        simulated.oracle.let_go(shot.kept)
        simulated.run.note(b"snapshot %lld is deleted", shot.number, 0, 0)
    simulated.run.fail(b"deleting a snapshot", result)


cdef int64_t look_body(void* argument) noexcept nogil:
    look(<SimulatedVolume>(<SimulatedSnapshot*>argument).simulated, <SimulatedSnapshot*>argument)
    return 0


cdef void look(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil:
    look_at(simulated, shot, False)
    simulated.end_change()


cdef void look_at_all(SimulatedVolume simulated) noexcept nogil:
    """After a recovery, once the heads are verified: reads the snapshots, sometimes."""
    cdef int i
    cdef uint32_t often = 64 if simulated.run.volume_count == 1 else 16  # for speed
    cdef bint whole = simulated.run.last or simulated.run.chance(often)
    if simulated.run.last or simulated.run.chance(often):
        for i in range(SHOTS_AND_MARKS if simulated.run.last or simulated.run.step % 4 == 0 else SHOTS):
            if simulated.shots[i].state == SHOT_MADE and not simulated.run.wrong:
                simulated.run.looking = simulated.shots[i].looked_at = True
                look_at(simulated, &simulated.shots[i], whole)


cdef void look_at(SimulatedVolume simulated, SimulatedSnapshot* shot, bint whole) noexcept nogil:
    """Reads a snapshot, or a part of it, as an export of it does."""
    cdef uint32_t region, first, count = simulated.run.regions_below(shot.size_blocks), i, sector
    cdef int result
    memcpy(simulated.reading.identity, shot.id, 16)
    simulated.reading.closing = False
    result = open_snapshot(simulated.volume, simulated.reading, shot.id)
    if result == -ESHUTDOWN:
        simulated.run.looking = shot.looked_at = False
        return
    if result < 0:
        simulated.run.fault(b"snapshot %lld cannot be opened (error %lld)", shot.number, -result)
        return
    first = 0 if whole else <uint32_t>simulated.run.draw(count)
    for region in range(first, count if whole else first + 1):
        memset(&simulated.look, 0, sizeof(simulated.look) - sizeof(simulated.look.pointers))
        simulated.look.block = simulated.run.leaves[region] * NODE_POINTERS
        simulated.look.count = NODE_POINTERS
        simulated.run.renew(&simulated.run.look_buffer)
        simulated.look.into = simulated.run.look_buffer
        simulated.look.owner = <void*>simulated
        simulated.look.done = look_ended
        waited(&simulated.looked)
        simulated.reading.read(&simulated.look)
        wait(&simulated.looked)
        if simulated.look.error:
            simulated.run.failures += 1
            if (
                simulated.run.damages
                and simulated.checker.is_damaged(
                    simulated.volume, &simulated.reading.map.root, simulated.look.block, NODE_POINTERS, True
                )
            ):
                simulated.run.excused += 1
            elif not simulated.run.errors_allowed:
                simulated.run.fault(
                    b"a read of snapshot %lld fails with error %lld, and no device failed",
                    shot.number, simulated.look.error
                )
            continue
        if simulated.look.unmapped:
            memset(simulated.run.look_buffer, 0, READ_BLOCKS * BLOCK_BYTES)
        for i in range(NODE_POINTERS):
            sector = region * REGION_SECTORS + i * BLOCK_SECTORS
            if not simulated.run.wrong and not simulated.oracle.check_kept(
                    shot.kept, sector, simulated.run.look_buffer + i * BLOCK_BYTES, simulated.run.place_of(sector)):
                simulated.run.note(b"snapshot %lld is wrong", shot.number, 0, 0)
                simulated.run.fault(simulated.oracle.words, 0, 0)
    close_snapshot(simulated.volume, simulated.reading)
    simulated.run.looking = shot.looked_at = False
    simulated.run.note(b"snapshot %lld was looked at", shot.number, 0, 0)


cdef void look_ended(Read* read) noexcept nogil:
    end_look(<SimulatedVolume>read.owner)


cdef void end_look(SimulatedVolume simulated) noexcept nogil:
    simulated.looked.result = 0
    simulated.looked.done(&simulated.looked)


# ---------------------------------------------------------------------- crashes

cdef void went_back(SimulatedVolume simulated) noexcept nogil:
    """The restore took place: the volume now has the snapshot's content."""
    simulated.run.restores += 1
    simulated.run.note(
        b"it has gone back: operation %lld", simulated.oracle.go_back(simulated.oracle, simulated.going.kept), 0, 0
    )


cdef void doubt_shots(SimulatedVolume simulated) noexcept nogil:
    """The process has ended: snapshots that were being created or deleted may exist or not."""
    cdef int i
    cdef SimulatedSnapshot* shot
    for i in range(SHOTS_AND_MARKS):
        shot = &simulated.shots[i]
        shot.looked_at = False
        if shot.state == SHOT_MAKING and shot.kept < 0:      # else the oracle has its content
            shot.kept = simulated.oracle.keep(shot.begun)
        if shot.state == SHOT_MAKING or shot.state == SHOT_DELETING:
            shot.state = SHOT_UNKNOWN
    if simulated.going.state == GOING_BACK and simulated.going.moved:
        went_back(simulated)
    if (
        simulated.going.state == GOING_BACK
        or (simulated.going.state == GOING_WAITS and simulated.going.to_point_in_time)
    ):
        simulated.oracle.let_go(simulated.going.kept)
    simulated.going.state = GOING_NOWHERE
    simulated.going.to_point_in_time = False


cdef bint settle_shots(SimulatedVolume simulated) noexcept nogil:
    """Determines which of those snapshots exist."""
    cdef uint32_t i
    cdef int visible = 0
    cdef SimulatedSnapshot* shot
    cdef Snapshot* snapshot
    for i in range(SHOTS_AND_MARKS):
        shot = &simulated.shots[i]
        if shot.state == SHOT_NONE:
            continue
        snapshot = simulated.volume.snapshots.find(shot.id)
        if snapshot is not NULL and not snapshot.entry.flags & SNAPSHOT_HIDDEN:
            visible += 1
            if shot.state == SHOT_UNKNOWN:
                simulated.oracle.holds(shot.begun)
            shot.state = SHOT_MADE
            shot.unmarked = i >= SHOTS and not snapshot.entry.flags & SNAPSHOT_MARK
            shot.size_blocks = snapshot.entry.size_bytes // BLOCK_BYTES
        elif shot.state == SHOT_MADE:
            simulated.run.fault(b"snapshot %lld was made and is gone", shot.number, 0)
            return False
        else:
            shot.state = SHOT_NONE
            simulated.oracle.let_go(shot.kept)
    for i in range(simulated.volume.snapshots.count):
        visible -= not simulated.volume.snapshots.all[i].entry.flags & SNAPSHOT_HIDDEN
    if visible:
        simulated.run.fault(b"there are snapshots (%lld) that were deleted or never made", -visible, 0)
    return visible == 0
