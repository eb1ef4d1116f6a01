# What one life in the simulated world is like. See swarm.pyx.

from iomesh.engine.life cimport Life

cdef object draw_swarm(Life life, operations)
