# What a volume takes on devices, and what for. See volume/space.pyx.

from libc.stdint cimport uint64_t
from iomesh.engine.volume.volume cimport Volume

cdef struct Space:                   # blocks; docs/space.md says how they add up
    uint64_t mapped                  # that the head holds:
    uint64_t exclusive               # ... nothing else does
    uint64_t inherited               # ... in the logs of a clone's parents
    uint64_t shared                  # ... and a snapshot of it does
    uint64_t snapshots               # that only snapshots hold
    uint64_t pinned                  # that only the restore window holds
    uint64_t map                     # nodes of all maps
    uint64_t log                     # headers, footers, bitmaps
    uint64_t ahead                   # of segments that are open, not written yet
    uint64_t dead                    # all else: comes back when it is cleaned
    uint64_t physical                # that its segments have on devices

# On the volume's reactor: all of one moment.
cdef void measure(Volume volume, Space* into) noexcept nogil
