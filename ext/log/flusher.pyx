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
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.counters cimport DEVICE_FLUSHES
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport Waiters, join, wake_all
from iomesh.engine.replicas.member cimport Member


cdef class Flusher:
    """members: list of the Members that may hold the log's records; the log keeps them alive. Raises MemoryError."""

    def __cinit__(self, list members):
        cdef uint32_t i
        self.member_count = len(members)
        self.members = <MemberFlush*>calloc(self.member_count, sizeof(MemberFlush))
        if self.members is NULL:
            raise MemoryError("no memory for the flushes of a log")
        for i in range(self.member_count):
            self.members[i].operation.done = member_flushed
            self.members[i].operation.owner = <void*>self
            self.members[i].member = <void*>members[i]
            self.members[i].volatile_cache = (<Member>members[i]).volatile_cache
            self.any_volatile |= self.members[i].volatile_cache

    def __dealloc__(self):
        release(self.members)

    cdef void commits(self, uint64_t sequence, uint32_t member) noexcept nogil:
        """Record `sequence` is committed; it was written to member number `member`."""
        self.committed = sequence
        if not self.any_volatile:
            self.stable = sequence
        else:
            self.members[member].dirty |= self.members[member].volatile_cache

    cdef void flush(self, Operation* when) noexcept nogil:
        if self.left:
            join(&self.following, when)
            return
        join(&self.served, when)
        self.start()

    cdef void start(self) noexcept nogil:
        cdef MemberFlush* flush
        cdef uint32_t i
        cdef bint asked
        self.target = self.committed
        self.failed = 0
        self.left = 1                            # held by this loop
        for i in range(self.member_count):
            flush = &self.members[i]
            asked = flush.dirty and not planted(b"flush_skipped")
            flush.dirty = flush.failed = False
            if asked:
                self.left += 1
                self.counters[DEVICE_FLUSHES] += 1
                (<Member>flush.member).flush(&flush.operation)
        self.step(NULL)

    cdef void step(self, Operation* operation) noexcept nogil:
        """One device of the flush has finished, or the loop in start() has."""
        if operation is not NULL and operation.result < 0:
            (<MemberFlush*>operation).failed = True
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
        for i in range(self.member_count):
            if self.members[i].failed:
                self.members[i].dirty = dirty

    cdef void end(self, int error) noexcept nogil:
        cdef Waiters told = self.served
        self.left = 0
        self.served = self.following
        self.following.first = self.following.last = NULL
        if self.served.first is not NULL:
            self.start()
        wake_all(&told, error)


cdef void member_flushed(Operation* operation) noexcept nogil:
    (<Flusher>operation.owner).step(operation)
