# Cleaning a volume's segments: space that is dead comes back. See volume/cleaning.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport BLOCK_BYTES, FOOTER_BLOCKS_MAX, Footer
from iomesh.engine.map.map cimport Map
from iomesh.engine.log.request cimport Request
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.volume.volume cimport Volume

cdef enum:
    HANDS = 6                        # segments that are being cleaned at once
    EVACUATION_SHARE = 6             # a segment of which less than this part lives, and no snapshot has any of it, is evacuated
    EVACUATED_MAX = 16384 / EVACUATION_SHARE             # blocks of one: the largest segment's

    PIECE_BYTES = 32 * BLOCK_BYTES   # of a segment that is evacuated are read at once

cdef enum:                           # Row.flags
    ROW_CLEANABLE = 1                # nobody needs more of it than what lives
    ROW_STRAGGLES = 2                # ... and it would be evacuated
    ROW_COMPACTED = 4
    ROW_KEPT = 8                     # whole, for the restore window

cdef packed struct Row:              # of a volume's segment table, as the policy sees it; rows of a numpy array (engine.pyi)
    uint32_t segment
    uint32_t blocks                  # its length
    uint32_t live
    uint32_t space                   # blocks that its replica's slabs have
    uint32_t slab                    # blocks of one of them
    uint32_t flags

cdef struct Cleaned:                 # what became of the segments that were asked for
    uint32_t compacted
    uint32_t evacuated
    uint32_t skipped                 # nothing is to be gained
    uint32_t postponed               # it cannot be told now, or is not to be done now
    uint32_t failed                  # an error of a device, or what was read is damaged
    uint64_t freed_blocks            # at once, by compaction
    int error                        # the last one: a negative errno

cdef struct PlannedFooter:
    Footer footer
    char table[(FOOTER_BLOCKS_MAX - 1) * BLOCK_BYTES]

cdef struct Plan:                    # of one segment, and one hand
    Plan* next                       # of those that are idle
    Segment* segment
    PlannedFooter* footer            # its
    uint64_t words[256]              # a bit per block of the segment, 1: it lives
    uint32_t live                    # those that live
    uint64_t places[EVACUATED_MAX]   # of the first of them: the block of the volume, or NODE_PLACE and the node's position
    uint32_t at[EVACUATED_MAX]       # ... and where in the segment they are
    char* piece                      # of the segment, read at once: PIECE_BYTES
    uint32_t read_to                 # of the first of them, those before this one lie in it, or lay in one before
    int32_t offsets[EVACUATED_MAX]   # ... where; -1: not in it

cdef struct Round:                   # of cleaning: one call
    const uint32_t* segments
    uint32_t count
    uint32_t next                    # of them, that nobody has taken
    Throttle* throttle
    Cleaned* told

cdef struct Worker:                    # one of those that take part in it
    void* cleaner
    Round* round
    Operation ended

cdef struct Era:                     # addresses of which one tree may have what its parent has not: those born while it grew, and maybe others
    uint64_t data_from
    uint64_t data_to
    uint64_t node_from
    uint64_t node_to

# The image of a node of the head's map, if it lies there, is written again elsewhere with the next write-back. In a task. 1: it is to be, 0: it lies
# elsewhere, or -EIO, -ESHUTDOWN.
cdef int renew_node(Volume volume, int level, uint64_t index, uint32_t segment, uint32_t block) noexcept nogil

cdef class Cleaner:                  # of one volume
    cdef Volume volume
    cdef Plan* plans                 # one for each hand
    cdef Plan* idle                  # those of hands that are free ...
    cdef Waiters hands_free          # ... which calls wait for
    cdef PlannedFooter* footers      # one for each plan
    cdef Map head                    # the volume's own
    cdef Map durable                 # as of the newest checkpoint
    cdef Map past                    # of a snapshot
    cdef bint deriving               # a hand is: the trees are its
    cdef Waiters derived             # who waits for its end
    cdef readonly uint64_t disagreements    # segments in which fewer blocks were found than are counted

    # In a task on the volume's reactor; several may, of different segments. 0, or -ESHUTDOWN, -EBUSY: it goes back to a snapshot. pace: NULL: none.
    cdef int clean(self, const uint32_t* segments, uint32_t count, Throttle* throttle, Cleaned* told) noexcept nogil
    # How many rows there are, whatever the room.
    cdef uint32_t list(self, Row* rows, uint32_t room) noexcept nogil
    cdef void take_part(self, Round* round) noexcept nogil
    cdef void clean_segment(self, Plan* plan, Throttle* throttle, Cleaned* told) noexcept nogil
    cdef bint cleanable(self, const Segment* segment) noexcept nogil
    cdef int derive_now(self, Plan* plan) noexcept nogil
    cdef int derive(self, Plan* plan) noexcept nogil
    cdef int read_footer(self, Plan* plan) noexcept nogil
    cdef int look(self, Plan* plan, const Era* era, Map data, Map nodes) noexcept nogil
    cdef void list_live(self, Plan* plan) noexcept nogil
    cdef int points(self, Map tree, int level, uint64_t index, uint32_t segment, uint32_t block) noexcept nogil
    cdef int make_stable(self) noexcept nogil
    cdef void compact_planned(self, Plan* plan, Throttle* throttle, Cleaned* told) noexcept nogil
    cdef bint is_evacuated(self, const Plan* plan) noexcept nogil
    cdef void evacuate_planned(self, Plan* plan, Throttle* throttle, Cleaned* told) noexcept nogil
    cdef int compact(self, Plan* plan, Throttle* throttle) noexcept nogil
    cdef int evacuate(self, Plan* plan, Throttle* throttle) noexcept nogil
    cdef int rewrite(self, Request* request, Plan* plan, uint32_t which) noexcept nogil
    cdef void read_ahead(self, Plan* plan, uint32_t which) noexcept nogil
    cdef int64_t offset_of(self, const Plan* plan, uint32_t which) noexcept nogil
    cdef int renew(self, const Plan* plan, uint32_t which) noexcept nogil
