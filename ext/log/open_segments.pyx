# A volume's open segments, from their creation on a member to their seal there.
#
#     free ---prepare---> prepared ---change---> current ---close---> sealing ---footer, stable media, journal---> free
#                                                                        '----copy on another device, the same----^
#
# Always true:
#   - at most one segment is current and one prepared to follow it, so changing segments costs no wait;
#   - a segment is sealed in this order: complete, on stable media, recorded in the journal of its member's store;
#   - data that is not stable yet lies in segments that are open or being sealed, and the checksums of all their blocks
#     are in memory. When a flush of their device fails, they are read back, verified, and written to another device
#     under the same addresses (seal_elsewhere). If that is impossible, the log has failed (on_lost), and only recovery
#     can determine what is left;
#   - a number is given to one segment in the volume's life. The metadata service holds a promise, a number that is
#     raised long before it is reached; no higher number is given, and recovery continues above it (docs/metadata.md);
#   - a segment is sealed, or deleted, only when no write to it is in flight: its footer and the slabs behind it would
#     otherwise be overwritten by a late one. Of a device that does not answer (Member.is_stalled), nothing is sealed
#     and no slab is given to anything else in this process (docs/decisions/0023-a-device-that-does-not-answer.md);
#   - without space a segment is taken from its member's reserve, and only appends that make space may use it
#     (`Urgency`). So a checkpoint finds room, unless more than two volumes use the reserve.
#
# Called by log/log.pyx, on the volume's reactor. Format: docs/formats.md, "Footer".

from libc.errno cimport EHOSTUNREACH, EIO, ENOMEM, ENOSPC, ESHUTDOWN, ETIMEDOUT
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.counters cimport DEVICE_FLUSHES, SEGMENTS_SEALED
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.base.planted cimport planted
from iomesh.engine.format.footer cimport begin_footer, complete_footer, footer_blocks
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, KIND_RECORD, KIND_ZERO, RECORD_ENTRIES_MAX, SEGMENT_OPEN, SEGMENT_SEALED, Entry, Footer,
    RecordHeader, block_crc
)
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport COPIES_MAX, MEMBERS_MAX, REPLICAS_MAX, Member, Piece, begin_transfer
from iomesh.engine.store.store cimport Replica
from iomesh.engine.base.task cimport start, wait, wait_in, waited, wake_all

cdef extern from "<errno.h>" nogil:
    int ESTALE, EUCLEAN

cdef int64_t BELOW_WAIT_NS = <int64_t>5 * 1000 * 1000 * 1000      # unless set otherwise

cdef enum:
    SPACE_POLL_NS = 100 * 1000 * 1000    # how often a log without space checks again
    MEMBER_ERRORS_MAX = 64           # of one member, before the log gives up
    COPY_BLOCKS = 256                # copied per read and write
    SEGMENTS_END = 0xFFFFFFFF        # no segment has this number
    PROMISE_LOW = 256                # numbers: they last for 256 MiB of log or more
    PROMISE_POLL_NS = 100 * 1000 * 1000  # how often a log without a number checks again
    MEMBERS_POLL_NS = 20 * 1000 * 1000   # how often a log with too few members checks again
    WIDEN_NS = 500 * 1000 * 1000     # how often a log with fewer replicas than wanted looks for another member
    ERRORS_IN_A_ROW = 3              # of a member of another node: after these ...
    REST_NS = 1000 * 1000 * 1000     # ... it gets no segment for so long after each further one
    READ_TRIES = 5                   # attempts to read back a piece, ...
    READ_AGAIN_NS = 20 * 1000 * 1000     # ... with this delay between them
    LATE_WRITES_NS = 20 * 1000 * 1000    # between two checks whether the abandoned writes of a device are answered


