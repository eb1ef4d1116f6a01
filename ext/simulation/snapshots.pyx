# A volume's snapshots in a life in the simulated world: they are made, deleted, looked at, and gone back to, as the engine's commands and doors
# do it; and after a crash it is found out which there are.

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


cdef void begin_with_snapshots(Tenant tenant, int kind) noexcept nogil:
    cdef Shot* shot = NULL
    if kind == SNAPSHOT:
        shot = tenant.any_shot(SHOT_NONE)
    elif kind != RESTORE or tenant.life.chance(64):      # to go back wants all others to wait: not too often
        shot = tenant.any_shot(SHOT_MADE)
    if shot is NULL or (kind == LOOK and tenant.life.looking) or tenant.changing or (kind == DELETE and tenant.clones(shot.id)):
        return
    tenant.begin_change()
    tenant.life.count(kind)
    if kind == SNAPSHOT:
        tenant.name_shot(shot)
        tenant.life.note(b"snapshot %lld begins", shot.number, 0, 0)
        start(snapshot_body, shot, NULL)
    elif kind == DELETE:
        shot.state = SHOT_DELETING
        tenant.life.note(b"snapshot %lld is being deleted", shot.number, 0, 0)
        start(delete_body, shot, NULL)
    elif kind == RESTORE:
        tenant.going.state = GOING_WAITS
        tenant.going.target = shot
    else:
        tenant.life.looking = shot.looked_at = True
        start(look_body, shot, NULL)


cdef bint begin_restore(Tenant tenant) noexcept nogil:
    """Nobody is connected any more; whatever else may be going on goes on. False: the snapshot is gone, or there is no room for a mark that is needed."""
    cdef Going* going = &tenant.going
    if going.target.state != SHOT_MADE or (tenant.marks() and tenant.free_mark() is NULL):
        going.state = GOING_NOWHERE
        tenant.end_change()
        return False
    going.state = GOING_BACK
    going.moved = False
    memcpy(going.id, going.target.id, 16)
    going.kept = tenant.judge.keep_again(going.target.kept)
    memset(&going.wish, 0, sizeof(Wish))
    going.before = tenant.any_shot(SHOT_NONE) if tenant.life.chance(160) else NULL
    if going.before is not NULL:
        tenant.name_shot(going.before)
        name_wish(&going.wish, going.before)
    else:
        hide_wish(tenant, &going.wish)
    going.mark = tenant.free_mark() if tenant.marks() else NULL
    if going.mark is not NULL:
        tenant.name_shot(going.mark)
        going.mark.kept = tenant.judge.keep_again(going.kept)
        memset(&going.mark_wish, 0, sizeof(Wish))
        name_wish(&going.mark_wish, going.mark)
        going.mark_wish.entry.flags = SNAPSHOT_MARK
    tenant.life.note(b"goes back to snapshot %lld; what was there is to be snapshot %lld", going.target.number,
                     0 if going.before is NULL else going.before.number, 0)
    start(restore_body, <void*>tenant, NULL)
    return True


cdef void name_wish(Wish* wish, const Shot* shot) noexcept nogil:
    memcpy(wish.entry.id, shot.id, 16)
    snprintf(wish.entry.name, sizeof(wish.entry.name), b"number %u", shot.number)


cdef void hide_wish(Tenant tenant, Wish* wish) noexcept nogil:
    memset(wish, 0, sizeof(Wish))
    tenant.life.shot_count += 1
    memcpy(wish.entry.id, &tenant.life.shot_count, sizeof(tenant.life.shot_count))
    wish.entry.flags = SNAPSHOT_HIDDEN


# ---------------------------------------------------------------------- tasks

cdef int64_t snapshot_body(void* argument) noexcept nogil:
    make_snapshot(<Tenant>(<Shot*>argument).tenant, <Shot*>argument)
    return 0


cdef void make_snapshot(Tenant tenant, Shot* shot) noexcept nogil:
    cdef Shortages shortages = tenant.shortages()
    cdef int result
    memset(&shot.making, 0, sizeof(Making))
    shot.making.volume = <void*>tenant.volume
    name_wish(&shot.making.wish, shot)
    result = make_snapshots(tenant.life.reactor, &shot.making, 1)
    tenant.judge_making(shortages, result)
    tenant.end_change()
    shot.state = SHOT_NONE
    if result == 0:
        shot.kept = tenant.judge.keep(shot.begun)
        tenant.judge.holds(shot.begun)
        shot.size_blocks = tenant.volume.snapshots.find(shot.id).entry.size_bytes // BLOCK_BYTES
        shot.state = SHOT_MADE
        tenant.life.note(b"snapshot %lld is made", shot.number, 0, 0)
    tenant.life.fail(b"making a snapshot", result)
    tenant.note_oldest_read()


