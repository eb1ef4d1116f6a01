# A pace for work that has time: so many bytes a second, and less while users are there. See pace.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.compaction cimport Pace
from iomesh.engine.reactor cimport Reactor

cdef class TokenBucket:              # of one piece of work at a time
    cdef Pace pace                   # what is handed to the work
    cdef uint64_t bytes_per_second   # 0: it holds nothing back
    cdef uint32_t share              # percent of it, while users' requests come
    cdef bint hurried                # nothing is held back until the next start(): set from any thread
    cdef bint* stopping              # once it is set the work is given up; NULL: nobody stops it
    cdef void* at                    # the Reactor in whose task it is asked
    cdef void** reactors             # whose users it gives way to
    cdef int reactor_count
    cdef double tokens               # bytes; below 0: owed
    cdef int64_t filled_ns
    cdef uint64_t waits

    cdef void start(self, uint64_t bytes_per_second, uint32_t share) noexcept nogil
    cdef bint users_there(self, int64_t now_ns) noexcept nogil
    cdef int step(self, uint32_t bytes) noexcept nogil

# The work goes on in a task of another reactor. NULL and a pace of another kind are none of its business.
cdef void move_to(Pace* pace, Reactor reactor) noexcept nogil
