# Every structure on a device, defined once. docs/formats.md describes each byte by byte; tests compare the two.
#
# All numbers are little-endian. A stand-alone structure begins with {magic, crc, version}: `crc` is the CRC32C of
# everything behind it, up to the end of its block(s). Reserved fields are written as zero and ignored when read. A
# change that alters the meaning of other fields raises `version`, or sets a bit of a `flags` or `features` field;
# readers refuse unknown bits. Readers validate a structure with its *_valid or *_fault function before they use it.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    BLOCK_BYTES = 4096
    SLAB_BYTES_MAX = 256 * 1024      # of a large device; a small one has smaller segments and slabs (store/store.pyx)
    SLAB_BYTES_MIN = 16 * 1024
    SLAB_BLOCKS_MAX = SLAB_BYTES_MAX // BLOCK_BYTES
    SEGMENT_BYTES_MAX = 64 * 1024 * 1024
    SEGMENT_BLOCKS_MAX = SEGMENT_BYTES_MAX // BLOCK_BYTES
    INDEX_BLOCKS_MAX = 192               # of a checkpoint
    SEGMENT_BYTES_MIN = 1024 * 1024
    FORMAT_VERSION = 1
    CRC_START = 12                   # the crc does not cover magic and itself
    RECORD_ENTRIES_MAX = 248         # capacity of a header block; also the most payload blocks of a record
    EXTENTS_MAX = 32                 # of one segment replica
    NODE_POINTERS = 256              # of a map node
    MAP_LEVELS = 5                   # leaves (level 0) cover 1 MiB, level 4, the root, 4 PiB
    DEVICE_BYTES_MIN = 64 * 1024 * 1024    # less would leave hardly a segment beside journal and reserve
    TABLE_BLOCKS_MAX = 192 * NODE_POINTERS     # of a checkpoint's segment table: capacity of its index
    SNAPSHOTS_MAX = 16 * NODE_POINTERS         # entries of a volume's snapshot table: capacity of its one index block
    BITMAP_COPIES = 2                # of a compacted replica's bitmap, one at each end: without it the segment is lost

cdef enum:                           # bits of Superblock.features
    FEATURE_COMPACTED = 1            # has had compacted replicas: a program without support would read wrong blocks
    FEATURE_FENCED = 2               # has had fences: a program without support would accept a lower epoch's writes
    FEATURES_KNOWN = FEATURE_COMPACTED | FEATURE_FENCED
    CHECKPOINT_FEATURES_KNOWN = 0    # bits of Checkpoint.features

cdef enum:
    SUPERBLOCK_OFFSET = 0            # of the first superblock, in bytes
    CLAIM_OFFSET = 64 * 1024
    PROBE_OFFSET = 68 * 1024         # random bytes: written through one path of a device, then read through another
    SUPERBLOCK_TWIN_OFFSET = 128 * 1024
    JOURNAL_OFFSET = 256 * 1024

cdef extern from *:
    """
    #define IOMESH_SUPERBLOCK_MAGIC 0x4B4C42534D4F49ull   /* "IOMSBLK\\0" as bytes */
    #define IOMESH_JOURNAL_MAGIC    0x4C4E4A4D4F49ull     /* "IOMJNL" */
    #define IOMESH_RECORD_MAGIC     0x4443524D4F49ull     /* "IOMRCD" */
    #define IOMESH_FOOTER_MAGIC     0x52544F464D4F49ull   /* "IOMFOTR" */
    #define IOMESH_CHECKPOINT_MAGIC 0x54504B434D4F49ull   /* "IOMCKPT" */
    #define IOMESH_BITMAP_MAGIC     0x50414D424D4F49ull   /* "IOMBMAP" */
    #define IOMESH_CLAIM_MAGIC      0x4D4C434D4F49ull     /* "IOMCLM" */
    #define IOMESH_VOLUME_BYTES_MAX (64ull << 40)         /* as many as an int does not hold: no enum */
    """
    const uint64_t VOLUME_BYTES_MAX "IOMESH_VOLUME_BYTES_MAX"
    const uint64_t SUPERBLOCK_MAGIC "IOMESH_SUPERBLOCK_MAGIC"
    const uint64_t JOURNAL_MAGIC "IOMESH_JOURNAL_MAGIC"
    const uint64_t RECORD_MAGIC "IOMESH_RECORD_MAGIC"
    const uint64_t FOOTER_MAGIC "IOMESH_FOOTER_MAGIC"
    const uint64_t CHECKPOINT_MAGIC "IOMESH_CHECKPOINT_MAGIC"
    const uint64_t BITMAP_MAGIC "IOMESH_BITMAP_MAGIC"
    const uint64_t CLAIM_MAGIC "IOMESH_CLAIM_MAGIC"

cdef enum:                           # tiers
    TIER_NVME = 1
    TIER_SSD = 2
    TIER_HDD = 3

cdef packed struct Superblock:       # 4096 bytes, twice on the device
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t cluster[16]
    uint8_t device[16]
    uint64_t generation              # of two valid twins, the one with the higher number is used
    uint64_t device_bytes
    uint64_t journal_offset          # bytes; four areas of journal_bytes: half 0, half 1, and the mirror of each
    uint64_t journal_bytes
    uint64_t slabs_offset            # bytes
    uint32_t slabs                   # how many
    uint32_t slab_bytes
    uint64_t created_ns              # Unix time
    uint64_t features                # a reader must know all set bits to open the device
    uint8_t tier
    uint8_t reserved[3]
    uint32_t number                  # of the device in its cluster, never reused; 0: none yet
    char label[64]                   # UTF-8, ended by zero
    uint64_t flush_failures          # each makes the replicas doubtful that were open
    uint8_t padding[3904]

cdef packed struct Claim:            # 4096 bytes: the process that has the device open; zeros: none
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t device[16]               # as in the superblock
    uint8_t boot[16]                 # the kernel's boot_id
    uint64_t process_namespace       # inode of the process's PID namespace
    uint64_t process_started         # clock ticks after boot: distinguishes processes with the same number
    uint32_t process
    uint32_t reserved_word
    char node[64]                    # name, UTF-8, ended by zero
    char path[2048]                  # absolute path that the process opened, ended by zero
    uint8_t padding[1912]

cdef packed struct Extent:
    uint32_t first                   # slab number
    uint32_t count                   # slabs, at least 1

cdef enum:                           # journal blocks
    JOURNAL_SNAPSHOT = 1             # part of the directory at the start of this half
    JOURNAL_SNAPSHOT_END = 2         # its last part
    JOURNAL_CHANGES = 3

cdef packed struct JournalBlock:     # 4096 bytes
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t device[16]
    uint64_t generation              # counts the changes of half
    uint32_t index                   # of this block in its half
    uint16_t kind
    uint16_t bytes                   # of the entries below
    uint8_t reserved[16]
    uint8_t entries[4032]

cdef enum:                           # journal entries
    ENTRY_PUT = 1                    # a segment replica, new or changed
    ENTRY_DELETE = 2                 # a replica was deleted
    ENTRY_FENCE = 3                  # `epoch` is the lowest that `volume` may write with here; 0: removes the fence

cdef enum:                           # states of a segment replica
    SEGMENT_OPEN = 1
    SEGMENT_SEALED = 2

cdef packed struct JournalEntry:     # 64 bytes, then extent_count extents (8 bytes each)
    uint8_t kind
    uint8_t state
    uint8_t extent_count
    uint8_t flags                    # none is known
    uint32_t segment
    uint8_t volume[16]
    uint64_t epoch
    uint32_t blocks                  # open: most blocks that it may have; sealed: its length with the footer
    uint32_t footer_block            # 0: none
    uint16_t stream
    uint16_t bitmap_blocks           # BITMAP_COPIES: compacted, see Bitmap; 0: not, and the next two are 0
    uint32_t bitmap_crc              # the bitmap's `crc`
    uint32_t live                    # blocks that remain in a compacted replica
    uint32_t fragment                # the part of the log, on one replica set, that has the segment; 0: not replicated
    uint64_t boot                    # of the node when the replica was opened: a reboot may lose unflushed data

# 4096 bytes: live blocks of a compacted replica; its first block, again behind the live ones
cdef packed struct Bitmap:
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks                  # length of the segment
    uint32_t live                    # number of bits that are 1
    uint32_t reserved_word
    uint8_t reserved[16]
    uint64_t words[256]              # a bit per block, 1: live. The bits from `blocks` on are 0
    uint16_t before[256]             # per word: number of bits that are 1 in the words before it
    uint8_t padding[1472]

cdef packed struct Pointer:          # 16 bytes; all zero: absent
    uint32_t segment
    uint32_t block
    uint32_t crc                     # of the 4096 bytes it points to
    uint32_t flags                   # POINTER_*

cdef enum:
    POINTER_PRESENT = 1

cdef enum:                           # kinds of log entries
    KIND_DATA = 1                    # position: block number; one payload block
    KIND_ZERO = 2                    # position: first block number, count: blocks, all under one leaf; no payload
    KIND_MAP = 3                     # position: level << 56 | index of the node in its level; one payload block
    KIND_TABLE = 4                   # position: number of the table block, with TABLE_INDEX of the index block; a block
    KIND_SNAPSHOT = 5                # position: number of the snapshot table block, with TABLE_INDEX 0 (index); a block
    KIND_CHECKPOINT = 6              # one payload block: a Checkpoint
    KIND_RECORD = 7                  # only in footers: a record. position: sequence, crc: its header's, count: entries

