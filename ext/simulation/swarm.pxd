# The drawn parameters of a simulation run. See simulation/swarm.pyx.

from iomesh.engine.simulation.run cimport RunState

cdef object draw_swarm(RunState run, operations)
