# Brings copies of segments from devices of other nodes to a store, when an owner asks for it: rebuild.
#
#     look     the source lists the segment: sealed, of the epoch and with the records that the owner expects
#     reserve  space for as many blocks as it takes there
#     copy     the blocks as they lie there; of a compacted replica also the bitmap, so that it need not be made again
#     flush
#     verify   every block is read back and compared with the checksum in the segment's footer
#     keep     one journal entry makes it exist
#
# Always true:
#   - nothing of an interrupted pull exists after a crash, and no copy is listed that is not whole and on stable media;
#   - the source is only read. Damage there is found here, and is not copied;
#   - users' space is not taken: the store's reserve stays free;
#   - a pull takes the time that its rate allows, and ends soon after nobody waits for it, or a fence with a higher
#     epoch was accepted. The fence is answered after that: so a new owner meets no copy that is being made.
#
# A segment without a footer is not verified here: its blocks have their pointers' checksums, with which readers compare
# them.
#
# Called by replicas/served_store.pyx. docs/ownership.md, "Rebuild".

from libc.errno cimport EBADMSG, EIO, ENODEV, ENOENT, ENOSPC, ETIMEDOUT
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport wait, wait_in, waited, wake_one
from iomesh.engine.format.layout cimport (
    BITMAP_COPIES, BLOCK_BYTES, EXTENTS_MAX, FEATURE_COMPACTED, SEGMENT_SEALED, Bitmap, Extent, bitmap_valid
)
from iomesh.engine.format.peer cimport PEER_REPLACES
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.store.extents cimport write_blocks
from iomesh.engine.store.scrub cimport Scrubbed, Scrubber
from iomesh.engine.store.store cimport Replica, Store

cdef extern from "<errno.h>" nogil:
    int ECANCELED, ESTALE

cdef int64_t SECOND_NS = 1000 * 1000 * 1000
cdef int64_t LOOK_NS = 50 * 1000 * 1000                  # between two checks whether a pull is to end


cdef class Sources:
    cdef void add(self, RemoteNode node) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if self.nodes[i] is <void*>node:
                return
        if self.count < SOURCES_MAX:
            self.nodes[self.count] = <void*>node
            self.count += 1

    cdef void* find(self, uint32_t device) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if (<RemoteNode>self.nodes[i]).state_of(device) is not NULL:
                return self.nodes[i]
        return NULL


