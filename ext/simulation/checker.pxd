# The checker: a walk from outside over everything that simulated volumes hold on devices. See simulation/checker.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.store.store cimport Replica, Store
from iomesh.engine.volume.volume cimport Volume
from iomesh.engine.simulation.world cimport World

cdef enum:
    CHECKED_SEGMENTS_MAX = 1024      # segments
    CHECKED_VOLUMES_MAX = 8
    CHECKER_WORDS = 256              # of bits, one per block of a segment

cdef struct Marks:                   # the blocks found in one segment
    uint32_t segment
    uint32_t count                   # distinct blocks with a pointer to them
    uint64_t pointed[CHECKER_WORDS]
    uint64_t walked[CHECKER_WORDS]   # nodes of snapshots whose pointers were followed
    uint64_t heads[CHECKER_WORDS]    # data blocks that the head holds and no snapshot walked so far

cdef struct CheckedVolume:
    void* volume                     # Volume
    Marks* marks                     # of its segments, by ascending number
    uint32_t count

cdef class Checker:
    cdef World world
    cdef CheckedVolume volumes[CHECKED_VOLUMES_MAX]
    cdef uint32_t volume_count
    cdef uint8_t closed[CHECKED_VOLUMES_MAX][16]  # volumes that may have segments and are not open
    cdef uint32_t closed_count
    cdef Marks* marks
    cdef readonly uint64_t blocks    # visited, in total
    cdef bint in_head                # the walk is in the head's map
    cdef uint64_t mapped             # data blocks that the head holds, ...
    cdef uint64_t inherited          # ... of them those in other volumes' logs, ...
    cdef uint64_t exclusive          # ... and those of its own log that no snapshot holds
    cdef uint64_t data               # data blocks of its own log that the head or a snapshot holds
    cdef char words[256]             # the error message

    # Registers the volumes: every open one, each clone after its parent; then those that are not open.
    cdef void begin(self) noexcept nogil
    cdef void add(self, Volume volume) noexcept nogil
    cdef void add_closed(self, const uint8_t* identity) noexcept nogil
    # No checkpoint, snapshot change or cleaning may be in progress. False, and words, when a check fails.
    cdef bint walk(self) noexcept nogil
    # Checks a store's slabs and replicas. closed: no volume creates or deletes segments any more.
    cdef bint add_up(self, Store store, bint closed) noexcept nogil
    # After a walk, with nothing changed since: a segment's live blocks by this bitmap are those that the walk found.
    cdef bint agrees(self, Volume volume, uint32_t segment, uint32_t blocks, const uint64_t* live) noexcept nogil
    # Whether a block that a read or a change of these blocks needs does not match its pointer's checksum on the device:
    # map nodes on the path and, with `data`, the blocks themselves. root: of the map; NULL: the head's map, with cached
    # nodes taken from memory.
    cdef bint is_damaged(
        self, Volume volume, const Pointer* root, uint64_t block, uint64_t count, bint data
    ) noexcept nogil
    cdef bint path_is_damaged(self, Volume volume, const Pointer* root, uint64_t block, bint data) noexcept nogil
    cdef bint walk_one(self, Volume volume, const CheckedVolume* audited) noexcept nogil
    cdef bint belongs(self, const Replica* replica) noexcept nogil
    cdef bint head(self, Volume volume) noexcept nogil
    cdef bint below(self, Volume volume, Pointer pointer, int level) noexcept nogil
    cdef bint counts(self, Volume volume) noexcept nogil
    cdef void hold(self, Volume volume, Pointer pointer, bint anew) noexcept nogil
    cdef bint alone(self, Volume volume, Pointer pointer, Pointer successor, int level) noexcept nogil
    cdef bint visit(self, Volume volume, Pointer pointer, bint node, const char** content, bint* again) noexcept nogil
    cdef const char* content(self, const Replica* replica, uint32_t block) noexcept nogil
    cdef Marks* find(self, SegmentTable segments, uint32_t segment) noexcept nogil
    cdef bint wrong(self, const char* words, uint64_t a, uint64_t b, uint64_t c) noexcept nogil
