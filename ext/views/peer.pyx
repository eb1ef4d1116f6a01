# Nodes that speak the peer protocol, for tests: in a simulated world, or two over real rings and a real socket. The
# engine does not use it.
#
#     nodes = PeerWorld(World(seed))
#     holder = HolderNode(nodes, {device: 7})            a node with devices; their numbers in the cluster
#     owner = OwnerNode(nodes)                           a node with a client
#     served = owner.attach(holder)                      a connection; served.end when it has ended
#     call = owner.write(7, volume, 1, 0, record, epoch=1)
#     nodes.settle()                                     call.over, call.result, call.data
#     holder.crash(); holder.restart()
#
# A test that sends frames of its own has a WorldView: nodes.add(view); end, served = holder.accept(view.number)
#
#     rings = RingPair(path, 7)                          an owner and a holder with a device in a file
#     served = rings.attach(ours, theirs)                descriptors of a connected pair of sockets
#     rings.settle(call, ...)                            until these calls are done

import os
import time

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport ADAPTIVE, Message, Reactor
from iomesh.engine.base.task cimport start
from iomesh.engine.base.uring cimport Uring
from iomesh.engine.format.layout cimport SEGMENT_OPEN, Superblock
from iomesh.engine.format.peer cimport PEER_COMPLETES, PEER_FOOTER, DeviceState, ListedReplica
from iomesh.engine.replicas.peer cimport PEER_ATTACHED, PEER_DETACHED, Peer, PeerCall
from iomesh.engine.replicas.peer import PEER_ENDS
from iomesh.engine.replicas.pull cimport Sources
from iomesh.engine.replicas.served_store cimport ServedStore, ServedStores
from iomesh.engine.replicas.server cimport Server
from iomesh.engine.replicas.server import SERVER_ENDS
from iomesh.engine.simulation.world cimport World, WorldIo
from iomesh.engine.store.bitmaps cimport Bitmaps
from iomesh.engine.store.store cimport Replica, Store, format_store, plan_store, replica_offset

cdef enum:
    SEATS_MAX = 64
    LONG_S = 100000
    SECOND_NS = 1000000000
    ROUNDS_MAX = 50000000            # of settle(): more means that they never come to rest

cdef struct Seat:                    # of a reactor that is turned
    void* io                         # WorldIo
    void* reactor


cdef class PeerWorld:
    """Turns the reactors of all nodes, one after the other, in virtual time."""

    cdef readonly World world
    cdef Seat seats[SEATS_MAX]
    cdef int count
    cdef list kept                   # what the seats refer to
    cdef list views                  # WorldViews

    def __init__(self, World world) -> None:
        self.world = world
        self.kept = []
        self.views = []

    def add(self, view: object) -> None:
        self.views.append(view)

    def run(self, int rounds) -> None:
        """Some turns of every reactor."""
        for _ in range(rounds):
            if not self.turn():
                return

    def settle(self) -> None:
        """Until nothing is to happen any more."""
        cdef int64_t rounds = 0
        cdef bint more = True
        while more and rounds < ROUNDS_MAX:
            if self.views:
                more = self.turn()
                rounds += 1
            else:
                with nogil:
                    while more and rounds < ROUNDS_MAX:
                        more = self.turn_seats() or self.wait()
                        rounds += 1
        if more:
            raise RuntimeError("the nodes never come to rest")

    def turn(self) -> bool:
        """False: nothing is to happen any more."""
        cdef int found = self.turn_seats()
        for view in self.views:
            found += max(view.poll(0), 0)
        return found > 0 or self.wait()

    cdef int turn_seats(self) noexcept nogil:
        cdef int i, found = 0
        for i in range(self.count):
            if (<WorldIo>self.seats[i].io).alive:
                found += max((<WorldIo>self.seats[i].io).poll(0), 0)
                found += (<Reactor>self.seats[i].reactor).turn()
        return found

    cdef bint wait(self) noexcept nogil:
        """Let time pass until something happens."""
        if self.world.ready == 0 and self.world.event_queue.count == 0:
            return False
        if self.world.ready == 0:
            self.world.advance(self.world.event_queue.now + LONG_S * <int64_t>SECOND_NS)
        return True

    cdef sit(self, WorldIo io, Reactor reactor):
        cdef int i = 0
        while i < self.count and (<WorldIo>self.seats[i].io).alive:
            i += 1
        if i == SEATS_MAX:
            raise ValueError(f"a world has {SEATS_MAX} reactors at most")
        self.seats[i].io = <void*>io
        self.seats[i].reactor = <void*>reactor
        self.count = max(self.count, i + 1)
        self.kept.append((io, reactor))


