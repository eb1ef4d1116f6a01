# Opening a volume's log after a stop or a crash. See recovery.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.io cimport Io
from iomesh.engine.layout cimport Checkpoint, Entry, Pointer, RecordHeader
from iomesh.engine.segments cimport Segment
from iomesh.engine.store cimport Replica
from iomesh.engine.volume cimport Volume

cdef struct Found:                   # a record that recovery has read
    uint64_t sequence
    uint32_t block                   # of its header
    uint32_t crc                     # its header's
    uint32_t first                   # of its entries in the scan's
    uint16_t count
    bint torn                        # its payload does not match

cdef struct Scan:                    # a local replica, and what is in it
    Replica* replica
    int store
    Found* records
    uint32_t record_count
    uint32_t record_room
    Entry* entries
    uint32_t entry_count
    uint32_t entry_room
    uint32_t end                     # block behind the last valid record
    uint64_t stable                  # the highest that a header in it names
    uint32_t dropped                 # records behind the end of the log
    bint useless                     # nothing in it counts
    uint64_t stray                   # the highest sequence of a valid header behind the end; 0: none

cdef class Recovery:
    cdef Volume volume
    cdef Io io
    cdef Scan* scans                 # by segment number
    cdef uint32_t scan_count
    cdef Pointer checkpoint          # not PRESENT: none was written yet
    cdef bint detached               # the checkpoint is of a clone that inherited nothing any more, and since then it is none
    cdef uint64_t start              # replay begins behind this record
    cdef uint64_t end                # the last record of the log
    cdef uint64_t replayed_records
    cdef uint64_t replayed_bytes
    cdef uint32_t tries              # of reads that failed, again
    cdef char* buffer                # 1 MiB and a block, aligned
    cdef char reason[512]

    cdef int run(self) noexcept nogil              # in a task on the volume's reactor; 0, or a negative errno and `reason`
    cdef int list_replicas(self) noexcept nogil
    cdef int read_checkpoint(self) noexcept nogil
    cdef int read_table(self, Checkpoint* checkpoint) noexcept nogil
    cdef int read_snapshots(self, Checkpoint* checkpoint) noexcept nogil
    cdef int read_block(self, Pointer pointer, void* into) noexcept nogil
    cdef int read_blocks(self, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
    cdef int scan_all(self) noexcept nogil
    cdef int scan_footer(self, Scan* scan) noexcept nogil
    cdef int scan_headers(self, Scan* scan) noexcept nogil
    cdef bint is_of(self, const RecordHeader* header, const Replica* replica, uint32_t block, uint32_t limit) noexcept nogil
    cdef int add_record(self, Scan* scan, uint64_t sequence, uint32_t block, uint32_t crc, const Entry* entries, uint32_t count) noexcept nogil
    cdef int check_counted(self) noexcept nogil
    cdef uint64_t record_of_checkpoint(self) noexcept nogil
    cdef int find_end(self) noexcept nogil
    cdef void leave_out(self) noexcept nogil
    cdef int find_time(self) noexcept nogil
    cdef int adopt(self) noexcept nogil
    cdef int seal(self, Scan* scan) noexcept nogil
    cdef int replay(self) noexcept nogil
    cdef Scan* scan_of(self, uint32_t segment) noexcept nogil
    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b, uint64_t c) noexcept nogil
