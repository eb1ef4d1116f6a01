# Damage in a life in the simulated world that no device tells of. See simulation/damage.pyx.

from iomesh.engine.simulation.run cimport RunState
from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

# A block of a sealed segment is not any more what it was, by rot or by a write that went astray.
cdef void damage(RunState run, SimulatedVolume simulated) noexcept nogil
cdef void lead_astray(RunState run, SimulatedVolume simulated) noexcept nogil    # the next write to the log's segment
cdef void notice_strays(RunState run) noexcept nogil         # ... went there by now: whatever fails may fail for that
cdef void miss_stray(SimulatedVolume simulated) noexcept nogil    # before the oracle is told of a crash: whether it may have lost what was promised
cdef void leave_stray(SimulatedVolume simulated) noexcept nogil   # the volume is open again, or closed for good: does something lack it still?
# Whether a volume may be refused. One that lacks nothing but what went astray may, if something shows that this was stable once.
cdef bint refusal_is_due(SimulatedVolume simulated) noexcept nogil
cdef void forget_strays(SimulatedVolume simulated) noexcept nogil  # the volume is gone, and all that lacked any with it
