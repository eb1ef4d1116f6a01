# A volume's log: one writer, one sequence of records.
#
# A record's life:
#
#     IDLE -> BUILDING -> WRITING -> WRITTEN -> (committed) IDLE
#
#   BUILDING  what arrives in this turn of the reactor is copied behind its header (group commit); at the turn's end, or when it is
#             full, it is closed: it gets its sequence number, its place and its checksum, and is written
#   WRITTEN   its write is complete; it commits once every earlier record has
#   committed the owner applies it to the map and acknowledges; its buffer goes back to the pool
#
# Always true:
#   - records commit in the order of their sequence numbers, without gaps; nothing is acknowledged before;
#   - a record is appended only while the open segment has room for it and for the footer that all its records need;
#   - at most one tail is appended to (`current`) and one is ready to follow it (`prepared`), so changing segments waits for nothing;
#   - a sealed segment is complete, on stable media and recorded in its store's journal, in this order;
#   - what a failed write did not commit is still in its records' buffers: the segment is sealed before it and the records are
#     written again, with the same numbers, in another segment (work_around).
#
# When a log falls idle it writes an empty record: its `stable` says that everything before it was acknowledged and durable, so recovery
# can tell a tail that was torn (and never acknowledged) from one that was damaged.
#
# Formats: docs/formats.md, "Records" and "Footers". Called by volume, checkpoint and recovery, on the volume's reactor.

from libc.errno cimport EIO, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free as release
from libc.string cimport memcpy, memset

from iomesh.engine.checksum cimport crc32c
from iomesh.engine.counters cimport DATA_BLOCKS, DEVICE_FLUSHES, MAP_BLOCKS, RECORD_BYTES as COUNT_RECORD_BYTES, RECORDS, SEGMENTS_SEALED, TABLE_BLOCKS
from iomesh.engine.invariant cimport invariant
from iomesh.engine.io cimport Operation
from iomesh.engine.layout cimport (
    BLOCK_BYTES, FOOTER_MAGIC, FORMAT_VERSION, KIND_DATA, KIND_MAP, KIND_RECORD, KIND_TABLE, KIND_ZERO, POINTER_PRESENT,
    RECORD_MAGIC, SEGMENT_OPEN, SEGMENT_SEALED, Entry, Footer, Pointer, RecordHeader, block_crc)
from iomesh.engine.pool cimport RECORD
from iomesh.engine.reactor cimport call_on
from iomesh.engine.segments cimport Segment
from iomesh.engine.store cimport Replica, Store, replica_offset
from iomesh.engine.task cimport Waiters, join, start, wait, wait_in, waited, wake_all, wake_one

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** into, size_t alignment, size_t bytes)

cdef enum:
    DEPTH = 4                        # see Log.depth
    IDLE_NS = 50 * 1000 * 1000       # a log is idle when nothing was appended for so long
    SPACE_POLL_NS = 100 * 1000 * 1000    # how often a log that found no space looks again
    ENTRIES_PER_BLOCK = 256          # of a footer's table
    STORE_ERRORS_MAX = 64            # of one store before a log that found no other gives up
    HEADER_FIXED = 128               # bytes of a header before its entries


