# The snapshot table of one volume, in memory.
#
# A snapshot is an exact checkpoint whose root is kept (docs/architecture.md). Like the segment table, the table on the
# device belongs to a checkpoint, so changes to snapshots are atomic with a checkpoint. A checkpoint works on a copy:
#
#     freeze       at its record S: the current table, the requested snapshots, and the snapshot that becomes DYING
#     map_written  root and cut of the new snapshots, once they are known
#     moved        the metadata service points to the checkpoint: the changes are applied to the table in memory
#
# States of an entry:
#
#     requested ──moved──> visible ──deleted──> HIDDEN ──moved, may die──> DYING ──walked, moved──> gone
#
# A HIDDEN snapshot may die when it has no clone, no reader and fewer than two children.
#
# Snapshots form a tree: the parent of a snapshot, or of the head, is the snapshot from which its map evolved. Deleting
# a snapshot frees the blocks that only it has: those that neither its parent nor its only child has. With more than one
# child, deletion waits.
#
# Ownership is counted, not searched. An entry's `own` is the number of blocks in its map that are not in its parent's;
# the head's `exclusive` is the same for the head, and becomes the `own` of a snapshot made of it. When P with parent G
# dies, its only child C still shares the same blocks with G, and it has all of P's own blocks except those that P had
# alone, which the walk finds: own(C) += own(P) - alone(P). C is P's heir. own(P) is added with the checkpoint that
# makes P DYING, alone(P) is subtracted after the walk. If the head is the heir and a snapshot of it is created
# meanwhile, that snapshot becomes the heir. Each block is counted once, so the sum of all `own` and `exclusive` is the
# total number of blocks.
#
# Always true:
#   - every non-zero parent in the table is in it, and there are no cycles (an entry's parent existed before it);
#   - at most one is DYING, so that its neighbours do not change during the walk; only a snapshot can have it as parent;
#   - the head's pins are its parent's cuts.
#
# Checkpoint, recovery, history and the engine call it on the volume's reactor. Format: docs/formats.md,
# "SnapshotTable".

from libc.errno cimport EEXIST, ENOMEM, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release, realloc
from libc.string cimport memcmp, memcpy, memset, strcmp

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.format.layout cimport (
    SNAPSHOT_CLONE, SNAPSHOT_DYING, SNAPSHOT_FOLLOWED, SNAPSHOT_HIDDEN, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED,
    SNAPSHOTS_MAX, Pointer, SnapshotEntry
)
from iomesh.engine.base.planted cimport planted
from iomesh.engine.map.segment_table cimport SegmentTable

cdef enum:
    LOOKED_AT = 64                   # hidden snapshots that a checkpoint examines for deletion


cdef class SnapshotTable:
    def __cinit__(self):
        self.oldest_mark = ~<uint64_t>0

    def __dealloc__(self):
        release(self.all)
        release(self.frozen)

    cdef Snapshot* find(self, const uint8_t* id) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if same_id(self.all[i].entry.id, id):
                return &self.all[i]
        return NULL

    cdef SnapshotEntry* dying(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if self.all[i].entry.flags & SNAPSHOT_DYING:
                return &self.all[i].entry
        return NULL

    cdef uint64_t newest_cut(self) noexcept nogil:
        cdef uint64_t newest = 0
        cdef uint32_t i
        for i in range(self.count):
            newest = max(newest, max(self.all[i].entry.data_cut, self.all[i].entry.node_cut))
        return newest

    cdef int reserve(self, uint32_t more) noexcept nogil:
        cdef Snapshot* grown
        if self.count + more > self.room:
            grown = <Snapshot*>realloc(self.all, (2 * self.room + more) * sizeof(Snapshot))
            if grown is NULL:
                return -ENOMEM
            self.all = grown
            self.room = 2 * self.room + more
        return 0

    cdef int add(self, const SnapshotEntry* entry) noexcept nogil:
        if self.reserve(1) < 0:
            return -ENOMEM
        memset(&self.all[self.count], 0, sizeof(Snapshot))
        self.all[self.count].entry = entry[0]
        self.count += 1
        return 0

    cdef void remove(self, const uint8_t* id) noexcept nogil:
        cdef SnapshotEntry gone
        cdef uint32_t i, kept = 0
        memset(&gone, 0, sizeof(gone))
        for i in range(self.count):
            if same_id(self.all[i].entry.id, id):
                gone = self.all[i].entry
                continue
            self.all[kept] = self.all[i]
            kept += 1
        self.count = kept
        for i in range(self.count):
            if same_id(self.all[i].entry.parent, gone.id):
                memcpy(self.all[i].entry.parent, gone.parent, 16)
        if same_id(self.head_parent, gone.id):
            memcpy(self.head_parent, gone.parent, 16)
        self.changed()

    cdef void changed(self) noexcept nogil:
        self.version += 1

    cdef void disown(self, uint64_t alone, SegmentTable head) noexcept nogil:
        cdef SnapshotEntry* entry = self.dying()
        if not entry.flags & SNAPSHOT_FOLLOWED or planted(b"alone_not_disowned"):
            return
        if not is_zero_id(entry.heir):
            self.find(entry.heir).entry.own -= alone
            return
        head.exclusive -= alone
        if self.frozen_made:                             # if they are created, the first of them is the heir
            self.frozen_disowned = alone
        else:
            head.wanted_exclusive -= alone

    cdef uint64_t held(self, SegmentTable head) noexcept nogil:
        cdef uint64_t blocks = head.exclusive
        cdef uint32_t i
        for i in range(self.count):
            if not self.all[i].entry.flags & SNAPSHOT_FOLLOWED:      # else its heir counts them
                blocks += self.all[i].entry.own
        return blocks

    cdef const char* adopt(self, const uint8_t* head_parent, uint64_t data_pin, uint64_t node_pin) noexcept nogil:
        cdef Snapshot* parent = self.find(head_parent)
        cdef uint32_t i, dying = 0
        memcpy(self.head_parent, head_parent, 16)
        if parent is NULL and not is_zero_id(head_parent):
            return b"the checkpoint's map grew from a snapshot that is not in its table"
        if (
            (0 if parent is NULL else parent.entry.data_cut) != data_pin
            or (0 if parent is NULL else parent.entry.node_cut) != node_pin
        ):
            return b"what the checkpoint's snapshots pin is not what was cut for them"
        for i in range(self.count):
            dying += (self.all[i].entry.flags & SNAPSHOT_DYING) != 0
            if not is_zero_id(self.all[i].entry.parent) and self.find(self.all[i].entry.parent) is NULL:
                return b"a snapshot of the checkpoint's table grew from one that is not in it"
            self.oldest_mark = min(self.oldest_mark, mark_of(&self.all[i].entry))
        if dying > 1:
            return b"two snapshots of the checkpoint's table are dying at once"
        return NULL

    # ------------------------------------------------------------------ requests

    cdef int snapshot_request(self, SnapshotRequest* snapshot_request) noexcept nogil:
        cdef SnapshotRequest** last = &self.snapshot_requests
        cdef uint32_t i, wished = 0
        for i in range(self.count):
            if (
                same_id(self.all[i].entry.id, snapshot_request.entry.id)
                or clash(&self.all[i].entry, &snapshot_request.entry)
            ):
                return -EEXIST
        while last[0] is not NULL:
            if same_id(last[0].entry.id, snapshot_request.entry.id) or clash(&last[0].entry, &snapshot_request.entry):
                return -EEXIST
            last = &last[0].next
            wished += 1
        if self.count + wished >= SNAPSHOTS_MAX:
            return -ENOSPC
        snapshot_request.made = False
        snapshot_request.next = NULL
        last[0] = snapshot_request
        self.changed()
        return 0

    cdef void withdraw(self, SnapshotRequest* snapshot_request) noexcept nogil:
        cdef SnapshotRequest** place = &self.snapshot_requests
        while place[0] is not NULL and place[0] is not snapshot_request:
            place = &place[0].next
        if place[0] is not NULL:
            place[0] = snapshot_request.next

    cdef bint are_all_marks(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if not self.all[i].entry.flags & (SNAPSHOT_MARK | SNAPSHOT_HIDDEN | SNAPSHOT_CLONE):
                return False
        return self.oldest_mark != ~<uint64_t>0

    cdef Snapshot* unsettled(self) noexcept nogil:
        cdef Snapshot* parent = self.find(self.head_parent)
        return parent if parent is not NULL and parent.entry.flags & SNAPSHOT_UNSETTLED else NULL

    cdef uint32_t clones(self, const uint8_t* id) noexcept nogil:
        cdef uint32_t i, found = 0
        for i in range(self.count):
            if self.all[i].entry.flags & SNAPSHOT_CLONE and same_id(self.all[i].entry.parent, id):
                found += 1
        return found

    cdef bint may_die(self, const SnapshotEntry* entry) noexcept nogil:
        cdef uint32_t i, children = same_id(self.head_parent, entry.id)
        cdef Snapshot* snapshot = self.find(entry.id)
        if not entry.flags & SNAPSHOT_HIDDEN or (snapshot is not NULL and snapshot.readers):
            return False
        for i in range(self.count):
            if same_id(self.all[i].entry.parent, entry.id):
                children += 2 if self.all[i].entry.flags & SNAPSHOT_CLONE else 1
        return children < 2

    # ------------------------------------------------------------------ a checkpoint's copy

    cdef int freeze(
        self, uint64_t sequence, const LogClock* clock, uint64_t size_bytes, uint64_t data_cut, SegmentTable head
    ) noexcept nogil:
        cdef SnapshotRequest* snapshot_request = self.snapshot_requests
        cdef SnapshotEntry* entry
        cdef uint32_t i, wished = 0
        while snapshot_request is not NULL:
            wished += 1
            snapshot_request = snapshot_request.next
        self.thaw()
        self.frozen = <SnapshotEntry*>calloc(self.count + wished + 1, sizeof(SnapshotEntry))
        if self.frozen is NULL or self.reserve(wished) < 0:
            return -ENOMEM
        for i in range(self.count):
            self.frozen[i] = self.all[i].entry
        self.frozen_count = self.count
        self.frozen_made = wished
        self.frozen_version = self.version
        self.frozen_walked = self.walked
        memcpy(self.frozen_parent, self.head_parent, 16)
        self.frozen_mapped, self.frozen_inherited, self.frozen_exclusive = head.mapped, head.inherited, head.exclusive
        snapshot_request = self.snapshot_requests
        while snapshot_request is not NULL:
            entry = &self.frozen[self.frozen_count]
            entry[0] = snapshot_request.entry
            memcpy(entry.parent, self.frozen_parent, 16)
            memcpy(self.frozen_parent, entry.id, 16)
            entry.sequence = sequence
            # A snapshot that was requested with a Unix time, as one of a group, gets that time.
            entry.clock_ns = (
                clock.offset_ns if entry.time_ns == 0 else <int64_t>entry.time_ns - <int64_t>clock.newest_ns
            )
            entry.time_ns = clock.newest_ns
            if entry.flags & SNAPSHOT_MARK:
                entry.until_ns, entry.since_ns = clock.until_ns, clock.since_ns
            entry.size_bytes = size_bytes
            entry.data_cut = data_cut
            entry.mapped, entry.inherited, entry.own = self.frozen_mapped, self.frozen_inherited, self.frozen_exclusive
            if not planted(b"own_counted_twice"):
                self.frozen_exclusive = 0
            self.frozen_count += 1
            snapshot_request = snapshot_request.next
        for i in range(self.count if wished else 0):
            if self.frozen[i].flags & SNAPSHOT_FOLLOWED and is_zero_id(self.frozen[i].heir):
                memcpy(self.frozen[i].heir, self.frozen[self.count].id, 16)
        choose_dying(self)
        return 0

    cdef uint64_t marked_ns(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.frozen_count - self.frozen_made, self.frozen_count):
            if self.frozen[i].flags & SNAPSHOT_MARK:
                return self.frozen[i].time_ns
        return 0

    cdef void map_written(self, Pointer root, uint64_t node_cut) noexcept nogil:
        cdef uint32_t i
        for i in range(self.frozen_count - self.frozen_made, self.frozen_count):
            self.frozen[i].root = root
            self.frozen[i].node_cut = node_cut
        if self.successor_pending:
            self.frozen_dying.successor = root

    cdef uint64_t data_pin(self) noexcept nogil:
        cdef SnapshotEntry* parent = frozen_entry(self, self.frozen_parent)
        return 0 if parent is NULL else parent.data_cut

    cdef uint64_t node_pin(self) noexcept nogil:
        cdef SnapshotEntry* parent = frozen_entry(self, self.frozen_parent)
        return 0 if parent is NULL else parent.node_cut

    cdef void moved(self) noexcept nogil:
        """Apply only what this checkpoint has changed: a walk may have ended meanwhile."""
        cdef SnapshotRequest* snapshot_request
        cdef uint32_t i
        cdef Snapshot* snapshot
        for i in range(self.frozen_count - self.frozen_made, self.frozen_count):
            self.frozen[i].own -= self.frozen_disowned
            self.frozen_disowned = 0
            invariant(self.add(&self.frozen[i]) == 0, b"room was reserved when the table was frozen")
            snapshot_request = self.snapshot_requests
            invariant(
                snapshot_request is not NULL and same_id(snapshot_request.entry.id, self.frozen[i].id),
                b"nothing that is being made is withdrawn",
            )
            self.snapshot_requests = snapshot_request.next
            snapshot_request.entry = self.frozen[i]
            snapshot_request.made = True
        if self.frozen_dying is not NULL:
            snapshot = self.find(self.frozen_dying.id)
            snapshot.entry.flags = self.frozen_dying.flags
            snapshot.entry.successor = self.frozen_dying.successor
            snapshot = self.find(self.frozen_dying.heir)
            # else the new snapshot's frozen entry has them already
            if snapshot is not NULL and not self.successor_pending:
                snapshot.entry.own += self.frozen_dying.own
        for i in range(self.frozen_count - self.frozen_made):
            snapshot = self.find(self.frozen[i].id)
            if snapshot is not NULL:                     # NULL: its walk has ended meanwhile
                memcpy(snapshot.entry.heir, self.frozen[i].heir, 16)
        memcpy(self.head_parent, self.frozen_parent, 16)
        self.oldest_mark = ~<uint64_t>0
        for i in range(self.frozen_count):
            self.oldest_mark = min(self.oldest_mark, mark_of(&self.frozen[i]))
        if self.frozen_walked:
            self.walked = False
        self.durable = self.frozen_version
        self.thaw()

    cdef void thaw(self) noexcept nogil:
        release(self.frozen)
        self.frozen = self.frozen_dying = NULL
        self.frozen_count = self.frozen_made = 0
        self.successor_pending = self.frozen_walked = False
        self.frozen_disowned = 0


cdef void choose_dying(SnapshotTable self) noexcept nogil:
    """Make the first deletable snapshot of the frozen table DYING with this checkpoint, unless another is DYING."""
    cdef SnapshotEntry* entry
    cdef SnapshotEntry* child
    cdef Snapshot* snapshot
    cdef uint32_t i, k, children, looked = 0
    for i in range(self.frozen_count):
        if self.frozen[i].flags & SNAPSHOT_DYING:
            return
    for i in range(self.frozen_count):
        entry = &self.frozen[i]
        if not entry.flags & SNAPSHOT_HIDDEN or looked == LOOKED_AT:
            continue
        looked += 1
        snapshot = self.find(entry.id)
        child = NULL
        children = same_id(self.frozen_parent, entry.id)
        for k in range(self.frozen_count):
            if same_id(self.frozen[k].parent, entry.id):
                children += 2 if self.frozen[k].flags & SNAPSHOT_CLONE else 1
                child = &self.frozen[k]
        if children > 1 or snapshot is NULL or snapshot.readers:
            continue
        entry.flags |= SNAPSHOT_DYING
        self.frozen_dying = entry
        if children:
            entry.flags |= SNAPSHOT_FOLLOWED
        if child is not NULL:
            memcpy(entry.heir, child.id, 16)
            child.own += entry.own
            entry.successor = child.root
            # created now: its root is not known yet
            self.successor_pending = child - self.frozen >= self.frozen_count - self.frozen_made
        elif children:                                   # the head is the heir: its map is frozen in this checkpoint
            memcpy(self.frozen_parent, entry.parent, 16)
            self.frozen_exclusive += entry.own
            self.successor_pending = True
        return


cdef SnapshotEntry* frozen_entry(SnapshotTable self, const uint8_t* id) noexcept nogil:
    cdef uint32_t i
    for i in range(self.frozen_count):
        if same_id(self.frozen[i].id, id):
            return &self.frozen[i]
    return NULL


cdef inline uint64_t mark_of(const SnapshotEntry* entry) noexcept nogil:
    return (
        entry.sequence
        if entry.flags & SNAPSHOT_MARK and not entry.flags & (SNAPSHOT_HIDDEN | SNAPSHOT_DYING)
        else ~<uint64_t>0
    )


cdef bint clash(const SnapshotEntry* one, const SnapshotEntry* other) noexcept nogil:
    """Whether both are visible and have the same name."""
    return not (one.flags | other.flags) & (SNAPSHOT_HIDDEN | SNAPSHOT_CLONE) and strcmp(one.name, other.name) == 0


cdef bint same_id(const uint8_t* a, const uint8_t* b) noexcept nogil:
    return memcmp(a, b, 16) == 0


cdef bint is_zero_id(const uint8_t* id) noexcept nogil:
    cdef uint8_t zero[16]
    memset(zero, 0, 16)
    return memcmp(id, zero, 16) == 0
