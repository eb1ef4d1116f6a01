# Whether the owner of a log may serve reads, and commit: it holds a lease from every member of the current fragment
# (docs/ownership.md, rule 3; store/leases.pyx).
#
# Always true:
#   - a read is answered only while all leases are held, so no other owner has served anything newer;
#   - a record commits only while this node's own devices have accepted no other owner: those of other nodes refuse the
#     record themselves;
#   - while the metadata service has not said which of two fragments is the current one, the members of both count.
#
# A log without fragments holds its leases always. Called by log/log.pyx and volume/reader.pyx.

from libc.stdint cimport int64_t, uint16_t, uint32_t

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport join, start, wait, waited, wake_all
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport REPLICAS_MAX, Member

cdef extern from "<errno.h>" nogil:
    int ESTALE

cdef enum:
    LOOK_NS = 5 * 1000 * 1000        # between two looks while something waits


cdef class Serving:
    def __cinit__(self, OpenSegments open_segments):
        self.open_segments = open_segments

    cdef bint holds(self) noexcept nogil:
        cdef int64_t now_ns
        cdef int i
        if self.count == 0 or planted(b"no_leases"):
            return True
        now_ns = self.open_segments.io.monotonic_ns()
        for i in range(self.count):
            if not (<Member>self.open_segments.members[self.members[i]]).holds_lease(now_ns):
                return False
            if planted(b"one_lease_is_enough"):
                return True
        return True

    cdef bint is_unfenced(self) noexcept nogil:
        cdef int64_t now_ns
        cdef int i
        if self.count == 0:
            return True
        now_ns = self.open_segments.io.monotonic_ns()
        for i in range(self.count):
            if self.members[i] < self.open_segments.local_count and \
                    not (<Member>self.open_segments.members[self.members[i]]).holds_lease(now_ns):
                return False
        return True

    cdef void await_leases(self, Operation* when) noexcept nogil:
        self.waits += 1
        join(&self.waiters, when)
        self.watch()

    cdef void watch(self) noexcept nogil:
        if not self.watching:
            self.watching = True
            start(watch_body, <void*>self, NULL)

    cdef void asks(self, const Segment* segment) noexcept nogil:
        cdef int i
        self.coming_fragment = segment.replica.fragment
        self.coming[0] = segment.member
        self.coming_count = 1 + segment.copy_count
        for i in range(segment.copy_count):
            self.coming[1 + i] = segment.copies[i]
        for i in range(self.coming_count):
            self.add(self.coming[i])

    cdef void agreed(self, uint32_t fragment) noexcept nogil:
        cdef int i
        if fragment < self.coming_fragment:
            return                                       # another one is asked for already
        self.count = 0
        for i in range(self.coming_count):
            self.add(self.coming[i])

    cdef void add(self, uint16_t member) noexcept nogil:
        cdef int i
        for i in range(self.count):
            if self.members[i] == member:
                return
        if self.count < 2 * <int>REPLICAS_MAX:
            self.members[self.count] = member
            self.count += 1

    cdef int verify(self) noexcept nogil:
        """In a task: asks members that have accepted fences since whether one is of this volume. 0; -ESTALE: another
        node owns it; or another negative errno: a member does not answer."""
        cdef int64_t now_ns = self.open_segments.io.monotonic_ns()
        cdef int i = 0, result = 0, error
        while i < self.count:
            if not (<Member>self.open_segments.members[self.members[i]]).holds_lease(now_ns):
                error = (<Member>self.open_segments.members[self.members[i]]).verify(self.open_segments.epoch)
                if error == -ESTALE:
                    return error
                result = min(result, error)
            i += 1
        return result


cdef int64_t watch_body(void* argument) noexcept nogil:
    watch(<Serving>argument)
    (<Serving>argument).on_watched((<Serving>argument).log)
    return 0


cdef void watch(Serving serving) noexcept nogil:
    cdef Operation timer
    cdef int result
    while serving.waiters.first is not NULL:
        result = serving.verify()
        if result == -ESTALE:
            serving.on_fenced(serving.log)
        elif serving.open_segments.give_up_ns and serving.open_segments.io.now_ns() >= serving.open_segments.give_up_ns:
            serving.over = True                          # the volume is being closed
        elif not serving.holds() and not serving.over:
            if result < 0:
                serving.on_silent(serving.log)
            waited(&timer)
            serving.open_segments.io.after(&timer, LOOK_NS)
            wait(&timer)
            continue
        wake_all(&serving.waiters, 0)
        waited(&timer)
        serving.open_segments.reactor.at_turn_end(&timer)
        wait(&timer)
    serving.watching = False
