# Store methods, callable in a task on any reactor: each call runs the Store's method of that name as a task on the
# store's home reactor and waits for its result. The arguments stay on the caller's stack meanwhile.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free as release

from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.store.compaction cimport Throttle
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.store.store cimport Store

cdef struct CreateCall:
    void* store
    const uint8_t* volume
    uint32_t segment
    uint64_t epoch
    uint32_t fragment
    uint32_t blocks
    bint urgent
    int* error
    Replica* created

cdef struct SealCall:
    void* store
    Replica* replica
    uint32_t blocks
    uint32_t footer_block

cdef struct ReserveCall:
    void* store
    const uint8_t* volume
    uint32_t segment
    uint32_t blocks
    int* error
    Replica* copy

cdef struct KeepCall:
    void* store
    Replica* copy
    uint64_t epoch
    uint16_t stream
    uint32_t blocks
    uint32_t footer_block
    uint8_t state

cdef struct FenceCall:
    void* store
    const uint8_t* volume
    uint64_t epoch

cdef struct CompactCall:
    void* store
    Replica* old
    const uint64_t* live
    Throttle* throttle
    int* error
    Replica* copy

cdef struct ReplicaCall:
    void* store
    Replica* replica

cdef struct VolumeCall:
    void* store
    const uint8_t* volume
    Replica** into
    uint32_t room


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
) noexcept nogil:
    cdef CreateCall call
    call.store, call.volume, call.segment, call.epoch, call.fragment, call.blocks, call.urgent, call.error = (
        store, volume, segment, epoch, fragment, blocks, urgent, error
    )
    call_on((<Store>store).home, caller, create, &call)
    return call.created


cdef int64_t create(void* argument) noexcept nogil:
    cdef CreateCall* call = <CreateCall*>argument
    call.created = (<Store>call.store).create(
        call.volume, call.segment, call.epoch, 0, call.fragment, call.blocks, call.urgent, call.error
    )
    return 0


cdef int store_seal(
    void* store, Reactor caller, Replica* replica, uint32_t blocks, uint32_t footer_block
) noexcept nogil:
    cdef SealCall call
    call.store, call.replica, call.blocks, call.footer_block = store, replica, blocks, footer_block
    return <int>call_on((<Store>store).home, caller, seal, &call)


cdef int64_t seal(void* argument) noexcept nogil:
    cdef SealCall* call = <SealCall*>argument
    return (<Store>call.store).seal(call.replica, call.blocks, call.footer_block)


cdef int store_remove(void* store, Reactor caller, Replica* replica) noexcept nogil:
    cdef ReplicaCall call
    cdef int result
    call.store, call.replica = store, replica
    result = <int>call_on((<Store>store).home, caller, remove, &call)
    if result == 0:
        release(replica)                                 # only here: other tasks of its volume may have looked at it
    return result


cdef int64_t remove(void* argument) noexcept nogil:
    cdef ReplicaCall* call = <ReplicaCall*>argument
    return (<Store>call.store).remove(call.replica)


cdef Replica* store_compact(
    void* store, Reactor caller, Replica* old, const uint64_t* live, Throttle* throttle, int* error
) noexcept nogil:
    cdef CompactCall call
    call.store, call.old, call.live, call.throttle, call.error = store, old, live, throttle, error
    call_on((<Store>store).home, caller, compact, &call)
    return call.copy


cdef int64_t compact(void* argument) noexcept nogil:
    cdef CompactCall* call = <CompactCall*>argument
    call.copy = (<Store>call.store).compact(call.old, call.live, call.throttle, call.error)
    return 0


cdef Replica* store_reserve_copy(
    void* store, Reactor caller, const uint8_t* volume, uint32_t segment, uint32_t blocks, int* error
) noexcept nogil:
    cdef ReserveCall call
    call.store, call.volume, call.segment, call.blocks, call.error = store, volume, segment, blocks, error
    call_on((<Store>store).home, caller, reserve_copy, &call)
    return call.copy


cdef int64_t reserve_copy(void* argument) noexcept nogil:
    cdef ReserveCall* call = <ReserveCall*>argument
    call.copy = (<Store>call.store).reserve_copy(call.volume, call.segment, call.blocks, call.error)
    return 0


cdef int store_keep_copy(
    void* store, Reactor caller, Replica* copy, uint64_t epoch, uint16_t stream, uint32_t blocks, uint32_t footer_block,
    uint8_t state
) noexcept nogil:
    cdef KeepCall call
    call.store, call.copy, call.epoch, call.stream, call.blocks, call.footer_block, call.state = (
        store, copy, epoch, stream, blocks, footer_block, state
    )
    return <int>call_on((<Store>store).home, caller, keep_copy, &call)


