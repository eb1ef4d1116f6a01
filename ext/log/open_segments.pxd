# The segments that a volume's log is appended to: prepared, written, sealed. See log/open_segments.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport EXTENTS_MAX, Entry, Footer
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.store.store cimport Replica
from iomesh.engine.base.task cimport Waiters

cdef enum:
    TAILS = 4                        # current, prepared, and those being sealed

cdef enum Urgency:                   # what a segment is for, and so what it may take of a store's reserve
    FOR_WRITES                       # nothing
    FOR_TRIMS                        # a quarter: what they free comes only after a checkpoint, and a crash may come before
    FOR_SPACE                        # all: checkpoints, and evacuation, which looks after itself

cdef struct Transfer:                # a write that may cross extents
    Operation operations[EXTENTS_MAX]
    uint32_t left
    int error                        # the first negative errno
    void (*done)(Transfer* transfer) noexcept nogil
    void* owner

cdef struct OpenSegment:                    # a segment that is appended to
    Segment* segment                 # NULL: this tail is free
    uint32_t next_block
    uint32_t last_crc                # of the newest record's header
    uint64_t stable                  # in the newest record's header
    uint32_t records_under_way
    uint32_t committed_block         # what an error would seal it at: behind the last committed record, ...
    uint32_t committed_entries       # ... its entries in the table, ...
    uint32_t committed_crc           # ... and its header's crc
    int urgency                      # that it takes to append to it: it was taken from the reserve
    bint closing
    Footer* footer                   # the footer's block; the table follows
    Entry* table
    uint32_t table_count
    uint32_t table_room
    void* owner                      # OpenSegments
    Waiters quiet                    # woken when no record of it is under way

cdef class OpenSegments:
    cdef Reactor reactor
    cdef Io io
    cdef SegmentTable segments
    cdef uint8_t volume[16]
    cdef uint64_t epoch
    cdef uint32_t segment_blocks     # the most that a new segment has; one on a small device has what suits that
    cdef uint32_t next_segment       # the number of the next one
    cdef list store_list             # keeps them alive
    cdef void** stores               # Store
    cdef int store_count
    cdef uint32_t* store_errors      # writes that failed there: it is chosen last
    cdef OpenSegment all[TAILS]
    cdef OpenSegment* current
    cdef OpenSegment* prepared
    cdef bint preparing
    cdef int urgency                 # of that
    cdef bint creating               # the segment before `next_segment` is being created: it may be the next to be appended to
    cdef bint prepare_ended          # the last preparation has, or the one under way: who waits is told at the turn's end
    cdef int prepare_error           # ... how: 0 or a negative errno
    cdef uint32_t sealing            # tails whose footer is being written
    cdef bint no_space
    cdef bint refusing               # ... and a write was refused for it since
    cdef bint watching_space
    cdef int64_t enospc_deadline_ns  # without space, writes wait so long for a cleaner before they are refused
    cdef int64_t idle_timeout_ns     # for how long from the moment on when space runs out; renewed by whoever makes some
    cdef uint32_t making_space       # works under way that may come to some: they wait for their end in any case
    cdef bint ending                 # no further segment
    cdef uint64_t footer_bytes       # written
    cdef uint32_t moved              # segments that another device took over
    cdef Waiters changes             # for a tail that is free again, or prepared
    cdef uint64_t* counters
    cdef void* log
    cdef void (*on_change)(void* log, int error) noexcept nogil            # there may be room now; or there will be none, in a task
    cdef void (*on_lost)(void* log, int error) noexcept nogil              # in a task: what is committed cannot be made stable in this process
    cdef void* owner                 # the volume
    cdef void (*on_no_space)(void* owner) noexcept nogil                   # once, when it begins
    cdef void (*on_tight)(void* owner) noexcept nogil                      # a segment was begun where space is tight: the next needs one cleaned
    cdef void (*on_dead)(void* owner) noexcept nogil                       # without space or hope for it, while a segment is dead
    cdef void (*on_device_error)(void* owner, int store, int error) noexcept nogil

    cdef uint32_t room_of(self, OpenSegment* open_segment) noexcept nogil
    cdef void write(self, Transfer* transfer, OpenSegment* open_segment, uint32_t block, const char* data, uint32_t blocks) noexcept nogil
    cdef OpenSegment* change(self) noexcept nogil
    cdef OpenSegment* replace(self) noexcept nogil
    cdef void prepare(self, int urgency) noexcept nogil            # begins to, unless one is prepared or on its way
    cdef int prepare_one(self, int urgency) noexcept nogil
    cdef int prepare_now(self, int urgency) noexcept nogil         # in a task; without space who makes some is told, too
    cdef void failed(self, int store, int error) noexcept nogil
    cdef int choose_store(self, int urgency) noexcept nogil
    cdef uint32_t blocks_on(self, int store, int urgency) noexcept nogil
    cdef bint admits(self, const OpenSegment* open_segment, int urgency) noexcept nogil
    cdef void close(self, OpenSegment* open_segment) noexcept nogil       # begins to seal it
    cdef bint has_failed(self, const OpenSegment* open_segment) noexcept nogil     # a flush of its device has
    cdef bint any_failed(self) noexcept nogil                      # of those that are open, or being sealed
    cdef int seal(self, OpenSegment* open_segment) noexcept nogil
    cdef int seal_here(self, OpenSegment* open_segment, uint32_t footer_length) noexcept nogil
    cdef int seal_elsewhere(self, OpenSegment* open_segment, uint32_t footer_length) noexcept nogil
    cdef int copy(self, OpenSegment* open_segment, const Replica* into, uint32_t footer_length) noexcept nogil
    cdef int read_back(self, OpenSegment* open_segment, uint32_t block, uint32_t blocks, char* into, uint32_t* entry) noexcept nogil
    cdef uint32_t build_footer(self, OpenSegment* open_segment) noexcept nogil
    cdef int make_stable(self, int store) noexcept nogil
    cdef void is_sealed(self, OpenSegment* open_segment, uint32_t blocks) noexcept nogil
    cdef void drop(self, Segment* segment) noexcept nogil
    cdef bint any_dead(self) noexcept nogil
    cdef uint64_t position(self) noexcept nogil                    # the address of what is appended next: everything before lies below
    cdef void space_ran_out(self) noexcept nogil
    cdef void space_freed(self) noexcept nogil
    cdef bint space_is_coming(self) noexcept nogil
    cdef bint is_tight(self) noexcept nogil                        # segments have to be cleaned for each that is begun
    cdef void end_making_space(self) noexcept nogil                # one of the works has ended
    cdef void expect_space(self, int64_t ns) noexcept nogil        # somebody makes some: writes wait for it
