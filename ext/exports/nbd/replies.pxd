# The send queue of one NBD connection. See exports/nbd/replies.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.uio cimport iovec
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.exports.nbd.wire cimport HEADER_BYTES_MAX
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor

cdef enum:
    PARTS_MAX = 512                  # of one send; the kernel takes up to 1024
    HEADERS_BYTES = 16 * 1024        # of one send
    SEND_BYTES = 2 * 1024 * 1024     # limit of one send, so that its buffers are released soon

cdef struct Reply:                   # one header, one piece of data, or both in this order; must not move until `left`
    void (*left)(Reply* reply) noexcept nogil     # called when it was sent or dropped
    void* owner
    const char* data
    uint32_t data_bytes
    uint32_t header_bytes
    char header[HEADER_BYTES_MAX]
    Reply* next

cdef class Replies:
    cdef Reactor reactor
    cdef Io io
    cdef Pool pool
    cdef int connection
    cdef Operation at_turn
    cdef Operation sending
    cdef bint asked                  # at_turn is under way
    cdef bint busy                   # sending is under way
    cdef bint broken                 # nothing more is sent
    cdef Operation watch             # checks from time to time that the client receives its replies
    cdef bint watching
    cdef uint64_t sends
    cdef uint64_t sends_seen
    cdef bint stalled                # it does not, and other connections wait for the buffers: end the connection
    cdef bint stream                 # the front of the queue belongs to one incomplete reply
    cdef Reply* first
    cdef Reply* last
    cdef Reply* held_first           # replies that wait for the stream's end
    cdef Reply* held_last
    cdef Reply* leaving              # in the send under way
    cdef Reply* leaving_last
    cdef iovec parts[PARTS_MAX]
    cdef char headers[HEADERS_BYTES]
    # a send has ended or failed (then `broken`), or the client is `stalled`
    cdef void (*changed)(void* owner) noexcept nogil
    cdef void* owner
    cdef void add(self, Reply* reply) noexcept nogil             # sent at the turn's end, or after the current send
    cdef void add_to_stream(self, Reply* reply) noexcept nogil   # likewise, before all other replies; starts a stream
    cdef void end_stream(self) noexcept nogil
    cdef void drop(self) noexcept nogil                          # the connection is closed: call `left` of all replies
    cdef bint idle(self) noexcept nogil                          # nothing is queued or being sent
    cdef void ask(self) noexcept nogil
    cdef void send(self) noexcept nogil
    cdef void turn_ended(self) noexcept nogil
    cdef void sent(self) noexcept nogil
    cdef void look(self) noexcept nogil