cdef class OpenSegments:
    """volume: 16 bytes. members: list of Member. segment_blocks: maximum of a new segment. Raises MemoryError,
    ValueError."""

    def __cinit__(
        self,
        Reactor reactor,
        SegmentTable segments,
        list members,
        bytes volume,
        uint64_t epoch,
        uint32_t segment_blocks,
    ):
        cdef int i
        self.reactor, self.io, self.segments = reactor, reactor.io, segments
        self.member_list = members
        self.replicas = self.minimum = 1
        if not members or (<Member>members[0]).node is not NULL:
            raise ValueError("a volume needs a device of this node")
        if len(members) > MEMBERS_MAX:
            raise ValueError(f"a volume's log uses at most {MEMBERS_MAX} devices, not {len(members)}")
        self.members = <void**>calloc(MEMBERS_MAX, sizeof(void*))
        if self.members is NULL:
            raise MemoryError("no memory for a volume's list of devices")
        for i in range(<int>len(members)):
            self.add_member(members[i])
        memcpy(self.volume, <const char*>volume, 16)
        self.epoch = epoch
        self.segment_blocks = segment_blocks
        self.promise_low = PROMISE_LOW
        self.below_wait_ns = BELOW_WAIT_NS
        for i in range(OPEN_SEGMENTS_MAX):
            self.all[i].owner = <void*>self
            self.all[i].table_room = 2 * segment_blocks + 256
            self.all[i].footer = <Footer*>allocate_aligned(
                BLOCK_BYTES + <size_t>self.all[i].table_room * sizeof(Entry) + BLOCK_BYTES
            )
            if self.all[i].footer is NULL:
                raise MemoryError("no memory for a segment's footer")
            self.all[i].table = <Entry*>(<char*>self.all[i].footer + BLOCK_BYTES)

    def __dealloc__(self):
        cdef int i
        for i in range(OPEN_SEGMENTS_MAX):
            release_buffer(self.io, self.all[i].footer)
        release(self.members)

    cdef void* member_of(self, const Segment* segment) noexcept nogil:
        return self.members[segment.member]

    cdef uint32_t room_of(self, OpenSegment* open_segment) noexcept nogil:
        """Payload blocks that fit in a record started now, with room left for the footer of all records."""
        cdef uint32_t entries = open_segment.table_count + 1 + RECORD_ENTRIES_MAX
        cdef uint32_t needed = open_segment.next_block + 1 + footer_blocks(entries)
        if entries > open_segment.table_room or needed >= open_segment.segment.blocks:
            return 0
        return min(open_segment.segment.blocks - needed, <uint32_t>RECORD_ENTRIES_MAX)

    cdef bint add_member(self, Member member) noexcept nogil:
        invariant(member.reactor is self.reactor, b"a log's members are used on its reactor")
        if self.member_count == <int>MEMBERS_MAX:
            return False
        invariant(<int>member.number == self.member_count, b"a log's members are numbered in order")
        self.members[self.member_count] = <void*>member
        self.member_count += 1
        if member.node is NULL:
            invariant(self.local_count == self.member_count - 1, b"members of this node come first")
            self.local_count += 1
        return True

    cdef void write(
        self,
        Transfer* transfer,
        OpenSegment* open_segment,
        uint32_t block,
        const char* head,
        const char* data,
        uint32_t blocks,
        bint footer,
    ) noexcept nogil:
        cdef Segment* segment = open_segment.segment
        cdef Piece piece
        cdef int i
        invariant(block + blocks <= segment.blocks, b"a segment is not written beyond its end")
        piece.segment, piece.epoch, piece.stream = segment.number, segment.replica.epoch, segment.stream
        piece.block, piece.blocks, piece.head, piece.data, piece.footer = block, blocks, head, data, footer
        begin_transfer(transfer)
        (<Member>self.member_of(segment)).write(transfer, &piece, segment.replica)
        for i in range(segment.copy_count):
            (<Member>self.members[segment.copies[i]]).write(transfer, &piece, NULL)

    # ------------------------------------------------------------------ the next segment

    cdef OpenSegment* change(self) noexcept nogil:
        """Make the prepared segment current and seal the previous one; NULL: none is prepared."""
        if self.prepared is NULL:
            return NULL
        if self.current is not NULL:
            self.close(self.current)
        self.current = self.prepared
        self.prepared = NULL
        self.prepare(FOR_WRITES)
        return self.current

    cdef OpenSegment* replace(self) noexcept nogil:
        """In a task: replace the current segment by a new one; NULL: none can be created."""
        if self.current is not NULL:
            self.close(self.current)
        while self.preparing:
            wait_in(&self.changes)
        if self.prepared is not NULL and self.is_to_leave(self.prepared):    # it is of the fragment that ends
            self.close(self.prepared)
        if self.prepared is NULL and self.prepare_one(FOR_SPACE) < 0:
            return NULL
        self.current = self.prepared
        self.prepared = NULL
        return self.current

    cdef void prepare(self, int urgency) noexcept nogil:
        if self.preparing or self.prepared is not NULL or self.ending:
            return
        self.preparing = True
        self.prepare_ended = False
        self.urgency = urgency
        start(prepare_body, <void*>self, NULL)

    cdef int prepare_now(self, int urgency) noexcept nogil:
        self.preparing = True
        self.urgency = urgency
        return prepare_next(self)

    cdef int prepare_one(self, int urgency) noexcept nogil:
        """In a task: create the next segment. 0 or a negative errno."""
        cdef OpenSegment* open_segment = NULL
        cdef Segment* segment
        cdef Replica* replica = NULL
        cdef uint16_t copies[COPIES_MAX]
        cdef uint32_t number, blocks
        cdef int i, member, taken, error, count
        while open_segment is NULL:
            for i in range(OPEN_SEGMENTS_MAX):
                if self.all[i].segment is NULL:
                    open_segment = &self.all[i]
            if open_segment is NULL:
                wait_in(&self.changes)
        while True:
            error = self.await_number()
            if error < 0:
                return error
            taken = FOR_WRITES
            member = self.choose_member(FOR_WRITES)
            while member < 0 and taken < urgency:
                taken += 1
                member = self.choose_member(taken)
            if member < 0:
                return member
            error = self.await_members(member, copies, &count)
            if error < 0:
                return error
            self.set_fragment(member, copies, count)
            number = self.next_segment
            blocks = self.blocks_on(member, taken)
            for i in range(count):
                blocks = min(blocks, self.blocks_on(copies[i], taken))
            self.next_segment += 1
            if self.promised < self.next_segment + <uint64_t>self.promise_low:
                self.ask_for_promise()
            self.creating = True
            error = (<Member>self.members[member]).create(
                number, self.epoch, self.fragment, blocks, taken != FOR_WRITES, &replica
            )
            self.creating = False
            if error == -ENOSPC or (error and (<Member>self.members[member]).errors > MEMBER_ERRORS_MAX):
                return error
            if error:
                self.failed(member, -error)
                continue
            segment = self.segments.add(number)
            segment.blocks = blocks
            segment.state = SEGMENT_OPEN
            segment.replica = replica
            segment.member = member
            memcpy(segment.copies, copies, count * sizeof(uint16_t))
            segment.copy_count = count
            error = self.create_copies(segment, blocks, taken != FOR_WRITES, open_segment.boots)
            if error == 0:
                break
            self.drop(segment)
            if error == -ESTALE:
                return error
        open_segment.segment = segment
        open_segment.next_block = open_segment.last_crc = open_segment.records_under_way = open_segment.table_count = 0
        open_segment.committed_block = open_segment.committed_entries = open_segment.committed_crc = 0
        open_segment.urgency = taken
        open_segment.closing = open_segment.given_up = False
        open_segment.left_count = 0
        self.prepared = open_segment
        if taken != FOR_WRITES:
            self.space_ran_out()
        elif self.is_tight():
            self.on_tight(self.owner)
        return 0

    # ------------------------------------------------------------------ replica sets and fragments

    cdef int choose_copies(self, int member, uint16_t* copies) noexcept nogil:
        """The other members of the next segment's replica set, on different nodes: those of the newest fragment first,
        then those with fewest errors, then with most free space; and those that are drained last. Returns their
        number."""
        cdef int count = 0, best, i, k
        cdef bint taken
        cdef uint32_t blocks = self.blocks_on(member, FOR_WRITES)
        while count + 1 < <int>self.replicas:
            best = -1
            for i in range(self.local_count, self.member_count):
                if (
                    not (<Member>self.members[i]).works()
                    or not (<Member>self.members[i]).has_room(blocks, False)
                    or (<Member>self.members[i]).errors > MEMBER_ERRORS_MAX
                    or self.io.now_ns() < self.rests_until_ns[i]
                ):
                    continue
                taken = False
                for k in range(count):
                    taken = taken or (<Member>self.members[copies[k]]).node is (<Member>self.members[i]).node
                if not taken and (best < 0 or self.is_preferred(i, best)):
                    best = i
            if best < 0:
                break
            copies[count] = <uint16_t>best
            count += 1
        return count

    cdef bint is_preferred(self, int one, int other) noexcept nogil:
        cdef bint first = self.in_fragment((<Member>self.members[one]).device())
        if (<Member>self.members[one]).leaving != (<Member>self.members[other]).leaving:
            return (<Member>self.members[other]).leaving
        if first != self.in_fragment((<Member>self.members[other]).device()):
            return first
        return is_better(<Member>self.members[one], <Member>self.members[other])

    cdef bint in_fragment(self, uint32_t device) noexcept nogil:
        cdef int i
        for i in range(<int>REPLICAS_MAX):
            if self.fragment_devices[i] == device and device:
                return True
        return False

    cdef bint has_members(self) noexcept nogil:
        cdef uint16_t copies[COPIES_MAX]
        return self.minimum <= 1 or 1 + self.choose_copies(0, copies) >= <int>self.minimum

    cdef int await_members(self, int member, uint16_t* copies, int* count) noexcept nogil:
        """In a task: wait until enough members work. 0; -ESHUTDOWN: the log ends; -EHOSTUNREACH: it closes."""
        cdef int result = 0
        count[0] = self.choose_copies(member, copies)
        while result == 0 and 1 + count[0] < <int>self.minimum:
            self.too_few = True
            if self.ending:
                result = -ESHUTDOWN
            elif self.members_until_ns and self.io.now_ns() >= self.members_until_ns:
                result = -EHOSTUNREACH
            else:
                self.pause(MEMBERS_POLL_NS)
                count[0] = self.choose_copies(member, copies)
        self.too_few = False
        return result

    cdef void set_fragment(self, int member, const uint16_t* copies, int count) noexcept nogil:
        """The next segment's replica set; another one than before begins a fragment."""
        cdef uint32_t devices[REPLICAS_MAX]
        cdef int i
        if self.replicas <= 1:
            return
        memset(devices, 0, sizeof(devices))
        devices[0] = (<Member>self.members[member]).device()
        for i in range(count):
            devices[1 + i] = (<Member>self.members[copies[i]]).device()
        if self.fragment_begun and self.same_devices(devices, count + 1):
            return
        memcpy(self.fragment_devices, devices, sizeof(devices))
        self.fragment += self.fragment_begun
        self.fragment_begun = True

    cdef bint same_devices(self, const uint32_t* devices, int count) noexcept nogil:
        cdef int i, there = 0
        for i in range(<int>REPLICAS_MAX):
            there += self.fragment_devices[i] != 0
        for i in range(count):
            if not self.in_fragment(devices[i]):
                return False
        return there == count

    cdef int create_copies(self, Segment* segment, uint32_t blocks, bint urgent, uint64_t* boots) noexcept nogil:
        """In a task. 0; -ESTALE: another owner has fenced the volume; or another negative errno, of a member."""
        cdef Replica* _none
        cdef int i, error
        for i in range(segment.copy_count):
            boots[i] = (<Member>self.members[segment.copies[i]]).boot()
            error = (<Member>self.members[segment.copies[i]]).create(
                segment.number, self.epoch, segment.replica.fragment, blocks, urgent, &_none
            )
            if error < 0:
                self.count_error(segment.copies[i])
                return error
        return 0

    cdef void ask_for_fragment(self, const Segment* segment, uint64_t sequence) noexcept nogil:
        cdef uint32_t devices[REPLICAS_MAX]
        cdef int i
        if segment.replica.fragment <= self.fragment_asked:
            return
        memset(devices, 0, sizeof(devices))
        devices[0] = (<Member>self.member_of(segment)).device()
        for i in range(segment.copy_count):
            devices[1 + i] = (<Member>self.members[segment.copies[i]]).device()
        if self.on_fragment(self.owner, segment.replica.fragment, sequence, devices):
            self.fragment_asked = segment.replica.fragment
            self.on_asked(self.log, segment)

    cdef void renew_fragment(self, uint64_t sequence) noexcept nogil:
        cdef OpenSegment* coming = self.current
        if coming is NULL and self.prepared is NULL:
            self.prepare(FOR_WRITES)
        if coming is NULL:
            coming = self.prepared
        if coming is not NULL and not self.is_to_leave(coming):
            self.ask_for_fragment(coming.segment, sequence)

    cdef bint is_agreed(self, const Segment* segment) noexcept nogil:
        return segment.replica.fragment <= self.fragment_agreed or planted(b"fragment_not_agreed")

    cdef bint may_widen(self, const OpenSegment* open_segment) noexcept nogil:
        cdef uint16_t copies[COPIES_MAX]
        cdef int64_t now_ns = self.io.now_ns()
        if 1 + <uint32_t>open_segment.segment.copy_count >= self.replicas or now_ns - self.widen_ns < WIDEN_NS:
            return False
        self.widen_ns = now_ns
        return self.choose_copies(open_segment.segment.member, copies) > open_segment.segment.copy_count

    cdef void count_error(self, int member) noexcept nogil:
        """A device that fails each write would else be tried again at once, with a new segment each time."""
        (<Member>self.members[member]).count_error()
        if (<Member>self.members[member]).errors >= ERRORS_IN_A_ROW:
            self.rests_until_ns[member] = self.io.now_ns() + REST_NS

    cdef void give_up(self, int member) noexcept nogil:
        cdef int i
        self.count_error(member)
        for i in range(OPEN_SEGMENTS_MAX):
            if self.all[i].segment is not NULL and which_copy(self.all[i].segment, member) >= 0:
                self.give_up_copy(&self.all[i], which_copy(self.all[i].segment, member))

    cdef void give_up_copy(self, OpenSegment* open_segment, int which) noexcept nogil:
        cdef Segment* segment = open_segment.segment
        open_segment.given_up = True
        open_segment.left[open_segment.left_count] = segment.copies[which]
        open_segment.left_count += 1
        segment.copy_count -= 1
        segment.copies[which] = segment.copies[segment.copy_count]
        open_segment.boots[which] = open_segment.boots[segment.copy_count]

    cdef void leave_rebooted(self) noexcept nogil:
        """Gives up open copies on machines that have had a power cut since: a flush there would confirm what is gone.
        Also those that do not answer now; a flush would fail."""
        cdef Segment* segment
        cdef int i, k
        for i in range(OPEN_SEGMENTS_MAX):
            segment = self.all[i].segment
            for k in range(segment.copy_count - 1 if segment is not NULL else -1, -1, -1):
                if (<Member>self.members[segment.copies[k]]).boot() != self.all[i].boots[k]:
                    (<Member>self.members[segment.copies[k]]).count_error()
                    self.give_up_copy(&self.all[i], k)

    # ------------------------------------------------------------------ numbers

    cdef int await_number(self) noexcept nogil:
        """In a task: wait until `next_segment` is promised. 0; -ENOSPC: no number is left; -ESHUTDOWN: the log ends;
        -EHOSTUNREACH: it closes, and the metadata service does not answer."""
        cdef Operation timer
        cdef int result = 0
        while result == 0 and self.next_segment > self.promised:
            if self.next_segment == SEGMENTS_END:
                result = -ENOSPC
            elif self.ending:
                result = -ESHUTDOWN
            elif self.give_up_ns and self.io.now_ns() >= self.give_up_ns:
                result = -EHOSTUNREACH
            else:
                self.promise_waited = True
                self.ask_for_promise()
                waited(&timer)
                self.io.after(&timer, PROMISE_POLL_NS)
                wait(&timer)
        self.promise_waited = False
        return result

    cdef void ask_for_promise(self) noexcept nogil:
        if not self.promise_asked and self.promised < SEGMENTS_END - 1:
            self.promise_asked = self.on_promise_low(self.owner)

    cdef void promise(self, uint32_t number) noexcept nogil:
        self.promised = max(self.promised, min(number, <uint32_t>(SEGMENTS_END - 1)))
        self.promise_asked = self.promise_unanswered = False

    cdef void failed(self, int member, int error) noexcept nogil:
        """A request to this member failed: from now on members with fewer errors are preferred."""
        (<Member>self.members[member]).count_error()
        self.on_device_error(self.owner, member, error)

    cdef int choose_member(self, int urgency) noexcept nogil:
        """Number of the member for the next segment: with space below, then fewest errors, then the largest free share.
        -ENOSPC; -EIO if none works."""
        cdef int best = -ENOSPC, i
        cdef bint any_works = False
        for i in range(self.local_count):
            if not (<Member>self.members[i]).works():
                continue
            any_works = True
            if not (<Member>self.members[i]).has_room(self.blocks_on(i, urgency), urgency != FOR_WRITES):
                continue
            if urgency == FOR_TRIMS and not (<Member>self.members[i]).spares(self.blocks_on(i, urgency)):
                continue
            if best < 0 or is_better(<Member>self.members[i], <Member>self.members[best]):
                best = i
        return best if any_works else -EIO

    cdef void lacks_space_below(self, int member) noexcept nogil:
        (<Member>self.members[member]).set_full_below(True)

    cdef void has_space_below(self, int member) noexcept nogil:
        (<Member>self.members[member]).set_full_below(False)

    cdef bint has_other_space(self) noexcept nogil:
        cdef int member = self.choose_member(FOR_WRITES)
        return member >= 0 and not (<Member>self.members[member]).is_full_below()

    cdef uint32_t blocks_on(self, int member, int urgency) noexcept nogil:
        return (<Member>self.members[member]).length(self.segment_blocks, urgency != FOR_WRITES)

    cdef bint admits(self, const OpenSegment* open_segment, int urgency) noexcept nogil:
        return (
            open_segment.urgency <= urgency
            or (urgency == FOR_TRIMS and (<Member>self.member_of(open_segment.segment)).spares(0))
        )

    cdef void close(self, OpenSegment* open_segment) noexcept nogil:
        open_segment.closing = True
        self.sealing += 1
        if self.current is open_segment:
            self.current = NULL
        if self.prepared is open_segment:
            self.prepared = NULL
        start(seal_body, open_segment, NULL)

    cdef bint has_failed(self, const OpenSegment* open_segment) noexcept nogil:
        return (<Member>self.member_of(open_segment.segment)).has_failed()

    cdef bint is_to_leave(self, const OpenSegment* open_segment) noexcept nogil:
        cdef const Segment* segment = open_segment.segment
        cdef int i
        if open_segment.given_up or self.has_failed(open_segment) or (<Member>self.member_of(segment)).is_stalled():
            return True
        for i in range(segment.copy_count):
            if (<Member>self.members[segment.copies[i]]).has_failed() or \
                    (<Member>self.members[segment.copies[i]]).is_stalled():
                return True
        return self.can_be_relieved(segment)

    cdef bint can_be_relieved(self, const Segment* segment) noexcept nogil:
        """A copy is on a device that is drained, and others could take it."""
        cdef uint16_t copies[COPIES_MAX]
        cdef int leaving = self.leaving_among(segment.copies, segment.copy_count), count
        if leaving == 0:
            return False
        count = self.choose_copies(segment.member, copies)
        return count >= segment.copy_count and self.leaving_among(copies, count) < leaving

    cdef int leaving_among(self, const uint16_t* copies, int count) noexcept nogil:
        cdef int i, found = 0
        for i in range(count):
            found += (<Member>self.members[copies[i]]).leaving
        return found

    cdef bint may_be_written(self, const OpenSegment* open_segment) noexcept nogil:
        return (<Member>self.member_of(open_segment.segment)).may_be_written()

    cdef bint any_failed(self) noexcept nogil:
        cdef int i
        for i in range(OPEN_SEGMENTS_MAX):
            if self.all[i].segment is not NULL and self.has_failed(&self.all[i]):
                return True
        return False

    cdef int seal(self, OpenSegment* open_segment) noexcept nogil:
        """In a task, without records under way. 0, or a negative errno: it is not sealed and its data is not stable."""
        cdef uint32_t footer_length = self.build_footer(open_segment)
        cdef int result = self.seal_here(open_segment, footer_length)
        if result < 0:
            self.failed(open_segment.segment.member, -result)
            result = self.seal_elsewhere(open_segment, footer_length)
        if result == 0:
            self.footer_bytes += footer_length * BLOCK_BYTES
        return result

    cdef int seal_here(self, OpenSegment* open_segment, uint32_t footer_length) noexcept nogil:
        """Write the footer, flush, then journal. A footer that cannot be written is left out: recovery reads the
        headers instead. 0, or a negative errno: the device cannot be flushed."""
        cdef Segment* segment = open_segment.segment
        cdef void* member = self.member_of(segment)
        cdef Transfer transfer
        cdef Operation operation
        cdef uint32_t end, footer_block
        cdef int error
        invariant(not self.may_be_written(open_segment), b"no write to a segment is in flight when it is sealed")
        if self.has_failed(open_segment):
            return -EIO
        transfer.error = -ETIMEDOUT
        if not (<Member>member).is_stalled():
            waited(&operation)
            transfer.owner = &operation
            transfer.done = transfer_ends_operation
            self.write(
                &transfer, open_segment, open_segment.next_block, NULL, <const char*>open_segment.footer,
                footer_length, True
            )
            wait(&operation)
            self.leave_copies_behind(open_segment, &transfer)
        footer_block = 0 if transfer.error else open_segment.next_block
        end = open_segment.next_block + (0 if transfer.error else footer_length)
        error = self.make_stable(<Member>member)
        if error and not planted(b"sealed_unflushed"):
            return error
        if (<Member>member).seal(segment.number, self.epoch, segment.replica, end, footer_block, False) < 0:
            self.failed(segment.member, EIO)                # it stays open in the journal: recovery reads its headers
        self.seal_copies(open_segment, end, footer_block)
        self.is_sealed(open_segment, end)
        return 0

    cdef void leave_copies_behind(self, OpenSegment* open_segment, Transfer* transfer) noexcept nogil:
        """Gives up the copies whose footer could not be written. The error that is left is of this node's member."""
        cdef uint32_t i
        cdef int error = 0
        for i in range(transfer.count):
            if error == 0:
                error = <int>min(transfer.operations[i].result, 0)
        transfer.error = error
        for i in range(transfer.call_count):
            if transfer.calls[i].operation.result < 0:
                self.give_up(transfer.members[i])

    cdef void seal_copies(self, OpenSegment* open_segment, uint32_t end, uint32_t footer_block) noexcept nogil:
        """In a task. A copy that cannot be flushed or sealed is given up. Others may be given up meanwhile, too."""
        cdef Segment* segment = open_segment.segment
        cdef uint16_t copies[COPIES_MAX]
        cdef void* member
        cdef int count = segment.copy_count, i, error
        memcpy(copies, segment.copies, sizeof(copies))
        for i in range(count):
            member = self.members[copies[i]]
            if which_copy(segment, copies[i]) < 0:
                continue
            error = self.make_stable(<Member>member)
            if error == 0:
                error = (<Member>member).seal(segment.number, self.epoch, NULL, end, footer_block, False)
            if error == 0:
                (<Member>member).errors = 0
            elif which_copy(segment, copies[i]) >= 0:
                self.count_error(copies[i])
                self.give_up_copy(open_segment, which_copy(segment, copies[i]))

    cdef int seal_elsewhere(self, OpenSegment* open_segment, uint32_t footer_length) noexcept nogil:
        """After a failed flush of its device: write the same segment, sealed, to another device. 0: nothing depends on
        the first device any more; -EUCLEAN: the data read back is not what was written; other errno: no device takes
        it."""
        cdef Segment* segment = open_segment.segment
        cdef uint32_t end = open_segment.next_block + footer_length
        cdef Replica* copy = NULL
        cdef void* member
        cdef int chosen, result
        while True:
            chosen = self.choose_member(FOR_SPACE)
            if chosen < 0:
                return chosen
            member = self.members[chosen]
            result = (<Member>member).reserve(segment.number, end, &copy)
            if result == 0:
                copy.fragment = segment.replica.fragment
                result = self.copy(open_segment, <Member>member, copy, footer_length)
                if result == 0:
                    result = self.make_stable(<Member>member)
                if result == 0:
                    result = (<Member>member).keep(
                        segment.number, copy, segment.replica.epoch, segment.stream, end, open_segment.next_block,
                        SEGMENT_SEALED
                    )
                else:
                    (<Member>member).discard(segment.number, copy)
            if result == 0:
                break
            if result != -EUCLEAN:
                self.failed(chosen, -result)
            if result == -EUCLEAN or (<Member>member).errors > MEMBER_ERRORS_MAX:
                return result
        segment.replica = copy
        segment.member = chosen
        self.moved += 1
        self.is_sealed(open_segment, end)
        return 0

    cdef int copy(
        self, OpenSegment* open_segment, Member member, Replica* into, uint32_t footer_length
    ) noexcept nogil:
        cdef uint32_t block = 0, piece, entry = 0, segment = open_segment.segment.number
        cdef char* buffer = <char*>allocate_aligned(COPY_BLOCKS * BLOCK_BYTES)
        cdef int error = 0
        if buffer is NULL:
            return -ENOMEM
        while error == 0 and block < open_segment.next_block:
            piece = min(open_segment.next_block - block, <uint32_t>COPY_BLOCKS)
            error = self.read_back(open_segment, block, piece, buffer, &entry)
            if error == 0:
                error = member.fill(segment, into, block, piece, buffer)
            block += piece
        if error == 0:
            error = member.fill(segment, into, block, footer_length, open_segment.footer)
        self.io.release(buffer)
        return error

    cdef int read_back(
        self, OpenSegment* open_segment, uint32_t block, uint32_t blocks, char* into, uint32_t* entry
    ) noexcept nogil:
        """Read written blocks and verify their checksums. entry: index of the first in the footer's table. 0 or
        -EUCLEAN."""
        cdef Segment* segment = open_segment.segment
        cdef void* member = self.member_of(segment)
        cdef Operation operation
        cdef uint32_t first = entry[0]
        cdef int tries = 0, result = (<Member>member).read(segment.number, segment.replica, block, blocks, into)
        while result < 0 or not are_listed(open_segment, into, blocks, entry):
            tries += 1
            if tries == READ_TRIES or result == -ETIMEDOUT:          # late data may still arrive in `into`
                return -EUCLEAN
            entry[0] = first
            waited(&operation)
            self.io.after(&operation, READ_AGAIN_NS)
            wait(&operation)
            result = (<Member>member).read(segment.number, segment.replica, block, blocks, into)
        return 0

    cdef void renew_footer(self, OpenSegment* open_segment) noexcept nogil:
        """In a task: the slot's footer and table may be filled again. If a device that does not answer may still read
        them, others take their place."""
        cdef size_t length = BLOCK_BYTES + <size_t>open_segment.table_room * sizeof(Entry) + BLOCK_BYTES
        cdef Footer* another = NULL
        while self.io.holds(open_segment.footer, length):
            another = <Footer*>allocate_aligned(length)
            if another is not NULL:
                self.io.release(open_segment.footer)
                open_segment.footer = another
                open_segment.table = <Entry*>(<char*>another + BLOCK_BYTES)
            else:
                self.pause(LATE_WRITES_NS)

    cdef void pause(self, int64_t ns) noexcept nogil:
        cdef Operation operation
        waited(&operation)
        self.io.after(&operation, ns)
        wait(&operation)

    cdef uint32_t build_footer(self, OpenSegment* open_segment) noexcept nogil:
        """Complete `footer` and its table. Returns the length of both in blocks."""
        cdef Footer* footer = open_segment.footer
        begin_footer(
            footer, self.volume, open_segment.segment.number, open_segment.segment.replica.epoch,
            open_segment.segment.stream
        )
        footer.block = open_segment.next_block
        footer.first_sequence = open_segment.segment.first_sequence
        footer.last_sequence = open_segment.segment.last_sequence
        footer.stable = open_segment.stable
        footer.last_crc = open_segment.last_crc
        return complete_footer(footer, open_segment.table, open_segment.table_count)

    cdef int make_stable(self, Member member) noexcept nogil:
        """In a task: make all completed writes to a device stable. 0 or a negative errno."""
        if not member.volatile_cache:
            return 0
        self.counters[DEVICE_FLUSHES] += 1
        return member.make_stable()

    cdef void is_sealed(self, OpenSegment* open_segment, uint32_t blocks) noexcept nogil:
        open_segment.segment.state = SEGMENT_SEALED
        open_segment.segment.blocks = blocks
        self.counters[SEGMENTS_SEALED] += 1

    cdef void drop(self, Segment* segment) noexcept nogil:
        """In a task: delete a segment without records."""
        # if that fails, recovery finds it empty and drops it
        cdef int i
        for i in range(segment.copy_count):
            (<Member>self.members[segment.copies[i]]).remove(segment.number, self.epoch, NULL)
        (<Member>self.member_of(segment)).remove(segment.number, self.epoch, segment.replica)
        self.segments.remove(segment)

    cdef void drop_left(self, const OpenSegment* open_segment) noexcept nogil:
        """In a task: delete the copies of an empty segment that were given up. Those on nodes that do not answer now go
        when the nodes are back."""
        cdef void* member
        cdef int i
        for i in range(open_segment.left_count):
            member = self.members[open_segment.left[i]]
            if (<Member>member).works():
                (<Member>member).remove(open_segment.segment.number, self.epoch, NULL)

    cdef uint64_t position(self) noexcept nogil:
        if self.current is not NULL:
            return <uint64_t>self.current.segment.number << 32 | self.current.next_block
        if self.prepared is not NULL:
            return <uint64_t>self.prepared.segment.number << 32
        return <uint64_t>(self.next_segment - self.creating) << 32

    cdef bint any_dead(self) noexcept nogil:
        """Whether a checkpoint might allow a segment to be deleted."""
        cdef Segment* segment = self.segments.first
        while segment is not NULL and (segment.live or segment.state != SEGMENT_SEALED):
            segment = segment.next
        return segment is not NULL

    cdef bint is_tight(self) noexcept nogil:
        cdef int i
        for i in range(self.local_count):
            if not (<Member>self.members[i]).is_tight():
                return False
        return True

    cdef bint space_is_coming(self) noexcept nogil:
        return self.making_space > 0 or self.io.now_ns() < self.enospc_deadline_ns

    cdef void end_making_space(self) noexcept nogil:
        """The deadline may have passed: extend it until the cleaning policy has checked whether more space can be
        freed."""
        self.making_space -= 1
        self.enospc_deadline_ns = max(self.enospc_deadline_ns, self.io.now_ns() + self.enospc_timeout_ns)

    cdef void expect_space(self, int64_t ns) noexcept nogil:
        self.enospc_deadline_ns = self.io.now_ns() + ns

    cdef void space_ran_out(self) noexcept nogil:
        """Report it once, then poll for space; the poll wakes the waiting writes."""
        if not self.no_space:
            self.no_space = True
            self.enospc_deadline_ns = self.io.now_ns() + self.enospc_timeout_ns
            self.on_no_space(self.owner)
        if not self.watching_space:
            self.watching_space = True
            start(space_body, <void*>self, NULL)

    cdef void space_freed(self) noexcept nogil:
        cdef int i
        if self.choose_member(FOR_WRITES) < 0:
            return
        self.no_space = self.refusing = False
        for i in range(OPEN_SEGMENTS_MAX):
            self.all[i].urgency = FOR_WRITES
        self.on_change(self.log, 0)


