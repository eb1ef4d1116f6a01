# Commands on a volume's data connections. See commands/connections.pyx.

from iomesh.engine.commands.command cimport Command, VolumeCommand
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.volume.target cimport Target
from iomesh.engine.volume.volume cimport Volume

cdef class ServeNbd(Command):        # ServeNbd(target, connection, fd); takes over fd; closes it on refusal
    cdef Target target
    cdef Volume volume               # None: another node owns it
    cdef NbdConnection connection
    cdef int fd

    cdef void connection_over(self) noexcept nogil

cdef int may_connect(Volume volume) noexcept nogil       # 0 or a negative errno

# In a task: end a volume's connections, after their open requests are answered.
cdef void end_connections(Volume volume) noexcept nogil

# A volume's on_lost: its clients go on with its heir; without one they are cut off.
cdef void clients_leave(void* volume) noexcept nogil
