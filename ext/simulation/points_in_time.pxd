# Restore windows in a life in the simulated world. See simulation/points_in_time.pyx.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from iomesh.engine.simulation.simulated_volume cimport Moment, Shot, Tenant

cdef void begin_mark(Tenant tenant) noexcept nogil       # makes one, or lets some go
cdef bint mark_now(Tenant tenant, bint urgent) noexcept nogil            # in a task; False: it could not be made
cdef bint drop_mark(Tenant tenant, Shot* shot) noexcept nogil            # in a task; one that a clone stands on stays, as a snapshot like others
cdef void begin_moment(Tenant tenant) noexcept nogil     # it is kept in mind, once nothing is under way
cdef void keep_moment(Tenant tenant) noexcept nogil      # ... now
cdef void begin_rewind(Tenant tenant) noexcept nogil     # back to a moment, once nothing is under way
cdef void rewind(Tenant tenant) noexcept nogil           # ... now
cdef Moment* any_moment(Tenant tenant) noexcept nogil    # NULL: there is none
cdef Shot* mark_before(Tenant tenant, int64_t at_ns) noexcept nogil      # the mark from which that moment is reached; NULL: there is none
# In a task: takes a volume that stands on a mark of `source` to a moment behind it.
cdef int follow(Tenant tenant, Tenant source, const uint8_t* mark, int64_t at_ns) noexcept nogil
# In a task, before anybody is served: a restore that was under way is undone. 0 or a negative errno.
cdef int undo(Tenant tenant) noexcept nogil
cdef void doubt_moments(Tenant tenant, bint power) noexcept nogil        # the process has ended
cdef void forget_unreachable(Tenant tenant) noexcept nogil
cdef void forget_ambiguous(Tenant tenant) noexcept nogil
cdef bint is_mark(Tenant tenant, const Shot* shot) noexcept nogil
cdef uint64_t sequence_of(Tenant tenant, const Shot* shot) noexcept nogil
