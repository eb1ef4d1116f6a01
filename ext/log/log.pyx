# A volume's log: one writer, one sequence of records.
#
# States of a record:
#
#     IDLE -> BUILDING -> WRITING -> WRITTEN -> (committed) IDLE
#
#   BUILDING  writes that arrive in this reactor turn are copied behind its header (group commit). At the end of the
#             turn, or when it is full, it is closed: it gets its sequence number, place and checksum, and is written
#   WRITTEN   its write is complete; it commits once every earlier record has
#   committed the owner applies it to the map and acknowledges it; its buffer returns to the pool
#
# Always true:
#   - records commit in the order of their sequence numbers, without gaps; a write is acknowledged only after its
#     commit;
#   - a record is appended only if the open segment has room for it and for the footer of all records in the segment;
#   - uncommitted records are still in their buffers. After a failed write the segment ends before the first
#     uncommitted record, and these are written to another segment with the same sequence numbers (work_around). Writes
#     in flight are abandoned, not waited for: their answers change nothing, and their memory stays as it is while
#     Io.holds() says so. Therefore a record that is placed again has a copy of its header; the payload is shared;
#   - a write that finds no space under the device (ENOSPC, EDQUOT) goes to another device, or is repeated where it is
#     until there is space, so the log does not grow. After a while its requests, and new ones, fail with ENOSPC
#     (wait_for_space_below, docs/decisions/0024-no-space-below.md);
#   - nothing is appended on a device whose flush has failed (leave_failed). What was appended there moves to another
#     device before it is reported stable (settle). If that fails, the log has failed: every request returns an error
#     until the volume is opened again.
#
# An idle log writes an empty record. Its `stable` field states that everything before it was acknowledged and durable.
# With it, recovery distinguishes a torn, never acknowledged tail from a damaged one.
#
# log/open_segments.pyx manages the segments, log/flusher.pyx the flushes. Format: docs/formats.md, "Record". Called by
# volume, checkpoint and recovery, on the volume's reactor.

from libc.errno cimport EDQUOT, EIO, ENOMEM, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.counters cimport DATA_BLOCKS, MAP_BLOCKS, RECORD_BYTES, RECORDS, TABLE_BLOCKS
from iomesh.engine.log.flusher cimport Flusher
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.base.log_clock cimport next_log_time
from iomesh.engine.format.footer cimport list_record
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, FORMAT_VERSION, KIND_DATA, KIND_MAP, KIND_ZERO, RECORD_MAGIC, Entry, RecordHeader, block_crc)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.pool cimport RECORD
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.log.serving cimport Serving
from iomesh.engine.log.open_segments cimport (
    FOR_SPACE, FOR_TRIMS, FOR_WRITES, OPEN_SEGMENTS_MAX, OpenSegment, OpenSegments
)
from iomesh.engine.replicas.member cimport Member, Transfer, abandon_transfer
from iomesh.engine.base.task cimport join, start, wait_in, wake_all, wake_one

cdef extern from "<errno.h>" nogil:
    int ESTALE

cdef enum:
    IDLE_NS = 50 * 1000 * 1000       # without an append for this long, a log is idle
    HEADER_FIXED = 128               # bytes of a header before its entries
    FULL_ENTRIES = 62                # a quarter of the maximum: the header is then a small share of the record
    BELOW_FIRST_NS = 50 * 1000 * 1000        # pause before a write that found no space below is repeated, ...
    BELOW_LONGEST_NS = 2 * 1000 * 1000 * 1000    # ... which doubles up to this
    GATHER_NS = 200 * 1000           # when space is tight, a record waits this long for clients just acknowledged


