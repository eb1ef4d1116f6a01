# The commands from Python to the engine: one class for each.
#
#     created ──prepare, post──> posted ──the message arrives──> running, in a task ──end──> ended ──collect──> answered
#       └────────────────────────────────────refuse───────────────────────────────────────────^
#
# Always true:
#   - only Python's thread creates, prepares and reads a command; in between only its reactor uses it;
#   - the command has references to the objects that it needs, and the engine to the command, until it is answered.
#
# A subclass has typed fields for the arguments, run() for the work on the reactor, and value() for the result in
# Python. The engine (engine.pyx) checks arguments, creates commands, and updates its lists of stores and volumes when
# they end.

from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Message
from iomesh.engine.base.task cimport start
from iomesh.engine.commands.notices cimport Notice, Notices
from iomesh.engine.volume.volume cimport Volume


cdef class Command:
    def __dealloc__(self):
        release(self.notice)

    cdef int prepare(self, int64_t ticket, Notices notices) except -1:
        """Raises MemoryError."""
        self.notice = <Notice*>calloc(1, sizeof(Notice))
        if self.notice is NULL:
            raise MemoryError("no memory for a command")
        self.ticket = self.notice.ticket = ticket
        self.notices = notices
        self.message.deliver = command_arrives
        self.message.owner = <void*>self
        self.ended.done = command_ended
        self.ended.owner = <void*>self
        return 0

    cdef void post(self) noexcept nogil:
        self.reactor.post(&self.message)

    cdef int refuse(self, int error, str reason) except -1:
        self.error = error
        encoded = reason.encode()
        self.fail(encoded)
        self.tell()
        return 0

    cdef int64_t run(self) noexcept nogil:
        return 0

    cdef void end(self, int64_t result) noexcept nogil:
        if result < 0:
            self.error = <int>-result
        self.tell()

    cdef void fail(self, const char* reason) noexcept nogil:
        snprintf(self.reason, sizeof(self.reason), b"%s", reason)

    cdef void tell(self) noexcept nogil:
        cdef Notice* notice = self.notice
        self.notice = NULL                               # after put(), Python's thread may delete the command
        self.notices.put(notice)

    cdef object value(self):
        return None


cdef class VolumeCommand(Command):
    def __cinit__(self, Volume volume, *others):
        self.volume = volume
        self.reactor = volume.reactor


# ---------------------------------------------------------------------- on the reactor

cdef void command_arrives(Message* message) noexcept nogil:
    start(command_body, message.owner, &(<Command>message.owner).ended)


cdef int64_t command_body(void* command) noexcept nogil:
    return (<Command>command).run()


cdef void command_ended(Operation* operation) noexcept nogil:
    (<Command>operation.owner).end(operation.result)
