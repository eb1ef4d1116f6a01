# A volume as another node uses it, which forwards its clients' requests (docs/protocols.md, "A volume's I/O"). One for
# each connection, on the volume's reactor; replicas/server.pyx receives the requests and sends the replies.
#
#     begin --> at the volume <-> waiting --> complete --> finished        WRITE, MERGE, ZERO; FLUSH at once
#       '-----> at the volume --> finished                                 READ, STATUS
#       '-----> refused
#
# Always true:
#   - a request is refused with ESTALE while this node does not serve the volume: it was not executed, or what it did is
#     not acknowledged and will not be, so the other node may repeat it;
#   - once the connection has ended, nothing more of a request is passed to the volume. So when `Server.ended` is done,
#     nothing that came over it can still change the volume.

from libc.errno cimport EBUSY, EINVAL, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcmp, memset

from iomesh.engine.base.counters cimport (
    FLUSH_LATENCY, FLUSHES, READ_BYTES, READ_LATENCY, READS, WRITE_LATENCY, WRITES, WRITTEN_BYTES, ZEROED_BYTES, ZEROES,
    observe
)
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport BLOCK_BYTES
from iomesh.engine.format.peer cimport (
    PEER_STABLE, PEER_VOLUME_FLUSH, PEER_VOLUME_MERGE, PEER_VOLUME_READ, PEER_VOLUME_STATUS, PEER_VOLUME_WRITE,
    PEER_VOLUME_ZERO, PEER_ZEROS, VolumeRequest
)
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.replicas.served_store cimport StoreRequest
from iomesh.engine.replicas.server cimport REQUESTS_MAX, SERVER_CLOSED, Server
from iomesh.engine.volume.volume cimport Volume

cdef extern from "<errno.h>" nogil:
    int ESTALE


