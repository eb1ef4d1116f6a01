# Creating, deleting and restoring a volume's snapshots. See history/snapshots.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport SnapshotEntry
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.volume.volume cimport Volume

cdef struct Making:                  # one of several snapshots created at one instant
    void* volume                     # Volume, on any reactor
    void* caller                     # the caller's reactor
    SnapshotRequest snapshot_request            # id and name filled in
    bint urgent                      # create it even without space
    int result
    bint claimed
    Operation ended

# All in tasks on the volume's reactor (make: on the caller's). 0 or a negative errno.

# Creates all of them or none; each volume once, ordered by identity, so that two callers cannot deadlock. -ENOSPC: one
# of the volumes has no space, and its snapshot is not urgent.
cdef int make_snapshots(Reactor caller, Making* makings, uint32_t count) noexcept nogil
# -ENOENT. hidden: the snapshot is kept, invisible, until its descendants are gone.
cdef int delete_snapshot(Volume volume, const uint8_t* id, bint* hidden) noexcept nogil
# Turns a restore point into an ordinary snapshot: the log is no longer kept for it. -ENOENT
cdef int unmark_snapshot(Volume volume, const uint8_t* id) noexcept nogil
# A held snapshot is not removed. False: there is none.
cdef bint hold_snapshot(Volume volume, const uint8_t* id) noexcept nogil
cdef void let_snapshot_go(Volume volume, const uint8_t* id) noexcept nogil
# Restores the volume to this snapshot; `before` becomes a snapshot of its current state. There are no connections: the
# caller has set volume.restoring. mark: NULL, or a restore point of the restored state, created by the same checkpoint;
# if it is unsettled, no connection is accepted until another restore point is created. -ENOENT, -ENOSPC (no space, and
# `before` is to be kept); after an error the volume is unchanged.
cdef int restore_volume(Volume volume, const uint8_t* id, SnapshotRequest* before, SnapshotRequest* mark) noexcept nogil
# Not in a task: a snapshot has started to die; starts the walk that finds its dead blocks.
cdef void walk_dying(void* volume) noexcept nogil
# Opens a snapshot of `volume` for reading: `reading` is a Volume without a log. The snapshot is held until
# close_snapshot().
cdef int open_snapshot(Volume volume, Volume reading, const uint8_t* id) noexcept nogil
cdef void close_snapshot(Volume volume, Volume reading) noexcept nogil
# Makes a volume that is about to be recovered a clone of a snapshot of `parent`, on the same reactor. The parent stays
# open and holds the snapshot until let_parent_go(). -ENOENT, -ESHUTDOWN.
cdef int branch_off(Volume volume, Volume parent, const uint8_t* id) noexcept nogil
cdef void let_parent_go(Volume volume) noexcept nogil
