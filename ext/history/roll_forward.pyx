# Rolls a volume forward to a second between two restore points. A restore point is a snapshot; after the oldest one the
# log is kept whole (SegmentTable.kept_from): no segment is compacted or removed, so every record is still where it was
# written, with its time. The entries of the records between the restore point and the target time are written again,
# into the volume whose head is the restore point.
#
# Copying keeps the block counts simple: if dead blocks were referenced again, they would have to be counted against
# younger snapshots that share them. The cost is the amount written between the restore point and the target time, so at
# most what lies between two restore points (node/windows.py).
#
# Always true:
#   - each record is applied exactly once, in sequence order; a gap is an error;
#   - the cut lies between two records: every write acknowledged until the target time is included, as after a crash at
#     that time;
#   - every block that is written again was verified, and is on stable media when run() returns: only then does a new
#     clone exist.
#
# Called by the engine. Atomicity is up to history/snapshots.pyx and the node: until the roll forward is done, the
# volume's restore point is unsettled.

from libc.errno cimport EIO, ENOENT, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.atomics cimport load_uint32
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.history.snapshots cimport hold_snapshot, let_snapshot_go
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, KIND_DATA, KIND_ZERO, RECORD_ENTRIES_MAX, Entry, RecordHeader, record_valid
)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.log.request cimport end_awaited
from iomesh.engine.base.task cimport wait, waited
from iomesh.engine.volume.log_scan cimport CHUNK_BLOCKS

cdef extern from "<errno.h>" nogil:
    int EUCLEAN


