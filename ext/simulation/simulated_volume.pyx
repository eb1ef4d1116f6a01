# One volume of a simulation run: its record in the metadata service, its engine objects while a process has it open
# (set up as in engine.pyx), its client requests, and the oracle that checks their results. Its snapshots are in
# snapshots.pyx.
#
# Always true: a crash loses everything that the engine holds in memory (tasks included, see task.abandon); the devices,
# the record and the oracle stay.

from libc.errno cimport EILSEQ, EIO, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.volume.checkpoint cimport POINTER_DONE, POINTER_UNKNOWN
from iomesh.engine.simulation.checker cimport Checker
from iomesh.engine.volume.cleaning cimport Cleaner
from iomesh.engine.simulation.clients cimport Clients
from iomesh.engine.history.snapshots cimport branch_off, restore_volume, walk_dying
from iomesh.engine.base.io cimport Operation
from iomesh.engine.simulation.oracle cimport BLOCK_SECTORS, SECTOR_BYTES, Oracle, fill
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS, POINTER_PRESENT, SEGMENT_BYTES_MIN, Pointer
from iomesh.engine.simulation.run cimport FLUSH, KINDS, MARK, READ, READ_BLOCKS, REGION_SECTORS, SLOTS, SNAPSHOT, VERIFY
from iomesh.engine.simulation.run cimport VOLUMES_MAX, WRITE, ZERO, RunState, SimulatedReactor, Slot
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map, MapCache
from iomesh.engine.exports.nbd.wire cimport CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, FLAG_FUA
from iomesh.engine.replicas.local cimport local_members
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable, same_id
from iomesh.engine.base.task cimport wait, wait_in, waited, wake_all
from iomesh.engine.volume.volume cimport EVENT_CHECKSUM, EVENT_DEVICE, EVENT_NO_SPACE, EVENT_NUMBERS, Volume
from iomesh.engine.simulation.world cimport WorldIo

cdef enum:
    TREE_FRAMES = 64
    AGAIN_NS = 1000 * 1000           # between two checks whether all clients have disconnected


