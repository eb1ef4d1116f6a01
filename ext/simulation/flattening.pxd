# Flattening of clones in a simulation run. See simulation/flattening.pyx.

from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

# If it is a clone and no snapshot of it inherits, or it has begun.
cdef void begin_detaching(SimulatedVolume simulated) noexcept nogil
cdef void go_on_detaching(SimulatedVolume simulated) noexcept nogil  # continues it if the record asks for it
