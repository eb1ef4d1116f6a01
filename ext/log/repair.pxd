# Blocks that this node's replica has lost, from a copy on another node. See log/repair.pyx.

from libc.stdint cimport uint8_t, uint32_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.log.open_segments cimport OpenSegments

# In a task: reads a block into `into`, 4096 bytes aligned to 4096, and writes it to this node's replica again. 0;
# -ENOENT: no copy has it; or another negative errno of the last copy that was asked. header: the block is a record's
# header, and the pointer's checksum the one in it.
cdef int read_copy(OpenSegments open_segments, Pointer pointer, void* into, bint header) noexcept nogil
# As Map.mend. open_segments: OpenSegments
cdef void mend_node(void* open_segments, Pointer pointer, void* into, Operation* when) noexcept nogil
