# A token bucket: work asks before each step, and waits until what it has moved so far is what it may have moved by then.
#
# Always true:
#   - a step may begin as soon as nothing is owed, however long it is, and is owed afterwards: steps larger than the bucket get through, and
#     the mean is kept;
#   - while a user's request has begun or ended within the last USERS_NS on one of `reactors`, bytes come at `share` percent;
#   - nobody sleeps longer than NAP_NS without looking whether it is to stop, to hurry, or may go faster because the users have gone;
#   - time is the Io's: the simulated world's drives it, too.
#
# What is asked lives on one reactor at a time (`at`); the times of other reactors' users are read without a lock, as is `hurried`: who sees
# them a moment late is late by one nap. Called in tasks, by compaction, cleaning and scrub.

from libc.errno cimport ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t

from iomesh.engine.compaction cimport Pace
from iomesh.engine.io cimport Operation
from iomesh.engine.reactor cimport Reactor
from iomesh.engine.task cimport wait, waited

cdef enum:
    NAP_NS = 5 * 1000 * 1000
    USERS_NS = 20 * 1000 * 1000      # longer than one request takes, so that one at a time counts as well
    BURST_NS = 20 * 1000 * 1000      # of bytes that an idle bucket holds


cdef class TokenBucket:
    """at: the reactor whose tasks ask first. reactors: an array that outlives it, of Reactors."""

    def __cinit__(self, Reactor at):
        self.pace.step = bucket_step
        self.pace.owner = <void*>self
        self.at = <void*>at

    cdef void start(self, uint64_t bytes_per_second, uint32_t share) noexcept nogil:
        self.bytes_per_second = bytes_per_second
        self.share = share
        self.hurried = False
        self.tokens = 0
        self.filled_ns = (<Reactor>self.at).io.now_ns()

    cdef bint users_there(self, int64_t now_ns) noexcept nogil:
        cdef int i
        for i in range(self.reactor_count):
            if now_ns - (<Reactor>self.reactors[i]).users_ns < USERS_NS:
                return True
        return False

    cdef int step(self, uint32_t bytes) noexcept nogil:
        cdef Operation nap
        cdef int64_t now_ns
        cdef double rate, owed_ns
        while True:
            if self.stopping is not NULL and self.stopping[0]:
                return -ESHUTDOWN
            if self.bytes_per_second == 0 or self.hurried:
                return 0
            now_ns = (<Reactor>self.at).io.now_ns()
            rate = <double>self.bytes_per_second / 1e9
            if self.users_there(now_ns):
                rate = rate * self.share / 100
            if now_ns > self.filled_ns:
                self.tokens = min(self.tokens + rate * (now_ns - self.filled_ns), max(rate * BURST_NS, 1.0))
                self.filled_ns = now_ns
            if self.tokens >= 0:
                self.tokens -= bytes
                return 0
            owed_ns = -self.tokens / rate + 1 if rate > 0 else NAP_NS
            self.waits += 1
            waited(&nap)
            (<Reactor>self.at).io.after(&nap, <int64_t>min(owed_ns, <double>NAP_NS))
            wait(&nap)


cdef int bucket_step(void* owner, uint32_t bytes) noexcept nogil:
    return (<TokenBucket>owner).step(bytes)


cdef void move_to(Pace* pace, Reactor reactor) noexcept nogil:
    if pace is not NULL and pace.step is bucket_step:
        (<TokenBucket>pace.owner).at = <void*>reactor
