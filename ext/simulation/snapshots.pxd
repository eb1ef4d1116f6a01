# A volume's snapshots in a simulation run. See simulation/snapshots.pyx.

from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.simulation.simulated_volume cimport (
    GOING_BACK, GOING_NOWHERE, GOING_WAITS, SHOT_DELETING, SHOT_MADE, SHOT_MAKING, SHOT_NONE, SHOT_UNKNOWN, SHOTS,
    SHOTS_AND_MARKS, Going, Making, Shortages, SimulatedSnapshot, SimulatedVolume
)

# SNAPSHOT, DELETE, LOOK or RESTORE, if there is one for it
cdef void begin_with_snapshots(SimulatedVolume simulated, int kind) noexcept nogil
cdef bint begin_restore(SimulatedVolume simulated) noexcept nogil
cdef void name_snapshot_request(SnapshotRequest* snapshot_request, const SimulatedSnapshot* shot) noexcept nogil
# For a snapshot that is dying from the start.
cdef void hide_request(SimulatedVolume simulated, SnapshotRequest* snapshot_request) noexcept nogil
# In a task. After an error it may still exist in the next process: it stays SHOT_DELETING.
cdef void drop_snapshot(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil
cdef void look_at_all(SimulatedVolume simulated) noexcept nogil   # in a task
cdef void doubt_shots(SimulatedVolume simulated) noexcept nogil   # after a process has ended
# After the volume was opened again; False: a snapshot is missing, or there is one too many.
cdef bint settle_shots(SimulatedVolume simulated) noexcept nogil
