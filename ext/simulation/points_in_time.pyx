# Restore windows in a life in the simulated world: marks are made and let go, the volume goes back to moments between them, clones are taken to
# moments; what node/windows.py has done, with the same calls of the engine in the same order.
#
# A moment is one at which nothing was under way, and the judge keeps what the volume was then. So whoever goes there must find exactly
# that. Before the settling mark is in the metadata, whatever happens, the volume is what it was before it began to go back.

from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.history.snapshots cimport delete_snapshot, make_snapshots, unmark_snapshot
from iomesh.engine.format.layout cimport BLOCK_BYTES, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED
from iomesh.engine.simulation.run cimport MARK, MOMENT, REWIND
from iomesh.engine.simulation.snapshots cimport drop_snapshot, hide_wish, name_wish
from iomesh.engine.map.snapshot_table cimport Snapshot, Wish, same_id
from iomesh.engine.base.task cimport start
from iomesh.engine.simulation.simulated_volume cimport (
    GOING_BACK, GOING_NOWHERE, GOING_WAITS, MOMENTS, SHOT_DELETING, SHOT_MADE, SHOT_NONE, SHOTS, SHOTS_AND_MARKS, Going, Shortages)

cdef enum:
    SPARE_MARKS = 4                  # of those that there may be: for restores, and what undoes them


# ---------------------------------------------------------------------- marks

cdef void begin_mark(Tenant tenant) noexcept nogil:
    if tenant.changing:
        return
    tenant.changing = True
    tenant.begin_change()
    tenant.life.count(MARK)
    start(mark_body, <void*>tenant, NULL)


cdef int64_t mark_body(void* argument) noexcept nogil:
    keep_window(<Tenant>argument)
    (<Tenant>argument).let_go()
    (<Tenant>argument).end_change()
    return 0


cdef void keep_window(Tenant tenant) noexcept nogil:
    """A mark that is due, or the end of the oldest, or (a window that was switched off) of all; and of those that clones needed."""
    cdef uint32_t marks = tenant.marks(), _i
    cdef int i
    cdef bint dropped = True
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if tenant.shots[i].state == SHOT_MADE and tenant.shots[i].unmarked and tenant.clones(tenant.shots[i].id) == 0:
            drop_mark(tenant, &tenant.shots[i])
    if marks == 0 or (marks < SHOTS_AND_MARKS - SHOTS - SPARE_MARKS and tenant.life.draw(3) and not tenant.shortening):
        mark_now(tenant, False)
        return
    if marks == 1:
        dropped = mark_now(tenant, True)                 # else there would be no window
    for _i in range(1 if tenant.life.draw(8) else marks):
        dropped = dropped and drop_mark(tenant, oldest_mark(tenant))
    forget_unreachable(tenant)
    tenant.shortening = False


cdef bint mark_now(Tenant tenant, bint urgent) noexcept nogil:
    cdef Shot* shot = tenant.free_mark()
    cdef Shortages shortages = tenant.shortages()
    cdef int result
    if shot is NULL:
        return False
    tenant.name_shot(shot)
    memset(&shot.making, 0, sizeof(shot.making))
    shot.making.volume = <void*>tenant.volume
    name_wish(&shot.making.wish, shot)
    shot.making.wish.entry.flags = SNAPSHOT_MARK
    shot.making.urgent = urgent
    result = make_snapshots(tenant.life.reactor, &shot.making, 1)
    if not urgent:
        tenant.judge_making(shortages, result)
    has_made(tenant, shot, result == 0)
    tenant.life.note(b"mark %lld of volume %lld is made: error %lld", shot.number, tenant.number, -result)
    tenant.life.fail(b"making a mark", result)
    return result == 0


