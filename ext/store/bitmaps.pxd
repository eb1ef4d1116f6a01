# Where a block of a segment lies on its device, whether its replica is compacted or not. See store/bitmaps.pyx.

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

cdef struct Frame:                   # room for one bitmap, and what the directory said of it: its Replica may be gone before it is read
    Bitmap* bitmap
    uint64_t serial                  # of the replica
    Frame* hash_next                 # free: the next one of the free list
    uint8_t state                    # FrameState
    uint8_t recent                   # the clock's bit
    uint8_t held                     # those who waited for it are being woken
    uint8_t which                    # of its copies is being read
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
    cdef readonly uint64_t errors    # bitmaps of which no copy could be read or was valid
    cdef Io io
    cdef Frame* all
    cdef char* memory
    cdef Frame** buckets
    cdef uint64_t all_bytes, memory_bytes, buckets_bytes
    cdef uint32_t bucket_mask
    cdef uint32_t touched            # frames from here on were never used
    cdef Frame* free_list
    cdef uint32_t clock_hand
    cdef uint32_t loading
    cdef Waiters starved             # who found no frame, or too many loads under way

    # Of a compacted replica. NULL: not yet, `when` is done once it is worth asking again (result 0), or with a negative errno: EIO, EUCLEAN.
    cdef const Bitmap* get(self, const Replica* replica, Operation* when) noexcept nogil
    cdef int64_t place(self, const Replica* replica, uint32_t block, uint32_t* contiguous, Operation* when) noexcept nogil
    # The same as place_of() below, in a task, which waits: an offset, or -ENODATA, -EIO, -EUCLEAN.
    cdef int64_t find(self, const Replica* replica, uint32_t block, uint32_t* contiguous) noexcept nogil
    # Likewise, but where among the replica's blocks on the device, and how many from it on follow each other there, at most `most`.
    cdef int64_t find_place(self, const Replica* replica, uint32_t block, uint32_t most, uint32_t* run) noexcept nogil
    # In a task: so many blocks of a segment that nobody changes. 0, or a negative errno as above.
    cdef int read(self, const Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
    cdef Frame* take(self) noexcept nogil
    cdef void read_copy(self, Frame* frame) noexcept nogil
    cdef void loaded(self, Frame* frame, int64_t result) noexcept nogil

# Where a block of a segment lies on the device of this replica, in bytes, and how many from it on are contiguous there. -ENODATA: the replica
# does not have it; -EAGAIN: not known yet, `when` (its done and owner are set) is done like get()'s.
cdef inline int64_t place_of(Bitmaps bitmaps, const Replica* replica, uint32_t block, uint32_t* contiguous, Operation* when) noexcept nogil:
    cdef uint64_t offset
    if replica.live:
        return bitmaps.place(replica, block, contiguous, when)
    offset = replica_offset(replica, block, contiguous)
    return <int64_t>offset if contiguous[0] else -ENODATA
