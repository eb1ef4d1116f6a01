# Scans a volume's log on this node's devices: lists its replicas, and their records from footers or headers.
#
# volume/recovery.pyx decides which replicas are scanned and which records are valid.
#
# Always true:
#   - a record is accepted only with the replica's own epoch: numbers and slabs of deleted segments are reused;
#   - the records of a replica follow each other without a gap; a header after a gap is used for its `stable` field
#     only;
#   - a transient read error is not taken for the log's end.

from libc.errno cimport ENOMEM, ETIMEDOUT, EUCLEAN
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release, qsort, realloc
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, KIND_ZERO, RECORD_ENTRIES_MAX, SEGMENT_OPEN, Fault, Footer, footer_fault, footer_table_valid,
    record_fault
)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.store.store cimport Replica
from iomesh.engine.base.task cimport wait, waited

cdef extern from "<errno.h>" nogil:
    int EPROTONOSUPPORT

cdef enum:
    TRIES = 10                       # retries of one failed read, ...
    ALL_TRIES = 500                  # ... and of all reads together
    AGAIN_NS = 20 * 1000 * 1000      # between two tries


cdef class LogScan:
    """Raises MemoryError."""

    def __cinit__(self, Volume volume, *others):
        self.volume, self.io = volume, volume.io
        self.buffer = <char*>allocate_aligned((CHUNK_BLOCKS + 1) * BLOCK_BYTES)
        if self.buffer is NULL:
            raise MemoryError("no memory for recovery")

    def __dealloc__(self):
        self.forget()
        release_buffer(self.io, self.buffer)

    cdef void forget(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.scan_count):
            release(self.scans[i].records)
            release(self.scans[i].entries)
        release(self.scans)
        self.scans = NULL
        self.scan_count = 0

    cdef int list_replicas(self) noexcept nogil:
        cdef Replica** found
        cdef uint32_t count, i
        cdef uint16_t member
        for member in range(self.volume.log.open_segments.member_count):
            count = self.list_member(member, NULL, 0)
            if count == 0:
                continue
            found = <Replica**>calloc(count, sizeof(Replica*))
            self.scans = <Scan*>realloc(self.scans, (self.scan_count + count) * sizeof(Scan))
            if found is NULL or self.scans is NULL:
                return self.fail(ENOMEM, b"no memory for the list of %lu segments", count, 0, 0)
            self.list_member(member, found, count)
            for i in range(count):
                memset(&self.scans[self.scan_count], 0, sizeof(Scan))
                self.scans[self.scan_count].replica = found[i]
                self.scans[self.scan_count].member = member
                self.scan_count += 1
            release(found)
        if self.scan_count:
            qsort(self.scans, self.scan_count, sizeof(Scan), by_number)
        return self.settle_doubles()

    cdef int settle_doubles(self) noexcept nogil:
        """A segment is on two devices if a flush of the first one failed: its replica there was left open, and copied
        to the second one and sealed there (log/open_segments.pyx). So of the replicas of one epoch a sealed one is
        valid, and the others are removed; two sealed ones are identical."""
        cdef Scan* kept
        cdef Scan* other
        cdef uint32_t count = 0, i
        cdef int result = 0
        for i in range(self.scan_count):
            kept = &self.scans[count - 1] if count else NULL
            other = &self.scans[i]
            if kept is NULL or kept.replica.segment != other.replica.segment:
                self.scans[count] = other[0]
                count += 1
                continue
            if (
                kept.replica.epoch != other.replica.epoch
                or (kept.replica.state == SEGMENT_OPEN and other.replica.state == SEGMENT_OPEN)
            ):
                return self.fail(EUCLEAN, b"segment %lu is on two devices of this node", other.replica.segment, 0, 0)
            if kept.replica.state == SEGMENT_OPEN:
                result = self.remove_double(kept)
                kept[0] = other[0]
            else:
                result = self.remove_double(other)
            if result < 0:
                return self.fail(
                    -result,
                    b"segment %lu is on two devices of this node, and cannot be removed from one",
                    kept.replica.segment, 0, 0
                )
        self.scan_count = count
        return 0

    cdef int remove_double(self, Scan* scan) noexcept nogil:
        if not self.removes_doubles:                     # the log is open; the failed device stays unchanged
            return 0
        return self.remove_copy(scan)

    cdef int remove_copy(self, Scan* scan) noexcept nogil:
        cdef void* member = self.volume.log.open_segments.members[scan.member]
        return (<Member>member).remove(scan.replica.segment, scan.replica.epoch, scan.replica)

    cdef uint32_t list_member(self, uint16_t member, Replica** into, uint32_t room) noexcept nogil:
        return (<Member>self.volume.log.open_segments.members[member]).list(into, room)

    cdef Scan* scan_of(self, uint32_t segment) noexcept nogil:
        cdef uint32_t low = 0, high = self.scan_count, middle
        while low < high:
            middle = (low + high) // 2
            if self.scans[middle].replica.segment < segment:
                low = middle + 1
            else:
                high = middle
        return &self.scans[low] if low < self.scan_count and self.scans[low].replica.segment == segment else NULL

    cdef int read_blocks(self, Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil:
        """Retries: a transient error must not be taken for the log's end. The total is limited. A device that does not
        answer (-ETIMEDOUT) is not asked again: its late data may arrive in `into`."""
        cdef Operation operation
        cdef uint32_t tries = 0
        cdef int result = self.volume.map.cache.bitmaps.read(replica, block, count, into)
        while result < 0 and result != -ETIMEDOUT and tries < TRIES and self.tries < ALL_TRIES:
            tries += 1
            self.tries += 1
            waited(&operation)
            self.io.after(&operation, AGAIN_NS)
            wait(&operation)
            result = self.volume.map.cache.bitmaps.read(replica, block, count, into)
        return result

    cdef int scan_footer(self, Scan* scan) noexcept nogil:
        """Reads the records of a sealed replica from its footer; 1: the footer is damaged, use the headers."""
        cdef Replica* replica = scan.replica
        cdef Footer* footer = <Footer*>self.buffer
        cdef Entry* table
        cdef uint32_t at = 0, block = 0, k
        cdef Fault fault
        cdef int result
        result = self.read_blocks(replica, replica.footer_block, 1, footer)
        if result == -ETIMEDOUT:
            return self.fail_late(replica)
        if result < 0:
            return 1
        fault = footer_fault(footer, self.volume.log.volume, replica.segment, replica.footer_block, replica.blocks)
        if fault.newer and footer.epoch == replica.epoch:
            return self.fail_newer(replica, replica.footer_block)
        if fault.words is not NULL:
            return 1
        scan.stable = footer.stable
        table = <Entry*>allocate_aligned((footer.table_blocks + 1) * BLOCK_BYTES)
        if table is NULL:
            return self.fail(ENOMEM, b"no memory for a footer of %lu blocks", footer.table_blocks, 0, 0)
        result = self.read_blocks(replica, replica.footer_block + 1, footer.table_blocks, table)
        if result == -ETIMEDOUT:
            self.io.release(table)
            return self.fail_late(replica)
        result = 0 if result == 0 and footer_table_valid(footer, table) else 1
        while result == 0 and at < footer.entry_count:
            result = self.add_record(scan, table[at].position, block, table[at].crc, &table[at + 1], table[at].count)
            block += 1
            for k in range(table[at].count):
                if table[at + 1 + k].kind != KIND_ZERO:
                    block += 1
            at += 1 + table[at].count
        self.io.release(table)
        scan.end = block
        return result

    cdef int scan_headers(self, Scan* scan) noexcept nogil:
        """Reads a replica's records from headers and verifies payloads; after a gap, only `stable` and `stray`."""
        cdef Replica* replica = scan.replica
        cdef uint32_t limit = replica.footer_block if replica.footer_block else replica.blocks
        cdef uint32_t block = 0, k, payload_block, previous_crc = 0
        cdef uint64_t previous = 0
        cdef uint32_t base = 0, held = 0                 # blocks in the buffer
        cdef RecordHeader* header
        cdef bint chained = True
        cdef Found* found
        cdef int result = 0
        scan.end = 0
        while block < limit:
            if (
                held == 0
                or block >= base + held
                or (block + 1 + RECORD_ENTRIES_MAX > base + held and base + held < limit)
            ):
                base = block
                held = min(<uint32_t>CHUNK_BLOCKS, limit - block)
                result = self.read_blocks(replica, base, held, self.buffer)
                if result == -ETIMEDOUT:
                    return self.fail_late(replica)
                if result < 0:                           # a bad sector or a transient error: one record or block
                    held = 1
                    result = self.read_blocks(replica, base, held, self.buffer)
                    header = <RecordHeader*>self.buffer
                    if result == 0 and self.is_of(header, replica, block, limit) and header.payload_blocks:
                        held = 1 + header.payload_blocks
                        result = self.read_blocks(replica, base, held, self.buffer)
                    if result == -ETIMEDOUT:
                        return self.fail_late(replica)
            header = <RecordHeader*>(self.buffer + (block - base) * BLOCK_BYTES)
            if result == 0 and chained and self.is_newer(header, replica, block, limit):
                return self.fail_newer(replica, block)
            if result < 0 or not self.is_of(header, replica, block, limit) or \
                    block + 1 + header.payload_blocks > base + held:
                chained = False
                block += 1
                continue
            scan.stable = max(scan.stable, header.stable)
            if not chained or header.previous_crc != previous_crc or header.sequence <= previous:
                chained = False
                scan.stray = max(scan.stray, header.sequence)
                block += 1
                continue
            result = self.add_record(scan, header.sequence, block, header.crc, header.entries, header.entry_count)
            if result < 0:
                return result
            found = &scan.records[scan.record_count - 1]
            payload_block = 1
            for k in range(header.entry_count):
                if header.entries[k].kind != KIND_ZERO:
                    if (
                        crc32c(<char*>header + payload_block * BLOCK_BYTES, BLOCK_BYTES) != header.entries[k].crc
                        and not planted(b"torn_record_kept")
                    ):
                        found.torn = True
                    payload_block += 1
            previous = header.sequence
            previous_crc = header.crc
            block += 1 + header.payload_blocks
            scan.end = block
        return 0

    cdef bint is_of(
        self, const RecordHeader* header, const Replica* replica, uint32_t block, uint32_t limit
    ) noexcept nogil:
        """A record of this replica. One of another epoch is left from a deleted segment with its number and slabs."""
        return header.epoch == replica.epoch and \
            record_fault(header, self.volume.log.volume, replica.segment, block, limit).words is NULL

    cdef bint is_newer(
        self, const RecordHeader* header, const Replica* replica, uint32_t block, uint32_t limit
    ) noexcept nogil:
        """A record of this replica that a newer version wrote: ending the log there would lose it."""
        return (
            header.epoch == replica.epoch
            and record_fault(header, self.volume.log.volume, replica.segment, block, limit).newer
        )

    cdef int fail_newer(self, const Replica* replica, uint32_t block) noexcept nogil:
        return self.fail(
            EPROTONOSUPPORT,
            b"block %lu of segment %lu was written by a newer version of iomesh: use that one",
            block, replica.segment, 0
        )

    cdef int fail_late(self, const Replica* replica) noexcept nogil:
        return self.fail(ETIMEDOUT, b"segment %lu cannot be read: its device does not answer", replica.segment, 0, 0)

    cdef int add_record(
        self, Scan* scan, uint64_t sequence, uint32_t block, uint32_t crc, const Entry* entries, uint32_t count
    ) noexcept nogil:
        cdef Found* found
        if scan.record_count == scan.record_room:
            scan.record_room = 2 * scan.record_room + 64
            scan.records = <Found*>realloc(scan.records, scan.record_room * sizeof(Found))
        if scan.entry_count + count >= scan.entry_room:          # also for a first record without entries
            scan.entry_room = 2 * scan.entry_room + 1024
            scan.entries = <Entry*>realloc(scan.entries, scan.entry_room * sizeof(Entry))
        if scan.records is NULL or scan.entries is NULL:
            return self.fail(ENOMEM, b"no memory for the records of segment %lu", scan.replica.segment, 0, 0)
        found = &scan.records[scan.record_count]
        found.sequence = sequence
        found.block = block
        found.crc = crc
        found.first = scan.entry_count
        found.count = count
        found.torn = found.void = False
        memcpy(&scan.entries[scan.entry_count], entries, count * sizeof(Entry))
        scan.record_count += 1
        scan.entry_count += count
        return 0

    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
        snprintf(self.reason, sizeof(self.reason), text, a, b, c)
        return -error


cdef uint32_t record_end(const Scan* scan) noexcept nogil:
    """The block after the last record of a scan."""
    cdef const Found* last
    cdef uint32_t blocks = 1, i
    if scan.record_count == 0:
        return 0
    last = &scan.records[scan.record_count - 1]
    for i in range(last.first, last.first + last.count):
        if scan.entries[i].kind != KIND_ZERO:
            blocks += 1
    return last.block + blocks


cdef int by_number(const void* a, const void* b) noexcept nogil:
    cdef uint32_t first = (<Scan*>a).replica.segment, second = (<Scan*>b).replica.segment
    return (first > second) - (first < second)
