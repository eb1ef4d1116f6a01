# Writing back the map, and checkpoints. Both append images of nodes to the volume's own log; they are tasks. Nothing is written back from a
# checkpoint's drain until its map is written, so that every image that commits in between is the checkpoint's own.
#
# Writing back keeps frames free: when much of the cache is dirty, the oldest leaves go into the log, then what is above them.
#
# A checkpoint at record S is exact: the map as it was at S, and the counters that belong to it, whatever is written meanwhile.
#     drain       doors wait until what is under way has committed: one write's time. S is the newest record now; what the counters and the
#                 snapshot table are now is kept, and the cut of a snapshot that is to be made is the log's end
#     write map   every node dirty since S or before, leaves first (map/map.pyx says how later changes are kept out)
#     write table the snapshot table, the segment table with the counters of S, then the checkpoint block
#     flush       all of it is on stable media
#     move        the metadata service's one pointer. It answers done, or refused: another owner has the volume, and the log ends. While the
#                 outcome is unknown either checkpoint may be the one that a recovery finds. Both are kept: no segment is removed, cleaning
#                 keeps the nodes of the old one, and no new one begins; reads, writes and writing back go on
#     remove      segments that neither checkpoint nor map nor replay needs any more
# A snapshot is made by a checkpoint, and begins to die with one (map/snapshot_table.pyx): it is there, or dying, once the pointer was moved.
# If anything fails, the old checkpoint stays good and the next one tries again.

from libc.errno cimport EHOSTUNREACH, ENOMEM, ENOSPC, ESHUTDOWN, ESTALE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.counters cimport CHECKPOINTS, SEGMENTS_REMOVED
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, CHECKPOINT_MAGIC, FORMAT_VERSION, KIND_CHECKPOINT, KIND_MAP, KIND_SNAPSHOT, KIND_TABLE, MAP_LEVELS, NODE_POINTERS,
    SEGMENT_SEALED, SNAPSHOT_ENTRIES, TABLE_ENTRIES, TABLE_INDEX, Checkpoint, Pointer, SnapshotEntry, TableEntry, block_crc)
from iomesh.engine.log.log cimport Log, Part
from iomesh.engine.map.map cimport Map, Node
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport call_on
from iomesh.engine.map.segment_table cimport DATA, NODE, Segment, SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.store.store cimport Replica, Store
from iomesh.engine.log.open_segments cimport FOR_SPACE
from iomesh.engine.base.task cimport start, wait, wait_in, waited, wake_all

cdef enum:
    WRITE_BACK_BATCH = 480           # nodes between two looks at whether it is enough: about two full records
    INDEX_POINTERS = 192             # of a checkpoint block
    GIVE_UP_NS = 10000000000         # a volume that closes waits so long for the metadata service; the next start replays more instead
    PAUSE_NS = 20000000


