# The simulated world: the second implementation of Io. Devices in memory, connections, one virtual clock and one order
# of events, all from one seed. A face is a node's access to it: one for each of its reactors.
#
# Always true:
#   - the same seed and the same operations give the same history, which `digest` shows: nothing here depends on a clock
#     or an address;
#   - `done` is called from poll() of the face that issued the operation, never from inside the issuing call;
#   - time passes only in poll(): a face without ready operations moves the clock to the next event (of any face, at
#     most by its wait), and only while no other face has any ready. A poll that does not wait takes POLL_NS, so that a
#     loop of polls ends;
#   - a write is in its device's cache when it completes, and durable when a flush issued after that completes;
#   - a crashed face gets no more callbacks. Its operations are forgotten, not freed: the caller owns their memory.
#
# `faults`, `disk` and `network` draw what goes wrong; this file draws when events occur. One thread drives a world with
# all its faces.
#
# With several faces: turn them one after the other (io.poll, reactor.turn), until all of them find nothing, and let the
# last poll wait.

import os

from libc.errno cimport EBADF, EIO, EMFILE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.uio cimport iovec

from iomesh.engine.simulation.event_queue cimport (
    EVENT_DISCARD, EVENT_DUE, EVENT_FLUSH, EVENT_FREE, EVENT_READ, EVENT_READY, EVENT_RECEIVE, EVENT_SEND, EVENT_TIMER,
    EVENT_WRITE, NO_EVENT, EventState
)
from iomesh.engine.simulation.prng cimport below, draw, seed_prng, stirred
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.simulation.disk cimport (
    DISK_BLOCK_BYTES, Cut, disk_cut, disk_discard, disk_draw_cut, disk_flushed, disk_forget, disk_free, disk_land,
    disk_make, disk_mark_damaged, disk_put, disk_read, disk_sum, disk_tainted, disk_write
)
from iomesh.engine.simulation.faults cimport (
    CLOCK_JUMP, DROPPING_FLUSH_ERROR, FAULTS_KEPT, FLUSH_ERROR, FORGETTING_FLUSH_ERROR, FULL_BELOW, HANG, SLOW, STALL,
    TIMER_EARLY, TIMER_LATE, FaultRecord, record_fault, strikes
)
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.simulation.network cimport ENDS_MAX

cdef enum:
    POLL_NS = 200                    # the duration of a poll that finds nothing
    SECOND_NS = 1000000000
    MILLION = 1000000
    FOR_EVER_S = 100000              # of a stall: longer than any process
    LONGEST_WAIT_S = 1000000         # limits every wait: the clock must not overflow
    FIRST_UNIX_S = 1767225600        # 2026-01-01: a world starts within a year after it

FAULT_NAMES = (
    "read_error", "write_error", "flush_error", "dropping_flush_error", "forgetting_flush_error", "lost_write",
    "misdirected_write", "rot", "slow", "hang", "timer_early", "timer_late", "clock_jump", "connection_cut",
    "connection_half_open", "network_slow", "stall", "full_below"
)
LATENCY_NAMES = ("read_ns", "write_ns", "flush_ns", "discard_ns", "network_ns", "turn_ns")


