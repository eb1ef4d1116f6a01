# Rewriting a replica without its dead blocks: the bitmap, the live blocks in order, a second copy of the bitmap.
#
# Always true:
#   - the old replica is only read and the copy only written, so an interrupted compaction has changed nothing;
#   - blocks are copied unverified, even corrupt ones: readers have their checksums. Verified are only the bitmap, since
#     every address depends on it, and the footer, which is rebuilt: its table lists the copy's blocks. A damaged
#     footer is copied unchanged;
#   - requests are at most a piece long. A read includes gaps of dead blocks if they cost less than another read. The
#     next piece is read while the last one is being written.
#
# The caller knows which blocks are live. Called by store; a Compactor makes one copy at a time. Format:
# docs/formats.md, "Compacted replicas".

from libc.errno cimport EIO, ETIMEDOUT, EUCLEAN
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.store.extents cimport ExtentRun, next_extent, extent_run, read_blocks
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Io, release_buffer
from iomesh.engine.format.footer cimport complete_footer
from iomesh.engine.format.layout cimport (
    BITMAP_COPIES, BITMAP_MAGIC, BLOCK_BYTES, EXTENTS_MAX, FOOTER_BLOCKS_MAX, FORMAT_VERSION, Bitmap, Entry, Footer,
    Listed, bitmap_valid, block_crc, footer_table_valid, footer_valid, next_listed
)
from iomesh.engine.base.task cimport wait, waited

cdef enum:
    PIECE_BLOCKS = 32                # per read or write: 128 KiB; longer ones would delay users' writes by milliseconds
    GAP_BLOCKS = 32                  # longest gap that a read includes: 128 KiB cost less than another read
    WORDS = 256                      # per bitmap


