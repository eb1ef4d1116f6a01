# Stable media for one log. See log/flusher.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters

cdef struct StoreFlush:              # of one store's device, of the flush under way
    Operation operation              # its first member
    void* store
    void* caller                     # the log's Reactor
    bint volatile_cache
    bint dirty                       # written since it was flushed
    bint failed                      # its flush has

cdef class Flusher:                  # Flusher(reactor, stores)
    cdef Reactor reactor
    cdef list store_list             # keeps them alive
    cdef uint64_t* counters
    cdef uint64_t committed          # the newest record that is committed
    cdef uint64_t stable             # the newest one known to be on stable media
    cdef bint any_volatile           # a store's device has a volatile cache
    cdef StoreFlush* stores
    cdef uint32_t store_count
    cdef uint32_t failed             # stores whose flush has failed, of the flush under way
    cdef uint32_t left               # of the flush under way; 0: none is
    cdef uint64_t target             # what will be stable when it is done
    cdef Waiters served              # by the flush under way
    cdef Waiters following           # came later: the next one serves them
    cdef void* log
    cdef void (*on_failure)(void* log) noexcept nogil        # a device's flush has failed: call settled() in the end

    cdef void commits(self, uint64_t sequence, uint32_t store) noexcept nogil
    cdef void flush(self, Operation* when) noexcept nogil          # done once all that is committed is on stable media; it may be before this returns
    cdef void settled(self, int error) noexcept nogil              # nothing depends on what failed any more; or an error: it always will
    cdef void start(self) noexcept nogil
    cdef void step(self, Operation* operation) noexcept nogil
    cdef void set_failed_dirty(self, bint dirty) noexcept nogil
    cdef void end(self, int error) noexcept nogil
