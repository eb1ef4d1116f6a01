# A command from Python to the engine. See commands/command.pyx.

from libc.stdint cimport int64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Message, Reactor
from iomesh.engine.commands.notices cimport Notice, Notices
from iomesh.engine.volume.volume cimport Volume

cdef class Command:                  # a subclass adds arguments and results
    cdef Reactor reactor             # where it runs; set by the subclass
    cdef readonly int64_t ticket
    cdef readonly bint silent        # collect() does not return its answer
    cdef readonly int error          # once it has ended: 0 or a positive errno ...
    cdef char reason[512]            # ... and the reason, for people; empty: the error alone suffices
    cdef Notices notices
    cdef Notice* notice              # reports its end to Python
    cdef Message message
    cdef Operation ended

    cdef int prepare(self, int64_t ticket, Notices notices) except -1      # on Python's thread, before post or refuse
    cdef void post(self) noexcept nogil
    cdef int refuse(self, int error, str reason) except -1       # end without running
    cdef int64_t run(self) noexcept nogil                        # in a task on `reactor`: 0 or more, or -errno
    cdef void end(self, int64_t result) noexcept nogil           # with the result of run()
    cdef void fail(self, const char* reason) noexcept nogil      # the reason for the error that run() returns
    cdef void tell(self) noexcept nogil
    cdef object value(self)                                      # on Python's thread, after the end: the answer's value

cdef class VolumeCommand(Command):   # Command(volume, ...): on an open volume, on its reactor
    cdef Volume volume