cdef class Log:
    """volume: 16 bytes. stores: list of Store. The rest is filled in by recovery before begin()."""

    def __cinit__(self, Reactor reactor, Pool pool, Segments segments, list stores, bytes volume, uint64_t epoch, uint32_t segment_blocks):
        cdef int i
        cdef void* memory
        self.reactor, self.io, self.pool, self.segments = reactor, reactor.io, pool, segments
        self.store_list = stores
        self.store_count = len(stores)
        if not 0 < self.store_count <= STORES_MAX:
            raise ValueError(f"a volume needs 1 to {STORES_MAX} stores, not {self.store_count}")
        for i in range(self.store_count):
            self.stores[i] = <void*>stores[i]
            if (<Store>stores[i]).volatile_cache:
                self.volatile_devices |= <uint64_t>1 << (<Store>stores[i]).device
        memcpy(self.volume, <const char*>volume, 16)
        self.epoch = epoch
        self.segment_blocks = segment_blocks
        self.depth = DEPTH
        self.turn_end.done = turn_ended
        self.pool_wait.done = pool_gave
        self.idle_timer.done = idle_timer_rang
        self.idle_flush.done = idle_flushed
        self.turn_end.owner = self.pool_wait.owner = self.idle_timer.owner = self.idle_flush.owner = <void*>self
        for i in range(RECORDS_MAX):
            self.records[i].log = <void*>self
            self.records[i].transfer.owner = &self.records[i]
        for i in range(TAILS):
            self.tails[i].log = <void*>self
            self.tails[i].table_room = 2 * segment_blocks + 256
            if posix_memalign(&memory, BLOCK_BYTES, BLOCK_BYTES + <size_t>self.tails[i].table_room * sizeof(Entry) + BLOCK_BYTES):
                raise MemoryError("no memory for a segment's footer")
            self.tails[i].footer = <Footer*>memory
            self.tails[i].table = <Entry*>(<char*>memory + BLOCK_BYTES)

    def __dealloc__(self):
        cdef int i
        for i in range(TAILS):
            release(self.tails[i].footer)

    # ------------------------------------------------------------------ appending

    cdef int room(self, bint urgent) noexcept nogil:
        cdef Record* record = self.building
        cdef uint32_t blocks
        cdef int result
        if self.error:
            return self.error
        if self.failing:
            return 0
        if record is not NULL:
            if record.tail.urgent and not urgent:
                return -ENOSPC
            blocks = min(record.room - record.payload, <uint32_t>RECORD_ENTRIES_MAX - record.entries)
            if blocks:
                return blocks
            self.close_record()
        result = self.begin_record(urgent)
        return result if result <= 0 else <int>self.building.room

    cdef int begin_record(self, bint urgent) noexcept nogil:
        """A new record to build: 1; 0: wait in `waiters`; or a negative errno."""
        cdef Tail* tail = self.current
        cdef Record* record = NULL
        cdef char* buffer
        cdef int i
        if tail is NULL or self.room_of(tail) == 0:
            if self.prepared is NULL:
                if self.no_space and not urgent:
                    return -ENOSPC
                self.prepare(urgent)
                if self.error or self.preparing:
                    return self.error
                return -ENOSPC                           # it ended at once: there is none to be had
            if tail is not NULL:
                self.close_tail(tail)
            tail = self.current = self.prepared
            self.prepared = NULL
            self.prepare(False)
        if tail.urgent and not urgent:
            return -ENOSPC
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
        record.header = <RecordHeader*>buffer
        record.state = RECORD_BUILDING
        record.tail = tail
        record.entries = record.payload = record.part_count = 0
        record.room = self.room_of(tail)
        self.building = record
        self.ask_turn_end()
        return 1

    cdef uint32_t room_of(self, Tail* tail) noexcept nogil:
        """Payload blocks that a record begun now in this tail may have, with room left for the footer of all its records."""
        cdef uint32_t entries = tail.table_count + 1 + RECORD_ENTRIES_MAX
        cdef uint32_t needed = tail.next_block + 1 + footer_blocks(entries)
        if entries > tail.table_room or needed >= tail.segment.blocks:
            return 0
        return min(tail.segment.blocks - needed, <uint32_t>RECORD_ENTRIES_MAX)

    cdef void add_data(self, uint64_t block, uint32_t count, const char* data, Part part) noexcept nogil:
        cdef Record* record = self.building
        cdef Entry* entry = &record.header.entries[record.entries]
        cdef char* into = <char*>record.header + (1 + record.payload) * BLOCK_BYTES
        cdef uint32_t i
        invariant(count <= record.room - record.payload and count <= RECORD_ENTRIES_MAX - record.entries, b"what is appended fits the record")
        self.begin_part(part, count)
        for i in range(count):
            if data is NULL:
                memset(into, 0, BLOCK_BYTES)
            else:
                memcpy(into, data, BLOCK_BYTES)
                data += BLOCK_BYTES
            entry.position = block + i
            entry.crc = crc32c(into, BLOCK_BYTES)        # of the copy: it is in the cache now, and the sender may change what it sent
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
        invariant(record.payload < record.room and record.entries < RECORD_ENTRIES_MAX, b"what is appended fits the record")
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
        header.stable = self.marked = self.stable
        header.entry_count = record.entries
        header.payload_blocks = record.payload
        header.time_ns = self.io.unix_ns()
        self.closed_ns = self.io.now_ns()
        record.next = NULL
        if self.newest is NULL:
            self.oldest = record
        else:
            self.newest.next = record
        self.newest = record
        self.under_way += 1
        self.counters[RECORDS] += 1
        self.counters[COUNT_RECORD_BYTES] += (1 + record.payload) * BLOCK_BYTES
        self.place(record, record.tail)

    cdef void place(self, Record* record, Tail* tail) noexcept nogil:
        """Give a closed record its place in `tail` and write it there."""
        cdef RecordHeader* header = record.header
        cdef Entry* entry = &tail.table[tail.table_count]
        cdef uint32_t blocks = 1 + record.payload
        record.tail = tail
        record.block = tail.next_block
        header.segment = tail.segment.number
        header.block = record.block
        header.stream = tail.segment.stream
        header.previous_crc = tail.last_crc
        header.crc = block_crc(header)
        tail.last_crc = header.crc
        tail.next_block += blocks
        tail.records_under_way += 1
        invariant(tail.table_count + 1 + record.entries <= tail.table_room, b"the footer's table has room for every record")
        entry.position = record.sequence
        entry.crc = header.crc
        entry.count = record.entries
        entry.kind = KIND_RECORD
        entry.flags = 0
        memcpy(entry + 1, header.entries, record.entries * sizeof(Entry))
        tail.table_count += 1 + record.entries
        if tail.segment.first_sequence == 0:
            tail.segment.first_sequence = record.sequence
        tail.segment.last_sequence = record.sequence
        self.bytes += blocks * BLOCK_BYTES
        record.state = RECORD_WRITING
        record.transfer.done = record_written
        self.submit(&record.transfer, tail, record.block, <const char*>header, blocks)

    cdef void submit(self, Transfer* transfer, Tail* tail, uint32_t block, const char* data, uint32_t blocks) noexcept nogil:
        cdef uint32_t contiguous, piece
        cdef uint64_t offset
        cdef Operation* operation = &transfer.operations[0]
        invariant(block + blocks <= tail.segment.blocks, b"a segment is not written beyond its end")
        transfer.left = 0
        transfer.error = 0
        while blocks:
            invariant(transfer.left < WRITES_MAX, b"a record touches few extents")
            offset = replica_offset(tail.segment.replica, block, &contiguous)
            piece = min(blocks, contiguous)
            operation.done = transfer_step
            operation.owner = transfer
            self.io.write(operation, tail.segment.replica.device, data, piece * BLOCK_BYTES, offset)
            transfer.left += 1
            operation += 1
            block += piece
            data += piece * BLOCK_BYTES
            blocks -= piece

    cdef void turn_ends(self) noexcept nogil:
        self.turn_end_asked = False
        if self.building is not NULL and self.building.entries and self.under_way < <uint32_t>self.depth:
            self.close_record()

    cdef void buffer_came(self) noexcept nogil:
        self.pool_wait_asked = False
        wake_all(&self.waiters, 0)
        if self.pool.free[<int>RECORD]:                  # not taken after all: the next one's turn
            wake_one(&self.pool.waiters[<int>RECORD], 0)

    # ------------------------------------------------------------------ committing

    cdef void advance(self) noexcept nogil:
        """Commit what is written, in order."""
        cdef bint progress = False
        while self.oldest is not NULL and self.oldest.state == RECORD_WRITTEN and not self.failing:
            if self.oldest.transfer.error:
                self.failing = True
                start(work_around_body, <void*>self, NULL)
                break
            self.commit(self.oldest)
            progress = True
        if self.building is not NULL:
            self.ask_turn_end()
        if progress or self.failing:
            wake_all(&self.commits, 0)
        if progress:
            wake_all(&self.waiters, 0)
            self.watch_idle()

    cdef void commit(self, Record* record) noexcept nogil:
        cdef Tail* tail = record.tail
        invariant(record.sequence == self.committed + 1, b"records commit in order, without gaps")
        self.oldest = record.next
        if self.oldest is NULL:
            self.newest = NULL
        self.under_way -= 1
        self.committed = record.sequence
        if self.volatile_devices == 0:
            self.stable = self.committed
        else:
            self.dirty_devices |= self.volatile_devices & (<uint64_t>1 << tail.segment.replica.device)
        tail.committed_block = record.block + 1 + record.payload
        tail.committed_entries += 1 + record.entries
        tail.committed_crc = record.header.crc
        tail.records_under_way -= 1
        self.on_commit(self.owner, record)
        self.free_record(record)
        if tail.closing and tail.records_under_way == 0:
            wake_all(&tail.quiet, 0)

    cdef void free_record(self, Record* record) noexcept nogil:
        record.state = RECORD_IDLE
        self.pool.give_back(<char*>record.header)
        record.header = NULL

    # ------------------------------------------------------------------ segments

    cdef int begin(self) noexcept nogil:
        return self.prepare_one(True)

    cdef void prepare(self, bint urgent) noexcept nogil:
        if self.preparing or self.prepared is not NULL or self.ending or self.error:
            return
        self.preparing = True
        start(prepare_urgent if urgent else prepare_normal, <void*>self, NULL)

    cdef int prepare_one(self, bint urgent) noexcept nogil:
        """In a task: create the segment that will follow. 0 or a negative errno."""
        cdef Tail* tail = NULL
        cdef Segment* segment
        cdef CreateCall call
        cdef int i, store
        while tail is NULL:
            for i in range(TAILS):
                if self.tails[i].segment is NULL:
                    tail = &self.tails[i]
            if tail is NULL:
                wait_in(&self.tail_changes)
        while True:
            call.urgent = False
            store = self.choose_store(False)
            if store < 0 and urgent:
                call.urgent = True
                store = self.choose_store(True)
            if store < 0:
                return store
            call.volume = self.volume
            call.segment = self.next_segment
            call.epoch = self.epoch
            call.blocks = self.segment_blocks
            call.store = self.stores[store]
            self.next_segment += 1
            call_on((<Store>self.stores[store]).home, self.reactor, create_body, &call)
            if call.replica is not NULL:
                break
            if call.error == -ENOSPC or self.store_errors[store] > STORE_ERRORS_MAX:
                return call.error
            self.store_errors[store] += 1
            self.on_device_error(self.owner, store, -call.error)
        segment = self.segments.add(call.segment)
        segment.blocks = self.segment_blocks
        segment.state = SEGMENT_OPEN
        segment.epoch = self.epoch
        segment.replica = call.replica
        segment.store = store
        tail.segment = segment
        tail.next_block = tail.last_crc = tail.records_under_way = tail.table_count = 0
        tail.committed_block = tail.committed_entries = tail.committed_crc = 0
        tail.urgent = call.urgent
        tail.closing = False
        self.prepared = tail
        return 0

    cdef int choose_store(self, bint urgent) noexcept nogil:
        """The number of the store for the next segment: fewest errors, then most free space; -ENOSPC or, when none works, -EIO."""
        cdef int best = -ENOSPC, i
        cdef bint any_works = False
        for i in range(self.store_count):
            if (<Store>self.stores[i]).failed:
                continue
            any_works = True
            if not (<Store>self.stores[i]).has_room(self.segment_blocks, urgent):
                continue
            if best < 0 or self.store_errors[i] < self.store_errors[best] or (
                    self.store_errors[i] == self.store_errors[best]
                    and (<Store>self.stores[i]).slabs.free > (<Store>self.stores[best]).slabs.free):
                best = i
        return best if any_works else -EIO

    cdef void close_tail(self, Tail* tail) noexcept nogil:
        tail.closing = True
        self.sealing += 1
        if self.current is tail:
            self.current = NULL
        start(seal_body, tail, NULL)

    cdef void write_footer(self, Tail* tail) noexcept nogil:
        """In a task: the footer, then stable media, then the journal. A footer that cannot be written is left out: recovery reads headers then."""
        cdef Footer* footer = tail.footer
        cdef uint32_t table_blocks = (tail.table_count + ENTRIES_PER_BLOCK - 1) // ENTRIES_PER_BLOCK
        cdef Transfer transfer
        cdef Operation operation
        cdef SealCall call
        memset(footer, 0, BLOCK_BYTES)
        memset(&tail.table[tail.table_count], 0, (table_blocks * ENTRIES_PER_BLOCK - tail.table_count) * sizeof(Entry))
        footer.magic = FOOTER_MAGIC
        footer.version = FORMAT_VERSION
        memcpy(footer.volume, self.volume, 16)
        footer.epoch = tail.segment.epoch
        footer.segment = tail.segment.number
        footer.block = tail.next_block
        footer.first_sequence = tail.segment.first_sequence
        footer.last_sequence = tail.segment.last_sequence
        footer.stable = self.marked
        footer.last_crc = tail.last_crc
        footer.entry_count = tail.table_count
        footer.table_blocks = table_blocks
        footer.table_crc = crc32c(tail.table, table_blocks * BLOCK_BYTES)
        footer.stream = tail.segment.stream
        footer.crc = block_crc(footer)
        waited(&operation)
        transfer.owner = &operation
        transfer.done = transfer_ends_operation
        self.submit(&transfer, tail, tail.next_block, <const char*>footer, 1 + table_blocks)
        wait(&operation)
        self.bytes += (1 + table_blocks) * BLOCK_BYTES
        call.footer_block = 0 if transfer.error else tail.next_block
        call.blocks = tail.next_block + (0 if transfer.error else 1 + table_blocks)
        if self.volatile_devices >> tail.segment.replica.device & 1:
            waited(&operation)
            self.io.flush(&operation, tail.segment.replica.device)
            self.counters[DEVICE_FLUSHES] += 1
            if wait(&operation) < 0:
                self.on_device_error(self.owner, tail.segment.store, -operation.result)
        call.store = self.stores[tail.segment.store]
        call.replica = tail.segment.replica
        if call_on((<Store>call.store).home, self.reactor, seal_call, &call) < 0:
            self.store_errors[tail.segment.store] += 1       # it stays open in the journal: recovery will read its headers
            self.on_device_error(self.owner, tail.segment.store, EIO)
        tail.segment.state = SEGMENT_SEALED
        tail.segment.blocks = call.blocks
        self.counters[SEGMENTS_SEALED] += 1

    cdef void drop(self, Segment* segment) noexcept nogil:
        """In a task: a segment without a record is gone."""
        cdef SealCall call
        call.store = self.stores[segment.store]
        call.replica = segment.replica
        call_on((<Store>call.store).home, self.reactor, remove_call, &call)    # if that fails, recovery finds it empty and drops it then
        self.segments.remove(segment)

    cdef bint any_dead(self) noexcept nogil:
        """Whether a checkpoint might let a segment be deleted."""
        cdef Segment* segment = self.segments.first
        while segment is not NULL and (segment.live or segment.state != SEGMENT_SEALED):
            segment = segment.next
        return segment is not NULL

    cdef void space_freed(self) noexcept nogil:
        cdef int i
        if self.choose_store(False) < 0:
            return
        self.no_space = False
        for i in range(TAILS):
            self.tails[i].urgent = False
        wake_all(&self.waiters, 0)

    # ------------------------------------------------------------------ errors of devices

    cdef bint writes_left(self) noexcept nogil:
        cdef Record* record = self.oldest
        while record is not NULL:
            if record.state == RECORD_WRITING:
                return True
            record = record.next
        return False

    cdef Tail* next_tail(self) noexcept nogil:
        """In a task: a fresh tail in the place of the current one; NULL: there is none to be had."""
        if self.current is not NULL:
            self.close_tail(self.current)
        while self.preparing:
            wait_in(&self.waiters)
        if self.prepared is NULL and self.prepare_one(True) < 0:
            return NULL
        self.current = self.prepared
        self.prepared = NULL
        return self.current

    cdef int work_around(self) noexcept nogil:
        """In a task: a write failed. Seal what is committed, write the rest again elsewhere. 0 or a negative errno."""
        cdef Record* record
        cdef Tail* tail
        cdef int i
        if self.building is not NULL:
            self.close_record()
        while self.writes_left():
            wait_in(&self.commits)
        record = self.oldest
        while record is not NULL:
            if record.transfer.error:
                self.store_errors[record.tail.segment.store] += 1
                self.on_device_error(self.owner, record.tail.segment.store, -record.transfer.error)
            record = record.next
        for i in range(TAILS):
            tail = &self.tails[i]
            if tail.segment is NULL or tail.records_under_way == 0:
                continue
            tail.records_under_way = 0
            tail.next_block = tail.committed_block
            tail.table_count = tail.committed_entries
            tail.last_crc = tail.committed_crc
            tail.segment.last_sequence = min(tail.segment.last_sequence, self.committed)
            if tail.closing:
                wake_all(&tail.quiet, 0)
            else:
                self.close_tail(tail)
        record = self.oldest
        while record is not NULL:
            if self.current is NULL or self.room_of(self.current) < record.payload or self.room_of(self.current) == 0:
                if self.next_tail() is NULL:
                    return -EIO
            self.place(record, self.current)
            record = record.next
        return 0

    cdef void break_off(self, int error) noexcept nogil:
        """In a task: nothing can be written any more. What is under way ends first, and will never commit."""
        cdef Record* record
        cdef Tail* tail
        cdef int i
        if self.error:
            return
        self.error = error
        self.failing = True
        if self.building is not NULL:
            self.close_record()
        while self.writes_left():
            wait_in(&self.commits)
        while self.oldest is not NULL:
            record = self.oldest
            self.oldest = record.next
            self.under_way -= 1
            self.on_abort(self.owner, record)
            self.free_record(record)
        self.newest = NULL
        for i in range(TAILS):
            tail = &self.tails[i]
            tail.records_under_way = 0
            tail.next_block = tail.committed_block
            tail.table_count = tail.committed_entries
            if tail.closing:
                wake_all(&tail.quiet, 0)
        self.failing = False
        wake_all(&self.commits, error)
        wake_all(&self.waiters, error)

    # ------------------------------------------------------------------ flushing

    cdef void flush(self, Operation* when) noexcept nogil:
        if self.flushes_left:
            join(&self.flush_next, when)
            return
        join(&self.flushing, when)
        self.start_flush()

    cdef void start_flush(self) noexcept nogil:
        cdef uint64_t devices = self.dirty_devices
        cdef int device
        self.flush_target = self.committed
        self.flush_error = 0
        self.dirty_devices = 0
        self.flushes_left = 1                            # held by this loop
        for device in range(64):
            if devices >> device & 1:
                self.flushes_left += 1
                self.counters[DEVICE_FLUSHES] += 1
                self.flushes[device].done = device_flushed
                self.flushes[device].owner = <void*>self
                self.io.flush(&self.flushes[device], device)
        self.flush_step(NULL)

    cdef void flush_step(self, Operation* operation) noexcept nogil:
        """One of a flush's devices, or the loop that asked them, is done."""
        cdef Waiters served
        cdef int error
        if operation is not NULL and operation.result < 0:
            self.flush_error = <int>operation.result
            self.dirty_devices |= <uint64_t>1 << operation.target
        self.flushes_left -= 1
        if self.flushes_left:
            return
        if self.flush_error == 0 and self.flush_target > self.stable:
            self.stable = self.flush_target
        served, error = self.flushing, self.flush_error
        self.flushing = self.flush_next
        self.flush_next.first = self.flush_next.last = NULL
        if self.flushing.first is not NULL:
            self.start_flush()
        wake_all(&served, error)

    # ------------------------------------------------------------------ the mark of an idle log

    cdef void watch_idle(self) noexcept nogil:
        if self.marked < self.content and self.oldest is NULL and not self.idle_timer_set and not self.ending:
            self.idle_timer_set = True
            self.io.after(&self.idle_timer, IDLE_NS)

    cdef void fell_idle(self) noexcept nogil:
        if self.oldest is not NULL or self.building is not NULL or self.failing or self.ending or self.error:
            return                                       # not idle after all: the next commit sets the timer again
        if self.marked >= self.content:
            return
        if self.io.now_ns() - self.closed_ns < IDLE_NS:
            self.watch_idle()                            # it was busy since the timer was set
        elif self.stable < self.content:
            self.flush(&self.idle_flush)
        elif self.begin_record(True) == 1:
            self.close_record()                          # empty: its header says what is stable

    # ------------------------------------------------------------------ for tasks

    cdef int wait_room(self) noexcept nogil:
        cdef int room = self.room(True)
        while room == 0:
            wait_in(&self.waiters)
            room = self.room(True)
        return min(room, 0)

    cdef int wait_committed(self, uint64_t sequence) noexcept nogil:
        while self.committed < sequence and not self.error:
            wait_in(&self.commits)
        return self.error

    cdef void finish(self) noexcept nogil:
        cdef Segment* prepared
        self.ending = True
        if self.idle_timer_set:
            self.io.cancel(&self.idle_timer)
            self.idle_timer_set = False
        if self.building is not NULL:
            self.close_record()
        self.wait_committed(self.sequence)
        while self.failing or self.preparing:
            wait_in(&self.waiters)
        if self.current is not NULL and self.error == 0:
            self.close_tail(self.current)
        if self.prepared is not NULL and self.error == 0:
            prepared = self.prepared.segment
            self.prepared.segment = NULL
            self.prepared = NULL
            self.drop(prepared)
        while self.sealing:
            wait_in(&self.tail_changes)
        while self.flushes_left:
            wait_in(&self.flushing)
        while self.pool_wait_asked:
            wait_in(&self.waiters)
        while self.watching_space:
            wait_in(&self.tail_changes)


