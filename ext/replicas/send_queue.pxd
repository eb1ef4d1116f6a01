# The send queue of one connection of the peer protocol, at either end. See replicas/send_queue.pyx.

from libc.stdint cimport uint32_t, uint64_t
from posix.uio cimport iovec
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.format.peer cimport FRAME_BYTES

cdef enum:
    SEND_PARTS_MAX = 256             # of one send: some 100 frames with payload; the kernel takes up to 1024

cdef struct SendItem:                # a frame; must not move until `left`
    void (*left)(SendItem* item) noexcept nogil   # once: nothing reads header and data any more. Sent, or dropped
    void* owner
    const char* head                 # the payload's first bytes, if they lie elsewhere than the others; ...
    uint32_t head_bytes              # ... 0: they do not
    const char* data                 # the payload; sent from where it lies
    uint32_t data_bytes
    SendItem* next
    char header[FRAME_BYTES]

cdef class SendQueue:                # SendQueue(reactor)
    cdef Reactor reactor
    cdef Io io
    cdef int connection
    cdef SendItem* first
    cdef SendItem* last
    cdef SendItem* leaving           # in the send under way
    cdef SendItem* leaving_last
    cdef Operation sending
    cdef bint busy                   # `sending` is under way
    cdef Operation at_turn
    cdef bint asked                  # `at_turn` is under way
    cdef bint broken                 # nothing more is sent
    cdef uint64_t sends
    cdef uint64_t frames
    cdef iovec parts[SEND_PARTS_MAX]
    cdef void (*changed)(void* owner) noexcept nogil      # a send has ended, or failed (then `broken`)
    cdef void* owner

    cdef void begin(self, int connection) noexcept nogil  # on a new connection; the queue is idle
    cdef void add(self, SendItem* item) noexcept nogil    # sent at the turn's end, or after the current send
    # Nothing more is sent. `left` of what waits is called now, of what is being sent when that send has ended: close
    # the connection first, so that it ends.
    cdef void drop(self) noexcept nogil
    cdef bint idle(self) noexcept nogil                   # nothing waits or is being sent
    cdef void ask(self) noexcept nogil
    cdef void send(self) noexcept nogil
    cdef void turn_ended(self) noexcept nogil
    cdef void sent(self) noexcept nogil
