# Stable media for one log: which devices hold what is committed only in their caches, and how far the log is stable.
#
# Always true: a flush makes stable what was committed when it began; who asks while one is under way is served by the next, together with
# everyone else who asked meanwhile. A failed flush leaves `stable` where it was and its devices dirty.
#
# On devices without a volatile cache what is committed is stable, and a flush costs nothing.

from libc.stdint cimport uint64_t

from iomesh.engine.base.counters cimport DEVICE_FLUSHES
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport Waiters, join, wake_all


cdef class Flusher:
    """volatile: a bit per device number that has a volatile cache."""

    def __cinit__(self, Io io, uint64_t volatile):
        cdef int device
        self.io = io
        self.volatile = volatile
        for device in range(64):
            self.operations[device].done = device_flushed
            self.operations[device].owner = <void*>self

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
        cdef int device
        self.target = self.committed
        self.error = 0
        self.dirty = 0
        self.left = 1                            # held by this loop
        for device in range(64):
            if devices >> device & 1:
                self.left += 1
                self.counters[DEVICE_FLUSHES] += 1
                self.io.flush(&self.operations[device], device)
        self.step(NULL)

    cdef void step(self, Operation* operation) noexcept nogil:
        """One of a flush's devices, or the loop that asked them, is done."""
        cdef Waiters told
        cdef int error
        if operation is not NULL and operation.result < 0:
            self.error = <int>operation.result
            self.dirty |= <uint64_t>1 << operation.target
        self.left -= 1
        if self.left:
            return
        if self.error == 0 and self.target > self.stable:
            self.stable = self.target
        told, error = self.served, self.error
        self.served = self.following
        self.following.first = self.following.last = NULL
        if self.served.first is not NULL:
            self.start()
        wake_all(&told, error)


cdef void device_flushed(Operation* operation) noexcept nogil:
    (<Flusher>operation.owner).step(operation)
