# One seed's life of a volume in the simulated world: devices are formatted, the volume is opened, used, stopped, crashed in the midst of anything
# and opened again, over and over; whatever it answers is judged (judge.pyx), and its structures are walked from outside (walk.pyx).
#
#     life = Simulation(seed)
#     life.run()                                None, or what went wrong
#
# Store, Recovery, Volume and what they consist of are the engine's, as engine.pyx sets them up; this plays the doors, the metadata service and
# fate, on one thread. The Io is the World: everything that happens follows from the seed. Which operations are common, how large they are,
# how much is under way, what the devices are like and what fails is drawn once for each life (swarm testing): a life in which
# everything happens shows little of what needs many of one kind.
#
# One beginning after the other:
#
#     boot ──> recovery ──> everything is read and settled ──> operations ──> stop or crash
#       └───────┴──────────────┴── crash at any step ─────────────┴────────────┘
#
# Always true: what the engine holds in memory goes with a crash (the tasks as well, see task.abandon); what stays is the devices, the metadata
# (epoch, checkpoint, size) and the judge.

from libc.errno cimport EBUSY, EILSEQ, EIO, ENOENT, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free as release
from libc.string cimport memcpy, memset

from iomesh.engine.audit cimport Audit
from iomesh.engine.cleaning cimport ROW_CLEANABLE, Cleaned, Cleaner, Row
from iomesh.engine.disk cimport Disk, disk_mark_damaged
from iomesh.engine.history cimport close_snapshot, delete_snapshot, make_snapshots, open_snapshot, restore_volume, walk_dying
from iomesh.engine.io cimport Operation
from iomesh.engine.judge cimport BLOCK_SECTORS, OPERATIONS_MAX, SECTOR_BYTES, Judge, fill
from iomesh.engine.layout cimport (
    BLOCK_BYTES, DEVICE_BYTES_MIN, NODE_POINTERS, POINTER_PRESENT, SEGMENT_BYTES_MIN, SEGMENT_SEALED, SLAB_BYTES, SNAPSHOT_HIDDEN, TIER_NVME,
    Pointer, Superblock)
from iomesh.engine.log cimport Log
from iomesh.engine.map cimport Map, MapCache
from iomesh.engine.planted cimport CAN_PLANT
from iomesh.engine.pool cimport Pool
from iomesh.engine.reactor cimport Reactor
from iomesh.engine.recovery cimport Recovery
from iomesh.engine.request cimport Read, Request
from iomesh.engine.segments cimport Segment, Segments
from iomesh.engine.snapshots cimport Snapshot
from iomesh.engine.store cimport Store, format_store, plan_store
from iomesh.engine.task cimport abandon, start, wait, waited, wake_all
from iomesh.engine.volume cimport EVENT_CHECKSUM, EVENT_DEVICE, EVENT_NO_SPACE, Volume
from iomesh.engine.world cimport CRASHED, World, WorldIo

cdef extern from "<errno.h>" nogil:
    int EUCLEAN

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** into, size_t alignment, size_t bytes)

cdef enum:
    READ_BLOCKS = 256
    LONG_NS = 1000 * 1000 * 1000
    HANG_S = 600                     # of the world's time: nothing may take so long, ...
    HANGS = 200                      # ... or so often that where devices hang
    IDLE_POLLS_MAX = 64              # in a row in which nothing happens
    RESTLESS_MAX = 20000             # turns in a row that something asks for and nothing comes in
    STEPS_MAX = 2 * 1000 * 1000      # of one beginning
    ROWS_MAX = 256
    CLEANED_AT_ONCE = 12

VOLUME = b"simulated volume"
CLUSTER = b"simulated worlds"
PLANTABLE = bool(CAN_PLANT)          # whether bugs can be planted in this build (planted.pxd)
KIND_NAMES = ("read", "write", "zero", "flush", "checkpoint", "grow", "pause", "clean", "snapshot", "delete", "look", "restore",
              "damage", "verify")

cdef char* spare_memory = NULL


