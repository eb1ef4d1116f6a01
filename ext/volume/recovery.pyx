# Recovery: opens a volume's log after a stop or a crash, in steps:
#
#     take_over        with replicas on other nodes: no former owner can write any more; this node gets what it lacks
#     list_replicas    every replica of the volume on this node's stores
#     read_checkpoint  the checkpoint that the metadata service points to: map root, segment table with its counters,
#                      snapshot table
#     scan_all         the records of every segment that may have some after the checkpoint: from footers, or else from
#                      headers
#     check_counted    everything that the checkpoint refers to was stable when its pointer moved: no open segment ends
#                      before that
#     cut_to_fragments of open segments count what all copies have, and of ended fragments what lies before their end
#     find_end         the log ends before the first record that is missing or torn. Segments at its end without user
#                      data are dropped too: records that an idle log wrote for `stable`, and parts of checkpoints whose
#                      pointer never moved. So repeated opens use no space
#     find_time        log time continues after the last record and never runs back
#     adopt            write again what is not known to be on stable media, seal open segments at that end, remove empty
#                      ones, open a new segment
#     replay           apply the entries after the checkpoint to the map, leaf by leaf
#
# Always true:
#   - nothing that was acknowledged and stable is lost silently: every header has a `stable` field, the last record
#     known to be so; if the log ends before the highest of them, it is damaged and the volume is not opened;
#   - every valid record is on stable media before new records follow it. A record that was read may be in a device's
#     cache only, and an earlier process may have failed to flush it: then a later successful flush does not cover it,
#     unless it is written again;
#   - a stable record whose payload is damaged stays in the log: reading those blocks is an error, reading others is
#     not;
#   - the map's counters after replay are exact, because the checkpoint's map and counters are;
#   - a record is valid only in a segment of its own epoch: slabs of deleted segments are reused;
#   - no number of a segment is given twice: numbers continue above all that were ever promised by the metadata service;
#   - opening needs no space: a volume opens on a device that has no free slab;
#   - recovery is idempotent: running it twice, or again after a crash during recovery, changes nothing.

from libc.errno cimport EHOSTUNREACH, EIO, ENOENT, ENOMEM, ENOSPC, EUCLEAN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release, qsort
from libc.string cimport memcmp, memset, strlen

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.log_clock cimport begin_log_clock
from iomesh.engine.format.footer cimport begin_footer, complete_footer, footer_blocks, list_record
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, KIND_DATA, KIND_ZERO, NODE_POINTERS, POINTER_PRESENT, SEGMENT_OPEN, SEGMENT_SEALED, SNAPSHOT_ENTRIES,
    SNAPSHOT_HIDDEN, SNAPSHOT_MARK, TABLE_ENTRIES, VOLUME_BYTES_MAX, Checkpoint, Entry, Fault, Footer, Pointer,
    RecordHeader, SnapshotEntry, TableEntry, block_crc, checkpoint_fault, snapshot_fault, table_fault
)
from iomesh.engine.map.map cimport Node
from iomesh.engine.base.planted cimport planted
from iomesh.engine.volume.copies cimport Copy
from iomesh.engine.volume.log_scan cimport CHUNK_BLOCKS, Found, record_end
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.store.store cimport Replica
from iomesh.engine.log.open_segments cimport FOR_WRITES
from iomesh.engine.base.task cimport wait, wait_in, waited
from iomesh.engine.volume.volume cimport Volume

cdef extern from "<errno.h>" nogil:
    int EPROTONOSUPPORT, ESTALE

cdef enum:
    PREFETCH = 48                    # leaves loaded ahead of the replay
    BREATHER = 1024                  # leaves after which the reactor serves others for a turn
    ORDER_BITS = 38                  # of an Item's key, below the leaf: 30 for the record, 8 for its entry

cdef struct Item:                    # one entry to replay; sorted by leaf, then by age
    uint64_t key
    uint32_t scan
    uint32_t entry
    uint32_t block                   # of the payload
    uint32_t unused