cdef void has_made(Tenant tenant, Shot* shot, bint made) noexcept nogil:
    """... or not. What it holds may be known already."""
    if made:
        tenant.judge.holds(shot.begun)
    if made and shot.kept < 0:
        shot.kept = tenant.judge.keep(shot.begun)
    elif not made and shot.kept >= 0:
        tenant.judge.let_go(shot.kept)
    shot.state = SHOT_MADE if made else SHOT_NONE
    if made:
        shot.size_blocks = tenant.volume.snapshots.find(shot.id).entry.size_bytes // BLOCK_BYTES
    tenant.note_oldest_read()


cdef bint drop_mark(Tenant tenant, Shot* shot) noexcept nogil:
    cdef int result
    if shot is NULL:
        return False
    while shot.looked_at:
        tenant.life.pass_time()
    if tenant.clones(shot.id) == 0:
        drop_snapshot(tenant, shot)
        return shot.state == SHOT_NONE
    if shot.unmarked:
        return True
    result = unmark_snapshot(tenant.volume, shot.id)
    tenant.life.note(b"mark %lld is none any more, error %lld", shot.number, -result, 0)
    tenant.life.fail(b"letting a mark go", result)
    shot.unmarked = True                                 # with an error, too: nothing is to be reached from it
    return result == 0


cdef uint32_t free_marks(Tenant tenant) noexcept nogil:
    cdef uint32_t count = 0
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        count += tenant.shots[i].state == SHOT_NONE
    return count


cdef bint is_mark(Tenant tenant, const Shot* shot) noexcept nogil:
    return shot.state == SHOT_MADE and not shot.unmarked


cdef Shot* oldest_mark(Tenant tenant) noexcept nogil:
    cdef Shot* oldest = NULL
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if is_mark(tenant, &tenant.shots[i]) and (oldest is NULL or sequence_of(tenant, &tenant.shots[i]) < sequence_of(tenant, oldest)):
            oldest = &tenant.shots[i]
    return oldest


cdef Shot* mark_before(Tenant tenant, int64_t at_ns) noexcept nogil:
    cdef Shot* found = NULL
    cdef Shot* shot
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        shot = &tenant.shots[i]
        if is_mark(tenant, shot) and <int64_t>tenant.volume.snapshots.find(shot.id).entry.time_ns <= at_ns and (
                found is NULL or sequence_of(tenant, shot) > sequence_of(tenant, found)):
            found = shot
    return found


cdef uint64_t sequence_of(Tenant tenant, const Shot* shot) noexcept nogil:
    return tenant.volume.snapshots.find(shot.id).entry.sequence


# ---------------------------------------------------------------------- moments

cdef void begin_moment(Tenant tenant) noexcept nogil:
    if tenant.changing or tenant.marks() == 0:
        return
    tenant.life.count(MOMENT)
    tenant.pausing = True


cdef void keep_moment(Tenant tenant) noexcept nogil:
    """What is acknowledged has older records, what comes now has younger ones."""
    cdef int64_t now_ns = tenant.life.io.unix_ns()
    cdef Moment* moment = &tenant.moments[tenant.life.draw(MOMENTS)]
    tenant.pausing = False
    if <int64_t>tenant.log.newest_ns >= now_ns or tenant.log.error:      # the clock was set back: what comes now would be no younger
        return
    forget_moment(tenant, moment)
    moment.used = True
    moment.at_ns = now_ns - 1
    moment.begun = tenant.judge.flush_begins()
    moment.kept = tenant.judge.keep(moment.begun)
    tenant.life.note(b"volume %lld: moment %lld is kept in mind", tenant.number, moment.at_ns, 0)


cdef void forget_moment(Tenant tenant, Moment* moment) noexcept nogil:
    if moment.used:
        tenant.judge.let_go(moment.kept)
    moment.used = False


cdef void forget_unreachable(Tenant tenant) noexcept nogil:
    cdef int i
    for i in range(MOMENTS):
        if tenant.moments[i].used and mark_before(tenant, tenant.moments[i].at_ns) is NULL:
            forget_moment(tenant, &tenant.moments[i])


