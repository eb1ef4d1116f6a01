# Clones in a life in the simulated world, and the deletion of volumes. See simulation/clones.pyx.

from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

cdef void begin_clone(SimulatedVolume parent) noexcept nogil      # if it has a snapshot, and there is room for one more volume
cdef void begin_leaving(SimulatedVolume simulated) noexcept nogil  # it is to be deleted, unless there is no other one to go on with
cdef void leave(SimulatedVolume simulated) noexcept nogil         # ... and nothing of it is under way any more
cdef void delete_needless(SimulatedVolume simulated) noexcept nogil  # in a task: it is hidden, and a clone of it may be gone
cdef void shut(SimulatedVolume simulated) noexcept nogil        # in a task: it is closed without a checkpoint
cdef int erase(SimulatedVolume simulated) noexcept nogil          # in a task: its record says so, and it is not open
cdef int take_to_point_in_time(SimulatedVolume simulated) noexcept nogil  # in a task: a clone of one, which was just opened
