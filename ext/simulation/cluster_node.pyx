# One node of a simulated cluster: its devices, and while its process runs the reactors, stores, and connections, which
# are the engine's, set up as in engine.pyx and node/peers/. What the daemon does in Python are tasks here, on the
# node's first reactor: they end with the process, and do not go on while it is paused.
#
#     DOWN -- begin() --> BOOTING -- its stores are open and served --> UP -- the process ends --> DOWN
#
# A connection is made as node/peers/link.py does it, some time after the last one has ended; a newer one of the same
# client ends the older first (node/peers/server.py).

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.format.layout cimport DEVICE_BYTES_MIN, SEGMENT_OPEN, TIER_NVME, Superblock
from iomesh.engine.simulation.event_queue cimport NO_EVENT
from iomesh.engine.store.store cimport Replica, format_store, plan_store, watch_store

cdef const char* CLUSTER = b"simulated nodes "           # 16 bytes

cdef int64_t REQUEST_TIMEOUT_NS = <int64_t>30 * 1000 * 1000 * 1000

cdef enum:
    FORMAT_WAIT_NS = 1000 * 1000 * 1000


cdef class ClusterNode:
    """devices: their numbers in the world."""

    def __cinit__(self, ClusterRun run, int number, devices):
        cdef int i
        self.run, self.number = run, number
        self.boot = 1
        for i, device in enumerate(devices):
            self.devices[i] = device
            self.store_count += 1
        self.pools = [Pool(2, 2, run.records) for _ in range(run.reactor_count)]

    cdef bint is_alive(self) noexcept nogil:
        return self.state != NODE_DOWN and (<WorldIo>self.io_pointers[0]).alive

    cdef void lose_power(self) noexcept nogil:
        cdef int i
        self.boot += 1
        self.run.counted.power_cuts += 1
        self.run.registers.lose_power(self.number)
        if self.state == NODE_DOWN:
            for i in range(self.store_count):
                self.run.world.cut(self.devices[i])

    cdef void notice_drops(self) noexcept nogil:
        cdef uint64_t dropped = 0
        cdef int i
        for i in range(self.store_count):
            dropped += self.run.world.disks[self.devices[i]].dropped
        if dropped != self.dropped:
            self.dropped = dropped
            self.run.note(b"a device of node %lld has dropped its cache", self.number, 0, 0)
            self.run.registers.lose_power(self.number)
            self.dropped_at = self.run.registers.clock

    cdef void forget_drops(self) noexcept nogil:
        cdef int i
        for i in range(self.store_count):
            if self.run.world.disks[self.devices[i]].dropped != self.dropped_before[i] and \
                    not (<Store>self.store_pointers[i]).remembers:
                self.run.note(b"node %lld has ended before it noted that a cache is lost", self.number, 0, 0)
                self.run.registers.distrust(self.dropped_at)

    cdef bint is_paused(self) noexcept nogil:
        return self.paused_until_ns != 0

    cdef object set_volume(self, volume):
        self.volume = volume
        self.volume_pointer = NULL if volume is None else <void*>volume

    # ------------------------------------------------------------------ its process

    cdef object format(self):
        cdef FormatCall call
        cdef Superblock superblock
        cdef int i
        io = WorldIo(self.run.world)
        reactor = Reactor(0, io, 0, 0)
        for i in range(self.store_count):
            (<WorldIo>io).add_device(self.devices[i])
            memset(&superblock, 0, sizeof(superblock))
            plan_store(&superblock, DEVICE_BYTES_MIN)
            superblock.journal_bytes = self.run.journal_bytes
            memcpy(superblock.cluster, CLUSTER, 16)
            superblock.device[0] = 1 + self.devices[i]
            superblock.tier = TIER_NVME
            superblock.number = 1 + self.devices[i]
            call.reactor = <void*>reactor
            call.superblock = &superblock
            call.device = self.devices[i]
            call.ended = False
            with nogil:
                start(format_body, &call, NULL)
                while not call.ended:
                    (<WorldIo>io).poll(FORMAT_WAIT_NS)
                    (<Reactor>reactor).turn()
            if call.result < 0:
                raise RuntimeError(f"formatting a device ended with error {-call.result}")
        self.run.world.crash((<WorldIo>io).number, False)

    cdef object begin(self):
        """Creates the objects of a process, as engine.pyx does, and lets it open its stores."""
        cdef int i, k
        cdef WorldIo io
        cdef Store store
        self.state = NODE_BOOTING
        self.incarnation += 1
        self.ios, self.reactors, self.caches, self.knowns, self.stores = [], [], [], [], []
        self.served_stores, self.remotes, self.served_peers, self.old_peers = [], [], {}, []
        self.sources = []
        self.set_volume(None)
        self.up_at_ns = 0
        for number in range(self.run.reactor_count):
            io = WorldIo(self.run.world, None if number == 0 else self.ios[0])
            if number == 0:
                self.run.world.faces[io.number].drift_ppm = self.drift_ppm
            io.boot = self.boot
            io.request_timeout_ns = REQUEST_TIMEOUT_NS
            for i in range(self.store_count):
                if io.add_device(self.devices[i]) != self.devices[i]:
                    raise RuntimeError("the world counts its devices otherwise")
            self.ios.append(io)
            self.reactors.append(Reactor(number, io, 0, 0))
            (<Pool>self.pools[number]).attach(io)
            (<Pool>self.pools[number]).renew()           # reused: new memory is slow
            self.caches.append(MapCache(self.run.frames, io))
            self.knowns.append(ServedStores())
            self.sources.append(Sources())
            self.io_pointers[<int>number] = <void*>io
            self.reactor_pointers[<int>number] = <void*>self.reactors[number]
            self.known_pointers[<int>number] = <void*>self.knowns[number]
        self.leases = Leases((<WorldIo>self.ios[0]).monotonic_ns())
        for known in self.knowns:
            (<ServedStores>known).leases = self.leases
        for i in range(self.store_count):
            store = Store(
                self.reactors[i % self.run.reactor_count], self.devices[i], DEVICE_BYTES_MIN,
                self.run.world.disks[self.devices[i]].volatile_cache
            )
            store.leases = self.leases
            self.dropped_before[i] = self.run.world.disks[self.devices[i]].dropped
            self.stores.append(store)
            self.store_pointers[i] = <void*>store
            for io in self.ios:
                watch_store(io, store)
        for i in range(self.run.reactor_count):
            sources = self.sources[i]
            for k in range(self.run.node_count):
                self.remote_pointers[i][k] = NULL
                memset(&self.links[i][k], 0, sizeof(Link))
                if k == self.number:
                    continue
                remote = RemoteNode(self.reactors[i])
                self.remotes.append(remote)
                (<Sources>sources).add(remote)
                self.remote_pointers[i][k] = <void*>remote
                self.links[i][k].node = <void*>self
                self.links[i][k].reactor, self.links[i][k].other = i, k
        self.wants_served = self.gives_up = False
        self.run.note(b"node %lld starts", self.number, 0, 0)
        with nogil:
            start(boot_body, <void*>self, NULL)

    cdef object serve(self):
        """Its stores are open: other nodes may use them, and it connects to the others."""
        cdef int i, k
        cdef Store store
        cdef ServedStore served
        self.wants_served = False
        for store in self.stores:
            served = ServedStore(
                store, (<MapCache>self.caches[store.home.number]).bitmaps, self.sources[store.home.number]
            )
            self.served_stores.append(served)
            for known in self.knowns:
                (<ServedStores>known).add(served)
        self.state = NODE_UP
        self.run.note(b"node %lld is up", self.number, 0, 0)
        with nogil:
            for i in range(self.run.reactor_count):
                for k in range(self.run.node_count):
                    if k != self.number:
                        start(link_body, &self.links[i][k], NULL)

    cdef object drop(self):
        self.state = NODE_DOWN
        self.paused_until_ns = 0
        for pool in self.pools:
            (<Pool>pool).attach(None)
        self.served_peers = self.old_peers = None
        self.served_stores = self.knowns = self.remotes = self.stores = None
        self.caches = self.reactors = self.ios = self.leases = self.sources = None

    # ------------------------------------------------------------------ connections

    cdef object accept(self, int reactor, int client, int its_reactor, int end):
        """A connection of another node's reactor; `end` is this node's end of it."""
        cdef ServedPeer served = ServedPeer()
        cdef ServedPeer older = self.served_peers.get((client, its_reactor))
        served.server = Server(self.reactors[reactor], self.knowns[reactor])
        served.server.connection = (<WorldIo>self.ios[reactor]).add_connection(end)
        served.server.ended.done = served_ended
        served.server.ended.owner = <void*>served
        self.served_peers[client, its_reactor] = served
        self.old_peers = [peer for peer in self.old_peers if not (<ServedPeer>peer).over]
        self.old_peers.append(served)
        if older is None or older.over:
            served.begin()
        else:
            older.following = <void*>served
            older.end()

    cdef bint is_attached_to(self, int reactor, int other) noexcept nogil:
        return (
            self.remote_pointers[reactor][other] is not NULL
            and (<RemoteNode>self.remote_pointers[reactor][other]).ready
        )

    # ------------------------------------------------------------------ its reactors

    cdef bint turn(self) noexcept nogil:
        cdef int i
        cdef bint found = False
        for i in range(self.run.reactor_count):
            if not (<WorldIo>self.io_pointers[i]).alive:
                continue
            if (
                self.run.world.faces[(<WorldIo>self.io_pointers[i]).number].first_ready == NO_EVENT
                and (<Reactor>self.reactor_pointers[i]).turn_first is NULL
                and (<Reactor>self.reactor_pointers[i]).mail is NULL
            ):
                continue
            found = True
            (<WorldIo>self.io_pointers[i]).poll(0)
            if (<WorldIo>self.io_pointers[i]).alive:
                (<Reactor>self.reactor_pointers[i]).turn()
        return found

    # ------------------------------------------------------------------ for people

    cdef list numbers(self):
        return [self.devices[i] + 1 for i in range(self.store_count)]

    cdef list describe(self):
        """The volume's replicas on its devices."""
        cdef Store store
        cdef Replica** found
        cdef uint32_t count, i
        lines = []
        for store in self.stores:
            count = store.list(self.run.volume, NULL, 0)
            found = <Replica**>calloc(count + 1, sizeof(Replica*))
            store.list(self.run.volume, found, count)
            lines.append(f"  device {store.superblock.number}: fence {store.directory.fenced(self.run.volume)}")
            replicas = sorted(
                (
                    found[i].segment, "open" if found[i].state == SEGMENT_OPEN else "sealed", found[i].blocks,
                    found[i].footer_block, found[i].epoch, found[i].fragment, store.directory.boot_of(found[i])
                )
                for i in range(count)
            )
            release(found)
            for segment, state, blocks, footer, epoch, fragment, boot in replicas:
                lines.append(
                    f"    segment {segment}: {state}, {blocks} blocks, footer {footer}, epoch {epoch}, fragment "
                    f"{fragment}, boot {boot}"
                )
        return lines


