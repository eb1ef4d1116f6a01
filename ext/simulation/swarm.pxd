# What one life in the simulated world is like. See simulation/swarm.pyx.

from iomesh.engine.simulation.run cimport Life

cdef object draw_swarm(Life life, operations)