cdef class Simulation:
    """seed: 0 to 2**64 - 1. operations: of the whole life, drawn unless given. Raises MemoryError."""

    def __cinit__(self, uint64_t seed, operations=None):
        cdef void* memory
        cdef int i
        self.seed = seed
        self.state = seed * <uint64_t>0x9E3779B97F4A7C15 + 1
        global spare_memory
        if spare_memory is not NULL:                     # of a life that is over
            self.memory = spare_memory
            spare_memory = NULL
        elif posix_memalign(&memory, BLOCK_BYTES, (SLOTS + 1) * READ_BLOCKS * BLOCK_BYTES):
            raise MemoryError("no memory for operations")
        else:
            self.memory = <char*>memory
        for i in range(SLOTS):
            self.slots[i].buffer = self.memory + i * READ_BLOCKS * BLOCK_BYTES
            self.slots[i].life = <void*>self
        self.look_buffer = self.memory + SLOTS * READ_BLOCKS * BLOCK_BYTES
        for i in range(SHOTS):
            self.shots[i].life = <void*>self
        memcpy(self.cluster, <const char*>(<bytes>CLUSTER), 16)
        self.draw_life(operations)

    def __dealloc__(self):
        global spare_memory
        if spare_memory is NULL:
            spare_memory = self.memory
        else:
            release(self.memory)

    # ------------------------------------------------------------------ the swarm

    cdef object draw_life(self, operations):
        """What this life is like."""
        cdef int i
        cdef uint64_t leaf = 0
        self.world = World(self.draw(1 << 62))
        self.store_count = 2 if self.draw(4) == 0 else 1
        volatile = self.draw(4) != 0
        for i in range(self.store_count):
            if self.world.add_disk(DEVICE_BYTES_MIN, volatile and (i == 0 or self.draw(2)), [4, 32, 256][self.draw(3)] * <uint64_t>(1 << 18)) != i:
                raise MemoryError("no memory for a device")
        self.regions = [1, 2, 4, 8, 12, 16][self.draw(6)]
        spread = [1, 1, 1, 3, 300, 70000][self.draw(6)]          # leaves between two regions, at most
        for i in range(self.regions):
            self.leaves[i] = leaf
            leaf += 1 + self.draw(spread)
        self.usable = self.regions if self.draw(2) else 1 + self.draw(self.regions)
        self.size_blocks = (self.leaves[self.usable - 1] + 1) * NODE_POINTERS
        common = [0, 1, 4, 16]
        self.weights[<int>READ] = common[self.draw(4)]
        self.weights[<int>WRITE] = 16
        self.weights[<int>ZERO] = common[self.draw(4)] // 2
        self.weights[<int>FLUSH] = common[self.draw(4)] // 2
        self.weights[<int>CHECKPOINT] = self.draw(2)
        self.weights[<int>GROW] = self.draw(2)
        self.weights[<int>PAUSE] = self.draw(2)
        self.weights[<int>CLEAN] = [0, 1, 1, 2][self.draw(4)]
        self.weights[<int>SNAPSHOT] = [0, 0, 1, 2][self.draw(4)]
        self.weights[<int>DELETE] = self.draw(3) if self.weights[<int>SNAPSHOT] else 0
        self.weights[<int>LOOK] = self.draw(2) if self.weights[<int>SNAPSHOT] else 0
        self.weights[<int>RESTORE] = self.draw(2) if self.weights[<int>SNAPSHOT] else 0
        self.weights[<int>DAMAGE] = self.draw(12) == 0
        self.weight = sum([self.weights[kind] for kind in range(<int>KINDS)])
        self.depth = [1, 2, 4, 8, 16, SLOTS][self.draw(6)]
        self.size_max = [1, 1, 2, 4, 4, 8, 16, 64, 250][self.draw(9)]
        self.odd = [0, 16, 64, 160][self.draw(4)]
        self.hot = [0, 128, 230][self.draw(3)]
        self.hot_sectors = [64, 512, 2048][self.draw(3)]
        self.stable = [0, 8, 64][self.draw(3)]
        self.frames = [48, 64, 256, 1024][self.draw(4)]        # the engine has 256 at least; fewer make it evict
        self.records = [2, 3, 8, 24][self.draw(4)]
        self.interval = <uint64_t>[1, 2, 4, 16, 64][self.draw(5)] << 20
        self.metadata_ns = [1000, 1000 * 1000, 100 * 1000 * 1000][self.draw(3)]
        self.power = [0, 128, 200, 256][self.draw(4)] if volatile else [0, 128][self.draw(2)]
        if self.power:                                   # without, what a power cut may leave grows and grows
            self.weights[<int>FLUSH] += 1
            self.weight += 1
        self.stops = [0, 32, 128][self.draw(3)]
        self.hurried = [0, 64, 128][self.draw(3)]
        self.unverified = [0, 64, 128][self.draw(3)]
        self.per_life = [20, 100, 400, 1500][self.draw(4)]
        self.operations = operations if operations is not None else [300, 1000, 3000][self.draw(3)]
        self.operations = min(self.operations, <uint64_t>(OPERATIONS_MAX // 2))
        self.pool = Pool(4, 2, self.records)
        self.faults = {}
        for name in ("slow", "hang", "timer_early", "timer_late", "read_error", "write_error", "flush_error"):
            if self.draw(12) == 0:
                self.faults[name] = [0.0003, 0.003, 0.03][self.draw(3)]
        self.audit = Audit(self.world)
        self.judge = Judge(self.regions * REGION_SECTORS)
        self.judge.reset(self.regions * REGION_SECTORS, not volatile or not self.power)
        self.drawn = {
            "stores": self.store_count, "volatile": bool(volatile), "regions": self.regions, "spread": spread, "depth": self.depth, "size_max": self.size_max,
            "odd": self.odd, "hot": self.hot, "stable": self.stable, "frames": self.frames, "records": self.records, "interval": self.interval,
            "power": self.power, "stops": self.stops, "hurried": self.hurried, "unverified": self.unverified, "per_life": self.per_life,
            "faults": self.faults, "weights": {KIND_NAMES[kind]: self.weights[kind] for kind in range(<int>VERIFY)}, "operations": self.operations}

    cdef uint64_t draw(self, uint64_t below) noexcept nogil:
        """0 to below - 1 (splitmix64)."""
        cdef uint64_t x
        self.state += <uint64_t>0x9E3779B97F4A7C15
        x = self.state
        x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
        return (x ^ (x >> 31)) % below

    cdef bint chance(self, uint32_t of_256) noexcept nogil:
        return self.draw(256) < of_256

    # ------------------------------------------------------------------ life

    def run(self):
        """The whole life; None, or what went wrong."""
        cdef uint64_t left = self.operations
        cdef End end
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
            left -= min(left, self.operations - before)
            if end == END_REFUSED:
                self.refusals += 1
                left -= min(left, <uint64_t>20)
            if end == END_WRONG or (end == END_REFUSED and (self.damages or self.last)):
                break                                    # what is damaged stays so
            if (<WorldIo>self.io).alive:
                self.world.crash(-1, end == END_POWER_CUT)
            self.world.crash_at(0, False)
            self.unread += self.volume.walk.unreadable
            self.doubt_shots()
            self.judge.crashed(end == END_POWER_CUT)
            abandon()
            self.drop()
            if end == END_STOPPED:
                self.clean_stops += 1
                if self.last:
                    break
        abandon()
        self.drop()
        return self.words.decode(errors="replace") if self.wrong else None

    cdef object set_faults(self):
        """Those of the next beginning: in the last one devices work, and all must be well."""
        self.world.faults = {name: 0 if self.last else probability for name, probability in self.faults.items()}
        self.errors_allowed = not self.last and any(name.endswith("error") for name in self.faults)
        self.hangs = "hang" in self.faults

    cdef object format(self):
        cdef FormatCall call
        cdef Superblock superblock
        cdef int i
        self.enter()
        for i in range(self.store_count):
            memset(&superblock, 0, sizeof(superblock))
            plan_store(&superblock, DEVICE_BYTES_MIN)
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
        self.io = WorldIo(self.world)
        self.reactor = Reactor(0, self.io, 0, 0)
        for i in range(self.store_count):
            if self.io.add_device(i) != i:
                raise RuntimeError("the world counts its devices otherwise")

    cdef object boot(self):
        """A process with everything in it, as engine.pyx sets it up; nothing has happened yet."""
        cdef Store store
        cdef int i
        self.enter()
        self.pool.renew()                                # its memory is as good as new, and new memory is slow
        self.cache = MapCache(self.frames, self.io)
        self.stores = []
        for i in range(self.store_count):
            store = Store(self.reactor, i, DEVICE_BYTES_MIN, self.world.disks[i].volatile_cache)
            self.stores.append(store)
            self.store_pointers[i] = <void*>store
        self.epoch += 1
        self.segments = Segments()
        self.map = Map(self.cache, self.io, self.segments)
        self.log = Log(self.reactor, self.pool, self.segments, self.stores, VOLUME, self.epoch, SEGMENT_BYTES_MIN // BLOCK_BYTES)
        self.volume = Volume(VOLUME, self.reactor, self.pool, self.log, self.map, self.segments, self.size_blocks)
        self.volume.counters = self.volume.reader.counters = self.volume.checkpoints.counters = self.counters
        self.log.counters = self.log.tails.counters = self.log.flusher.counters = self.counters
        self.volume.latencies = self.histograms
        self.volume.checkpoints.interval = self.interval
        self.volume.engine = <void*>self
        self.volume.on_event = told
        self.volume.checkpoints.on_written = checkpoint_written
        self.volume.checkpoints.on_dying = walk_dying
        self.recovery = Recovery(self.volume, (self.checkpoint.segment, self.checkpoint.block, self.checkpoint.crc)
                                 if self.checkpoint.flags & POINTER_PRESENT else None)
        self.cleaner = Cleaner(self.volume)
        self.reading = Volume(VOLUME, self.reactor, self.pool, None, Map(self.cache, self.io, self.segments), self.segments, 1)
        self.reading.counters = self.reading.reader.counters = self.counters
        self.reading.latencies = self.histograms
        self.reading.engine = <void*>self
        self.reading.on_event = told
        self.looking = False
        self.audit.volume = self.volume
        self.moving_sequence = 0

    cdef object drop(self):
        """The process is gone."""
        self.recovery = None
        self.cleaner = None
        self.audit.volume = None
        self.reading = None
        self.volume = None
        self.log = None
        self.map = None
        self.segments = None
        self.stores = None
        self.cache = None
        self.reactor = None
        self.io = None

    # ------------------------------------------------------------------ one beginning

    cdef End live(self) noexcept nogil:
        cdef int found, idle = 0, restless = 0, patience = HANGS if self.hangs else 1, i
        cdef bint waits
        self.phase = BOOTING
        self.busy = self.tasks = 0
        self.paused = self.hungry = False
        self.verify_next = 0
        self.step = 0
        self.crash_step = STEPS_MAX
        self.world.crash_at(0, False)
        if not self.last and self.chance(self.hurried):
            self.crash_soon(400)
        for i in range(SLOTS):
            self.slots[i].busy = False
        self.note(b"epoch %lld begins with a checkpoint at segment %lld block %lld", self.epoch, self.checkpoint.segment, self.checkpoint.block)
        start(boot_body, <void*>self, NULL)
        while True:
            waits = self.reactor.turn_first is NULL
            found = self.io.poll(LONG_NS if waits else 0)
            restless = 0 if found or waits else restless + 1
            self.step += 1
            if found == CRASHED:
                return self.crash(self.armed_power)
            self.issue()
            found += self.reactor.turn()
            if self.wrong:
                return END_WRONG
            if not (<WorldIo>self.io).alive:             # in this turn
                return self.crash(self.armed_power)
            if self.phase == STOPPED:
                self.note(b"stopped", 0, 0, 0)
                return END_STOPPED
            if self.phase == REFUSED:
                return END_REFUSED
            idle = idle + 1 if found == 0 and waits else 0
            if self.step >= self.crash_step or (idle > 2 and self.crash_step < STEPS_MAX):
                return self.crash(self.chance(self.power))
            if restless > RESTLESS_MAX:
                self.fault(b"the reactor is busy for %lld turns in which no device and no timer has done anything", restless, 0)
                return END_WRONG
            if idle > IDLE_POLLS_MAX * patience or self.step >= STEPS_MAX or \
                    (self.step % 1024 == 0 and self.oldest_ns() > HANG_S * patience * <int64_t>1000000000):
                return self.hang()

    cdef void crash_soon(self, uint64_t within) noexcept nogil:
        """After a turn, or in the midst of one: when a device is asked for something or has done it."""
        if self.draw(2):
            self.crash_step = self.step + 1 + self.draw(within)
        else:
            self.armed_power = self.chance(self.power)
            self.world.crash_at(self.world.boundaries + 1 + self.draw(within), self.armed_power)
            self.crash_step = self.step + 4096           # if no device is asked for anything any more

    cdef End crash(self, bint power) noexcept nogil:
        self.crashes += 1
        self.power_cuts += power
        self.note(b"the power goes at step %lld" if power else b"the process dies at step %lld", self.step, 0, 0)
        return END_POWER_CUT if power else END_CRASHED

    cdef End hang(self) noexcept nogil:
        cdef int i
        self.note(b"the log has %lld records, %lld of them committed; it lets nobody in: %lld", self.log.last_appended(), self.log.committed, self.log.draining)
        self.note(b"merges: %lld; a segment to append to: %lld, another one: %lld", self.volume.merging, self.log.tails.current is not NULL,
                  self.log.tails.prepared is not NULL)
        self.note(b"stable up to record %lld; devices that are being flushed: %lld; in the world %lld events are due", self.log.flusher.stable,
                  self.log.flusher.left, self.world.agenda.count)
        self.note(b"a checkpoint is under way: %lld; a write-back: %lld", self.volume.checkpoints.running, self.volume.checkpoints.writing_back, 0)
        for i in range(SLOTS):
            if self.slots[i].busy:
                self.note(b"under way: kind %lld, %lld sectors done of %lld", self.slots[i].kind, self.slots[i].done, self.slots[i].sectors)
                self.note(b"           parts %lld, complete %lld", self.slots[i].request.parts, self.slots[i].request.complete, 0)
                self.fault(b"an operation of kind %lld (number %lld) never ends", self.slots[i].kind, self.slots[i].number)
        self.fault(b"nothing happens any more in phase %lld, with %lld operations under way", self.phase, self.busy)
        return END_WRONG

    cdef int64_t oldest_ns(self) noexcept nogil:
        cdef int64_t oldest = self.io.now_ns()
        cdef int i
        for i in range(SLOTS):
            if self.slots[i].busy:
                oldest = min(oldest, self.slots[i].started_ns)
        return self.io.now_ns() - oldest

    cdef void refused(self, const char* reason, int error) noexcept nogil:
        self.note(b"refused with error %lld", -error, 0, 0)
        cdef bint full = error == -ENOSPC
        cdef int i
        for i in range(self.store_count):                # the reserve is used up: where nobody cleans, every beginning takes from it
            full = full and (<Store>self.store_pointers[i]).slabs.free * SLAB_BYTES < SEGMENT_BYTES_MIN
        if not self.errors_allowed and not full and not (self.damages and (error == -EIO or error == -EUCLEAN or error == -EILSEQ)):
            self.fault(b"refused to open:", 0, 0)
            snprintf(self.words, sizeof(self.words), b"refused to open, and nothing is damaged: %s (error %d)", reason, -error)
        self.phase = REFUSED

    cdef void issue(self) noexcept nogil:
        """What the doors bring in this turn."""
        if self.phase == VERIFYING:
            self.verify_more()
        elif self.phase == WORKING:
            self.work_more()
        elif self.phase == QUIETING and self.busy == 0 and self.tasks == 0:
            self.phase = STOPPING
            start(stop_body, <void*>self, NULL)

    cdef void verify_more(self) noexcept nogil:
        cdef Slot* slot
        while self.verify_next < self.verify_end and self.busy < SLOTS:
            slot = self.take_slot(VERIFY)
            slot.sector = self.verify_next * REGION_SECTORS
            slot.sectors = REGION_SECTORS
            self.verify_next += 1
            self.give(slot)
        if self.verify_next == self.verify_end and self.busy == 0:
            if not self.judge.settled():
                self.fault(self.judge.words, 0, 0)
            self.note(b"%lld regions are read", self.verify_end, 0, 0)
            self.phase = LOOKING
            start(look_at_all_body, <void*>self, NULL)

    cdef void work_more(self) noexcept nogil:
        cdef uint64_t at
        cdef int kind = 0
        if self.going.state == GOING_WAITS and self.busy == 0:
            self.begin_restore()
        if self.hungry and self.tasks < 4:               # as the policy does it: urgently, whatever it does otherwise
            self.hungry = False
            self.begin_task(CLEAN)
        while self.left and self.busy < self.depth and self.tasks < 4 and not self.paused and self.going.state == GOING_NOWHERE:
            self.left -= 1
            self.operations += 1
            at = self.draw(self.weight)
            kind = 0
            while at >= self.weights[kind]:
                at -= self.weights[kind]
                kind += 1
            self.begin(kind)
        if self.left == 0 and not self.paused and self.going.state == GOING_NOWHERE:
            if self.last or self.chance(self.stops):
                self.phase = QUIETING
                if not self.last and self.chance(64):
                    self.crash_soon(200)
            elif self.crash_step == STEPS_MAX:
                self.crash_soon(20)

    # ------------------------------------------------------------------ operations

    cdef void begin(self, int kind) noexcept nogil:
        cdef Slot* slot
        if kind == PAUSE:
            self.paused = True
            self.pause.done = pause_ended
            self.pause.owner = <void*>self
            self.io.after(&self.pause, <int64_t>self.draw(120) * 1000 * 1000)
            self.done[kind] += 1
        elif CHECKPOINT == kind or CLEAN <= kind <= RESTORE:
            self.begin_task(kind)
        elif kind == DAMAGE:
            self.done[kind] += 1
            self.damage()
        elif kind == GROW:
            self.done[kind] += 1
            if self.usable < self.regions:
                self.usable += 1 + <uint32_t>self.draw(self.regions - self.usable)
                self.size_blocks = (self.leaves[self.usable - 1] + 1) * NODE_POINTERS
                self.volume.blocks = self.size_blocks
                self.volume.checkpoints.size_bytes = self.size_blocks * BLOCK_BYTES
                self.note(b"grown to %lld blocks", self.size_blocks, 0, 0)
        else:
            slot = self.take_slot(kind)
            if kind == FLUSH:
                slot.begun = self.judge.flush_begins()
            else:
                self.place(slot)
            self.give(slot)

    cdef void begin_task(self, int kind) noexcept nogil:
        cdef Shot* shot = NULL
        if kind == SNAPSHOT:
            shot = self.any_shot(SHOT_NONE)
        elif kind == DELETE or kind == LOOK or (kind == RESTORE and self.chance(64)):     # to go back wants all others to wait: not too often
            shot = self.any_shot(SHOT_MADE)
        if (shot is NULL and kind != CHECKPOINT and kind != CLEAN) or (kind == LOOK and self.looking):
            return
        self.tasks += 1
        self.done[kind] += 1
        if kind == CHECKPOINT:
            start(checkpoint_body, <void*>self, NULL)
        elif kind == CLEAN:
            start(clean_body, <void*>self, NULL)
        elif kind == SNAPSHOT:
            self.name_shot(shot)
            self.note(b"snapshot %lld begins", shot.number, 0, 0)
            start(snapshot_body, shot, NULL)
        elif kind == DELETE:
            shot.state = SHOT_DELETING
            self.note(b"snapshot %lld is being deleted", shot.number, 0, 0)
            start(delete_body, shot, NULL)
        elif kind == RESTORE:
            self.going.state = GOING_WAITS
            self.going.target = shot
        else:
            self.looking = shot.looked_at = True
            start(look_body, shot, NULL)

    cdef void name_shot(self, Shot* shot) noexcept nogil:
        self.shot_count += 1
        shot.state = SHOT_MAKING
        shot.number = self.shot_count
        shot.kept = -1
        shot.looked_at = False
        memset(shot.id, 0, 16)
        memcpy(shot.id, &shot.number, sizeof(shot.number))
        shot.begun = self.judge.flush_begins()
        self.note_oldest_read()

    cdef void begin_restore(self) noexcept nogil:
        """Nobody is connected any more; whatever else may be going on goes on."""
        cdef Going* going = &self.going
        cdef uint32_t _i
        if going.target.state != SHOT_MADE:              # deleted meanwhile
            going.state = GOING_NOWHERE
            self.tasks -= 1
            return
        going.state = GOING_BACK
        going.moved = False
        memcpy(going.id, going.target.id, 16)
        going.kept = self.judge.keep_again(going.target.kept)
        memset(&going.wish, 0, sizeof(Wish))
        going.before = self.any_shot(SHOT_NONE) if self.chance(160) else NULL
        if going.before is not NULL:
            self.name_shot(going.before)
            memcpy(going.wish.entry.id, going.before.id, 16)
            snprintf(going.wish.entry.name, sizeof(going.wish.entry.name), b"number %u", going.before.number)
        else:
            self.shot_count += 1
            memcpy(going.wish.entry.id, &self.shot_count, sizeof(self.shot_count))
            going.wish.entry.flags = SNAPSHOT_HIDDEN
        self.note(b"goes back to snapshot %lld; what was there is to be snapshot %lld", going.target.number,
                  0 if going.before is NULL else going.before.number, 0)
        start(restore_body, <void*>self, NULL)
        for _i in range(<uint32_t>self.draw(3)):
            self.begin_task(<int>CLEAN + <int>self.draw(4))        # clean, snapshot, delete, look
        if not self.last and self.crash_step == STEPS_MAX and self.chance(96):
            self.crash_soon(300)

    cdef Shot* any_shot(self, ShotState state) noexcept nogil:
        """One that nobody reads; NULL: there is none."""
        cdef uint32_t i, first = <uint32_t>self.draw(SHOTS)
        for i in range(SHOTS):
            if self.shots[(first + i) % SHOTS].state == state and not self.shots[(first + i) % SHOTS].looked_at:
                return &self.shots[(first + i) % SHOTS]
        return NULL

    cdef void doubt_shots(self) noexcept nogil:
        """The process ends: what was being made or deleted may be there or not."""
        cdef int i
        cdef Shot* shot
        for i in range(SHOTS):
            shot = &self.shots[i]
            shot.looked_at = False
            if shot.state == SHOT_MAKING:
                shot.kept = self.judge.keep(shot.begun)
            if shot.state == SHOT_MAKING or shot.state == SHOT_DELETING:
                shot.state = SHOT_UNKNOWN
        if self.going.state == GOING_BACK:
            if self.going.moved:
                went_back(self)
            self.judge.let_go(self.going.kept)
        self.going.state = GOING_NOWHERE

    cdef bint settle_shots(self) noexcept nogil:
        """... and now it is known."""
        cdef uint32_t i
        cdef int visible = 0
        cdef Shot* shot
        cdef Snapshot* snapshot
        for i in range(SHOTS):
            shot = &self.shots[i]
            if shot.state == SHOT_NONE:
                continue
            snapshot = self.volume.snapshots.find(shot.id)
            if snapshot is not NULL and not snapshot.entry.flags & SNAPSHOT_HIDDEN:
                visible += 1
                shot.state = SHOT_MADE
                shot.size_blocks = snapshot.entry.size_bytes // BLOCK_BYTES
            elif shot.state == SHOT_MADE:
                self.fault(b"snapshot %lld was made and is gone", shot.number, 0)
                return False
            else:
                shot.state = SHOT_NONE
                self.judge.let_go(shot.kept)
        for i in range(self.volume.snapshots.count):
            visible -= not self.volume.snapshots.all[i].entry.flags & SNAPSHOT_HIDDEN
        if visible:
            self.fault(b"there are snapshots (%lld) that were deleted or never made", -visible, 0)
        return visible == 0

    cdef void note_oldest_read(self) noexcept nogil:
        """Whoever looks at the volume as it was at some moment keeps the judge from forgetting what was there."""
        cdef int i
        self.judge.oldest_read = ~<uint64_t>0
        for i in range(SLOTS):
            if self.slots[i].busy and (self.slots[i].kind == READ or self.slots[i].kind == VERIFY):
                self.judge.oldest_read = min(self.judge.oldest_read, self.slots[i].begun)
        for i in range(SHOTS):
            if self.shots[i].state == SHOT_MAKING:
                self.judge.oldest_read = min(self.judge.oldest_read, self.shots[i].begun)

    cdef bint walk(self) noexcept nogil:
        """Everything from outside, if nothing is half done just now."""
        cdef int i
        cdef uint32_t k
        cdef bint right = True
        if self.volume.checkpoints.running or self.volume.snapshots.wishes is not NULL or self.volume.cleaning or self.volume.log.error:
            return True
        if self.damages == 0:                            # else there are nodes that cannot be followed
            self.walks += 1
            self.audit.may_leak = self.has_leaked()
            right = self.audit.walk()
        for i in range(self.store_count):
            if not (<Store>self.store_pointers[i]).failed:       # else its journal may know of what its memory does not
                right = right and self.audit.add_up(<Store>self.store_pointers[i])
        if not right:
            for k in range(self.volume.snapshots.count):
                self.note(b"snapshot %lld grew from %lld, flags %lld", (<uint32_t*>self.volume.snapshots.all[k].entry.id)[0],
                          (<uint32_t*>self.volume.snapshots.all[k].entry.parent)[0], self.volume.snapshots.all[k].entry.flags)
            self.fault(self.audit.words, 0, 0)
        return right

    cdef bint has_leaked(self) noexcept nogil:
        return self.unread + self.volume.walk.unreadable > 0

    cdef void damage(self) noexcept nogil:
        """A block of a sealed segment is not any more what it was: a bit of it, a sector, or all of it; by rot, or by a write that went astray."""
        cdef Segment* segment = self.volume.segments.first
        cdef uint32_t at = <uint32_t>self.draw(max(self.volume.segments.count, <uint32_t>1)), block, i
        cdef int form = <int>self.draw(4)
        cdef uint64_t offset
        cdef char* content
        cdef Disk* disk
        while at and segment is not NULL:
            segment = segment.next
            at -= 1
        if segment is NULL or segment.replica is NULL or segment.state != SEGMENT_SEALED or segment.blocks == 0:
            return
        block = <uint32_t>self.draw(segment.blocks)
        content = <char*>self.audit.content(segment.replica, block)
        if content is NULL:
            return
        disk = &self.world.disks[segment.replica.device]
        offset = content - disk.memory
        if form == 0:
            content[self.draw(BLOCK_BYTES)] ^= <char>(1 << self.draw(8))
        elif form == 1:
            content += self.draw(BLOCK_SECTORS) * SECTOR_BYTES
            for i in range(SECTOR_BYTES):
                content[i] = <char>self.draw(256)
        elif form == 2:
            memset(content, 0, BLOCK_BYTES)
        else:
            memcpy(content, disk.memory + self.draw(disk.bytes // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)
        disk_mark_damaged(disk, offset, BLOCK_BYTES)
        self.damages += 1
        self.judge.clock += 1
        self.damaged_at = self.judge.clock
        self.note(b"damages block %lld of segment %lld", block, segment.number, form)

    cdef bint meets_damage(self, Slot* slot) noexcept nogil:
        """Whether what it needs is damaged, as things are now."""
        cdef uint32_t sector = slot.sector, piece
        cdef uint64_t place
        if self.damages == 0 or slot.kind == FLUSH:
            return False
        while sector < slot.sector + slot.sectors:
            piece = min(slot.sector + slot.sectors, (sector // REGION_SECTORS + 1) * REGION_SECTORS) - sector
            place = self.place_of(sector)
            if self.audit.is_damaged(NULL, place // BLOCK_SECTORS, (place + piece + BLOCK_SECTORS - 1) // BLOCK_SECTORS - place // BLOCK_SECTORS, True):
                return True
            sector += piece
        return False

    cdef bint excuses(self, Slot* slot, int error) noexcept nogil:
        """Whether an operation may have ended with this error."""
        cdef bint right = error == ENOSPC and slot.kind != READ and slot.kind != VERIFY
        if not right and (error == EIO or error == EILSEQ) and (slot.damaged or slot.begun < self.damaged_at or self.meets_damage(slot)):
            self.excused += 1
            right = True
        return right or self.errors_allowed

    cdef Slot* take_slot(self, int kind) noexcept nogil:
        cdef int i = 0
        cdef Slot* slot
        while self.slots[i].busy:
            i += 1
        slot = &self.slots[i]
        self.busy += 1
        memset(&slot.request, 0, sizeof(slot.request))
        memset(&slot.read, 0, sizeof(slot.read) - sizeof(slot.read.pointers))
        slot.busy = True
        slot.kind = kind
        slot.done = slot.number = 0
        slot.started_ns = self.io.now_ns()
        slot.request.finished = request_finished
        slot.when.done = more
        slot.when.owner = slot
        slot.read.done = read_finished
        slot.read.owner = slot
        slot.read.into = slot.buffer
        self.done[kind] += 1
        return slot

    cdef bint place(self, Slot* slot) noexcept nogil:
        """Where and how long; inside leaves that follow each other."""
        cdef uint32_t limit = self.usable * REGION_SECTORS, whole, region
        if self.chance(self.hot):
            limit = min(limit, self.hot_sectors)
        slot.sector = <uint32_t>self.draw(limit)
        if self.chance(self.odd):
            slot.sectors = 1 + <uint32_t>self.draw(3 * BLOCK_SECTORS)
        else:
            slot.sector -= slot.sector % BLOCK_SECTORS
            slot.sectors = BLOCK_SECTORS * (1 + <uint32_t>self.draw(1 + self.draw(self.size_max)))       # more are small
        if slot.kind == ZERO and self.chance(32):
            slot.sectors = REGION_SECTORS
        region = slot.sector // REGION_SECTORS
        whole = (region + 1) * REGION_SECTORS - slot.sector
        if slot.kind != READ and region + 1 < self.usable and self.leaves[region + 1] == self.leaves[region] + 1:
            whole += REGION_SECTORS
        slot.sectors = min(min(slot.sectors, whole), <uint32_t>(READ_BLOCKS * BLOCK_SECTORS))
        if slot.kind == WRITE or slot.kind == ZERO:
            slot.request.stable = self.chance(self.stable)
        return True

    cdef void give(self, Slot* slot) noexcept nogil:
        """... it to the volume."""
        cdef uint32_t sector, i
        cdef uint64_t place
        self.note(KIND_WORDS[slot.kind], slot.sector, slot.sectors, self.judge.count)
        slot.damaged = self.meets_damage(slot)
        if slot.kind == FLUSH:
            self.volume.flush(&slot.request)
        elif slot.kind == READ or slot.kind == VERIFY:
            slot.begun = self.judge.clock
            self.judge.oldest_read = min(self.judge.oldest_read, slot.begun)
            place = self.place_of(slot.sector)
            slot.read.block = place // BLOCK_SECTORS
            slot.read.count = <uint32_t>((place + slot.sectors + BLOCK_SECTORS - 1) // BLOCK_SECTORS - slot.read.block)
            self.volume.read(&slot.read)
        else:
            slot.number = self.judge.begin(slot.sector, slot.sectors, slot.kind == ZERO)
            slot.begun = self.judge.clock
            if slot.kind == WRITE:
                sector = slot.sector
                while sector < slot.sector + slot.sectors:
                    i = min(slot.sector + slot.sectors, (sector // REGION_SECTORS + 1) * REGION_SECTORS) - sector
                    fill(slot.buffer + (sector - slot.sector) * SECTOR_BYTES, slot.number, self.place_of(sector), i)
                    sector += i
            self.write_more(slot)

    cdef void write_more(self, Slot* slot) noexcept nogil:
        """As a door does it: as much as the volume takes now, the rest when it says so."""
        cdef uint64_t place
        cdef uint32_t left, count
        cdef int64_t taken
        cdef char* data
        while slot.done < slot.sectors:
            place = self.place_of(slot.sector + slot.done)
            left = slot.sectors - slot.done
            data = slot.buffer + slot.done * SECTOR_BYTES if slot.kind == WRITE else NULL
            if place % BLOCK_SECTORS == 0 and left >= BLOCK_SECTORS:
                if slot.kind == WRITE:
                    taken = self.volume.write(&slot.request, place // BLOCK_SECTORS, left // BLOCK_SECTORS, data, &slot.when)
                else:
                    taken = self.volume.zero(&slot.request, place // BLOCK_SECTORS, left // BLOCK_SECTORS, &slot.when)
                count = <uint32_t>max(taken, <int64_t>0) * BLOCK_SECTORS
            else:
                count = min(left, <uint32_t>(BLOCK_SECTORS - place % BLOCK_SECTORS))
                taken = self.volume.merge(&slot.request, place // BLOCK_SECTORS, <uint32_t>(place % BLOCK_SECTORS) * SECTOR_BYTES, count * SECTOR_BYTES, data,
                                          &slot.when)
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
        slot.busy = False
        if error:
            self.failures += 1
            self.note(b"operation %lld fails with error %lld", slot.number, error, 0)
            if not self.excuses(slot, error):
                self.fault(b"operation %lld fails with error %lld, and no device failed", slot.number, error)
        if slot.kind == FLUSH:
            if not error:
                self.judge.flushed(slot.begun)
        elif error:
            self.judge.fail(slot.number)
        else:
            self.judge.acknowledge(slot.number, slot.request.stable)
        if not error and slot.kind == FLUSH:
            self.note(b"flush of %lld ends", slot.begun, 0, 0)
        elif not error:
            self.note(b"operation %lld is acknowledged", slot.number, 0, 0)

    cdef void read_done(self, Slot* slot) noexcept nogil:
        cdef uint32_t i
        cdef uint64_t place = self.place_of(slot.sector)
        cdef char* data = slot.buffer + place % BLOCK_SECTORS * SECTOR_BYTES
        cdef bint right = True
        self.busy -= 1
        slot.busy = False
        self.note(b"read of sector %lld ends, error %lld", slot.sector, slot.read.error, 0)
        if slot.read.error:
            self.failures += 1
            if not self.excuses(slot, slot.read.error):
                self.fault(b"a read of sector %lld of the model fails with error %lld, and no device failed", slot.sector, slot.read.error)
        else:
            if slot.read.unmapped:
                memset(slot.buffer, 0, slot.read.count * BLOCK_BYTES)
            i = 0
            while i < slot.sectors and right:
                if slot.kind == VERIFY:
                    right = self.judge.settle(slot.sector + i, data + i * SECTOR_BYTES, place + i)
                    i += BLOCK_SECTORS
                else:
                    right = self.judge.check(slot.sector + i, data + i * SECTOR_BYTES, place + i, slot.begun)
                    i += 1
            if not right:
                self.fault(self.judge.words, 0, 0)
        self.note_oldest_read()

    cdef uint64_t place_of(self, uint32_t sector) noexcept nogil:
        return self.leaves[sector // REGION_SECTORS] * REGION_SECTORS + sector % REGION_SECTORS

    # ------------------------------------------------------------------ for people

    cdef void note(self, const char* words, int64_t a, int64_t b, int64_t c) noexcept nogil:
        cdef Event* event = &self.events[self.event_count % TRACED]
        self.event_count += 1
        event.now_ns = self.world.agenda.now
        event.words, event.a, event.b, event.c = words, a, b, c

    cdef void fault(self, const char* words, int64_t a, int64_t b) noexcept nogil:
        """The first one counts."""
        if not self.wrong:
            self.wrong = True
            snprintf(self.words, sizeof(self.words), words, a, b)
            self.note(b"WRONG", 0, 0, 0)

    def trace(self, last=100):
        """The last events, oldest first."""
        cdef char[256] line
        cdef Event* event
        lines = []
        for number in range(max(0, self.event_count - min(last, <uint64_t>TRACED)), self.event_count):
            event = &self.events[<uint64_t>number % TRACED]
            snprintf(line, sizeof(line), event.words, event.a, event.b, event.c)
            lines.append(f"{event.now_ns / 1e6:12.3f} ms  {line.decode(errors='replace')}")
        return lines

    @property
    def digest(self):
        return self.world.digest ^ self.judge.clock << 32 ^ self.judge.compared

    @property
    def told(self):
        return {"operations": self.operations, "crashes": self.crashes, "power_cuts": self.power_cuts, "stops": self.clean_stops, "moves": self.moves,
                "restores": self.restores, "refusals": self.refusals, "damages": self.damages, "excused": self.excused,
                "struck": sum(self.world.counts.values()),
                "failures": self.failures, "walks": self.walks, "walked": self.audit.blocks, "comparisons": self.comparisons,
                "compacted": self.cleaned.compacted, "evacuated": self.cleaned.evacuated,
                "compared": self.judge.compared, "ambiguous": self.judge.ambiguous, "events": self.world.events,
                **{KIND_NAMES[kind]: self.done[kind] for kind in range(len(KIND_NAMES))}}


cdef const char* KIND_WORDS[KINDS]
KIND_WORDS[0] = b"read of %lld, %lld sectors"
KIND_WORDS[1] = b"write of %lld, %lld sectors: operation %lld"
KIND_WORDS[2] = b"zero of %lld, %lld sectors: operation %lld"
KIND_WORDS[3] = b"flush"
KIND_WORDS[<int>VERIFY] = b"verifies %lld, %lld sectors"


# ---------------------------------------------------------------------- what completions call

cdef void more(Operation* operation) noexcept nogil:
    cdef Slot* slot = <Slot*>operation.owner
    if operation.result < 0:
        slot.request.error = <int>-operation.result
        slot.done = slot.sectors
        (<Simulation>slot.life).volume.complete(&slot.request)
    else:
        (<Simulation>slot.life).write_more(slot)


cdef void request_finished(Request* request) noexcept nogil:
    cdef Slot* slot = <Slot*>request
    (<Simulation>slot.life).write_done(slot)


cdef void read_finished(Read* read) noexcept nogil:
    cdef Slot* slot = <Slot*>read.owner
    (<Simulation>slot.life).read_done(slot)


cdef void pause_ended(Operation* operation) noexcept nogil:
    (<Simulation>operation.owner).paused = False


cdef void told(void* volume, int kind, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    cdef void* life = (<Volume>volume).engine
    if kind == EVENT_CHECKSUM:
        (<Simulation>life).note(b"checksum error of block %lld at segment %lld block %lld", a, b, c)
    elif kind == EVENT_DEVICE:
        (<Simulation>life).note(b"store %lld: error %lld", a, b, 0)
    elif kind == EVENT_NO_SPACE:
        (<Simulation>life).hungry = True
        (<Simulation>life).note(b"no space", 0, 0, 0)


# ---------------------------------------------------------------------- the metadata service

cdef void checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil:
    ask_metadata(<Simulation>(<Volume>owner).engine, sequence, pointer)


cdef void ask_metadata(Simulation life, uint64_t sequence, Pointer pointer) noexcept nogil:
    life.note(b"checkpoint %lld is written at segment %lld block %lld", sequence, pointer.segment, pointer.block)
    life.moving_sequence = sequence
    life.moving = pointer
    life.metadata.done = metadata_asked
    life.metadata.owner = <void*>life
    life.io.after(&life.metadata, <int64_t>life.draw(life.metadata_ns))


cdef void metadata_asked(Operation* operation) noexcept nogil:
    pointer_moves(<Simulation>operation.owner)


cdef void pointer_moves(Simulation life) noexcept nogil:
    life.checkpoint = life.moving
    life.moves += 1
    life.going.moved = life.going.state == GOING_BACK and life.going.wish.made       # the second of its two checkpoints
    life.note(b"the pointer is moved to checkpoint %lld", life.moving_sequence, 0, 0)
    life.metadata.done = metadata_answered
    life.io.after(&life.metadata, <int64_t>life.draw(life.metadata_ns))


cdef void went_back(Simulation life) noexcept nogil:
    """All that the volume holds is from now on what the snapshot held."""
    life.restores += 1
    life.note(b"it has gone back: operation %lld", life.judge.go_back(life.going.kept), 0, 0)


cdef void metadata_answered(Operation* operation) noexcept nogil:
    pointer_moved(<Simulation>operation.owner)


cdef void pointer_moved(Simulation life) noexcept nogil:
    life.volume.checkpoints.moved(life.moving_sequence, True)


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


cdef void boot_process(Simulation life) noexcept nogil:
    cdef int result = 0, i
    for i in range(life.store_count):
        if result == 0:
            result = (<Store>life.store_pointers[i]).open(life.cluster)
            if result < 0:
                life.refused((<Store>life.store_pointers[i]).reason, result)
    if result == 0:
        life.volume.checkpoints.attach()
        result = life.recovery.run()
        if result < 0:
            life.refused(life.recovery.reason, result)
    if result == 0:
        life.note(b"recovered up to record %lld, from %lld", life.recovery.end, life.recovery.start, 0)
        if not life.settle_shots() or (life.last or life.chance(64)) and not life.walk():
            return
        walk_dying(<void*>life.volume)
        life.phase = WORKING if not life.last and life.chance(life.unverified) else VERIFYING
        life.verify_end = life.usable
        if not life.last and life.chance(192):           # a part of it, for speed
            life.verify_next = <uint32_t>life.draw(life.usable)
            life.verify_end = min(life.usable, life.verify_next + 1 + <uint32_t>life.draw(3))


cdef int64_t checkpoint_body(void* argument) noexcept nogil:
    write_checkpoint(<Simulation>argument)
    return 0


cdef void write_checkpoint(Simulation life) noexcept nogil:
    cdef int result = life.volume.checkpoints.run()
    life.tasks -= 1
    if result < 0 and result != -ENOSPC and not life.errors_allowed:
        life.fault(b"a checkpoint ends with error %lld, and no device failed", -result, 0)


cdef int64_t clean_body(void* argument) noexcept nogil:
    clean_some(<Simulation>argument)
    return 0


cdef void clean_some(Simulation life) noexcept nogil:
    """What a policy might choose: some of those that can be cleaned, worthwhile or not."""
    cdef Row[ROWS_MAX] rows
    cdef uint32_t[CLEANED_AT_ONCE] chosen
    cdef Cleaned told
    cdef uint32_t count = min(life.cleaner.list(rows, ROWS_MAX), <uint32_t>ROWS_MAX), wanted = 0, i, first
    cdef int result
    first = <uint32_t>life.draw(max(count, <uint32_t>1))
    for i in range(count):
        if wanted < CLEANED_AT_ONCE and rows[(first + i) % count].flags & ROW_CLEANABLE and life.draw(4):
            chosen[wanted] = rows[(first + i) % count].segment
            wanted += 1
    result = life.cleaner.clean(chosen, wanted, NULL, &told)
    life.tasks -= 1
    if result == -EBUSY:
        return
    life.cleaned.compacted += told.compacted
    life.cleaned.evacuated += told.evacuated
    life.note(b"cleaned: %lld compacted, %lld evacuated, %lld skipped", told.compacted, told.evacuated, told.skipped)
    if told.failed and told.error != -ENOSPC and told.error != -ESHUTDOWN and not (life.errors_allowed or life.damages or life.has_leaked()):
        life.fault(b"cleaning ends with error %lld, and no device failed", -told.error, 0)


cdef int64_t snapshot_body(void* argument) noexcept nogil:
    make_snapshot(<Simulation>(<Shot*>argument).life, <Shot*>argument)
    return 0


cdef void make_snapshot(Simulation life, Shot* shot) noexcept nogil:
    cdef int result
    memset(&shot.making, 0, sizeof(Making))
    shot.making.volume = <void*>life.volume
    memcpy(shot.making.wish.entry.id, shot.id, 16)
    snprintf(shot.making.wish.entry.name, sizeof(shot.making.wish.entry.name), b"number %u", shot.number)
    result = make_snapshots(life.reactor, &shot.making, 1)
    life.tasks -= 1
    shot.state = SHOT_NONE
    if result == 0:
        shot.kept = life.judge.keep(shot.begun)
        shot.size_blocks = life.volume.snapshots.find(shot.id).entry.size_bytes // BLOCK_BYTES
        shot.state = SHOT_MADE
        life.note(b"snapshot %lld is made", shot.number, 0, 0)
    elif result != -ENOSPC and result != -ESHUTDOWN and not life.errors_allowed:
        life.fault(b"making a snapshot ends with error %lld, and no device failed", -result, 0)
    life.note_oldest_read()


cdef int64_t restore_body(void* argument) noexcept nogil:
    restore(<Simulation>argument)
    return 0


cdef void restore(Simulation life) noexcept nogil:
    """As engine.pyx has it done, when nobody is connected."""
    cdef Going* going = &life.going
    cdef int result
    life.volume.restoring = True
    result = restore_volume(life.volume, going.id, &going.wish, NULL)
    life.volume.restoring = False
    wake_all(&life.volume.restored, 0)
    life.tasks -= 1
    if going.before is not NULL:
        going.before.state = SHOT_NONE
    if going.before is not NULL and going.wish.made:     # with an error it is given up again, and may still be there after the next beginning
        going.before.kept = life.judge.keep(going.before.begun)
        going.before.size_blocks = going.wish.entry.size_bytes // BLOCK_BYTES
        going.before.state = SHOT_MADE if result == 0 else SHOT_DELETING
    if (result == 0) != going.moved:
        life.fault(b"going back to a snapshot ends with error %lld, and a pointer was moved (%lld)", -result, going.moved)
    elif result == 0:
        went_back(life)
    elif not (result == -ENOSPC or result == -ESHUTDOWN or (result == -ENOENT and going.target.state != SHOT_MADE) or life.errors_allowed):
        life.fault(b"going back to a snapshot ends with error %lld, and no device failed", -result, 0)
    life.note(b"going back ends with error %lld", -result, 0, 0)
    life.judge.let_go(going.kept)
    going.state = GOING_NOWHERE
    life.note_oldest_read()


cdef int64_t delete_body(void* argument) noexcept nogil:
    drop_snapshot(<Simulation>(<Shot*>argument).life, <Shot*>argument)
    return 0


cdef void drop_snapshot(Simulation life, Shot* shot) noexcept nogil:
    """With an error it may still be there after the next beginning: it stays SHOT_DELETING."""
    cdef bint hidden = False
    cdef int result = delete_snapshot(life.volume, shot.id, &hidden)
    life.tasks -= 1
    if result == 0:
        shot.state = SHOT_NONE
        life.judge.let_go(shot.kept)
        life.note(b"snapshot %lld is deleted", shot.number, 0, 0)
    elif result != -ENOSPC and result != -ESHUTDOWN and not life.errors_allowed:
        life.fault(b"deleting a snapshot ends with error %lld, and no device failed", -result, 0)


cdef int64_t look_body(void* argument) noexcept nogil:
    look(<Simulation>(<Shot*>argument).life, <Shot*>argument)
    return 0


cdef void look(Simulation life, Shot* shot) noexcept nogil:
    look_at(life, shot, False)
    life.tasks -= 1


cdef int64_t look_at_all_body(void* argument) noexcept nogil:
    look_at_all(<Simulation>argument)
    return 0


cdef void look_at_all(Simulation life) noexcept nogil:
    """After a recovery, when the head has been read: the snapshots, sometimes."""
    cdef int i
    cdef bint whole = life.last or life.chance(64)
    if life.last or life.chance(64):
        for i in range(SHOTS):
            if life.shots[i].state == SHOT_MADE and not life.wrong:
                life.looking = life.shots[i].looked_at = True
                look_at(life, &life.shots[i], whole)
    life.phase = WORKING


cdef void look_at(Simulation life, Shot* shot, bint whole) noexcept nogil:
    """Read a snapshot, or a part of it, as a door does that serves it."""
    cdef uint32_t region, first, count = 0, i, sector
    cdef int result
    memcpy(life.reading.identity, shot.id, 16)
    life.reading.closing = False
    result = open_snapshot(life.volume, life.reading, shot.id)
    if result == -ESHUTDOWN:
        life.looking = shot.looked_at = False
        return
    if result < 0:
        life.fault(b"snapshot %lld cannot be opened (error %lld)", shot.number, -result)
        return
    while count < life.regions and (life.leaves[count] + 1) * NODE_POINTERS <= shot.size_blocks:
        count += 1
    first = 0 if whole else <uint32_t>life.draw(count)
    for region in range(first, count if whole else first + 1):
        memset(&life.look, 0, sizeof(life.look) - sizeof(life.look.pointers))
        life.look.block = life.leaves[region] * NODE_POINTERS
        life.look.count = NODE_POINTERS
        life.look.into = life.look_buffer
        life.look.owner = <void*>life
        life.look.done = look_ended
        waited(&life.looked)
        life.reading.read(&life.look)
        wait(&life.looked)
        if life.look.error:
            life.failures += 1
            if life.damages and life.audit.is_damaged(&life.reading.map.root, life.look.block, NODE_POINTERS, True):
                life.excused += 1
            elif not life.errors_allowed:
                life.fault(b"a read of snapshot %lld fails with error %lld, and no device failed", shot.number, life.look.error)
            continue
        if life.look.unmapped:
            memset(life.look_buffer, 0, READ_BLOCKS * BLOCK_BYTES)
        for i in range(NODE_POINTERS):
            sector = region * REGION_SECTORS + i * BLOCK_SECTORS
            if not life.wrong and not life.judge.check_kept(shot.kept, sector, life.look_buffer + i * BLOCK_BYTES, life.place_of(sector)):
                life.note(b"snapshot %lld is wrong", shot.number, 0, 0)
                life.fault(life.judge.words, 0, 0)
    close_snapshot(life.volume, life.reading)
    life.looking = shot.looked_at = False
    life.note(b"snapshot %lld was looked at", shot.number, 0, 0)


cdef void look_ended(Read* read) noexcept nogil:
    end_look(<Simulation>read.owner)


cdef void end_look(Simulation life) noexcept nogil:
    life.looked.result = 0
    life.looked.done(&life.looked)


cdef int64_t stop_body(void* argument) noexcept nogil:
    stop(<Simulation>argument)
    return 0


cdef void stop(Simulation life) noexcept nogil:
    cdef int result
    if life.chance(192) and not life.log.error:
        result = life.volume.checkpoints.run()
        if result < 0 and result != -ENOSPC and not life.errors_allowed:
            life.fault(b"the last checkpoint ends with error %lld, and no device failed", -result, 0)
    if life.last or life.chance(64):
        if not compare_derived(life):
            return
    life.volume.close()
    life.phase = STOPPED


cdef bint compare_derived(Simulation life) noexcept nogil:
    """What cleaning would take to be dead is what the walk has found to be."""
    cdef Segment* segment = life.volume.segments.first
    cdef Plan* plan = &life.cleaner.plans[0]
    cdef uint64_t committed = life.volume.log.committed, snapshots = life.volume.snapshots.version
    cdef uint64_t checkpoint = life.volume.checkpoints.sequence
    cdef uint32_t number = 0
    cdef int result
    cdef uint64_t walks = life.walks
    if not life.walk() or life.walks == walks or life.errors_allowed or life.damages or life.has_leaked():
        return not life.wrong
    if life.volume.map.cache.dirty or life.volume.segments.reclaim_holds:
        return not life.wrong
    while segment is not NULL:                           # as long as nothing changes
        number = segment.number
        if life.cleaner.cleanable(segment):
            plan.segment = segment
            segment.cleaning = True
            result = life.cleaner.derive(plan)
            segment = life.volume.segments.find(number)
            segment.cleaning = False
            if life.volume.log.committed != committed or life.volume.snapshots.version != snapshots or life.volume.checkpoints.sequence != checkpoint:
                break                                    # something has changed meanwhile
            if result < 0:
                life.fault(b"which blocks of segment %lld live cannot be derived (error %lld)", number, -result)
                return False
            life.comparisons += 1
            if not life.audit.agrees(number, segment.replica.footer_block, plan.words):
                life.fault(life.audit.words, 0, 0)
                return False
        segment = segment.next
    return True
