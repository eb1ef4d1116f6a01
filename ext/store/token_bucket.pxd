# A throttle for background work: a rate in bytes per second, lower while users are active. See store/token_bucket.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.base.io cimport Io

cdef class TokenBucket:              # for one operation at a time
    cdef Throttle throttle               # passed to the throttled work
    cdef uint64_t bytes_per_second   # 0: unlimited
    cdef uint32_t share              # percent of that rate while users are active
    cdef bint hurried                # unlimited until the next start()
    cdef bint* stopping              # when it is set, the work is aborted; NULL: it cannot be stopped
    cdef void** reactors             # reactors whose users have priority
    cdef int reactor_count
    cdef uint8_t taken               # spin lock
    cdef double tokens               # bytes; negative: debt
    cdef int64_t filled_ns
    cdef uint64_t waits

    # now_ns: the Io's time. Called while no step() runs.
    cdef void start(self, int64_t now_ns, uint64_t bytes_per_second, uint32_t share) noexcept nogil
    cdef void hurry(self) noexcept nogil                 # from any thread
    cdef bint users_there(self, int64_t now_ns) noexcept nogil
    cdef int step(self, Io io, uint32_t bytes) noexcept nogil
    cdef int64_t take(self, int64_t now_ns, uint32_t bytes) noexcept nogil
