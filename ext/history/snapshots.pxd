# What is done with a volume's snapshots: making them, deleting them, going back to one. See history/snapshots.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport SnapshotEntry
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.volume.volume cimport Volume

cdef struct Making:                  # one of several snapshots that are made at one instant
    void* volume                     # Volume, on whatever reactor
    void* caller                     # the reactor of who waits
    SnapshotRequest snapshot_request            # id and name filled in
    bint urgent                      # also without space
    int result
    bint claimed
    Operation ended

# All in tasks on the volume's reactor (make: on the caller's). 0 or a negative errno.

# All of them or none; each volume once, in the order of their identities, so that two callers do not wait for each other. -ENOSPC: one of the
# volumes is without space, and its snapshot is not urgent.
cdef int make_snapshots(Reactor caller, Making* makings, uint32_t count) noexcept nogil
# -ENOENT. hidden: it stays until those that go on from it are gone.
cdef int delete_snapshot(Volume volume, const uint8_t* id, bint* hidden) noexcept nogil
# A mark is a snapshot like others from now on: nothing of the log is kept for it. -ENOENT
cdef int unmark_snapshot(Volume volume, const uint8_t* id) noexcept nogil
# Nobody lets a snapshot go that is held. False: there is none.
cdef bint hold_snapshot(Volume volume, const uint8_t* id) noexcept nogil
cdef void let_snapshot_go(Volume volume, const uint8_t* id) noexcept nogil
# The volume is what it was in this snapshot; `before` is a snapshot of what it was until now. Nobody is connected to it: the caller has set
# volume.restoring. mark: NULL, or one that is made of what it is then, with the same checkpoint; if that is unsettled, nobody connects
# to the volume until another mark is made. -ENOENT, -ENOSPC (there is no space, and `before` is to be kept); after any error the volume is what it was.
cdef int restore_volume(Volume volume, const uint8_t* id, SnapshotRequest* before, SnapshotRequest* mark) noexcept nogil
# In no task: one of the snapshots has begun to die.
cdef void walk_dying(void* volume) noexcept nogil
# A Volume without a log becomes readable as a snapshot of `volume`, which keeps it meanwhile.
cdef int open_snapshot(Volume volume, Volume reading, const uint8_t* id) noexcept nogil
cdef void close_snapshot(Volume volume, Volume reading) noexcept nogil
# A Volume that is about to be recovered becomes a clone of a snapshot of `parent`, on the same reactor; that one stays open and keeps it until the
# clone is closed, and says so. -ENOENT, -ESHUTDOWN.
cdef int branch_off(Volume volume, Volume parent, const uint8_t* id) noexcept nogil
cdef void let_parent_go(Volume volume) noexcept nogil