cdef class Log:
    """volume: 16 bytes. members: list of Member. Recovery sets the other fields before begin()."""

    def __cinit__(
        self,
        Reactor reactor,
        Pool pool,
        SegmentTable segments,
        list members,
        bytes volume,
        uint64_t epoch,
        uint32_t segment_blocks,
    ):
        cdef int i
        self.reactor, self.io, self.pool, self.segments = reactor, reactor.io, pool, segments
        self.open_segments = OpenSegments(reactor, segments, members, volume, epoch, segment_blocks)
        self.open_segments.log = <void*>self
        self.open_segments.on_change = open_segments_changed
        self.open_segments.on_lost = segment_lost
        self.serving = Serving(self.open_segments)
        self.serving.log = <void*>self
        self.serving.on_fenced = fenced_off
        self.serving.on_silent = member_silent
        self.serving.on_watched = nothing_watched
        self.open_segments.on_asked = fragment_asked
        self.unfenced.done = look_again
        self.unfenced.owner = <void*>self
        self.flusher = Flusher(members)
        self.flusher.log = <void*>self
        self.flusher.on_start = flush_starts
        self.flusher.on_failure = flush_failed
        memcpy(self.volume, <const char*>volume, 16)
        self.epoch = epoch
        self.turn_end.done = turn_ended
        self.pool_wait.done = pool_gave
        self.idle_timer.done = idle_timer_rang
        self.idle_flush.done = idle_flushed
        self.gather_timer.done = gather_timer_rang
        self.turn_end.owner = self.pool_wait.owner = <void*>self
        self.idle_timer.owner = self.idle_flush.owner = self.gather_timer.owner = <void*>self
        for i in range(RECORDS_MAX):
            self.records[i].log = <void*>self
            self.records[i].transfer.owner = &self.records[i]
        self.headers = <char*>allocate_aligned(HEADERS * BLOCK_BYTES)
        if self.headers is NULL:
            raise MemoryError("no memory for a log's headers")

    def __dealloc__(self):
        release_buffer(self.io, self.headers)

    # ------------------------------------------------------------------ appending

    cdef int room(self, int urgency) noexcept nogil:
        cdef Record* record = self.building
        cdef uint32_t blocks
        cdef int result
        if self.error:
            return self.error
        if self.failing:
            return -ENOSPC if self.refusing_below and urgency != FOR_SPACE else 0
        if record is not NULL:
            if not self.open_segments.admits(record.open_segment, urgency):
                return no_room(self)
            blocks = min(record.room - record.payload, <uint32_t>RECORD_ENTRIES_MAX - record.entries)
            if blocks:
                return blocks
            self.close_record()
        result = self.begin_record(urgency)
        return result if result <= 0 else <int>self.building.room

    cdef int begin_record(self, int urgency) noexcept nogil:
        """Start building a record. 1: started; 0: wait in `waiters`; or a negative errno."""
        cdef OpenSegment* open_segment
        cdef Record* record = NULL
        cdef char* buffer
        cdef int i
        self.leave_failed()
        if self.error:
            return self.error
        open_segment = self.open_segments.current
        if open_segment is NULL or self.open_segments.room_of(open_segment) == 0:
            if self.open_segments.prepared is NULL:
                if (
                    self.open_segments.no_space
                    and urgency != FOR_SPACE
                    and (urgency == FOR_WRITES or self.open_segments.choose_member(urgency) < 0)
                ):
                    return no_room(self)
                self.open_segments.prepare(urgency)
                if self.error or not self.open_segments.prepare_ended or self.open_segments.urgency < urgency:
                    return self.error
                if (
                    self.open_segments.prepare_error and self.open_segments.prepare_error != -ENOSPC
                    or urgency == FOR_SPACE
                ):
                    return self.open_segments.prepare_error if self.open_segments.prepare_error else -ENOSPC
                return no_room(self)                     # prepare() ended at once without a segment
            open_segment = self.open_segments.change()
        if not self.open_segments.admits(open_segment, urgency):
            return no_room(self)
        for i in range(RECORDS_MAX):
            if self.records[i].state == RECORD_IDLE:
                record = &self.records[i]
                break
        if record is NULL:
            return 0
        buffer = self.pool.take(RECORD)
        if buffer is NULL:
            if not self.pool_wait_asked:
                self.pool_wait_asked = True
                join(&self.pool.waiters[<int>RECORD], &self.pool_wait)
            return 0
        record.buffer = buffer
        record.header = <RecordHeader*>buffer
        record.copy = -1
        record.placed = False
        record.state = RECORD_BUILDING
        record.open_segment = open_segment
        record.entries = record.payload = record.part_count = 0
        record.room = self.open_segments.room_of(open_segment)
        self.building = record
        self.ask_turn_end()
        return 1

    cdef void add_data(self, uint64_t block, uint32_t count, const char* data, Part part) noexcept nogil:
        cdef Record* record = self.building
        cdef Entry* entry = &record.header.entries[record.entries]
        cdef char* into = <char*>record.header + (1 + record.payload) * BLOCK_BYTES
        cdef uint32_t i
        invariant(
            count <= record.room - record.payload and count <= RECORD_ENTRIES_MAX - record.entries,
            b"what is appended fits the record",
        )
        self.begin_part(part, count)
        self.changed = self.sequence + 1
        for i in range(count):
            if data is NULL:
                memset(into, 0, BLOCK_BYTES)
            else:
                memcpy(into, data, BLOCK_BYTES)
                data += BLOCK_BYTES
            entry.position = block + i
            entry.crc = crc32c(into, BLOCK_BYTES)    # of the copy: it is cached, and the client may change its buffer
            entry.count = 1
            entry.kind = KIND_DATA
            entry.flags = 0
            entry += 1
            into += BLOCK_BYTES
        record.entries += count
        record.payload += count
        self.counters[DATA_BLOCKS] += count

    cdef void add_zero(self, uint64_t block, uint32_t count, Part part) noexcept nogil:
        cdef Record* record = self.building
        cdef Entry* entry = &record.header.entries[record.entries]
        invariant(record.entries < RECORD_ENTRIES_MAX, b"what is appended fits the record")
        self.begin_part(part, 1)
        self.changed = self.sequence + 1
        entry.position = block
        entry.crc = 0
        entry.count = count
        entry.kind = KIND_ZERO
        entry.flags = 0
        record.entries += 1

    cdef void add_block(self, int kind, uint64_t position, uint8_t flags, const void* data, Part part) noexcept nogil:
        cdef Record* record = self.building
        cdef Entry* entry = &record.header.entries[record.entries]
        cdef char* into = <char*>record.header + (1 + record.payload) * BLOCK_BYTES
        invariant(
            record.payload < record.room and record.entries < RECORD_ENTRIES_MAX, b"what is appended fits the record"
        )
        self.begin_part(part, 1)
        memcpy(into, data, BLOCK_BYTES)
        entry.position = position
        entry.crc = crc32c(into, BLOCK_BYTES)
        entry.count = 1
        entry.kind = kind
        entry.flags = flags
        record.entries += 1
        record.payload += 1
        self.counters[MAP_BLOCKS if kind == KIND_MAP else TABLE_BLOCKS] += 1

    cdef Part* begin_part(self, Part part, uint32_t entries) noexcept nogil:
        cdef Record* record = self.building
        cdef Part* into = &record.parts[record.part_count]
        record.part_count += 1
        into[0] = part
        into.first = record.entries
        into.count = entries
        if planted(b"acknowledge_early"):
            into.request = NULL
        if into.request is not NULL:
            into.request.parts += 1
        self.ask_turn_end()
        return into

    cdef uint64_t last_appended(self) noexcept nogil:
        return self.sequence + 1 if self.building is not NULL and self.building.entries else self.sequence

    # ------------------------------------------------------------------ writing

    cdef void ask_turn_end(self) noexcept nogil:
        if not self.turn_end_asked:
            self.turn_end_asked = True
            self.reactor.at_turn_end(&self.turn_end)

    cdef void close_record(self) noexcept nogil:
        cdef Record* record = self.building
        cdef RecordHeader* header = record.header
        self.building = NULL
        if self.gather_timer_set and self.io.cancel(&self.gather_timer):
            self.gather_timer_set = False
        self.sequence += 1
        record.sequence = self.sequence
        if record.entries:
            self.content = record.sequence
        memset(header, 0, HEADER_FIXED)
        memset(&header.entries[record.entries], 0, (RECORD_ENTRIES_MAX - record.entries) * sizeof(Entry))
        header.magic = RECORD_MAGIC
        header.version = FORMAT_VERSION
        memcpy(header.volume, self.volume, 16)
        header.epoch = self.epoch
        header.sequence = record.sequence
        header.stable = self.marked = self.committed if planted(b"stable_is_committed") else self.flusher.stable
        header.entry_count = record.entries
        header.payload_blocks = record.payload
        header.time_ns = self.recorded_ns = next_log_time(&self.clock, self.io)
        header.clock_ns = self.clock.offset_ns
        self.closed_ns = self.io.now_ns()
        record.next = NULL
        if self.newest is NULL:
            self.oldest = record
        else:
            self.newest.next = record
        self.newest = record
        self.under_way += record.entries
        self.counters[RECORDS] += 1
        self.counters[RECORD_BYTES] += (1 + record.payload) * BLOCK_BYTES
        self.place(record, record.open_segment)

    cdef void place(self, Record* record, OpenSegment* open_segment) noexcept nogil:
        """Assign a closed record its place in `open_segment` and write it there. If it was placed before, its header is
        a copy by now (copy_header)."""
        cdef RecordHeader* header = record.header
        cdef uint32_t blocks = 1 + record.payload
        record.open_segment = open_segment
        record.block = open_segment.next_block
        header.segment = open_segment.segment.number
        header.block = record.block
        header.stream = open_segment.segment.stream
        header.previous_crc = open_segment.last_crc
        header.crc = block_crc(header)
        open_segment.last_crc = header.crc
        open_segment.stable = header.stable
        open_segment.next_block += blocks
        open_segment.records_under_way += 1
        invariant(
            open_segment.table_count + 1 + record.entries <= open_segment.table_room,
            b"the footer's table has room for every record",
        )
        open_segment.table_count = list_record(
            open_segment.table, open_segment.table_count, record.sequence, header.crc, header.entries, record.entries
        )
        if open_segment.segment.first_sequence == 0:
            open_segment.segment.first_sequence = record.sequence
        open_segment.segment.last_sequence = record.sequence
        self.bytes += blocks * BLOCK_BYTES
        record.placed = True
        self.ask_for_fragment()
        self.write_placed(record)

    cdef void ask_for_fragment(self) noexcept nogil:
        """A fragment begins with the first record that is not committed: what is before it is on all members of the
        earlier ones, and recovery relies on that."""
        if self.oldest is not NULL and self.oldest.placed and (
            self.oldest.sequence == self.committed + 1 or planted(b"fragment_begins_early")
        ):
            self.open_segments.ask_for_fragment(self.oldest.open_segment.segment, self.oldest.sequence)

    cdef void write_placed(self, Record* record) noexcept nogil:
        """Write a record where it is placed, for the first time or again."""
        cdef OpenSegment* open_segment = record.open_segment
        record.state = RECORD_WRITING
        record.transfer.done = record_written
        if record.copy < 0:
            self.open_segments.write(
                &record.transfer, open_segment, record.block, NULL, record.buffer, 1 + record.payload, False
            )
        else:
            self.open_segments.write(
                &record.transfer, open_segment, record.block, <const char*>record.header,
                record.buffer + BLOCK_BYTES, 1 + record.payload, False
            )

    cdef bint copy_header(self, Record* record) noexcept nogil:
        """The header for another placement: an abandoned write may still read the previous one. False: every copy is in
        use."""
        cdef RecordHeader* before = record.header
        cdef int i
        if planted(b"header_edited_in_place"):
            return True
        for i in range(HEADERS):
            if not self.headers_taken[i] and not self.io.holds(self.headers + i * BLOCK_BYTES, BLOCK_BYTES):
                self.headers_taken[i] = True
                if record.copy >= 0:
                    self.headers_taken[record.copy] = False
                record.copy = i
                record.header = <RecordHeader*>(self.headers + i * BLOCK_BYTES)
                memcpy(record.header, before, BLOCK_BYTES)
                return True
        return False

    cdef void turn_ends(self) noexcept nogil:
        """Write the batch, unless more entries are in flight than it has: then it waits for the next turn or a commit.

        A record costs a header block, a submission and a completion: some 10 µs, which 32 writes in one record share. A
        reactor that writes each turn's batch at once spends its core on records of one to five writes. Waiting for as
        many entries as are in flight keeps half of a busy client's queue at the device and half in the next record, at
        any queue depth. A write to an idle log never waits, and no write waits longer than the device takes for the
        records before it.

        When space is tight, each header also costs several blocks of cleaning. Then a small record waits until nothing
        is in flight, and briefly for the next writes of the clients just acknowledged (gathers): a busy client's whole
        queue shares one header.
        """
        cdef uint32_t least = self.under_way
        self.turn_end_asked = False
        if self.building is NULL:
            return
        if self.building.entries == 0:                   # another log may wait for its buffer
            if not planted(b"empty_record_kept"):
                self.give_up_record()
            return
        if least and self.open_segments.is_tight():
            least = max(least, <uint32_t>FULL_ENTRIES)
        if self.building.entries >= least and not self.gathers():
            self.close_record()

    cdef void give_up_record(self) noexcept nogil:
        cdef Record* record = self.building
        self.building = NULL
        self.free_record(record)

    cdef bint gathers(self) noexcept nogil:
        """Whether the record being built waits for more writes of the clients just acknowledged."""
        if (
            self.under_way
            or self.draining
            or self.building.entries >= self.batch_target
            or not self.open_segments.is_tight()
        ):
            return False
        if not self.gather_timer_set:
            self.gather_timer_set = True
            self.io.after(&self.gather_timer, GATHER_NS)
        return True

    cdef void gathered(self) noexcept nogil:
        """The wait for further writes is over."""
        self.gather_timer_set = False
        self.batch_target = 0
        if self.building is not NULL:
            self.ask_turn_end()

    cdef void buffer_came(self) noexcept nogil:
        self.pool_wait_asked = False
        wake_all(&self.waiters, 0)
        if self.pool.free[<int>RECORD]:                  # not taken after all: wake the next waiter
            wake_one(&self.pool.waiters[<int>RECORD], 0)

    # ------------------------------------------------------------------ committing

    cdef void advance(self) noexcept nogil:
        """Commit written records, in order."""
        cdef bint progress = False
        while self.oldest is not NULL and self.oldest.state == RECORD_WRITTEN and not self.failing:
            if self.oldest.transfer.error:
                self.failing = self.working_around = True
                start(work_around_body, <void*>self, NULL)
                break
            if not self.open_segments.is_agreed(self.oldest.open_segment.segment):
                break                                    # the metadata service does not know the fragment yet
            if not self.serving.is_unfenced():
                if not self.unfenced_waits:
                    self.unfenced_waits = True
                    self.serving.await_leases(&self.unfenced)
                break
            self.commit(self.oldest)
            progress = True
        if self.building is not NULL:
            self.ask_turn_end()
        if progress or self.failing:
            wake_all(&self.commits, 0)
        if progress:
            self.ask_for_fragment()
            wake_all(&self.waiters, 0)
            self.watch_idle()

    cdef void commit(self, Record* record) noexcept nogil:
        cdef OpenSegment* open_segment = record.open_segment
        cdef int i
        invariant(record.sequence == self.committed + 1, b"records commit in order, without gaps")
        self.oldest = record.next
        if self.oldest is NULL:
            self.newest = NULL
        self.under_way -= record.entries
        if self.under_way == 0:
            self.batch_target = record.entries + (self.building.entries if self.building is not NULL else 0)
        self.committed = record.sequence
        self.flusher.wrote(open_segment.segment.member)
        for i in range(open_segment.segment.copy_count):
            self.flusher.wrote(open_segment.segment.copies[i])
        self.flusher.commits(record.sequence)
        self.open_segments.has_space_below(open_segment.segment.member)
        open_segment.committed_block = record.block + 1 + record.payload
        open_segment.committed_entries += 1 + record.entries
        open_segment.committed_crc = record.header.crc
        open_segment.records_under_way -= 1
        self.on_commit(self.owner, record)
        self.free_record(record)
        if open_segment.closing and open_segment.records_under_way == 0:
            wake_all(&open_segment.quiet, 0)

    cdef void free_record(self, Record* record) noexcept nogil:
        cdef char* buffer = record.buffer
        if record.copy >= 0:
            self.headers_taken[record.copy] = False
        record.buffer = NULL
        record.header = NULL
        record.state = RECORD_IDLE
        self.pool.give_back(buffer)                      # may wake a waiter that reuses this record at once

    # ------------------------------------------------------------------ errors of devices

    cdef void segments_changed(self, int error) noexcept nogil:
        """A new segment may have room; with an error, there will be no further segment."""
        if error and self.open_segments.current is NULL and self.oldest is NULL:
            self.break_off(error)
        wake_all(&self.waiters, 0)

    cdef void abandon_writes(self) noexcept nogil:
        """Writes in flight are not awaited any more. They may still arrive, in segments that end before them."""
        cdef Record* record = self.oldest
        while record is not NULL:
            if record.state == RECORD_WRITING:
                if not planted(b"late_write_commits"):
                    abandon_transfer(self.io, &record.transfer)
                record.state = RECORD_WRITTEN
            record = record.next

    cdef void wait_for_calls(self) noexcept nogil:
        """In a task: until no call to another node reads the memory of a record under way. A node that does not answer
        loses its connection, which ends its calls."""
        cdef Record* record = self.oldest
        while record is not NULL:
            if record.transfer.calls_left:
                wait_in(&self.commits)
                record = self.oldest
            else:
                record = record.next

    cdef void end_at_committed(self, OpenSegment* open_segment) noexcept nogil:
        """The segment ends behind its last committed record: those behind it are written elsewhere, or never."""
        open_segment.records_under_way = 0
        open_segment.next_block = open_segment.committed_block
        open_segment.table_count = open_segment.committed_entries
        open_segment.last_crc = open_segment.committed_crc
        open_segment.segment.last_sequence = min(open_segment.segment.last_sequence, self.committed)
        if open_segment.closing:
            wake_all(&open_segment.quiet, 0)

    cdef int work_around(self) noexcept nogil:
        """In a task, after a failed write: seal the committed part, rewrite the rest elsewhere. 0 or a negative
        errno."""
        cdef Record* record
        cdef OpenSegment* open_segment
        cdef int i, told = -1
        if self.building is not NULL:
            self.close_record()
        self.abandon_writes()
        self.wait_for_calls()
        if self.error:
            return self.error
        record = self.oldest
        while record is not NULL:
            if record.transfer.error == -ESTALE:
                return -ESTALE                           # another owner has fenced the volume
            if is_full(record.transfer.error):
                self.open_segments.lacks_space_below(record.transfer.failed)
            elif record.transfer.error and record.transfer.failed >= self.open_segments.local_count:
                self.open_segments.give_up(record.transfer.failed)
            elif record.transfer.error and record.transfer.failed != told:
                told = record.transfer.failed
                self.open_segments.failed(told, -record.transfer.error)
            record = record.next
        for i in range(OPEN_SEGMENTS_MAX):
            open_segment = &self.open_segments.all[i]
            if open_segment.segment is NULL or open_segment.records_under_way == 0:
                continue
            self.end_at_committed(open_segment)
            if not open_segment.closing:
                self.open_segments.close(open_segment)
        record = self.oldest
        while record is not NULL:
            # One whose copy was given up is of the fragment that ends, also if nothing was written there yet.
            if self.open_segments.current is NULL or self.open_segments.current.given_up or \
                    self.open_segments.room_of(self.open_segments.current) < max(record.payload, 1):
                if self.open_segments.replace() is NULL:
                    return -EIO
                if self.error:
                    return self.error                    # a flush has failed meanwhile
            if record.placed and not self.copy_header(record):
                return -ENOMEM
            self.place(record, self.open_segments.current)
            record = record.next
        return 0

    cdef int wait_for_space_below(self) noexcept nogil:
        """In a task, after a write that found no space under its device. 0 once all is written; or what work_around()
        returns, which takes over when there is another device or another error; or -ENOSPC: the volume is being
        closed."""
        cdef Record* record
        cdef int64_t deadline_ns = self.io.now_ns() + self.open_segments.below_wait_ns, pause_ns = BELOW_FIRST_NS
        cdef int error = 0
        while True:
            while not self.is_written(&error):
                wait_in(&self.commits)
                if self.error:
                    return self.error
            if error == 0:
                self.refusing_below = False
                return 0
            if not is_full(error) or self.open_segments.has_other_space():
                return self.work_around()
            if self.open_segments.ending or (self.giving_up and self.io.now_ns() >= deadline_ns):
                self.refuse_below()
                return -ENOSPC
            if not self.refusing_below and self.io.now_ns() >= deadline_ns:
                self.refuse_below()
            self.open_segments.pause(pause_ns)
            if self.error:
                return self.error
            pause_ns = min(2 * pause_ns, <int64_t>BELOW_LONGEST_NS)
            record = self.oldest
            while record is not NULL:
                if record.state == RECORD_WRITTEN and record.transfer.error:
                    self.write_placed(record)
                record = record.next

    cdef bint is_written(self, int* error) noexcept nogil:
        """Whether no write of a record is in flight. error: the first one's; others before ENOSPC."""
        cdef Record* record = self.oldest
        error[0] = 0
        while record is not NULL:
            if record.state == RECORD_WRITING:
                return False
            if record.transfer.error:
                if is_full(record.transfer.error):
                    self.open_segments.lacks_space_below(record.transfer.failed)
                if error[0] == 0 or is_full(error[0]):
                    error[0] = record.transfer.error
            record = record.next
        return True

    cdef void refuse_below(self) noexcept nogil:
        cdef Record* record
        if self.building is not NULL:
            self.close_record()
        self.refusing_below = True
        self.refused_below += 1
        self.refused_until = self.sequence
        record = self.oldest
        while record is not NULL:
            self.on_refuse(self.owner, record)
            record = record.next
        wake_all(&self.commits, 0)
        wake_all(&self.waiters, 0)

    cdef void break_off(self, int error) noexcept nogil:
        """In a task: fail the log permanently. Records under way never commit."""
        cdef Record* record
        cdef int i
        if self.error:
            return
        self.error = error
        self.failing = self.open_segments.ending = self.serving.over = True
        if error == -ESTALE and self.on_lost is not NULL:
            self.on_lost(self.owner)
        if self.building is not NULL:
            self.close_record()
        self.abandon_writes()
        self.wait_for_calls()
        while self.oldest is not NULL:
            record = self.oldest
            self.oldest = record.next
            self.under_way -= record.entries
            self.on_abort(self.owner, record)
            self.free_record(record)
        self.newest = NULL
        for i in range(OPEN_SEGMENTS_MAX):
            if self.open_segments.all[i].segment is not NULL:
                self.end_at_committed(&self.open_segments.all[i])
        self.failing = False
        wake_all(&self.commits, error)
        wake_all(&self.waiters, error)
        wake_all(&self.open_segments.changes, error)

    cdef void leave_failed(self) noexcept nogil:
        """Stop appending to segments on devices whose flush has failed, or that do not answer; or with fewer replicas
        than there can be now."""
        cdef OpenSegment* current = self.open_segments.current
        cdef OpenSegment* prepared = self.open_segments.prepared
        cdef bint widens = current is not NULL and self.open_segments.may_widen(current)
        if prepared is not NULL and (
            self.open_segments.is_to_leave(prepared)
            or (widens and prepared.segment.copy_count <= current.segment.copy_count)
        ):
            self.open_segments.close(prepared)
        if current is NULL or not (widens or self.open_segments.is_to_leave(current)):
            return
        if self.building is not NULL and self.building.entries == 0:
            self.give_up_record()
        elif self.building is not NULL:
            self.close_record()
        if self.open_segments.current is current:
            self.open_segments.close(current)

    # ------------------------------------------------------------------ the empty record of an idle log

    cdef void watch_idle(self) noexcept nogil:
        if (
            self.marked < self.content
            and self.oldest is NULL
            and not self.idle_timer_set
            and not self.open_segments.ending
        ):
            self.idle_timer_set = True
            self.io.after(&self.idle_timer, IDLE_NS)

    cdef void idle_timer_rang(self) noexcept nogil:
        self.idle_timer_set = False
        self.fell_idle()

    cdef void idle_flushed(self, int64_t result) noexcept nogil:
        self.idle_flushing = False
        if result == 0:
            self.fell_idle()

    cdef void fell_idle(self) noexcept nogil:
        if (
            self.oldest is not NULL
            or self.building is not NULL
            or self.failing
            or self.open_segments.ending
            or self.error
        ):
            return                                       # not idle: the next commit sets the timer again
        if self.marked >= self.content:
            return
        if self.io.now_ns() - self.closed_ns < IDLE_NS:
            self.watch_idle()                            # there was an append since the timer was set
        elif self.flusher.stable < self.content:
            if not self.idle_flushing or planted(b"idle_flush_twice"):
                self.idle_flushing = True
                self.flusher.flush(&self.idle_flush)
        elif self.begin_record(FOR_TRIMS) == 1:
            self.close_record()                          # an empty record: its header states what is stable

    # ------------------------------------------------------------------ for tasks

    cdef int wait_room(self) noexcept nogil:
        cdef int room = self.room(FOR_SPACE)
        while room == 0:
            wait_in(&self.waiters)
            room = self.room(FOR_SPACE)
        return min(room, 0)

    cdef int wait_committed(self, uint64_t sequence) noexcept nogil:
        while self.committed < sequence and not self.error:
            wait_in(&self.commits)
        return self.error

    cdef int wait_committed_or_refused(self, uint64_t sequence) noexcept nogil:
        while self.committed < sequence and not self.error and not self.refusing_below:
            wait_in(&self.commits)
        return self.error if self.error or self.committed >= sequence else -ENOSPC

    cdef void enter(self) noexcept nogil:
        cdef int i
        for i in range(self.open_segments.local_count):
            (<Member>self.open_segments.members[i]).enter(self.epoch, <void*>self, fenced_here)

    cdef void leave(self) noexcept nogil:
        cdef int i
        for i in range(self.open_segments.local_count):
            (<Member>self.open_segments.members[i]).leave()

    cdef void agree_fragment(self, uint32_t number) noexcept nogil:
        self.open_segments.fragment_agreed = max(self.open_segments.fragment_agreed, number)
        self.serving.agreed(number)
        wake_all(&self.open_segments.changes, 0)
        if not self.failing:
            self.advance()

    cdef void tend(self) noexcept nogil:
        cdef OpenSegment* prepared
        if (
            self.error
            or self.failing
            or self.draining
            or self.oldest is not NULL
            or self.building is not NULL
            or self.open_segments.ending
            or self.open_segments.preparing
            or self.open_segments.no_space
            or not self.open_segments.has_members()
        ):
            return
        self.leave_failed()
        prepared = self.open_segments.prepared
        if self.error:
            return
        if self.open_segments.current is NULL and prepared is not NULL and self.open_segments.may_widen(prepared):
            self.open_segments.close(prepared)
        self.open_segments.renew_fragment(self.sequence + 1)

    cdef void finish(self) noexcept nogil:
        cdef Segment* prepared
        self.open_segments.ending = True
        if self.idle_timer_set:
            self.io.cancel(&self.idle_timer)
            self.idle_timer_set = False
        if self.building is not NULL:
            self.close_record()
        self.wait_committed(self.sequence)
        while self.failing or self.working_around or self.open_segments.preparing or self.serving.watching:
            wait_in(&self.waiters)
        if self.open_segments.current is not NULL and self.error == 0:
            self.open_segments.close(self.open_segments.current)
        if self.open_segments.prepared is not NULL and self.error == 0:
            prepared = self.open_segments.prepared.segment
            self.open_segments.prepared.segment = NULL
            self.open_segments.prepared = NULL
            self.open_segments.drop(prepared)
        while self.open_segments.sealing or self.flusher.left:           # a flush that fails closes segments
            wait_in(&self.open_segments.changes if self.open_segments.sealing else &self.flusher.served)
        while self.pool_wait_asked:
            wait_in(&self.waiters)
        while self.open_segments.watching_space:
            wait_in(&self.open_segments.changes)


