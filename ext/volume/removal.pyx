# Deletes segments that are not needed by the newest checkpoint, its map, the replay after it, or a restore window.
#
# Called by volume/checkpoint.pyx once a checkpoint's pointer has moved.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.planted cimport planted
from iomesh.engine.format.layout cimport SEGMENT_SEALED
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.replicas.member cimport Member


cdef uint64_t remove_dead(Log log, SegmentTable segments, uint64_t sequence, bint dying) noexcept nogil:
    cdef uint32_t* numbers = <uint32_t*>calloc(segments.count + 1, sizeof(uint32_t))
    cdef uint32_t count, i
    cdef uint64_t removed = 0
    if numbers is NULL:
        return 0
    count = claim_dead(segments, sequence, dying, numbers)
    for i in range(count):
        removed += remove(log, segments, segments.find(numbers[i]))
    release(numbers)
    if count and log.open_segments.no_space:
        log.open_segments.space_freed()
    return removed


cdef uint32_t claim_dead(SegmentTable segments, uint64_t sequence, bint dying, uint32_t* numbers) noexcept nogil:
    """Lists the dead segments and keeps cleaning off them. The blocks that a dying snapshot's walk needs are live in
    the checkpoint with which it starts to die, so its hold does not count yet: otherwise nothing could be deleted while
    snapshots die one after another."""
    cdef Segment* segment = segments.first
    cdef uint32_t count = 0
    if segments.reclaim_holds != <uint32_t>dying:
        return 0
    while segment is not NULL:
        if (
            is_dead(segments, segment)
            and is_settled(segment, sequence)
            and segment.last_sequence <= segments.kept_from
            and not segment.cleaning
        ):
            segment.cleaning = True
            numbers[count] = segment.number
            count += 1
        segment = segment.next
    return count


cdef inline bint is_dead(SegmentTable segments, const Segment* segment) noexcept nogil:
    return segment.live == 0 and (segments.live_at_checkpoint(segment) == 0 or planted(b"removed_while_needed"))


cdef bint remove(Log log, SegmentTable segments, Segment* segment) noexcept nogil:
    cdef int i
    for i in range(segment.copy_count):                  # one that is not removed is found when its node is back
        (<Member>log.open_segments.members[segment.copies[i]]).remove(segment.number, log.epoch, NULL)
    if (<Member>log.open_segments.member_of(segment)).remove(segment.number, log.epoch, segment.replica) < 0:
        segment.cleaning = False
        return False
    segments.remove(segment)
    return True


cdef bint is_settled(const Segment* segment, uint64_t checkpoint) noexcept nogil:
    return segment.state == SEGMENT_SEALED and segment.last_sequence <= checkpoint and segment.table_of != checkpoint
