# The segment store on one device: superblocks, directory, journal, slabs. See store/store.pyx.
#
# A store lives on one reactor, its home; every method below runs there, in a task (reach it from another reactor by call_on). Reads and
# writes of segments do not pass through it: whoever holds a Replica asks its own Io for device bytes at the place
# that store/bitmaps.pyx tells.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.store.compaction cimport Compactor, Throttle
from iomesh.engine.store.device_flusher cimport DeviceFlusher
from iomesh.engine.store.directory cimport Directory, Replica, replica_offset
from iomesh.engine.store.journal cimport REASON_BYTES, Change, Journal, Repairs
from iomesh.engine.format.layout cimport EXTENTS_MAX, Extent, Superblock
from iomesh.engine.base.io cimport Io
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.store.slabs cimport Slabs
from iomesh.engine.base.task cimport Waiters

cdef enum:
    COMPACTIONS = 3                  # of one store at once; each has a read and a write under way, and more would hold up users' writes

cdef class Store:                    # Store(home, device, device_bytes, volatile_cache); device_bytes: how long the device really is
    cdef readonly int device         # the Io's number of it
    cdef readonly bint volatile_cache
    cdef readonly int failed         # errno of the error of the journal, or of a flush, that stopped it from changing; 0: none
    cdef uint64_t device_bytes
    cdef Reactor home
    cdef Superblock superblock
    cdef Slabs slabs
    cdef Directory directory
    cdef Journal journal
    cdef DeviceFlusher flusher       # whoever writes to the device makes it stable with this
    cdef readonly uint32_t replicas
    cdef uint32_t segment_blocks     # of the largest segment that suits the device
    cdef uint32_t slab_blocks        # blocks of a slab ...
    cdef uint8_t slab_shift          # ... which is two to this power
    cdef readonly uint32_t reserve   # slabs that only `urgent` creations may take: checkpoints and trims go on when the device is full
    cdef char reason[REASON_BYTES]   # why open() refused, for people
    cdef Repairs repairs             # what open() found damaged and restored, for people
    cdef void* compactors[COMPACTIONS]    # those that are idle, `idle` of them
    cdef uint32_t idle
    cdef list all_compactors         # all of them
    cdef Waiters compactions         # who waits for one to end
    cdef bint rewriting              # the superblocks: one change at a time
    cdef Waiters rewritten

    # 0, or a negative errno and `reason`. cluster: 16 bytes, any other is refused (EMEDIUMTYPE); NULL: take it as it is. Nothing is written
    # before it is certain that the device is this cluster's. Once, before all else.
    cdef int open(self, const uint8_t* cluster) noexcept nogil
    cdef Replica* create(self, const uint8_t* volume, uint32_t segment, uint64_t epoch, uint16_t stream, uint32_t blocks, bint urgent,
                         int* error) noexcept nogil
    # Nothing of it may be under way, and nothing behind `blocks` is kept: the slabs there are free again. footer_block 0: it has none. One that
    # is sealed already may be sealed again, shorter.
    cdef int seal(self, Replica* replica, uint32_t blocks, uint32_t footer_block) noexcept nogil
    cdef int remove(self, Replica* replica) noexcept nogil      # nothing of it may be under way
    # A copy of a segment that was left open on another device: reserve_copy() takes slabs and nobody finds it yet; the caller writes it and flushes the
    # device; keep_copy() makes it durably there, sealed, or fails; discard_copy() gives it up instead. After a crash in between it was never there.
    cdef Replica* reserve_copy(self, const uint8_t* volume, uint32_t segment, uint32_t blocks, int* error) noexcept nogil
    cdef int keep_copy(self, Replica* replica, uint64_t epoch, uint16_t stream, uint32_t blocks, uint32_t footer_block) noexcept nogil
    cdef void discard_copy(self, Replica* replica) noexcept nogil
    # Writes a sealed replica again without its dead blocks. `live`: a bit per block of the segment (256 words), 1: it is kept; the footer
    # is written anew, with a table of those. Returns the new one, durable and in the place of the old one in the directory; NULL and a negative
    # errno: the old one is what it was (ENOSPC, EIO, ENOMEM, EUCLEAN: `live` names a block that an earlier compaction left out, or what `pace` said).
    #   - Addresses stay; where a block lies is found by store/bitmaps.pyx. Only errors of the device are noticed: blocks are copied unverified.
    #   - From the call until it returned, nobody may seal, remove or compact `old`; reads of it go on. Afterwards nobody finds it, but it and
    #     its slabs stay as they are until retire(). One store compacts COMPACTIONS at once: one reads while another writes, or
    #     waits for stable media. Others wait.
    #   - It may take slabs of the reserve, half of it at most, since it frees more than it takes. pace: NULL: none.
    cdef Replica* compact(self, Replica* old, const uint64_t* live, Throttle* throttle, int* error) noexcept nogil
    # Releases the old one, at once and durably free: no read of it will be asked for any more. (What is under way may read rubbish.)
    cdef void retire(self, Replica* old) noexcept nogil
    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    # Replicas of a volume (NULL: all), unsorted; returns how many there are, whatever the room.
    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil
    # Removes every replica of a volume, which is not open; how many there were, or a negative errno.
    cdef int64_t erase(self, const uint8_t* volume) noexcept nogil
    cdef uint32_t slabs_for(self, uint64_t blocks) noexcept nogil
    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil
    cdef int commit(self, Change* change) noexcept nogil
    cdef Replica* rewrite(self, Compactor compactor, Replica* old, Throttle* throttle, int* error) noexcept nogil
    # No segment of this volume is created here from now on with an epoch below this one: 0 once that is durable, -ESTALE if a higher one is
    # fenced already, or another negative errno. 0 removes the fence.
    cdef int fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil
    cdef int set_number(self, uint32_t number) noexcept nogil    # the device's in its cluster; -EEXIST: it has another one
    cdef int rewrite_superblock(self, uint64_t feature, uint32_t number) noexcept nogil
    cdef int write_superblock(self, const Superblock* block, uint64_t offset) noexcept nogil
    cdef int judge_superblocks(self, const Superblock* twins, const int* errors, const uint8_t* cluster) noexcept nogil
    cdef int claim_slabs(self) noexcept nogil
    cdef void restore_superblock(self, const Superblock* damaged, int which) noexcept nogil

# Fills in all but cluster, device, tier, label and created_ns. -EINVAL: the device is too small.
cdef int plan_store(Superblock* wanted, uint64_t device_bytes) noexcept nogil
# In a task: writes an empty store; `wanted` has all but crc filled in.
cdef int format_store(Reactor reactor, int device, const Superblock* wanted) noexcept nogil
