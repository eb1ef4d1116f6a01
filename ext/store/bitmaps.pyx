# A cache of the bitmaps of compacted replicas; locates the replicas' blocks.
#
#     FREE ──get──> LOADING ──a valid copy──> READY ──evicted──> FREE
#                     └──── no valid copy ─────────────────────> FREE
#
# Always true:
#   - a READY bitmap was verified against its replica's directory entry, so every rank read from it lies in the slabs;
#   - frames are keyed by the replica's serial, which is never reused. So a replaced or removed replica needs no
#     invalidation: its serial is not looked up again, and the clock evicts the frame;
#   - a waiter finds the bitmap when woken, however few frames there are: it is held until all waiters have run;
#   - a load is in flight while `starved` has waiters, so they are woken.
#
# Nothing is allocated after construction; memory is mapped lazily. Called by reader, map and recovery on their reactor;
# callbacks run only from the Io's poll. Format: docs/formats.md, "Compacted replicas".

from libc.errno cimport EIO, ETIMEDOUT, EUCLEAN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.store.compaction cimport bitmap_matches, bitmap_place, lives_in, rank_in, run_in
from iomesh.engine.store.extents cimport read_blocks
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation, release_mapping
from iomesh.engine.format.layout cimport BLOCK_BYTES, NODE_POINTERS
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport Waiters, join, wait, waited, wake_all

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE


cdef class Bitmaps:
    """frames: number of bitmaps, 4 KiB each; at least 16. Raises MemoryError."""

    def __cinit__(self, uint32_t frames, Io io):
        cdef uint32_t buckets = 16
        self.frames = max(frames, <uint32_t>BITMAP_FRAMES_MIN)
        self.io = io
        while buckets < 2 * self.frames:
            buckets *= 2
        self.bucket_mask = buckets - 1
        self.buckets_bytes = buckets * sizeof(Frame*)
        self.all_bytes = self.frames * <uint64_t>sizeof(Frame)
        self.memory_bytes = self.frames * <uint64_t>BLOCK_BYTES
        self.buckets = <Frame**>lazily(self.buckets_bytes)
        self.all = <Frame*>lazily(self.all_bytes)
        self.memory = <char*>lazily(self.memory_bytes)
        if self.buckets is NULL or self.all is NULL or self.memory is NULL:
            raise MemoryError(f"no memory for {self.frames} bitmaps of compacted segments")

    def __dealloc__(self):
        if self.buckets is not NULL:
            munmap(self.buckets, self.buckets_bytes)
        if self.all is not NULL:
            munmap(self.all, self.all_bytes)
        release_mapping(self.io, self.memory, self.memory_bytes)

    cdef int64_t place(
        self, const Replica* replica, uint32_t block, uint32_t* contiguous, Operation* when
    ) noexcept nogil:
        cdef const Bitmap* bitmap = self.get(replica, when)
        cdef uint64_t offset
        contiguous[0] = 0
        if bitmap is NULL:
            return -EAGAIN
        if not has_block(bitmap, replica, block):
            return -ENODATA
        offset = replica_offset(replica, place_in(bitmap, block), contiguous)
        invariant(contiguous[0] > 0, b"a compacted replica has slabs for what lives")
        contiguous[0] = run_in(bitmap, block, min(contiguous[0], <uint32_t>NODE_POINTERS))
        return <int64_t>offset

    cdef int64_t find(self, const Replica* replica, uint32_t block, uint32_t* contiguous) noexcept nogil:
        cdef uint32_t run
        cdef int64_t place = self.find_place(replica, block, NODE_POINTERS, &run)
        cdef uint64_t offset
        if place < 0:
            return place
        offset = replica_offset(replica, <uint32_t>place, contiguous)
        contiguous[0] = min(contiguous[0], run)
        return <int64_t>offset if contiguous[0] else -ENODATA

    cdef int64_t find_place(self, const Replica* replica, uint32_t block, uint32_t most, uint32_t* run) noexcept nogil:
        cdef const Bitmap* bitmap = NULL
        cdef Operation operation
        cdef int64_t result
        run[0] = most
        if replica.live == 0:
            return block
        while bitmap is NULL:
            waited(&operation)
            bitmap = self.get(replica, &operation)
            if bitmap is NULL:
                result = wait(&operation)
                if result < 0:
                    return result
        if not has_block(bitmap, replica, block):
            return -ENODATA
        run[0] = run_in(bitmap, block, most)
        return place_in(bitmap, block)

    cdef int read(self, const Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil:
        cdef uint32_t run
        cdef int64_t place
        cdef int error = 0
        while count and error == 0:
            place = self.find_place(replica, block, count, &run)
            if place < 0:
                return <int>place
            error = read_blocks(self.io, replica, <uint32_t>place, run, into)
            block += run
            count -= run
            into = <char*>into + <size_t>run * BLOCK_BYTES
        return error

    cdef const Bitmap* get(self, const Replica* replica, Operation* when) noexcept nogil:
        # serials are dense: their low bits spread them
        cdef Frame** bucket = &self.buckets[<uint32_t>replica.serial & self.bucket_mask]
        cdef Frame* frame = bucket[0]
        cdef uint32_t contiguous
        cdef int which
        while frame is not NULL and frame.serial != replica.serial:
            frame = frame.hash_next
        if frame is not NULL and frame.state == FRAME_READY:
            frame.recent = True
            self.hits += 1
            return frame.bitmap
        if frame is not NULL:
            join(&frame.waiters, when)
            return NULL
        # half of the frames: a device that does not answer may keep those that are being loaded
        if self.loading < min(<uint32_t>BITMAP_LOADS_MAX, self.frames // 2):
            frame = self.take()
        if frame is NULL:
            join(&self.starved, when)
            return NULL
        frame.serial = replica.serial
        frame.state = FRAME_LOADING
        frame.recent = True
        frame.which = 0
        frame.device = replica.device
        for which in range(2):
            frame.offsets[which] = replica_offset(replica, bitmap_place(replica, which), &contiguous)
        memcpy(frame.volume, replica.volume, 16)
        frame.segment = replica.segment
        frame.blocks = replica.blocks
        frame.live = replica.live
        frame.crc = replica.bitmap_crc
        frame.bitmaps = <void*>self
        frame.hash_next = bucket[0]
        bucket[0] = frame
        join(&frame.waiters, when)
        self.loading += 1
        self.misses += 1
        self.read_copy(frame)
        return NULL

    cdef void read_copy(self, Frame* frame) noexcept nogil:
        frame.load.done = load_done
        frame.load.owner = frame
        self.io.read(&frame.load, frame.device, frame.bitmap, BLOCK_BYTES, frame.offsets[frame.which])

    cdef void loaded(self, Frame* frame, int64_t result) noexcept nogil:
        cdef Waiters waiters
        if result >= 0:
            result = (
                0
                if bitmap_matches(frame.bitmap, frame.volume, frame.segment, frame.blocks, frame.live, frame.crc)
                else -EUCLEAN
            )
        if result < 0 and frame.which == 0 and result != -ETIMEDOUT:
            frame.which = 1
            self.read_copy(frame)
            return
        self.loading -= 1
        waiters = frame.waiters
        frame.waiters.first = frame.waiters.last = NULL
        if result == 0:
            frame.state = FRAME_READY
            frame.held = True
            wake_all(&waiters, 0)
            frame.held = False
        else:
            self.errors += 1
            unhash(self, frame)
            frame.state = FRAME_FREE
            if result == -ETIMEDOUT:                     # late data may still arrive in it
                frame.hash_next = self.late_list
                self.late_list = frame
            else:
                frame.hash_next = self.free_list
                self.free_list = frame
            wake_all(&waiters, -EUCLEAN if result == -EUCLEAN else -EIO)
        wake_all(&self.starved, 0)

    cdef Frame* take(self) noexcept nogil:
        """A frame outside the hash table, by the clock algorithm. NULL: every frame is being loaded or is held."""
        cdef Frame* frame
        cdef Frame** place = &self.late_list
        cdef uint64_t _step
        while place[0] is not NULL:
            frame = place[0]
            if self.io.holds(frame.bitmap, BLOCK_BYTES):
                place = &frame.hash_next
            else:
                place[0] = frame.hash_next
                return frame
        frame = self.free_list
        if frame is not NULL:
            self.free_list = frame.hash_next
            return frame
        if self.touched < self.frames:
            frame = &self.all[self.touched]
            frame.bitmap = <Bitmap*>(self.memory + self.touched * <uint64_t>BLOCK_BYTES)
            self.touched += 1
            return frame
        for _step in range(2 * <uint64_t>self.frames):
            frame = &self.all[self.clock_hand]
            self.clock_hand = self.clock_hand + 1 if self.clock_hand + 1 < self.frames else 0
            if frame.state != FRAME_READY or frame.held:
                continue
            if frame.recent:
                frame.recent = False
                continue
            unhash(self, frame)
            return frame
        return NULL


cdef inline bint has_block(const Bitmap* bitmap, const Replica* replica, uint32_t block) noexcept nogil:
    return block < replica.blocks and lives_in(bitmap, block)


cdef inline uint32_t place_in(const Bitmap* bitmap, uint32_t block) noexcept nogil:
    """Index among a compacted replica's blocks on the device."""
    return 1 + rank_in(bitmap, block) + (planted(b"rank_off_by_one") if block % 64 == 63 else 0)


cdef void load_done(Operation* operation) noexcept nogil:
    cdef Frame* frame = <Frame*>operation.owner
    (<Bitmaps>frame.bitmaps).loaded(frame, operation.result)


cdef void unhash(Bitmaps bitmaps, Frame* frame) noexcept nogil:
    cdef Frame** place = &bitmaps.buckets[<uint32_t>frame.serial & bitmaps.bucket_mask]
    while place[0] is not frame:
        place = &place[0].hash_next
    place[0] = frame.hash_next


cdef void* lazily(uint64_t count) noexcept:
    cdef void* memory = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory
