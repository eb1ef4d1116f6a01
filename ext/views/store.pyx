# A store by itself, for tests: on a real file through a real ring, with a recording Io in between. The engine does not
# use it.
#
#     view = StoreView(path)                        a device, its ring and its reactor
#     view.format(cluster=..., device=...)          view.open() raises StoreRefused
#     view.create(volume, segment, blocks)          each runs as a task to its end
#     view.compact(volume, segment, live)           view.retire() releases the replaced replicas
#     view.together([("create", volume, 1, 256), ("seal", volume, 2, 100, 90)])   concurrent: they share journal blocks
#     view.history                                  every ("write", offset, data) and ("flush",) of the store, in order
#     view.fail_writes(after=3)                     view.break_range(offset, length): reads and writes there give EIO

import errno
import os

from collections.abc import Iterable, Sequence

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.store.bitmaps cimport Bitmaps, place_of
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport SEGMENT_OPEN, SLAB_BYTES_MAX, Superblock
from iomesh.engine.base.reactor cimport ADAPTIVE, Reactor
from iomesh.engine.store.store cimport Replica, Store, format_store, plan_store, replica_offset
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.base.uring cimport Uring

cdef extern from "<errno.h>" nogil:
    int ECANCELED


cdef enum CallKind:
    FORMAT, OPEN, CREATE, SEAL, REMOVE, COMPACT, RETIRE, READ, FENCE, NUMBER

cdef enum:
    TOGETHER_MAX = 256

cdef struct PlannedWrite:            # a write that was issued; bytes 0: a flush
    PlannedWrite* next
    uint64_t offset
    uint32_t bytes
    char data[1]

cdef struct Order:                   # a task's parameters and result
    CallKind kind
    void* view
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks
    uint32_t footer_block
    uint64_t epoch
    uint16_t stream
    bint urgent
    bint any_cluster
    uint8_t cluster[16]
    Superblock* superblock
    Replica* replica
    uint64_t live[256]
    char* buffer                     # of blocks that are read one by one
    int error
    Operation ended
    uint32_t* under_way


cdef class Witness(Io):
    """Forwards operations, records writes and flushes, and fails those that a test wants to fail."""

    cdef Uring inner
    cdef PlannedWrite* first
    cdef PlannedWrite* last
    cdef int64_t writes_left         # before all fail; -1: none fails
    cdef uint64_t broken_from, broken_to
    cdef Operation* failed           # the next poll completes them
    cdef bint recording

    def __cinit__(self):
        self.inner = Uring()
        self.boot = self.inner.boot
        self.writes_left = -1
        self.recording = True

    def __dealloc__(self):
        self.forget()

    cdef void forget(self) noexcept nogil:
        cdef PlannedWrite* write
        while self.first is not NULL:
            write = self.first
            self.first = write.next
            release(write)
        self.last = NULL

    cdef void remember(self, uint64_t offset, const void* data, uint32_t bytes) noexcept nogil:
        cdef PlannedWrite* write
        if not self.recording:
            return
        write = <PlannedWrite*>calloc(1, sizeof(PlannedWrite) + bytes)
        invariant(write is not NULL, b"there is memory to remember a write")
        write.offset = offset
        write.bytes = bytes
        if bytes:
            memcpy(write.data, data, bytes)
        if self.last is NULL:
            self.first = write
        else:
            self.last.next = write
        self.last = write

    cdef bint breaks(self, Operation* operation, uint64_t offset, uint32_t bytes) noexcept nogil:
        if offset >= self.broken_to or offset + bytes <= self.broken_from:
            return False
        self.fail(operation)
        return True

    cdef void fail(self, Operation* operation) noexcept nogil:
        operation.result = -EIO
        operation.next = self.failed
        self.failed = operation

    cdef void read(self, Operation* operation, int device, void* into, uint32_t bytes, uint64_t offset) noexcept nogil:
        if not self.breaks(operation, offset, bytes):
            self.inner.read(operation, device, into, bytes, offset)

    cdef void write(
        self, Operation* operation, int device, const void* data, uint32_t bytes, uint64_t offset
    ) noexcept nogil:
        if self.writes_left == 0:
            self.fail(operation)
        elif not self.breaks(operation, offset, bytes):
            self.writes_left -= self.writes_left > 0
            self.remember(offset, data, bytes)
            self.inner.write(operation, device, data, bytes, offset)

    cdef void flush(self, Operation* operation, int device) noexcept nogil:
        if self.writes_left == 0:
            self.fail(operation)
        else:
            self.remember(0, NULL, 0)
            self.inner.flush(operation, device)

    cdef int poll(self, int64_t wait_ns) noexcept nogil:
        cdef Operation* operation
        cdef int found = 0
        while self.failed is not NULL:
            operation = self.failed
            self.failed = operation.next
            operation.next = NULL
            operation.done(operation)
            found += 1
        return found + self.inner.poll(0 if found else wait_ns)

    cdef int64_t now_ns(self) noexcept nogil:
        return self.inner.now_ns()

    cdef int wake_fd(self) noexcept nogil:
        return self.inner.wake_fd()

    cdef int begin(self) noexcept nogil:
        return self.inner.begin()

    cdef int add_device(self, int fd) noexcept nogil:
        return self.inner.add_device(fd)


class StoreRefused(Exception):
    """A device cannot be formatted or opened."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{errno.errorcode[number]}: {reason}")
        self.errno = number
        self.reason = reason


cdef class StoreView:
    """volatile_cache: whether the store flushes. device_bytes: the device's length for the store; None: the file's."""

    cdef Witness io
    cdef Reactor reactor
    cdef Store store
    cdef Bitmaps bitmaps
    cdef Replica* replaced[TOGETHER_MAX]     # and not yet retired
    cdef int replaced_count
    cdef int64_t steps_left          # before the throttle aborts; -1: never
    cdef int fd
    cdef uint64_t device_bytes

    def __init__(self, path: str | os.PathLike[str], *, volatile_cache: bool = True, device_bytes: int | None = None,
                 bitmaps: int = 16) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self.device_bytes = os.lseek(self.fd, 0, os.SEEK_END) if device_bytes is None else device_bytes
        self.io = Witness()
        self.reactor = Reactor(0, self.io, ADAPTIVE, 50000)
        self.check(self.io.begin(), "the ring does not begin")
        device = self.io.add_device(self.fd)
        self.check(device, "the ring takes no device")
        self.steps_left = -1
        self.bitmaps = Bitmaps(bitmaps, self.io)
        self.store = Store(self.reactor, device, self.device_bytes, volatile_cache)

    def close(self) -> None:
        """Ends the store as a crash would."""
        if self.fd >= 0:
            self.store = None
            self.reactor = None
            self.io = None
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> StoreView:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the device

    def format(
        self,
        *,
        cluster: bytes = b"c" * 16,
        device: bytes = b"d" * 16,
        tier: int = 1,
        label: str = "",
        created_ns: int = 0,
        slab_bytes: int = SLAB_BYTES_MAX,
    ) -> None:
        """slab_bytes: by default that of a large device; 0: chosen for this device."""
        cdef Order order
        cdef Superblock superblock
        cdef bytes name = label.encode()
        memset(&order, 0, sizeof(order))
        memset(&superblock, 0, sizeof(superblock))
        self.check(plan_store(&superblock, self.device_bytes), "the device is too small")
        memcpy(superblock.cluster, sixteen(cluster), 16)
        memcpy(superblock.device, sixteen(device), 16)
        memcpy(superblock.label, <const char*>name, len(name))
        if slab_bytes:
            superblock.slab_bytes = slab_bytes
            superblock.slabs = (superblock.device_bytes - superblock.slabs_offset) // slab_bytes
        superblock.tier = tier
        superblock.created_ns = created_ns
        order.kind = FORMAT
        order.superblock = &superblock
        self.run(&order, 1)
        self.check(order.error, "it cannot be formatted")

    def open(self, cluster: bytes | None = None) -> None:
        cdef Order order
        memset(&order, 0, sizeof(order))
        order.kind = OPEN
        order.any_cluster = cluster is None
        if cluster is not None:
            memcpy(order.cluster, sixteen(cluster), 16)
        self.run(&order, 1)
        self.check(order.error, self.store.reason.decode() if order.error else "")

    # ------------------------------------------------------------------ replicas

    def create(self, volume: bytes, segment: int, blocks: int = 256, *, urgent: bool = False, epoch: int = 1) -> int:
        return self.together([("create", volume, segment, blocks, urgent, epoch)])[0]

    def fence(self, volume: bytes, epoch: int) -> int:
        return self.together([("fence", volume, 0, epoch)])[0]

    def fenced(self, volume: bytes) -> int:
        return self.store.directory.fenced(sixteen(volume))

    def set_number(self, number: int) -> int:
        return self.together([("number", bytes(16), number)])[0]

    def seal(self, volume: bytes, segment: int, blocks: int, footer_block: int = 0) -> int:
        return self.together([("seal", volume, segment, blocks, footer_block)])[0]

    def remove(self, volume: bytes, segment: int) -> int:
        return self.together([("remove", volume, segment)])[0]

    def compact(
        self, volume: bytes, segment: int, live: Iterable[int], *, retire: bool = True, give_up_after: int | None = None
    ) -> int:
        """give_up_after: the throttle aborts after this many steps."""
        self.steps_left = -1 if give_up_after is None else give_up_after
        error = self.together([("compact", volume, segment, live)])[0]
        if retire:
            self.retire()
        return error

    def read(self, volume: bytes, segments: Sequence[int], block: int, count: int) -> list[list[bytes | int]]:
        """Reads `count` blocks of each segment as a volume does, all segments at once; an errno in place of a block
        that cannot be read."""
        cdef Order* all = <Order*>calloc(len(segments), sizeof(Order))
        cdef char* memory = <char*>allocate_aligned(<size_t>len(segments) * <size_t>count * 4096)
        try:
            for i, segment in enumerate(segments):
                all[i].kind = READ
                all[i].replica = self.store.find(sixteen(volume), segment)
                if all[i].replica is NULL:
                    raise KeyError(segment)
                all[i].blocks = block
                all[i].footer_block = count
                all[i].buffer = memory + <size_t>i * <size_t>count * 4096
            self.run(all, len(segments))
            data = memory[:<size_t>len(segments) * <size_t>count * 4096]
            found = []
            for i in range(len(segments)):
                one = [data[(i * count + k) * 4096:(i * count + k + 1) * 4096] for k in range(count)]
                found.append(
                    [
                        -int.from_bytes(it[8:16], "little", signed=True) if it.startswith(b"ERRNO\0\0\0") else it
                        for it in one
                    ]
                )
            return found
        finally:
            release(all)
            release(memory)

    def run_of(self, volume: bytes, segment: int, block: int) -> int:
        """The number of blocks from this one on that place_of() returns as contiguous; its bitmap must be cached."""
        cdef Operation unused
        cdef uint32_t contiguous
        cdef Replica* replica = self.store.find(sixteen(volume), segment)
        memset(&unused, 0, sizeof(unused))
        offset = place_of(self.bitmaps, replica, block, &contiguous, &unused)
        if offset < 0:
            raise KeyError(block)
        return contiguous

    @property
    def bitmap_cache(self) -> dict[str, int]:
        return {
            "frames": self.bitmaps.frames,
            "hits": self.bitmaps.hits,
            "misses": self.bitmaps.misses,
            "errors": self.bitmaps.errors,
        }

    def retire(self) -> None:
        """Releases all replaced replicas."""
        cdef Order* orders = <Order*>calloc(self.replaced_count + 1, sizeof(Order))
        for i in range(self.replaced_count):
            orders[i].kind = RETIRE
            orders[i].replica = self.replaced[i]
        self.run(orders, self.replaced_count)
        self.replaced_count = 0
        release(orders)

    def together(self, orders: list[tuple]) -> list[int]:
        """Runs all as tasks that start in the same turn; returns each one's error, a positive errno or 0."""
        cdef Order* all = <Order*>calloc(len(orders), sizeof(Order))
        cdef Order* order
        try:
            for i, wanted in enumerate(orders):
                order = &all[i]
                memcpy(order.volume, sixteen(wanted[1]), 16)
                order.segment = wanted[2]
                if wanted[0] == "create":
                    order.kind = CREATE
                    order.blocks = wanted[3]
                    order.urgent = len(wanted) > 4 and wanted[4]
                    order.epoch = wanted[5] if len(wanted) > 5 else 1
                    continue
                if wanted[0] == "fence":
                    order.kind = FENCE
                    order.epoch = wanted[3]
                    continue
                if wanted[0] == "number":
                    order.kind = NUMBER
                    continue
                order.kind = {"seal": SEAL, "remove": REMOVE, "compact": COMPACT}[wanted[0]]
                order.replica = self.store.find(order.volume, order.segment)
                if order.replica is NULL:
                    raise KeyError(wanted)
                if order.kind == SEAL:
                    order.blocks = wanted[3]
                    order.footer_block = wanted[4]
                if order.kind == COMPACT:
                    for block in wanted[3]:
                        order.live[block // 64] |= <uint64_t>1 << (block % 64)
            self.run(all, len(orders))
            return [-all[i].error for i in range(len(orders))]
        finally:
            release(all)

    def replicas(self, volume: bytes | None = None) -> dict[tuple[bytes, int], tuple]:
        """(volume, segment) -> (state, blocks, footer_block, extents); state: open, sealed, compacted"""
        cdef const uint8_t* wanted = NULL if volume is None else sixteen(volume)
        cdef uint32_t count = self.store.list(wanted, NULL, 0)
        cdef Replica** found = <Replica**>calloc(count + 1, sizeof(Replica*))
        try:
            self.store.list(wanted, found, count)
            return {
                (found[i].volume[:16], found[i].segment): (
                    "open" if found[i].state == SEGMENT_OPEN else "compacted" if found[i].live else "sealed",
                    found[i].blocks,
                    found[i].footer_block,
                    [(found[i].extents[e].first, found[i].extents[e].count) for e in range(found[i].extent_count)],
                )
                for i in range(count)
            }
        finally:
            release(found)

    def place(self, volume: bytes, segment: int, block: int) -> tuple[int, int] | None:
        """The device offset of the n-th block of its slabs, and how many from it on are contiguous; None: no such
        replica."""
        cdef uint32_t contiguous
        cdef Replica* replica = self.store.find(sixteen(volume), segment)
        cdef uint64_t offset
        if replica is NULL:
            return None
        offset = replica_offset(replica, block, &contiguous)
        return offset, contiguous

    def has_room(self, blocks: int, urgent: bool = False) -> bool:
        return self.store.has_room(blocks, urgent)

    @property
    def state(self) -> dict[str, int]:
        return {
            "slabs": self.store.slabs.total,
            "free": self.store.slabs.free,
            "reserve": self.store.reserve,
            "replicas": self.store.replicas,
            "failed": self.store.failed,
            "journal_half": self.store.journal.half,
            "journal_next": self.store.journal.next_index,
            "journal_generation": self.store.journal.generation,
            "journal_blocks": self.store.journal.area_blocks,
        }

    @property
    def repaired(self) -> list[str]:
        return [self.store.repairs.lines[i].decode() for i in range(min(self.store.repairs.count, 16))]

    # ------------------------------------------------------------------ the recording Io

    @property
    def history(self) -> list[tuple]:
        cdef PlannedWrite* write = self.io.first
        events = []
        while write is not NULL:
            events.append(("write", write.offset, write.data[:write.bytes]) if write.bytes else ("flush",))
            write = write.next
        return events

    def forget_history(self) -> None:
        self.io.forget()

    def fail_writes(self, after: int) -> None:
        """After this many more, all writes and flushes fail."""
        self.io.writes_left = after

    def break_range(self, offset: int, length: int) -> None:
        """Reads and writes that touch the range give EIO."""
        self.io.broken_from = offset
        self.io.broken_to = offset + length

    # ------------------------------------------------------------------

    cdef void run(self, Order* orders, int count):
        cdef int i
        cdef uint32_t under_way = count
        with nogil:
            for i in range(count):
                orders[i].under_way = &under_way
                orders[i].view = <void*>self
                orders[i].ended.done = ended
                orders[i].ended.owner = &orders[i]
                start(carry_out, &orders[i], &orders[i].ended)
            while under_way:
                self.io.poll(1000000000)
                self.reactor.turn()

    cdef int carry_out_read(self, Order* order) noexcept nogil:
        cdef uint32_t i = 0, k, contiguous
        cdef int64_t offset
        cdef int64_t* told
        cdef Operation operation
        while i < order.footer_block:
            offset = self.bitmaps.find(order.replica, order.blocks + i, &contiguous)
            if offset < 0:
                contiguous = 1
            contiguous = min(contiguous, order.footer_block - i)
            operation.result = offset
            if offset >= 0:
                waited(&operation)
                self.io.read(&operation, self.store.device, order.buffer + i * 4096, contiguous * 4096, offset)
                wait(&operation)
            if operation.result < 0:
                for k in range(i, i + contiguous):
                    told = <int64_t*>(order.buffer + k * 4096)
                    memcpy(told, b"ERRNO\0\0\0", 8)
                    told[1] = operation.result
            i += contiguous
        return 0

    cdef int carry_out_compact(self, Order* order) noexcept nogil:
        cdef Throttle throttle
        cdef int error = 0
        throttle.step = step
        throttle.owner = &self.steps_left
        if self.store.compact(order.replica, order.live, &throttle if self.steps_left >= 0 else NULL, &error) is NULL:
            return error
        invariant(self.replaced_count < TOGETHER_MAX, b"what was replaced is retired now and then")
        self.replaced[self.replaced_count] = order.replica
        self.replaced_count += 1
        return 0

    cdef check(self, int error, str reason):
        if error < 0:
            raise StoreRefused(-error, reason)


cdef int64_t carry_out(void* argument) noexcept nogil:
    cdef int result
    cdef Order* order = <Order*>argument
    if order.kind == FORMAT:
        return format_store((<StoreView>order.view).reactor, (<StoreView>order.view).store.device, order.superblock)
    if order.kind == OPEN:
        return (<StoreView>order.view).store.open(NULL if order.any_cluster else order.cluster)
    if order.kind == CREATE:
        order.replica = (<StoreView>order.view).store.create(
            order.volume, order.segment, order.epoch, order.stream, 0, order.blocks, order.urgent, &order.error
        )
        return 0 if order.replica is not NULL else order.error
    if order.kind == FENCE:
        return (<StoreView>order.view).store.fence(order.volume, order.epoch)
    if order.kind == NUMBER:
        return (<StoreView>order.view).store.set_number(order.segment)
    if order.kind == SEAL:
        return (<StoreView>order.view).store.seal(order.replica, order.blocks, order.footer_block)
    if order.kind == COMPACT:
        return (<StoreView>order.view).carry_out_compact(order)
    if order.kind == READ:
        return (<StoreView>order.view).carry_out_read(order)
    if order.kind == RETIRE:
        (<StoreView>order.view).store.retire(order.replica)
        return 0
    result = (<StoreView>order.view).store.remove(order.replica)
    if result == 0:
        release(order.replica)
    return result


cdef int step(void* owner, Io _io, uint32_t bytes) noexcept nogil:
    cdef int64_t* steps_left = <int64_t*>owner
    steps_left[0] -= 1
    return -ECANCELED if steps_left[0] == -1 else 0


cdef void ended(Operation* operation) noexcept nogil:
    cdef Order* order = <Order*>operation.owner
    order.error = <int>operation.result
    order.under_way[0] -= 1


cdef uint8_t* sixteen(bytes name) except NULL:
    if len(name) != 16:
        raise ValueError(f"an identifier has 16 bytes, not {len(name)}")
    return <uint8_t*><char*>name
