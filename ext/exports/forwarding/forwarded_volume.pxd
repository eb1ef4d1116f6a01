# A volume that another node owns, as this node's exports use it. See exports/forwarding/forwarded_volume.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.replicas.peer cimport PeerCall
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.volume.target cimport Target

cdef enum:
    FORWARDS_MAX = 128               # requests of one volume that are not answered yet; further ones wait
    FORWARD_BLOCKS = 16              # of one write: each Forward has a buffer for so many
    REPEAT_NS = 20 * 1000 * 1000     # before a request is sent again that the owner could not take

cdef struct Forward:                 # one request to the owner
    PeerCall call                    # first member
    void* volume                     # ForwardedVolume
    Forward* next                    # free; or in `oldest`, ...
    Forward* previous                # ... in the order in which they were accepted
    uint8_t kind                     # PeerKind
    uint8_t flags
    Request* request                 # of a write, merge, zero, flush
    Read* reading
    Operation* when                  # of a status
    void* session
    uint64_t block
    uint64_t blocks
    uint32_t start
    uint32_t bytes
    uint32_t payload                 # bytes of `buffer` that are sent
    uint32_t crc                     # of these
    char* buffer
    bint sent                        # and not answered yet
    bint extra                       # allocated for what was inherited, and released with its end
    bint abandoned                   # nobody waits for the answer: it is not sent again

cdef class ForwardedVolume(Target):  # ForwardedVolume(identity, reactor, pool, blocks)
    cdef readonly RemoteNode node    # the connection to the owner
    cdef Forward* forwards
    cdef char* arena                 # their buffers; pages are allocated on first use
    cdef Forward* free_forwards
    cdef Forward* oldest
    cdef Forward* newest
    cdef readonly uint32_t open      # Forwards in use
    cdef readonly uint64_t repeated  # requests that were sent again
    cdef Waiters room                # for a free Forward
    cdef Request* flushes            # wait for one as well, oldest first
    cdef Request* flushes_last
    cdef Read* reads
    cdef Read* reads_last
    cdef Operation at_turn
    cdef bint asked
    cdef Operation timer             # to send again
    cdef bint timing
    # the newest answer to a status, until it is fetched
    cdef bint status_known
    cdef uint64_t status_block
    cdef uint32_t status_blocks
    cdef bint status_mapped

    cdef void link_ready(self) noexcept nogil            # the owner answers on this connection
    cdef bint is_idle(self) noexcept nogil               # nothing refers to it any more, except its connection
    cdef Forward* take(self, uint8_t kind, uint64_t block, uint64_t blocks) noexcept nogil
    cdef Forward* take_extra(self, uint8_t kind, uint64_t block, uint64_t blocks) noexcept nogil
    cdef void enlist(self, Forward* forward, uint8_t kind, uint64_t block, uint64_t blocks) noexcept nogil
    cdef void fill_merge(self, Forward* forward, uint32_t start, uint32_t bytes, const char* data) noexcept nogil
    cdef void finish(self, Request* request) noexcept nogil
    cdef void add(self, Forward* forward) noexcept nogil
    cdef void send(self, Forward* forward) noexcept nogil
    cdef void send_all(self) noexcept nogil
    cdef void answered(self, Forward* forward) noexcept nogil
    cdef bint must_repeat(self, Forward* forward, int64_t result) noexcept nogil
    cdef void end(self, Forward* forward, int error) noexcept nogil
    cdef void let_in(self) noexcept nogil
    cdef void begin_flush(self, Request* request) noexcept nogil
    cdef void begin_read(self, Read* read) noexcept nogil
    cdef void part_done(self, Request* request, int error) noexcept nogil
    cdef void ask(self) noexcept nogil
    cdef void turn_ended(self) noexcept nogil
    cdef void repeat_later(self) noexcept nogil
    cdef void timer_rang(self) noexcept nogil
