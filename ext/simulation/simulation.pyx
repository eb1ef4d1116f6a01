# One seed's simulation run: it formats devices, then opens, uses, stops or crashes and reopens volumes, over and over.
# The oracle checks every result (simulation/oracle.pyx), and the checker walks their structures from outside
# (simulation/checker.pyx).
#
#     simulation = Simulation(seed)
#     simulation.run()                          None, or the failure
#
# Store, Recovery, Volume and their parts are the engine's, set up as in engine.pyx; this class and its parts (run,
# simulated_volume, snapshots, ...) play the clients, the metadata service and the faults, on one thread. The Io is the
# World's: every event follows from the seed. Which operations are common and what fails is drawn once
# (simulation/swarm.pyx).
#
# One process after the other:
#
#     boot ──> recovery ──> everything is read and verified ──> operations ──> stop or crash
#       └───────┴──────────────┴── crash at any step ──────────────┴────────────┘

from libc.errno cimport EBUSY, EILSEQ, EIO, ENOSPC
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from iomesh.engine.simulation.checker cimport Checker
from iomesh.engine.volume.cleaning cimport ROW_CLEANABLE, Cleaned, Plan, Row
from iomesh.engine.simulation.clones cimport (
    begin_clone, begin_leaving, delete_needless, erase, leave, shut, take_to_point_in_time
)
from iomesh.engine.simulation.damage cimport damage, lead_astray, leave_stray, miss_stray, notice_strays, refusal_is_due
from iomesh.engine.simulation.flattening cimport begin_detaching, go_on_detaching
from iomesh.engine.history.snapshots cimport walk_dying
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport DEVICE_BYTES_MIN, NODE_POINTERS, TIER_NVME, Superblock
from iomesh.engine.simulation.run cimport (
    CHECKPOINT, CLEAN, CLONE, DAMAGE, DETACH, DROP, FLUSH, GROW, MARK, MOMENT, NEVER_CRASHES, PAUSE, REWIND, SLOTS,
    STRAY, VOLUMES_MAX, RunState, SimulatedReactor
)
from iomesh.engine.map.map cimport MapCache
from iomesh.engine.simulation.points_in_time cimport (
    begin_mark, begin_point_in_time, begin_rewind, doubt_moments, forget_ambiguous, forget_unreachable,
    keep_point_in_time, rewind, undo
)
from iomesh.engine.base.planted cimport CAN_PLANT
from iomesh.engine.base.pool cimport RECORD, Pool
from iomesh.engine.base.reactor cimport Message, Reactor
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.simulation.snapshots cimport (
    begin_restore, begin_with_snapshots, doubt_shots, look_at_all, settle_shots
)
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.store.store cimport Store, format_store, plan_store, watch_store
from iomesh.engine.simulation.swarm cimport draw_swarm
from iomesh.engine.base.task cimport abandon, start
from iomesh.engine.simulation.simulated_volume cimport GOING_NOWHERE, GOING_WAITS, HOME, IS_TO_LEAVE, SimulatedVolume
from iomesh.engine.simulation.world cimport CRASHED, WorldIo

from iomesh.engine.simulation.run import KIND_NAMES

cdef extern from "<errno.h>" nogil:
    int EUCLEAN

cdef int64_t REQUEST_TIMEOUT_NS = <int64_t>30 * 1000 * 1000 * 1000

cdef enum:
    LONG_NS = 1000 * 1000 * 1000
    SLOW_WAKE_NS = 200 * 1000        # a thread wakes up within this time, mostly
    HANG_S = 600                     # of the world's time: no operation may take longer, ...
    HANGS = 200                      # ... or this many times longer where devices hang, ...
    STALLS = 8                       # ... or stall
    IDLE_POLLS_MAX = 64              # in a row without an event
    RESTLESS_MAX = 20000             # turns in a row that are requested and bring no event
    ROWS_MAX = 256
    CLEANED_AT_ONCE = 12

PLANTABLE = bool(CAN_PLANT)          # whether bugs can be planted in this build (base/planted.pxd)


