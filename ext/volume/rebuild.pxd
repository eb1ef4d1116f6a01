# Restores and limits the number of copies of an open volume's sealed segments. See volume/rebuild.pyx.

from libc.stdint cimport uint8_t, uint32_t
from iomesh.engine.replicas.member cimport REPLICAS_MAX
from iomesh.engine.volume.volume cimport Volume

cdef enum CopyState:                 # of a CopiesRow
    COPY_NONE, COPY_WORKS, COPY_SILENT, COPY_FAILED,     # silent: its node does not answer now
    COPY_LEAVING                     # it works, and its device is drained

cdef enum CopyProgress:
    COPY_WRITTEN,                    # it is not sealed yet
    COPY_NEEDED,                     # sealed, and the newest checkpoint needs it where it is: the next one does not
    COPY_SETTLED                     # it can be rebuilt

cdef packed struct CopiesRow:        # a segment, as a row of a numpy array (engine.pyi)
    uint32_t segment
    uint32_t blocks                  # that a copy takes on a device, about
    uint32_t devices[REPLICAS_MAX]   # that have it: their numbers in the cluster, the owner's first; 0: none
    uint8_t states[REPLICAS_MAX]     # CopyState
    uint8_t progress                 # CopyProgress

# The segments that have not as many working copies as the volume wants, or have copies besides. Returns their number,
# even if it exceeds `room`.
cdef uint32_t list_copies(Volume volume, CopiesRow* rows, uint32_t room) noexcept nogil

# In a task: `device` gets a copy of the segment from `source`, another one that has it. rate: KiB per second at most,
# 0: no limit. 0: the copy is on stable media, and counts; or a negative errno: EAGAIN: not now, since the segment is
# being cleaned or is needed by the newest checkpoint; ENOENT: it is gone; ENODEV: a device is not known or does not
# work; ENOSPC: the segment has as many copies as it can have; or as Puller.pull().
cdef int rebuild_copy(Volume volume, uint32_t segment, uint32_t device, uint32_t source, uint32_t rate) noexcept nogil

# In a task: the copy on this device of another node does not count any more, and is removed there. 0, or a negative
# errno: EAGAIN, ENOENT as above; EBUSY: without it there were fewer working copies than the volume wants.
cdef int drop_copy(Volume volume, uint32_t segment, uint32_t device) noexcept nogil
