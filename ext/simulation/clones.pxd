# Clones in a life in the simulated world, and the deletion of volumes. See simulation/clones.pyx.

from iomesh.engine.simulation.simulated_volume cimport Tenant

cdef void begin_clone(Tenant parent) noexcept nogil      # if it has a snapshot, and there is room for one more volume
cdef void begin_leaving(Tenant tenant) noexcept nogil    # it is to be deleted, unless there is no other one to go on with
cdef void leave(Tenant tenant) noexcept nogil            # ... and nothing of it is under way any more
cdef void delete_needless(Tenant tenant) noexcept nogil  # in a task: it is hidden, and a clone of it may be gone
cdef void shut(Tenant tenant) noexcept nogil           # in a task: it is closed without a checkpoint
cdef int erase(Tenant tenant) noexcept nogil             # in a task: its record says so, and it is not open
cdef int take_to_moment(Tenant tenant) noexcept nogil    # in a task: a clone of one, which was just opened
