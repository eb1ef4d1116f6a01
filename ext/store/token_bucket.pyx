# A token bucket: work calls it before each step and waits until the bytes it has moved so far fit the rate.
#
# Always true:
#   - a step of any size may begin once the debt is paid, and adds its size to the debt. So steps larger than the bucket
#     are possible, and the mean rate holds;
#   - while a user's request has begun or ended within the last USERS_NS on one of `reactors`, the rate is `share`
#     percent;
#   - at least every NAP_NS a waiting step checks `stopping`, `hurried`, and whether users are still active;
#   - time is the Io's, so it also runs in the simulated world.
#
# Tasks on several reactors may call it: a spin lock is held for the few instructions of take(). `users_ns`, `hurried`
# and `stopping` are set by other threads (base/atomics.pxd): a value that is seen late costs one nap. Called in tasks,
# by compaction, cleaning, flatten and scrub.

from libc.errno cimport ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from iomesh.engine.base.atomics cimport load_flag, load_int64, store_flag
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.task cimport wait, waited

cdef extern from *:
    """
    #define is_taken(lock) __atomic_test_and_set(lock, __ATOMIC_ACQUIRE)
    #define let_go(lock) __atomic_clear(lock, __ATOMIC_RELEASE)
    """
    bint is_taken(uint8_t* lock) noexcept nogil
    void let_go(uint8_t* lock) noexcept nogil

cdef enum:
    NAP_NS = 5 * 1000 * 1000
    USERS_NS = 20 * 1000 * 1000      # longer than a request takes, so that queue depth 1 counts as active, too
    BURST_NS = 20 * 1000 * 1000      # an idle bucket holds the bytes of this time


cdef class TokenBucket:
    """reactors: an array of Reactors that outlives it."""

    def __cinit__(self):
        self.throttle.step = bucket_step
        self.throttle.owner = <void*>self

    cdef void start(self, int64_t now_ns, uint64_t bytes_per_second, uint32_t share) noexcept nogil:
        self.bytes_per_second = bytes_per_second
        self.share = share
        store_flag(self.hurried, False)
        self.tokens = 0
        self.filled_ns = now_ns

    cdef void hurry(self) noexcept nogil:
        store_flag(self.hurried, True)

    cdef bint users_there(self, int64_t now_ns) noexcept nogil:
        cdef int i
        for i in range(self.reactor_count):
            if now_ns - load_int64((<Reactor>self.reactors[i]).users_ns) < USERS_NS:
                return True
        return False

    cdef int step(self, Io io, uint32_t bytes) noexcept nogil:
        cdef Operation nap
        cdef int64_t nap_ns
        while True:
            if self.stopping is not NULL and load_flag(self.stopping[0]):
                return -ESHUTDOWN
            if self.bytes_per_second == 0 or load_flag(self.hurried):
                return 0
            while is_taken(&self.taken):
                pass
            nap_ns = self.take(io.now_ns(), bytes)
            let_go(&self.taken)
            if nap_ns == 0:
                return 0
            waited(&nap)
            io.after(&nap, nap_ns)
            wait(&nap)

    cdef int64_t take(self, int64_t now_ns, uint32_t bytes) noexcept nogil:
        """0: `bytes` are taken; otherwise the time to wait before the next call."""
        cdef double rate = <double>self.bytes_per_second / 1e9
        if self.users_there(now_ns):
            rate = rate * self.share / 100
        if now_ns > self.filled_ns:
            self.tokens = min(self.tokens + rate * (now_ns - self.filled_ns), max(rate * BURST_NS, 1.0))
            self.filled_ns = now_ns
        if self.tokens >= 0:
            self.tokens -= bytes
            return 0
        self.waits += 1
        return <int64_t>min(-self.tokens / rate + 1 if rate > 0 else NAP_NS, <double>NAP_NS)


cdef int bucket_step(void* owner, Io io, uint32_t bytes) noexcept nogil:
    return (<TokenBucket>owner).step(io, bytes)
