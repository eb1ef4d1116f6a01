# Brings copies of segments from devices of other nodes to a store. See replicas/pull.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.format.peer cimport ListedReplica, PullRequest
from iomesh.engine.replicas.peer cimport PeerCall
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.scrub cimport Scrubber
from iomesh.engine.store.store cimport Coming, Replica, Store

cdef enum:
    PULLS = 2                        # at once for each store: one is read or verified while the other is written
    PULL_BLOCKS = 64                 # read at once
    SOURCES_MAX = 256                # nodes

cdef class Sources:                  # the other nodes, as one reactor knows them; used on that reactor alone
    cdef uint32_t count
    cdef void* nodes[SOURCES_MAX]    # RemoteNode; the caller keeps them alive
    cdef void add(self, RemoteNode node) noexcept nogil              # one that is known already is not added again
    cdef void* find(self, uint32_t device) noexcept nogil            # RemoteNode that has it; NULL: none that answers

cdef struct Pull:                    # of one segment
    const PullRequest* frame
    const bint* abandoned            # nobody waits for its end any more
    void* puller
    void* source                     # RemoteNode
    Coming coming
    ListedReplica listed             # the segment, as the source lists it
    Replica* replica                 # the copy, until it is kept
    uint32_t stored                  # blocks that it takes on the device
    int64_t begun_ns
    uint64_t paced                   # bytes
    Throttle throttle

cdef class Puller:                   # Puller(store, sources), both of the same reactor
    cdef readonly uint64_t pulled_bytes
    cdef Store store
    cdef Sources sources
    cdef Io io
    cdef char* memory                # 2 x PULL_BLOCKS for each of PULLS
    cdef list kept_verifiers
    cdef void* verifiers[PULLS]      # Scrubber; of the first `idle` nobody uses verifier and memory
    cdef char* buffers[PULLS]
    cdef int idle
    cdef Waiters waiting             # for one of them
    cdef bint stopping

    # In a task, on the store's home. 0: the copy is on stable media, verified, and listed from now on. Or a negative
    # errno, and nothing is changed: ENODEV: no node that answers has the source; ENOENT, ESTALE: the source has no
    # such segment, or not all of it, or a higher epoch than the frame's is known here; EBADMSG: the source's copy is
    # damaged; ENOSPC; EIO; ECONNRESET; ECANCELED.
    cdef int pull(self, const PullRequest* frame, const bint* abandoned) noexcept nogil
    cdef int bring(self, Pull* pull, Scrubber verifier, char* buffer) noexcept nogil
    cdef int look(self, Pull* pull) noexcept nogil
    cdef int copy(self, Pull* pull, char* buffer) noexcept nogil
    cdef void ask(self, Pull* pull, PeerCall* call, uint32_t block, char* into) noexcept nogil
    cdef int verify(self, Pull* pull, Scrubber verifier) noexcept nogil
    cdef int keep(self, Pull* pull) noexcept nogil
    cdef int step(self, Pull* pull, uint32_t bytes) noexcept nogil
    cdef int may_go_on(self, const Pull* pull) noexcept nogil
