# A member on this node: a Store of it. See replicas/local.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.replicas.member cimport Member, Transfer
from iomesh.engine.store.store cimport OpenLog, Replica, Store

cdef class LocalMember(Member):      # LocalMember(reactor, number, store, volume)
    cdef Store store
    cdef OpenLog opened
    cdef bint entered
    cdef uint64_t verified           # number of the node's fences when it was last asked for the volume's
    cdef void write_run(
        self, Transfer* transfer, Replica* replica, uint32_t block, const char* data, uint32_t blocks
    ) noexcept nogil

# A member for each of this node's stores, numbered from 0 on. reactor: the log's. volume: 16 bytes.
cdef list local_members(Reactor reactor, list stores, bytes volume)
