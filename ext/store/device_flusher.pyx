# Flushes of one device's volatile write cache, for all its writers: the store's journal, compaction, every volume's
# log.
#
# Always true:
#   - at most one flush of a device is in flight; requests that arrive meanwhile share the next one. So the writes that
#     a failed flush covered are known: all that were complete, and not yet stable, when it began;
#   - a later success does not repair a failed flush: the device may have dropped its cached data, or may still hold it,
#     whatever it reports. All flushes fail until the store is opened again, and the store is read-only (`on_failure`);
#   - a device without a volatile cache needs no flush.
#
# docs/decisions/0019-a-failed-flush-is-final.md. Called by store, journal, flusher, open_segments and recovery.

from libc.stdint cimport int64_t

from iomesh.engine.base.atomics cimport store_int
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.base.task cimport join, wait, waited, wake_all


cdef class DeviceFlusher:
    """home: the reactor on which it flushes. device: the Io's device number."""

    def __cinit__(self, Reactor home, int device, bint volatile_cache):
        self.home, self.device, self.volatile_cache = home, device, volatile_cache
        self.operation.done = flush_ended
        self.operation.owner = <void*>self

    cdef void flush(self, Operation* when) noexcept nogil:
        if self.failed or not self.volatile_cache:
            when.result = -self.failed
            when.done(when)
        elif self.flushing:
            join(&self.following, when)
        else:
            join(&self.served, when)
            self.begin()

    cdef int wait_flushed(self) noexcept nogil:
        cdef Operation operation
        waited(&operation)
        self.flush(&operation)
        return <int>wait(&operation)

    cdef int wait_flushed_from(self, Reactor caller) noexcept nogil:
        return <int>call_on(self.home, caller, flush_body, <void*>self)

    cdef void begin(self) noexcept nogil:
        self.flushing = True
        self.home.io.flush(&self.operation, self.device)

    cdef void end(self) noexcept nogil:
        cdef Waiters told = self.served, failed
        cdef int error = <int>min(self.operation.result, 0)
        self.flushing = False
        self.served = self.following
        self.following.first = self.following.last = NULL
        failed.first = failed.last = NULL
        if error and not planted(b"flush_retried"):
            store_int(self.failed, -error)
            failed = self.served
            self.served.first = self.served.last = NULL
            self.on_failure(self.owner)
        elif self.served.first is not NULL:
            self.begin()
        wake_all(&told, error)
        wake_all(&failed, error)


cdef void flush_ended(Operation* operation) noexcept nogil:
    (<DeviceFlusher>operation.owner).end()


cdef int64_t flush_body(void* flusher) noexcept nogil:
    return (<DeviceFlusher>flusher).wait_flushed()
