# A volume: turns requests of its exports into log entries, and applies committed records to the map.
#
# Steps of a write: its leaf is pinned in the cache (loaded first if necessary), then its data is copied into the record
# that is being built. When the record commits, the leaf gets the new pointers and is unpinned, and the request is
# acknowledged. So a commit never waits for I/O and the cache stays bounded: a write that needs a frame waits before it
# is logged.
#
# Always true:
#   - the map contains committed records only; reads see committed data;
#   - a write of part of a block (merge) is atomic: between its read and its commit no other write to that block is
#     logged, and everything logged before its read has committed;
#   - `segments` counts exactly what the map points to.

from libc.errno cimport EIO, ENOMEM, ENOSPC, EPERM, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.volume.checkpoint cimport Checkpoints
from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.atomics cimport store_flag
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.counters cimport MERGES as COUNT_MERGES, NO_SPACE_ERRORS, WRITE_ERRORS
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, KIND_DATA, KIND_MAP, KIND_ZERO, NODE_POINTERS, POINTER_PRESENT, Entry, Pointer, address_of)
from iomesh.engine.log.log cimport Log, Part, Record
from iomesh.engine.map.map cimport ABSENT, Map, Node
from iomesh.engine.base.planted cimport planted
from iomesh.engine.volume.reader cimport Reader
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.log.open_segments cimport FOR_SPACE, FOR_TRIMS, FOR_WRITES
from iomesh.engine.base.task cimport join, wait_in, wake_all
from iomesh.engine.map.walk cimport Walk


