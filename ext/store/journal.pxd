# The on-device log of changes to the directory. See store/journal.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.store.device_flusher cimport DeviceFlusher
from iomesh.engine.store.directory cimport Directory, EntryBytes, Replica
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport JournalBlock, Superblock
from iomesh.engine.base.reactor cimport Reactor

cdef enum:
    REASON_BYTES = 256
    REPAIRS_MAX = 16
    REPAIR_BYTES = 160

cdef struct Repairs:                 # text about what was damaged and restored
    uint32_t count                   # may exceed REPAIRS_MAX: the excess has no text
    char lines[REPAIRS_MAX][REPAIR_BYTES]

cdef struct Change:                  # owned by the requesting task, valid until commit() returns
    Replica* replica                 # NULL: the change is a fence
    Replica* instead_of              # the replica that it replaces in the directory; NULL: none
    EntryBytes wanted
    Operation done
    Change* next

cdef struct SnapshotBuilder:         # a snapshot of the directory, at the start of a half
    JournalBlock* blocks             # NULL: only count blocks
    uint64_t generation
    uint32_t used                    # full blocks
    uint32_t filled                  # bytes of entries in the next block

cdef class Journal:
    cdef readonly int failed         # errno of the error that stopped the journal; 0: none
    cdef Reactor home
    cdef Io io                       # the home's
    cdef Directory directory
    cdef int device
    cdef DeviceFlusher flusher
    cdef uint8_t identity[16]        # of the device
    cdef uint64_t offset             # of the first area
    cdef uint32_t slab_blocks
    cdef uint32_t area_blocks
    cdef uint32_t half               # the half in use
    cdef uint32_t next_index         # next block in it
    cdef uint64_t generation         # the half's generation
    cdef uint64_t highest_generation     # highest on the device; an unfinished snapshot's may exceed `generation`
    cdef JournalBlock* block         # the block that is being written
    cdef Change* first               # queued, not in a block yet
    cdef Change* last
    cdef bint writing                # a task is writing blocks until the queue is empty

    # 0 once durable and applied to the directory, or a negative errno
    cdef int commit(self, Change* change) noexcept nogil
    # a snapshot of the directory with `more_bytes` more fits
    cdef bint has_room(self, uint64_t more_bytes) noexcept nogil
    cdef void write_changes(self) noexcept nogil
    cdef Change* fill_block(self) noexcept nogil
    cdef int write_block(self) noexcept nogil
    cdef int switch_half(self) noexcept nogil
    cdef uint32_t build_snapshot(self, JournalBlock* blocks, uint64_t generation) noexcept nogil
    cdef void add_to_snapshot(self, SnapshotBuilder* builder, const EntryBytes* entry, uint32_t bytes) noexcept nogil
    cdef int write_twice(self, uint32_t half, uint32_t index, const void* data, uint32_t blocks) noexcept nogil
    cdef uint64_t place(self, uint32_t copy, uint32_t half, uint32_t index) noexcept nogil
    # after replay: rewrites the last block and flushes; 0 or a negative errno
    cdef int write_newest(self) noexcept nogil
    cdef int flush(self) noexcept nogil

cdef int format_journal(Io io, int device, const Superblock* superblock) noexcept nogil
