# A store as peers use it. All requests for a store come here, whatever connection and reactor they arrived on, so this
# is the one place that knows which are under way.
#
#     begin --> waiting --> under way --> finished         READ and WRITE: device operations, one after the other
#         '----------------^                               CREATE, SEAL, REMOVE, COMPACT, FENCE: a task
#                                                          PULL: likewise, and seconds. FLUSH: the device's flusher
#                                                          LIST, HEARTBEAT: at once
#
# Always true:
#   - a request waits for earlier ones (under way or waiting) that it must not overtake, and for nothing else:
#       CREATE, SEAL, REMOVE, COMPACT, PULL and any other request for the same replica wait for each other;
#       WRITEs to the same blocks wait for each other;
#       FENCE and any CREATE, WRITE, SEAL, REMOVE, COMPACT or FENCE of the same volume wait for each other. Not PULL:
#       see replicas/pull.pyx.
#     So a replica is sealed or removed when no request uses it, and a fence is answered when no write from before it is
#     under way;
#   - whether a WRITE is allowed is decided when it leaves for the device, not when it arrives: one that waited behind a
#     fence with a higher epoch is refused;
#   - no Replica pointer is kept across a wait. The replica is looked up again for every device operation, since the
#     node's own volumes change replicas of the same store without coming here.
#
# A READ that a volume of this node overtakes with a removal may return other data: the reader verifies it against
# the pointer's checksum.
#
# Called by replicas/server.pyx. Rules: docs/protocols.md, "Requests".

from libc.errno cimport EAGAIN, EBUSY, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, EROFS
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free as release, malloc, qsort
from libc.string cimport memcmp, memset

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport start
from iomesh.engine.format.layout cimport BITMAP_COPIES, BLOCK_BYTES, SEGMENT_OPEN, SEGMENT_SEALED, RecordHeader
from iomesh.engine.format.peer cimport (
    DEVICE_FAILED, DEVICE_WORKS, LISTED_DOUBTFUL, PEER_COMPACT, PEER_COMPLETES, PEER_CREATE, PEER_FENCE, PEER_FLUSH,
    PEER_HEARTBEAT, PEER_LIST, PEER_PULL, PEER_READ_STORED, PEER_REMOVE, PEER_URGENT, PEER_WRITE, DeviceState,
    ListedReplica, PeerRequest, PullRequest, is_read
)
from iomesh.engine.store.bitmaps cimport Bitmaps, place_of
from iomesh.engine.store.directory cimport Replica, replica_offset
from iomesh.engine.store.store cimport Store

cdef extern from "<errno.h>" nogil:
    int ENODATA, ESTALE

cdef enum:
    LISTS = 64                       # of `under_way`


