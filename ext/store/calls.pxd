# Store methods, callable in a task on any reactor. See store/calls.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.store.store cimport OpenLog

# store: a Store. caller: the reactor that the task runs on. All else as in store/store.pxd.
cdef Replica* store_create(
    void* store,
    Reactor caller,
    const uint8_t* volume,
    uint32_t segment,
    uint64_t epoch,
    uint32_t fragment,
    uint32_t blocks,
    bint urgent,
    int* error,
) noexcept nogil
cdef int store_seal(
    void* store, Reactor caller, Replica* replica, uint32_t blocks, uint32_t footer_block
) noexcept nogil
# After success the replica is freed: without waiting, the caller lets go of it.
cdef int store_remove(void* store, Reactor caller, Replica* replica) noexcept nogil
cdef Replica* store_compact(
    void* store, Reactor caller, Replica* old, const uint64_t* live, Throttle* throttle, int* error
) noexcept nogil
# For a copy of a segment on another device:
cdef Replica* store_reserve_copy(
    void* store, Reactor caller, const uint8_t* volume, uint32_t segment, uint32_t blocks, int* error
) noexcept nogil
cdef int store_keep_copy(
    void* store, Reactor caller, Replica* copy, uint64_t epoch, uint16_t stream, uint32_t blocks, uint32_t footer_block,
    uint8_t state
) noexcept nogil
cdef void store_discard_copy(void* store, Reactor caller, Replica* copy) noexcept nogil
cdef void store_retire(void* store, Reactor caller, Replica* old) noexcept nogil
cdef uint32_t store_list(
    void* store, Reactor caller, const uint8_t* volume, Replica** into, uint32_t room
) noexcept nogil
cdef bint store_is_doubtful(void* store, Reactor caller, Replica* replica) noexcept nogil
cdef void store_enter(void* store, Reactor caller, OpenLog* log) noexcept nogil
cdef void store_leave(void* store, Reactor caller, OpenLog* log) noexcept nogil
cdef uint64_t store_fenced(void* store, Reactor caller, const uint8_t* volume) noexcept nogil     # 0: it is not
cdef int store_fence(void* store, Reactor caller, const uint8_t* volume, uint64_t epoch) noexcept nogil
cdef int64_t store_erase(void* store, Reactor caller, const uint8_t* volume) noexcept nogil
