# A volume with replicas that a node of a simulated cluster has open, or opens: what daemon and engine do (engine.pyx,
# node/volumes/opening.py, node/volume.py, node/pointers.py), and its clients' requests.
#
#     OPENING -- the log is recovered --> VERIFYING --> SERVING -- close() --> CLOSING --> CLOSED
#        '--- it could not be opened -------------------------------------------------------^
#     each of them -- the process ends --> GONE
#
# Several nodes may believe that they own it. All results go into the history (simulation/registers.pyx), except for
# reads of an owner after a newer one has recovered the log, until there are leases.

from libc.errno cimport EBUSY, EHOSTUNREACH
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.format.layout cimport BLOCK_BYTES, POINTER_PRESENT, SEGMENT_BYTES_MIN, SEGMENT_SEALED, Pointer
from iomesh.engine.history.snapshots cimport walk_dying
from iomesh.engine.log.open_segments cimport OPEN_SEGMENTS_MAX
from iomesh.engine.log.repair cimport mend_node
from iomesh.engine.map.map cimport MapCache
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.local cimport local_members
from iomesh.engine.replicas.member cimport REPLICAS_MAX, Member
from iomesh.engine.replicas.remote cimport RemoteMember
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.simulation.cluster_metadata cimport (
    CALL_CANCELLED, CALL_CONFLICT, CALL_DONE, CALL_UNAVAILABLE, CallResult
)
from iomesh.engine.simulation.cluster_run cimport (
    CLIENT_CHECKPOINT, CLIENT_FLUSH, CLIENT_READ, CLIENT_WRITE, CLIENT_ZERO, OPERATION_BLOCKS
)
from iomesh.engine.simulation.disk cimport BLOCK_SECTORS
from iomesh.engine.simulation.oracle cimport fill
from iomesh.engine.simulation.world cimport WorldIo
from iomesh.engine.store.directory cimport replica_offset
from iomesh.engine.store.store cimport Replica, Store
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.volume.checkpoint cimport POINTER_DONE, POINTER_REFUSED, POINTER_UNKNOWN, Outcome
from iomesh.engine.volume.copies cimport Copies
from iomesh.engine.volume.rebuild cimport drop_copy, rebuild_copy
from iomesh.engine.volume.volume cimport EVENT_NUMBERS

cdef extern from "<errno.h>" nogil:
    int ESTALE

cdef enum:
    ATTEMPTS = 12                    # to change the record, as node/volume.py
    LOOK_PEERS_NS = 50 * 1000 * 1000
    FIRST_PAUSE_NS = 100 * 1000 * 1000   # between the attempts of an update
    COMPARE_NS = 1000 * 1000 * 1000  # between two comparisons of a node's copies
    REBUILD_NS = 500 * 1000 * 1000   # between two copies, on average
    AGAIN_NS = 1000 * 1000           # between two checks whether something has ended
    NUMBERS_LOW = 2                  # with fewer numbers left, more are asked for


