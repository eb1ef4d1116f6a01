# The drawn parameters of a simulation run of several nodes. See simulation/cluster_swarm.pyx.

from iomesh.engine.simulation.cluster_run cimport ClusterRun

cdef object draw_cluster(ClusterRun run, operations)
