# Restore windows in a simulation run. See simulation/points_in_time.pyx.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from iomesh.engine.simulation.simulated_volume cimport PointInTime, SimulatedSnapshot, SimulatedVolume

cdef void begin_mark(SimulatedVolume simulated) noexcept nogil    # creates a restore point, or deletes some
cdef bint mark_now(SimulatedVolume simulated, bint urgent) noexcept nogil         # in a task; False: not created
# In a task; a restore point that has a clone stays, as an ordinary snapshot.
cdef bint drop_mark(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil
cdef void begin_point_in_time(SimulatedVolume simulated) noexcept nogil  # records one, once nothing is in flight
cdef void keep_point_in_time(SimulatedVolume simulated) noexcept nogil  # ... now
cdef void begin_rewind(SimulatedVolume simulated) noexcept nogil  # restores a point in time, once nothing is in flight
cdef void rewind(SimulatedVolume simulated) noexcept nogil        # ... now
cdef PointInTime* any_moment(SimulatedVolume simulated) noexcept nogil  # NULL: there is none
# The restore point from which a roll forward reaches that point in time; NULL: there is none.
cdef SimulatedSnapshot* mark_before(SimulatedVolume simulated, int64_t at_ns) noexcept nogil
# In a task: rolls a volume forward from a restore point of `source` to a later point in time.
cdef int follow(SimulatedVolume simulated, SimulatedVolume source, const uint8_t* mark, int64_t at_ns) noexcept nogil
# In a task, before requests are served: undoes an unfinished restore. 0 or a negative errno.
cdef int undo(SimulatedVolume simulated) noexcept nogil
cdef void doubt_moments(SimulatedVolume simulated, bint power) noexcept nogil     # after a process has ended
cdef void forget_unreachable(SimulatedVolume simulated) noexcept nogil
cdef void forget_ambiguous(SimulatedVolume simulated) noexcept nogil
cdef bint is_mark(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil
cdef uint64_t sequence_of(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil
