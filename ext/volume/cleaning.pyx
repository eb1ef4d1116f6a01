# Cleaning a volume's segments that a policy chose: frees the space of their dead blocks by compaction or evacuation.
#
#     derive       find the live blocks, from the footer and the maps (below)
#     make stable  flush the log: the writes that made blocks dead are on stable media before those blocks are dropped
#     carry out    compact: the store rewrites the live blocks densely, and their addresses stay. Or, if less than a
#                  sixth is live and no snapshot has blocks in it, evacuate: append the live blocks to the log again,
#                  like a user's writes, so that the segment dies
#
# A dead segment is deleted after the next checkpoint. Until then the newest checkpoint may need nodes in it and lists
# it in its segment table. Its space is freed earlier: the segment is compacted to its footer and those nodes.
#
# Liveness is derived each time and never stored: a block is live if a tree points to it. Few trees have to be searched.
# An address below the cut of a tree's parent is in that tree only if it is in the parent's, so each tree is searched
# for its era only: addresses from its parent's cut up to its own; the head's era has no end. In a volume that was never
# restored to a snapshot, eras do not overlap. For nodes, the newest checkpoint's tree is searched instead of the
# head's, because recovery may have to read it: it has every node of these segments that the head has.
#
# Always true:
#   - a segment is cleaned only if it is sealed, older than the newest checkpoint, holds none of its tables and has a
#     footer; by one worker, and it is not removed meanwhile (`Segment.cleaning`);
#   - dead blocks stay dead: a block that no tree points to is never pointed to again. So writes, checkpoints and new
#     snapshots may happen between the derivation and the rewrite. If a snapshot is created or deleted *during* the
#     derivation, its result is discarded;
#   - no block is dropped while a snapshot's trees are being compared (SegmentTable.reclaim_holds);
#   - at most WORKERS segments are cleaned concurrently, over all calls, so that one is read while another is written or
#     flushed; derivations run one at a time, because they share the trees;
#   - a derivation that finds fewer live blocks than the segment table counts means a bug or a damaged map: the segment
#     is left alone and reported.
#
# Called by the engine for the policy, in tasks on the volume's reactor. docs/architecture.md, "The store".

from libc.errno cimport EAGAIN, EBUSY, EIO, ESHUTDOWN
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memset

from iomesh.engine.volume.removal cimport is_settled
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.counters cimport COMPACTION_BYTES, EVACUATED_BYTES, SEGMENTS_COMPACTED, SEGMENTS_EVACUATED
from iomesh.engine.store.directory cimport Replica, slabs_of
from iomesh.engine.base.io cimport Operation, release_buffer
from iomesh.engine.format.footer cimport footer_blocks
from iomesh.engine.format.layout cimport (
    BITMAP_COPIES, BLOCK_BYTES, FOOTER_BLOCKS_MAX, KIND_DATA, KIND_MAP, MAP_LEVELS, NODE_POINTERS, POINTER_PRESENT,
    SEGMENT_SEALED, SNAPSHOT_CLONE, Entry, Footer, Listed, Pointer, SnapshotEntry, footer_table_valid,
    footer_valid, next_listed)
from iomesh.engine.map.map cimport ABSENT, Map, Node
from iomesh.engine.base.planted cimport planted
from iomesh.engine.log.request cimport AwaitedRequest, Request, end_awaited
from iomesh.engine.map.segment_table cimport DATA, NODE, Segment
from iomesh.engine.map.snapshot_table cimport Snapshot
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.base.task cimport start, wait, wait_in, waited, wake_all, wake_one
from iomesh.engine.volume.volume cimport Volume, is_ending

cdef extern from "<errno.h>" nogil:
    int EUCLEAN

cdef extern from *:
    """
    #define IOMESH_NODE_PLACE (1ull << 63)
    #define IOMESH_NODE_INDEXES (1ull << 56)      /* a node's position is its level times this, and its index */
    """
    const uint64_t NODE_PLACE "IOMESH_NODE_PLACE"
    const uint64_t NODE_INDEXES "IOMESH_NODE_INDEXES"

cdef enum:
    AHEAD = 24                       # leaves to prefetch
    BREATHER = 512                   # entries after which the reactor serves others for a turn
    THROTTLED_BLOCKS = 64            # evacuated between two calls of the throttle


cdef class Cleaner:
    """Raises MemoryError. Its buffers are not touched before the first cleaning."""

    def __cinit__(self, Volume volume):
        cdef int i
        self.volume = volume
        self.head = volume.map
        self.durable = Map(volume.walk.cache, volume.io, volume.segments)
        self.past = Map(volume.walk.cache, volume.io, volume.segments)
        self.plans = <Plan*>calloc(WORKERS, sizeof(Plan))
        self.footers = <PlannedFooter*>allocate_aligned(WORKERS * (sizeof(PlannedFooter) + PIECE_BYTES))
        if self.plans is NULL or self.footers is NULL:
            raise MemoryError("no memory for cleaning")
        for i in range(WORKERS):
            self.plans[i].footer = &self.footers[i]
            self.plans[i].piece = <char*>&self.footers[WORKERS] + i * PIECE_BYTES
            self.plans[i].next = self.idle
            self.idle = &self.plans[i]

    def __dealloc__(self):
        release(self.plans)
        release_buffer(self.volume.io if self.volume is not None else None, self.footers)

    # ------------------------------------------------------------------ candidates

    cdef bint cleanable(self, const Segment* segment) noexcept nogil:
        return is_settled(segment, self.volume.checkpoints.sequence) and not segment.cleaning and \
            segment.last_sequence <= self.volume.segments.kept_from and \
            segment.replica is not NULL and segment.replica.state == SEGMENT_SEALED and segment.replica.footer_block > 0

    cdef uint32_t list(self, Row* rows, uint32_t room) noexcept nogil:
        cdef Segment* segment = self.volume.segments.first
        cdef uint32_t count = 0
        cdef uint64_t cut = self.volume.snapshots.newest_cut()
        while segment is not NULL:
            if count < room and segment.replica is not NULL:
                rows[count].segment = segment.number
                rows[count].blocks = segment.blocks
                rows[count].live = segment.live
                rows[count].slab = 1 << segment.replica.slab_shift
                rows[count].space = slabs_of(segment.replica) << segment.replica.slab_shift
                rows[count].flags = ROW_COMPACTED if segment.replica.live else 0
                if segment.last_sequence > self.volume.segments.kept_from:
                    rows[count].flags |= ROW_KEPT
                if self.cleanable(segment):
                    rows[count].flags |= ROW_CLEANABLE
                    if straggles(segment, segment.live, cut):
                        rows[count].flags |= ROW_STRAGGLES
            count += segment.replica is not NULL
            segment = segment.next
        return count

    # ------------------------------------------------------------------ cleaning

    cdef int clean(self, const uint32_t* segments, uint32_t count, Throttle* throttle, Cleaned* told) noexcept nogil:
        cdef Worker[WORKERS] workers
        cdef Round round
        cdef int i
        memset(told, 0, sizeof(Cleaned))
        if self.volume.restoring:
            return -EBUSY
        self.volume.cleaning += 1
        self.volume.log.open_segments.making_space += 1
        round.segments, round.count, round.next = segments, count, 0
        round.throttle = throttle
        round.told = told
        for i in range(WORKERS):
            workers[i].cleaner = <void*>self
            workers[i].round = &round
            waited(&workers[i].ended)
            start(hand_body, &workers[i], &workers[i].ended)
        for i in range(WORKERS):
            wait(&workers[i].ended)
        self.volume.log.open_segments.end_making_space()
        self.volume.cleaning -= 1
        if self.volume.cleaning == 0:
            self.durable.forget()
            self.past.forget()
            wake_all(&self.volume.cleaning_ended, 0)
        return -ESHUTDOWN if self.volume.closing else 0

    cdef void take_part(self, Round* round) noexcept nogil:
        """One worker: takes the next segment until none is left."""
        cdef Plan* plan
        while self.idle is NULL:
            wait_in(&self.hands_free)
        plan = self.idle
        self.idle = plan.next
        while round.next < round.count and not is_ending(self.volume) and not self.volume.log.error:
            plan.segment = self.volume.segments.find(round.segments[round.next])
            round.next += 1
            if plan.segment is NULL or not self.cleanable(plan.segment):
                round.told.postponed += 1
                continue
            plan.segment.cleaning = True
            self.clean_segment(plan, round.throttle, round.told)
            plan.segment.cleaning = False
        plan.next = self.idle
        self.idle = plan
        wake_one(&self.hands_free, 0)

    cdef void clean_segment(self, Plan* plan, Throttle* throttle, Cleaned* told) noexcept nogil:
        cdef uint64_t snapshots = 0
        cdef int error = self.read_footer(plan)
        if error == 0:
            while self.deriving:
                wait_in(&self.derived)
            self.deriving = True
            snapshots = self.volume.snapshots.version
            error = self.derive_now(plan)
            self.deriving = False
            wake_one(&self.derived, 0)
        if error == 0:
            error = self.make_stable()
        if error == 0 and (is_history_changing(self.volume) or self.volume.snapshots.version != snapshots):
            error = -EAGAIN                              # the derivation may be out of date
        if error == -EAGAIN:
            told.postponed += 1
        elif error:
            note_error(told, error)
        elif self.is_evacuated(plan):
            self.evacuate_planned(plan, throttle, told)
        else:
            self.compact_planned(plan, throttle, told)

    # ------------------------------------------------------------------ which blocks are live

    cdef int derive_now(self, Plan* plan) noexcept nogil:
        """As derive(); -EAGAIN: not possible now."""
        cdef uint64_t snapshots = self.volume.snapshots.version, checkpoint = self.volume.checkpoints.sequence
        cdef int error
        if is_history_changing(self.volume):
            return -EAGAIN
        error = self.derive(plan)
        if error and (self.volume.snapshots.version != snapshots or self.volume.checkpoints.sequence != checkpoint):
            return -EAGAIN                               # a tree that was searched may have been deleted
        return error

    cdef int derive(self, Plan* plan) noexcept nogil:
        """Finds the live blocks; the footer has been read. 0, or -EIO, -EUCLEAN (a map cannot be read), -ESHUTDOWN."""
        cdef Segment* segment = plan.segment
        cdef Snapshot* parent
        cdef SnapshotEntry* entry
        cdef Era era
        cdef uint32_t i = 0
        cdef int result = 0
        memset(plan.words, 0, sizeof(plan.words))
        plan.live = 0
        self.durable.forget()
        self.durable.root = self.volume.checkpoints.root
        while result >= 0 and i < self.volume.snapshots.count and plan.live < segment.live:
            entry = &self.volume.snapshots.all[i].entry
            i += 1
            if entry.flags & SNAPSHOT_CLONE:
                continue
            parent = self.volume.snapshots.find(entry.parent)
            era.data_from = 0 if parent is NULL else parent.entry.data_cut
            era.node_from = 0 if parent is NULL else parent.entry.node_cut
            era.data_to = entry.data_cut
            era.node_to = entry.node_cut
            if touches(&era, segment):
                if self.past.root.segment != entry.root.segment or self.past.root.block != entry.root.block:
                    self.past.forget()
                    self.past.root = entry.root
                result = self.look(plan, &era, self.past, self.past)
        # the head last: snapshots do not change, so when their blocks add up to the live count the search is complete
        era.data_from = self.volume.segments.pins[<int>DATA]
        era.node_from = self.volume.segments.pins[<int>NODE]
        era.data_to = era.node_to = ~<uint64_t>0
        if result >= 0 and touches(&era, segment):       # even if live is 0: the checkpoint may have nodes in it
            if planted(b"cleaned_by_newest_nodes"):
                result = self.look(plan, &era, self.head, self.head)
            else:
                result = self.look(plan, &era, self.head, self.durable)
        if result < 0:
            return result
        self.list_live(plan)
        return 0

    cdef int look(self, Plan* plan, const Era* era, Map data, Map nodes) noexcept nogil:
        """Sets the bits of blocks of an era that its tree points to; data and nodes by their maps. Errors as above."""
        cdef Segment* segment = plan.segment
        cdef const Footer* footer = &plan.footer.footer
        cdef const Entry* table = <const Entry*>plan.footer.table
        cdef const Entry* entry
        cdef const Entry* later
        cdef uint64_t first = <uint64_t>segment.number << 32, address
        cdef uint32_t expected = 0, seen = 0
        cdef Listed listed, ahead
        cdef int result
        cdef Operation operation
        memset(&listed, 0, sizeof(listed))
        memset(&ahead, 0, sizeof(ahead))
        entry = next_listed(footer, table, &listed)
        while entry is not NULL:
            seen += 1
            while expected < seen + AHEAD:
                expected += 1
                later = next_listed(footer, table, &ahead)
                if (
                    later is not NULL
                    and later.kind == KIND_DATA
                    and data is self.head
                    and segment.live
                    and first >= era.data_from
                ):
                    data.expect(0, later.position // NODE_POINTERS)    # a snapshot's leaves serve many blocks each
            address = first | listed.block
            result = 0                                   # neither data nor node: tables of an older checkpoint
            if entry.kind == KIND_DATA and segment.live and era.data_from <= address < era.data_to:
                result = self.points(data, -1, entry.position, segment.number, listed.block)
            elif entry.kind == KIND_MAP and era.node_from <= address < era.node_to:
                result = self.points(
                    nodes,
                    <int>(entry.position >> 56),
                    entry.position & (NODE_INDEXES - 1),
                    segment.number,
                    listed.block,
                )
            if result < 0:
                return result
            if result and not plan.words[listed.block // 64] >> (listed.block % 64) & 1:
                plan.words[listed.block // 64] |= <uint64_t>1 << (listed.block % 64)
                plan.live += 1
            if seen % BREATHER == 0:
                waited(&operation)
                self.volume.io.after(&operation, 0)
                wait(&operation)
                if self.volume.closing:
                    return -ESHUTDOWN
            entry = next_listed(footer, table, &listed)
        return 0

    cdef void list_live(self, Plan* plan) noexcept nogil:
        """Lists the first live blocks, in the order of the segment."""
        cdef const Footer* footer = &plan.footer.footer
        cdef const Entry* table = <const Entry*>plan.footer.table
        cdef Listed read
        cdef uint32_t listed = 0
        cdef const Entry* entry
        memset(&read, 0, sizeof(read))
        entry = next_listed(footer, table, &read)
        while entry is not NULL and listed < EVACUATED_MAX:
            if plan.words[read.block // 64] >> (read.block % 64) & 1:
                plan.at[listed] = read.block
                plan.places[listed] = entry.position if entry.kind == KIND_DATA else entry.position | NODE_PLACE
                listed += 1
            entry = next_listed(footer, table, &read)

    cdef int read_footer(self, Plan* plan) noexcept nogil:
        """0, or -EIO, -EUCLEAN."""
        cdef const Replica* replica = plan.segment.replica
        cdef Footer* footer = &plan.footer.footer
        cdef int result
        if self.volume.io.holds(plan.footer, sizeof(PlannedFooter)):     # late data may arrive in it
            return -EIO
        result = self.head.cache.bitmaps.read(replica, replica.footer_block, 1, <char*>footer)
        if (
            result == 0
            and not footer_valid(footer, self.volume.identity, replica.segment, replica.footer_block, replica.blocks)
        ):
            result = -EUCLEAN
        if result == 0 and footer.table_blocks >= FOOTER_BLOCKS_MAX:
            result = -EUCLEAN
        if result == 0:
            result = self.head.cache.bitmaps.read(
                replica, replica.footer_block + 1, footer.table_blocks, plan.footer.table
            )
        if result == 0 and not footer_table_valid(footer, <const Entry*>plan.footer.table):
            result = -EUCLEAN
        return result

    cdef int points(self, Map tree, int level, uint64_t index, uint32_t segment, uint32_t block) noexcept nogil:
        """Whether a tree's pointer to a node (level -1: to a data block) is this address: 1 or 0, or -EIO."""
        cdef Pointer pointer = tree.root
        cdef Node* node = NULL
        cdef Operation operation
        while level < MAP_LEVELS - 1 and node is NULL:
            waited(&operation)
            node = tree.get(level + 1, index // NODE_POINTERS, False, &operation)
            if node is ABSENT:
                return 0
            if node is not NULL:
                pointer = node.pointers[index % NODE_POINTERS]
                tree.unpin(node)
                break
            self.volume.checkpoints.poke()
            if wait(&operation) < 0:
                return -EIO
        return pointer.flags & POINTER_PRESENT and pointer.segment == segment and pointer.block == block

    cdef int make_stable(self) noexcept nogil:
        """Flushes the log: every pointer that the derivation read is on stable media."""
        cdef Operation operation
        waited(&operation)
        if planted(b"cleaned_without_flush"):
            return 0
        self.volume.log.flusher.flush(&operation)
        return <int>min(wait(&operation), <int64_t>0)

    # ------------------------------------------------------------------ compaction and evacuation

    cdef bint is_evacuated(self, const Plan* plan) noexcept nogil:
        return (
            0 < plan.segment.live <= plan.live
            and straggles(plan.segment, plan.live, self.volume.snapshots.newest_cut())
        )

    cdef void evacuate_planned(self, Plan* plan, Throttle* throttle, Cleaned* told) noexcept nogil:
        cdef int error
        if not has_spare(self.volume):
            told.postponed += 1
            return
        error = self.evacuate(plan, throttle)
        told.evacuated += error == 0
        note_error(told, error)

    cdef void compact_planned(self, Plan* plan, Throttle* throttle, Cleaned* told) noexcept nogil:
        cdef Segment* segment = plan.segment
        cdef uint32_t needed = plan.live + footer_blocks(plan.live) + BITMAP_COPIES, had = slabs_of(segment.replica)
        cdef int error
        if plan.live < segment.live:
            self.disagreements += 1
            note_error(told, -EUCLEAN)
        elif needed <= (had - 1) << segment.replica.slab_shift:
            error = self.compact(plan, throttle)
            told.compacted += error == 0
            told.freed_blocks += (had - min(had, slabs_of(segment.replica))) << segment.replica.slab_shift
            note_error(told, error)
        else:
            told.skipped += 1

    cdef int compact(self, Plan* plan, Throttle* throttle) noexcept nogil:
        cdef Segment* segment = plan.segment
        cdef void* member = self.volume.log.open_segments.member_of(segment)
        cdef uint64_t epoch = self.volume.log.epoch
        cdef int i, error = (<Member>member).compact(segment.number, epoch, &segment.replica, plan.words, throttle)
        if error:
            return error
        for i in range(segment.copy_count):              # one that is not compacted takes more space, no more
            member = self.volume.log.open_segments.members[segment.copies[i]]
            (<Member>member).compact(segment.number, epoch, NULL, plan.words, throttle)
        count(self.volume, SEGMENTS_COMPACTED, 1)
        count(self.volume, COMPACTION_BYTES, <uint64_t>(segment.replica.live + BITMAP_COPIES) * BLOCK_BYTES)
        if self.volume.log.open_segments.no_space:
            self.volume.log.open_segments.space_freed()
        return 0

    cdef int evacuate(self, Plan* plan, Throttle* throttle) noexcept nogil:
        """Appends live blocks to the log, ordered with concurrent writes to them; nodes with the next write-back."""
        cdef AwaitedRequest evacuation
        cdef uint32_t i
        cdef int error = 0
        memset(&evacuation.request, 0, sizeof(Request))
        evacuation.request.finished = end_awaited
        waited(&evacuation.ended)
        plan.read_to = 0
        for i in range(plan.live):
            if error == 0 and throttle is not NULL and i % THROTTLED_BLOCKS == 0:
                error = throttle.step(throttle.owner, self.volume.io, THROTTLED_BLOCKS * BLOCK_BYTES)
            if error == 0 and plan.places[i] & NODE_PLACE:
                error = self.renew(plan, i)
            elif error == 0:
                error = self.rewrite(&evacuation.request, plan, i)
        self.volume.complete(&evacuation.request)
        wait(&evacuation.ended)
        if error == 0:
            error = -evacuation.request.error
        if error == 0:
            count(self.volume, SEGMENTS_EVACUATED, 1)
        return error

    cdef int rewrite(self, Request* request, Plan* plan, uint32_t which) noexcept nogil:
        cdef uint64_t there = <uint64_t>plan.segment.number << 32 | plan.at[which]
        cdef const char* data
        cdef Operation operation
        cdef int64_t taken = 0
        if which >= plan.read_to:
            self.read_ahead(plan, which)
        data = NULL if plan.offsets[which] < 0 else plan.piece + plan.offsets[which]
        while taken == 0:
            waited(&operation)
            taken = self.volume.rewrite(request, plan.places[which], data, there, &operation)
            if taken == 0 and wait(&operation) < 0:
                return <int>operation.result
        if taken < 0:
            return <int>taken
        count(self.volume, EVACUATED_BYTES, BLOCK_BYTES)
        return 0

    cdef void read_ahead(self, Plan* plan, uint32_t which) noexcept nogil:
        """Reads this block of the plan and the next ones that fit in a piece. After an error, rewrite() reads each."""
        cdef const Replica* replica = plan.segment.replica
        cdef int64_t first = self.offset_of(plan, which), offset = first, length = 0
        cdef Operation operation
        cdef uint32_t end = which, i
        while offset >= first + length and offset - first < PIECE_BYTES:
            plan.offsets[end] = <int32_t>(offset - first)
            length = offset - first + BLOCK_BYTES
            end += 1
            offset = self.offset_of(plan, end) if end < plan.live else -1
        if self.volume.io.holds(plan.piece, PIECE_BYTES):
            first = -1
        waited(&operation)
        if first >= 0:
            self.volume.io.read(&operation, replica.device, plan.piece, <uint32_t>length, first)
        if first < 0 or wait(&operation) < 0:
            for i in range(which, end):
                plan.offsets[i] = -1
        plan.read_to = end

    cdef int64_t offset_of(self, const Plan* plan, uint32_t which) noexcept nogil:
        cdef uint32_t contiguous
        return self.head.cache.bitmaps.find(plan.segment.replica, plan.at[which], &contiguous)

    cdef int renew(self, const Plan* plan, uint32_t which) noexcept nogil:
        cdef uint64_t position = plan.places[which] & ~NODE_PLACE
        cdef int renewed = renew_node(
            self.volume, <int>(position >> 56), position & (NODE_INDEXES - 1), plan.segment.number, plan.at[which]
        )
        if renewed > 0:
            count(self.volume, EVACUATED_BYTES, BLOCK_BYTES)
        return min(renewed, 0)


cdef int renew_node(Volume volume, int level, uint64_t index, uint32_t segment, uint32_t block) noexcept nogil:
    cdef Node* node = NULL
    cdef bint renewed = False
    cdef Operation operation
    while node is NULL:
        while volume.checkpoints.write_back.held and not volume.closing:
            wait_in(&volume.checkpoints.ended)
        if volume.closing:
            return -ESHUTDOWN
        waited(&operation)
        node = volume.map.get(level, index, False, &operation)
        if node is NULL:
            volume.checkpoints.poke()
            if wait(&operation) < 0:
                return -EIO
        elif node is not ABSENT and volume.checkpoints.write_back.held:      # a checkpoint has started
            volume.map.unpin(node)
            node = NULL
    if node is not ABSENT:
        # a clone's log may have no record yet
        renewed = volume.map.renew(node, segment, block, max(volume.log.committed, <uint64_t>1))
        volume.map.unpin(node)
    return renewed


cdef int64_t hand_body(void* argument) noexcept nogil:
    cdef Worker* worker = <Worker*>argument
    (<Cleaner>worker.cleaner).take_part(worker.round)
    return 0


cdef inline bint is_history_changing(Volume volume) noexcept nogil:
    """A snapshot is being created, restored or compared: liveness is unknown, or must not be used."""
    return (
        volume.restoring
        or volume.segments.reclaim_holds > 0
        or volume.snapshots.snapshot_requests is not NULL
        or volume.snapshots.frozen_made > 0
    )


cdef inline bint straggles(const Segment* segment, uint32_t live, uint64_t cut) noexcept nogil:
    """Little of it is live, and no snapshot has a block in it."""
    return 0 < live < segment.blocks // EVACUATION_SHARE and <uint64_t>segment.number << 32 >= cut


cdef inline bint touches(const Era* era, const Segment* segment) noexcept nogil:
    cdef uint64_t first = <uint64_t>segment.number << 32, end = first + segment.blocks
    return (first < era.data_to and era.data_from < end) or (first < era.node_to and era.node_from < end)


cdef bint has_spare(Volume volume) noexcept nogil:
    """Evacuation uses reserve space until the dead segment is compacted; most of the reserve is for checkpoints.
    policies/cleaning.py accounts for this."""
    cdef int i
    for i in range(volume.log.open_segments.local_count):
        if (<Member>volume.log.open_segments.members[i]).spares(1):
            return True
    return False


cdef inline void count(Volume volume, int which, uint64_t by) noexcept nogil:
    volume.counters[which] += by


cdef inline void note_error(Cleaned* told, int error) noexcept nogil:
    if error:
        told.failed += 1
        told.error = error
