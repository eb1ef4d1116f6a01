# Reading and writing runs of a replica's blocks, wherever its extents lie. See store/extents.pyx.

from libc.stdint cimport uint32_t, uint64_t
from iomesh.engine.base.io cimport Io
from iomesh.engine.store.directory cimport Replica, replica_offset

# In a task: so many blocks of a replica's slabs from the n-th on. 0, or a negative errno: of the device, or -ENODATA: it has no such blocks.
cdef int read_blocks(Io io, const Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil
cdef int write_blocks(Io io, const Replica* replica, uint32_t block, uint32_t count, const void* data) noexcept nogil

cdef struct ExtentRun:               # a run of a replica's blocks, cut where its extents end
    const Replica* replica
    uint32_t left                    # blocks, this piece's included
    uint32_t block                   # this piece: where it begins among the replica's blocks, ...
    uint32_t blocks                  # ... how many it has, ...
    uint64_t offset                  # ... where it lies on the device, in bytes, ...
    char* data                       # ... and in memory

# for each piece:  run = extent_run(...); while next_extent(&run): ask the device for run.blocks at run.offset
# `left` is 0 afterwards, unless the run ends beyond the replica's slabs.
cdef inline ExtentRun extent_run(const Replica* replica, uint32_t block, uint32_t count, const void* data) noexcept nogil:
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
