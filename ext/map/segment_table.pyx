# The segment table in memory: the segments of one volume's log and the number of live blocks in each.
#
# Always true:
#   - each segment is in the hash table and in the list, which is ordered by number;
#   - a segment's `live` is the number of its blocks that the head's map or a snapshot's references, map nodes included;
#     the table's `live` is the sum. It is derived data: checkpoints store it, and replay continues from there;
#   - a Segment's address is fixed until it is removed.
#
# A pointer to a segment that is not in the table is not counted: replay meets old records whose segments were deleted
# since. Nor is a pointer to a segment below a clone's branch: it counts in the parent.
#
# Pins: a volume's log has one stream, so addresses grow with time, and the blocks of the head's map at the time of its
# parent snapshot lie below that snapshot's cut. A block that the head drops dies iff it lies above. While a snapshot is
# being created the cut is not final: if the checkpoint fails, there is no snapshot. So deaths between the old cut and
# the new are `undecided` until settle(), and the blocks count as live meanwhile.
#
# The blocks of the head's map are counted by the same rule: those above the cut are in no snapshot (`exclusive`). The
# address decides, and every change of the map is counted when it is made, so the counts are exact after a replay, too;
# docs/decisions/0014.
#
# Log, map, checkpoint and recovery call it on the volume's reactor. born() and died() are on the path of every write,
# so they neither allocate nor fail: add() reserves the memory and grows the hash table.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.format.layout cimport EXTENTS_MAX, POINTER_PRESENT, Extent, Pointer, address_of
from iomesh.engine.base.planted cimport planted

cdef enum:
    BUCKETS_AT_FIRST = 64


cdef class SegmentTable:
    """Raises MemoryError."""

    def __cinit__(self):
        self.bucket_count = BUCKETS_AT_FIRST
        self.buckets = <Segment**>calloc(self.bucket_count, sizeof(Segment*))
        if self.buckets is NULL:
            raise MemoryError("no memory for a table of segments")
        self.kept_from = ~<uint64_t>0

    def __dealloc__(self):
        cdef Segment* segment = self.first
        while segment is not NULL:
            self.first = segment.next
            release(segment)
            segment = self.first
        release(self.buckets)

    cdef Segment* find(self, uint32_t number) noexcept nogil:
        # numbers are dense: their low bits spread them
        cdef Segment* segment = self.buckets[number & (self.bucket_count - 1)]
        while segment is not NULL and segment.number != number:
            segment = segment.hash_next
        return segment

    cdef Segment* add(self, uint32_t number) noexcept nogil:
        cdef Segment* segment = <Segment*>calloc(1, sizeof(Segment))
        cdef Segment* before = self.last
        invariant(segment is not NULL, b"there is memory for a segment")
        invariant(self.find(number) is NULL, b"a segment is added once")
        segment.number = number
        while before is not NULL and before.number > number:                      # a new one is nearly always the last
            before = before.previous
        segment.previous = before
        segment.next = self.first if before is NULL else before.next
        if before is NULL:
            self.first = segment
        else:
            before.next = segment
        if segment.next is NULL:
            self.last = segment
        else:
            segment.next.previous = segment
        self.count += 1
        if self.count > self.bucket_count:
            self.grow()
        self.hash(segment)
        return segment

    cdef void remove(self, Segment* segment) noexcept nogil:
        cdef Segment** place = &self.buckets[segment.number & (self.bucket_count - 1)]
        while place[0] is not segment:
            invariant(place[0] is not NULL, b"a segment that is removed was added")
            place = &place[0].hash_next
        place[0] = segment.hash_next
        if segment.previous is NULL:
            self.first = segment.next
        else:
            segment.previous.next = segment.next
        if segment.next is NULL:
            self.last = segment.previous
        else:
            segment.next.previous = segment.previous
        self.count -= 1
        self.live -= segment.live
        release(segment)

    cdef Segment* locate(self, uint32_t number) noexcept nogil:
        cdef void* owner = <void*>self
        while number < (<SegmentTable>owner).branch:
            owner = (<SegmentTable>owner).parent
        return (<SegmentTable>owner).find(number)

    cdef bint lives(self, Pointer pointer) noexcept nogil:
        """Check before retire() for a pointer read from a device, where map and table may disagree."""
        cdef Segment* segment = self.find(pointer.segment) if pointer.flags & POINTER_PRESENT else NULL
        return segment is NULL or segment.live > segment.undecided

    cdef void born(self, Pointer pointer) noexcept nogil:
        cdef Segment* segment
        if pointer.flags & POINTER_PRESENT:
            segment = self.find(pointer.segment)
            if segment is not NULL:
                self.change_live(segment, 1)

    cdef bint retire(self, Pointer pointer, Born what) noexcept nogil:
        cdef uint64_t address = address_of(pointer), pin = self.pins[<int>what], wanted = self.wanted_pins[<int>what]
        cdef Segment* segment
        if not pointer.flags & POINTER_PRESENT or address < min(pin, wanted):
            return False
        segment = self.find(pointer.segment)
        if segment is NULL:
            return False
        invariant(segment.live > segment.undecided, b"a block dies once")
        if address < max(pin, wanted):
            if segment.undecided == 0:
                segment.undecided_next = self.undecided_first
                self.undecided_first = segment
            segment.undecided += 1
            return False
        self.change_live(segment, -1)
        return True

    cdef void replace(self, Pointer before, Pointer after) noexcept nogil:
        self.born(after)
        self.retire(before, DATA)
        self.count_mapped(after, 1)
        self.count_mapped(before, -1)

    cdef void count_mapped(self, Pointer pointer, int by) noexcept nogil:
        cdef uint64_t address = address_of(pointer)
        if not pointer.flags & POINTER_PRESENT:
            return
        self.mapped += by
        if pointer.segment < self.branch:
            self.inherited += by * (not planted(b"inherited_for_ever"))
            return
        if address >= self.pins[<int>DATA]:
            self.exclusive += by
        if address >= self.wanted_pins[<int>DATA]:
            self.wanted_exclusive += by

    cdef void recount(self, uint64_t mapped, uint64_t inherited, uint64_t exclusive) noexcept nogil:
        self.mapped, self.inherited = mapped, inherited
        self.exclusive = self.wanted_exclusive = exclusive

    cdef void change_live(self, Segment* segment, int64_t by) noexcept nogil:
        if segment.mark != self.mark:
            segment.live_then = segment.live
            segment.mark = self.mark
        segment.live += by
        self.live += by

    # ------------------------------------------------------------------ checkpoints

    cdef void begin_checkpoint(self) noexcept nogil:
        self.mark += 1

    cdef uint32_t live_at_checkpoint(self, const Segment* segment) noexcept nogil:
        return segment.live_then if segment.mark == self.mark else segment.live

    cdef void count_at_checkpoint(self, Pointer pointer, int by) noexcept nogil:
        cdef Segment* segment = self.find(pointer.segment) if pointer.flags & POINTER_PRESENT else NULL
        if segment is not NULL:
            invariant(segment.mark == self.mark, b"what a checkpoint counts was born or has died since it was begun")
            segment.live_then += by

    # ------------------------------------------------------------------ pins

    cdef void shift_pin(self, Born what, uint64_t pin) noexcept nogil:
        self.wanted_pins[<int>what] = pin

    cdef void settle(self, bint happened) noexcept nogil:
        cdef Segment* segment = self.undecided_first
        cdef bint rising = (
            self.wanted_pins[<int>DATA] > self.pins[<int>DATA] or self.wanted_pins[<int>NODE] > self.pins[<int>NODE]
        )
        cdef bint falling = (
            self.wanted_pins[<int>DATA] < self.pins[<int>DATA] or self.wanted_pins[<int>NODE] < self.pins[<int>NODE]
        )
        cdef int what
        invariant(not (rising and falling), b"the cuts of data and of nodes move together")
        for what in range(2):
            if happened:
                self.pins[what] = self.wanted_pins[what]
            self.wanted_pins[what] = self.pins[what]
        if happened:
            self.exclusive = self.wanted_exclusive
        self.wanted_exclusive = self.exclusive
        while segment is not NULL:                       # undecided blocks count as live, so their segments still exist
            if rising != happened:
                self.change_live(segment, -<int64_t>segment.undecided)
            segment.undecided = 0
            segment = segment.undecided_next
        self.undecided_first = NULL

    cdef void pin(self, uint64_t data, uint64_t nodes) noexcept nogil:
        self.pins[<int>DATA] = self.wanted_pins[<int>DATA] = data
        self.pins[<int>NODE] = self.wanted_pins[<int>NODE] = nodes

    cdef void hash(self, Segment* segment) noexcept nogil:
        cdef Segment** bucket = &self.buckets[segment.number & (self.bucket_count - 1)]
        segment.hash_next = bucket[0]
        bucket[0] = segment

    cdef void grow(self) noexcept nogil:
        """Double the buckets and rehash every segment but the newest, which is not in the hash table yet."""
        cdef Segment** buckets = <Segment**>calloc(2 * <size_t>self.bucket_count, sizeof(Segment*))
        cdef uint32_t old_count = self.bucket_count, i
        cdef Segment** old = self.buckets
        cdef Segment* segment
        cdef Segment* after
        if buckets is NULL:
            return                                                                # longer chains are acceptable
        self.buckets = buckets
        self.bucket_count = 2 * old_count
        for i in range(old_count):
            segment = old[i]
            while segment is not NULL:
                after = segment.hash_next
                self.hash(segment)
                segment = after
        release(old)