cdef class Simulation(RunState):
    """seed: 0 to 2**64 - 1. operations: of the whole run, drawn unless given. Raises MemoryError."""

    def __cinit__(self, uint64_t seed, operations=None):
        cdef SimulatedVolume first, another
        draw_swarm(self, operations)
        self.checker = Checker(self.world)
        self.simulated_volumes = []
        first = self.make_volume()
        first.begin_life((self.leaves[self.used - 1] + 1) * NODE_POINTERS)
        first.record.exists = True
        for _ in range(1, self.reactor_count):           # one of its own for each reactor
            another = self.make_volume()
            another.begin_life((self.leaves[<uint32_t>self.draw(self.used)] + 1) * NODE_POINTERS)
            another.record.exists = True
        while self.cloning and self.volume_count < VOLUMES_MAX:
            self.make_volume()

    # ------------------------------------------------------------------ the run

    cdef SimulatedVolume make_volume(self):
        """Adds a slot for a volume; the volume does not exist yet."""
        cdef SimulatedVolume simulated = SimulatedVolume(self, self.checker, len(self.simulated_volumes))
        self.simulated_volumes.append(simulated)
        self.volume_pointers[self.volume_count] = <void*>simulated
        self.volume_count += 1
        return simulated

    def run(self):
        """Runs the whole simulation; returns None, or the failure."""
        cdef uint64_t left = self.operations
        cdef RunEnd end
        self.operations = 0
        self.format()
        while not self.wrong:
            self.last = left == 0
            self.set_faults()
            self.boot()
            self.left = min(left, 1 + self.draw(2 * self.per_life))
            before = self.operations
            with nogil:
                end = self.live()
            while end == END_WANTING:
                self.settle()
                with nogil:
                    end = self.go_on()
            left -= min(left, self.operations - before)
            if end == END_REFUSED:
                self.refusals += 1
                left -= min(left, <uint64_t>20)
            if end == END_WRONG or (end == END_REFUSED and (self.damages or self.last)):
                break                                    # damage is permanent
            if (<WorldIo>self.io).alive:
                self.world.crash(-1, end == END_POWER_CUT)
            self.world.crash_at(0, False)
            self.drops_of_caches += self.has_dropped()
            self.doubt(end == END_POWER_CUT or self.has_dropped())
            abandon()
            self.drop()
            if end == END_STOPPED:
                self.clean_stops += 1
                if self.last:
                    break
        abandon()
        self.drop()
        self.simulated_volumes.clear()                   # breaks the reference cycle
        self.volume_count = 0
        return self.words.decode(errors="replace") if self.wrong else None

    cdef bint has_dropped(self) noexcept nogil:
        """Whether a device dropped its cache in this process, by a failed flush: unstable data may be lost, as after a
        power cut. The map points to it until the volume is opened again."""
        return self.world.dropped != self.dropped

    cdef void doubt(self, bint power) noexcept nogil:
        """The process crashed, the power was cut, or a device dropped its cache: operations in flight may be lost."""
        cdef int i
        for i in range(self.volume_count):
            (<SimulatedVolume>self.volume_pointers[i]).planned = False
            if (<SimulatedVolume>self.volume_pointers[i]).record.exists:
                miss_stray(<SimulatedVolume>self.volume_pointers[i])
                doubt_shots(<SimulatedVolume>self.volume_pointers[i])
                doubt_moments(<SimulatedVolume>self.volume_pointers[i], power)
                (<SimulatedVolume>self.volume_pointers[i]).oracle.crashed(power)

    cdef object set_faults(self):
        """Sets the faults of the next process. In the last one, devices work and no operation may fail."""
        self.world.faults = {name: 0 if self.last else probability for name, probability in self.faults.items()}
        self.errors_allowed = not self.last and any(
            name.endswith("error") or name in ("stall", "hang") for name in self.faults
        )
        self.full_below = "full_below" in self.faults and not self.last
        self.damage_allowed = self.errors_allowed and ("read_error" in self.faults or "write_error" in self.faults)
        self.patience = HANGS if "hang" in self.faults else STALLS if "stall" in self.faults else 1

    cdef object format(self):
        cdef FormatCall call
        cdef Superblock superblock
        cdef int i
        self.enter()
        for i in range(self.store_count):
            memset(&superblock, 0, sizeof(superblock))
            plan_store(&superblock, DEVICE_BYTES_MIN)
            superblock.journal_bytes = self.journal_bytes
            memcpy(superblock.cluster, self.cluster, 16)
            superblock.device[0] = 1 + i
            superblock.tier = TIER_NVME
            call.reactor = <void*>self.reactor
            call.superblock = &superblock
            call.device = i
            call.ended = False
            with nogil:
                start(format_body, &call, NULL)
                while not call.ended:
                    self.io.poll(LONG_NS)
                    self.reactor.turn()
            if call.result < 0:
                raise RuntimeError(f"formatting a device ended with error {-call.result}")
        self.world.crash(-1, False)
        self.drop()

    cdef object enter(self):
        cdef int i
        cdef SimulatedReactor its
        self.reactors = []
        for number in range(self.reactor_count):
            its = SimulatedReactor()
            its.io = WorldIo(self.world, None if number == 0 else self.io)
            its.io.request_timeout_ns = REQUEST_TIMEOUT_NS
            its.reactor = Reactor(number, its.io, 0, 0)
            its.pool = self.pools[number]
            for i in range(self.store_count):
                if its.io.add_device(i) != i:
                    raise RuntimeError("the world counts its devices otherwise")
            self.reactors.append(its)
            self.reactor_pointers[<int>number] = <void*>its
            if number == 0:
                self.io, self.reactor = its.io, its.reactor

    cdef object boot(self):
        """Creates a process with all its objects, as engine.pyx does; nothing runs yet."""
        cdef Store store
        cdef int i
        self.enter()
        for its in self.reactors:
            (<SimulatedReactor>its).pool.attach((<SimulatedReactor>its).io)
            (<SimulatedReactor>its).pool.renew()         # reused: new memory is slow
            (<SimulatedReactor>its).cache = MapCache(self.frames, (<SimulatedReactor>its).io)
        if self.reactor_count > 1:
            self.placed = <uint32_t>self.draw(self.reactor_count)
        self.stores = []
        for i in range(self.store_count):
            its = self.reactors[i % <int>self.reactor_count]
            store = Store(
                (<SimulatedReactor>its).reactor, i, DEVICE_BYTES_MIN, self.world.disks[i].volatile_cache
            )
            self.stores.append(store)
            self.store_pointers[i] = <void*>store
            for its in self.reactors:
                watch_store((<SimulatedReactor>its).io, store)
        for simulated in self.simulated_volumes:
            if (<SimulatedVolume>simulated).record.exists:
                (<SimulatedVolume>simulated).settle_in()

    cdef object settle(self):
        """Creates the objects of volumes that were added while the process runs."""
        for simulated in self.simulated_volumes:
            if (<SimulatedVolume>simulated).wants_in:
                if (<SimulatedVolume>simulated).follows is not NULL:
                    (<SimulatedVolume>simulated).make_retrace()
                elif (<SimulatedVolume>simulated).wants_tree:
                    (<SimulatedVolume>simulated).make_tree()
                else:
                    (<SimulatedVolume>simulated).settle_in()
                    (<SimulatedVolume>simulated).between = (<SimulatedVolume>simulated).wants_in = True

    cdef object drop(self):
        """Ends the process."""
        for simulated in self.simulated_volumes:
            (<SimulatedVolume>simulated).move_out()
        for its in self.reactors or ():
            (<SimulatedReactor>its).pool.attach(None)
            self.timeouts += (<SimulatedReactor>its).io.timeouts
            self.late += (<SimulatedReactor>its).io.late
        self.stores = None
        self.reactors = None
        self.reactor = None
        self.io = None

    # ------------------------------------------------------------------ one process

    cdef RunEnd live(self) noexcept nogil:
        cdef int i
        self.phase = BOOTING
        self.busy = self.tasks = 0
        self.paused = self.hungry = False
        self.looking = False
        self.step = 0
        self.crash_step = NEVER_CRASHES
        self.dropped = self.world.dropped
        self.world.crash_at(0, False)
        if not self.last and self.chance(self.hurried):
            self.crash_soon(400)
        for i in range(SLOTS):
            self.slots[i].busy = False
        self.note(b"a process begins", 0, 0, 0)
        start(boot_body, <void*>self, NULL)
        return self.go_on()

    cdef RunEnd go_on(self) noexcept nogil:
        cdef int found, idle = 0, restless = 0, patience = self.patience, i
        cdef uint32_t number
        cdef bint waits
        self.wanting = False
        for i in range(self.volume_count):
            if (<SimulatedVolume>self.volume_pointers[i]).wants_in:
                (<SimulatedVolume>self.volume_pointers[i]).has_settled()
        while True:
            number = self.next_reactor()
            waits = self.all_wait()
            found = (<SimulatedReactor>self.reactor_pointers[number]).io.poll(
                LONG_NS if waits else self.delay_ns(number)
            )
            restless = 0 if found or waits else restless + 1
            self.step += 1
            if found == CRASHED:
                return self.crash(self.armed_power)
            self.issue()
            found += self.turn(number)
            for i in range(self.volume_count):
                (<SimulatedVolume>self.volume_pointers[i]).turn_clients()
            if self.world.altered:
                self.fault(b"the data of a write changed before the device had taken it", 0, 0)
            if self.wrong:
                return END_WRONG
            if not (<WorldIo>self.io).alive:             # in this turn
                return self.crash(self.armed_power)
            if self.phase == STOPPED:
                self.note(b"stopped", 0, 0, 0)
                return END_STOPPED
            if self.phase == REFUSED:
                return END_REFUSED
            if self.wanting:
                return END_WANTING
            if self.reactor_count == 1 or found or not waits or self.world.ready == 0:
                idle = idle + 1 if found == 0 and waits else 0
            if self.step >= self.crash_step or (idle > 2 and self.crash_step < NEVER_CRASHES):
                return self.crash(self.chance(self.power))
            if restless > RESTLESS_MAX:
                self.fault(
                    b"the reactor is busy for %lld turns in which no device and no timer has done anything", restless, 0
                )
                return END_WRONG
            if idle > IDLE_POLLS_MAX * patience or self.step >= NEVER_CRASHES or \
                    (self.step % 1024 == 0 and self.oldest_ns() > HANG_S * patience * <int64_t>1000000000):
                return self.hang()

    cdef uint32_t next_reactor(self) noexcept nogil:
        """Whose turn it is. Nothing orders the turns of two reactors."""
        return <uint32_t>self.draw(self.reactor_count) if self.reactor_count > 1 else 0

    cdef bint all_wait(self) noexcept nogil:
        """Whether no reactor has anything to do before the next event."""
        cdef uint32_t i
        if self.reactor_count == 1:
            return self.reactor.turn_first is NULL
        for i in range(self.reactor_count):
            if has_work((<SimulatedReactor>self.reactor_pointers[i]).reactor):
                return False
        return self.world.ready == 0

    cdef int64_t delay_ns(self, uint32_t number) noexcept nogil:
        """How long this reactor's poll may wait although there is work: it is the other one's, whose thread is slow to
        wake up."""
        if self.reactor_count == 1 or has_work((<SimulatedReactor>self.reactor_pointers[number]).reactor):
            return 0
        return 0 if self.draw(8) else <int64_t>self.draw(SLOW_WAKE_NS)

    cdef int turn(self, uint32_t number) noexcept nogil:
        self.messages += messages_for((<SimulatedReactor>self.reactor_pointers[number]).reactor)
        return (<SimulatedReactor>self.reactor_pointers[number]).reactor.turn()

    cdef RunEnd crash(self, bint power) noexcept nogil:
        self.crashes += 1
        self.power_cuts += power
        self.note(b"the power goes at step %lld" if power else b"the process dies at step %lld", self.step, 0, 0)
        return END_POWER_CUT if power else END_CRASHED

    cdef RunEnd hang(self) noexcept nogil:
        cdef int i
        for i in range(self.volume_count):
            if (<SimulatedVolume>self.volume_pointers[i]).record.exists:
                self.tell_state((<SimulatedVolume>self.volume_pointers[i]))
        self.note(b"in the world %lld events are due", self.world.event_queue.count, 0, 0)
        for i in range(SLOTS):
            if self.slots[i].busy:
                self.note(
                    b"under way: kind %lld, %lld sectors done of %lld",
                    self.slots[i].kind, self.slots[i].done, self.slots[i].sectors
                )
                self.note(
                    b"           parts %lld, complete %lld",
                    self.slots[i].request.parts, self.slots[i].request.complete, 0
                )
                self.fault(
                    b"an operation of kind %lld (number %lld) never ends", self.slots[i].kind, self.slots[i].number
                )
        self.fault(b"nothing happens any more in phase %lld, with %lld operations under way", self.phase, self.busy)
        return END_WRONG

    cdef void tell_state(self, SimulatedVolume simulated) noexcept nogil:
        self.note(b"volume %lld: %lld operations, %lld tasks", simulated.number, simulated.busy, simulated.tasks)
        self.note(
            b"the log has %lld records, %lld of them committed; it lets nobody in: %lld",
            simulated.log.last_appended(), simulated.log.committed, simulated.log.draining
        )
        self.note(
            b"merges: %lld; a segment to append to: %lld, another one: %lld",
            simulated.volume.merging, simulated.log.open_segments.current is not NULL,
            simulated.log.open_segments.prepared is not NULL
        )
        self.note(
            b"stable up to record %lld; devices that are being flushed: %lld",
            simulated.log.flusher.stable, simulated.log.flusher.left, 0
        )
        self.note(b"a checkpoint is under way: %lld; a write-back: %lld", simulated.volume.checkpoints.running,
                  simulated.volume.checkpoints.write_back.running, 0)
        self.note(
            b"it waits for a buffer: %lld, of which %lld are free; it builds a record: %lld",
            simulated.log.pool_wait_asked, simulated.home.pool.free[2], simulated.log.building is not NULL
        )

    cdef void refused(self, const char* reason, int error) noexcept nogil:
        cdef bint lawful = self.damage_allowed if error == -EUCLEAN else self.errors_allowed
        self.note(b"refused with error %lld", -error, 0, 0)
        if not lawful and not (self.damages and (error == -EIO or error == -EUCLEAN or error == -EILSEQ)):
            self.fault(b"refused to open:", 0, 0)
            snprintf(
                self.words, sizeof(self.words),
                b"refused to open, and nothing is damaged: %s (error %d)",
                reason, -error
            )
        self.phase = REFUSED

    cdef void issue(self) noexcept nogil:
        """Issues this turn's requests."""
        notice_strays(self)
        if self.phase == VERIFYING:
            self.verify_more()
        elif self.phase == WORKING:
            self.work_more()
        elif self.phase == QUIETING and self.let_clients_leave() and self.busy == 0 and self.tasks == 0:
            self.phase = STOPPING
            start(stop_body, <void*>self, NULL)

    cdef bint let_clients_leave(self) noexcept nogil:
        """Disconnects all clients of all volumes; none of their requests stays."""
        cdef bint gone = True
        cdef int i
        for i in range(self.volume_count):
            gone = (<SimulatedVolume>self.volume_pointers[i]).let_clients_leave() and gone
        for i in range(<int>self.reactor_count if gone else 0):
            self.miss_buffers((<SimulatedReactor>self.reactor_pointers[i]).pool)
        return gone

    cdef void miss_buffers(self, Pool pool) noexcept nogil:
        cdef int kind
        for kind in range(<int>RECORD):
            # what several stalled devices hold beyond the spare buffers comes back with their answers
            if pool.free[kind] + pool.short_of[kind] < pool.counts[kind]:
                self.fault(
                    b"no client is left, and %lld buffers of kind %lld are not free",
                    pool.counts[kind] - pool.free[kind] - pool.short_of[kind], kind
                )

    cdef void verify_more(self) noexcept nogil:
        cdef int i
        for i in range(self.volume_count):
            while (
                (<SimulatedVolume>self.volume_pointers[i]).open
                and self.busy < SLOTS
                and (<SimulatedVolume>self.volume_pointers[i]).verify()
            ):
                pass
        if self.busy:
            return
        for i in range(self.volume_count):
            if (
                (<SimulatedVolume>self.volume_pointers[i]).open
                and (<SimulatedVolume>self.volume_pointers[i]).verify_next
                < (<SimulatedVolume>self.volume_pointers[i]).verify_end
            ):
                return
            if (
                (<SimulatedVolume>self.volume_pointers[i]).open
                and not (<SimulatedVolume>self.volume_pointers[i]).oracle.settled()
            ):
                self.fault((<SimulatedVolume>self.volume_pointers[i]).oracle.words, 0, 0)
        self.note(b"what was to be read is read", 0, 0, 0)
        self.phase = LOOKING
        start(look_body, <void*>self, NULL)

    cdef void work_more(self) noexcept nogil:
        cdef uint64_t at
        cdef int kind = 0, i
        cdef void* simulated = self.any_serving()
        for i in range(self.volume_count):
            if (<SimulatedVolume>self.volume_pointers[i]).busy == 0:
                self.is_quiet(<SimulatedVolume>self.volume_pointers[i])
        if self.hungry and self.tasks < 4:               # urgent, as the cleaning policy does it
            self.hungry = False
            self.make_space(self.any_open())
        while self.left and self.busy < self.depth and self.tasks < 4 and not self.paused:
            simulated = self.any_serving()
            if simulated is NULL:
                if self.busy == 0 and self.tasks == 0 and self.is_calm():
                    self.left = 0                        # no requests are served any more
                break
            self.left -= 1
            self.operations += 1
            at = self.draw(self.weight)
            kind = 0
            while at >= self.weights[kind]:
                at -= self.weights[kind]
                kind += 1
            self.begin(simulated, kind)
        if self.left == 0 and not self.paused and self.is_calm():
            if self.last or self.chance(self.stops):
                self.phase = QUIETING
                if not self.last and self.chance(64):
                    self.crash_soon(200)
            elif self.crash_step == NEVER_CRASHES:
                self.crash_soon(20)

    cdef void make_space(self, void* simulated) noexcept nogil:
        self.begin_task(simulated, CLEAN)
        if simulated is not NULL and (<SimulatedVolume>simulated).serves() and (<SimulatedVolume>simulated).marks():
            (<SimulatedVolume>simulated).shortening = True
            begin_mark(<SimulatedVolume>simulated)

    cdef void* any_serving(self) noexcept nogil:
        """Returns a volume that accepts requests; NULL: there is none."""
        cdef uint32_t i, at = <uint32_t>self.draw(self.volume_count) if self.volume_count > 1 else 0
        for i in range(self.volume_count):
            if (<SimulatedVolume>self.volume_pointers[(at + i) % self.volume_count]).serves():
                return self.volume_pointers[(at + i) % self.volume_count]
        return NULL

    cdef void* any_open(self) noexcept nogil:
        cdef uint32_t i, at = <uint32_t>self.draw(self.volume_count) if self.volume_count > 1 else 0
        for i in range(self.volume_count):
            if (<SimulatedVolume>self.volume_pointers[(at + i) % self.volume_count]).open:
                return self.volume_pointers[(at + i) % self.volume_count]
        return NULL

    cdef bint is_calm(self) noexcept nogil:
        """Whether no volume rejects requests because of a restore or deletion."""
        cdef int i
        for i in range(self.volume_count):
            if (
                (<SimulatedVolume>self.volume_pointers[i]).going.state != GOING_NOWHERE
                or (<SimulatedVolume>self.volume_pointers[i]).leaving == IS_TO_LEAVE
            ):
                return False
            if (<SimulatedVolume>self.volume_pointers[i]).pausing:
                return False
        return True

    # ------------------------------------------------------------------ actions

    cdef void begin(self, void* simulated, int kind) noexcept nogil:
        if kind == PAUSE:
            self.paused = True
            self.pause.done = pause_ended
            self.pause.owner = <void*>self
            self.io.after(&self.pause, <int64_t>self.draw(120) * 1000 * 1000)
            self.done[kind] += 1
        elif kind == DAMAGE:
            self.done[kind] += 1
            damage(self, <SimulatedVolume>simulated)
        elif kind == STRAY:
            self.done[kind] += 1
            lead_astray(self, <SimulatedVolume>simulated)
        elif kind == GROW:
            self.done[kind] += 1
            (<SimulatedVolume>simulated).grow()
        elif kind == CLONE:
            begin_clone(<SimulatedVolume>simulated)
        elif kind == DROP:
            begin_leaving(<SimulatedVolume>simulated)
        elif kind == MARK:
            begin_mark(<SimulatedVolume>simulated)
        elif kind == MOMENT:
            begin_point_in_time(<SimulatedVolume>simulated)
        elif kind == REWIND:
            begin_rewind(<SimulatedVolume>simulated)
        elif kind == DETACH:
            begin_detaching(<SimulatedVolume>simulated)
        elif kind <= FLUSH:
            (<SimulatedVolume>simulated).operate(kind)
        else:
            self.begin_task(simulated, kind)

    cdef void begin_task(self, void* simulated, int kind) noexcept nogil:
        if simulated is NULL:
            return
        if kind != CHECKPOINT and kind != CLEAN:
            begin_with_snapshots(<SimulatedVolume>simulated, kind)
            return
        self.done[kind] += 1
        (<SimulatedVolume>simulated).begin_task()
        start(checkpoint_body if kind == CHECKPOINT else clean_body, simulated, NULL)

    cdef void is_quiet(self, SimulatedVolume simulated) noexcept nogil:
        """No request to the volume is in flight: starts the action that waited for that."""
        if simulated.leaving == IS_TO_LEAVE and simulated.changes == 0:
            leave(simulated)
        elif simulated.pausing:
            keep_point_in_time(simulated)
        elif simulated.going.state == GOING_WAITS and not simulated.going.to_point_in_time:
            self.go_back(simulated)
        elif simulated.going.state == GOING_WAITS and simulated.changes == 1:  # only the restore itself
            rewind(simulated)

    cdef void go_back(self, SimulatedVolume simulated) noexcept nogil:
        cdef uint32_t _i
        if not begin_restore(simulated):
            return
        for _i in range(<uint32_t>self.draw(3)):
            self.begin_task(<void*>simulated, <int>CLEAN + <int>self.draw(4))     # clean, snapshot, delete, look
        self.hurry()

    # ------------------------------------------------------------------ the walk

    cdef bint walk(self) noexcept nogil:
        """Checks everything from outside, unless a change is in progress."""
        cdef int i
        cdef bint right = True
        if self.has_dropped():
            return True
        for i in range(self.volume_count):
            if is_half_done(<SimulatedVolume>self.volume_pointers[i]):
                return True
        self.show_volumes()
        for i in range(self.volume_count):
            if (<SimulatedVolume>self.volume_pointers[i]).open:
                (<SimulatedVolume>self.volume_pointers[i]).notice_leaks()
        if self.damages == 0 and not self.leaked:        # else damaged nodes cannot be followed
            self.walks += 1
            right = self.checker.walk()
        right = right and self.stores_add_up(False)
        if not right:
            for i in range(self.volume_count):
                if (<SimulatedVolume>self.volume_pointers[i]).open:
                    self.tell_snapshots((<SimulatedVolume>self.volume_pointers[i]).volume.snapshots)
            self.fault(self.checker.words, 0, 0)
        return right

    cdef void tell_snapshots(self, SnapshotTable snapshots) noexcept nogil:
        cdef uint32_t i
        for i in range(snapshots.count):
            self.note(
                b"snapshot %lld grew from %lld, flags %lld",
                (<uint32_t*>snapshots.all[i].entry.id)[0], (<uint32_t*>snapshots.all[i].entry.parent)[0],
                snapshots.all[i].entry.flags
            )

    cdef void show_volumes(self) noexcept nogil:
        """Registers the volumes with the checker."""
        cdef uint32_t i, depth
        self.checker.begin()
        for depth in range(self.volume_count):           # each clone after its parent
            for i in range(self.volume_count):
                if (
                    (<SimulatedVolume>self.volume_pointers[i]).open
                    and (<SimulatedVolume>self.volume_pointers[i]).ancestors() == depth
                ):
                    self.checker.add((<SimulatedVolume>self.volume_pointers[i]).volume)
        for i in range(self.volume_count):
            if (
                (<SimulatedVolume>self.volume_pointers[i]).record.exists
                and not (<SimulatedVolume>self.volume_pointers[i]).open
            ):
                self.checker.add_closed((<SimulatedVolume>self.volume_pointers[i]).record.id)

    cdef bint stores_add_up(self, bint closed) noexcept nogil:
        cdef int i
        for i in range(self.store_count):
            # a failed store's journal may be ahead
            if not (<Store>self.store_pointers[i]).failed and \
                    not self.checker.add_up(<Store>self.store_pointers[i], closed):
                return False
        return True

    # ------------------------------------------------------------------ for people

    @property
    def digest(self):
        return self.world.digest ^ self.ledger.clock << 32 ^ self.ledger.compared

    @property
    def told(self):
        return {
            "operations": self.operations,
            "crashes": self.crashes,
            "power_cuts": self.power_cuts,
            "stops": self.clean_stops,
            "moves": self.moves,
            "restores": self.restores,
            "clones": self.clones,
            "hidden": self.hidden,
            "drops": self.drops,
            "rewinds": self.rewinds,
            "undone": self.undone,
            "unmade": self.unmade,
            "detached": self.detached,
            "refusals": self.refusals,
            "damages": self.damages,
            "astray": self.astray,
            "excused": self.excused,
            "struck": sum(self.world.counts.values()),
            "stalls": self.world.counts["stall"],
            "timeouts": self.timeouts,
            "late": self.late,
            "full_below": self.world.counts["full_below"],
            "refused_below": self.refused_below,
            "drops_of_caches": self.drops_of_caches,
            "copied": self.copied,
            "silences": self.silences,
            "failures": self.failures,
            "asked": self.asked,
            "vanished": self.vanished,
            "two_reactors": self.reactor_count > 1,
            "messages": self.messages,
            "walks": self.walks,
            "walked": self.checker.blocks,
            "comparisons": self.comparisons,
            "compacted": self.cleaned.compacted,
            "evacuated": self.cleaned.evacuated,
            "compared": self.ledger.compared,
            "ambiguous": self.ledger.ambiguous,
            "events": self.world.events,
            **{KIND_NAMES[kind]: self.done[kind] for kind in range(len(KIND_NAMES))},
        }