cdef inline bint is_full(int error) noexcept nogil:
    """The storage under a device has no space: a sparse file on a full file system, a thin volume."""
    return error == -ENOSPC or error == -EDQUOT


cdef inline int no_room(Log log) noexcept nogil:
    """Result for a write without space: 0 (wait in `waiters`) while a cleaner is making space, otherwise -ENOSPC."""
    return 0 if log.open_segments.space_is_coming() else -ENOSPC


# ---------------------------------------------------------------------- what completions call

cdef void turn_ended(Operation* operation) noexcept nogil:
    (<Log>operation.owner).turn_ends()


cdef void record_written(Transfer* transfer) noexcept nogil:
    cdef Record* record = <Record*>transfer.owner
    if transfer.abandoned:                               # its last call has ended
        wake_all(&(<Log>record.log).commits, 0)
        return
    record.state = RECORD_WRITTEN
    (<Log>record.log).advance()


cdef void open_segments_changed(void* log, int error) noexcept nogil:
    (<Log>log).segments_changed(error)


cdef void fragment_asked(void* log, const Segment* segment) noexcept nogil:
    (<Log>log).serving.asks(segment)


cdef int64_t fenced_here(void* log) noexcept nogil:
    (<Log>log).break_off(-ESTALE)
    return 0


cdef void fenced_off(void* log) noexcept nogil:
    (<Log>log).break_off(-ESTALE)


