# Clones in a life in the simulated world, and the deletion of volumes: what node/volumes.py and node/snapshots.py have done, with the same calls of
# the engine in the same order, and with the same moments at which the metadata service is told.
#
#     (none) --record, opened--> serving --record: deleting--> closed, erased --> (none)
#                                   '--it has clones; record: hidden--> its head and what no clone stands on given up --the last clone gone--^
#
# A clone is opened after the volume that it is one of, and closed before. A snapshot stays while a record says that there is a clone of it.

from libc.errno cimport ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.simulation.damage cimport forget_strays, leave_stray
from iomesh.engine.history.snapshots cimport let_parent_go
from iomesh.engine.simulation.run cimport CLONE, DROP
from iomesh.engine.simulation.points_in_time cimport any_moment, drop_mark, follow, mark_before, sequence_of
from iomesh.engine.simulation.snapshots cimport hide_wish
from iomesh.engine.map.snapshot_table cimport Wish, same_id
from iomesh.engine.store.store cimport Store
from iomesh.engine.base.task cimport start, wait_in
from iomesh.engine.simulation.simulated_volume cimport IS_TO_LEAVE, LEAVES, SHOT_MADE, SHOTS, SHOTS_AND_MARKS, Moment, Shot


# ---------------------------------------------------------------------- making

cdef void begin_clone(Tenant parent) noexcept nogil:
    cdef Shot* shot = parent.any_shot(SHOT_MADE)
    cdef Moment* moment = any_moment(parent) if parent.marks() and parent.life.draw(2) else NULL
    cdef uint32_t i = 0
    if moment is not NULL:
        shot = mark_before(parent, moment.at_ns)
    while i < parent.life.tenant_count and is_taken(<Tenant>parent.life.tenant_pointers[i]):
        i += 1
    if shot is NULL or parent.changing or i == parent.life.tenant_count:
        return
    parent.changing = True
    parent.begin_change()
    parent.life.count(CLONE)
    if moment is not NULL:                               # it may have grown between mark and moment
        plan(<Tenant>parent.life.tenant_pointers[i], parent, shot.id, parent.record.size_blocks, moment.kept)
        (<Tenant>parent.life.tenant_pointers[i]).will_be_of(moment.at_ns)
    else:
        plan(<Tenant>parent.life.tenant_pointers[i], parent, shot.id, shot.size_blocks, shot.kept)
    parent.life.note(b"volume %lld is to be a clone of volume %lld, snapshot %lld", i, parent.number, shot.number)
    start(make_body, parent.life.tenant_pointers[i], NULL)
    parent.life.hurry()


cdef bint is_taken(Tenant tenant) noexcept nogil:
    return tenant.record.exists or tenant.planned or tenant.between or tenant.copying    # for the one before


cdef void plan(Tenant tenant, Tenant parent, const uint8_t* snapshot, uint64_t size_blocks, int kept) noexcept nogil:
    tenant.begin_life(size_blocks)
    tenant.planned = True
    tenant.record.parent = <void*>parent
    memcpy(tenant.record.snapshot, snapshot, 16)
    tenant.life.note(b"volume %lld, with id ...%llx, begins with operation %lld", tenant.number, tenant.record.id[15], tenant.judge.go_back(parent.judge, kept))


cdef int64_t make_body(void* argument) noexcept nogil:
    make(<Tenant>argument, <Tenant>(<Tenant>argument).record.parent)
    return 0


cdef void make(Tenant tenant, Tenant parent) noexcept nogil:
    """As volumes.py makes one that there was not: it is open, or nothing is left of it."""
    cdef int result = 0
    if tenant.record.making:
        result = parent.volume.checkpoints.run()         # what is followed survives whatever comes
    if result == 0:
        tenant.life.pass_time()
        tenant.record.exists = True
        tenant.life.pass_time()
        tenant.await_settling()
        tenant.between = True
        result = tenant.come_up()
        if result == 0 and tenant.record.making:
            result = take_to_moment(tenant)
        if result == 0 and tenant.log.tails.no_space:
            result = -ENOSPC
        if result == 0:
            tenant.between = False
            tenant.life.clones += 1
        else:
            tenant.record.deleting = True
            shut(tenant)
            erase(tenant)
    if result < 0:
        tenant.planned = False
        tenant.life.note(b"volume %lld could not be made: error %lld", tenant.number, -result, 0)
        if tenant.life.damages == 0:
            tenant.life.fail(b"making a clone", result)
    parent.let_go()
    parent.end_change()


cdef int take_to_moment(Tenant tenant) noexcept nogil:
    """Doing it again does no harm."""
    cdef int result = follow(tenant, <Tenant>tenant.record.parent, tenant.record.snapshot, tenant.record.at_ns)
    if result == 0:
        tenant.life.pass_time()
        tenant.record.making = False
        tenant.life.pass_time()
    return result