cdef class World:
    """seed: of all draws. There are no faults until `faults` is set."""

    def __cinit__(self, uint64_t seed):
        cdef int face
        self.seed = seed
        self.event_queue = EventQueue()
        self.network = Network(self.event_queue)
        self.network.injector = &self.injector
        self.network.prng = &self.prng
        self.network.delay_ns = &self.latency.network_ns
        seed_prng(&self.prng, seed)
        seed_prng(&self.injector.prng, stirred(seed + 1))
        seed_prng(&self.crash_chance, stirred(seed + 2))
        self.latency.read_ns = 80000
        self.latency.write_ns = 25000
        self.latency.flush_ns = 400000
        self.latency.discard_ns = 100000
        self.latency.network_ns = 40000
        self.latency.turn_ns = 4000
        for face in range(FACES_MAX):
            self.faces[face].first_ready = NO_EVENT
        self.event_queue.now = SECOND_NS

    def __dealloc__(self):
        cdef int device
        for device in range(DISKS_MAX):
            disk_free(&self.disks[device])

    # ------------------------------------------------------------------ for Python: settings and fault counts

    @property
    def faults(self) -> dict[str, float]:
        """Probabilities; assignment changes only those that it names."""
        return {name: (<double*>&self.injector.probability)[i] for i, name in enumerate(FAULT_NAMES)}

    @faults.setter
    def faults(self, dict probabilities) -> None:
        for name, probability in probabilities.items():
            if name not in FAULT_NAMES:
                raise ValueError(f"{name!r} is no fault; there are {', '.join(FAULT_NAMES)}")
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: {probability} is no probability, which is 0 to 1")
        for name, probability in probabilities.items():
            (<double*>&self.injector.probability)[<int>FAULT_NAMES.index(name)] = probability

    @property
    def latencies(self) -> dict[str, int]:
        """Averages; assignment changes only those that it names."""
        return {name: (<int64_t*>&self.latency)[i] for i, name in enumerate(LATENCY_NAMES)}

    @latencies.setter
    def latencies(self, dict averages) -> None:
        for name, average in averages.items():
            if name not in LATENCY_NAMES:
                raise ValueError(f"{name!r} is no latency; there are {', '.join(LATENCY_NAMES)}")
            if average < 0:
                raise ValueError(f"{name}: {average} is below 0")
        for name, average in averages.items():
            (<int64_t*>&self.latency)[<int>LATENCY_NAMES.index(name)] = average

    @property
    def counts(self) -> dict[str, int]:
        """How often each fault occurred."""
        return {name: self.injector.counts[i] for i, name in enumerate(FAULT_NAMES)}

    @property
    def struck(self) -> list[dict]:
        """The last faults, oldest first: fault, time_ns, target (device or connection), offset, intended, bytes."""
        cdef FaultRecord* record
        found = []
        for at in range(self.injector.recorded - min(self.injector.recorded, FAULTS_KEPT), self.injector.recorded):
            record = &self.injector.records[at % FAULTS_KEPT]
            found.append(
                {
                    "fault": FAULT_NAMES[record.fault],
                    "time_ns": record.time_ns,
                    "target": record.target,
                    "offset": record.offset,
                    "intended": record.intended,
                    "bytes": record.bytes,
                }
            )
        return found

    @property
    def now_ns(self) -> int:
        return self.event_queue.now

    def make_device(self, uint64_t bytes, *, bint volatile_cache=True, uint64_t cache_bytes=16 << 20) -> int:
        """Returns the device's number. bytes: multiple of 4096; memory is allocated on write. cache_bytes: data beyond
        it is destaged, the oldest first."""
        if bytes % DISK_BLOCK_BYTES or not bytes:
            raise ValueError(f"a device is whole blocks of {DISK_BLOCK_BYTES} bytes, not {bytes}")
        cdef int device = self.add_disk(bytes, volatile_cache, cache_bytes)
        if device < 0:
            raise OSError(-device, os.strerror(-device))
        return device

    def corruptible(self, int device, uint64_t start, uint64_t end) -> None:
        """From now on lost writes, misdirected ones and rot occur only within this range."""
        self.existing(device)
        self.disks[device].corrupt_from = start
        self.disks[device].corrupt_to = end

    def peek(self, int device, uint64_t offset, uint64_t bytes) -> bytes:
        """What a read would return."""
        self.existing(device, offset, bytes)
        return self.disks[device].memory[offset:offset + bytes]

    def poke(self, int device, uint64_t offset, const unsigned char[::1] data) -> None:
        """Damages the device: taints the blocks; no power cut reverts it unless a write to them is in flight."""
        cdef uint64_t i
        self.existing(device, offset, len(data))
        for i in range(<uint64_t>len(data)):
            self.disks[device].memory[offset + i] = <char>data[i]
        disk_mark_damaged(&self.disks[device], offset, len(data))

    def is_tainted(self, int device, uint64_t offset, uint64_t bytes) -> bool:
        """Whether a lost write, a misdirected one or rot hit any of the blocks since it was last written whole."""
        self.existing(device, offset, bytes)
        return disk_tainted(&self.disks[device], offset, bytes)

    def unflushed(self, int device) -> int:
        """Blocks whose last write a power cut may revert."""
        self.existing(device)
        return self.disks[device].head - self.disks[device].tail

    def save(self, int device, path: str | os.PathLike[str]) -> None:
        """Saves what reads would return, as a sparse file."""
        cdef uint64_t block
        self.existing(device)
        with open(path, "wb") as file:
            file.truncate(self.disks[device].bytes)
            for block in range(self.disks[device].bytes // DISK_BLOCK_BYTES):
                if self.disks[device].touched[block // 64] >> (block % 64) & 1:
                    file.seek(block * DISK_BLOCK_BYTES)
                    file.write(self.disks[device].memory[block * DISK_BLOCK_BYTES:(block + 1) * DISK_BLOCK_BYTES])

    cdef existing(self, int device, uint64_t offset=0, uint64_t bytes=0):
        if not 0 <= device < DISKS_MAX or self.disks[device].bytes == 0:
            raise ValueError(f"there is no device {device}")
        if bytes > self.disks[device].bytes or offset > self.disks[device].bytes - bytes:
            raise ValueError(f"device {device} has {self.disks[device].bytes} bytes: not {bytes} from {offset} on")

    # ------------------------------------------------------------------ for the driver and the checks

    cdef int add_disk(self, uint64_t bytes, bint volatile_cache, uint64_t cache_bytes) noexcept nogil:
        cdef int device, error
        for device in range(DISKS_MAX):
            if self.disks[device].bytes == 0:
                error = disk_make(&self.disks[device], device, bytes, volatile_cache, cache_bytes)
                return error if error < 0 else device
        return -EMFILE

    cdef bint tainted(self, int device, uint64_t offset, uint64_t bytes) noexcept nogil:
        return disk_tainted(&self.disks[device], offset, bytes)

    cdef char* contents(self, int device) noexcept nogil:
        return self.disks[device].memory

    cdef uint32_t sum_of(self, int device, const char* block) noexcept nogil:
        return disk_sum(&self.disks[device], block - self.disks[device].memory)

    cdef int connect(self, int face_a, int face_b, int* a, int* b) noexcept nogil:
        return self.network.connect(face_a, face_b, a, b)

    cdef void crash_at(self, uint64_t boundary, bint power, int face=-1) noexcept nogil:
        self.armed_at = boundary
        self.armed_power = power
        self.armed_face = face

    cdef void cut(self, int device) noexcept nogil:
        self.power_cuts += 1
        self.note(<uint64_t>-2, <uint64_t>self.event_queue.now, <uint64_t>device)
        self.disks[device].stalled_until_ns = self.disks[device].full_until_ns = 0
        self.land(&self.disks[device], -1, True)

    cdef void crash(self, int face, bint power) noexcept nogil:
        self.power_cuts += power
        cdef int device, one
        cdef uint64_t devices = <uint64_t>-1 if face < 0 else self.faces[face].devices
        self.crashes += 1
        self.note(<uint64_t>-1, <uint64_t>self.event_queue.now, <uint64_t>face * 2 + power)
        for device in range(DISKS_MAX):
            if self.disks[device].bytes and devices >> device & 1:
                self.disks[device].stalled_until_ns = self.disks[device].full_until_ns = 0
                self.land(&self.disks[device], face, power)
        for one in range(FACES_MAX):
            if self.faces[one].io is not NULL and self.is_of(one, face):
                self.network.leave(one, power and draw(&self.crash_chance) & 1)
                self.forget(one)

    cdef void land(self, Disk* disk, int face, bint power) noexcept nogil:
        """Draws what survives of the writes in the cache or in flight."""
        cdef uint64_t position, blocks = 0
        cdef uint32_t i
        cdef Operation* operation
        cdef Cut cut
        if power:
            for i in range(self.event_queue.capacity):
                if self.under_way(&self.event_queue.events[i], disk, face):
                    blocks += self.event_queue.events[i].operation.bytes // DISK_BLOCK_BYTES
            disk_draw_cut(disk, &cut, &self.crash_chance, blocks)
            disk_cut(disk, &cut)
        position = disk.head
        for i in range(self.event_queue.capacity):
            if not self.under_way(&self.event_queue.events[i], disk, face):
                continue
            operation = self.event_queue.events[i].operation
            if self.event_queue.events[i].kind == EVENT_DISCARD:
                if draw(&self.crash_chance) & 1:
                    disk_discard(disk, <uint64_t>operation.buffer, operation.offset)
            elif power:
                disk_land(disk, &cut, &position, operation.buffer, operation.bytes, operation.offset)
            else:                                        # the kernel took all of it, its first blocks, or nothing
                blocks = below(&self.crash_chance, operation.bytes // DISK_BLOCK_BYTES * 3 + 1)
                blocks = min(blocks, operation.bytes // DISK_BLOCK_BYTES) if draw(&self.crash_chance) & 1 else 0
                if operation.offset + operation.bytes <= disk.bytes:
                    disk_put(disk, operation.buffer, blocks * DISK_BLOCK_BYTES, operation.offset)
        if power:
            disk_flushed(disk, disk.head)                # the current content is on the medium

    cdef bint under_way(self, const Event* event, const Disk* disk, int face) noexcept nogil:
        """Whether the event is a write or discard of `disk` in flight."""
        return (
            event.state == EVENT_DUE
            and (event.kind == EVENT_WRITE or event.kind == EVENT_DISCARD)
            and event.target == disk.number
            and self.is_of(event.face, face)
        )

    cdef bint is_of(self, int one, int face) noexcept nogil:
        """Whether both faces are of one node. face -1: any."""
        return face < 0 or self.faces[one].node == self.faces[face].node

    # ------------------------------------------------------------------ time

    cdef bint advance(self, int64_t until_ns) noexcept nogil:
        cdef uint32_t event = self.event_queue.first()
        cdef int64_t window_ns
        cdef uint64_t crashes = self.crashes
        cdef EventKind kind
        cdef int target
        if event == NO_EVENT or self.event_queue.events[event].due_ns > until_ns:
            self.event_queue.now = max(self.event_queue.now, until_ns)
            return False
        window_ns = self.event_queue.events[event].due_ns
        if draw(&self.prng) & 1:
            window_ns = min(until_ns, window_ns + <int64_t>below(&self.prng, self.latency.turn_ns + 1))
        while event != NO_EVENT and self.event_queue.events[event].due_ns <= window_ns:
            self.event_queue.now = self.event_queue.events[event].due_ns
            kind = self.event_queue.events[event].kind
            target = self.event_queue.events[event].target
            if kind <= EVENT_DISCARD and self.disks[target].stalled_until_ns > self.event_queue.now:
                self.postpone(event)
                event = self.event_queue.first()
                continue
            if kind == EVENT_WRITE or kind == EVENT_FLUSH or kind == EVENT_DISCARD:
                self.boundary()
                if self.crashes != crashes:
                    break
            self.event_queue.take(event)
            self.occur(event)
            event = self.event_queue.first()
        return True

    cdef void boundary(self) noexcept nogil:
        self.boundaries += 1
        if self.armed_at and self.boundaries >= self.armed_at:
            self.armed_at = 0
            self.crash(self.armed_face, self.armed_power)

    cdef void postpone(self, uint32_t event) noexcept nogil:
        """A stalled device does nothing now: the event occurs after the stall, in any order with others."""
        cdef Event before = self.event_queue.events[event]
        cdef int64_t due_ns = self.disks[before.target].stalled_until_ns
        due_ns += <int64_t>below(&self.injector.prng, SECOND_NS // 100)
        self.event_queue.take(event)
        self.event_queue.drop(event)
        event = self.event_queue.put(before.kind, before.face, before.target, before.operation, due_ns)
        self.event_queue.events[event].mark = before.mark
        self.event_queue.events[event].result = before.result

    cdef void occur(self, uint32_t event) noexcept nogil:
        """Applies an event that is due; the face that issued it gets the completion in its next poll."""
        cdef Event* it = &self.event_queue.events[event]
        cdef Operation* operation = it.operation
        cdef Disk* disk
        cdef EventKind kind = it.kind
        cdef Cut cut
        cdef uint64_t data = 0, who = <uint64_t>kind | <uint64_t>it.face << 8 | <uint64_t>it.target << 16
        cdef int64_t result = 0
        self.events += 1
        if operation is NULL:
            self.note(who, <uint64_t>self.event_queue.now, it.mark)
            self.network.occur(event)                    # may put events: `it` is invalid
            self.event_queue.drop(event)
            return
        if kind == EVENT_RECEIVE or kind == EVENT_SEND:
            result = it.result
        elif kind != EVENT_TIMER:
            disk = &self.disks[it.target]
            if kind == EVENT_READ:
                result = (
                    it.result
                    if it.mark
                    else disk_read(
                        disk, &self.injector, self.event_queue.now, operation.buffer, operation.bytes, operation.offset
                    )
                )
            elif kind == EVENT_WRITE:
                data = crc32c(operation.buffer, operation.bytes)
                self.altered += data != it.mark
                result = disk_write(
                    disk, &self.injector, self.event_queue.now, operation.buffer, operation.bytes, operation.offset
                )
            elif kind == EVENT_DISCARD:
                result = disk_discard(disk, <uint64_t>operation.buffer, operation.offset)
            elif strikes(&self.injector, FLUSH_ERROR):
                record_fault(&self.injector, FLUSH_ERROR, self.event_queue.now, it.target, 0, 0)
                result = -EIO
            elif strikes(&self.injector, DROPPING_FLUSH_ERROR):
                record_fault(&self.injector, DROPPING_FLUSH_ERROR, self.event_queue.now, it.target, 0, 0)
                disk_draw_cut(disk, &cut, &self.injector.prng, 0)
                disk_cut(disk, &cut)
                self.dropped += 1
                disk.dropped += 1
                result = -EIO
            elif strikes(&self.injector, FORGETTING_FLUSH_ERROR):
                record_fault(&self.injector, FORGETTING_FLUSH_ERROR, self.event_queue.now, it.target, 0, 0)
                disk_forget(disk, it.mark)
                result = -EIO
            else:
                disk_flushed(disk, it.mark)
            data ^= operation.offset
        operation.result = result
        self.note(who, <uint64_t>self.event_queue.now ^ <uint64_t>result << 32, data)
        self.make_ready(event)

    cdef void make_ready(self, uint32_t event) noexcept nogil:
        cdef Event* it = &self.event_queue.events[event]
        cdef Face* face = &self.faces[it.face]
        it.state = EVENT_READY
        it.next = NO_EVENT
        if face.first_ready == NO_EVENT:
            face.first_ready = event
        else:
            self.event_queue.events[face.last_ready].next = event
        face.last_ready = event
        self.ready += 1

    cdef int poll(self, int face) noexcept nogil:
        cdef Face* it = &self.faces[face]
        cdef uint32_t event
        cdef Operation* operation
        cdef EventKind kind
        cdef int target, found = 0
        while it.first_ready != NO_EVENT:                # the callbacks make nothing ready
            event = it.first_ready
            it.first_ready = self.event_queue.events[event].next
            self.ready -= 1
            operation = self.event_queue.events[event].operation
            kind = self.event_queue.events[event].kind
            target = self.event_queue.events[event].target
            self.event_queue.drop(event)
            if kind == EVENT_RECEIVE or kind == EVENT_SEND:
                self.network.handed_back(target)
            if operation is not NULL:                    # else it was cancelled
                operation.done(operation)
                found += 1
        return found if it.io is not NULL else CRASHED

    # ------------------------------------------------------------------ the faces'

    cdef int enter(self, void* io, int node) noexcept nogil:
        cdef int face
        for face in range(FACES_MAX):
            if self.faces[face].io is NULL:
                memset(&self.faces[face], 0, sizeof(Face))
                self.faces[face].io = io
                self.faces[face].first_ready = NO_EVENT
                self.faces[face].node = face if node < 0 else self.faces[node].node
                if node >= 0:
                    self.faces[face].clock_ns = self.faces[node].clock_ns
                    self.faces[face].drift_ppm = self.faces[node].drift_ppm
                    return face
                self.faces[face].clock_ns = (
                    <int64_t>below(&self.prng, <uint64_t>1000000 * SECOND_NS) - self.event_queue.now
                )
                self.faces[face].unix_ns = (
                    FIRST_UNIX_S + <int64_t>(stirred(self.seed) % (365 * 86400))
                ) * <int64_t>SECOND_NS + <int64_t>below(&self.prng, SECOND_NS)
                return face
        return -EMFILE

    cdef void leave(self, int face) noexcept nogil:
        self.network.leave(face, False)
        self.forget(face)

    cdef void forget(self, int face) noexcept nogil:
        """The face's operations never complete, and it issues no more."""
        cdef uint32_t event
        cdef EventState state
        for event in range(self.event_queue.capacity):
            state = self.event_queue.events[event].state
            if state == EVENT_FREE or self.event_queue.events[event].face != face:
                continue
            if state == EVENT_DUE:
                self.event_queue.take(event)
            else:
                self.ready -= 1
            self.event_queue.drop(event)
        self.faces[face].first_ready = NO_EVENT
        (<WorldIo>self.faces[face].io).alive = False
        self.faces[face].io = NULL

    cdef void ask(self, int face, EventKind kind, Operation* operation) noexcept nogil:
        cdef Disk* disk = &self.disks[operation.target]
        cdef uint32_t event
        cdef int64_t latency_ns
        invariant(
            0 <= operation.target < DISKS_MAX and disk.bytes != 0,
            b"what is asked of a device is asked of one that there is",
        )
        if kind != EVENT_READ:
            self.boundary()
            if self.faces[face].io is NULL:
                return
        latency_ns = self.latency_of(kind, operation)
        event = self.event_queue.put(kind, face, operation.target, operation, self.event_queue.now + latency_ns)
        if kind == EVENT_FLUSH:
            self.event_queue.events[event].mark = disk.head
        elif kind == EVENT_WRITE:
            self.event_queue.events[event].mark = crc32c(operation.buffer, operation.bytes)
        elif kind == EVENT_READ and draw(&self.prng) & 1:        # it reads the state at its start, or at its end
            self.event_queue.events[event].mark = 1
            self.event_queue.events[event].result = disk_read(
                disk, &self.injector, self.event_queue.now, operation.buffer, operation.bytes, operation.offset
            )

    cdef int64_t latency_of(self, EventKind kind, const Operation* operation) noexcept nogil:
        cdef int64_t average_ns = (
            self.latency.read_ns if kind == EVENT_READ
            else self.latency.write_ns if kind == EVENT_WRITE
            else self.latency.flush_ns if kind == EVENT_FLUSH
            else self.latency.discard_ns
        )
        cdef int64_t latency_ns = (
            average_ns // 4 + <int64_t>below(&self.prng, average_ns * 3 // 2 + 1) + operation.bytes // 4
        )
        if draw(&self.prng) % 32 == 0:                   # tail latency
            latency_ns *= 1 + below(&self.prng, 16)
        if strikes(&self.injector, SLOW):
            record_fault(
                &self.injector, SLOW, self.event_queue.now, operation.target, operation.offset, operation.bytes
            )
            latency_ns *= 2 + below(&self.injector.prng, 99)
        if strikes(&self.injector, HANG):
            record_fault(
                &self.injector, HANG, self.event_queue.now, operation.target, operation.offset, operation.bytes
            )
            latency_ns += <int64_t>(30 + below(&self.injector.prng, 571)) * SECOND_NS
        if kind == EVENT_WRITE and strikes(&self.injector, FULL_BELOW):
            record_fault(
                &self.injector, FULL_BELOW, self.event_queue.now, operation.target, operation.offset, operation.bytes
            )
            self.disks[operation.target].full_until_ns = \
                self.event_queue.now + <int64_t>(1 + below(&self.injector.prng, 20000)) * (SECOND_NS // 1000)
        if strikes(&self.injector, STALL):
            record_fault(
                &self.injector, STALL, self.event_queue.now, operation.target, operation.offset, operation.bytes
            )
            self.stall(&self.disks[operation.target])
        return 1 + latency_ns

    cdef void stall(self, Disk* disk) noexcept nogil:
        """For seconds, for minutes, or until the next crash."""
        cdef uint64_t how = below(&self.injector.prng, 4), seconds = FOR_EVER_S
        if how == 0:
            seconds = 1 + below(&self.injector.prng, 25)
        elif how < 3:
            seconds = 20 + below(&self.injector.prng, 100)
        disk.stalled_until_ns = max(disk.stalled_until_ns, self.event_queue.now + <int64_t>(seconds * SECOND_NS))

    cdef void after(self, int face, Operation* operation, int64_t delay_ns) noexcept nogil:
        delay_ns = max(delay_ns, 0)
        if strikes(&self.injector, TIMER_EARLY):
            record_fault(&self.injector, TIMER_EARLY, self.event_queue.now, 0, 0, 0)
            delay_ns -= below(&self.injector.prng, delay_ns // 16 + 1)
        if strikes(&self.injector, TIMER_LATE):
            record_fault(&self.injector, TIMER_LATE, self.event_queue.now, 0, 0, 0)
            delay_ns += below(&self.injector.prng, delay_ns // 4 + SECOND_NS // 100)
        delay_ns -= delay_ns // (MILLION + self.faces[face].drift_ppm) * self.faces[face].drift_ppm
        operation.kind = EVENT_TIMER
        operation.due_ns = self.event_queue.now + delay_ns
        operation.offset = self.event_queue.put(EVENT_TIMER, face, 0, operation, operation.due_ns)

    cdef bint cancel(self, Operation* operation) noexcept nogil:
        cdef uint32_t event = <uint32_t>operation.offset         # may belong to an earlier timer, or to none
        if operation.offset >= self.event_queue.capacity or self.event_queue.events[event].operation is not operation \
                or self.event_queue.events[event].kind != EVENT_TIMER:
            return False
        if self.event_queue.events[event].state == EVENT_READY:
            self.event_queue.events[event].operation = NULL  # poll skips it
            return True
        self.event_queue.take(event)
        self.event_queue.drop(event)
        return True

    cdef int64_t monotonic_ns(self, int face) noexcept nogil:
        cdef int64_t now_ns = self.event_queue.now
        return now_ns + now_ns // MILLION * self.faces[face].drift_ppm + self.faces[face].clock_ns

    cdef int64_t unix_ns(self, int face) noexcept nogil:
        if strikes(&self.injector, CLOCK_JUMP):
            record_fault(&self.injector, CLOCK_JUMP, self.event_queue.now, face, 0, 0)
            self.faces[self.faces[face].node].unix_ns += (
                <int64_t>below(&self.injector.prng, <uint64_t>20 * SECOND_NS) - <int64_t>10 * SECOND_NS
            )
        return self.event_queue.now + self.faces[self.faces[face].node].unix_ns

    cdef void note(self, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
        self.digest = stirred(stirred(stirred(self.digest + <uint64_t>0x9E3779B97F4A7C15 ^ a) ^ b) ^ c)


cdef class WorldIo(Io):
    """A node's face on `world`, from its start to its crash. beside: another face of the same node. Raises OSError if
    there are FACES_MAX already."""

    def __cinit__(self, World world, WorldIo beside=None):
        self.world = world
        self.number = world.enter(<void*>self, -1 if beside is None else beside.number)
        if self.number < 0:
            raise OSError(-self.number, os.strerror(-self.number))
        self.alive = True
        self.boot = 1 + world.power_cuts
        seed_prng(&self.prng, draw(&world.prng))
        self.now = world.monotonic_ns(self.number)

    def __dealloc__(self):
        if self.alive:
            self.world.leave(self.number)
        self.abandoned = 0                               # the world has forgotten them

    cdef void start(self, Operation* operation) noexcept nogil:
        if self.alive:
            self.world.ask(self.number, <EventKind>operation.kind, operation)

    cdef void receive(self, Operation* operation, int connection, void* into, uint32_t bytes) noexcept nogil:
        operation.kind = EVENT_RECEIVE
        operation.target = connection
        operation.buffer = <char*>into
        operation.bytes = bytes
        operation.moved = 0
        if self.alive:
            self.world.network.receive(connection, operation)

    cdef void send(self, Operation* operation, int connection, iovec* parts, int count) noexcept nogil:
        cdef int i
        operation.kind = EVENT_SEND
        operation.target = connection
        operation.message.msg_iov = parts
        operation.message.msg_iovlen = count
        operation.bytes = operation.moved = 0
        for i in range(count):
            operation.bytes += <uint32_t>parts[i].iov_len
        if self.alive:
            self.world.network.send(connection, operation)

    cdef void close(self, int connection) noexcept nogil:
        if self.alive:
            self.world.network.close(connection)

    cdef void after(self, Operation* operation, int64_t delay_ns) noexcept nogil:
        if self.alive:
            self.world.after(self.number, operation, delay_ns)

    cdef bint cancel(self, Operation* operation) noexcept nogil:
        return self.alive and self.world.cancel(operation)

    cdef int64_t now_ns(self) noexcept nogil:
        return self.now

    cdef int64_t waited_ns(self) noexcept nogil:
        return self.waited

    cdef int64_t monotonic_ns(self) noexcept nogil:
        return self.world.monotonic_ns(self.number)

    cdef int64_t unix_ns(self) noexcept nogil:
        return self.world.unix_ns(self.number)

    cdef uint64_t random(self) noexcept nogil:
        return draw(&self.prng)

    cdef int poll(self, int64_t wait_ns) noexcept nogil:
        cdef int64_t before = self.world.event_queue.now
        if not self.alive:
            return CRASHED
        if self.world.ready == 0:                        # else a face has work to do at this time
            self.world.advance(before + min(max(wait_ns, POLL_NS), LONGEST_WAIT_S * <int64_t>SECOND_NS))
            if not self.alive:
                return CRASHED
        self.now = self.world.monotonic_ns(self.number)  # before the callbacks
        self.waited += self.world.event_queue.now - before
        return self.world.poll(self.number)

    cdef int wake_fd(self) noexcept nogil:
        return -1                        # one thread drives the world: none sleeps

    cdef int add_device(self, int fd) noexcept nogil:
        """fd: the world's number of the device, which is its number here, too."""
        if not 0 <= fd < DISKS_MAX or self.world.disks[fd].bytes == 0:
            return -EBADF
        self.world.faces[self.number].devices = self.world.faces[self.number].devices | <uint64_t>1 << fd
        return fd

    cdef void remove_device(self, int device) noexcept nogil:
        self.world.faces[self.number].devices = self.world.faces[self.number].devices & ~(<uint64_t>1 << device)

    cdef int add_connection(self, int fd) noexcept nogil:
        """fd: the number of a connection's end, which World.connect gave this face."""
        if (
            not 0 <= fd < ENDS_MAX
            or not self.world.network.ends[fd].used
            or self.world.network.ends[fd].face != self.number
        ):
            return -EBADF
        return fd
