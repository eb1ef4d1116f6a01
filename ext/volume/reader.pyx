# Reads of a volume. Steps of a read:
#
#     look_up   get its leaf, loading it if necessary, and copy its pointers, so that later changes of the map do not
#               matter
#     fetch     start one device read for each run of contiguous blocks; fill unmapped blocks with zeros. If the bitmap
#               of a compacted segment is not in the cache, it is read first; the device reads started before it
#               continue
#     run_done  verify every block against its pointer's checksum
#     end       complete the request
#
# Always true: a block whose checksum does not match, or that is missing in a compacted segment, is never returned as
# data. It is looked up and read once more (its segment may have been deleted or compacted between look-up and read),
# and again if another replica has replaced the one that was read; otherwise the request fails with EIO, which is
# counted and reported with the address.

from libc.errno cimport EAGAIN, EIO, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset

from iomesh.engine.store.bitmaps cimport place_of
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.counters cimport BLOCKS_REPAIRED, CHECKSUM_ERRORS, READ_ERRORS
from iomesh.engine.log.repair cimport read_copy
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS, POINTER_PRESENT, Pointer
from iomesh.engine.map.map cimport ABSENT, Map, Node
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.base.task cimport join, start, wake_one


cdef enum:
    ATTEMPTS_RESUMED = 4             # limit for a read whose segments keep changing while it waits for bitmaps


cdef class Reader:
    def __cinit__(self, Reactor reactor, Map map, SegmentTable segments):
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
        invariant(
            0 < read.count and read.block % NODE_POINTERS + read.count <= NODE_POINTERS, b"a read lies under one leaf"
        )
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

    cdef void look_up_under_lease(self, Read* read) noexcept nogil:
        read.error = 0
        read.again = False
        self.look_up(read)

    cdef void look_up_again(self, Read* read, int64_t result) noexcept nogil:
        if result < 0:
            read.error = EIO
            self.end(read)
        else:
            self.look_up(read)

    cdef void fetch(self, Read* read) noexcept nogil:
        if self.free_count < read.count:                 # worst case: no two blocks are contiguous
            read.waiting.done = fetch_again
            join(&self.run_waiters, &read.waiting)
            return
        read.runs_left = 1                               # one extra until all runs are started
        read.asked = 0
        self.go_on(read, False)

    cdef void go_on(self, Read* read, bint resumed) noexcept nogil:
        """Starts the remaining device reads. After a bitmap that has to be read, resume() continues (`resumed`)."""
        cdef uint32_t first = read.asked, count, contiguous
        cdef Pointer pointer
        cdef Segment* segment
        cdef int64_t offset
        cdef Run* run
        read.waiting.done = go_on_later
        while first < read.count:
            pointer = read.pointers[first]
            if not pointer.flags & POINTER_PRESENT:
                memset(read.into + first * BLOCK_BYTES, 0, BLOCK_BYTES)
                first += 1
                continue
            segment = self.segments.locate(pointer.segment)
            if segment is NULL or segment.replica is NULL or pointer.block >= segment.blocks:
                if resumed and read.attempts < ATTEMPTS_RESUMED:
                    read.again = True                    # deleted while a bitmap was being read, maybe
                else:
                    read.error = EIO
                first += 1
                continue
            offset = place_of(self.map.cache.bitmaps, segment.replica, pointer.block, &contiguous, &read.waiting)
            if offset < 0:
                if offset == -EAGAIN:
                    read.asked = first
                    return
                if read.attempts == 0 or (resumed and read.attempts < ATTEMPTS_RESUMED):
                    read.again = True
                else:
                    self.lost(read, first)
                first += 1
                continue
            count = 1
            while (
                first + count < read.count
                and count < contiguous
                and follows(&read.pointers[first + count], &pointer, count)
            ):
                count += 1
            run = self.free_runs
            self.free_runs = run.next
            self.free_count -= 1
            run.read = read
            run.serial = segment.replica.serial
            run.first = first
            run.count = count
            run.operation.done = run_ended
            read.runs_left += 1
            self.io.read(
                &run.operation, segment.replica.device, read.into + first * BLOCK_BYTES, count * BLOCK_BYTES, offset
            )
            first += count
        read.runs_left -= 1
        if read.runs_left == 0:
            self.end_later(read)

    cdef void resume(self, Read* read, int64_t result) noexcept nogil:
        """A bitmap was read, reading it failed, or runs are free."""
        if result < 0:
            self.lost(read, read.asked)
            read.asked = read.count
        elif self.free_count < read.count - read.asked:
            join(&self.run_waiters, &read.waiting)
            return
        self.go_on(read, True)

    cdef void run_done(self, Run* run, int result) noexcept nogil:
        cdef Read* read = run.read
        cdef uint32_t i
        cdef bint mend = False
        if result < 0 and result != -ETIMEDOUT and self.has_copies(run):
            mend = True
        elif result < 0:
            read.error = EIO if result == -ETIMEDOUT else -result
        else:
            for i in range(run.first, run.first + run.count):
                if crc32c(read.into + i * BLOCK_BYTES, BLOCK_BYTES) != read.pointers[i].crc:
                    if read.attempts == 0 or overtaken(self, run):
                        read.again = True
                    elif self.has_copies(run):
                        mend = True
                    else:
                        self.lost(read, i)
        if mend and not read.again:
            start(mend_body, run, NULL)
        else:
            self.run_over(run)

    cdef bint has_copies(self, const Run* run) noexcept nogil:
        cdef const Segment* segment
        if self.open_segments is None:
            return False
        segment = self.segments.find(run.read.pointers[run.first].segment)
        return segment is not NULL and segment.copy_count > 0

    cdef void mend(self, Run* run) noexcept nogil:
        """In a task: gets what this node has lost from copies on other nodes."""
        cdef Read* read = run.read
        cdef char* into
        cdef uint32_t i
        for i in range(run.first, run.first + run.count):
            into = read.into + i * BLOCK_BYTES
            if crc32c(into, BLOCK_BYTES) == read.pointers[i].crc:
                continue
            if read_copy(self.open_segments, read.pointers[i], into, False) < 0:
                self.lost(read, i)
            else:
                self.counters[BLOCKS_REPAIRED] += 1
        self.run_over(run)

    cdef void run_over(self, Run* run) noexcept nogil:
        cdef Read* read = run.read
        run.next = self.free_runs
        self.free_runs = run
        self.free_count += 1
        read.runs_left -= 1
        if read.runs_left == 0:
            self.settle(read)
        if self.free_count >= NODE_POINTERS:
            wake_one(&self.run_waiters, 0)

    cdef void lost(self, Read* read, uint32_t i) noexcept nogil:
        """Reports a block that the map points to as unreadable."""
        read.error = EIO
        self.counters[CHECKSUM_ERRORS] += 1
        self.on_checksum(self.owner, read.block + i, read.pointers[i].segment, read.pointers[i].block)

    cdef void settle(self, Read* read) noexcept nogil:
        if read.again and not read.error:
            read.again = False
            read.attempts += 1
            self.look_up(read)
        else:
            self.end(read)

    cdef void end(self, Read* read) noexcept nogil:
        if self.serving is not None and not self.serving.holds():
            if not self.serving.over:
                read.waiting.done = look_up_under_lease
                self.serving.await_leases(&read.waiting)         # what was read may be out of date: it is read again
                return
            read.error = EIO
        if read.error:
            read.unmapped = False
            self.counters[READ_ERRORS] += 1
        self.under_way -= 1
        if self.free_count >= NODE_POINTERS:             # it may have been woken for runs that it did not use
            wake_one(&self.run_waiters, 0)
        read.done(read)

    cdef void end_later(self, Read* read) noexcept nogil:
        read.waiting.done = end_now
        self.reactor.at_turn_end(&read.waiting)


