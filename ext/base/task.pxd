# Tasks: straight-line code for work off the hot path. A task is a fiber, with a stack of its own, on its reactor's
# thread. It runs until it waits for an Operation, and resumes when that is done; meanwhile the reactor serves others.
# Bring-up, recovery, checkpoints, the journal and sealing are tasks; reads and writes are not.
#
#     cdef Operation operation
#     waited(&operation)                        # done: wake this task
#     io.read(&operation, device, ...)
#     result = wait(&operation)                 # others run meanwhile
#
# Several operations may be in flight at once; the task waits for them one by one. A function with an operation on its
# stack must wait for it before it returns.

from libc.stdint cimport int64_t
from iomesh.engine.base.io cimport Operation

ctypedef int64_t (*Body)(void* argument) noexcept nogil

# Runs at once, up to the first wait; `ended` (may be NULL) completes with the body's result.
cdef void start(Body body, void* argument, Operation* ended) noexcept nogil
cdef bint in_task() noexcept nogil
cdef void waited(Operation* operation) noexcept nogil
cdef int64_t wait(Operation* operation) noexcept nogil

# A simulated crash: no task of this thread ever resumes.
cdef void abandon() noexcept nogil

# A queue of tasks, or of anything with an Operation, that wait for the same thing.
cdef struct Waiters:
    Operation* first
    Operation* last

cdef void join(Waiters* waiters, Operation* operation) noexcept nogil
cdef void wait_in(Waiters* waiters) noexcept nogil                  # in a task: join and wait
cdef void wake_all(Waiters* waiters, int64_t result) noexcept nogil
cdef void wake_one(Waiters* waiters, int64_t result) noexcept nogil
