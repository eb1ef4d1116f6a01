# The segment store on one device: superblocks, directory, journal, slabs. See store/store.pyx.
#
# A store belongs to one reactor, its home. Every method below runs there, in a task (other reactors use call_on). Reads
# and writes of segments bypass it: the holder of a Replica accesses the device through its own Io, at the offset that
# store/bitmaps.pyx returns.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.store.compaction cimport Compactor, Throttle
from iomesh.engine.store.device_flusher cimport DeviceFlusher
from iomesh.engine.store.directory cimport Directory, Replica, replica_offset
from iomesh.engine.store.journal cimport REASON_BYTES, Change, Journal, Repairs
from iomesh.engine.format.layout cimport EXTENTS_MAX, Extent, Superblock
from iomesh.engine.base.io cimport Io
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.store.leases cimport Leases
from iomesh.engine.store.slabs cimport Slabs
from iomesh.engine.base.task cimport Waiters

cdef enum:
    COMPACTIONS = 3                  # at once per store, each with a read and a write in flight; more delay users

cdef struct OpenLog:                 # a log of this node that writes to the store; must not move while it is entered
    uint8_t volume[16]
    uint64_t epoch
    void* reactor                    # the log's Reactor
    void* log
    int64_t (*on_fenced)(void* log) noexcept nogil   # in a task on that reactor: another owner has been accepted
    OpenLog* next

cdef struct Coming:                  # a copy that another node's owner has ordered; must not move until announce_end()
    const uint8_t* volume
    Coming* next

