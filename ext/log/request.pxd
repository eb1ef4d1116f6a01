# Requests of an export to a volume. The export owns these structures and does not move them until they are finished.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport NODE_POINTERS, Pointer

cdef struct Request:                 # a write, trim, write-zeroes or flush; initially zero except `finished`, `stable`
    void (*finished)(Request* request) noexcept nogil
    bint stable                      # FUA: finished only once it is on stable media
    bint complete                    # no further parts will be added
    int error                        # the first error, a positive errno; 0: none
    uint32_t parts                   # parts in uncommitted records
    void* session                    # whose end makes it needless, see Target.abandon(); NULL: none
    bint mixed                       # its volume was lost while it was open: the volume's heir has part of it
    Request* next                    # link for the list it is in
    Operation deferred               # the volume's, with flush_of
    void* flush_of

cdef struct AwaitedRequest:          # for a task that issues many writes and waits for all at the end
    Request request                  # its first member
    Operation ended

cdef inline void end_awaited(Request* request) noexcept nogil:
    (<AwaitedRequest*>request).ended.done(&(<AwaitedRequest*>request).ended)

cdef struct Read:
    void (*done)(Read* read) noexcept nogil
    void* owner                      # the export's
    void* session                    # as of a Request
    uint64_t block
    uint32_t count                   # 1 to 256, all in one map leaf
    char* into                       # count * 4096 bytes, aligned to 4096, in the reactor's pool
    int error                        # a positive errno; 0: none
    bint unmapped                    # no block is mapped: `into` was not written; it may be NULL if the export knew
    # private to the volume:
    Read* next
    Operation waiting
    uint32_t runs_left
    uint32_t asked                   # leading blocks whose run was started or that need none
    uint32_t attempts
    bint again                       # a checksum did not match: look up and read again
    void* volume
    Pointer pointers[NODE_POINTERS]
