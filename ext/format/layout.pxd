# Every structure on a device, defined once. docs/formats.md describes each byte by byte; tests hold the two against each other.
#
# All numbers are little-endian. A structure that stands alone begins with {magic, crc, version}: `crc` is the CRC32C of everything
# behind it up to the end of its block(s). What is reserved is written as zero and ignored when read; what would change the meaning of
# the rest raises `version`, or sets a bit of a `flags` or `features` field: readers refuse bits that they do not know. Reading validates
# before it trusts: the *_valid functions say whether one may look further.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    BLOCK_BYTES = 4096
    SLAB_BYTES_MAX = 256 * 1024      # of a large device; a small one's segments are smaller, and its slabs with them (store/store.pyx)
    SLAB_BYTES_MIN = 16 * 1024
    SLAB_BLOCKS_MAX = SLAB_BYTES_MAX // BLOCK_BYTES
    SEGMENT_BYTES_MAX = 64 * 1024 * 1024
    SEGMENT_BYTES_MIN = 1024 * 1024
    FORMAT_VERSION = 1
    CRC_START = 12                   # magic and the crc itself are not under the crc
    RECORD_ENTRIES_MAX = 248         # what a header block has room for; a record has at most as many payload blocks
    EXTENTS_MAX = 32                 # of one segment replica
    NODE_POINTERS = 256              # of a map node
    MAP_LEVELS = 5                   # leaves (level 0) cover 1 MiB, level 4, the root, 4 PiB
    DEVICE_BYTES_MIN = 64 * 1024 * 1024    # less would be journal and reserve, and hardly a segment
    TABLE_BLOCKS_MAX = 192 * NODE_POINTERS     # of a checkpoint's segment table: what its index has room for
    SNAPSHOTS_MAX = 16 * NODE_POINTERS         # entries of a volume's snapshot table: what its one index block has room for
    BITMAP_COPIES = 2                # of a compacted replica's bitmap: losing it loses the whole segment, and there is a place at either end

cdef enum:                           # bits of Superblock.features
    FEATURE_COMPACTED = 1            # the directory has had compacted replicas: a program that takes them for others would read the wrong blocks
    FEATURE_FENCED = 2               # the directory has had fences: a program that does not know them would take a lower epoch's writes
    FEATURES_KNOWN = FEATURE_COMPACTED | FEATURE_FENCED
    CHECKPOINT_FEATURES_KNOWN = 0    # bits of Checkpoint.features

cdef enum:
    SUPERBLOCK_OFFSET = 0            # of the first superblock, in bytes
    CLAIM_OFFSET = 64 * 1024
    PROBE_OFFSET = 68 * 1024         # random bytes: written through one name of a device and looked for through another
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
    uint64_t generation              # the higher one of two valid twins counts
    uint64_t device_bytes
    uint64_t journal_offset          # bytes; four areas of journal_bytes: half 0, half 1, and the mirror of each
    uint64_t journal_bytes
    uint64_t slabs_offset            # bytes
    uint32_t slabs                   # how many
    uint32_t slab_bytes
    uint64_t created_ns              # Unix time
    uint64_t features                # bits a reader must know to open the device; unknown ones are refused
    uint8_t tier
    uint8_t reserved[3]
    uint32_t number                  # of the device in its cluster, given once and never again; 0: none yet
    char label[64]                   # UTF-8, ended by zero
    uint8_t padding[3912]

cdef packed struct Claim:            # 4096 bytes: the process that has the device open; zeros when none has
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t device[16]               # as in the superblock
    uint8_t boot[16]                 # the kernel's boot_id
    uint64_t process_namespace       # inode of the process's PID namespace
    uint64_t process_started         # clock ticks after boot: a later process with the same number has another
    uint32_t process
    uint32_t reserved_word
    char node[64]                    # name, UTF-8, ended by zero
    char path[2048]                  # that the process opened, absolute, ended by zero
    uint8_t padding[1912]

cdef packed struct Extent:
    uint32_t first                   # slab number
    uint32_t count                   # slabs, at least 1

cdef enum:                           # journal blocks
    JOURNAL_SNAPSHOT = 1             # part of the directory as it was when this half began
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
    uint16_t bytes                   # of entries that follow
    uint8_t reserved[16]
    uint8_t entries[4032]

cdef enum:                           # journal entries
    ENTRY_PUT = 1                    # a segment replica as it is from now on
    ENTRY_DELETE = 2                 # it is gone
    ENTRY_FENCE = 3                  # `epoch` is the lowest that `volume` may write with here; 0: there is no fence any more

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
    uint32_t blocks                  # length: of an open one what it may grow to, of a sealed one what counts, its footer included
    uint32_t footer_block            # 0: it has none
    uint16_t stream
    uint16_t bitmap_blocks           # BITMAP_COPIES: it is compacted, see Bitmap; 0: it is not, and the next two are 0
    uint32_t bitmap_crc              # the bitmap's `crc`
    uint32_t live                    # blocks that a compacted replica still has
    uint32_t fragment                # the run of the log, written to one replica set, that the segment belongs to; 0: not replicated
    uint64_t boot                    # of the node when the replica was opened: after another boot it may lack what was not flushed

cdef packed struct Bitmap:           # 4096 bytes: which blocks of a compacted replica there are. Its first block, and again behind the live ones
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint32_t segment
    uint32_t blocks                  # of the segment: its length
    uint32_t live                    # how many bits are 1
    uint32_t reserved_word
    uint8_t reserved[16]
    uint64_t words[256]              # a bit per block, 1: it lives. The bits from `blocks` on are 0
    uint16_t before[256]             # of each word: how many bits are 1 in the words before it
    uint8_t padding[1472]

cdef packed struct Pointer:          # 16 bytes; all zero: nothing there
    uint32_t segment
    uint32_t block
    uint32_t crc                     # of the 4096 bytes it points to
    uint32_t flags                   # POINTER_*

cdef enum:
    POINTER_PRESENT = 1

cdef enum:                           # kinds of what is logged
    KIND_DATA = 1                    # position: block number; one payload block
    KIND_ZERO = 2                    # position: first block number, count: blocks, all under one leaf; no payload
    KIND_MAP = 3                     # position: level << 56 | index of the node in its level; one payload block
    KIND_TABLE = 4                   # position: number of the table block or, with the flag, of the index block; one payload block
    KIND_SNAPSHOT = 5                # position: number of the block of the snapshot table or, with the flag, 0 of its index block; one payload block
    KIND_CHECKPOINT = 6              # one payload block: a Checkpoint
    KIND_RECORD = 7                  # in footers only: a record begins. position: its sequence, crc: its header's, count: its entries

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
    uint32_t block                   # where in the segment this header stands
    uint64_t sequence
    uint64_t stable                  # every record up to this one was acknowledged and on stable media when this was written
    uint32_t previous_crc            # of the header before this in the segment; 0 in the first
    uint16_t entry_count
    uint16_t payload_blocks
    uint16_t stream
    uint16_t flags                   # none is known
    uint32_t reserved_word
    uint64_t time_ns                 # log time: later than that of every earlier record
    int64_t clock_ns                 # the wall clock showed so much more, by what was known
    uint8_t reserved[32]
    Entry entries[248]

cdef enum:
    FOOTER_ENTRIES = 256             # of one block of a footer's table
    FOOTER_BLOCKS_MAX = 130          # with its table: of the largest segment, a record's entry and its own for every block

cdef packed struct Footer:           # 4096 bytes, then table_blocks blocks of entries
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint64_t epoch
    uint32_t segment
    uint32_t block                   # where in the segment this footer stands
    uint64_t first_sequence          # 0 when it holds no record
    uint64_t last_sequence
    uint64_t stable                  # as in the last record's header
    uint32_t last_crc                # of the last record's header
    uint32_t entry_count             # in the table: for each record a KIND_RECORD, then its entries
    uint32_t table_blocks
    uint32_t table_crc               # of all the table's blocks
    uint16_t stream
    uint8_t brief                    # 1: of a compacted replica. The table has what that keeps, no records; an entry's count is its block
    uint8_t reserved[4005]

cdef struct Listed:                  # how far a footer's table was read; begins with zeros
    uint32_t at                      # the next entry
    uint32_t next_block
    uint32_t block                   # of the segment, that the last entry stands for

cdef packed struct Checkpoint:       # 4096 bytes
    uint64_t magic
    uint32_t crc
    uint32_t version
    uint8_t volume[16]
    uint64_t epoch
    uint64_t sequence                # the map is as it was after this record; replay begins behind it
    uint64_t size_bytes              # of the volume
    Pointer root                     # the map's, of level MAP_LEVELS - 1
    Pointer snapshots                # the index block of the snapshot table; absent: there is no snapshot
    uint32_t next_segment            # no segment with this number or a higher one existed
    uint32_t table_entries
    uint32_t table_blocks
    uint32_t index_count             # index blocks of NODE_POINTERS pointers to table blocks
    uint8_t lineage_volume[16]       # of a clone: the volume ...
    uint8_t lineage_snapshot[16]     # ... and its snapshot that the first map was; zero: it is none
    uint32_t branch                  # segments with lower numbers are the parent's; 0: it is no clone
    uint8_t lineage_reserved[28]
    uint8_t head_parent[16]          # the snapshot that the map grew from; zero: none
    uint64_t pin_data                # its cuts: what dies in the map and lies below is the snapshot's (see address_of)
    uint64_t pin_nodes
    uint32_t snapshot_entries        # in the snapshot table
    uint32_t counted                 # 1: the three that follow are known; 0: it was written before there were any
    uint64_t mapped                  # blocks that the map holds
    uint64_t inherited               # of them, those that lie below `branch`
    uint64_t exclusive               # of them, those that the map of `head_parent` does not hold, nor the clone's parent; see SNAPSHOT_FOLLOWED
    uint64_t features                # bits that a reader must know to open the volume; unknown ones are refused
    char name[136]                   # of the volume, UTF-8, ended by zero; like the rest of the policy only for people and for repair
    uint32_t segment_bytes           # the most that a new segment has
    uint32_t window_seconds          # of the restore window; 0: none
    uint8_t replicas                 # how many the volume is to have
    uint8_t write_replicas           # how many must be there for a write
    uint8_t reserved[638]
    Pointer index[192]

cdef packed struct TableEntry:       # 64 bytes
    uint32_t segment
    uint32_t blocks
    uint32_t live                    # blocks that the map, or a node of it, points to
    uint16_t stream
    uint8_t state
    uint8_t replicas                 # how many follow
    uint64_t first_sequence
    uint64_t last_sequence
    uint64_t epoch
    uint32_t devices[4]              # the cluster's numbers of the devices that hold a replica; 0: it has no number
    uint32_t fragment                # as in JournalEntry
    uint32_t key_generation          # of the key that its blocks are encrypted with; 0: they are not

cdef enum:                           # SnapshotEntry.flags
    SNAPSHOT_HIDDEN = 1              # its user deleted it: it goes as soon as fewer than two histories go on from it and no clone does
    SNAPSHOT_DYING = 2               # what was its alone is being found and given back
    SNAPSHOT_MARK = 4                # made by the restore window
    SNAPSHOT_CLONE = 8               # no snapshot: `id` is a volume that is a clone of the snapshot `parent`, and all else is zero
    SNAPSHOT_FOLLOWED = 16           # while it is DYING: something goes on from it, its heir, whose `own` (the head's `exclusive`) has its own, too
    SNAPSHOT_UNSETTLED = 32          # a mark from which the volume is being taken to a moment behind it: `before` is what it goes back to if that fails
    SNAPSHOT_FLAGS = 63