cdef bint is_half_done(SimulatedVolume simulated) noexcept nogil:
    if simulated.between or simulated.volume is None or not simulated.open:
        return simulated.between
    return simulated.volume.checkpoints.running or simulated.volume.snapshots.snapshot_requests is not NULL or \
        simulated.volume.cleaning or simulated.volume.log.error


cdef bint has_work(Reactor reactor) noexcept nogil:
    return reactor.turn_first is not NULL or reactor.mail is not NULL


cdef uint64_t messages_for(Reactor reactor) noexcept nogil:
    cdef const Message* message = reactor.mail
    cdef uint64_t count = 0
    while message is not NULL:
        count += 1
        message = message.next
    return count


cdef void pause_ended(Operation* operation) noexcept nogil:
    (<Simulation>operation.owner).paused = False


# ---------------------------------------------------------------------- tasks

cdef struct FormatCall:
    void* reactor
    Superblock* superblock
    int device
    bint ended
    int result


cdef int64_t format_body(void* argument) noexcept nogil:
    cdef FormatCall* call = <FormatCall*>argument
    call.result = format_store(<Reactor>call.reactor, call.device, call.superblock)
    call.ended = True
    return 0


cdef int64_t boot_body(void* argument) noexcept nogil:
    boot_process(<Simulation>argument)
    return 0


