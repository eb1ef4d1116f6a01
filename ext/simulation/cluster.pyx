# One seed's simulation run of several nodes with one replicated volume. It formats devices and starts the nodes. One of
# them opens the volume and clients use it, while nodes, connections and the metadata service fail; another one takes
# the volume over when its owner is gone, or is believed to be. All that clients see goes into one history
# (simulation/registers.pyx).
#
#     cluster = Cluster(seed)
#     cluster.run()                             None, or the failure
#
# Each node's process has reactors, stores and connections of the engine (simulation/cluster_node.pyx), and may have the
# volume open (simulation/cluster_volume.pyx). All of them, and the metadata service, are turned by one thread in
# virtual time: every event follows from the seed (simulation/cluster_swarm.pyx draws what happens how often).
#
#     WORKING -- all requests are made, or the time is over --> HEALING -- all nodes are up and connected, and one
#     serves the volume --> WIDENING -- what is written has all replicas --> CLOSING, with a comparison of the copies
#     --> REOPENING on another node, and a comparison of all blocks with the history --> ENDING --> OVER
#
# From HEALING on nothing may fail.

from libc.errno cimport EBUSY, EHOSTUNREACH
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from iomesh.engine.base.planted cimport CAN_PLANT
from iomesh.engine.base.task cimport abandon
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.replicas.server cimport CREDIT_BYTES, CREDIT_REQUESTS
from iomesh.engine.simulation.cluster_metadata cimport LogRecord
from iomesh.engine.simulation.cluster_node cimport NODE_DOWN, NODE_UP, Link
from iomesh.engine.simulation.cluster_run cimport (
    CLIENT_KINDS, CLIENT_READ, CLIENT_WRITE, CLIENT_ZERO, CONTEND, CRASH_SEVERAL, CUT_ALL_POWER, CUT_CONNECTION,
    CUT_POWER, HAND_OVER, KILL_NODE, METADATA_OUTAGE, PART, PAUSE_NODE, USURP
)
from iomesh.engine.simulation.cluster_swarm cimport draw_cluster
from iomesh.engine.simulation.cluster_volume cimport (
    CLIENT_SLOTS, PEERS_NS, SHARED_CLOSED, SHARED_GONE, SHARED_OPENING, SHARED_VERIFYING
)
from iomesh.engine.simulation.event_queue cimport NO_EVENT
from iomesh.engine.simulation.world cimport WorldIo

from iomesh.engine.simulation.cluster_run import CLIENT_NAMES

cdef extern from "<errno.h>" nogil:
    int ESTALE

cdef enum:
    LOOK_NS = 20 * 1000 * 1000       # between two looks at what may be due
    STEPS_MAX = 8 * 1000 * 1000
    WIDENING_REQUESTS = 12
    WIDENING_GAP_NS = 200 * 1000 * 1000
    CONNECTIONS_LIKELY = 128         # ends of connections: more are never in use at once
    WINDOW_GAP_NS = 2 * 1000 * 1000  # between requests while a former owner may still hold its leases

cdef int64_t SECOND = 1000 * 1000 * 1000
cdef int64_t SILENCE_NS = <int64_t>2200 * 1000 * 1000                     # a node that is cut off is given up by then
cdef int64_t RESTARTED_NS = 40 * 1000 * 1000                      # a node that is killed is up again by then
cdef int64_t SCENE_NS = <int64_t>12 * 1000 * 1000 * 1000
cdef int64_t HANG_NS = <int64_t>120 * 1000 * 1000 * 1000         # no phase takes longer, once nothing fails any more
cdef const char* VOLUME_WORDS = b"replicated thing"              # 16 bytes

PLANTABLE = bool(CAN_PLANT)          # whether bugs can be planted in this build (base/planted.pxd)


