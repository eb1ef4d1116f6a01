# The on-device log of changes to the directory.
#
# Always true:
#   - every block is written twice, concurrently: to its half and to the half's mirror far from it. A change is durable
#     once both are written and, if the device has a volatile cache, flushed;
#   - the blocks of a half are written in the order of their indexes, each only after the previous one is durable. So if
#     neither copy has a block and a later one of its generation exists, a crash did not tear it: it was damaged, and
#     its content must not be guessed;
#   - a half begins with a snapshot of the whole directory. It becomes valid with the snapshot's last block
#     (SNAPSHOT_END), written after all others are durable. Until then the other half is untouched, so one half is
#     always intact;
#   - a generation is used for one half once: remains of an unfinished snapshot never pass for part of a later one.
#
# Changes requested while a block is being written share the next one (group commit). Any write error stops the journal
# permanently: the device's content is unknown until it is opened again. So does any failed flush of the device.
#
# Called by store on its reactor, in tasks. store/journal_replay.pyx reads it at open. Format: docs/formats.md,
# "Journal".

from libc.errno cimport EIO, ENOMEM, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.store.device_flusher cimport DeviceFlusher
from iomesh.engine.store.directory cimport Directory, EntryBytes, Replica, fence_entry
from iomesh.engine.base.atomics cimport load_uint64
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, Operation, release_buffer
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, FORMAT_VERSION, JOURNAL_CHANGES, JOURNAL_MAGIC, JOURNAL_SNAPSHOT, JOURNAL_SNAPSHOT_END,
    Extent, JournalEntry, Superblock, block_crc)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport start, wait, waited


cdef enum:
    PIECE_BLOCKS = 256               # per write when a half begins: 1 MiB
    LONG_AREAS = 64 << 20            # of a device above a TiB: where its file is sparse, formatting leaves it so
    BLOCK_ROOM = 4032 - 312          # bytes of entries in a full block, at least: the longest entry has 320 bytes


cdef class Journal:
    """home: the reactor it runs on. device: the Io's device number. Raises MemoryError."""

    def __cinit__(self, Reactor home, Directory directory, int device, DeviceFlusher flusher):
        self.home = home
        self.io = home.io
        self.directory = directory
        self.device = device
        self.flusher = flusher
        self.block = <JournalBlock*>allocate_aligned(BLOCK_BYTES)
        if self.block is NULL:
            raise MemoryError("no memory for a block of the journal")

    def __dealloc__(self):
        release_buffer(self.io, self.block)

    cdef int commit(self, Change* change) noexcept nogil:
        if self.failed or self.flusher.failed:
            return -EIO
        change.next = NULL
        if self.last is NULL:
            self.first = change
        else:
            self.last.next = change
        self.last = change
        waited(&change.done)
        if not self.writing:
            self.writing = True
            start(write_changes_task, <void*>self, NULL)
        return wait(&change.done)

    cdef bint has_room(self, uint64_t more_bytes) noexcept nogil:
        # A quarter of the half is kept for changes, so that switching halves stays rare.
        return (load_uint64(self.directory.entry_bytes) + more_bytes) // BLOCK_ROOM + 2 <= self.area_blocks // 4 * 3

    cdef void write_changes(self) noexcept nogil:
        cdef Change* change
        cdef Change* after
        cdef int error = 0
        while self.first is not NULL:
            if error == 0 and self.next_index == self.area_blocks:
                error = self.switch_half()
            if error == 0:
                change = self.fill_block()
                error = self.write_block()
            else:                                        # an abandoned write may still read the block
                change = self.first
                self.first = self.last = NULL
            if error:
                self.failed = -error
            while change is not NULL:
                after = change.next                      # the change is invalid once its task resumes
                if error == 0 and change.instead_of is not NULL:
                    self.directory.replace(change.instead_of, change.replica)
                if change.replica is NULL and error:
                    self.directory.fences_coming -= 1
                elif change.replica is NULL:
                    self.directory.set_fence(change.wanted.entry.volume, change.wanted.entry.epoch)
                elif error == 0:
                    self.directory.apply(change.replica, &change.wanted.entry)
                change.done.result = -EIO if error else 0
                change.done.done(&change.done)
                change = after
        self.writing = False

    cdef Change* fill_block(self) noexcept nogil:
        """Move the queued changes that fit into the block, in order. Returns them as a list."""
        cdef Change* taken = self.first
        cdef Change* newest = NULL
        cdef uint32_t bytes
        begin_block(self.block, self.identity, self.generation, self.next_index, JOURNAL_CHANGES)
        while self.first is not NULL:
            bytes = sizeof(JournalEntry) + self.first.wanted.entry.extent_count * sizeof(Extent)
            if self.block.bytes + bytes > sizeof(self.block.entries):
                break
            memcpy(self.block.entries + self.block.bytes, &self.first.wanted, bytes)
            self.block.bytes += bytes
            newest = self.first
            self.first = newest.next
        newest.next = NULL
        if self.first is NULL:
            self.last = NULL
        return taken

    cdef int write_block(self) noexcept nogil:
        cdef int error
        self.block.crc = block_crc(self.block)
        error = self.write_twice(self.half, self.next_index, self.block, 1)
        self.next_index += 1
        return error if error else self.flush()

    # ------------------------------------------------------------------ the other half

    cdef int switch_half(self) noexcept nogil:
        """Start the other half with a snapshot of the directory and continue there."""
        cdef uint64_t generation = self.highest_generation + 1
        cdef uint32_t blocks = self.build_snapshot(NULL, generation), done = 0, piece
        cdef JournalBlock* snapshot
        cdef int error = 0
        if blocks >= self.area_blocks:
            return -ENOSPC
        snapshot = <JournalBlock*>allocate_aligned(<size_t>blocks * BLOCK_BYTES)
        if snapshot is NULL:
            return -ENOMEM
        self.build_snapshot(snapshot, generation)
        self.highest_generation = generation
        while error == 0 and done < blocks - 1:
            piece = min(blocks - 1 - done, <uint32_t>PIECE_BLOCKS)
            error = self.write_twice(1 - self.half, done, snapshot + done, piece)
            done += piece
        if error == 0 and done:
            error = self.flush()
        if error == 0:
            error = self.write_twice(1 - self.half, done, snapshot + done, 1)
        if error == 0:
            error = self.flush()
        self.home.io.release(snapshot)
        if error == 0:
            self.half = 1 - self.half
            self.generation = generation
            self.next_index = blocks
        return error

    cdef uint32_t build_snapshot(self, JournalBlock* blocks, uint64_t generation) noexcept nogil:
        """Returns the snapshot's length in blocks; with blocks NULL it only counts."""
        cdef EntryBytes entry
        cdef Replica* replica
        cdef SnapshotBuilder builder
        cdef uint32_t i
        builder.blocks, builder.generation = blocks, generation
        builder.used = builder.filled = 0
        if blocks is not NULL:
            begin_block(blocks, self.identity, generation, 0, JOURNAL_SNAPSHOT)
        for i in range(self.directory.fence_count):
            self.add_to_snapshot(
                &builder,
                &entry,
                fence_entry(self.directory.fences[i].volume, self.directory.fences[i].epoch, &entry.entry),
            )
        for i in range(self.directory.bucket_count):
            replica = self.directory.buckets[i]
            while replica is not NULL:
                if replica.state != 0:
                    self.add_to_snapshot(&builder, &entry, self.directory.entry_of(replica, &entry.entry))
                replica = replica.next
        if blocks is not NULL:
            blocks[builder.used].kind = JOURNAL_SNAPSHOT_END
            for i in range(builder.used + 1):
                blocks[i].crc = block_crc(blocks + i)
        return builder.used + 1

    cdef void add_to_snapshot(self, SnapshotBuilder* builder, const EntryBytes* entry, uint32_t bytes) noexcept nogil:
        if builder.filled + bytes > sizeof(builder.blocks.entries):
            builder.used += 1
            builder.filled = 0
            if builder.blocks is not NULL:
                begin_block(
                    builder.blocks + builder.used, self.identity, builder.generation, builder.used, JOURNAL_SNAPSHOT
                )
        if builder.blocks is not NULL:
            memcpy(builder.blocks[builder.used].entries + builder.filled, entry, bytes)
            builder.blocks[builder.used].bytes += bytes
        builder.filled += bytes

    # ------------------------------------------------------------------ the device

    cdef int write_twice(self, uint32_t half, uint32_t index, const void* data, uint32_t blocks) noexcept nogil:
        return write_both(
            self.home.io,
            self.device,
            data,
            blocks * BLOCK_BYTES,
            self.place(0, half, index),
            self.place(1, half, index),
        )

    cdef uint64_t place(self, uint32_t copy, uint32_t half, uint32_t index) noexcept nogil:
        """Device offset of a block. copy: 0, or 1 for the mirror."""
        invariant(index < self.area_blocks, b"a block lies inside its half")
        return self.offset + (<uint64_t>(2 * copy + half) * self.area_blocks + index) * BLOCK_BYTES

    cdef int write_newest(self) noexcept nogil:
        """Only the newest block may not be stable: each block was flushed before the next was written. Its flush may
        have failed, and then a later flush does not make it stable. So it is written again, with the same content,
        which a crash cannot tear."""
        cdef int error = 0
        if self.flusher.volatile_cache and not planted(b"journal_not_rewritten"):
            error = self.write_twice(self.half, self.next_index - 1, self.block, 1)
        return error if error else self.flush()

    cdef int flush(self) noexcept nogil:
        return 0 if planted(b"journal_without_flush") else self.flusher.wait_flushed()


