# One polling thread, one core, one Io. Only the reactor's thread uses the objects of a reactor; other threads post
# messages.
#
# A turn: poll the Io (completions run), deliver the messages, then run the operations of at_turn_end. So requests that
# arrive in one turn are batched: the log closes its record and a connection sends its replies at the turn's end.
#
# When it sleeps: in ADAPTIVE mode after poll_ns without work (20 times that while a device read is in flight), in SLEEP
# mode at once, in BUSY mode never; in every mode at once while the kernel needs the core to finish an operation
# (Io.core_wanted). Before it sleeps, the reactor sets `asleep` and then checks for messages once more. A sender adds
# its message and then checks `asleep`. So at least one of the two sees the other.

from libc.stdint cimport int64_t, uint64_t

from iomesh.engine.base.atomics cimport store_int64, store_uint64
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport Body, start, wait, waited

cdef extern from *:
    r"""
    #include <stdint.h>
    #include <semaphore.h>
    #include <time.h>
    #include <unistd.h>
    #define mail_load(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)
    #define mail_take(place) __atomic_exchange_n(&(place), NULL, __ATOMIC_ACQ_REL)
    #define mail_swap(place, old, new) \
        __atomic_compare_exchange_n(&(place), old, new, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)
    #define flag_load(place) __atomic_load_n(&(place), __ATOMIC_SEQ_CST)
    #define flag_store(place, value) __atomic_store_n(&(place), value, __ATOMIC_SEQ_CST)
    static inline void ring_bell(int fd) { uint64_t one = 1; ssize_t n = write(fd, &one, sizeof one); (void)n; }
    /* False after 10 ms. By a clock that nobody steps. */
    static inline int await_look(sem_t* looked) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 10 * 1000 * 1000;
        if (until.tv_nsec >= 1000000000) { until.tv_nsec -= 1000000000; until.tv_sec += 1; }
        return sem_clockwait(looked, CLOCK_MONOTONIC, &until) == 0;
    }
    #if defined(__x86_64__)
    #define relax() __builtin_ia32_pause()
    #else
    #define relax() __asm__ volatile("yield")
    #endif
    """
    Message* mail_load(Message*) noexcept nogil
    Message* mail_take(Message*) noexcept nogil
    bint mail_swap(Message*, Message**, Message*) noexcept nogil
    bint flag_load(bint) noexcept nogil
    void flag_store(bint, bint) noexcept nogil
    void ring_bell(int) noexcept nogil
    void relax() noexcept nogil
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t*, int, unsigned) noexcept nogil
    int sem_post(sem_t*) noexcept nogil
    int sem_trywait(sem_t*) noexcept nogil
    int sem_destroy(sem_t*) noexcept nogil
    bint await_look(sem_t*) noexcept nogil

cdef enum:
    LONG_S = 3600                    # longest sleep: any event ends it earlier
    READ_POLLS = 20                    # times poll_ns while a read is in flight: a device is faster than waking a core
    TURN_END_ROUNDS = 8              # limit for operations that are added while the turn's end runs