cdef void forget_ambiguous(Tenant tenant) noexcept nogil:
    """The volume is open again, and nothing has been written. If nothing was behind a moment either, and the clock was set back meanwhile, then
    what is written now is no younger than that."""
    cdef int i
    for i in range(MOMENTS):
        if tenant.moments[i].used and <int64_t>tenant.log.newest_ns <= tenant.moments[i].at_ns:
            forget_moment(tenant, &tenant.moments[i])


cdef void doubt_moments(Tenant tenant, bint power) noexcept nogil:
    """A power cut may have taken the end of the log, and so may a write that went astray."""
    cdef int i
    tenant.pausing = False
    for i in range(MOMENTS):
        if tenant.judge.doubtful_from < tenant.moments[i].begun or (
                power and not tenant.judge.keeps_nothing_volatile and tenant.judge.stable < tenant.moments[i].begun):
            forget_moment(tenant, &tenant.moments[i])


cdef Moment* any_moment(Tenant tenant) noexcept nogil:
    cdef uint32_t i, first = <uint32_t>tenant.life.draw(MOMENTS)
    for i in range(MOMENTS):
        if tenant.moments[(first + i) % MOMENTS].used:
            return &tenant.moments[(first + i) % MOMENTS]
    return NULL


# ---------------------------------------------------------------------- going there

cdef void begin_rewind(Tenant tenant) noexcept nogil:
    cdef Moment* moment = any_moment(tenant)
    if moment is NULL or tenant.changing or tenant.any_shot(SHOT_NONE) is NULL:
        return
    tenant.changing = True
    tenant.begin_change()
    tenant.life.count(REWIND)
    tenant.going.state = GOING_WAITS
    tenant.going.to_moment = True
    tenant.going.moved = False
    tenant.going.at_ns = moment.at_ns
    tenant.going.kept = tenant.judge.keep_again(moment.kept)


cdef void rewind(Tenant tenant) noexcept nogil:
    tenant.going.state = GOING_BACK
    tenant.going.moved = False
    memset(tenant.going.settling, 0, 16)
    start(rewind_body, <void*>tenant, NULL)
    tenant.life.hurry()


cdef int64_t rewind_body(void* argument) noexcept nogil:
    go_to_moment(<Tenant>argument, &(<Tenant>argument).going)
    (<Tenant>argument).let_go()
    (<Tenant>argument).end_change()
    return 0


cdef void go_to_moment(Tenant tenant, Going* going) noexcept nogil:
    """As windows.py does it."""
    cdef Shot* begin = mark_before(tenant, going.at_ns)
    cdef Shot* before = tenant.any_shot(SHOT_NONE)
    cdef uint8_t[16] id
    cdef int result = 0
    if begin is NULL:
        tenant.life.fault(b"no mark of volume %lld leads to moment %lld", tenant.number, going.at_ns)
    elif before is not NULL and free_marks(tenant) > 2:
        memcpy(id, begin.id, 16)
        result = stand_upon(tenant, begin, before)
        if result == 0:
            result = follow(tenant, tenant, id, going.at_ns)
            if result == 0 and not settle(tenant, going):
                result = -ENOENT                         # no error of its own: it was judged already
            if result < 0 and not going.moved and undo(tenant) < 0:
                tenant.stuck = True                      # nobody is served until the next beginning
    tenant.life.note(b"volume %lld goes to moment %lld: error %lld", tenant.number, going.at_ns, -result)
    if going.moved:
        tenant.life.rewinds += 1
        tenant.life.note(b"it is what it was: operation %lld", tenant.judge.go_back(tenant.judge, going.kept), 0, 0)
    tenant.judge.let_go(going.kept)
    going.state = GOING_NOWHERE
    going.to_moment = False
    tenant.note_oldest_read()