# ---------------------------------------------------------------------- what completions call

cdef void transfer_ends_operation(Transfer* transfer) noexcept nogil:
    cdef Operation* operation = <Operation*>transfer.owner
    operation.result = transfer.error
    operation.done(operation)


# ---------------------------------------------------------------------- tasks

cdef int64_t prepare_body(void* argument) noexcept nogil:
    return prepare_next(<OpenSegments>argument)


cdef int prepare_next(OpenSegments open_segments) noexcept nogil:
    cdef int result = open_segments.prepare_one(open_segments.urgency)
    cdef Operation turn
    open_segments.prepare_error = result
    open_segments.prepare_ended = True
    if result == -ENOSPC:
        open_segments.space_ran_out()
    if result < 0:    # the caller may still be inside an append: no other record may start during it
        waited(&turn)
        open_segments.reactor.at_turn_end(&turn)
        wait(&turn)
    open_segments.preparing = False
    wake_all(&open_segments.changes, 0)
    open_segments.on_change(open_segments.log, 0 if result == -ENOSPC else min(result, 0))
    return result


cdef int64_t space_body(void* argument) noexcept nogil:
    watch_space(<OpenSegments>argument)
    return 0


cdef void watch_space(OpenSegments open_segments) noexcept nogil:
    cdef Operation timer
    while open_segments.no_space and not open_segments.ending:
        waited(&timer)
        open_segments.io.after(&timer, SPACE_POLL_NS)
        wait(&timer)
        open_segments.space_freed()
        if open_segments.no_space and not open_segments.space_is_coming():
            open_segments.on_change(open_segments.log, 0)  # the waiting writes now fail with ENOSPC
            if open_segments.any_dead():
                open_segments.on_dead(open_segments.owner)
    open_segments.watching_space = False
    wake_all(&open_segments.changes, 0)