cdef class SimulatedVolume:
    """number: among the volumes that the run may have at once. Raises MemoryError."""

    def __cinit__(self, RunState run, Checker checker, uint32_t number):
        cdef int i
        self.run, self.checker, self.number = run, checker, number
        self.oracle = Oracle(run.ledger, run.regions * REGION_SECTORS)
        for i in range(SHOTS_AND_MARKS):
            self.shots[i].simulated = <void*>self

    cdef void begin_life(self, uint64_t size_blocks) noexcept nogil:
        """Sets up a new volume, all zeros, that is not in the metadata yet."""
        cdef int i
        memset(&self.record, 0, sizeof(MetadataRecord))
        memcpy(self.record.id, VOLUME_WORDS, 16)
        self.record.id[15] += self.run.volumes_ever
        self.run.volumes_ever += 1
        self.record.size_blocks = size_blocks
        self.usable = self.run.regions_below(size_blocks)
        for i in range(SHOTS_AND_MARKS):
            self.shots[i].state = SHOT_NONE
        memset(self.moments, 0, sizeof(self.moments))
        memset(&self.stray, 0, sizeof(self.stray))
        self.highest_given = 0
        self.oracle.reset(self.run.regions * REGION_SECTORS, self.run.keeps_nothing_volatile)

    # ------------------------------------------------------------------ a process

    cdef object settle_in(self):
        cdef RunState run = self.run
        self.record.epoch += 1
        self.home = self.find_home()
        self.segments = SegmentTable()
        self.map = Map(self.home.cache, self.home.io, self.segments)
        self.log = Log(
            self.home.reactor,
            self.home.pool,
            self.segments,
            local_members(self.home.reactor, run.stores, self.record.id[:16]),
            self.record.id[:16],
            self.record.epoch,
            SEGMENT_BYTES_MIN // BLOCK_BYTES,
        )
        self.log.open_segments.next_segment = self.record.promised + 1
        self.record.promised += NUMBERS
        self.log.open_segments.promise(self.record.promised)
        self.log.open_segments.promise_low = NUMBERS_LOW
        self.volume = Volume(
            self.record.id[:16],
            self.home.reactor,
            self.home.pool,
            self.log,
            self.map,
            self.segments,
            self.record.size_blocks,
        )
        self.volume.counters = self.volume.reader.counters = self.volume.checkpoints.counters = run.counters
        self.log.counters = self.log.open_segments.counters = self.log.flusher.counters = run.counters
        self.volume.latencies = run.histograms
        self.volume.checkpoints.interval = run.interval
        self.volume.listener = <void*>self
        self.volume.on_event = told
        self.volume.checkpoints.on_written = checkpoint_written
        self.volume.checkpoints.on_dying = walk_dying
        self.recovery = Recovery(
            self.volume,
            (self.record.checkpoint.segment, self.record.checkpoint.block, self.record.checkpoint.crc)
            if self.record.checkpoint.flags & POINTER_PRESENT
            else None,
        )
        self.cleaner = Cleaner(self.volume)
        if run.by_clients:
            self.clients = Clients(
                run.world,
                self.home.io,
                (<WorldIo>self.home.io).number,
                self.volume,
                run.clients_most,
                run.clients_seed + self.record.epoch * VOLUMES_MAX + self.number,
                lossy="connection_half_open" in run.faults,
            )
            self.clients.owner = <void*>self
            self.clients.answered = call_answered
            self.clients.vanished = call_vanished
        if run.weights[<int>SNAPSHOT] or run.weights[<int>MARK]:
            self.make_reading()
        self.moving_sequence = self.stored_sequence = 0
        self.asking = self.numbering = False
        self.busy = self.tasks = self.changes = self.verify_next = self.verify_end = 0
        self.shortages_begun = 0
        self.open = self.between = self.planned = self.changing = self.wants_in = False
        self.pausing = self.shortening = self.stuck = self.copying = self.wants_tree = False
        self.follows = NULL
        self.tree = None
        self.leaving = STAYS
        memset(&self.changed, 0, sizeof(self.changed))

    cdef SimulatedReactor find_home(self):
        """A clone lives on its parent's reactor; of other volumes, each on the next one."""
        if self.record.parent is not NULL:
            return (<SimulatedVolume>self.record.parent).find_home()
        if self.open:
            return self.home
        return self.run.reactors[(self.number + self.run.placed) % self.run.reactor_count]

    cdef object make_reading(self):
        cdef RunState run = self.run
        map = Map(self.home.cache, self.home.io, self.segments)
        self.reading = Volume(self.record.id[:16], self.home.reactor, self.home.pool, None, map, self.segments, 1)
        self.reading.counters = self.reading.reader.counters = run.counters
        self.reading.latencies = run.histograms
        self.reading.listener = <void*>self
        self.reading.on_event = told

    cdef object move_out(self):
        self.open = False
        if self.log is not None:
            self.run.copied += self.log.open_segments.moved
            self.notice_leaks()
            self.check_numbers()
            self.run.refused_below += self.log.refused_below
        if self.clients is not None:
            self.run.asked += self.clients.calls
            self.run.vanished += self.clients.lost
        self.clients = None
        self.roll_forward = None
        self.tree = None
        self.recovery = None
        self.cleaner = None
        self.reading = None
        self.volume = None
        self.log = None
        self.map = None
        self.home = None
        self.segments = None

    cdef void check_numbers(self) noexcept nogil:
        """Checks the segment numbers that this process gave. It gives no more: it has ended, or closed the volume."""
        cdef uint32_t first = self.log.open_segments.first_segment, following = self.log.open_segments.next_segment
        if first == 0 or first == following or self.log.epoch != self.record.epoch:
            return                                       # none, or of the volume before, which was checked
        if first <= self.highest_given:
            self.run.fault(b"segment number %lld is given again, after all up to %lld", first, self.highest_given)
        if following - 1 > self.record.promised:
            self.run.fault(
                b"segment number %lld is given, and the metadata service holds %lld as promised",
                following - 1,
                self.record.promised,
            )
        self.highest_given = following - 1
        self.log.open_segments.first_segment = 0         # checked

    cdef void notice_leaks(self) noexcept nogil:
        """A walk gives up on nodes of a device that does not answer while there is no space (map/walk.pyx)."""
        self.run.leaked |= self.volume.walk.unreadable > 0 and self.run.patience > 1

    cdef int come_up(self) noexcept nogil:
        cdef int result = 0
        self.volume.checkpoints.attach()
        if self.record.parent is not NULL:
            result = branch_off(self.volume, (<SimulatedVolume>self.record.parent).volume, self.record.snapshot)
            if result < 0:
                snprintf(
                    self.recovery.reason,
                    sizeof(self.recovery.reason),
                    b"the snapshot that it is a clone of is not there",
                )
        if result == 0:
            result = self.recovery.run()
        if result == 0:
            self.run.note(
                b"volume %lld is recovered up to record %lld, from %lld",
                self.number, self.recovery.end, self.recovery.start
            )
            self.open = True
        return result

    cdef void choose_verified(self) noexcept nogil:
        """Draws which regions are read before the volume is used."""
        self.verify_next = 0
        self.verify_end = self.usable
        if not self.run.last and self.run.volume_count > 1 and self.run.chance(176):           # for speed
            self.verify_end = 0
        elif not self.run.last and self.run.chance(192):       # only some regions
            self.verify_next = <uint32_t>self.run.draw(self.usable)
            self.verify_end = min(self.usable, self.verify_next + 1 + <uint32_t>self.run.draw(3))

    cdef void await_metadata(self) noexcept nogil:
        """In a task: waits until a metadata request of a volume that has been closed since is over."""
        while self.asking or self.numbering:
            self.run.pass_time()

    cdef void begin_task(self) noexcept nogil:
        self.tasks += 1
        self.run.tasks += 1

    cdef void end_task(self) noexcept nogil:
        self.tasks -= 1
        self.run.tasks -= 1

    cdef void begin_change(self) noexcept nogil:
        self.begin_task()
        self.changes += 1

    cdef void end_change(self) noexcept nogil:
        self.end_task()
        self.changes -= 1

    cdef void take(self) noexcept nogil:
        while self.changing:
            wait_in(&self.changed)
        self.changing = True

    cdef void let_go(self) noexcept nogil:
        self.changing = False
        wake_all(&self.changed, 0)

    cdef void await_settling(self) noexcept nogil:
        waited(&self.settled)
        self.wants_in = self.run.wanting = True
        wait(&self.settled)

    cdef object make_retrace(self):
        self.roll_forward = RollForward(self.volume, (<SimulatedVolume>self.follows).volume)

    cdef object make_tree(self):
        self.tree = Map(MapCache(TREE_FRAMES, self.home.io), self.home.io, self.segments)

    cdef void await_tree(self) noexcept nogil:
        self.wants_tree = True
        self.await_settling()

    cdef void await_retrace(self, SimulatedVolume source) noexcept nogil:
        self.follows = <void*>source
        self.await_settling()

    cdef void has_settled(self) noexcept nogil:
        self.wants_in = self.wants_tree = False
        self.follows = NULL
        self.settled.result = 0
        self.settled.done(&self.settled)

    cdef bint is_idle(self) noexcept nogil:
        return self.busy == 0 and self.changes == 0

    cdef void will_be_of(self, int64_t at_ns) noexcept nogil:
        self.record.making = True
        self.record.at_ns = at_ns

    cdef uint32_t ancestors(self) noexcept nogil:
        return 0 if self.record.parent is NULL else 1 + (<SimulatedVolume>self.record.parent).ancestors()

    cdef uint32_t clones(self, const uint8_t* snapshot) noexcept nogil:
        cdef uint32_t i, found = 0
        for i in range(self.run.volume_count):
            found += is_clone(<SimulatedVolume>self.run.volume_pointers[i], self, snapshot)
        return found

    # ------------------------------------------------------------------ client requests

    cdef bint serves(self) noexcept nogil:
        return self.open and self.going.state == GOING_NOWHERE and self.leaving == STAYS and not (
            self.record.hidden or self.record.making or self.pausing or self.stuck)

    cdef void operate(self, int kind) noexcept nogil:
        cdef Slot* slot = self.take_slot(kind)
        if kind == FLUSH:
            slot.begun = self.oracle.flush_begins()
        else:
            self.place(slot)
        self.give(slot)

    cdef bint verify(self) noexcept nogil:
        cdef Slot* slot
        if self.verify_next == self.verify_end:
            return False
        slot = self.take_slot(VERIFY)
        slot.sector = self.verify_next * REGION_SECTORS
        slot.sectors = REGION_SECTORS
        self.verify_next += 1
        self.give(slot)
        return True

    cdef void grow(self) noexcept nogil:
        if self.usable < self.run.regions:
            self.usable += 1 + <uint32_t>self.run.draw(self.run.regions - self.usable)
            self.record.size_blocks = (self.run.leaves[self.usable - 1] + 1) * NODE_POINTERS
            self.volume.blocks = self.record.size_blocks
            self.volume.checkpoints.writer.size_bytes = self.record.size_blocks * BLOCK_BYTES
            self.run.note(b"grown to %lld blocks", self.record.size_blocks, 0, 0)

    cdef Slot* take_slot(self, int kind) noexcept nogil:
        cdef Slot* slot = self.run.take_slot(<void*>self, kind)
        self.busy += 1
        slot.request.finished = request_finished
        slot.when.done = more
        slot.read.done = read_finished
        return slot

    cdef int go_back(self, const uint8_t* id, SnapshotRequest* snapshot_request, SnapshotRequest* mark) noexcept nogil:
        cdef int result
        self.volume.restoring = True
        result = restore_volume(self.volume, id, snapshot_request, mark)
        self.volume.restoring = False
        wake_all(&self.volume.restored, 0)
        return result

    cdef Shortages shortages(self) noexcept nogil:
        cdef Shortages so_far
        so_far.begun = self.shortages_begun
        so_far.now = self.log.open_segments.no_space
        return so_far

    cdef void check_making(self, Shortages before, int result) noexcept nogil:
        """Checks that no snapshot was created without space, and none was refused with ENOSPC while there was space."""
        cdef Shortages after = self.shortages()
        if result == 0 and before.now and after.now and before.begun == after.begun:
            self.run.fault(b"a snapshot of volume %lld was made while there was no space", self.number, 0)
        if (
            result == -ENOSPC
            and not before.now
            and before.begun == after.begun
            and not self.run.full_below
        ):
            self.run.fault(
                b"a snapshot of volume %lld was refused for want of space, and there was some", self.number, 0
            )
        self.run.unmade += result == -ENOSPC

    cdef void note_oldest_read(self) noexcept nogil:
        """A read, or a snapshot being created, keeps the oracle from dropping versions that it may still return."""
        cdef int i
        self.oracle.oldest_read = ~<uint64_t>0
        for i in range(SLOTS):
            if (
                self.run.slots[i].busy
                and self.run.slots[i].simulated == <void*>self
                and (self.run.slots[i].kind == READ or self.run.slots[i].kind == VERIFY)
            ):
                self.oracle.oldest_read = min(self.oracle.oldest_read, self.run.slots[i].begun)
        for i in range(SHOTS_AND_MARKS):
            if self.shots[i].state == SHOT_MAKING:
                self.oracle.oldest_read = min(self.oracle.oldest_read, self.shots[i].begun)

    cdef bint meets_damage(self, Slot* slot) noexcept nogil:
        """Whether a block that the operation needs is damaged now."""
        cdef uint32_t sector = slot.sector, piece
        cdef uint64_t place, end
        if self.run.damages == 0 or slot.kind == FLUSH:
            return False
        while sector < slot.sector + slot.sectors:
            piece = min(slot.sector + slot.sectors, (sector // REGION_SECTORS + 1) * REGION_SECTORS) - sector
            place = self.run.place_of(sector)
            end = (place + piece + BLOCK_SECTORS - 1) // BLOCK_SECTORS
            if self.checker.is_damaged(self.volume, NULL, place // BLOCK_SECTORS, end - place // BLOCK_SECTORS, True):
                return True
            sector += piece
        return False

    cdef bint excuses(self, Slot* slot, int error) noexcept nogil:
        """Whether an operation may end with this error."""
        cdef bint right = error == ENOSPC and slot.kind != READ and slot.kind != VERIFY
        if (
            not right
            and (error == EIO or error == EILSEQ)
            and (slot.damaged or slot.begun < self.run.damaged_at or self.meets_damage(slot))
        ):
            self.run.excused += 1
            right = True
        if error == ESHUTDOWN and self.clients is not None and self.clients.leaving:
            right = True                                 # the engine closes the connection in mid-write
        return right or self.run.errors_allowed

    cdef void place(self, Slot* slot) noexcept nogil:
        """Draws the address and length; inside adjacent map leaves."""
        cdef uint32_t limit = self.usable * REGION_SECTORS, whole, region
        if self.run.chance(self.run.hot):
            limit = min(limit, self.run.hot_sectors)
        slot.sector = <uint32_t>self.run.draw(limit)
        if self.run.chance(self.run.odd):
            slot.sectors = 1 + <uint32_t>self.run.draw(3 * BLOCK_SECTORS)
        else:
            slot.sector -= slot.sector % BLOCK_SECTORS
            # mostly small
            slot.sectors = BLOCK_SECTORS * (1 + <uint32_t>self.run.draw(1 + self.run.draw(self.run.size_max)))
        if slot.kind == ZERO and self.run.chance(32):
            slot.sectors = REGION_SECTORS
        region = slot.sector // REGION_SECTORS
        whole = (region + 1) * REGION_SECTORS - slot.sector
        if (
            slot.kind != READ
            and region + 1 < self.usable
            and self.run.leaves[region + 1] == self.run.leaves[region] + 1
        ):
            whole += REGION_SECTORS
        slot.sectors = min(min(slot.sectors, whole), <uint32_t>(READ_BLOCKS * BLOCK_SECTORS))
        if slot.kind == WRITE or slot.kind == ZERO:
            slot.request.stable = self.run.chance(self.run.stable)

    cdef void give(self, Slot* slot) noexcept nogil:
        """Issues the operation, through a client or to the volume directly."""
        cdef uint32_t sector, i
        cdef uint64_t place
        self.run.note(KIND_WORDS[slot.kind], slot.sector, slot.sectors, self.run.ledger.count)
        slot.damaged = self.meets_damage(slot)
        if slot.kind == FLUSH:
            if not self.give_to_client(slot):
                self.volume.flush(&slot.request)
        elif slot.kind == READ or slot.kind == VERIFY:
            slot.begun = self.run.ledger.clock
            self.oracle.oldest_read = min(self.oracle.oldest_read, slot.begun)
            place = self.run.place_of(slot.sector)
            slot.read.block = place // BLOCK_SECTORS
            slot.read.count = <uint32_t>((place + slot.sectors + BLOCK_SECTORS - 1) // BLOCK_SECTORS - slot.read.block)
            if slot.kind == VERIFY or not self.give_to_client(slot):
                self.volume.read(&slot.read)
        else:
            slot.number = self.oracle.begin(slot.sector, slot.sectors, slot.kind == ZERO)
            slot.begun = self.run.ledger.clock
            if slot.kind == WRITE:
                sector = slot.sector
                while sector < slot.sector + slot.sectors:
                    i = min(slot.sector + slot.sectors, (sector // REGION_SECTORS + 1) * REGION_SECTORS) - sector
                    fill(slot.buffer + (sector - slot.sector) * SECTOR_BYTES, slot.number, self.run.place_of(sector), i)
                    sector += i
            if not self.give_to_client(slot):
                self.write_more(slot)

    cdef bint give_to_client(self, Slot* slot) noexcept nogil:
        """False: the caller issues it to the volume directly, not through an export."""
        cdef uint64_t place = self.run.place_of(slot.sector), offset = place * SECTOR_BYTES
        cdef uint32_t bytes = slot.sectors * SECTOR_BYTES
        cdef uint16_t flags = FLAG_FUA if slot.request.stable else 0
        if self.clients is None or self.clients.draw(256) >= self.run.by_clients:
            return False
        if slot.kind == FLUSH:
            return self.clients.ask(CMD_FLUSH, 0, 0, 0, NULL, slot)
        if slot.kind == READ:
            return self.clients.ask(
                CMD_READ, 0, offset, bytes, slot.buffer + place % BLOCK_SECTORS * SECTOR_BYTES, slot
            )
        if slot.kind == WRITE:
            return self.clients.ask(CMD_WRITE, flags, offset, bytes, slot.buffer, slot)
        if offset % BLOCK_BYTES == 0 and bytes % BLOCK_BYTES == 0 and self.clients.draw(2):
            return self.clients.ask(CMD_TRIM, flags, offset, bytes, NULL, slot)
        return self.clients.ask(CMD_WRITE_ZEROES, flags, offset, bytes, NULL, slot)

    cdef bint let_clients_leave(self) noexcept nogil:
        return self.clients is None or self.clients.leave()

    cdef void await_clients(self) noexcept nogil:
        cdef Operation timer
        while not self.let_clients_leave():
            waited(&timer)
            self.home.io.after(&timer, AGAIN_NS)
            wait(&timer)

    cdef void turn_clients(self) noexcept nogil:
        if self.clients is None:
            return
        self.clients.turn()
        if self.clients.words[0] and not self.run.wrong:
            self.run.fault(b"a client:", 0, 0)
            snprintf(self.run.words, sizeof(self.run.words), b"a client: %s", self.clients.words)

    cdef void write_more(self, Slot* slot) noexcept nogil:
        """Writes as an export does: as much as the volume takes now, the rest when it has room."""
        cdef uint64_t place
        cdef uint32_t left, count
        cdef int64_t taken
        cdef char* data
        while slot.done < slot.sectors:
            place = self.run.place_of(slot.sector + slot.done)
            left = slot.sectors - slot.done
            data = slot.buffer + slot.done * SECTOR_BYTES if slot.kind == WRITE else NULL
            if place % BLOCK_SECTORS == 0 and left >= BLOCK_SECTORS:
                if slot.kind == WRITE:
                    taken = self.volume.write(
                        &slot.request, place // BLOCK_SECTORS, left // BLOCK_SECTORS, data, &slot.when
                    )
                else:
                    taken = self.volume.zero(&slot.request, place // BLOCK_SECTORS, left // BLOCK_SECTORS, &slot.when)
                count = <uint32_t>max(taken, <int64_t>0) * BLOCK_SECTORS
            else:
                count = min(left, <uint32_t>(BLOCK_SECTORS - place % BLOCK_SECTORS))
                taken = self.volume.merge(
                    &slot.request,
                    place // BLOCK_SECTORS,
                    <uint32_t>(place % BLOCK_SECTORS) * SECTOR_BYTES,
                    count * SECTOR_BYTES,
                    data,
                    &slot.when,
                )
            if taken == 0:
                return
            if taken < 0:
                slot.request.error = <int>-taken
                break
            slot.done += count
        slot.done = slot.sectors
        self.volume.complete(&slot.request)

    cdef void write_done(self, Slot* slot) noexcept nogil:
        cdef int error = slot.request.error
        self.busy -= 1
        self.run.busy -= 1
        slot.busy = False
        if error:
            self.run.failures += 1
            self.run.note(b"operation %lld fails with error %lld", slot.number, error, 0)
            if not self.excuses(slot, error):
                self.run.fault(b"operation %lld fails with error %lld, and no device failed", slot.number, error)
        if slot.kind == FLUSH:
            if not error:
                self.oracle.flushed(slot.begun)
        elif error:
            self.oracle.fail(slot.number)
        else:
            self.oracle.acknowledge(slot.number, slot.request.stable)
        if not error and slot.kind == FLUSH:
            self.run.note(b"flush of %lld ends", slot.begun, 0, 0)
        elif not error:
            self.run.note(b"operation %lld is acknowledged", slot.number, 0, 0)

    cdef void read_done(self, Slot* slot) noexcept nogil:
        cdef uint32_t i
        cdef uint64_t place = self.run.place_of(slot.sector)
        cdef char* data = slot.buffer + place % BLOCK_SECTORS * SECTOR_BYTES
        cdef bint right = True
        self.busy -= 1
        self.run.busy -= 1
        slot.busy = False
        self.run.note(b"read of sector %lld ends, error %lld", slot.sector, slot.read.error, 0)
        if slot.read.error:
            self.run.failures += 1
            if not self.excuses(slot, slot.read.error):
                self.run.fault(
                    b"a read of sector %lld of the model fails with error %lld, and no device failed",
                    slot.sector, slot.read.error
                )
        else:
            if slot.read.unmapped:
                memset(slot.buffer, 0, slot.read.count * BLOCK_BYTES)
            i = 0
            while i < slot.sectors and right:
                if slot.kind == VERIFY:
                    right = self.oracle.settle(slot.sector + i, data + i * SECTOR_BYTES, place + i)
                    i += BLOCK_SECTORS
                else:
                    right = self.oracle.check(slot.sector + i, data + i * SECTOR_BYTES, place + i, slot.begun)
                    i += 1
            if not right:
                self.run.note(b"volume %lld is wrong", self.number, 0, 0)
                self.run.fault(self.oracle.words, 0, 0)
        self.note_oldest_read()

    cdef SimulatedSnapshot* free_mark(self) noexcept nogil:
        cdef int i
        for i in range(SHOTS, SHOTS_AND_MARKS):
            if self.shots[i].state == SHOT_NONE:
                return &self.shots[i]
        return NULL

    cdef uint32_t marks(self) noexcept nogil:
        cdef uint32_t count = 0
        cdef int i
        for i in range(SHOTS, SHOTS_AND_MARKS):
            count += self.shots[i].state == SHOT_MADE and not self.shots[i].unmarked
        return count

    cdef SimulatedSnapshot* any_shot(self, SimulatedSnapshotState state) noexcept nogil:
        """Returns a snapshot in this state that is not being read; NULL: there is none."""
        cdef uint32_t i, first = <uint32_t>self.run.draw(SHOTS)
        for i in range(SHOTS):
            if self.shots[(first + i) % SHOTS].state == state and not self.shots[(first + i) % SHOTS].looked_at:
                return &self.shots[(first + i) % SHOTS]
        return NULL

    cdef void name_shot(self, SimulatedSnapshot* shot) noexcept nogil:
        self.run.shot_count += 1
        shot.state = SHOT_MAKING
        shot.number = self.run.shot_count
        shot.kept = -1
        shot.looked_at = shot.unmarked = False
        memset(shot.id, 0, 16)
        memcpy(shot.id, &shot.number, sizeof(shot.number))
        shot.begun = self.oracle.flush_begins()
        self.note_oldest_read()


cdef bint is_clone(SimulatedVolume simulated, SimulatedVolume parent, const uint8_t* snapshot) noexcept nogil:
    return (simulated.record.exists or simulated.planned) and simulated.record.parent == <void*>parent and (
        snapshot is NULL or memcmp(simulated.record.snapshot, snapshot, 16) == 0)


cdef const char* VOLUME_WORDS = b"simulated volume"
cdef const char* KIND_WORDS[KINDS]
KIND_WORDS[0] = b"read of %lld, %lld sectors"
KIND_WORDS[1] = b"write of %lld, %lld sectors: operation %lld"
KIND_WORDS[2] = b"zero of %lld, %lld sectors: operation %lld"
KIND_WORDS[3] = b"flush"
KIND_WORDS[<int>VERIFY] = b"verifies %lld, %lld sectors"


# ---------------------------------------------------------------------- completion callbacks

cdef void more(Operation* operation) noexcept nogil:
    cdef Slot* slot = <Slot*>operation.owner
    if operation.result < 0:
        slot.request.error = <int>-operation.result
        slot.done = slot.sectors
        (<SimulatedVolume>slot.simulated).volume.complete(&slot.request)
    else:
        (<SimulatedVolume>slot.simulated).write_more(slot)


cdef void request_finished(Request* request) noexcept nogil:
    cdef Slot* slot = <Slot*>request
    (<SimulatedVolume>slot.simulated).write_done(slot)


cdef void read_finished(Read* read) noexcept nogil:
    cdef Slot* slot = <Slot*>read.owner
    (<SimulatedVolume>slot.simulated).read_done(slot)


cdef void call_answered(void* simulated, void* tag, int error) noexcept nogil:
    cdef Slot* slot = <Slot*>tag
    slot.request.error = slot.read.error = error
    if slot.kind == READ:
        (<SimulatedVolume>simulated).read_done(slot)
    else:
        (<SimulatedVolume>simulated).write_done(slot)


cdef void call_vanished(void* simulated, void* tag) noexcept nogil:
    let_go(<SimulatedVolume>simulated, <Slot*>tag)


cdef void let_go(SimulatedVolume simulated, Slot* slot) noexcept nogil:
    """The operation's outcome will never be known."""
    simulated.busy -= 1
    simulated.run.busy -= 1
    slot.busy = False
    if slot.kind == WRITE or slot.kind == ZERO:
        simulated.oracle.fail(slot.number)
    simulated.run.note(b"nobody will ever answer for operation %lld", slot.number, 0, 0)
    simulated.note_oldest_read()


cdef bint told(void* volume, int kind, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    cdef void* simulated = (<Volume>volume).listener
    if kind == EVENT_CHECKSUM:
        (<SimulatedVolume>simulated).run.note(b"checksum error of block %lld at segment %lld block %lld", a, b, c)
    elif kind == EVENT_DEVICE:
        (<SimulatedVolume>simulated).run.note(b"store %lld: error %lld", a, b, 0)
    elif kind == EVENT_NO_SPACE:
        has_no_space(<SimulatedVolume>simulated)
    elif kind == EVENT_NUMBERS:
        ask_for_numbers(<SimulatedVolume>simulated, <uint32_t>a)
    return True


cdef void has_no_space(SimulatedVolume simulated) noexcept nogil:
    simulated.run.hungry = True
    simulated.shortages_begun += 1
    simulated.run.note(b"no space", 0, 0, 0)


# ---------------------------------------------------------------------- the metadata service

cdef bint checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil:
    ask_metadata(<SimulatedVolume>(<Volume>owner).listener, sequence, pointer)
    return True


cdef void ask_metadata(SimulatedVolume simulated, uint64_t sequence, Pointer pointer) noexcept nogil:
    simulated.run.note(
        b"checkpoint %lld is written at segment %lld block %lld", sequence, pointer.segment, pointer.block
    )
    simulated.moving_sequence = sequence
    simulated.moving = pointer
    simulated.moving_next = simulated.log.open_segments.next_segment
    # While a request is in flight, its answer is ignored and this one follows it.
    if not simulated.asking:
        ask_again(simulated, simulated.run.metadata_ns)


cdef void ask_again(SimulatedVolume simulated, int64_t within_ns) noexcept nogil:
    simulated.asking = True
    simulated.metadata.done = metadata_asked
    simulated.metadata.owner = <void*>simulated
    simulated.home.io.after(&simulated.metadata, <int64_t>simulated.run.draw(within_ns))


cdef void metadata_asked(Operation* operation) noexcept nogil:
    update_pointer(<SimulatedVolume>operation.owner)


cdef void update_pointer(SimulatedVolume simulated) noexcept nogil:
    """Moves the pointer unless the request is lost, and answers unless the request or the answer is lost. A retry of an
    update that took place changes nothing."""
    cdef bint silent = simulated.run.outage and simulated.run.chance(simulated.run.outage)
    if simulated.stored_sequence != simulated.moving_sequence and not (silent and simulated.run.chance(128)):
        pointer_moves(simulated)
    simulated.metadata.done = metadata_silent if silent else metadata_answered
    simulated.home.io.after(&simulated.metadata, <int64_t>simulated.run.draw(simulated.run.metadata_ns))


cdef void pointer_moves(SimulatedVolume simulated) noexcept nogil:
    simulated.record.checkpoint = simulated.moving
    simulated.stored_sequence = simulated.moving_sequence
    raise_promise(simulated, simulated.moving_next)
    simulated.run.moves += 1
    if simulated.going.state == GOING_BACK and simulated.going.to_point_in_time:
        simulated.going.moved = simulated.going.moved or makes(simulated.volume.snapshots, simulated.going.settling)
    else:
        # the second of its two checkpoints
        simulated.going.moved = simulated.going.state == GOING_BACK and simulated.going.snapshot_request.made
    simulated.run.note(b"the pointer is moved to checkpoint %lld", simulated.moving_sequence, 0, 0)


cdef bint makes(SnapshotTable snapshots, const uint8_t* id) noexcept nogil:
    """Whether the checkpoint being written creates this snapshot."""
    cdef uint32_t i
    for i in range(snapshots.frozen_count - snapshots.frozen_made, snapshots.frozen_count):
        if same_id(snapshots.frozen[i].id, id):
            return True
    return False


cdef void metadata_silent(Operation* operation) noexcept nogil:
    was_silent(<SimulatedVolume>operation.owner)


cdef void was_silent(SimulatedVolume simulated) noexcept nogil:
    simulated.run.silences += 1
    simulated.run.note(b"the metadata service does not answer for checkpoint %lld", simulated.moving_sequence, 0, 0)
    if simulated.volume.checkpoints.answer_for:
        ask_again(simulated, simulated.run.outage_ns)
        simulated.volume.checkpoints.moved(simulated.moving_sequence, POINTER_UNKNOWN, 0)
    else:
        simulated.asking = False                            # the checkpoint was abandoned: no retry


cdef void metadata_answered(Operation* operation) noexcept nogil:
    was_answered(<SimulatedVolume>operation.owner)


cdef void was_answered(SimulatedVolume simulated) noexcept nogil:
    if simulated.stored_sequence != simulated.moving_sequence:
        ask_again(simulated, simulated.run.metadata_ns)       # the answer was to the previous request
        return
    simulated.asking = False
    simulated.volume.checkpoints.moved(simulated.moving_sequence, POINTER_DONE, simulated.record.promised)


# ... for segment numbers alone

cdef void raise_promise(SimulatedVolume simulated, uint32_t next_segment) noexcept nogil:
    simulated.record.promised = max(simulated.record.promised, next_segment + NUMBERS - 1)


cdef void ask_for_numbers(SimulatedVolume simulated, uint32_t next_segment) noexcept nogil:
    simulated.wanted_next = next_segment
    if not simulated.numbering:
        numbers_asked(simulated, simulated.run.metadata_ns)


cdef void numbers_asked(SimulatedVolume simulated, int64_t within_ns) noexcept nogil:
    simulated.numbering = True
    simulated.numbers.done = numbers_arrive
    simulated.numbers.owner = <void*>simulated
    simulated.run.io.after(&simulated.numbers, <int64_t>simulated.run.draw(within_ns))


cdef void numbers_arrive(Operation* operation) noexcept nogil:
    update_promise(<SimulatedVolume>operation.owner)


cdef void update_promise(SimulatedVolume simulated) noexcept nogil:
    """As update_pointer."""
    cdef bint silent = simulated.run.outage and simulated.run.chance(simulated.run.outage)
    if not (silent and simulated.run.chance(128)):
        raise_promise(simulated, simulated.wanted_next)
    simulated.numbers.done = numbers_silent if silent else numbers_answered
    simulated.run.io.after(&simulated.numbers, <int64_t>simulated.run.draw(simulated.run.metadata_ns))


cdef void numbers_silent(Operation* operation) noexcept nogil:
    no_numbers_yet(<SimulatedVolume>operation.owner)


cdef void no_numbers_yet(SimulatedVolume simulated) noexcept nogil:
    simulated.run.silences += 1
    simulated.run.note(b"the metadata service promises no segment numbers from %lld on", simulated.wanted_next, 0, 0)
    if simulated.log.open_segments.ending:
        simulated.numbering = False                      # it is closed: no retry
    else:
        numbers_asked(simulated, simulated.run.outage_ns)
        simulated.volume.checkpoints.moved(0, POINTER_UNKNOWN, 0)


cdef void numbers_answered(Operation* operation) noexcept nogil:
    numbers_promised(<SimulatedVolume>operation.owner)


cdef void numbers_promised(SimulatedVolume simulated) noexcept nogil:
    simulated.numbering = False
    simulated.run.note(b"segment numbers up to %lld are promised", simulated.record.promised, 0, 0)
    simulated.volume.checkpoints.moved(0, POINTER_DONE, simulated.record.promised)
