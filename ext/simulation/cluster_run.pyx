# The shared state of a simulation run of several nodes: its history, its drawn parameters, and what happened. Used by
# the parts of a run: cluster_metadata, cluster_node, cluster_volume; `cluster` extends it and drives the run.

from libc.stdint cimport uint32_t, uint64_t

from iomesh.engine.format.layout cimport NODE_POINTERS

CLIENT_NAMES = ("read", "write", "zero", "flush", "checkpoint")
FAULT_NAMES = (
    "kill", "power", "all_power", "several", "pause", "cut", "part", "outage", "usurp", "contend", "hand_over"
)


cdef class ClusterRun(BaseRun):
    """Raises MemoryError."""

    def __cinit__(self, uint64_t seed, operations=None):
        self.registers = Registers()
        self.nodes = []

    cdef void count(self, int kind) noexcept nogil:
        self.counted.operations += 1
        self.counted.done[kind] += 1

    cdef uint64_t place_of(self, uint32_t block) noexcept nogil:
        return <uint64_t>(block // self.group_blocks) * self.spread * NODE_POINTERS + block % self.group_blocks

    cdef uint64_t size_blocks(self) noexcept nogil:
        return (<uint64_t>(self.blocks // self.group_blocks - 1) * self.spread + 1) * NODE_POINTERS
