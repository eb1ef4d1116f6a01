# Verifying sealed segments of one store. See store/scrub.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.format.layout cimport Bitmap
from iomesh.engine.store.store cimport Store
from iomesh.engine.base.task cimport Waiters

cdef enum:
    SCRUBBED_MAX = 64                # damaged blocks that are told one by one

cdef struct DamagedBlock:
    uint32_t block                   # its number in the segment
    uint32_t crc                     # that it should have; of a record's header the one inside it
    bint header

cdef struct Scrubbed:                # result for one segment
    uint32_t blocks                  # blocks that match their checksums
    uint32_t damaged                 # blocks that do not, or cannot be read
    uint32_t first                   # first damaged block's number in the segment
    uint32_t known_count             # of the damaged ones, those with a known checksum
    DamagedBlock known[SCRUBBED_MAX]

cdef packed struct Sealed:           # a row of the list of segments to scrub, a numpy array (engine.pyi)
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks                  # length of its replica on the device

cdef class Scrubber:                 # of one store; its methods run on the store's home reactor
    cdef Store store
    cdef Io io
    cdef Bitmap* bitmap
    cdef char* footer                # and its table
    cdef char* piece                 # blocks of the replica, read ahead
    cdef uint32_t piece_from         # index of its first block in the replica
    cdef uint32_t piece_blocks
    cdef bint stopping
    cdef bint busy
    cdef Waiters ended

    # In a task. 0; -ENOENT: no such segment is sealed with a footer, or it was compacted or deleted meanwhile; -EBUSY:
    # another one is being verified; or the throttle's error.
    cdef int scrub(self, const uint8_t* volume, uint32_t segment, Throttle* throttle, Scrubbed* told) noexcept nogil
    # returns their total number, even if it exceeds `room`
    cdef uint32_t list(self, Sealed* into, uint32_t room) noexcept nogil
    cdef void stop(self) noexcept nogil            # in a task; returns once no scrub runs
    cdef int verify(self, const Replica* replica, Throttle* throttle, Scrubbed* told) noexcept nogil
    cdef const char* block_at(
        self, const Replica* replica, uint32_t place, uint32_t end, Throttle* throttle, int* error
    ) noexcept nogil
