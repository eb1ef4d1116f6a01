# Commands on a volume's data connections. See commands/connections.pyx.

from iomesh.engine.commands.command cimport VolumeCommand
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.volume.volume cimport Volume

cdef class ServeNbd(VolumeCommand):  # ServeNbd(volume, connection, fd); takes over fd; closes it on refusal
    cdef NbdConnection connection
    cdef int fd

    cdef void connection_over(self) noexcept nogil

# In a task: end a volume's connections, after their open requests are answered.
cdef void end_connections(Volume volume) noexcept nogil