cdef void boot_process(Simulation run) noexcept nogil:
    cdef int result = 0, i, opened
    for i in range(run.store_count):
        if result == 0:
            result = (<Store>run.store_pointers[i]).open(run.cluster)
            if result < 0:
                run.refused((<Store>run.store_pointers[i]).reason, result)
    while result == 0:
        opened = 0
        for i in range(run.volume_count):
            if result == 0 and can_open(<SimulatedVolume>run.volume_pointers[i]):
                opened += 1
                result = open_one(run, <SimulatedVolume>run.volume_pointers[i])
        if opened == 0:
            break
    for i in range(run.volume_count):
        if (
            result == 0
            and (<SimulatedVolume>run.volume_pointers[i]).open
            and not settle_shots((<SimulatedVolume>run.volume_pointers[i]))
        ):
            return
    if result == 0:
        result = finish_restores(run)
    if result < 0 or (run.last or run.chance(64)) and not run.walk():
        return
    for i in range(run.volume_count):
        if (<SimulatedVolume>run.volume_pointers[i]).open:
            walk_dying(<void*>(<SimulatedVolume>run.volume_pointers[i]).volume)
    run.phase = WORKING if not run.last and run.chance(run.unverified) else VERIFYING
    for i in range(run.volume_count):
        if (<SimulatedVolume>run.volume_pointers[i]).serves():
            (<SimulatedVolume>run.volume_pointers[i]).choose_verified()
            if (<SimulatedVolume>run.volume_pointers[i]).record.detaching:
                go_on_detaching(<SimulatedVolume>run.volume_pointers[i])
        elif (<SimulatedVolume>run.volume_pointers[i]).open:
            (<SimulatedVolume>run.volume_pointers[i]).begin_task()
            start(needless_body, run.volume_pointers[i], NULL)


