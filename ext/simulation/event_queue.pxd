# The simulated world's event queue, earliest first, and its clock. See simulation/event_queue.pyx.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation

cdef enum EventKind:
    EVENT_READ, EVENT_WRITE, EVENT_FLUSH, EVENT_DISCARD, EVENT_TIMER, EVENT_RECEIVE, EVENT_SEND
    EVENT_ARRIVAL                    # bytes arrive at an end of a connection
    EVENT_FIN                        # the peer's orderly close arrives
    EVENT_RESET

cdef enum EventState:
    EVENT_FREE, EVENT_DUE, EVENT_READY

cdef enum:
    NO_EVENT = 0xFFFFFFF

cdef struct Event:
    int64_t due_ns
    Operation* operation             # NULL: an event of the world itself
    # FLUSH: the cache's head at its start; WRITE: checksum of the data; READ: 1: data read then; ARRIVAL: bytes
    uint64_t mark
    int64_t result                   # of RECEIVE and SEND
    uint32_t heap_at
    uint32_t next                    # in the list of free ones or of ready ones
    uint32_t generation              # of the connection
    int32_t target                   # device or connection
    int face
    EventKind kind
    EventState state

cdef struct Due:
    int64_t due_ns
    uint64_t order                   # of insertion: breaks ties
    uint32_t event

cdef class EventQueue:
    cdef Event* events               # refer to them by number: put() may move them
    cdef Due* heap
    cdef uint32_t capacity
    cdef uint32_t count              # in the heap
    cdef uint32_t unused             # the first of the free ones
    cdef uint64_t order
    cdef int64_t now

    cdef uint32_t put(self, EventKind kind, int face, int target, Operation* operation, int64_t due_ns) noexcept nogil
    cdef uint32_t first(self) noexcept nogil                     # NO_EVENT: the queue is empty
    cdef void take(self, uint32_t event) noexcept nogil          # out of the heap; the caller owns it
    cdef void drop(self, uint32_t event) noexcept nogil          # free again; not in the heap
    cdef void grow(self) noexcept nogil
    cdef void sift_up(self, uint32_t place, Due due) noexcept nogil
    cdef void sift_down(self, uint32_t place, Due due) noexcept nogil
