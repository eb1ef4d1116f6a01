# Opening a volume's log after a stop or a crash. See volume/recovery.pyx.

from libc.stdint cimport int64_t, uint64_t
from iomesh.engine.format.layout cimport Checkpoint, Pointer
from iomesh.engine.volume.log_scan cimport Found, Scan, LogScan

cdef class Recovery(LogScan):
    cdef Pointer checkpoint          # not PRESENT: none was written yet
    cdef bint detached               # the checkpoint is of a clone that inherited nothing any more, and since then it is none
    cdef uint64_t start              # replay begins behind this record
    cdef uint64_t end                # the last record of the log
    cdef uint64_t stable             # records up to this one were on stable media before
    cdef uint64_t replayed_records
    cdef uint64_t replayed_bytes
    cdef uint64_t newest_ns          # log time: the newest of a record or a snapshot ...
    cdef int64_t clock_ns            # ... and what the wall clock showed beside it
    cdef uint64_t marked_ns          # likewise of the newest restore point; 0: there is none
    cdef int64_t marked_clock_ns

    cdef int run(self) noexcept nogil              # in a task on the volume's reactor; 0, or a negative errno and `reason`
    cdef int read_checkpoint(self) noexcept nogil
    cdef int read_table(self, Checkpoint* checkpoint) noexcept nogil
    cdef int read_snapshots(self, Checkpoint* checkpoint) noexcept nogil
    cdef int read_block(self, Pointer pointer, void* into) noexcept nogil
    cdef int scan_all(self) noexcept nogil
    cdef int check_counted(self) noexcept nogil
    cdef uint64_t record_of_checkpoint(self) noexcept nogil
    cdef int find_end(self) noexcept nogil
    cdef void leave_out(self) noexcept nogil
    cdef int find_time(self) noexcept nogil
    cdef int adopt(self) noexcept nogil
    cdef int seal(self, Scan* scan) noexcept nogil
    cdef int write_again(self, Scan* scan) noexcept nogil
    cdef bint is_as_read(self, const Scan* scan, const Found* found, const char* record) noexcept nogil
    cdef int replay(self) noexcept nogil
