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
from iomesh.engine.replicas.member cimport MEMBERS_MAX, Member


cdef class Flusher:
    """members: list of the Members that may hold the log's records; the log keeps them alive. Raises MemoryError."""

    def __cinit__(self, list members):
        for member in members:
            if not self.add_member(<void*>member):
                raise MemoryError("no memory for the flushes of a log")

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.member_count):
            release(self.members[i])

    cdef bint add_member(self, void* member) noexcept nogil:
        cdef MemberFlush* added = <MemberFlush*>calloc(1, sizeof(MemberFlush))
        if added is NULL or self.member_count == <uint32_t>MEMBERS_MAX:
            release(added)
            return False
        self.members[self.member_count] = added
        self.member_count += 1
        added.operation.done = member_flushed
        added.operation.owner = <void*>self
        added.member = member
        added.volatile_cache = (<Member>member).volatile_cache
        self.any_volatile |= added.volatile_cache
        return True

    cdef void wrote(self, uint32_t member) noexcept nogil:
        self.members[member].dirty |= self.members[member].volatile_cache
        self.any_dirty |= self.members[member].volatile_cache

    cdef void commits(self, uint64_t sequence) noexcept nogil:
        """Record `sequence` is committed: it was written to all members of its replica set."""
        self.committed = sequence
        if not self.any_dirty:
            self.stable = sequence

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
        if not planted(b"reboot_unnoticed"):
            self.on_start(self.log)
        self.target = self.committed
        self.failed = 0
        self.left = 1                            # held by this loop
        for i in range(self.member_count):
            flush = self.members[i]
            asked = flush.dirty and not planted(b"flush_skipped")
            flush.dirty = flush.failed = False
            if asked:
                self.left += 1
                self.counters[DEVICE_FLUSHES] += 1
                (<Member>flush.member).flush(&flush.operation)
        self.step(NULL)

    cdef void step(self, Operation* operation) noexcept nogil:
        """One device of the flush has finished, or the loop in start() has."""
        if operation is not NULL and operation.result < 0 and not (
            planted(b"copy_flush_ignored") and (<Member>(<MemberFlush*>operation).member).node is not NULL
        ):
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
