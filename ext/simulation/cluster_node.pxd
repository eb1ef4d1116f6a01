# One node of a simulated cluster. See simulation/cluster_node.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.map.map cimport MapCache
from iomesh.engine.replicas.pull cimport Sources
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.replicas.served_store cimport ServedStore, ServedStores
from iomesh.engine.replicas.server cimport Server
from iomesh.engine.simulation.cluster_run cimport NODE_REACTORS, NODE_STORES, NODES_MAX, ClusterRun
from iomesh.engine.simulation.world cimport WorldIo
from iomesh.engine.store.leases cimport Leases
from iomesh.engine.store.store cimport Store

cdef enum NodeState:
    NODE_DOWN, NODE_BOOTING, NODE_UP

cdef struct Link:                    # the connection from one reactor to another node, as its client
    void* node
    int reactor
    int other
    Operation step                   # what its task waits for
    bint wants                       # Python is to make a connection
    bint attached

cdef class ServedPeer:               # a connection from another node, as engine and daemon serve it
    cdef Server server
    cdef bint begun
    cdef bint ending
    cdef bint over
    cdef void* following             # the ServedPeer that begins when this one is over

    cdef void begin(self) noexcept nogil
    cdef void end(self) noexcept nogil
    cdef void is_over(self) noexcept nogil

cdef class ClusterNode:
    cdef ClusterRun run
    cdef readonly int number
    cdef NodeState state
    cdef uint64_t boot               # differs after each power cut
    cdef int64_t drift_ppm
    cdef int64_t paused_until_ns     # 0: it runs
    cdef int64_t up_at_ns            # when it starts again
    cdef int store_count
    cdef int devices[NODE_STORES]    # of the world; the number in the cluster is one higher
    cdef uint64_t dropped            # how often these have dropped their caches, as far as was noticed
    cdef uint64_t dropped_at         # the last time, by the history's clock
    cdef uint64_t dropped_before[NODE_STORES]    # how often, each, when the process began
    cdef list pools
    # of its process
    cdef uint64_t incarnation
    cdef Leases leases
    cdef list ios, reactors, caches, stores, served_stores, knowns, sources, remotes
    cdef void* io_pointers[NODE_REACTORS]        # WorldIo
    cdef void* reactor_pointers[NODE_REACTORS]
    cdef void* store_pointers[NODE_STORES]
    cdef void* known_pointers[NODE_REACTORS]     # ServedStores
    cdef void* remote_pointers[NODE_REACTORS][NODES_MAX]         # RemoteNode; NULL: itself
    cdef Link links[NODE_REACTORS][NODES_MAX]
    cdef dict served_peers           # the newest ServedPeer of each client: (node, its reactor)
    cdef list old_peers              # that are not over
    cdef bint gives_up               # a device does not let it open its store: the process is to end
    cdef bint wants_served           # its stores are open, and Python is to serve them
    cdef Operation settled
    cdef object volume               # SharedVolume; None: it has none
    cdef void* volume_pointer        # the same; NULL

    cdef list numbers(self)          # of its devices, in the cluster
    cdef list describe(self)
    cdef object set_volume(self, volume)
    cdef object format(self)
    cdef object begin(self)          # its process starts
    cdef object serve(self)          # what `wants_served` and the links wait for
    cdef object drop(self)           # its process has ended
    cdef object accept(self, int reactor, int client, int its_reactor, int end)
    cdef void lose_power(self) noexcept nogil            # after a crash of its face, if its process ran
    cdef void notice_drops(self) noexcept nogil          # of its devices' caches: what was not flushed may be lost
    cdef void forget_drops(self) noexcept nogil          # when its process ends
    cdef bint is_alive(self) noexcept nogil
    cdef bint is_paused(self) noexcept nogil
    cdef bint turn(self) noexcept nogil                          # False: it has nothing to do
    cdef bint is_attached_to(self, int reactor, int other) noexcept nogil
