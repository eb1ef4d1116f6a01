# Flushes of one device's volatile write cache. See store/device_flusher.pyx.

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters

cdef class DeviceFlusher:            # DeviceFlusher(home, device, volatile_cache)
    cdef readonly int failed         # errno of the failed flush, never reset; 0: none. Read by other threads, too
    cdef Reactor home
    cdef int device                  # the Io's device number
    cdef bint volatile_cache
    cdef bint flushing
    cdef Operation operation         # the flush under way
    cdef Waiters served              # waiters of the flush under way
    cdef Waiters following           # waiters of the next flush
    cdef void* owner
    cdef void (*on_failure)(void* owner) noexcept nogil      # once, on the home reactor

    # `when` completes with 0 once every write completed before this call is on stable media, or with a negative errno;
    # perhaps before this returns. On the home reactor.
    cdef void flush(self, Operation* when) noexcept nogil
    cdef int wait_flushed(self) noexcept nogil                       # the same in a task there: 0 or a negative errno
    cdef int wait_flushed_from(self, Reactor caller) noexcept nogil  # ... in a task of any reactor
    cdef void begin(self) noexcept nogil
    cdef void end(self) noexcept nogil
