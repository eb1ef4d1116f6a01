# Clones that become volumes of their own, in a life in the simulated world. See simulation/flattening.pyx.

from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

cdef void begin_detaching(SimulatedVolume simulated) noexcept nogil  # if it is a clone and no snapshot of it inherits, or it is at it already
cdef void go_on_detaching(SimulatedVolume simulated) noexcept nogil  # what its record says is wanted
