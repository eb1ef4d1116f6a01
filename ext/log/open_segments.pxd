# A volume's open segments: prepared, written, sealed. See log/open_segments.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport Entry, Footer
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.store.bitmaps cimport Bitmaps
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.replicas.member cimport COPIES_MAX, MEMBERS_MAX, REPLICAS_MAX, Member, Transfer
from iomesh.engine.store.store cimport Replica
from iomesh.engine.base.task cimport Waiters

cdef enum:
    OPEN_SEGMENTS_MAX = 4            # open segments at once: current, prepared, and those being sealed

cdef enum Urgency:                   # what a segment is for; decides how much of a member's reserve it may use
    FOR_WRITES                       # nothing
    FOR_TRIMS                        # a quarter: a trim frees space only after a checkpoint, and a crash may precede it
    FOR_SPACE                        # all: checkpoints, and evacuation, which limits itself

cdef struct OpenSegment:                    # a segment that the log appends to
    Segment* segment                 # NULL: this slot is free
    uint32_t next_block
    uint32_t last_crc                # of the newest record's header
    uint64_t stable                  # in the newest record's header
    uint32_t records_under_way
    uint32_t committed_block         # after an error it is sealed here: behind the last committed record; ...
    uint32_t committed_entries       # ... that record's end in the table, ...
    uint32_t committed_crc           # ... and its header's checksum
    int urgency                      # minimum urgency of appends; above FOR_WRITES: it uses the reserve
    bint closing
    uint64_t boots[COPIES_MAX]       # of the copies' machines when these were created
    uint16_t left[COPIES_MAX]        # members whose copies were given up
    int left_count
    bint given_up                    # a member of its replica set is not waited for any more: nothing is appended
    Footer* footer                   # the footer block; the table follows
    Entry* table
    uint32_t table_count
    uint32_t table_room
    void* owner                      # OpenSegments
    Waiters quiet                    # woken when it has no record under way