cdef class SharedVolume:
    """former: the node that owned it; -1: none. Raises MemoryError."""

    def __cinit__(self, ClusterRun run, ClusterNode node, ClusterMetadata metadata, int former):
        self.kept_copies = []
        cdef int i
        self.run, self.node, self.metadata, self.former = run, node, metadata, former
        self.former_epoch = metadata.record.epoch
        run.opened_ever += 1
        self.number = run.opened_ever
        self.reactor_number = <int>run.draw(run.reactor_count)
        self.reactor = node.reactors[self.reactor_number]
        self.io = self.reactor.io
        self.memory = <char*>allocate_aligned(
            (CLIENT_SLOTS * OPERATION_BLOCKS + run.group_blocks) * <size_t>BLOCK_BYTES
        )
        if self.memory is NULL:
            raise MemoryError("no memory for requests")
        for i in range(CLIENT_SLOTS):
            self.slots[i].buffer = self.memory + <size_t>i * OPERATION_BLOCKS * BLOCK_BYTES
            self.slots[i].volume = <void*>self
        self.look_buffer = self.memory + <size_t>CLIENT_SLOTS * OPERATION_BLOCKS * BLOCK_BYTES
        self.state = SHARED_OPENING

    def __dealloc__(self):
        release_buffer(self.io, self.memory)

    cdef object settle_in(self):
        """Creates the engine's objects, as engine.pyx does."""
        cdef ClusterRun run = self.run
        cdef LogRecord* record = &self.log_record
        cdef uint32_t i
        cache = self.node.caches[self.reactor_number]
        pool = self.node.pools[self.reactor_number]
        volume = run.volume[:16]
        self.segments = SegmentTable()
        self.map = Map(<MapCache>cache, self.io, self.segments)
        self.log = Log(
            self.reactor, <Pool>pool, self.segments, self.members(), volume, record.epoch,
            SEGMENT_BYTES_MIN // BLOCK_BYTES
        )
        self.volume = Volume(
            volume, self.reactor, <Pool>pool, self.log, self.map, self.segments, run.size_blocks()
        )
        self.volume.counters = self.volume.reader.counters = self.volume.checkpoints.counters = run.counters
        self.log.counters = self.log.open_segments.counters = self.log.flusher.counters = run.counters
        self.volume.latencies = run.histograms
        self.volume.checkpoints.interval = run.interval
        self.volume.listener = <void*>self
        self.volume.on_event = told
        self.volume.checkpoints.on_written = checkpoint_written
        self.volume.checkpoints.on_dying = walk_dying
        fragments = [
            (
                record.fragments[i].number, record.fragments[i].first,
                [device for device in record.fragments[i].devices if device]
            )
            for i in range(record.fragment_count)
        ]
        self.recovery = Recovery(
            self.volume,
            (record.checkpoint.segment, record.checkpoint.block, record.checkpoint.crc)
            if record.checkpoint.flags & POINTER_PRESENT
            else None,
            Copies(self.volume, fragments),
        )
        self.log.open_segments.replicas, self.log.open_segments.minimum = run.replicas, run.minimum
        self.log.open_segments.fragment = self.first_fragment
        self.log.open_segments.fragment_asked = self.log.open_segments.fragment_agreed = self.first_fragment - 1
        self.volume.on_fragment = fragment_begins
        self.map.mender = <void*>self.log.open_segments
        self.map.mend = mend_node
        self.log.open_segments.enospc_timeout_ns = 500 * 1000 * 1000
        self.log.open_segments.next_segment = self.first_segment
        self.log.open_segments.promise(record.promised)
        self.log.open_segments.promise_low = NUMBERS_LOW

    cdef object members(self):
        cdef ClusterNode other
        volume = self.run.volume[:16]
        members = local_members(self.reactor, self.node.stores, volume)
        for other in self.run.nodes:
            if other is self.node:
                continue
            for i in range(other.store_count):
                members.append(
                    RemoteMember(
                        self.reactor, len(members),
                        <RemoteNode>self.node.remote_pointers[self.reactor_number][other.number],
                        other.devices[<int>i] + 1, volume
                    )
                )
        return members

    cdef object drop(self):
        self.recovery = None
        self.volume = None
        self.log = None
        self.map = None
        self.segments = None

    cdef list describe(self):
        """The segments of its log."""
        cdef Segment* segment
        cdef int i
        lines = []
        segment = NULL if self.segments is None else self.segments.first
        while segment is not NULL:
            copies = [
                (<Member>self.log.open_segments.members[segment.copies[i]]).device() for i in range(segment.copy_count)
            ]
            lines.append(
                f"    segment {segment.number}: {'sealed' if segment.state == SEGMENT_SEALED else 'open'}, records "
                f"{segment.first_sequence} to {segment.last_sequence}, {segment.blocks} blocks, {segment.live} live, "
                f"copies {copies}"
            )
            segment = segment.next
        if self.recovery is not None and self.recovery.reason[0]:
            lines.append(f"    {self.recovery.reason.decode(errors='replace')}")
        return lines

    cdef void is_settled(self) noexcept nogil:
        self.wants = False
        self.settled.result = 0
        self.settled.done(&self.settled)

    cdef void process_ended(self) noexcept nogil:
        cdef int i
        self.state = SHARED_GONE
        self.run.registers.is_gone(self.number)
        for i in range(CLIENT_SLOTS):
            self.run.counted.vanished += self.slots[i].busy
            self.slots[i].busy = False
        self.busy = 0

    cdef void end_task(self) noexcept nogil:
        self.tasks -= 1

    cdef void tell_state(self) noexcept nogil:
        self.run.note(b"  its volume: state %lld, %lld requests, %lld tasks", self.state, self.busy, self.tasks)
        if self.log is None:
            return
        self.run.note(
            b"  its log: %lld records, %lld committed, error %lld", self.log.last_appended(), self.log.committed,
            self.log.error
        )
        self.run.note(
            b"  fragment %lld, asked for up to %lld, agreed up to %lld", self.log.open_segments.fragment,
            self.log.open_segments.fragment_asked, self.log.open_segments.fragment_agreed
        )
        self.run.note(
            b"  it works around an error: %lld, waits for members: %lld, seals: %lld", self.log.failing,
            self.log.open_segments.too_few, self.log.open_segments.sealing
        )
        self.run.note(
            b"  segment: current %lld, prepared %lld, being prepared %lld", self.log.open_segments.current is not NULL,
            self.log.open_segments.prepared is not NULL, self.log.open_segments.preparing
        )
        self.run.note(
            b"  it has no space: %lld, holds leases: %lld, requests wait for a segment: %lld",
            self.log.open_segments.no_space, self.log.serving.holds(), self.log.waiters.first is not NULL
        )
        self.run.note(
            b"  a checkpoint is under way: %lld, flushes: %lld, an update: %lld", self.volume.checkpoints.running,
            self.log.flusher.left, self.update.generation
        )

    cdef void pause(self, int64_t ns) noexcept nogil:
        cdef Operation timer
        waited(&timer)
        self.io.after(&timer, ns)
        wait(&timer)

    # ------------------------------------------------------------------ opening

    cdef void open(self) noexcept nogil:
        self.tasks += 1
        start(open_body, <void*>self, NULL)

    cdef int refuse(self, int error, const char* reason) noexcept nogil:
        snprintf(self.reason, sizeof(self.reason), b"%s", reason)
        return -error

    cdef int take_over(self) noexcept nogil:
        """As node/volume.py. 0, or a negative errno and `reason`."""
        cdef LogRecord record
        cdef Waiting waiting
        cdef CallResult result
        cdef int attempt, error
        result = self.metadata.get(self.node.number, self.reactor, &waiting, &self.log_record, &self.version)
        for attempt in range(ATTEMPTS):
            if result != CALL_DONE:
                return self.refuse(EHOSTUNREACH, b"the metadata service does not answer")
            if self.log_record.epoch and self.log_record.owner != self.node.number and (
                self.log_record.owner != self.former or self.log_record.epoch != self.former_epoch
            ):
                return self.refuse(EBUSY, b"another node owns the volume")
            if attempt == 0:
                error = self.reach_copies()
                if error < 0:
                    return error
            record = self.log_record
            self.first_segment, self.first_fragment = record.promised + 1, record.next_fragment
            record.epoch += 1
            record.owner = self.node.number
            record.promised = self.first_segment + self.run.numbers - 1
            if not planted(b"fragment_numbers_not_reserved"):
                record.next_fragment = self.first_fragment + self.run.fragment_numbers
            result = self.metadata.commit(self.node.number, self.reactor, &waiting, &record, &self.version)
            if result == CALL_DONE:
                self.log_record = record
                return 0
            if result == CALL_CONFLICT:
                result = self.metadata.get(
                    self.node.number, self.reactor, &waiting, &self.log_record, &self.version
                )
        return self.refuse(EHOSTUNREACH, b"the record keeps changing")

    cdef bint is_reachable(self, uint32_t device) noexcept nogil:
        cdef int node = node_of(self.run, device), i
        for i in range(self.run.reactor_count if node != self.node.number else 0):
            if not self.node.is_attached_to(i, node):
                return False
        return True

    cdef int reach_copies(self) noexcept nogil:
        """As node/volumes/opening.py. 0, or a negative errno and `reason`."""
        cdef int64_t deadline_ns = self.io.now_ns() + PEERS_NS
        cdef const FragmentRecord* fragment = NULL
        cdef int node, attached = 0
        cdef uint32_t i, k, device
        cdef bint complete = False, found
        if self.log_record.fragment_count:
            fragment = &self.log_record.fragments[self.log_record.fragment_count - 1]
        while not complete and self.io.now_ns() < deadline_ns:
            complete = True
            attached = 0
            for node in range(self.run.node_count):
                attached += node != self.node.number and self.is_reachable(
                    <uint32_t>(<ClusterNode>self.run.node_pointers[node]).devices[0] + 1
                )
            for k in range(<int>REPLICAS_MAX if fragment is not NULL else 0):
                complete = complete and (fragment.devices[k] == 0 or self.is_reachable(fragment.devices[k]))
            if fragment is NULL:
                complete = attached >= <int>self.run.replicas - 1
            if not complete:
                self.pause(LOOK_PEERS_NS)
        for i in range(self.log_record.fragment_count):
            found = False
            for k in range(REPLICAS_MAX):
                device = self.log_record.fragments[i].devices[k]
                found = found or (device and self.is_reachable(device))
            if not found:
                return self.refuse(EHOSTUNREACH, b"no node that has the records of a fragment can be reached")
        if 1 + attached < <int>self.run.minimum:
            return self.refuse(EHOSTUNREACH, b"too few nodes can be reached")
        return 0

    cdef bint verify(self) noexcept nogil:
        """Compares all blocks with the history. False: one of them cannot be read, or is wrong."""
        cdef uint32_t block = 0, i
        cdef uint64_t begun
        while block < self.run.blocks:
            memset(&self.look, 0, sizeof(Read) - sizeof(self.look.pointers))
            self.look.block = self.run.place_of(block)
            self.look.count = self.run.group_blocks
            self.look.into = self.look_buffer
            self.look.owner = <void*>self
            self.look.done = looked
            begun = self.run.registers.tick()
            waited(&self.looked)
            self.volume.read(&self.look)
            wait(&self.looked)
            if self.look.error:
                self.run.note(b"block %lld cannot be read: error %lld", block, self.look.error, 0)
                for i in range(self.run.group_blocks):
                    self.run.note(
                        b"  block %lld is block %lld of segment %lld", block + i, self.look.pointers[i].block,
                        self.look.pointers[i].segment
                    )
                if self.run.faultless and not self.has_lost():
                    self.run.fault(b"block %lld cannot be read: error %lld", block, self.look.error)
                return False
            if self.look.unmapped:
                memset(self.look_buffer, 0, self.look.count * BLOCK_BYTES)
            if self.run.registers.opened > self.log_record.epoch:
                return False                             # there is a newer owner already
            for i in range(self.run.group_blocks):
                if not self.run.registers.settle(
                    block + i, self.look_buffer + <size_t>i * BLOCK_BYTES, self.look.block + i, begun
                ):
                    self.run.fault(self.run.registers.words, 0, 0)
                    return False
            block += self.run.group_blocks
        if not self.run.registers.settled():
            self.run.fault(self.run.registers.words, 0, 0)
            return False
        return True

    # ------------------------------------------------------------------ closing

    cdef void end_updates(self) noexcept nogil:
        """In a task, when the engine has closed the volume: an update with unknown outcome is abandoned."""
        cdef Waiting* waiting = self.waiting
        self.update.generation = 0
        self.later_count = 0
        self.waiting = NULL
        if waiting is not NULL:
            self.metadata.cancel(waiting)
        while self.tasks > 1:
            self.pause(AGAIN_NS)

    cdef void close(self, bint checkpoint) noexcept nogil:
        if self.state == SHARED_VERIFYING or self.state == SHARED_SERVING:
            self.state = SHARED_CLOSING
            self.checkpoint_last = checkpoint
            self.closes_faultless = self.run.faultless
            self.tasks += 1
            start(close_body, <void*>self, NULL)

    cdef bint has_lost(self) noexcept nogil:
        return self.lost or self.log.error != 0 or self.volume.checkpoints.lost

    cdef uint64_t answered(self) noexcept nogil:
        cdef uint64_t found = 0
        cdef int i
        for i in range(self.log.open_segments.member_count):
            if self.recovery.copies.answered[i]:
                found |= <uint64_t>1 << (<Member>self.log.open_segments.members[i]).device()
        return found

    cdef bint is_updating(self) noexcept nogil:
        return self.update.generation != 0 or self.checkpointing

    cdef bint serves(self) noexcept nogil:
        return self.state == SHARED_SERVING

    # ------------------------------------------------------------------ updates of the record

    cdef bint start_update(self, Update* update) noexcept nogil:
        self.generations += 1
        update.generation = self.generations
        self.update = update[0]
        self.tasks += 1
        start(update_body, <void*>self, NULL)
        return True

    cdef void change(self, const Update* update, LogRecord* record) noexcept nogil:
        """As _Update.change of node/pointers.py."""
        cdef uint32_t i, k, kept = 0
        cdef uint64_t later
        cdef bint known
        for i in range(update.fragment_count):
            known = False
            for k in range(record.fragment_count):
                known = known or record.fragments[k].number == update.fragments[i].number
            if known:
                continue
            if record.fragment_count == FRAGMENTS_KEPT:
                self.run.fault(b"the record has %lld fragments", FRAGMENTS_KEPT, 0)
                return
            record.fragments[record.fragment_count] = update.fragments[i]
            record.fragment_count += 1
        if update.moves:
            record.checkpoint, record.sequence = update.checkpoint, update.sequence
            for i in range(record.fragment_count):
                later = ~<uint64_t>0
                for k in range(i + 1, record.fragment_count):
                    later = min(later, record.fragments[k].first)
                if i == record.fragment_count - 1 or later > update.sequence:
                    record.fragments[kept] = record.fragments[i]
                    kept += 1
            memset(&record.fragments[kept], 0, (record.fragment_count - kept) * sizeof(FragmentRecord))
            record.fragment_count = kept
        if update.next_segment:
            record.promised = max(record.promised, update.next_segment + self.run.numbers - 1)

    cdef int write_log(self, uint64_t generation, Waiting* waiting) noexcept nogil:
        """As node/volume.py. The outcome; or -1: another update has taken this one's place."""
        cdef LogRecord changed, found
        cdef CallResult result
        cdef uint64_t version
        cdef int _i
        for _i in range(ATTEMPTS):
            changed = self.log_record
            self.change(&self.update, &changed)
            version = self.version
            result = self.metadata.commit(self.node.number, self.reactor, waiting, &changed, &version)
            if self.update.generation != generation or result == CALL_CANCELLED:
                return -1
            if result == CALL_DONE:
                self.log_record, self.version = changed, version
                return POINTER_DONE
            if result == CALL_CONFLICT:
                result = self.metadata.get(self.node.number, self.reactor, waiting, &found, &version)
                if self.update.generation != generation or result == CALL_CANCELLED:
                    return -1
            if result == CALL_UNAVAILABLE:
                return POINTER_DONE if planted(b"unknown_is_done") else POINTER_UNKNOWN
            if found.epoch != self.log_record.epoch or found.owner != self.log_record.owner:
                return POINTER_REFUSED
            self.log_record, self.version = found, version
            changed = found
            self.change(&self.update, &changed)
            if memcmp(&changed, &found, sizeof(LogRecord)) == 0:
                return POINTER_DONE                      # the answer to an earlier attempt was lost
        return POINTER_UNKNOWN

    cdef void carry_out(self, uint64_t generation) noexcept nogil:
        cdef Waiting waiting
        cdef int64_t pause_ns = FIRST_PAUSE_NS
        cdef int outcome = POINTER_UNKNOWN
        cdef uint32_t asked
        cdef Update following
        waiting.io = NULL
        while outcome == POINTER_UNKNOWN:
            self.waiting = &waiting
            outcome = self.write_log(generation, &waiting)
            if outcome < 0:
                return
            self.waiting = NULL
            asked = self.update.next_segment
            self.tell(outcome)
            if outcome == POINTER_UNKNOWN:
                self.pause(pause_ns)
                pause_ns = min(2 * pause_ns, <int64_t>5000 * 1000 * 1000)
                if self.update.generation != generation:
                    return
        if self.update.generation != generation:
            return                                       # what was told has begun another one
        self.update.generation = 0
        memset(&following, 0, sizeof(Update))
        if self.update.next_segment != asked:            # for numbers, by what was told
            following.next_segment = self.update.next_segment
        if self.later_count or following.next_segment:
            memcpy(following.fragments, self.later, self.later_count * sizeof(FragmentRecord))
            following.fragment_count = self.later_count
            self.later_count = 0
            self.start_update(&following)

    cdef void tell(self, int outcome) noexcept nogil:
        """As the commands AgreeFragment and MovePointer."""
        cdef Update update = self.update
        cdef uint32_t i
        self.run.note(
            b"update of epoch %lld: outcome %lld, checkpoint %lld", self.log_record.epoch, outcome, update.sequence
        )
        for i in range(update.fragment_count):
            if outcome == POINTER_DONE:
                self.run.counted.fragments += 1
                self.log.agree_fragment(update.fragments[i].number)
        if outcome == POINTER_UNKNOWN and update.fragment_count and self.volume.closing:
            start(give_up_body, <void*>self, NULL)
        if update.moves or update.next_segment:
            if outcome == POINTER_DONE:
                self.run.counted.moves += update.moves
            self.volume.checkpoints.moved(
                update.sequence, <Outcome>outcome, self.log_record.promised if outcome == POINTER_DONE else 0
            )
        if outcome == POINTER_REFUSED:
            self.lost = True
            self.run.counted.lost_rights += 1
            if update.fragment_count or update.sequence == 0:
                start(lose_body, <void*>self, NULL)

    # ------------------------------------------------------------------ copies

    cdef void look_after_copies(self) noexcept nogil:
        """Of nodes that are back: what they have counts again, or is removed."""
        cdef int node
        cdef void* remote
        for node in range(self.run.node_count):
            remote = self.node.remote_pointers[self.reactor_number][node]
            if remote is NULL or not (<RemoteNode>remote).ready or self.reconciliations[node].under_way or \
                    self.reconciliations[node].readies == (<RemoteNode>remote).readies or \
                    self.reconciliations[node].again_ns > self.run.world.event_queue.now:
                continue
            self.reconciliations[node].volume, self.reconciliations[node].node = <void*>self, node
            self.reconciliations[node].again_ns = self.run.world.event_queue.now + COMPARE_NS
            self.reconciliations[node].under_way = True
            self.tasks += 1
            start(reconcile_body, &self.reconciliations[node], NULL)
        if self.run.rebuilds and not self.rebuilding.under_way and \
                self.rebuilding.again_ns <= self.run.world.event_queue.now:
            self.rebuilding.again_ns = self.run.world.event_queue.now + <int64_t>self.run.draw(2 * REBUILD_NS)
            self.rebuilding.under_way = True
            self.tasks += 1
            start(rebuild_body, <void*>self, NULL)

    cdef const Segment* any_sealed(self) noexcept nogil:
        cdef const Segment* segment = self.segments.first
        cdef const Segment* chosen = NULL
        cdef uint32_t count = 0
        while segment is not NULL:
            if segment.state == SEGMENT_SEALED:
                count += 1
                if self.run.draw(count) == 0:
                    chosen = segment
            segment = segment.next
        return chosen

    cdef void drain_some(self) noexcept nogil:
        """Devices of other nodes, now and then, until the faults are over."""
        cdef int i
        cdef bint changes = self.run.draw(4) == 0
        for i in range(self.log.open_segments.local_count, self.log.open_segments.member_count):
            if self.run.faultless:
                (<Member>self.log.open_segments.members[i]).leaving = False
            elif changes:
                (<Member>self.log.open_segments.members[i]).leaving = self.run.draw(3) == 0

    cdef void rebuild_one(self, uint32_t segment) noexcept nogil:
        """On any device, from any that has it, or has not: with and without need."""
        cdef int members = self.log.open_segments.member_count
        cdef void* target = self.log.open_segments.members[self.run.draw(members)]
        cdef void* source = self.log.open_segments.members[self.run.draw(members)]
        cdef uint32_t rate = 0 if self.run.draw(2) else 256
        cdef int result
        if (<Member>target).node is NULL or (<Member>target).device() == (<Member>source).device():
            return
        result = rebuild_copy(self.volume, segment, (<Member>target).device(), (<Member>source).device(), rate)
        self.run.note(
            b"segment %lld is rebuilt on device %lld: error %lld", segment, (<Member>target).device(), -result
        )
        self.run.counted.rebuilt += result == 0

    cdef void drop_one(self, const Segment* segment) noexcept nogil:
        cdef uint16_t member = segment.copies[self.run.draw(segment.copy_count)]
        cdef uint32_t number = segment.number, device = (<Member>self.log.open_segments.members[member]).device()
        cdef int result = drop_copy(self.volume, number, device)
        self.run.note(b"the copy of segment %lld on device %lld is dropped: error %lld", number, device, -result)
        self.run.counted.dropped += result == 0

    cdef bint compare_copies(self) noexcept nogil:
        cdef Segment* segment = self.segments.first
        cdef int i
        while segment is not NULL:
            for i in range(segment.copy_count if segment.state == SEGMENT_SEALED else 0):
                if not is_equal_to(self, segment, segment.copies[i]):
                    return False
                self.run.counted.equal += 1
            segment = segment.next
        return True

    # ------------------------------------------------------------------ clients

    cdef int64_t oldest_ns(self) noexcept nogil:
        cdef int64_t oldest = self.run.world.event_queue.now
        cdef int i
        for i in range(CLIENT_SLOTS):
            if self.slots[i].busy:
                oldest = min(oldest, self.slots[i].started_ns)
        return self.run.world.event_queue.now - oldest

    cdef bint issue(self, int kind) noexcept nogil:
        cdef int i = 0
        cdef ClientSlot* slot
        if kind == CLIENT_CHECKPOINT:
            if not self.checkpointing:
                self.checkpointing = True
                self.tasks += 1
                start(checkpoint_body, <void*>self, NULL)
            return True
        while i < CLIENT_SLOTS and (
            self.slots[i].busy or self.io.holds(self.slots[i].buffer, OPERATION_BLOCKS * BLOCK_BYTES)
        ):
            i += 1
        if i == CLIENT_SLOTS:
            return False
        slot = &self.slots[i]
        memset(&slot.request, 0, sizeof(slot.request))
        memset(&slot.read, 0, sizeof(slot.read) - sizeof(slot.read.pointers))
        slot.request.finished = request_finished
        slot.when.done = more
        slot.when.owner = slot.read.owner = slot
        slot.read.done = read_finished
        slot.read.into = slot.buffer
        slot.busy = True
        slot.kind = kind
        slot.done = slot.number = 0
        slot.started_ns = self.run.world.event_queue.now
        self.busy += 1
        slot.block = <uint32_t>self.run.draw(self.run.blocks)
        slot.count = min(
            1 + <uint32_t>self.run.draw(1 + self.run.draw(self.run.size_max)),
            self.run.group_blocks - slot.block % self.run.group_blocks
        )
        if kind == CLIENT_FLUSH:
            slot.begun = self.run.registers.tick()
            self.volume.flush(&slot.request)
        elif kind == CLIENT_READ:
            slot.begun = self.run.registers.tick()
            slot.read.block, slot.read.count = self.run.place_of(slot.block), slot.count
            self.volume.read(&slot.read)
        else:
            slot.request.stable = self.run.chance(self.run.stable)
            slot.number = self.run.registers.begin(
                slot.block, slot.count, kind == CLIENT_ZERO, self.log_record.epoch, self.number
            )
            self.run.note(b"write %lld of block %lld, to epoch %lld", slot.number, slot.block, self.log_record.epoch)
            if kind == CLIENT_WRITE:
                fill(
                    slot.buffer, slot.number, self.run.place_of(slot.block) * BLOCK_SECTORS,
                    slot.count * BLOCK_SECTORS
                )
            self.write_more(slot)
        return True

    cdef void write_more(self, ClientSlot* slot) noexcept nogil:
        cdef int64_t taken
        cdef uint64_t place
        while slot.done < slot.count:
            place = self.run.place_of(slot.block + slot.done)
            if slot.kind == CLIENT_ZERO:
                taken = self.volume.zero(&slot.request, place, slot.count - slot.done, &slot.when)
            else:
                taken = self.volume.write(
                    &slot.request, place, slot.count - slot.done,
                    slot.buffer + <size_t>slot.done * BLOCK_BYTES, &slot.when
                )
            if taken == 0:
                return
            if taken < 0:
                slot.request.error = <int>-taken
                break
            slot.done += <uint32_t>taken
        slot.done = slot.count
        self.volume.complete(&slot.request)

    cdef uint32_t holders(self) noexcept nogil:
        """Nodes that have what has just been committed: members of every segment that it may be in."""
        cdef uint32_t of_segment, found = ~<uint32_t>0
        cdef Segment* segment
        cdef int i, k
        for i in range(OPEN_SEGMENTS_MAX):
            segment = self.log.open_segments.all[i].segment
            if segment is NULL or segment.last_sequence == 0:
                continue
            of_segment = <uint32_t>1 << self.node.number
            for k in range(segment.copy_count):
                of_segment |= <uint32_t>1 << node_of(
                    self.run, (<Member>self.log.open_segments.members[segment.copies[k]]).device()
                )
            found &= of_segment
        return found if found != ~<uint32_t>0 else <uint32_t>1 << self.node.number

    cdef void write_done(self, ClientSlot* slot) noexcept nogil:
        cdef int error = slot.request.error
        if not (<WorldIo>self.io).alive or not slot.busy:
            return                                       # its process has just ended: nobody hears of it
        self.busy -= 1
        slot.busy = False
        self.run.count(slot.kind)
        if error:
            self.run.counted.failures += 1
            self.run.note(b"request %lld fails with error %lld", slot.number, error, 0)
        elif slot.kind == CLIENT_FLUSH:
            self.run.note(b"flush of %lld ends", slot.begun, 0, 0)
            self.run.registers.flushed(slot.begun, self.log_record.epoch)
        else:
            self.run.note(b"write %lld is acknowledged, nodes %lld", slot.number, self.holders(), 0)
            if not self.run.registers.acknowledge(slot.number, self.holders(), slot.request.stable):
                self.run.fault(self.run.registers.words, 0, 0)

    cdef void read_done(self, ClientSlot* slot) noexcept nogil:
        cdef uint32_t i
        if not (<WorldIo>self.io).alive or not slot.busy:
            return
        self.busy -= 1
        slot.busy = False
        self.run.count(slot.kind)
        if slot.read.error:
            self.run.counted.failures += 1
            self.run.note(b"read of block %lld fails with error %lld", slot.block, slot.read.error, 0)
            return
        if self.run.registers.opened > self.log_record.epoch and not LEASES:
            self.run.counted.stale += 1
            return
        if slot.read.unmapped:
            memset(slot.buffer, 0, slot.count * BLOCK_BYTES)
        for i in range(slot.count):
            if not self.run.registers.check(
                slot.block + i, slot.buffer + <size_t>i * BLOCK_BYTES, slot.read.block + i, slot.begun
            ):
                self.run.fault(self.run.registers.words, 0, 0)
                return


