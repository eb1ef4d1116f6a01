# What one life in the simulated world is like. See simulation/swarm.pyx.

from iomesh.engine.simulation.run cimport RunState

cdef object draw_swarm(RunState run, operations)
