# Silent damage in a simulation run, which no device reports: damaged blocks, and stray writes, lost or misdirected.
#
# Always true:
#   - any block of a sealed segment may be damaged. Its checksum shows that, and a read that needs the block fails;
#   - one write to the log's open segment may be lost, or arrive a little behind its place. While the process lives this
#     has no other effect. If the process dies before the segment is sealed, recovery finds the write's record missing:
#     it refuses the volume if a later header or the checkpoint shows that the record was stable; otherwise the log ends
#     there (docs/decisions/0005). So from such a write on (`doubtful_from`) the only guarantee is that the surviving
#     writes are a prefix of the acknowledged ones; and recovery never takes misdirected data for a record;
#   - a checkpoint in force shows that everything before it was stable. So a snapshot's content is no longer in doubt:
#     a created snapshot exists unchanged, or the volume is refused;
#   - once recovery has ended the log before such a write, nothing is left of it, and nothing fails because of it. So
#     there is no cleaning in between: it would delete the blocks that the lost write had overwritten, which are needed
#     when the log ends before it.
#
# States of a stray write:
#
#     HOME --lead_astray--> TO_STRAY --the device loses it--> ASTRAY
#     ASTRAY --the process dies, the segment is open--> MISSED --the volume is opened--> HOME
#

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.simulation.disk cimport STRAY_NONE, STRAY_STRUCK, STRAY_WAITING, Disk, disk_mark_damaged
from iomesh.engine.simulation.oracle cimport BLOCK_SECTORS, SECTOR_BYTES
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, POINTER_PRESENT, SEGMENT_SEALED, Footer, Pointer, RecordHeader, footer_valid, record_valid)
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.store.store cimport Replica, Store, replica_offset
from iomesh.engine.log.open_segments cimport OpenSegment
from iomesh.engine.simulation.simulated_volume cimport ASTRAY, HOME, MISSED, TO_STRAY

cdef extern from *:
    const uint64_t NEVER "UINT64_MAX"

cdef enum:
    BESIDE_BLOCKS = 8                # a misdirected write arrives fewer blocks than this behind its place


