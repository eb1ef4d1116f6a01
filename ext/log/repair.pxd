# Blocks that this node's replica has lost, from a copy on another node. See log/repair.pyx.

from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.log.open_segments cimport OpenSegments

# In a task: reads a block into `into`, 4096 bytes aligned to 4096, and writes it to this node's replica again. 0;
# -ENOENT: no copy has it; or another negative errno of the last copy that was asked.
cdef int read_copy(OpenSegments open_segments, Pointer pointer, void* into) noexcept nogil