cdef class Compactor:
    """Raises MemoryError. The first copy touches its memory (912 KiB)."""

    def __cinit__(self, Io io):
        self.io = io
        self.incoming = <char*>allocate_aligned((3 * PIECE_BLOCKS + FOOTER_BLOCKS_MAX + 2) * BLOCK_BYTES)
        if self.incoming is NULL:
            raise MemoryError("no memory for compaction")
        self.outgoing = self.incoming + PIECE_BLOCKS * BLOCK_BYTES
        self.leaving = self.outgoing + PIECE_BLOCKS * BLOCK_BYTES
        self.footer = self.leaving + PIECE_BLOCKS * BLOCK_BYTES
        self.kept = <Bitmap*>(self.footer + FOOTER_BLOCKS_MAX * BLOCK_BYTES)
        self.there = self.kept + 1

    def __dealloc__(self):
        release_buffer(self.io, self.incoming)

    cdef int plan(self, const Replica* old, const uint64_t* live) noexcept nogil:
        cdef Bitmap* kept = self.kept
        cdef uint32_t i, block
        cdef int error = read_bitmap(self.io, old, self.there) if old.live else 0
        if error:
            return error
        memset(kept, 0, sizeof(Bitmap))
        kept.magic = BITMAP_MAGIC
        kept.version = FORMAT_VERSION
        memcpy(kept.volume, old.volume, 16)
        kept.segment = old.segment
        kept.blocks = old.blocks
        memcpy(kept.words, live, sizeof(kept.words))
        self.footer_blocks = self.make_footer(old) if old.footer_block else 0
        if self.footer_blocks < 0:
            return self.footer_blocks
        if old.footer_block:
            for block in range(old.footer_block, old.blocks):
                if self.footer_blocks:
                    keep(kept, block, block < old.footer_block + <uint32_t>self.footer_blocks)
                else:
                    keep(kept, block, not old.live or lives_in(self.there, block))
        for i in range(WORDS):
            kept.before[i] = kept.live
            kept.live += bits_in(kept.words[i])
            if old.live and kept.words[i] & ~self.there.words[i]:
                return -EUCLEAN
        kept.crc = block_crc(kept)
        invariant(
            bitmap_valid(kept, old.volume, old.segment), b"blocks that are kept lie in the segment, and there are some"
        )
        return 0

    cdef int make_footer(self, const Replica* old) noexcept nogil:
        """Build the copy's footer and table. Their length in blocks; 0: the old one is damaged; or a negative errno."""
        cdef Footer* footer = <Footer*>self.footer
        cdef Entry* table = <Entry*>(self.footer + BLOCK_BYTES)
        cdef const Entry* entry
        cdef uint32_t place = self.place_in(old, old.footer_block), listed = 0
        cdef Listed read
        cdef int error = read_blocks(self.io, old, place, 1, self.footer)
        if error:
            return error
        if (
            not footer_valid(footer, old.volume, old.segment, old.footer_block, old.blocks)
            or footer.table_blocks >= FOOTER_BLOCKS_MAX
        ):
            return 0
        error = read_blocks(self.io, old, place + 1, footer.table_blocks, table)
        if error:
            return error
        if not footer_table_valid(footer, table):
            return 0
        memset(&read, 0, sizeof(read))
        entry = next_listed(footer, table, &read)
        while entry is not NULL:
            if lives_in(self.kept, read.block):
                table[listed] = entry[0]                 # in place: the entry read lies behind the entry written
                table[listed].count = read.block
                listed += 1
            entry = next_listed(footer, table, &read)
        footer.brief = True
        return <int>complete_footer(footer, table, listed)

    cdef uint32_t blocks(self) noexcept nogil:
        return self.kept.live + BITMAP_COPIES

    cdef int copy(self, const Replica* old, const Replica* copy, Throttle* throttle) noexcept nogil:
        cdef Bitmap* kept = self.kept
        cdef uint32_t limit = old.footer_block if self.footer_blocks else kept.blocks
        cdef uint32_t block = next_live(kept, 0), following, first, place, end, i
        cdef int error, awaited
        self.gathered = self.written = 0
        error = self.add(kept, copy, throttle)
        while error == 0 and block < limit:
            first = self.place_in(old, block)
            end = first + 1
            following = next_live(kept, block + 1)
            while following < limit:
                place = self.place_in(old, following)
                if place >= first + PIECE_BLOCKS or place > end + GAP_BLOCKS:
                    break
                end = place + 1
                following = next_live(kept, following + 1)
            error = self.read(old, block, following, first, end - first, throttle)
            while error == 0 and block < following:
                error = self.add(
                    self.incoming + <size_t>(self.place_in(old, block) - first) * BLOCK_BYTES, copy, throttle
                )
                block = next_live(kept, block + 1)
        for i in range(self.footer_blocks):
            if error == 0:
                error = self.add(self.footer + <size_t>i * BLOCK_BYTES, copy, throttle)
        if error == 0:
            error = self.add(kept, copy, throttle)
        if error == 0:
            error = self.write_out(copy, throttle)
        awaited = self.await_writes()
        if error == 0:
            error = awaited
        invariant(error != 0 or self.written == self.blocks(), b"a copy has as many blocks as were planned")
        return error

    cdef int read(
        self, const Replica* old, uint32_t block, uint32_t end, uint32_t first, uint32_t count, Throttle* throttle
    ) noexcept nogil:
        """Read `count` of the old replica's blocks on the device, from `first` on. They hold the segment's live blocks
        from `block` up to `end`."""
        cdef uint32_t place
        cdef int error = throttle.step(throttle.owner, self.io, count * BLOCK_BYTES) if throttle is not NULL else 0
        if error:
            return error
        error = read_blocks(self.io, old, first, count, self.incoming)
        if error == 0 or error == -ETIMEDOUT:            # late data may still arrive in `incoming`
            return error
        error = 0
        while block < end and error == 0:                # a bad sector in a dead block must not prevent the copy
            place = self.place_in(old, block)
            error = read_blocks(self.io, old, place, 1, self.incoming + <size_t>(place - first) * BLOCK_BYTES)
            block = next_live(self.kept, block + 1)
        return error

    cdef int add(self, const void* block, const Replica* copy, Throttle* throttle) noexcept nogil:
        cdef int error = 0
        if self.gathered == PIECE_BLOCKS:
            error = self.write_out(copy, throttle)
            if error:
                return error                             # an abandoned write may still read this piece
        memcpy(self.outgoing + <size_t>self.gathered * BLOCK_BYTES, block, BLOCK_BYTES)
        self.gathered += 1
        return error

    cdef int write_out(self, const Replica* copy, Throttle* throttle) noexcept nogil:
        """Wait for the piece in flight, then start writing the next one."""
        cdef ExtentRun run = extent_run(copy, self.written, self.gathered, self.outgoing)
        cdef char* written = self.outgoing
        cdef int error = self.await_writes()
        if error == 0 and throttle is not NULL:
            error = throttle.step(throttle.owner, self.io, self.gathered * BLOCK_BYTES)
        while error == 0 and next_extent(&run):
            invariant(self.writing < EXTENTS_MAX, b"a piece of a copy touches few extents")
            waited(&self.writes[self.writing])
            self.io.write(&self.writes[self.writing], copy.device, run.data, run.blocks * BLOCK_BYTES, run.offset)
            self.writing += 1
            self.written += run.blocks
        invariant(error != 0 or run.left == 0, b"a copy has slabs for its blocks")
        self.outgoing = self.leaving
        self.leaving = written
        self.gathered = 0
        return error

    cdef int await_writes(self) noexcept nogil:
        cdef int error = 0
        cdef uint32_t i
        for i in range(self.writing):
            if wait(&self.writes[i]) < 0:
                error = <int>self.writes[i].result
        self.writing = 0
        return error

    cdef uint32_t place_in(self, const Replica* old, uint32_t block) noexcept nogil:
        """Index among the old replica's blocks on the device."""
        return 1 + rank_in(self.there, block) if old.live else block


