# The simulated world's event queue, earliest first, and its clock.
#
# Always true:
#   - an event is free, in the heap (EVENT_DUE), or ready and held by a face (EVENT_READY), as `state` says;
#   - events due at the same time come in the order in which they were put;
#   - the clock never runs back, and only World.advance moves it.
#
# A 4-ary heap: half the levels of a binary one, and the four children lie in two cache lines. Memory grows by doubling
# and is never released, so that operations do not allocate.

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free as release, realloc

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation

cdef enum:
    FIRST_CAPACITY = 1024


cdef class EventQueue:
    def __cinit__(self):
        self.unused = NO_EVENT
        self.grow()

    def __dealloc__(self):
        release(self.events)
        release(self.heap)

    cdef void grow(self) noexcept nogil:
        cdef uint32_t before = self.capacity, i
        self.capacity = before * 2 if before else FIRST_CAPACITY
        self.events = <Event*>realloc(self.events, self.capacity * sizeof(Event))
        self.heap = <Due*>realloc(self.heap, self.capacity * sizeof(Due))
        invariant(self.events is not NULL and self.heap is not NULL, b"there is memory for what is to happen")
        for i in range(self.capacity, before, -1):
            self.events[i - 1].state = EVENT_FREE
            self.events[i - 1].next = self.unused
            self.unused = i - 1

    cdef uint32_t put(self, EventKind kind, int face, int target, Operation* operation, int64_t due_ns) noexcept nogil:
        cdef uint32_t number
        cdef Event* event
        cdef Due due
        if self.unused == NO_EVENT:
            self.grow()
        number = self.unused
        event = &self.events[number]
        self.unused = event.next
        event.kind = kind
        event.face = face
        event.target = target
        event.operation = operation
        event.mark = 0
        event.result = 0
        event.generation = 0
        event.next = NO_EVENT
        event.state = EVENT_DUE
        event.due_ns = due_ns if due_ns > self.now else self.now
        due.due_ns = event.due_ns
        due.order = self.order
        due.event = number
        self.order += 1
        self.count += 1
        self.sift_up(self.count - 1, due)
        return number

    cdef uint32_t first(self) noexcept nogil:
        return self.heap[0].event if self.count else NO_EVENT

    cdef void take(self, uint32_t event) noexcept nogil:
        cdef uint32_t place = self.events[event].heap_at
        cdef Due last
        invariant(
            self.events[event].state == EVENT_DUE and self.heap[place].event == event,
            b"what is taken from the agenda is on it",
        )
        self.count -= 1
        if place == self.count:
            return
        last = self.heap[self.count]
        if place and sooner(&last, &self.heap[(place - 1) // 4]):
            self.sift_up(place, last)
        else:
            self.sift_down(place, last)

    cdef void drop(self, uint32_t event) noexcept nogil:
        self.events[event].state = EVENT_FREE
        self.events[event].operation = NULL
        self.events[event].next = self.unused
        self.unused = event

    cdef void sift_up(self, uint32_t place, Due due) noexcept nogil:
        """Puts `due` at `place`, or above it where it belongs."""
        cdef uint32_t parent
        while place:
            parent = (place - 1) // 4
            if not sooner(&due, &self.heap[parent]):
                break
            self.heap[place] = self.heap[parent]
            self.events[self.heap[place].event].heap_at = place
            place = parent
        self.heap[place] = due
        self.events[due.event].heap_at = place

    cdef void sift_down(self, uint32_t place, Due due) noexcept nogil:
        cdef uint32_t child, best, end
        while place * 4 + 1 < self.count:
            best = place * 4 + 1
            end = min(best + 4, self.count)
            for child in range(best + 1, end):
                if sooner(&self.heap[child], &self.heap[best]):
                    best = child
            if not sooner(&self.heap[best], &due):
                break
            self.heap[place] = self.heap[best]
            self.events[self.heap[place].event].heap_at = place
            place = best
        self.heap[place] = due
        self.events[due.event].heap_at = place


cdef inline bint sooner(const Due* one, const Due* other) noexcept nogil:
    return one.due_ns < other.due_ns or (one.due_ns == other.due_ns and one.order < other.order)