cdef class Cluster(ClusterRun):
    """seed: 0 to 2**64 - 1. operations: of the whole run, drawn unless given. Raises MemoryError."""

    def __cinit__(self, uint64_t seed, operations=None):
        memcpy(self.volume, VOLUME_WORDS, 16)
        draw_cluster(self, operations)
        self.metadata = ClusterMetadata(self)
        self.left = self.total
        self.usurper = self.rival = self.armed = self.last_node = -1

    # ------------------------------------------------------------------ the run

    def run(self):
        """Runs the whole simulation; returns None, or the failure."""
        cdef ClusterNode node
        for node in self.nodes:
            node.format()
        for node in self.nodes:
            node.begin()
        self.world.faults = self.faults
        self.crashes = self.world.crashes
        self.limit_ns += self.world.event_queue.now
        self.open_ns = self.world.event_queue.now + 1 + <int64_t>self.draw(2 * SECOND)
        self.plan_fault()
        while not self.wrong and self.phase != OVER:
            with nogil:
                self.go_on()
            if not self.wrong:
                self.grant()
        if self.wrong:
            self.found = self.describe()
        self.world.crash(-1, False)
        abandon()
        for node in self.nodes:
            node.set_volume(None)
            node.drop()
        return self.words.decode(errors="replace") if self.wrong else None

    cdef object grant(self):
        """Creates the objects that tasks wait for, and drops those of what has ended."""
        cdef ClusterNode node
        cdef SharedVolume volume
        cdef int i, k
        self.wanting = False
        for node in self.nodes:
            volume = node.volume
            if volume is not None and (volume.state == SHARED_CLOSED or volume.state == SHARED_GONE):
                node.set_volume(None)
                if volume.state == SHARED_CLOSED and volume.error:
                    self.judge_refusal(volume)
                volume.drop()
                volume = None
            if self.world.crashes != self.crashes:       # what a node before this one did was a boundary
                self.notice_crashes()
            if node.state != NODE_DOWN and not node.is_alive():
                node.drop()
            if node.state == NODE_DOWN:
                if node.up_at_ns <= self.world.event_queue.now:
                    node.begin()
                continue
            if node.wants_served:
                node.serve()
            for i in range(self.reactor_count):
                for k in range(self.node_count):
                    if node.links[i][k].wants:
                        self.connect(node, i, k)
            if volume is not None and volume.wants:
                volume.settle_in()
                with nogil:
                    volume.is_settled()
        if self.open_ns and self.open_ns <= self.world.event_queue.now:
            self.open_ns = 0
            if not self.is_open_anywhere():
                self.begin_opening(self.choose_opener(-1))
        if self.usurper >= 0 and self.usurp_ns <= self.world.event_queue.now:
            self.begin_opening(self.usurper)
            self.begin_opening(self.rival)
            self.usurper = self.rival = -1

    cdef object begin_opening(self, int number):
        cdef ClusterNode node
        if number < 0:
            return
        node = self.nodes[number]
        if node.state != NODE_UP or node.is_paused() or node.volume is not None:
            return
        self.counted.take_overs += self.metadata.record.epoch != 0 and self.metadata.record.owner != number
        node.set_volume(SharedVolume(self, node, self.metadata, self.metadata.record.owner))
        with nogil:
            (<SharedVolume>node.volume_pointer).open()

    cdef object connect(self, ClusterNode node, int reactor, int other):
        cdef Link* link = &node.links[reactor][other]
        cdef ClusterNode server = self.nodes[other]
        cdef int ours, theirs, its_reactor = reactor % self.reactor_count
        cdef void* remote = node.remote_pointers[reactor][other]
        link.wants = False
        link.step.result = -1
        if self.reaches(node.number, other) and self.world.network.connect(
            (<WorldIo>node.io_pointers[reactor]).number, (<WorldIo>server.io_pointers[its_reactor]).number,
            &ours, &theirs
        ) == 0:
            server.accept(its_reactor, node.number, reactor, theirs)
            self.counted.connections += 1
            (<RemoteNode>remote).owner = link
            (<RemoteNode>remote).lost = link_lost
            link.step.result = 0
            with nogil:
                link.step.done(&link.step)               # its task waits for the connection's end now
                (<RemoteNode>remote).attach(
                    (<WorldIo>node.io_pointers[reactor]).add_connection(ours), CREDIT_REQUESTS, CREDIT_BYTES
                )
        else:
            with nogil:
                link.step.done(&link.step)

    # ------------------------------------------------------------------ time

    cdef void go_on(self) noexcept nogil:
        cdef int64_t until_ns
        cdef int i
        while not self.wrong and not self.wanting and self.phase != OVER:
            self.step += 1
            if self.world.event_queue.now >= self.due_ns:
                self.act()
            self.issue()
            if not self.turn():
                until_ns = self.due_ns
                if self.next_ns > self.world.event_queue.now and self.may_issue():
                    until_ns = min(until_ns, self.next_ns)
                self.world.advance(until_ns)
            if self.world.crashes != self.crashes:
                self.notice_crashes()
            if self.world.dropped != self.dropped:
                self.dropped = self.world.dropped
                for i in range(self.node_count):
                    (<ClusterNode>self.node_pointers[i]).notice_drops()
            if self.world.altered:
                self.fault(b"the data of a write changed before the device had taken it", 0, 0)
            if self.step > STEPS_MAX:
                self.hang(b"too much happens")

    cdef bint turn(self) noexcept nogil:
        """Lets each node that has something to do do it, in any order. False: none has."""
        cdef int first = <int>self.draw(self.node_count), i
        cdef void* node
        cdef bint found = False
        if self.world.faces[self.metadata.io.number].first_ready != NO_EVENT:
            self.metadata.io.poll(0)
            found = True
        for i in range(self.node_count):
            node = self.node_pointers[(first + i) % self.node_count]
            if (<ClusterNode>node).state != NODE_DOWN and not (<ClusterNode>node).is_paused():
                found = (<ClusterNode>node).turn() or found
        return found

    cdef void look_at(self, int64_t time_ns) noexcept nogil:
        """Something is due then; 0: nothing."""
        if time_ns:
            self.due_ns = min(self.due_ns, time_ns)

    cdef void act(self) noexcept nogil:
        """Does what is due."""
        cdef int64_t now = self.world.event_queue.now
        cdef int i, k
        cdef void* node
        self.due_ns = now + LOOK_NS
        for i in range(self.node_count):
            node = self.node_pointers[i]
            if (<ClusterNode>node).state == NODE_DOWN:
                self.wanting = self.wanting or (<ClusterNode>node).up_at_ns <= now
                self.look_at((<ClusterNode>node).up_at_ns)
            elif (<ClusterNode>node).is_paused() and (<ClusterNode>node).paused_until_ns <= now:
                (<ClusterNode>node).paused_until_ns = 0
                self.note(b"node %lld goes on", i, 0, 0)
            self.look_at((<ClusterNode>node).paused_until_ns)
            if (<ClusterNode>node).gives_up and (<ClusterNode>node).is_alive():
                self.end_now(i, False)
            if self.unreachable_until_ns[i] and self.unreachable_until_ns[i] <= now:
                self.unreachable_until_ns[i] = 0
                self.metadata.unreachable[i] = False
            for k in range(self.node_count):
                if self.blocked_until_ns[i][k] and self.blocked_until_ns[i][k] <= now:
                    self.unblock(i, k)
            if (<ClusterNode>node).volume_pointer is not NULL and not (<ClusterNode>node).is_paused():
                self.look_after(<SharedVolume>(<ClusterNode>node).volume_pointer)
        if self.outage_until_ns and self.outage_until_ns <= now:
            self.outage_until_ns = 0
            self.metadata.outage = False
        if self.open_ns == 0 and self.usurper < 0 and self.phase <= HEALING and not self.is_open_anywhere():
            self.open_ns = now + 1 + <int64_t>self.draw(self.open_within_ns)
        self.look_at(self.open_ns)
        if (self.open_ns and self.open_ns <= now) or (self.usurper >= 0 and self.usurp_ns <= now):
            self.wanting = True
        if self.phase == WORKING and self.left and (self.left <= self.fault_at or now >= self.fault_ns):
            self.strike(self.draw_fault())
            self.plan_fault()
        if self.directed and self.phase == WORKING and self.scene_ns <= now:
            self.direct()
        self.move_phase()

    cdef void look_after(self, SharedVolume volume) noexcept nogil:
        """What the daemon does now and then."""
        if volume.serves():
            volume.look_after_copies()
        if not volume.serves() and volume.state != SHARED_VERIFYING:
            return
        if volume.noticed:
            volume.close(False)
        elif volume.has_lost():
            volume.noticed = self.faultless or self.chance(64)
        elif volume.log_record.epoch < self.metadata.record.epoch and not self.metadata.unreachable[volume.node.number]:
            volume.noticed = self.faultless or self.chance(4)

    # ------------------------------------------------------------------ phases

    cdef void enter(self, ClusterPhase phase) noexcept nogil:
        self.phase = phase
        self.phase_ns = self.world.event_queue.now
        self.note(b"phase %lld", phase, 0, 0)

    cdef void move_phase(self) noexcept nogil:
        cdef int64_t now = self.world.event_queue.now
        cdef void* volume = self.serving()
        if self.phase == WORKING:
            if (self.left == 0 and self.is_quiet()) or now >= self.limit_ns:
                self.heal()
                self.enter(HEALING)
            return
        if self.phase == HEALING and volume is not NULL and self.is_whole() and self.is_alone(volume):
            self.enter(WIDENING)
            self.left = WIDENING_REQUESTS
            self.gap_ns = WIDENING_GAP_NS
        elif self.phase == WIDENING and volume is NULL:
            self.enter(HEALING)                          # a late request of a former owner has arrived
        elif self.phase == WIDENING and self.left == 0 and (<SharedVolume>volume).busy == 0:
            if self.is_wide(<SharedVolume>volume) and not (<SharedVolume>volume).is_updating():
                self.enter(CLOSING)
                self.last_node = (<SharedVolume>volume).node.number
                (<SharedVolume>volume).close(True)
            else:
                self.left = 1
        elif self.phase == CLOSING and not self.is_open_anywhere():
            self.enter(REOPENING)
        elif self.phase == REOPENING and volume is not NULL:
            self.enter(ENDING)
            (<SharedVolume>volume).close(False)
        elif self.phase == REOPENING and self.usurper < 0 and not self.is_open_anywhere():
            self.usurper = self.choose_opener(self.last_node)
            self.usurp_ns = now
            self.wanting = True
        elif self.phase == ENDING and not self.is_open_anywhere():
            self.phase = OVER
        if now - self.phase_ns > HANG_NS:
            self.hang(b"the phase does not end")

    cdef bint is_quiet(self) noexcept nogil:
        """No request is in flight."""
        cdef int i
        for i in range(self.node_count):
            if self.volume_of(i) is not NULL and (<SharedVolume>self.volume_of(i)).busy:
                return False
        return True

    cdef bint is_alone(self, void* owner) noexcept nogil:
        cdef int i
        for i in range(self.node_count):
            if self.volume_of(i) is not NULL and self.volume_of(i) != owner:
                return False
        return not (<SharedVolume>owner).has_lost()

    cdef bint is_wide(self, SharedVolume volume) noexcept nogil:
        return volume.log.open_segments.current is not NULL and (
            1 + <uint32_t>volume.log.open_segments.current.segment.copy_count >= self.replicas
        )

    cdef bint is_whole(self) noexcept nogil:
        cdef int i, k, n
        for i in range(self.node_count):
            if (<ClusterNode>self.node_pointers[i]).state != NODE_UP:
                return False
            for k in range(self.node_count):
                for n in range(self.reactor_count if k != i else 0):
                    if not (<ClusterNode>self.node_pointers[i]).is_attached_to(n, k):
                        return False
        return True

    cdef void heal(self) noexcept nogil:
        cdef int i, k
        self.faultless = True
        self.left = 0
        self.armed = -1
        self.world.crash_at(0, False)
        memset(&self.world.injector.probability, 0, sizeof(self.world.injector.probability))
        self.metadata.outage = False
        self.outage_until_ns = 0
        self.usurper = self.rival = -1
        for i in range(self.node_count):
            if self.device_errors:
                self.end_now(i, False)                   # devices that have failed work again after a restart
            (<ClusterNode>self.node_pointers[i]).paused_until_ns = 0
            if (<ClusterNode>self.node_pointers[i]).state == NODE_DOWN:
                (<ClusterNode>self.node_pointers[i]).up_at_ns = self.world.event_queue.now
            self.metadata.unreachable[i] = False
            self.unreachable_until_ns[i] = 0
            for k in range(self.node_count):
                if self.blocked_until_ns[i][k]:
                    self.unblock(i, k)
        self.link_ns = min(self.link_ns, <int64_t>(50 * 1000 * 1000))
        self.metadata_ns = min(self.metadata_ns, <int64_t>(20 * 1000 * 1000))
        self.open_within_ns = SECOND

    cdef void judge_refusal(self, SharedVolume volume) noexcept nogil:
        """Whether the volume may have been refused for this reason."""
        cdef bint right = volume.error == -EBUSY or volume.error == -EHOSTUNREACH
        if self.metadata.record.epoch > volume.log_record.epoch or (self.device_errors and not self.faultless):
            right = True
        if not right or self.phase > HEALING:
            self.fault(b"", 0, 0)
            snprintf(
                self.words, sizeof(self.words), b"node %d cannot open the volume: %s (error %d)", volume.node.number,
                volume.reason, -volume.error
            )

    cdef void hang(self, const char* what) noexcept nogil:
        cdef int i
        for i in range(self.node_count):
            self.note(
                b"node %lld: state %lld, pauses %lld", i, (<ClusterNode>self.node_pointers[i]).state,
                (<ClusterNode>self.node_pointers[i]).is_paused()
            )
            if self.volume_of(i) is not NULL:
                (<SharedVolume>self.volume_of(i)).tell_state()
        self.fault(b"", 0, 0)
        snprintf(
            self.words, sizeof(self.words), b"%s: phase %d, step %llu", what, self.phase, <unsigned long long>self.step
        )

    # ------------------------------------------------------------------ faults

    cdef void plan_fault(self) noexcept nogil:
        self.fault_at = self.left - min(self.left, 1 + self.draw(2 * self.between))
        self.fault_ns = self.world.event_queue.now + 1 + <int64_t>self.draw(2 * self.between_ns)

    cdef void direct(self) noexcept nogil:
        """A history that random faults seldom make: the owner is cut off from all nodes and from the metadata service,
        but its clients are not, and another node takes the volume over. Of two nodes that is the other member: it is
        killed and starts again at once, so that it has given a lease of which it knows nothing. Then clients use both
        owners."""
        cdef int64_t now = self.world.event_queue.now, until_ns = now + SCENE_NS
        cdef int owner, i
        cdef void* volume = self.serving()
        if self.scene_step == 0:
            if volume is NULL or not self.is_whole() or not self.is_alone(volume) or not self.is_wide(
                <SharedVolume>volume
            ):
                return
            owner = (<SharedVolume>volume).node.number
            self.usurper = (owner + 1 + <int>self.draw(self.node_count - 1)) % self.node_count
            self.usurp_ns = now + (RESTARTED_NS if self.node_count == 2 else SILENCE_NS)
            for i in range(self.node_count):
                if i != owner:
                    self.block(owner, i, until_ns)
                    self.block(i, owner, until_ns)
            self.unreachable_until_ns[owner] = until_ns
            self.metadata.unreachable[owner] = True
            self.counted.scenes += 1
            self.note(b"node %lld is cut off, and node %lld takes over", owner, self.usurper, 0)
            if self.node_count == 2:
                self.end_now(self.usurper, False)
            self.scene_ns = self.usurp_ns + PEERS_NS
        elif self.scene_step == 1:
            self.gap_ns, self.scene_gap_ns = WINDOW_GAP_NS, self.gap_ns
            self.scene_ns = now + 2 * SECOND
        else:
            self.gap_ns = self.scene_gap_ns
            self.scene_ns = now + SCENE_NS
        self.scene_step = (self.scene_step + 1) % 3

    cdef ClusterFault draw_fault(self) noexcept nogil:
        cdef uint64_t at = self.draw(self.fault_weight)
        cdef int kind = 0
        while at >= self.fault_weights[kind]:
            at -= self.fault_weights[kind]
            kind += 1
        return <ClusterFault>kind

    cdef void strike(self, ClusterFault fault) noexcept nogil:
        cdef int64_t now = self.world.event_queue.now
        cdef int i, owner = self.metadata.record.owner
        cdef int node = owner if self.draw(2) else <int>self.draw(self.node_count)
        cdef void* volume = self.serving()
        if fault == KILL_NODE or fault == CUT_POWER:
            self.crash_node(node, fault == CUT_POWER)
        elif fault == CUT_ALL_POWER:
            for i in range(self.node_count):
                self.end_now(i, True)
        elif fault == CRASH_SEVERAL:
            for i in range(self.node_count):
                if self.draw(3):
                    self.end_now(i, self.fault_weights[<int>CUT_POWER] and self.draw(2))
        elif fault == PAUSE_NODE and (<ClusterNode>self.node_pointers[node]).state == NODE_UP:
            (<ClusterNode>self.node_pointers[node]).paused_until_ns = now + 1 + <int64_t>self.draw(self.pause_ns)
            self.counted.pauses += 1
            self.note(b"node %lld pauses", node, 0, 0)
            if node == owner and self.draw(4):
                self.plan_usurpation(now + <int64_t>self.draw(self.pause_ns))
        elif fault == CUT_CONNECTION:
            self.cut_connection()
        elif fault == PART:
            self.part(node, now + 1 + <int64_t>self.draw(self.part_ns))
            if node == owner and self.draw(2):
                self.plan_usurpation(now + <int64_t>self.draw(self.part_ns))
        elif fault == METADATA_OUTAGE:
            self.metadata.outage = True
            self.outage_until_ns = now + 1 + <int64_t>self.draw(self.part_ns)
            self.counted.outages += 1
            self.note(b"the metadata service does not answer", 0, 0, 0)
        elif fault == USURP:
            self.plan_usurpation(now)
        elif fault == CONTEND:
            self.plan_usurpation(now)
            self.rival = self.choose_opener(self.usurper)
            self.counted.contentions += self.usurper >= 0 and self.rival >= 0
        elif fault == HAND_OVER and volume is not NULL:
            (<SharedVolume>volume).close(True)

    cdef void plan_usurpation(self, int64_t time_ns) noexcept nogil:
        self.usurper = self.choose_opener(self.metadata.record.owner)
        self.usurp_ns = time_ns
        self.counted.usurpations += self.usurper >= 0
        self.note(b"node %lld is to take the volume over", self.usurper, 0, 0)

    cdef void crash_node(self, int node, bint power) noexcept nogil:
        """At once, or at a boundary of a device operation of any node soon."""
        if self.draw(2) or self.armed >= 0 or not (<ClusterNode>self.node_pointers[node]).is_alive():
            self.end_now(node, power)
            return
        self.armed, self.armed_power = node, power
        self.world.crash_at(
            self.world.boundaries + 1 + self.draw(100), power,
            (<WorldIo>(<ClusterNode>self.node_pointers[node]).io_pointers[0]).number
        )

    cdef void end_now(self, int number, bint power) noexcept nogil:
        cdef void* node = self.node_pointers[number]
        if (<ClusterNode>node).is_alive():
            if self.armed == number:
                self.armed = -1
                self.world.crash_at(0, False)
            self.world.crash((<WorldIo>(<ClusterNode>node).io_pointers[0]).number, power)
            self.crashes = self.world.crashes
            self.end_node(<ClusterNode>node, power)
        elif power and (<ClusterNode>node).state == NODE_DOWN:
            (<ClusterNode>node).lose_power()
            self.note(b"node %lld, which is down, loses power", number, 0, 0)

    cdef void notice_crashes(self) noexcept nogil:
        """A node has ended at a boundary."""
        self.crashes = self.world.crashes
        if self.armed >= 0 and not (<ClusterNode>self.node_pointers[self.armed]).is_alive():
            self.end_node(<ClusterNode>self.node_pointers[self.armed], self.armed_power)
            self.armed = -1

    cdef void end_node(self, ClusterNode node, bint power) noexcept nogil:
        """Its process has just ended."""
        self.note(
            b"node %lld loses power" if power else b"the process of node %lld is killed", node.number, 0, 0
        )
        self.metadata.forget(node.number)
        if node.volume_pointer is not NULL:
            (<SharedVolume>node.volume_pointer).process_ended()
        if power:
            node.lose_power()
        else:
            self.counted.kills += 1
            node.notice_drops()
            node.forget_drops()
        node.paused_until_ns = 0
        node.up_at_ns = self.world.event_queue.now + 1 + <int64_t>self.draw(self.down_ns)
        self.wanting = True

    cdef void cut_connection(self) noexcept nogil:
        cdef int first = <int>self.draw(CONNECTIONS_LIKELY), i, end
        for i in range(CONNECTIONS_LIKELY):
            end = (first + i) % <int>CONNECTIONS_LIKELY
            if self.world.network.ends[end].used and self.world.network.ends[end].peer >= 0:
                self.counted.cuts += 1
                self.note(b"connection %lld is cut", end, 0, 0)
                self.world.network.cut(end)
                return

    cdef void part(self, int node, int64_t until_ns) noexcept nogil:
        """Cuts a node off: from all others or one, in one direction or both, and maybe from the metadata service."""
        cdef int ways = 1 + <int>self.draw(3), one = <int>self.draw(2 * self.node_count), k
        self.counted.partitions += 1
        self.note(b"node %lld is cut off, ways %lld, from node %lld or all", node, ways, one)
        for k in range(self.node_count):
            if k == node or (one < self.node_count and one != node and k != one):
                continue
            if ways & 1:
                self.block(node, k, until_ns)
            if ways & 2:
                self.block(k, node, until_ns)
        if self.draw(2):
            self.unreachable_until_ns[node] = until_ns
            self.metadata.unreachable[node] = True

    cdef void block(self, int sender, int to, int64_t until_ns) noexcept nogil:
        self.blocked_until_ns[sender][to] = until_ns
        self.hold(sender, to, True)

    cdef void unblock(self, int sender, int to) noexcept nogil:
        self.blocked_until_ns[sender][to] = 0
        self.hold(sender, to, False)

    cdef void hold(self, int sender, int to, bint held) noexcept nogil:
        cdef int i, k
        cdef void* one = self.node_pointers[sender]
        cdef void* other = self.node_pointers[to]
        if not (<ClusterNode>one).is_alive() or not (<ClusterNode>other).is_alive():
            return                                       # there is no connection
        for i in range(self.reactor_count):
            for k in range(self.reactor_count):
                self.world.network.hold(
                    (<WorldIo>(<ClusterNode>one).io_pointers[i]).number,
                    (<WorldIo>(<ClusterNode>other).io_pointers[k]).number, held
                )

    cdef bint reaches(self, int one, int other) noexcept nogil:
        return (
            (<ClusterNode>self.node_pointers[other]).state == NODE_UP
            and (<ClusterNode>self.node_pointers[other]).is_alive()
            and not (<ClusterNode>self.node_pointers[other]).is_paused()
            and self.blocked_until_ns[one][other] == 0
            and self.blocked_until_ns[other][one] == 0
        )

    # ------------------------------------------------------------------ owners and clients

    cdef void* volume_of(self, int node) noexcept nogil:
        return (<ClusterNode>self.node_pointers[node]).volume_pointer

    cdef void* serving(self) noexcept nogil:
        cdef int i
        cdef void* found = NULL
        for i in range(self.node_count):
            if self.volume_of(i) is not NULL and (<SharedVolume>self.volume_of(i)).serves() and (
                (<SharedVolume>self.volume_of(i)).log_record.epoch == self.metadata.record.epoch
            ):
                found = self.volume_of(i)
        return found

    cdef void* any_serving(self) noexcept nogil:
        """Mostly the newest owner; but clients of former ones go on, too. A node that pauses gets no requests."""
        cdef void* found[NODES_MAX]
        cdef void* newest = NULL
        cdef int i, count = 0
        for i in range(self.node_count):
            if self.volume_of(i) is NULL or not (<SharedVolume>self.volume_of(i)).serves() or (
                (<ClusterNode>self.node_pointers[i]).is_paused()
            ):
                continue
            found[count] = self.volume_of(i)
            count += 1
            if newest is NULL or (
                (<SharedVolume>newest).log_record.epoch < (<SharedVolume>self.volume_of(i)).log_record.epoch
            ):
                newest = self.volume_of(i)
        return newest if count < 2 or self.draw(4) else found[self.draw(count)]

    cdef bint is_open_anywhere(self) noexcept nogil:
        """Or is being opened, or closed; not by an owner that has lost its right."""
        cdef int i
        cdef void* volume
        for i in range(self.node_count):
            volume = self.volume_of(i)
            if volume is NULL or (<SharedVolume>volume).state >= SHARED_CLOSED:
                continue
            if (
                (<SharedVolume>volume).state == SHARED_OPENING
                or (<SharedVolume>volume).log_record.epoch == self.metadata.record.epoch
            ):
                return True
        return False

    cdef int choose_opener(self, int but) noexcept nogil:
        cdef int first = <int>self.draw(self.node_count), i, node
        for i in range(self.node_count):
            node = (first + i) % self.node_count
            if (
                node != but
                and (<ClusterNode>self.node_pointers[node]).state == NODE_UP
                and (<ClusterNode>self.node_pointers[node]).is_alive()
                and not (<ClusterNode>self.node_pointers[node]).is_paused()
                and self.volume_of(node) is NULL
            ):
                return node
        return -1

    cdef bint may_issue(self) noexcept nogil:
        return self.left > 0 and (self.phase == WORKING or self.phase == WIDENING)

    cdef bint takes_more(self, SharedVolume volume) noexcept nogil:
        """The writes of an owner that is cut off wait for ever: in directed runs its clients still read, and trim."""
        if self.directed and volume.log_record.epoch < self.registers.opened:
            return volume.busy < CLIENT_SLOTS - 1
        return volume.busy < self.depth

    cdef void issue(self) noexcept nogil:
        cdef uint64_t at
        cdef int kind
        cdef void* volume
        while self.may_issue() and self.next_ns <= self.world.event_queue.now and not self.wanting:
            volume = self.any_serving()
            if volume is NULL or not self.takes_more(<SharedVolume>volume):
                return
            at = self.draw(self.weight)
            kind = 0
            while at >= self.weights[kind]:
                at -= self.weights[kind]
                kind += 1
            if self.phase == WIDENING:
                kind = CLIENT_WRITE
            elif (<SharedVolume>volume).busy >= self.depth:
                kind = CLIENT_READ if self.seed & 16 else CLIENT_ZERO
            if not (<SharedVolume>volume).issue(kind):
                return
            self.left -= 1
            if self.left == self.fault_at or self.left == 0:
                self.due_ns = 0
            if self.gap_ns:
                self.next_ns = self.world.event_queue.now + <int64_t>self.draw(2 * self.gap_ns)

    # ------------------------------------------------------------------ for people

    cdef list describe(self):
        """What the metadata service and the devices have of the volume, and who has it open."""
        cdef LogRecord* record = &self.metadata.record
        cdef ClusterNode node
        cdef SharedVolume volume
        cdef uint32_t i
        lines = [
            f"metadata: epoch {record.epoch} of node {record.owner}, checkpoint of record {record.sequence} in segment "
            f"{record.checkpoint.segment} block {record.checkpoint.block}, promised {record.promised}"
        ]
        for i in range(record.fragment_count):
            devices = [device for device in record.fragments[i].devices if device]
            lines.append(f"  fragment {record.fragments[i].number} from record {record.fragments[i].first}: {devices}")
        for node in self.nodes:
            lines.append(f"node {node.number}: state {node.state}, boot {node.boot}, devices {node.numbers()}")
            volume = node.volume
            if volume is not None:
                lines.append(f"  opening {volume.number}: state {volume.state}, epoch {volume.log_record.epoch}")
                lines += volume.describe()
            if node.state == NODE_UP and node.is_alive():
                lines += node.describe()
        return lines

    def trace(self, last=100):
        return ClusterRun.trace(self, last) + (self.found or [])

    @property
    def digest(self):
        return self.world.digest ^ self.registers.clock << 32 ^ self.registers.compared

    @property
    def told(self):
        return {
            "operations": self.counted.operations,
            **{CLIENT_NAMES[kind]: self.counted.done[kind] for kind in range(<int>CLIENT_KINDS)},
            "failures": self.counted.failures,
            "vanished": self.counted.vanished,
            "kills": self.counted.kills,
            "power_cuts": self.counted.power_cuts,
            "pauses": self.counted.pauses,
            "cuts": self.counted.cuts,
            "partitions": self.counted.partitions,
            "outages": self.counted.outages,
            "silences": self.counted.silences,
            "late": self.counted.late,
            "openings": self.counted.openings,
            "refusals": self.counted.refusals,
            "take_overs": self.counted.take_overs,
            "usurpations": self.counted.usurpations,
            "contentions": self.counted.contentions,
            "lost_rights": self.counted.lost_rights,
            "fragments": self.counted.fragments,
            "fetched": self.counted.fetched,
            "completed": self.counted.completed,
            "connections": self.counted.connections,
            "reconciled": self.counted.reconciled,
            "rebuilt": self.counted.rebuilt,
            "dropped": self.counted.dropped,
            "moves": self.counted.moves,
            "stale": self.counted.stale,
            "equal": self.counted.equal,
            "scenes": self.counted.scenes,
            "lapses": self.registers.lapses,
            "losses": self.registers.losses,
            "compared": self.registers.compared,
            "struck": sum(self.world.counts.values()),
            "seconds": (self.world.event_queue.now - SECOND) // SECOND,
            "steps": self.step,
            "events": self.world.events,
        }


cdef void link_lost(void* link) noexcept nogil:
    if (<Link*>link).attached:
        (<Link*>link).step.result = 0
        (<Link*>link).step.done(&(<Link*>link).step)