# ---------------------------------------------------------------------- what completions call

cdef void turn_ended(Operation* operation) noexcept nogil:
    (<Log>operation.owner).turn_ends()


cdef void transfer_step(Operation* operation) noexcept nogil:
    cdef Transfer* transfer = <Transfer*>operation.owner
    if operation.result < 0 and transfer.error == 0:
        transfer.error = <int>operation.result
    transfer.left -= 1
    if transfer.left == 0:
        transfer.done(transfer)


cdef void record_written(Transfer* transfer) noexcept nogil:
    cdef Record* record = <Record*>transfer.owner
    record.state = RECORD_WRITTEN
    (<Log>record.log).advance()


cdef void transfer_ends_operation(Transfer* transfer) noexcept nogil:
    cdef Operation* operation = <Operation*>transfer.owner
    operation.result = transfer.error
    operation.done(operation)


cdef void pool_gave(Operation* operation) noexcept nogil:
    (<Log>operation.owner).buffer_came()


cdef void device_flushed(Operation* operation) noexcept nogil:
    (<Log>operation.owner).flush_step(operation)


cdef void idle_timer_rang(Operation* operation) noexcept nogil:
    (<Log>operation.owner).idle_timer_set = False
    (<Log>operation.owner).fell_idle()


cdef void idle_flushed(Operation* operation) noexcept nogil:
    if operation.result == 0:
        (<Log>operation.owner).fell_idle()


