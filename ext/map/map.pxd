# A volume's map from block number to Pointer, and the cache of its nodes. See map/map.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.store.bitmaps cimport Bitmaps
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.map.segment_table cimport SegmentTable

cdef enum:
    CACHE_FRAMES_MIN = 16
    LOADS_MAX = 64                   # concurrent, per cache
    EXPECTATIONS = 64                # concurrent prefetches, per cache

cdef enum NodeState:
    NODE_FREE, NODE_LOADING, NODE_READY

cdef struct Node:                    # a cache frame and its map node; 256 bytes, of which a hit touches the first 64
    Pointer* pointers                # 256, in the frame
    void* map                        # the Map it belongs to
    uint64_t index                   # of the node in its level
    Node* hash_next                  # free: next in the free list
    uint32_t pins                    # held by users; plus one per cached child
    uint8_t level
    uint8_t state                    # NodeState
    uint8_t recent                   # reference bit of the clock algorithm
    uint8_t dirty                    # differs from its newest image, committed or in the log
    uint32_t in_log                  # appended images of it that are not committed yet
    uint64_t dirty_since             # sequence of the record that made it dirty
    Node* parent                     # pinned by this node; NULL: the root
    Node* dirty_next                 # its map's dirty nodes of the same level, oldest first
    Node* dirty_previous
    Operation load
    Waiters waiters                  # of the load
    uint64_t serial                  # of the replica from which it is being read
    uint8_t padding[24]

cdef struct Expectation:             # a prefetch of a node
    Operation when
    void* map
    uint64_t index
    int level
    Expectation* next                # free: next in the free list

cdef class MapCache:                 # one per reactor
    cdef readonly uint32_t frames
    cdef readonly uint32_t used
    cdef readonly uint32_t dirty
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses    # nodes read from devices
    cdef Io io
    cdef Bitmaps bitmaps             # bitmaps of compacted segments: as many as 1/16 of the frames, in addition to them
    cdef Node* nodes
    cdef char* memory
    cdef uint64_t nodes_bytes
    cdef uint64_t memory_bytes
    cdef uint32_t touched            # frames from this index on, and their memory, were never used
    cdef Node* free_list
    cdef Node* late_list             # free, but an abandoned read may still arrive in them
    cdef Node** buckets
    cdef uint64_t buckets_bytes
    cdef int hash_shift
    cdef uint32_t clock_hand
    cdef uint32_t loading
    cdef uint32_t loads_max
    cdef bint no_free_frame          # the last search found none, and none has become free since
    cdef void* keepers               # the Checkpoints of the volumes that share the cache, see volume/checkpoint.pyx
    cdef void (*on_starving)(void* keepers) noexcept nogil     # there is a new waiter in `starved`; called inside get()
    cdef Waiters starved             # waiters that found no frame, or too many loads in flight
    cdef uint64_t starvations        # number of times a waiter was added
    cdef bint rousing
    cdef Operation rousal            # timer that wakes them from the next poll
    cdef Expectation expectations[EXPECTATIONS]
    cdef Expectation* free_expectations
    cdef Node* take(self) noexcept nogil                             # a free or evicted frame; NULL: none
    cdef void give_back(self, Node* node) noexcept nogil
    cdef void rouse(self) noexcept nogil                             # wakes `starved` waiters from the next poll on
    cdef bint wants_writeback(self) noexcept nogil                 # over half is dirty, or a waiter lacks a clean frame

cdef class Map:
    cdef MapCache cache
    cdef Io io
    cdef SegmentTable segments           # locates a segment's replica
    cdef Pointer root                # to the last committed image of the root
    cdef Node* dirty_first[5]
    cdef Node* dirty_last[5]
    cdef uint64_t freeze         # sequence of the running checkpoint: only nodes dirty up to it may be written. 0: none
    cdef readonly uint32_t images    # images of its nodes in the log that are not committed yet
    cdef readonly uint64_t load_errors
    # optional: gets a node from elsewhere that cannot be read, or is damaged: `when` completes with BLOCK_BYTES once it
    # is in `into`, or with a negative errno; perhaps before it returns
    cdef void (*mend)(void* mender, Pointer pointer, void* into, Operation* when) noexcept nogil
    cdef void* mender
    cdef uint32_t under_way          # its loads and prefetches
    cdef Waiters quiet               # woken when `under_way` reaches 0
    cdef int absent_level            # after get() returned ABSENT: level of the highest absent node

    # A pinned READY node; NULL: not available, and `when` completes (0 or a negative errno) when the caller should call
    # again; ABSENT: nothing is mapped below (never with `create`). `when` may be NULL: no notification.
    cdef Node* get(self, int level, uint64_t index, bint create, Operation* when) noexcept nogil
    cdef void unpin(self, Node* node) noexcept nogil
    # a READY cached node, not pinned; NULL: none. For checks
    cdef Node* peek(self, int level, uint64_t index) noexcept nogil
    # Prefetches a node and its ancestors; gives up when there is no room.
    cdef void expect(self, int level, uint64_t index) noexcept nogil
    # Sets a slot of a leaf that the caller has pinned. Returns the previous pointer.
    cdef Pointer set(self, Node* node, uint32_t slot, Pointer pointer, uint64_t sequence) noexcept nogil
    # Marks a clean node whose only image is at that address as dirty, so that it is written again elsewhere. False: it
    # will be written anyway, or its image is not there. Only while no checkpoint runs.
    cdef bint renew(self, Node* node, uint32_t segment, uint32_t block, uint64_t since) noexcept nogil
    # Write-back, for volume/checkpoint.pyx. The oldest node dirty since `up_to` or before without an image in the log;
    # NULL: none.
    cdef Node* next_dirty(self, int level, uint64_t up_to) noexcept nogil
    # Whether a checkpoint needs the node's current state: then append an image before it changes.
    cdef bint must_write_first(self, Node* node) noexcept nogil
    # Whether it needs no image: all pointers are zero, and no image of it is in the log. Called before image_taken();
    # if True, the zero pointer is committed at once.
    cdef bint is_empty(self, Node* node) noexcept nogil
    # The node was copied into the log: it is clean until it changes again.
    cdef void image_taken(self, Node* node) noexcept nogil
    # Called in the order of image_taken(). The parent now points to this image; returns the pointer to the previous
    # one. sequence: of the record that carried the image; for a zero image, of the newest committed record.
    cdef Pointer image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil
    # For closing the volume: requires that no node is pinned by users and no image will commit. Frees all its frames.
    # In a task: it may wait for prefetches.
    cdef void forget(self) noexcept nogil
    cdef Node* fetch(self, int level, uint64_t index, bint create, Operation* when) noexcept nogil
    cdef void load(self, Node* node) noexcept nogil
    cdef void ask(self, Node* node) noexcept nogil
    cdef void ask_again(self, Node* node, int64_t result) noexcept nogil
    cdef void loaded(self, Node* node, int64_t result) noexcept nogil
    cdef void expectation_woken(self, Expectation* expectation, int64_t result) noexcept nogil
    cdef void pursue(self, Expectation* expectation) noexcept nogil
    cdef void forgo(self, Expectation* expectation) noexcept nogil
    cdef void ended(self) noexcept nogil
    cdef void mark_dirty(self, Node* node, uint64_t since) noexcept nogil
    cdef void mark_clean(self, Node* node) noexcept nogil

cdef Node* ABSENT