cdef int64_t write_changes_task(void* journal) noexcept nogil:
    (<Journal>journal).write_changes()
    return 0


cdef void begin_block(
    JournalBlock* block, const uint8_t* identity, uint64_t generation, uint32_t index, uint16_t kind
) noexcept nogil:
    memset(block, 0, sizeof(JournalBlock))
    block.magic = JOURNAL_MAGIC
    block.version = FORMAT_VERSION
    memcpy(block.device, identity, 16)
    block.generation = generation
    block.index = index
    block.kind = kind


cdef int write_both(
    Io io, int device, const void* data, uint32_t bytes, uint64_t offset, uint64_t mirror_offset
) noexcept nogil:
    cdef Operation operation, mirrored
    cdef int64_t result, mirrored_result
    waited(&operation)
    io.write(&operation, device, data, bytes, offset)
    waited(&mirrored)
    io.write(&mirrored, device, data, bytes, mirror_offset)
    result = wait(&operation)
    mirrored_result = wait(&mirrored)
    return result if result < 0 else mirrored_result if mirrored_result < 0 else 0


cdef int format_journal(Io io, int device, const Superblock* superblock) noexcept nogil:
    """Write four empty areas; the first half and its mirror begin with a snapshot of an empty directory. The caller
    flushes."""
    cdef uint64_t done = 0, length = 4 * superblock.journal_bytes
    cdef uint32_t piece = PIECE_BLOCKS * BLOCK_BYTES
    cdef Operation operation
    cdef int64_t error = 0
    cdef char* zeros = <char*>allocate_aligned(2 * piece)     # and what is there
    cdef JournalBlock* block = <JournalBlock*>zeros
    if zeros is NULL:
        return -ENOMEM
    memset(zeros, 0, 2 * piece)
    while error >= 0 and done < length:    # journal_bytes is a multiple of 256 KiB, so 4 times that of a piece
        waited(&operation)
        if length > LONG_AREAS:
            io.read(&operation, device, zeros + piece, piece, superblock.journal_offset + done)
        if length <= LONG_AREAS or wait(&operation) < 0 or memcmp(zeros, zeros + piece, piece) != 0:
            waited(&operation)
            io.write(&operation, device, zeros, piece, superblock.journal_offset + done)
            error = wait(&operation)
        done += piece
    if error >= 0:
        begin_block(block, superblock.device, 1, 0, JOURNAL_SNAPSHOT_END)
        block.crc = block_crc(block)
        error = write_both(
            io,
            device,
            block,
            BLOCK_BYTES,
            superblock.journal_offset,
            superblock.journal_offset + 2 * superblock.journal_bytes,
        )
    io.release(zeros)
    return error if error < 0 else 0
