# Stable media for one log: which devices hold what is committed only in their caches, and how far the log is stable.
#
# Always true:
#   - a flush makes stable what was committed when it began; who asks while one is under way is served by the next, together with
#     everyone else who asked meanwhile;
#   - a device whose flush has failed is not asked again: a later success would prove nothing (store/device_flusher.pyx). The log takes what it has
#     there to another device (on_failure), and the flush begins anew; or the log cannot, and the flush fails, as each one will from then on.
#
# On devices without a volatile cache what is committed is stable, and a flush costs nothing.

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint64_t

from iomesh.engine.base.counters cimport DEVICE_FLUSHES
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters, join, start as start_task, wake_all
from iomesh.engine.store.store cimport Store


cdef class Flusher:
    """reactor: the log's. stores: list of Store, those that may hold records of it."""

    def __cinit__(self, Reactor reactor, list stores):
        cdef int device
        self.reactor, self.store_list = reactor, stores
        for device in range(DEVICES_MAX):
            self.devices[device].operation.done = device_flushed
            self.devices[device].operation.owner = <void*>self
            self.devices[device].operation.target = device
            self.devices[device].caller = <void*>reactor
        for store in stores:
            device = (<Store>store).device
            self.devices[device].store = <void*>store
            if (<Store>store).volatile_cache:
                self.volatile |= <uint64_t>1 << device

    cdef void commits(self, uint64_t sequence, int device) noexcept nogil:
        """Record `sequence` is committed; it was written to `device`."""
        self.committed = sequence
        if self.volatile == 0:
            self.stable = sequence
        else:
            self.dirty |= self.volatile & (<uint64_t>1 << device)

    cdef void flush(self, Operation* when) noexcept nogil:
        if self.left:
            join(&self.following, when)
            return
        join(&self.served, when)
        self.start()

    cdef void start(self) noexcept nogil:
        cdef uint64_t devices = 0 if planted(b"flush_skipped") else self.dirty
        cdef DeviceFlush* flush
        cdef int device
        self.target = self.committed
        self.dirty = self.failed = 0
        self.left = 1                            # held by this loop
        for device in range(DEVICES_MAX):
            if devices >> device & 1:
                flush = &self.devices[device]
                self.left += 1
                self.counters[DEVICE_FLUSHES] += 1
                if (<Store>flush.store).home is self.reactor:
                    (<Store>flush.store).flusher.flush(&flush.operation)
                else:
                    start_task(flush_there_body, flush, &flush.operation)
        self.step(NULL)

    cdef void step(self, Operation* operation) noexcept nogil:
        """One of a flush's devices, or the loop that asked them, is done."""
        if operation is not NULL and operation.result < 0:
            self.failed |= <uint64_t>1 << operation.target
        self.left -= 1
        if self.left:
            return
        if self.failed and not planted(b"flush_retried"):
            self.left = 1                        # until settled()
            self.on_failure(self.log)
            return
        if self.failed == 0:
            self.stable = max(self.stable, self.target)
        self.dirty |= self.failed
        self.end(-EIO if self.failed else 0)

    cdef void settled(self, int error) noexcept nogil:
        if error:
            self.dirty |= self.failed
            self.end(error)
        else:
            self.dirty &= ~self.failed           # what was written there since is elsewhere, too
            self.start()

    cdef void end(self, int error) noexcept nogil:
        cdef Waiters told = self.served
        self.left = 0
        self.served = self.following
        self.following.first = self.following.last = NULL
        if self.served.first is not NULL:
            self.start()
        wake_all(&told, error)


cdef void device_flushed(Operation* operation) noexcept nogil:
    (<Flusher>operation.owner).step(operation)


cdef int64_t flush_there_body(void* argument) noexcept nogil:
    cdef DeviceFlush* flush = <DeviceFlush*>argument
    return (<Store>flush.store).flusher.wait_flushed_from(<Reactor>flush.caller)
