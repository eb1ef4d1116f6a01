# Flushes for one log. See log/flusher.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.replicas.member cimport MEMBERS_MAX
from iomesh.engine.base.task cimport Waiters

cdef struct MemberFlush:             # one member's part of the flush under way
    Operation operation              # its first field
    void* member                     # Member
    bint volatile_cache
    bint dirty                       # written since the last flush
    bint failed                      # its flush has failed

cdef class Flusher:                  # Flusher(members)
    cdef uint64_t* counters
    cdef uint64_t committed          # the newest committed record
    cdef uint64_t stable             # the newest record known to be on stable media
    cdef bint any_volatile           # a member has a volatile cache
    cdef bint any_dirty              # ... and a record was written there
    cdef MemberFlush* members[MEMBERS_MAX]
    cdef uint32_t member_count
    cdef uint32_t failed             # members whose part of the flush under way has failed
    cdef uint32_t left               # parts of the flush under way that have not finished; 0: no flush
    cdef uint64_t target             # the newest record that will be stable when it is done
    cdef Waiters served              # waiters of the flush under way
    cdef Waiters following           # waiters of the next flush
    cdef void* log
    cdef void (*on_start)(void* log) noexcept nogil          # of a flush
    cdef void (*on_failure)(void* log) noexcept nogil        # a device's flush has failed: the log must call settled()

    cdef bint add_member(self, void* member) noexcept nogil         # False: no memory, or there are too many
    cdef void commits(self, uint64_t sequence) noexcept nogil
    cdef void wrote(self, uint32_t member) noexcept nogil         # before commits(): the record was written there
    # done once all committed records are stable, perhaps before this returns
    cdef void flush(self, Operation* when) noexcept nogil
    # 0: nothing depends on the failed devices any more; or an error: something does
    cdef void settled(self, int error) noexcept nogil
    cdef void start(self) noexcept nogil
    cdef void step(self, Operation* operation) noexcept nogil
    cdef void set_failed_dirty(self, bint dirty) noexcept nogil
    cdef void end(self, int error) noexcept nogil