cdef int stand_upon(Tenant tenant, Shot* begin, Shot* before) noexcept nogil:
    """... a mark, unsettled. `before` is what was there."""
    cdef Shot* unsettled = tenant.free_mark()
    cdef Wish wish
    cdef Wish mark
    cdef Shortages shortages = tenant.shortages()
    cdef int result
    memset(&wish, 0, sizeof(Wish))
    memset(&mark, 0, sizeof(Wish))
    tenant.name_shot(before)
    name_wish(&wish, before)
    tenant.name_shot(unsettled)
    name_wish(&mark, unsettled)
    unsettled.kept = tenant.judge.keep_again(begin.kept)
    mark.entry.flags = SNAPSHOT_MARK | SNAPSHOT_UNSETTLED
    memcpy(mark.entry.before, wish.entry.id, 16)
    result = tenant.go_back(begin.id, &wish, &mark)
    tenant.judge_making(shortages, result)
    has_made(tenant, unsettled, result == 0)
    has_made(tenant, before, result == 0)
    if result < 0 and wish.made:                         # it is given up again, and may still be there after the next beginning
        before.kept = tenant.judge.keep(before.begun)
        before.state = SHOT_DELETING
    tenant.life.fail(b"going back to a mark", result)
    return result


cdef int follow(Tenant tenant, Tenant source, const uint8_t* mark, int64_t at_ns) noexcept nogil:
    cdef int result
    tenant.await_retrace(source)
    result = tenant.retrace.run(mark, at_ns)
    tenant.life.note(b"volume %lld has followed %lld records, error %lld", tenant.number, tenant.retrace.records, -result)
    if tenant.life.damages == 0:
        tenant.life.fail(tenant.retrace.reason, result)
    return result


cdef bint settle(Tenant tenant, Going* going) noexcept nogil:
    cdef Shot* shot = tenant.free_mark()
    cdef int result
    if shot is NULL:
        return False
    tenant.name_shot(shot)
    shot.kept = tenant.judge.keep_again(going.kept)
    memcpy(going.settling, shot.id, 16)
    memset(&shot.making, 0, sizeof(shot.making))
    shot.making.volume = <void*>tenant.volume
    name_wish(&shot.making.wish, shot)
    shot.making.wish.entry.flags = SNAPSHOT_MARK
    shot.making.urgent = True
    result = make_snapshots(tenant.life.reactor, &shot.making, 1)
    has_made(tenant, shot, result == 0)
    tenant.life.fail(b"settling", result)
    if (result == 0) != going.moved:
        tenant.life.fault(b"settling ends with error %lld, and a pointer was moved (%lld)", -result, going.moved)
    return result == 0


cdef int undo(Tenant tenant) noexcept nogil:
    cdef Snapshot* unsettled = tenant.volume.snapshots.unsettled()
    cdef Shot* shot = tenant.free_mark()
    cdef Wish wish
    cdef Wish mark
    cdef uint8_t[16] before
    cdef bint hidden = False
    cdef int result, i
    if unsettled is NULL:
        return 0
    if shot is NULL:
        tenant.life.fault(b"there are marks of restores that were never finished", 0, 0)
        return -ENOENT
    memcpy(before, unsettled.entry.before, 16)
    hide_wish(tenant, &wish)
    memset(&mark, 0, sizeof(Wish))
    tenant.name_shot(shot)
    name_wish(&mark, shot)
    mark.entry.flags = SNAPSHOT_MARK
    result = tenant.go_back(before, &wish, &mark)
    has_made(tenant, shot, result == 0)
    tenant.life.note(b"volume %lld: a restore is undone, error %lld", tenant.number, -result, 0)
    tenant.life.undone += result == 0
    tenant.life.fail(b"undoing a restore", result)
    if result < 0:
        return result
    for i in range(SHOTS):
        if same_id(tenant.shots[i].id, before) and tenant.shots[i].state != SHOT_NONE:
            drop_snapshot(tenant, &tenant.shots[i])
            return 0
    return delete_snapshot(tenant.volume, before, &hidden)