# ---------------------------------------------------------------------- deleting

cdef void begin_leaving(Tenant tenant) noexcept nogil:
    cdef uint32_t i, serving = 0
    for i in range(tenant.life.tenant_count):
        serving += (<Tenant>tenant.life.tenant_pointers[i]).serves()
    if serving < 2 or tenant.changing:
        return
    tenant.life.count(DROP)
    tenant.leaving = IS_TO_LEAVE                         # nobody begins anything that would have to be waited for
    tenant.changing = True
    tenant.begin_task()
    tenant.life.note(b"volume %lld is to be deleted", tenant.number, 0, 0)


cdef void leave(Tenant tenant) noexcept nogil:
    tenant.leaving = LEAVES
    start(leave_body, <void*>tenant, NULL)
    tenant.life.hurry()


cdef int64_t leave_body(void* argument) noexcept nogil:
    delete(<Tenant>argument)
    (<Tenant>argument).end_task()
    return 0


cdef void delete(Tenant tenant) noexcept nogil:
    """As volumes.py does it, `changing` held."""
    cdef bint needed = tenant.clones(NULL) > 0
    tenant.life.pass_time()
    if needed:
        tenant.life.hidden += 1
        tenant.record.hidden = True
        tenant.life.note(b"volume %lld is hidden", tenant.number, 0, 0)
    else:
        tenant.record.deleting = True
    tenant.life.pass_time()
    if needed:
        hide(tenant)
        tenant.let_go()
    else:
        shut(tenant)
        tenant.let_go()
        if erase(tenant) == 0 and tenant.record.parent is not NULL:
            delete_needless(<Tenant>tenant.record.parent)


cdef void delete_needless(Tenant tenant) noexcept nogil:
    if not tenant.record.hidden:
        return
    tenant.take()
    if not tenant.record.exists or tenant.record.deleting:
        tenant.let_go()
    elif tenant.clones(NULL):
        hide(tenant)
        tenant.let_go()
    else:
        delete(tenant)


cdef void hide(Tenant tenant) noexcept nogil:
    """Gives up its head, and the snapshots that no clone stands on."""
    cdef int i
    if not give_up_head(tenant):
        return
    for i in range(SHOTS_AND_MARKS):
        if tenant.shots[i].state == SHOT_MADE and (i >= SHOTS or tenant.clones(tenant.shots[i].id) == 0):
            drop_mark(tenant, &tenant.shots[i])


cdef bint give_up_head(Tenant tenant) noexcept nogil:
    """It goes back to the newest snapshot that has clones, and what it was is discarded."""
    cdef Shot* needed = NULL
    cdef Shot* shot
    cdef Wish wish
    cdef bint stands = False
    cdef int i, result
    for i in range(SHOTS_AND_MARKS):
        shot = &tenant.shots[i]
        if shot.state == SHOT_MADE and tenant.clones(shot.id):
            stands = stands or same_id(tenant.volume.snapshots.head_parent, shot.id)
            if needed is NULL or sequence_of(tenant, shot) > sequence_of(tenant, needed):
                needed = shot
    if needed is NULL or (stands and tenant.volume.segments.exclusive == 0):
        return True
    hide_wish(tenant, &wish)
    result = tenant.go_back(needed.id, &wish, NULL)
    tenant.life.note(b"volume %lld has given up its head, error %lld", tenant.number, -result, 0)
    tenant.life.fail(b"giving up a head", result)
    return result == 0


cdef void shut(Tenant tenant) noexcept nogil:
    """It is closed without a checkpoint."""
    tenant.open = False
    tenant.between = True
    tenant.await_clients()
    while tenant.volume.readings:                        # of who is about to let go of it
        wait_in(&tenant.volume.connections_changed)
    tenant.volume.close()
    if tenant.volume.parent is not NULL:
        let_parent_go(tenant.volume)


cdef int erase(Tenant tenant) noexcept nogil:
    """From any state to none; the record goes last. With an error the next beginning tries again."""
    cdef int64_t result = 0
    cdef int i
    leave_stray(tenant)
    for i in range(tenant.life.store_count):
        if result >= 0:
            result = (<Store>tenant.life.store_pointers[i]).erase(tenant.record.id)
    if result >= 0:
        tenant.life.pass_time()
        tenant.record.exists = False
        forget_strays(tenant)
        tenant.life.pass_time()
        tenant.life.drops += 1
        tenant.life.note(b"volume %lld is gone, with id ...%llx and %lld segments", tenant.number, tenant.record.id[15], result)
    else:
        tenant.life.fail(b"erasing a volume", <int>result)
    tenant.between = False
    return <int>min(result, <int64_t>0)
