# A store as peers use it: what requests of the peer protocol do to it, in which order. See replicas/served_store.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.format.peer cimport PeerRequest
from iomesh.engine.replicas.pull cimport Puller, Sources
from iomesh.engine.store.bitmaps cimport Bitmaps
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.store.leases cimport Leases
from iomesh.engine.store.store cimport Store

cdef enum:
    STORES_SERVED_MAX = 256          # of one node

cdef struct StoreRequest:            # must not move until `done`
    # set by the caller, before begin():
    PeerRequest frame                # valid, and of a WRITE its payload, too
    char* buffer                     # block-aligned: a WRITE's payload; room for what READ, LIST and HEARTBEAT return
    void (*done)(StoreRequest* request) noexcept nogil    # once, on the store's home; perhaps before begin() returns
    void* owner
    bint abandoned                   # set by any reactor: nobody waits for its end any more
    # when it is done:
    int result                       # 0 or a negative errno
    uint32_t count                   # entries in `buffer`, of LIST and HEARTBEAT, which adds one to what the caller set
    bint more                        # LIST: there are entries behind them
    uint64_t fence                   # of the volume: LIST, -ESTALE
    bint unmapped                    # of a volume's I/O: no block is mapped
    # of the store:
    void* served                     # ServedStore
    StoreRequest* next               # among those under way, or those that wait
    StoreRequest* previous
    Operation operation
    uint32_t moved                   # blocks transferred
    bint listed                      # it is among those under way

cdef class ServedStore:              # ServedStore(store, bitmaps, sources): an open store; bitmaps, sources of its home
    cdef readonly uint32_t number    # of the device in the cluster
    cdef readonly uint64_t requests
    cdef Store store
    cdef Bitmaps bitmaps
    cdef readonly Puller puller
    cdef Reactor home
    cdef Io io
    cdef StoreRequest* under_way[64]         # by volume: requests that others may have to wait for
    cdef StoreRequest* waiting               # for these, oldest first
    cdef StoreRequest* waiting_last
    cdef uint32_t changes                    # under way or waiting, other than READ and WRITE
    cdef uint32_t unfinished                 # requests of any kind
    cdef bint starting                       # in start_waiting() ...
    cdef bint start_again                    # ... and a request ended meanwhile
    cdef bint stopping
    cdef Operation* stopped

    # On the store's home; so are all other methods.
    cdef void begin(self, StoreRequest* request) noexcept nogil
    # Requests are refused from now on; `when` completes once none is unfinished. Once. The store is first removed from
    # the ServedStores of all reactors; then this is called by a message to the home, behind their last requests.
    cdef void stop(self, Operation* when) noexcept nogil
    cdef void run(self, StoreRequest* request) noexcept nogil
    cdef void finish(self, StoreRequest* request, int result) noexcept nogil
    cdef bint must_wait(self, const StoreRequest* request) noexcept nogil
    cdef void start_waiting(self) noexcept nogil
    cdef int write_refusal(self, const StoreRequest* request, const Replica* replica) noexcept nogil
    cdef void write_on(self, StoreRequest* request) noexcept nogil
    cdef void read_on(self, StoreRequest* request) noexcept nogil
    cdef int change(self, const StoreRequest* request) noexcept nogil
    cdef int compact(self, Replica* replica, const uint64_t* live) noexcept nogil
    cdef int pull(self, const StoreRequest* request, const Replica* replica) noexcept nogil
    cdef bint lacks_records(self, const PeerRequest* frame, const Replica* replica) noexcept nogil
    cdef int seal(self, const PeerRequest* frame, Replica* replica) noexcept nogil
    cdef int list(self, StoreRequest* request) noexcept nogil
    cdef void state_into(self, StoreRequest* request) noexcept nogil

cdef class ServedStores:             # of a node, as one reactor knows them; used on that reactor alone
    cdef readonly uint32_t count
    cdef Leases leases                       # of the node; None: it gives none
    cdef void* stores[STORES_SERVED_MAX]     # ServedStore; the caller keeps them alive
    cdef bint add(self, ServedStore store) noexcept nogil             # False: there are too many
    # No request of this reactor is begun on it from now on.
    cdef void remove(self, ServedStore store) noexcept nogil
    cdef void* find(self, uint32_t device) noexcept nogil             # by its number in the cluster; NULL: not here
