# Locates blocks of a segment on its device, for compacted and other replicas. See store/bitmaps.pyx.

from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.store.directory cimport Replica, replica_offset
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport Bitmap
from iomesh.engine.base.task cimport Waiters

cdef extern from "<errno.h>" nogil:
    int ENODATA

cdef enum:
    BITMAP_FRAMES_MIN = 16
    BITMAP_LOADS_MAX = 64            # at once

cdef enum FrameState:
    FRAME_FREE, FRAME_LOADING, FRAME_READY

cdef struct Frame:                   # a cached bitmap, with a copy of its Replica's fields, which may be freed
    Bitmap* bitmap
    uint64_t serial                  # of the replica
    Frame* hash_next                 # free: next in the free list
    uint8_t state                    # FrameState
    uint8_t recent                   # reference bit of the clock algorithm
    uint8_t held                     # its waiters are being woken: not evictable
    uint8_t which                    # the bitmap copy that is being read: 0 or 1
    int device
    uint64_t offsets[2]
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks
    uint32_t live
    uint32_t crc
    void* bitmaps
    Operation load
    Waiters waiters

cdef class Bitmaps:                  # of one reactor
    cdef readonly uint32_t frames
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses
    cdef readonly uint64_t errors    # bitmaps without a readable, valid copy
    cdef Io io
    cdef Frame* all
    cdef char* memory
    cdef Frame** buckets
    cdef uint64_t all_bytes, memory_bytes, buckets_bytes
    cdef uint32_t bucket_mask
    cdef uint32_t touched            # frames from this index on were never used
    cdef Frame* free_list
    cdef Frame* late_list            # free, but an abandoned read may still arrive in them
    cdef uint32_t clock_hand
    cdef uint32_t loading
    cdef Waiters starved             # waiters that found no frame, or too many loads in flight

    # Bitmap of a compacted replica. NULL: not cached; `when` completes with 0 when the caller should call again, or
    # with
    # -EIO or -EUCLEAN.
    cdef const Bitmap* get(self, const Replica* replica, Operation* when) noexcept nogil
    cdef int64_t place(
        self, const Replica* replica, uint32_t block, uint32_t* contiguous, Operation* when
    ) noexcept nogil
    # Like place_of() below, but waits, in a task: an offset, or -ENODATA, -EIO, -EUCLEAN.
    cdef int64_t find(self, const Replica* replica, uint32_t block, uint32_t* contiguous) noexcept nogil
    # Likewise, but returns an index among the replica's blocks on the device; run: contiguous blocks there, at most
    # `most`.
    cdef int64_t find_place(self, const Replica* replica, uint32_t block, uint32_t most, uint32_t* run) noexcept nogil
    # In a task: reads `count` blocks of a segment that does not change. 0, or a negative errno as above.
    cdef int read(self, const Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
    cdef Frame* take(self) noexcept nogil
    cdef void read_copy(self, Frame* frame) noexcept nogil
    cdef void loaded(self, Frame* frame, int64_t result) noexcept nogil

# Device offset of a segment's block in bytes, and the number of contiguous blocks from it on. -ENODATA: the replica
# does not have the block; -EAGAIN: the bitmap is not cached; `when` (with done and owner set) completes as in get().
cdef inline int64_t place_of(
    Bitmaps bitmaps, const Replica* replica, uint32_t block, uint32_t* contiguous, Operation* when
) noexcept nogil:
    cdef uint64_t offset
    if replica.live:
        return bitmaps.place(replica, block, contiguous, when)
    offset = replica_offset(replica, block, contiguous)
    return <int64_t>offset if contiguous[0] else -ENODATA
