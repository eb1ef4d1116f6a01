# A volume's space on devices, by use; the numbers add up.
#
#     mapped   = exclusive + shared + inherited
#     live     = exclusive + shared + snapshots + pinned + map      (inherited blocks are in the parents' logs)
#     physical = live + log + ahead + dead
#
# The first line and `snapshots` are maintained counts (map/segment_table.pyx, map/snapshot_table.pyx). The rest is
# computed from the segment table. While operations are in progress, a block may be in two of the sums or in none: then
# the larger sum is used, and a negative difference counts as 0.
#
# Space of the restore window: dead blocks in segments that are kept whole for it, and blocks in restore points' maps
# only. The latter are distinguished from blocks of users' snapshots only if there are no such snapshots: the counts do
# not record the kind of snapshot.
#
# Called by the engine, in no task: nothing here waits.

from libc.stdint cimport uint32_t, uint64_t

from iomesh.engine.store.directory cimport Replica, slabs_of
from iomesh.engine.format.layout cimport BITMAP_COPIES, SEGMENT_SEALED
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.volume.volume cimport Volume


cdef void measure(Volume volume, Space* into) noexcept nogil:
    add_up(volume.segments, volume.snapshots.held(volume.segments), volume.log.open_segments.position(), into)
    if volume.snapshots.are_all_marks():
        into.exclusive += into.shared
        into.pinned += into.snapshots
        into.shared = into.snapshots = 0


cdef void add_up(SegmentTable segments, uint64_t held, uint64_t end, Space* into) noexcept nogil:
    cdef Segment* segment = segments.first
    cdef uint64_t own, used, log, ahead
    held = min(held, segments.live)
    into.mapped = segments.mapped
    into.inherited = min(segments.inherited, into.mapped)
    own = min(into.mapped - into.inherited, held)
    into.mapped = own + into.inherited
    into.exclusive = min(segments.exclusive, own)
    into.shared = own - into.exclusive
    into.snapshots = held - own
    into.pinned = 0
    into.map = segments.live - held
    into.log = into.ahead = into.physical = 0
    while segment is not NULL:
        if segment.replica is not NULL:
            log = told_by_log(segment)
            ahead = blocks_of(segment.replica) - written(segment, end) if segment.state != SEGMENT_SEALED else 0
            into.log += log
            into.ahead += ahead
            into.physical += blocks_of(segment.replica)
            if segment.last_sequence > segments.kept_from:
                into.pinned += less_or_nothing(blocks_of(segment.replica), segment.live + log + ahead)
        segment = segment.next
    used = segments.live + into.log + into.ahead + into.pinned
    into.dead = less_or_nothing(into.physical, used)
    into.physical = used + into.dead


cdef inline uint64_t blocks_of(const Replica* replica) noexcept nogil:
    return <uint64_t>slabs_of(replica) << replica.slab_shift


cdef inline uint64_t less_or_nothing(uint64_t of, uint64_t by) noexcept nogil:
    return of - by if of > by else 0


cdef inline uint64_t written(const Segment* segment, uint64_t end) noexcept nogil:
    """Blocks written in an open segment. end: the log's."""
    cdef uint32_t number = <uint32_t>(end >> 32)
    return (
        0 if segment.number > number
        else min(<uint32_t>end, segment.blocks) if segment.number == number
        else segment.blocks
    )


cdef inline uint64_t told_by_log(const Segment* segment) noexcept nogil:
    """A header for each record, and the footer; a compacted segment has no headers, and its bitmap twice."""
    cdef uint64_t footer = 0
    # until it is sealed, another reactor may be changing the replica
    if segment.state == SEGMENT_SEALED and segment.replica.footer_block:
        footer = segment.replica.blocks - segment.replica.footer_block
    if segment.replica.live:
        return footer + BITMAP_COPIES
    return footer + (segment.last_sequence - segment.first_sequence + 1 if segment.last_sequence else 0)
