# Whether a structure read from a device may be trusted.
#
# Always true of what passes a *_fault function:
#   - its checksum matches, so nothing in it is damaged, and it was written for this device, volume, segment and block;
#   - every count lies within the structure, every block number within the segment, every position within a volume: code
#     that walks it afterwards needs no check of its own;
#   - kinds and states are known: a later version that adds one raises `version` or sets a bit of `features`.
# The reader of a pointer checks the block that it points to against the pointer's checksum.
#
# Order of the checks: not an iomesh structure (magic), damaged (checksum), another version, not the expected one,
# impossible values. The checksum is at the same place in every version, so that "newer" and "damaged" can be
# distinguished.
#
# Format: docs/formats.md, all of it. The sizes are checked here at compile time, the offsets by a test.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from iomesh.engine.base.checksum cimport crc32c as crc32c_of

cdef extern from *:
    r"""
    #define SIZE_IS(bytes, expected) \
        _Static_assert((bytes) == (expected), "a structure on the device has changed its size")
    #define OFFSET_IS(structure, field, expected) \
        _Static_assert(__builtin_offsetof(__typeof__(*(structure)), field) == (expected), \
                       "a field on the device has changed its place")
    """
    void size_is "SIZE_IS"(size_t bytes, size_t expected) noexcept nogil
    void superblock_has "OFFSET_IS"(Superblock*, int field, size_t expected) noexcept nogil
    void journal_block_has "OFFSET_IS"(JournalBlock*, int field, size_t expected) noexcept nogil
    void record_has "OFFSET_IS"(RecordHeader*, int field, size_t expected) noexcept nogil
    void footer_has "OFFSET_IS"(Footer*, int field, size_t expected) noexcept nogil
    void checkpoint_has "OFFSET_IS"(Checkpoint*, int field, size_t expected) noexcept nogil
    void bitmap_has "OFFSET_IS"(Bitmap*, int field, size_t expected) noexcept nogil
    int VERSION "version", ENTRIES "entries", INDEX "index", LABEL "label", WORDS "words"       # field names
    int bits_of "__builtin_popcountll"(uint64_t word) noexcept nogil

cdef enum:
    VOLUME_BLOCKS_MAX = VOLUME_BYTES_MAX // BLOCK_BYTES


cdef void layout_holds() noexcept nogil:
    """Compiled, never called."""
    cdef Superblock* superblock = NULL
    cdef JournalBlock* journal_block = NULL
    cdef RecordHeader* record = NULL
    cdef Footer* footer = NULL
    cdef Checkpoint* checkpoint = NULL
    cdef Bitmap* bitmap = NULL
    size_is(sizeof(Superblock), BLOCK_BYTES)
    size_is(sizeof(JournalBlock), BLOCK_BYTES)
    size_is(sizeof(RecordHeader), BLOCK_BYTES)
    size_is(sizeof(Footer), BLOCK_BYTES)
    size_is(sizeof(Checkpoint), BLOCK_BYTES)
    size_is(sizeof(Bitmap), BLOCK_BYTES)
    size_is(sizeof(Claim), BLOCK_BYTES)
    size_is(sizeof(bitmap.words) * 8, SEGMENT_BLOCKS_MAX)
    size_is(sizeof(Extent), 8)
    size_is(sizeof(JournalEntry), 64)
    size_is(sizeof(Pointer), 16)
    size_is(sizeof(Entry), 16)
    size_is(sizeof(TableEntry), 64)
    size_is(sizeof(TableEntry) * TABLE_ENTRIES, BLOCK_BYTES)
    size_is(sizeof(SnapshotEntry) * SNAPSHOT_ENTRIES, BLOCK_BYTES)
    size_is(sizeof(Pointer) * NODE_POINTERS, BLOCK_BYTES)
    superblock_has(superblock, VERSION, CRC_START)
    superblock_has(superblock, LABEL, 120)
    journal_block_has(journal_block, VERSION, CRC_START)
    journal_block_has(journal_block, ENTRIES, 64)
    record_has(record, VERSION, CRC_START)
    record_has(record, ENTRIES, BLOCK_BYTES - RECORD_ENTRIES_MAX * sizeof(Entry))
    footer_has(footer, VERSION, CRC_START)
    checkpoint_has(checkpoint, VERSION, CRC_START)
    checkpoint_has(checkpoint, INDEX, BLOCK_BYTES - INDEX_BLOCKS_MAX * sizeof(Pointer))
    bitmap_has(bitmap, VERSION, CRC_START)
    bitmap_has(bitmap, WORDS, 64)


cdef uint32_t block_crc(const void* block) noexcept nogil:
    return crc32c_of(<const char*>block + CRC_START, BLOCK_BYTES - CRC_START)


cdef inline Fault fault(const char* words, int32_t entry=-1) noexcept nogil:
    cdef Fault it
    it.words = words
    it.entry = entry
    it.newer = False
    return it


cdef inline Fault newer_fault(const char* words) noexcept nogil:
    cdef Fault it = fault(words)
    it.newer = True
    return it


cdef Fault frame_and_place_fault(
    const void* block, uint64_t magic, const char* elsewhere, uint16_t flags
) noexcept nogil:
    """The fault of a structure in a segment. elsewhere: the reason why it does not belong to this place, or NULL. A
    newer version keeps magic, checksum, version and place at their offsets, so an intact structure of this place is not
    taken for damage."""
    cdef const Footer* it = <const Footer*>block
    if it.magic != magic:
        return fault(b"its magic is not that of this structure")
    if it.crc != block_crc(block):
        return fault(b"its checksum does not match")
    if elsewhere is not NULL:
        return fault(elsewhere)
    if it.version > FORMAT_VERSION:
        return newer_fault(b"its format version is newer than this program")
    if it.version != FORMAT_VERSION:
        return fault(b"its format version is not known to this program")
    if flags:
        return newer_fault(b"its flags are not known to this program")
    return fault(NULL)


cdef const char* frame_fault(const void* block, uint64_t magic) noexcept nogil:
    """Check the common start of every stand-alone structure."""
    cdef const Footer* it = <const Footer*>block         # magic, crc and version have the same offsets in all
    if it.magic != magic:
        return b"its magic is not that of this structure"
    if it.crc != block_crc(block):
        return b"its checksum does not match"
    if it.version != FORMAT_VERSION:
        return b"its format version is not known to this program"
    return NULL


cdef Fault superblock_fault(const Superblock* it) noexcept nogil:
    cdef const char* words = frame_fault(it, SUPERBLOCK_MAGIC)
    if words is not NULL:
        return fault(words)
    if it.features & ~<uint64_t>FEATURES_KNOWN:
        return fault(b"it needs features that this program does not have")
    if it.generation == 0:
        return fault(b"its generation is 0")
    if it.device_bytes < DEVICE_BYTES_MIN:
        return fault(b"its device is smaller than any that is formatted")
    if it.journal_offset != JOURNAL_OFFSET:
        return fault(b"its journal does not begin behind the superblocks")
    if it.journal_bytes == 0 or it.journal_bytes % SLAB_BYTES_MAX or it.journal_bytes > it.device_bytes // 8:
        return fault(b"the length of its journal is impossible")
    if it.slabs_offset % BLOCK_BYTES or it.slabs_offset < it.journal_offset + 4 * it.journal_bytes:
        return fault(b"its slabs do not begin behind the journal")
    if not SLAB_BYTES_MIN <= it.slab_bytes <= SLAB_BYTES_MAX or it.slab_bytes & (it.slab_bytes - 1):
        return fault(b"the size of its slabs is no power of two from 16 KiB to 256 KiB")
    if (
        it.slabs == 0
        or it.slabs_offset > it.device_bytes
        or <uint64_t>it.slabs * it.slab_bytes > it.device_bytes - it.slabs_offset
    ):
        return fault(b"its slabs end beyond the device")
    if not TIER_NVME <= it.tier <= TIER_HDD:
        return fault(b"its tier is not known")
    if it.label[63] != 0:
        return fault(b"its label has no end")
    return fault(NULL)


cdef Fault claim_fault(const Claim* it) noexcept nogil:
    cdef const char* words = frame_fault(it, CLAIM_MAGIC)
    if words is not NULL:
        return fault(words)
    if it.process == 0:
        return fault(b"it names no process")
    if it.node[sizeof(it.node) - 1] or it.path[sizeof(it.path) - 1]:
        return fault(b"a text in it has no end")
    return fault(NULL)


cdef Fault journal_block_fault(const JournalBlock* it, const uint8_t* device, uint32_t slab_blocks) noexcept nogil:
    cdef const char* words = NULL
    cdef uint32_t at = 0, bytes
    cdef int32_t number = 0
    cdef Fault found
    if device is not NULL and memcmp(it.device, device, 16) != 0:
        words = b"it is of another device"
    found = frame_and_place_fault(it, JOURNAL_MAGIC, words, 0)
    if found.words is not NULL:
        return found
    if it.generation == 0:
        return fault(b"its generation is 0")
    if not JOURNAL_SNAPSHOT <= it.kind <= JOURNAL_CHANGES:
        return fault(b"its kind is not known")
    if it.bytes > sizeof(it.entries):
        return fault(b"its entries are longer than the block")
    while at < it.bytes:
        if at + sizeof(JournalEntry) <= it.bytes and (<const JournalEntry*>(it.entries + at)).flags:
            found = newer_fault(b"its flags are not known to this program")
            found.entry = number
            return found
        words = journal_entry_fault(<const JournalEntry*>(it.entries + at), it.bytes - at, slab_blocks, &bytes)
        if (
            words is NULL
            and it.kind != JOURNAL_CHANGES
            and (<const JournalEntry*>(it.entries + at)).kind == ENTRY_DELETE
        ):
            words = b"it deletes a segment replica in a snapshot"
        if words is not NULL:
            return fault(words, number)
        at += bytes
        number += 1
    return fault(NULL)


cdef const char* journal_entry_fault(
    const JournalEntry* it, uint32_t room, uint32_t slab_blocks, uint32_t* bytes
) noexcept nogil:
    """bytes: length of the entry."""
    cdef const Extent* extents = <const Extent*>(it + 1)
    cdef uint64_t slabs = 0
    cdef uint32_t i
    if room < sizeof(JournalEntry):
        return b"it is cut off"
    bytes[0] = sizeof(JournalEntry) + it.extent_count * sizeof(Extent)
    if room < bytes[0]:
        return b"its extents are cut off"
    if it.kind == ENTRY_DELETE:
        if it.extent_count:
            return b"it deletes and has extents"
        return NULL
    if it.kind == ENTRY_FENCE:
        if it.extent_count or it.segment or it.state:
            return b"it is a fence and has a segment"
        return NULL
    if it.kind != ENTRY_PUT:
        return b"its kind is not known"
    if it.state != SEGMENT_OPEN and it.state != SEGMENT_SEALED:
        return b"its state is not known"
    if it.extent_count > EXTENTS_MAX:
        return b"it has more than 32 extents"
    for i in range(it.extent_count):
        if extents[i].count == 0:
            return b"one of its extents is empty"
        slabs += extents[i].count
    if slabs > SEGMENT_BLOCKS_MAX // slab_blocks:
        return b"it has more slabs than a segment"
    if it.bitmap_blocks:
        if it.bitmap_blocks != BITMAP_COPIES or it.state != SEGMENT_SEALED:
            return b"it is compacted in a way that this program does not know"
        if it.blocks > SEGMENT_BLOCKS_MAX or it.live == 0 or it.live > it.blocks:
            return b"it is compacted and its count of live blocks is impossible"
        if it.live + BITMAP_COPIES > slabs * slab_blocks:
            return b"it has more live blocks than its slabs hold"
    elif it.bitmap_crc or it.live:
        return b"it is not compacted and has a count of live blocks"
    elif it.blocks > slabs * slab_blocks:
        return b"it has more blocks than its slabs hold"
    if it.state == SEGMENT_OPEN and it.blocks == 0:
        return b"it is open and has no room for a block"
    if it.footer_block and (it.state != SEGMENT_SEALED or it.footer_block >= it.blocks):
        return b"its footer lies beyond its blocks"
    return NULL


cdef Fault record_fault(const RecordHeader* it, const uint8_t* volume, uint32_t segment, uint32_t block,
                        uint32_t segment_blocks) noexcept nogil:
    cdef const char* words
    cdef uint32_t payload = 0
    cdef int32_t i
    cdef Fault found = frame_and_place_fault(
        it, RECORD_MAGIC, place_fault(it.volume, volume, it.segment, segment, it.block, block), it.flags
    )
    if found.words is not NULL:
        return found
    if it.sequence == 0 or it.stable >= it.sequence:
        return fault(b"its sequence is impossible")
    if it.entry_count > RECORD_ENTRIES_MAX:              # 0: only its `stable` matters
        return fault(b"its count of entries is impossible")
    if it.payload_blocks > it.entry_count or <uint64_t>block + 1 + it.payload_blocks > segment_blocks:
        return fault(b"its payload ends beyond the segment")
    for i in range(it.entry_count):
        words = entry_fault(&it.entries[i], &payload)
        if words is not NULL:
            return fault(words, i)
    if payload != it.payload_blocks:
        return fault(b"its count of payload blocks is not that of its entries")
    return fault(NULL)


cdef const char* place_fault(
    const uint8_t* volume,
    const uint8_t* wanted_volume,
    uint32_t segment,
    uint32_t wanted_segment,
    uint32_t block,
    uint32_t wanted_block,
) noexcept nogil:
    if wanted_volume is not NULL and memcmp(volume, wanted_volume, 16) != 0:
        return b"it is of another volume"
    if segment != wanted_segment:
        return b"it is of another segment"
    if block != wanted_block:
        return b"it is of another block of the segment"
    return NULL


cdef const char* entry_fault(const Entry* it, uint32_t* payload) noexcept nogil:
    """payload: counts the entries that have a payload."""
    cdef uint64_t level
    payload[0] += it.kind != KIND_ZERO
    if it.flags & ~<uint8_t>TABLE_INDEX or (it.flags and it.kind != KIND_TABLE and it.kind != KIND_SNAPSHOT):
        return b"its flags are not known"
    if it.kind == KIND_DATA:
        if it.position >= VOLUME_BLOCKS_MAX:
            return b"its block lies beyond any volume"
        return NULL
    if it.kind == KIND_ZERO:
        if it.position >= VOLUME_BLOCKS_MAX:
            return b"its range lies beyond any volume"
        if it.count == 0 or it.position % NODE_POINTERS + it.count > NODE_POINTERS:
            return b"its range is empty or crosses a leaf of the map"
        return NULL
    if it.kind == KIND_MAP:
        level = it.position >> 56
        if level >= MAP_LEVELS:
            return b"its level of the map is impossible"
        if (it.position & (<uint64_t>1 << 56) - 1) > (VOLUME_BLOCKS_MAX - 1) >> (8 * (level + 1)):
            return b"its node lies beyond any volume's map"
        return NULL
    if it.kind == KIND_TABLE:
        if it.position >= <uint64_t>(INDEX_BLOCKS_MAX if it.flags & TABLE_INDEX else TABLE_BLOCKS_MAX):
            return b"its block lies beyond any segment table"
        return NULL
    if it.kind == KIND_SNAPSHOT:
        if it.position >= <uint64_t>(1 if it.flags & TABLE_INDEX else SNAPSHOTS_MAX // SNAPSHOT_ENTRIES):
            return b"its block lies beyond any snapshot table"
        return NULL
    if it.kind == KIND_CHECKPOINT:
        return NULL
    return b"its kind is not known"


cdef Fault footer_fault(const Footer* it, const uint8_t* volume, uint32_t segment, uint32_t block,
                        uint32_t segment_blocks) noexcept nogil:
    cdef Fault found = frame_and_place_fault(
        it, FOOTER_MAGIC, place_fault(it.volume, volume, it.segment, segment, it.block, block), 0
    )
    if found.words is not NULL:
        return found
    if it.brief > 1:
        return fault(b"its form is not known")
    if it.table_blocks != (<uint64_t>it.entry_count + FOOTER_ENTRIES - 1) // FOOTER_ENTRIES:
        return fault(b"its table is not as long as its entries")
    if <uint64_t>block + 1 + it.table_blocks > segment_blocks:
        return fault(b"its table ends beyond the segment")
    if it.entry_count == 0 and not it.brief:
        if it.first_sequence or it.last_sequence or block:
            return fault(b"it holds no record and yet has a sequence or blocks before it")
    elif it.first_sequence == 0 or it.last_sequence < it.first_sequence:
        return fault(b"its sequence is impossible")
    return fault(NULL)


cdef Fault footer_table_fault(const Footer* it, const Entry* table) noexcept nogil:
    cdef uint64_t sequence = 0                           # ascending, with gaps where a volume's streams alternate
    cdef uint32_t i, left = 0, block = 0, payload = 0
    cdef const char* words
    if crc32c_of(table, <size_t>it.table_blocks * BLOCK_BYTES) != it.table_crc:
        return fault(b"the checksum of its table does not match")
    if it.brief:
        return brief_table_fault(it, table)
    for i in range(it.entry_count):
        if left == 0:
            if (
                table[i].kind != KIND_RECORD
                or table[i].position <= sequence
                or (i == 0 and table[i].position != it.first_sequence)
            ):
                return fault(b"it is not the record that comes next", i)
            if table[i].count > RECORD_ENTRIES_MAX or table[i].count >= it.entry_count - i:
                return fault(b"its count of entries is impossible", i)
            left = table[i].count
            sequence = table[i].position
            block += 1
            continue
        words = entry_fault(&table[i], &payload)
        if words is not NULL:
            return fault(words, i)
        left -= 1
    if sequence != it.last_sequence:
        return fault(b"its table does not end with its last record")
    if block + payload != it.block:
        return fault(b"the records of its table do not fill the blocks before it")
    return fault(NULL)


cdef Fault brief_table_fault(const Footer* it, const Entry* table) noexcept nogil:
    cdef uint32_t i, payload = 0
    cdef const char* words
    for i in range(it.entry_count):
        if table[i].kind == KIND_RECORD or table[i].kind == KIND_ZERO:
            return fault(b"it has no block that a compaction keeps", i)
        words = entry_fault(&table[i], &payload)
        if words is not NULL:
            return fault(words, i)
        if table[i].count >= it.block or (i and table[i].count <= table[i - 1].count):
            return fault(b"its block does not lie between the one before it and the footer", i)
    return fault(NULL)


cdef const Entry* next_listed(const Footer* it, const Entry* table, Listed* read) noexcept nogil:
    cdef const Entry* entry
    while read.at < it.entry_count:
        entry = &table[read.at]
        read.at += 1
        if entry.kind == KIND_ZERO:
            continue
        read.block = entry.count if it.brief else read.next_block
        read.next_block += 1
        return entry
    return NULL


cdef Fault checkpoint_fault(const Checkpoint* it, const uint8_t* volume) noexcept nogil:
    cdef const char* words = NULL
    cdef uint32_t i
    cdef Fault found
    if volume is not NULL and memcmp(it.volume, volume, 16) != 0:
        words = b"it is of another volume"
    found = frame_and_place_fault(it, CHECKPOINT_MAGIC, words, 0)
    if found.words is not NULL:
        return found
    if it.features & ~<uint64_t>CHECKPOINT_FEATURES_KNOWN:
        return newer_fault(b"it needs features that this program does not have")
    if it.size_bytes == 0 or it.size_bytes > VOLUME_BYTES_MAX or it.size_bytes % BLOCK_BYTES:
        return fault(b"the size of its volume is impossible")
    if it.root.flags & POINTER_PRESENT and not pointer_within(it.root, it.next_segment):
        return fault(b"the root of its map lies beyond its segments")
    if (
        it.table_blocks > TABLE_BLOCKS_MAX
        or it.table_blocks != (<uint64_t>it.table_entries + TABLE_ENTRIES - 1) // TABLE_ENTRIES
    ):
        return fault(b"its segment table is not as long as its entries")
    if it.index_count != (it.table_blocks + NODE_POINTERS - 1) // NODE_POINTERS:
        return fault(b"its index is not as long as its segment table")
    for i in range(it.index_count):
        if not it.index[i].flags & POINTER_PRESENT or not pointer_within(it.index[i], it.next_segment):
            return fault(b"its index block is missing or lies beyond its segments", i)
    if it.snapshot_entries > SNAPSHOTS_MAX or (it.snapshot_entries > 0) != (it.snapshots.flags & POINTER_PRESENT):
        return fault(b"its count of snapshots is impossible")
    if it.snapshot_entries and not pointer_within(it.snapshots, it.next_segment):
        return fault(b"its snapshot table lies beyond its segments")
    if it.pin_data >> 32 > it.next_segment or it.pin_nodes >> 32 > it.next_segment:
        return fault(b"its snapshots pin what lies beyond its segments")
    if it.branch > it.next_segment:
        return fault(b"it branched off beyond its segments")
    if it.counted > 1:
        return fault(b"it counts blocks in a way that is not known")
    if it.name[135] != 0:
        return fault(b"the name of its volume has no end")
    return counts_fault(it.mapped, it.inherited, it.exclusive, it.root)


cdef Fault snapshot_fault(const SnapshotEntry* it, const Checkpoint* checkpoint) noexcept nogil:
    if it.flags & ~<uint32_t>SNAPSHOT_FLAGS:
        return fault(b"its flags are not known")
    if it.flags & SNAPSHOT_CLONE:
        return fault(NULL)
    if it.name[63] != 0:
        return fault(b"its name has no end")
    if it.flags & SNAPSHOT_UNSETTLED and not it.flags & SNAPSHOT_MARK:
        return fault(b"it is unsettled, and no mark")
    if it.sequence == 0 or it.sequence > checkpoint.sequence:
        return fault(b"it is younger than the checkpoint")
    if it.size_bytes == 0 or it.size_bytes > VOLUME_BYTES_MAX or it.size_bytes % BLOCK_BYTES:
        return fault(b"the size of its volume is impossible")
    if it.data_cut > it.node_cut or it.node_cut >> 32 > checkpoint.next_segment:
        return fault(b"it was cut beyond the checkpoint's segments")
    if it.root.flags & POINTER_PRESENT and address_of(it.root) >= it.node_cut:
        return fault(b"the root of its map lies beyond its cut")
    if it.successor.flags & POINTER_PRESENT and not pointer_within(it.successor, checkpoint.next_segment):
        return fault(b"the map that grew from it lies beyond the checkpoint's segments")
    if it.flags & SNAPSHOT_FOLLOWED and not it.flags & SNAPSHOT_DYING:
        return fault(b"it has an heir and is not dying")
    return counts_fault(it.mapped, it.inherited, it.own, it.root)


cdef Fault table_fault(const TableEntry* it, const Checkpoint* checkpoint) noexcept nogil:
    if it.state != SEGMENT_OPEN and it.state != SEGMENT_SEALED:
        return fault(b"its state is not known")
    if it.replicas == 0 or it.replicas > 4:
        return fault(b"it has no replica, or more than 4")
    if it.segment >= checkpoint.next_segment or it.blocks == 0 or it.blocks > SEGMENT_BLOCKS_MAX or it.live > it.blocks:
        return fault(b"its segment, or how much of it lives, is impossible")
    return fault(NULL)                                   # last_sequence is 0 while no record of it has committed


cdef bint node_valid(const Pointer* node) noexcept nogil:
    cdef uint32_t flags = 0
    cdef int i
    for i in range(NODE_POINTERS):
        flags |= node[i].flags
    return (flags & ~<uint32_t>POINTER_PRESENT) == 0


cdef Fault counts_fault(uint64_t mapped, uint64_t inherited, uint64_t own, Pointer root) noexcept nogil:
    """own: may be too high while a snapshot is dying."""
    if (
        mapped > VOLUME_BYTES_MAX // BLOCK_BYTES
        or inherited > mapped
        or own > VOLUME_BYTES_MAX // BLOCK_BYTES * SNAPSHOTS_MAX
    ):
        return fault(b"its counts of blocks are impossible")
    if mapped and not root.flags & POINTER_PRESENT:
        return fault(b"it counts blocks and has no map")
    return fault(NULL)


cdef Fault bitmap_fault(const Bitmap* it, const uint8_t* volume, uint32_t segment) noexcept nogil:
    cdef const char* words = frame_fault(it, BITMAP_MAGIC)
    cdef uint32_t live = 0
    cdef int i
    if words is NULL:
        words = place_fault(it.volume, volume, it.segment, segment, 0, 0)
    if words is not NULL:
        return fault(words)
    if it.blocks > SEGMENT_BLOCKS_MAX:
        return fault(b"its segment is longer than any")
    for i in range(SEGMENT_BLOCKS_MAX // 64):
        if it.before[i] != live:
            return fault(b"its counts are not those of its bits")
        live += bits_of(it.words[i])
        if (
            it.words[i]
            and i * <uint32_t>64 + 64 > it.blocks
            and (it.blocks <= i * <uint32_t>64 or it.words[i] >> (it.blocks % 64))
        ):
            return fault(b"a block behind the segment's end lives by it")
    if live != it.live or live == 0:
        return fault(b"its count of live blocks is not that of its bits")
    return fault(NULL)


cdef bint pointer_within(Pointer pointer, uint32_t next_segment) noexcept nogil:
    return pointer.flags == POINTER_PRESENT and pointer.segment < next_segment and pointer.block < SEGMENT_BLOCKS_MAX


cdef bint superblock_valid(const Superblock* it) noexcept nogil:
    return superblock_fault(it).words is NULL


cdef bint journal_block_valid(const JournalBlock* it, const uint8_t* device, uint32_t slab_blocks) noexcept nogil:
    return journal_block_fault(it, device, slab_blocks).words is NULL


cdef bint record_valid(const RecordHeader* it, const uint8_t* volume, uint32_t segment, uint32_t block,
                       uint32_t segment_blocks) noexcept nogil:
    return record_fault(it, volume, segment, block, segment_blocks).words is NULL


cdef bint footer_valid(const Footer* it, const uint8_t* volume, uint32_t segment, uint32_t block,
                       uint32_t segment_blocks) noexcept nogil:
    return footer_fault(it, volume, segment, block, segment_blocks).words is NULL


cdef bint footer_table_valid(const Footer* it, const Entry* table) noexcept nogil:
    return footer_table_fault(it, table).words is NULL


cdef bint checkpoint_valid(const Checkpoint* it, const uint8_t* volume) noexcept nogil:
    return checkpoint_fault(it, volume).words is NULL


cdef bint bitmap_valid(const Bitmap* it, const uint8_t* volume, uint32_t segment) noexcept nogil:
    return bitmap_fault(it, volume, segment).words is NULL
