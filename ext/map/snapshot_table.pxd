# The snapshots of one volume: its snapshot table in memory. See map/snapshot_table.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.base.log_clock cimport LogClock
from iomesh.engine.format.layout cimport Pointer, SnapshotEntry
from iomesh.engine.map.segment_table cimport SegmentTable

cdef struct Snapshot:
    SnapshotEntry entry
    uint32_t readers                 # it is open for reading this often, and stays meanwhile

cdef struct SnapshotRequest:                    # a snapshot that is wanted; stays put until it is made or withdrawn
    SnapshotEntry entry              # id and name, and flags, are the asker's; the rest is filled in when it is made
    bint made
    SnapshotRequest* next

cdef class SnapshotTable:
    cdef Snapshot* all
    cdef uint32_t count
    cdef uint32_t room
    cdef uint8_t head_parent[16]     # the snapshot that the head's map grew from; zero: none
    cdef uint64_t version            # counts what changed; ...
    cdef uint64_t durable            # ... all up to this one is in the newest checkpoint
    cdef bint walked                 # one that was DYING is gone, and the newest checkpoint still has it
    cdef SnapshotRequest* snapshot_requests     # oldest first
    cdef uint64_t oldest_mark        # in the newest checkpoint: the sequence of the oldest mark of the restore window that is not deleted; ~0: there is none
    # the table of the checkpoint that is being written
    cdef SnapshotEntry* frozen
    cdef uint32_t frozen_count
    cdef uint32_t frozen_made        # the last ones of it: those wished for
    cdef uint64_t frozen_version
    cdef bint frozen_walked
    cdef uint8_t frozen_parent[16]   # the head's
    cdef SnapshotEntry* frozen_dying    # the one that begins to with it; NULL: none
    cdef uint64_t frozen_mapped      # the head's counts, as they will be with it (SegmentTable)
    cdef uint64_t frozen_inherited
    cdef uint64_t frozen_exclusive
    cdef uint64_t frozen_disowned    # blocks that the first of those made does not have any more: a walk has ended meanwhile
    cdef bint successor_pending      # ... and what grew from it is the map that is being written

    cdef Snapshot* find(self, const uint8_t* id) noexcept nogil
    cdef SnapshotEntry* dying(self) noexcept nogil                             # the one that is; NULL: none
    cdef uint64_t newest_cut(self) noexcept nogil                              # no snapshot has anything at or above this address
    cdef int reserve(self, uint32_t more) noexcept nogil
    cdef int add(self, const SnapshotEntry* entry) noexcept nogil              # 0 or -ENOMEM
    cdef void remove(self, const uint8_t* id) noexcept nogil                   # what grew from it grew from its parent now
    cdef void changed(self) noexcept nogil
    # The walk of the one that is dying has found what it had alone: its heir does not have it.
    cdef void disown(self, uint64_t alone, SegmentTable head) noexcept nogil
    # Blocks of data that the head or a snapshot holds, of its own log.
    cdef uint64_t held(self, SegmentTable head) noexcept nogil
    # The head's parent from a device, once the entries are there. NULL, or why they do not belong together.
    cdef const char* adopt(self, const uint8_t* head_parent, uint64_t data_pin, uint64_t node_pin) noexcept nogil
    # -EEXIST: there is one with this id, or this name; -ENOSPC: the table is full
    cdef int snapshot_request(self, SnapshotRequest* snapshot_request) noexcept nogil
    cdef void withdraw(self, SnapshotRequest* snapshot_request) noexcept nogil
    cdef bint are_all_marks(self) noexcept nogil                               # those that are not HIDDEN, and there are some
    cdef Snapshot* unsettled(self) noexcept nogil                              # the mark that the head goes on from, if it is; else NULL
    cdef uint32_t clones(self, const uint8_t* id) noexcept nogil
    cdef bint may_die(self, const SnapshotEntry* entry) noexcept nogil         # of the table as it is now
    # A checkpoint's: begun when everything is committed, ...
    cdef int freeze(self, uint64_t sequence, const LogClock* clock, uint64_t size_bytes, uint64_t data_cut, SegmentTable head) noexcept nogil
    cdef uint64_t marked_ns(self) noexcept nogil                               # the log time of the mark that it makes; 0: it makes none
    cdef void map_written(self, Pointer root, uint64_t node_cut) noexcept nogil    # ... told what its map has become, ...
    cdef uint64_t data_pin(self) noexcept nogil                                # (the cuts of what will be the head's parent)
    cdef uint64_t node_pin(self) noexcept nogil
    cdef void moved(self) noexcept nogil                                       # ... and then either it counts ...
    cdef void thaw(self) noexcept nogil                                        # ... or it does not; after both it is forgotten

cdef bint same_id(const uint8_t* a, const uint8_t* b) noexcept nogil
cdef bint is_zero_id(const uint8_t* id) noexcept nogil
