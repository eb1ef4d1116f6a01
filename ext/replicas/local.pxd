# A member on this node: a Store of it. See replicas/local.pyx.

from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.store.store cimport Store

cdef class LocalMember(Member):      # LocalMember(reactor, number, store, volume)
    cdef Store store

# A member for each of this node's stores, numbered from 0 on. reactor: the log's. volume: 16 bytes.
cdef list local_members(Reactor reactor, list stores, bytes volume)
