# The segment table in memory: the segments of one volume's log and their live blocks. See map/segment_table.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.store.store cimport Replica

cdef struct Segment:                 # 104 bytes, in a 112-byte malloc chunk: a volume may have a million
    uint32_t number
    uint32_t blocks                  # length; maximum length while it is open
    uint32_t live                    # blocks referenced by the head's map, a snapshot's, or a node of one
    uint32_t live_then           # `live` when the newest checkpoint began, if `mark` is current; see live_at_checkpoint
    uint32_t mark                    # the SegmentTable's `mark` when live_then was stored
    uint16_t undecided           # part of `live`: dead or not, depending on the pending change of snapshots; see settle
    uint16_t doomed                  # part of `live`: a walk found them only in the snapshot that is being deleted
    Segment* undecided_next          # next segment with undecided blocks
    uint16_t member                  # number of the log's Member that keeps it, and that it is read from
    uint16_t copies[3]               # members that keep another copy: COPIES_MAX of replicas/member.pxd
    uint8_t copy_count
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED
    uint8_t cleaning                 # it is being cleaned or removed: excludes others from either. And log/repair.pyx
    uint16_t stream
    uint64_t first_sequence
    uint64_t last_sequence           # 0: no record
    uint64_t table_of                # sequence of the newest checkpoint with table blocks in it
    Replica* replica                 # the local one, which knows its epoch and fragment; NULL: none
    Segment* hash_next
    Segment* next                    # ordered by number
    Segment* previous

cdef enum Born:                      # the kind of block that a pointer addresses
    DATA, NODE

cdef class SegmentTable:
    cdef Segment* first
    cdef Segment* last
    cdef Segment** buckets
    cdef uint32_t bucket_count
    cdef readonly uint32_t count
    cdef readonly uint64_t live      # sum over the segments
    cdef uint32_t mark               # number of checkpoints begun
    cdef uint64_t mapped             # data blocks that the head's map references, ...
    cdef uint64_t inherited          # ... those of them below `branch`, ...
    cdef uint64_t exclusive   # ... and those in no snapshot; maybe too high while one is DYING (map/snapshot_table.pyx)
    cdef uint64_t wanted_exclusive   # its next value; differs while a change of the pins is pending
    cdef uint64_t pins[2]            # by Born: blocks below these addresses that the head drops belong to a snapshot
    cdef uint64_t wanted_pins[2]     # their next values; differ while a change is pending
    cdef Segment* undecided_first
    cdef uint32_t reclaim_holds      # while above 0, no segment is removed or compacted
    cdef uint64_t kept_from          # segments with later records are kept whole, for the restore window. ~0: none
    cdef uint32_t branch             # clone: lower segment numbers belong to the parent's ...
    cdef void* parent                # ... SegmentTable; locate() finds them, the parent counts them
    cdef Segment* find(self, uint32_t number) noexcept nogil           # in this table
    # in this table or an ancestor's: for any pointer of its map
    cdef Segment* locate(self, uint32_t number) noexcept nogil
    cdef Segment* add(self, uint32_t number) noexcept nogil            # a new one, zero except for its number
    cdef void remove(self, Segment* segment) noexcept nogil
    cdef bint lives(self, Pointer pointer) noexcept nogil    # False: its segment is in the table but has no live block
    cdef void born(self, Pointer pointer) noexcept nogil               # no-ops for a pointer that is not PRESENT
    # The head's map has dropped the pointer. True: the block is dead; False: a snapshot has it (pinned), or that is
    # undecided, or it is not counted here.
    cdef bint retire(self, Pointer pointer, Born what) noexcept nogil
    # For data blocks: the head's map points to `after` instead of `before`.
    cdef void replace(self, Pointer before, Pointer after) noexcept nogil
    # Sets the counts after the head's whole map was replaced.
    cdef void recount(self, uint64_t mapped, uint64_t inherited, uint64_t exclusive) noexcept nogil
    cdef void change_live(self, Segment* segment, int64_t by) noexcept nogil
    # A checkpoint begins: changes of `live` from now on do not affect live_at_checkpoint().
    cdef void begin_checkpoint(self) noexcept nogil
    cdef uint32_t live_at_checkpoint(self, const Segment* segment) noexcept nogil
    # its map has gained or dropped the pointer
    cdef void count_at_checkpoint(self, Pointer pointer, int by) noexcept nogil
    # Blocks below `pin` will be pinned once the pending change of snapshots is durable. Until settle(), deaths that
    # depend on it are undecided.
    cdef void shift_pin(self, Born what, uint64_t pin) noexcept nogil
    cdef void settle(self, bint happened) noexcept nogil
    cdef void pin(self, uint64_t data, uint64_t nodes) noexcept nogil              # sets both pins at once
    cdef void count_mapped(self, Pointer pointer, int by) noexcept nogil
    cdef void hash(self, Segment* segment) noexcept nogil
    cdef void grow(self) noexcept nogil
