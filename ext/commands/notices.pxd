# The queue from the engine to Python. See commands/notices.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.replicas.member cimport REPLICAS_MAX

cdef struct Notice:                  # a command has ended, or a volume has an event
    Notice* next
    int64_t ticket                   # of the command; 0: it is an event
    uint8_t volume[16]
    int event                        # VolumeEvent. Of an EVENT_CHECKPOINT:
    uint64_t sequence
    uint64_t size_bytes              # of the volume
    Pointer pointer                  # to the checkpoint
    uint32_t next_segment            # also of an EVENT_NUMBERS: numbers from it on are needed. Of an EVENT_CHECKSUM:
    uint64_t block                   # of the volume, located ...
    uint32_t segment                 # ... in this segment, ...
    uint32_t segment_block           # ... at this block. Of an EVENT_DEVICE:
    int store                        # its number among the volume's
    int error                        # errno. Of an EVENT_FRAGMENT:
    uint32_t fragment                # its number; `sequence` is its first record
    uint32_t devices[REPLICAS_MAX]   # of its replica set: their numbers in the cluster; 0: none

cdef class Notices:
    cdef readonly int bell           # an eventfd: readable when there is a notice
    cdef Notice* newest

    cdef void put(self, Notice* notice) noexcept nogil           # from any thread; the queue owns it then
    cdef Notice* take(self) noexcept nogil                       # all notices, oldest first; the caller frees them

# Callbacks of a Volume; its `listener` is a Notices.
cdef bint volume_event(void* volume, int kind, uint64_t first, uint64_t second, uint64_t third) noexcept nogil
cdef void device_stalled(void* notices, int store) noexcept nogil      # a Store's on_stalled
cdef void device_full_below(void* notices, int store, bint full) noexcept nogil
cdef bint fragment_begun(void* volume, uint32_t number, uint64_t first, const uint32_t* devices) noexcept nogil
cdef bint checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil
