# Blocks that this node's replica has lost (a bad sector, a wrong checksum), from a copy on another node.
#
# Always true:
#   - what a copy returns counts only if it has the pointer's checksum;
#   - this node's replica gets the block in the place where it was lost, unless it is being cleaned: then the next read
#     or scrub meets it again.
#
# Called by volume/reader.pyx, map/map.pyx (through Map.mend) and, for scrub, by commands/repair.pyx.

from libc.errno cimport EIO, ENOENT, ENOMEM
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport free as release, malloc

from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport start
from iomesh.engine.format.layout cimport BLOCK_BYTES, RecordHeader, block_crc
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport COPIES_MAX, Member


cdef enum:
    REPAIR = 16                      # of Segment.cleaning: one repair; up to 15 at once


cdef struct Mending:                 # of a node of the map
    void* open_segments
    Pointer pointer
    void* into


cdef int read_copy(OpenSegments open_segments, Pointer pointer, void* into, bint header) noexcept nogil:
    cdef Segment* segment = open_segments.segments.find(pointer.segment)
    cdef uint16_t copies[COPIES_MAX]
    cdef int count = segment.copy_count if segment is not NULL else 0, result = -ENOENT, i
    for i in range(count):
        copies[i] = segment.copies[i]
    for i in range(count):
        result = (<Member>open_segments.members[copies[i]]).read(pointer.segment, NULL, pointer.block, 1, into)
        if result == 0 and not is_it(into, pointer.crc, header):
            result = -EIO
        if result == 0:
            write_back(open_segments, pointer, into)
            break
    return result


cdef void write_back(OpenSegments open_segments, Pointer pointer, const void* data) noexcept nogil:
    cdef Segment* segment = open_segments.segments.find(pointer.segment)     # it may be gone meanwhile
    cdef int64_t place = pointer.block
    cdef uint32_t run
    if segment is NULL or segment.replica is NULL:
        return
    if segment.cleaning % REPAIR or segment.cleaning >= 15 * REPAIR:
        return
    segment.cleaning += REPAIR                           # nobody compacts or removes it meanwhile
    if segment.replica.live:
        place = open_segments.bitmaps.find_place(segment.replica, pointer.block, 1, &run)
    if place >= 0:
        (<Member>open_segments.member_of(segment)).fill(segment.number, segment.replica, <uint32_t>place, 1, data)
    segment.cleaning -= REPAIR


cdef inline bint is_it(const void* block, uint32_t crc, bint header) noexcept nogil:
    if header:
        return (<const RecordHeader*>block).crc == crc and block_crc(block) == crc
    return crc32c(block, BLOCK_BYTES) == crc


cdef void mend_node(void* open_segments, Pointer pointer, void* into, Operation* when) noexcept nogil:
    cdef Mending* mending = <Mending*>malloc(sizeof(Mending))
    if mending is NULL:
        when.result = -ENOMEM
        (<OpenSegments>open_segments).reactor.at_turn_end(when)
        return
    mending.open_segments, mending.pointer, mending.into = open_segments, pointer, into
    start(mend_body, mending, when)


cdef int64_t mend_body(void* argument) noexcept nogil:
    cdef Mending* mending = <Mending*>argument
    cdef int result = read_copy(<OpenSegments>mending.open_segments, mending.pointer, mending.into, False)
    release(mending)
    return BLOCK_BYTES if result == 0 else -EIO