cdef packed struct Entry:            # 16 bytes
    uint64_t position
    uint32_t crc                     # of the payload block
    uint16_t count
    uint8_t kind
    uint8_t flags

cdef packed struct RecordHeader:     # 4096 bytes
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint64_t epoch
    uint32_t segment
    uint32_t block                   # of the segment, where this header is
    uint64_t sequence
    uint64_t stable                  # when this was written, every record up to this one was acknowledged and stable
    uint32_t previous_crc            # of the previous header in the segment; 0 in the first
    uint16_t entry_count
    uint16_t payload_blocks
    uint16_t stream
    uint16_t flags                   # none is known
    uint32_t reserved_word
    uint64_t time_ns                 # log time: later than that of every earlier record
    int64_t clock_ns                 # known difference of wall clock and log time
    uint8_t reserved[32]
    Entry entries[248]

cdef enum:
    FOOTER_ENTRIES = 256             # of one block of a footer's table
    FOOTER_BLOCKS_MAX = 130          # with its table: largest segment, two entries per block (its record's and its own)

cdef packed struct Footer:           # 4096 bytes, then table_blocks blocks of entries
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint64_t epoch
    uint32_t segment
    uint32_t block                   # of the segment, where this footer is
    uint64_t first_sequence          # 0: the segment has no record
    uint64_t last_sequence
    uint64_t stable                  # as in the last record's header
    uint32_t last_crc                # of the last record's header
    uint32_t entry_count             # in the table: for each record a KIND_RECORD, then its entries
    uint32_t table_blocks
    uint32_t table_crc               # of all blocks of the table
    uint16_t stream
    uint8_t brief                    # 1: of a compacted replica. Only the remaining blocks, no records; count: block
    uint8_t reserved[4005]

cdef struct Listed:                  # position in a footer's table; starts with zeros
    uint32_t at                      # the next entry
    uint32_t next_block
    uint32_t block                   # block in the segment of the last entry

cdef packed struct Checkpoint:       # 4096 bytes
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint64_t epoch
    uint64_t sequence                # of the last record that the map includes; replay starts behind it
    uint64_t size_bytes              # of the volume
    Pointer root                     # of the map, level MAP_LEVELS - 1
    Pointer snapshots                # index block of the snapshot table; absent: no snapshot
    uint32_t next_segment            # no segment with this number or a higher one existed
    uint32_t table_entries
    uint32_t table_blocks
    uint32_t index_count             # index blocks of NODE_POINTERS pointers to table blocks
    uint8_t lineage_volume[16]       # of a clone: its parent volume ...
    uint8_t lineage_snapshot[16]     # ... and the snapshot that was its first map; zero: not a clone
    uint32_t branch                  # segments with lower numbers are the parent's; 0: not a clone
    uint8_t lineage_reserved[28]
    uint8_t head_parent[16]          # the snapshot that the map is based on; zero: none
    uint64_t pin_data                # its cuts: dead blocks below them belong to the snapshot (see address_of)
    uint64_t pin_nodes
    uint32_t snapshot_entries        # in the snapshot table
    uint32_t counted                 # 1: the next three fields are valid; 0: written by a version without them
    uint64_t mapped                  # blocks in the map
    uint64_t inherited               # of these, blocks below `branch`
    uint64_t exclusive               # of these, not in the map of `head_parent` or clone parent; see SNAPSHOT_FOLLOWED
    uint64_t features                # a reader must know all set bits to open the volume
    char name[136]                   # of the volume, UTF-8, zero-ended; like the next fields only for people and repair
    uint32_t segment_bytes           # limit of a new segment
    uint32_t window_seconds          # of the restore window; 0: none
    uint8_t replicas                 # configured number of replicas
    uint8_t write_replicas           # required for a write
    uint8_t reserved[638]
    Pointer index[192]

cdef packed struct TableEntry:       # 64 bytes
    uint32_t segment
    uint32_t blocks
    uint32_t live                    # blocks that the map or one of its nodes points to
    uint16_t stream
    uint8_t state
    uint8_t replicas                 # number of used `devices`
    uint64_t first_sequence
    uint64_t last_sequence
    uint64_t epoch
    uint32_t devices[4]              # numbers in the cluster of the devices that have a replica; 0: no number
    uint32_t fragment                # as in JournalEntry
    uint32_t key_generation          # of the encryption key of its blocks; 0: not encrypted

