# Writing nodes of the map back into the log. See volume/write_back.pyx.

from libc.stdint cimport uint64_t
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map, Node
from iomesh.engine.map.segment_table cimport SegmentTable

cdef class WriteBack:                # of one volume
    cdef Log log
    cdef Map map
    cdef SegmentTable segments
    cdef bint running                # a task is writing images to keep frames free
    cdef bint held                   # no task is started: a checkpoint is writing the map
    cdef bint stopping               # no task is started any more
    cdef Waiters ended               # of that task

    cdef void begin(self) noexcept nogil                                 # unless it is running, held or stopping
    # in a task: commits the nodes for a checkpoint at `up_to`
    cdef int write_level(self, int level, uint64_t up_to) noexcept nogil
    # appends it if there is room; False: wait in log.waiters
    cdef bint write_image(self, Node* node, int* error) noexcept nogil
    cdef void image_committed(self, int level, uint64_t index, Pointer image, uint64_t sequence) noexcept nogil
    cdef void run(self) noexcept nogil
    cdef void end(self) noexcept nogil
