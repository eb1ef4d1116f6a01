# Which segment replicas a device holds, and where. See directory.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.layout cimport EXTENTS_MAX, Extent, JournalEntry

cdef struct Replica:                 # a node's copy of a segment; stays at its address until it is dropped
    uint8_t volume[16]
    uint32_t segment
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED; 0: not in the journal (yet, or no longer)
    uint8_t extent_count
    uint16_t stream
    uint64_t epoch
    uint32_t blocks
    uint32_t footer_block
    int device                       # the Io's number of the store's device
    bint changing                    # a change of it is on its way into the journal
    uint64_t slabs_offset
    Extent extents[EXTENTS_MAX]
    Replica* next                    # in the directory's bucket

cdef union EntryBytes:               # a journal entry with the room for its extents
    JournalEntry entry
    char bytes[320]

cdef class Directory:
    cdef readonly uint32_t count     # replicas whose state is not 0
    cdef uint64_t entry_bytes        # of a journal entry for each, those of state 0 included: what a snapshot takes at most
    cdef Replica** buckets
    cdef uint32_t bucket_count
    cdef uint32_t filled             # replicas in the buckets

    cdef Replica* find(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    cdef Replica* add(self, const uint8_t* volume, uint32_t segment, const Extent* extents, int extent_count) noexcept nogil   # of state 0; NULL: no memory
    cdef void drop(self, Replica* replica) noexcept nogil                          # of state 0
    cdef void apply(self, Replica* replica, const JournalEntry* entry) noexcept nogil       # it is as the entry says
    cdef const char* replay(self, const JournalEntry* entry) noexcept nogil        # when the journal is read; NULL, or why it cannot be
    cdef uint32_t list(self, const uint8_t* volume, Replica** into, uint32_t room) noexcept nogil
    cdef Replica** place(self, const uint8_t* volume, uint32_t segment) noexcept nogil
    cdef void grow(self) noexcept nogil

cdef uint32_t entry_of(const Replica* replica, JournalEntry* into) noexcept nogil     # an ENTRY_PUT; returns its length with the extents
cdef inline const Extent* extents_of(const JournalEntry* entry) noexcept nogil:
    return <const Extent*>(entry + 1)