cdef enum:                           # SnapshotEntry.flags
    SNAPSHOT_HIDDEN = 1              # deleted by its user; removed once no clone and at most one history is based on it
    SNAPSHOT_DYING = 2               # its exclusive blocks are being freed
    SNAPSHOT_MARK = 4                # restore point, created by the restore window
    SNAPSHOT_CLONE = 8               # not a snapshot: `id` is a volume cloned from snapshot `parent`; all else is zero
    SNAPSHOT_FOLLOWED = 16           # while DYING: it has an heir, whose `own` (the head: `exclusive`) includes its own
    SNAPSHOT_UNSETTLED = 32          # restore point of a volume being rolled forward; failure restores `before`
    SNAPSHOT_FLAGS = 63

cdef packed struct SnapshotEntry:    # 256 bytes
    uint8_t id[16]
    uint8_t parent[16]               # the snapshot that its map is based on; zero: none
    uint64_t sequence                # of the last record that the map includes
    uint64_t time_ns                 # log time: later than every record up to `sequence`, earlier than every other
    uint64_t size_bytes              # of the volume at that time
    Pointer root                     # of its map
    uint64_t data_cut                # end of the log at `sequence`: all its data blocks are below
    uint64_t node_cut                # end of the log after its map was written: all its nodes are below
    uint32_t flags                   # SNAPSHOT_*
    uint32_t reserved_word
    Pointer successor                # while DYING: root of the map that is based on it; absent: none
    char name[64]                    # UTF-8, ended by zero; unique among snapshots that are not HIDDEN
    uint64_t mapped                  # blocks in its map
    uint64_t inherited               # of these, blocks below the checkpoint's `branch`
    uint64_t own                     # of these, blocks that neither the map of `parent` nor the clone's parent has
    uint8_t heir[16]                 # while FOLLOWED: the snapshot based on it; zero: the head
    uint8_t before[16]               # while UNSETTLED: the snapshot of the previous content; otherwise zero
    int64_t clock_ns                 # time_ns + clock_ns is Unix time by the wall clock
    uint64_t until_ns                # of a MARK: `clock_ns` of the previous mark is valid until this log time ...
    uint64_t since_ns                # ... and its own from this one on; 0: no clock step in between

cdef enum:
    TABLE_ENTRIES = 64               # of one table block
    TABLE_INDEX = 1                  # Entry.flags: the payload is an index block
    SNAPSHOT_ENTRIES = 16            # of one block of the snapshot table

cdef struct Fault:                   # why a structure is not valid
    const char* words                # NULL: it is valid
    int32_t entry                    # number of the faulty entry; -1: none
    bint newer                       # intact, of this place, by a newer program: neither damage nor the end of a log

# `device`, `volume`: NULL accepts any.
cdef Fault superblock_fault(const Superblock*) noexcept nogil
cdef Fault claim_fault(const Claim*) noexcept nogil
cdef Fault journal_block_fault(const JournalBlock*, const uint8_t* device, uint32_t slab_blocks) noexcept nogil
cdef Fault record_fault(
    const RecordHeader*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks
) noexcept nogil
cdef Fault footer_fault(
    const Footer*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks
) noexcept nogil
cdef Fault footer_table_fault(const Footer*, const Entry* table) noexcept nogil     # of a valid footer
# The next entry with a block in a valid footer's valid table; sets `read.block`. A KIND_RECORD's block is the record's
# header. NULL: no more.
cdef const Entry* next_listed(const Footer*, const Entry* table, Listed* read) noexcept nogil
cdef Fault checkpoint_fault(const Checkpoint*, const uint8_t* volume) noexcept nogil
cdef Fault bitmap_fault(const Bitmap*, const uint8_t* volume, uint32_t segment) noexcept nogil
cdef Fault snapshot_fault(const SnapshotEntry*, const Checkpoint* checkpoint) noexcept nogil       # an entry
cdef Fault table_fault(const TableEntry*, const Checkpoint* checkpoint) noexcept nogil             # a used entry
cdef bint node_valid(const Pointer* node) noexcept nogil                            # its checksum matches

cdef bint superblock_valid(const Superblock*) noexcept nogil
cdef bint journal_block_valid(const JournalBlock*, const uint8_t* device, uint32_t slab_blocks) noexcept nogil
cdef bint record_valid(
    const RecordHeader*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks
) noexcept nogil
cdef bint footer_valid(
    const Footer*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks
) noexcept nogil
cdef bint footer_table_valid(const Footer*, const Entry* table) noexcept nogil
cdef bint checkpoint_valid(const Checkpoint*, const uint8_t* volume) noexcept nogil
cdef bint bitmap_valid(const Bitmap*, const uint8_t* volume, uint32_t segment) noexcept nogil
cdef uint32_t block_crc(const void* block) noexcept nogil     # over a structure's bytes behind its crc

# Position of a block in the log as one number; later blocks have higher numbers.
cdef inline uint64_t address_of(Pointer pointer) noexcept nogil:
    return <uint64_t>pointer.segment << 32 | pointer.block
