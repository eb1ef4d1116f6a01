# Stable media for one log. See log/flusher.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport Waiters

cdef class Flusher:
    cdef Io io
    cdef uint64_t* counters
    cdef uint64_t committed          # the newest record that is committed
    cdef uint64_t stable             # the newest one known to be on stable media
    cdef uint64_t volatile           # a bit per device number that has a volatile cache
    cdef uint64_t dirty              # ... and was written since it was flushed
    cdef Operation operations[64]    # by device number
    cdef uint32_t left               # of the flush under way; 0: none is
    cdef int error
    cdef uint64_t target             # what will be stable when it is done
    cdef Waiters served              # by the flush under way
    cdef Waiters following           # came later: the next one serves them

    cdef void commits(self, uint64_t sequence, int device) noexcept nogil
    cdef void flush(self, Operation* when) noexcept nogil          # done once all that is committed is on stable media; it may be before this returns
    cdef void start(self) noexcept nogil
    cdef void step(self, Operation* operation) noexcept nogil