cdef class Volume:
    """Recovery fills in its parts. blocks: its size. log None: a snapshot; open_snapshot() sets its map's root."""

    def __cinit__(
        self, bytes identity, Reactor reactor, Pool pool, Log log, Map map, SegmentTable segments, uint64_t blocks
    ):
        cdef int i
        memcpy(self.identity, <const char*>identity, 16)
        self.reactor, self.io, self.pool, self.log, self.map, self.segments = (
            reactor, reactor.io, pool, log, map, segments
        )
        self.blocks = blocks
        self.reader = Reader(reactor, map, segments)
        self.reader.owner = <void*>self
        self.reader.on_checksum = checksum_failed
        if log is None:
            return
        self.reader.serving = log.serving
        self.reader.open_segments = log.open_segments
        log.open_segments.bitmaps = map.cache.bitmaps
        self.snapshots = SnapshotTable()
        self.walk = Walk(reactor.io, segments)
        self.walk.no_space = &log.open_segments.no_space
        self.checkpoints = Checkpoints(reactor, log, map, segments, self.snapshots)
        self.checkpoints.writer.size_bytes = blocks * BLOCK_BYTES
        self.volatile_cache = log.flusher.any_volatile
        log.owner = log.open_segments.owner = self.checkpoints.owner = <void*>self
        log.on_commit = committed
        log.on_abort = aborted
        log.on_lost = log_lost
        log.open_segments.on_promise_low = promise_low
        log.open_segments.on_fragment = fragment_begins
        log.on_refuse = refused_below
        log.open_segments.on_no_space = no_space
        log.open_segments.on_tight = space_tight
        log.open_segments.on_dead = segment_dead
        log.open_segments.on_device_error = device_failed
        self.merge_memory = <char*>allocate_aligned(MERGES * 2 * BLOCK_BYTES)
        if self.merge_memory is NULL:
            raise MemoryError("no memory for merges")
        for i in range(MERGES):
            self.merges[i].volume = <void*>self
            self.merges[i].patch = self.merge_memory + 2 * i * BLOCK_BYTES
            self.merges[i].merged = self.merges[i].patch + BLOCK_BYTES
            self.merges[i].read.owner = &self.merges[i]
            self.merges[i].read.done = merge_read
            self.merges[i].step.owner = &self.merges[i]

    def __dealloc__(self):
        cdef int i
        for i in range(MERGES):
            if self.merges[i].replaced:
                release_buffer(self.io, self.merges[i].patch)
        release_buffer(self.io, self.merge_memory)

    # ------------------------------------------------------------------ requests of exports

    cdef int64_t write(
        self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when
    ) noexcept nogil:
        invariant(block + count <= self.blocks, b"an export asks for blocks of the volume")
        if self.log is None:
            return -EPERM
        if self.merging and self.conflicts(block, count, when):
            return 0
        return self.append(request, block, count, data, when, NULL)

    cdef int64_t append(
        self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when, Merge* merge
    ) noexcept nogil:
        cdef int error = 0, room
        cdef Node* leaf
        cdef Part part
        if self.closing:
            return -ESHUTDOWN
        leaf = self.leaf_to_change(block, when, &error)
        if leaf is NULL:
            return error
        # cleaning may use the reserve
        room = self.log.room(FOR_SPACE if merge is not NULL and merge.bytes == 0 else FOR_WRITES)
        if room <= 0:
            self.map.unpin(leaf)
            if room == 0:
                join(&self.log.waiters, when)
            elif room == -ENOSPC:
                refused(self)
            return room
        count = min(min(count, <uint32_t>room), <uint32_t>(NODE_POINTERS - block % NODE_POINTERS))
        part.request = request
        part.leaf = leaf
        part.merge = merge
        part.placed = NULL
        self.log.add_data(block, count, data, part)
        return count

    cdef Node* leaf_to_change(self, uint64_t block, Operation* when, int* error) noexcept nogil:
        """The pinned leaf of a block, ready for a change by the next record; NULL: wait for `when`, or `error`."""
        cdef Node* leaf
        error[0] = 0
        if self.log.error:
            error[0] = self.log.error
            return NULL
        if self.log.draining:
            join(&self.log.waiters, when)
            return NULL
        leaf = self.map.get(0, block // NODE_POINTERS, True, when)
        if leaf is NULL:
            self.checkpoints.poke()
            return NULL
        if self.map.must_write_first(leaf) and not self.checkpoints.write_back.write_image(leaf, error):
            self.map.unpin(leaf)
            if error[0] == 0:
                join(&self.log.waiters, when)
            return NULL
        return leaf

    cdef int64_t zero(self, Request* request, uint64_t block, uint64_t count, Operation* when) noexcept nogil:
        cdef int64_t skipped
        cdef bint mapped
        cdef int error = 0, room
        cdef Node* leaf
        cdef Part part
        invariant(count > 0 and block + count <= self.blocks, b"an export asks for blocks of the volume")
        if self.log is None:
            return -EPERM
        if self.closing:
            return -ESHUTDOWN
        if self.log.error:                               # even if unmapped: recovery may find a failed write there
            return self.log.error
        if self.merging and self.conflicts(block, count, when):
            return 0
        if self.log.committed < self.log.refused_until:
            # A refused write may still commit, but not after a later trim, which is not logged where nothing is mapped.
            if self.log.refusing_below:
                refused(self)
                return -ENOSPC
            join(&self.log.commits, when)
            return 0
        skipped = self.run_from(block, count, &mapped, when)
        if skipped > 0 and not mapped and not self.log.serving.holds() and not planted(b"trim_without_lease"):
            if self.log.serving.over:
                return -EIO
            self.log.serving.await_leases(when)          # nothing is logged: another owner may have written there
            return 0
        if skipped <= 0 or not mapped:
            return skipped
        leaf = self.leaf_to_change(block, when, &error)
        if leaf is NULL:
            return error
        room = self.log.room(FOR_TRIMS)
        if room <= 0:
            self.map.unpin(leaf)
            if room == 0:
                join(&self.log.waiters, when)
            elif room == -ENOSPC:
                refused(self)
            return room
        count = min(count, NODE_POINTERS - block % NODE_POINTERS)
        part.request = request
        part.leaf = leaf
        part.merge = NULL
        part.placed = NULL
        self.log.add_zero(block, <uint32_t>count, part)
        return count

    cdef int64_t alike(self, uint64_t block, uint64_t most, bint* mapped, Operation* when) noexcept nogil:
        cdef int64_t found = self.run_from(block, most, mapped, when)
        if found > 0 and self.log is not None and not self.log.serving.holds():
            if self.log.serving.over:
                return self.log.error if self.log.error else -EIO
            self.log.serving.await_leases(when)          # another owner may have written there
            return 0
        return found

    cdef int64_t run_from(self, uint64_t block, uint64_t most, bint* mapped, Operation* when) noexcept nogil:
        cdef Node* leaf = self.map.get(0, block // NODE_POINTERS, False, when)
        cdef uint64_t covered, slot, count
        if leaf is NULL:
            if self.log is not None:
                self.checkpoints.poke()
            return 0
        if leaf is ABSENT:                               # everything under the absent node is unmapped
            mapped[0] = False
            covered = <uint64_t>1 << (8 * (self.map.absent_level + 1))
            return min(most, covered - block % covered)
        slot = block % NODE_POINTERS
        mapped[0] = leaf.pointers[slot].flags & POINTER_PRESENT
        count = 1
        while (
            count < most
            and slot + count < NODE_POINTERS
            and (leaf.pointers[slot + count].flags & POINTER_PRESENT) == mapped[0]
        ):
            count += 1
        self.map.unpin(leaf)
        return count

    cdef void complete(self, Request* request) noexcept nogil:
        request.complete = True
        if request.parts == 0:
            request.deferred.done = request_deferred
            request.deferred.owner = request
            request.flush_of = <void*>self
            self.reactor.at_turn_end(&request.deferred)

    cdef void flush(self, Request* request) noexcept nogil:
        request.flush_of = <void*>self
        request.deferred.owner = request
        request.deferred.done = request_stable
        request.deferred.result = 0
        if self.log is None or self.log.flusher.stable == self.log.committed:
            self.reactor.at_turn_end(&request.deferred)
        else:
            self.log.flusher.flush(&request.deferred)

    cdef void read(self, Read* read) noexcept nogil:
        self.reader.read(read)

    cdef void expect(self, uint64_t block) noexcept nogil:
        self.map.expect(0, block // NODE_POINTERS)

    # ------------------------------------------------------------------ bytes inside a block

    cdef int64_t merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data, Operation* when
    ) noexcept nogil:
        cdef Merge* merge = NULL
        cdef int64_t taken = self.take_merge(request, block, False, &merge, when)
        invariant(0 < bytes and start + bytes <= BLOCK_BYTES, b"a merge lies inside one block")
        if merge is not NULL:
            merge.start = start
            merge.bytes = bytes
            merge.zeros = data is NULL
            if data is not NULL:
                memcpy(merge.patch, data, bytes)
            self.merge_step(merge)
        return taken

    cdef int64_t rewrite(
        self, Request* request, uint64_t block, const char* data, uint64_t there, Operation* when
    ) noexcept nogil:
        cdef Merge* merge = NULL
        cdef int64_t taken = self.take_merge(request, block, True, &merge, when)
        if merge is not NULL:
            merge.bytes = 0
            merge.known = data is not NULL
            merge.there = there
            if data is not NULL:
                memcpy(merge.merged, data, BLOCK_BYTES)
            self.merge_step(merge)
        return taken

    cdef int64_t take_merge(
        self, Request* request, uint64_t block, bint again, Merge** into, Operation* when
    ) noexcept nogil:
        """1 and no merge: another merge in progress writes the block anyway."""
        cdef Merge* merge = NULL
        cdef int i
        invariant(block < self.blocks, b"a merge is of a block of the volume")
        if self.log is None:
            return -EPERM
        if self.closing:
            return -ESHUTDOWN
        if self.log.error:
            return self.log.error
        if again and self.merge_of(block, 1) is not NULL:
            return 1                                     # it may be waiting for the space that this rewrite frees
        if self.merging and self.conflicts(block, 1, when):
            return 0
        for i in range(MERGES if again else MERGES - REWRITES):
            if not self.merges[i].busy and not self.io.holds(self.merges[i].patch, 2 * BLOCK_BYTES):
                merge = &self.merges[i]
                break
        if merge is NULL:
            join(&self.merge_free, when)
            return 0
        self.merging += 1
        self.counters[COUNT_MERGES] += 1
        merge.busy = True
        merge.request = request
        request.parts += 1
        merge.block = block
        merge.known = False
        merge.after = 0 if planted(b"merge_reads_early") else self.log.last_appended()
        into[0] = merge
        return 1

    cdef bint conflicts(self, uint64_t block, uint64_t count, Operation* when) noexcept nogil:
        """Whether a merge of one of these blocks is in progress; if so, `when` completes when it ends."""
        cdef Merge* merge = NULL if planted(b"merge_conflict_missed") else self.merge_of(block, count)
        if merge is not NULL:
            join(&merge.waiters, when)
        return merge is not NULL

    cdef Merge* merge_of(self, uint64_t block, uint64_t count) noexcept nogil:
        cdef int i
        for i in range(MERGES):
            if self.merges[i].busy and block <= self.merges[i].block < block + count:
                return &self.merges[i]
        return NULL

    cdef void merge_step(self, Merge* merge) noexcept nogil:
        """Reads the block once everything logged before has committed."""
        if self.log.error:
            self.merge_end(merge, EIO)
        elif self.log.committed < merge.after and self.log.refusing_below:
            self.merge_end(merge, ENOSPC)
        elif self.log.committed < merge.after:
            merge.step.done = merge_waited
            join(&self.log.commits, &merge.step)
        elif merge.known:
            self.merge_known(merge)
        else:
            merge.read.block = merge.block
            merge.read.count = 1
            merge.read.into = merge.merged
            self.reader.read(&merge.read)

    cdef void merge_looked(self, Merge* merge, int64_t result) noexcept nogil:
        if result < 0:
            merge.known = False                          # the reader reports the map's error
        self.merge_step(merge)

    cdef void merge_known(self, Merge* merge) noexcept nogil:
        """Writes the data read earlier if the map still points there. A checksum mismatch is read again first."""
        cdef Pointer pointer
        cdef Node* leaf
        merge.step.done = merge_looks
        leaf = self.map.get(0, merge.block // NODE_POINTERS, False, &merge.step)
        if leaf is NULL:
            self.checkpoints.poke()
            return
        memset(&pointer, 0, sizeof(pointer))
        if leaf is not ABSENT:
            pointer = leaf.pointers[merge.block % NODE_POINTERS]
            self.map.unpin(leaf)
        if (
            not (pointer.flags & POINTER_PRESENT and address_of(pointer) == merge.there)
            and not planted(b"rewritten_unlooked")
        ):
            self.merge_end(merge, 0)                     # the block is not live in that segment any more
        elif crc32c(merge.merged, BLOCK_BYTES) == pointer.crc or planted(b"rewritten_unlooked"):
            self.merge_append(merge)
        else:
            merge.known = False
            self.merge_step(merge)

    cdef void merge_read_done(self, Merge* merge) noexcept nogil:
        if merge.read.error:
            self.merge_end(merge, merge.read.error)
            return
        if merge.read.unmapped and merge.bytes == 0:
            self.merge_end(merge, 0)                     # trimmed since
            return
        if merge.read.unmapped:
            memset(merge.merged, 0, BLOCK_BYTES)
        if merge.zeros:
            memset(merge.merged + merge.start, 0, merge.bytes)
        else:
            memcpy(merge.merged + merge.start, merge.patch, merge.bytes)
        self.merge_append(merge)

    cdef void merge_woken(self, Merge* merge, int64_t result) noexcept nogil:
        if result < 0:
            self.merge_end(merge, <int>-result)
        else:
            self.merge_append(merge)

    cdef void merge_append(self, Merge* merge) noexcept nogil:
        cdef int64_t taken
        merge.step.done = merge_appends
        taken = self.append(NULL, merge.block, 1, merge.merged, &merge.step, merge)
        if taken < 0:
            self.merge_end(merge, <int>-taken)

    cdef void merge_end(self, Merge* merge, int error) noexcept nogil:
        cdef Request* request = merge.request
        cdef bint left = error and merge.bytes and has_heir(self, request) and self.heir.inherit_merge(
            request, merge.block, merge.start, merge.bytes, NULL if merge.zeros else merge.patch
        )
        self.renew_merge(merge)
        merge.busy = False
        merge.request = NULL
        self.merging -= 1
        if left:
            request.parts -= 1                           # the heir has added its own
        else:
            self.part_done(request, error)
        wake_all(&merge.waiters, 0)
        wake_all(&self.merge_free, 0)                      # all: a waiter may not use the free slot
        if self.merging == 0 and self.closing:
            wake_all(&self.log.commits, 0)                 # close() waits

    cdef void renew_merge(self, Merge* merge) noexcept nogil:
        """If a device that does not answer may still write into the merge's memory, other memory takes its place."""
        cdef char* another
        if not self.io.holds(merge.patch, 2 * BLOCK_BYTES):
            return
        another = <char*>allocate_aligned(2 * BLOCK_BYTES)
        if another is NULL:
            return                                       # take_merge leaves it out
        if merge.replaced:
            self.io.release(merge.patch)
        merge.replaced = True
        merge.patch = another
        merge.merged = another + BLOCK_BYTES

    # ------------------------------------------------------------------ completing requests

    cdef void part_done(self, Request* request, int error) noexcept nogil:
        invariant(request.parts > 0, b"every part ends once")
        request.parts -= 1
        if error and not request.error:
            request.error = error
        if request.parts == 0 and request.complete:
            self.finish(request)

    cdef void finish(self, Request* request) noexcept nogil:
        if request.error:
            self.counters[WRITE_ERRORS] += 1
            request.finished(request)
        elif request.stable and has_heir(self, request):
            self.heir.flush(request)
        elif request.stable and not planted(b"fua_without_flush"):
            self.flush(request)
        else:
            request.finished(request)

    cdef void close(self) noexcept nogil:
        store_flag(self.closing, True)                   # throttles read it on other reactors
        if self.log is None:
            self.map.forget()
            return
        self.log.giving_up = True
        self.checkpoints.begin_closing()
        while self.restoring:
            self.checkpoints.pause()
        while self.cleaning:
            wait_in(&self.cleaning_ended)
        while self.copying:
            wait_in(&self.copying_ended)
        while self.merging:
            wait_in(&self.log.commits)
        while self.reader.under_way:                     # of clients that have gone on with the heir
            self.checkpoints.pause()
        self.walk.stopping = True
        while self.walk.running:
            wait_in(&self.walk_ended)
        self.checkpoints.stop()
        self.log.finish()
        self.map.forget()
        self.log.leave()


# ---------------------------------------------------------------------- callbacks of the log

cdef void committed(void* owner, Record* record) noexcept nogil:
    """Applies a record to the map and completes its requests."""
    apply(<Volume>owner, record)


cdef void apply(Volume volume, Record* record) noexcept nogil:
    cdef Part* part
    cdef Entry* entry
    cdef Pointer pointer, old
    cdef uint32_t i, k, slot
    pointer.segment = record.open_segment.segment.number
    pointer.block = record.block + 1
    pointer.flags = POINTER_PRESENT
    for i in range(record.part_count):
        part = &record.parts[i]
        entry = &record.header.entries[part.first]
        for k in range(part.count):
            if entry.kind == KIND_ZERO:
                for slot in range(entry.count - planted(b"zero_one_short")):
                    put_zero(volume, part.leaf, <uint32_t>(entry.position % NODE_POINTERS) + slot, record.sequence)
            else:
                pointer.crc = entry.crc
                if entry.kind == KIND_DATA:
                    old = volume.map.set(
                        part.leaf, <uint32_t>(entry.position % NODE_POINTERS), pointer, record.sequence
                    )
                    volume.segments.replace(old, pointer)
                elif entry.kind == KIND_MAP:
                    volume.checkpoints.write_back.image_committed(
                        <int>(entry.position >> 56),
                        entry.position & ((<uint64_t>1 << 56) - 1),
                        pointer,
                        record.sequence,
                    )
                if part.placed is not NULL:
                    part.placed[k] = pointer
                pointer.block += 1
            entry += 1
        if planted(b"told_while_applied"):
            end_part(volume, part, 0)
    # Only after the whole record is applied: a completed request may read the map at once, and expects the record to be
    # in it.
    for i in range(record.part_count if not planted(b"told_while_applied") else 0):
        end_part(volume, &record.parts[i], 0)
    volume.checkpoints.poke()


cdef inline void put_zero(Volume volume, Node* leaf, uint32_t slot, uint64_t sequence) noexcept nogil:
    cdef Pointer nothing
    if leaf.pointers[slot].flags & POINTER_PRESENT:
        memset(&nothing, 0, sizeof(nothing))
        volume.segments.replace(volume.map.set(leaf, slot, nothing, sequence), nothing)


cdef void aborted(void* owner, Record* record) noexcept nogil:
    fail_parts(<Volume>owner, record)


cdef void refused_below(void* owner, Record* record) noexcept nogil:
    refuse_parts(<Volume>owner, record)


cdef void refuse_parts(Volume volume, Record* record) noexcept nogil:
    """Nobody waits for this record any more. Once there is space it commits, before anything that is accepted then."""
    cdef Part* part
    cdef Request* request
    cdef void* merge
    cdef uint32_t i
    for i in range(record.part_count):
        part = &record.parts[i]
        request, merge = part.request, part.merge
        part.request = NULL
        part.merge = NULL
        if merge is not NULL:
            volume.merge_end(<Merge*>merge, ENOSPC)
        if request is not NULL:
            volume.part_done(request, ENOSPC)


cdef void fail_parts(Volume volume, Record* record) noexcept nogil:
    cdef uint32_t i
    for i in range(record.part_count):
        if has_heir(volume, record.parts[i].request):
            leave_part(volume, record, &record.parts[i])
        else:
            end_part(volume, &record.parts[i], EIO)


cdef void log_lost(void* owner) noexcept nogil:
    (<Volume>owner).lost = True
    if (<Volume>owner).on_lost is not NULL:
        (<Volume>owner).on_lost(owner)


cdef inline bint has_heir(Volume volume, const Request* request) noexcept nogil:
    """Whether what is left of a client's request is done by the volume's next owner."""
    return volume.lost and volume.heir is not None and request is not NULL and request.session is not NULL


cdef void leave_part(Volume volume, Record* record, Part* part) noexcept nogil:
    """To the volume's heir."""
    cdef const Entry* entry = &record.header.entries[part.first]
    cdef const char* payload = record.buffer + BLOCK_BYTES
    cdef bint left
    cdef uint32_t i
    for i in range(part.first):
        if record.header.entries[i].kind != KIND_ZERO:
            payload += BLOCK_BYTES
    if entry.kind == KIND_ZERO:
        left = volume.heir.inherit_zero(part.request, entry.position, entry.count)
    else:
        left = volume.heir.inherit_write(part.request, entry.position, part.count, payload)
    if left:
        part.request.parts -= 1                          # the heir has added its own
        part.request = NULL
    end_part(volume, part, ENOMEM)


cdef inline void end_part(Volume volume, Part* part, int error) noexcept nogil:
    if part.leaf is not NULL:
        volume.map.unpin(part.leaf)
    if part.merge is not NULL:
        volume.merge_end(<Merge*>part.merge, error)
    if part.request is not NULL:
        volume.part_done(part.request, error)


cdef void checksum_failed(void* owner, uint64_t block, uint32_t segment, uint32_t segment_block) noexcept nogil:
    (<Volume>owner).on_event(owner, EVENT_CHECKSUM, block, segment, segment_block)


cdef void space_tight(void* owner) noexcept nogil:
    (<Volume>owner).on_event(owner, EVENT_TIGHT, 0, 0, 0)


cdef bint promise_low(void* owner) noexcept nogil:
    return (<Volume>owner).on_event(owner, EVENT_NUMBERS, (<Volume>owner).log.open_segments.next_segment, 0, 0)


cdef bint fragment_begins(void* owner, uint32_t number, uint64_t first, const uint32_t* devices) noexcept nogil:
    return (<Volume>owner).on_fragment is not NULL and (<Volume>owner).on_fragment(owner, number, first, devices)


cdef void no_space(void* owner) noexcept nogil:
    space_ran_out(<Volume>owner)


cdef void space_ran_out(Volume volume) noexcept nogil:
    volume.on_event(<void*>volume, EVENT_NO_SPACE, 0, 0, 0)
    if not volume.log.open_segments.space_is_coming():   # else the work that frees space asks for one
        ask_for_checkpoint(volume)


cdef void refused(Volume volume) noexcept nogil:
    """A write was refused for lack of space."""
    volume.counters[NO_SPACE_ERRORS] += 1
    if not volume.log.open_segments.refusing and not volume.log.refusing_below:      # else the store has reported it
        volume.log.open_segments.refusing = True
        volume.on_event(<void*>volume, EVENT_REFUSED, 0, 0, 0)


cdef void segment_dead(void* owner) noexcept nogil:
    ask_for_checkpoint(<Volume>owner)


cdef void ask_for_checkpoint(Volume volume) noexcept nogil:
    volume.checkpoints.due = True                        # segments that died since the last one can be deleted after it
    volume.checkpoints.poke()


cdef void device_failed(void* owner, int store, int error) noexcept nogil:
    (<Volume>owner).on_event(owner, EVENT_DEVICE, store, error, 0)


# ---------------------------------------------------------------------- completions

cdef void request_deferred(Operation* operation) noexcept nogil:
    cdef Request* request = <Request*>operation.owner
    (<Volume>request.flush_of).finish(request)


cdef void request_stable(Operation* operation) noexcept nogil:
    cdef Request* request = <Request*>operation.owner
    if operation.result < 0 and not request.error:
        if has_heir(<Volume>request.flush_of, request):
            (<Volume>request.flush_of).heir.flush(request)
            return
        request.error = <int>-operation.result
    request.finished(request)


cdef void merge_waited(Operation* operation) noexcept nogil:
    cdef Merge* merge = <Merge*>operation.owner
    (<Volume>merge.volume).merge_step(merge)


cdef void merge_looks(Operation* operation) noexcept nogil:
    cdef Merge* merge = <Merge*>operation.owner
    (<Volume>merge.volume).merge_looked(merge, operation.result)


cdef void merge_read(Read* read) noexcept nogil:
    cdef Merge* merge = <Merge*>read.owner
    (<Volume>merge.volume).merge_read_done(merge)


cdef void merge_appends(Operation* operation) noexcept nogil:
    cdef Merge* merge = <Merge*>operation.owner
    (<Volume>merge.volume).merge_woken(merge, operation.result)
