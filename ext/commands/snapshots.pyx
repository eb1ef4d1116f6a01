# Commands on a volume's snapshots: create, list, delete, read, compare and restore them, and roll forward along the
# log.

from libc.errno cimport EBUSY, ENOMEM, ESHUTDOWN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy

from iomesh.engine.commands.connections cimport end_connections
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, SNAPSHOT_CLONE, SNAPSHOT_DYING, SNAPSHOT_HIDDEN, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED, SnapshotEntry)
from iomesh.engine.history.difference cimport Comparing, Range, find_changes
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.history.snapshots cimport (
    Making, close_snapshot, delete_snapshot, make_snapshots, open_snapshot, restore_volume, unmark_snapshot)
from iomesh.engine.map.map cimport Map
from iomesh.engine.map.snapshot_table cimport is_zero_id
from iomesh.engine.base.task cimport wake_all
from iomesh.engine.volume.volume cimport Volume


cdef class CreateSnapshots(Command):
    def __cinit__(self, list volumes):
        cdef uint32_t i
        self.volumes = volumes
        self.reactor = (<Volume>volumes[0]).reactor
        self.count = len(volumes)
        self.makings = <Making*>calloc(self.count, sizeof(Making))
        if self.makings is NULL:
            raise MemoryError("no memory for the making of snapshots")
        for i in range(self.count):
            self.makings[i].volume = <void*>volumes[i]

    def __dealloc__(self):
        release(self.makings)

    cdef int64_t run(self) noexcept nogil:
        return make_snapshots(self.reactor, self.makings, self.count)

    cdef object value(self):
        return None if self.error else {"snapshots": [made(&self.makings[i]) for i in range(self.count)]}


cdef dict made(const Making* it):
    return {
        "volume": (<Volume>it.volume).identity[:16],
        "id": it.snapshot_request.entry.id[:16],
        "sequence": it.snapshot_request.entry.sequence,
        "time_ns": <int64_t>it.snapshot_request.entry.time_ns + it.snapshot_request.entry.clock_ns,
    }


cdef class ListSnapshots(VolumeCommand):
    def __dealloc__(self):
        release(self.entries)

    cdef int64_t run(self) noexcept nogil:
        cdef uint32_t i
        self.count = self.volume.snapshots.count
        self.entries = <SnapshotEntry*>calloc(self.count + 1, sizeof(SnapshotEntry))
        if self.entries is NULL:
            return -ENOMEM
        for i in range(self.count):
            self.entries[i] = self.volume.snapshots.all[i].entry
        return 0

    cdef object value(self):
        return None if self.error else listed(self.entries, self.count)


cdef list listed(const SnapshotEntry* entries, uint32_t count):
    cdef uint32_t i
    clones = [entries[i].parent[:16] for i in range(count) if entries[i].flags & SNAPSHOT_CLONE]
    return [
        {
            "id": entries[i].id[:16],
            "name": entries[i].name.decode(errors="replace"),
            "sequence": entries[i].sequence,
            "time_ns": <int64_t>entries[i].time_ns + entries[i].clock_ns,
            "log_ns": entries[i].time_ns,
            "clock_ns": entries[i].clock_ns,
            "until_ns": entries[i].until_ns,
            "since_ns": entries[i].since_ns,
            "size_bytes": entries[i].size_bytes,
            "parent": None if is_zero_id(entries[i].parent) else entries[i].parent[:16],
            "hidden": bool(entries[i].flags & SNAPSHOT_HIDDEN),
            "dying": bool(entries[i].flags & SNAPSHOT_DYING),
            "mark": bool(entries[i].flags & SNAPSHOT_MARK),
            "clones": clones.count(entries[i].id[:16]),
            "branch": (entries[i].node_cut >> 32) + 1,
            "mapped_blocks": entries[i].mapped,
            "inherited_blocks": entries[i].inherited,
            "new_blocks": entries[i].own,
            "unsettled": bool(entries[i].flags & SNAPSHOT_UNSETTLED),
        }
        for i in range(count)
        if not entries[i].flags & SNAPSHOT_CLONE
    ]