cdef int node_of(ClusterRun run, uint32_t device) noexcept nogil:
    """The node that has the device, by its number in the cluster."""
    cdef int node, i
    for node in range(run.node_count):
        for i in range((<ClusterNode>run.node_pointers[node]).store_count):
            if <uint32_t>(<ClusterNode>run.node_pointers[node]).devices[i] + 1 == device:
                return node
    return 0


cdef bint is_equal_to(SharedVolume volume, const Segment* segment, uint16_t member) noexcept nogil:
    cdef uint32_t device = (<Member>volume.log.open_segments.members[member]).device()
    cdef void* node = volume.run.node_pointers[node_of(volume.run, device)]
    cdef const Replica* here = segment.replica
    cdef const Replica* there = NULL
    cdef uint32_t block, contiguous, end = here.footer_block if here.footer_block else here.blocks
    cdef uint64_t one, other
    cdef int i
    for i in range((<ClusterNode>node).store_count):
        if <uint32_t>(<ClusterNode>node).devices[i] + 1 == device:
            there = (<Store>(<ClusterNode>node).store_pointers[i]).find(volume.run.volume, segment.number)
    if there is NULL:
        volume.run.fault(b"segment %lld has a copy on device %lld, which is not there", segment.number, device)
        return False
    if there.state != SEGMENT_SEALED or there.epoch != here.epoch or there.blocks < end:
        volume.run.fault(b"the copy of segment %lld on device %lld is open, or another one", segment.number, device)
        return False
    for block in range(end):
        one = replica_offset(here, block, &contiguous)
        other = replica_offset(there, block, &contiguous)
        if memcmp(
            volume.run.world.contents(here.device) + one, volume.run.world.contents(there.device) + other, BLOCK_BYTES
        ) != 0:
            volume.run.note(
                b"device %lld: segment %lld block %lld, which differs from this node's", device, segment.number, block
            )
            volume.run.note(
                b"  here it begins with %llx, there with %llx",
                <int64_t>(<uint64_t*>(volume.run.world.contents(here.device) + one))[0],
                <int64_t>(<uint64_t*>(volume.run.world.contents(there.device) + other))[0], 0
            )
            volume.run.fault(b"block %lld of segment %lld differs between its copies", block, segment.number)
            return False
    return True