cdef class RollForward:
    """Raises MemoryError."""

    def __cinit__(self, Volume volume, Volume source):
        self.volume, self.source = volume, source
        self.buffer = <char*>allocate_aligned(CHUNK_BLOCKS * BLOCK_BYTES)
        if self.buffer is NULL:
            raise MemoryError("no memory to follow a log")

    def __dealloc__(self):
        release_buffer(self.volume.io if self.volume is not None else None, self.buffer)

    cdef int run(self, const uint8_t* mark, uint64_t until_ns) noexcept nogil:
        cdef int result
        if not hold_snapshot(self.source, mark):
            return self.fail(ENOENT, b"the moment before it that is marked is not in the restore window any more", 0, 0)
        self.next_sequence = self.source.snapshots.find(mark).entry.sequence + 1
        self.newest_ns = self.source.snapshots.find(mark).entry.time_ns
        self.until_ns = until_ns
        self.written.request.finished = end_awaited
        self.written.request.stable = True
        waited(&self.written.ended)
        result = self.follow()
        self.volume.complete(&self.written.request)
        wait(&self.written.ended)
        if result == 0 and self.written.request.error:
            result = self.fail(
                self.written.request.error, b"record %lu of the log cannot be written again", self.next_sequence - 1, 0
            )
        let_snapshot_go(self.source, mark)
        return result

    cdef int follow(self) noexcept nogil:
        cdef uint64_t newest = self.source.log.committed
        cdef Segment* segment = self.source.segments.first
        cdef int result = 0
        while (
            result == 0
            and self.error != -ETIMEDOUT
            and segment is not NULL
            and not self.arrived
            and self.next_sequence <= newest
        ):
            if segment.last_sequence >= self.next_sequence:
                segment.cleaning = True                  # keeps the segment from being removed or moved
                result = self.follow_segment(segment, newest)
                segment.cleaning = False
            segment = segment.next
        if result == 0 and self.error:
            return self.fail(-self.error, b"record %lu of the log cannot be read", self.next_sequence, 0)
        if result == 0 and not self.arrived and self.next_sequence <= newest:
            return self.fail(ENOENT, b"record %lu of the log is not there any more", self.next_sequence, 0)
        return result

    cdef int follow_segment(self, const Segment* segment, uint64_t newest) noexcept nogil:
        # the segment may be being sealed
        cdef uint32_t block = 0, footer_block = load_uint32(segment.replica.footer_block)
        cdef uint32_t limit = footer_block if footer_block else segment.blocks
        cdef RecordHeader* header
        cdef int result = 0
        self.held = 0
        if segment.replica.live:
            return self.fail(
                ENOENT,
                b"record %lu of the log is not there any more: segment %lu was cleaned",
                self.next_sequence, segment.number
            )
        while result == 0 and block < limit and not self.arrived and self.next_sequence <= newest:
            header = self.record_at(segment, block, limit)
            if header is NULL or header.sequence > self.next_sequence:
                return 0                                 # the log continues elsewhere, or follow() fails
            if header.sequence == self.next_sequence:
                if header.time_ns < self.newest_ns:
                    return self.fail(
                        EUCLEAN, b"record %lu of the log has an earlier time than the one before it", header.sequence, 0
                    )
                self.newest_ns = header.time_ns
                self.arrived = header.time_ns > self.until_ns
                if not self.arrived or planted(b"moment_overshot"):
                    result = self.repeat(header)
                    self.next_sequence += 1
                    self.records += 1
            block += 1 + header.payload_blocks
        return result

    cdef RecordHeader* record_at(self, const Segment* segment, uint32_t block, uint32_t limit) noexcept nogil:
        """The record with its payload, in the buffer; NULL: there is no valid one. A record of another epoch is left
        over from an earlier segment with the same number and slabs (see LogScan.is_of)."""
        cdef RecordHeader* header
        if self.held == 0 or (block + 1 + RECORD_ENTRIES_MAX > self.base + self.held and self.base + self.held < limit):
            self.base = block
            self.held = min(<uint32_t>CHUNK_BLOCKS, limit - block)
            self.error = self.source.map.cache.bitmaps.read(segment.replica, self.base, self.held, self.buffer)
            if self.error < 0:
                self.held = 0
                return NULL
        header = <RecordHeader*>(self.buffer + (block - self.base) * BLOCK_BYTES)
        if (
            header.epoch != segment.replica.epoch
            or not record_valid(header, self.source.identity, segment.number, block, limit)
            or block + 1 + header.payload_blocks > self.base + self.held
        ):
            return NULL
        return header

    cdef int repeat(self, const RecordHeader* header) noexcept nogil:
        """Applies a record to the volume; adjacent data blocks become one write."""
        cdef const Entry* entry
        cdef const char* payload = <const char*>header + BLOCK_BYTES
        cdef const char* begin = payload
        cdef uint64_t block = 0
        cdef uint32_t count = 0, k
        cdef int result = 0
        for k in range(header.entry_count):
            entry = &header.entries[k]
            if count and (entry.kind != KIND_DATA or entry.position != block + count):
                result = self.write(block, count, begin)
                count = 0
            if result < 0:
                return result
            if entry.kind == KIND_DATA:
                if crc32c(payload, BLOCK_BYTES) != entry.crc:
                    return self.fail(
                        EUCLEAN,
                        b"block %lu as record %lu of the log has it is damaged",
                        entry.position, header.sequence
                    )
                if count == 0:
                    block, begin = entry.position, payload
                count += 1
            elif entry.kind == KIND_ZERO:
                result = self.zero(entry.position, entry.count)
            payload += BLOCK_BYTES if entry.kind != KIND_ZERO else 0
        if count and result == 0:
            result = self.write(block, count, begin)
        return result

    cdef int write(self, uint64_t block, uint32_t count, const char* data) noexcept nogil:
        cdef Operation when
        cdef int64_t taken = 0
        if block + count > self.volume.blocks:
            return self.fail(
                EUCLEAN,
                b"record %lu of the log writes to block %lu, beyond the volume's end",
                self.next_sequence, block
            )
        while count:
            waited(&when)
            taken = self.volume.write(&self.written.request, block, count, data, &when)
            if taken == 0 and wait(&when) < 0:
                taken = when.result
            if taken < 0:
                return self.fail(<int>-taken, b"record %lu of the log cannot be written again", self.next_sequence, 0)
            block += taken
            count -= <uint32_t>taken
            data += taken * BLOCK_BYTES
            self.blocks += taken
        self.under_way = True
        return 0

    cdef int zero(self, uint64_t block, uint64_t count) noexcept nogil:
        cdef Operation when
        cdef int64_t taken = 0
        if self.under_way and self.volume.log.wait_committed(self.volume.log.last_appended()) < 0:
            return self.fail(EIO, b"what precedes record %lu of the log cannot be written again", self.next_sequence, 0)
        self.under_way = False                           # a trim misses blocks that are not in the map yet
        if block + count > self.volume.blocks:
            return self.fail(
                EUCLEAN, b"record %lu of the log trims block %lu, beyond the volume's end", self.next_sequence, block
            )
        while count:
            waited(&when)
            taken = self.volume.zero(&self.written.request, block, count, &when)
            if taken == 0 and wait(&when) < 0:
                taken = when.result
            if taken < 0:
                return self.fail(<int>-taken, b"record %lu of the log cannot be repeated", self.next_sequence, 0)
            block += taken
            count -= taken
        return 0

    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b) noexcept nogil:
        snprintf(self.reason, sizeof(self.reason), text, a, b)
        return -error
