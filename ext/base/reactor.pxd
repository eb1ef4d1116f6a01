# One polling thread, one core, one Io. See base/reactor.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport Body

cdef enum Mode:
    ADAPTIVE, BUSY, SLEEP

cdef struct Message:                 # from any thread to a reactor; must not move until delivered
    void (*deliver)(Message* message) noexcept nogil
    void* owner
    Message* next

cdef class Reactor:
    cdef readonly int number
    cdef Io io
    cdef Mode mode
    cdef int64_t poll_ns             # how long it polls after the last work before it sleeps
    cdef Operation* turn_first
    cdef Operation* turn_last
    cdef Message* mail               # newest first; a turn takes the whole list
    cdef bint asleep
    cdef bint stopping
    cdef bint running                # a thread runs it, or will; written by the threads that start and run it
    cdef uint64_t turns
    cdef uint64_t sleeps
    cdef int64_t users_ns            # when a user's request last began or ended; any thread reads it (atomics.pxd) ...
    cdef uint64_t busy_ns            # ... and this: time spent working, not waiting or polling without result

    cdef void at_turn_end(self, Operation* operation) noexcept nogil       # `done` is called once, before the next poll
    cdef void post(self, Message* message) noexcept nogil                  # from any thread
    cdef void users_there(self) noexcept nogil                             # sets users_ns
    cdef void run(self) noexcept nogil                                     # until stop()
    # From any thread: another one is about to call run(), and has returned from it or will not call it.
    cdef void begin(self) noexcept nogil
    cdef void end(self) noexcept nogil
    cdef void stop(self) noexcept nogil                                    # from any thread
    cdef int turn(self) noexcept nogil
    cdef int deliver(self, Message* newest) noexcept nogil
    cdef int64_t may_sleep(self, int64_t last_work_ns) noexcept nogil

ctypedef void (*Look)(void* argument) noexcept nogil

# From a thread that runs no reactor: run `look` on the target's thread between two operations, and wait for it. It must
# not wait itself. Without a running reactor, `look` runs at once.
cdef void look_on(Reactor target, Look look, void* argument) noexcept nogil

# From a task: run `body` as a task on target's thread and wait for its result.
cdef int64_t call_on(Reactor target, Reactor caller, Body body, void* argument) noexcept nogil
