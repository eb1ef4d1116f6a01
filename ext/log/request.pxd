# What a door asks of a volume. The door owns these structures and keeps them in place until they are finished.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport NODE_POINTERS, Pointer

cdef struct Request:                 # a write, trim, write-zeroes or flush; all zero but `finished` and `stable` when the door begins
    void (*finished)(Request* request) noexcept nogil
    bint stable                      # FUA: finished only when it is on stable media
    bint complete                    # nothing more of it will come
    int error                        # the first one: a positive errno; 0: none
    uint32_t parts                   # under way in records
    Request* next                    # of whoever holds it
    Operation deferred               # the volume's, with flush_of
    void* flush_of

cdef struct AwaitedRequest:          # of a task that writes much and waits for all of it at the end
    Request request                  # its first member
    Operation ended

cdef inline void end_awaited(Request* request) noexcept nogil:
    (<AwaitedRequest*>request).ended.done(&(<AwaitedRequest*>request).ended)

cdef struct Read:
    void (*done)(Read* read) noexcept nogil
    void* owner                      # the door's
    uint64_t block
    uint32_t count                   # 1 to 256, all under one leaf
    char* into                       # count * 4096 bytes, aligned to 4096, in the reactor's pool
    int error                        # a positive errno; 0: none
    bint unmapped                    # nothing is there: `into` was not touched and may be NULL when the door knew
    # the volume's:
    Read* next
    Operation waiting
    uint32_t runs_left
    uint32_t asked                   # blocks, from the front, that a run was begun for or that need none
    uint32_t attempts
    bint again                       # a checksum did not match: look up and read once more
    void* volume
    Pointer pointers[NODE_POINTERS]
