# Clones in a simulation run, and the deletion of volumes. See simulation/clones.pyx.

from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

# if it has a snapshot, and there is room for one more volume
cdef void begin_clone(SimulatedVolume parent) noexcept nogil
cdef void begin_leaving(SimulatedVolume simulated) noexcept nogil  # plans its deletion, unless no other volume serves
cdef void leave(SimulatedVolume simulated) noexcept nogil         # ... once nothing of it is in flight
# In a task: it is hidden, and its last clone may have been deleted.
cdef void delete_needless(SimulatedVolume simulated) noexcept nogil
cdef void shut(SimulatedVolume simulated) noexcept nogil        # in a task: closes it without a checkpoint
cdef int erase(SimulatedVolume simulated) noexcept nogil          # in a task: its record is `deleting`; it is closed
cdef int take_to_point_in_time(SimulatedVolume simulated) noexcept nogil  # in a task: a clone that was just opened
