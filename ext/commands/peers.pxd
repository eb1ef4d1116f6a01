# Commands on connections between nodes, and on the stores that are served to other nodes. See commands/peers.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.commands.command cimport Command
from iomesh.engine.replicas.pull cimport Sources
from iomesh.engine.replicas.remote cimport RemoteMember
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.replicas.served_store cimport ServedStore, ServedStores
from iomesh.engine.replicas.server cimport Server

cdef class ServePeer(Command):       # ServePeer(server, fd): answered when the connection has ended
    cdef Server server
    cdef int fd

cdef class EndServedPeer(Command):   # EndServedPeer(server)
    cdef Server server

# AttachPeer(node, sources, fd, requests, bytes): answered when the connection has ended
cdef class AttachPeer(Command):
    cdef RemoteNode node
    cdef Sources sources
    cdef int fd
    cdef uint32_t requests
    cdef uint64_t bytes

cdef class DetachPeer(Command):      # DetachPeer(node)
    cdef RemoteNode node

cdef class ServeStore(Command):      # ServeStore(served, known): to other nodes, on every reactor, from now on
    cdef ServedStore served
    cdef list known                  # ServedStores, one of each reactor
    cdef void** tables               # the same
    cdef void** reactors
    cdef int reactor_count

cdef class EraseCopies(Command):     # EraseCopies(reactor, members, epoch): RemoteMembers of a volume that is not open
    cdef list members
    cdef void** all                  # the same
    cdef int count
    cdef uint64_t epoch
    cdef uint64_t segments           # erased

    cdef int erase(self, RemoteMember member) noexcept nogil

# In a task on the store's home: it is not served any more, and no request uses it.
cdef void withdraw_store(ServedStore served, Reactor home, void** reactors, void** tables, int count) noexcept nogil