cdef int finish_restores(Simulation run) noexcept nogil:
    """Before requests are served: undoes or repeats what the last process left unfinished."""
    cdef uint32_t i, depth
    cdef int result = 0
    for depth in range(run.volume_count):
        for i in range(run.volume_count):
            if (
                result == 0
                and (<SimulatedVolume>run.volume_pointers[i]).open
                and (<SimulatedVolume>run.volume_pointers[i]).ancestors() == depth
            ):
                forget_ambiguous(<SimulatedVolume>run.volume_pointers[i])
                result = undo(<SimulatedVolume>run.volume_pointers[i])
                forget_unreachable(<SimulatedVolume>run.volume_pointers[i])
                if result == 0 and (<SimulatedVolume>run.volume_pointers[i]).record.making:
                    result = take_to_point_in_time(<SimulatedVolume>run.volume_pointers[i])
    if result < 0:
        run.phase = REFUSED                              # whether it may was checked there
    return result


cdef bint can_open(SimulatedVolume simulated) noexcept nogil:
    if simulated.open or not simulated.record.exists:
        return False
    return (
        simulated.record.deleting or simulated.record.parent is NULL or (<SimulatedVolume>simulated.record.parent).open
    )


cdef int open_one(Simulation run, SimulatedVolume simulated) noexcept nogil:
    """Opens a volume, or continues to erase it."""
    cdef int result
    if simulated.record.deleting:
        result = erase(simulated)
        if result < 0:
            run.phase = REFUSED                          # whether it may was checked there
        return result
    result = simulated.come_up()
    if result == 0:
        leave_stray(simulated)
    elif not (run.errors_allowed or refusal_is_due(simulated)):
        run.fault(
            b"refused to open, though nothing says that record %lld was stable, which went astray",
            simulated.stray.sequence, 0
        )
    if result < 0:
        run.refused(simulated.recovery.reason, result)
    return result


cdef int64_t needless_body(void* argument) noexcept nogil:
    delete_needless(<SimulatedVolume>argument)
    (<SimulatedVolume>argument).end_task()
    return 0


cdef int64_t checkpoint_body(void* argument) noexcept nogil:
    write_checkpoint(<SimulatedVolume>argument)
    return 0


cdef void write_checkpoint(SimulatedVolume simulated) noexcept nogil:
    cdef uint64_t changed = min(simulated.log.changed, simulated.log.committed)
    cdef int result = simulated.volume.checkpoints.run()
    simulated.end_task()
    if result == 0 and simulated.volume.checkpoints.sequence < changed:
        simulated.run.fault(
            b"a checkpoint that was asked for when record %lld was committed is of record %lld",
            changed, simulated.volume.checkpoints.sequence
        )
    simulated.run.fail(b"a checkpoint", result)


cdef int64_t clean_body(void* argument) noexcept nogil:
    clean_some(<SimulatedVolume>argument)
    return 0


cdef void clean_some(SimulatedVolume simulated) noexcept nogil:
    """Chooses as a policy might: some segments that can be cleaned, worthwhile or not."""
    cdef Row[ROWS_MAX] rows
    cdef uint32_t[CLEANED_AT_ONCE] chosen
    cdef Cleaned told
    cdef uint32_t count = min(simulated.cleaner.list(rows, ROWS_MAX), <uint32_t>ROWS_MAX), wanted = 0, i, first
    cdef int result
    first = <uint32_t>simulated.run.draw(max(count, <uint32_t>1))
    for i in range(count if simulated.stray.state == HOME else 0):
        if wanted < CLEANED_AT_ONCE and rows[(first + i) % count].flags & ROW_CLEANABLE and simulated.run.draw(4):
            chosen[wanted] = rows[(first + i) % count].segment
            wanted += 1
    result = simulated.cleaner.clean(chosen, wanted, NULL, &told)
    simulated.end_task()
    if result == -EBUSY:
        return
    simulated.run.cleaned.compacted += told.compacted
    simulated.run.cleaned.evacuated += told.evacuated
    simulated.run.note(
        b"cleaned: %lld compacted, %lld evacuated, %lld skipped", told.compacted, told.evacuated, told.skipped
    )
    if told.compacted and simulated.run.chance(32):
        simulated.run.hurry()                            # the blocks that replaced the dead ones must be stable by now
    simulated.notice_leaks()
    if told.failed and not simulated.run.damages and not simulated.run.leaked:
        simulated.run.fail(b"cleaning", told.error)


