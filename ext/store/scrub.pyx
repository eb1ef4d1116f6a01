# Scrub: reads every block of a sealed segment and compares it with the checksum in the segment's footer, so that damage
# is found while it can still be repaired, not when the block is needed.
#
# Always true:
#   - one segment at a time, at the throttle's rate; no request waits for a scrub;
#   - a result is valid only if the replica is the same as at the start: if it was compacted or deleted meanwhile, its
#     slabs may have been reused;
#   - blocks dropped by a compaction are not verified; other dead blocks are, since the footer does not distinguish
#     them.
#
# Called by the engine's commands. Format: docs/formats.md, "Footers".

from libc.errno cimport EBUSY, EIO, ENOENT, ESHUTDOWN
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.io cimport release_buffer
from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.store.compaction cimport Throttle, lives_in, rank_in, read_bitmap
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.store.extents cimport read_blocks
from iomesh.engine.format.layout cimport (
    BITMAP_COPIES, BLOCK_BYTES, EXTENTS_MAX, FOOTER_BLOCKS_MAX, KIND_RECORD, SEGMENT_SEALED, Bitmap, Entry, Extent,
    Footer, Listed, RecordHeader, block_crc, footer_table_valid, footer_valid, next_listed
)
from iomesh.engine.store.store cimport Store
from iomesh.engine.base.task cimport wait_in, wake_all

cdef enum:
    PIECE_BLOCKS = 64