cdef class SegmentTableView:
    """A SegmentTable as a Python object, for tests."""

    segment_bytes = sizeof(Segment)
    replica_bytes = sizeof(Replica) - (EXTENTS_MAX - 1) * sizeof(Extent)         # of one extent

    cdef SegmentTable segments

    def __init__(self) -> None:
        self.segments = SegmentTable()

    def add(self, number: int) -> None:
        self.segments.add(number)

    def remove(self, number: int) -> None:
        cdef Segment* segment = self.segments.find(number)
        if segment is NULL:
            raise KeyError(number)
        self.segments.remove(segment)

    def born(self, segment: int, *, present: bool = True) -> None:
        self.segments.born(pointer_to(segment, present))

    def died(self, segment: int, *, present: bool = True) -> None:
        self.segments.retire(pointer_to(segment, present), DATA)

    @property
    def live(self) -> int:
        return self.segments.live

    def __len__(self) -> int:
        return self.segments.count

    def __contains__(self, number: int) -> bool:
        return self.segments.find(number) is not NULL

    def __iter__(self):
        """(number, live), ordered by number; __reversed__ follows the list backwards."""
        cdef Segment* segment = self.segments.first
        while segment is not NULL:
            yield segment.number, segment.live
            segment = segment.next

    def __reversed__(self):
        cdef Segment* segment = self.segments.last
        while segment is not NULL:
            yield segment.number, segment.live
            segment = segment.previous


cdef Pointer pointer_to(uint32_t segment, bint present):
    cdef Pointer pointer
    pointer.segment = segment
    pointer.block = 0
    pointer.crc = 0
    pointer.flags = POINTER_PRESENT if present else 0
    return pointer
