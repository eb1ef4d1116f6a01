# A volume's log: batches records per reactor turn, writes them to the open segment, commits in order. See log/log.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.log.flusher cimport Flusher
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.log_clock cimport LogClock
from iomesh.engine.format.layout cimport Entry, Footer, Pointer, RECORD_ENTRIES_MAX, RecordHeader
from iomesh.engine.map.map cimport Node
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.log.request cimport Request
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.log.open_segments cimport OpenSegment, OpenSegments
from iomesh.engine.log.serving cimport Serving
from iomesh.engine.replicas.member cimport Transfer
from iomesh.engine.base.task cimport Waiters

cdef enum:
    RECORDS_MAX = 16                 # per log, in flight
    HEADERS = 2 * RECORDS_MAX        # copies of headers, for records that are placed again

cdef enum RecordState:
    RECORD_IDLE, RECORD_BUILDING, RECORD_WRITING, RECORD_WRITTEN

cdef struct Part:                    # what one append added to a record, and what to notify at the commit
    Request* request                 # NULL: none
    Node* leaf                       # pinned until the commit; NULL: the part is a map node or a checkpoint block
    void* merge                      # the Merge that this completes; NULL: none
    Pointer* placed                  # receives the blocks' addresses, in order; NULL: not needed
    uint16_t first                   # entry
    uint16_t count

cdef struct Record:
    char* buffer                     # room for the header, then the payload; unchanged once it was placed
    RecordHeader* header             # of its newest placement: the first block of its buffer, or a copy
    int copy                         # which of the log's headers that is; -1: none
    bint placed                      # at least once
    RecordState state
    uint64_t sequence
    OpenSegment* open_segment
    uint32_t block                   # where in the segment
    uint32_t entries
    uint32_t payload                 # blocks
    uint32_t room                    # payload blocks that fit
    uint32_t part_count
    void* log
    Record* next                     # the next record under way, in log order
    Transfer transfer
    Part parts[RECORD_ENTRIES_MAX]