cdef int64_t look_body(void* argument) noexcept nogil:
    look_at_snapshots(<Simulation>argument)
    return 0


cdef void look_at_snapshots(Simulation run) noexcept nogil:
    cdef int i
    for i in range(run.volume_count):
        if (<SimulatedVolume>run.volume_pointers[i]).serves():
            look_at_all(<SimulatedVolume>run.volume_pointers[i])
    run.phase = WORKING


cdef int64_t stop_body(void* argument) noexcept nogil:
    stop(<Simulation>argument)
    return 0


cdef void stop(Simulation run) noexcept nogil:
    cdef int i, result
    for i in range(run.volume_count):
        if (
            (<SimulatedVolume>run.volume_pointers[i]).open
            and run.chance(192)
            and not (<SimulatedVolume>run.volume_pointers[i]).log.error
        ):
            result = (<SimulatedVolume>run.volume_pointers[i]).volume.checkpoints.run()
            run.fail(b"the last checkpoint", result)
            # the reserve is for the checkpoints of two volumes (store/store.pyx)
            if result == -ENOSPC and not (run.errors_allowed or run.cloning or run.full_below):
                run.fault(b"there is no room for the last checkpoint", 0, 0)
    if run.last or run.chance(64):
        for i in range(run.volume_count):
            if (
                (<SimulatedVolume>run.volume_pointers[i]).open
                and not compare_derived(run, (<SimulatedVolume>run.volume_pointers[i]))
            ):
                return
    run.show_volumes()
    while close_one(run):
        pass
    if not run.errors_allowed and not run.full_below and not run.stores_add_up(True):
        run.fault(run.checker.words, 0, 0)
    run.phase = STOPPED


