# Reading and writing runs of a replica's blocks across its extents. See store/extents.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.store.directory cimport Replica, replica_offset

# In a task: `count` blocks of a replica's slabs from number `block` on. 0; a device's negative errno; -ENODATA: beyond
# the slabs.
cdef int read_blocks(Io io, const Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
cdef int write_blocks(Io io, const Replica* replica, uint32_t block, uint32_t count, const void* data) noexcept nogil

cdef struct ExtentRun:               # a run of a replica's blocks, split at the ends of its extents
    const Replica* replica
    uint32_t left                    # blocks, including this piece
    uint32_t block                   # this piece: its first block in the replica, ...
    uint32_t blocks                  # ... its length, ...
    uint64_t offset                  # ... its device offset in bytes, ...
    char* data                       # ... and its memory

# Usage:  run = extent_run(...); while next_extent(&run): read or write run.blocks at run.offset
# Afterwards `left` is 0, unless the run ends beyond the replica's slabs.
cdef inline ExtentRun extent_run(
    const Replica* replica, uint32_t block, uint32_t count, const void* data
) noexcept nogil:
    cdef ExtentRun run
    run.replica = replica
    run.left = count
    run.block = block
    run.blocks = 0
    run.offset = 0
    run.data = <char*>data
    return run

cdef inline bint next_extent(ExtentRun* run) noexcept nogil:
    cdef uint32_t contiguous = 0
    run.left -= run.blocks
    run.block += run.blocks
    run.data += <uint64_t>run.blocks * 4096
    if run.left:
        run.offset = replica_offset(run.replica, run.block, &contiguous)
    run.blocks = min(run.left, contiguous)
    return run.blocks > 0
