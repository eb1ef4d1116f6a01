# A volume as its doors see it: blocks in, blocks out. See volume/volume.pyx.

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
from iomesh.engine.map.walk cimport Walk

# Everything here is called on the volume's reactor. None of these calls back before it has returned: `finished`, `done` and `when` come
# from a later turn or from the end of this one. `when` done with a negative result: trying again is of no use, the request failed with it.

cdef enum:
    MERGES = 32                      # of one volume at once
    REWRITES = 4                     # of them are for making space, so that what waits for space does not hold up who makes it

cdef enum VolumeEvent:               # kinds of on_event
    EVENT_CHECKSUM                   # block, segment, block in the segment
    EVENT_DEVICE                     # store, errno
    EVENT_TIGHT                      # a segment was begun where space is tight
    EVENT_NO_SPACE                   # it has run out: writes wait for a cleaner
    EVENT_REFUSED                    # ... and now a first one was refused
    EVENT_CHECKPOINT                 # see engine.pyx

cdef struct Merge:                   # bytes inside one block: read, merged, written
    void* volume
    bint busy
    bint zeros
    Request* request
    uint64_t block
    uint32_t start
    uint32_t bytes                   # 0: it is written again as it is
    bint known                       # ... and `merged` has it, if it still lies `there`
    uint64_t there
    uint64_t after                   # reads once this record is committed
    char* patch
    char* merged
    Read read
    Operation step
    Waiters waiters                  # who wants to write the same block

cdef class Volume:                   # or a snapshot that is open for reading: then without a log, and what would change it is refused
    cdef uint8_t identity[16]        # its own, or the snapshot's
    cdef Reactor reactor
    cdef Io io
    cdef Pool pool
    cdef Log log
    cdef Map map
    cdef SegmentTable segments
    cdef SnapshotTable snapshots
    cdef Walk walk
    cdef Waiters walk_ended
    cdef int cleaning                # calls of its Cleaner that are under way
    cdef Waiters cleaning_ended
    cdef bint copying                # what it inherits from its parent is being copied (history/flatten.pyx)
    cdef Waiters copying_ended
    cdef bint restoring              # it goes back to a snapshot: nobody is connected, and nobody cleans it
    cdef Waiters restored
    cdef Reader reader
    cdef Checkpoints checkpoints
    cdef uint64_t blocks             # its size
    cdef bint volatile_cache         # a device that may hold a replica of it has one: flushes matter
    cdef bint closing
    cdef uint64_t* counters          # COUNTERS of them, see base/counters.pxd
    cdef uint64_t* latencies         # histograms, see base/counters.pxd
    cdef Merge merges[MERGES]
    cdef uint32_t merging            # how many are busy
    cdef Waiters merge_free
    cdef char* merge_memory
    cdef void* listener              # who on_event tells
    cdef void* connection_list       # NbdConnection
    cdef uint32_t connections
    cdef uint32_t readings           # of snapshots of it: those that are read, and the clones that stand on one and are open
    cdef void* parent                # of a clone: the Volume ...
    cdef uint8_t parent_snapshot[16]  # ... and its snapshot that the clone stands on; NULL: it is none
    cdef Waiters connections_changed    # or readings
    cdef void (*on_event)(void* volume, int kind, uint64_t a, uint64_t b, uint64_t c) noexcept nogil     # told to the node: VolumeEvent

    # Of a write of `count` whole blocks all the same door takes: how many were taken (from the front, at least 1); 0: none now, `when` is
    # done once it is worth trying again; or a negative errno (ENOSPC, EIO, ESHUTDOWN). `data` is copied before it returns.
    cdef int64_t write(self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when) noexcept nogil
    # Bytes inside one block (start + bytes <= 4096): read, merge, write; serialised with every other write to that block. 1: taken; 0 and errors as above.
    # `data` NULL: zeros.
    cdef int64_t merge(self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data, Operation* when) noexcept nogil
    # What is mapped there is written again, elsewhere: so that its segment may go. data: what lies at `there` (address_of), if that was read; else NULL.
    cdef int64_t rewrite(self, Request* request, uint64_t block, const char* data, uint64_t there, Operation* when) noexcept nogil
    # Unmaps blocks (trim, write-zeroes): how many were dealt with, from the front; what is not mapped costs nothing. 0 and errors as above.
    cdef int64_t zero(self, Request* request, uint64_t block, uint64_t count, Operation* when) noexcept nogil
    # Nothing more of this request will come: `finished` is called once all its parts are acknowledged (and stable, if it asked).
    cdef void complete(self, Request* request) noexcept nogil
    # `finished` once everything acknowledged before this call is on stable media.
    cdef void flush(self, Request* request) noexcept nogil
    # Fills read.into with read.count blocks, all under one leaf of the map (block // 256 is the same), verified; then read.done.
    cdef void read(self, Read* read) noexcept nogil
    # How many blocks from `block` on, at most `most`, are alike mapped or not; 0 and errors as above. Costs no I/O but for map nodes.
    cdef int64_t alike(self, uint64_t block, uint64_t most, bint* mapped, Operation* when) noexcept nogil
    # Starts loading the leaf of a block that a write will soon need.
    cdef void expect(self, uint64_t block) noexcept nogil

    cdef int64_t append(self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when, Merge* merge) noexcept nogil
    cdef Node* leaf_to_change(self, uint64_t block, Operation* when, int* error) noexcept nogil
    cdef bint conflicts(self, uint64_t block, uint64_t count, Operation* when) noexcept nogil
    cdef Merge* merge_of(self, uint64_t block, uint64_t count) noexcept nogil
    cdef void finish(self, Request* request) noexcept nogil
    cdef void part_done(self, Request* request, int error) noexcept nogil
    cdef int64_t take_merge(self, Request* request, uint64_t block, bint again, Merge** into, Operation* when) noexcept nogil
    cdef void merge_step(self, Merge* merge) noexcept nogil
    cdef void merge_looked(self, Merge* merge, int64_t result) noexcept nogil
    cdef void merge_known(self, Merge* merge) noexcept nogil
    cdef void merge_read_done(self, Merge* merge) noexcept nogil
    cdef void merge_woken(self, Merge* merge, int64_t result) noexcept nogil     # asks again for what merge_append() could not have
    cdef void merge_append(self, Merge* merge) noexcept nogil
    cdef void merge_end(self, Merge* merge, int error) noexcept nogil
    cdef void close(self) noexcept nogil                 # in a task; no request is under way: everything is committed and sealed

# It is being closed, or goes back to a snapshot: who waits for the end of other work on it shall not wait for long.
cdef inline bint is_ending(Volume volume) noexcept nogil:
    return volume.closing or volume.restoring
