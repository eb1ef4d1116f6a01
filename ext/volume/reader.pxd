# Reads of a volume: map, device, checksum. See volume/reader.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.map.map cimport Map
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.log.open_segments cimport OpenSegments
from iomesh.engine.log.serving cimport Serving
from iomesh.engine.log.request cimport Read
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.base.task cimport Waiters

cdef enum:
    RUNS = 1024                      # device reads of one volume in flight

cdef struct Run:                     # contiguous blocks on a device
    Operation operation
    Read* read
    uint64_t serial                  # of the replica
    uint32_t first
    uint32_t count
    Run* next

cdef class Reader:
    cdef Reactor reactor
    cdef Io io
    cdef Map map
    cdef SegmentTable segments
    cdef uint64_t* counters
    cdef Run* runs
    cdef Run* free_runs
    cdef uint32_t free_count
    cdef uint32_t under_way          # reads in progress
    cdef Waiters run_waiters
    cdef Serving serving             # of the log; None: its data does not change
    cdef OpenSegments open_segments  # of the log
    cdef void* owner
    cdef void (*on_checksum)(void* owner, uint64_t block, uint32_t segment, uint32_t segment_block) noexcept nogil

    cdef void read(self, Read* read) noexcept nogil
    cdef void look_up(self, Read* read) noexcept nogil
    cdef void look_up_under_lease(self, Read* read) noexcept nogil
    cdef void look_up_again(self, Read* read, int64_t result) noexcept nogil
    cdef void fetch(self, Read* read) noexcept nogil
    cdef void go_on(self, Read* read, bint resumed) noexcept nogil
    cdef void resume(self, Read* read, int64_t result) noexcept nogil
    cdef void lost(self, Read* read, uint32_t i) noexcept nogil
    cdef void settle(self, Read* read) noexcept nogil
    cdef bint has_copies(self, const Run* run) noexcept nogil
    cdef void mend(self, Run* run) noexcept nogil
    cdef void run_over(self, Run* run) noexcept nogil
    cdef void run_done(self, Run* run, int result) noexcept nogil
    cdef void end(self, Read* read) noexcept nogil
    cdef void end_later(self, Read* read) noexcept nogil
