# One seed's simulation run of several nodes. See simulation/cluster.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.cluster_metadata cimport ClusterMetadata
from iomesh.engine.simulation.cluster_node cimport ClusterNode
from iomesh.engine.simulation.cluster_run cimport CLUSTER_FAULTS, NODES_MAX, ClusterFault, ClusterRun
from iomesh.engine.simulation.cluster_volume cimport SharedVolume

cdef enum ClusterPhase:
    WORKING,                         # requests, and faults
    HEALING,                         # the faults are over: every node starts, and one serves the volume
    WIDENING,                        # until what is written has all its replicas
    CLOSING,
    REOPENING,                       # on another node
    ENDING,                          # it closes there, too
    OVER

cdef class Cluster(ClusterRun):
    cdef ClusterMetadata metadata
    cdef ClusterPhase phase
    cdef uint64_t step
    cdef uint64_t left               # requests
    cdef int64_t phase_ns            # when the phase began
    cdef int64_t due_ns              # when something is to be done, at the earliest
    cdef int64_t next_ns             # the next request
    cdef uint64_t fault_at           # ... and fault, by the number of requests left, ...
    cdef int64_t fault_ns            # ... or by the time
    cdef int64_t open_ns             # when the volume is opened; 0: not planned
    cdef int usurper                 # the node that opens it though another one may serve it; -1: none
    cdef int64_t usurp_ns
    cdef int rival                   # another node that opens it at the same time; -1: none
    cdef int64_t blocked_until_ns[NODES_MAX][NODES_MAX]  # what the first sends does not reach the second; 0: it does
    cdef int64_t unreachable_until_ns[NODES_MAX]         # the metadata service, for the node
    cdef int64_t outage_until_ns
    cdef uint64_t crashes            # of the world, that were noticed
    cdef uint64_t dropped            # likewise, of devices' caches
    cdef int armed                   # the node that is to end at a boundary; -1: none
    cdef bint armed_power
    cdef int scene_step              # of direct(), ...
    cdef int64_t scene_ns            # ... and when the next one is due
    cdef int64_t scene_gap_ns        # between requests, outside of it
    cdef int last_node               # that served the volume
    cdef list found                  # after a failure, for people

    cdef list describe(self)
    cdef object grant(self)
    cdef object connect(self, ClusterNode node, int reactor, int other)
    cdef object begin_opening(self, int number)
    cdef void judge_refusal(self, SharedVolume volume) noexcept nogil
    cdef void go_on(self) noexcept nogil
    cdef bint turn(self) noexcept nogil
    cdef void act(self) noexcept nogil
    cdef void look_at(self, int64_t time_ns) noexcept nogil
    cdef void look_after(self, SharedVolume volume) noexcept nogil
    cdef void enter(self, ClusterPhase phase) noexcept nogil
    cdef void move_phase(self) noexcept nogil
    cdef bint is_quiet(self) noexcept nogil
    cdef bint is_alone(self, void* owner) noexcept nogil  # no other node has the volume open
    cdef bint is_wide(self, SharedVolume volume) noexcept nogil          # what it writes has all its replicas
    cdef bint is_whole(self) noexcept nogil              # every node is up and connected to every other one
    cdef void heal(self) noexcept nogil
    cdef void hang(self, const char* what) noexcept nogil
    cdef void plan_fault(self) noexcept nogil
    cdef void direct(self) noexcept nogil
    cdef ClusterFault draw_fault(self) noexcept nogil
    cdef void strike(self, ClusterFault fault) noexcept nogil
    cdef void plan_usurpation(self, int64_t time_ns) noexcept nogil
    cdef void crash_node(self, int node, bint power) noexcept nogil
    cdef void end_now(self, int number, bint power) noexcept nogil
    cdef void notice_crashes(self) noexcept nogil
    cdef void end_node(self, ClusterNode node, bint power) noexcept nogil
    cdef void cut_connection(self) noexcept nogil
    cdef void part(self, int node, int64_t until_ns) noexcept nogil
    cdef void block(self, int sender, int to, int64_t until_ns) noexcept nogil
    cdef void unblock(self, int sender, int to) noexcept nogil
    cdef void hold(self, int sender, int to, bint held) noexcept nogil
    cdef bint reaches(self, int one, int other) noexcept nogil   # a connection can be made
    cdef void* volume_of(self, int node) noexcept nogil  # its SharedVolume; NULL: none
    cdef void* serving(self) noexcept nogil              # the SharedVolume of the newest owner; NULL: none serves
    cdef void* any_serving(self) noexcept nogil
    cdef bint is_open_anywhere(self) noexcept nogil
    cdef int choose_opener(self, int but) noexcept nogil  # -1: none
    cdef bint may_issue(self) noexcept nogil
    cdef bint takes_more(self, SharedVolume volume) noexcept nogil
    cdef void issue(self) noexcept nogil
