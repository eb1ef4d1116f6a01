# Damage in a life in the simulated world that no device tells of. See damage.pyx.

from iomesh.engine.life cimport Life
from iomesh.engine.tenant cimport Tenant

# A block of a sealed segment is not any more what it was, by rot or by a write that went astray.
cdef void damage(Life life, Tenant tenant) noexcept nogil
cdef void lead_astray(Life life, Tenant tenant) noexcept nogil      # the next write to the log's segment
cdef void notice_stray(Life life) noexcept nogil         # ... went there by now: whatever fails may fail for that
# The process has died, or the power was cut: what the judge is told of it.
cdef void doubt_stray(Tenant tenant, bint power) noexcept nogil
