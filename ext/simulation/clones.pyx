# Clones in a simulation run, and the deletion of volumes, as in node/volumes.py and node/snapshots.py: with the same
# engine calls and metadata updates in the same order.
#
#     (none) --record, opened--> serving --record: deleting--> closed, erased --> (none)
#                                   '--it has clones; record: hidden--> discards its head and
#                                       snapshots without clones --last clone deleted--^
#
# Always true: a clone is opened after its parent and closed before it. A snapshot stays while a record names a clone of
# it.

from libc.errno cimport ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.simulation.damage cimport forget_strays, leave_stray
from iomesh.engine.history.snapshots cimport let_parent_go
from iomesh.engine.simulation.run cimport CLONE, DROP
from iomesh.engine.simulation.points_in_time cimport any_moment, drop_mark, follow, mark_before, sequence_of
from iomesh.engine.simulation.snapshots cimport hide_request
from iomesh.engine.map.snapshot_table cimport SnapshotRequest, same_id
from iomesh.engine.store.calls cimport store_erase
from iomesh.engine.base.task cimport start, wait_in
from iomesh.engine.simulation.simulated_volume cimport (
    IS_TO_LEAVE, LEAVES, SHOT_MADE, SHOTS, SHOTS_AND_MARKS, PointInTime, SimulatedSnapshot
)


# ---------------------------------------------------------------------- creation

cdef void begin_clone(SimulatedVolume parent) noexcept nogil:
    cdef SimulatedSnapshot* shot = parent.any_shot(SHOT_MADE)
    cdef PointInTime* moment = any_moment(parent) if parent.marks() and parent.run.draw(2) else NULL
    cdef int64_t at_ns
    cdef uint32_t i = 0
    if moment is not NULL:
        shot = mark_before(parent, moment.at_ns)
    while i < parent.run.volume_count and is_taken(<SimulatedVolume>parent.run.volume_pointers[i]):
        i += 1
    if shot is NULL or parent.changing or i == parent.run.volume_count:
        return
    parent.changing = True
    parent.begin_change()
    parent.run.count(CLONE)
    if moment is not NULL:                               # it may have grown after the restore point
        plan(<SimulatedVolume>parent.run.volume_pointers[i], parent, shot.id, parent.record.size_blocks, moment.kept)
        # Records written after a crash are later than the newest surviving record, not than every lost one.
        at_ns = max(
            <int64_t>parent.volume.snapshots.find(shot.id).entry.time_ns,
            min(moment.at_ns, <int64_t>parent.log.recorded_ns),
        )
        (<SimulatedVolume>parent.run.volume_pointers[i]).will_be_of(at_ns)
    else:
        plan(<SimulatedVolume>parent.run.volume_pointers[i], parent, shot.id, shot.size_blocks, shot.kept)
    parent.run.note(b"volume %lld is to be a clone of volume %lld, snapshot %lld", i, parent.number, shot.number)
    start(make_body, parent.run.volume_pointers[i], NULL)
    parent.run.hurry()


cdef bint is_taken(SimulatedVolume simulated) noexcept nogil:
    # for the previous volume
    return simulated.record.exists or simulated.planned or simulated.between or simulated.copying


cdef void plan(
    SimulatedVolume simulated, SimulatedVolume parent, const uint8_t* snapshot, uint64_t size_blocks, int kept
) noexcept nogil:
    simulated.begin_life(size_blocks)
    simulated.planned = True
    simulated.record.parent = <void*>parent
    memcpy(simulated.record.snapshot, snapshot, 16)
    simulated.run.note(b"volume %lld, with id ...%llx, begins with operation %lld", simulated.number,
                       simulated.record.id[15], simulated.oracle.go_back(parent.oracle, kept))


cdef int64_t make_body(void* argument) noexcept nogil:
    make(<SimulatedVolume>argument, <SimulatedVolume>(<SimulatedVolume>argument).record.parent)
    return 0


cdef void make(SimulatedVolume simulated, SimulatedVolume parent) noexcept nogil:
    """Creates a clone as volumes.py does: afterwards it is open, or nothing is left of it."""
    cdef int result = 0
    if simulated.record.making:
        result = parent.volume.checkpoints.run()         # the log to roll forward over survives any crash
    if result == 0:
        simulated.run.pass_time()
        simulated.record.exists = True
        simulated.run.pass_time()
        simulated.await_settling()
        simulated.between = True
        result = simulated.come_up()
        if result == 0 and simulated.record.making:
            result = take_to_point_in_time(simulated)
        if result == 0 and simulated.log.open_segments.no_space:
            result = -ENOSPC
        if result == 0:
            simulated.between = False
            simulated.run.clones += 1
        else:
            simulated.record.deleting = True
            shut(simulated)
            erase(simulated)
    if result < 0:
        simulated.planned = False
        simulated.run.note(b"volume %lld could not be made: error %lld", simulated.number, -result, 0)
        if simulated.run.damages == 0:
            simulated.run.fail(b"making a clone", result)
    parent.let_go()
    parent.end_change()


