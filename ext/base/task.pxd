# Tasks: work off the hot path as straight lines of code. A task has a stack of its own (a fiber) on its reactor's thread; it runs until it
# waits for an Operation and goes on when that is done, while the reactor serves everything else. Bring-up, recovery, checkpoints,
# the journal and sealing are tasks; reads and writes are not.
#
#     cdef Operation operation
#     waited(&operation)                        # done: wake this task
#     io.read(&operation, device, ...)
#     result = wait(&operation)                 # others run meanwhile
#
# Several operations may be under way at once; each is waited for in turn. An operation on a task's stack must be waited for before the
# function that holds it returns.

from libc.stdint cimport int64_t
from iomesh.engine.base.io cimport Operation

ctypedef int64_t (*Body)(void* argument) noexcept nogil

# Runs at once, up to its first wait; `ended` (may be NULL) is done with the body's result.
cdef void start(Body body, void* argument, Operation* ended) noexcept nogil
cdef bint in_task() noexcept nogil
cdef void waited(Operation* operation) noexcept nogil
cdef int64_t wait(Operation* operation) noexcept nogil

# The process died, in the simulated world: no task of this thread ever goes on.
cdef void abandon() noexcept nogil

# A queue of tasks, or of anything with an Operation, that wait for the same thing.
cdef struct Waiters:
    Operation* first
    Operation* last

cdef void join(Waiters* waiters, Operation* operation) noexcept nogil
cdef void wait_in(Waiters* waiters) noexcept nogil                  # a task: joins and waits
cdef void wake_all(Waiters* waiters, int64_t result) noexcept nogil
cdef void wake_one(Waiters* waiters, int64_t result) noexcept nogil
