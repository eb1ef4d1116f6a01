# Whether the owner of a log may serve reads, and commit. See log/serving.pyx.

from libc.stdint cimport uint16_t, uint32_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.log.open_segments cimport OpenSegments
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport REPLICAS_MAX

cdef class Serving:                  # Serving(open_segments)
    cdef OpenSegments open_segments
    cdef uint16_t members[2 * REPLICAS_MAX]      # of the fragments that may be the current one in the metadata service
    cdef int count                   # 0: the log has no fragments
    cdef uint16_t coming[REPLICAS_MAX]           # of the newest fragment that the metadata service was asked for
    cdef int coming_count
    cdef uint32_t coming_fragment    # its number
    cdef Waiters waiters             # for holds()
    cdef bint watching
    cdef bint over                   # the log has failed: leases that are lost do not come back
    cdef readonly uint32_t waits     # how often something had to wait
    cdef void* log
    cdef void (*on_watched)(void* log) noexcept nogil          # no task of it runs any more
    cdef void (*on_fenced)(void* log) noexcept nogil           # in a task: another node owns the volume
    # in a task: a member does not answer; the log is to go on without it, even if nothing is written
    cdef void (*on_silent)(void* log) noexcept nogil

    cdef bint holds(self) noexcept nogil                       # leases from all members
    cdef bint is_unfenced(self) noexcept nogil                 # this node has accepted no other owner
    cdef void await_leases(self, Operation* when) noexcept nogil    # `when` completes when it is time to ask again
    cdef void watch(self) noexcept nogil
    cdef void asks(self, const Segment* segment) noexcept nogil    # the metadata service, for the segment's fragment
    cdef void agreed(self, uint32_t fragment) noexcept nogil       # it has agreed
    cdef void add(self, uint16_t member) noexcept nogil
    cdef int verify(self) noexcept nogil
