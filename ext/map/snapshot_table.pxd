# The snapshot table of one volume, in memory. See map/snapshot_table.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.base.log_clock cimport LogClock
from iomesh.engine.format.layout cimport Pointer, SnapshotEntry
from iomesh.engine.map.segment_table cimport SegmentTable

cdef struct Snapshot:
    SnapshotEntry entry
    uint32_t readers                 # number of times it is open for reading; not deleted while above 0

cdef struct SnapshotRequest:                    # a snapshot to create; must not move until it is created or withdrawn
    SnapshotEntry entry              # the caller sets id, name and flags; the rest is set at creation
    bint made
    SnapshotRequest* next

cdef class SnapshotTable:
    cdef Snapshot* all
    cdef uint32_t count
    cdef uint32_t room
    cdef uint8_t head_parent[16]     # the snapshot from which the head's map evolved; zero: none
    cdef uint64_t version            # number of changes; ...
    cdef uint64_t durable            # ... changes up to this one are in the newest checkpoint
    cdef bint walked                 # a DYING snapshot was removed, but the newest checkpoint still has it
    cdef SnapshotRequest* snapshot_requests     # oldest first
    cdef uint64_t oldest_mark     # in the newest checkpoint: sequence of the oldest restore point not deleted; ~0: none
    # the table for the checkpoint that is being written
    cdef SnapshotEntry* frozen
    cdef uint32_t frozen_count
    cdef uint32_t frozen_made        # the number of new snapshots, at its end
    cdef uint64_t frozen_version
    cdef bint frozen_walked
    cdef uint8_t frozen_parent[16]   # the head's parent
    cdef SnapshotEntry* frozen_dying    # the one that becomes DYING with it; NULL: none
    cdef uint64_t frozen_mapped      # the head's counts after the checkpoint (SegmentTable)
    cdef uint64_t frozen_inherited
    cdef uint64_t frozen_exclusive
    cdef uint64_t frozen_disowned    # to subtract from the first new snapshot's `own`: a walk has ended meanwhile
    cdef bint successor_pending      # frozen_dying's successor is the map that is being written

    cdef Snapshot* find(self, const uint8_t* id) noexcept nogil
    cdef SnapshotEntry* dying(self) noexcept nogil                             # the DYING snapshot; NULL: none
    cdef uint64_t newest_cut(self) noexcept nogil    # no snapshot has a block at or above this address
    cdef int reserve(self, uint32_t more) noexcept nogil
    cdef int add(self, const SnapshotEntry* entry) noexcept nogil              # 0 or -ENOMEM
    cdef void remove(self, const uint8_t* id) noexcept nogil                   # its children become its parent's
    cdef void changed(self) noexcept nogil
    # The walk of the DYING snapshot found `alone` blocks that only it has: subtracts them from its heir.
    cdef void disown(self, uint64_t alone, SegmentTable head) noexcept nogil
    # Number of data blocks of this volume's log that the head or a snapshot references.
    cdef uint64_t held(self, SegmentTable head) noexcept nogil
    # Sets the head's parent, read from a device, after the entries. NULL, or why they are inconsistent.
    cdef const char* adopt(self, const uint8_t* head_parent, uint64_t data_pin, uint64_t node_pin) noexcept nogil
    # -EEXIST: id or name is in use; -ENOSPC: the table is full
    cdef int snapshot_request(self, SnapshotRequest* snapshot_request) noexcept nogil
    cdef void withdraw(self, SnapshotRequest* snapshot_request) noexcept nogil
    cdef bint are_all_marks(self) noexcept nogil    # all visible snapshots are restore points, and there is one
    cdef Snapshot* unsettled(self) noexcept nogil                      # the head's parent if it is UNSETTLED; else NULL
    cdef uint32_t clones(self, const uint8_t* id) noexcept nogil
    cdef bint may_die(self, const SnapshotEntry* entry) noexcept nogil         # by the current table
    # For a checkpoint: freeze() begins when everything is committed, ...
    cdef int freeze(
        self, uint64_t sequence, const LogClock* clock, uint64_t size_bytes, uint64_t data_cut, SegmentTable head
    ) noexcept nogil
    cdef uint64_t marked_ns(self) noexcept nogil    # log time of the restore point that it creates; 0: none
    # ... receives the written map's root, ...
    cdef void map_written(self, Pointer root, uint64_t node_cut) noexcept nogil
    cdef uint64_t data_pin(self) noexcept nogil                                # (the cuts of the head's future parent)
    cdef uint64_t node_pin(self) noexcept nogil
    cdef void moved(self) noexcept nogil    # ... and then the checkpoint either takes effect ...
    cdef void thaw(self) noexcept nogil                                      # ... or not; both discard the frozen table

cdef bint same_id(const uint8_t* a, const uint8_t* b) noexcept nogil
cdef bint is_zero_id(const uint8_t* id) noexcept nogil
