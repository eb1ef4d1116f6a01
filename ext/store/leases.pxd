# The leases that a node gives to the owners of volumes' logs. See store/leases.pyx.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    LEASE_GIVEN_NS = 1500 * 1000 * 1000      # how long a node keeps its word, ...
    LEASE_HELD_NS = 1000 * 1000 * 1000       # ... and how long an owner relies on it: their clocks may differ in rate

cdef class Leases:                   # Leases(now): of one node, used by all its reactors
    cdef uint64_t fences
    cdef int64_t given_ns

    # A lease is given at this time (Io.monotonic_ns). Returns the number of fences so far: it says that there was no
    # further one when the lease was given.
    cdef uint64_t give(self, int64_t now_ns) noexcept nogil
    # The same for the node's own logs, which rely on it for no time at all.
    cdef uint64_t look(self, int64_t now_ns) noexcept nogil
    cdef uint64_t count(self) noexcept nogil
    # A fence is durable. Returns when it may be answered: every lease that did not tell of it has run out.
    cdef int64_t fenced(self) noexcept nogil
