# Flushes for one log: tracks which devices hold committed records only in their volatile caches, and up to which
# record the log is stable.
#
# Always true:
#   - a flush makes stable what was committed when it began; requests that arrive while one is under way share the next;
#   - a device whose flush has failed is never flushed again: a later success would prove nothing
#     (store/device_flusher.pyx). The log moves its data to another device (on_failure) and the flush restarts. If the
#     log cannot move it, this flush and all later ones fail.
#
# On devices without a volatile cache, committed records are stable at once and a flush costs nothing.

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.counters cimport DEVICE_FLUSHES
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport Waiters, join, start as start_task, wake_all
from iomesh.engine.store.store cimport Store


cdef class Flusher:
    """reactor: the log's. stores: list of the Stores that may hold its records. Raises MemoryError."""

    def __cinit__(self, Reactor reactor, list stores):
        cdef uint32_t i
        self.reactor, self.store_list = reactor, stores
        self.store_count = len(stores)
        self.stores = <StoreFlush*>calloc(self.store_count, sizeof(StoreFlush))
        if self.stores is NULL:
            raise MemoryError("no memory for the flushes of a log")
        for i in range(self.store_count):
            self.stores[i].operation.done = store_flushed
            self.stores[i].operation.owner = <void*>self
            self.stores[i].store = <void*>stores[i]
            self.stores[i].caller = <void*>reactor
            self.stores[i].volatile_cache = (<Store>stores[i]).volatile_cache
            self.any_volatile |= self.stores[i].volatile_cache

    def __dealloc__(self):
        release(self.stores)

    cdef void commits(self, uint64_t sequence, uint32_t store) noexcept nogil:
        """Record `sequence` is committed; it was written to store number `store`."""
        self.committed = sequence
        if not self.any_volatile:
            self.stable = sequence
        else:
            self.stores[store].dirty |= self.stores[store].volatile_cache

    cdef void flush(self, Operation* when) noexcept nogil:
        if self.left:
            join(&self.following, when)
            return
        join(&self.served, when)
        self.start()

    cdef void start(self) noexcept nogil:
        cdef StoreFlush* flush
        cdef uint32_t i
        cdef bint asked
        self.target = self.committed
        self.failed = 0
        self.left = 1                            # held by this loop
        for i in range(self.store_count):
            flush = &self.stores[i]
            asked = flush.dirty and not planted(b"flush_skipped")
            flush.dirty = flush.failed = False
            if asked:
                self.left += 1
                self.counters[DEVICE_FLUSHES] += 1
                if (<Store>flush.store).home is self.reactor:
                    (<Store>flush.store).flusher.flush(&flush.operation)
                else:
                    start_task(flush_there_body, flush, &flush.operation)
        self.step(NULL)

    cdef void step(self, Operation* operation) noexcept nogil:
        """One device of the flush has finished, or the loop in start() has."""
        if operation is not NULL and operation.result < 0:
            (<StoreFlush*>operation).failed = True
            self.failed += 1
        self.left -= 1
        if self.left:
            return
        if self.failed and not planted(b"flush_retried"):
            self.left = 1                        # until settled()
            self.on_failure(self.log)
            return
        if self.failed == 0:
            self.stable = max(self.stable, self.target)
        self.set_failed_dirty(True)
        self.end(-EIO if self.failed else 0)

    cdef void settled(self, int error) noexcept nogil:
        if error:
            self.set_failed_dirty(True)
            self.end(error)
        else:
            self.set_failed_dirty(False)         # what was written there since has been moved, too
            self.start()

    cdef void set_failed_dirty(self, bint dirty) noexcept nogil:
        cdef uint32_t i
        for i in range(self.store_count):
            if self.stores[i].failed:
                self.stores[i].dirty = dirty

    cdef void end(self, int error) noexcept nogil:
        cdef Waiters told = self.served
        self.left = 0
        self.served = self.following
        self.following.first = self.following.last = NULL
        if self.served.first is not NULL:
            self.start()
        wake_all(&told, error)


cdef void store_flushed(Operation* operation) noexcept nogil:
    (<Flusher>operation.owner).step(operation)


cdef int64_t flush_there_body(void* argument) noexcept nogil:
    cdef StoreFlush* flush = <StoreFlush*>argument
    return (<Store>flush.store).flusher.wait_flushed_from(<Reactor>flush.caller)
