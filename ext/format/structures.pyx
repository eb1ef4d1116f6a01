# Decodes every structure on a device for Python: for `iomesh inspect`, tests and fuzzers. The engine does not use it.
#
# A reader takes the bytes of its block(s) and returns the fields by their names in format/layout.pxd, without reserved
# ones. It adds "valid" and "fault", the result of the validators that the engine uses. Kinds, states and tiers are the
# stored numbers. A reader returns the fields of invalid structures as well, and never reads beyond the bytes it was
# given.

from libc.stdint cimport uint32_t

from iomesh.engine.base.checksum cimport crc32c as crc32c_of
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, CLAIM_MAGIC, FORMAT_VERSION, INDEX_BLOCKS_MAX, KIND_MAP, KIND_ZERO, NODE_POINTERS, POINTER_PRESENT,
    RECORD_ENTRIES_MAX, SEGMENT_BLOCKS_MAX, SLAB_BYTES_MAX, SNAPSHOT_ENTRIES, TABLE_ENTRIES, Bitmap, Checkpoint,
    Claim, Entry, Extent, Fault, Footer, JournalBlock, JournalEntry, Pointer, RecordHeader, SnapshotEntry, Superblock,
    TableEntry, bitmap_fault, block_crc, checkpoint_fault, claim_fault, footer_fault, footer_table_fault,
    journal_block_fault, record_fault, superblock_fault
)

cdef frozenset HIDDEN = frozenset(["magic", "padding", "words", "before"])
cdef frozenset SIGNED = frozenset(["clock_ns"])


def crc32c(data: bytes) -> int:
    """CRC32C, the checksum of everything that iomesh stores."""
    return crc32c_of(<const char*>data, len(data))


def read_superblock(data: bytes) -> dict:
    cdef const Superblock* it = <const Superblock*>block_of(data, "superblock")
    fields = shown("Superblock", data, superblock_fault(it))
    fields["label"] = fields["label"].split(b"\0")[0].decode("utf-8", "replace")
    return fields


def read_claim(data: bytes) -> dict:
    cdef const Claim* it = <const Claim*>block_of(data, "claim")
    fields = shown("Claim", data, claim_fault(it))
    for name in ("node", "path"):
        fields[name] = fields[name].split(b"\0")[0].decode("utf-8", "surrogateescape")
    return fields


def make_claim(
    *, device: bytes, boot: bytes, process_namespace: int, process_started: int, process: int, node: str, path: str
) -> bytes:
    """Return the block. Raises ValueError when a value does not fit."""
    cdef bytearray data = bytearray(BLOCK_BYTES)
    cdef Claim* it = <Claim*><char*>data
    fields = {name: (offset, size) for name, offset, size in STRUCTURES["Claim"]}
    texts = {"node": node.encode("utf-8", "surrogateescape"), "path": path.encode("utf-8", "surrogateescape")}
    for name, value in {"device": device, "boot": boot, **texts}.items():
        offset, size = fields[name]
        if len(value) > size - (name in texts):
            raise ValueError(f"{name} has {len(value)} bytes, more than a claim has room for")
        data[offset:offset + len(value)] = value
    it.magic = CLAIM_MAGIC
    it.version = FORMAT_VERSION
    it.process_namespace = process_namespace
    it.process_started = process_started
    it.process = process
    it.crc = block_crc(it)
    return bytes(data)


def read_journal_block(data: bytes, slab_bytes: int = SLAB_BYTES_MAX) -> dict:
    """slab_bytes: from the superblock. "entries": up to the first that cannot be decoded."""
    cdef const JournalBlock* it = <const JournalBlock*>block_of(data, "journal block")
    cdef uint32_t at = 0
    cdef uint32_t start, offset = <uint32_t>(<const char*>it.entries - <const char*>it)
    fields = shown("JournalBlock", data, journal_block_fault(it, NULL, slab_bytes // BLOCK_BYTES))
    fields["entries"] = entries = []
    while at + sizeof(JournalEntry) <= min(it.bytes, sizeof(it.entries)):
        start = at
        at += sizeof(JournalEntry) + (<const JournalEntry*>(it.entries + at)).extent_count * sizeof(Extent)
        if at > sizeof(it.entries):
            break
        entries.append(journal_entry(data[offset + start:offset + at]))
    return fields


cdef dict journal_entry(bytes data):
    """data: the entry and its extents."""
    cdef const JournalEntry* it = <const JournalEntry*><const char*>data
    cdef const Extent* extents = <const Extent*>(it + 1)
    fields = fields_of("JournalEntry", data)
    fields["extents"] = [(extents[i].first, extents[i].count) for i in range(it.extent_count)]
    return fields


def read_bitmap(data: bytes) -> dict:
    """"live_blocks": the numbers of the live blocks."""
    cdef const Bitmap* it = <const Bitmap*>block_of(data, "bitmap")
    fields = shown("Bitmap", data, bitmap_fault(it, NULL, it.segment))
    fields["live_blocks"] = [block for block in range(SEGMENT_BLOCKS_MAX) if it.words[block // 64] >> (block % 64) & 1]
    return fields


def read_record(data: bytes) -> dict:
    """data: the header block."""
    cdef const RecordHeader* it = <const RecordHeader*>block_of(data, "record header")
    fields = shown("RecordHeader", data, record_fault(it, NULL, it.segment, it.block, SEGMENT_BLOCKS_MAX))
    fields["entries"] = [logged(&it.entries[i]) for i in range(min(it.entry_count, RECORD_ENTRIES_MAX))]
    return fields


def read_footer(data: bytes) -> dict:
    """data: the footer's block, alone or with the blocks of its table; "entries" is None without them. Each entry has
    its "block" in the segment; a trim has the block of the next entry."""
    cdef const Footer* it = <const Footer*>block_of(data, "footer", more=True)
    cdef const Entry* table = <const Entry*>(it + 1)
    cdef Fault fault = footer_fault(it, NULL, it.segment, it.block, SEGMENT_BLOCKS_MAX)
    cdef bint whole = len(data) > BLOCK_BYTES or it.table_blocks == 0
    if fault.words is NULL and whole:
        if len(data) < (1 + it.table_blocks) * BLOCK_BYTES:
            raise ValueError(
                f"a footer with a table of {it.table_blocks} blocks is {(1 + it.table_blocks) * BLOCK_BYTES} bytes, "
                f"not {len(data)}"
            )
        fault = footer_table_fault(it, table)
    fields = shown("Footer", data, fault)
    fields["entries"] = None
    if whole:
        fields["entries"] = [
            logged(&table[i]) for i in range(min(it.entry_count, (len(data) - BLOCK_BYTES) // sizeof(Entry)))
        ]
        block = 0
        for entry in fields["entries"]:
            if it.brief:                                 # the count is the block number
                block, entry["count"] = entry["count"], 1
            entry["block"] = block
            block += entry["kind"] != KIND_ZERO
    return fields


cdef dict logged(const Entry* it):
    """One entry of a record or a footer."""
    fields = {"kind": it.kind, "position": it.position, "count": it.count, "crc": it.crc, "flags": it.flags}
    if it.kind == KIND_MAP:
        fields["level"] = it.position >> 56
        fields["index"] = it.position & 0xFFFFFFFFFFFFFF
    return fields


def read_checkpoint(data: bytes) -> dict:
    cdef const Checkpoint* it = <const Checkpoint*>block_of(data, "checkpoint")
    fields = shown("Checkpoint", data, checkpoint_fault(it, NULL))
    fields["root"] = pointer(it.root)
    fields["snapshots"] = pointer(it.snapshots)
    fields["name"] = fields["name"].split(b"\0")[0].decode("utf-8", "replace")
    fields["index"] = [pointer(it.index[i]) for i in range(min(it.index_count, INDEX_BLOCKS_MAX))]
    return fields


def read_node(data: bytes) -> list:
    """data: a map node, or an index block of a segment table. Pointers are (segment, block, crc); None: absent."""
    cdef const Pointer* it = <const Pointer*>block_of(data, "map node")
    return [pointer(it[i]) for i in range(NODE_POINTERS)]


cdef pointer(Pointer it):
    return (it.segment, it.block, it.crc) if it.flags & POINTER_PRESENT else None


def read_table(data: bytes) -> list:
    """data: a block of a segment table. Returns the entries that name a segment."""
    cdef const TableEntry* it = <const TableEntry*>block_of(data, "table block")
    entries = []
    for i in range(TABLE_ENTRIES):
        if it[i].state:
            fields = fields_of("TableEntry", data[i * sizeof(TableEntry):])
            fields["devices"] = [it[i].devices[k] for k in range(min(it[i].replicas, 4))]
            entries.append(fields)
    return entries


def read_snapshots(data: bytes) -> list:
    """data: a block of a snapshot table. Returns the used entries."""
    cdef const SnapshotEntry* it = <const SnapshotEntry*>block_of(data, "block of a snapshot table")
    entries = []
    for i in range(SNAPSHOT_ENTRIES):
        if any(data[i * sizeof(SnapshotEntry):(i + 1) * sizeof(SnapshotEntry)]):
            fields = fields_of("SnapshotEntry", data[i * sizeof(SnapshotEntry):(i + 1) * sizeof(SnapshotEntry)])
            fields["root"] = pointer(it[i].root)
            fields["successor"] = pointer(it[i].successor)
            fields["name"] = fields["name"].split(b"\0")[0].decode("utf-8", "replace")
            entries.append(fields)
    return entries


cdef const char* block_of(bytes data, str name, bint more=False) except NULL:
    if len(data) < BLOCK_BYTES or len(data) % BLOCK_BYTES or (len(data) > BLOCK_BYTES and not more):
        raise ValueError(f"a {name} is {BLOCK_BYTES} bytes{' and more whole blocks' if more else ''}, not {len(data)}")
    return data


cdef dict shown(str structure, bytes data, Fault fault):
    """The fields of a stand-alone structure."""
    fields = fields_of(structure, data)
    fields["valid"] = fault.words is NULL
    fields["fault"] = None
    if fault.words is not NULL:
        fields["fault"] = fault.words.decode() if fault.entry < 0 else f"entry {fault.entry}: {fault.words.decode()}"
    return fields


cdef dict fields_of(str structure, bytes data):
    """Fields of up to 8 bytes are numbers; longer ones are bytes."""
    return {
        name: (
            int.from_bytes(data[offset:offset + size], "little", signed=name in SIGNED)
            if size <= 8
            else data[offset:offset + size]
        )
        for name, offset, size in STRUCTURES[structure]
        if name not in HIDDEN and "reserved" not in name
    }


# ---------------------------------------------------------------------- offsets of the fields

cdef char[BLOCK_BYTES] ANYWHERE                          # never read or written: only gives the fields an address


cdef size_t place(const void* field):
    return <const char*>field - ANYWHERE


def structures() -> dict:
    """Each structure's fields as (name, offset, bytes); a test compares docs/formats.md with them."""
    return {
        "Superblock": superblock_fields(),
        "Claim": claim_fields(),
        "JournalBlock": journal_block_fields(),
        "JournalEntry": journal_entry_fields(),
        "Extent": extent_fields(),
        "Bitmap": bitmap_fields(),
        "RecordHeader": record_fields(),
        "Entry": entry_fields(),
        "Footer": footer_fields(),
        "Checkpoint": checkpoint_fields(),
        "Pointer": pointer_fields(),
        "TableEntry": table_entry_fields(),
        "SnapshotEntry": snapshot_fields(),
    }


cdef list superblock_fields():
    cdef Superblock* it = <Superblock*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("cluster", place(&it.cluster), sizeof(it.cluster)),
        ("device", place(&it.device), sizeof(it.device)),
        ("generation", place(&it.generation), sizeof(it.generation)),
        ("device_bytes", place(&it.device_bytes), sizeof(it.device_bytes)),
        ("journal_offset", place(&it.journal_offset), sizeof(it.journal_offset)),
        ("journal_bytes", place(&it.journal_bytes), sizeof(it.journal_bytes)),
        ("slabs_offset", place(&it.slabs_offset), sizeof(it.slabs_offset)),
        ("slabs", place(&it.slabs), sizeof(it.slabs)),
        ("slab_bytes", place(&it.slab_bytes), sizeof(it.slab_bytes)),
        ("created_ns", place(&it.created_ns), sizeof(it.created_ns)),
        ("features", place(&it.features), sizeof(it.features)),
        ("tier", place(&it.tier), sizeof(it.tier)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
        ("number", place(&it.number), sizeof(it.number)),
        ("label", place(&it.label), sizeof(it.label)),
        ("flush_failures", place(&it.flush_failures), sizeof(it.flush_failures)),
        ("padding", place(&it.padding), sizeof(it.padding)),
    ]


cdef list claim_fields():
    cdef Claim* it = <Claim*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("device", place(&it.device), sizeof(it.device)),
        ("boot", place(&it.boot), sizeof(it.boot)),
        ("process_namespace", place(&it.process_namespace), sizeof(it.process_namespace)),
        ("process_started", place(&it.process_started), sizeof(it.process_started)),
        ("process", place(&it.process), sizeof(it.process)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("node", place(&it.node), sizeof(it.node)),
        ("path", place(&it.path), sizeof(it.path)),
        ("padding", place(&it.padding), sizeof(it.padding)),
    ]


cdef list extent_fields():
    cdef Extent* it = <Extent*>ANYWHERE
    return [
        ("first", place(&it.first), sizeof(it.first)),
        ("count", place(&it.count), sizeof(it.count)),
    ]


cdef list journal_block_fields():
    cdef JournalBlock* it = <JournalBlock*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("device", place(&it.device), sizeof(it.device)),
        ("generation", place(&it.generation), sizeof(it.generation)),
        ("index", place(&it.index), sizeof(it.index)),
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("bytes", place(&it.bytes), sizeof(it.bytes)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
        ("entries", place(&it.entries), sizeof(it.entries)),
    ]


cdef list journal_entry_fields():
    cdef JournalEntry* it = <JournalEntry*>ANYWHERE
    return [
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("state", place(&it.state), sizeof(it.state)),
        ("extent_count", place(&it.extent_count), sizeof(it.extent_count)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("blocks", place(&it.blocks), sizeof(it.blocks)),
        ("footer_block", place(&it.footer_block), sizeof(it.footer_block)),
        ("stream", place(&it.stream), sizeof(it.stream)),
        ("bitmap_blocks", place(&it.bitmap_blocks), sizeof(it.bitmap_blocks)),
        ("bitmap_crc", place(&it.bitmap_crc), sizeof(it.bitmap_crc)),
        ("live", place(&it.live), sizeof(it.live)),
        ("fragment", place(&it.fragment), sizeof(it.fragment)),
        ("boot", place(&it.boot), sizeof(it.boot)),
    ]


cdef list bitmap_fields():
    cdef Bitmap* it = <Bitmap*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("blocks", place(&it.blocks), sizeof(it.blocks)),
        ("live", place(&it.live), sizeof(it.live)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
        ("words", place(&it.words), sizeof(it.words)),
        ("before", place(&it.before), sizeof(it.before)),
        ("padding", place(&it.padding), sizeof(it.padding)),
    ]


cdef list pointer_fields():
    cdef Pointer* it = <Pointer*>ANYWHERE
    return [
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("block", place(&it.block), sizeof(it.block)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("flags", place(&it.flags), sizeof(it.flags)),
    ]


cdef list entry_fields():
    cdef Entry* it = <Entry*>ANYWHERE
    return [
        ("position", place(&it.position), sizeof(it.position)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("count", place(&it.count), sizeof(it.count)),
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("flags", place(&it.flags), sizeof(it.flags)),
    ]


cdef list record_fields():
    cdef RecordHeader* it = <RecordHeader*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("block", place(&it.block), sizeof(it.block)),
        ("sequence", place(&it.sequence), sizeof(it.sequence)),
        ("stable", place(&it.stable), sizeof(it.stable)),
        ("previous_crc", place(&it.previous_crc), sizeof(it.previous_crc)),
        ("entry_count", place(&it.entry_count), sizeof(it.entry_count)),
        ("payload_blocks", place(&it.payload_blocks), sizeof(it.payload_blocks)),
        ("stream", place(&it.stream), sizeof(it.stream)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("time_ns", place(&it.time_ns), sizeof(it.time_ns)),
        ("clock_ns", place(&it.clock_ns), sizeof(it.clock_ns)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
        ("entries", place(&it.entries), sizeof(it.entries)),
    ]


cdef list footer_fields():
    cdef Footer* it = <Footer*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("block", place(&it.block), sizeof(it.block)),
        ("first_sequence", place(&it.first_sequence), sizeof(it.first_sequence)),
        ("last_sequence", place(&it.last_sequence), sizeof(it.last_sequence)),
        ("stable", place(&it.stable), sizeof(it.stable)),
        ("last_crc", place(&it.last_crc), sizeof(it.last_crc)),
        ("entry_count", place(&it.entry_count), sizeof(it.entry_count)),
        ("table_blocks", place(&it.table_blocks), sizeof(it.table_blocks)),
        ("table_crc", place(&it.table_crc), sizeof(it.table_crc)),
        ("stream", place(&it.stream), sizeof(it.stream)),
        ("brief", place(&it.brief), sizeof(it.brief)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
    ]


cdef list checkpoint_fields():
    cdef Checkpoint* it = <Checkpoint*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("sequence", place(&it.sequence), sizeof(it.sequence)),
        ("size_bytes", place(&it.size_bytes), sizeof(it.size_bytes)),
        ("root", place(&it.root), sizeof(it.root)),
        ("snapshots", place(&it.snapshots), sizeof(it.snapshots)),
        ("next_segment", place(&it.next_segment), sizeof(it.next_segment)),
        ("table_entries", place(&it.table_entries), sizeof(it.table_entries)),
        ("table_blocks", place(&it.table_blocks), sizeof(it.table_blocks)),
        ("index_count", place(&it.index_count), sizeof(it.index_count)),
        ("lineage_volume", place(&it.lineage_volume), sizeof(it.lineage_volume)),
        ("lineage_snapshot", place(&it.lineage_snapshot), sizeof(it.lineage_snapshot)),
        ("branch", place(&it.branch), sizeof(it.branch)),
        ("lineage_reserved", place(&it.lineage_reserved), sizeof(it.lineage_reserved)),
        ("head_parent", place(&it.head_parent), sizeof(it.head_parent)),
        ("pin_data", place(&it.pin_data), sizeof(it.pin_data)),
        ("pin_nodes", place(&it.pin_nodes), sizeof(it.pin_nodes)),
        ("snapshot_entries", place(&it.snapshot_entries), sizeof(it.snapshot_entries)),
        ("counted", place(&it.counted), sizeof(it.counted)),
        ("mapped", place(&it.mapped), sizeof(it.mapped)),
        ("inherited", place(&it.inherited), sizeof(it.inherited)),
        ("exclusive", place(&it.exclusive), sizeof(it.exclusive)),
        ("features", place(&it.features), sizeof(it.features)),
        ("name", place(&it.name), sizeof(it.name)),
        ("segment_bytes", place(&it.segment_bytes), sizeof(it.segment_bytes)),
        ("window_seconds", place(&it.window_seconds), sizeof(it.window_seconds)),
        ("replicas", place(&it.replicas), sizeof(it.replicas)),
        ("write_replicas", place(&it.write_replicas), sizeof(it.write_replicas)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
        ("index", place(&it.index), sizeof(it.index)),
    ]


cdef list table_entry_fields():
    cdef TableEntry* it = <TableEntry*>ANYWHERE
    return [
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("blocks", place(&it.blocks), sizeof(it.blocks)),
        ("live", place(&it.live), sizeof(it.live)),
        ("stream", place(&it.stream), sizeof(it.stream)),
        ("state", place(&it.state), sizeof(it.state)),
        ("replicas", place(&it.replicas), sizeof(it.replicas)),
        ("first_sequence", place(&it.first_sequence), sizeof(it.first_sequence)),
        ("last_sequence", place(&it.last_sequence), sizeof(it.last_sequence)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("devices", place(&it.devices), sizeof(it.devices)),
        ("fragment", place(&it.fragment), sizeof(it.fragment)),
        ("key_generation", place(&it.key_generation), sizeof(it.key_generation)),
    ]


cdef list snapshot_fields():
    cdef SnapshotEntry* it = <SnapshotEntry*>ANYWHERE
    return [
        ("id", place(&it.id), sizeof(it.id)),
        ("parent", place(&it.parent), sizeof(it.parent)),
        ("sequence", place(&it.sequence), sizeof(it.sequence)),
        ("time_ns", place(&it.time_ns), sizeof(it.time_ns)),
        ("size_bytes", place(&it.size_bytes), sizeof(it.size_bytes)),
        ("root", place(&it.root), sizeof(it.root)),
        ("data_cut", place(&it.data_cut), sizeof(it.data_cut)),
        ("node_cut", place(&it.node_cut), sizeof(it.node_cut)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("successor", place(&it.successor), sizeof(it.successor)),
        ("name", place(&it.name), sizeof(it.name)),
        ("mapped", place(&it.mapped), sizeof(it.mapped)),
        ("inherited", place(&it.inherited), sizeof(it.inherited)),
        ("own", place(&it.own), sizeof(it.own)),
        ("heir", place(&it.heir), sizeof(it.heir)),
        ("before", place(&it.before), sizeof(it.before)),
        ("clock_ns", place(&it.clock_ns), sizeof(it.clock_ns)),
        ("until_ns", place(&it.until_ns), sizeof(it.until_ns)),
        ("since_ns", place(&it.since_ns), sizeof(it.since_ns)),
    ]


cdef dict STRUCTURES = structures()
