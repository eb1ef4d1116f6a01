# The segment store on one device: superblocks, directory, journal, slabs. See store.pyx.
#
# A store lives on one reactor, its home; every method below runs there, in a task (reach it from another reactor by call_on). Reads and
# writes of segments do not pass through it: whoever holds a Replica asks its own Io for device bytes at replica_offset().

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.directory cimport Directory, Replica
from iomesh.engine.journal cimport REASON_BYTES, Change, Journal, Repairs
from iomesh.engine.layout cimport EXTENTS_MAX, Extent, Superblock
from iomesh.engine.io cimport Io
from iomesh.engine.reactor cimport Reactor
from iomesh.engine.slabs cimport Slabs

cdef class Store:                    # Store(home, device, device_bytes, volatile_cache); device_bytes: how long the device really is
    cdef readonly int device         # the Io's number of it
    cdef readonly bint volatile_cache
    cdef readonly int failed         # errno of the journal error that stopped it from changing; 0: none
    cdef uint64_t device_bytes
    cdef Reactor home
    cdef Superblock superblock
    cdef Slabs slabs
    cdef Directory directory
    cdef Journal journal
    cdef readonly uint32_t replicas
    cdef readonly uint32_t reserve   # slabs that only `urgent` creations may take: checkpoints and trims go on when the device is full
    cdef char reason[REASON_BYTES]   # why open() refused, for people
    cdef Repairs repairs             # what open() found damaged and restored, for people

    # 0, or a negative errno and `reason`. cluster: 16 bytes, any other is refused (EMEDIUMTYPE); NULL: take it as it is. Nothing is written
    # before it is certain that the device is this cluster's. Once, before all else.
    cdef int open(self, const uint8_t* cluster) noexcept nogil
    cdef Replica* create(self, const uint8_t* volume, uint32_t segment, uint64_t epoch, uint16_t stream, uint32_t blocks, bint urgent,
                         int* error) noexcept nogil
    # Nothing of it may be under way, and nothing behind `blocks` is kept: the slabs there are free again. footer_block 0: it has none. One that
    # is sealed already may be sealed again, shorter.
    cdef int seal(self, Replica* replica, uint32_t blocks, uint32_t footer_block) noexcept nogil
    cdef int remove(self, Replica* replica) noexcept nogil      # nothing of it may be under way
    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    # Replicas of a volume (NULL: all), unsorted; returns how many there are, whatever the room.
    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil
    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil
    cdef int commit(self, Change* change) noexcept nogil
    cdef int judge_superblocks(self, const Superblock* twins, const int* errors, const uint8_t* cluster) noexcept nogil
    cdef int claim_slabs(self) noexcept nogil
    cdef void restore_superblock(self, const Superblock* damaged, int which) noexcept nogil

# Fills in all but cluster, device, tier, label and created_ns. -EINVAL: the device is too small.
cdef int plan_store(Superblock* wanted, uint64_t device_bytes) noexcept nogil
# In a task: writes an empty store; `wanted` has all but crc filled in.
cdef int format_store(Reactor reactor, int device, const Superblock* wanted) noexcept nogil

# Where a block of a replica lies on its device, in bytes, and how many blocks from it on are contiguous.
cdef inline uint64_t replica_offset(const Replica* replica, uint32_t block, uint32_t* contiguous) noexcept nogil:
    cdef uint32_t first = 0, blocks
    cdef int i
    for i in range(replica.extent_count):
        blocks = replica.extents[i].count * 64           # SLAB_BLOCKS
        if block < first + blocks:
            contiguous[0] = first + blocks - block
            return replica.slabs_offset + <uint64_t>replica.extents[i].first * 262144 + <uint64_t>(block - first) * 4096
        first += blocks
    contiguous[0] = 0
    return 0
