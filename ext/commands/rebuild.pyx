# Commands on the copies of an open volume's segments: list those that are too few or too many, rebuild, drop.

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free as release

import numpy as np

from iomesh.engine.replicas.member cimport REPLICAS_MAX, Member
from iomesh.engine.volume.rebuild cimport CopiesRow, drop_copy, list_copies, rebuild_copy
from iomesh.engine.volume.volume cimport Volume

# volume/rebuild.pxd's CopiesRow
COPIES_ROW = np.dtype(
    [
        ("segment", np.uint32),
        ("blocks", np.uint32),
        ("devices", np.uint32, REPLICAS_MAX),
        ("states", np.uint8, REPLICAS_MAX),
        ("progress", np.uint8),
    ]
)


cdef class ListCopies(VolumeCommand):
    def __dealloc__(self):
        release(self.rows)

    cdef int64_t run(self) noexcept nogil:
        self.count = list_copies(self.volume, NULL, 0)
        self.rows = <CopiesRow*>calloc(self.count + 1, sizeof(CopiesRow))
        if self.rows is NULL:
            return -ENOMEM
        list_copies(self.volume, self.rows, self.count)
        return 0

    cdef object value(self):
        return None if self.error else np.frombuffer((<char*>self.rows)[:self.count * sizeof(CopiesRow)], COPIES_ROW)


cdef class RebuildCopy(VolumeCommand):
    def __cinit__(self, Volume volume, uint32_t segment, uint32_t device, uint32_t source, uint32_t rate):
        self.segment, self.device, self.source, self.rate = segment, device, source, rate

    cdef int64_t run(self) noexcept nogil:
        return rebuild_copy(self.volume, self.segment, self.device, self.source, self.rate)


cdef class DropCopy(VolumeCommand):
    def __cinit__(self, Volume volume, uint32_t segment, uint32_t device):
        self.segment, self.device = segment, device

    cdef int64_t run(self) noexcept nogil:
        return drop_copy(self.volume, self.segment, self.device)


cdef class DrainMembers(VolumeCommand):
    def __cinit__(self, Volume volume, devices):
        self.silent = True
        self.numbers = <uint32_t*>calloc(len(devices) + 1, sizeof(uint32_t))
        if self.numbers is NULL:
            raise MemoryError("no memory for a list of devices")
        for device in devices:
            self.numbers[self.count] = device
            self.count += 1

    def __dealloc__(self):
        release(self.numbers)

    cdef int64_t run(self) noexcept nogil:
        cdef int i
        cdef uint32_t k
        cdef bint leaving
        for i in range(self.volume.log.open_segments.member_count):
            leaving = False
            for k in range(self.count):
                leaving = leaving or (<Member>self.volume.log.open_segments.members[i]).device() == self.numbers[k]
            (<Member>self.volume.log.open_segments.members[i]).leaving = leaving
        return 0
