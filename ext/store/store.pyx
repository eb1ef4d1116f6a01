# The segment store on one device.
#
# Always true once open() has returned 0:
#   - a slab is free or belongs to exactly one replica; a deleted replica's slabs are free only once the deletion is
#     durable;
#   - find() returns a replica only once its creation is durable, in the state that the journal has
#     (store/directory.pyx);
#   - one journal entry replaces a replica by its compacted copy: after a crash one of the two exists, and the other's
#     slabs are free when the store opens;
#   - `reserve` slabs are kept for urgent creations: a full device can still write checkpoints, seal, and so free space;
#   - no segment is created for an epoch below its volume's fence;
#   - after an error of the journal or of any device flush, and when the device did not answer a request in time, the
#     store is read-only (`failed`) until it is opened again; what the device returns stays readable;
#   - what open() has read is stable before it is used. A crash may have left the journal's newest block in the device's
#     cache, and an earlier process may have failed to flush it; so open() writes it again.
#
# open() is a list of steps. Nothing is written until the superblocks have shown which cluster owns the device.
# Format: docs/formats.md, "The device", "Superblock".

from libc.errno cimport EEXIST, EINVAL, EIO, ENOMEM, ENOSPC, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.store.compaction cimport Compactor, Throttle
from iomesh.engine.store.device_flusher cimport DeviceFlusher
from iomesh.engine.store.directory cimport Directory, EntryBytes, Replica, extents_of, fence_entry
from iomesh.engine.base.atomics cimport load_flag, load_int, load_uint32, store_flag, store_int, store_uint32
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.store.journal cimport REPAIR_BYTES, Change, Journal, format_journal
from iomesh.engine.format.layout cimport (
    BITMAP_COPIES, BLOCK_BYTES, DEVICE_BYTES_MIN, ENTRY_DELETE, EXTENTS_MAX, FEATURE_COMPACTED, FEATURE_FENCED,
    FEATURES_KNOWN, FORMAT_VERSION, JOURNAL_OFFSET, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_OPEN, SEGMENT_SEALED,
    SLAB_BYTES_MAX, SLAB_BYTES_MIN, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_TWIN_OFFSET, Extent, Superblock,
    block_crc, superblock_fault, superblock_valid
)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.store.journal_replay cimport new_repair, replay
from iomesh.engine.store.slabs cimport Slabs
from iomesh.engine.base.task cimport start, wait, wait_in, waited, wake_all, wake_one

cdef extern from "<errno.h>" nogil:
    int EMEDIUMTYPE, EPROTONOSUPPORT, ESTALE, EUCLEAN


cdef extern from *:
    uint8_t trailing_zeros "__builtin_ctz" (uint32_t bits) noexcept nogil

cdef int64_t CLOSE_NS = <int64_t>5 * 1000 * 1000 * 1000    # a fence is answered then all the same: see enter()

cdef enum:
    JOURNAL_BYTES_MIN = 1024 * 1024
    RESERVE_SEGMENTS = 4             # a volume's checkpoint and its log's next segment, for two volumes
    RESERVE_SHARE = 256              # ... plus 1/256 of all slabs: the size of all map leaves for the whole device
    LOOK_NS = 5 * 1000 * 1000        # between two looks whether a log that was fenced off is closed


