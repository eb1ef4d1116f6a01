# Tasks: see base/task.pxd for their use.
#
# Always true:
#   - a task runs only on the thread of the reactor that started it, and nothing else runs there at the same time: the
#     reactor's data does not change between two waits;
#   - an operation wakes only the task that waits for it; one that is done before the wait has a `next` field that
#     points to itself;
#   - stacks are reused; the polling thread owns them.
#
# A fiber starts as a ucontext. _setjmp and _longjmp switch fibers, because swapcontext makes a system call for the
# signal mask. Under ThreadSanitizer, which refuses to longjmp to another stack, swapcontext does; and each fiber is
# announced to it as a thread of its own that never runs at the same time as its caller.

from libc.stdint cimport int64_t

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.io cimport Operation

cdef extern from *:
    r"""
    #include <setjmp.h>
    #include <sys/mman.h>
    #include <ucontext.h>
    #include <stdlib.h>

    #define TASK_STACK_BYTES (256 * 1024)       /* touched lazily; recovery's deepest path takes a few KiB */

    #if defined(__SANITIZE_THREAD__)
    #include <sanitizer/tsan_interface.h>
    #endif
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/common_interface_defs.h>
    #define LEAVE(fake, stack, bytes) __sanitizer_start_switch_fiber(fake, stack, bytes)
    #define ARRIVE(fake, stack, bytes) __sanitizer_finish_switch_fiber(fake, stack, bytes)
    #else
    #define LEAVE(fake, stack, bytes) ((void)0)
    #define ARRIVE(fake, stack, bytes) ((void)0)
    #endif

    typedef struct Fiber {
        ucontext_t beginning;                   /* where it has not been entered yet */
    #if defined(__SANITIZE_THREAD__)
        ucontext_t caller;
        void *known_as, *caller_known_as;       /* ThreadSanitizer's names of it, and of its caller */
    #else
        jmp_buf place, caller;                  /* where it was left, and its caller */
        int entered;
    #endif
        struct Fiber* outer;                    /* the task that was running when this one was switched to */
        struct Fiber* idle_next;
        struct Fiber* older;                    /* of all that this thread made */
        void* stack;
        int64_t (*body)(void*);
        void* argument;
        void* ended;                            /* Operation* */
        void* waits_for;                        /* Operation* */
        int64_t result;
        int over;
        void* fake;
        const void* caller_stack;
        size_t caller_stack_bytes;
    } Fiber;

    static __thread Fiber* fiber_current;
    static __thread Fiber* fiber_idle;
    static __thread Fiber* fiber_newest;

    static void fiber_go_back(Fiber* fiber);

    static void fiber_main(void) {
        Fiber* self = fiber_current;
        ARRIVE(NULL, &self->caller_stack, &self->caller_stack_bytes);
        for (;;) {
            self->result = self->body(self->argument);
            self->over = 1;
            LEAVE(&self->fake, self->caller_stack, self->caller_stack_bytes);
            fiber_go_back(self);
            ARRIVE(self->fake, &self->caller_stack, &self->caller_stack_bytes);
        }
    }

    static void fiber_begin(Fiber* fiber) {
        getcontext(&fiber->beginning);
        fiber->beginning.uc_stack.ss_sp = fiber->stack;
        fiber->beginning.uc_stack.ss_size = TASK_STACK_BYTES;
        fiber->beginning.uc_link = NULL;
        makecontext(&fiber->beginning, fiber_main, 0);
    #if defined(__SANITIZE_THREAD__)
        if (fiber->known_as) __tsan_destroy_fiber(fiber->known_as);
        fiber->known_as = __tsan_create_fiber(0);
    #else
        fiber->entered = 0;
    #endif
    }

    #if defined(__SANITIZE_THREAD__)
    static void fiber_go_on(Fiber* fiber) {
        fiber->caller_known_as = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(fiber->known_as, 0);
        swapcontext(&fiber->caller, &fiber->beginning);
    }

    static void fiber_go_back(Fiber* fiber) {
        __tsan_switch_to_fiber(fiber->caller_known_as, 0);
        swapcontext(&fiber->beginning, &fiber->caller);
    }
    #else
    static void fiber_switch(jmp_buf from, jmp_buf to) {
        if (_setjmp(from) == 0) _longjmp(to, 1);
    }

    static void fiber_go_on(Fiber* fiber) {
        if (fiber->entered) { fiber_switch(fiber->caller, fiber->place); return; }
        fiber->entered = 1;
        if (_setjmp(fiber->caller) == 0) setcontext(&fiber->beginning);
    }

    static void fiber_go_back(Fiber* fiber) {
        fiber_switch(fiber->place, fiber->caller);
    }
    #endif

    static Fiber* fiber_new(void) {
        Fiber* fiber = fiber_idle;
        if (fiber) { fiber_idle = fiber->idle_next; return fiber; }
        fiber = calloc(1, sizeof *fiber);
        if (!fiber) return NULL;
        /* the lowest page stays unmapped: an overflow faults instead of writing into a neighbour */
        char* memory = mmap(
            NULL, TASK_STACK_BYTES + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        );
        if (memory == MAP_FAILED || mprotect(memory + 4096, TASK_STACK_BYTES, PROT_READ | PROT_WRITE)) {
            free(fiber);
            return NULL;
        }
        fiber->stack = memory + 4096;
        fiber->older = fiber_newest;
        fiber_newest = fiber;
        fiber_begin(fiber);
        return fiber;
    }

    static void fiber_abandon_all(void) {
        fiber_idle = NULL;
        for (Fiber* fiber = fiber_newest; fiber; fiber = fiber->older) {
            fiber_begin(fiber);
            fiber->over = 0;
            fiber->fake = NULL;
            fiber->waits_for = NULL;
            fiber->idle_next = fiber_idle;
            fiber_idle = fiber;
        }
    }

    /* 1: its body has returned and the fiber is idle */
    static int fiber_enter(Fiber* fiber) {
        fiber->outer = fiber_current;
        fiber_current = fiber;
        void* fake = NULL; (void)fake;
        LEAVE(&fake, fiber->stack, TASK_STACK_BYTES);
        fiber_go_on(fiber);
        ARRIVE(fake, NULL, NULL);
        fiber_current = fiber->outer;
        if (!fiber->over) return 0;
        fiber->over = 0;
        fiber->idle_next = fiber_idle;
        fiber_idle = fiber;
        return 1;
    }

    static void fiber_leave(void) {
        Fiber* self = fiber_current;
        LEAVE(&self->fake, self->caller_stack, self->caller_stack_bytes);
        fiber_go_back(self);
        ARRIVE(self->fake, &self->caller_stack, &self->caller_stack_bytes);
    }
    """
    ctypedef struct Fiber:
        Body body
        void* argument
        void* ended
        void* waits_for
        int64_t result
    Fiber* current "fiber_current"
    Fiber* fiber_new() noexcept nogil
    bint fiber_enter(Fiber*) noexcept nogil
    void fiber_leave() noexcept nogil
    void fiber_abandon_all() noexcept nogil


