# Scans a volume's log on this node's devices. See volume/log_scan.pyx.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.format.layout cimport Entry, RecordHeader
from iomesh.engine.store.store cimport Replica
from iomesh.engine.volume.volume cimport Volume

cdef enum:
    CHUNK_BLOCKS = 512               # read at once: two whole records at least

cdef struct Found:                   # a record that was read
    uint64_t sequence
    uint32_t block                   # of its header
    uint32_t crc                     # its header's
    uint32_t first                   # of its entries in the scan's
    uint16_t count
    bint torn                        # its payload does not match
    bint void                        # ... and it is whole in another segment

cdef struct Scan:                    # a local replica and its records
    Replica* replica
    uint16_t member                  # number of the Member that keeps it
    Found* records
    uint32_t record_count
    uint32_t record_room
    Entry* entries
    uint32_t entry_count
    uint32_t entry_room
    uint32_t end                     # block after the last valid record
    uint64_t stable                  # the highest `stable` of its headers
    uint64_t stray                   # the highest sequence of a valid header after the end; 0: none
    uint32_t dropped                 # records after the end of the log
    bint useless                     # no record in it is valid: remove it

cdef class LogScan:
    cdef Volume volume
    cdef Io io
    cdef Scan* scans                 # by segment number
    cdef uint32_t scan_count
    cdef bint removes_doubles        # the log is being recovered
    cdef uint32_t tries              # retries of failed reads, in total
    cdef char* buffer                # CHUNK_BLOCKS + 1 blocks, aligned
    cdef char reason[512]

    cdef int settle_doubles(self) noexcept nogil
    cdef int remove_double(self, Scan* scan) noexcept nogil
    cdef void forget(self) noexcept nogil                    # the scans
    cdef int list_replicas(self) noexcept nogil              # these: in a task; 0, or a negative errno and `reason`
    cdef int remove_copy(self, Scan* scan) noexcept nogil
    cdef uint32_t list_member(self, uint16_t member, Replica** into, uint32_t room) noexcept nogil
    cdef Scan* scan_of(self, uint32_t segment) noexcept nogil
    cdef int read_blocks(self, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
    cdef int scan_footer(self, Scan* scan) noexcept nogil
    cdef int scan_headers(self, Scan* scan) noexcept nogil
    cdef bint is_of(
        self, const RecordHeader* header, const Replica* replica, uint32_t block, uint32_t limit
    ) noexcept nogil
    cdef bint is_newer(
        self, const RecordHeader* header, const Replica* replica, uint32_t block, uint32_t limit
    ) noexcept nogil
    cdef int fail_newer(self, const Replica* replica, uint32_t block) noexcept nogil
    cdef int fail_late(self, const Replica* replica) noexcept nogil
    cdef int add_record(
        self, Scan* scan, uint64_t sequence, uint32_t block, uint32_t crc, const Entry* entries, uint32_t count
    ) noexcept nogil
    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b, uint64_t c) noexcept nogil

cdef uint32_t record_end(const Scan* scan) noexcept nogil