# ---------------------------------------------------------------------- served connections

cdef class ServedPeer:
    cdef void begin(self) noexcept nogil:
        if self.ending:                                  # a still newer one has come meanwhile
            self.server.io.close(self.server.connection)
            self.is_over()
            return
        self.begun = True
        self.server.start()

    cdef void end(self) noexcept nogil:
        self.ending = True
        if self.begun:
            self.server.stop()

    cdef void is_over(self) noexcept nogil:
        self.over = True
        if self.following is not NULL:
            (<ServedPeer>self.following).begin()


cdef void served_ended(Operation* operation) noexcept nogil:
    (<ServedPeer>operation.owner).is_over()


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
    boot(<ClusterNode>argument)
    return 0


cdef void boot(ClusterNode node) noexcept nogil:
    cdef int i, result
    for i in range(node.store_count):
        result = (<Store>node.store_pointers[i]).open(<const uint8_t*>CLUSTER)
        if result < 0 and node.run.device_errors and not node.run.faultless:
            node.gives_up = True
            return
        if result < 0:
            node.run.fault(b"", 0, 0)
            snprintf(
                node.run.words, sizeof(node.run.words),
                b"node %d cannot open a store: %s (error %d)", node.number, (<Store>node.store_pointers[i]).reason,
                -result
            )
            return
    node.wants_served = node.run.wanting = True


cdef int64_t link_body(void* argument) noexcept nogil:
    keep_link(<Link*>argument, <ClusterNode>(<Link*>argument).node)
    return 0


cdef void keep_link(Link* link, ClusterNode node) noexcept nogil:
    """As node/peers/link.py."""
    while True:
        waited(&link.step)
        (<WorldIo>node.io_pointers[link.reactor]).after(&link.step, 1 + <int64_t>node.run.draw(node.run.link_ns))
        wait(&link.step)
        waited(&link.step)
        link.wants = node.run.wanting = True
        if wait(&link.step) < 0:
            continue                                     # it cannot be reached now
        waited(&link.step)
        link.attached = True
        wait(&link.step)
        link.attached = False
