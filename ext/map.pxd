# A volume's map from block number to Pointer, and the cache its nodes live in. See map.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.layout cimport Pointer
from iomesh.engine.io cimport Io, Operation
from iomesh.engine.task cimport Waiters
from iomesh.engine.segments cimport Segments

cdef enum NodeState:
    NODE_FREE, NODE_LOADING, NODE_READY, NODE_FAILED

cdef struct Node:                    # a frame of the cache and the map node in it
    Pointer* pointers                # 256, in the frame
    void* map                        # the Map it belongs to
    uint64_t index                   # in its level
    uint8_t level
    uint8_t state                    # NodeState
    bint dirty                       # differs from what its parent points to
    bint in_log                      # an image of it was appended and is not committed yet
    bint recent                      # the clock's bit
    uint32_t pins                    # of users; a node with a cached child is pinned once per child
    uint64_t dirty_since             # the record that made it dirty
    Node* parent                     # pinned by this; NULL: the root
    Node* hash_next
    Node* dirty_next                 # list of its map's dirty nodes of its level, oldest first
    Node* dirty_previous
    Operation load
    Waiters waiters

cdef class MapCache:                 # of one reactor
    cdef readonly uint32_t frames
    cdef readonly uint32_t used
    cdef readonly uint32_t dirty
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses
    cdef Node* nodes
    cdef char* memory
    cdef Node* free_list
    cdef Node** buckets
    cdef uint32_t bucket_count
    cdef uint32_t hand
    cdef uint32_t loading
    cdef Waiters starved             # who found no frame: woken when one may be free again
    cdef Node* take(self) noexcept nogil                             # a free frame, evicting a clean unpinned node; NULL: none
    cdef void give_back(self, Node* node) noexcept nogil
    cdef bint wants_writeback(self) noexcept nogil                   # more than half is dirty, or someone starves

cdef class Map:
    cdef MapCache cache
    cdef Io io
    cdef Segments segments           # where a segment's replica is
    cdef Pointer root                # what the last image of the root is at
    cdef Node* dirty_first[5]
    cdef Node* dirty_last[5]
    cdef uint64_t freeze             # while a checkpoint runs: its sequence. Only nodes dirty since then or before may be written; 0: none runs
    cdef readonly uint64_t load_errors

    # A pinned node that is READY; NULL: not yet, `when` is done (result 0, or a negative errno) once it is worth asking again; ABSENT: nothing is mapped below (never when `create`)
    cdef Node* get(self, int level, uint64_t index, bint create, Operation* when) noexcept nogil
    cdef void unpin(self, Node* node) noexcept nogil
    cdef Pointer set(self, Node* node, uint32_t slot, Pointer pointer, uint64_t sequence) noexcept nogil    # returns what was there; the node is pinned by the caller
    # writing back, for checkpoint.pyx
    cdef Node* next_dirty(self, int level, uint64_t up_to) noexcept nogil     # dirty since `up_to` or before, no image in the log; NULL: none
    cdef bint must_write_first(self, Node* node) noexcept nogil               # a checkpoint needs it as it is: append an image before it changes
    cdef bint is_empty(self, Node* node) noexcept nogil                       # every pointer is zero: it needs no image
    cdef void image_taken(self, Node* node) noexcept nogil                    # it was copied into the log: clean unless it changes again
    cdef Pointer image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil   # the parent points to it from now on; returns where the last image was
    cdef void forget(self) noexcept nogil                                     # the volume closes: every frame of it is free

cdef Node* ABSENT