# ---------------------------------------------------------------------- tasks

cdef struct CreateCall:
    void* store
    uint8_t* volume
    uint32_t segment
    uint64_t epoch
    uint32_t blocks
    bint urgent
    Replica* replica
    int error


cdef struct SealCall:
    void* store
    Replica* replica
    uint32_t blocks
    uint32_t footer_block


cdef int64_t create_body(void* argument) noexcept nogil:
    cdef CreateCall* call = <CreateCall*>argument
    call.error = 0
    call.replica = (<Store>call.store).create(call.volume, call.segment, call.epoch, 0, call.blocks, call.urgent, &call.error)
    return 0


cdef int64_t seal_call(void* argument) noexcept nogil:
    cdef SealCall* call = <SealCall*>argument
    return (<Store>call.store).seal(call.replica, call.blocks, call.footer_block)


cdef int64_t remove_call(void* argument) noexcept nogil:
    cdef SealCall* call = <SealCall*>argument
    return (<Store>call.store).remove(call.replica)


cdef int64_t prepare_normal(void* argument) noexcept nogil:
    return prepare_body(<Log>argument, False)


cdef int64_t prepare_urgent(void* argument) noexcept nogil:
    return prepare_body(<Log>argument, True)


cdef int64_t prepare_body(Log log, bint urgent) noexcept nogil:
    """Prepare the next segment; without space say so once, and look again from time to time."""
    cdef int result = log.prepare_one(urgent)
    log.preparing = False
    if result == -ENOSPC or (result == 0 and log.prepared.urgent):
        if not log.no_space:
            log.no_space = True
            log.on_no_space(log.owner)
        if not log.watching_space:
            log.watching_space = True
            start(space_body, <void*>log, NULL)
    elif result < 0 and log.current is NULL and log.oldest is NULL:
        log.break_off(result)
    wake_all(&log.waiters, 0)
    return result