cdef int take_to_point_in_time(SimulatedVolume simulated) noexcept nogil:
    """Idempotent."""
    cdef int result = follow(
        simulated, <SimulatedVolume>simulated.record.parent, simulated.record.snapshot, simulated.record.at_ns
    )
    if result == 0:
        simulated.run.pass_time()
        simulated.record.making = False
        simulated.run.pass_time()
    return result


# ---------------------------------------------------------------------- deletion

cdef void begin_leaving(SimulatedVolume simulated) noexcept nogil:
    cdef uint32_t i, serving = 0
    for i in range(simulated.run.volume_count):
        serving += (<SimulatedVolume>simulated.run.volume_pointers[i]).serves()
    if serving < 2 or simulated.changing:
        return
    simulated.run.count(DROP)
    simulated.leaving = IS_TO_LEAVE                      # no new operation starts that it would have to wait for
    simulated.changing = True
    simulated.begin_task()
    simulated.run.note(b"volume %lld is to be deleted", simulated.number, 0, 0)


cdef void leave(SimulatedVolume simulated) noexcept nogil:
    simulated.leaving = LEAVES
    start(leave_body, <void*>simulated, NULL)
    simulated.run.hurry()


cdef int64_t leave_body(void* argument) noexcept nogil:
    delete(<SimulatedVolume>argument)
    (<SimulatedVolume>argument).end_task()
    return 0


cdef void delete(SimulatedVolume simulated) noexcept nogil:
    """As in volumes.py, with `changing` held."""
    cdef bint needed = simulated.clones(NULL) > 0
    simulated.run.pass_time()
    if needed:
        simulated.run.hidden += 1
        simulated.record.hidden = True
        simulated.run.note(b"volume %lld is hidden", simulated.number, 0, 0)
    else:
        simulated.record.deleting = True
    simulated.run.pass_time()
    if needed:
        hide(simulated)
        simulated.let_go()
    else:
        shut(simulated)
        simulated.let_go()
        if erase(simulated) == 0 and simulated.record.parent is not NULL:
            delete_needless(<SimulatedVolume>simulated.record.parent)


cdef void delete_needless(SimulatedVolume simulated) noexcept nogil:
    if not simulated.record.hidden:
        return
    simulated.take()
    if not simulated.record.exists or simulated.record.deleting:
        simulated.let_go()
    elif simulated.clones(NULL):
        hide(simulated)
        simulated.let_go()
    else:
        delete(simulated)


cdef void hide(SimulatedVolume simulated) noexcept nogil:
    """Discards its head and the snapshots without clones."""
    cdef int i
    if not give_up_head(simulated):
        return
    for i in range(SHOTS_AND_MARKS):
        if simulated.shots[i].state == SHOT_MADE and (i >= SHOTS or simulated.clones(simulated.shots[i].id) == 0):
            drop_mark(simulated, &simulated.shots[i])


cdef bint give_up_head(SimulatedVolume simulated) noexcept nogil:
    """Restores the newest snapshot that has clones and discards the previous state."""
    cdef SimulatedSnapshot* needed = NULL
    cdef SimulatedSnapshot* shot
    cdef SnapshotRequest snapshot_request
    cdef bint stands = False
    cdef int i, result
    for i in range(SHOTS_AND_MARKS):
        shot = &simulated.shots[i]
        if shot.state == SHOT_MADE and simulated.clones(shot.id):
            stands = stands or same_id(simulated.volume.snapshots.head_parent, shot.id)
            if needed is NULL or sequence_of(simulated, shot) > sequence_of(simulated, needed):
                needed = shot
    if needed is NULL or (stands and simulated.volume.segments.exclusive == 0):
        return True
    hide_request(simulated, &snapshot_request)
    result = simulated.go_back(needed.id, &snapshot_request, NULL)
    simulated.run.note(b"volume %lld has given up its head, error %lld", simulated.number, -result, 0)
    simulated.run.fail(b"giving up a head", result)
    return result == 0


cdef void shut(SimulatedVolume simulated) noexcept nogil:
    """Closes the volume without a checkpoint."""
    simulated.open = False
    simulated.between = True
    simulated.await_clients()
    while simulated.volume.readings:                     # readers that are about to release it
        wait_in(&simulated.volume.connections_changed)
    simulated.volume.close()
    simulated.await_metadata()
    simulated.check_numbers()
    if simulated.volume.parent is not NULL:
        let_parent_go(simulated.volume)


cdef int erase(SimulatedVolume simulated) noexcept nogil:
    """Deletes a volume in any state; the record last. After an error the next process retries."""
    cdef int64_t result = 0
    cdef int i
    leave_stray(simulated)
    for i in range(simulated.run.store_count):
        if result >= 0:
            result = store_erase(simulated.run.store_pointers[i], simulated.run.reactor, simulated.record.id)
    if result >= 0:
        simulated.run.pass_time()
        simulated.record.exists = False
        forget_strays(simulated)
        simulated.run.pass_time()
        simulated.run.drops += 1
        simulated.run.note(
            b"volume %lld is gone, with id ...%llx and %lld segments", simulated.number, simulated.record.id[15], result
        )
    else:
        simulated.run.fail(b"erasing a volume", <int>result)
    simulated.between = False
    return <int>min(result, <int64_t>0)
