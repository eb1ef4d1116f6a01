# The segments of one volume's log and what lives in each: the segment table in memory. See segments.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.layout cimport Pointer
from iomesh.engine.store cimport Replica

cdef struct Segment:
    uint32_t number
    uint32_t blocks                  # its length once it is sealed, else what it may grow to
    uint32_t live                    # blocks that the map, or a node of it, points to
    uint32_t live_at_checkpoint      # the same for the checkpoint that is being written
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED
    uint16_t stream
    uint64_t first_sequence
    uint64_t last_sequence           # 0: no record yet
    uint64_t epoch
    uint64_t table_of                # the newest checkpoint (its sequence) that has table blocks in it
    Replica* replica                 # the local one; NULL: none here
    int store                        # the number of the store that holds it
    Segment* hash_next
    Segment* next                    # in the order of numbers
    Segment* previous

cdef class Segments:
    cdef Segment* first
    cdef Segment* last
    cdef Segment** buckets
    cdef uint32_t bucket_count
    cdef readonly uint32_t count
    cdef readonly uint64_t live      # sum over the segments
    cdef Segment* find(self, uint32_t number) noexcept nogil
    cdef Segment* add(self, uint32_t number) noexcept nogil            # a new one, all zero but its number
    cdef void remove(self, Segment* segment) noexcept nogil
    cdef bint lives(self, Pointer pointer) noexcept nogil              # False: it counts, and by the count nothing lives there
    cdef void born(self, Pointer pointer) noexcept nogil               # no-ops for a pointer that is not PRESENT
    cdef void died(self, Pointer pointer) noexcept nogil
    cdef void hash(self, Segment* segment) noexcept nogil
    cdef void grow(self) noexcept nogil
