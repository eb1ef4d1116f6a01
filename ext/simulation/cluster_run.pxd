# The shared state of a simulation run of several nodes. See simulation/cluster_run.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.counters cimport COUNTERS, HISTOGRAM_BUCKETS, HISTOGRAMS
from iomesh.engine.simulation.base_run cimport BaseRun
from iomesh.engine.simulation.registers cimport MODEL_BLOCKS_MAX, Registers

cdef enum:
    NODES_MAX = 5
    NODE_STORES = 2
    NODE_REACTORS = 2
    GROUPS_MAX = 8                   # parts of the volume that are used, each in a map leaf of its own
    OPERATION_BLOCKS = 16            # of one request

cdef enum ClientKind:                # of requests; to add one: here, in CLIENT_NAMES and in SharedVolume.issue()
    CLIENT_READ, CLIENT_WRITE, CLIENT_ZERO, CLIENT_FLUSH, CLIENT_CHECKPOINT,
    CLIENT_KINDS

cdef enum ClusterFault:              # to add one: here, in FAULT_NAMES and in Cluster.strike()
    KILL_NODE, CUT_POWER, CUT_ALL_POWER, CRASH_SEVERAL, PAUSE_NODE, CUT_CONNECTION, PART, METADATA_OUTAGE, USURP,
    CONTEND, HAND_OVER,
    CLUSTER_FAULTS

cdef struct Counted:                 # what happened in the run
    uint64_t operations
    uint64_t done[CLIENT_KINDS]
    uint64_t failures                # requests that ended with an error
    uint64_t vanished                # ... or never, since the owner's process ended
    uint64_t kills
    uint64_t power_cuts              # of nodes
    uint64_t pauses
    uint64_t cuts                    # of connections
    uint64_t partitions
    uint64_t outages                 # of the metadata service
    uint64_t silences                # its answers that were lost
    uint64_t late                    # requests to it that arrived after their sender had given up
    uint64_t openings                # of the volume, that succeeded ...
    uint64_t refusals                # ... or failed
    uint64_t take_overs              # ... by another node than before
    uint64_t usurpations             # ... while the former owner served
    uint64_t contentions             # two nodes that open it at once
    uint64_t lost_rights             # owners that learned that there is a newer one
    uint64_t fragments               # that the metadata service has agreed to
    uint64_t fetched                 # segments from other nodes, by recoveries
    uint64_t completed               # records that recoveries wrote to copies
    uint64_t connections
    uint64_t reconciled              # nodes that were back
    uint64_t rebuilt                 # copies of sealed segments that were made ...
    uint64_t dropped                 # ... and dropped, since there were too many
    uint64_t moves                   # of the checkpoint's pointer
    uint64_t stale                   # reads of former owners that returned older data
    uint64_t equal                   # copies that were found to be so
    uint64_t scenes                  # of directed runs: owners that were cut off while another one took over

cdef class ClusterRun(BaseRun):
    cdef Registers registers
    cdef list nodes                  # ClusterNode
    cdef void* node_pointers[NODES_MAX]
    cdef object metadata_service     # ClusterMetadata
    cdef bint wanting                # a task waits until Python has created objects
    cdef bint faultless              # the faults are over: nothing may fail any more
    cdef uint8_t volume[16]
    cdef uint64_t counters[COUNTERS]
    cdef uint64_t histograms[HISTOGRAMS * HISTOGRAM_BUCKETS]
    cdef Counted counted
    cdef uint32_t opened_ever        # openings of the volume, in total
    # drawn parameters: simulation/cluster_swarm.pyx
    cdef readonly dict drawn         # for people
    cdef int node_count
    cdef int reactor_count           # of each node
    cdef uint64_t journal_bytes
    cdef uint32_t replicas
    cdef uint32_t minimum
    cdef uint32_t blocks             # of the model
    cdef uint32_t group_blocks       # of them in each leaf
    cdef uint32_t spread             # leaves from one to the next
    cdef uint32_t weights[CLIENT_KINDS]
    cdef uint32_t weight
    cdef uint32_t depth
    cdef uint32_t size_max           # blocks
    cdef uint32_t stable             # of 256 writes: FUA
    cdef int64_t gap_ns              # between two requests, on average
    cdef uint32_t frames
    cdef uint32_t records            # buffers
    cdef uint64_t interval           # bytes between two checkpoints
    cdef uint32_t numbers            # of segments that the metadata service promises at once, ...
    cdef uint32_t fragment_numbers   # ... and of fragments
    cdef int64_t metadata_ns         # a request to it, or its answer, takes so long at most
    cdef uint32_t silent             # of 256 requests to it: not answered
    cdef int64_t link_ns             # a connection is made again within this time
    cdef readonly dict faults        # the world's, and their probabilities
    cdef bint device_errors          # devices may report errors, or not answer
    cdef uint32_t fault_weights[CLUSTER_FAULTS]
    cdef uint32_t fault_weight
    cdef uint64_t between            # requests from one fault to the next, on average
    cdef int64_t between_ns          # ... but not longer than this
    cdef int64_t down_ns             # a node is down for up to this
    cdef int64_t pause_ns
    cdef int64_t part_ns             # ... and a partition lasts
    cdef int64_t open_within_ns      # without an owner, another one opens the volume within this time
    cdef uint64_t total              # requests
    cdef int64_t limit_ns            # the faults end then, at the latest
    cdef bint directed               # the faults are those of Cluster.direct()
    cdef bint rebuilds               # owners make and drop copies of sealed segments, also without need

    cdef void count(self, int kind) noexcept nogil       # a request that has ended
    cdef uint64_t place_of(self, uint32_t block) noexcept nogil  # the volume's block of a block in the model
    cdef uint64_t size_blocks(self) noexcept nogil