cdef class Reactor:
    """number: of this reactor in its engine. mode: ADAPTIVE, BUSY or SLEEP. poll_ns: see above."""

    def __cinit__(self, int number, Io io, int mode, int64_t poll_ns):
        self.number = number
        self.io = io
        self.mode = <Mode>mode
        self.poll_ns = poll_ns
        self.users_ns = -(<int64_t>1 << 62)              # never

    cdef void at_turn_end(self, Operation* operation) noexcept nogil:
        operation.next = NULL
        if self.turn_last is NULL:
            self.turn_first = operation
        else:
            self.turn_last.next = operation
        self.turn_last = operation

    cdef void post(self, Message* message) noexcept nogil:
        message.next = mail_load(self.mail)
        while not mail_swap(self.mail, &message.next, message):
            pass
        if flag_load(self.asleep):
            ring_bell(self.io.wake_fd())

    cdef void users_there(self) noexcept nogil:
        store_int64(self.users_ns, self.io.now_ns())

    cdef void begin(self) noexcept nogil:
        flag_store(self.running, True)

    cdef void end(self) noexcept nogil:
        flag_store(self.running, False)

    cdef void stop(self) noexcept nogil:
        flag_store(self.stopping, True)
        ring_bell(self.io.wake_fd())

    cdef void run(self) noexcept nogil:
        cdef int64_t last_work_ns = self.io.now_ns(), began_ns, wait_ns = 0
        cdef int found
        cdef bint worked = False
        while not flag_load(self.stopping):
            if wait_ns != 0:
                flag_store(self.asleep, True)
                if mail_load(self.mail) is not NULL:
                    wait_ns = 0
                else:
                    self.sleeps += 1
            began_ns = self.io.now_ns() - self.io.waited_ns()
            found = self.io.poll(wait_ns)
            if found or worked:                          # time from poll to poll, without the waiting
                store_uint64(self.busy_ns, self.busy_ns + <uint64_t>(self.io.now_ns() - self.io.waited_ns() - began_ns))
            if self.asleep:
                flag_store(self.asleep, False)
            found += self.turn()
            self.turns += 1
            worked = found != 0
            if worked:
                last_work_ns = self.io.now_ns()
            wait_ns = self.may_sleep(last_work_ns)
            if not found and wait_ns == 0:
                relax()

    cdef int turn(self) noexcept nogil:
        """Run the messages and the turn's end; returns how many ran."""
        cdef int found = 0, rounds = 0
        cdef Operation* operation
        cdef Operation* next_one
        if mail_load(self.mail) is not NULL:
            found += self.deliver(mail_take(self.mail))
        while self.turn_first is not NULL and rounds < TURN_END_ROUNDS:
            rounds += 1
            operation = self.turn_first
            self.turn_first = self.turn_last = NULL
            while operation is not NULL:
                next_one = operation.next
                operation.next = NULL
                operation.done(operation)
                operation = next_one
                found += 1
        return found

    cdef int deliver(self, Message* newest) noexcept nogil:
        cdef Message* oldest = NULL
        cdef Message* message
        cdef int count = 0
        while newest is not NULL:
            message = newest
            newest = newest.next
            message.next = oldest
            oldest = message
        while oldest is not NULL:
            message = oldest
            oldest = oldest.next
            message.deliver(message)
            count += 1
        return count

    cdef int64_t may_sleep(self, int64_t last_work_ns) noexcept nogil:
        """How long the next poll may wait; 0: it must not."""
        if self.turn_first is not NULL:
            return 0
        if self.io.core_wanted():
            return LONG_S * <int64_t>1000000000
        if self.mode == BUSY:
            return 0
        if (
            self.mode == ADAPTIVE
            and self.io.now_ns() - last_work_ns < self.poll_ns * (READ_POLLS if self.io.awaits_device() else 1)
        ):
            return 0
        return LONG_S * <int64_t>1000000000


# ---------------------------------------------------------------------- looking from outside

cdef struct Looking:                 # on the stack of the thread that waits
    Message message
    sem_t looked
    bint done                        # orders what `look` has written before what the other thread reads
    Look look
    void* argument


cdef void look_on(Reactor target, Look look, void* argument) noexcept nogil:
    cdef Looking looking
    cdef bint looked = False
    if not flag_load(target.running):
        look(argument)
        return
    sem_init(&looking.looked, 0, 0)
    looking.message.deliver = look_arrives
    looking.message.owner = &looking
    looking.done = False
    looking.look = look
    looking.argument = argument
    target.post(&looking.message)
    while not looked:
        looked = await_look(&looking.looked)
        if not looked and not flag_load(target.running):     # it has stopped, and delivers nothing any more ...
            looked = sem_trywait(&looking.looked) == 0       # ... but may have delivered this before
            break
    sem_destroy(&looking.looked)
    if not (looked and flag_load(looking.done)):
        look(argument)


cdef void look_arrives(Message* message) noexcept nogil:
    cdef Looking* looking = <Looking*>message.owner
    looking.look(looking.argument)
    flag_store(looking.done, True)
    sem_post(&looking.looked)                            # the last access: the other thread goes on


# ---------------------------------------------------------------------- calls between reactors

cdef struct Call:                    # on the caller's stack while the caller waits
    Message there
    Message back
    void* target
    void* caller
    Body body
    void* argument
    Operation ended
    Operation returned


cdef int64_t call_on(Reactor target, Reactor caller, Body body, void* argument) noexcept nogil:
    cdef Call call
    if target is caller:
        return body(argument)
    call.there.deliver = call_arrives
    call.there.owner = &call
    call.back.deliver = call_returns
    call.back.owner = &call
    call.target = <void*>target
    call.caller = <void*>caller
    call.body = body
    call.argument = argument
    waited(&call.returned)
    target.post(&call.there)
    return wait(&call.returned)


cdef void call_arrives(Message* message) noexcept nogil:
    cdef Call* call = <Call*>message.owner
    call.ended.done = call_ended
    call.ended.owner = call
    start(call.body, call.argument, &call.ended)


cdef void call_ended(Operation* operation) noexcept nogil:
    cdef Call* call = <Call*>operation.owner
    (<Reactor>call.caller).post(&call.back)


cdef void call_returns(Message* message) noexcept nogil:
    cdef Call* call = <Call*>message.owner
    call.returned.result = call.ended.result
    call.returned.done(&call.returned)
