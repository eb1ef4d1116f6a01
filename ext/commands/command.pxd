# What Python asks of the engine. See commands/command.pyx.

from libc.stdint cimport int64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Message, Reactor
from iomesh.engine.commands.notices cimport Notice, Notices
from iomesh.engine.volume.volume cimport Volume

cdef class Command:                  # a subclass has what is asked, and what came of it
    cdef Reactor reactor             # where it runs; set by the subclass
    cdef readonly int64_t ticket
    cdef readonly bint silent        # nobody waits for its answer
    cdef readonly int error          # once it has ended: 0 or a positive errno, ...
    cdef char reason[512]            # ... and why, for people; empty: the error says it all
    cdef Notices notices
    cdef Notice* notice              # that will tell of its end
    cdef Message message
    cdef Operation ended

    cdef int prepare(self, int64_t ticket, Notices notices) except -1      # in Python's thread, before it is posted or refused
    cdef void post(self) noexcept nogil
    cdef int refuse(self, int error, str reason) except -1       # it ends without being run
    cdef int64_t run(self) noexcept nogil                        # in a task on `reactor`: 0 or more, or a negative errno
    cdef void end(self, int64_t result) noexcept nogil           # ... what came of that
    cdef void fail(self, const char* reason) noexcept nogil      # says why run() returns an error
    cdef void tell(self) noexcept nogil
    cdef object value(self)                                      # in Python's thread, once it has ended: its answer's value

cdef class VolumeCommand(Command):   # Command(volume, ...): of one that is open, on its reactor
    cdef Volume volume
