# The segments of one volume's log and how many blocks of each live: the segment table in memory.
#
# Always true:
#   - a segment is in the hash table and in the list, which is in the order of numbers;
#   - `live` of the table is the sum of `live` of its segments; a segment's is how many blocks of it a pointer of the map, or to a node
#     of it, points to. It is derived, never durable by itself: checkpoints carry it, replay goes on from there;
#   - a Segment stays at its address until it is removed.
#
# A pointer to a segment that is not in the table counts for nothing: replaying old records meets segments that died and were
# deleted since. Called by log, map, checkpoint and recovery on the volume's reactor; born() and died() are on the path of every write, so
# they neither allocate nor fail: memory and the growth of the hash table belong to add().

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.invariant cimport invariant
from iomesh.engine.layout cimport POINTER_PRESENT, Pointer

cdef enum:
    BUCKETS_AT_FIRST = 64


cdef class Segments:
    """Raises MemoryError."""

    def __cinit__(self):
        self.bucket_count = BUCKETS_AT_FIRST
        self.buckets = <Segment**>calloc(self.bucket_count, sizeof(Segment*))
        if self.buckets is NULL:
            raise MemoryError("no memory for a table of segments")

    def __dealloc__(self):
        cdef Segment* segment = self.first
        while segment is not NULL:
            self.first = segment.next
            release(segment)
            segment = self.first
        release(self.buckets)

    cdef Segment* find(self, uint32_t number) noexcept nogil:
        cdef Segment* segment = self.buckets[number & (self.bucket_count - 1)]    # numbers are dense: their low bits spread them
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

    cdef bint lives(self, Pointer pointer) noexcept nogil:
        """Before died(), where a pointer comes from a device: its map and its table may disagree."""
        cdef Segment* segment = self.find(pointer.segment) if pointer.flags & POINTER_PRESENT else NULL
        return segment is NULL or segment.live > 0

    cdef void born(self, Pointer pointer) noexcept nogil:
        cdef Segment* segment
        if pointer.flags & POINTER_PRESENT:
            segment = self.find(pointer.segment)
            if segment is not NULL:
                segment.live += 1
                self.live += 1

    cdef void died(self, Pointer pointer) noexcept nogil:
        cdef Segment* segment
        if pointer.flags & POINTER_PRESENT:
            segment = self.find(pointer.segment)
            if segment is not NULL:
                invariant(segment.live > 0, b"a block dies once")
                segment.live -= 1
                self.live -= 1

    cdef void hash(self, Segment* segment) noexcept nogil:
        cdef Segment** bucket = &self.buckets[segment.number & (self.bucket_count - 1)]
        segment.hash_next = bucket[0]
        bucket[0] = segment

    cdef void grow(self) noexcept nogil:
        """Twice the buckets; every segment but the newest, which is not in the table yet, is hashed again."""
        cdef Segment** buckets = <Segment**>calloc(2 * <size_t>self.bucket_count, sizeof(Segment*))
        cdef uint32_t old_count = self.bucket_count, i
        cdef Segment** old = self.buckets
        cdef Segment* segment
        cdef Segment* after
        if buckets is NULL:
            return                                                                # longer chains do no harm
        self.buckets = buckets
        self.bucket_count = 2 * old_count
        for i in range(old_count):
            segment = old[i]
            while segment is not NULL:
                after = segment.hash_next
                self.hash(segment)
                segment = after
        release(old)


cdef class SegmentsView:
    """The same, for tests."""

    cdef Segments segments

    def __init__(self) -> None:
        self.segments = Segments()

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
        self.segments.died(pointer_to(segment, present))

    @property
    def live(self) -> int:
        return self.segments.live

    def __len__(self) -> int:
        return self.segments.count

    def __contains__(self, number: int) -> bool:
        return self.segments.find(number) is not NULL

    def __iter__(self):
        """(number, live) in the order of numbers; __reversed__ follows the list the other way."""
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