cdef packed struct SnapshotEntry:    # 256 bytes
    uint8_t id[16]
    uint8_t parent[16]               # the snapshot that its map grew from; zero: none
    uint64_t sequence                # the map is as it was after this record
    uint64_t time_ns                 # log time: later than that of every record up to `sequence`, and than of no other
    uint64_t size_bytes              # of the volume then
    Pointer root                     # of its map
    uint64_t data_cut                # address of the log's end at `sequence`: every data block of it lies below
    uint64_t node_cut                # likewise when its map had been written: every node of it lies below
    uint32_t flags                   # SNAPSHOT_*
    uint32_t reserved_word
    Pointer successor                # while it is DYING: the root of the map that grew from it; absent: none did
    char name[64]                    # UTF-8, ended by zero; unique among those that are not HIDDEN
    uint64_t mapped                  # blocks that its map holds
    uint64_t inherited               # of them, those that lie below the checkpoint's `branch`
    uint64_t own                     # of them, those that the map of `parent` does not hold, nor the clone's parent
    uint8_t heir[16]                 # while it is FOLLOWED: the snapshot that goes on from it; zero: the head does
    uint8_t before[16]               # of one that is UNSETTLED: the snapshot of what the volume was until then; else zero
    int64_t clock_ns                 # time_ns + clock_ns is Unix time by the wall clock
    uint64_t until_ns                # of a MARK: `clock_ns` of the mark before it was right until this log time ...
    uint64_t since_ns                # ... and its own since this one; 0: there was no step in between

cdef enum:
    TABLE_ENTRIES = 64               # of one table block
    TABLE_INDEX = 1                  # Entry.flags: the payload is an index block
    SNAPSHOT_ENTRIES = 16            # of one block of the snapshot table

cdef struct Fault:                   # why a structure is not valid
    const char* words                # NULL: it is
    int32_t entry                    # the number of the entry it lies in; -1: in none
    bint newer                       # it is whole, of this place, and written by a newer program: not damage, and not the end of a log

# `device`, `volume`: NULL when it may be any.
cdef Fault superblock_fault(const Superblock*) noexcept nogil
cdef Fault claim_fault(const Claim*) noexcept nogil
cdef Fault journal_block_fault(const JournalBlock*, const uint8_t* device, uint32_t slab_blocks) noexcept nogil
cdef Fault record_fault(const RecordHeader*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks) noexcept nogil
cdef Fault footer_fault(const Footer*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks) noexcept nogil
cdef Fault footer_table_fault(const Footer*, const Entry* table) noexcept nogil     # of a valid footer's table_blocks blocks of entries
# The next entry of a valid footer's valid table that has a block, which `read.block` tells then; a KIND_RECORD stands for its header. NULL: none.
cdef const Entry* next_listed(const Footer*, const Entry* table, Listed* read) noexcept nogil
cdef Fault checkpoint_fault(const Checkpoint*, const uint8_t* volume) noexcept nogil
cdef Fault bitmap_fault(const Bitmap*, const uint8_t* volume, uint32_t segment) noexcept nogil
cdef Fault snapshot_fault(const SnapshotEntry*, const Checkpoint* checkpoint) noexcept nogil       # of an entry in this checkpoint's table
cdef Fault table_fault(const TableEntry*, const Checkpoint* checkpoint) noexcept nogil             # likewise, of one that is used
cdef bint node_valid(const Pointer* node) noexcept nogil                            # of NODE_POINTERS pointers, whose checksum matches

cdef bint superblock_valid(const Superblock*) noexcept nogil
cdef bint journal_block_valid(const JournalBlock*, const uint8_t* device, uint32_t slab_blocks) noexcept nogil
cdef bint record_valid(const RecordHeader*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks) noexcept nogil
cdef bint footer_valid(const Footer*, const uint8_t* volume, uint32_t segment, uint32_t block, uint32_t segment_blocks) noexcept nogil
cdef bint footer_table_valid(const Footer*, const Entry* table) noexcept nogil
cdef bint checkpoint_valid(const Checkpoint*, const uint8_t* volume) noexcept nogil
cdef bint bitmap_valid(const Bitmap*, const uint8_t* volume, uint32_t segment) noexcept nogil
cdef uint32_t block_crc(const void* block) noexcept nogil     # of a structure's bytes behind its crc

# Where in the log a block lies, as one number: one that is higher was appended later.
cdef inline uint64_t address_of(Pointer pointer) noexcept nogil:
    return <uint64_t>pointer.segment << 32 | pointer.block
