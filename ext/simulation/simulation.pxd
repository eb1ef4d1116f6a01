# One seed's life in the simulated world. See simulation/simulation.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.simulation.checker cimport Audit
from iomesh.engine.base.io cimport Operation
from iomesh.engine.simulation.run cimport Life
from iomesh.engine.map.snapshot_table cimport Snapshots
from iomesh.engine.simulation.simulated_volume cimport Tenant

cdef enum Phase:
    BOOTING, VERIFYING, LOOKING, WORKING, QUIETING, STOPPING, STOPPED, REFUSED

cdef enum End:
    END_STOPPED, END_CRASHED, END_POWER_CUT, END_REFUSED, END_WRONG,
    END_WANTING                      # it goes on once Python has done something

cdef class Simulation(Life):
    cdef Audit audit
    cdef list tenants
    cdef Phase phase
    cdef bint paused
    cdef Operation pause

    cdef Tenant make_tenant(self)
    cdef object set_faults(self)
    cdef object format(self)
    cdef object enter(self)
    cdef object boot(self)
    cdef object drop(self)
    cdef void doubt(self, bint power) noexcept nogil
    cdef End crash(self, bint power) noexcept nogil
    cdef End hang(self) noexcept nogil
    cdef void tell_state(self, Tenant tenant) noexcept nogil
    cdef void refused(self, const char* reason, int error) noexcept nogil
    cdef object settle(self)
    cdef End live(self) noexcept nogil
    cdef End go_on(self) noexcept nogil
    cdef void issue(self) noexcept nogil
    cdef void verify_more(self) noexcept nogil
    cdef void work_more(self) noexcept nogil
    cdef void* any_serving(self) noexcept nogil
    cdef void* any_open(self) noexcept nogil
    cdef bint is_calm(self) noexcept nogil
    cdef bint let_clients_leave(self) noexcept nogil
    cdef void begin(self, void* tenant, int kind) noexcept nogil
    cdef void begin_task(self, void* tenant, int kind) noexcept nogil
    cdef void is_quiet(self, Tenant tenant) noexcept nogil
    cdef void make_space(self, void* tenant) noexcept nogil
    cdef void go_back(self, Tenant tenant) noexcept nogil
    cdef bint walk(self) noexcept nogil
    cdef void tell_snapshots(self, Snapshots snapshots) noexcept nogil
    cdef void show_volumes(self) noexcept nogil
    cdef bint stores_add_up(self, bint closed) noexcept nogil
