# Restore windows in a life in the simulated world. See simulation/points_in_time.pyx.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from iomesh.engine.simulation.simulated_volume cimport PointInTime, SimulatedSnapshot, SimulatedVolume

cdef void begin_mark(SimulatedVolume simulated) noexcept nogil    # makes one, or lets some go
cdef bint mark_now(SimulatedVolume simulated, bint urgent) noexcept nogil         # in a task; False: it could not be made
# In a task; a restore point that a clone stands on stays, as a snapshot like others.
cdef bint drop_mark(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil
cdef void begin_point_in_time(SimulatedVolume simulated) noexcept nogil  # it is kept in mind, once nothing is under way
cdef void keep_point_in_time(SimulatedVolume simulated) noexcept nogil  # ... now
cdef void begin_rewind(SimulatedVolume simulated) noexcept nogil  # back to a moment, once nothing is under way
cdef void rewind(SimulatedVolume simulated) noexcept nogil        # ... now
cdef PointInTime* any_moment(SimulatedVolume simulated) noexcept nogil  # NULL: there is none
cdef SimulatedSnapshot* mark_before(SimulatedVolume simulated, int64_t at_ns) noexcept nogil   # the mark from which that moment is reached; NULL: there is none
# In a task: takes a volume that stands on a mark of `source` to a moment behind it.
cdef int follow(SimulatedVolume simulated, SimulatedVolume source, const uint8_t* mark, int64_t at_ns) noexcept nogil
# In a task, before anybody is served: a restore that was under way is undone. 0 or a negative errno.
cdef int undo(SimulatedVolume simulated) noexcept nogil
cdef void doubt_moments(SimulatedVolume simulated, bint power) noexcept nogil     # the process has ended
cdef void forget_unreachable(SimulatedVolume simulated) noexcept nogil
cdef void forget_ambiguous(SimulatedVolume simulated) noexcept nogil
cdef bint is_mark(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil
cdef uint64_t sequence_of(SimulatedVolume simulated, const SimulatedSnapshot* shot) noexcept nogil
