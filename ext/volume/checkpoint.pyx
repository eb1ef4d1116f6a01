# Checkpoints of a volume: when one is written, and its steps. The steps' work is in volume/write_back.pyx (the map),
# volume/checkpoint_writer.pyx (tables and the checkpoint's block) and volume/removal.pyx.
#
# A checkpoint at record S is exact: it has the map as it was at S and the counters that belong to that map, whatever is
# written meanwhile.
#     drain       new writes wait until those in flight have committed: the time of one write. S is the newest record
#                 then; the counters and the snapshot table are copied, and the cut of a snapshot to be created is the
#                 log's end
#     write map   every node dirty since S or before, leaves first (map/map.pyx: how later changes are kept out); from
#                 the drain on nothing else is written back, so that every image that commits belongs to the checkpoint
#     write table the snapshot table, the segment table with the counters of S, then the checkpoint block
#     flush       all of it is on stable media
#     move        the checkpoint pointer in the metadata service. The answer is done, or refused: the volume has another
#                 owner, and the log ends. While the outcome is unknown, recovery may find either checkpoint. Both are
#                 kept: no segment is removed, cleaning keeps the nodes of the old one, and no new one starts; reads,
#                 writes and write-back continue
#     remove      segments that neither checkpoint nor map nor replay needs any more
# A snapshot is created by a checkpoint, and starts to die with one (map/snapshot_table.pyx): both take effect when the
# pointer has moved. If a step fails, the old checkpoint stays valid and the next one tries again.

from libc.errno cimport EHOSTUNREACH, ESHUTDOWN, ESTALE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from iomesh.engine.base.counters cimport CHECKPOINTS, SEGMENTS_REMOVED
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.log_clock cimport next_log_time, restore_point_made
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport start, wait, wait_in, waited, wake_all
from iomesh.engine.format.layout cimport MAP_LEVELS, Pointer
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map
from iomesh.engine.map.segment_table cimport DATA, NODE, SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.volume.checkpoint_writer cimport CheckpointWriter
from iomesh.engine.volume.removal cimport remove_dead
from iomesh.engine.volume.write_back cimport WriteBack

cdef enum:
    GIVE_UP_NS = 10000000000         # timeout for the metadata service while a volume closes
    MEMBERS_NS = 2000000000          # ... and for members that do not answer: other nodes may be stopping, too
    PAUSE_NS = 20000000


