# Commands on the copies of an open volume's segments. See commands/rebuild.pyx.

from libc.stdint cimport uint32_t
from iomesh.engine.commands.command cimport VolumeCommand
from iomesh.engine.volume.rebuild cimport CopiesRow

cdef class ListCopies(VolumeCommand):
    cdef CopiesRow* rows
    cdef uint32_t count

cdef class RebuildCopy(VolumeCommand):       # RebuildCopy(volume, segment, device, source, rate)
    cdef uint32_t segment
    cdef uint32_t device
    cdef uint32_t source
    cdef uint32_t rate

cdef class DropCopy(VolumeCommand):          # DropCopy(volume, segment, device)
    cdef uint32_t segment
    cdef uint32_t device

cdef class DrainMembers(VolumeCommand):      # DrainMembers(volume, devices): their numbers; all others are not drained
    cdef uint32_t* numbers
    cdef uint32_t count