cdef class Log:
    cdef Reactor reactor
    cdef Io io
    cdef Pool pool
    cdef SegmentTable segments
    cdef OpenSegments open_segments
    cdef Flusher flusher
    cdef Serving serving
    cdef Operation unfenced          # completes when it is time to look whether records may commit
    cdef bint unfenced_waits
    cdef uint8_t volume[16]
    cdef uint64_t epoch
    cdef uint64_t sequence           # of the newest closed record
    cdef uint64_t committed          # of the newest committed record
    cdef uint64_t bytes              # bytes of records written since the volume was opened
    cdef uint64_t bytes_at_checkpoint
    cdef int error                   # a negative errno: the log has failed permanently
    cdef bint failing                # an error is being handled; appends wait
    cdef bint working_around         # by a task, which may still run when break_off() has ended `failing`
    cdef bint giving_up              # the volume is being closed: it does not wait for space for ever
    cdef uint64_t refused_until      # records up to this one may carry refused requests
    cdef uint32_t refused_below      # how often that began
    cdef bint refusing_below         # the storage under the devices has no space: appends are refused until it has
    cdef bint draining               # a checkpoint waits for records under way; user writes wait in `waiters`
    cdef Record records[RECORDS_MAX]
    cdef char* headers               # HEADERS blocks
    cdef bint headers_taken[HEADERS]
    cdef uint32_t under_way          # entries of closed, uncommitted records
    cdef Record* building
    cdef Record* oldest              # of the records under way
    cdef Record* newest
    cdef Waiters waiters             # for room
    cdef Waiters commits             # for any commit
    cdef Operation pool_wait
    cdef bint pool_wait_asked
    cdef uint64_t content            # the newest record with entries (an idle log's record has none)
    cdef uint64_t changed            # the newest record with data or zeros
    cdef Operation turn_end
    cdef bint turn_end_asked
    cdef uint32_t batch_target       # entries in flight or being batched when the last record under way committed
    cdef Operation gather_timer
    cdef bint gather_timer_set
    cdef uint64_t* counters
    # the empty record that is written when the log falls idle
    cdef Operation idle_timer
    cdef Operation idle_flush
    cdef bint idle_timer_set
    cdef bint idle_flushing          # `idle_flush` is pending; a slow device may take longer than the timer
    cdef int64_t closed_ns           # when the newest record was closed
    cdef LogClock clock
    cdef uint64_t recorded_ns        # log time of the newest closed record
    cdef uint64_t marked             # `stable` in the newest header
    # the volume, which applies committed records
    cdef void* owner
    cdef void (*on_commit)(void* owner, Record* record) noexcept nogil
    # the storage below has no space: what the record was to complete fails with ENOSPC now, though it may commit later
    cdef void (*on_refuse)(void* owner, Record* record) noexcept nogil
    # the record will never commit: the log has failed
    cdef void (*on_abort)(void* owner, Record* record) noexcept nogil
    # the log has failed because it has another owner; records under way are aborted next
    cdef void (*on_lost)(void* owner) noexcept nogil

    # payload blocks that fit now; 0: wait in `waiters`; or a negative errno
    cdef int room(self, int urgency) noexcept nogil
    # data NULL: zeros
    cdef void add_data(self, uint64_t block, uint32_t count, const char* data, Part part) noexcept nogil
    cdef void add_zero(self, uint64_t block, uint32_t count, Part part) noexcept nogil
    cdef void add_block(self, int kind, uint64_t position, uint8_t flags, const void* data, Part part) noexcept nogil
    # for tasks
    cdef int wait_room(self) noexcept nogil                        # FOR_SPACE; 0 or a negative errno
    cdef int wait_committed(self, uint64_t sequence) noexcept nogil
    # -ENOSPC: the storage below has no space, and nothing has begun that must be waited for
    cdef int wait_committed_or_refused(self, uint64_t sequence) noexcept nogil
    # sequence of the record being built, if it has entries, else of the newest
    cdef uint64_t last_appended(self) noexcept nogil
    # In a task: other owners that this node's devices accept from now on end the log; and not any more.
    cdef void enter(self) noexcept nogil
    cdef void leave(self) noexcept nogil
    # What a write does first, while there is none: gives silent members up, and takes those in that are back.
    cdef void tend(self) noexcept nogil
    cdef void agree_fragment(self, uint32_t number) noexcept nogil  # the metadata service knows it: its records commit
    cdef void finish(self) noexcept nogil                          # commits records under way, seals the open segment
    # inside
    cdef int begin_record(self, int urgency) noexcept nogil
    cdef Part* begin_part(self, Part part, uint32_t entries) noexcept nogil
    cdef void ask_turn_end(self) noexcept nogil
    cdef void close_record(self) noexcept nogil
    cdef void place(self, Record* record, OpenSegment* open_segment) noexcept nogil
    cdef void ask_for_fragment(self) noexcept nogil
    cdef void write_placed(self, Record* record) noexcept nogil
    cdef bint is_written(self, int* error) noexcept nogil
    cdef int wait_for_space_below(self) noexcept nogil
    cdef void refuse_below(self) noexcept nogil
    cdef bint copy_header(self, Record* record) noexcept nogil
    cdef void advance(self) noexcept nogil
    cdef void commit(self, Record* record) noexcept nogil
    cdef void free_record(self, Record* record) noexcept nogil
    cdef void segments_changed(self, int error) noexcept nogil
    cdef void abandon_writes(self) noexcept nogil
    cdef void wait_for_calls(self) noexcept nogil
    cdef void end_at_committed(self, OpenSegment* open_segment) noexcept nogil
    cdef int work_around(self) noexcept nogil
    cdef void break_off(self, int error) noexcept nogil
    cdef void leave_failed(self) noexcept nogil
    cdef void turn_ends(self) noexcept nogil
    cdef bint gathers(self) noexcept nogil
    cdef void give_up_record(self) noexcept nogil
    cdef void gathered(self) noexcept nogil
    cdef void buffer_came(self) noexcept nogil
    cdef void watch_idle(self) noexcept nogil
    cdef void idle_timer_rang(self) noexcept nogil
    cdef void idle_flushed(self, int64_t result) noexcept nogil
    cdef void fell_idle(self) noexcept nogil
