# Commands on volumes of other nodes, and on connections of nodes that forward their clients' requests to this one.
#
# A connection's command is answered when the connection has ended.

from libc.errno cimport EBUSY, EEXIST
from libc.stdint cimport int64_t, uint32_t, uint64_t

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.task cimport wait, waited, wake_all
from iomesh.engine.commands.connections cimport may_connect
from iomesh.engine.exports.forwarding.forwarded_volume cimport ForwardedVolume
from iomesh.engine.exports.forwarding.served_volume cimport ServedVolume
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.replicas.peer cimport PEER_DETACHED
from iomesh.engine.volume.target cimport Target
from iomesh.engine.volume.volume cimport Volume

from iomesh.engine.replicas.peer import PEER_ENDS
from iomesh.engine.replicas.server import SERVER_ENDS

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close" (int fd)

cdef enum:
    LOOK_NS = 20 * 1000 * 1000
    STEP_NS = 1000 * 1000


# ---------------------------------------------------------------------- at the owner

cdef class ServeVolume(VolumeCommand):
    def __cinit__(self, Volume volume, ServedVolume served, int fd):
        self.served, self.fd = served, fd

    cdef int64_t run(self) noexcept nogil:
        cdef int number = may_connect(self.volume)
        if number == 0:
            number = self.volume.io.add_connection(self.fd)
        if number < 0:
            close_descriptor(self.fd)
            return number
        self.served.server.connection = number
        self.served.server.ended.owner = <void*>self
        self.served.server.ended.done = served_ended
        self.served.next_served = self.volume.served_list
        self.volume.served_list = <void*>self.served
        self.volume.connections += 1
        self.served.server.start()
        return 0

    cdef void end(self, int64_t result) noexcept nogil:
        if result < 0:
            self.error = <int>-result
            self.tell()                                  # otherwise connection_over() does

    cdef void connection_over(self) noexcept nogil:
        cdef void** place = &self.volume.served_list
        while place[0] is not <void*>self.served:
            place = &(<ServedVolume>place[0]).next_served
        place[0] = self.served.next_served
        self.volume.connections -= 1
        wake_all(&self.volume.connections_changed, 0)
        self.tell()

    cdef object value(self):
        return {"requests": self.served.server.requests, "end": SERVER_ENDS[self.served.server.end]}


cdef void served_ended(Operation* operation) noexcept nogil:
    (<ServeVolume>operation.owner).connection_over()


# ---------------------------------------------------------------------- at a node that forwards

cdef class AttachForwarded(Command):
    def __cinit__(self, ForwardedVolume forwarded, int fd, uint32_t requests, uint64_t bytes):
        self.forwarded, self.fd, self.requests, self.bytes = forwarded, fd, requests, bytes
        self.reactor = forwarded.reactor

    cdef int64_t run(self) noexcept nogil:
        cdef int number
        if self.forwarded.node.peer.state != PEER_DETACHED:
            close_descriptor(self.fd)
            return -EEXIST
        number = self.forwarded.io.add_connection(self.fd)
        if number < 0:
            close_descriptor(self.fd)
            return number
        self.forwarded.node.owner = <void*>self
        self.forwarded.node.lost = link_ended
        self.forwarded.node.became_ready = link_is_ready
        self.forwarded.node.attach(number, self.requests, self.bytes)
        return 0

    cdef void end(self, int64_t result) noexcept nogil:
        if result < 0:
            self.error = <int>-result
            self.tell()                                  # otherwise link_ended() does

    cdef object value(self):
        return {"end": "silent" if self.forwarded.node.silent else PEER_ENDS[self.forwarded.node.peer.end]}


cdef void link_ended(void* owner) noexcept nogil:
    (<AttachForwarded>owner).forwarded.node.lost = NULL
    (<AttachForwarded>owner).forwarded.node.became_ready = NULL
    (<AttachForwarded>owner).tell()


cdef void link_is_ready(void* owner) noexcept nogil:
    (<AttachForwarded>owner).forwarded.link_ready()


cdef class DetachForwarded(Command):
    def __cinit__(self, ForwardedVolume forwarded):
        self.forwarded = forwarded
        self.reactor = forwarded.reactor
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        self.forwarded.node.detach()
        return 0


cdef class GrowForwarded(Command):
    def __cinit__(self, ForwardedVolume forwarded, uint64_t blocks):
        self.forwarded, self.blocks = forwarded, blocks
        self.reactor = forwarded.reactor
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        self.forwarded.blocks = max(self.forwarded.blocks, self.blocks)
        return 0


cdef class FollowOwner(Command):
    """Within this time. Then those that still have a request open stay, if the present owner is this node: they reach
    it as before. Otherwise they are ended."""

    def __cinit__(self, Target former, Target present, int64_t milliseconds):
        self.former, self.present, self.milliseconds = former, present, milliseconds
        self.volume = present if isinstance(present, Volume) else None
        self.reactor = former.reactor

    cdef int64_t run(self) noexcept nogil:
        cdef Operation timer
        cdef int64_t until_ns = self.reactor.io.now_ns() + self.milliseconds * 1000000
        if self.volume is not None and may_connect(self.volume) < 0:
            return -EBUSY
        self.leave()
        while self.former.connection_list is not NULL:
            if self.reactor.io.now_ns() > until_ns:
                self.give_up()
                if self.volume is not None:
                    break
            waited(&timer)
            self.reactor.io.after(&timer, STEP_NS)
            wait(&timer)
        return 0

    cdef void leave(self) noexcept nogil:
        cdef void* connection = self.former.connection_list
        while connection is not NULL:
            if (<NbdConnection>connection).successor is self.present:
                (<NbdConnection>connection).leave()
            connection = (<NbdConnection>connection).next_connection

    cdef void give_up(self) noexcept nogil:
        cdef void* connection = self.former.connection_list
        while connection is not NULL:
            if self.volume is not None:
                (<NbdConnection>connection).stay()
            else:
                (<NbdConnection>connection).break_off()
            connection = (<NbdConnection>connection).next_connection


cdef class CloseForwarded(Command):
    def __cinit__(self, ForwardedVolume forwarded):
        self.forwarded = forwarded
        self.reactor = forwarded.reactor

    cdef int64_t run(self) noexcept nogil:
        cdef Operation timer
        if self.forwarded.connections:
            return -EBUSY
        self.forwarded.node.detach()
        while self.forwarded.node.peer.state != PEER_DETACHED or not self.forwarded.is_idle():
            if self.forwarded.connections:
                return -EBUSY                            # clients of a volume that was lost meanwhile
            waited(&timer)
            self.forwarded.io.after(&timer, LOOK_NS)
            wait(&timer)
        return 0
