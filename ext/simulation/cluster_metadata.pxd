# The metadata service of a simulated cluster. See simulation/cluster_metadata.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Message, Reactor
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.replicas.member cimport REPLICAS_MAX
from iomesh.engine.simulation.cluster_run cimport NODES_MAX, ClusterRun
from iomesh.engine.simulation.world cimport WorldIo

cdef enum:
    FRAGMENTS_KEPT = 128             # of a log's record
    CALLS_MAX = 64                   # under way

cdef struct FragmentRecord:
    uint32_t number
    uint32_t devices[REPLICAS_MAX]
    uint64_t first                   # record

cdef struct LogRecord:               # logs/<id> of docs/metadata.md; what is not set is zero: bytes are compared
    uint64_t epoch
    uint64_t sequence                # of the checkpoint
    Pointer checkpoint
    int owner                        # node
    uint32_t promised
    uint32_t next_fragment
    uint32_t fragment_count
    FragmentRecord fragments[FRAGMENTS_KEPT]

cdef enum CallResult:
    CALL_DONE, CALL_CONFLICT, CALL_UNAVAILABLE, CALL_CANCELLED

cdef enum CallState:
    CALL_FREE, CALL_ASKED, CALL_ANSWERED, CALL_ARRIVES

cdef struct MetadataCall:
    CallState state
    bint commit                      # else it gets the record
    bint silent                      # the answer is lost
    int node
    LogRecord record                 # to be stored; then what is stored
    uint64_t version                 # expected; then the stored one's
    CallResult result
    Operation timer
    Message message                  # the answer, to the node's reactor
    void* metadata
    void* reactor
    void* waiter                     # Waiting; NULL: nobody waits

cdef struct Waiting:                 # for an answer, on the stack of a task
    Operation operation              # completes with a CallResult
    Operation timer
    void* io
    MetadataCall* call
    bint over

cdef class ClusterMetadata:
    cdef ClusterRun run
    cdef WorldIo io                  # a node of its own, which never fails
    cdef LogRecord record
    cdef uint64_t version
    cdef bint unreachable[NODES_MAX]
    cdef bint outage
    cdef MetadataCall calls[CALLS_MAX]

    # In a task of a node, on this reactor. `waiting`: in the caller's object; cancel() ends the wait.
    cdef CallResult get(
        self, int node, Reactor reactor, Waiting* waiting, LogRecord* record, uint64_t* version
    ) noexcept nogil
    # Stores the record if the stored one's version is still this one; then `version` is the new one's.
    cdef CallResult commit(
        self, int node, Reactor reactor, Waiting* waiting, const LogRecord* record, uint64_t* version
    ) noexcept nogil
    cdef CallResult ask(
        self, int node, Reactor reactor, Waiting* waiting, MetadataCall* call
    ) noexcept nogil
    cdef void cancel(self, Waiting* waiting) noexcept nogil
    cdef void forget(self, int node) noexcept nogil      # its process has ended; its requests may still arrive
    cdef MetadataCall* take(self) noexcept nogil
    cdef void arrive(self, MetadataCall* call) noexcept nogil
    cdef void answer(self, MetadataCall* call) noexcept nogil
    cdef void release(self, MetadataCall* call) noexcept nogil

cdef void end_waiting(Waiting* waiting, CallResult result) noexcept nogil
