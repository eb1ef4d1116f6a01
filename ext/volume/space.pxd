# A volume's space on devices, by use. See volume/space.pyx.

from libc.stdint cimport uint64_t
from iomesh.engine.volume.volume cimport Volume

cdef struct Space:                   # blocks; docs/space.md defines the sums
    uint64_t mapped                  # in the head's map, the sum of:
    uint64_t exclusive               # ... in no snapshot's map
    uint64_t inherited               # ... in the logs of a clone's parents
    uint64_t shared                  # ... in a snapshot's map too
    uint64_t snapshots               # in snapshots' maps only
    uint64_t pinned                  # kept for the restore window only
    uint64_t map                     # nodes of all maps
    uint64_t log                     # headers, footers, bitmaps
    uint64_t ahead                   # of open segments, not written yet
    uint64_t dead                    # the rest: freed by cleaning
    uint64_t physical                # of its segments on devices

# On the volume's reactor: all values at one point in time.
cdef void measure(Volume volume, Space* into) noexcept nogil
