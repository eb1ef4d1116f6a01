# Rebuild: restores the number of copies of a volume's sealed segments, and removes copies that are too many.
#
# The owner decides which device gets a segment and from which it comes (iomesh.node.rebuild); the device's node brings
# it (replicas/pull.pyx).
#
# Always true:
#   - only segments that the newest checkpoint covers are rebuilt. What lies behind it is relied on where its fragment
#     was written, and nowhere else (docs/ownership.md);
#   - the segment is not cleaned, removed or evacuated meanwhile, so all its copies stay alike;
#   - a copy counts once it is on stable media and verified, and not before. A failed rebuild changes nothing;
#   - a copy is dropped only while as many others work as the volume wants. It stops counting before it is removed;
#   - which devices have copies is not stored: a new owner finds them listed there.
#
# Called by commands/rebuild.pyx.

from libc.errno cimport EAGAIN, EBUSY, ENODEV, ENOENT, ENOSPC, ESHUTDOWN
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport wake_all
from iomesh.engine.format.layout cimport SEGMENT_SEALED
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport COPIES_MAX, Member
from iomesh.engine.store.directory cimport slabs_of
from iomesh.engine.volume.removal cimport is_settled
from iomesh.engine.volume.volume cimport Volume, is_ending


cdef uint32_t list_copies(Volume volume, CopiesRow* rows, uint32_t room) noexcept nogil:
    cdef const Segment* segment = volume.segments.first
    cdef uint32_t count = 0
    cdef CopiesRow row
    while segment is not NULL:
        if (is_sealed(segment) or is_written(segment)) and describe(volume, segment, &row):
            if count < room:
                rows[count] = row
            count += 1
        segment = segment.next
    return count


cdef bint describe(Volume volume, const Segment* segment, CopiesRow* row) noexcept nogil:
    """False: it has as many working copies as are wanted, and no others."""
    cdef uint32_t working = 0
    cdef int i
    memset(row, 0, sizeof(CopiesRow))
    for i in range(1 + segment.copy_count):
        row.devices[i] = (<Member>member_at(volume, segment, i)).device()
        row.states[i] = state_of(member_at(volume, segment, i))
        working += row.states[i] == COPY_WORKS
    if working == volume.log.open_segments.replicas == <uint32_t>1 + segment.copy_count:
        return False
    row.segment = segment.number
    row.blocks = slabs_of(segment.replica) << segment.replica.slab_shift
    row.progress = COPY_WRITTEN
    if is_sealed(segment):
        row.progress = COPY_SETTLED if is_settled(segment, volume.checkpoints.sequence) else COPY_NEEDED
    return True


cdef int rebuild_copy(Volume volume, uint32_t number, uint32_t device, uint32_t source, uint32_t rate) noexcept nogil:
    cdef Segment* segment = volume.segments.find(number)
    cdef int target = member_of_device(volume, device), result
    if segment is NULL:
        return -ENOENT
    if is_ending(volume):
        return -ESHUTDOWN
    if not may_change(volume, segment):
        return -EAGAIN
    if target < volume.log.open_segments.local_count or member_of_device(volume, source) < 0:
        return -ENODEV
    if place_of(segment, <uint16_t>target) >= 0:
        return 0
    if free_place(volume, segment) < 0:
        return -ENOSPC
    begin(volume, segment)
    result = (<Member>volume.log.open_segments.members[target]).pull(
        number, volume.log.epoch, source, sealed_end(segment), segment.replica.epoch, rate, False
    )
    if result == 0:
        result = add(volume, segment, <uint16_t>target)
    end(volume, segment)
    return result


