# A member on this node: the copies are in one of its Stores.
#
# Writes and reads go from the log's reactor straight to the device, at the offsets of the replica's extents. All else
# runs on the store's home reactor (store/calls.pyx).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.base.atomics cimport load_flag, load_int, load_uint32
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.format.layout cimport BLOCK_BYTES, EXTENTS_MAX
from iomesh.engine.replicas.member cimport Member, Piece, Transfer, transfer_step
from iomesh.engine.store.calls cimport (
    store_compact, store_create, store_discard_copy, store_enter, store_fence, store_fenced, store_is_doubtful,
    store_keep_copy, store_leave, store_list, store_remove, store_reserve_copy,
    store_retire, store_seal
)
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.extents cimport ExtentRun, extent_run, next_extent, read_blocks, write_blocks
from iomesh.engine.store.store cimport Replica, Store, tell_full_below

cdef extern from "<errno.h>" nogil:
    int ESTALE

cdef enum:
    LATE_WRITES_NS = 20 * 1000 * 1000    # between two looks whether abandoned writes are answered
    TIGHT = 2                        # space is tight when at most this many times the reserve is free
    DEVICE_SHARE = 64                # a segment takes at most 1/64 of its device


cdef class LocalMember(Member):
    """reactor: the log's. number: among the log's members. volume: 16 bytes."""

    def __cinit__(self, Reactor reactor, uint32_t number, Store store, bytes volume):
        self.reactor, self.io, self.number, self.store = reactor, reactor.io, number, store
        self.volatile_cache = store.volatile_cache
        memcpy(self.volume, <const char*>volume, 16)

    # ------------------------------------------------------------------ the device and its space

    cdef uint32_t device(self) noexcept nogil:
        return load_uint32(self.store.superblock.number)

    cdef uint64_t boot(self) noexcept nogil:
        return self.io.boot

    cdef bint works(self) noexcept nogil:
        return load_int(self.store.failed) == 0

    cdef bint has_failed(self) noexcept nogil:
        return load_int(self.store.flusher.failed) != 0

    cdef bint is_stalled(self) noexcept nogil:
        return load_int(self.store.stalled) != 0

    cdef bint is_full_below(self) noexcept nogil:
        return load_flag(self.store.full_below)

    cdef void set_full_below(self, bint full) noexcept nogil:
        if full or load_flag(self.store.full_below):
            tell_full_below(self.store, full)

    cdef bint may_be_written(self) noexcept nogil:
        return not self.is_stalled() and self.io.writes_abandoned(self.store.device)

    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil:
        return self.store.has_room(blocks, urgent)

    cdef bint spares(self, uint32_t blocks) noexcept nogil:
        cdef uint64_t kept = 3 * <uint64_t>self.store.reserve // 4
        return self.store.slabs_for(blocks) + kept <= load_uint32(self.store.slabs.free)

    cdef bint is_tight(self) noexcept nogil:
        return load_uint32(self.store.slabs.free) <= TIGHT * self.store.reserve

    cdef uint32_t free_share(self) noexcept nogil:
        return <uint32_t>((<uint64_t>load_uint32(self.store.slabs.free) << 31) // self.store.slabs.total)

    cdef uint32_t length(self, uint32_t most, bint urgent) noexcept nogil:
        cdef uint64_t suits = self.store.segment_blocks
        cdef uint64_t share = self.store.device_bytes // BLOCK_BYTES // DEVICE_SHARE
        if not urgent:
            suits = max(suits, min(share, <uint64_t>most))
        return <uint32_t>min(<uint64_t>most, suits)

    # ------------------------------------------------------------------ a copy that is being written

    cdef int create(
        self, uint32_t segment, uint64_t epoch, uint32_t fragment, uint32_t blocks, bint urgent, Replica** replica
    ) noexcept nogil:
        cdef int error = 0
        replica[0] = store_create(
            <void*>self.store, self.reactor, self.volume, segment, epoch, fragment, blocks, urgent, &error
        )
        return 0 if replica[0] is not NULL else error

    cdef void write(self, Transfer* transfer, const Piece* piece, Replica* replica) noexcept nogil:
        transfer.member = <uint16_t>self.number
        if piece.head is NULL:
            self.write_run(transfer, replica, piece.block, piece.data, piece.blocks)
            return
        self.write_run(transfer, replica, piece.block, piece.head, 1)
        if piece.blocks > 1:
            self.write_run(transfer, replica, piece.block + 1, piece.data, piece.blocks - 1)

    cdef void write_run(
        self, Transfer* transfer, Replica* replica, uint32_t block, const char* data, uint32_t blocks
    ) noexcept nogil:
        cdef ExtentRun run = extent_run(replica, block, blocks, data)
        cdef Operation* operation
        while next_extent(&run):
            invariant(transfer.count <= EXTENTS_MAX, b"a record touches few extents")
            operation = &transfer.operations[transfer.count]
            transfer.count += 1
            transfer.left += 1
            operation.done = transfer_step
            operation.owner = transfer
            self.io.write(operation, replica.device, run.data, run.blocks * BLOCK_BYTES, run.offset)
        invariant(run.left == 0, b"a segment has slabs for its blocks")

    cdef void flush(self, Operation* when) noexcept nogil:
        if self.store.home is self.reactor:
            self.store.flusher.flush(when)
        else:
            start(flush_there, <void*>self, when)

    cdef int make_stable(self) noexcept nogil:
        return self.store.flusher.wait_flushed_from(self.reactor) if self.volatile_cache else 0

    # ------------------------------------------------------------------ in a task

    cdef int seal(
        self, uint32_t segment, uint64_t epoch, Replica* replica, uint32_t blocks, uint32_t footer_block,
        bint completed
    ) noexcept nogil:
        return store_seal(<void*>self.store, self.reactor, replica, blocks, footer_block)

    cdef int remove(self, uint32_t segment, uint64_t epoch, Replica* replica) noexcept nogil:
        return store_remove(<void*>self.store, self.reactor, replica)

    cdef int read(self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil:
        return read_blocks(self.io, replica, block, count, into)

    cdef int reserve(self, uint32_t segment, uint32_t blocks, Replica** replica) noexcept nogil:
        cdef int error = 0
        replica[0] = store_reserve_copy(<void*>self.store, self.reactor, self.volume, segment, blocks, &error)
        return 0 if replica[0] is not NULL else error

    cdef int fill(
        self, uint32_t segment, Replica* replica, uint32_t block, uint32_t count, const void* data
    ) noexcept nogil:
        return write_blocks(self.io, replica, block, count, data)

    cdef int keep(
        self,
        uint32_t segment,
        Replica* replica,
        uint64_t epoch,
        uint16_t stream,
        uint32_t blocks,
        uint32_t footer_block,
        uint8_t state,
    ) noexcept nogil:
        return store_keep_copy(<void*>self.store, self.reactor, replica, epoch, stream, blocks, footer_block, state)

    cdef void discard(self, uint32_t segment, Replica* replica) noexcept nogil:
        store_discard_copy(<void*>self.store, self.reactor, replica)

    cdef int compact(
        self, uint32_t segment, uint64_t epoch, Replica** replica, const uint64_t* live, Throttle* throttle
    ) noexcept nogil:
        cdef Replica* old = replica[0]
        cdef int error = 0
        cdef Replica* copy = store_compact(<void*>self.store, self.reactor, old, live, throttle, &error)
        if copy is NULL:
            return error
        replica[0] = copy
        store_retire(<void*>self.store, self.reactor, old)    # reads in flight on the old replica are retried
        return 0

    cdef uint32_t list(self, Replica** into, uint32_t room) noexcept nogil:
        return store_list(<void*>self.store, self.reactor, self.volume, into, room)

    cdef bint is_doubtful(self, Replica* replica) noexcept nogil:
        return store_is_doubtful(<void*>self.store, self.reactor, replica)

    cdef void enter(
        self, uint64_t epoch, void* log, int64_t (*on_fenced)(void* log) noexcept nogil
    ) noexcept nogil:
        memcpy(self.opened.volume, self.volume, 16)
        self.opened.epoch, self.opened.log, self.opened.on_fenced = epoch, log, on_fenced
        self.opened.reactor = <void*>self.reactor
        self.entered = True
        store_enter(<void*>self.store, self.reactor, &self.opened)

    cdef void leave(self) noexcept nogil:
        cdef Operation timer
        if not self.entered:
            return
        while self.may_be_written():                     # then others may free the slabs
            waited(&timer)
            self.io.after(&timer, LATE_WRITES_NS)
            wait(&timer)
        self.entered = False
        store_leave(<void*>self.store, self.reactor, &self.opened)

    cdef bint holds_lease(self, int64_t now_ns) noexcept nogil:
        return self.store.leases is None or self.store.leases.look(now_ns) == self.verified

    cdef int verify(self, uint64_t epoch) noexcept nogil:
        cdef uint64_t fences = self.store.leases.count()
        if store_fenced(<void*>self.store, self.reactor, self.volume) > epoch:
            return -ESTALE
        self.verified = fences
        return 0

    cdef int fence(self, uint64_t epoch) noexcept nogil:
        return store_fence(<void*>self.store, self.reactor, self.volume, epoch)


cdef list local_members(Reactor reactor, list stores, bytes volume):
    return [LocalMember(reactor, number, store, volume) for number, store in enumerate(stores)]


cdef int64_t flush_there(void* member) noexcept nogil:
    return (<LocalMember>member).make_stable()
