# A pace for work that has time: so many bytes a second, and less while users are there. See store/token_bucket.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.base.io cimport Io

cdef class TokenBucket:              # of one piece of work at a time
    cdef Throttle throttle               # what is handed to the work
    cdef uint64_t bytes_per_second   # 0: it holds nothing back
    cdef uint32_t share              # percent of it, while users' requests come
    cdef bint hurried                # nothing is held back until the next start(): set from any thread
    cdef bint* stopping              # once it is set the work is given up; NULL: nobody stops it
    cdef void** reactors             # whose users it gives way to
    cdef int reactor_count
    cdef uint8_t taken               # by who looks into it
    cdef double tokens               # bytes; below 0: owed
    cdef int64_t filled_ns
    cdef uint64_t waits

    # now_ns: the Io's time. While nobody asks.
    cdef void start(self, int64_t now_ns, uint64_t bytes_per_second, uint32_t share) noexcept nogil
    cdef bint users_there(self, int64_t now_ns) noexcept nogil
    cdef int step(self, Io io, uint32_t bytes) noexcept nogil
    cdef int64_t take(self, int64_t now_ns, uint32_t bytes) noexcept nogil
