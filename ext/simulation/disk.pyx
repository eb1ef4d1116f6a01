# A device of the simulated world: memory with a volatile write cache in front of it.
#
# Reads return the content of `memory`. A ring (`undo`) keeps the content that a write replaces until the write is
# durable: a flush only moves an index, and a power cut restores from the ring. A full cache destages its oldest
# quarter.
#
# Always true:
#   - a block outside of undo[tail:head] is durable as it is in memory; so is one whose newest entry there is `durable`;
#   - entries for one block are in the order of the writes, each with the content that the previous write left;
#   - a block that was never written is zeros and has no memory yet;
#   - a cached checksum (`sums`) matches the block's content: every change of the block drops it.
#
# A power cut decides for each sector which of its non-durable writes is the last one kept, if any: nothing, all, a
# prefix of the writes torn at its end, any of the writes, or any of the sectors. The result is durable.
#
# Taint is for an oracle: a tainted block may read as data that was never written there, or as older data, by a fault
# that no device reports. A power cut that restores a block restores its taint; a taint that came later stays.

from libc.errno cimport EIO, ENOMEM, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.simulation.prng cimport Prng, below, draw, stirred
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.simulation.faults cimport (
    LOST_WRITE, MISDIRECTED_WRITE, READ_ERROR, ROT, WRITE_ERROR, Injector, record_fault, strikes
)
from iomesh.engine.base.invariant cimport invariant

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE

cdef enum:
    NEAR_BLOCKS = 64                 # a misdirected write to no recent place arrives within this distance
    SPARES = 96                      # memory areas kept for the next devices; each uses six
    SPARE_BYTES_MAX = 64 * 1024 * 1024

cdef struct Spare:
    void* memory                     # NULL: none
    uint64_t bytes
    bint zeros


