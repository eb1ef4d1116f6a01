# Checkpoints of a volume. See volume/checkpoint.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
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
    POINTER_UNKNOWN,                 # no answer yet, it may or may not be stored: the update is being retried
    POINTER_GIVEN_UP                 # the volume closes without an answer; set by the engine itself only

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
    cdef uint64_t sequence           # of the newest checkpoint whose pointer was stored
    cdef Pointer pointer             # to its block
    cdef Pointer root                # of its map
    cdef uint64_t inherited          # blocks it counted as inherited, if it was written in this process
    cdef bint running                # a checkpoint is in progress
    cdef bint stopping
    cdef bint ready                  # recovery has opened the log for appending
    cdef bint replayed               # ... and replay is complete: an earlier checkpoint would lose records
    cdef Operation begin
    cdef bint begin_asked
    cdef void* next_keeper           # list of the volumes that share the map cache
    cdef uint64_t content            # log.content at the newest checkpoint, if nothing was written after it
    cdef uint64_t content_written
    cdef uint64_t described          # changes of the description that the newest checkpoint has
    cdef bint due                    # requested for another reason than the interval
    cdef bint held                   # writes stay stopped until let_go(), over any number of checkpoints
    cdef int64_t drain_began_ns
    cdef int64_t stalled_ns          # how long writes waited for the newest one
    cdef bint lost                   # the pointer update was refused: the volume has another owner
    cdef bint unanswered             # its outcome is unknown: both checkpoints are kept, callers do not wait
    cdef int64_t give_up_ns          # deadline for that answer while the volume closes; 0: none
    cdef int result                  # of the newest one: 0 or a negative errno
    cdef uint64_t begun              # checkpoints are numbered: the newest started, ...
    cdef uint64_t over               # ... the newest ended, ...
    cdef uint64_t good               # ... and the newest successful one
    cdef int failure                 # the error of the newest one that failed
    cdef bint gathering              # the one in progress will still include what commits now
    cdef Waiters ended               # for the end of the one in progress
    cdef Operation answer            # completes with the metadata service's answer
    cdef uint64_t answer_for
    cdef void* owner
    # False: no memory, called again
    cdef bint (*on_written)(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil
    cdef void (*on_dying)(void* owner) noexcept nogil            # a snapshot is DYING: walk its tree

    cdef void attach(self) noexcept nogil                        # on the reactor, before anything else
    cdef void begin_what_is_due(self) noexcept nogil
    cdef void poke(self) noexcept nogil                          # after commits and cache misses: starts what is due
    # In a task: returns once a checkpoint includes everything committed before the call; writes one, or joins the one
    # in progress. Returns that checkpoint's result. run(), run_for() and claim() return -EHOSTUNREACH when the metadata
    # service does not answer; the checkpoint continues.
    cdef int run(self) noexcept nogil
    cdef int run_for(self, uint64_t version) noexcept nogil      # in a task: until the snapshots' `version` is durable
    # In a task, in steps, so that several volumes can be frozen at one instant. claim(): no other checkpoint starts;
    # begin_drain(): new writes wait; drain(): everything is committed; then go(), or let_go() to cancel. write(): a
    # checkpoint without release, so that another one can follow with no write in between.
    cdef int claim(self) noexcept nogil
    cdef int begin_drain(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef void write(self) noexcept nogil
    cdef void let_go(self) noexcept nogil
    # The metadata service's answer: POINTER_UNKNOWN any number of times, then one of the others. sequence 0: it was
    # asked for segment numbers only. promised: the highest of them that it holds now.
    cdef void moved(self, uint64_t sequence, Outcome outcome, uint32_t promised) noexcept nogil
    cdef bint is_unanswered(self) noexcept nogil                 # what is asked for now waits for the metadata service
    cdef void begin_closing(self) noexcept nogil                 # sets a deadline for the metadata service's answer
    cdef void pause(self) noexcept nogil                         # in a task, closing: sleeps, checks the deadline
    cdef void stop(self) noexcept nogil                          # in a task: ends all its work, starts no more
    cdef bint is_due(self) noexcept nogil
    cdef void begin_write_back(self) noexcept nogil
    cdef int go(self) noexcept nogil                             # its own result: `result` may be a later one's
    cdef void begin_apart(self) noexcept nogil
    cdef Outcome ask(self, uint64_t sequence, Pointer pointer) noexcept nogil
    cdef void map_written(self) noexcept nogil
    cdef void end_drain(self) noexcept nogil
    cdef int checkpoint(self) noexcept nogil
    cdef bint settle(self) noexcept nogil