cdef class Scrubber:
    """Raises MemoryError."""

    def __cinit__(self, Store store):
        self.store = store
        self.io = store.home.io
        self.bitmap = <Bitmap*>allocate_aligned((1 + FOOTER_BLOCKS_MAX + PIECE_BLOCKS) * BLOCK_BYTES)
        if self.bitmap is NULL:
            raise MemoryError("no memory for a scrubber's buffers")
        self.footer = <char*>self.bitmap + BLOCK_BYTES
        self.piece = self.footer + FOOTER_BLOCKS_MAX * BLOCK_BYTES

    def __dealloc__(self):
        release_buffer(self.io, self.bitmap)

    cdef int scrub(self, const uint8_t* volume, uint32_t segment, Throttle* throttle, Scrubbed* told) noexcept nogil:
        cdef const Replica* found = self.store.find(volume, segment)
        cdef Replica replica
        cdef int result
        memset(told, 0, sizeof(Scrubbed))
        if self.busy:
            return -EBUSY
        if self.stopping:
            return -ESHUTDOWN
        if self.store.stalled:                           # late data may arrive in the buffers
            return -EIO
        if found is NULL or found.state != SEGMENT_SEALED or found.footer_block == 0:
            return -ENOENT
        memcpy(&replica, found, sizeof(Replica) - (EXTENTS_MAX - found.extent_count) * sizeof(Extent))
        self.busy = True
        result = self.verify(&replica, throttle, told)
        found = self.store.find(volume, segment)
        if result == 0 and (found is NULL or found.serial != replica.serial):
            result = -ENOENT
        self.busy = False
        wake_all(&self.ended, 0)                         # last: a waiter may release the store and this object
        return result

    cdef uint32_t list(self, Sealed* into, uint32_t room) noexcept nogil:
        cdef const Replica* replica
        cdef uint32_t i, count = 0
        for i in range(self.store.directory.bucket_count):
            replica = self.store.directory.buckets[i]
            while replica is not NULL:
                if replica.state == SEGMENT_SEALED and replica.footer_block:
                    if count < room:
                        memcpy(into[count].volume, replica.volume, 16)
                        into[count].segment = replica.segment
                        into[count].blocks = replica.live + BITMAP_COPIES if replica.live else replica.blocks
                    count += 1
                replica = replica.next
        return count

    cdef void stop(self) noexcept nogil:
        self.stopping = True
        while self.busy:
            wait_in(&self.ended)

    cdef int verify(self, const Replica* replica, Throttle* throttle, Scrubbed* told) noexcept nogil:
        cdef Footer* footer = <Footer*>self.footer
        cdef Entry* table = <Entry*>(self.footer + BLOCK_BYTES)
        cdef const char* found
        cdef const Entry* entry
        cdef Listed listed
        cdef uint32_t place, end
        cdef int error = 0
        cdef bint good
        self.piece_blocks = 0
        if replica.live and read_bitmap(self.store.home.io, replica, self.bitmap) < 0:
            if self.store.stalled:
                return -EIO
            note(told, 0)                                # without it no block of the segment can be located
            return 0
        place = place_of(self.bitmap, replica, replica.footer_block)
        end = replica.live + 1 if replica.live else replica.blocks
        good = (
            read_blocks(self.store.home.io, replica, place, 1, self.footer) == 0
            and footer_valid(footer, replica.volume, replica.segment, replica.footer_block, replica.blocks)
            and footer.table_blocks < FOOTER_BLOCKS_MAX
        )
        good = good and read_blocks(self.store.home.io, replica, place + 1, footer.table_blocks, table) == 0
        if self.store.stalled:
            return -EIO
        if not good or not footer_table_valid(footer, table):
            note(told, replica.footer_block)    # recovery reads the headers instead; they are not verified here
            return 0
        told.blocks = 1 + footer.table_blocks
        memset(&listed, 0, sizeof(listed))
        entry = next_listed(footer, table, &listed)
        while entry is not NULL:
            if not replica.live or lives_in(self.bitmap, listed.block):
                found = self.block_at(replica, place_of(self.bitmap, replica, listed.block), end, throttle, &error)
                if error:
                    return error
                if found is not NULL and is_as_written(found, entry):
                    told.blocks += 1
                else:
                    note(told, listed.block)
                    know(told, listed.block, entry)
            entry = next_listed(footer, table, &listed)
        return 0

    cdef const char* block_at(
        self, const Replica* replica, uint32_t place, uint32_t end, Throttle* throttle, int* error
    ) noexcept nogil:
        """The block at index `place`; NULL: it cannot be read. Calls come in ascending order."""
        cdef uint32_t count
        if not self.piece_from <= place < self.piece_from + self.piece_blocks:
            count = min(end - place, <uint32_t>PIECE_BLOCKS)
            error[0] = (
                -ESHUTDOWN if self.stopping else throttle.step(throttle.owner, self.store.home.io, count * BLOCK_BYTES)
            )
            if error[0]:
                return NULL
            self.piece_from = place
            self.piece_blocks = count
            if read_blocks(self.store.home.io, replica, place, count, self.piece) < 0:
                if self.store.stalled:
                    error[0] = -EIO
                    return NULL
                self.piece_blocks = 1                    # read singly to find the bad block
                if read_blocks(self.store.home.io, replica, place, 1, self.piece) < 0:
                    error[0] = -EIO if self.store.stalled else 0
                    return NULL
        return self.piece + <size_t>(place - self.piece_from) * BLOCK_BYTES


cdef inline void know(Scrubbed* told, uint32_t block, const Entry* entry) noexcept nogil:
    cdef DamagedBlock* known = &told.known[told.known_count]
    if told.known_count < SCRUBBED_MAX:
        known.block, known.crc, known.header = block, entry.crc, entry.kind == KIND_RECORD
        told.known_count += 1


cdef inline void note(Scrubbed* told, uint32_t block) noexcept nogil:
    if told.damaged == 0:
        told.first = block
    told.damaged += 1


cdef inline bint is_as_written(const char* block, const Entry* entry) noexcept nogil:
    if entry.kind == KIND_RECORD:
        return (<const RecordHeader*>block).crc == entry.crc and block_crc(block) == entry.crc
    return crc32c(block, BLOCK_BYTES) == entry.crc


cdef inline uint32_t place_of(const Bitmap* bitmap, const Replica* replica, uint32_t block) noexcept nogil:
    """Index among the replica's blocks on the device; a compacted replica must have the block."""
    return 1 + rank_in(bitmap, block) if replica.live else block
