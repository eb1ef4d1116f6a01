# Cleaning a volume's segments: makes the space of dead blocks usable again. See volume/cleaning.pyx.

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
    WORKERS = 6                      # segments cleaned concurrently
    EVACUATION_SHARE = 6             # a segment with less than 1/6 live, and no snapshot's blocks, is evacuated
    EVACUATED_MAX = 16384 / EVACUATION_SHARE             # live blocks of an evacuated segment, at most

    PIECE_BYTES = 32 * BLOCK_BYTES   # read at once from a segment that is evacuated

cdef enum:                           # Row.flags
    ROW_CLEANABLE = 1                # only its live blocks are needed
    ROW_STRAGGLES = 2                # ... and it would be evacuated
    ROW_COMPACTED = 4
    ROW_KEPT = 8                     # kept whole for the restore window

cdef packed struct Row:    # of a volume's segment table, as the policy sees it; rows of a numpy array (engine.pyi)
    uint32_t segment
    uint32_t blocks                  # its length
    uint32_t live
    uint32_t space                   # blocks in its replica's slabs
    uint32_t slab                    # blocks per slab
    uint32_t flags

cdef struct Cleaned:                 # the outcome for the requested segments
    uint32_t compacted
    uint32_t evacuated
    uint32_t skipped                 # cleaning would free no slab
    uint32_t postponed               # not possible now: try again later
    uint32_t failed                  # a device error, or damaged data
    uint64_t freed_blocks            # immediately, by compaction
    int error                        # the last one: a negative errno

cdef struct PlannedFooter:
    Footer footer
    char table[(FOOTER_BLOCKS_MAX - 1) * BLOCK_BYTES]

cdef struct Plan:                    # of one segment and one worker
    Plan* next                       # in the list of idle plans
    Segment* segment
    PlannedFooter* footer            # the segment's
    uint64_t words[256]              # a bit per block of the segment, 1: live
    uint32_t live                    # number of live blocks
    uint64_t places[EVACUATED_MAX]   # of the first live blocks: the volume's block, or NODE_PLACE | position
    uint32_t at[EVACUATED_MAX]       # ... and their block in the segment
    char* piece                      # read buffer: PIECE_BYTES of the segment
    uint32_t read_to                 # index: the live blocks before it were read, in this piece or before
    int32_t offsets[EVACUATED_MAX]   # ... of each in the piece; -1: not in it

cdef struct Round:                   # one call of clean()
    const uint32_t* segments
    uint32_t count
    uint32_t next                    # index of the first segment that no worker has taken
    Throttle* throttle
    Cleaned* told

cdef struct Worker:                    # takes part in a round
    void* cleaner
    Round* round
    Operation ended

cdef struct Era:                     # superset of the addresses in a tree that are not in its parent's
    uint64_t data_from
    uint64_t data_to
    uint64_t node_from
    uint64_t node_to

# If the image of this node of the head's map is at this address, makes the node dirty, so that the next write-back
# writes it elsewhere. In a task. 1: done, 0: the image is elsewhere, or -EIO, -ESHUTDOWN.
cdef int renew_node(Volume volume, int level, uint64_t index, uint32_t segment, uint32_t block) noexcept nogil

cdef class Cleaner:                  # of one volume
    cdef Volume volume
    cdef Plan* plans                 # one for each worker
    cdef Plan* idle                  # the plans of idle workers ...
    cdef Waiters hands_free          # ... and the workers that wait for one
    cdef PlannedFooter* footers      # one for each plan
    cdef Map head                    # the volume's current map
    cdef Map durable                 # as of the newest checkpoint
    cdef Map past                    # of a snapshot
    cdef bint deriving               # a worker is deriving and has exclusive use of the trees
    cdef Waiters derived             # workers that wait to derive
    cdef readonly uint64_t disagreements    # segments with fewer live blocks found than counted

    # In a task on the volume's reactor; calls for different segments may run concurrently. 0, or -ESHUTDOWN, -EBUSY: a
    # snapshot is being restored. throttle: NULL: no limit.
    cdef int clean(self, const uint32_t* segments, uint32_t count, Throttle* throttle, Cleaned* told) noexcept nogil
    # Fills in at most `room` rows; returns how many there are in all.
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