cdef int64_t seal_body(void* argument) noexcept nogil:
    seal(<OpenSegments>(<OpenSegment*>argument).owner, <OpenSegment*>argument)
    return 0


cdef void seal(OpenSegments open_segments, OpenSegment* open_segment) noexcept nogil:
    cdef Operation turn
    cdef int error
    while open_segment.records_under_way:
        wait_in(&open_segment.quiet)
    while open_segments.may_be_written(open_segment) and not planted(b"sealed_under_write"):
        open_segments.pause(LATE_WRITES_NS)
    if open_segment.next_block == 0:
        open_segments.drop_left(open_segment)
        open_segments.drop(open_segment.segment)
    else:
        error = open_segments.seal(open_segment)
        if error < 0:    # the log may still be inside an append, and must not fail there
            waited(&turn)
            open_segments.reactor.at_turn_end(&turn)
            wait(&turn)
            open_segments.on_lost(open_segments.log, -EIO)
    open_segments.renew_footer(open_segment)
    open_segment.segment = NULL
    open_segments.sealing -= 1
    wake_all(&open_segments.changes, 0)


cdef bint are_listed(const OpenSegment* open_segment, const char* data, uint32_t blocks, uint32_t* at) noexcept nogil:
    """Whether these blocks match the footer's table from entry `at` on; advances `at` past them."""
    cdef const Entry* entry
    cdef uint32_t _i
    for _i in range(blocks):
        while at[0] < open_segment.table_count and open_segment.table[at[0]].kind == KIND_ZERO:
            at[0] += 1
        if at[0] == open_segment.table_count:
            return False
        entry = &open_segment.table[at[0]]
        at[0] += 1
        if entry.kind == KIND_RECORD:
            if (<const RecordHeader*>data).crc != entry.crc or block_crc(data) != entry.crc:
                return False
        elif crc32c(data, BLOCK_BYTES) != entry.crc:
            return False
        data += BLOCK_BYTES
    return True


cdef int which_copy(const Segment* segment, int member) noexcept nogil:
    """Which of the segment's copies this member has; -1: none."""
    cdef int i
    for i in range(segment.copy_count):
        if segment.copies[i] == member:
            return i
    return -1


cdef bint is_better(Member one, Member other) noexcept nogil:
    """Whether the next segment goes to `one`. By free share, devices of different sizes fill up together."""
    if one.is_full_below() != other.is_full_below():
        return other.is_full_below()
    if one.errors != other.errors:
        return one.errors < other.errors
    return one.free_share() > other.free_share()
