# Restore windows in a simulation run: restore points are created and deleted, the volume is restored to points in time
# between them, and clones are rolled forward to points in time, as in node/windows.py: with the same engine calls in
# the same order.
#
# Always true: at a recorded point in time nothing was in flight, and the oracle keeps the volume's content then. So a
# restore must give exactly that content. Until the settling restore point is in the metadata, the volume keeps the
# content that it had before the restore, whatever fails.

from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.log_clock cimport next_log_time
from iomesh.engine.history.snapshots cimport delete_snapshot, make_snapshots, unmark_snapshot
from iomesh.engine.format.layout cimport BLOCK_BYTES, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED
from iomesh.engine.simulation.run cimport MARK, MOMENT, REWIND
from iomesh.engine.simulation.snapshots cimport drop_snapshot, hide_request, name_snapshot_request
from iomesh.engine.map.snapshot_table cimport Snapshot, SnapshotRequest, same_id
from iomesh.engine.base.task cimport start
from iomesh.engine.simulation.simulated_volume cimport (
    GOING_BACK, GOING_NOWHERE, GOING_WAITS, MOMENTS, SHOT_DELETING, SHOT_MADE, SHOT_NONE, SHOTS, SHOTS_AND_MARKS, Going,
    Shortages
)

cdef enum:
    SPARE_MARKS = 4                  # of the restore points: reserved for restores and for undoing them


# ---------------------------------------------------------------------- restore points

cdef void begin_mark(SimulatedVolume simulated) noexcept nogil:
    if simulated.changing:
        return
    simulated.changing = True
    simulated.begin_change()
    simulated.run.count(MARK)
    start(mark_body, <void*>simulated, NULL)


cdef int64_t mark_body(void* argument) noexcept nogil:
    keep_window(<SimulatedVolume>argument)
    (<SimulatedVolume>argument).let_go()
    (<SimulatedVolume>argument).end_change()
    return 0


cdef void keep_window(SimulatedVolume simulated) noexcept nogil:
    """Creates a restore point, or deletes the oldest, or all (the window was switched off); also deletes those that
    were kept for clones that have been deleted."""
    cdef uint32_t marks = simulated.marks(), _i
    cdef int i
    cdef bint dropped = True
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if (
            simulated.shots[i].state == SHOT_MADE
            and simulated.shots[i].unmarked
            and simulated.clones(simulated.shots[i].id) == 0
        ):
            drop_mark(simulated, &simulated.shots[i])
    if (
        marks == 0
        or (marks < SHOTS_AND_MARKS - SHOTS - SPARE_MARKS and simulated.run.draw(3) and not simulated.shortening)
    ):
        mark_now(simulated, False)
        return
    if marks == 1:
        dropped = mark_now(simulated, True)              # keeps the window from becoming empty
    for _i in range(1 if simulated.run.draw(8) else marks):
        dropped = dropped and drop_mark(simulated, oldest_mark(simulated))
    forget_unreachable(simulated)
    simulated.shortening = False


cdef bint mark_now(SimulatedVolume simulated, bint urgent) noexcept nogil:
    cdef SimulatedSnapshot* shot = simulated.free_mark()
    cdef Shortages shortages = simulated.shortages()
    cdef int result
    if shot is NULL:
        return False
    simulated.name_shot(shot)
    memset(&shot.making, 0, sizeof(shot.making))
    shot.making.volume = <void*>simulated.volume
    name_snapshot_request(&shot.making.snapshot_request, shot)
    shot.making.snapshot_request.entry.flags = SNAPSHOT_MARK
    shot.making.urgent = urgent
    result = make_snapshots(simulated.home.reactor, &shot.making, 1)
    if not urgent:
        simulated.check_making(shortages, result)
    has_made(simulated, shot, result == 0)
    simulated.run.note(b"mark %lld of volume %lld is made: error %lld", shot.number, simulated.number, -result)
    simulated.run.fail(b"making a mark", result)
    return result == 0


