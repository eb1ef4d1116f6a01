# What Python asks of a volume's snapshots. See commands/snapshots.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.commands.command cimport Command, VolumeCommand
from iomesh.engine.format.layout cimport SnapshotEntry
from iomesh.engine.history.difference cimport Comparing
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.history.snapshots cimport Making
from iomesh.engine.map.map cimport Map
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.volume.volume cimport Volume

cdef class CreateSnapshots(Command):         # CreateSnapshots(volumes): one of each, in the order of their identities
    cdef list volumes
    cdef Making* makings             # to be filled in: what each is called
    cdef uint32_t count

cdef class ListSnapshots(VolumeCommand):
    cdef SnapshotEntry* entries
    cdef uint32_t count

cdef class SnapshotCommand(VolumeCommand):   # SnapshotCommand(volume, id, ...)
    cdef uint8_t id[16]

cdef class DeleteSnapshot(SnapshotCommand):
    cdef bint hidden                 # it stays until what goes on from it is gone

cdef class UnmarkSnapshot(SnapshotCommand):
    pass

cdef class RestoreVolume(SnapshotCommand):
    cdef SnapshotRequest before      # what the volume was
    cdef SnapshotRequest mark        # of what it is then
    cdef bint marked                 # there is to be one
    cdef bint force                  # clients that are connected are cut off

cdef class RollVolumeForward(SnapshotCommand):       # RollVolumeForward(volume, id of a mark, roll_forward, until_ns)
    cdef RollForward roll_forward
    cdef uint64_t until_ns

cdef class CompareSnapshots(VolumeCommand):  # CompareSnapshots(volume, older, newer, room): the maps to look at them with; up to so many ranges
    cdef Comparing* comparing
    cdef Map older
    cdef Map newer

cdef class OpenSnapshot(SnapshotCommand):    # OpenSnapshot(volume, id, reading)
    cdef Volume reading              # what the snapshot is read by

cdef class CloseSnapshot(SnapshotCommand):
    cdef Volume reading