cdef int64_t keep_copy(void* argument) noexcept nogil:
    cdef KeepCall* call = <KeepCall*>argument
    return (<Store>call.store).keep_copy(
        call.copy, call.epoch, call.stream, call.blocks, call.footer_block, call.state
    )


cdef void store_discard_copy(void* store, Reactor caller, Replica* copy) noexcept nogil:
    cdef ReplicaCall call
    call.store, call.replica = store, copy
    call_on((<Store>store).home, caller, discard_copy, &call)


cdef int64_t discard_copy(void* argument) noexcept nogil:
    cdef ReplicaCall* call = <ReplicaCall*>argument
    (<Store>call.store).discard_copy(call.replica)
    return 0


cdef void store_retire(void* store, Reactor caller, Replica* old) noexcept nogil:
    cdef ReplicaCall call
    call.store, call.replica = store, old
    call_on((<Store>store).home, caller, retire, &call)


cdef int64_t retire(void* argument) noexcept nogil:
    cdef ReplicaCall* call = <ReplicaCall*>argument
    (<Store>call.store).retire(call.replica)
    return 0


cdef uint32_t store_list(
    void* store, Reactor caller, const uint8_t* volume, Replica** into, uint32_t room
) noexcept nogil:
    cdef VolumeCall call
    call.store, call.volume, call.into, call.room = store, volume, into, room
    return <uint32_t>call_on((<Store>store).home, caller, list_replicas, &call)


cdef int64_t list_replicas(void* argument) noexcept nogil:
    cdef VolumeCall* call = <VolumeCall*>argument
    return (<Store>call.store).list(call.volume, call.into, call.room)


cdef bint store_is_doubtful(void* store, Reactor caller, Replica* replica) noexcept nogil:
    cdef ReplicaCall call
    call.store, call.replica = store, replica
    return call_on((<Store>store).home, caller, is_doubtful, &call) != 0


cdef int64_t is_doubtful(void* argument) noexcept nogil:
    cdef ReplicaCall* call = <ReplicaCall*>argument
    return (<Store>call.store).is_doubtful(call.replica)


cdef struct LogCall:
    void* store
    OpenLog* log


cdef void store_enter(void* store, Reactor caller, OpenLog* log) noexcept nogil:
    cdef LogCall call
    call.store, call.log = store, log
    call_on((<Store>store).home, caller, enter, &call)


cdef int64_t enter(void* argument) noexcept nogil:
    cdef LogCall* call = <LogCall*>argument
    (<Store>call.store).enter(call.log)
    return 0


cdef void store_leave(void* store, Reactor caller, OpenLog* log) noexcept nogil:
    cdef LogCall call
    call.store, call.log = store, log
    call_on((<Store>store).home, caller, leave, &call)


cdef int64_t leave(void* argument) noexcept nogil:
    cdef LogCall* call = <LogCall*>argument
    (<Store>call.store).leave(call.log)
    return 0


cdef uint64_t store_fenced(void* store, Reactor caller, const uint8_t* volume) noexcept nogil:
    cdef FenceCall call
    call.store, call.volume = store, volume
    return <uint64_t>call_on((<Store>store).home, caller, fenced, &call)


cdef int64_t fenced(void* argument) noexcept nogil:
    cdef FenceCall* call = <FenceCall*>argument
    return <int64_t>(<Store>call.store).directory.fenced(call.volume)


cdef int store_fence(void* store, Reactor caller, const uint8_t* volume, uint64_t epoch) noexcept nogil:
    cdef FenceCall call
    call.store, call.volume, call.epoch = store, volume, epoch
    return <int>call_on((<Store>store).home, caller, fence, &call)


cdef int64_t fence(void* argument) noexcept nogil:
    cdef FenceCall* call = <FenceCall*>argument
    return (<Store>call.store).fence(call.volume, call.epoch)


cdef int64_t store_erase(void* store, Reactor caller, const uint8_t* volume) noexcept nogil:
    cdef VolumeCall call
    call.store, call.volume, call.into, call.room = store, volume, NULL, 0
    return call_on((<Store>store).home, caller, erase, &call)


cdef int64_t erase(void* argument) noexcept nogil:
    cdef VolumeCall* call = <VolumeCall*>argument
    return (<Store>call.store).erase(call.volume)