cdef void has_made(SimulatedVolume simulated, SimulatedSnapshot* shot, bint made) noexcept nogil:
    """Records whether the snapshot was created. The oracle may have its content already."""
    if made:
        simulated.oracle.holds(shot.begun)
    if made and shot.kept < 0:
        shot.kept = simulated.oracle.keep(shot.begun)
    elif not made and shot.kept >= 0:
        simulated.oracle.let_go(shot.kept)
    shot.state = SHOT_MADE if made else SHOT_NONE
    if made:
        shot.size_blocks = simulated.volume.snapshots.find(shot.id).entry.size_bytes // BLOCK_BYTES
    simulated.note_oldest_read()


cdef bint drop_mark(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil:
    cdef int result
    if shot is NULL:
        return False
    while shot.looked_at:
        simulated.run.pass_time()
    if simulated.clones(shot.id) == 0:
        drop_snapshot(simulated, shot)
        return shot.state == SHOT_NONE
    if shot.unmarked:
        return True
    result = unmark_snapshot(simulated.volume, shot.id)
    simulated.run.note(b"mark %lld is none any more, error %lld", shot.number, -result, 0)
    simulated.run.fail(b"letting a mark go", result)
    shot.unmarked = True                                 # also after an error: no restore may start from it
    return result == 0


cdef uint32_t free_marks(SimulatedVolume simulated) noexcept nogil:
    cdef uint32_t count = 0
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        count += simulated.shots[i].state == SHOT_NONE
    return count


cdef bint is_mark(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil:
    return shot.state == SHOT_MADE and not shot.unmarked


cdef SimulatedSnapshot* oldest_mark(SimulatedVolume simulated) noexcept nogil:
    cdef SimulatedSnapshot* oldest = NULL
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if (
            is_mark(simulated, &simulated.shots[i])
            and (oldest is NULL or sequence_of(simulated, &simulated.shots[i]) < sequence_of(simulated, oldest))
        ):
            oldest = &simulated.shots[i]
    return oldest


cdef SimulatedSnapshot* mark_before(SimulatedVolume simulated, int64_t at_ns) noexcept nogil:
    cdef SimulatedSnapshot* found = NULL
    cdef SimulatedSnapshot* shot
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        shot = &simulated.shots[i]
        if is_mark(simulated, shot) and <int64_t>simulated.volume.snapshots.find(shot.id).entry.time_ns <= at_ns and (
                found is NULL or sequence_of(simulated, shot) > sequence_of(simulated, found)):
            found = shot
    return found


cdef uint64_t sequence_of(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil:
    return simulated.volume.snapshots.find(shot.id).entry.sequence


# ---------------------------------------------------------------------- points in time

cdef void begin_point_in_time(SimulatedVolume simulated) noexcept nogil:
    if simulated.changing or simulated.marks() == 0:
        return
    simulated.run.count(MOMENT)
    simulated.pausing = True


cdef void keep_point_in_time(SimulatedVolume simulated) noexcept nogil:
    """Nothing is in flight: acknowledged writes have earlier log times, and writes from now on have later ones."""
    cdef PointInTime* moment = &simulated.moments[simulated.run.draw(MOMENTS)]
    simulated.pausing = False
    if simulated.log.error:
        return
    forget_moment(simulated, moment)
    moment.used = True
    moment.at_ns = <int64_t>next_log_time(&simulated.log.clock, simulated.log.io)
    moment.begun = simulated.oracle.flush_begins()
    moment.kept = simulated.oracle.keep(moment.begun)
    simulated.run.note(b"volume %lld: moment %lld is kept in mind", simulated.number, moment.at_ns, 0)


cdef void forget_moment(SimulatedVolume simulated, PointInTime* moment) noexcept nogil:
    if moment.used:
        simulated.oracle.let_go(moment.kept)
    moment.used = False


cdef void forget_unreachable(SimulatedVolume simulated) noexcept nogil:
    cdef int i
    for i in range(MOMENTS):
        if simulated.moments[i].used and mark_before(simulated, simulated.moments[i].at_ns) is NULL:
            forget_moment(simulated, &simulated.moments[i])


cdef void forget_ambiguous(SimulatedVolume simulated) noexcept nogil:
    """Called when the volume is open again and nothing was written yet. Without a record after a point in time, log
    time may resume before it; then new writes would not be later. Such points in time are forgotten."""
    cdef int i
    for i in range(MOMENTS):
        if simulated.moments[i].used and <int64_t>simulated.log.clock.opened_ns < simulated.moments[i].at_ns:
            forget_moment(simulated, &simulated.moments[i])


cdef void doubt_moments(SimulatedVolume simulated, bint power) noexcept nogil:
    """Forgets points in time that the log may not reach: a power cut or a stray write may have cut off its end."""
    cdef int i
    simulated.pausing = False
    for i in range(MOMENTS):
        if (
            simulated.oracle.doubtful_from < simulated.moments[i].begun
            or (
                power
                and not simulated.oracle.keeps_nothing_volatile
                and simulated.oracle.stable < simulated.moments[i].begun
            )
        ):
            forget_moment(simulated, &simulated.moments[i])


cdef PointInTime* any_moment(SimulatedVolume simulated) noexcept nogil:
    cdef uint32_t i, first = <uint32_t>simulated.run.draw(MOMENTS)
    for i in range(MOMENTS):
        if simulated.moments[(first + i) % MOMENTS].used:
            return &simulated.moments[(first + i) % MOMENTS]
    return NULL


# ---------------------------------------------------------------------- restore

cdef void begin_rewind(SimulatedVolume simulated) noexcept nogil:
    cdef PointInTime* moment = any_moment(simulated)
    if moment is NULL or simulated.changing or simulated.any_shot(SHOT_NONE) is NULL:
        return
    simulated.changing = True
    simulated.begin_change()
    simulated.run.count(REWIND)
    simulated.going.state = GOING_WAITS
    simulated.going.to_point_in_time = True
    simulated.going.moved = False
    simulated.going.at_ns = moment.at_ns
    simulated.going.kept = simulated.oracle.keep_again(moment.kept)


cdef void rewind(SimulatedVolume simulated) noexcept nogil:
    simulated.going.state = GOING_BACK
    simulated.going.moved = False
    memset(simulated.going.settling, 0, 16)
    start(rewind_body, <void*>simulated, NULL)
    simulated.run.hurry()


cdef int64_t rewind_body(void* argument) noexcept nogil:
    go_to_moment(<SimulatedVolume>argument, &(<SimulatedVolume>argument).going)
    (<SimulatedVolume>argument).let_go()
    (<SimulatedVolume>argument).end_change()
    return 0


cdef void go_to_moment(SimulatedVolume simulated, Going* going) noexcept nogil:
    """Restores a point in time as windows.py does."""
    cdef SimulatedSnapshot* begin = mark_before(simulated, going.at_ns)
    cdef SimulatedSnapshot* before = simulated.any_shot(SHOT_NONE)
    cdef uint8_t[16] id
    cdef int result = 0
    if begin is NULL:
        simulated.run.fault(b"no mark of volume %lld leads to moment %lld", simulated.number, going.at_ns)
    elif before is not NULL and free_marks(simulated) > 2:
        memcpy(id, begin.id, 16)
        result = stand_upon(simulated, begin, before)
        if result == 0:
            result = follow(simulated, simulated, id, going.at_ns)
            if result == 0 and not settle(simulated, going):
                result = -ENOENT                         # the cause was checked already
            if result < 0 and not going.moved and undo(simulated) < 0:
                simulated.stuck = True                   # no requests are served until the next process
    simulated.run.note(b"volume %lld goes to moment %lld: error %lld", simulated.number, going.at_ns, -result)
    if going.moved:
        simulated.run.rewinds += 1
        simulated.run.note(
            b"it is what it was: operation %lld", simulated.oracle.go_back(simulated.oracle, going.kept), 0, 0
        )
    simulated.oracle.let_go(going.kept)
    going.state = GOING_NOWHERE
    going.to_point_in_time = False
    simulated.note_oldest_read()


cdef int stand_upon(SimulatedVolume simulated, SimulatedSnapshot* begin, SimulatedSnapshot* before) noexcept nogil:
    """Restores the restore point `begin`, unsettled, with a snapshot `before` of the previous state."""
    cdef SimulatedSnapshot* unsettled = simulated.free_mark()
    cdef SnapshotRequest snapshot_request
    cdef SnapshotRequest mark
    cdef Shortages shortages = simulated.shortages()
    cdef int result
    memset(&snapshot_request, 0, sizeof(SnapshotRequest))
    memset(&mark, 0, sizeof(SnapshotRequest))
    simulated.name_shot(before)
    name_snapshot_request(&snapshot_request, before)
    simulated.name_shot(unsettled)
    name_snapshot_request(&mark, unsettled)
    unsettled.kept = simulated.oracle.keep_again(begin.kept)
    mark.entry.flags = SNAPSHOT_MARK | SNAPSHOT_UNSETTLED
    memcpy(mark.entry.before, snapshot_request.entry.id, 16)
    result = simulated.go_back(begin.id, &snapshot_request, &mark)
    simulated.check_making(shortages, result)
    has_made(simulated, unsettled, result == 0)
    has_made(simulated, before, result == 0)
    if result < 0 and snapshot_request.made:             # it is being deleted, and may exist in the next process
        before.kept = simulated.oracle.keep(before.begun)
        before.state = SHOT_DELETING
    simulated.run.fail(b"going back to a mark", result)
    return result


cdef int follow(SimulatedVolume simulated, SimulatedVolume source, const uint8_t* mark, int64_t at_ns) noexcept nogil:
    cdef int result
    simulated.await_retrace(source)
    result = simulated.roll_forward.run(mark, at_ns)
    simulated.run.note(
        b"volume %lld has followed %lld records, error %lld", simulated.number, simulated.roll_forward.records, -result
    )
    if simulated.run.damages == 0:
        simulated.run.fail(simulated.roll_forward.reason, result)
    return result


cdef bint settle(SimulatedVolume simulated, Going* going) noexcept nogil:
    cdef SimulatedSnapshot* shot = simulated.free_mark()
    cdef int result
    if shot is NULL:
        return False
    simulated.name_shot(shot)
    shot.kept = simulated.oracle.keep_again(going.kept)
    memcpy(going.settling, shot.id, 16)
    memset(&shot.making, 0, sizeof(shot.making))
    shot.making.volume = <void*>simulated.volume
    name_snapshot_request(&shot.making.snapshot_request, shot)
    shot.making.snapshot_request.entry.flags = SNAPSHOT_MARK
    shot.making.urgent = True
    result = make_snapshots(simulated.home.reactor, &shot.making, 1)
    has_made(simulated, shot, result == 0)
    simulated.run.fail(b"settling", result)
    if (result == 0) != going.moved:
        simulated.run.fault(b"settling ends with error %lld, and a pointer was moved (%lld)", -result, going.moved)
    return result == 0


cdef int undo(SimulatedVolume simulated) noexcept nogil:
    cdef Snapshot* unsettled = simulated.volume.snapshots.unsettled()
    cdef SimulatedSnapshot* shot = simulated.free_mark()
    cdef SnapshotRequest snapshot_request
    cdef SnapshotRequest mark
    cdef uint8_t[16] before
    cdef bint hidden = False
    cdef int result, i
    if unsettled is NULL:
        return 0
    if shot is NULL:
        simulated.run.fault(b"there are marks of restores that were never finished", 0, 0)
        return -ENOENT
    memcpy(before, unsettled.entry.before, 16)
    hide_request(simulated, &snapshot_request)
    memset(&mark, 0, sizeof(SnapshotRequest))
    simulated.name_shot(shot)
    name_snapshot_request(&mark, shot)
    mark.entry.flags = SNAPSHOT_MARK
    result = simulated.go_back(before, &snapshot_request, &mark)
    has_made(simulated, shot, result == 0)
    simulated.run.note(b"volume %lld: a restore is undone, error %lld", simulated.number, -result, 0)
    simulated.run.undone += result == 0
    simulated.run.fail(b"undoing a restore", result)
    if result < 0:
        return result
    for i in range(SHOTS):
        if same_id(simulated.shots[i].id, before) and simulated.shots[i].state != SHOT_NONE:
            drop_snapshot(simulated, &simulated.shots[i])
            return 0
    return delete_snapshot(simulated.volume, before, &hidden)
