# Damage that no device tells of, in a life in the simulated world: blocks that are not any more what they were, and writes that never arrived.
#
# Always true:
#   - of a sealed segment any block may be damaged. Its checksum says so, and a read fails that needs it;
#   - of the segment that the log is written to, one write may be lost, or arrive a little behind its place. As long as the process lives nothing
#     else is different. If it dies before the segment is sealed, recovery finds that write's record missing: it refuses the volume, if a later
#     header or the checkpoint says that the record was stable, or the log ends there (docs/decisions/0005). So from such a write on nothing is
#     promised (`doubtful_from`), but that what is there is a prefix of what was acknowledged; and nobody takes what arrived elsewhere for a record;
#   - a checkpoint that counts says that all before it was stable. So whatever a snapshot holds is in doubt no more, and a snapshot that was made is
#     there, as it was made, or the volume is refused;
#   - where recovery has ended the log, nothing is left of such a write: from then on nothing fails for it. So nothing is cleaned in between: what a
#     lost write had overwritten would be given up, and could not be read when the log ends before it.
#
# A write's way:
#
#     HOME --lead_astray--> TO_STRAY --the device loses it--> ASTRAY --the process dies, the segment is open--> MISSED --it is opened--> HOME
#

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.simulation.disk cimport STRAY_NONE, STRAY_STRUCK, STRAY_WAITING, Disk, disk_mark_damaged
from iomesh.engine.simulation.oracle cimport BLOCK_SECTORS, SECTOR_BYTES
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, POINTER_PRESENT, SEGMENT_SEALED, Footer, Pointer, RecordHeader, footer_valid, record_valid)
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.store.store cimport Replica, Store, replica_offset
from iomesh.engine.log.open_segments cimport Tail
from iomesh.engine.simulation.simulated_volume cimport ASTRAY, HOME, MISSED, TO_STRAY

cdef extern from *:
    const uint64_t NEVER "UINT64_MAX"

cdef enum:
    BESIDE_BLOCKS = 8                # a write arrives less than so many behind its place


