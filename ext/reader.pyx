# Reads of a volume. A read's life:
#
#     look_up   its leaf is in the cache, or is loaded first; its pointers are copied, so what happens to the map later does not matter
#     fetch     one device read for each run of blocks that lie side by side; what is not mapped is filled with zeros
#     run_done  every block is checked against its pointer's checksum
#     end       the door is told
#
# Always true: a block whose checksum does not match is never handed out as data. It is looked up and read once more (its segment may have been
# given up between look-up and read); if it fails again, the request gets EIO, which is counted and reported with the address.

from libc.errno cimport EIO
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.checksum cimport crc32c
from iomesh.engine.counters cimport CHECKSUM_ERRORS, READ_ERRORS
from iomesh.engine.invariant cimport invariant
from iomesh.engine.io cimport Operation
from iomesh.engine.layout cimport BLOCK_BYTES, NODE_POINTERS, POINTER_PRESENT, Pointer
from iomesh.engine.map cimport ABSENT, Map, Node
from iomesh.engine.segments cimport Segment, Segments
from iomesh.engine.store cimport replica_offset
from iomesh.engine.task cimport join, wake_one


cdef class Reader:
    def __cinit__(self, Reactor reactor, Map map, Segments segments):
        cdef int i
        self.reactor, self.io, self.map, self.segments = reactor, reactor.io, map, segments
        self.runs = <Run*>calloc(RUNS, sizeof(Run))
        if self.runs is NULL:
            raise MemoryError("no memory for reads")
        for i in range(RUNS):
            self.runs[i].operation.owner = <void*>self
            self.runs[i].next = self.free_runs
            self.free_runs = &self.runs[i]
        self.free_count = RUNS

    def __dealloc__(self):
        release(self.runs)

    cdef void read(self, Read* read) noexcept nogil:
        invariant(0 < read.count and read.block % NODE_POINTERS + read.count <= NODE_POINTERS, b"a read lies under one leaf")
        read.error = 0
        read.unmapped = False
        read.attempts = 0
        read.again = False
        read.volume = <void*>self
        self.under_way += 1
        self.look_up(read)

    cdef void look_up(self, Read* read) noexcept nogil:
        cdef Node* leaf
        cdef uint32_t i
        read.waiting.done = look_up_again
        read.waiting.owner = read
        leaf = self.map.get(0, read.block // NODE_POINTERS, False, &read.waiting)
        if leaf is NULL:
            return
        read.unmapped = True
        if leaf is not ABSENT:
            memcpy(read.pointers, &leaf.pointers[read.block % NODE_POINTERS], read.count * sizeof(Pointer))
            self.map.unpin(leaf)
            for i in range(read.count):
                if read.pointers[i].flags & POINTER_PRESENT:
                    read.unmapped = False
                    break
        if read.unmapped:
            self.end_later(read)
        else:
            self.fetch(read)

    cdef void fetch(self, Read* read) noexcept nogil:
        cdef uint32_t first = 0, count, contiguous
        cdef Pointer pointer
        cdef Segment* segment
        cdef uint64_t offset
        cdef Run* run
        if self.free_count < read.count:                 # the worst case: every block lies elsewhere
            read.waiting.done = fetch_again
            join(&self.run_waiters, &read.waiting)
            return
        read.runs_left = 1                               # held by this loop
        while first < read.count:
            pointer = read.pointers[first]
            if not pointer.flags & POINTER_PRESENT:
                memset(read.into + first * BLOCK_BYTES, 0, BLOCK_BYTES)
                first += 1
                continue
            segment = self.segments.locate(pointer.segment)
            if segment is NULL or segment.replica is NULL or pointer.block >= segment.blocks:
                read.error = EIO
                first += 1
                continue
            offset = replica_offset(segment.replica, pointer.block, &contiguous)
            count = 1
            while first + count < read.count and count < contiguous and follows(&read.pointers[first + count], &pointer, count):
                count += 1
            run = self.free_runs
            self.free_runs = run.next
            self.free_count -= 1
            run.read = read
            run.first = first
            run.count = count
            run.operation.done = run_ended
            read.runs_left += 1
            self.io.read(&run.operation, segment.replica.device, read.into + first * BLOCK_BYTES, count * BLOCK_BYTES, offset)
            first += count
        read.runs_left -= 1
        if read.runs_left == 0:
            self.end_later(read)

    cdef void run_done(self, Run* run, int result) noexcept nogil:
        cdef Read* read = run.read
        cdef uint32_t i
        cdef bint matches = True
        if result < 0:
            read.error = -result
        else:
            for i in range(run.first, run.first + run.count):
                if crc32c(read.into + i * BLOCK_BYTES, BLOCK_BYTES) != read.pointers[i].crc:
                    matches = False
                    if read.attempts:
                        read.error = EIO
                        self.counters[CHECKSUM_ERRORS] += 1
                        self.on_checksum(self.owner, read.block + i, read.pointers[i].segment, read.pointers[i].block)
        run.next = self.free_runs
        self.free_runs = run
        self.free_count += 1
        read.runs_left -= 1
        if not matches and read.attempts == 0:
            read.again = True
        if read.runs_left == 0:
            if read.again and not read.error:
                read.again = False
                read.attempts = 1
                self.look_up(read)
            else:
                self.end(read)
        if self.free_count >= NODE_POINTERS:
            wake_one(&self.run_waiters, 0)

    cdef void end(self, Read* read) noexcept nogil:
        if read.error:
            read.unmapped = False
            self.counters[READ_ERRORS] += 1
        self.under_way -= 1
        if self.free_count >= NODE_POINTERS:             # it may have been woken for runs that it did not need after all
            wake_one(&self.run_waiters, 0)
        read.done(read)

    cdef void end_later(self, Read* read) noexcept nogil:
        read.waiting.done = end_now
        self.reactor.at_turn_end(&read.waiting)


cdef inline bint follows(const Pointer* pointer, const Pointer* first, uint32_t count) noexcept nogil:
    """Whether it points `count` blocks behind `first`, in the same segment."""
    return pointer.flags & POINTER_PRESENT and pointer.segment == first.segment and pointer.block == first.block + count


cdef void look_up_again(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    if operation.result < 0:
        read.error = EIO
        (<Reader>read.volume).end(read)
    else:
        (<Reader>read.volume).look_up(read)


cdef void fetch_again(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).look_up(read)      # its pointers may have moved on, and their segments be gone


cdef void end_now(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).end(read)


cdef void run_ended(Operation* operation) noexcept nogil:
    cdef Run* run = <Run*>operation          # its first member
    (<Reader>operation.owner).run_done(run, <int>operation.result)
