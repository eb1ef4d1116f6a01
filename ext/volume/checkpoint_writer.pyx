# Writes the parts of a checkpoint other than the map, into the volume's own log:
#
#     list_segments    the segment table with its counters, at one point in time
#     describe         the fields of the checkpoint's block
#     write_snapshots  the snapshot table, then its index block
#     write_segments   the blocks of the segment table, then the index blocks that point to them
#     write_block      the checkpoint's block, which points to the index blocks
#
# Always true: a pointer is written after its target has committed, because only then its address is known. The memory
# that receives addresses (`placed`) stays allocated until all added blocks have committed, also after an error.
#
# Called by volume/checkpoint.pyx. Format: docs/formats.md, "Checkpoint".

from libc.errno cimport ENOMEM, ENOSPC
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, CHECKPOINT_MAGIC, FORMAT_VERSION, KIND_CHECKPOINT, KIND_SNAPSHOT, KIND_TABLE, NODE_POINTERS,
    SNAPSHOT_ENTRIES, TABLE_ENTRIES, TABLE_INDEX, Checkpoint, Pointer, SnapshotEntry, TableEntry, block_crc
)
from iomesh.engine.log.log cimport Log, Part
from iomesh.engine.map.segment_table cimport DATA, NODE, Segment, SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.replicas.member cimport Member


cdef class CheckpointWriter:
    def __cinit__(self, Log log, SegmentTable segments, SnapshotTable snapshots):
        self.log, self.segments, self.snapshots = log, segments, snapshots

    cdef int write(self, uint64_t sequence, Pointer root, Pointer* into) noexcept nogil:
        cdef Draft draft
        cdef int result = self.begin(&draft)
        if result < 0:
            return result
        self.list_segments(&draft)
        self.describe(draft.checkpoint, sequence, root)
        result = self.write_snapshots(draft.checkpoint)
        if result == 0:
            result = self.write_segments(&draft)
        if result == 0:
            result = self.write_block(&draft)
        result = self.wait_committed(result)
        if result == 0:
            self.keep_segments(&draft)
            into[0] = draft.place
        release(draft.checkpoint)
        return result

    cdef int begin(self, Draft* draft) noexcept nogil:
        cdef uint32_t blocks = blocks_for(self.segments.count, TABLE_ENTRIES)
        cdef uint32_t indexes = blocks_for(blocks, NODE_POINTERS)
        cdef char* memory
        if indexes > sizeof(draft.checkpoint.index) // sizeof(Pointer):
            return -ENOSPC                               # over three million segments; cleaned: one million at most
        memory = <char*>calloc(1 + indexes + blocks, BLOCK_BYTES)
        if memory is NULL:
            return -ENOMEM
        draft.checkpoint = <Checkpoint*>memory
        draft.pointers = <Pointer*>(memory + BLOCK_BYTES)
        draft.table = <TableEntry*>(memory + (1 + indexes) * BLOCK_BYTES)
        return 0

    cdef void list_segments(self, Draft* draft) noexcept nogil:
        cdef const Segment* segment = self.segments.first
        cdef TableEntry* entry = draft.table
        cdef uint32_t entries = 0
        while segment is not NULL:                       # one point in time: this loop never waits
            if segment.first_sequence:
                entry = &draft.table[entries]
                entry.segment = segment.number
                entry.blocks = segment.blocks
                entry.live = self.segments.live_at_checkpoint(segment)
                entry.stream = segment.stream
                entry.state = segment.state
                entry.replicas = 1
                entry.devices[0] = (<Member>self.log.open_segments.member_of(segment)).device()
                entry.fragment = segment.replica.fragment
                entry.first_sequence = segment.first_sequence
                entry.last_sequence = segment.last_sequence
                entry.epoch = segment.replica.epoch
                entries += 1
            segment = segment.next
        draft.checkpoint.table_entries = entries
        draft.checkpoint.table_blocks = blocks_for(entries, TABLE_ENTRIES)
        draft.checkpoint.index_count = blocks_for(draft.checkpoint.table_blocks, NODE_POINTERS)

    cdef void describe(self, Checkpoint* checkpoint, uint64_t sequence, Pointer root) noexcept nogil:
        checkpoint.magic = CHECKPOINT_MAGIC
        checkpoint.version = FORMAT_VERSION
        memcpy(checkpoint.volume, self.log.volume, 16)
        checkpoint.epoch = self.log.epoch
        checkpoint.sequence = sequence
        checkpoint.root = root
        memcpy(checkpoint.head_parent, self.snapshots.frozen_parent, 16)
        checkpoint.pin_data = self.segments.wanted_pins[<int>DATA]
        checkpoint.pin_nodes = self.segments.wanted_pins[<int>NODE]
        checkpoint.snapshot_entries = self.snapshots.frozen_count
        checkpoint.counted = 1
        checkpoint.mapped = self.snapshots.frozen_mapped
        checkpoint.inherited = self.snapshots.frozen_inherited
        checkpoint.exclusive = self.snapshots.frozen_exclusive
        self.described = self.changes
        self.describe_volume(checkpoint)

    cdef void describe_volume(self, Checkpoint* checkpoint) noexcept nogil:
        checkpoint.size_bytes = self.size_bytes
        memcpy(checkpoint.lineage_volume, self.lineage_volume, 16)
        memcpy(checkpoint.lineage_snapshot, self.lineage_snapshot, 16)
        checkpoint.branch = self.segments.branch
        memcpy(checkpoint.name, self.description.name, sizeof(self.description.name))
        checkpoint.segment_bytes = self.description.segment_bytes
        checkpoint.window_seconds = self.description.window_seconds
        checkpoint.replicas = self.description.replicas
        checkpoint.write_replicas = self.description.write_replicas

    cdef bint is_described(self, const Checkpoint* checkpoint) noexcept nogil:
        cdef Checkpoint described = checkpoint[0]
        self.describe_volume(&described)
        return memcmp(&described, checkpoint, sizeof(Checkpoint)) == 0

    cdef int write_snapshots(self, Checkpoint* checkpoint) noexcept nogil:
        cdef uint32_t blocks = blocks_for(checkpoint.snapshot_entries, SNAPSHOT_ENTRIES), i
        cdef Pointer* pointers
        cdef SnapshotEntry* table
        cdef int result = 0
        if blocks == 0:
            return 0
        pointers = <Pointer*>calloc(1 + blocks, BLOCK_BYTES)     # the index block; the table follows
        if pointers is NULL:
            return -ENOMEM
        table = <SnapshotEntry*>(pointers + NODE_POINTERS)
        memcpy(table, self.snapshots.frozen, checkpoint.snapshot_entries * sizeof(SnapshotEntry))
        for i in range(blocks):
            if result == 0:
                result = self.add_block(KIND_SNAPSHOT, i, 0, table + i * SNAPSHOT_ENTRIES, &pointers[i])
        result = self.wait_committed(result)
        if result == 0:
            result = self.add_block(KIND_SNAPSHOT, 0, TABLE_INDEX, pointers, &checkpoint.snapshots)
        result = self.wait_committed(result)
        if result == 0:
            for i in range(blocks):
                self.keep_segment(pointers[i], checkpoint.sequence)
            self.keep_segment(checkpoint.snapshots, checkpoint.sequence)
        release(pointers)
        return result

    cdef int write_segments(self, Draft* draft) noexcept nogil:
        cdef Checkpoint* checkpoint = draft.checkpoint
        cdef uint32_t i
        cdef int result = 0
        for i in range(checkpoint.table_blocks):
            if result == 0:
                result = self.add_block(KIND_TABLE, i, 0, draft.table + i * TABLE_ENTRIES, &draft.pointers[i])
        result = self.wait_committed(result)
        for i in range(checkpoint.index_count):
            if result == 0:
                result = self.add_block(
                    KIND_TABLE, i, TABLE_INDEX, draft.pointers + i * NODE_POINTERS, &checkpoint.index[i]
                )
        return self.wait_committed(result)

    cdef int write_block(self, Draft* draft) noexcept nogil:
        draft.checkpoint.next_segment = self.log.open_segments.next_segment   # now: the index may be in a newer segment
        draft.checkpoint.crc = block_crc(draft.checkpoint)
        return self.add_block(KIND_CHECKPOINT, draft.checkpoint.sequence, 0, draft.checkpoint, &draft.place)

    cdef void keep_segments(self, const Draft* draft) noexcept nogil:
        """Segments that contain this checkpoint stay until the next one."""
        cdef const Checkpoint* checkpoint = draft.checkpoint
        cdef uint32_t i
        for i in range(checkpoint.table_blocks):
            self.keep_segment(draft.pointers[i], checkpoint.sequence)
        for i in range(checkpoint.index_count):
            self.keep_segment(checkpoint.index[i], checkpoint.sequence)
        self.keep_segment(draft.place, checkpoint.sequence)

    cdef void keep_segment(self, Pointer block, uint64_t sequence) noexcept nogil:
        self.segments.find(block.segment).table_of = sequence

    cdef int add_block(self, int kind, uint64_t position, int flags, const void* data, Pointer* into) noexcept nogil:
        """into: receives its address when it commits."""
        cdef Part part
        cdef int result = self.log.wait_room()
        if result < 0:
            return result
        memset(&part, 0, sizeof(part))
        part.placed = into
        self.log.add_block(kind, position, flags, data, part)
        return 0

    cdef int wait_committed(self, int result) noexcept nogil:
        """Waits until everything added has committed or failed. Returns the first error: `result`, or the log's."""
        if self.log.wait_committed(self.log.last_appended()) < 0 and result == 0:
            return self.log.error
        return result


cdef inline uint32_t blocks_for(uint32_t entries, uint32_t of_one_block) noexcept nogil:
    return (entries + of_one_block - 1) // of_one_block