cdef void damage(RunState run, SimulatedVolume simulated) noexcept nogil:
    cdef Segment* segment = simulated.volume.segments.first
    cdef uint32_t at = <uint32_t>run.draw(max(simulated.volume.segments.count, <uint32_t>1)), block, i
    cdef int form = <int>run.draw(4)
    cdef uint64_t offset
    cdef char* content
    cdef Disk* disk
    while at and segment is not NULL:
        segment = segment.next
        at -= 1
    if segment is NULL or segment.replica is NULL or segment.state != SEGMENT_SEALED or segment.blocks == 0:
        return
    if segment.replica.footer_block == 0:
        return                                           # damage there looks like a torn write (docs/decisions/0005)
    block = <uint32_t>run.draw(segment.blocks)
    content = <char*>simulated.checker.content(segment.replica, block)
    if content is NULL:
        return
    disk = &run.world.disks[segment.replica.device]
    offset = content - disk.memory
    if form == 0:
        content[run.draw(BLOCK_BYTES)] ^= <char>(1 << run.draw(8))
    elif form == 1:
        content += run.draw(BLOCK_SECTORS) * SECTOR_BYTES
        for i in range(SECTOR_BYTES):
            content[i] = <char>run.draw(256)
    elif form == 2:
        memset(content, 0, BLOCK_BYTES)
    else:
        memcpy(content, disk.memory + run.draw(disk.bytes // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)
    disk_mark_damaged(disk, offset, BLOCK_BYTES)
    note_damage(run)
    run.note(b"damages block %lld of segment %lld", block, segment.number, form)


cdef void lead_astray(RunState run, SimulatedVolume simulated) noexcept nogil:
    cdef OpenSegment* open_segment = simulated.log.open_segments.current
    cdef uint32_t contiguous
    cdef Disk* disk
    if open_segment is NULL or simulated.stray.state != HOME or simulated.volume.cleaning:
        return
    disk = &run.world.disks[open_segment.segment.replica.device]
    if disk.stray != STRAY_NONE:                         # another volume's stray write is pending
        return
    disk.stray_from = replica_offset(open_segment.segment.replica, open_segment.next_block, &contiguous)
    if contiguous == 0:
        return
    disk.stray_to = disk.stray_from + run.draw(BESIDE_BLOCKS) * BLOCK_BYTES
    disk.stray_limit = disk.stray_from + contiguous * BLOCK_BYTES
    disk.stray = STRAY_WAITING
    run.ledger.clock += 1
    simulated.oracle.doubtful_from = run.ledger.clock
    simulated.stray.state = TO_STRAY
    simulated.stray.device = disk.number
    simulated.stray.segment = open_segment.segment.number
    simulated.stray.block = open_segment.next_block
    simulated.stray.sequence = simulated.log.sequence + 1
    simulated.stray.lost = False
    run.note(b"the next write goes astray: to block %lld of segment %lld, by %lld bytes", open_segment.next_block,
             open_segment.segment.number, disk.stray_to - disk.stray_from)


cdef void notice_strays(RunState run) noexcept nogil:
    cdef int i
    for i in range(run.store_count):
        if run.world.disks[i].stray != STRAY_NONE:
            notice_stray(run, i)


cdef void notice_stray(RunState run, int device) noexcept nogil:
    cdef uint32_t i = 0
    while (
        (<SimulatedVolume>run.volume_pointers[i]).stray.state != TO_STRAY
        or (<SimulatedVolume>run.volume_pointers[i]).stray.device != device
    ):
        i += 1
    if run.world.disks[device].stray == STRAY_STRUCK:
        run.world.disks[device].stray = STRAY_NONE
        (<SimulatedVolume>run.volume_pointers[i]).stray.state = ASTRAY
        run.astray += 1
        note_damage(run)
    elif not is_open(<SimulatedVolume>run.volume_pointers[i]):    # no more writes go there
        call_back(<SimulatedVolume>run.volume_pointers[i])


cdef void call_back(SimulatedVolume simulated) noexcept nogil:
    simulated.run.world.disks[simulated.stray.device].stray = STRAY_NONE
    simulated.stray.state = HOME
    simulated.oracle.doubtful_from = NEVER


cdef bint is_open(SimulatedVolume simulated) noexcept nogil:
    """Whether recovery would have to find the segment's records by their headers. The journal may or may not know its
    footer: the log may take it for sealed."""
    cdef Segment* segment = simulated.segments.find(simulated.stray.segment)
    return (
        segment is not NULL
        and segment.replica is not NULL
        and not (segment.replica.state == SEGMENT_SEALED and segment.replica.footer_block)
    )


cdef void miss_stray(SimulatedVolume simulated) noexcept nogil:
    notice_strays(simulated.run)
    if simulated.volume is not None and simulated.volume.walk.unreadable:
        simulated.stray.lost = True
    if simulated.stray.state == TO_STRAY:
        call_back(simulated)
    elif simulated.stray.state == ASTRAY and is_open(simulated):
        simulated.stray.state = MISSED
    elif simulated.stray.state == ASTRAY:                # its footer, or the journal, lists what was written
        leave_stray(simulated)
        simulated.oracle.doubtful_from = NEVER


cdef void leave_stray(SimulatedVolume simulated) noexcept nogil:
    if simulated.stray.state == TO_STRAY:
        call_back(simulated)
    if simulated.stray.state == HOME:
        return
    simulated.stray.state = HOME
    if simulated.stray.lost or is_left(simulated, simulated.segments.find(simulated.stray.segment)):
        simulated.stray.left += 1
    else:
        simulated.run.damages -= 1
        simulated.run.note(
            b"of what went astray from block %lld of segment %lld nothing is left",
            simulated.stray.block, simulated.stray.segment, 0
        )


cdef void forget_strays(SimulatedVolume simulated) noexcept nogil:
    simulated.run.damages -= simulated.stray.left
    simulated.stray.left = 0


cdef bint is_left(SimulatedVolume simulated, const Segment* segment) noexcept nogil:
    """Whether the sealed segment covers the stray write's place, with its footer elsewhere."""
    cdef uint32_t footer
    if segment is NULL or segment.replica is NULL:
        return False
    footer = segment.replica.footer_block
    if footer == 0:
        return simulated.stray.block < segment.replica.blocks
    # At its place the footer itself may be the stray write.
    return (
        footer > simulated.stray.block
        or (
            footer == simulated.stray.block
            and not footer_valid(
                <const Footer*>simulated.checker.content(segment.replica, footer),
                simulated.record.id,
                segment.number,
                footer,
                segment.replica.blocks,
            )
        )
    )


cdef bint refusal_is_due(SimulatedVolume simulated) noexcept nogil:
    return (
        simulated.stray.state != MISSED
        or simulated.run.damages != 1
        or checkpoint_follows(simulated)
        or is_called_stable(simulated)
    )


cdef bint checkpoint_follows(SimulatedVolume simulated) noexcept nogil:
    """Whether the checkpoint in force was written after the stray write."""
    cdef Pointer checkpoint = simulated.record.checkpoint
    return (
        checkpoint.flags & POINTER_PRESENT
        and (
            checkpoint.segment > simulated.stray.segment
            or (checkpoint.segment == simulated.stray.segment and checkpoint.block > simulated.stray.block)
        )
    )


cdef bint is_called_stable(SimulatedVolume simulated) noexcept nogil:
    """Whether anything on the devices shows that the stray record was stable."""
    cdef uint32_t bucket
    cdef int i
    for i in range(simulated.run.store_count):
        for bucket in range((<Store>simulated.run.store_pointers[i]).directory.bucket_count):
            if bucket_calls_stable(simulated, (<Store>simulated.run.store_pointers[i]).directory.buckets[bucket]):
                return True
    return False


cdef bint bucket_calls_stable(SimulatedVolume simulated, const Replica* replica) noexcept nogil:
    while replica is not NULL:
        if (
            memcmp(replica.volume, simulated.record.id, 16) == 0
            and replica.live == 0
            and replica_calls_stable(simulated, replica)
        ):
            return True
        replica = replica.next
    return False


cdef bint replica_calls_stable(SimulatedVolume simulated, const Replica* replica) noexcept nogil:
    cdef const RecordHeader* header
    cdef const Footer* footer
    cdef uint32_t block
    for block in range(replica.blocks):
        header = <const RecordHeader*>simulated.checker.content(replica, block)
        footer = <const Footer*>header
        if (
            header.epoch == replica.epoch
            and record_valid(header, replica.volume, replica.segment, block, replica.blocks)
        ):
            if header.stable >= simulated.stray.sequence:
                return True
        elif (
            block == replica.footer_block
            and footer_valid(footer, replica.volume, replica.segment, block, replica.blocks)
        ):
            if footer.stable >= simulated.stray.sequence:
                return True
    return False


cdef void note_damage(RunState run) noexcept nogil:
    run.damages += 1
    run.ledger.clock += 1
    run.damaged_at = run.ledger.clock
