# Recovery: opens a volume's log after a stop or a crash. See volume/recovery.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Checkpoint, Pointer
from iomesh.engine.volume.copies cimport Copies
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.volume.log_scan cimport Found, Scan, LogScan

cdef class Recovery(LogScan):        # Recovery(volume, checkpoint, copies: Copies or None)
    cdef Pointer checkpoint          # not PRESENT: there is none yet
    cdef bint detached               # the checkpoint is a clone's that inherited nothing; flattened since
    cdef uint64_t start              # replay starts after this record
    cdef uint64_t end                # the last record of the log
    cdef uint64_t stable             # records up to this one are known to be on stable media
    cdef uint64_t replayed_records
    cdef uint64_t replayed_bytes
    cdef uint64_t newest_ns          # log time: the newest of a record or a snapshot ...
    cdef int64_t clock_ns            # ... and the wall clock's time at that record
    cdef uint64_t marked_ns          # the same for the newest restore point; 0: none
    cdef int64_t marked_clock_ns
    cdef Copies copies               # on other nodes; None: the log has no fragments
    cdef int lacking                 # why need() has not found a segment: a negative errno

    cdef int run(self) noexcept nogil    # in a task on the volume's reactor; 0, or a negative errno and `reason`
    cdef int read_checkpoint(self) noexcept nogil
    cdef int read_table(self, Checkpoint* checkpoint) noexcept nogil
    cdef int read_snapshots(self, Checkpoint* checkpoint) noexcept nogil
    cdef int read_block(self, Pointer pointer, void* into) noexcept nogil
    cdef Scan* need(self, uint32_t segment) noexcept nogil
    cdef int fail_lacking(self, const char* text, uint64_t a, uint64_t b) noexcept nogil
    cdef void add_reason(self, const char* words) noexcept nogil
    cdef int take_over(self) noexcept nogil
    cdef int replace_outdated(self) noexcept nogil
    cdef int list_again(self) noexcept nogil
    cdef int scan_all(self) noexcept nogil
    cdef void cut_to_fragments(self) noexcept nogil
    cdef void settle_copies(self) noexcept nogil
    cdef int await_fragment(self) noexcept nogil
    cdef int check_whole(self, Scan* scan, const Segment* segment) noexcept nogil
    cdef int check_counted(self) noexcept nogil
    cdef uint64_t record_of_checkpoint(self) noexcept nogil
    cdef int check_ended(self) noexcept nogil
    cdef int check_torn(self) noexcept nogil
    cdef int find_end(self) noexcept nogil
    cdef void drop_older_copies(self) noexcept nogil
    cdef bint has_whole_copy(self, uint32_t first, uint32_t end, uint64_t sequence) noexcept nogil
    cdef void leave_out(self) noexcept nogil
    cdef int find_time(self) noexcept nogil
    cdef int adopt(self) noexcept nogil
    cdef int seal(self, Scan* scan) noexcept nogil
    cdef int make_stable(self, uint32_t member) noexcept nogil
    cdef int write_again(self, Scan* scan) noexcept nogil
    cdef bint is_as_read(self, const Scan* scan, const Found* found, const char* record) noexcept nogil
    cdef int replay(self) noexcept nogil
