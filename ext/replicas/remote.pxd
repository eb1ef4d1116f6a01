# A member on another node: a device of it. See replicas/remote.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.replicas.peer cimport PeerCall
from iomesh.engine.replicas.remote_node cimport RemoteNode

cdef class RemoteMember(Member):     # RemoteMember(reactor, number, remote node, device's number, volume)
    cdef RemoteNode remote
    cdef uint32_t device_number      # in the cluster
    cdef bint flush_failed
    cdef uint64_t verified           # number of the node's fences when it was last asked for the volume's, ...
    cdef uint32_t verified_in        # ... on this connection (RemoteNode.readies)
    cdef PeerCall flushing
    cdef Operation* flushed          # completes when `flushing` does; NULL: it is idle

    cdef int ended(self, PeerCall* call) noexcept nogil
