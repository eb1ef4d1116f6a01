# Blocks that this node's replica has lost (a bad sector, a wrong checksum), from a copy on another node.
#
# Always true:
#   - what a copy returns counts only if it has the pointer's checksum;
#   - this node's replica gets the block in the place where it was lost, unless the replica is compacted or being
#     cleaned: then cleaning or the next checkpoint's walk meets it again.
#
# Called by volume/reader.pyx.

from libc.errno cimport EIO, ENOENT
from libc.stdint cimport uint16_t

from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.format.layout cimport BLOCK_BYTES
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport COPIES_MAX, Member


cdef enum:
    REPAIR = 16                      # of Segment.cleaning: one repair; up to 15 at once


cdef int read_copy(OpenSegments open_segments, Pointer pointer, void* into) noexcept nogil:
    cdef Segment* segment = open_segments.segments.find(pointer.segment)
    cdef uint16_t copies[COPIES_MAX]
    cdef int count = segment.copy_count if segment is not NULL else 0, result = -ENOENT, i
    for i in range(count):
        copies[i] = segment.copies[i]
    for i in range(count):
        result = (<Member>open_segments.members[copies[i]]).read(pointer.segment, NULL, pointer.block, 1, into)
        if result == 0 and crc32c(into, BLOCK_BYTES) != pointer.crc:
            result = -EIO
        if result == 0:
            write_back(open_segments, pointer, into)
            break
    return result


cdef void write_back(OpenSegments open_segments, Pointer pointer, const void* data) noexcept nogil:
    cdef Segment* segment = open_segments.segments.find(pointer.segment)     # it may be gone meanwhile
    if segment is NULL or segment.replica is NULL or segment.replica.live:
        return
    if segment.cleaning % REPAIR or segment.cleaning >= 15 * REPAIR:
        return
    segment.cleaning += REPAIR                           # nobody compacts or removes it meanwhile
    (<Member>open_segments.member_of(segment)).fill(segment.number, segment.replica, pointer.block, 1, data)
    segment.cleaning -= REPAIR