cdef class ServedStore:
    """store: open, with its number in the cluster. bitmaps, sources: of the store's home."""

    def __cinit__(self, Store store, Bitmaps bitmaps, Sources sources):
        self.store, self.bitmaps = store, bitmaps
        self.number = store.superblock.number            # never changes; other reactors read it
        self.home, self.io = store.home, store.home.io
        self.puller = Puller(store, sources)

    cdef void begin(self, StoreRequest* request) noexcept nogil:
        cdef uint8_t kind = request.frame.kind
        self.requests += 1
        self.unfinished += 1
        request.served = <void*>self
        request.moved = 0
        request.listed = request.more = False
        request.fence = 0
        if self.stopping:
            self.finish(request, -ENODEV)
        elif kind == PEER_LIST:
            self.finish(request, self.list(request))
        elif kind == PEER_HEARTBEAT:
            self.state_into(request)
            self.finish(request, 0)
        elif kind == PEER_FLUSH:
            request.operation.done = flush_done
            request.operation.owner = request
            self.store.flusher.flush(&request.operation)
        else:
            self.changes += is_change(kind)
            if self.must_wait(request):
                request.next = NULL
                if self.waiting_last is NULL:
                    self.waiting = request
                else:
                    self.waiting_last.next = request
                self.waiting_last = request
            else:
                self.run(request)

    cdef void stop(self, Operation* when) noexcept nogil:
        invariant(not self.stopping, b"a served store is stopped once")
        self.stopping = self.puller.stopping = True
        self.stopped = when
        if self.unfinished == 0:
            when.result = 0
            self.home.at_turn_end(when)

    # ------------------------------------------------------------------ order

    cdef void run(self, StoreRequest* request) noexcept nogil:
        cdef StoreRequest** first = &self.under_way[list_of(&request.frame)]
        request.listed = True
        request.previous = NULL
        request.next = first[0]
        if first[0] is not NULL:
            first[0].previous = request
        first[0] = request
        request.operation.owner = request
        if request.frame.kind == PEER_WRITE:
            self.write_on(request)
        elif is_read(request.frame.kind):
            self.read_on(request)
        else:
            request.operation.done = change_done
            start(change_body, request, &request.operation)

    cdef void finish(self, StoreRequest* request, int result) noexcept nogil:
        """The request is its owner's again."""
        cdef bint listed = request.listed
        if listed:
            self.changes -= is_change(request.frame.kind)
            if request.previous is not NULL:
                request.previous.next = request.next
            else:
                self.under_way[list_of(&request.frame)] = request.next
            if request.next is not NULL:
                request.next.previous = request.previous
        if result == -ESTALE:
            request.fence = self.store.directory.fenced(request.frame.volume)
        request.result = result
        self.unfinished -= 1
        request.done(request)
        if listed:
            self.start_waiting()
        if self.stopping and self.unfinished == 0 and self.stopped is not NULL:
            self.stopped.result = 0
            self.home.at_turn_end(self.stopped)
            self.stopped = NULL

    cdef bint must_wait(self, const StoreRequest* request) noexcept nogil:
        """Whether an earlier request that is under way or waits must end first."""
        cdef const StoreRequest* earlier
        if is_read(request.frame.kind) and self.changes == 0:
            return False
        earlier = self.under_way[list_of(&request.frame)]
        while earlier is not NULL:
            if conflict(&request.frame, &earlier.frame):
                return True
            earlier = earlier.next
        earlier = self.waiting
        while earlier is not NULL and earlier is not request:
            if conflict(&request.frame, &earlier.frame):
                return True
            earlier = earlier.next
        return False

    cdef void start_waiting(self) noexcept nogil:
        """Run what need not wait any more."""
        cdef StoreRequest* request
        cdef StoreRequest* before
        if self.starting:
            self.start_again = True                      # called again by a request that ended at once
            return
        self.starting = self.start_again = True
        while self.start_again:
            self.start_again = False
            before = NULL
            request = self.waiting
            while request is not NULL:
                if self.must_wait(request):
                    before = request
                    request = request.next
                    continue
                if before is NULL:
                    self.waiting = request.next
                else:
                    before.next = request.next
                if request.next is NULL:
                    self.waiting_last = before
                self.run(request)
                request = self.waiting if before is NULL else before.next
        self.starting = False

    # ------------------------------------------------------------------ writes, reads

    cdef int write_refusal(self, const StoreRequest* request, const Replica* replica) noexcept nogil:
        """0, or the negative errno with which a WRITE is refused now."""
        cdef const PeerRequest* frame = &request.frame
        cdef uint64_t epoch = frame.epoch
        if frame.flags & PEER_COMPLETES:                 # the payload is a whole record
            epoch = (<const RecordHeader*>request.buffer).epoch
        if frame.epoch < self.store.directory.fenced(frame.volume) and not planted(b"fence_ignored"):
            return -ESTALE
        if replica is NULL:
            return -ENOENT
        if replica.epoch != epoch:
            return -ESTALE
        if frame.flags & PEER_COMPLETES and self.store.log_of(frame.volume, frame.epoch) is not NULL:
            return -EBUSY                                # a volume of this node has it open
        if replica.state != SEGMENT_OPEN:
            return -EROFS
        if replica.stream != frame.stream or frame.block + frame.blocks > replica.blocks:
            return -EINVAL
        if self.lacks_records(frame, replica):
            return -EIO
        return -EIO if self.store.failed else 0          # after a failed flush the device takes nothing new

    cdef void write_on(self, StoreRequest* request) noexcept nogil:
        """The next device operation of a WRITE: as much as is contiguous there."""
        cdef PeerRequest* frame = &request.frame
        cdef Replica* replica = self.store.find(frame.volume, frame.segment)
        cdef int refusal = self.write_refusal(request, replica)
        cdef uint32_t contiguous = 0
        cdef uint64_t offset
        if refusal:
            self.finish(request, refusal)
            return
        offset = replica_offset(replica, frame.block + request.moved, &contiguous)
        invariant(contiguous > 0, b"an open replica has slabs for all its blocks")
        contiguous = min(contiguous, frame.blocks - request.moved)
        request.operation.done = write_done
        self.io.write(
            &request.operation,
            replica.device,
            request.buffer + <size_t>request.moved * BLOCK_BYTES,
            contiguous * BLOCK_BYTES,
            offset,
        )

    cdef void read_on(self, StoreRequest* request) noexcept nogil:
        """The next device operation of a READ, or of the bitmap that says where the blocks are."""
        cdef PeerRequest* frame = &request.frame
        cdef Replica* replica = self.store.find(frame.volume, frame.segment)
        cdef uint32_t contiguous = 0
        cdef int64_t offset
        if replica is NULL or frame.block + frame.blocks > readable_blocks(frame, replica):
            self.finish(request, -ENOENT)
            return
        request.operation.done = bitmap_done
        if frame.kind == PEER_READ_STORED:
            offset = replica_offset(replica, frame.block + request.moved, &contiguous)
        else:
            offset = place_of(self.bitmaps, replica, frame.block + request.moved, &contiguous, &request.operation)
        if offset == -EAGAIN:
            return
        if offset < 0:
            self.finish(request, -ENOENT if offset == -ENODATA else <int>offset)
            return
        contiguous = min(contiguous, frame.blocks - request.moved)
        request.operation.done = read_done
        self.io.read(
            &request.operation,
            replica.device,
            request.buffer + <size_t>request.moved * BLOCK_BYTES,
            contiguous * BLOCK_BYTES,
            <uint64_t>offset,
        )

    # ------------------------------------------------------------------ changes, in a task

    cdef int change(self, const StoreRequest* request) noexcept nogil:
        """CREATE, SEAL, REMOVE, COMPACT, PULL, FENCE: 0 once it is durable, or a negative errno."""
        cdef const PeerRequest* frame = &request.frame
        cdef Replica* replica
        cdef int error = 0
        if frame.kind == PEER_FENCE:
            return self.store.fence(frame.volume, frame.epoch)
        if frame.epoch < self.store.directory.fenced(frame.volume) and not planted(b"fence_ignored"):
            return -ESTALE
        if frame.kind == PEER_CREATE:
            self.store.create(
                frame.volume,
                frame.segment,
                frame.epoch,
                frame.stream,
                frame.fragment,
                frame.blocks,
                frame.flags & PEER_URGENT != 0,
                &error,
            )
            return error
        replica = self.store.find(frame.volume, frame.segment)
        if frame.kind == PEER_PULL:
            return self.pull(request, replica)
        if replica is NULL:
            return -ENOENT
        if replica.epoch > frame.epoch:
            return -ESTALE
        if replica.changing or self.store.log_of(frame.volume, frame.epoch) is not NULL:
            return -EBUSY                                # a volume of this node compacts it, or has it open
        if self.store.failed:
            return -EIO
        if frame.kind == PEER_REMOVE:
            error = self.store.remove(replica)
            if error == 0:
                release(replica)                         # no request uses it, and no volume of this node
            return error
        if frame.kind == PEER_COMPACT:
            return self.compact(replica, <const uint64_t*>request.buffer)
        return self.seal(frame, replica)

    cdef int compact(self, Replica* replica, const uint64_t* live) noexcept nogil:
        cdef int error = 0
        if replica.state != SEGMENT_SEALED or replica.footer_block == 0:
            return -EINVAL
        if self.store.compact(replica, live, NULL, &error) is NULL:
            return error
        self.store.retire(replica)                       # no request reads it: they wait for this one
        return 0

    cdef int pull(self, const StoreRequest* request, const Replica* replica) noexcept nogil:
        cdef const PullRequest* frame = <const PullRequest*>&request.frame
        if replica is not NULL and replica.epoch > frame.segment_epoch:
            return -ESTALE
        if self.store.log_of(frame.volume, frame.epoch) is not NULL:
            return -EBUSY                                # a volume of this node has it open
        if self.store.failed:
            return -EIO
        return self.puller.pull(frame, &request.abandoned)

    cdef bint lacks_records(self, const PeerRequest* frame, const Replica* replica) noexcept nogil:
        """A power cut may have taken records that the client still believes to be here: the client gives the replica
        up, or sends all of them again (PEER_COMPLETES)."""
        return (
            not frame.flags & PEER_COMPLETES
            and self.store.is_doubtful(replica)
            and not planted(b"doubtful_goes_on")
        )

    cdef int seal(self, const PeerRequest* frame, Replica* replica) noexcept nogil:
        if replica.state == SEGMENT_SEALED and replica.blocks == frame.blocks and \
                replica.footer_block == frame.footer_block:
            return 0                                     # repeated, since the client did not get the answer
        if replica.live or frame.blocks > replica.blocks:
            return -EINVAL
        if self.lacks_records(frame, replica):
            return -EIO
        return self.store.seal(replica, frame.blocks, frame.footer_block)

    # ------------------------------------------------------------------ what is here

    cdef int list(self, StoreRequest* request) noexcept nogil:
        """The volume's replicas from frame.segment on, by segment number, as many as were asked for."""
        cdef PeerRequest* frame = &request.frame
        cdef uint32_t count = self.store.list(frame.volume, NULL, 0), i, found = 0
        cdef Replica** replicas = <Replica**>malloc((count + 1) * sizeof(Replica*))
        cdef ListedReplica* entry
        request.count = 0
        if replicas is NULL:
            return -ENOMEM
        self.store.list(frame.volume, replicas, count)
        qsort(replicas, count, sizeof(Replica*), by_segment)
        for i in range(count):
            if replicas[i].segment < frame.segment:
                continue
            if found == frame.blocks:
                request.more = True
                break
            entry = <ListedReplica*>request.buffer + found
            found += 1
            memset(entry, 0, sizeof(ListedReplica))
            entry.segment = replicas[i].segment
            entry.blocks = replicas[i].blocks
            entry.footer_block = replicas[i].footer_block
            entry.live = replicas[i].live
            entry.epoch = replicas[i].epoch
            entry.fragment = replicas[i].fragment
            entry.stream = replicas[i].stream
            entry.state = replicas[i].state
            if self.store.is_doubtful(replicas[i]):
                entry.flags = LISTED_DOUBTFUL
        release(replicas)
        request.count = found
        request.fence = self.store.directory.fenced(frame.volume)
        return 0

    cdef void state_into(self, StoreRequest* request) noexcept nogil:
        cdef DeviceState* state = <DeviceState*>request.buffer + request.count
        cdef uint32_t free = self.store.slabs.free
        request.count += 1
        memset(state, 0, sizeof(DeviceState))
        state.device = self.number
        state.state = DEVICE_FAILED if self.store.failed else DEVICE_WORKS
        state.tier = self.store.superblock.tier
        state.volatile_cache = self.store.volatile_cache
        state.segment_blocks = self.store.segment_blocks
        state.free_bytes = <uint64_t>(free - min(free, self.store.reserve)) * self.store.superblock.slab_bytes
        state.device_bytes = self.store.device_bytes


