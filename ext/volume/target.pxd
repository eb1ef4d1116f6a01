# What an export reads and writes: a volume of this node (volume/volume.pyx), or one that another node owns
# (exports/forwarding/forwarded_volume.pyx).
#
# All calls are made on its reactor. None of them calls back before it returns: `finished`, `done` and `when` are called
# in a later turn or at the end of this one. If `when` completes with a negative result, do not retry: the request
# failed with that error.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.log.request cimport Read, Request

cdef extern from *:
    r"""
    /* Exchanges two attributes of one object: no reference is counted, so it needs no lock. */
    #define iomesh_exchange(one, other) do { \
        PyObject* kept = (PyObject*)(one); \
        *(PyObject**)&(one) = (PyObject*)(other); \
        *(PyObject**)&(other) = kept; \
    } while (0)
    """
    void exchange "iomesh_exchange" (Target one, Target other) noexcept nogil

cdef class Target:
    cdef uint8_t identity[16]        # its own, or the snapshot's
    cdef Reactor reactor
    cdef Io io
    cdef Pool pool
    cdef uint64_t blocks             # its size
    cdef bint lost                   # a volume of this node that another one has taken over
    cdef uint64_t* counters          # COUNTERS of them, see base/counters.pxd
    cdef uint64_t* latencies         # histograms, see base/counters.pxd
    cdef void* connection_list       # NbdConnection
    cdef uint32_t connections        # these, and those of other nodes
    cdef Waiters connections_changed    # or readings

    # Writes `count` whole blocks. Returns how many were accepted (from the front, at least 1); 0: none now, `when`
    # completes when to try again; or a negative errno (ENOSPC, EIO, ESHUTDOWN). `data` is copied before it returns.
    cdef int64_t write(
        self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when
    ) noexcept nogil
    # Writes bytes inside one block (start + bytes <= 4096) as read, merge, write; serialised with every other write to
    # that block. 1: accepted; 0 and errors as above. `data` NULL: zeros.
    cdef int64_t merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data, Operation* when
    ) noexcept nogil
    # Unmaps blocks (trim, write-zeroes). Returns how many were handled, from the front; unmapped blocks cost nothing. 0
    # and errors as above.
    cdef int64_t zero(self, Request* request, uint64_t block, uint64_t count, Operation* when) noexcept nogil
    # The request has no more parts: `finished` is called once all its parts are acknowledged (and stable, if
    # requested).
    cdef void complete(self, Request* request) noexcept nogil
    # Calls `finished` once everything acknowledged before this call is on stable media.
    cdef void flush(self, Request* request) noexcept nogil
    # Reads and verifies read.count blocks into read.into, all under one leaf of the map (block // 256 is the same);
    # then calls read.done.
    cdef void read(self, Read* read) noexcept nogil
    # Length of the run from `block`, at most `most`, that is all mapped or all unmapped; 0 and errors as above. Reads
    # map nodes only.
    cdef int64_t alike(self, uint64_t block, uint64_t most, bint* mapped, Operation* when) noexcept nogil
    # Prefetches the leaf of a block for a write that follows.
    cdef void expect(self, uint64_t block) noexcept nogil
    # The client of these requests has left (Request.session, Read.session). What waits for another node ends with
    # ESHUTDOWN, in a later turn; what is under way ends as always.
    cdef void abandon(self, void* session) noexcept nogil
    # Of the heir of a volume that another node has taken over: parts that never commit there become parts of a request
    # to this one, in addition to those that the request has. `data` is copied.
    # False: there is no memory for all of it.
    cdef bint inherit_write(self, Request* request, uint64_t block, uint32_t count, const char* data) noexcept nogil
    cdef bint inherit_zero(self, Request* request, uint64_t block, uint64_t count) noexcept nogil
    cdef bint inherit_merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data
    ) noexcept nogil
