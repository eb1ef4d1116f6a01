# Block ranges in which two of a volume's maps differ. See history/difference.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.map.map cimport Map
from iomesh.engine.volume.volume cimport Volume

cdef struct Range:
    uint64_t block
    uint64_t count
    bint mapped                      # in the newer of the two

cdef struct Comparing:               # the request and its result
    uint8_t older[16]                # ids of snapshots
    uint8_t newer[16]                # zero: the head
    uint64_t block                   # the first to compare
    uint64_t next                    # the first block not compared yet; both maps' end: complete
    uint64_t blocks                  # of the larger map
    uint64_t nodes                   # map nodes read for the comparison
    uint32_t count                   # of `ranges`
    uint32_t room
    Range* ranges

# Length of the run of blocks that starts at `block`, at most `most`: all are equal in both maps, or all differ and are
# all mapped or all unmapped in the newer one. 0: a node has to be read; `when` completes when to try again, or with a
# negative errno.
cdef int64_t compare(
    Map older, Map newer, uint64_t block, uint64_t most, bint* differ, bint* mapped, Operation* when
) noexcept nogil
# Keeps a snapshot for several comparisons: `into` is its map until release_older(). False: no such snapshot, or it
# cannot be read.
cdef bint hold_older(Volume volume, const uint8_t* id, Map into) noexcept nogil
cdef void release_older(Volume volume, const uint8_t* id, Map older) noexcept nogil
# In a task on the volume's reactor: finds the ranges that differ, ascending, at most `room`. -ENOENT, -EIO, -ESHUTDOWN,
# -ENOMEM.
cdef int find_changes(Volume volume, Comparing* comparing, Map older, Map newer) noexcept nogil