cdef void member_silent(void* log) noexcept nogil:
    """Reads wait for its lease: if nothing is written, nobody else notices."""
    if not (<Log>log).failing and not (<Log>log).error and (<Log>log).oldest is NULL:
        (<Log>log).leave_failed()
        (<Log>log).open_segments.renew_fragment((<Log>log).sequence + 1)


cdef void nothing_watched(void* log) noexcept nogil:
    wake_all(&(<Log>log).waiters, 0)


cdef void look_again(Operation* operation) noexcept nogil:
    (<Log>operation.owner).unfenced_waits = False
    if not (<Log>operation.owner).failing:
        (<Log>operation.owner).advance()


cdef void segment_lost(void* log, int error) noexcept nogil:
    (<Log>log).break_off(error)


cdef void flush_starts(void* log) noexcept nogil:
    if is_any_rebooted((<Log>log).open_segments):
        end_building(<Log>log)
        (<Log>log).open_segments.leave_rebooted()


cdef bint is_any_rebooted(OpenSegments open_segments) noexcept nogil:
    cdef const Segment* segment
    cdef int i, k
    for i in range(OPEN_SEGMENTS_MAX):
        segment = open_segments.all[i].segment
        for k in range(segment.copy_count if segment is not NULL else 0):
            if (<Member>open_segments.members[segment.copies[k]]).boot() != open_segments.all[i].boots[k]:
                return True
    return False


