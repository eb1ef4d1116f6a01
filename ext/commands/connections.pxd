# What Python asks of a volume's data connections. See commands/connections.pyx.

from iomesh.engine.commands.command cimport VolumeCommand
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.volume.volume cimport Volume

cdef class ServeNbd(VolumeCommand):  # ServeNbd(volume, connection, fd); the descriptor is the connection's, or closed when it is refused
    cdef NbdConnection connection
    cdef int fd

    cdef void connection_over(self) noexcept nogil

# In a task: those of a volume, once what is under way on them is answered.
cdef void end_connections(Volume volume) noexcept nogil
