# Checkpoints of a volume. See volume/checkpoint.pyx.

from libc.stdint cimport int64_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable
from iomesh.engine.base.task cimport Waiters
from iomesh.engine.volume.checkpoint_writer cimport CheckpointWriter
from iomesh.engine.volume.write_back cimport WriteBack

# What the metadata service answers to the update of the checkpoint pointer.
cdef enum Outcome:
    POINTER_REFUSED,                 # another epoch or version is stored: the right to the volume is lost
    POINTER_DONE,                    # the new pointer is stored
    POINTER_UNKNOWN,                 # no answer yet, it may or may not be stored: the update is being repeated
    POINTER_GIVEN_UP                 # the volume closes without knowing; nobody but the engine itself says so

cdef class Checkpoints:
    cdef Reactor reactor
    cdef Log log
    cdef Map map
    cdef SegmentTable segments
    cdef SnapshotTable snapshots
    cdef uint64_t* counters
    cdef WriteBack write_back
    cdef CheckpointWriter writer
    cdef uint64_t interval           # bytes of log between two checkpoints
    cdef uint64_t sequence           # of the newest checkpoint that was moved
    cdef Pointer pointer             # where it is
    cdef Pointer root                # of its map
    cdef uint64_t inherited          # blocks that it counted as a clone's parent's, if it was written in this process
    cdef bint running                # a checkpoint is under way
    cdef bint stopping
    cdef bint ready                  # recovery has opened the log for appending
    cdef bint replayed               # ... and the map is that of its end: a checkpoint before would lose what follows it
    cdef Operation begin
    cdef bint begin_asked
    cdef void* next_keeper           # of those that share the map cache
    cdef uint64_t content            # log.content when the newest checkpoint was written, if it is the log's end and all that was written is in it
    cdef uint64_t content_written
    cdef bint due                    # asked for by something other than the interval
    cdef bint held                   # doors stay shut until it is let go, whatever checkpoints are written meanwhile
    cdef int64_t drain_began_ns
    cdef int64_t stalled_ns          # for how long the newest one let writes wait
    cdef bint lost                   # the update of the pointer was refused: another owner has taken over
    cdef bint unanswered             # its outcome is unknown: both checkpoints count, and nothing waits for the answer without a bound
    cdef int64_t give_up_ns          # while the volume closes: when it stops waiting for that answer; 0: never
    cdef int result                  # of the newest one: 0 or a negative errno
    cdef uint64_t begun              # they are numbered: the newest one, ...
    cdef uint64_t over               # ... the newest that has ended, ...
    cdef uint64_t good               # ... and that has ended well
    cdef int failure                 # how the newest one ended that did not
    cdef bint gathering              # what is committed now will still be in the one under way
    cdef Waiters ended               # of the one under way
    cdef Operation answer            # done when the metadata service has answered
    cdef uint64_t answer_for
    cdef void* owner
    cdef bint (*on_written)(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil      # False: no memory to ask; called again
    cdef void (*on_dying)(void* owner) noexcept nogil            # one of the snapshots is DYING: walk it

    cdef void attach(self) noexcept nogil                        # on the reactor, before anything else
    cdef void begin_what_is_due(self) noexcept nogil
    cdef void poke(self) noexcept nogil                          # after commits and when a node was not to be had: begins what is due
    # In a task: a checkpoint that has all that is committed now; writes one, or joins the one under way. Its own result, whatever follows it.
    # This, run_for() and claim() end with -EHOSTUNREACH when the metadata service does not answer; the checkpoint goes on.
    cdef int run(self) noexcept nogil
    cdef int run_for(self, uint64_t version) noexcept nogil      # in a task: until the snapshots' `version` is durable
    # In a task, in steps, so that several volumes can be frozen at one instant: nobody else's checkpoint begins; doors wait; everything is
    # committed; then go(), or let_go() if it is not to be. write(): a checkpoint without letting go, so that another can follow it with nothing
    # in between.
    cdef int claim(self) noexcept nogil
    cdef int begin_drain(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef void write(self) noexcept nogil
    cdef void let_go(self) noexcept nogil
    # The metadata service's answer: POINTER_UNKNOWN any number of times, then one of the others.
    cdef void moved(self, uint64_t sequence, Outcome outcome) noexcept nogil
    cdef void begin_closing(self) noexcept nogil                 # from now on an answer of the metadata service is waited for a bounded time
    cdef void pause(self) noexcept nogil                         # in a task, closing: lets time pass, and gives up waiting once that time is over
    cdef void stop(self) noexcept nogil                          # in a task: nothing of it is under way any more, nothing begins
    cdef bint is_due(self) noexcept nogil
    cdef void begin_write_back(self) noexcept nogil
    cdef int go(self) noexcept nogil                             # its result: `result` may be of one that has begun since
    cdef void begin_apart(self) noexcept nogil
    cdef Outcome ask(self, uint64_t sequence, Pointer pointer) noexcept nogil
    cdef void map_written(self) noexcept nogil
    cdef void end_drain(self) noexcept nogil
    cdef int checkpoint(self) noexcept nogil
    cdef bint settle(self) noexcept nogil