cdef class ServedVolume:
    """Raises MemoryError."""

    def __cinit__(self, Volume volume, Server server):
        cdef int i
        self.volume, self.server = volume, server
        self.entries = <VolumeEntry*>calloc(REQUESTS_MAX, sizeof(VolumeEntry))
        self.reads = <ReadEntry*>calloc(REQUESTS_MAX, sizeof(ReadEntry))          # pages are allocated on first use
        if self.entries is NULL or self.reads is NULL:
            raise MemoryError("no memory for the requests of another node")
        for i in range(REQUESTS_MAX - 1, -1, -1):
            self.entries[i].served = self.reads[i].served = <void*>self
            self.entries[i].when.done = entry_goes_on
            self.entries[i].when.owner = &self.entries[i]
            self.entries[i].next = self.free_entries
            self.free_entries = &self.entries[i]
            self.reads[i].read.done = read_ends
            self.reads[i].read.owner = &self.reads[i]
            self.reads[i].next = self.free_reads
            self.free_reads = &self.reads[i]
        server.begin_volume = begin_volume
        server.volume = <void*>self

    def __dealloc__(self):
        release(self.entries)
        release(self.reads)

    cdef void begin(self, StoreRequest* asked) noexcept nogil:
        cdef const VolumeRequest* frame = <const VolumeRequest*>&asked.frame
        cdef ReadEntry* reading = self.free_reads
        cdef VolumeEntry* entry = self.free_entries
        cdef int refusal = self.refusal(asked)
        invariant(reading is not NULL and entry is not NULL, b"a server has no more requests than entries")
        if refusal:
            asked.result = refusal
            asked.done(asked)
            return
        self.volume.reactor.users_there()
        if frame.kind == PEER_VOLUME_READ:
            self.free_reads = reading.next
            reading.asked = asked
            reading.began_ns = self.volume.reactor.users_ns
            reading.read.block, reading.read.count = frame.block, <uint32_t>frame.blocks
            reading.read.into = asked.buffer
            self.volume.read(&reading.read)
            return
        self.free_entries = entry.next
        memset(&entry.request, 0, sizeof(Request))
        entry.request.finished = request_finished
        entry.request.stable = frame.flags & PEER_STABLE != 0
        entry.asked = asked
        entry.began_ns = self.volume.reactor.users_ns
        entry.done = 0
        entry.error = 0
        entry.with_volume = False
        if frame.kind == PEER_VOLUME_FLUSH:
            self.volume.flush(&entry.request)
        else:
            self.advance(entry)

    cdef int refusal(self, const StoreRequest* asked) noexcept nogil:
        cdef const VolumeRequest* frame = <const VolumeRequest*>&asked.frame
        if memcmp(frame.volume, self.volume.identity, 16) != 0:
            return -EINVAL
        if self.is_lost():
            return -ESTALE
        if frame.block > self.volume.blocks or frame.blocks > self.volume.blocks - frame.block:
            return -EBUSY                                # it is being grown: its record has the new size already
        return 0

    cdef bint is_lost(self) noexcept nogil:
        """Another node owns the volume, or it is being closed here."""
        return self.volume.closing or self.volume.log.error == -ESTALE

    cdef void advance(self, VolumeEntry* entry) noexcept nogil:
        """Pass on what is left of the request until it is complete or must wait."""
        cdef const VolumeRequest* frame = <const VolumeRequest*>&entry.asked.frame
        cdef const char* data = entry.asked.buffer
        cdef uint64_t block, left
        cdef int64_t taken
        cdef bint mapped = False
        while entry.done < frame.blocks and entry.error == 0:
            block, left = frame.block + entry.done, frame.blocks - entry.done
            if self.server.state >= SERVER_CLOSED:
                taken = -ESHUTDOWN
            elif frame.kind == PEER_VOLUME_STATUS:
                taken = self.volume.alike(block, min(left, <uint64_t>0xFFFFFFFF), &mapped, &entry.when)
                if taken > 0:
                    entry.asked.count, entry.asked.unmapped = <uint32_t>taken, not mapped
                    break
            else:
                entry.with_volume = True
                if frame.kind == PEER_VOLUME_WRITE:
                    taken = self.volume.write(
                        &entry.request, block, <uint32_t>left, data + entry.done * BLOCK_BYTES, &entry.when
                    )
                elif frame.kind == PEER_VOLUME_MERGE:
                    taken = self.volume.merge(
                        &entry.request, block, frame.start, frame.bytes,
                        NULL if frame.flags & PEER_ZEROS else data, &entry.when,
                    )
                else:
                    taken = self.volume.zero(&entry.request, block, left, &entry.when)
            if taken == 0:
                return                                   # entry_goes_on() continues
            if taken < 0:
                entry.error = <int>taken
            else:
                entry.done += <uint64_t>taken
        if entry.with_volume:
            self.volume.complete(&entry.request)
        else:
            self.finish(entry)

    cdef void finish(self, VolumeEntry* entry) noexcept nogil:
        cdef StoreRequest* asked = entry.asked
        if entry.error == 0:
            entry.error = -entry.request.error
        asked.result = self.result_of(entry.error)
        self.account(asked, entry.began_ns)
        entry.next = self.free_entries
        self.free_entries = entry
        self.volume.reactor.users_there()
        asked.done(asked)

    cdef void read_done(self, ReadEntry* entry) noexcept nogil:
        cdef StoreRequest* asked = entry.asked
        asked.result = self.result_of(-entry.read.error)
        asked.unmapped = entry.read.unmapped
        self.account(asked, entry.began_ns)
        entry.next = self.free_reads
        self.free_reads = entry
        asked.done(asked)

    cdef void account(self, const StoreRequest* asked, int64_t began_ns) noexcept nogil:
        """What is done again by the next owner is counted there."""
        cdef const VolumeRequest* frame = <const VolumeRequest*>&asked.frame
        cdef uint64_t bytes = frame.bytes if frame.kind == PEER_VOLUME_MERGE else frame.blocks * BLOCK_BYTES
        cdef uint64_t* counters = self.volume.counters
        cdef int64_t took_ns = self.volume.io.now_ns() - began_ns
        if asked.result == -ESTALE:
            return
        if asked.result < 0:
            bytes = 0
        if frame.kind == PEER_VOLUME_READ:
            counters[<int>READS] += 1
            counters[<int>READ_BYTES] += bytes
            observe(self.volume.latencies, READ_LATENCY, took_ns)
        elif frame.kind == PEER_VOLUME_FLUSH:
            counters[<int>FLUSHES] += 1
            observe(self.volume.latencies, FLUSH_LATENCY, took_ns)
        elif frame.kind == PEER_VOLUME_ZERO or (frame.kind == PEER_VOLUME_MERGE and frame.flags & PEER_ZEROS):
            counters[<int>ZEROES] += 1
            counters[<int>ZEROED_BYTES] += bytes
        elif frame.kind != PEER_VOLUME_STATUS:
            counters[<int>WRITES] += 1
            counters[<int>WRITTEN_BYTES] += bytes
            observe(self.volume.latencies, WRITE_LATENCY, took_ns)

    cdef int result_of(self, int error) noexcept nogil:
        """What fails since the volume has another owner is asked again of that one."""
        return -ESTALE if error and (self.is_lost() or error == -ESHUTDOWN) else error


# ---------------------------------------------------------------------- callbacks

cdef void begin_volume(void* served, StoreRequest* asked) noexcept nogil:
    (<ServedVolume>served).begin(asked)


cdef void entry_goes_on(Operation* operation) noexcept nogil:
    cdef VolumeEntry* entry = <VolumeEntry*>operation.owner
    if operation.result < 0 and entry.error == 0:
        entry.error = <int>operation.result              # a retry would fail again
    (<ServedVolume>entry.served).advance(entry)


cdef void request_finished(Request* request) noexcept nogil:
    cdef VolumeEntry* entry = <VolumeEntry*>request
    (<ServedVolume>entry.served).finish(entry)


cdef void read_ends(Read* read) noexcept nogil:
    cdef ReadEntry* entry = <ReadEntry*>read.owner
    (<ServedVolume>entry.served).read_done(entry)