cdef class Checkpoints:
    def __cinit__(self, Reactor reactor, Log log, Map map, SegmentTable segments, SnapshotTable snapshots):
        self.reactor, self.log, self.map, self.segments, self.snapshots = reactor, log, map, segments, snapshots
        self.write_back = WriteBack(log, map, segments)
        self.writer = CheckpointWriter(log, segments, snapshots)
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
        # Without space below it would fail at once, and be due again. The commit that ends that calls poke().
        return (
            not self.running
            and not self.log.refusing_below
            and (self.due or self.log.bytes - self.log.bytes_at_checkpoint >= self.interval)
            and self.replayed
        )

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
                (<Checkpoints>keeper).begin_write_back()
                keeper = (<Checkpoints>keeper).next_keeper

    cdef void begin_write_back(self) noexcept nogil:
        if self.ready:
            self.write_back.begin()

    cdef int run(self) noexcept nogil:
        # enough while its content is not fixed
        cdef uint64_t needed = self.begun if self.gathering else self.begun + 1
        while self.good < needed and self.over < needed:
            if self.is_unanswered():
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
            if self.is_unanswered():
                return -EHOSTUNREACH
            if self.running:
                wait_in(&self.ended)
                continue
            over = self.over
            self.begin_apart()
            while self.over == over and not self.is_unanswered():
                wait_in(&self.ended)
            if self.over > over and self.result < 0 and not self.running:        # else a waiter started another
                return self.result
        return 0

    cdef int claim(self) noexcept nogil:
        while self.running and not self.stopping:
            if self.is_unanswered():
                return -EHOSTUNREACH
            wait_in(&self.ended)
        if self.stopping:
            return -ESHUTDOWN
        self.running = self.write_back.held = True
        return 0

    cdef void begin_closing(self) noexcept nogil:
        self.give_up_ns = self.log.io.now_ns() + GIVE_UP_NS
        self.log.open_segments.give_up_ns = self.give_up_ns
        self.log.open_segments.members_until_ns = self.log.io.now_ns() + MEMBERS_NS

    cdef bint is_unanswered(self) noexcept nogil:
        return self.unanswered or (self.log.open_segments.promise_waited and self.log.open_segments.promise_unanswered)

    cdef void pause(self) noexcept nogil:
        cdef Operation operation
        if self.unanswered and self.log.io.now_ns() >= self.give_up_ns:
            self.moved(self.answer_for, POINTER_GIVEN_UP, 0)
            return
        waited(&operation)
        self.log.io.after(&operation, PAUSE_NS)
        wait(&operation)

    cdef void stop(self) noexcept nogil:
        cdef void** place = &self.map.cache.keepers
        self.stopping = self.write_back.stopping = True
        while self.running or self.write_back.running or self.begin_asked:
            if self.unanswered:
                self.pause()
            else:
                wait_in(&self.write_back.ended if self.write_back.running else &self.ended)
        while place[0] is not <void*>self:
            place = &(<Checkpoints>place[0]).next_keeper
        place[0] = self.next_keeper

    cdef void begin_apart(self) noexcept nogil:
        """In its own task, so that the caller need not wait while the metadata service does not answer."""
        self.running = True
        start(checkpoint_body, <void*>self, NULL)

    cdef int go(self) noexcept nogil:
        """In a task, `running` is set."""
        cdef int result
        self.write()
        result = self.result
        self.let_go()                                    # a waiter may start another one at once
        return result

    cdef void write(self) noexcept nogil:
        self.log.open_segments.making_space += 1         # it deletes dead segments
        self.write_back.held = self.gathering = True
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
        self.segments.settle(False)                      # has an effect only after an error
        self.log.open_segments.end_making_space()

    cdef void let_go(self) noexcept nogil:
        self.held = False
        self.end_drain()
        self.running = False
        self.map_written()
        if self.log.error:
            self.map.cache.rouse()                       # fails waiters for frames that this volume will never clean
        wake_all(&self.log.waiters, 0)
        wake_all(&self.ended, self.result)

    cdef void map_written(self) noexcept nogil:
        """Allows write-back again: the rest of the checkpoint may have to wait long for the metadata service."""
        self.map.freeze = 0
        self.write_back.held = False
        self.poke()

    # ------------------------------------------------------------------ the checkpoint

    cdef int begin_drain(self) noexcept nogil:
        cdef int result
        while self.write_back.running:
            wait_in(&self.write_back.ended)
        if self.log.last_appended() == 0 and self.snapshots.version != self.snapshots.durable:
            result = self.log.wait_room()                # a checkpoint needs a record to refer to: append an empty one
            if result < 0:
                return result
            self.log.close_record()
        if not self.log.draining:
            self.drain_began_ns = self.log.io.now_ns()
            self.log.draining = True
        return self.log.error

    cdef int drain(self) noexcept nogil:
        cdef int result = 0
        while (
            result == 0 and self.log.committed != self.log.last_appended() and not planted(b"checkpoint_without_drain")
        ):
            result = self.log.wait_committed_or_refused(self.log.last_appended())
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
        if at == 0 or (self.log.content == self.content and self.snapshots.version == self.snapshots.durable and
                       self.writer.changes == self.described):
            return 0                                     # nothing has changed since the last one
        next_log_time(&self.log.clock, self.log.io)
        result = self.snapshots.freeze(
            at, &self.log.clock, self.writer.size_bytes, self.log.open_segments.position(), self.segments
        )
        if result < 0:
            return result
        self.map.freeze = at
        self.segments.begin_checkpoint()
        self.segments.shift_pin(DATA, self.snapshots.data_pin())
        self.segments.wanted_exclusive = self.snapshots.frozen_exclusive
        self.log.bytes_at_checkpoint = self.log.bytes
        self.end_drain()
        for level in range(MAP_LEVELS):
            result = self.write_back.write_level(level, at)
            if result < 0:
                return result
        root = self.map.root
        self.snapshots.map_written(root, self.log.open_segments.position())
        self.segments.shift_pin(NODE, self.snapshots.node_pin())
        self.map_written()
        result = self.writer.write(at, root, &pointer)
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
            self.log.break_off(-ESTALE)                  # the volume has another owner
            return -ESTALE
        if outcome == POINTER_GIVEN_UP:
            return -EHOSTUNREACH
        self.sequence = at
        self.pointer = pointer
        self.root = root
        self.described = self.writer.described
        self.inherited = self.snapshots.frozen_inherited
        if self.log.content == self.content_written and (self.log.changed <= at or planted(b"checkpoint_without_rest")):
            self.content = self.log.content
        self.counters[CHECKPOINTS] += 1
        dying = self.settle()
        self.counters[SEGMENTS_REMOVED] += remove_dead(self.log, self.segments, at, dying)
        if dying:
            self.on_dying(self.owner)
        return 0

    cdef Outcome ask(self, uint64_t sequence, Pointer pointer) noexcept nogil:
        """Sends the new checkpoint pointer to the metadata service and waits for the outcome."""
        cdef Operation pause
        waited(&self.answer)
        self.answer_for = sequence
        while not self.on_written(self.owner, sequence, pointer):
            waited(&pause)
            self.log.io.after(&pause, PAUSE_NS)
            wait(&pause)
        return <Outcome>wait(&self.answer)

    cdef bint settle(self) noexcept nogil:
        """The checkpoint is valid: applies its changes to the snapshots. Returns whether one starts to die."""
        cdef bint dying = self.snapshots.frozen_dying is not NULL
        if self.snapshots.frozen_walked:
            self.segments.reclaim_holds -= 1
        if dying:
            self.segments.reclaim_holds += 1             # until a checkpoint without it: the walk needs the trees
        if self.snapshots.marked_ns():
            restore_point_made(&self.log.clock, self.snapshots.marked_ns())
        self.snapshots.moved()
        self.segments.kept_from = ~<uint64_t>0 if planted(b"window_cleaned") else self.snapshots.oldest_mark
        self.segments.settle(True)
        return dying

    cdef void moved(self, uint64_t sequence, Outcome outcome, uint32_t promised) noexcept nogil:
        self.log.open_segments.promise_unanswered = outcome == POINTER_UNKNOWN
        if outcome == POINTER_DONE:
            self.log.open_segments.promise(promised)
        if self.answer_for != sequence or not sequence:
            wake_all(&self.ended, 0)                     # callers that return -EHOSTUNREACH
            return
        if outcome == POINTER_UNKNOWN:
            if not self.unanswered:
                self.unanswered = True
                self.log.open_segments.end_making_space()        # writes get ENOSPC: the answer may take long
            wake_all(&self.ended, 0)                     # callers that return -EHOSTUNREACH
            return
        if self.unanswered:
            self.unanswered = False
            self.log.open_segments.making_space += 1
        self.answer_for = 0
        self.answer.result = <int>outcome
        self.answer.done(&self.answer)


cdef void begin_due(Operation* operation) noexcept nogil:
    (<Checkpoints>operation.owner).begin_what_is_due()


cdef void begin_for_starving(void* keepers) noexcept nogil:
    """Called once for all volumes that share the cache."""
    while keepers is not NULL and not (<Checkpoints>keepers).begin_asked:
        (<Checkpoints>keepers).poke()
        keepers = (<Checkpoints>keepers).next_keeper


cdef int64_t checkpoint_body(void* argument) noexcept nogil:
    (<Checkpoints>argument).go()
    return 0
