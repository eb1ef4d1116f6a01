# Damage in a life in the simulated world that no device tells of. See simulation/damage.pyx.

from iomesh.engine.simulation.run cimport Life
from iomesh.engine.simulation.simulated_volume cimport Tenant

# A block of a sealed segment is not any more what it was, by rot or by a write that went astray.
cdef void damage(Life life, Tenant tenant) noexcept nogil
cdef void lead_astray(Life life, Tenant tenant) noexcept nogil      # the next write to the log's segment
cdef void notice_strays(Life life) noexcept nogil        # ... went there by now: whatever fails may fail for that
cdef void miss_stray(Tenant tenant) noexcept nogil       # before the judge is told of a crash: whether it may have lost what was promised
cdef void leave_stray(Tenant tenant) noexcept nogil      # the volume is open again, or closed for good: does something lack it still?
# Whether a volume may be refused. One that lacks nothing but what went astray may, if something shows that this was stable once.
cdef bint refusal_is_due(Tenant tenant) noexcept nogil
cdef void forget_strays(Tenant tenant) noexcept nogil    # the volume is gone, and all that lacked any with it
