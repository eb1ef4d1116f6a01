# Comparing the trees of a volume's maps. They are immutable, and a shared node has the same address in both trees. So a
# subtree with equal pointers is skipped, and the cost of a walk is proportional to the difference, not to the size.
#
# Always true:
#   - the walk reads through its own cache, a few nodes ahead, and its reactor serves other requests meanwhile;
#   - live counts do not change before the walk has ended: blocks found are counted in the segments as `doomed` and
#     become dead all at once;
#   - an unreadable node is retried for minutes, unless writes wait for space. A node that stays unreadable or is
#     damaged counts as shared, with everything below it: this may leak space, but never loses a block in use.
#
# Called by history, in tasks on the volume's reactor. Segments that the trees reach must not be removed meanwhile
# (SegmentTable.reclaim_holds).

from libc.errno cimport EILSEQ, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.format.layout cimport MAP_LEVELS, NODE_POINTERS, POINTER_PRESENT, Pointer
from iomesh.engine.map.map cimport ABSENT, Map, MapCache, Node
from iomesh.engine.base.planted cimport planted
from iomesh.engine.map.segment_table cimport Segment, SegmentTable
from iomesh.engine.base.task cimport wait, waited

cdef enum:
    AHEAD = 12                       # children prefetched in each tree
    AGAIN_NS = 100 * 1000 * 1000     # between two attempts to read a node
    DAMAGED_TRIES = 3                # attempts, if the checksum is wrong
    TRIES = 10                       # attempts after any other error, even if writes wait for space

# per walk, from its first error: a device may be absent this long
cdef int64_t RETRY_NS = 600 * <int64_t>(1000 * 1000 * 1000)


cdef class Walk:
    """Raises MemoryError."""

    def __cinit__(self, Io io, SegmentTable segments):
        self.io = io
        self.segments = segments
        self.cache = MapCache(WALK_FRAMES, io)
        self.own = Map(self.cache, io, segments)
        self.parent = Map(self.cache, io, segments)
        self.child = Map(self.cache, io, segments)

    cdef int doom(self, Pointer own, Pointer parent, Pointer child) noexcept nogil:
        cdef int result = 0
        self.doomed_data = 0
        self.retry_until_ns = 0
        self.own.root, self.parent.root, self.child.root = own, parent, child
        if is_alone(own, parent, child):
            mark(self.segments, own)
            result = self.below(MAP_LEVELS - 1, 0, parent.flags & POINTER_PRESENT, child.flags & POINTER_PRESENT)
        self.own.forget()
        self.parent.forget()
        self.child.forget()
        if result < 0:
            self.spare()
        return result

    cdef int below(self, int level, uint64_t index, bint in_parent, bint in_child) noexcept nogil:
        """Visit a node that only `own` has. in_parent, in_child: that tree has a different node in its place."""
        cdef Node* node
        cdef Node* theirs = NULL
        cdef Node* its = NULL
        cdef Pointer nothing
        cdef Pointer one, of_parent, of_child
        cdef uint32_t slot, ahead = 0, asked = 0
        cdef int result = 0
        if self.stopping:
            return -ESHUTDOWN
        memset(&nothing, 0, sizeof(nothing))
        self.nodes += 1
        node = self.fetch(self.own, level, index)
        if in_parent:
            theirs = self.fetch(self.parent, level, index)
        if in_child:
            its = self.fetch(self.child, level, index)
        if node is not NULL and (theirs is not NULL or not in_parent) and (its is not NULL or not in_child):
            for slot in range(NODE_POINTERS):
                while level and ahead < NODE_POINTERS and asked < AHEAD:
                    if is_alone(
                        node.pointers[ahead],
                        nothing if theirs is NULL else theirs.pointers[ahead],
                        nothing if its is NULL else its.pointers[ahead],
                    ):
                        self.own.expect(level - 1, index * NODE_POINTERS + ahead)
                        if theirs is not NULL and theirs.pointers[ahead].flags & POINTER_PRESENT:
                            self.parent.expect(level - 1, index * NODE_POINTERS + ahead)
                        if its is not NULL and its.pointers[ahead].flags & POINTER_PRESENT:
                            self.child.expect(level - 1, index * NODE_POINTERS + ahead)
                        asked += 1
                    ahead += 1
                one = node.pointers[slot]
                of_parent = nothing if theirs is NULL else theirs.pointers[slot]
                of_child = nothing if its is NULL else its.pointers[slot]
                if not is_alone(one, of_parent, of_child):
                    continue
                mark(self.segments, one)
                if level == 0 and one.segment >= self.segments.branch:
                    self.doomed_data += 1
                if level:
                    asked -= 1 if asked else 0
                    result = self.below(
                        level - 1,
                        index * NODE_POINTERS + slot,
                        of_parent.flags & POINTER_PRESENT,
                        of_child.flags & POINTER_PRESENT,
                    )
                    if result < 0:
                        break
        elif self.stopping:
            result = -ESHUTDOWN
        else:
            self.unreadable += 1
        if node is not NULL:
            self.own.unpin(node)
        if theirs is not NULL:
            self.parent.unpin(theirs)
        if its is not NULL:
            self.child.unpin(its)
        return result

    cdef Node* fetch(self, Map map, int level, uint64_t index) noexcept nogil:
        """In a task: an existing node, pinned; NULL: it stays unreadable, or the walk is stopped."""
        cdef Node* node = NULL
        cdef Operation operation
        cdef uint32_t tries = 0, damaged = 0
        while node is NULL and not self.stopping:
            waited(&operation)
            node = map.get(level, index, False, &operation)
            if node is not NULL or wait(&operation) >= 0:
                continue
            tries += 1
            damaged += operation.result == -EILSEQ
            if damaged == DAMAGED_TRIES or not (tries < TRIES or self.may_retry()):
                return NULL
            waited(&operation)
            self.io.after(&operation, AGAIN_NS)
            wait(&operation)
        return NULL if node is ABSENT else node

    cdef bint may_retry(self) noexcept nogil:
        if self.retry_until_ns == 0:
            self.retry_until_ns = self.io.now_ns() + RETRY_NS
        return self.io.now_ns() < self.retry_until_ns and (self.no_space is NULL or not self.no_space[0])

    cdef uint64_t carry_out(self, uint64_t* disagreements) noexcept nogil:
        cdef Segment* segment = self.segments.first
        cdef uint64_t died = 0
        cdef uint32_t dying
        while segment is not NULL:
            if segment.doomed:
                dying = min(segment.doomed, segment.live - segment.undecided) - planted(b"dead_block_forgotten")
                disagreements[0] += segment.doomed - dying
                self.segments.change_live(segment, -<int>dying)
                died += dying
                segment.doomed = 0
            segment = segment.next
        return died

    cdef void spare(self) noexcept nogil:
        cdef Segment* segment = self.segments.first
        while segment is not NULL:
            segment.doomed = 0
            segment = segment.next


cdef inline bint same(Pointer one, Pointer other) noexcept nogil:
    return other.flags & POINTER_PRESENT and one.segment == other.segment and one.block == other.block


cdef inline bint is_alone(Pointer one, Pointer of_parent, Pointer of_child) noexcept nogil:
    return (
        one.flags & POINTER_PRESENT
        and not same(one, of_parent)
        and (planted(b"shared_block_freed") or not same(one, of_child))
    )


cdef inline void mark(SegmentTable segments, Pointer pointer) noexcept nogil:
    cdef Segment* segment = segments.find(pointer.segment)
    if segment is not NULL:
        segment.doomed += 1
