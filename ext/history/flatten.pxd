# A clone without its parent. See history/flatten.pyx.

from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.map.map cimport Map
from iomesh.engine.volume.volume cimport Volume

# All but the last in tasks on the volume's reactor; 0 or a negative errno.

# What the head inherits is written again into the volume's own log. Stops early with -ENOSPC where what is free is kept for others, -ESHUTDOWN when the
# volume closes or goes back, -EBUSY when it is at it already; what was copied stays so, and the next call goes on.
cdef int copy_inherited(Volume volume, Throttle* throttle) noexcept nogil
# Whether, after a checkpoint that it writes, neither the head nor a snapshot leads into another log. -EBUSY: one does. tree: to look at them with.
cdef int check_detached(Volume volume, Map tree) noexcept nogil
# It is no clone from now on. check_detached() has said so, no older map has come back since, and the metadata service knows.
cdef void cut_off(Volume volume) noexcept nogil
