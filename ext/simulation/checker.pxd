# A walk from outside over everything that simulated volumes hold. See simulation/checker.pyx.

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

cdef struct Marks:                   # of one segment
    uint32_t segment
    uint32_t count                   # distinct blocks that something points to
    uint64_t pointed[CHECKER_WORDS]
    uint64_t walked[CHECKER_WORDS]   # nodes of snapshots whose pointers have been followed
    uint64_t heads[CHECKER_WORDS]    # blocks of data that the head holds, and no snapshot as far as it was walked

cdef struct CheckedVolume:
    void* volume                     # Volume
    Marks* marks                     # of its segments, in the order of numbers
    uint32_t count

cdef class Checker:
    cdef World world
    cdef CheckedVolume volumes[CHECKED_VOLUMES_MAX]
    cdef uint32_t volume_count
    cdef uint8_t closed[CHECKED_VOLUMES_MAX][16]  # volumes that may have segments and are not open
    cdef uint32_t closed_count
    cdef Marks* marks
    cdef readonly uint64_t blocks    # looked at, ever
    cdef bint in_head                # what is walked is the head's
    cdef uint64_t mapped             # blocks of data that the head holds, ...
    cdef uint64_t inherited          # ... of them those of other volumes' logs, ...
    cdef uint64_t exclusive          # ... and its own that no snapshot holds
    cdef uint64_t data               # blocks of data of its own log that something holds
    cdef char words[256]             # what is wrong

    # What there is: every open volume, a clone after the one that it comes from; and those that are not open.
    cdef void begin(self) noexcept nogil
    cdef void add(self, Volume volume) noexcept nogil
    cdef void add_closed(self, const uint8_t* identity) noexcept nogil
    # No checkpoint, no change of snapshots and no cleaning may be under way. False, and words: something does not add up.
    cdef bint walk(self) noexcept nogil
    # closed: no volume creates or removes a segment any more.
    cdef bint add_up(self, Store store, bint closed) noexcept nogil
    # After a walk, while nothing has changed: the blocks of a segment that a bitmap says live are those that it found.
    cdef bint agrees(self, Volume volume, uint32_t segment, uint32_t blocks, const uint64_t* live) noexcept nogil
    # Whether what a read or a change of these blocks needs is not what its pointer says, on a device: nodes on the way, and the blocks if `data`. Of the
    # head's map (nodes that are cached are as they are there), or of one with this root.
    cdef bint is_damaged(self, Volume volume, const Pointer* root, uint64_t block, uint64_t count, bint data) noexcept nogil
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