cdef int disk_make(Disk* disk, int number, uint64_t bytes, bint volatile_cache, uint64_t cache_bytes) noexcept nogil:
    invariant(bytes % DISK_BLOCK_BYTES == 0 and bytes >> 44 == 0, b"a device is whole blocks, and fewer than 2**32")
    memset(disk, 0, sizeof(Disk))
    disk.number = number
    disk.bytes = bytes
    disk.volatile_cache = volatile_cache
    disk.corrupt_to = bytes
    disk.capacity = max(cache_bytes // DISK_BLOCK_BYTES, 4) if volatile_cache else 0
    disk.memory = <char*>lazy(bytes, True)
    disk.touched = <uint64_t*>lazy(bits_bytes(disk), True)
    disk.tainted = <uint64_t*>lazy(bits_bytes(disk), True)
    disk.summed = <uint64_t*>lazy(bits_bytes(disk), True)
    disk.sums = <uint32_t*>lazy(bytes // DISK_BLOCK_BYTES * sizeof(uint32_t), False)
    disk.settled = <uint8_t*>lazy(bytes // DISK_BLOCK_BYTES, True)
    disk.undo = <Undo*>lazy(disk.capacity * sizeof(Undo), False)
    disk.undone = <char*>lazy(disk.capacity * DISK_BLOCK_BYTES, False)
    if (
        disk.memory is NULL
        or disk.touched is NULL
        or disk.tainted is NULL
        or disk.summed is NULL
        or disk.sums is NULL
        or disk.settled is NULL
        or disk.undo is NULL
        or disk.undone is NULL
    ):
        disk_free(disk)
        return -ENOMEM
    return 0


cdef void disk_free(Disk* disk) noexcept nogil:
    cdef uint64_t block
    if disk.bytes == 0:
        return
    if disk.memory is not NULL and disk.touched is not NULL:         # zeros again
        for block in range(disk.bytes // DISK_BLOCK_BYTES):
            if is_set(disk.touched, block):
                memset(disk.memory + block * DISK_BLOCK_BYTES, 0, DISK_BLOCK_BYTES)
        memset(disk.touched, 0, bits_bytes(disk))
    if disk.tainted is not NULL:
        memset(disk.tainted, 0, bits_bytes(disk))
    if disk.summed is not NULL:
        memset(disk.summed, 0, bits_bytes(disk))
    give_up(disk.memory, disk.bytes, True)
    give_up(disk.touched, bits_bytes(disk), True)
    give_up(disk.tainted, bits_bytes(disk), True)
    give_up(disk.summed, bits_bytes(disk), True)
    give_up(disk.sums, disk.bytes // DISK_BLOCK_BYTES * sizeof(uint32_t), False)
    give_up(disk.settled, disk.bytes // DISK_BLOCK_BYTES, True)
    give_up(disk.undo, disk.capacity * sizeof(Undo), False)
    give_up(disk.undone, disk.capacity * DISK_BLOCK_BYTES, False)
    memset(disk, 0, sizeof(Disk))


# ---------------------------------------------------------------------- operations


cdef int64_t disk_read(
    Disk* disk, Injector* injector, int64_t time_ns, char* into, uint32_t bytes, uint64_t offset
) noexcept nogil:
    if not within(disk, offset, bytes):
        return -EIO
    if strikes(injector, READ_ERROR):
        record_fault(injector, READ_ERROR, time_ns, disk.number, offset, bytes)
        return -EIO
    if corruptible(disk, offset, bytes) and strikes(injector, ROT):
        rot(disk, injector, time_ns, bytes, offset)
    memcpy(into, disk.memory + offset, bytes)
    return bytes


cdef int64_t disk_write(
    Disk* disk, Injector* injector, int64_t time_ns, const char* data, uint32_t bytes, uint64_t offset
) noexcept nogil:
    cdef uint64_t elsewhere
    if not within(disk, offset, bytes):
        return -EIO
    if strikes(injector, WRITE_ERROR):
        record_fault(injector, WRITE_ERROR, time_ns, disk.number, offset, bytes)
        if draw(&injector.prng) & 1:
            put_sectors(disk, data, bytes, offset, &injector.prng)
        return -EIO
    if time_ns < disk.full_until_ns and not is_allocated(disk, bytes, offset):
        if draw(&injector.prng) & 1:                     # the blocks before the first that found no space
            put_sectors(disk, data, bytes, offset, &injector.prng)
        return -ENOSPC
    if disk.stray == STRAY_WAITING and offset == disk.stray_from:
        disk.stray = STRAY_STRUCK
        if disk.stray_to != offset and disk.stray_to + bytes <= disk.stray_limit:
            disk_put(disk, data, bytes, disk.stray_to)
        return bytes
    if corruptible(disk, offset, bytes):
        if strikes(injector, LOST_WRITE):
            record_fault(injector, LOST_WRITE, time_ns, disk.number, offset, bytes)
            disk_taint(disk, offset, bytes)
            return bytes
        if strikes(injector, MISDIRECTED_WRITE):
            elsewhere = another_place(disk, &injector.prng, bytes, offset)
            if elsewhere != offset:
                record_fault(injector, MISDIRECTED_WRITE, time_ns, disk.number, elsewhere, bytes).intended = offset
                disk_put(disk, data, bytes, elsewhere)
                disk_taint(disk, elsewhere, bytes)
                disk_taint(disk, offset, bytes)
                return bytes
    disk_put(disk, data, bytes, offset)
    return bytes


cdef int64_t disk_discard(Disk* disk, uint64_t bytes, uint64_t offset) noexcept nogil:
    """Reads return zeros afterwards, as after the kernel's FALLOC_FL_PUNCH_HOLE."""
    cdef uint64_t block, run = 0
    if not within(disk, offset, bytes):
        return -EIO
    for block in range(offset // DISK_BLOCK_BYTES, (offset + bytes) // DISK_BLOCK_BYTES):
        if is_set(disk.touched, block):
            run += 1                     # blocks that were never written are zeros already
            continue
        if run:
            disk_put(disk, NULL, run * DISK_BLOCK_BYTES, (block - run) * DISK_BLOCK_BYTES)
        clear(disk.tainted, block)
        run = 0
    if run:
        disk_put(disk, NULL, run * DISK_BLOCK_BYTES, offset + bytes - run * DISK_BLOCK_BYTES)
    return 0


cdef void disk_flushed(Disk* disk, uint64_t head) noexcept nogil:
    cdef uint64_t position = disk.tail
    cdef Undo* undo
    cdef bint forgets = False
    while position < head:
        undo = &disk.undo[(position - disk.base) % disk.capacity]
        forgets |= undo.forgotten
        undo.durable = not undo.forgotten
        position += 1
    if not forgets:
        disk.tail = max(disk.tail, head)


cdef void disk_forget(Disk* disk, uint64_t head) noexcept nogil:
    cdef uint64_t position = disk.tail
    cdef Undo* undo
    while position < head:
        undo = &disk.undo[(position - disk.base) % disk.capacity]
        undo.forgotten = not undo.durable
        position += 1


cdef void disk_put(Disk* disk, const char* data, uint64_t bytes, uint64_t offset) noexcept nogil:
    cdef uint64_t block = offset // DISK_BLOCK_BYTES, end = (offset + bytes) // DISK_BLOCK_BYTES
    disk.recent[disk.writes % RECENT] = offset
    disk.writes += 1
    while block < end:
        keep(disk, block)
        if data is not NULL:
            memcpy(disk.memory + block * DISK_BLOCK_BYTES, data, DISK_BLOCK_BYTES)
            data += DISK_BLOCK_BYTES
        else:
            memset(disk.memory + block * DISK_BLOCK_BYTES, 0, DISK_BLOCK_BYTES)
        changes(disk, block)
        clear(disk.tainted, block)
        block += 1


cdef void keep(Disk* disk, uint64_t block) noexcept nogil:
    """Saves the state of `block` before a write."""
    cdef Undo* undo
    cdef uint64_t place
    if not disk.volatile_cache:
        return
    if disk.head == disk.tail:
        disk.base = disk.head            # an empty ring restarts where its memory is warm
    elif disk.head - disk.tail == disk.capacity:
        disk.tail += disk.capacity // 4
    place = (disk.head - disk.base) % disk.capacity
    disk.head += 1
    undo = &disk.undo[place]
    undo.block = <uint32_t>block
    undo.write = disk.writes
    undo.forgotten = undo.durable = False
    undo.tainted = is_set(disk.tainted, block)
    undo.zero = not is_set(disk.touched, block)
    if not undo.zero:
        memcpy(disk.undone + place * DISK_BLOCK_BYTES, disk.memory + block * DISK_BLOCK_BYTES, DISK_BLOCK_BYTES)


cdef bint is_allocated(Disk* disk, uint64_t bytes, uint64_t offset) noexcept nogil:
    cdef uint64_t block
    for block in range(offset // DISK_BLOCK_BYTES, (offset + bytes) // DISK_BLOCK_BYTES):
        if not is_set(disk.touched, block):
            return False
    return True


# ---------------------------------------------------------------------- faults


cdef void put_sectors(Disk* disk, const char* data, uint64_t bytes, uint64_t offset, Prng* prng) noexcept nogil:
    """Writes a part of a write: its first sectors, or any."""
    cdef uint64_t sectors = bytes // SECTOR_BYTES, sector, first
    cdef bint any_of_them = draw(prng) & 1
    disk.writes += 1
    first = below(prng, sectors + 1)
    for sector in range(sectors):
        if sector % BLOCK_SECTORS == 0:
            keep(disk, (offset + sector * SECTOR_BYTES) // DISK_BLOCK_BYTES)
            changes(disk, (offset + sector * SECTOR_BYTES) // DISK_BLOCK_BYTES)
        if any_of_them and draw(prng) & 1 or not any_of_them and sector < first:
            memcpy(disk.memory + offset + sector * SECTOR_BYTES, data + sector * SECTOR_BYTES, SECTOR_BYTES)


cdef uint64_t another_place(Disk* disk, Prng* prng, uint32_t bytes, uint64_t offset) noexcept nogil:
    """Where a misdirected write arrives: at a recent write's place, or near its own; else `offset` itself."""
    cdef uint64_t place
    if draw(prng) & 1 and disk.writes:
        place = disk.recent[below(prng, min(disk.writes, RECENT))]
    else:
        place = offset + (1 + below(prng, NEAR_BLOCKS)) * DISK_BLOCK_BYTES
        if draw(prng) & 1:
            place = offset - min(offset, place - offset)
    return place if within(disk, place, bytes) and corruptible(disk, place, bytes) else offset


cdef void rot(Disk* disk, Injector* injector, int64_t time_ns, uint32_t bytes, uint64_t offset) noexcept nogil:
    cdef uint64_t form = below(&injector.prng, 4), at = offset + below(&injector.prng, bytes)
    cdef uint64_t unit = SECTOR_BYTES if form == 2 else DISK_BLOCK_BYTES, i
    changes(disk, at // DISK_BLOCK_BYTES)
    if form < 2:
        unit = 1
        disk.memory[at] ^= <char>(1 << below(&injector.prng, 8))
    else:
        at -= at % unit
        for i in range(unit):
            disk.memory[at + i] = <char>draw(&injector.prng)
    disk_taint(disk, at - at % DISK_BLOCK_BYTES, DISK_BLOCK_BYTES)
    record_fault(injector, ROT, time_ns, disk.number, at, <uint32_t>unit)


cdef void disk_mark_damaged(Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil:
    cdef uint64_t block
    for block in range(offset // DISK_BLOCK_BYTES, (offset + bytes + DISK_BLOCK_BYTES - 1) // DISK_BLOCK_BYTES):
        changes(disk, block)
    disk_taint(disk, offset, bytes)


cdef void disk_taint(Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil:
    cdef uint64_t block
    for block in range(offset // DISK_BLOCK_BYTES, (offset + bytes + DISK_BLOCK_BYTES - 1) // DISK_BLOCK_BYTES):
        set_bit(disk.tainted, block)


cdef bint disk_tainted(Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil:
    cdef uint64_t block
    for block in range(offset // DISK_BLOCK_BYTES, (offset + bytes + DISK_BLOCK_BYTES - 1) // DISK_BLOCK_BYTES):
        if is_set(disk.tainted, block):
            return True
    return False


cdef uint32_t disk_sum(Disk* disk, uint64_t offset) noexcept nogil:
    cdef uint64_t block = offset // DISK_BLOCK_BYTES
    if not is_set(disk.summed, block):
        disk.sums[block] = crc32c(disk.memory + offset, DISK_BLOCK_BYTES)
        set_bit(disk.summed, block)
    return disk.sums[block]


# ---------------------------------------------------------------------- power cuts


cdef void disk_draw_cut(Disk* disk, Cut* cut, Prng* prng, uint64_t under_way_blocks) noexcept nogil:
    cdef uint64_t choice = below(prng, 8)
    cut.keeps = KEEPS_NOTHING if choice == 0 else KEEPS_ALL if choice == 1 else KEEPS_FIRST if choice < 4 else \
        KEEPS_WRITES if choice < 6 else KEEPS_SECTORS
    cut.seed = draw(prng)
    cut.threshold = draw(prng)
    cut.first = disk.tail + below(prng, disk.head - disk.tail + under_way_blocks + 1)
    cut.sectors = <int>below(prng, BLOCK_SECTORS)


cdef bint kept(const Cut* cut, uint64_t position, uint64_t write, int sector) noexcept nogil:
    if cut.keeps == KEEPS_FIRST:
        return position < cut.first or (position == cut.first and sector < cut.sectors)
    if cut.keeps == KEEPS_WRITES:
        return stirred(cut.seed + write * <uint64_t>0x9E3779B97F4A7C15) < cut.threshold
    if cut.keeps == KEEPS_SECTORS:
        return stirred(cut.seed + (position * BLOCK_SECTORS + sector) * <uint64_t>0x9E3779B97F4A7C15) < cut.threshold
    return cut.keeps == KEEPS_ALL


cdef void disk_cut(Disk* disk, const Cut* cut) noexcept nogil:
    """Undoes lost writes, newest first: a sector settles once a write of it is kept; else it gets its old content."""
    cdef uint64_t position = disk.head, place
    cdef Undo* undo
    cdef int sector
    cdef char* memory
    cdef bint restored
    while position > disk.tail:
        position -= 1
        place = (position - disk.base) % disk.capacity
        undo = &disk.undo[place]
        memory = disk.memory + <uint64_t>undo.block * DISK_BLOCK_BYTES
        restored = False
        for sector in range(BLOCK_SECTORS):
            if disk.settled[undo.block] >> sector & 1:
                continue
            if undo.durable or (kept(cut, position, undo.write, sector) and not undo.forgotten):
                disk.settled[undo.block] |= 1 << sector
                continue
            restored = True
            if undo.zero:
                memset(memory + sector * SECTOR_BYTES, 0, SECTOR_BYTES)
            else:
                memcpy(
                    memory + sector * SECTOR_BYTES,
                    disk.undone + place * DISK_BLOCK_BYTES + sector * SECTOR_BYTES,
                    SECTOR_BYTES,
                )
        if restored:
            clear(disk.summed, undo.block)
        if restored and undo.tainted:
            set_bit(disk.tainted, undo.block)
    while disk.tail < disk.head:
        disk.settled[disk.undo[(disk.tail - disk.base) % disk.capacity].block] = 0
        disk.tail += 1


cdef void disk_land(
    Disk* disk, const Cut* cut, uint64_t* position, const char* data, uint32_t bytes, uint64_t offset
) noexcept nogil:
    """Applies a write that was in flight at the power cut; `position`: the next block's, for KEEPS_FIRST."""
    cdef uint64_t block, first = offset // DISK_BLOCK_BYTES
    cdef int sector
    if not within(disk, offset, bytes):
        return
    disk.writes += 1
    for block in range(bytes // DISK_BLOCK_BYTES):
        for sector in range(BLOCK_SECTORS):
            if kept(cut, position[0], disk.writes, sector):
                changes(disk, first + block)
                memcpy(disk.memory + offset + block * DISK_BLOCK_BYTES + sector * SECTOR_BYTES,
                       data + block * DISK_BLOCK_BYTES + sector * SECTOR_BYTES, SECTOR_BYTES)
        position[0] += 1


# ---------------------------------------------------------------------- helpers


cdef inline bint within(const Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil:
    invariant(offset % DISK_BLOCK_BYTES == 0 and bytes % DISK_BLOCK_BYTES == 0, b"devices are asked for whole blocks")
    return bytes <= disk.bytes and offset <= disk.bytes - bytes


cdef inline bint corruptible(const Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil:
    return disk.corrupt_from <= offset and offset + bytes <= disk.corrupt_to


cdef inline bint is_set(const uint64_t* bits, uint64_t at) noexcept nogil:
    return bits[at // 64] >> (at % 64) & 1


cdef inline void set_bit(uint64_t* bits, uint64_t at) noexcept nogil:
    bits[at // 64] |= <uint64_t>1 << (at % 64)


cdef inline void clear(uint64_t* bits, uint64_t at) noexcept nogil:
    if is_set(bits, at):                 # else an empty page of the bitmap would be touched
        bits[at // 64] &= ~(<uint64_t>1 << (at % 64))


cdef inline void changes(Disk* disk, uint64_t block) noexcept nogil:
    set_bit(disk.touched, block)
    clear(disk.summed, block)


cdef inline uint64_t bits_bytes(const Disk* disk) noexcept nogil:
    return (disk.bytes // DISK_BLOCK_BYTES + 63) // 64 * 8


# Memory of deleted devices, reused for new ones: a page fault costs more than writing the block. Worlds are created and
# deleted with the GIL held.
cdef Spare[SPARES] spares


cdef void* lazy(uint64_t bytes, bint zeros) noexcept nogil:
    """Returns memory that is allocated on first touch; NULL: none is left. zeros: else its content is undefined."""
    cdef void* memory
    cdef int i
    for i in range(SPARES):
        if spares[i].memory is not NULL and spares[i].bytes == bytes and spares[i].zeros == zeros:
            memory = spares[i].memory
            spares[i].memory = NULL
            return memory
    memory = mmap(NULL, max(bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory


cdef void give_up(void* memory, uint64_t bytes, bint zeros) noexcept nogil:
    cdef int i
    if memory is NULL:
        return
    for i in range(SPARES if bytes <= SPARE_BYTES_MAX else 0):
        if spares[i].memory is NULL:
            spares[i].memory = memory
            spares[i].bytes = bytes
            spares[i].zeros = zeros
            return
    munmap(memory, max(bytes, 1))