cdef class OpenSegments:
    cdef Reactor reactor
    cdef Bitmaps bitmaps             # of the reactor; set by the volume
    cdef Io io
    cdef SegmentTable segments
    cdef uint8_t volume[16]
    cdef uint64_t epoch
    cdef uint32_t segment_blocks     # maximum length of a new segment; smaller on a small device
    cdef uint32_t next_segment       # the next segment's number
    cdef uint32_t first_segment      # numbers from here on are given in this process
    cdef uint32_t promised           # the metadata service holds it: no number above it is given
    cdef uint32_t promise_low        # with fewer numbers left, a higher promise is asked for
    cdef bint promise_asked
    cdef bint promise_waited         # the next segment waits for a higher promise
    cdef bint promise_unanswered     # the metadata service does not answer
    cdef int64_t members_until_ns    # while the volume closes: deadline for enough members; 0: none
    cdef int64_t give_up_ns          # deadline for that answer while the volume closes; 0: none
    cdef list member_list            # keeps them alive
    cdef void** members              # Member, MEMBERS_MAX places; those of this node come first
    cdef int member_count
    cdef int local_count             # members of this node
    cdef int64_t rests_until_ns[MEMBERS_MAX]  # after errors it gets no segment until then
    # replicas and fragments: see docs/ownership.md
    cdef uint32_t replicas           # wanted of each segment
    cdef uint32_t minimum            # with fewer members nothing is written
    cdef uint32_t fragment           # the newest one's number; 0: the log has no fragments
    cdef bint fragment_begun         # a segment of it was created
    cdef uint32_t fragment_devices[REPLICAS_MAX]      # its replica set, by the devices' numbers in the cluster
    cdef uint32_t fragment_asked     # the metadata service was asked for fragments up to this one ...
    cdef uint32_t fragment_agreed    # ... and has agreed to those up to this one: their records may commit
    cdef int64_t widen_ns            # when it was last looked for another member
    cdef bint too_few                # the next segment waits for members
    cdef OpenSegment all[OPEN_SEGMENTS_MAX]
    cdef OpenSegment* current
    cdef OpenSegment* prepared
    cdef bint preparing
    cdef int urgency                 # of the preparation
    cdef bint creating               # segment `next_segment` - 1 is being created and may be appended to next
    cdef bint prepare_ended          # the last one has ended; waiters of a failed one are woken at the turn's end
    cdef int prepare_error           # its result: 0 or a negative errno
    cdef uint32_t sealing            # segments that are being sealed
    cdef int64_t below_wait_ns       # how long writes wait for space under the devices before they are refused
    cdef bint no_space
    cdef bint refusing               # ... and a write has failed with ENOSPC since
    cdef bint watching_space
    cdef int64_t enospc_deadline_ns  # until then, writes wait for the cleaner; afterwards they fail with ENOSPC
    cdef int64_t enospc_timeout_ns   # added to the time when space runs out; each end of cleaning renews the deadline
    cdef uint32_t making_space       # cleaning operations under way; writes wait for them even past the deadline
    cdef bint ending                 # no further segment is created
    cdef uint64_t footer_bytes       # written
    cdef uint32_t moved              # segments moved to another device
    cdef Waiters changes             # waiters for a free or prepared segment slot
    cdef uint64_t* counters
    cdef void* log
    # there may be room now; with an error (in a task): there will be none
    cdef void (*on_change)(void* log, int error) noexcept nogil
    # in a task: committed data cannot be made stable in this process
    cdef void (*on_lost)(void* log, int error) noexcept nogil
    cdef void* owner                 # the volume
    # asks the metadata service for a fragment whose first record is `first`; devices: REPLICAS_MAX, 0: none
    cdef void (*on_asked)(void* log, const Segment* segment) noexcept nogil      # it was asked for
    cdef bint (*on_fragment)(void* owner, uint32_t number, uint64_t first, const uint32_t* devices) noexcept nogil
    # asks for a higher promise; False: no memory, called again
    cdef bint (*on_promise_low)(void* owner) noexcept nogil
    cdef void (*on_no_space)(void* owner) noexcept nogil                   # once, when space runs out
    # a segment was created while space is tight: the next needs cleaning
    cdef void (*on_tight)(void* owner) noexcept nogil
    cdef void (*on_dead)(void* owner) noexcept nogil    # no space and the deadline has passed, but a segment is dead
    cdef void (*on_device_error)(void* owner, int member, int error) noexcept nogil

    cdef uint32_t room_of(self, OpenSegment* open_segment) noexcept nogil
    # To every member of its replica set. head: the first block, if it does not lie before the others in `data`; or
    # NULL.
    cdef void write(
        self,
        Transfer* transfer,
        OpenSegment* open_segment,
        uint32_t block,
        const char* head,
        const char* data,
        uint32_t blocks,
        bint footer,
    ) noexcept nogil
    cdef bint add_member(self, Member member) noexcept nogil       # False: there are too many
    cdef bint has_members(self) noexcept nogil                     # enough of them work, as far as is known
    cdef int choose_copies(self, int member, uint16_t* copies) noexcept nogil
    cdef void set_fragment(self, int member, const uint16_t* copies, int count) noexcept nogil
    cdef bint is_preferred(self, int one, int other) noexcept nogil
    cdef bint in_fragment(self, uint32_t device) noexcept nogil
    cdef bint same_devices(self, const uint32_t* devices, int count) noexcept nogil
    cdef int await_members(self, int member, uint16_t* copies, int* count) noexcept nogil
    cdef int create_copies(self, Segment* segment, uint32_t blocks, bint urgent, uint64_t* boots) noexcept nogil
    # In a task: a segment of a replica set that works is prepared, and its fragment is asked for, although there is
    # nothing to write.
    cdef void renew_fragment(self, uint64_t sequence) noexcept nogil
    # Asks for the segment's fragment, unless that was done. sequence: of the first record in it.
    cdef void ask_for_fragment(self, const Segment* segment, uint64_t sequence) noexcept nogil
    cdef bint is_agreed(self, const Segment* segment) noexcept nogil       # its records may commit
    cdef bint may_widen(self, const OpenSegment* open_segment) noexcept nogil      # more members work than it has
    # A member of another node is not waited for any more: open segments end without it.
    cdef void give_up(self, int member) noexcept nogil
    cdef void count_error(self, int member) noexcept nogil
    cdef void give_up_copy(self, OpenSegment* open_segment, int which) noexcept nogil
    cdef void leave_rebooted(self) noexcept nogil                  # before a flush
    cdef void* member_of(self, const Segment* segment) noexcept nogil      # the Member that keeps it
    cdef OpenSegment* change(self) noexcept nogil
    cdef OpenSegment* replace(self) noexcept nogil
    # starts preparing, unless a segment is prepared or being prepared
    cdef void prepare(self, int urgency) noexcept nogil
    cdef int prepare_one(self, int urgency) noexcept nogil
    cdef int prepare_now(self, int urgency) noexcept nogil         # in a task; without space it also calls on_no_space
    cdef int await_number(self) noexcept nogil
    cdef void ask_for_promise(self) noexcept nogil
    # the metadata service's answer: numbers up to this one may be given
    cdef void promise(self, uint32_t number) noexcept nogil
    cdef void failed(self, int member, int error) noexcept nogil
    # the storage under a device has no space, or has it again
    cdef void lacks_space_below(self, int member) noexcept nogil
    cdef void has_space_below(self, int member) noexcept nogil
    cdef bint has_other_space(self) noexcept nogil                 # a segment can be created where there is space below
    cdef int choose_member(self, int urgency) noexcept nogil
    cdef uint32_t blocks_on(self, int member, int urgency) noexcept nogil
    cdef bint admits(self, const OpenSegment* open_segment, int urgency) noexcept nogil
    cdef void close(self, OpenSegment* open_segment) noexcept nogil       # starts sealing it
    cdef bint has_failed(self, const OpenSegment* open_segment) noexcept nogil     # a flush of its device has failed
    # nothing may be appended to it any more
    cdef bint is_to_leave(self, const OpenSegment* open_segment) noexcept nogil
    cdef bint can_be_relieved(self, const Segment* segment) noexcept nogil
    cdef int leaving_among(self, const uint16_t* copies, int count) noexcept nogil
    # an abandoned write may still reach it
    cdef bint may_be_written(self, const OpenSegment* open_segment) noexcept nogil
    cdef void renew_footer(self, OpenSegment* open_segment) noexcept nogil
    cdef bint any_failed(self) noexcept nogil    # has_failed() for any segment that is open or being sealed
    cdef int seal(self, OpenSegment* open_segment) noexcept nogil
    cdef int seal_here(self, OpenSegment* open_segment, uint32_t footer_length) noexcept nogil
    cdef void leave_copies_behind(self, OpenSegment* open_segment, Transfer* transfer) noexcept nogil
    cdef void seal_copies(self, OpenSegment* open_segment, uint32_t end, uint32_t footer_block) noexcept nogil
    cdef int seal_elsewhere(self, OpenSegment* open_segment, uint32_t footer_length) noexcept nogil
    cdef int copy(
        self, OpenSegment* open_segment, Member member, Replica* into, uint32_t footer_length
    ) noexcept nogil
    cdef int read_back(
        self, OpenSegment* open_segment, uint32_t block, uint32_t blocks, char* into, uint32_t* entry
    ) noexcept nogil
    cdef void pause(self, int64_t ns) noexcept nogil               # in a task
    cdef uint32_t build_footer(self, OpenSegment* open_segment) noexcept nogil
    cdef int make_stable(self, Member member) noexcept nogil
    cdef void is_sealed(self, OpenSegment* open_segment, uint32_t blocks) noexcept nogil
    cdef void drop_left(self, const OpenSegment* open_segment) noexcept nogil
    cdef void drop(self, Segment* segment) noexcept nogil
    cdef bint any_dead(self) noexcept nogil
    cdef uint64_t position(self) noexcept nogil    # address of the next append; everything appended before lies below
    cdef void space_ran_out(self) noexcept nogil
    cdef void space_freed(self) noexcept nogil
    cdef bint space_is_coming(self) noexcept nogil
    cdef bint is_tight(self) noexcept nogil                        # each new segment requires cleaning
    cdef void end_making_space(self) noexcept nogil                # a cleaning operation has ended
    cdef void expect_space(self, int64_t ns) noexcept nogil        # cleaning is coming: writes wait `ns` for it
