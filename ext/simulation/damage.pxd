# Silent damage in a simulation run: errors that no device reports. See simulation/damage.pyx.

from iomesh.engine.simulation.run cimport RunState
from iomesh.engine.simulation.simulated_volume cimport SimulatedVolume

# Damages a block of a sealed segment, by rot or by a misdirected write.
cdef void damage(RunState run, SimulatedVolume simulated) noexcept nogil
# Arms a stray write: the next write to the open segment.
cdef void lead_astray(RunState run, SimulatedVolume simulated) noexcept nogil
cdef void notice_strays(RunState run) noexcept nogil         # it has happened: later errors may be due to it
cdef void miss_stray(SimulatedVolume simulated) noexcept nogil    # call before the oracle's crashed()
cdef void leave_stray(SimulatedVolume simulated) noexcept nogil   # the volume was opened again, or closed for good
# Whether a volume may be refused. If it lacks only a stray write, it may if something shows that the write was stable.
cdef bint refusal_is_due(SimulatedVolume simulated) noexcept nogil
cdef void forget_strays(SimulatedVolume simulated) noexcept nogil  # the volume was deleted, with all its segments