cdef class SnapshotCommand(VolumeCommand):
    def __cinit__(self, Volume volume, bytes id, *others):
        memcpy(self.id, <const char*>id, 16)


cdef class DeleteSnapshot(SnapshotCommand):
    cdef int64_t run(self) noexcept nogil:
        return delete_snapshot(self.volume, self.id, &self.hidden)

    cdef object value(self):
        return None if self.error else {"hidden": bool(self.hidden)}


cdef class UnmarkSnapshot(SnapshotCommand):
    cdef int64_t run(self) noexcept nogil:
        return unmark_snapshot(self.volume, self.id)


# ---------------------------------------------------------------------- restore and roll forward

cdef class RestoreVolume(SnapshotCommand):
    cdef int64_t run(self) noexcept nogil:
        cdef int result
        if self.volume.closing:
            return -ESHUTDOWN
        if self.volume.restoring or (self.volume.connections and not self.force):
            return -EBUSY
        self.volume.restoring = True
        end_connections(self.volume)
        result = restore_volume(self.volume, self.id, &self.before, &self.mark if self.marked else NULL)
        self.volume.restoring = False
        wake_all(&self.volume.restored, 0)
        return result


cdef class RollVolumeForward(SnapshotCommand):
    def __cinit__(self, Volume volume, bytes id, RollForward roll_forward, uint64_t until_ns):
        self.roll_forward = roll_forward
        self.until_ns = until_ns

    cdef int64_t run(self) noexcept nogil:
        cdef int result = self.roll_forward.run(self.id, self.until_ns)
        if result < 0:
            self.fail(self.roll_forward.reason)
        return result

    cdef object value(self):
        return (
            None
            if self.error
            else {"records": self.roll_forward.records, "bytes": self.roll_forward.blocks * BLOCK_BYTES}
        )


# ---------------------------------------------------------------------- reading and comparing

cdef class CompareSnapshots(VolumeCommand):
    def __cinit__(self, Volume volume, Map older, Map newer, uint32_t room):
        self.older = older
        self.newer = newer
        self.comparing = <Comparing*>calloc(1, sizeof(Comparing) + room * sizeof(Range))
        if self.comparing is NULL:
            raise MemoryError("no memory for the ranges that differ")
        self.comparing.ranges = <Range*>(self.comparing + 1)
        self.comparing.room = room

    def __dealloc__(self):
        release(self.comparing)

    cdef int64_t run(self) noexcept nogil:
        return find_changes(self.volume, self.comparing, self.older, self.newer)

    cdef object value(self):
        return None if self.error else compared(self.comparing)


cdef dict compared(const Comparing* it):
    cdef uint32_t i
    return {
        "ranges": [
            (it.ranges[i].block * BLOCK_BYTES, it.ranges[i].count * BLOCK_BYTES, bool(it.ranges[i].mapped))
            for i in range(it.count)
        ],
        "next": it.next * BLOCK_BYTES if it.next < it.blocks else 0,
        "nodes": it.nodes,
    }


cdef class OpenSnapshot(SnapshotCommand):
    def __cinit__(self, Volume volume, bytes id, Volume reading):
        self.reading = reading

    cdef int64_t run(self) noexcept nogil:
        return open_snapshot(self.volume, self.reading, self.id)

    cdef object value(self):
        return None if self.error else {"size_bytes": self.reading.blocks * BLOCK_BYTES}


cdef class CloseSnapshot(SnapshotCommand):
    def __cinit__(self, Volume volume, bytes id, Volume reading):
        self.reading = reading

    cdef int64_t run(self) noexcept nogil:
        end_connections(self.reading)
        close_snapshot(self.volume, self.reading)
        return 0