# ---------------------------------------------------------------------- the node with devices

cdef class Served:
    """A client's connection, as the holder sees it."""

    cdef Server server
    cdef bint over

    @property
    def requests(self) -> int:
        return self.server.requests

    @property
    def end(self) -> str | None:
        """Why it ended; None: it has not."""
        return SERVER_ENDS[self.server.end] if self.over else None

    @property
    def words(self) -> str | None:
        """What was wrong with the frame that ended it."""
        return self.server.words.decode() if self.server.words is not NULL else None

    @property
    def free_buffers(self) -> tuple[int, int]:
        return self.server.pool.free[0], self.server.pool.free[1]

    def stop(self) -> None:
        self.server.stop()


cdef void served_over(Operation* operation) noexcept nogil:
    cdef void* served = operation.owner
    invariant(
        not (<Served>served).server.receiving and not (<Served>served).server.replies.busy,
        b"a connection that has ended is not used by its Io any more",
    )
    (<Served>served).over = True


cdef enum JobKind:
    FORMAT, OPEN, COMPACT

cdef struct Job:                     # a task's parameters and result
    JobKind kind
    void* store
    Superblock* superblock
    Replica* replica
    const uint64_t* live
    int error
    bint over
    Operation ended
    Message message


cdef class HolderNode:
    """devices: the number in the cluster of each device of the world. reactors: the first has the stores, the last
    takes the connections."""

    cdef readonly PeerWorld nodes
    cdef dict devices
    cdef int reactor_count
    cdef list ios, reactors, known   # known: ServedStores of each reactor
    cdef dict stores, served_stores  # by number
    cdef Bitmaps bitmaps
    cdef list connections
    cdef list buried                 # what crashed: tasks still refer to it

    def __init__(self, PeerWorld nodes, devices: dict[int, int], *, int reactors=1, bint volatile_cache=True) -> None:
        self.nodes = nodes
        self.devices = dict(devices)
        self.reactor_count = reactors
        self.buried = []
        self.begin(volatile_cache)
        for device, number in devices.items():
            self.format(device, number)
            self.open(number)

    def crash(self, *, bint power=True) -> None:
        """Cuts the node's power; without `power` only its process dies."""
        cdef WorldIo io
        for io in self.ios:
            self.nodes.world.crash(io.number, power)
        self.buried.append(
            (self.ios, self.reactors, self.known, self.stores, self.served_stores, self.bitmaps, self.connections)
        )

    def restart(self, *, bint volatile_cache=True) -> None:
        self.begin(volatile_cache)
        for number in self.devices.values():
            self.open(number)

    cdef begin(self, bint volatile_cache):
        cdef WorldIo io
        cdef Store store
        self.ios, self.reactors, self.known, self.connections = [], [], [], []
        self.stores, self.served_stores = {}, {}
        for i in range(self.reactor_count):
            io = WorldIo(self.nodes.world)
            reactor = Reactor(i, io, ADAPTIVE, 50000)
            self.nodes.sit(io, reactor)
            self.ios.append(io)
            self.reactors.append(reactor)
            self.known.append(ServedStores())
        io = self.ios[0]
        self.bitmaps = Bitmaps(16, io)
        for device, number in self.devices.items():
            if io.add_device(device) < 0:
                raise ValueError(f"there is no device {device}")
            bytes = self.nodes.world.disks[device].bytes
            self.stores[number] = store = Store(self.reactors[0], device, bytes, volatile_cache)

    cdef format(self, int device, uint32_t number):
        cdef Job job
        cdef Superblock superblock
        cdef Store store = self.stores[number]
        memset(&superblock, 0, sizeof(superblock))
        plan_store(&superblock, store.device_bytes)
        superblock.tier = 1
        superblock.number = number
        superblock.device[0] = <uint8_t>device + 1
        job.superblock = &superblock
        self.carry_out(&job, FORMAT, store)

    cdef open(self, uint32_t number):
        cdef Job job
        cdef ServedStores known
        self.carry_out(&job, OPEN, self.stores[number])
        self.served_stores[number] = ServedStore(self.stores[number], self.bitmaps, Sources())
        for known in self.known:
            known.add(self.served_stores[number])

    cdef carry_out(self, Job* job, JobKind kind, Store store):
        job.kind = kind
        job.store = <void*>store
        job.over = False
        job.ended.done = job_over
        job.ended.owner = job
        start(job_body, job, &job.ended)
        while not job.over:
            if not self.nodes.turn():
                raise RuntimeError("a task of the node does not end")
        if job.error:
            raise OSError(-job.error, f"{os.strerror(-job.error)}: {store.reason.decode()}")

    def accept(self, int face) -> tuple[int, Served]:
        """A new connection with that face of the world: its end of it, and the connection here."""
        cdef int theirs, ours
        cdef int last = self.reactor_count - 1
        cdef WorldIo io = self.ios[last]
        cdef Served served = Served()
        error = self.nodes.world.connect(face, io.number, &theirs, &ours)
        if error:
            raise OSError(-error, os.strerror(-error))
        served.server = Server(self.reactors[last], self.known[last])
        served.server.connection = io.add_connection(ours)
        served.server.ended.done = served_over
        served.server.ended.owner = <void*>served
        self.connections.append(served)
        served.server.start()
        return theirs, served

    def withdraw(self, uint32_t number) -> None:
        """The device is not served any more; returns when no request uses its store."""
        cdef ServedStores known
        cdef ServedStore store = self.served_stores.pop(number)
        cdef Job job
        for known in self.known:
            known.remove(store)
        job.over = False
        job.ended.done = job_over
        job.ended.owner = &job
        job.store = <void*>store
        job.message.deliver = stop_served
        job.message.owner = &job
        (<Reactor>self.reactors[0]).post(&job.message)
        while not job.over:
            if not self.nodes.turn():
                raise RuntimeError("a request on the store does not end")

    # ------------------------------------------------------------------ what is there

    def replicas(self, uint32_t number) -> dict[tuple[bytes, int], tuple[str, int, int, int]]:
        """By volume and segment: state (open, sealed, compacted), blocks, epoch, fragment."""
        cdef Store store = self.stores[number]
        cdef uint32_t count = store.list(NULL, NULL, 0), i
        cdef Replica** found = <Replica**>calloc(count + 1, sizeof(Replica*))
        try:
            store.list(NULL, found, count)
            return {
                (<bytes>(<char*>found[i].volume)[:16], found[i].segment): (
                    "open" if found[i].state == SEGMENT_OPEN else "compacted" if found[i].live else "sealed",
                    found[i].blocks,
                    found[i].epoch,
                    found[i].fragment,
                )
                for i in range(count)
            }
        finally:
            release(found)

    def fenced(self, uint32_t number, bytes volume) -> int:
        cdef Store store = self.stores[number]
        return store.directory.fenced(sixteen(volume))

    def content(self, uint32_t number, bytes volume, uint32_t segment, uint32_t block, uint32_t blocks) -> bytes:
        """Of a replica that is not compacted, as its device has it."""
        cdef Store store = self.stores[number]
        cdef Replica* replica = store.find(sixteen(volume), segment)
        cdef uint32_t contiguous
        if replica is NULL or replica.live:
            raise KeyError(segment)
        found = b""
        for at in range(block, block + blocks):
            found += self.nodes.world.peek(store.device, replica_offset(replica, at, &contiguous), 4096)
        return found

    def compact(self, uint32_t number, bytes volume, uint32_t segment, live: list[int]) -> None:
        """Rewrites a sealed replica without its other blocks, and releases the old one."""
        cdef Job job
        cdef uint64_t[256] bits
        cdef Store store = self.stores[number]
        memset(bits, 0, sizeof(bits))
        for block in live:
            bits[<uint32_t>block // 64] |= <uint64_t>1 << (<uint32_t>block % 64)
        job.replica = store.find(sixteen(volume), segment)
        job.live = bits
        if job.replica is NULL:
            raise KeyError(segment)
        self.carry_out(&job, COMPACT, store)
        store.retire(job.replica)


cdef int64_t job_body(void* argument) noexcept nogil:
    cdef Job* job = <Job*>argument
    cdef int error = 0
    if job.kind == FORMAT:
        return format_store((<Store>job.store).home, (<Store>job.store).device, job.superblock)
    if job.kind == OPEN:
        return (<Store>job.store).open(NULL)
    (<Store>job.store).compact(job.replica, job.live, NULL, &error)
    return error


cdef void stop_served(Message* message) noexcept nogil:
    cdef Job* job = <Job*>message.owner
    (<ServedStore>job.store).stop(&job.ended)


cdef void job_over(Operation* operation) noexcept nogil:
    cdef Job* job = <Job*>operation.owner
    job.error = <int>operation.result
    job.over = True


# ---------------------------------------------------------------------- the node with a client

cdef class Call:
    """One call of a client. over: it is done; result: 0 or a negative errno."""

    cdef PeerCall call
    cdef char* memory
    cdef uint64_t bytes
    cdef void* owner                 # Caller, which has it while it is under way
    cdef readonly bint over
    cdef readonly int order          # among those that are done

    def __cinit__(self, Caller owner, uint64_t bytes):
        self.owner = <void*>owner
        self.bytes = bytes
        self.memory = <char*>calloc(1, max(bytes, 1))
        if self.memory is NULL:
            raise MemoryError
        self.call.operation.done = call_over
        self.call.operation.owner = <void*>self

    def __dealloc__(self):
        release(self.memory)

    cdef void check_released(self) noexcept nogil:
        """Neither a send nor a receive uses the memory of a call that is done."""
        invariant(not self.call.leaving, b"a call is not done while a send reads its memory")
        invariant(
            not (<Caller>self.owner).peer.receiving
            or not self.memory <= (<Caller>self.owner).peer.receive.buffer < self.memory + self.bytes,
            b"a call is not done while a receive writes to its memory",
        )

    @property
    def result(self) -> int:
        if not self.over:
            raise ValueError("it is under way")
        return self.call.operation.result

    @property
    def data(self) -> bytes:
        return self.memory[:self.bytes]

    @property
    def entries(self) -> int:
        return self.call.count

    @property
    def more(self) -> bool:
        return self.call.more

    @property
    def fence(self) -> int:
        return self.call.fence

    @property
    def boot(self) -> int:
        return self.call.boot


cdef void call_over(Operation* operation) noexcept nogil:
    (<Call>operation.owner).check_released()
    (<Call>operation.owner).over = True
    (<Call>operation.owner).order = (<Caller>(<Call>operation.owner).owner).count_done()


cdef class Caller:
    """A client, whatever it runs on."""

    cdef Reactor reactor
    cdef Peer peer
    cdef list calls                  # under way: their addresses must not change
    cdef readonly int completed
    cdef readonly int lost           # connections

    cdef begin(self, Io io):
        self.reactor = Reactor(0, io, ADAPTIVE, 50000)
        self.peer = Peer(self.reactor)
        self.peer.lost = connection_lost
        self.peer.owner = <void*>self
        self.calls = []

    def detach(self) -> None:
        self.peer.detach()

    @property
    def attached(self) -> bool:
        return self.peer.state == PEER_ATTACHED

    @property
    def end(self) -> str:
        """Why the last connection ended."""
        return PEER_ENDS[self.peer.end]

    @property
    def words(self) -> str | None:
        return self.peer.words.decode() if self.peer.words is not NULL else None

    @property
    def sends(self) -> int:
        return self.peer.requests.sends

    # ------------------------------------------------------------------ calls

    def create(
        self,
        uint32_t device,
        bytes volume,
        uint32_t segment,
        *,
        uint64_t epoch=1,
        uint32_t blocks=256,
        uint16_t stream=0,
        uint32_t fragment=0,
        bint urgent=False,
    ) -> Call:
        cdef Call call = self.new(0)
        self.peer.create(&call.call, device, sixteen(volume), segment, epoch, stream, fragment, blocks, urgent)
        return call

    def write(
        self,
        uint32_t device,
        bytes volume,
        uint32_t segment,
        uint32_t block,
        bytes data,
        *,
        uint64_t epoch=1,
        uint16_t stream=0,
        bint footer=False,
        bint completes=False,
    ) -> Call:
        cdef Call call = self.new(len(data))
        memcpy(call.memory, <const char*>data, len(data))
        self.peer.write(
            &call.call, device, sixteen(volume), segment, epoch, stream, block, NULL, call.memory, len(data) // 4096,
            (PEER_FOOTER if footer else 0) | (PEER_COMPLETES if completes else 0)
        )
        return call

    def flush(self, uint32_t device) -> Call:
        cdef Call call = self.new(0)
        self.peer.flush(&call.call, device)
        return call

    def seal(
        self,
        uint32_t device,
        bytes volume,
        uint32_t segment,
        uint32_t blocks,
        uint32_t footer_block=0,
        *,
        uint64_t epoch=1,
        bint completes=False,
    ) -> Call:
        cdef Call call = self.new(0)
        cdef uint8_t flags = PEER_COMPLETES if completes else 0
        self.peer.seal(&call.call, device, sixteen(volume), segment, epoch, blocks, footer_block, flags)
        return call

    def read(self, uint32_t device, bytes volume, uint32_t segment, uint32_t block, uint32_t blocks=1) -> Call:
        cdef Call call = self.new(<uint64_t>blocks * 4096)
        self.peer.read(&call.call, device, sixteen(volume), segment, block, blocks, call.memory, False)
        return call

    def remove(self, uint32_t device, bytes volume, uint32_t segment, *, uint64_t epoch=1) -> Call:
        cdef Call call = self.new(0)
        self.peer.remove(&call.call, device, sixteen(volume), segment, epoch)
        return call

    def compact(self, uint32_t device, bytes volume, uint32_t segment, blocks, *, uint64_t epoch=1) -> Call:
        cdef Call call = self.new(2048)
        memset(call.memory, 0, 2048)
        for block in blocks:
            call.memory[block // 8] |= <char>(1 << block % 8)
        self.peer.compact(&call.call, device, sixteen(volume), segment, epoch, <uint64_t*>call.memory)
        return call

    def list(self, uint32_t device, bytes volume, uint32_t first_segment=0, uint32_t room=512) -> Call:
        cdef Call call = self.new(room * sizeof(ListedReplica))
        self.peer.list(&call.call, device, sixteen(volume), first_segment, <ListedReplica*>call.memory, room)
        return call

    def fence(self, uint32_t device, bytes volume, uint64_t epoch) -> Call:
        cdef Call call = self.new(0)
        self.peer.fence(&call.call, device, sixteen(volume), epoch)
        return call

    def heartbeat(self, uint64_t counter, uint32_t room=16) -> Call:
        cdef Call call = self.new(room * sizeof(DeviceState))
        self.peer.heartbeat(&call.call, counter, <DeviceState*>call.memory, room)
        return call

    cdef int count_done(self) noexcept nogil:
        self.completed += 1
        return self.completed

    cdef void count_lost(self) noexcept nogil:
        invariant(
            not self.peer.receiving and not self.peer.requests.busy,
            b"a connection that is lost is not used by its Io any more",
        )
        self.lost += 1

    cdef Call new(self, uint64_t bytes):
        call = Call(self, bytes)
        self.calls = [call for call in self.calls if not call.over]
        self.calls.append(call)
        return call


cdef class OwnerNode(Caller):
    cdef readonly PeerWorld nodes
    cdef WorldIo io
    cdef readonly int connection

    def __init__(self, PeerWorld nodes) -> None:
        self.nodes = nodes
        self.io = WorldIo(nodes.world)
        self.begin(self.io)
        nodes.sit(self.io, self.reactor)

    def attach(self, HolderNode holder, *, uint32_t requests=64, uint64_t bytes=8 << 20) -> Served:
        self.connection, served = holder.accept(self.io.number)
        self.join(self.connection, requests=requests, bytes=bytes)
        return served

    def connect_to(self, int face) -> tuple[int, int]:
        """A new connection with that face of the world: this node's end of it, and the other."""
        cdef int ours, theirs
        error = self.nodes.world.connect(self.io.number, face, &ours, &theirs)
        if error:
            raise OSError(-error, os.strerror(-error))
        return ours, theirs

    def join(self, int connection, *, uint32_t requests=64, uint64_t bytes=8 << 20) -> None:
        """Use a connection whose other end is the test's."""
        if self.peer.state != PEER_DETACHED:
            raise ValueError("the client has a connection")
        self.connection = connection
        self.peer.attach(self.io.add_connection(connection), requests, bytes)

    @property
    def face(self) -> int:
        return self.io.number


cdef void connection_lost(void* owner) noexcept nogil:
    (<Caller>owner).count_lost()


cdef uint8_t* sixteen(bytes name) except NULL:
    if len(name) != 16:
        raise ValueError(f"an identifier has 16 bytes, not {len(name)}")
    return <uint8_t*><char*>name


# ---------------------------------------------------------------------- over real rings

cdef class RingPair(Caller):
    """An owner and a holder in this process, each with a ring and a reactor, in one thread. path: a file, which becomes
    the holder's device with this number in the cluster."""

    cdef Uring ring, holders
    cdef Reactor home
    cdef Store store
    cdef ServedStores known
    cdef ServedStore served
    cdef Bitmaps bitmaps
    cdef list connections
    cdef int fd

    def __init__(self, path: str | os.PathLike[str], uint32_t number) -> None:
        cdef Superblock superblock
        cdef Job job
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self.ring, self.holders = Uring(), Uring()
        self.ring.begin()
        self.holders.begin()
        self.begin(self.ring)
        self.home = Reactor(1, self.holders, ADAPTIVE, 50000)
        self.store = Store(self.home, self.holders.add_device(self.fd), os.lseek(self.fd, 0, os.SEEK_END), True)
        self.connections = []
        memset(&superblock, 0, sizeof(superblock))
        plan_store(&superblock, self.store.device_bytes)
        superblock.tier, superblock.number = 1, number
        job.superblock = &superblock
        self.carry_out(&job, FORMAT)
        self.carry_out(&job, OPEN)
        self.bitmaps = Bitmaps(16, self.holders)
        self.served = ServedStore(self.store, self.bitmaps, Sources())
        self.known = ServedStores()
        self.known.add(self.served)

    def close(self) -> None:
        """Once nothing is under way."""
        os.close(self.fd)

    def attach(self, int ours, int theirs, *, uint32_t requests=64, uint64_t bytes=8 << 20) -> Served:
        """The descriptors belong to the rings from now on."""
        cdef Served served = Served()
        served.server = Server(self.home, self.known)
        served.server.connection = self.holders.add_connection(theirs)
        served.server.ended.done = served_over
        served.server.ended.owner = <void*>served
        self.connections.append(served)
        served.server.start()
        self.peer.attach(self.ring.add_connection(ours), requests, bytes)
        return served

    def turn(self) -> None:
        with nogil:
            self.ring.poll(0)
            self.reactor.turn()
            self.holders.poll(0)
            self.home.turn()

    def settle(self, *calls: Call, float seconds=60.0) -> None:
        """Until these calls are done. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not all(call.over for call in calls):
            self.turn()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sum(not call.over for call in calls)} calls are not done after {seconds:g} s")

    cdef carry_out(self, Job* job, JobKind kind):
        job.kind = kind
        job.store = <void*>self.store
        job.over = False
        job.ended.done = job_over
        job.ended.owner = job
        start(job_body, job, &job.ended)
        while not job.over:
            self.turn()
        if job.error:
            raise OSError(-job.error, f"{os.strerror(-job.error)}: {self.store.reason.decode()}")
