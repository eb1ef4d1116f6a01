# The segments of one volume's log and what lives in each: the segment table in memory. See map/segment_table.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.store.store cimport Replica

cdef struct Segment:                 # 104 bytes: what malloc gives for 112. A volume may have a million
    uint32_t number
    uint32_t blocks                  # its length once it is sealed, else what it may grow to
    uint32_t live                    # blocks that the map, a snapshot's, or a node of one, points to
    uint32_t live_then               # ... when the newest checkpoint was begun, if `mark` says so; see live_at_checkpoint
    uint32_t mark                    # that of the SegmentTable when live_then was noted
    uint16_t undecided               # of `live`: dead if what is being done to the snapshots fails, or if it succeeds; see settle
    uint16_t doomed                  # of `live`: found by a walk to be only in the snapshot that is being deleted
    Segment* undecided_next          # of those that have some
    int store                        # the number of the store that holds it
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED
    uint8_t cleaning                 # it is being cleaned or removed: nobody else does either
    uint16_t stream
    uint64_t first_sequence
    uint64_t last_sequence           # 0: no record yet
    uint64_t epoch
    uint64_t table_of                # the newest checkpoint (its sequence) that has table blocks in it
    Replica* replica                 # the local one; NULL: none here
    Segment* hash_next
    Segment* next                    # in the order of numbers
    Segment* previous

cdef enum Born:                      # what a pointer points to
    DATA, NODE

cdef class SegmentTable:
    cdef Segment* first
    cdef Segment* last
    cdef Segment** buckets
    cdef uint32_t bucket_count
    cdef readonly uint32_t count
    cdef readonly uint64_t live      # sum over the segments
    cdef uint32_t mark               # counts the checkpoints begun
    cdef uint64_t mapped             # blocks that the head's map holds, ...
    cdef uint64_t inherited          # ... of them those below `branch`, ...
    cdef uint64_t exclusive          # ... and those that no snapshot holds; while one is dying, maybe too many (map/snapshot_table.pyx)
    cdef uint64_t wanted_exclusive   # what that will be; differs while a change of the pins is under way
    cdef uint64_t pins[2]            # by Born: addresses below which what the head lets go of is a snapshot's
    cdef uint64_t wanted_pins[2]     # what they will be; differs while a change is under way
    cdef Segment* undecided_first
    cdef uint32_t reclaim_holds      # while there are any, no segment is removed and none is compacted
    cdef uint64_t kept_from          # segments with a record behind this one are kept whole: they are the window's history. ~0: none is
    cdef uint32_t branch             # of a clone: segments below are the parent's ...
    cdef void* parent                # ... SegmentTable; they are found here and count there
    cdef Segment* find(self, uint32_t number) noexcept nogil           # its own
    cdef Segment* locate(self, uint32_t number) noexcept nogil         # its own or an ancestor's: where a pointer of its map leads
    cdef Segment* add(self, uint32_t number) noexcept nogil            # a new one, all zero but its number
    cdef void remove(self, Segment* segment) noexcept nogil
    cdef bint lives(self, Pointer pointer) noexcept nogil              # False: it counts, and by the count nothing lives there
    cdef void born(self, Pointer pointer) noexcept nogil               # no-ops for a pointer that is not PRESENT
    # The head's map does not point to it any more. True: it is dead; False: it is a snapshot's (pinned), that is undecided, or it does not count.
    cdef bint retire(self, Pointer pointer, Born what) noexcept nogil
    # The head's map points to `after` and no more to `before`: blocks of data.
    cdef void replace(self, Pointer before, Pointer after) noexcept nogil
    # The head's map is another one, from the root on.
    cdef void recount(self, uint64_t mapped, uint64_t inherited, uint64_t exclusive) noexcept nogil
    cdef void change_live(self, Segment* segment, int64_t by) noexcept nogil
    # From now on `live` may differ from what it is now at the checkpoint that begins.
    cdef void begin_checkpoint(self) noexcept nogil
    cdef uint32_t live_at_checkpoint(self, const Segment* segment) noexcept nogil
    cdef void count_at_checkpoint(self, Pointer pointer, int by) noexcept nogil     # its map has it, or has it no more
    # What lies below is pinned, once the change to the snapshots that is under way is durable: deaths that this decides are undecided until then.
    cdef void shift_pin(self, Born what, uint64_t pin) noexcept nogil
    cdef void settle(self, bint happened) noexcept nogil
    cdef void pin(self, uint64_t data, uint64_t nodes) noexcept nogil              # at once
    cdef void count_mapped(self, Pointer pointer, int by) noexcept nogil
    cdef void hash(self, Segment* segment) noexcept nogil
    cdef void grow(self) noexcept nogil
