# Verifying sealed segments of one store. See store/scrub.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.format.layout cimport Bitmap
from iomesh.engine.store.store cimport Store
from iomesh.engine.base.task cimport Waiters

cdef struct Scrubbed:                # what came of one segment
    uint32_t blocks                  # that were read and are what they were when they were written
    uint32_t damaged                 # that are not, or cannot be read
    uint32_t first                   # damaged one; its number in the segment

cdef packed struct Sealed:           # a row of the list of what there is to be scrubbed; of a numpy array (engine.pyi)
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks                  # that its replica has on the device

cdef class Scrubber:                 # of one store; its methods run on the store's home reactor
    cdef Store store
    cdef Bitmap* bitmap
    cdef char* footer                # and its table behind it
    cdef char* piece                 # of the replica, read ahead
    cdef uint32_t piece_from         # its first block's place on the device
    cdef uint32_t piece_blocks
    cdef bint stopping
    cdef bint busy
    cdef Waiters ended

    # In a task. 0; -ENOENT: there is no such segment sealed with a footer, or it was compacted or deleted meanwhile; -EBUSY: one is being
    # verified; or what `pace` said.
    cdef int scrub(self, const uint8_t* volume, uint32_t segment, Throttle* throttle, Scrubbed* told) noexcept nogil
    cdef uint32_t list(self, Sealed* into, uint32_t room) noexcept nogil           # how many there are, whatever the room
    cdef void stop(self) noexcept nogil            # in a task; returns once nothing is under way
    cdef int verify(self, const Replica* replica, Throttle* throttle, Scrubbed* told) noexcept nogil
    cdef const char* block_at(self, const Replica* replica, uint32_t place, uint32_t end, Throttle* throttle, int* error) noexcept nogil
