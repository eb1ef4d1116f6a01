# Another node of the cluster, as one reactor of this node uses it.
#
#     without a connection -- attach() --> attached -- the first heartbeat is answered --> ready -- lost --> without
#
# Always true:
#   - a node that does not answer heartbeats for SILENT_NS loses its connection: every call on it fails then, so none
#     waits for a node that is gone;
#   - what is known of the node's devices is from this connection, at most BEAT_NS and a round trip old.
#
# Called by the commands that attach connections (commands/peers.pyx), and by remote members.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport wake_all
from iomesh.engine.format.peer cimport HEARTBEAT_ENTRIES_MAX, DeviceState
from iomesh.engine.replicas.peer cimport PEER_ATTACHED, PEER_DETACHED
from iomesh.engine.store.leases cimport LEASE_HELD_NS

cdef enum:
    BEAT_NS = 250 * 1000 * 1000
    SILENT_NS = 2000 * 1000 * 1000


cdef class RemoteNode:
    """Raises MemoryError."""

    def __cinit__(self, Reactor reactor):
        self.reactor, self.io = reactor, reactor.io
        self.peer = Peer(reactor)
        self.entries = HEARTBEAT_ENTRIES_MAX
        self.peer.lost = peer_lost
        self.peer.owner = <void*>self
        self.heartbeat.operation.done = heartbeat_done
        self.heartbeat.operation.owner = <void*>self
        self.timer.done = timer_done
        self.timer.owner = <void*>self

    cdef void attach(self, int connection, uint32_t requests, uint64_t bytes) noexcept nogil:
        self.silent = False
        self.heard_ns = self.io.now_ns()
        self.peer.attach(connection, requests, bytes)
        self.beat()
        if not self.waiting:
            self.waiting = True
            self.io.after(&self.timer, BEAT_NS)

    cdef void detach(self) noexcept nogil:
        self.peer.detach()

    cdef const DeviceState* state_of(self, uint32_t device) noexcept nogil:
        cdef uint32_t i
        if self.ready:
            for i in range(self.state_count):
                if self.states[i].device == device:
                    return &self.states[i]
        return NULL

    cdef void beat(self) noexcept nogil:
        if not self.beating:
            self.beating = True
            self.beat_ns = self.io.monotonic_ns()
            self.counter += 1
            self.peer.heartbeat(&self.heartbeat, self.counter, self.incoming, self.entries)

    cdef void beat_answered(self) noexcept nogil:
        self.beating = False
        if self.heartbeat.operation.result < 0:
            return
        self.heard_ns = self.io.now_ns()
        self.state_count = self.heartbeat.count
        memcpy(self.states, self.incoming, self.state_count * sizeof(DeviceState))
        self.boot = self.heartbeat.boot
        self.fences = self.heartbeat.fence
        self.held_until_ns = self.beat_ns + LEASE_HELD_NS
        if not self.ready and self.peer.state == PEER_ATTACHED:
            self.ready = True
            self.readies += 1
            wake_all(&self.changes, 0)
            if self.became_ready is not NULL:
                self.became_ready(self.owner)

    cdef void timer_rang(self) noexcept nogil:
        self.waiting = False
        if self.peer.state == PEER_DETACHED:
            return
        if self.peer.state == PEER_ATTACHED and self.io.now_ns() - self.heard_ns > SILENT_NS:
            self.silent = True
            self.ready = False
            self.peer.detach()
        if self.peer.state == PEER_ATTACHED:
            self.beat()
        self.waiting = True
        self.io.after(&self.timer, BEAT_NS)

    cdef void connection_lost(self) noexcept nogil:
        self.ready = False
        self.state_count = 0
        if self.lost is not NULL:
            self.lost(self.owner)


# ---------------------------------------------------------------------- callbacks

cdef void peer_lost(void* node) noexcept nogil:
    (<RemoteNode>node).connection_lost()


cdef void heartbeat_done(Operation* operation) noexcept nogil:
    (<RemoteNode>operation.owner).beat_answered()


cdef void timer_done(Operation* operation) noexcept nogil:
    (<RemoteNode>operation.owner).timer_rang()