cdef class Checkpoints:
    def __cinit__(self, Reactor reactor, Log log, Map map, SegmentTable segments, SnapshotTable snapshots):
        self.reactor, self.log, self.map, self.segments, self.snapshots = reactor, log, map, segments, snapshots
        self.begin.done = begin_due
        self.begin.owner = <void*>self

    # ------------------------------------------------------------------ when

    cdef void attach(self) noexcept nogil:
        self.next_keeper = self.map.cache.keepers
        self.map.cache.keepers = <void*>self
        self.map.cache.on_starving = begin_for_starving

    cdef void poke(self) noexcept nogil:
        if self.begin_asked or self.stopping or self.log.error:
            return
        if self.is_due() or self.map.cache.wants_writeback():
            self.begin_asked = True
            self.reactor.at_turn_end(&self.begin)

    cdef bint is_due(self) noexcept nogil:
        return not self.running and (self.due or self.log.bytes - self.log.bytes_at_checkpoint >= self.interval) and self.replayed

    cdef void begin_what_is_due(self) noexcept nogil:
        """At a turn's end; with the cache full, every volume that shares it writes back."""
        cdef void* keeper = self.map.cache.keepers
        self.begin_asked = False
        if self.stopping:
            wake_all(&self.ended, 0)
        elif self.is_due():
            self.begin_apart()
        elif self.map.cache.wants_writeback():
            while keeper is not NULL:
                begin_write_back(<Checkpoints>keeper)
                keeper = (<Checkpoints>keeper).next_keeper

    cdef int run(self) noexcept nogil:
        cdef uint64_t needed = self.begun if self.gathering else self.begun + 1      # the one under way will do, until it is fixed what is in it
        while self.good < needed and self.over < needed:
            if self.unanswered:
                return -EHOSTUNREACH
            if self.running:
                wait_in(&self.ended)
            else:
                self.begin_apart()
        return 0 if self.good >= needed else self.failure

    cdef int run_for(self, uint64_t version) noexcept nogil:
        cdef uint64_t over
        while self.snapshots.durable < version:
            if self.stopping:
                return -ESHUTDOWN
            if self.unanswered:
                return -EHOSTUNREACH
            if self.running:
                wait_in(&self.ended)
                continue
            over = self.over
            self.begin_apart()
            while self.over == over and not self.unanswered:
                wait_in(&self.ended)
            if self.over > over and self.result < 0 and not self.running:        # else who waited for it has begun another one
                return self.result
        return 0

    cdef int claim(self) noexcept nogil:
        while self.running and not self.stopping:
            if self.unanswered:
                return -EHOSTUNREACH
            wait_in(&self.ended)
        if self.stopping:
            return -ESHUTDOWN
        self.running = self.writing = True
        return 0

    cdef void begin_closing(self) noexcept nogil:
        self.give_up_ns = self.log.io.now_ns() + GIVE_UP_NS

    cdef void pause(self) noexcept nogil:
        cdef Operation operation
        if self.unanswered and self.log.io.now_ns() >= self.give_up_ns:
            self.moved(self.answer_for, POINTER_GIVEN_UP)
            return
        waited(&operation)
        self.log.io.after(&operation, PAUSE_NS)
        wait(&operation)

    cdef void stop(self) noexcept nogil:
        cdef void** place = &self.map.cache.keepers
        self.stopping = True
        while self.running or self.writing_back or self.begin_asked:
            if self.unanswered:
                self.pause()
            else:
                wait_in(&self.ended)
        while place[0] is not <void*>self:
            place = &(<Checkpoints>place[0]).next_keeper
        place[0] = self.next_keeper

    cdef void begin_apart(self) noexcept nogil:
        """In a task of its own: who wants it need not wait as long as the metadata service does not answer."""
        self.running = True
        start(checkpoint_body, <void*>self, NULL)

    cdef int go(self) noexcept nogil:
        """In a task, `running` is set."""
        cdef int result
        self.write()
        result = self.result
        self.let_go()                                    # who waited for it may begin another one at once
        return result

    cdef void write(self) noexcept nogil:
        self.log.open_segments.making_space += 1         # what is dead goes with it
        self.writing = self.gathering = True
        self.begun += 1
        self.due = False
        self.result = self.begin_drain()
        if self.result == 0:
            self.result = self.drain()
        if self.result == 0:
            self.result = self.checkpoint()
        self.gathering = False
        self.over = self.begun
        if self.result == 0:
            self.good = self.begun
        else:
            self.failure = self.result
        self.snapshots.thaw()
        self.segments.settle(False)                      # nothing is left to settle but after an error
        self.log.open_segments.end_making_space()

    cdef void let_go(self) noexcept nogil:
        self.held = False
        self.end_drain()
        self.running = False
        self.map_written()
        if self.log.error:
            self.map.cache.rouse()                       # who waits for frames that this volume will never clean learns why
        wake_all(&self.log.waiters, 0)
        wake_all(&self.ended, self.result)

    cdef void map_written(self) noexcept nogil:
        """The rest of a checkpoint may take as long as the metadata service does: writing back goes on meanwhile."""
        self.map.freeze = 0
        self.writing = False
        self.poke()

    # ------------------------------------------------------------------ images

    cdef bint write_image(self, Node* node, int* error) noexcept nogil:
        cdef Pointer nothing
        cdef Part part
        cdef int room
        error[0] = 0
        if self.map.is_empty(node):                      # needs no block: there is nothing to point to
            memset(&nothing, 0, sizeof(nothing))
            self.map.image_taken(node)
            self.image_committed(node.level, node.index, nothing, self.log.committed)
            return True
        room = self.log.room(FOR_SPACE)
        if room <= 0:
            error[0] = room
            return False
        memset(&part, 0, sizeof(part))
        self.log.add_block(KIND_MAP, <uint64_t>node.level << 56 | node.index, 0, node.pointers, part)
        self.map.image_taken(node)
        return True

    cdef void image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil:
        cdef Pointer before = self.map.image_committed(level, index, image, sequence)
        cdef bint dead
        self.segments.born(image)
        dead = self.segments.retire(before, NODE)
        if self.map.freeze and not planted(b"counter_not_of_checkpoint"):    # part of the checkpoint's map: its counters change with it
            self.segments.count_at_checkpoint(image, 1)
            if dead:
                self.segments.count_at_checkpoint(before, -1)

    cdef void write_back(self) noexcept nogil:
        """In a task, `writing_back` is set: images of the oldest dirty nodes until enough of the cache is clean."""
        cdef Node* node
        cdef int level, written = 1, error = 0
        while written and self.map.cache.wants_writeback() and not self.writing and not self.stopping and not self.log.error:
            written = level = 0
            while level < MAP_LEVELS and written < WRITE_BACK_BATCH:
                if self.log.wait_room() < 0:
                    return
                node = self.map.next_dirty(level, ~<uint64_t>0)
                if node is NULL:
                    level += 1
                    continue
                if not self.write_image(node, &error):
                    if error:
                        return
                    continue
                written += 1
            self.log.wait_committed(self.log.last_appended())

    # ------------------------------------------------------------------ the checkpoint

    cdef int begin_drain(self) noexcept nogil:
        cdef int result
        while self.writing_back:
            wait_in(&self.writing_back_ended)
        if self.log.last_appended() == 0 and self.snapshots.version != self.snapshots.durable:
            result = self.log.wait_room()                # a log without a record has no moment that a checkpoint could be of: an empty one
            if result < 0:
                return result
            self.log.close_record()
        if not self.log.draining:
            self.drain_began_ns = self.log.io.now_ns()
            self.log.draining = True
        return self.log.error

    cdef int drain(self) noexcept nogil:
        cdef int result = 0
        while result == 0 and self.log.committed != self.log.last_appended() and not planted(b"checkpoint_without_drain"):
            result = self.log.wait_committed(self.log.last_appended())
        return result

    cdef void end_drain(self) noexcept nogil:
        if self.log.draining and not self.held:
            self.log.draining = False
            self.stalled_ns = self.log.io.now_ns() - self.drain_began_ns
            wake_all(&self.log.waiters, 0)

    cdef int checkpoint(self) noexcept nogil:
        """Everything is committed."""
        cdef uint64_t at = self.log.committed
        cdef Pointer pointer, root
        cdef Operation operation
        cdef Outcome outcome
        cdef int result, level
        cdef bint dying
        self.gathering = False
        if at == 0 or (self.log.content == self.content and self.snapshots.version == self.snapshots.durable):
            return 0                                     # nothing has happened since the last one
        result = self.snapshots.freeze(at, max(<uint64_t>self.log.io.unix_ns(), self.log.newest_ns), self.size_bytes,
                                       self.log.open_segments.position(), self.segments)
        if result < 0:
            return result
        self.map.freeze = at
        self.segments.begin_checkpoint()
        self.segments.shift_pin(DATA, self.snapshots.data_pin())
        self.segments.wanted_exclusive = self.snapshots.frozen_exclusive
        self.log.bytes_at_checkpoint = self.log.bytes
        self.end_drain()
        for level in range(MAP_LEVELS):
            result = self.write_level(level, at)
            if result < 0:
                return result
        root = self.map.root
        self.snapshots.map_written(root, self.log.open_segments.position())
        self.segments.shift_pin(NODE, self.snapshots.node_pin())
        self.map_written()
        result = self.write_table(at, root, &pointer)
        if result < 0:
            return result
        self.content_written = self.log.committed
        waited(&operation)
        if not planted(b"checkpoint_without_flush"):
            self.log.flusher.flush(&operation)
            result = <int>wait(&operation)
        if result < 0:
            return result
        outcome = self.ask(at, pointer)
        if outcome == POINTER_REFUSED:
            self.lost = True
            self.log.break_off(-ESTALE)                  # another owner has taken over
            return -ESTALE
        if outcome == POINTER_GIVEN_UP:
            return -EHOSTUNREACH
        self.sequence = at
        self.pointer = pointer
        self.root = root
        self.inherited = self.snapshots.frozen_inherited
        if self.log.content == self.content_written and (self.log.changed <= at or planted(b"checkpoint_without_rest")):
            self.content = self.log.content
        self.counters[CHECKPOINTS] += 1
        dying = self.settle()
        self.remove_dead(at, dying)
        if dying:
            self.on_dying(self.owner)
        return 0

    cdef Outcome ask(self, uint64_t sequence, Pointer pointer) noexcept nogil:
        """Has the metadata service's pointer moved, and waits until it is known what came of it."""
        cdef Operation pause
        waited(&self.answer)
        self.answer_for = sequence
        while not self.on_written(self.owner, sequence, pointer):
            waited(&pause)
            self.log.io.after(&pause, PAUSE_NS)
            wait(&pause)
        return <Outcome>wait(&self.answer)

    cdef bint settle(self) noexcept nogil:
        """It counts: what it has done to the snapshots has happened. Whether one begins to die."""
        cdef bint dying = self.snapshots.frozen_dying is not NULL
        if self.snapshots.frozen_walked:
            self.segments.reclaim_holds -= 1
        if dying:
            self.segments.reclaim_holds += 1             # until a checkpoint is without it: the walk needs the trees
        self.snapshots.moved()
        self.segments.kept_from = ~<uint64_t>0 if planted(b"window_cleaned") else self.snapshots.oldest_mark
        self.segments.settle(True)
        return dying

    cdef void moved(self, uint64_t sequence, Outcome outcome) noexcept nogil:
        if self.answer_for != sequence or not sequence:
            return
        if outcome == POINTER_UNKNOWN:
            if not self.unanswered:
                self.unanswered = True
                self.log.open_segments.end_making_space()        # writes without space are refused: there may be no answer for a long time
            wake_all(&self.ended, 0)                     # who would rather not wait
            return
        if self.unanswered:
            self.unanswered = False
            self.log.open_segments.making_space += 1
        self.answer_for = 0
        self.answer.result = <int>outcome
        self.answer.done(&self.answer)

    cdef int write_level(self, int level, uint64_t up_to) noexcept nogil:
        """All images of a level that the checkpoint needs are committed when it returns."""
        cdef Node* node
        cdef int result, error = 0
        while True:
            result = self.log.wait_room()
            if result < 0:
                return result
            node = self.map.next_dirty(level, up_to)
            if node is not NULL:
                if not self.write_image(node, &error) and error:
                    return error
                continue
            result = self.log.wait_committed(self.log.last_appended())
            if result < 0:
                return result
            if self.map.next_dirty(level, up_to) is NULL:
                return 0

    cdef int write_table(self, uint64_t sequence, Pointer root, Pointer* into) noexcept nogil:
        cdef Segment* segment
        cdef uint32_t entries = 0, count = self.segments.count
        cdef uint32_t blocks = (count + TABLE_ENTRIES - 1) // TABLE_ENTRIES
        cdef uint32_t indexes = (blocks + NODE_POINTERS - 1) // NODE_POINTERS, i
        cdef char* memory = <char*>calloc(blocks + 2 * indexes + 2, BLOCK_BYTES)
        cdef Checkpoint* checkpoint = <Checkpoint*>memory
        cdef Pointer* pointers = <Pointer*>(memory + BLOCK_BYTES)            # of table blocks: the index blocks, as they stand
        cdef TableEntry* table = <TableEntry*>(memory + (1 + indexes) * BLOCK_BYTES)
        cdef int result = 0
        if memory is NULL:
            return -ENOMEM
        if indexes > INDEX_POINTERS:
            release(memory)
            return -ENOSPC                               # more than three million segments; a volume has one million at most, cleaned
        segment = self.segments.first
        while segment is not NULL:                       # all at one moment: nothing waits in this loop
            if segment.first_sequence:
                table[entries].segment = segment.number
                table[entries].blocks = segment.blocks
                table[entries].live = self.segments.live_at_checkpoint(segment)
                table[entries].stream = segment.stream
                table[entries].state = segment.state
                table[entries].replicas = 1
                table[entries].devices[0] = (<Store>self.log.open_segments.stores[segment.store]).superblock.number
                table[entries].fragment = segment.replica.fragment
                table[entries].first_sequence = segment.first_sequence
                table[entries].last_sequence = segment.last_sequence
                table[entries].epoch = segment.epoch
                entries += 1
            segment = segment.next
        blocks = (entries + TABLE_ENTRIES - 1) // TABLE_ENTRIES
        indexes = (blocks + NODE_POINTERS - 1) // NODE_POINTERS
        checkpoint.magic = CHECKPOINT_MAGIC
        checkpoint.version = FORMAT_VERSION
        memcpy(checkpoint.volume, self.log.volume, 16)
        checkpoint.epoch = self.log.epoch
        checkpoint.sequence = sequence
        checkpoint.size_bytes = self.size_bytes
        checkpoint.root = root
        checkpoint.table_entries = entries
        checkpoint.table_blocks = blocks
        checkpoint.index_count = indexes
        memcpy(checkpoint.head_parent, self.snapshots.frozen_parent, 16)
        checkpoint.pin_data = self.segments.wanted_pins[<int>DATA]
        checkpoint.pin_nodes = self.segments.wanted_pins[<int>NODE]
        checkpoint.snapshot_entries = self.snapshots.frozen_count
        checkpoint.counted = 1
        checkpoint.mapped = self.snapshots.frozen_mapped
        checkpoint.inherited = self.snapshots.frozen_inherited
        checkpoint.exclusive = self.snapshots.frozen_exclusive
        memcpy(checkpoint.lineage_volume, self.lineage_volume, 16)
        memcpy(checkpoint.lineage_snapshot, self.lineage_snapshot, 16)
        checkpoint.branch = self.segments.branch
        memcpy(checkpoint.name, self.description.name, sizeof(self.description.name))
        checkpoint.segment_bytes = self.description.segment_bytes
        checkpoint.window_seconds = self.description.window_seconds
        checkpoint.replicas = self.description.replicas
        checkpoint.write_replicas = self.description.write_replicas
        if checkpoint.snapshot_entries:
            result = self.write_snapshots(sequence, &checkpoint.snapshots)
        for i in range(blocks):
            if result == 0:
                result = self.add_block(KIND_TABLE, i, 0, table + i * TABLE_ENTRIES, &pointers[i])
        if result == 0:
            result = self.log.wait_committed(self.log.last_appended())
        for i in range(indexes):
            if result == 0:
                result = self.add_block(KIND_TABLE, i, TABLE_INDEX, pointers + i * NODE_POINTERS, &checkpoint.index[i])
        if result == 0:
            result = self.log.wait_committed(self.log.last_appended())
        if result == 0:
            checkpoint.next_segment = self.log.open_segments.next_segment  # now: the index may lie in a segment that is younger than the table
            checkpoint.crc = block_crc(checkpoint)
            result = self.add_block(KIND_CHECKPOINT, sequence, 0, checkpoint, into)
        # also after an error: records under way tell `pointers` where they are when they commit
        if self.log.wait_committed(self.log.last_appended()) < 0 and result == 0:
            result = self.log.error
        for i in range(blocks if result == 0 else 0):
            self.segments.find(pointers[i].segment).table_of = sequence
        for i in range(indexes if result == 0 else 0):
            self.segments.find(checkpoint.index[i].segment).table_of = sequence
        if result == 0:
            self.segments.find(into.segment).table_of = sequence
        release(memory)
        return result

    cdef int write_snapshots(self, uint64_t sequence, Pointer* into) noexcept nogil:
        cdef uint32_t count = self.snapshots.frozen_count, blocks = (count + SNAPSHOT_ENTRIES - 1) // SNAPSHOT_ENTRIES, i
        cdef char* memory = <char*>calloc(1 + blocks, BLOCK_BYTES)
        cdef Pointer* pointers = <Pointer*>memory
        cdef SnapshotEntry* table = <SnapshotEntry*>(memory + BLOCK_BYTES)
        cdef int result = 0
        if memory is NULL:
            return -ENOMEM
        memcpy(table, self.snapshots.frozen, count * sizeof(SnapshotEntry))
        for i in range(blocks):
            if result == 0:
                result = self.add_block(KIND_SNAPSHOT, i, 0, table + i * SNAPSHOT_ENTRIES, &pointers[i])
        if self.log.wait_committed(self.log.last_appended()) < 0 and result == 0:
            result = self.log.error
        if result == 0:
            result = self.add_block(KIND_SNAPSHOT, 0, TABLE_INDEX, pointers, into)
        if self.log.wait_committed(self.log.last_appended()) < 0 and result == 0:
            result = self.log.error
        for i in range(blocks if result == 0 else 0):
            self.segments.find(pointers[i].segment).table_of = sequence
        if result == 0:
            self.segments.find(into.segment).table_of = sequence
        release(memory)
        return result

    cdef int add_block(self, int kind, uint64_t position, int flags, const void* data, Pointer* into) noexcept nogil:
        cdef Part part
        cdef int result = self.log.wait_room()
        if result < 0:
            return result
        memset(&part, 0, sizeof(part))
        part.placed = into
        self.log.add_block(kind, position, flags, data, part)
        return 0

    cdef void remove_dead(self, uint64_t sequence, bint dying) noexcept nogil:
        """Delete the segments that nothing needs any more. A failure leaves them to the next checkpoint. dying: a snapshot begins to die with this
        one. All that its walk will need lives in this checkpoint, so its hold, the newest, keeps nothing back yet: else nothing would be deleted
        while one snapshot after the other dies."""
        cdef uint32_t* numbers = <uint32_t*>calloc(self.segments.count + 1, sizeof(uint32_t))
        cdef uint32_t count = 0, i
        cdef Segment* segment = self.segments.first
        cdef RemoveCall call
        if numbers is NULL:
            return
        while segment is not NULL and self.segments.reclaim_holds == <uint32_t>dying:
            if segment.live == 0 and (self.segments.live_at_checkpoint(segment) == 0 or planted(b"removed_while_needed")) and \
                    is_settled(segment, sequence) and segment.last_sequence <= self.segments.kept_from and not segment.cleaning:
                segment.cleaning = True
                numbers[count] = segment.number
                count += 1
            segment = segment.next
        for i in range(count):
            segment = self.segments.find(numbers[i])
            call.store = self.log.open_segments.stores[segment.store]
            call.replica = segment.replica
            if call_on((<Store>call.store).home, self.reactor, remove_body, &call) == 0:
                self.segments.remove(segment)
                self.counters[SEGMENTS_REMOVED] += 1
            else:
                segment.cleaning = False
        release(numbers)
        if count and self.log.open_segments.no_space:
            self.log.open_segments.space_freed()