cdef class Recovery(LogScan):
    """checkpoint: (segment, block, crc) or None. copies: Copies, or None for a log without fragments."""

    def __cinit__(self, Volume volume, checkpoint, copies=None):
        self.copies = copies
        if checkpoint is not None:
            self.checkpoint.segment, self.checkpoint.block, self.checkpoint.crc = checkpoint
            self.checkpoint.flags = POINTER_PRESENT

    cdef int run(self) noexcept nogil:
        cdef int result
        self.removes_doubles = True
        if planted(b"number_given_again"):
            self.volume.log.open_segments.next_segment = max(self.volume.segments.branch, <uint32_t>1)
        result = self.list_replicas() if self.copies is None else self.take_over()
        if result == 0 and self.checkpoint.flags & POINTER_PRESENT:
            result = self.read_checkpoint()
        if result == 0:
            result = self.scan_all()
        if result == 0:
            self.cut_to_fragments()
            result = self.check_counted()
        if result == 0:
            result = self.find_end()
        if result == 0:
            result = self.find_time()
        if result == 0:
            result = self.adopt()
        if result == 0:
            result = self.replay()
        if result == 0 and self.copies is not None:
            result = self.await_fragment()
        if result == -EUCLEAN and self.copies is not None and not self.copies.everyone_answered():
            self.add_reason(b"; a device that does not answer may have it intact: start its node")
            result = -EHOSTUNREACH
        self.volume.checkpoints.replayed = result == 0
        self.volume.checkpoints.poke()                   # a checkpoint is due if there is no space
        return result

    cdef void add_reason(self, const char* words) noexcept nogil:
        cdef size_t length = strlen(self.reason)
        snprintf(self.reason + length, sizeof(self.reason) - length, b"%s", words)

    # ------------------------------------------------------------------ copies on other nodes

    cdef int take_over(self) noexcept nogil:
        cdef uint32_t i
        cdef int result
        self.volume.log.enter()
        result = self.copies.take_over()
        if result == 0:
            result = self.list_replicas()                # a former owner has changed some until it was fenced
        if result == 0:
            result = self.replace_outdated()
        if result == 0:
            result = self.copies.fetch_missing(is_here, <void*>self)
        if result == 1:
            result = self.list_again()
        for i in range(self.scan_count):
            if (
                result == 0
                and (self.scans[i].replica.state == SEGMENT_OPEN or self.copies.has_open(self.scans[i].replica.segment))
                and self.scans[i].replica.live == 0
                and not planted(b"doubtful_trusted")
            ):
                result = self.copies.merge(self.scans[i].replica, self.scans[i].member)
        if result == 0:
            result = self.copies.check_fragments()
        if result < 0 and self.reason[0] == 0:
            snprintf(self.reason, sizeof(self.reason), b"%s", self.copies.reason)
        return result

    cdef int replace_outdated(self) noexcept nogil:
        """What is shorter here than elsewhere. It stays until the whole one is here: as a member of its fragment, this
        node's device answers for its records."""
        cdef const Copy* longer
        cdef uint32_t i
        cdef bint replaced = False
        cdef int result = 0
        for i in range(self.scan_count):
            longer = self.copies.longer_than(self.scans[i].replica) if result == 0 else NULL
            if longer is not NULL:
                result = self.copies.fetch_copy(longer, self.scans[i].member)
                replaced = True
        return self.list_again() if result == 0 and replaced else result

    cdef int list_again(self) noexcept nogil:
        self.forget()
        return self.list_replicas()

    cdef Scan* need(self, uint32_t segment) noexcept nogil:
        """The segment's replica here, fetched from another node if it is only there; NULL: nobody who answers has
        it. Only before scan_all()."""
        cdef Scan* scan = self.scan_of(segment)
        cdef int result = -ENOENT
        if scan is NULL and self.copies is not None:
            result = self.copies.fetch(segment, -1)
        if result == 0 and self.list_again() == 0:
            scan = self.scan_of(segment)
        self.lacking = result
        return scan

    cdef int fail_lacking(self, const char* text, uint64_t a, uint64_t b) noexcept nogil:
        """After need(): why a segment is not here."""
        if self.lacking == -ENOENT:
            return self.fail(EUCLEAN, text, a, b, 0)
        snprintf(self.reason, sizeof(self.reason), b"%s", self.copies.reason)
        return self.lacking

    cdef void cut_to_fragments(self) noexcept nogil:
        cdef uint64_t end
        cdef uint32_t i
        cdef Scan* scan
        for i in range(self.scan_count if self.copies is not None else 0):
            scan = &self.scans[i]
            end = self.copies.end_of(scan.replica.fragment)
            while scan.record_count and scan.records[scan.record_count - 1].sequence >= end:
                scan.record_count -= 1
                scan.dropped += 1
            if scan.replica.state == SEGMENT_OPEN:
                scan.end = record_end(scan)

    cdef void settle_copies(self) noexcept nogil:
        """Seals the copies of what is sealed here."""
        cdef uint32_t i, end
        cdef Replica* replica
        for i in range(self.scan_count):
            replica = self.scans[i].replica
            if self.scans[i].useless:
                continue
            end = replica.footer_block if replica.footer_block else replica.blocks
            self.copies.seal(replica, self.scans[i].member, end)

    cdef int await_fragment(self) noexcept nogil:
        """Nothing is served before the metadata service knows the replica set of what is written next."""
        cdef const Segment* next_segment = NULL
        self.copies.adopt()
        if self.volume.log.open_segments.prepared is not NULL:
            next_segment = self.volume.log.open_segments.prepared.segment
        if next_segment is NULL or next_segment.replica.fragment == 0:
            return 0
        self.volume.log.open_segments.ask_for_fragment(next_segment, self.end + 1)
        while (
            not self.volume.log.error
            and not self.volume.log.open_segments.is_agreed(next_segment)
            and not planted(b"served_unagreed")
        ):
            wait_in(&self.volume.log.open_segments.changes)
        if self.volume.log.error:
            return self.fail(
                -self.volume.log.error,
                b"the metadata service did not agree to fragment %lu",
                next_segment.replica.fragment, 0, 0
            )
        self.copies.remove_rest()
        if self.end > self.start:                        # then earlier fragments leave the log's record
            self.volume.checkpoints.due = True
        return 0

    # ------------------------------------------------------------------ the checkpoint

    cdef int read_block(self, Pointer pointer, void* into) noexcept nogil:
        """Reads and verifies a block that the checkpoint points to."""
        cdef Scan* scan = self.need(pointer.segment)
        cdef int result
        if scan is NULL:
            return self.fail_lacking(
                b"segment %lu, which the checkpoint needs, is on no device of this node", pointer.segment, 0
            )
        if pointer.block >= scan.replica.blocks:
            return self.fail(
                EUCLEAN,
                b"the checkpoint points to block %lu of segment %lu, which ends at %lu",
                pointer.block, pointer.segment, scan.replica.blocks
            )
        result = self.read_blocks(scan.replica, pointer.block, 1, into)
        if result < 0:
            return self.fail(
                -result,
                b"block %lu of segment %lu, part of the checkpoint, cannot be read",
                pointer.block, pointer.segment, 0
            )
        if crc32c(into, BLOCK_BYTES) != pointer.crc:
            return self.fail(
                EUCLEAN,
                b"block %lu of segment %lu, part of the checkpoint, is damaged",
                pointer.block, pointer.segment, 0
            )
        return 0

    cdef int read_checkpoint(self) noexcept nogil:
        cdef Checkpoint* checkpoint = <Checkpoint*>(self.buffer + CHUNK_BLOCKS * BLOCK_BYTES)
        cdef int result = self.read_block(self.checkpoint, checkpoint)
        cdef Fault fault
        if result < 0:
            return result
        fault = checkpoint_fault(checkpoint, self.volume.log.volume)
        if fault.newer:
            return self.fail(
                EPROTONOSUPPORT,
                b"the checkpoint (block %lu of segment %lu) was written by a newer version of iomesh: use that one",
                self.checkpoint.block, self.checkpoint.segment, 0
            )
        if fault.words is not NULL:
            return self.fail(
                EUCLEAN,
                b"block %lu of segment %lu is no checkpoint of this volume",
                self.checkpoint.block, self.checkpoint.segment, 0
            )
        self.detached = self.volume.segments.branch == 0 and checkpoint.branch != 0 and checkpoint.inherited == 0 and \
            not planted(b"detached_refused")
        if (
            not self.detached
            and (
                checkpoint.branch != self.volume.segments.branch
                or memcmp(checkpoint.lineage_snapshot, self.volume.checkpoints.writer.lineage_snapshot, 16) != 0
            )
        ):
            return self.fail(
                EUCLEAN,
                b"the checkpoint is of a clone that branched off at segment %lu, "
                b"and not at %lu of the snapshot that it stands on",
                checkpoint.branch, self.volume.segments.branch, 0
            )
        if not checkpoint.counted:
            return self.fail(
                EUCLEAN,
                b"the checkpoint is of a version that did not count blocks: "
                b"that one has to copy the volume to one of this version",
                0, 0, 0
            )
        self.start = checkpoint.sequence
        self.volume.map.root = self.volume.checkpoints.root = checkpoint.root
        self.volume.log.open_segments.next_segment = max(
            self.volume.log.open_segments.next_segment, checkpoint.next_segment
        )
        self.volume.checkpoints.sequence = checkpoint.sequence
        self.volume.checkpoints.pointer = self.checkpoint
        if not self.volume.checkpoints.writer.is_described(checkpoint):
            self.volume.checkpoints.writer.changes += 1  # since then
        result = self.read_table(checkpoint)
        if result == 0:
            result = self.read_snapshots(checkpoint)
        return result

    cdef int read_table(self, Checkpoint* checkpoint) noexcept nogil:
        cdef Pointer* index = <Pointer*>self.buffer
        cdef TableEntry* table = <TableEntry*>(self.buffer + BLOCK_BYTES)
        cdef TableEntry* entry
        cdef Segment* segment
        cdef Scan* scan
        cdef Fault fault
        cdef uint32_t i, k, n = 0
        cdef int result
        for i in range(checkpoint.index_count):
            result = self.read_block(checkpoint.index[i], index)
            if result < 0:
                return result
            for k in range(min(<uint32_t>NODE_POINTERS, checkpoint.table_blocks - i * NODE_POINTERS)):
                result = self.read_block(index[k], table)
                if result < 0:
                    return result
                for n in range(
                    min(<uint32_t>TABLE_ENTRIES, checkpoint.table_entries - (i * NODE_POINTERS + k) * TABLE_ENTRIES)
                ):
                    entry = &table[n]
                    fault = table_fault(entry, checkpoint)
                    if fault.words is not NULL:
                        snprintf(
                            self.reason, sizeof(self.reason),
                            b"segment %u in the segment table of the checkpoint: %s",
                            entry.segment, fault.words
                        )
                        return -EUCLEAN
                    scan = self.scan_of(entry.segment) if entry.live == 0 else self.need(entry.segment)
                    if scan is NULL:
                        if entry.live == 0:
                            continue                     # deleted after this checkpoint
                        return self.fail_lacking(
                            b"segment %lu, with %lu live blocks, is on no device of this node",
                            entry.segment, entry.live
                        )
                    if self.volume.segments.find(entry.segment) is not NULL:
                        return self.fail(
                            EUCLEAN, b"segment %lu is twice in the segment table of the checkpoint", entry.segment, 0, 0
                        )
                    segment = self.volume.segments.add(entry.segment)
                    segment.blocks = entry.blocks        # until scan_all() has compared it with the replica's
                    segment.live = entry.live
                    segment.state = entry.state
                    segment.stream = entry.stream
                    segment.first_sequence = entry.first_sequence
                    segment.last_sequence = entry.last_sequence
                    segment.replica = scan.replica
                    segment.member = scan.member
                    self.volume.segments.live += entry.live
        # segments that contain the checkpoint stay until the next one
        for i in range(checkpoint.index_count):
            result = self.read_block(checkpoint.index[i], index)
            if result < 0:
                return result
            for k in range(min(<uint32_t>NODE_POINTERS, checkpoint.table_blocks - i * NODE_POINTERS)):
                keep(self, index[k].segment, checkpoint.sequence)
            keep(self, checkpoint.index[i].segment, checkpoint.sequence)
        keep(self, self.checkpoint.segment, checkpoint.sequence)
        return 0

    cdef int read_snapshots(self, Checkpoint* checkpoint) noexcept nogil:
        cdef Pointer* index = <Pointer*>self.buffer
        cdef SnapshotEntry* table = <SnapshotEntry*>(self.buffer + BLOCK_BYTES)
        cdef Fault fault
        cdef const char* words
        cdef uint32_t blocks = (checkpoint.snapshot_entries + SNAPSHOT_ENTRIES - 1) // SNAPSHOT_ENTRIES, i, n
        cdef int result = 0
        if checkpoint.snapshot_entries:
            result = self.read_block(checkpoint.snapshots, index)
            keep(self, checkpoint.snapshots.segment, checkpoint.sequence)
        for i in range(blocks):
            if result == 0:
                result = self.read_block(index[i], table)
            if result < 0:
                return result
            keep(self, index[i].segment, checkpoint.sequence)
            for n in range(min(<uint32_t>SNAPSHOT_ENTRIES, checkpoint.snapshot_entries - i * SNAPSHOT_ENTRIES)):
                fault = snapshot_fault(&table[n], checkpoint)
                if fault.words is not NULL:
                    snprintf(
                        self.reason, sizeof(self.reason),
                        b"snapshot %u of the checkpoint's table: %s",
                        i * SNAPSHOT_ENTRIES + n, fault.words
                    )
                    return -EUCLEAN
                if self.detached and table[n].inherited:
                    return self.fail(
                        EUCLEAN,
                        b"snapshot %lu of the checkpoint's table has blocks of a volume that this one is no clone of "
                        b"any more",
                        i * SNAPSHOT_ENTRIES + n, 0, 0
                    )
                if self.volume.snapshots.find(table[n].id) is not NULL:
                    return self.fail(
                        EUCLEAN,
                        b"snapshot %lu of the checkpoint's table is in it twice",
                        i * SNAPSHOT_ENTRIES + n, 0, 0
                    )
                if self.volume.snapshots.add(&table[n]) < 0:
                    return self.fail(ENOMEM, b"no memory for %lu snapshots", checkpoint.snapshot_entries, 0, 0)
                self.newest_ns = max(self.newest_ns, table[n].time_ns)
                if (
                    table[n].flags & SNAPSHOT_MARK
                    and not table[n].flags & SNAPSHOT_HIDDEN
                    and table[n].time_ns > self.marked_ns
                ):
                    self.marked_ns = table[n].time_ns
                    self.marked_clock_ns = self.clock_ns = table[n].clock_ns
        words = self.volume.snapshots.adopt(checkpoint.head_parent, checkpoint.pin_data, checkpoint.pin_nodes)
        if result == 0 and words is not NULL:
            return self.fail(EUCLEAN, words, 0, 0, 0)
        self.volume.segments.pin(checkpoint.pin_data, checkpoint.pin_nodes)
        self.volume.segments.recount(checkpoint.mapped, checkpoint.inherited, checkpoint.exclusive)
        self.volume.segments.kept_from = self.volume.snapshots.oldest_mark
        if self.volume.snapshots.dying() is not NULL:
            self.volume.segments.reclaim_holds += 1      # as when it started to die: until its walk
        return result

    # ------------------------------------------------------------------ records

    cdef int scan_all(self) noexcept nogil:
        cdef Segment* segment
        cdef Scan* scan
        cdef uint32_t i
        cdef int result
        cdef bint same
        for i in range(self.scan_count):
            scan = &self.scans[i]
            segment = self.volume.segments.find(scan.replica.segment)
            same = segment is NULL or segment.blocks == scan.replica.blocks or scan.replica.live != 0
            if segment is not NULL:
                segment.blocks = scan.replica.blocks
            if (
                segment is not NULL
                and segment.state == SEGMENT_SEALED
                and segment.last_sequence <= self.start
                and scan.replica.state == SEGMENT_SEALED
            ):
                result = 0 if same or self.copies is None else self.check_whole(scan, segment)
                if result < 0:
                    return result
                continue
            if scan.replica.live:                        # compacted: older than the checkpoint; dead if not in it
                if segment is not NULL:
                    segment.state = SEGMENT_SEALED       # only sealed segments are compacted
                continue
            result = self.scan_footer(scan) if scan.replica.state == SEGMENT_SEALED and scan.replica.footer_block else 1
            if result > 0:
                result = self.scan_headers(scan)
            if result < 0:
                return result
            if (
                scan.replica.state == SEGMENT_SEALED
                and scan.end < scan.replica.footer_block
                and self.copies is not None
            ):
                result = self.copies.merge(scan.replica, scan.member)    # gets the headers that are damaged
                scan.record_count = scan.entry_count = 0
                if result == 0:
                    result = self.scan_headers(scan)
                if result < 0:
                    return result
            if scan.replica.state == SEGMENT_SEALED and scan.end < scan.replica.footer_block:    # all of it was stable
                return self.fail(
                    EUCLEAN,
                    b"segment %lu is sealed, but neither its footer nor its record at block %lu can be read",
                    scan.replica.segment, scan.end, 0
                )
        return 0

    cdef int check_whole(self, Scan* scan, const Segment* segment) noexcept nogil:
        """Of a segment behind which the checkpoint lies: a former owner may have sealed it here without its last
        records, which the next one has kept on other nodes."""
        cdef uint64_t last
        cdef int result = self.scan_footer(scan) if scan.replica.footer_block else 1
        if result > 0:
            scan.record_count = scan.entry_count = 0
            result = self.scan_headers(scan)
        last = scan.records[scan.record_count - 1].sequence if scan.record_count else 0
        scan.record_count = scan.entry_count = 0
        if result == 0 and segment.live and last < segment.last_sequence and not planted(b"shorter_replica_kept"):
            return self.fail(
                EUCLEAN,
                b"segment %lu ends here with record %lu, and the checkpoint needs it up to record %lu",
                scan.replica.segment, last, segment.last_sequence
            )
        return result

    cdef int check_counted(self) noexcept nogil:
        """Headers state how far the log was stable when they were written, and after a checkpoint's records there may
        be no header yet. But its own records and those it includes were stable too: ending the log before them would
        lose blocks that its maps point to."""
        cdef Scan* scan
        cdef const Segment* segment
        cdef uint64_t last, counted
        cdef uint32_t i
        for i in range(self.scan_count):
            scan = &self.scans[i]
            if planted(b"cut_before_checkpoint") or (
                scan.replica.state != SEGMENT_OPEN and (self.copies is None or scan.record_count == 0)
            ):
                continue
            segment = self.volume.segments.find(scan.replica.segment)
            last = scan.records[scan.record_count - 1].sequence if scan.record_count else 0
            # later records may be elsewhere now
            counted = min(segment.last_sequence, self.start) if segment is not NULL else 0
            if segment is not NULL and segment.live == 0 and segment.table_of != self.start and last < counted:
                # Left by a failed flush: sealed elsewhere, before or after the checkpoint, and deleted there since.
                scan.record_count = 0
                continue
            if (
                (
                    self.checkpoint.flags & POINTER_PRESENT
                    and scan.replica.segment == self.checkpoint.segment
                    and scan.end <= self.checkpoint.block
                )
                or (segment is not NULL and segment.first_sequence <= counted and last < counted)
            ):
                return self.fail(
                    EUCLEAN,
                    b"the header that should follow block %lu of segment %lu is damaged or gone, "
                    b"and the checkpoint at record %lu needs what lies behind it",
                    scan.end, scan.replica.segment, self.start
                )
        return 0

    cdef uint64_t record_of_checkpoint(self) noexcept nogil:
        """Sequence number of the record with the checkpoint's block: it and all before it were stable when the pointer
        moved. 0: unknown."""
        cdef uint64_t sequence = 0
        cdef Scan* scan
        cdef uint32_t i, r
        for i in range(self.scan_count):
            scan = &self.scans[i]
            if not self.checkpoint.flags & POINTER_PRESENT or scan.replica.segment != self.checkpoint.segment:
                continue
            for r in range(scan.record_count):
                if scan.records[r].block < self.checkpoint.block:
                    sequence = scan.records[r].sequence
        return sequence

    cdef int find_end(self) noexcept nogil:
        """Cuts the log, and each segment, before the first record after the checkpoint that is missing, or torn and not
        known to be stable."""
        cdef uint64_t stable = max(self.start, self.record_of_checkpoint()), missing
        cdef uint32_t i, segment = 0, block = 0
        cdef Scan* scan
        cdef Found* found
        cdef bint moved = True, torn = False
        cdef int result
        cdef uint32_t* next_record = <uint32_t*>calloc(self.scan_count + 1, sizeof(uint32_t))
        if next_record is NULL:
            return self.fail(ENOMEM, b"no memory for %lu segments", self.scan_count, 0, 0)
        for i in range(self.scan_count):
            stable = max(stable, self.scans[i].stable)
            if planted(b"any_record_is_proof"):
                stable = max(stable, self.scans[i].stray)
        self.end = self.start
        while moved:                                     # each pass handles at least a whole segment
            moved = False
            for i in range(self.scan_count):
                scan = &self.scans[i]
                while next_record[i] < scan.record_count:
                    found = &scan.records[next_record[i]]
                    if found.sequence > self.end + 1 or (found.torn and found.sequence > stable):
                        break                            # even if whole elsewhere: written twice, one copy is enough
                    if found.sequence == self.end + 1:
                        self.end += 1
                        moved = True
                    next_record[i] += 1
        for i in range(self.scan_count):                 # records after the end are dropped
            scan = &self.scans[i]
            torn = torn or (
                next_record[i] < scan.record_count
                and scan.records[next_record[i]].torn
                and scan.records[next_record[i]].sequence == self.end + 1
            )
            self.scans[i].dropped += self.scans[i].record_count - next_record[i]
            self.scans[i].record_count = next_record[i]
        release(next_record)
        self.stable = stable
        if torn and self.copies is not None and not self.copies.all_have_answered(self.end + 1):
            return self.fail(                            # it may have been flushed, and damaged here since
                EHOSTUNREACH,
                b"record %lu is not whole here, and may be so on a device that does not answer: start the nodes of the "
                b"other devices",
                self.end + 1, 0, 0
            )
        if self.copies is not None:
            result = self.check_ended()
            if result < 0:
                return result
        self.drop_older_copies()
        if self.end < stable:
            missing = self.end + 1
            for i in range(self.scan_count):
                if (
                    self.scans[i].record_count
                    and self.scans[i].records[self.scans[i].record_count - 1].sequence < missing
                ):
                    segment, block = self.scans[i].replica.segment, self.scans[i].end
            return self.fail(
                EUCLEAN,
                b"record %lu was acknowledged and stable, but its header is damaged or gone (it should follow block "
                b"%lu of segment %lu)",
                missing, block, segment
            )
        self.leave_out()
        return self.check_torn() if self.copies is not None and not self.copies.everyone_answered() else 0

    cdef int check_torn(self) noexcept nogil:
        """A record that was committed, and is not whole here, is so on another device."""
        cdef const Scan* scan
        cdef uint32_t i, r
        for i in range(self.scan_count):
            scan = &self.scans[i]
            for r in range(scan.record_count if scan.replica.state == SEGMENT_OPEN else 0):
                if scan.records[r].torn and not scan.records[r].void:
                    return self.fail(
                        EHOSTUNREACH,
                        b"record %lu is not whole on any device that answers: start the nodes of the other devices",
                        scan.records[r].sequence, 0, 0
                    )
        return 0

    cdef int check_ended(self) noexcept nogil:
        """Every record before the current fragment was committed. Unless all members of its fragment lost power
        together, one of them has it."""
        cdef uint64_t missing = self.end + 1
        if missing >= self.copies.current_first() or self.copies.all_have_answered(missing) or \
                planted(b"fragment_not_complete"):
            return 0
        return self.fail(
            EHOSTUNREACH,
            b"record %lu was acknowledged, and no device that answers has it: start the nodes of the other devices",
            missing, 0, 0
        )

    cdef void drop_older_copies(self) noexcept nogil:
        """A record that was placed again, after a failed or unanswered write, may be in several segments: in full, torn
        or not at all. Its first write may even have arrived last. Sequence number and content are the same in all of
        them. The newest whole copy counts, which is in the segment with the highest number: earlier segments end before
        their older copies. A torn copy does not count if there is a whole one."""
        cdef uint64_t first_later = ~<uint64_t>0
        cdef uint32_t i = self.scan_count, r
        cdef Scan* scan
        while i:
            i -= 1
            scan = &self.scans[i]
            if scan.record_count == 0:
                continue
            while scan.record_count and scan.records[scan.record_count - 1].sequence >= first_later:
                if scan.records[scan.record_count - 1].sequence <= self.start or \
                        not self.has_whole_copy(i + 1, self.scan_count, scan.records[scan.record_count - 1].sequence):
                    break
                scan.record_count -= 1
                scan.dropped += 1
            if scan.record_count:
                first_later = min(first_later, scan.records[0].sequence)
        for i in range(self.scan_count):
            scan = &self.scans[i]
            for r in range(scan.record_count):
                if scan.records[r].torn:
                    scan.records[r].void = self.has_whole_copy(0, self.scan_count, scan.records[r].sequence)

    cdef bint has_whole_copy(self, uint32_t first, uint32_t end, uint64_t sequence) noexcept nogil:
        """Whether one of these scans has the record in full."""
        cdef const Scan* scan
        cdef uint32_t i, low, high, middle
        for i in range(first, end):
            scan = &self.scans[i]
            if scan.record_count == 0 or sequence < scan.records[0].sequence:
                continue
            if sequence > scan.records[scan.record_count - 1].sequence:
                continue
            low, high = 0, scan.record_count
            while low < high:
                middle = (low + high) // 2
                if scan.records[middle].sequence < sequence:
                    low = middle + 1
                else:
                    high = middle
            if scan.records[low].sequence == sequence and not scan.records[low].torn:
                return True
        return False

    cdef void leave_out(self) noexcept nogil:
        """Drops segments at the log's end without user data and without parts of the checkpoint. Only whole segments: a
        footer written over a record would leave, for a short time, a later record that states it was stable. With
        copies on other nodes such a record may stay there: nothing is dropped."""
        cdef uint32_t i = self.scan_count if self.copies is None else 0, r
        cdef Scan* scan
        while i:
            i -= 1
            scan = &self.scans[i]
            for r in range(scan.record_count):
                if scan.records[r].sequence <= self.start or is_needed(self, scan, &scan.records[r]):
                    return
            if scan.record_count:
                self.end = scan.records[0].sequence - 1
                scan.dropped += scan.record_count
                scan.record_count = 0

    # ------------------------------------------------------------------ opening the log

    cdef int find_time(self) noexcept nogil:
        """Log time continues after the last record, whatever the wall clock was set to since."""
        cdef RecordHeader* header = <RecordHeader*>self.buffer
        cdef Scan* scan
        cdef Found* found
        cdef uint32_t i
        for i in range(self.scan_count):
            scan = &self.scans[i]
            found = &scan.records[scan.record_count - 1] if scan.record_count else NULL
            if found is NULL or found.sequence != self.end:
                continue
            if self.read_blocks(scan.replica, found.block, 1, header) < 0:
                return self.fail(EIO, b"record %lu, the last one of the log, cannot be read", self.end, 0, 0)
            if self.is_of(header, scan.replica, found.block, scan.replica.blocks):
                self.newest_ns = max(self.newest_ns, header.time_ns)
                self.clock_ns = header.clock_ns
        self.volume.log.recorded_ns = self.newest_ns
        begin_log_clock(
            &self.volume.log.clock,
            self.io,
            0 if planted(b"time_runs_back") else self.newest_ns,
            self.clock_ns,
            self.marked_ns,
            self.marked_clock_ns,
        )
        return 0

    cdef int adopt(self) noexcept nogil:
        cdef Segment* segment
        cdef Scan* scan
        cdef int64_t i
        cdef int k
        cdef uint32_t last
        cdef int result
        for i in range(self.scan_count):
            scan = &self.scans[i]
            self.volume.log.open_segments.next_segment = max(
                self.volume.log.open_segments.next_segment, scan.replica.segment + 1
            )
            segment = self.volume.segments.find(scan.replica.segment)
            if (
                segment is not NULL
                and scan.record_count == 0
                and scan.dropped == 0
                and scan.replica.state == SEGMENT_SEALED
            ):
                continue
            last = scan.record_count
            scan.end = record_end(scan)
            if segment is not NULL and last == 0 and (segment.live or segment.table_of == self.start):
                return self.fail(
                    EUCLEAN,
                    b"none of the records of segment %lu, which the checkpoint needs, can be read",
                    scan.replica.segment, 0, 0
                )
            if last == 0 or (segment is NULL and scan.records[last - 1].sequence <= self.start):
                if segment is not NULL:
                    self.volume.segments.remove(segment)
                scan.useless = True                      # it has no valid record, or died before the checkpoint
                continue
            if segment is NULL:
                segment = self.volume.segments.add(scan.replica.segment)
                segment.stream = scan.replica.stream
                segment.replica = scan.replica
                segment.member = scan.member
            segment.first_sequence = scan.records[0].sequence
            segment.last_sequence = scan.records[last - 1].sequence
            if scan.replica.state == SEGMENT_OPEN or scan.dropped or is_longer(scan):
                result = self.seal(scan)
                if result < 0:
                    return self.fail(
                        -result, b"segment %lu cannot be sealed at block %lu", scan.replica.segment, scan.end, 0
                    )
            segment.state = SEGMENT_SEALED
            segment.blocks = scan.replica.blocks
        for i in range(<int64_t>self.scan_count - 1, -1, -1):      # newest first: their `stable` covers older ones
            if self.scans[i].useless:
                result = remove_replica(self, &self.scans[i])
                if result < 0:
                    return self.fail(
                        -result, b"segment %lu, which is empty, cannot be removed", self.scans[i].replica.segment, 0, 0
                    )
        if self.copies is not None:
            self.settle_copies()
        self.volume.log.sequence = self.volume.log.committed = self.volume.log.content = self.end
        for k in range(self.volume.log.open_segments.local_count):     # records read may be in its cache only
            result = self.make_stable(k)
            if result < 0:
                return self.fail(-result, b"device %lu cannot be flushed", k, 0, 0)
        self.volume.log.flusher.stable = self.volume.log.flusher.committed = self.volume.log.marked = self.end
        self.volume.log.open_segments.first_segment = self.volume.log.open_segments.next_segment
        result = self.volume.log.open_segments.prepare_now(FOR_WRITES)
        # a new volume has nothing to read
        if self.volume.log.error == -ESTALE:
            return self.fail(ESTALE, b"another node has taken the volume over", 0, 0, 0)
        if result < 0 and (result != -ENOSPC or (self.volume.log.epoch == 1 and self.volume.parent is NULL)):
            return self.fail(-result, b"no segment can be opened: no device of this node has room or works", 0, 0, 0)
        self.volume.checkpoints.content = self.start if self.end == self.start else 0
        self.volume.checkpoints.ready = True
        return 0

    cdef int seal(self, Scan* scan) noexcept nogil:
        """Seals an open replica: writes its footer after the last valid record."""
        cdef Replica* replica = scan.replica
        cdef Footer* footer
        cdef uint32_t entries = 0, end = scan.end, footer_block = 0, blocks, i
        cdef void* member = self.volume.log.open_segments.members[scan.member]
        cdef int result = 0
        for i in range(scan.record_count):
            entries += 1 + scan.records[i].count
        blocks = footer_blocks(entries)
        if scan.end + blocks <= replica.blocks:
            footer = <Footer*>allocate_aligned(blocks * BLOCK_BYTES)
            if footer is NULL:
                return -ENOMEM
            build_footer(footer, scan, self.volume.log.volume)
            result = (<Member>member).fill(replica.segment, replica, scan.end, blocks, footer)
            self.io.release(footer)
            if result == 0:
                footer_block = scan.end
                end = scan.end + blocks
        if (
            (<Member>member).volatile_cache
            and replica.state == SEGMENT_OPEN
            and not planted(b"tail_not_rewritten")
        ):
            result = self.write_again(scan)
            if result < 0:
                return result
        result = self.make_stable(scan.member)           # before the journal has it
        if result < 0:
            return result
        return (<Member>member).seal(replica.segment, replica.epoch, replica, end, footer_block, False)

    cdef int make_stable(self, uint32_t member) noexcept nogil:
        if planted(b"adopt_without_flush"):
            return 0
        return (<Member>self.volume.log.open_segments.members[member]).make_stable()

    cdef int write_again(self, Scan* scan) noexcept nogil:
        """Writes valid records not known to be on stable media again, in place: a crash in between changes nothing. In
        a doubtful replica those that are known to be so may be on other devices only."""
        cdef uint32_t first, end, block, r = 0, past
        cdef int result = 0
        cdef bint doubtful = (
            (<Member>self.volume.log.open_segments.members[scan.member]).is_doubtful(scan.replica)
            and not planted(b"doubtful_not_written_again")
        )
        while r < scan.record_count and scan.records[r].sequence <= self.stable and not doubtful:
            r += 1
        while r < scan.record_count and result == 0:
            first = end = scan.records[r].block
            past = r
            while past < scan.record_count:
                block = scan.records[past + 1].block if past + 1 < scan.record_count else record_end(scan)
                if block > first + CHUNK_BLOCKS:
                    break
                end = block
                past += 1
            result = self.read_blocks(scan.replica, first, end - first, self.buffer)
            while r < past:
                if (
                    result == 0
                    and not self.is_as_read(
                        scan, &scan.records[r], self.buffer + (scan.records[r].block - first) * BLOCK_BYTES
                    )
                ):
                    result = -EIO                        # it was valid in the scan
                r += 1
            if result == 0:
                result = (<Member>self.volume.log.open_segments.members[scan.member]).fill(
                    scan.replica.segment, scan.replica, first, end - first, self.buffer
                )
        return result

    cdef bint is_as_read(self, const Scan* scan, const Found* found, const char* record) noexcept nogil:
        cdef const Entry* entry = &scan.entries[found.first]
        cdef uint32_t _i
        if (<const RecordHeader*>record).crc != found.crc or block_crc(record) != found.crc:
            return False
        if found.torn:
            return True
        for _i in range(found.count):
            if entry.kind != KIND_ZERO:
                record += BLOCK_BYTES
                if crc32c(record, BLOCK_BYTES) != entry.crc:
                    return False
            entry += 1
        return True

    # ------------------------------------------------------------------ replay

    cdef int replay(self) noexcept nogil:
        cdef Item* items = NULL
        cdef uint64_t count = 0, room = 0, leaf, ahead = 0, window = 0, leaves = 0, i = 0
        cdef uint32_t s, r, e, block
        cdef Scan* scan
        cdef Found* found
        cdef Entry* entry
        cdef Node* node
        cdef Operation operation
        cdef int result = 0
        for s in range(self.scan_count):
            room += self.scans[s].entry_count
        items = <Item*>calloc(room + 1, sizeof(Item))
        if items is NULL:
            return self.fail(ENOMEM, b"no memory to replay %lu entries", room, 0, 0)
        for s in range(self.scan_count):
            scan = &self.scans[s]
            for r in range(scan.record_count):
                found = &scan.records[r]
                if found.void:
                    continue
                if (
                    not self.start < found.sequence + planted(b"replay_one_more")
                    or not found.sequence <= self.end - planted(b"replay_one_less")
                ):
                    continue
                block = found.block + 1
                self.replayed_records += 1
                self.replayed_bytes += BLOCK_BYTES
                for e in range(found.first, found.first + found.count):
                    entry = &scan.entries[e]
                    if entry.kind == KIND_DATA or (entry.kind == KIND_ZERO and not planted(b"zeros_not_replayed")):
                        if entry.position >= VOLUME_BYTES_MAX // BLOCK_BYTES:
                            release(items)
                            return self.fail(
                                EUCLEAN,
                                b"record %lu in segment %lu names block %lu, beyond the largest volume",
                                found.sequence, scan.replica.segment, entry.position
                            )
                        items[count].key = (
                            (entry.position // NODE_POINTERS) << ORDER_BITS
                            | (found.sequence - self.start) << 8
                            | (255 + found.first - e if planted(b"order_in_record_reversed") else e - found.first)
                        )
                        items[count].scan = s
                        items[count].entry = e
                        items[count].block = block
                        count += 1
                    if entry.kind != KIND_ZERO:
                        block += 1
                        self.replayed_bytes += BLOCK_BYTES
        qsort(items, count, sizeof(Item), by_key)
        while i < count:
            leaf = items[i].key >> ORDER_BITS
            while ahead < count and window < PREFETCH and self.volume.map.cache.loading < PREFETCH:
                self.volume.map.expect(0, items[ahead].key >> ORDER_BITS)
                ahead = next_leaf(items, ahead, count)
                window += 1
            node = NULL
            while node is NULL and result == 0:
                waited(&operation)
                node = self.volume.map.get(0, leaf, True, &operation)
                if node is NULL:
                    self.volume.checkpoints.poke()
                    result = <int>wait(&operation)
            if node is NULL:
                release(items)
                return self.fail(-result, b"the map's leaf %lu cannot be read", leaf, 0, 0)
            while i < count and items[i].key >> ORDER_BITS == leaf:
                if result == 0:
                    result = apply(self, node, &items[i])
                i += 1
            self.volume.map.unpin(node)
            if result < 0:
                release(items)
                return result
            ahead = max(ahead, i)
            window = window - 1 if window else 0
            leaves += 1
            if leaves % BREATHER == 0:
                waited(&operation)
                self.io.after(&operation, 0)
                wait(&operation)
        release(items)
        self.volume.log.bytes_at_checkpoint = self.volume.log.bytes - self.replayed_bytes
        return result


cdef int apply(Recovery recovery, Node* leaf, Item* item) noexcept nogil:
    cdef Entry* entry = &recovery.scans[item.scan].entries[item.entry]
    cdef Pointer pointer
    cdef uint32_t slot = entry.position % NODE_POINTERS, count, i
    memset(&pointer, 0, sizeof(pointer))
    if entry.kind == KIND_DATA:
        pointer.segment = recovery.scans[item.scan].replica.segment
        pointer.block = item.block
        pointer.crc = entry.crc
        pointer.flags = POINTER_PRESENT
        count = 1
    else:
        count = min(<uint32_t>entry.count, <uint32_t>NODE_POINTERS - slot)
    for i in range(slot, slot + count):
        if pointer.flags or leaf.pointers[i].flags & POINTER_PRESENT:
            if not recovery.volume.segments.lives(leaf.pointers[i]):
                return recovery.fail(
                    EUCLEAN,
                    b"the map points to block %lu of segment %lu, where by the checkpoint's count no block lives",
                    leaf.pointers[i].block, leaf.pointers[i].segment, 0
                )
            recovery.volume.segments.replace(recovery.volume.map.set(leaf, i, pointer, max(recovery.end, 1)), pointer)
    return 0


cdef uint64_t next_leaf(Item* items, uint64_t i, uint64_t count) noexcept nogil:
    cdef uint64_t leaf = items[i].key >> ORDER_BITS
    while i < count and items[i].key >> ORDER_BITS == leaf:
        i += 1
    return i


cdef bint is_longer(const Scan* scan) noexcept nogil:
    """Sealed without a footer, behind its last record: it was fetched from another node while it was open."""
    return scan.replica.footer_block == 0 and scan.replica.live == 0 and scan.end < scan.replica.blocks


cdef bint is_here(void* recovery, uint32_t segment) noexcept nogil:
    return (<Recovery>recovery).scan_of(segment) is not NULL


cdef void keep(Recovery recovery, uint32_t number, uint64_t checkpoint) noexcept nogil:
    cdef Segment* segment = recovery.volume.segments.find(number)
    if segment is not NULL:
        segment.table_of = checkpoint


cdef bint is_needed(Recovery recovery, const Scan* scan, const Found* found) noexcept nogil:
    """Whether a record has user data or trims, or is the checkpoint's last record."""
    cdef const Pointer* checkpoint = &recovery.checkpoint
    cdef uint32_t i, blocks = 1
    for i in range(found.first, found.first + found.count):
        if scan.entries[i].kind == KIND_DATA or scan.entries[i].kind == KIND_ZERO:
            return True
        blocks += 1
    return (
        checkpoint.flags & POINTER_PRESENT
        and scan.replica.segment == checkpoint.segment
        and found.block < checkpoint.block < found.block + blocks
    )


cdef void build_footer(Footer* footer, const Scan* scan, const uint8_t* volume) noexcept nogil:
    """Builds the footer of a replica's valid records, followed by its table."""
    cdef const Replica* replica = scan.replica
    cdef const Found* last = &scan.records[scan.record_count - 1]
    cdef const Found* found
    cdef Entry* table = <Entry*>(<char*>footer + BLOCK_BYTES)
    cdef uint32_t listed = 0, i
    for i in range(scan.record_count):
        found = &scan.records[i]
        listed = list_record(table, listed, found.sequence, found.crc, &scan.entries[found.first], found.count)
    begin_footer(footer, volume, replica.segment, replica.epoch, replica.stream)
    footer.block = scan.end
    footer.first_sequence = scan.records[0].sequence
    footer.last_sequence = last.sequence
    footer.stable = min(scan.stable, last.sequence)
    footer.last_crc = last.crc
    complete_footer(footer, table, listed)


cdef int remove_replica(Recovery recovery, Scan* scan) noexcept nogil:
    scan.record_count = 0
    return recovery.remove_copy(scan)


cdef int by_key(const void* a, const void* b) noexcept nogil:
    cdef uint64_t first = (<Item*>a).key, second = (<Item*>b).key
    if first == second:                                  # copies of one record: the newest segment's is applied last
        first, second = (<Item*>a).scan, (<Item*>b).scan
    return (first > second) - (first < second)