cdef class Puller:
    """Raises MemoryError. Its buffers are not touched before the first pull."""

    def __cinit__(self, Store store, Sources sources):
        cdef int i
        self.store, self.sources, self.io = store, sources, store.home.io
        self.memory = <char*>allocate_aligned(PULLS * 2 * PULL_BLOCKS * BLOCK_BYTES)
        if self.memory is NULL:
            raise MemoryError("no memory for copies of segments")
        self.kept_verifiers = [Scrubber(store) for _ in range(PULLS)]
        for i in range(PULLS):
            self.verifiers[i] = <void*>self.kept_verifiers[i]
            self.buffers[i] = self.memory + <size_t>i * 2 * PULL_BLOCKS * BLOCK_BYTES
        self.idle = PULLS

    def __dealloc__(self):
        release_buffer(self.io, self.memory)

    cdef int pull(self, const PullRequest* frame, const bint* abandoned) noexcept nogil:
        cdef const Replica* found = self.store.find(frame.volume, frame.segment)
        cdef Pull pull
        cdef void* verifier
        cdef char* buffer
        cdef int result
        if found is not NULL and not frame.flags & PEER_REPLACES and is_whole(found, frame):
            return 0                                     # repeated, since the client did not get the answer
        memset(&pull, 0, sizeof(pull))
        pull.frame, pull.abandoned, pull.puller = frame, abandoned, <void*>self
        pull.throttle.owner, pull.throttle.step = &pull, pace
        while self.idle == 0 and not self.stopping:
            wait_in(&self.waiting)
        if self.stopping or abandoned[0]:
            wake_one(&self.waiting, 0)
            return -ECANCELED
        self.idle -= 1
        verifier, buffer = self.verifiers[self.idle], self.buffers[self.idle]
        pull.begun_ns = self.io.monotonic_ns()
        pull.coming.volume = frame.volume
        self.store.announce(&pull.coming)
        result = self.bring(&pull, <Scrubber>verifier, buffer)
        self.store.announce_end(&pull.coming)
        self.verifiers[self.idle], self.buffers[self.idle] = verifier, buffer
        self.idle += 1
        wake_one(&self.waiting, 0)
        return result

    cdef int bring(self, Pull* pull, Scrubber verifier, char* buffer) noexcept nogil:
        cdef int result = self.look(pull)
        if result == 0 and not self.store.has_room(pull.stored, False):
            result = -ENOSPC
        if result < 0:
            return result
        pull.replica = self.store.reserve_copy(pull.frame.volume, pull.frame.segment, pull.stored, &result)
        if pull.replica is NULL:
            return result
        result = self.copy(pull, buffer)
        if result == 0 and not planted(b"copy_kept_unflushed"):
            result = self.store.flusher.wait_flushed_from(self.store.home) if self.store.volatile_cache else 0
        if result == 0:
            result = self.verify(pull, verifier)
        if result == 0:
            result = self.may_go_on(pull)
        if result == 0:
            return self.keep(pull)
        self.store.discard_copy(pull.replica)
        return result

    cdef int look(self, Pull* pull) noexcept nogil:
        cdef const PullRequest* frame = pull.frame
        cdef PeerCall call
        cdef uint32_t end
        cdef int result
        pull.source = self.sources.find(frame.source)
        if pull.source is NULL:
            return -ENODEV
        result = self.may_go_on(pull)
        if result < 0:
            return result
        waited(&call.operation)
        (<RemoteNode>pull.source).peer.list(&call, frame.source, frame.volume, frame.segment, &pull.listed, 1)
        result = <int>min(wait(&call.operation), 0)
        if result < 0:
            return result
        if call.count == 0 or pull.listed.segment != frame.segment:
            return -ENOENT
        end = pull.listed.footer_block if pull.listed.footer_block else pull.listed.blocks
        if (
            (pull.listed.state != SEGMENT_SEALED or pull.listed.epoch != frame.segment_epoch or end < frame.end)
            and not planted(b"stale_copy_pulled")
        ):
            return -ESTALE
        pull.stored = pull.listed.live + BITMAP_COPIES if pull.listed.live else pull.listed.blocks
        return 0

    # ------------------------------------------------------------------ blocks

    cdef int copy(self, Pull* pull, char* buffer) noexcept nogil:
        """The next piece is read while the last one is written."""
        cdef PeerCall[2] calls
        cdef char* buffers[2]
        cdef uint32_t block = 0, length
        cdef int which = 0, result = 0
        buffers[0], buffers[1] = buffer, buffer + PULL_BLOCKS * BLOCK_BYTES
        self.ask(pull, &calls[0], 0, buffers[0])
        while block < pull.stored:
            length = piece(pull, block)
            result = <int>min(wait(&calls[which].operation), 0)
            if result == 0:
                result = self.step(pull, length * BLOCK_BYTES)
            if result < 0:
                return result
            if block + length < pull.stored:
                self.ask(pull, &calls[1 - which], block + length, buffers[1 - which])
            if block == 0 and pull.listed.live and not is_bitmap_of(<const Bitmap*>buffers[0], pull):
                result = -EBADMSG
            if result == 0:
                result = write_blocks(self.io, pull.replica, block, length, buffers[which])
            if result == 0:
                self.pulled_bytes += <uint64_t>length * BLOCK_BYTES
            block += length
            which = 1 - which
            if result < 0:
                if block < pull.stored:
                    wait(&calls[which].operation)
                return -EIO if result == -ETIMEDOUT else result
        return 0

    cdef void ask(self, Pull* pull, PeerCall* call, uint32_t block, char* into) noexcept nogil:
        waited(&call.operation)
        (<RemoteNode>pull.source).peer.read(
            call, pull.frame.source, pull.frame.volume, pull.frame.segment, block, piece(pull, block), into, True
        )

    cdef int step(self, Pull* pull, uint32_t bytes) noexcept nogil:
        """Waits until this many bytes more are due. As may_go_on()."""
        cdef Operation timer
        cdef int64_t due_ns = 1
        cdef int result = self.may_go_on(pull)
        pull.paced += bytes
        while pull.frame.rate and due_ns > 0 and result == 0:
            # what is copied and what is verified each take half of the time
            due_ns = pull.begun_ns + <int64_t>(pull.paced * <uint64_t>(SECOND_NS >> 11) // pull.frame.rate)
            due_ns -= self.io.monotonic_ns()
            if due_ns > 0:
                waited(&timer)
                self.io.after(&timer, min(due_ns, LOOK_NS))
                wait(&timer)
                result = self.may_go_on(pull)
        return result

    cdef int may_go_on(self, const Pull* pull) noexcept nogil:
        """0; or -EIO, -ECANCELED, or -ESTALE: there is a newer owner."""
        if self.store.failed:
            return -EIO
        if pull.frame.epoch < self.store.directory.fenced(pull.frame.volume):
            return -ESTALE
        return -ECANCELED if self.stopping or pull.abandoned[0] else 0

    # ------------------------------------------------------------------ the copy becomes valid

    cdef int verify(self, Pull* pull, Scrubber verifier) noexcept nogil:
        cdef Replica replica
        cdef Scrubbed told
        cdef int result
        if pull.listed.footer_block == 0 or planted(b"copy_kept_unverified"):
            return 0
        memcpy(
            &replica, pull.replica,
            sizeof(Replica) - (EXTENTS_MAX - pull.replica.extent_count) * sizeof(Extent)
        )
        replica.state, replica.epoch = SEGMENT_SEALED, pull.listed.epoch
        replica.blocks, replica.footer_block = pull.listed.blocks, pull.listed.footer_block
        memset(&told, 0, sizeof(told))
        result = verifier.verify(&replica, &pull.throttle, &told)
        return -EBADMSG if result == 0 and told.damaged else result

    cdef int keep(self, Pull* pull) noexcept nogil:
        cdef ListedReplica* listed = &pull.listed
        cdef int result = 0
        if listed.live:
            result = self.store.rewrite_superblock(FEATURE_COMPACTED, self.store.superblock.number)
        if result < 0:
            self.store.discard_copy(pull.replica)
            return result
        pull.replica.fragment = listed.fragment
        return self.store.keep_copy(
            pull.replica, listed.epoch, listed.stream, listed.blocks, listed.footer_block, SEGMENT_SEALED
        )


cdef inline uint32_t piece(const Pull* pull, uint32_t block) noexcept nogil:
    return min(<uint32_t>PULL_BLOCKS, pull.stored - block)


cdef bint is_bitmap_of(const Bitmap* bitmap, Pull* pull) noexcept nogil:
    """Whether it is the bitmap of the listed replica; then the copy knows it."""
    if not bitmap_valid(bitmap, pull.frame.volume, pull.frame.segment) or bitmap.live != pull.listed.live:
        return False
    pull.replica.live, pull.replica.bitmap_crc = <uint16_t>bitmap.live, bitmap.crc
    return True


cdef bint is_whole(const Replica* replica, const PullRequest* frame) noexcept nogil:
    cdef uint32_t end = replica.footer_block if replica.footer_block else replica.blocks
    return replica.state == SEGMENT_SEALED and replica.epoch == frame.segment_epoch and end >= frame.end


cdef int pace(void* pull, Io io, uint32_t bytes) noexcept nogil:
    return (<Puller>(<Pull*>pull).puller).step(<Pull*>pull, bytes)