cdef bint is_settled(const Segment* segment, uint64_t checkpoint) noexcept nogil:
    """No block of it is needed by the checkpoint at this sequence but for what its map holds, or by replay behind it."""
    return segment.state == SEGMENT_SEALED and segment.last_sequence <= checkpoint and segment.table_of != checkpoint


cdef struct RemoveCall:
    void* store
    Replica* replica


cdef int64_t remove_body(void* argument) noexcept nogil:
    cdef RemoveCall* call = <RemoveCall*>argument
    return (<Store>call.store).remove(call.replica)


cdef void begin_due(Operation* operation) noexcept nogil:
    (<Checkpoints>operation.owner).begin_what_is_due()


cdef void begin_for_starving(void* keepers) noexcept nogil:
    """Any of those who share the cache begins for all."""
    while keepers is not NULL and not (<Checkpoints>keepers).begin_asked:
        (<Checkpoints>keepers).poke()
        keepers = (<Checkpoints>keepers).next_keeper


cdef void begin_write_back(Checkpoints self) noexcept nogil:
    if not self.writing_back and not self.writing and not self.stopping and self.ready and not self.log.error:
        self.writing_back = True
        start(write_back_body, <void*>self, NULL)


cdef int64_t checkpoint_body(void* argument) noexcept nogil:
    (<Checkpoints>argument).go()
    return 0


cdef int64_t write_back_body(void* argument) noexcept nogil:
    (<Checkpoints>argument).write_back()
    (<Checkpoints>argument).writing_back = False
    if (<Checkpoints>argument).log.error:
        (<Checkpoints>argument).map.cache.rouse()
    wake_all(&(<Checkpoints>argument).writing_back_ended, 0)
    if (<Checkpoints>argument).stopping:
        wake_all(&(<Checkpoints>argument).ended, 0)
    return 0
