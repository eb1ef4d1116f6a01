# One seed's simulation run. See simulation/simulation.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.checker cimport Checker
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.simulation.run cimport RunState
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

cdef enum Phase:
    BOOTING, VERIFYING, LOOKING, WORKING, QUIETING, STOPPING, STOPPED, REFUSED

cdef enum RunEnd:
    END_STOPPED, END_CRASHED, END_POWER_CUT, END_REFUSED, END_WRONG,
    END_WANTING                      # it continues once Python has created objects

cdef class Simulation(RunState):
    cdef Checker checker
    cdef list simulated_volumes
    cdef Phase phase
    cdef bint paused
    cdef Operation pause

    cdef SimulatedVolume make_volume(self)
    cdef object set_faults(self)
    cdef object format(self)
    cdef object enter(self)
    cdef object boot(self)
    cdef object drop(self)
    cdef bint has_dropped(self) noexcept nogil
    cdef void doubt(self, bint power) noexcept nogil
    cdef RunEnd crash(self, bint power) noexcept nogil
    cdef RunEnd hang(self) noexcept nogil
    cdef void tell_state(self, SimulatedVolume simulated) noexcept nogil
    cdef void refused(self, const char* reason, int error) noexcept nogil
    cdef object settle(self)
    cdef RunEnd live(self) noexcept nogil
    cdef RunEnd go_on(self) noexcept nogil
    cdef uint32_t next_reactor(self) noexcept nogil
    cdef bint all_wait(self) noexcept nogil
    cdef int64_t delay_ns(self, uint32_t number) noexcept nogil
    cdef int turn(self, uint32_t number) noexcept nogil
    cdef void miss_buffers(self, Pool pool) noexcept nogil
    cdef void issue(self) noexcept nogil
    cdef void verify_more(self) noexcept nogil
    cdef void work_more(self) noexcept nogil
    cdef void* any_serving(self) noexcept nogil
    cdef void* any_open(self) noexcept nogil
    cdef bint is_calm(self) noexcept nogil
    cdef bint let_clients_leave(self) noexcept nogil
    cdef void begin(self, void* simulated, int kind) noexcept nogil
    cdef void begin_task(self, void* simulated, int kind) noexcept nogil
    cdef void is_quiet(self, SimulatedVolume simulated) noexcept nogil
    cdef void make_space(self, void* simulated) noexcept nogil
    cdef void go_back(self, SimulatedVolume simulated) noexcept nogil
    cdef bint walk(self) noexcept nogil
    cdef void tell_snapshots(self, SnapshotTable snapshots) noexcept nogil
    cdef void show_volumes(self) noexcept nogil
    cdef bint stores_add_up(self, bint closed) noexcept nogil
