# The shared state of a simulation run: the random generator, the drawn parameters, the process in which its volumes are
# open, and the trace of events. Used by simulated_volume, snapshots and the other parts of a run; simulation extends it
# and drives the run.

from libc.errno cimport EHOSTUNREACH, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free as release
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS
from iomesh.engine.base.task cimport wait, waited

CLUSTER = b"simulated worlds"
KIND_NAMES = (
    "read", "write", "zero", "flush", "checkpoint", "grow", "pause", "clean", "snapshot", "delete", "look", "restore",
    "damage", "clone", "drop", "mark", "moment", "rewind", "detach", "stray", "verify"
)

cdef char* spare_memory = NULL


cdef class RunState(BaseRun):
    """Raises MemoryError."""

    def __cinit__(self, uint64_t seed, operations=None):
        cdef int i
        memcpy(self.cluster, <const char*>(<bytes>CLUSTER), 16)
        self.ledger = Ledger()
        global spare_memory
        self.memory = spare_memory                       # of a finished run
        spare_memory = NULL
        if self.memory is NULL:
            self.memory = <char*>allocate_aligned(<size_t>(SLOTS + 1 + EXTRA) * READ_BLOCKS * BLOCK_BYTES)
        if self.memory is NULL:
            raise MemoryError("no memory for operations")
        for i in range(SLOTS):
            self.slots[i].buffer = self.memory + i * READ_BLOCKS * BLOCK_BYTES
        self.look_buffer = self.memory + SLOTS * READ_BLOCKS * BLOCK_BYTES
        for i in range(EXTRA):
            self.extra[i] = self.memory + <size_t>(SLOTS + 1 + i) * READ_BLOCKS * BLOCK_BYTES

    def __dealloc__(self):
        global spare_memory
        if spare_memory is NULL:
            spare_memory = self.memory
        else:
            release(self.memory)

    cdef void count(self, int kind) noexcept nogil:
        self.done[kind] += 1

    cdef void crash_soon(self, uint64_t within) noexcept nogil:
        """Schedules a crash after a turn, or during one: when a device operation is issued or completes."""
        if self.draw(2):
            self.crash_step = self.step + 1 + self.draw(within)
        else:
            self.armed_power = self.chance(self.power)
            self.world.crash_at(self.world.boundaries + 1 + self.draw(within), self.armed_power)
            self.crash_step = self.step + 4096           # in case no more device operations are issued

    cdef void hurry(self) noexcept nogil:
        if not self.last and self.crash_step == NEVER_CRASHES and self.chance(96):
            self.crash_soon(300)

    cdef uint64_t place_of(self, uint32_t sector) noexcept nogil:
        return self.leaves[sector // REGION_SECTORS] * REGION_SECTORS + sector % REGION_SECTORS

    cdef uint32_t regions_below(self, uint64_t size_blocks) noexcept nogil:
        """The number of regions that a volume or snapshot of this size has."""
        cdef uint32_t count = 0
        while count < self.regions and (self.leaves[count] + 1) * NODE_POINTERS <= size_blocks:
            count += 1
        return count

    cdef Slot* take_slot(self, void* simulated, int kind) noexcept nogil:
        cdef int i = 0
        cdef Slot* slot
        while self.slots[i].busy:
            i += 1
        slot = &self.slots[i]
        self.renew(&slot.buffer)
        self.busy += 1
        memset(&slot.request, 0, sizeof(slot.request))
        memset(&slot.read, 0, sizeof(slot.read) - sizeof(slot.read.pointers))
        slot.busy = True
        slot.simulated = simulated
        slot.kind = kind
        slot.done = slot.number = 0
        slot.started_ns = self.io.now_ns()
        slot.when.owner = slot.read.owner = slot
        slot.read.into = slot.buffer
        self.done[kind] += 1
        return slot

    cdef void renew(self, char** buffer) noexcept nogil:
        cdef char* before = buffer[0]
        cdef int i
        for i in range(EXTRA if self.is_held(before) else 0):
            if not self.is_held(self.extra[i]):
                buffer[0] = self.extra[i]
                self.extra[i] = before
                return

    cdef bint is_held(self, const char* buffer) noexcept nogil:
        """Whether an abandoned request of any reactor may write into a buffer."""
        cdef uint32_t i
        for i in range(self.reactor_count):
            if (<SimulatedReactor>self.reactor_pointers[i]).io.holds(buffer, READ_BLOCKS * BLOCK_BYTES):
                return True
        return False

    cdef int64_t oldest_ns(self) noexcept nogil:
        """The age of the oldest operation in flight."""
        cdef int64_t oldest = self.io.now_ns()
        cdef int i
        for i in range(SLOTS):
            if self.slots[i].busy:
                oldest = min(oldest, self.slots[i].started_ns)
        return self.io.now_ns() - oldest

    cdef void pass_time(self) noexcept nogil:
        """In a task: waits as long as the metadata service may take."""
        cdef Operation operation
        waited(&operation)
        self.io.after(&operation, <int64_t>self.draw(self.metadata_ns))
        wait(&operation)

    # ------------------------------------------------------------------ for people

    cdef void fail(self, const char* what, int error) noexcept nogil:
        """An operation ended with this error (negative; 0: none). It is allowed when there is no space, devices fail,
        the metadata service does not answer, or its volume closes."""
        if error == -EHOSTUNREACH and self.outage:
            return
        if error < 0 and error != -ENOSPC and error != -ESHUTDOWN and not self.errors_allowed and not self.wrong:
            self.fault(b"", 0, 0)
            snprintf(self.words, sizeof(self.words), b"%s ends with error %d, and no device failed", what, -error)
