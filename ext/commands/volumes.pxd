# Commands on volumes. See commands/volumes.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.log_clock cimport LogClock
from iomesh.engine.commands.command cimport VolumeCommand
from iomesh.engine.map.map cimport Map
from iomesh.engine.store.token_bucket cimport TokenBucket
from iomesh.engine.volume.checkpoint cimport Outcome
from iomesh.engine.volume.checkpoint_writer cimport Description
from iomesh.engine.volume.cleaning cimport Cleaned, Cleaner, Row
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.volume.space cimport Space
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.volume.volume cimport Volume

cdef class OpenVolume(VolumeCommand):        # OpenVolume(volume, recovery)
    cdef Recovery recovery
    cdef Volume parent               # of a clone: its parent volume ...
    cdef uint8_t snapshot[16]        # ... and the snapshot that it is a clone of
    cdef int64_t took_ns
    cdef uint64_t sequence           # at the end of the log

    cdef int branch(self) noexcept nogil

cdef class CloseVolume(VolumeCommand):       # CloseVolume(volume, checkpoint)
    cdef bint checkpoint             # write one first

# CheckpointVolume(volume, renew): renew: also if nothing has changed since the last one
cdef class CheckpointVolume(VolumeCommand):
    cdef bint renew

# MovePointer(volume, sequence, outcome, promised): the metadata service's answer
cdef class MovePointer(VolumeCommand):
    cdef uint64_t sequence           # 0: it was asked for segment numbers only
    cdef Outcome outcome
    cdef uint32_t promised

cdef class AddMember(VolumeCommand):         # AddMember(volume, member)
    cdef Member member

cdef class AgreeFragment(VolumeCommand):     # AgreeFragment(volume, number, outcome)
    cdef uint32_t number
    cdef Outcome outcome

cdef class TendMembers(VolumeCommand):       # TendMembers(volume)
    pass

cdef class ReconcileCopies(VolumeCommand):   # ReconcileCopies(volume, devices): numbers of a node's devices
    cdef list copies                 # Copies, one for each of the devices
    cdef void** each                 # the same
    cdef uint32_t wanted[64]
    cdef uint32_t count

cdef class GrowVolume(VolumeCommand):        # GrowVolume(volume, size_bytes)
    cdef uint64_t size_bytes

# DescribeVolume(volume, name, window_seconds, replicas): for its checkpoints
cdef class DescribeVolume(VolumeCommand):
    cdef Description description

cdef class MeasureSpace(VolumeCommand):
    cdef Space space

cdef class ReadLogClock(VolumeCommand):
    cdef LogClock clock
    cdef uint64_t recorded_ns

cdef class ExpectSpace(VolumeCommand):       # ExpectSpace(volume, milliseconds)
    cdef int64_t milliseconds

cdef class ListSegments(VolumeCommand):      # ListSegments(volume, cleaner)
    cdef Cleaner cleaner
    cdef Row* rows
    cdef uint32_t count

cdef class CleanVolume(VolumeCommand):       # CleanVolume(volume, cleaner, bucket, segments)
    cdef Cleaner cleaner
    cdef TokenBucket bucket
    cdef uint64_t bytes_per_second
    cdef uint32_t share
    cdef const uint32_t[::1] segments
    cdef const uint32_t* first       # of `segments`
    cdef uint32_t count
    cdef Cleaned cleaned

cdef class CopyInherited(VolumeCommand):     # CopyInherited(volume, bucket)
    cdef TokenBucket bucket
    cdef uint64_t bytes_per_second
    cdef uint32_t share

cdef class CheckDetached(VolumeCommand):     # CheckDetached(volume, tree)
    cdef Map tree

cdef class CutOff(VolumeCommand):
    pass

# Raises ValueError: the name is too long.
cdef int describe(
    Description* description, bytes name, uint32_t segment_bytes, uint32_t window_seconds, uint32_t replicas) except -1
