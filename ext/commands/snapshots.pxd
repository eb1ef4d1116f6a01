# Commands on a volume's snapshots. See commands/snapshots.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.commands.command cimport Command, VolumeCommand
from iomesh.engine.format.layout cimport SnapshotEntry
from iomesh.engine.history.difference cimport Comparing
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.history.snapshots cimport Making
from iomesh.engine.map.map cimport Map
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.volume.volume cimport Volume

cdef class CreateSnapshots(Command):         # CreateSnapshots(volumes): one of each, sorted by volume id
    cdef list volumes
    cdef Making* makings             # the caller fills in ids and names
    cdef uint32_t count

cdef class ListSnapshots(VolumeCommand):
    cdef SnapshotEntry* entries
    cdef uint32_t count

cdef class SnapshotCommand(VolumeCommand):   # SnapshotCommand(volume, id, ...)
    cdef uint8_t id[16]

cdef class DeleteSnapshot(SnapshotCommand):
    cdef bint hidden                 # it stays until nothing is based on it any more

cdef class UnmarkSnapshot(SnapshotCommand):
    pass

cdef class RestoreVolume(SnapshotCommand):
    cdef SnapshotRequest before      # for the volume's previous content
    cdef SnapshotRequest mark        # for a restore point of the restored content
    cdef bint marked                 # `mark` is to be created
    cdef bint force                  # end the connections

cdef class RollVolumeForward(SnapshotCommand):       # RollVolumeForward(volume, restore point, roll_forward, until_ns)
    cdef RollForward roll_forward
    cdef uint64_t until_ns

cdef class CompareSnapshots(VolumeCommand):  # CompareSnapshots(volume, older map, newer map, most ranges)
    cdef Comparing* comparing
    cdef Map older
    cdef Map newer

cdef class OpenSnapshot(SnapshotCommand):    # OpenSnapshot(volume, id, reading)
    cdef Volume reading              # the volume that reads the snapshot

cdef class CloseSnapshot(SnapshotCommand):
    cdef Volume reading