cdef bint close_one(Simulation run) noexcept nogil:
    """Closes one volume, each clone before its parent. False: there is none left."""
    cdef int i, k
    cdef bint needed
    for i in range(run.volume_count):
        needed = False
        for k in range(run.volume_count):
            if (
                (<SimulatedVolume>run.volume_pointers[k]).open
                and (<SimulatedVolume>run.volume_pointers[k]).record.parent == run.volume_pointers[i]
            ):
                needed = True
        if (<SimulatedVolume>run.volume_pointers[i]).open and not needed:
            shut(<SimulatedVolume>run.volume_pointers[i])
            (<SimulatedVolume>run.volume_pointers[i]).between = False
            return True
    return False


cdef bint compare_derived(Simulation run, SimulatedVolume simulated) noexcept nogil:
    """Checks that the blocks that cleaning takes to be dead are those that the walk found dead."""
    cdef Segment* segment = simulated.volume.segments.first
    cdef Plan* plan = &simulated.cleaner.plans[0]
    cdef uint64_t committed = simulated.volume.log.committed, snapshots = simulated.volume.snapshots.version
    cdef uint64_t checkpoint = simulated.volume.checkpoints.sequence
    cdef uint32_t number = 0
    cdef int result
    cdef uint64_t walks = run.walks
    if not run.walk() or run.walks == walks or run.errors_allowed or run.damages:
        return not run.wrong
    if simulated.volume.map.cache.dirty or simulated.volume.segments.reclaim_holds:
        return not run.wrong
    while segment is not NULL:                           # while nothing changes
        number = segment.number
        if simulated.cleaner.cleanable(segment):
            plan.segment = segment
            segment.cleaning = True
            result = simulated.cleaner.read_footer(plan)
            if result == 0:
                result = simulated.cleaner.derive(plan)
            segment = simulated.volume.segments.find(number)
            segment.cleaning = False
            if simulated.volume.log.committed != committed or simulated.volume.snapshots.version != snapshots or \
                    simulated.volume.checkpoints.sequence != checkpoint:
                break                                    # a segment changed meanwhile
            if result < 0:
                run.fault(b"which blocks of segment %lld live cannot be derived (error %lld)", number, -result)
                return False
            run.comparisons += 1
            if not run.checker.agrees(simulated.volume, number, segment.replica.footer_block, plan.words):
                run.fault(run.checker.words, 0, 0)
                return False
        segment = segment.next
    return True
