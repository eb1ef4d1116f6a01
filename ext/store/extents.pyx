# Reading and writing runs of a replica's blocks: a run is split at the ends of extents, and each piece is one device
# request.
#
# Block numbers count the replica's slabs. Without compaction they are the segment's block numbers; otherwise use
# store/bitmaps.pyx.
#
# Called in tasks, on any reactor: a replica's extents do not move until it is retired. The log splits its writes with
# ExtentRun, without a task.

from libc.stdint cimport uint32_t

from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.base.task cimport wait, waited
from iomesh.engine.format.layout cimport BLOCK_BYTES
from iomesh.engine.store.directory cimport Replica

cdef extern from "<errno.h>" nogil:
    int ENODATA


cdef int read_blocks(Io io, const Replica* replica, uint32_t block, uint32_t count, void* into) noexcept nogil:
    cdef ExtentRun run = extent_run(replica, block, count, into)
    cdef Operation operation
    while next_extent(&run):
        waited(&operation)
        io.read(&operation, replica.device, run.data, run.blocks * BLOCK_BYTES, run.offset)
        if wait(&operation) < 0:
            return <int>operation.result
    return -ENODATA if run.left else 0


cdef int write_blocks(Io io, const Replica* replica, uint32_t block, uint32_t count, const void* data) noexcept nogil:
    cdef ExtentRun run = extent_run(replica, block, count, data)
    cdef Operation operation
    while next_extent(&run):
        waited(&operation)
        io.write(&operation, replica.device, run.data, run.blocks * BLOCK_BYTES, run.offset)
        if wait(&operation) < 0:
            return <int>operation.result
    return -ENODATA if run.left else 0
