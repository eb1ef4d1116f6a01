# A volume's snapshots in a life in the simulated world. See simulation/snapshots.pyx.

from iomesh.engine.map.snapshot_table cimport Wish
from iomesh.engine.simulation.simulated_volume cimport (
    GOING_BACK, GOING_NOWHERE, GOING_WAITS, SHOT_DELETING, SHOT_MADE, SHOT_MAKING, SHOT_NONE, SHOT_UNKNOWN, SHOTS, SHOTS_AND_MARKS, Going, Making,
    Shortages, Shot, Tenant)

cdef void begin_with_snapshots(Tenant tenant, int kind) noexcept nogil       # SNAPSHOT, DELETE, LOOK or RESTORE, if there is one for it
cdef bint begin_restore(Tenant tenant) noexcept nogil
cdef void name_wish(Wish* wish, const Shot* shot) noexcept nogil
cdef void hide_wish(Tenant tenant, Wish* wish) noexcept nogil                # of a snapshot that is deleted from its beginning
# In a task. With an error it may still be there after the next beginning: it stays SHOT_DELETING.
cdef void drop_snapshot(Tenant tenant, Shot* shot) noexcept nogil
cdef void look_at_all(Tenant tenant) noexcept nogil      # in a task
cdef void doubt_shots(Tenant tenant) noexcept nogil      # the process has ended, ...
cdef bint settle_shots(Tenant tenant) noexcept nogil     # ... and the volume is open again; False: a snapshot is missing, or there is one too many