cdef int64_t space_body(void* argument) noexcept nogil:
    watch_space(<Log>argument)
    return 0


cdef void watch_space(Log log) noexcept nogil:
    cdef Operation timer
    while log.no_space and not log.ending and not log.error:
        waited(&timer)
        log.io.after(&timer, SPACE_POLL_NS)
        wait(&timer)
        log.space_freed()
        if log.no_space and log.any_dead():
            log.on_dead(log.owner)
    log.watching_space = False
    wake_all(&log.tail_changes, 0)


cdef int64_t seal_body(void* argument) noexcept nogil:
    seal(<Log>(<Tail*>argument).log, <Tail*>argument)
    return 0


cdef void seal(Log log, Tail* tail) noexcept nogil:
    while tail.records_under_way:
        wait_in(&tail.quiet)
    if tail.next_block == 0:
        log.drop(tail.segment)
    else:
        log.write_footer(tail)
    tail.segment = NULL
    log.sealing -= 1
    wake_all(&log.tail_changes, 0)


cdef int64_t work_around_body(void* argument) noexcept nogil:
    return go_on_elsewhere(<Log>argument)


cdef int go_on_elsewhere(Log log) noexcept nogil:
    cdef int result = log.work_around()
    log.failing = False
    if result < 0:
        log.break_off(result)
    wake_all(&log.commits, 0)
    wake_all(&log.waiters, 0)
    log.advance()
    return result


cdef inline uint32_t footer_blocks(uint32_t entries) noexcept nogil:
    return 1 + (entries + ENTRIES_PER_BLOCK - 1) // ENTRIES_PER_BLOCK