cdef int64_t restore_body(void* argument) noexcept nogil:
    restore(<Tenant>argument)
    return 0


cdef void restore(Tenant tenant) noexcept nogil:
    """As engine.pyx has it done, when nobody is connected."""
    cdef Going* going = &tenant.going
    cdef Shortages shortages = tenant.shortages()
    cdef int result = tenant.go_back(going.id, &going.wish, NULL if going.mark is NULL else &going.mark_wish)
    if going.before is not NULL:
        tenant.judge_making(shortages, result)
    tenant.end_change()
    if going.mark is not NULL:
        going.mark.state = SHOT_MADE if result == 0 else SHOT_NONE
        going.mark.size_blocks = going.mark_wish.entry.size_bytes // BLOCK_BYTES
        if result < 0:
            tenant.judge.let_go(going.mark.kept)
    if going.before is not NULL:
        going.before.state = SHOT_NONE
    if going.before is not NULL and going.wish.made:     # with an error it is given up again, and may still be there after the next beginning
        going.before.kept = tenant.judge.keep(going.before.begun)
        tenant.judge.holds(going.before.begun)
        going.before.size_blocks = going.wish.entry.size_bytes // BLOCK_BYTES
        going.before.state = SHOT_MADE if result == 0 else SHOT_DELETING
    if (result == 0) != going.moved:
        tenant.life.fault(b"going back to a snapshot ends with error %lld, and a pointer was moved (%lld)", -result, going.moved)
    elif result == 0:
        went_back(tenant)
    elif result != -ENOENT or going.target.state == SHOT_MADE:
        tenant.life.fail(b"going back to a snapshot", result)
    tenant.life.note(b"going back ends with error %lld", -result, 0, 0)
    tenant.judge.let_go(going.kept)
    going.state = GOING_NOWHERE
    tenant.note_oldest_read()


cdef int64_t delete_body(void* argument) noexcept nogil:
    drop_snapshot(<Tenant>(<Shot*>argument).tenant, <Shot*>argument)
    (<Tenant>(<Shot*>argument).tenant).end_change()
    return 0


cdef void drop_snapshot(Tenant tenant, Shot* shot) noexcept nogil:
    cdef bint hidden = False
    cdef int result
    shot.state = SHOT_DELETING
    result = delete_snapshot(tenant.volume, shot.id, &hidden)
    if result == 0:
        shot.state = SHOT_NONE
        tenant.judge.let_go(shot.kept)
        tenant.life.note(b"snapshot %lld is deleted", shot.number, 0, 0)
    tenant.life.fail(b"deleting a snapshot", result)


cdef int64_t look_body(void* argument) noexcept nogil:
    look(<Tenant>(<Shot*>argument).tenant, <Shot*>argument)
    return 0


cdef void look(Tenant tenant, Shot* shot) noexcept nogil:
    look_at(tenant, shot, False)
    tenant.end_change()


cdef void look_at_all(Tenant tenant) noexcept nogil:
    """After a recovery, when the heads have been read: the snapshots, sometimes."""
    cdef int i
    cdef uint32_t often = 64 if tenant.life.tenant_count == 1 else 16    # for speed
    cdef bint whole = tenant.life.last or tenant.life.chance(often)
    if tenant.life.last or tenant.life.chance(often):
        for i in range(SHOTS_AND_MARKS if tenant.life.last or tenant.life.step % 4 == 0 else SHOTS):
            if tenant.shots[i].state == SHOT_MADE and not tenant.life.wrong:
                tenant.life.looking = tenant.shots[i].looked_at = True
                look_at(tenant, &tenant.shots[i], whole)


