# Flattening of clones in a simulation run, as in node/flattening.py: with the same engine calls in the same order,
# while the clone is used, cleaned, restored, deleted and crashed.
#
#     (clone) --record: detaching--> copied, checked --record: no parent--> flattened; a hidden parent is deleted

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from iomesh.engine.simulation.clones cimport delete_needless
from iomesh.engine.history.flatten cimport check_detached, copy_inherited, cut_off
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.simulation.run cimport DETACH
from iomesh.engine.simulation.points_in_time cimport drop_mark, forget_unreachable, is_mark, mark_now, sequence_of
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.simulation.simulated_volume cimport SHOT_MADE, SHOTS, SHOTS_AND_MARKS, STAYS, SimulatedSnapshot

cdef enum:
    ATTEMPTS = 4                     # of one task; another task, or the next process, continues
    AGAIN_NS = 50 * 1000 * 1000
    TRICKLE_NS = 500 * 1000          # the longest pause between two steps


cdef void begin_detaching(SimulatedVolume simulated) noexcept nogil:
    cdef int i
    if simulated.record.parent is NULL or simulated.copying or simulated.changing:
        return
    if not simulated.record.detaching:
        for i in range(SHOTS):
            if simulated.shots[i].state == SHOT_MADE and inherits(simulated, &simulated.shots[i]):
                return
    simulated.run.count(DETACH)
    go_on_detaching(simulated)
    simulated.run.hurry()


cdef void go_on_detaching(SimulatedVolume simulated) noexcept nogil:
    simulated.copying = True
    simulated.begin_task()
    start(detach_body, <void*>simulated, NULL)


cdef int64_t detach_body(void* argument) noexcept nogil:
    detach(<SimulatedVolume>argument)
    (<SimulatedVolume>argument).copying = False
    (<SimulatedVolume>argument).end_task()
    return 0


cdef void detach(SimulatedVolume simulated) noexcept nogil:
    cdef int _attempt, result
    if not simulated.record.detaching:
        simulated.run.pass_time()
        simulated.record.detaching = True
        simulated.run.pass_time()
    simulated.throttle.step = trickle
    simulated.throttle.owner = <void*>simulated
    simulated.run.note(
        b"volume %lld is being detached: %lld blocks are inherited",
        simulated.number, simulated.volume.segments.inherited, 0
    )
    for _attempt in range(ATTEMPTS):
        if not is_wanted(simulated):
            return
        result = copy_inherited(simulated.volume, &simulated.throttle)
        simulated.run.note(
            b"volume %lld: what is inherited is copied, error %lld, %lld left",
            simulated.number, -result, simulated.volume.segments.inherited
        )
        if simulated.run.damages == 0 and not is_going_back(simulated):
            simulated.run.fail(b"detaching", result)
        if result == 0 and finish(simulated):
            return
        sleep(simulated, AGAIN_NS)


cdef bint is_wanted(SimulatedVolume simulated) noexcept nogil:
    return (
        simulated.record.exists
        and simulated.record.detaching
        and simulated.open
        and simulated.leaving == STAYS
        and not simulated.record.hidden
    )


cdef bint is_going_back(SimulatedVolume simulated) noexcept nogil:
    return simulated.volume.restoring


cdef int trickle(void* owner, Io _io, uint32_t _bytes) noexcept nogil:
    sleep(<SimulatedVolume>owner, TRICKLE_NS)
    return 0


cdef void sleep(SimulatedVolume simulated, int64_t most_ns) noexcept nogil:
    cdef Operation timer
    waited(&timer)
    simulated.home.io.after(&timer, <int64_t>simulated.run.draw(most_ns))
    wait(&timer)


cdef bint finish(SimulatedVolume simulated) noexcept nogil:
    """Completes flattening after all is copied. False: the caller retries."""
    cdef void* parent = simulated.record.parent
    cdef bint done = False
    simulated.take()
    while simulated.changes and simulated.open:          # changes that started earlier
        sleep(simulated, AGAIN_NS)
    if not is_wanted(simulated) or simulated.record.parent is NULL:
        simulated.let_go()
        return True
    forget_marks(simulated)
    if not any_inherits(simulated):
        simulated.await_tree()
        done = check_detached(simulated.volume, simulated.tree) == 0
    if done:
        simulated.run.pass_time()
        simulated.record.parent = NULL
        simulated.record.detaching = False
        memset(simulated.record.snapshot, 0, 16)
        simulated.run.pass_time()
        cut_off(simulated.volume)
        simulated.run.detached += 1
        simulated.run.note(b"volume %lld is no clone any more", simulated.number, 0, 0)
    simulated.let_go()
    if done:
        delete_needless(<SimulatedVolume>parent)
    return done


cdef void forget_marks(SimulatedVolume simulated) noexcept nogil:
    """Shortens the restore window to where the clone had all its blocks: drops the restore points up to the newest that
    inherits."""
    cdef uint64_t newest = 0
    cdef bint begun = True
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if is_mark(simulated, &simulated.shots[i]) and inherits(simulated, &simulated.shots[i]):
            newest = max(newest, sequence_of(simulated, &simulated.shots[i]))
    if newest and newest_mark(simulated) == newest:      # all would go: the window starts again
        begun = mark_now(simulated, True)
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if (
            begun
            and newest
            and is_mark(simulated, &simulated.shots[i])
            and sequence_of(simulated, &simulated.shots[i]) <= newest
        ):
            drop_mark(simulated, &simulated.shots[i])
    forget_unreachable(simulated)


cdef uint64_t newest_mark(SimulatedVolume simulated) noexcept nogil:
    cdef uint64_t newest = 0
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if is_mark(simulated, &simulated.shots[i]):
            newest = max(newest, sequence_of(simulated, &simulated.shots[i]))
    return newest


cdef bint inherits(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil:
    return simulated.volume.snapshots.find(shot.id).entry.inherited > 0


cdef bint any_inherits(SimulatedVolume simulated) noexcept nogil:
    """Whether any snapshot inherits, dying ones included."""
    cdef uint32_t i
    for i in range(simulated.volume.snapshots.count):
        if simulated.volume.snapshots.all[i].entry.inherited:
            return True
    return False
