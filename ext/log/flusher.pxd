# Stable media for one log. See log/flusher.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters

cdef enum:
    DEVICES_MAX = 64                 # device numbers

cdef struct DeviceFlush:             # of one device, of the flush under way
    Operation operation
    void* store                      # NULL: none has this number
    void* caller                     # the log's Reactor

cdef class Flusher:                  # Flusher(reactor, stores)
    cdef Reactor reactor
    cdef list store_list             # keeps them alive
    cdef uint64_t* counters
    cdef uint64_t committed          # the newest record that is committed
    cdef uint64_t stable             # the newest one known to be on stable media
    cdef uint64_t volatile           # a bit per device number that has a volatile cache
    cdef uint64_t dirty              # ... and was written since it was flushed
    cdef uint64_t failed             # ... and whose flush has failed, of the flush under way
    cdef DeviceFlush devices[DEVICES_MAX]
    cdef uint32_t left               # of the flush under way; 0: none is
    cdef uint64_t target             # what will be stable when it is done
    cdef Waiters served              # by the flush under way
    cdef Waiters following           # came later: the next one serves them
    cdef void* log
    cdef void (*on_failure)(void* log) noexcept nogil        # a device's flush has failed: call settled() in the end

    cdef void commits(self, uint64_t sequence, int device) noexcept nogil
    cdef void flush(self, Operation* when) noexcept nogil          # done once all that is committed is on stable media; it may be before this returns
    cdef void settled(self, int error) noexcept nogil              # nothing depends on what failed any more; or an error: it always will
    cdef void start(self) noexcept nogil
    cdef void step(self, Operation* operation) noexcept nogil
    cdef void end(self, int error) noexcept nogil