cdef void look_at(Tenant tenant, Shot* shot, bint whole) noexcept nogil:
    """Read a snapshot, or a part of it, as a door does that serves it."""
    cdef uint32_t region, first, count = tenant.life.regions_below(shot.size_blocks), i, sector
    cdef int result
    memcpy(tenant.reading.identity, shot.id, 16)
    tenant.reading.closing = False
    result = open_snapshot(tenant.volume, tenant.reading, shot.id)
    if result == -ESHUTDOWN:
        tenant.life.looking = shot.looked_at = False
        return
    if result < 0:
        tenant.life.fault(b"snapshot %lld cannot be opened (error %lld)", shot.number, -result)
        return
    first = 0 if whole else <uint32_t>tenant.life.draw(count)
    for region in range(first, count if whole else first + 1):
        memset(&tenant.look, 0, sizeof(tenant.look) - sizeof(tenant.look.pointers))
        tenant.look.block = tenant.life.leaves[region] * NODE_POINTERS
        tenant.look.count = NODE_POINTERS
        tenant.look.into = tenant.life.look_buffer
        tenant.look.owner = <void*>tenant
        tenant.look.done = look_ended
        waited(&tenant.looked)
        tenant.reading.read(&tenant.look)
        wait(&tenant.looked)
        if tenant.look.error:
            tenant.life.failures += 1
            if tenant.life.damages and tenant.audit.is_damaged(tenant.volume, &tenant.reading.map.root, tenant.look.block, NODE_POINTERS, True):
                tenant.life.excused += 1
            elif not tenant.life.errors_allowed:
                tenant.life.fault(b"a read of snapshot %lld fails with error %lld, and no device failed", shot.number, tenant.look.error)
            continue
        if tenant.look.unmapped:
            memset(tenant.life.look_buffer, 0, READ_BLOCKS * BLOCK_BYTES)
        for i in range(NODE_POINTERS):
            sector = region * REGION_SECTORS + i * BLOCK_SECTORS
            if not tenant.life.wrong and not tenant.judge.check_kept(
                    shot.kept, sector, tenant.life.look_buffer + i * BLOCK_BYTES, tenant.life.place_of(sector)):
                tenant.life.note(b"snapshot %lld is wrong", shot.number, 0, 0)
                tenant.life.fault(tenant.judge.words, 0, 0)
    close_snapshot(tenant.volume, tenant.reading)
    tenant.life.looking = shot.looked_at = False
    tenant.life.note(b"snapshot %lld was looked at", shot.number, 0, 0)


cdef void look_ended(Read* read) noexcept nogil:
    end_look(<Tenant>read.owner)


cdef void end_look(Tenant tenant) noexcept nogil:
    tenant.looked.result = 0
    tenant.looked.done(&tenant.looked)


# ---------------------------------------------------------------------- crashes

cdef void went_back(Tenant tenant) noexcept nogil:
    """All that the volume holds is from now on what the snapshot held."""
    tenant.life.restores += 1
    tenant.life.note(b"it has gone back: operation %lld", tenant.judge.go_back(tenant.judge, tenant.going.kept), 0, 0)


cdef void doubt_shots(Tenant tenant) noexcept nogil:
    """The process ends: what was being made or deleted may be there or not."""
    cdef int i
    cdef Shot* shot
    for i in range(SHOTS_AND_MARKS):
        shot = &tenant.shots[i]
        shot.looked_at = False
        if shot.state == SHOT_MAKING and shot.kept < 0:      # else it is known
            shot.kept = tenant.judge.keep(shot.begun)
        if shot.state == SHOT_MAKING or shot.state == SHOT_DELETING:
            shot.state = SHOT_UNKNOWN
    if tenant.going.state == GOING_BACK and tenant.going.moved:
        went_back(tenant)
    if tenant.going.state == GOING_BACK or (tenant.going.state == GOING_WAITS and tenant.going.to_moment):
        tenant.judge.let_go(tenant.going.kept)
    tenant.going.state = GOING_NOWHERE
    tenant.going.to_moment = False


cdef bint settle_shots(Tenant tenant) noexcept nogil:
    """... and now it is known."""
    cdef uint32_t i
    cdef int visible = 0
    cdef Shot* shot
    cdef Snapshot* snapshot
    for i in range(SHOTS_AND_MARKS):
        shot = &tenant.shots[i]
        if shot.state == SHOT_NONE:
            continue
        snapshot = tenant.volume.snapshots.find(shot.id)
        if snapshot is not NULL and not snapshot.entry.flags & SNAPSHOT_HIDDEN:
            visible += 1
            if shot.state == SHOT_UNKNOWN:
                tenant.judge.holds(shot.begun)
            shot.state = SHOT_MADE
            shot.unmarked = i >= SHOTS and not snapshot.entry.flags & SNAPSHOT_MARK
            shot.size_blocks = snapshot.entry.size_bytes // BLOCK_BYTES
        elif shot.state == SHOT_MADE:
            tenant.life.fault(b"snapshot %lld was made and is gone", shot.number, 0)
            return False
        else:
            shot.state = SHOT_NONE
            tenant.judge.let_go(shot.kept)
    for i in range(tenant.volume.snapshots.count):
        visible -= not tenant.volume.snapshots.all[i].entry.flags & SNAPSHOT_HIDDEN
    if visible:
        tenant.life.fault(b"there are snapshots (%lld) that were deleted or never made", -visible, 0)
    return visible == 0
