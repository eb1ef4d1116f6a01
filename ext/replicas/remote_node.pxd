# Another node of the cluster, as one reactor of this node uses it: the connection, and the states of the node's
# devices. See replicas/remote_node.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.format.peer cimport HEARTBEAT_ENTRIES_MAX, DeviceState
from iomesh.engine.replicas.peer cimport Peer, PeerCall

cdef class RemoteNode:               # RemoteNode(reactor)
    cdef Reactor reactor
    cdef Io io
    cdef readonly Peer peer
    cdef readonly bint ready         # attached, and it has answered a heartbeat on this connection
    cdef readonly bint silent        # the last connection ended because it did not answer
    cdef uint64_t boot               # of the node, as of its last heartbeat
    cdef readonly uint32_t readies   # how often it became ready
    cdef DeviceState states[HEARTBEAT_ENTRIES_MAX]
    cdef readonly uint32_t state_count
    cdef Waiters changes             # waiters for `ready` to become true
    # of the connection's owner: called once for each connection, when it has ended and every call on it is done
    cdef void (*lost)(void* owner) noexcept nogil
    cdef void* owner
    cdef void (*became_ready)(void* owner) noexcept nogil      # of the same owner, optional
    cdef uint32_t entries            # that it asks for with each heartbeat

    cdef PeerCall heartbeat
    cdef DeviceState incoming[HEARTBEAT_ENTRIES_MAX]
    cdef bint beating                # a heartbeat is not answered yet
    cdef Operation timer
    cdef bint waiting                # for `timer`
    cdef uint64_t counter
    cdef int64_t beat_ns             # when the heartbeat under way was sent
    cdef int64_t held_until_ns       # the lease: as long as Io.monotonic_ns() is below
    cdef uint64_t fences             # that the node's devices have accepted, as of that lease
    cdef int64_t heard_ns            # when a heartbeat was last answered, or the connection began

    # On the reactor, without a connection; as Peer.attach().
    cdef void attach(self, int connection, uint32_t requests, uint64_t bytes) noexcept nogil
    cdef void detach(self) noexcept nogil
    cdef const DeviceState* state_of(self, uint32_t device) noexcept nogil     # NULL: not known now
    cdef void beat(self) noexcept nogil
    cdef void beat_answered(self) noexcept nogil
    cdef void timer_rang(self) noexcept nogil
    cdef void connection_lost(self) noexcept nogil