cdef inline bint follows(const Pointer* pointer, const Pointer* first, uint32_t count) noexcept nogil:
    """Whether it points to `count` blocks after `first`, in the same segment."""
    return pointer.flags & POINTER_PRESENT and pointer.segment == first.segment and pointer.block == first.block + count


cdef bint overtaken(Reader reader, const Run* run) noexcept nogil:
    """Whether another replica has replaced the one that this run read."""
    cdef Segment* segment = reader.segments.locate(run.read.pointers[run.first].segment)
    return segment is NULL or segment.replica is NULL or segment.replica.serial != run.serial


cdef void look_up_again(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).look_up_again(read, operation.result)


cdef int64_t mend_body(void* run) noexcept nogil:
    (<Reader>(<Run*>run).operation.owner).mend(<Run*>run)
    return 0


cdef void look_up_under_lease(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).look_up_under_lease(read)


cdef void fetch_again(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).look_up(read)      # the pointers may have changed, and their segments may be deleted


cdef void go_on_later(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).resume(read, operation.result)


cdef void end_now(Operation* operation) noexcept nogil:
    cdef Read* read = <Read*>operation.owner
    (<Reader>read.volume).settle(read)


cdef void run_ended(Operation* operation) noexcept nogil:
    cdef Run* run = <Run*>operation          # its first member
    (<Reader>operation.owner).run_done(run, <int>operation.result)
