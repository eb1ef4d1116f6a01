# Clones that become volumes of their own, in a life in the simulated world: what node/detaching.py has done, with the same calls of the engine in the
# same order, while the clone is used, cleaned, gone back with, deleted, and crashed.
#
#     (clone) --record: detaching--> copied, looked at --record: no parent--> cut off; the parent that was kept for it goes

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from iomesh.engine.simulation.clones cimport delete_needless
from iomesh.engine.history.flatten cimport check_detached, copy_inherited, cut_off
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.simulation.run cimport DETACH
from iomesh.engine.simulation.points_in_time cimport drop_mark, forget_unreachable, is_mark, mark_now, sequence_of
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.simulation.simulated_volume cimport SHOT_MADE, SHOTS, SHOTS_AND_MARKS, STAYS, Shot

cdef enum:
    ATTEMPTS = 4                     # of one task: another one, or the next beginning, goes on
    AGAIN_NS = 50 * 1000 * 1000
    TRICKLE_NS = 500 * 1000          # between two steps, at most


cdef void begin_detaching(Tenant tenant) noexcept nogil:
    cdef int i
    if tenant.record.parent is NULL or tenant.copying or tenant.changing:
        return
    if not tenant.record.detaching:
        for i in range(SHOTS):
            if tenant.shots[i].state == SHOT_MADE and inherits(tenant, &tenant.shots[i]):
                return
    tenant.life.count(DETACH)
    go_on_detaching(tenant)
    tenant.life.hurry()


cdef void go_on_detaching(Tenant tenant) noexcept nogil:
    tenant.copying = True
    tenant.begin_task()
    start(detach_body, <void*>tenant, NULL)


cdef int64_t detach_body(void* argument) noexcept nogil:
    detach(<Tenant>argument)
    (<Tenant>argument).copying = False
    (<Tenant>argument).end_task()
    return 0


cdef void detach(Tenant tenant) noexcept nogil:
    cdef int _attempt, result
    if not tenant.record.detaching:
        tenant.life.pass_time()
        tenant.record.detaching = True
        tenant.life.pass_time()
    tenant.pace.step = trickle
    tenant.pace.owner = <void*>tenant
    tenant.life.note(b"volume %lld is being detached: %lld blocks are inherited", tenant.number, tenant.volume.segments.inherited, 0)
    for _attempt in range(ATTEMPTS):
        if not is_wanted(tenant):
            return
        result = copy_inherited(tenant.volume, &tenant.pace)
        tenant.life.note(b"volume %lld: what is inherited is copied, error %lld, %lld left", tenant.number, -result, tenant.volume.segments.inherited)
        if tenant.life.damages == 0 and not is_going_back(tenant):
            tenant.life.fail(b"detaching", result)
        if result == 0 and finish(tenant):
            return
        sleep(tenant, AGAIN_NS)


cdef bint is_wanted(Tenant tenant) noexcept nogil:
    return tenant.record.exists and tenant.record.detaching and tenant.open and tenant.leaving == STAYS and not tenant.record.hidden


cdef bint is_going_back(Tenant tenant) noexcept nogil:
    return tenant.volume.restoring


cdef int trickle(void* owner, Io _io, uint32_t _bytes) noexcept nogil:
    sleep(<Tenant>owner, TRICKLE_NS)
    return 0


cdef void sleep(Tenant tenant, int64_t most_ns) noexcept nogil:
    cdef Operation timer
    waited(&timer)
    tenant.life.io.after(&timer, <int64_t>tenant.life.draw(most_ns))
    wait(&timer)


cdef bint finish(Tenant tenant) noexcept nogil:
    """Nothing is left to be copied; False: it is tried again."""
    cdef void* parent = tenant.record.parent
    cdef bint done = False
    tenant.take()
    while tenant.changes and tenant.open:                # what was begun before
        sleep(tenant, AGAIN_NS)
    if not is_wanted(tenant) or tenant.record.parent is NULL:
        tenant.let_go()
        return True
    forget_marks(tenant)
    if not any_inherits(tenant):
        tenant.await_tree()
        done = check_detached(tenant.volume, tenant.tree) == 0
    if done:
        tenant.life.pass_time()
        tenant.record.parent = NULL
        tenant.record.detaching = False
        memset(tenant.record.snapshot, 0, 16)
        tenant.life.pass_time()
        cut_off(tenant.volume)
        tenant.life.detached += 1
        tenant.life.note(b"volume %lld is no clone any more", tenant.number, 0, 0)
    tenant.let_go()
    if done:
        delete_needless(<Tenant>parent)
    return done


cdef void forget_marks(Tenant tenant) noexcept nogil:
    """Of its restore window, what lies before it had all: the marks up to the newest that inherits."""
    cdef uint64_t newest = 0
    cdef bint begun = True
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if is_mark(tenant, &tenant.shots[i]) and inherits(tenant, &tenant.shots[i]):
            newest = max(newest, sequence_of(tenant, &tenant.shots[i]))
    if newest and newest_mark(tenant) == newest:         # all of them: the window begins anew
        begun = mark_now(tenant, True)
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if begun and newest and is_mark(tenant, &tenant.shots[i]) and sequence_of(tenant, &tenant.shots[i]) <= newest:
            drop_mark(tenant, &tenant.shots[i])
    forget_unreachable(tenant)


cdef uint64_t newest_mark(Tenant tenant) noexcept nogil:
    cdef uint64_t newest = 0
    cdef int i
    for i in range(SHOTS, SHOTS_AND_MARKS):
        if is_mark(tenant, &tenant.shots[i]):
            newest = max(newest, sequence_of(tenant, &tenant.shots[i]))
    return newest


cdef bint inherits(Tenant tenant, const Shot* shot) noexcept nogil:
    return tenant.volume.snapshots.find(shot.id).entry.inherited > 0


cdef bint any_inherits(Tenant tenant) noexcept nogil:
    """One that was deleted and is not gone yet, too."""
    cdef uint32_t i
    for i in range(tenant.volume.snapshots.count):
        if tenant.volume.snapshots.all[i].entry.inherited:
            return True
    return False
