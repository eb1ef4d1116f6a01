# What differs between two of a volume's maps, range by range. See history/difference.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.map.map cimport Map
from iomesh.engine.volume.volume cimport Volume

cdef struct Range:
    uint64_t block
    uint64_t count
    bint mapped                      # in the newer of the two

cdef struct Comparing:               # what is asked for, and what has been found
    uint8_t older[16]                # ids of snapshots
    uint8_t newer[16]                # zero: the volume as it is now
    uint64_t block                   # from here on
    uint64_t next                    # where what was not looked at begins; that is the end of both: nothing is left
    uint64_t blocks                  # of the larger of the two
    uint64_t nodes                   # that were read for it
    uint32_t count                   # of `ranges`
    uint32_t room
    Range* ranges

# How many blocks from `block` on, at most `most`, the two maps have alike, or each of them other than the other and alike mapped in the newer
# one; 0: `when` is done once it is worth asking again, or with a negative errno.
cdef int64_t compare(Map older, Map newer, uint64_t block, uint64_t most, bint* differ, bint* mapped, Operation* when) noexcept nogil
# A snapshot that is to be compared with for longer: `into` is its map from now on, until it is released. False: there is none that is readable.
cdef bint hold_older(Volume volume, const uint8_t* id, Map into) noexcept nogil
cdef void release_older(Volume volume, const uint8_t* id, Map older) noexcept nogil
# In a task on the volume's reactor: the ranges that differ, ascending, up to `room` of them. -ENOENT, -EIO, -ESHUTDOWN, -ENOMEM.
cdef int find_changes(Volume volume, Comparing* comparing, Map older, Map newer) noexcept nogil