cdef inline bint is_change(uint8_t kind) noexcept nogil:
    return not is_read(kind) and kind != PEER_WRITE


cdef inline bint awaits_fence(uint8_t kind) noexcept nogil:
    return not is_read(kind) and kind != PEER_PULL


cdef inline uint32_t readable_blocks(const PeerRequest* frame, const Replica* replica) noexcept nogil:
    cdef bint compacted = frame.kind == PEER_READ_STORED and replica.live
    return replica.live + <uint32_t>BITMAP_COPIES if compacted else replica.blocks


cdef inline uint32_t list_of(const PeerRequest* frame) noexcept nogil:
    return (frame.volume[0] ^ frame.volume[15]) % <uint32_t>LISTS       # identifiers are random


cdef bint conflict(const PeerRequest* later, const PeerRequest* earlier) noexcept nogil:
    if memcmp(later.volume, earlier.volume, 16) != 0:
        return False
    if later.kind == PEER_FENCE or earlier.kind == PEER_FENCE:
        return awaits_fence(later.kind) and awaits_fence(earlier.kind)
    if later.segment != earlier.segment:
        return False
    if is_change(later.kind) or is_change(earlier.kind):
        return True
    return later.kind == PEER_WRITE and earlier.kind == PEER_WRITE and \
        later.block < earlier.block + earlier.blocks and earlier.block < later.block + later.blocks


