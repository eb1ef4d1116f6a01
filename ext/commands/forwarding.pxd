# Commands on volumes of other nodes, and on connections of nodes that forward requests to this one. See
# commands/forwarding.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.commands.command cimport Command, VolumeCommand
from iomesh.engine.exports.forwarding.forwarded_volume cimport ForwardedVolume
from iomesh.engine.exports.forwarding.served_volume cimport ServedVolume
from iomesh.engine.volume.target cimport Target
from iomesh.engine.volume.volume cimport Volume

cdef class ServeVolume(VolumeCommand):       # ServeVolume(volume, served, fd): answered when the connection has ended
    cdef ServedVolume served
    cdef int fd

    cdef void connection_over(self) noexcept nogil

cdef class AttachForwarded(Command):  # AttachForwarded(forwarded, fd, requests, bytes): answered when it has ended
    cdef ForwardedVolume forwarded
    cdef int fd
    cdef uint32_t requests
    cdef uint64_t bytes

cdef class DetachForwarded(Command):  # DetachForwarded(forwarded)
    cdef ForwardedVolume forwarded

cdef class GrowForwarded(Command):   # GrowForwarded(forwarded, blocks)
    cdef ForwardedVolume forwarded
    cdef uint64_t blocks

cdef class FollowOwner(Command):     # FollowOwner(former, present, milliseconds): clients go on with another Target
    cdef Target former
    cdef Target present
    cdef Volume volume               # `present`, if it is this node's
    cdef int64_t milliseconds

    cdef void leave(self) noexcept nogil
    cdef void give_up(self) noexcept nogil

cdef class CloseForwarded(Command):  # CloseForwarded(forwarded): it has no clients
    cdef ForwardedVolume forwarded
