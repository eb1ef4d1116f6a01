# What Python's thread asks about a reactor's objects: all of one moment, read on their reactor between two operations
# (look_on in base/reactor.pyx), while Python's thread waits without its lock. Called by the engine.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.base.reactor cimport look_on
from iomesh.engine.format.layout cimport BLOCK_BYTES, POINTER_PRESENT, Pointer
from iomesh.engine.map.snapshot_table cimport Snapshot, is_zero_id

cdef struct VolumeState:
    void* volume
    uint64_t blocks, sequence, committed, stable
    uint64_t segments, live, mapped, exclusive, inherited
    uint64_t log_bytes, bytes_since_checkpoint, checkpoint_sequence, map_load_errors
    uint64_t walked_nodes, disagreements, unreadable
    int64_t stalled_ns
    uint32_t connections, snapshots
    int error
    bint is_unsettled, no_space, space_is_coming, checkpointing, unanswered, awaits_numbers, refusing_below
    Pointer checkpoint, map_root
    unsigned char unsettled[16]
    unsigned char head_parent[16]

cdef struct ReactorState:
    void* reactor
    void* io
    void* cache
    void* pool
    uint64_t turns, sleeps, busy_ns, enters, timeouts
    uint64_t frames, used, dirty, hits, misses
    uint32_t free[3]


cdef dict volume_state(Volume volume):
    cdef VolumeState it
    it.volume = <void*>volume
    with nogil:
        look_on(volume.reactor, look_at_volume, &it)
    return {
        "size_bytes": it.blocks * BLOCK_BYTES,
        "sequence": it.sequence,
        "committed": it.committed,
        "stable": it.stable,
        "segments": it.segments,
        "live_blocks": it.live,
        "mapped_blocks": it.mapped,
        "exclusive_blocks": it.exclusive,
        "inherited_blocks": it.inherited,
        "connections": it.connections,
        "log_bytes": it.log_bytes,
        "log_bytes_since_checkpoint": it.bytes_since_checkpoint,
        "segment_bytes": volume.log.open_segments.segment_blocks * BLOCK_BYTES,
        "epoch": volume.log.epoch,
        "reactor": volume.reactor.number,
        "checkpoint_sequence": it.checkpoint_sequence,
        "checkpoint": told(it.checkpoint),
        "map_root": told(it.map_root),
        "map_load_errors": it.map_load_errors,
        "error": -it.error,
        "snapshots": it.snapshots,
        "unsettled": it.unsettled[:16] if it.is_unsettled else None,
        "head_parent": None if is_zero_id(it.head_parent) else it.head_parent[:16],
        "stalled_ns": it.stalled_ns,
        "walked_nodes": it.walked_nodes,
        "walk_disagreements": it.disagreements,
        "walk_unreadable": it.unreadable,
        "refusing_below": bool(it.refusing_below),
        "no_space": bool(it.no_space),
        "space_is_coming": bool(it.space_is_coming),
        "checkpointing": bool(it.checkpointing),
        "unanswered": bool(it.unanswered),
        "awaits_numbers": bool(it.awaits_numbers),
        "volatile_cache": bool(volume.volatile_cache),
    }


cdef void look_at_volume(void* argument) noexcept nogil:
    read_volume(<Volume>(<VolumeState*>argument).volume, <VolumeState*>argument)


cdef void read_volume(Volume volume, VolumeState* it) noexcept nogil:
    cdef Snapshot* mark = volume.snapshots.unsettled()
    it.blocks = volume.blocks
    it.sequence, it.committed, it.stable = volume.log.sequence, volume.log.committed, volume.log.flusher.stable
    it.segments, it.live, it.mapped = volume.segments.count, volume.segments.live, volume.segments.mapped
    it.inherited = volume.segments.inherited
    it.exclusive = min(volume.segments.exclusive, volume.segments.mapped - volume.segments.inherited)
    it.connections = volume.connections
    it.log_bytes = volume.log.bytes + volume.log.open_segments.footer_bytes
    it.bytes_since_checkpoint = volume.log.bytes - volume.log.bytes_at_checkpoint
    it.checkpoint_sequence, it.checkpoint = volume.checkpoints.sequence, volume.checkpoints.pointer
    it.map_root, it.map_load_errors = volume.map.root, volume.map.load_errors
    it.error = volume.log.error
    it.snapshots = volume.snapshots.count
    it.is_unsettled = mark is not NULL
    if mark is not NULL:
        memcpy(it.unsettled, mark.entry.before, 16)
    memcpy(it.head_parent, volume.snapshots.head_parent, 16)
    it.stalled_ns = volume.checkpoints.stalled_ns
    it.walked_nodes, it.disagreements = volume.walk.nodes, volume.walk.disagreements
    it.unreadable = volume.walk.unreadable
    it.no_space = volume.log.open_segments.no_space
    it.refusing_below = volume.log.refusing_below
    it.space_is_coming = volume.log.open_segments.space_is_coming()
    it.awaits_numbers = (
        volume.log.open_segments.promise_waited and volume.log.open_segments.promise_unanswered
    )
    it.checkpointing, it.unanswered = volume.checkpoints.running, volume.checkpoints.unanswered


cdef object told(Pointer pointer):
    """(segment, block, crc) or None."""
    return (pointer.segment, pointer.block, pointer.crc) if pointer.flags & POINTER_PRESENT else None


cdef dict reactor_state(Reactor reactor, Uring io, MapCache cache, Pool pool):
    cdef ReactorState it
    it.reactor, it.io, it.cache, it.pool = <void*>reactor, <void*>io, <void*>cache, <void*>pool
    with nogil:
        look_on(reactor, look_at_reactor, &it)
    return {
        "turns": it.turns,
        "sleeps": it.sleeps,
        "busy_ns": it.busy_ns,
        "system_calls": it.enters,
        "device_timeouts": it.timeouts,
        "map_frames": it.frames,
        "map_used": it.used,
        "map_dirty": it.dirty,
        "map_hits": it.hits,
        "map_misses": it.misses,
        "buffers_registered": bool(io.buffers_registered),
        "free_small_buffers": it.free[0],
        "free_large_buffers": it.free[1],
        "free_record_buffers": it.free[2],
    }


cdef void look_at_reactor(void* argument) noexcept nogil:
    cdef ReactorState* it = <ReactorState*>argument
    read_reactor(<Reactor>it.reactor, <Uring>it.io, <MapCache>it.cache, <Pool>it.pool, it)


cdef void read_reactor(Reactor reactor, Uring io, MapCache cache, Pool pool, ReactorState* it) noexcept nogil:
    cdef int kind
    it.turns, it.sleeps, it.busy_ns, it.enters = reactor.turns, reactor.sleeps, reactor.busy_ns, io.enters
    it.timeouts = io.timeouts
    it.frames, it.used, it.dirty, it.hits, it.misses = cache.frames, cache.used, cache.dirty, cache.hits, cache.misses
    for kind in range(3):
        it.free[kind] = pool.free[kind]