# ---------------------------------------------------------------------- completion callbacks

cdef void more(Operation* operation) noexcept nogil:
    cdef ClientSlot* slot = <ClientSlot*>operation.owner
    if operation.result < 0:
        slot.request.error = <int>-operation.result
        slot.done = slot.count
        (<SharedVolume>slot.volume).volume.complete(&slot.request)
    else:
        (<SharedVolume>slot.volume).write_more(slot)


cdef void request_finished(Request* request) noexcept nogil:
    cdef ClientSlot* slot = <ClientSlot*>request
    (<SharedVolume>slot.volume).write_done(slot)


cdef void read_finished(Read* read) noexcept nogil:
    cdef ClientSlot* slot = <ClientSlot*>read.owner
    (<SharedVolume>slot.volume).read_done(slot)


cdef void looked(Read* read) noexcept nogil:
    (<SharedVolume>read.owner).looked.done(&(<SharedVolume>read.owner).looked)


# ---------------------------------------------------------------------- the volume's events

cdef bint told(void* volume, int kind, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if kind == EVENT_NUMBERS:
        return ask_for_numbers(<SharedVolume>(<Volume>volume).listener, <uint32_t>a)
    return True


cdef bint ask_for_numbers(SharedVolume volume, uint32_t next_segment) noexcept nogil:
    cdef Update update
    if volume.update.generation:
        volume.update.next_segment = max(volume.update.next_segment, next_segment)
        return True
    memset(&update, 0, sizeof(Update))
    update.next_segment = next_segment
    return volume.start_update(&update)


cdef bint fragment_begins(void* owner, uint32_t number, uint64_t first, const uint32_t* devices) noexcept nogil:
    return begin_fragment(<SharedVolume>(<Volume>owner).listener, number, first, devices)


cdef bint begin_fragment(
    SharedVolume volume, uint32_t number, uint64_t first, const uint32_t* devices
) noexcept nogil:
    cdef Update update
    cdef FragmentRecord fragment
    memset(&fragment, 0, sizeof(fragment))
    fragment.number, fragment.first = number, first
    memcpy(fragment.devices, devices, sizeof(fragment.devices))
    volume.run.note(b"fragment %lld from record %lld on, on device %lld and others", number, first, devices[0])
    if volume.update.generation:
        if volume.later_count == UPDATE_FRAGMENTS:
            volume.run.fault(b"%lld fragments begin during one update", UPDATE_FRAGMENTS, 0)
            return True
        volume.later[volume.later_count] = fragment
        volume.later_count += 1
        return True
    memset(&update, 0, sizeof(Update))
    update.fragments[0] = fragment
    update.fragment_count = 1
    return volume.start_update(&update)


cdef bint checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil:
    return move_pointer(<SharedVolume>(<Volume>owner).listener, sequence, pointer)


cdef bint move_pointer(SharedVolume volume, uint64_t sequence, Pointer pointer) noexcept nogil:
    cdef Update update
    cdef Waiting* waiting = volume.waiting
    memset(&update, 0, sizeof(Update))
    update.moves = True
    update.checkpoint, update.sequence = pointer, sequence
    update.next_segment = volume.log.open_segments.next_segment
    if volume.update.generation:                         # it was for numbers, or for fragments, which are kept
        memcpy(update.fragments, volume.update.fragments, sizeof(update.fragments))
        update.fragment_count = volume.update.fragment_count
        volume.update.generation = 0
        volume.waiting = NULL
        if waiting is not NULL:
            volume.metadata.cancel(waiting)
    return volume.start_update(&update)


# ---------------------------------------------------------------------- tasks

cdef int64_t open_body(void* argument) noexcept nogil:
    open_volume(<SharedVolume>argument)
    (<SharedVolume>argument).end_task()
    return 0


cdef void open_volume(SharedVolume volume) noexcept nogil:
    """As node/volumes/opening.py, and the command OpenVolume."""
    cdef int result = volume.take_over()
    if result == 0:
        volume.run.note(
            b"node %lld takes the volume over: epoch %lld, fragments from %lld on", volume.node.number,
            volume.log_record.epoch, volume.first_fragment
        )
        waited(&volume.settled)
        volume.wants = volume.run.wanting = True
        wait(&volume.settled)
        volume.volume.checkpoints.attach()
        result = volume.recovery.run()
        volume.run.note(
            b"  devices that answered: %llx; of %lld copies %lld segments were fetched", <int64_t>volume.answered(),
            volume.recovery.copies.count, volume.recovery.copies.fetched
        )
        if result < 0:
            snprintf(volume.reason, sizeof(volume.reason), b"%s", volume.recovery.reason)
            volume.volume.close()
            volume.end_updates()
    if result < 0:
        volume.error = result
        volume.state = SHARED_CLOSED
        volume.run.wanting = True
        volume.run.counted.refusals += 1
        volume.run.note(b"node %lld cannot open the volume: error %lld", volume.node.number, -result, 0)
        return
    volume.run.counted.openings += 1
    volume.run.counted.fetched += volume.recovery.copies.fetched
    volume.run.counted.completed += volume.recovery.copies.completed
    volume.run.note(
        b"node %lld has recovered the log: epoch %lld, up to record %lld", volume.node.number,
        volume.log_record.epoch, volume.recovery.end
    )
    volume.run.registers.recovered(volume.log_record.epoch)
    volume.state = SHARED_VERIFYING
    walk_dying(<void*>volume.volume)
    volume.verifying = True
    if volume.verify():
        volume.run.note(b"node %lld serves the volume", volume.node.number, 0, 0)
    volume.verifying = False
    if volume.state == SHARED_VERIFYING:
        volume.state = SHARED_SERVING


cdef int64_t close_body(void* argument) noexcept nogil:
    close_volume(<SharedVolume>argument)
    (<SharedVolume>argument).end_task()
    return 0


cdef void close_volume(SharedVolume volume) noexcept nogil:
    """As the command CloseVolume."""
    cdef int result = 0
    volume.run.note(b"node %lld closes the volume, epoch %lld", volume.node.number, volume.log_record.epoch, 0)
    volume.volume.checkpoints.begin_closing()
    while volume.busy or volume.verifying:
        volume.pause(AGAIN_NS)
    if volume.checkpoint_last and not volume.log.error:
        result = volume.volume.checkpoints.run()
        # an earlier request to the metadata service was not answered, or there is a newer owner
        if (
            result < 0 and result != -EHOSTUNREACH and result != -ESTALE and volume.closes_faultless
            and volume.log_record.epoch == volume.metadata.record.epoch
        ):
            volume.run.fault(b"the last checkpoint ends with error %lld, and nothing fails", -result, 0)
    volume.volume.close()
    volume.end_updates()
    volume.run.registers.is_gone(volume.number)
    if volume.run.faultless and not volume.log.error and volume.log_record.epoch == volume.metadata.record.epoch:
        volume.compare_copies()
    volume.state = SHARED_CLOSED
    volume.run.wanting = True
    volume.run.note(b"node %lld has closed the volume", volume.node.number, 0, 0)


cdef int64_t update_body(void* argument) noexcept nogil:
    (<SharedVolume>argument).carry_out((<SharedVolume>argument).update.generation)
    (<SharedVolume>argument).end_task()
    return 0


cdef int64_t give_up_body(void* argument) noexcept nogil:
    (<SharedVolume>argument).log.break_off(-EHOSTUNREACH)
    return 0


cdef int64_t lose_body(void* argument) noexcept nogil:
    (<SharedVolume>argument).volume.checkpoints.lost = True
    (<SharedVolume>argument).log.break_off(-ESTALE)
    return 0


cdef int64_t checkpoint_body(void* argument) noexcept nogil:
    write_checkpoint(<SharedVolume>argument)
    return 0


cdef void write_checkpoint(SharedVolume volume) noexcept nogil:
    cdef int result = volume.volume.checkpoints.run()
    volume.checkpointing = False
    volume.tasks -= 1
    volume.run.count(CLIENT_CHECKPOINT)
    volume.run.note(b"a checkpoint ends: error %lld", -result, 0, 0)


cdef int64_t rebuild_body(void* argument) noexcept nogil:
    rebuild(<SharedVolume>argument)
    (<SharedVolume>argument).rebuilding.under_way = False
    (<SharedVolume>argument).end_task()
    return 0


cdef void rebuild(SharedVolume volume) noexcept nogil:
    """As node/rebuild.py, but with less sense."""
    cdef const Segment* segment = volume.any_sealed()
    volume.drain_some()
    if segment is NULL:
        return
    if segment.copy_count and (<uint32_t>1 + segment.copy_count > volume.run.replicas or volume.run.draw(4) == 0):
        volume.drop_one(segment)
    else:
        volume.rebuild_one(segment.number)


cdef int64_t reconcile_body(void* argument) noexcept nogil:
    cdef Reconciliation* reconciliation = <Reconciliation*>argument
    reconcile_node(<SharedVolume>reconciliation.volume, reconciliation)
    reconciliation.under_way = False
    (<SharedVolume>reconciliation.volume).end_task()
    return 0


cdef void* new_copies(SharedVolume volume) noexcept with gil:
    copies = Copies(volume.volume, [])
    volume.kept_copies.append(copies)                    # keeps them alive
    return <void*>copies


cdef void reconcile_node(SharedVolume volume, Reconciliation* reconciliation) noexcept nogil:
    """As the command ReconcileCopies, some time after a node is back."""
    cdef int node = reconciliation.node, i, result = 0
    cdef void* member
    cdef void* copies
    cdef uint32_t readies, left = 0
    volume.pause(1 + <int64_t>volume.run.draw(volume.run.link_ns))
    readies = (<RemoteNode>volume.node.remote_pointers[volume.reactor_number][node]).readies
    for i in range(volume.log.open_segments.local_count, volume.log.open_segments.member_count):
        member = volume.log.open_segments.members[i]
        if result == 0 and node_of(volume.run, (<Member>member).device()) == node:
            copies = new_copies(volume)
            result = (<Copies>copies).reconcile(<uint16_t>i)
            left += (<Copies>copies).left
    if result == 0 and left == 0:
        reconciliation.readies = readies
    volume.run.counted.reconciled += 1
    volume.run.note(b"the copies on node %lld are reconciled: error %lld, %lld stay", node, -result, left)