cdef void end_building(Log log) noexcept nogil:
    """Before a copy is given up: a record that is begun goes to all members of its segment. Later it would commit there
    without the one that is given up, in a fragment whose members all have every record."""
    if log.building is NULL or log.failing or log.error or planted(b"record_after_give_up"):
        return
    if log.building.entries:
        log.close_record()
    else:
        log.give_up_record()


cdef void flush_failed(void* log) noexcept nogil:
    start(settle_body, log, NULL)


cdef void pool_gave(Operation* operation) noexcept nogil:
    (<Log>operation.owner).buffer_came()


cdef void idle_timer_rang(Operation* operation) noexcept nogil:
    (<Log>operation.owner).idle_timer_rang()


cdef void gather_timer_rang(Operation* operation) noexcept nogil:
    (<Log>operation.owner).gathered()


cdef void idle_flushed(Operation* operation) noexcept nogil:
    (<Log>operation.owner).idle_flushed(operation.result)


# ---------------------------------------------------------------------- tasks

cdef int64_t work_around_body(void* argument) noexcept nogil:
    return go_on_elsewhere(<Log>argument)


cdef int64_t settle_body(void* argument) noexcept nogil:
    settle(<Log>argument)
    return 0


cdef void settle(Log log) noexcept nogil:
    """A device flush has failed: move what is not stable there to another device, or fail the log. The other members
    of a replica set have what a device of another node has."""
    cdef uint32_t i
    for i in range(<uint32_t>log.open_segments.local_count, log.flusher.member_count):
        if log.flusher.members[i].failed:
            end_building(log)
            log.open_segments.give_up(i)
    log.leave_failed()
    while log.error == 0 and log.open_segments.any_failed():
        wait_in(&log.open_segments.changes)
        log.leave_failed()                               # a segment may have been prepared there meanwhile
    log.flusher.settled(log.error)


cdef int go_on_elsewhere(Log log) noexcept nogil:
    cdef int result = log.wait_for_space_below() if is_full(log.oldest.transfer.error) else log.work_around()
    log.refusing_below = log.working_around = False
    if log.error:                                        # break_off() has run meanwhile and handles the rest
        wake_all(&log.waiters, 0)
        return result
    log.failing = False
    if result < 0:
        log.break_off(result)
    wake_all(&log.commits, 0)
    wake_all(&log.waiters, 0)
    log.advance()
    return result
