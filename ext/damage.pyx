# Damage that no device tells of, in a life in the simulated world: blocks that are not any more what they were, and writes that never arrived.
#
# Always true:
#   - of a sealed segment any block may be damaged. Its checksum says so, and a read fails that needs it;
#   - of the segment that the log is written to, one write may be lost, or arrive a little behind its place. As long as the process lives nothing
#     else is different. If it dies before the segment is sealed, recovery finds that write's record missing: it refuses the volume, if a later
#     header says that the record was stable, or the log ends there (docs/decisions/0005). So from such a write on nothing is promised (`doubtful_from`), but
#     that what is there is a prefix of what was acknowledged; and nobody takes what arrived elsewhere for a record.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.disk cimport STRAY_NONE, STRAY_STRUCK, STRAY_WAITING, Disk, disk_mark_damaged
from iomesh.engine.judge cimport BLOCK_SECTORS, SECTOR_BYTES
from iomesh.engine.layout cimport BLOCK_BYTES, SEGMENT_SEALED
from iomesh.engine.segments cimport Segment
from iomesh.engine.store cimport replica_offset
from iomesh.engine.tails cimport Tail

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
    if tail is NULL or tenant.judge.doubtful_from != NEVER:
        return
    disk = &life.world.disks[tail.segment.replica.device]
    disk.stray_from = replica_offset(tail.segment.replica, tail.next_block, &contiguous)
    if contiguous == 0:
        return
    disk.stray_to = disk.stray_from + life.draw(BESIDE_BLOCKS) * BLOCK_BYTES
    disk.stray_limit = disk.stray_from + contiguous * BLOCK_BYTES
    disk.stray = STRAY_WAITING
    life.ledger.clock += 1
    tenant.judge.doubtful_from = life.ledger.clock
    tenant.doubtful_segment = tail.segment.number
    life.note(b"the next write goes astray: to block %lld of segment %lld, by %lld bytes", tail.next_block, tail.segment.number,
              disk.stray_to - disk.stray_from)


cdef void notice_stray(Life life) noexcept nogil:
    cdef int i
    for i in range(life.store_count):
        if life.world.disks[i].stray == STRAY_STRUCK:
            life.world.disks[i].stray = STRAY_NONE
            life.astray += 1
            note_damage(life)


cdef void doubt_stray(Tenant tenant) noexcept nogil:
    cdef Segment* segment = NULL
    cdef int i
    notice_stray(tenant.life)
    if tenant.judge.doubtful_from != NEVER and tenant.segments is not None:
        segment = tenant.segments.find(tenant.doubtful_segment)
    if segment is NULL or segment.replica is NULL or (segment.replica.state == SEGMENT_SEALED and segment.replica.footer_block):
        tenant.judge.doubtful_from = NEVER               # its footer says what was written, and the journal that there is one
    for i in range(tenant.life.store_count):
        if tenant.life.world.disks[i].stray == STRAY_WAITING:
            tenant.judge.doubtful_from = NEVER           # nothing was written since
            tenant.life.world.disks[i].stray = STRAY_NONE


cdef void note_damage(Life life) noexcept nogil:
    life.damages += 1
    life.ledger.clock += 1
    life.damaged_at = life.ledger.clock
