# What every kind of simulation run has: its draws, the trace of its events, and its first failure. See
# simulation/base_run.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.world cimport World

cdef enum:
    TRACED = 4096                    # the last events that are kept

cdef struct TraceEvent:              # for people
    int64_t now_ns
    const char* words
    int64_t a
    int64_t b
    int64_t c

cdef class BaseRun:
    cdef readonly uint64_t seed
    cdef uint64_t state              # of the draws
    cdef World world
    cdef public bint loud            # every event is printed at once: for a run that ends the process
    cdef bint wrong
    cdef char words[640]             # what is wrong
    cdef TraceEvent events[TRACED]
    cdef uint64_t event_count

    cdef uint64_t draw(self, uint64_t below) noexcept nogil
    cdef bint chance(self, uint32_t of_256) noexcept nogil
    cdef void note(self, const char* words, int64_t a, int64_t b, int64_t c) noexcept nogil
    cdef void fault(self, const char* words, int64_t a, int64_t b) noexcept nogil
