# A volume as its exports use it: reads and writes of blocks. See volume/volume.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map, Node
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.volume.checkpoint cimport Checkpoints
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.volume.reader cimport Reader
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.volume.target cimport Target
from iomesh.engine.map.walk cimport Walk

cdef enum:
    MERGES = 32                      # of one volume, concurrently
    REWRITES = 4                     # of them are reserved for cleaning: waiting writes cannot block it

cdef enum VolumeEvent:               # kinds of on_event
    EVENT_CHECKSUM                   # block, segment, block in the segment
    EVENT_DEVICE                     # store, errno
    EVENT_TIGHT                      # a segment was opened on a store that is short of space
    EVENT_NO_SPACE                   # out of space: writes wait for the cleaner
    EVENT_REFUSED                    # ... and the first write was refused
    EVENT_CHECKPOINT                 # see engine.pyx
    EVENT_NUMBERS                    # few segment numbers are left below the promise: a higher one is asked for
    EVENT_FRAGMENT                   # the log goes on with another replica set: see engine.pyx
    EVENT_STALLED                    # of no volume: a store's device did not answer in time
    EVENT_FULL_BELOW                 # likewise: the storage under it has no space
    EVENT_SPACE_BELOW                # ... and has some again

cdef struct Merge:                   # bytes inside one block: read, merged, written
    void* volume
    bint busy
    bint zeros
    Request* request
    uint64_t block
    uint32_t start
    uint32_t bytes                   # 0: rewrite the block unchanged
    bint known                       # ... `merged` contains it, if its address is still `there`
    uint64_t there
    uint64_t after                   # read the block after this record has committed
    char* patch
    char* merged                     # the next block in memory
    bint replaced                    # both lie outside of merge_memory
    Read read
    Operation step
    Waiters waiters                  # writes to the same block

cdef class Volume(Target):           # or a snapshot open for reading: it has no log and refuses changes
    cdef Log log
    cdef Map map
    cdef SegmentTable segments
    cdef SnapshotTable snapshots
    cdef Walk walk
    cdef Waiters walk_ended
    cdef int cleaning                # calls of its Cleaner in progress
    cdef Waiters cleaning_ended
    cdef bint copying                # inherited blocks are being copied (history/flatten.pyx)
    cdef Waiters copying_ended
    cdef bint restoring              # a snapshot is being restored: no connections, no cleaning
    cdef Waiters restored
    cdef Reader reader
    cdef Checkpoints checkpoints
    cdef bint volatile_cache         # one of its devices has a volatile write cache: flushes matter
    cdef bint closing
    cdef Merge merges[MERGES]
    cdef uint32_t merging            # how many are busy
    cdef Waiters merge_free
    cdef char* merge_memory
    cdef void* listener              # receives on_event
    cdef void* served_list           # ServedVolume: connections of nodes that forward their clients' requests
    cdef uint32_t readings           # holds on its snapshots: by readers, and by open clones
    # Of a replicated volume: what its clients go on with when another node has taken it over; None: nothing.
    cdef Target heir
    cdef void (*on_lost)(void* volume) noexcept nogil    # moves the clients to it
    cdef void* parent                # of a clone: the Volume ...
    cdef uint8_t parent_snapshot[16]  # ... and the snapshot it was cloned from. parent NULL: not a clone
    # reports a VolumeEvent to the node; False: no memory for it
    cdef bint (*on_event)(void* volume, int kind, uint64_t a, uint64_t b, uint64_t c) noexcept nogil
    # as OpenSegments.on_fragment; NULL: the log has no fragments
    cdef bint (*on_fragment)(void* volume, uint32_t number, uint64_t first, const uint32_t* devices) noexcept nogil

    # Appends the block's current content to the log again, so that its segment can die; answers as write(). data: the
    # content of the address `there` (address_of), if it was read; else NULL.
    cdef int64_t rewrite(
        self, Request* request, uint64_t block, const char* data, uint64_t there, Operation* when
    ) noexcept nogil
    cdef int64_t append(
        self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when, Merge* merge
    ) noexcept nogil
    cdef int64_t run_from(                               # alike(), whether or not this node may still answer
        self, uint64_t block, uint64_t most, bint* mapped, Operation* when
    ) noexcept nogil
    cdef Node* leaf_to_change(self, uint64_t block, Operation* when, int* error) noexcept nogil
    cdef bint conflicts(self, uint64_t block, uint64_t count, Operation* when) noexcept nogil
    cdef Merge* merge_of(self, uint64_t block, uint64_t count) noexcept nogil
    cdef void finish(self, Request* request) noexcept nogil
    cdef void part_done(self, Request* request, int error) noexcept nogil
    cdef int64_t take_merge(
        self, Request* request, uint64_t block, bint again, Merge** into, Operation* when
    ) noexcept nogil
    cdef void merge_step(self, Merge* merge) noexcept nogil
    cdef void merge_looked(self, Merge* merge, int64_t result) noexcept nogil
    cdef void merge_known(self, Merge* merge) noexcept nogil
    cdef void merge_read_done(self, Merge* merge) noexcept nogil
    cdef void merge_woken(self, Merge* merge, int64_t result) noexcept nogil     # retries merge_append()
    cdef void merge_append(self, Merge* merge) noexcept nogil
    cdef void renew_merge(self, Merge* merge) noexcept nogil
    cdef void merge_end(self, Merge* merge, int error) noexcept nogil
    cdef void close(self) noexcept nogil                 # in a task, with no request in flight: commits and seals all

# The volume is being closed or restored: other work on it should stop soon.
cdef inline bint is_ending(Volume volume) noexcept nogil:
    return volume.closing or volume.restoring