cdef void damage(Life life, Tenant tenant) noexcept nogil:
    cdef Segment* segment = tenant.volume.segments.first
    cdef uint32_t at = <uint32_t>life.draw(max(tenant.volume.segments.count, <uint32_t>1)), block, i
    cdef int form = <int>life.draw(4)
    cdef uint64_t offset
    cdef char* content
    cdef Disk* disk
    while at and segment is not NULL:
        segment = segment.next
        at -= 1
    if segment is NULL or segment.replica is NULL or segment.state != SEGMENT_SEALED or segment.blocks == 0:
        return
    if segment.replica.footer_block == 0:
        return                                           # what is damaged there cannot be told from what was torn (docs/decisions/0005)
    block = <uint32_t>life.draw(segment.blocks)
    content = <char*>tenant.audit.content(segment.replica, block)
    if content is NULL:
        return
    disk = &life.world.disks[segment.replica.device]
    offset = content - disk.memory
    if form == 0:
        content[life.draw(BLOCK_BYTES)] ^= <char>(1 << life.draw(8))
    elif form == 1:
        content += life.draw(BLOCK_SECTORS) * SECTOR_BYTES
        for i in range(SECTOR_BYTES):
            content[i] = <char>life.draw(256)
    elif form == 2:
        memset(content, 0, BLOCK_BYTES)
    else:
        memcpy(content, disk.memory + life.draw(disk.bytes // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)
    disk_mark_damaged(disk, offset, BLOCK_BYTES)
    note_damage(life)
    life.note(b"damages block %lld of segment %lld", block, segment.number, form)


cdef void lead_astray(Life life, Tenant tenant) noexcept nogil:
    cdef Tail* tail = tenant.log.tails.current
    cdef uint32_t contiguous
    cdef Disk* disk
    if tail is NULL or tenant.stray.state != HOME or tenant.volume.cleaning:
        return
    disk = &life.world.disks[tail.segment.replica.device]
    if disk.stray != STRAY_NONE:                         # another volume's is on its way
        return
    disk.stray_from = replica_offset(tail.segment.replica, tail.next_block, &contiguous)
    if contiguous == 0:
        return
    disk.stray_to = disk.stray_from + life.draw(BESIDE_BLOCKS) * BLOCK_BYTES
    disk.stray_limit = disk.stray_from + contiguous * BLOCK_BYTES
    disk.stray = STRAY_WAITING
    life.ledger.clock += 1
    tenant.judge.doubtful_from = life.ledger.clock
    tenant.stray.state = TO_STRAY
    tenant.stray.device = disk.number
    tenant.stray.segment = tail.segment.number
    tenant.stray.block = tail.next_block
    tenant.stray.sequence = tenant.log.sequence + 1
    tenant.stray.lost = False
    life.note(b"the next write goes astray: to block %lld of segment %lld, by %lld bytes", tail.next_block, tail.segment.number,
              disk.stray_to - disk.stray_from)


cdef void notice_strays(Life life) noexcept nogil:
    cdef int i
    for i in range(life.store_count):
        if life.world.disks[i].stray != STRAY_NONE:
            notice_stray(life, i)


cdef void notice_stray(Life life, int device) noexcept nogil:
    cdef uint32_t i = 0
    while (<Tenant>life.tenant_pointers[i]).stray.state != TO_STRAY or (<Tenant>life.tenant_pointers[i]).stray.device != device:
        i += 1
    if life.world.disks[device].stray == STRAY_STRUCK:
        life.world.disks[device].stray = STRAY_NONE
        (<Tenant>life.tenant_pointers[i]).stray.state = ASTRAY
        life.astray += 1
        note_damage(life)
    elif not is_open(<Tenant>life.tenant_pointers[i]):   # nothing more is written there; and its place may soon be another one's
        call_back(<Tenant>life.tenant_pointers[i])


cdef void call_back(Tenant tenant) noexcept nogil:
    tenant.life.world.disks[tenant.stray.device].stray = STRAY_NONE
    tenant.stray.state = HOME
    tenant.judge.doubtful_from = NEVER


cdef bint is_open(Tenant tenant) noexcept nogil:
    """Whether recovery would have to find by the headers what the segment has that a write was to. The journal knows of its footer, or not: the log
    may think that it is sealed."""
    cdef Segment* segment = tenant.segments.find(tenant.stray.segment)
    return segment is not NULL and segment.replica is not NULL and not (segment.replica.state == SEGMENT_SEALED and segment.replica.footer_block)


cdef void miss_stray(Tenant tenant) noexcept nogil:
    notice_strays(tenant.life)
    if tenant.volume is not None and tenant.volume.walk.unreadable:
        tenant.stray.lost = True
    if tenant.stray.state == TO_STRAY:
        call_back(tenant)
    elif tenant.stray.state == ASTRAY and is_open(tenant):
        tenant.stray.state = MISSED
    elif tenant.stray.state == ASTRAY:                   # its footer, or the journal, says what was written
        leave_stray(tenant)
        tenant.judge.doubtful_from = NEVER


cdef void leave_stray(Tenant tenant) noexcept nogil:
    if tenant.stray.state == TO_STRAY:
        call_back(tenant)
    if tenant.stray.state == HOME:
        return
    tenant.stray.state = HOME
    if tenant.stray.lost or is_left(tenant, tenant.segments.find(tenant.stray.segment)):
        tenant.stray.left += 1
    else:
        tenant.life.damages -= 1
        tenant.life.note(b"of what went astray from block %lld of segment %lld nothing is left", tenant.stray.block, tenant.stray.segment, 0)


cdef void forget_strays(Tenant tenant) noexcept nogil:
    tenant.life.damages -= tenant.stray.left
    tenant.stray.left = 0


cdef bint is_left(Tenant tenant, const Segment* segment) noexcept nogil:
    """Whether the segment has a place for what went astray: it is sealed, and not at that place."""
    cdef uint32_t footer
    if segment is NULL or segment.replica is NULL:
        return False
    footer = segment.replica.footer_block
    if footer == 0:
        return tenant.stray.block < segment.replica.blocks
    return footer > tenant.stray.block or (footer == tenant.stray.block and not footer_valid(      # itself it was that went astray
        <const Footer*>tenant.audit.content(segment.replica, footer), tenant.record.id, segment.number, footer, segment.replica.blocks))


cdef bint refusal_is_due(Tenant tenant) noexcept nogil:
    return tenant.stray.state != MISSED or tenant.life.damages != 1 or checkpoint_follows(tenant) or is_called_stable(tenant)


cdef bint checkpoint_follows(Tenant tenant) noexcept nogil:
    """Whether the checkpoint that counts was written behind the write that went astray."""
    cdef Pointer checkpoint = tenant.record.checkpoint
    return checkpoint.flags & POINTER_PRESENT and (
        checkpoint.segment > tenant.stray.segment or (checkpoint.segment == tenant.stray.segment and checkpoint.block > tenant.stray.block))


cdef bint is_called_stable(Tenant tenant) noexcept nogil:
    """Whether anything on the devices says so of the record that went astray."""
    cdef uint32_t bucket
    cdef int i
    for i in range(tenant.life.store_count):
        for bucket in range((<Store>tenant.life.store_pointers[i]).directory.bucket_count):
            if bucket_calls_stable(tenant, (<Store>tenant.life.store_pointers[i]).directory.buckets[bucket]):
                return True
    return False


cdef bint bucket_calls_stable(Tenant tenant, const Replica* replica) noexcept nogil:
    while replica is not NULL:
        if memcmp(replica.volume, tenant.record.id, 16) == 0 and replica.live == 0 and replica_calls_stable(tenant, replica):
            return True
        replica = replica.next
    return False


cdef bint replica_calls_stable(Tenant tenant, const Replica* replica) noexcept nogil:
    cdef const RecordHeader* header
    cdef const Footer* footer
    cdef uint32_t block
    for block in range(replica.blocks):
        header = <const RecordHeader*>tenant.audit.content(replica, block)
        footer = <const Footer*>header
        if header.epoch == replica.epoch and record_valid(header, replica.volume, replica.segment, block, replica.blocks):
            if header.stable >= tenant.stray.sequence:
                return True
        elif block == replica.footer_block and footer_valid(footer, replica.volume, replica.segment, block, replica.blocks):
            if footer.stable >= tenant.stray.sequence:
                return True
    return False


cdef void note_damage(Life life) noexcept nogil:
    life.damages += 1
    life.ledger.clock += 1
    life.damaged_at = life.ledger.clock
