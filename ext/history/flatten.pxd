# Flattening: makes a clone independent of its parent. See history/flatten.pyx.

from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.map.map cimport Map
from iomesh.engine.volume.volume cimport Volume

# All but the last in tasks on the volume's reactor; 0 or a negative errno.

# Copies the blocks and nodes that the head inherits into the volume's own log. Stops early with -ENOSPC when only
# reserved space is free, -ESHUTDOWN when the volume closes or is restored, -EBUSY when a copy is running already. What
# was copied stays copied; the next call continues.
cdef int copy_inherited(Volume volume, Throttle* throttle) noexcept nogil
# Writes a checkpoint and checks that no pointer of the head or of a snapshot refers to another log. -EBUSY: one does.
# tree: a Map for the walk.
cdef int check_detached(Volume volume, Map tree) noexcept nogil
# Ends the clone's dependence on its parent. Before it: check_detached() returned 0, no older map was restored since,
# and the metadata service's record names no parent.
cdef void cut_off(Volume volume) noexcept nogil