cdef void start(Body body, void* argument, Operation* ended) noexcept nogil:
    """Run `body` as a task, up to its first wait; when it returns, `ended` (unless NULL) completes with its result."""
    cdef Fiber* fiber = fiber_new()
    invariant(fiber is not NULL, b"there is memory for a task's stack")
    fiber.body = body
    fiber.argument = argument
    fiber.ended = ended
    enter(fiber)


cdef bint in_task() noexcept nogil:
    return current is not NULL


cdef void waited(Operation* operation) noexcept nogil:
    """Prepare an operation that the current task will start and wait for."""
    invariant(current is not NULL, b"only a task waits")
    operation.done = wake
    operation.owner = current
    operation.next = NULL


cdef int64_t wait(Operation* operation) noexcept nogil:
    """Return the operation's result once it is done; other work runs meanwhile."""
    cdef Fiber* self = current
    if operation.next is not operation:
        self.waits_for = operation
        fiber_leave()
        self.waits_for = NULL
    invariant(operation.next is operation, b"a task goes on when what it waits for is done")
    return operation.result


cdef void abandon() noexcept nogil:
    """A simulated crash: drop every waiting task of this thread with its stack. None of their operations may complete
    later."""
    invariant(current is NULL, b"no task abandons itself")
    fiber_abandon_all()


cdef void wake(Operation* operation) noexcept nogil:
    cdef Fiber* fiber = <Fiber*>operation.owner
    operation.next = operation
    if fiber.waits_for is operation:
        enter(fiber)


cdef void enter(Fiber* fiber) noexcept nogil:
    cdef Operation* ended
    if fiber_enter(fiber):
        ended = <Operation*>fiber.ended       # an idle fiber keeps its fields until the next start()
        if ended is not NULL:
            ended.result = fiber.result
            ended.done(ended)


cdef void join(Waiters* waiters, Operation* operation) noexcept nogil:
    operation.next = NULL
    if waiters.last is NULL:
        waiters.first = operation
    else:
        waiters.last.next = operation
    waiters.last = operation


cdef void wait_in(Waiters* waiters) noexcept nogil:
    cdef Operation operation
    waited(&operation)
    join(waiters, &operation)
    wait(&operation)


cdef void wake_one(Waiters* waiters, int64_t result) noexcept nogil:
    cdef Operation* operation = waiters.first
    if operation is NULL:
        return
    waiters.first = operation.next
    if waiters.first is NULL:
        waiters.last = NULL
    operation.next = NULL
    operation.result = result
    operation.done(operation)


cdef void wake_all(Waiters* waiters, int64_t result) noexcept nogil:
    """Wake the present waiters; one that joins again meanwhile waits for the next call."""
    cdef Waiters now = waiters[0]
    waiters.first = waiters.last = NULL
    while now.first is not NULL:
        wake_one(&now, result)
