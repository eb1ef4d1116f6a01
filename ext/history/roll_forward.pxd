# Rolls a volume forward from a restore point to a later point in time. See history/roll_forward.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport RecordHeader
from iomesh.engine.log.request cimport AwaitedRequest
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.volume.volume cimport Volume

cdef class RollForward:
    cdef Volume volume               # the one that is rolled forward
    cdef Volume source               # whose log is read: the same volume, or the parent of the clone
    cdef char* buffer                # CHUNK_BLOCKS of a segment ...
    cdef uint32_t base               # ... from this block on ...
    cdef uint32_t held               # ... this many
    cdef AwaitedRequest written      # covers all writes
    cdef bint under_way              # some writes may not be committed yet
    cdef uint64_t next_sequence      # of the next record
    cdef uint64_t until_ns           # log time
    cdef uint64_t newest_ns          # of the last record applied
    cdef bint arrived                # the next record is later than `until_ns`
    cdef uint64_t records            # applied
    cdef uint64_t blocks             # written
    cdef int error                   # of reading the log
    cdef char reason[256]

    # In a task on the reactor of both volumes. The volume's content is that of the restore point, and there are no
    # other writers. 0; -ENOENT: the restore point or part of the log after it is gone; -EUCLEAN: that part of the log
    # is damaged; -ENOSPC, -EIO, -ESHUTDOWN. `reason` is the message with the place.
    cdef int run(self, const uint8_t* mark, uint64_t until_ns) noexcept nogil
    cdef int follow(self) noexcept nogil
    cdef int follow_segment(self, const Segment* segment, uint64_t newest) noexcept nogil
    cdef RecordHeader* record_at(self, const Segment* segment, uint32_t block, uint32_t limit) noexcept nogil
    cdef int repeat(self, const RecordHeader* header) noexcept nogil
    cdef int write(self, uint64_t block, uint32_t count, const char* data) noexcept nogil
    cdef int zero(self, uint64_t block, uint64_t count) noexcept nogil
    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b) noexcept nogil
