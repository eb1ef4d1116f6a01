# What Python's thread asks about a reactor's objects. See commands/states.pyx.

from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.base.uring cimport Uring
from iomesh.engine.map.map cimport MapCache
from iomesh.engine.volume.volume cimport Volume

cdef dict volume_state(Volume volume)
cdef dict reactor_state(Reactor reactor, Uring io, MapCache cache, Pool pool)