cdef int drop_copy(Volume volume, uint32_t number, uint32_t device) noexcept nogil:
    cdef Segment* segment = volume.segments.find(number)
    cdef int which, member = member_of_device(volume, device)
    if segment is NULL:
        return -ENOENT
    if is_ending(volume):
        return -ESHUTDOWN
    if not may_change(volume, segment):
        return -EAGAIN
    which = place_of(segment, <uint16_t>member) if member >= 0 else -1
    if which < 0:
        return -ENOENT
    if working_without(volume, segment, which) < volume.log.open_segments.replicas and \
            not planted(b"needed_copy_dropped"):
        return -EBUSY
    begin(volume, segment)
    segment.copy_count -= 1
    segment.copies[which] = segment.copies[segment.copy_count]
    (<Member>volume.log.open_segments.members[member]).remove(number, volume.log.epoch, NULL)
    end(volume, segment)                                 # one that is not removed is found when its node is back
    return 0


# ---------------------------------------------------------------------- parts

cdef inline bint may_change(Volume volume, const Segment* segment) noexcept nogil:
    return (
        is_sealed(segment)
        and (is_settled(segment, volume.checkpoints.sequence) or planted(b"unsettled_rebuilt"))
        and not segment.cleaning
    )


cdef inline bint is_sealed(const Segment* segment) noexcept nogil:
    return (
        segment.state == SEGMENT_SEALED
        and segment.replica is not NULL
        and segment.replica.state == SEGMENT_SEALED
    )


cdef inline bint is_written(const Segment* segment) noexcept nogil:
    return segment.state != SEGMENT_SEALED and segment.last_sequence > 0 and segment.replica is not NULL


cdef inline void begin(Volume volume, Segment* segment) noexcept nogil:
    segment.cleaning = True                              # no one else cleans or removes it
    volume.readings += 1                                 # closing waits


cdef inline void end(Volume volume, Segment* segment) noexcept nogil:
    segment.cleaning = False
    volume.readings -= 1
    wake_all(&volume.connections_changed, 0)


cdef int add(Volume volume, Segment* segment, uint16_t member) noexcept nogil:
    """In a free place, or in that of a copy that does not work."""
    cdef int which = free_place(volume, segment)
    if place_of(segment, member) >= 0:                   # its node came back meanwhile
        return 0
    if which < 0:
        return -ENOSPC
    segment.copies[which] = member
    segment.copy_count += which == segment.copy_count
    return 0


cdef int free_place(Volume volume, const Segment* segment) noexcept nogil:
    cdef int i
    if segment.copy_count < COPIES_MAX:
        return segment.copy_count
    for i in range(segment.copy_count):
        if state_of(member_at(volume, segment, 1 + i)) in (COPY_SILENT, COPY_FAILED):
            return i
    return -1


cdef int place_of(const Segment* segment, uint16_t member) noexcept nogil:
    """Among its copies; -1: none is there."""
    cdef int i
    for i in range(segment.copy_count):
        if segment.copies[i] == member:
            return i
    return -1


cdef uint32_t working_without(Volume volume, const Segment* segment, int which) noexcept nogil:
    cdef uint32_t working = 0
    cdef int i
    for i in range(1 + segment.copy_count):
        working += i != 1 + which and state_of(member_at(volume, segment, i)) == COPY_WORKS
    return working


cdef inline void* member_at(Volume volume, const Segment* segment, int i) noexcept nogil:
    """0: the one on this node; then its copies."""
    return volume.log.open_segments.members[segment.member if i == 0 else segment.copies[i - 1]]


cdef uint8_t state_of(void* member) noexcept nogil:
    if (<Member>member).has_failed():
        return COPY_FAILED
    if (<Member>member).is_stalled():
        return COPY_SILENT if (<Member>member).node is not NULL else COPY_FAILED
    if not (<Member>member).works():
        return COPY_FAILED
    return COPY_LEAVING if (<Member>member).leaving else COPY_WORKS


cdef int member_of_device(Volume volume, uint32_t device) noexcept nogil:
    """Its number among the log's members; -1: it is not one, or does not work."""
    cdef int i
    for i in range(volume.log.open_segments.member_count):
        if (<Member>volume.log.open_segments.members[i]).device() == device and device:
            return i if (<Member>volume.log.open_segments.members[i]).works() else -1
    return -1


cdef inline uint32_t sealed_end(const Segment* segment) noexcept nogil:
    """The block behind the segment's last record."""
    return segment.replica.footer_block if segment.replica.footer_block else segment.blocks