cdef class Store:
    """home: its reactor. device: the Io's number. device_bytes: its length. Raises MemoryError."""

    def __cinit__(self, Reactor home, int device, uint64_t device_bytes, bint volatile_cache):
        self.home = home
        self.device = device
        self.device_bytes = device_bytes
        self.volatile_cache = volatile_cache
        self.slabs = Slabs()
        self.directory = Directory()
        self.flusher = DeviceFlusher(home, device, volatile_cache)
        self.flusher.owner = <void*>self
        self.flusher.on_failure = flush_failed
        self.journal = Journal(home, self.directory, device, self.flusher)
        self.all_compactors = [Compactor(home.io) for _ in range(COMPACTIONS)]
        for compactor in self.all_compactors:
            self.compactors[self.idle] = <void*>compactor
            self.idle += 1

    # ------------------------------------------------------------------ opening

    cdef int open(self, const uint8_t* cluster) noexcept nogil:
        cdef Superblock* twins = <Superblock*>allocate_aligned(2 * BLOCK_BYTES)
        cdef int[2] errors
        cdef int error
        if twins is NULL:
            snprintf(self.reason, sizeof(self.reason), b"there is no memory for the superblocks")
            return -ENOMEM
        errors[0] = read_superblock(self.home.io, self.device, &twins[0], SUPERBLOCK_OFFSET)
        errors[1] = read_superblock(self.home.io, self.device, &twins[1], SUPERBLOCK_TWIN_OFFSET)
        error = self.choose_superblock(twins, errors, cluster)
        if errors[0] == -ETIMEDOUT or errors[1] == -ETIMEDOUT:
            snprintf(self.reason, sizeof(self.reason), b"the device does not answer: its superblocks cannot be read")
            error = -ETIMEDOUT
        if error == 0:
            error = replay(self.journal, &self.superblock, &self.repairs, self.reason)
        if error == 0:
            error = self.claim_slabs()
        if error == 0:
            self.restore_superblock(&twins[0], 0)
            self.restore_superblock(&twins[1], 1)
            error = self.journal.write_newest()          # and flush: all of it is stable before it is used
            if error:
                snprintf(
                    self.reason, sizeof(self.reason), b"the device cannot be written or flushed (error %d)", -error
                )
        self.home.io.release(twins)
        return error

    cdef int choose_superblock(self, const Superblock* twins, const int* errors, const uint8_t* cluster) noexcept nogil:
        """Choose the valid superblock and check cluster, version and features. 0, or a negative errno and `reason`."""
        cdef const Superblock* best = NULL
        cdef const char* words
        cdef int i, ours = 0
        for i in range(2):
            if errors[i] or twins[i].magic != SUPERBLOCK_MAGIC:
                continue
            ours += 1
            if twins[i].crc == block_crc(&twins[i]):
                if twins[i].version != FORMAT_VERSION:
                    snprintf(
                        self.reason, sizeof(self.reason),
                        b"the device is of format version %u, and this program knows version %u: "
                        b"use the program that wrote it",
                        twins[i].version, <uint32_t>FORMAT_VERSION
                    )
                    return -EPROTONOSUPPORT
                if twins[i].features & ~<uint64_t>FEATURES_KNOWN:
                    snprintf(
                        self.reason, sizeof(self.reason),
                        b"the device needs features 0x%llx that this program does not have: "
                        b"use the program that wrote it",
                        <unsigned long long>(twins[i].features & ~<uint64_t>FEATURES_KNOWN)
                    )
                    return -EPROTONOSUPPORT
                if superblock_valid(&twins[i]) and (best is NULL or twins[i].generation > best.generation):
                    best = &twins[i]
        if best is NULL and errors[0] and errors[1]:
            snprintf(self.reason, sizeof(self.reason), b"neither superblock can be read (error %d)", -errors[0])
            return errors[0]
        if best is NULL and ours == 0:
            snprintf(self.reason, sizeof(self.reason), b"the device is not an iomesh device: format it first")
            return -EMEDIUMTYPE
        if best is NULL:
            words = superblock_fault(
                &twins[0] if not errors[0] and twins[0].magic == SUPERBLOCK_MAGIC else &twins[1]
            ).words
            snprintf(self.reason, sizeof(self.reason), b"both superblocks are damaged: %s", words)
            return -EUCLEAN
        if (
            superblock_valid(&twins[0])
            and superblock_valid(&twins[1])
            and twins[0].generation == twins[1].generation
            and memcmp(&twins[0], &twins[1], BLOCK_BYTES) != 0
        ):
            snprintf(self.reason, sizeof(self.reason), b"the two superblocks are of the same generation and differ")
            return -EUCLEAN
        if cluster is not NULL and memcmp(cluster, best.cluster, 16) != 0:
            snprintf(self.reason, sizeof(self.reason), b"the device belongs to another cluster")
            return -EMEDIUMTYPE
        if best.device_bytes > self.device_bytes:
            snprintf(
                self.reason, sizeof(self.reason),
                b"the device is %llu bytes long, and it was formatted with %llu: part of it is missing",
                <unsigned long long>self.device_bytes, <unsigned long long>best.device_bytes
            )
            return -EUCLEAN
        self.superblock = best[0]
        self.slab_blocks = self.superblock.slab_bytes // BLOCK_BYTES
        self.slab_shift = trailing_zeros(self.slab_blocks)
        return 0

    cdef int claim_slabs(self) noexcept nogil:
        """Check that every replica's slabs lie on the device and have one owner; the other slabs are free."""
        cdef uint32_t bucket
        cdef int i
        cdef Replica* replica
        if not self.slabs.begin(self.superblock.slabs):
            snprintf(
                self.reason, sizeof(self.reason),
                b"there is no memory for the bitmap of %u slabs",
                self.superblock.slabs
            )
            return -ENOMEM
        for bucket in range(self.directory.bucket_count):
            replica = self.directory.buckets[bucket]
            while replica is not NULL:
                replica.device = <uint16_t>self.device
                replica.slabs_offset = self.superblock.slabs_offset
                replica.slab_shift = self.slab_shift
                for i in range(replica.extent_count):
                    if not self.slabs.claim(replica.extents[i]):
                        snprintf(
                            self.reason, sizeof(self.reason),
                            b"the directory is damaged: segment %u has slabs %u to %llu, "
                            b"which belong to another segment too or lie beyond the device",
                            replica.segment, replica.extents[i].first,
                            <unsigned long long>replica.extents[i].first + replica.extents[i].count - 1
                        )
                        return -EUCLEAN
                replica = replica.next
        store_uint32(self.replicas, self.directory.count)
        self.segment_blocks = <uint32_t>(segment_bytes_of(self.superblock.device_bytes) // BLOCK_BYTES)
        self.reserve = RESERVE_SEGMENTS * self.slabs_for(self.segment_blocks) + \
            self.superblock.slabs // RESERVE_SHARE
        return 0

    cdef void restore_superblock(self, const Superblock* found, int which) noexcept nogil:
        cdef Superblock* good
        cdef const char* name = b"second superblock" if which else b"first superblock"
        cdef int error
        if memcmp(found, &self.superblock, sizeof(Superblock)) == 0:
            return
        good = <Superblock*>allocate_aligned(BLOCK_BYTES)
        error = -ENOMEM
        if good is not NULL:
            good[0] = self.superblock
            error = self.write_superblock(good, SUPERBLOCK_TWIN_OFFSET if which else SUPERBLOCK_OFFSET)
            release(good)
        if error:
            snprintf(
                new_repair(&self.repairs), REPAIR_BYTES,
                b"%s: it is damaged and cannot be rewritten (error %d): replace the device",
                name, -error
            )
        else:
            snprintf(
                new_repair(&self.repairs), REPAIR_BYTES,
                b"%s: it was damaged or out of date and is restored from the other",
                name
            )

    # ------------------------------------------------------------------ replicas

    cdef Replica* create(
        self,
        const uint8_t* volume,
        uint32_t segment,
        uint64_t epoch,
        uint16_t stream,
        uint32_t fragment,
        uint32_t blocks,
        bint urgent,
        int* error,
    ) noexcept nogil:
        """Create an open, durable replica of `blocks` blocks; NULL and a negative errno: EEXIST, ESTALE, ENOSPC,
        ENOMEM, EIO."""
        cdef Change change
        cdef Extent[EXTENTS_MAX] extents
        cdef int count = 0
        invariant(0 < blocks <= SEGMENT_BYTES_MAX // BLOCK_BYTES, b"a segment has 1 to 16384 blocks")
        if self.failed:
            error[0] = -EIO
            return NULL
        if self.directory.find(volume, segment) is not NULL:
            error[0] = -EEXIST
            return NULL
        if epoch < self.directory.fenced(volume):
            error[0] = -ESTALE
            return NULL
        if self.has_room(blocks, urgent):
            count = self.slabs.take(self.slabs_for(blocks), extents, EXTENTS_MAX)
        if count == 0:
            error[0] = -ENOSPC
            return NULL
        change.instead_of = NULL
        change.replica = self.directory.add(volume, segment, extents, count)
        if change.replica is NULL:
            self.slabs.give_back(extents, count)
            error[0] = -ENOMEM
            return NULL
        change.replica.device = <uint16_t>self.device
        change.replica.slabs_offset = self.superblock.slabs_offset
        change.replica.slab_shift = self.slab_shift
        self.directory.entry_of(change.replica, &change.wanted.entry)
        change.wanted.entry.state = SEGMENT_OPEN
        change.wanted.entry.epoch = epoch
        change.wanted.entry.boot = self.boot()
        change.wanted.entry.stream = stream
        change.wanted.entry.fragment = fragment
        change.wanted.entry.blocks = blocks
        error[0] = self.commit(&change)
        if error[0]:
            self.directory.drop(change.replica)          # its slabs stay taken: the entry may be on the device
            return NULL
        store_uint32(self.replicas, self.directory.count)
        return change.replica

    cdef Replica* reserve_copy(
        self, const uint8_t* volume, uint32_t segment, uint32_t blocks, int* error
    ) noexcept nogil:
        """NULL and a negative errno: EEXIST, ENOSPC, ENOMEM, EIO."""
        cdef Extent[EXTENTS_MAX] extents
        cdef Replica* replica
        cdef Replica* old = self.directory.find(volume, segment)
        cdef int count = 0
        error[0] = -EIO if self.failed else -EEXIST
        if self.failed or (old is not NULL and (old.state == 0 or old.changing)):
            return NULL
        if self.has_room(blocks, True):
            count = self.slabs.take(self.slabs_for(blocks), extents, EXTENTS_MAX)
        error[0] = -ENOSPC
        if count == 0:
            return NULL
        if old is NULL:
            replica = self.directory.add(volume, segment, extents, count)
        else:
            replica = self.directory.copy_of(old, extents, count)
        error[0] = -ENOMEM if replica is NULL else 0
        if replica is NULL:
            self.slabs.give_back(extents, count)
            return NULL
        if old is not NULL:
            old.changing = True
        replica.device = <uint16_t>self.device
        replica.slabs_offset = self.superblock.slabs_offset
        replica.slab_shift = self.slab_shift
        return replica

    cdef int keep_copy(
        self, Replica* replica, uint64_t epoch, uint16_t stream, uint32_t blocks, uint32_t footer_block, uint8_t state
    ) noexcept nogil:
        """0 once that is durable; or a negative errno: the replica is dropped, but its slabs stay taken, since the
        journal entry may be on the device."""
        cdef Change change
        cdef Replica* old = self.directory.find(replica.volume, replica.segment)
        cdef int error
        change.instead_of = old if old is not replica else NULL
        change.replica = replica
        self.directory.entry_of(replica, &change.wanted.entry)
        change.wanted.entry.state = state
        change.wanted.entry.epoch = epoch
        change.wanted.entry.stream = stream
        change.wanted.entry.blocks = blocks
        change.wanted.entry.footer_block = footer_block
        error = self.commit(&change)
        if error:
            self.drop_copy(replica)
        elif change.instead_of is not NULL:
            self.retire(old)
        store_uint32(self.replicas, self.directory.count)
        return error

    cdef void discard_copy(self, Replica* replica) noexcept nogil:
        self.slabs.give_back(replica.extents, replica.extent_count)
        self.drop_copy(replica)

    cdef void drop_copy(self, Replica* replica) noexcept nogil:
        cdef Replica* old = self.directory.find(replica.volume, replica.segment)
        if old is replica:
            self.directory.drop(replica)
        else:
            old.changing = False
            self.directory.discard(replica)

    cdef int seal(self, Replica* replica, uint32_t blocks, uint32_t footer_block) noexcept nogil:
        """0 once that is durable, or a negative errno."""
        cdef Change change
        cdef Extent[EXTENTS_MAX] freed
        cdef Extent* extents = <Extent*>extents_of(&change.wanted.entry)
        cdef uint32_t kept = self.slabs_for(blocks)
        cdef int i, freed_count = 0, error
        invariant(replica.live == 0, b"a compacted segment has its end")
        invariant(
            replica.state != 0 and blocks <= replica.blocks,
            b"a segment is sealed once it is open, or shortened, never lengthened",
        )
        invariant(footer_block == 0 or footer_block < blocks, b"the footer lies inside the segment")
        change.replica = replica
        change.instead_of = NULL
        self.directory.entry_of(replica, &change.wanted.entry)
        change.wanted.entry.boot = 0
        change.wanted.entry.state = SEGMENT_SEALED
        change.wanted.entry.blocks = blocks
        change.wanted.entry.footer_block = footer_block
        change.wanted.entry.extent_count = 0
        for i in range(replica.extent_count):
            if kept < extents[i].count:
                freed[freed_count].first = extents[i].first + kept
                freed[freed_count].count = extents[i].count - kept
                freed_count += 1
                extents[i].count = kept
            kept -= extents[i].count
            change.wanted.entry.extent_count += extents[i].count != 0
        error = self.commit(&change)
        if error == 0:
            self.slabs.give_back(freed, freed_count)
        return error

    cdef int remove(self, Replica* replica) noexcept nogil:
        """0 once that is durable, or a negative errno."""
        cdef Change change
        cdef int error
        invariant(replica.state != 0, b"a replica that exists is removed")
        change.replica = replica
        change.instead_of = NULL
        memset(&change.wanted.entry, 0, sizeof(change.wanted.entry))
        change.wanted.entry.kind = ENTRY_DELETE
        change.wanted.entry.segment = replica.segment
        memcpy(change.wanted.entry.volume, replica.volume, 16)
        if planted(b"slabs_free_early"):
            self.slabs.give_back(replica.extents, replica.extent_count)
        error = self.commit(&change)
        if error == 0 and not planted(b"slabs_free_early"):
            self.slabs.give_back(replica.extents, replica.extent_count)
        if error == 0:
            self.directory.unlink(replica)
            store_uint32(self.replicas, self.directory.count)
        return error

    # ------------------------------------------------------------------ compaction

    cdef Replica* compact(self, Replica* old, const uint64_t* live, Throttle* throttle, int* error) noexcept nogil:
        cdef Replica* copy = NULL
        cdef void* compactor
        while self.idle == 0:
            wait_in(&self.compactions)
        invariant(
            old.state == SEGMENT_SEALED and not old.changing, b"a sealed replica that nobody changes is compacted"
        )
        self.idle -= 1
        compactor = self.compactors[self.idle]
        old.changing = True
        error[0] = -EIO if self.failed else (<Compactor>compactor).plan(old, live)
        if error[0] == 0:
            copy = self.rewrite(<Compactor>compactor, old, throttle, error)
        if copy is NULL:
            old.changing = False
        self.compactors[self.idle] = compactor
        self.idle += 1
        wake_one(&self.compactions, 0)
        return copy

    cdef Replica* rewrite(self, Compactor compactor, Replica* old, Throttle* throttle, int* error) noexcept nogil:
        """Write the planned copy, flush, then journal it; the journal entry makes it valid."""
        cdef Change change
        cdef Extent[EXTENTS_MAX] extents
        cdef uint32_t slabs = self.slabs_for(compactor.blocks())
        cdef int count = 0
        if slabs + self.reserve // 2 <= self.slabs.free and self.journal.has_room(sizeof(EntryBytes)):
            count = self.slabs.take(slabs, extents, EXTENTS_MAX)
        if count == 0:
            error[0] = -ENOSPC
            return NULL
        change.instead_of = old
        change.replica = self.directory.copy_of(old, extents, count)
        error[0] = -ENOMEM
        if change.replica is not NULL:
            error[0] = compactor.copy(old, change.replica, throttle)
            if error[0] == 0:
                error[0] = self.journal.flush()
            if error[0] == 0:
                error[0] = self.rewrite_superblock(FEATURE_COMPACTED, self.superblock.number)
        if error[0]:
            if change.replica is not NULL:
                self.directory.discard(change.replica)
            self.slabs.give_back(extents, count)
            return NULL
        self.directory.entry_of(old, &change.wanted.entry)
        change.wanted.entry.bitmap_blocks = BITMAP_COPIES
        change.wanted.entry.bitmap_crc = compactor.kept.crc
        change.wanted.entry.live = compactor.kept.live
        change.wanted.entry.extent_count = count
        memcpy(<void*>extents_of(&change.wanted.entry), extents, count * sizeof(Extent))
        error[0] = self.commit(&change)
        if error[0]:
            self.directory.discard(change.replica)       # its slabs stay taken: the entry may be on the device
            return NULL
        return change.replica

    cdef void retire(self, Replica* old) noexcept nogil:
        invariant(old.state == 0 and old.changing, b"a replica is retired when another is in its place")
        self.slabs.give_back(old.extents, old.extent_count)
        release(old)

    # ------------------------------------------------------------------ fences, superblock

    cdef int fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil:
        cdef Operation timer
        cdef int64_t until_ns
        cdef int error = self.accept_fence(volume, epoch)
        if error or epoch == 0:
            return error
        if not planted(b"fence_awaits_no_copy"):
            self.await_coming(volume)
        if self.leases is None or planted(b"no_lease_wait"):
            return 0
        until_ns = self.leases.fenced()
        self.end_log(volume, epoch)
        while self.home.io.monotonic_ns() < until_ns:
            waited(&timer)
            self.home.io.after(&timer, until_ns - self.home.io.monotonic_ns())
            wait(&timer)
        return 0

    cdef void announce(self, Coming* copy) noexcept nogil:
        copy.next = self.coming
        self.coming = copy

    cdef void announce_end(self, Coming* copy) noexcept nogil:
        cdef Coming** place = &self.coming
        while place[0] is not copy:
            place = &place[0].next
        place[0] = copy.next
        wake_all(&self.came, 0)

    cdef void await_coming(self, const uint8_t* volume) noexcept nogil:
        cdef Coming* copy = self.coming
        while copy is not NULL:
            if memcmp(copy.volume, volume, 16) == 0:
                wait_in(&self.came)
                copy = self.coming
            else:
                copy = copy.next

    cdef void enter(self, OpenLog* log) noexcept nogil:
        log.next = self.open_logs
        self.open_logs = log

    cdef void leave(self, OpenLog* log) noexcept nogil:
        cdef OpenLog** place = &self.open_logs
        while place[0] is not NULL and place[0] is not log:
            place = &place[0].next
        if place[0] is not NULL:
            place[0] = log.next

    cdef OpenLog* log_of(self, const uint8_t* volume, uint64_t epoch) noexcept nogil:
        cdef OpenLog* log = self.open_logs
        while log is not NULL and (log.epoch >= epoch or memcmp(log.volume, volume, 16) != 0):
            log = log.next
        return log

    cdef void end_log(self, const uint8_t* volume, uint64_t epoch) noexcept nogil:
        """A log of this node that had the volume fails, and is then closed by its node."""
        cdef OpenLog* log = self.log_of(volume, epoch)
        cdef Operation timer
        cdef int64_t until_ns = self.home.io.monotonic_ns() + CLOSE_NS
        if log is not NULL:
            call_on(<Reactor>log.reactor, self.home, log.on_fenced, log.log)
        while self.log_of(volume, epoch) is not NULL and self.home.io.monotonic_ns() < until_ns:
            waited(&timer)
            self.home.io.after(&timer, LOOK_NS)
            wait(&timer)

    cdef int accept_fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil:
        cdef Change change
        cdef uint64_t fenced = self.directory.fenced(volume)
        cdef int error
        if self.failed:
            return -EIO
        if epoch and fenced > epoch:
            return -ESTALE
        if fenced == epoch:
            return 0
        if not self.journal.has_room(sizeof(EntryBytes)):
            return -ENOSPC
        error = self.rewrite_superblock(FEATURE_FENCED, self.superblock.number)
        if error == 0 and self.failed:
            error = -EIO
        if error == 0 and not self.directory.make_fence_room():
            error = -ENOMEM
        if error:
            return error
        change.replica = change.instead_of = NULL
        fence_entry(volume, epoch, &change.wanted.entry)
        error = self.journal.commit(&change)
        if error:
            store_int(self.failed, self.journal.failed)
            return error
        return -ESTALE if epoch and self.directory.fenced(volume) > epoch else 0     # set by a concurrent call

    cdef int set_number(self, uint32_t number) noexcept nogil:
        if self.superblock.number and self.superblock.number != number:
            return -EEXIST
        return self.rewrite_superblock(0, number)

    cdef int rewrite_superblock(self, uint64_t feature, uint32_t number) noexcept nogil:
        """Write both superblocks with this feature and number. The feature flag is durable before anything that needs
        it, so a program that does not know it refuses the device. Changes are serialized: two superblocks of one
        generation must not differ."""
        cdef Superblock* wanted
        cdef int error
        while self.rewriting:
            wait_in(&self.rewritten)
        if (self.superblock.features & feature) == feature and self.superblock.number == number:
            return 0
        wanted = <Superblock*>allocate_aligned(BLOCK_BYTES)
        if wanted is NULL:
            return -ENOMEM
        self.rewriting = True
        wanted[0] = self.superblock
        wanted.features |= feature
        wanted.number = number
        wanted.generation += 1
        wanted.crc = block_crc(wanted)
        error = self.write_superblock(wanted, SUPERBLOCK_TWIN_OFFSET)
        if error == 0:
            error = self.write_superblock(wanted, SUPERBLOCK_OFFSET)
        if error == 0:
            self.superblock.features = wanted.features
            self.superblock.crc = wanted.crc
            store_uint32(self.superblock.number, number)
        self.superblock.generation = wanted.generation   # also after an error: one of the two may have been written
        self.rewriting = False
        wake_all(&self.rewritten, 0)
        self.home.io.release(wanted)
        return error

    cdef int write_superblock(self, const Superblock* block, uint64_t offset) noexcept nogil:
        """Write and flush: at any time, one of the two is intact."""
        cdef int error = write_block(self.home.io, self.device, block, offset)
        return error if error else self.flusher.wait_flushed()

    # ------------------------------------------------------------------ what is doubtful

    cdef uint64_t boot(self) noexcept nogil:
        return self.home.io.boot + self.superblock.flush_failures

    cdef bint is_doubtful(self, const Replica* replica) noexcept nogil:
        return replica.state == SEGMENT_OPEN and self.directory.boot_of(replica) != self.boot()

    cdef void count_failure(self) noexcept nogil:
        self.superblock.flush_failures += 1              # from now on what is open here is doubtful
        start(remember_body, <void*>self, NULL)

    cdef int remember_failure(self) noexcept nogil:
        """In a task, after a failed flush: so that the process that opens the store next does not trust what is here.
        The device may be unable to make it stable: then a power cut takes it, after which nothing is trusted anyway."""
        cdef Superblock* wanted = <Superblock*>allocate_aligned(BLOCK_BYTES)
        cdef int error = -ENOMEM, other
        if wanted is NULL:
            return error
        while self.rewriting:
            wait_in(&self.rewritten)
        self.rewriting = True
        wanted[0] = self.superblock
        wanted.generation += 2                           # the flush may have been that of a superblock
        wanted.crc = block_crc(wanted)
        error = write_block(self.home.io, self.device, wanted, SUPERBLOCK_TWIN_OFFSET)
        other = write_block(self.home.io, self.device, wanted, SUPERBLOCK_OFFSET)
        if error == 0 or other == 0:
            self.superblock.generation, self.superblock.crc = wanted.generation, wanted.crc
            self.remembers = True
            error = 0
        self.rewriting = False
        wake_all(&self.rewritten, 0)
        self.home.io.release(wanted)
        return error

    # ------------------------------------------------------------------

    cdef int commit(self, Change* change) noexcept nogil:
        cdef int error
        invariant(not change.replica.changing, b"a replica changes once at a time")
        if load_int(self.stalled):
            return -EIO                                  # a late write must not meet slabs that were freed
        change.replica.changing = True
        error = self.journal.commit(change)
        change.replica.changing = False
        if error and not self.failed:
            store_int(self.failed, self.journal.failed if self.journal.failed else EIO)
        return error

    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil:
        cdef Replica* replica = self.directory.find(volume, segment)
        return NULL if replica is NULL or replica.state == 0 else replica

    cdef int64_t erase(self, const uint8_t* volume) noexcept nogil:
        cdef uint32_t count = self.list(volume, NULL, 0), i
        cdef Replica** replicas = <Replica**>calloc(count + 1, sizeof(Replica*))
        cdef int64_t result = 0 if replicas is not NULL else -ENOMEM
        if self.failed:
            result = -EIO                                # a failed creation may still be in the journal
        if result == 0:
            self.list(volume, replicas, count)
        for i in range(count):
            if result == 0:
                result = self.remove(replicas[i])
                if result == 0:
                    release(replicas[i])
        if result == 0 and self.directory.fenced(volume):
            result = self.fence(volume, 0)
        release(replicas)
        return result if result < 0 and not planted(b"erased_though_not") else count

    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil:
        return self.directory.list(volume, into, room)

    cdef uint32_t slabs_for(self, uint64_t blocks) noexcept nogil:
        return <uint32_t>((blocks + self.slab_blocks - 1) >> self.slab_shift)

    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil:
        """Whether free slabs and the journal suffice for a segment of `blocks` blocks. Any thread may ask; create()
        decides."""
        cdef uint64_t slabs = self.slabs_for(blocks)
        return (
            not load_int(self.failed)
            and slabs + (0 if urgent else self.reserve) <= load_uint32(self.slabs.free)
            and self.journal.has_room(sizeof(EntryBytes))
        )


# ---------------------------------------------------------------------- formatting

cdef uint64_t segment_bytes_of(uint64_t device_bytes) noexcept nogil:
    """The largest segment that suits a device; proportional to its size, so that a small device behaves like a large
    one."""
    return min(
        max(device_bytes // 512 // SLAB_BYTES_MAX * SLAB_BYTES_MAX, <uint64_t>SEGMENT_BYTES_MIN),
        <uint64_t>SEGMENT_BYTES_MAX,
    )


cdef uint32_t slab_bytes_of(uint64_t device_bytes) noexcept nogil:
    """At most 1/256 of a segment. A compacted replica wastes half a slab, which makes cleaning rewrite its live blocks
    sooner; smaller slabs would split the segments of a full device into more extents."""
    cdef uint32_t bytes = SLAB_BYTES_MAX
    while bytes > SLAB_BYTES_MIN and bytes > segment_bytes_of(device_bytes) // 256:
        bytes //= 2
    return bytes


cdef int plan_store(Superblock* wanted, uint64_t device_bytes) noexcept nogil:
    cdef uint64_t slabs
    if device_bytes < DEVICE_BYTES_MIN:
        return -EINVAL
    wanted.magic = SUPERBLOCK_MAGIC
    wanted.version = FORMAT_VERSION
    wanted.generation = 1
    wanted.device_bytes = device_bytes
    wanted.journal_offset = JOURNAL_OFFSET
    wanted.journal_bytes = max(
        <uint64_t>JOURNAL_BYTES_MIN, (device_bytes // 65536 + SLAB_BYTES_MAX - 1) // SLAB_BYTES_MAX * SLAB_BYTES_MAX
    )
    wanted.slabs_offset = wanted.journal_offset + 4 * wanted.journal_bytes
    wanted.slab_bytes = slab_bytes_of(device_bytes)
    slabs = (device_bytes - wanted.slabs_offset) // wanted.slab_bytes
    wanted.slabs = <uint32_t>min(slabs, <uint64_t>0xFFFFFFFF)
    return 0


cdef int format_store(Reactor reactor, int device, const Superblock* wanted) noexcept nogil:
    # Order: erase the superblocks, write the journal, write the superblocks. After a crash the device is either
    # completely formatted or not an iomesh device.
    cdef Superblock* block = <Superblock*>allocate_aligned(BLOCK_BYTES)
    cdef int error
    if block is NULL:
        return -ENOMEM
    block[0] = wanted[0]
    block.crc = block_crc(block)
    error = 0 if superblock_valid(block) else -EINVAL
    if error == 0:
        memset(block, 0, BLOCK_BYTES)
        error = write_superblock(reactor.io, device, block, SUPERBLOCK_OFFSET)
    if error == 0:
        error = write_superblock(reactor.io, device, block, SUPERBLOCK_TWIN_OFFSET)
    if error == 0:
        error = format_journal(reactor.io, device, wanted)
    block[0] = wanted[0]
    block.crc = block_crc(block)
    if error == 0:
        error = flush(reactor.io, device)
    if error == 0:
        error = write_superblock(reactor.io, device, block, SUPERBLOCK_OFFSET)
    if error == 0:
        error = write_superblock(reactor.io, device, block, SUPERBLOCK_TWIN_OFFSET)
    reactor.io.release(block)
    return error


cdef int read_superblock(Io io, int device, Superblock* into, uint64_t offset) noexcept nogil:
    cdef Operation operation
    cdef int64_t result
    memset(into, 0, BLOCK_BYTES)
    waited(&operation)
    io.read(&operation, device, into, BLOCK_BYTES, offset)
    result = wait(&operation)
    return <int>result if result < 0 else 0


cdef int write_superblock(Io io, int device, const Superblock* block, uint64_t offset) noexcept nogil:
    """Write and flush, while the device is being formatted."""
    cdef int error = write_block(io, device, block, offset)
    return error if error else flush(io, device)


cdef int write_block(Io io, int device, const void* block, uint64_t offset) noexcept nogil:
    cdef Operation operation
    cdef int64_t result
    waited(&operation)
    io.write(&operation, device, block, BLOCK_BYTES, offset)
    result = wait(&operation)
    return <int>result if result < 0 else 0


cdef int flush(Io io, int device) noexcept nogil:
    cdef Operation operation
    waited(&operation)
    io.flush(&operation, device)
    return <int>wait(&operation)


cdef void flush_failed(void* store) noexcept nogil:
    store_int((<Store>store).failed, EIO)
    if not planted(b"dropped_cache_trusted"):
        (<Store>store).count_failure()


cdef int64_t remember_body(void* store) noexcept nogil:
    return (<Store>store).remember_failure()


cdef void device_stalled(void* store) noexcept nogil:
    if not load_int((<Store>store).stalled):
        store_int((<Store>store).failed, ETIMEDOUT)
        store_int((<Store>store).stalled, ETIMEDOUT)
        if (<Store>store).on_stalled is not NULL:
            (<Store>store).on_stalled((<Store>store).listener, (<Store>store).device)


cdef void watch_store(Io io, Store store) noexcept nogil:
    io.watch(store.device, <void*>store, device_stalled)


cdef void tell_full_below(Store store, bint full) noexcept nogil:
    if load_flag(store.full_below) != full:
        store_flag(store.full_below, full)
        if store.on_full_below is not NULL:
            store.on_full_below(store.listener, store.device, full)
