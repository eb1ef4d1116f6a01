# The simulated world for Python, for tests. The engine does not use it.
#
#     world = World(seed)
#     view = WorldView(world)                       a face; its operations are Asks, which its poll() completes
#     second = WorldView(world, view)               another face of the same node
#     ask = view.write(device, 0, data)             view.settle(); ask.over, ask.result
#     a, b = connect(view, other)                   numbers of the two ends
#     view.churn(device, 1000000, 32)               a load without Python, to measure the world's speed

import os

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy
from posix.uio cimport iovec

from iomesh.engine.simulation.prng cimport Prng, below, draw, seed_prng
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.simulation.world cimport World, WorldIo

cdef enum:
    LONG_S = 100000
    SECOND_NS = 1000000000

cdef struct Load:                    # a churn's parameters and progress
    Operation* operations
    void* io
    char* buffers
    Prng prng
    int device
    uint64_t blocks
    uint64_t left
    uint64_t under_way


cdef class Ask:
    """One operation. over: it completed, with this result, at this time (ns) of the world."""

    cdef Operation operation
    cdef iovec part
    cdef char* buffer
    cdef uint64_t bytes
    cdef WorldIo io
    cdef readonly bint over
    cdef bint abandoned
    cdef readonly int64_t done_ns

    def __cinit__(self, WorldIo io, uint64_t bytes):
        self.io = io
        self.bytes = bytes
        self.buffer = <char*>calloc(1, max(bytes, 1))
        if self.buffer is NULL:
            raise MemoryError
        self.operation.done = ask_over
        self.operation.owner = <void*>self

    def __dealloc__(self):
        release_buffer(self.io, self.buffer)

    @property
    def result(self) -> int:
        if not self.over:
            raise ValueError("it is under way")
        return self.operation.result

    @property
    def data(self) -> bytes:
        """The data read or received."""
        return self.buffer[:max(self.result, 0)]


cdef void ask_over(Operation* operation) noexcept nogil:
    (<Ask>operation.owner).done_ns = (<Ask>operation.owner).io.world.event_queue.now
    (<Ask>operation.owner).over = True