cdef inline void keep(Bitmap* kept, uint32_t block, bint is_kept) noexcept nogil:
    kept.words[block // 64] &= ~(<uint64_t>1 << (block % 64))
    kept.words[block // 64] |= <uint64_t>is_kept << (block % 64)


cdef uint32_t next_live(const Bitmap* bitmap, uint32_t block) noexcept nogil:
    """The first live block from `block` on; if there is none, the segment's end."""
    cdef uint32_t word = block // 64
    cdef uint64_t left
    if block >= bitmap.blocks:
        return bitmap.blocks
    left = bitmap.words[word] >> (block % 64) << (block % 64)
    while left == 0 and word + 1 < WORDS:
        word += 1
        left = bitmap.words[word]
    return word * 64 + lowest_bit(left) if left else bitmap.blocks


# ---------------------------------------------------------------------- bitmaps on the device

cdef int read_bitmap(Io io, const Replica* replica, Bitmap* into) noexcept nogil:
    cdef int which, error = -EUCLEAN
    for which in range(BITMAP_COPIES):
        error = read_blocks(io, replica, bitmap_place(replica, which), 1, into)
        if error == -ETIMEDOUT:                          # late data may still arrive
            return error
        if error < 0:
            error = -EIO
        elif bitmap_of(replica, into):
            return 0
        else:
            error = -EUCLEAN
    return error


cdef bint bitmap_of(const Replica* replica, const Bitmap* bitmap) noexcept nogil:
    return bitmap_matches(bitmap, replica.volume, replica.segment, replica.blocks, replica.live, replica.bitmap_crc)


cdef bint bitmap_matches(
    const Bitmap* bitmap, const uint8_t* volume, uint32_t segment, uint32_t blocks, uint32_t live, uint32_t crc
) noexcept nogil:
    return (
        bitmap_valid(bitmap, volume, segment) and bitmap.crc == crc and bitmap.blocks == blocks and bitmap.live == live
    )
