# A volume's snapshots in a life in the simulated world. See simulation/snapshots.pyx.

from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.simulation.simulated_volume cimport (
    GOING_BACK, GOING_NOWHERE, GOING_WAITS, SHOT_DELETING, SHOT_MADE, SHOT_MAKING, SHOT_NONE, SHOT_UNKNOWN, SHOTS, SHOTS_AND_MARKS, Going, Making,
    Shortages, SimulatedSnapshot, SimulatedVolume)

cdef void begin_with_snapshots(SimulatedVolume simulated, int kind) noexcept nogil    # SNAPSHOT, DELETE, LOOK or RESTORE, if there is one for it
cdef bint begin_restore(SimulatedVolume simulated) noexcept nogil
cdef void name_snapshot_request(SnapshotRequest* snapshot_request, const SimulatedSnapshot* shot) noexcept nogil
cdef void hide_request(SimulatedVolume simulated, SnapshotRequest* snapshot_request) noexcept nogil  # of a snapshot that is deleted from its beginning
# In a task. With an error it may still be there after the next beginning: it stays SHOT_DELETING.
cdef void drop_snapshot(SimulatedVolume simulated, SimulatedSnapshot* shot) noexcept nogil
cdef void look_at_all(SimulatedVolume simulated) noexcept nogil   # in a task
cdef void doubt_shots(SimulatedVolume simulated) noexcept nogil   # the process has ended, ...
cdef bint settle_shots(SimulatedVolume simulated) noexcept nogil  # ... and the volume is open again; False: a snapshot is missing, or there is one too many