cdef int by_segment(const void* a, const void* b) noexcept nogil:
    cdef uint32_t one = (<Replica**>a)[0].segment, other = (<Replica**>b)[0].segment
    return 1 if one > other else -1 if one < other else 0


# ---------------------------------------------------------------------- callbacks

cdef void write_done(Operation* operation) noexcept nogil:
    cdef StoreRequest* request = <StoreRequest*>operation.owner
    transferred(request, operation)
    if operation.result < 0 or request.moved == request.frame.blocks:
        (<ServedStore>request.served).finish(request, <int>min(operation.result, 0))
    else:
        (<ServedStore>request.served).write_on(request)


cdef void read_done(Operation* operation) noexcept nogil:
    cdef StoreRequest* request = <StoreRequest*>operation.owner
    transferred(request, operation)
    if operation.result < 0 or request.moved == request.frame.blocks:
        (<ServedStore>request.served).finish(request, <int>min(operation.result, 0))
    else:
        (<ServedStore>request.served).read_on(request)


cdef inline void transferred(StoreRequest* request, const Operation* operation) noexcept nogil:
    if operation.result > 0:
        request.moved += <uint32_t>(operation.result // BLOCK_BYTES)


cdef void bitmap_done(Operation* operation) noexcept nogil:
    cdef StoreRequest* request = <StoreRequest*>operation.owner
    if operation.result < 0:
        (<ServedStore>request.served).finish(request, <int>operation.result)
    else:
        (<ServedStore>request.served).read_on(request)


cdef void flush_done(Operation* operation) noexcept nogil:
    cdef StoreRequest* request = <StoreRequest*>operation.owner
    (<ServedStore>request.served).finish(request, <int>min(operation.result, 0))


cdef int64_t change_body(void* argument) noexcept nogil:
    cdef StoreRequest* request = <StoreRequest*>argument
    return (<ServedStore>request.served).change(request)


cdef void change_done(Operation* operation) noexcept nogil:
    cdef StoreRequest* request = <StoreRequest*>operation.owner
    (<ServedStore>request.served).finish(request, <int>operation.result)


# ---------------------------------------------------------------------- the node's stores

cdef class ServedStores:
    cdef bint add(self, ServedStore store) noexcept nogil:
        if self.count == STORES_SERVED_MAX:
            return False
        self.stores[self.count] = <void*>store
        self.count += 1
        return True

    cdef void remove(self, ServedStore store) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if self.stores[i] is <void*>store:
                self.count -= 1
                self.stores[i] = self.stores[self.count]
                return

    cdef void* find(self, uint32_t device) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if (<ServedStore>self.stores[i]).number == device:
                return self.stores[i]
        return NULL
