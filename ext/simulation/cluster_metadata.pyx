# The metadata service of a simulated cluster: one record, the log's of the one volume, which compare-and-swap changes.
#
# A request arrives after a delay, also when its sender has given up or is gone meanwhile, and so does the answer, if
# none of them is lost. The caller waits ANSWER_NS (CALL_UNAVAILABLE: it is unknown what happened), as node/volume.py.
#
# It is a node of its own in the world. Answers reach a node as messages to its reactor: one that is paused learns of
# them later.

from libc.stdint cimport int64_t, uint64_t

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport wait, waited

cdef enum:
    ANSWER_NS = 2 * 1000 * 1000 * 1000
    LATE_NS = 5 * 1000 * 1000 * 1000     # a late request arrives within this time


cdef class ClusterMetadata:
    def __cinit__(self, ClusterRun run):
        cdef int i
        self.run = run
        self.io = WorldIo(run.world)
        self.version = 1
        self.record.next_fragment = 1
        for i in range(CALLS_MAX):
            self.calls[i].metadata = <void*>self
            self.calls[i].timer.owner = &self.calls[i]
            self.calls[i].message.owner = &self.calls[i]
            self.calls[i].message.deliver = answer_arrives

    # ------------------------------------------------------------------ the nodes' side

    cdef CallResult get(
        self, int node, Reactor reactor, Waiting* waiting, LogRecord* record, uint64_t* version
    ) noexcept nogil:
        cdef MetadataCall* call = self.take()
        cdef CallResult result
        call.commit = False
        result = self.ask(node, reactor, waiting, call)
        if result == CALL_DONE:
            record[0], version[0] = call.record, call.version
        if result == CALL_DONE:
            self.release(call)
        return result

    cdef CallResult commit(
        self, int node, Reactor reactor, Waiting* waiting, const LogRecord* record, uint64_t* version
    ) noexcept nogil:
        cdef MetadataCall* call = self.take()
        cdef CallResult result
        call.commit = True
        call.record, call.version = record[0], version[0]
        result = self.ask(node, reactor, waiting, call)
        if result == CALL_DONE:
            version[0] = call.version
        if result == CALL_DONE or result == CALL_CONFLICT:
            self.release(call)
        return result

    cdef CallResult ask(
        self, int node, Reactor reactor, Waiting* waiting, MetadataCall* call
    ) noexcept nogil:
        cdef int64_t delay_ns = 1 + <int64_t>self.run.draw(self.run.metadata_ns)
        cdef CallResult result
        cdef bint lost = False
        call.node = node
        call.reactor = <void*>reactor
        call.waiter = waiting
        call.silent = self.run.chance(self.run.silent) or self.outage or self.unreachable[node]
        if self.run.faultless:
            call.silent = False
        if call.silent:
            self.run.counted.silences += 1
            lost = self.unreachable[node] or self.run.chance(128)
            if self.run.chance(64):
                delay_ns += <int64_t>self.run.draw(LATE_NS)
                self.run.counted.late += 1
        waiting.io, waiting.call, waiting.over = <void*>reactor.io, call, False
        waited(&waiting.operation)
        waiting.timer.done = call_unanswered
        waiting.timer.owner = waiting
        reactor.io.after(&waiting.timer, ANSWER_NS)
        if lost:
            self.release(call)
            waiting.call = NULL
        else:
            call.timer.done = request_arrives
            self.io.after(&call.timer, delay_ns)
        result = <CallResult>wait(&waiting.operation)
        waiting.io = NULL
        return result

    cdef void cancel(self, Waiting* waiting) noexcept nogil:
        if waiting.io is not NULL and not waiting.over:
            (<Io>waiting.io).cancel(&waiting.timer)
            end_waiting(waiting, CALL_CANCELLED)

    cdef void forget(self, int node) noexcept nogil:
        cdef int i
        for i in range(CALLS_MAX):
            if self.calls[i].state != CALL_FREE and self.calls[i].node == node:
                self.calls[i].waiter = NULL
                self.calls[i].node = -1
                if self.calls[i].state == CALL_ARRIVES:  # its mailbox is gone
                    self.release(&self.calls[i])

    # ------------------------------------------------------------------ the service's side

    cdef MetadataCall* take(self) noexcept nogil:
        cdef int i = 0
        while i < CALLS_MAX and self.calls[i].state != CALL_FREE:
            i += 1
        invariant(i < CALLS_MAX, b"few requests to the metadata service are under way")
        self.calls[i].state = CALL_ASKED
        return &self.calls[i]

    cdef void release(self, MetadataCall* call) noexcept nogil:
        call.state = CALL_FREE
        call.waiter = NULL

    cdef void arrive(self, MetadataCall* call) noexcept nogil:
        call.result = CALL_DONE
        if call.commit and call.version != self.version and not planted(b"update_not_compared"):
            call.result = CALL_CONFLICT
        elif call.commit:
            self.run.note(
                b"metadata: epoch %lld of node %lld, %lld fragments", call.record.epoch, call.record.owner,
                call.record.fragment_count
            )
            self.version += 1
            self.record, call.version = call.record, self.version
        else:
            call.record, call.version = self.record, self.version
        if call.waiter is NULL or call.silent:
            if call.waiter is not NULL:
                (<Waiting*>call.waiter).call = NULL
            self.release(call)
            return
        call.state = CALL_ANSWERED
        call.timer.done = answer_leaves
        self.io.after(&call.timer, 1 + <int64_t>self.run.draw(self.run.metadata_ns))

    cdef void answer(self, MetadataCall* call) noexcept nogil:
        if call.waiter is NULL:
            self.release(call)
            return
        call.state = CALL_ARRIVES
        (<Reactor>call.reactor).post(&call.message)


cdef void end_waiting(Waiting* waiting, CallResult result) noexcept nogil:
    waiting.over = True
    if waiting.call is not NULL and (result == CALL_UNAVAILABLE or result == CALL_CANCELLED):
        waiting.call.waiter = NULL                       # it is released when it ends
    waiting.operation.result = <int64_t>result
    waiting.operation.done(&waiting.operation)


cdef void request_arrives(Operation* operation) noexcept nogil:
    cdef MetadataCall* call = <MetadataCall*>operation.owner
    (<ClusterMetadata>call.metadata).arrive(call)


cdef void answer_leaves(Operation* operation) noexcept nogil:
    cdef MetadataCall* call = <MetadataCall*>operation.owner
    (<ClusterMetadata>call.metadata).answer(call)


cdef void answer_arrives(Message* message) noexcept nogil:
    """On the node's reactor."""
    cdef MetadataCall* call = <MetadataCall*>message.owner
    cdef Waiting* waiting = <Waiting*>call.waiter
    if waiting is NULL:
        (<ClusterMetadata>call.metadata).release(call)
        return
    call.waiter = NULL
    (<Io>waiting.io).cancel(&waiting.timer)
    end_waiting(waiting, call.result)


cdef void call_unanswered(Operation* operation) noexcept nogil:
    end_waiting(<Waiting*>operation.owner, CALL_UNAVAILABLE)
