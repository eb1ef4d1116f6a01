# Commands on a volume's data connections: serve one. It is answered when the connection has ended, or at once if it is
# refused.

from libc.errno cimport EBUSY, ENOENT
from libc.stdint cimport int64_t

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport wait_in
from iomesh.engine.exports.forwarding.served_volume cimport ServedVolume
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.history.difference cimport hold_older, release_older
from iomesh.engine.volume.target cimport Target
from iomesh.engine.volume.volume cimport Volume

from iomesh.engine.exports.nbd.connection import ENDS

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close" (int fd)


cdef class ServeNbd(Command):
    def __cinit__(self, Target target, NbdConnection connection, int fd):
        self.target = target
        self.volume = target if isinstance(target, Volume) else None
        self.reactor = target.reactor
        self.connection = connection
        self.fd = fd

    cdef int64_t run(self) noexcept nogil:
        cdef int number = add_connection(self.target, self.volume, self.connection, self.fd)
        if number < 0:
            close_descriptor(self.fd)
            return number
        self.connection.connection = number
        self.connection.ended.owner = <void*>self
        self.connection.ended.done = connection_ended
        self.connection.join_volume()
        self.connection.start()
        if self.volume is not None and self.volume.lost:
            go_on_with_heir(self.connection)
        return 0

    cdef void end(self, int64_t result) noexcept nogil:
        if result < 0:
            self.error = <int>-result
            self.tell()                                  # otherwise connection_over() does

    cdef void connection_over(self) noexcept nogil:
        self.connection.leave_volume()
        if self.connection.compared is not NULL:
            release_older(<Volume>self.connection.compared, self.connection.since, self.connection.older)
        self.tell()

    cdef object value(self):
        return {"requests": self.connection.requests, "end": ENDS[self.connection.end]}


cdef void connection_ended(Operation* operation) noexcept nogil:
    (<ServeNbd>operation.owner).connection_over()


cdef int may_connect(Volume volume) noexcept nogil:
    if (
        volume.closing
        or volume.restoring
        or (volume.snapshots is not None and volume.snapshots.unsettled() is not NULL)
    ):
        return -EBUSY
    return 0


cdef int add_connection(Target target, Volume volume, NbdConnection connection, int fd) noexcept nogil:
    """The connection's number in the Io, or a negative errno."""
    cdef int number = 0 if volume is None else may_connect(volume)
    if number < 0:
        return number
    if (
        connection.compared is not NULL
        and not hold_older(<Volume>connection.compared, connection.since, connection.older)
    ):
        return -ENOENT
    number = target.io.add_connection(fd)
    if number < 0 and connection.compared is not NULL:
        release_older(<Volume>connection.compared, connection.since, connection.older)
    return number


cdef void end_connections(Volume volume) noexcept nogil:
    cdef void* connection = volume.connection_list
    cdef void* served = volume.served_list
    while connection is not NULL:
        (<NbdConnection>connection).stop()
        connection = (<NbdConnection>connection).next_connection
    while served is not NULL:
        (<ServedVolume>served).server.stop()
        served = (<ServedVolume>served).next_served
    while volume.connections:
        wait_in(&volume.connections_changed)


cdef void clients_leave(void* volume) noexcept nogil:
    cdef void* connection = (<Volume>volume).connection_list
    cdef void* following
    while connection is not NULL:
        following = (<NbdConnection>connection).next_connection
        go_on_with_heir(<NbdConnection>connection)
        connection = following


cdef void go_on_with_heir(NbdConnection connection) noexcept nogil:
    if connection.successor is not None and connection.successor is (<Volume>connection.volume).heir:
        connection.switch_over()
    else:
        connection.break_off()                           # no answer is better than an error
