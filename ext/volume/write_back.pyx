# Write-back of map nodes: appends their images to the volume's own log.
#
# It keeps frames free: when much of the cache is dirty, a task writes the oldest leaves into the log, then the levels
# above. A checkpoint writes the map level by level, and no other node is written back meanwhile (`held`), so that every
# image that commits belongs to it.
#
# Called by volume/checkpoint.pyx, and by the volume for a leaf that has to be written before it is changed.

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport start, wake_all
from iomesh.engine.format.layout cimport KIND_MAP, MAP_LEVELS, Pointer
from iomesh.engine.log.log cimport Log, Part
from iomesh.engine.log.open_segments cimport FOR_SPACE
from iomesh.engine.map.map cimport Map, Node
from iomesh.engine.map.segment_table cimport NODE, SegmentTable

cdef enum:
    BATCH = 480                      # nodes between two checks whether enough is clean: about two full records


cdef class WriteBack:
    def __cinit__(self, Log log, Map map, SegmentTable segments):
        self.log, self.map, self.segments = log, map, segments

    cdef void begin(self) noexcept nogil:
        if not self.running and not self.held and not self.stopping and not self.log.error:
            self.running = True
            start(write_back_body, <void*>self, NULL)

    cdef void run(self) noexcept nogil:
        """In a task: writes images of the oldest dirty nodes until enough of the cache is clean."""
        cdef Node* node
        cdef int level, written = 1, error = 0
        while (
            written and self.map.cache.wants_writeback() and not self.held and not self.stopping and not self.log.error
        ):
            written = level = 0
            while level < MAP_LEVELS and written < BATCH:
                if self.log.wait_room() < 0:
                    return
                node = self.map.next_dirty(level, ~<uint64_t>0)
                if node is NULL:
                    level += 1
                    continue
                if not self.write_image(node, &error):
                    if error:
                        return
                    continue
                written += 1
            self.log.wait_committed(self.log.last_appended())

    cdef void end(self) noexcept nogil:
        self.running = False
        if self.log.error:
            self.map.cache.rouse()                       # fails waiters for frames that this volume will never clean
        wake_all(&self.ended, 0)

    cdef int write_level(self, int level, uint64_t up_to) noexcept nogil:
        cdef Node* node
        cdef int result, error = 0
        while True:
            result = self.log.wait_room()
            if result < 0:
                return result
            node = self.map.next_dirty(level, up_to)
            if node is not NULL:
                if not self.write_image(node, &error) and error:
                    return error
                continue
            result = self.log.wait_committed(self.log.last_appended())
            if result < 0:
                return result
            if self.map.next_dirty(level, up_to) is NULL:
                return 0

    cdef bint write_image(self, Node* node, int* error) noexcept nogil:
        cdef Pointer nothing
        cdef Part part
        cdef int room
        error[0] = 0
        if self.map.is_empty(node):                      # an empty node needs no block
            memset(&nothing, 0, sizeof(nothing))
            self.map.image_taken(node)
            self.image_committed(node.level, node.index, nothing, self.log.committed)
            return True
        room = self.log.room(FOR_SPACE)
        if room <= 0:
            error[0] = room
            return False
        memset(&part, 0, sizeof(part))
        self.log.add_block(KIND_MAP, <uint64_t>node.level << 56 | node.index, 0, node.pointers, part)
        self.map.image_taken(node)
        return True

    cdef void image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil:
        cdef Pointer before = self.map.image_committed(level, index, image, sequence)
        cdef bint dead
        self.segments.born(image)
        dead = self.segments.retire(before, NODE)
        # part of the checkpoint's map: its counters change with it
        if self.map.freeze and not planted(b"counter_not_of_checkpoint"):
            self.segments.count_at_checkpoint(image, 1)
            if dead:
                self.segments.count_at_checkpoint(before, -1)


cdef int64_t write_back_body(void* argument) noexcept nogil:
    (<WriteBack>argument).run()
    (<WriteBack>argument).end()
    return 0