cdef class WorldView:
    cdef readonly World world
    cdef WorldIo io
    cdef list asks                   # in flight: their addresses must not change
    cdef int stalls[64]

    def __init__(self, World world, WorldView beside=None) -> None:
        self.world = world
        self.io = WorldIo(world, None if beside is None else beside.io)
        self.asks = []

    @property
    def number(self) -> int:
        return self.io.number

    @property
    def alive(self) -> bool:
        return self.io.alive

    @property
    def now_ns(self) -> int:
        return self.io.now_ns()

    @property
    def unix_ns(self) -> int:
        return self.io.unix_ns()

    @property
    def waited_ns(self) -> int:
        return self.io.waited_ns()

    def random(self) -> int:
        return self.io.random()

    def add_device(self, int device) -> int:
        return self.io.add_device(device)

    def read(self, int device, uint64_t offset, uint32_t bytes) -> Ask:
        cdef Ask ask = self.asking(bytes)
        self.io.read(&ask.operation, device, ask.buffer, bytes, offset)
        return ask

    def write(self, int device, uint64_t offset, bytes data) -> Ask:
        cdef Ask ask = self.asking(len(data))
        memcpy(ask.buffer, <const char*>data, len(data))
        self.io.write(&ask.operation, device, ask.buffer, <uint32_t>ask.bytes, offset)
        return ask

    def flush(self, int device) -> Ask:
        cdef Ask ask = self.asking(0)
        self.io.flush(&ask.operation, device)
        return ask

    def discard(self, int device, uint64_t offset, uint64_t bytes) -> Ask:
        cdef Ask ask = self.asking(0)
        self.io.discard(&ask.operation, device, bytes, offset)
        return ask

    def after(self, int64_t delay_ns) -> Ask:
        cdef Ask ask = self.asking(0)
        self.io.after(&ask.operation, delay_ns)
        return ask

    def cancel(self, Ask ask) -> bool:
        return self.io.cancel(&ask.operation)

    def receive(self, int connection, uint32_t bytes) -> Ask:
        cdef Ask ask = self.asking(bytes)
        self.io.receive(&ask.operation, connection, ask.buffer, bytes)
        return ask

    def send(self, int connection, bytes data) -> Ask:
        cdef Ask ask = self.asking(len(data))
        memcpy(ask.buffer, <const char*>data, len(data))
        ask.part.iov_base = ask.buffer
        ask.part.iov_len = ask.bytes
        self.io.send(&ask.operation, connection, &ask.part, 1)
        return ask

    def close(self, int connection) -> None:
        self.io.close(connection)

    def poll(self, int64_t wait_ns=<int64_t>LONG_S * SECOND_NS) -> int:
        cdef int found = self.io.poll(wait_ns)
        self.asks = [ask for ask in self.asks if self.is_in_use(ask)]
        return found

    cdef bint is_in_use(self, Ask ask):
        """It is in flight, or a late answer may use its buffer."""
        return not (ask.over or ask.abandoned) or self.io.holds(ask.buffer, max(ask.bytes, 1))

    def limit(self, int64_t request_timeout_ns) -> None:
        """Sets the time limit of device requests; counts in `stalled` how often a device was reported."""
        cdef int device
        self.io.request_timeout_ns = request_timeout_ns
        for device in range(64):
            self.io.watch(device, &self.stalls[device], device_stalled)

    def abandon(self, Ask ask) -> bool:
        cdef bint done = self.io.abandon(&ask.operation)
        ask.abandoned = ask.abandoned or done
        return done

    def holds(self, Ask ask) -> bool:
        return self.io.holds(ask.buffer, ask.bytes)

    def stalled(self, int device) -> int:
        return self.stalls[device]

    @property
    def timeouts(self) -> int:
        return self.io.timeouts

    @property
    def abandoned(self) -> int:
        return self.io.abandoned

    def settle(self) -> None:
        """Polls until no operation of this view is in flight."""
        while self.asks and self.io.alive:
            if self.poll() == 0 and self.world.event_queue.count == 0 and self.world.ready == 0:
                raise RuntimeError(f"{len(self.asks)} operations are under way and nothing is to happen any more")

    def churn(self, int device, uint64_t operations, uint32_t depth, uint64_t blocks) -> int:
        """Reads and writes 4 KiB at random in the first `blocks`, one flush in 64; returns how many completed."""
        cdef Load load
        cdef uint32_t i
        load.operations = <Operation*>calloc(depth, sizeof(Operation))
        load.buffers = <char*>calloc(depth, 4096)
        load.io = <void*>self.io
        load.device = device
        load.blocks = blocks
        load.left = operations
        load.under_way = 0
        seed_prng(&load.prng, self.world.seed)
        if load.operations is NULL or load.buffers is NULL:
            release(load.operations)
            release(load.buffers)
            raise MemoryError
        with nogil:
            for i in range(depth):
                load.operations[i].owner = &load
                load.operations[i].done = churn_on
                load.under_way += 1
                churn_on(&load.operations[i])
            while load.under_way and self.io.alive:
                self.io.poll(<int64_t>LONG_S * SECOND_NS)
        if not self.io.alive:            # the world has dropped operations in flight
            load.left += load.under_way
        release(load.operations)
        release(load.buffers)
        return operations - load.left

    cdef Ask asking(self, uint64_t bytes):
        ask = Ask(self.io, bytes)
        self.asks.append(ask)
        return ask


cdef void device_stalled(void* stalls) noexcept nogil:
    (<int*>stalls)[0] += 1


cdef void churn_on(Operation* operation) noexcept nogil:
    cdef Load* load = <Load*>operation.owner
    cdef char* buffer = load.buffers + (operation - load.operations) * 4096
    cdef uint64_t choice, offset
    if load.left == 0:
        load.under_way -= 1
        return
    load.left -= 1
    choice = draw(&load.prng) % 64
    offset = below(&load.prng, load.blocks) * 4096
    if choice == 0:
        (<WorldIo>load.io).flush(operation, load.device)
    elif choice < 32:
        (<WorldIo>load.io).read(operation, load.device, buffer, 4096, offset)
    else:
        (<uint64_t*>buffer)[0] = load.left
        (<WorldIo>load.io).write(operation, load.device, buffer, 4096, offset)


def crash(World world, *, WorldView view=None, bint power=True) -> None:
    """Cuts the power of all faces or of one; without `power`: only kills the processes."""
    world.crash(-1 if view is None else view.io.number, power)


def crash_at(World world, uint64_t boundary, *, bint power=True) -> None:
    world.crash_at(boundary, power)


def connect(WorldView one, WorldView other) -> tuple[int, int]:
    cdef int a, b
    error = one.world.connect(one.io.number, other.io.number, &a, &b)
    if error:
        raise OSError(-error, os.strerror(-error))
    return a, b


def cut(World world, int connection) -> None:
    """Resets both ends."""
    world.network.cut(connection)


def half_open(World world, int connection) -> None:
    """Data that this end sends from now on never arrives."""
    world.network.half_open(connection)
