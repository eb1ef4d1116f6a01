# A volume's map from block number to Pointer, and the cache its nodes live in. See map/map.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.store.bitmaps cimport Bitmaps
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.map.segment_table cimport SegmentTable

cdef enum:
    CACHE_FRAMES_MIN = 16
    LOADS_MAX = 64                   # at once, of one cache
    EXPECTATIONS = 64                # likewise

cdef enum NodeState:
    NODE_FREE, NODE_LOADING, NODE_READY

cdef struct Node:                    # a frame of the cache and the map node in it; 256 bytes, what a hit touches in the first 64
    Pointer* pointers                # 256, in the frame
    void* map                        # the Map it belongs to
    uint64_t index                   # in its level
    Node* hash_next                  # free: the next one of the free list
    uint32_t pins                    # of users; a node with a cached child is pinned once per child
    uint8_t level
    uint8_t state                    # NodeState
    uint8_t recent                   # the clock's bit
    uint8_t dirty                    # differs from what its parent points to, or will point to once its images in the log are committed
    uint32_t in_log                  # images of it that were appended and are not committed yet
    uint64_t dirty_since             # the record that made it dirty
    Node* parent                     # pinned by this; NULL: the root
    Node* dirty_next                 # list of its map's dirty nodes of its level, oldest first
    Node* dirty_previous
    Operation load
    Waiters waiters                  # for the load
    uint64_t serial                  # of the replica that it is read from
    uint8_t padding[24]

cdef struct Expectation:             # a node that is loaded before anyone asks for it
    Operation when
    void* map
    uint64_t index
    int level
    Expectation* next                # of the free ones

cdef class MapCache:                 # of one reactor
    cdef readonly uint32_t frames
    cdef readonly uint32_t used
    cdef readonly uint32_t dirty
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses    # nodes that were read
    cdef Io io
    cdef Bitmaps bitmaps             # of the compacted segments of this reactor's volumes: a sixteenth of its frames, in addition
    cdef Node* nodes
    cdef char* memory
    cdef uint64_t nodes_bytes
    cdef uint64_t memory_bytes
    cdef uint32_t touched            # frames from here on were never used, and their memory neither
    cdef Node* free_list
    cdef Node** buckets
    cdef uint64_t buckets_bytes
    cdef int hash_shift
    cdef uint32_t clock_hand
    cdef uint32_t loading
    cdef uint32_t loads_max
    cdef bint barren                 # no frame was free when one was last sought, and none came free since
    cdef void* keepers               # the Checkpoints of the volumes that share it, see volume/checkpoint.pyx, ...
    cdef void (*on_starving)(void* keepers) noexcept nogil           # ... and whom to tell that someone starves; called inside get()
    cdef Waiters starved             # who found no frame, or too many loads under way
    cdef uint64_t starvations        # how often someone joined them
    cdef bint rousing
    cdef Operation rousal            # the timer that wakes them from the next poll
    cdef Expectation expectations[EXPECTATIONS]
    cdef Expectation* free_expectations
    cdef Node* take(self) noexcept nogil                             # a free frame, evicting a clean unpinned node; NULL: none
    cdef void give_back(self, Node* node) noexcept nogil
    cdef void rouse(self) noexcept nogil                             # whoever starves looks again, from the next poll on
    cdef bint wants_writeback(self) noexcept nogil                   # more than half is dirty, or someone starves for want of clean frames

cdef class Map:
    cdef MapCache cache
    cdef Io io
    cdef SegmentTable segments           # where a segment's replica is
    cdef Pointer root                # what the last image of the root is at
    cdef Node* dirty_first[5]
    cdef Node* dirty_last[5]
    cdef uint64_t freeze             # while a checkpoint runs: its sequence. Only nodes dirty since then or before may be written; 0: none runs
    cdef readonly uint32_t images    # of its nodes in the log, not committed yet
    cdef readonly uint64_t load_errors
    cdef uint32_t under_way          # its loads and expectations
    cdef Waiters quiet               # woken when there are none
    cdef int absent_level            # when get() returned ABSENT: the level of the highest node that is absent there

    # A pinned node that is READY; NULL: not yet, `when` is done (result 0, or a negative errno) once it is worth asking again; ABSENT:
    # nothing is mapped below (never when `create`). With `when` NULL nobody is told.
    cdef Node* get(self, int level, uint64_t index, bint create, Operation* when) noexcept nogil
    cdef void unpin(self, Node* node) noexcept nogil
    cdef Node* peek(self, int level, uint64_t index) noexcept nogil       # if it is READY in the cache; not pinned. NULL: it is not. For who checks
    # Loads a node, and what is above it, that someone will soon ask for; forgets about it when there is no room.
    cdef void expect(self, int level, uint64_t index) noexcept nogil
    # Of a leaf that the caller pinned; returns what was there.
    cdef Pointer set(self, Node* node, uint32_t slot, Pointer pointer, uint64_t sequence) noexcept nogil
    # A clean node whose only image is there shall be written again, elsewhere; False: it will be anyway, or it is not there. While no checkpoint runs.
    cdef bint renew(self, Node* node, uint32_t segment, uint32_t block, uint64_t since) noexcept nogil
    # Writing back, for volume/checkpoint.pyx. Dirty since `up_to` or before, no image in the log, the oldest; NULL: none
    cdef Node* next_dirty(self, int level, uint64_t up_to) noexcept nogil
    # A checkpoint needs it as it is: take and append an image before it changes.
    cdef bint must_write_first(self, Node* node) noexcept nogil
    # It needs no image: every pointer is zero, and no image of it is in the log. Asked before image_taken; what is committed then is zero, at once.
    cdef bint is_empty(self, Node* node) noexcept nogil
    # It was copied into the log: clean unless it changes again.
    cdef void image_taken(self, Node* node) noexcept nogil
    # In the order of image_taken. The parent points to it from now on; returns where the last image was. sequence: of the record that
    # carried it, or for a zero image of the newest one that is committed.
    cdef Pointer image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil
    # The volume closes: nobody holds a node and no image will be committed any more. Every frame of it is free. In a task: it may have to
    # wait for loads that were expected.
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
