# Taking a volume from a mark on to a moment behind it, along the log. See history/roll_forward.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport RecordHeader
from iomesh.engine.log.request cimport AwaitedRequest
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.volume.volume cimport Volume

cdef class RollForward:
    cdef Volume volume               # the one that is taken there
    cdef Volume source               # whose log is followed: the same, or what it is a clone of
    cdef char* buffer                # CHUNK_BLOCKS of a segment ...
    cdef uint32_t base               # ... from this block on ...
    cdef uint32_t held               # ... so many
    cdef AwaitedRequest written      # all that is
    cdef bint under_way              # some of it may be
    cdef uint64_t next_sequence      # the record that comes next
    cdef uint64_t until_ns           # log time
    cdef uint64_t newest_ns          # of the record that was followed last
    cdef bint arrived                # what follows is younger
    cdef uint64_t records            # that were followed
    cdef uint64_t blocks             # that were written
    cdef int error                   # of reading the log
    cdef char reason[256]

    # In a task on the reactor of both. The volume holds what it held at the mark, and nobody else writes to it. 0; -ENOENT: the mark, or some of the
    # log behind it, is not there any more; -EUCLEAN: some of that is damaged; -ENOSPC, -EIO, -ESHUTDOWN; reason says what and where.
    cdef int run(self, const uint8_t* mark, uint64_t until_ns) noexcept nogil
    cdef int follow(self) noexcept nogil
    cdef int follow_segment(self, const Segment* segment, uint64_t newest) noexcept nogil
    cdef RecordHeader* record_at(self, const Segment* segment, uint32_t block, uint32_t limit) noexcept nogil
    cdef int repeat(self, const RecordHeader* header) noexcept nogil
    cdef int write(self, uint64_t block, uint32_t count, const char* data) noexcept nogil
    cdef int zero(self, uint64_t block, uint64_t count) noexcept nogil
    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b) noexcept nogil
