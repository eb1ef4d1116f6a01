# Reading and writing runs of a replica's blocks: a run is cut where an extent of the replica ends, and each piece is one request to the device.
#
# Blocks are counted in the replica's slabs. Of one that is not compacted these are the segment's blocks; of any that may be compacted, ask
# store/bitmaps.pyx.
#
# Called in tasks, on any reactor: a replica's extents stay where they are until it is retired. The log cuts its writes by ExtentRun, without a task.

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