cdef class Store:                    # Store(home, device, device_bytes: its actual length, volatile_cache)
    cdef readonly int device         # the Io's device number
    cdef readonly bint volatile_cache
    cdef readonly int failed         # errno of the journal write or flush that made the store read-only; 0: none
    # ETIMEDOUT: the device did not answer in time; then `failed` is set, too. By any reactor, never reset
    cdef readonly int stalled
    # a write found no space under the device, and none has succeeded since. Set and cleared by any reactor
    cdef readonly bint full_below
    cdef uint64_t device_bytes
    cdef Reactor home
    cdef Superblock superblock
    cdef Slabs slabs
    cdef Directory directory
    cdef Journal journal
    cdef Leases leases               # of the node; None: it gives none
    cdef OpenLog* open_logs          # with replicas on other nodes: only these can be fenced
    cdef Coming* coming              # copies that are being made; they end soon after a fence is accepted
    cdef Waiters came                # waiters for the end of one of them
    cdef DeviceFlusher flusher       # makes all writes to the device stable, whichever part issued them
    cdef readonly uint32_t replicas
    cdef uint32_t segment_blocks     # length of the largest segment that suits the device
    cdef uint32_t slab_blocks        # blocks of a slab ...
    cdef uint8_t slab_shift          # ... which is two to this power
    cdef readonly uint32_t reserve   # slabs only for `urgent` creations, for checkpoints and trims on a full device
    cdef char reason[REASON_BYTES]   # why open() failed, as text
    cdef Repairs repairs             # what open() found damaged and restored, as text
    cdef void* compactors[COMPACTIONS]    # the first `idle` of them are idle Compactors
    cdef uint32_t idle
    cdef void* listener
    # on any reactor; may be NULL
    cdef void (*on_stalled)(void* listener, int device) noexcept nogil
    cdef void (*on_full_below)(void* listener, int device, bint full) noexcept nogil
    cdef list all_compactors         # keeps them alive
    cdef Waiters compactions         # waiters for an idle Compactor
    cdef bint remembers              # a failed flush is in the superblocks
    cdef bint rewriting              # the superblocks are being rewritten: one change at a time
    cdef Waiters rewritten

    # 0, or a negative errno and `reason`. cluster: 16 bytes; another cluster's device is refused (EMEDIUMTYPE); NULL:
    # any cluster. Nothing is written before the device is known to be this cluster's. Called once, before anything
    # else.
    cdef int open(self, const uint8_t* cluster) noexcept nogil
    # fragment: 0 without replication.
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
    ) noexcept nogil
    # Requires that no request to it is in flight. Frees the slabs behind `blocks`. footer_block 0: no footer. A sealed
    # replica may be sealed again, shorter.
    cdef int seal(self, Replica* replica, uint32_t blocks, uint32_t footer_block) noexcept nogil
    # Requires that no request to it is in flight. After success the caller frees the replica: another reactor may look
    # at it until it has the answer.
    cdef int remove(self, Replica* replica) noexcept nogil
    # A copy of a segment that was left open on another device, or is to take the place of the replica that is here.
    # reserve_copy() takes slabs, but find() does not return the copy yet. The caller writes it and flushes the device.
    # keep_copy() makes it durable and sealed, or fails; discard_copy() frees it instead. After a crash in between, the
    # copy does not exist. No request to the replica that it replaces may be in flight then.
    cdef Replica* reserve_copy(
        self, const uint8_t* volume, uint32_t segment, uint32_t blocks, int* error
    ) noexcept nogil
    cdef int keep_copy(
        self, Replica* replica, uint64_t epoch, uint16_t stream, uint32_t blocks, uint32_t footer_block, uint8_t state
    ) noexcept nogil
    cdef void discard_copy(self, Replica* replica) noexcept nogil
    cdef void drop_copy(self, Replica* replica) noexcept nogil
    # Rewrites a sealed replica without its dead blocks. `live`: a bit per block of the segment (256 words), 1: kept. A
    # new footer lists the kept blocks. Returns the new replica, durable and in the old one's place in the directory; or
    # NULL and a negative errno, with the old one unchanged: ENOSPC, EIO, ENOMEM, EUCLEAN (`live` names a block that an
    # earlier compaction left out), or the throttle's error.
    #   - Addresses stay; store/bitmaps.pyx locates the blocks. Blocks are copied unverified: only device errors are
    #     noticed.
    #   - During the call `old` must not be sealed, removed or compacted; reads continue. Afterwards find() does not
    #     return it, but it and its slabs stay until retire(). A store runs COMPACTIONS at once: one reads while another
    #     writes or waits for a flush. Further calls wait.
    #   - It may use up to half of the reserve, since it frees more than it takes. throttle NULL: unlimited.
    cdef Replica* compact(self, Replica* old, const uint64_t* live, Throttle* throttle, int* error) noexcept nogil
    # Frees the old replica and its slabs at once. No new read of it may start; reads in flight may return garbage.
    cdef void retire(self, Replica* old) noexcept nogil
    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    # Replicas of a volume (NULL: all), unsorted. Returns their total number, even if it exceeds `room`.
    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil
    # Removes every replica of a volume that is not open. Returns their number, or a negative errno.
    cdef int64_t erase(self, const uint8_t* volume) noexcept nogil
    # An open one that was opened before the node's last boot, or before a flush of the device failed: what was not
    # flushed may be lost.
    cdef bint is_doubtful(self, const Replica* replica) noexcept nogil
    cdef uint64_t boot(self) noexcept nogil              # another one after each of both
    cdef void count_failure(self) noexcept nogil         # of a flush
    cdef int remember_failure(self) noexcept nogil
    cdef uint32_t slabs_for(self, uint64_t blocks) noexcept nogil
    cdef bint has_room(self, uint32_t blocks, bint urgent) noexcept nogil
    cdef int commit(self, Change* change) noexcept nogil
    cdef Replica* rewrite(self, Compactor compactor, Replica* old, Throttle* throttle, int* error) noexcept nogil
    # From now on no segment of this volume is created here with an epoch below this one. 0 once that is durable, the
    # leases that were given before have run out, and a log of this node that had the volume is closed; -ESTALE if the
    # fence is higher already; or another negative errno. epoch 0 removes the fence.
    cdef int fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil
    # A fence is answered once no copy is being made that was announced before.
    cdef void announce(self, Coming* copy) noexcept nogil
    cdef void announce_end(self, Coming* copy) noexcept nogil
    cdef void await_coming(self, const uint8_t* volume) noexcept nogil
    # A log is opened, and closed. While it is, its replicas are not sealed, compacted or removed by others.
    cdef void enter(self, OpenLog* log) noexcept nogil
    cdef void leave(self, OpenLog* log) noexcept nogil
    cdef OpenLog* log_of(self, const uint8_t* volume, uint64_t epoch) noexcept nogil     # below this epoch, or NULL
    cdef void end_log(self, const uint8_t* volume, uint64_t epoch) noexcept nogil
    cdef int accept_fence(self, const uint8_t* volume, uint64_t epoch) noexcept nogil
    cdef int set_number(self, uint32_t number) noexcept nogil    # the device's, in its cluster; -EEXIST: it has another
    cdef int rewrite_superblock(self, uint64_t feature, uint32_t number) noexcept nogil
    cdef int write_superblock(self, const Superblock* block, uint64_t offset) noexcept nogil
    cdef int choose_superblock(self, const Superblock* twins, const int* errors, const uint8_t* cluster) noexcept nogil
    cdef int claim_slabs(self) noexcept nogil
    cdef void restore_superblock(self, const Superblock* damaged, int which) noexcept nogil

# Sets all fields but cluster, device, tier, label and created_ns. -EINVAL: the device is too small.
cdef int plan_store(Superblock* wanted, uint64_t device_bytes) noexcept nogil
# In a task: writes an empty store. `wanted`: complete except for crc.
cdef int format_store(Reactor reactor, int device, const Superblock* wanted) noexcept nogil
# From now on `stalled` is set when a request of this Io to the store's device is not answered in time.
cdef void watch_store(Io io, Store store) noexcept nogil
cdef void tell_full_below(Store store, bint full) noexcept nogil
