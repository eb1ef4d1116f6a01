# Commands on volumes: open, close, grow, clean and flatten them, and measure their space.

from libc.errno cimport EBUSY, EHOSTUNREACH, EINVAL, ENOMEM, ESHUTDOWN, ESTALE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import numpy as np

from iomesh.engine.base.log_clock cimport next_log_time
from iomesh.engine.commands.connections cimport end_connections
from iomesh.engine.format.layout cimport BLOCK_BYTES
from iomesh.engine.history.flatten cimport check_detached, copy_inherited, cut_off
from iomesh.engine.history.snapshots cimport branch_off, let_parent_go, walk_dying
from iomesh.engine.map.map cimport Map
from iomesh.engine.base.task cimport wait_in, wake_all
from iomesh.engine.replicas.member cimport Member
from iomesh.engine.store.token_bucket cimport TokenBucket
from iomesh.engine.volume.checkpoint cimport POINTER_DONE, POINTER_REFUSED, Outcome
from iomesh.engine.volume.checkpoint_writer cimport Description
from iomesh.engine.volume.cleaning cimport Cleaner, Row
from iomesh.engine.volume.copies cimport Copies
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.volume.space cimport measure
from iomesh.engine.volume.volume cimport Volume

# volume/cleaning.pxd's Row
SEGMENT_ROW = np.dtype([(name, np.uint32) for name in ("segment", "blocks", "live", "space", "slab", "flags")])


cdef class OpenVolume(VolumeCommand):
    def __cinit__(self, Volume volume, Recovery recovery):
        self.recovery = recovery

    cdef int64_t run(self) noexcept nogil:
        cdef int64_t began_ns = monotonic_ns()
        cdef int result
        self.volume.checkpoints.attach()
        result = self.branch()
        if result == 0:
            result = self.recovery.run()
            if result < 0:
                self.fail(self.recovery.reason)
        self.took_ns = monotonic_ns() - began_ns
        if result < 0:
            close_volume(self.volume)
            return result
        self.sequence = self.volume.log.sequence
        walk_dying(<void*>self.volume)
        return 0

    cdef int branch(self) noexcept nogil:
        cdef int result = 0
        if self.parent is not None:
            result = branch_off(self.volume, self.parent, self.snapshot)
        if result < 0:
            self.fail(b"the snapshot that it is a clone of is not there, or its volume is being closed")
        return result

    cdef object value(self):
        if self.error:
            return None
        return {
            "replayed_records": self.recovery.replayed_records,
            "replayed_bytes": self.recovery.replayed_bytes,
            "seconds": self.took_ns / 1e9,
            "sequence": self.sequence,
            "reactor": self.reactor.number,
        }


cdef class CloseVolume(VolumeCommand):
    def __cinit__(self, Volume volume, bint checkpoint):
        self.checkpoint = checkpoint

    cdef int64_t run(self) noexcept nogil:
        cdef int result = 0
        self.volume.checkpoints.begin_closing()          # requests may wait for a segment number
        end_connections(self.volume)
        while self.volume.readings:                      # open snapshots and clones are closed by others
            wait_in(&self.volume.connections_changed)
        if self.checkpoint and not self.volume.log.error:
            result = self.volume.checkpoints.run()
        close_volume(self.volume)
        return result


cdef void close_volume(Volume volume) noexcept nogil:
    volume.close()
    if volume.parent is not NULL:
        let_parent_go(volume)


cdef class CheckpointVolume(VolumeCommand):
    def __cinit__(self, Volume volume, bint renew):
        self.renew = renew

    cdef int64_t run(self) noexcept nogil:
        self.volume.checkpoints.writer.changes += self.renew
        return self.volume.checkpoints.run()


cdef class MovePointer(VolumeCommand):
    def __cinit__(self, Volume volume, uint64_t sequence, int outcome, uint32_t promised):
        self.sequence = sequence
        self.outcome = <Outcome>outcome
        self.promised = promised
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        self.volume.checkpoints.moved(self.sequence, self.outcome, self.promised)
        if self.sequence == 0 and self.outcome == POINTER_REFUSED:
            self.volume.checkpoints.lost = True
            self.volume.log.break_off(-ESTALE)           # the volume has another owner
        return 0


cdef class AddMember(VolumeCommand):
    def __cinit__(self, Volume volume, Member member):
        self.member = member
        self.silent = True
        volume.log.open_segments.member_list.append(member)      # keeps it alive

    cdef int64_t run(self) noexcept nogil:
        if self.volume.log.flusher.add_member(<void*>self.member):
            self.volume.log.open_segments.add_member(self.member)
        return 0


cdef class AgreeFragment(VolumeCommand):
    def __cinit__(self, Volume volume, uint32_t number, int outcome):
        self.number = number
        self.outcome = <Outcome>outcome
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        if self.outcome == POINTER_DONE:
            self.volume.log.agree_fragment(self.number)
        elif self.outcome == POINTER_REFUSED:
            self.volume.checkpoints.lost = True
            self.volume.log.break_off(-ESTALE)           # the volume has another owner
        elif self.volume.closing:
            self.volume.log.break_off(-EHOSTUNREACH)     # what is not committed then was never acknowledged
        return 0


cdef class TendMembers(VolumeCommand):
    def __cinit__(self, Volume volume):
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        self.volume.log.tend()
        return 0


cdef class ReconcileCopies(VolumeCommand):
    def __cinit__(self, Volume volume, devices):
        self.copies = [Copies(volume, []) for _ in devices[:64]]
        self.each = <void**>calloc(len(self.copies) + 1, sizeof(void*))
        if self.each is NULL:
            raise MemoryError("no memory to compare copies")
        for device, copies in zip(devices, self.copies):
            self.each[self.count] = <void*>copies
            self.wanted[self.count] = device
            self.count += 1

    def __dealloc__(self):
        release(self.each)

    cdef int64_t run(self) noexcept nogil:
        cdef uint32_t k
        cdef int i, result = 0
        if self.volume.closing:
            return -ESHUTDOWN
        self.volume.readings += 1                        # closing waits
        for i in range(self.volume.log.open_segments.local_count, self.volume.log.open_segments.member_count):
            for k in range(self.count):
                if (<Member>self.volume.log.open_segments.members[i]).device() == self.wanted[k] and result == 0:
                    result = (<Copies>self.each[k]).reconcile(<uint16_t>i)
        self.volume.readings -= 1
        wake_all(&self.volume.connections_changed, 0)
        return result

    cdef object value(self):
        return sum(copies.left for copies in self.copies)


cdef class GrowVolume(VolumeCommand):
    def __cinit__(self, Volume volume, uint64_t size_bytes):
        self.size_bytes = size_bytes

    cdef int64_t run(self) noexcept nogil:
        if self.size_bytes < self.volume.blocks * BLOCK_BYTES:
            self.fail(b"a volume cannot shrink")
            return -EINVAL
        self.volume.blocks = self.size_bytes // BLOCK_BYTES
        if self.volume.checkpoints.writer.size_bytes != self.size_bytes:
            self.volume.checkpoints.writer.changes += 1
        self.volume.checkpoints.writer.size_bytes = self.size_bytes
        return 0


cdef class DescribeVolume(VolumeCommand):
    def __cinit__(self, Volume volume, bytes name, uint32_t window_seconds, uint32_t replicas):
        cdef uint32_t segment_bytes = volume.log.open_segments.segment_blocks * BLOCK_BYTES
        describe(&self.description, name, segment_bytes, window_seconds, replicas)

    cdef int64_t run(self) noexcept nogil:
        self.volume.checkpoints.writer.description = self.description
        self.volume.checkpoints.writer.changes += 1
        return 0


cdef int describe(
        Description* description, bytes name, uint32_t segment_bytes, uint32_t window_seconds, uint32_t replicas
) except -1:
    if len(name) >= sizeof(description.name):
        raise ValueError(f"a volume's name has at most {sizeof(description.name) - 1} bytes, not {len(name)}")
    memset(description, 0, sizeof(Description))
    memcpy(description.name, <const char*>name, len(name))
    description.segment_bytes = segment_bytes
    description.window_seconds = window_seconds
    description.replicas = description.write_replicas = <uint8_t>replicas
    return 0


# ---------------------------------------------------------------------- space and cleaning

cdef class MeasureSpace(VolumeCommand):
    cdef int64_t run(self) noexcept nogil:
        measure(self.volume, &self.space)
        return 0

    cdef object value(self):
        return {f"{name}_bytes": blocks * BLOCK_BYTES for name, blocks in self.space.items()}


cdef class ReadLogClock(VolumeCommand):
    cdef int64_t run(self) noexcept nogil:
        next_log_time(&self.volume.log.clock, self.volume.log.io)
        self.clock = self.volume.log.clock
        self.recorded_ns = self.volume.log.recorded_ns
        return 0

    cdef object value(self):
        return {
            "time_ns": self.clock.newest_ns,
            "clock_ns": self.clock.offset_ns,
            "until_ns": self.clock.until_ns,
            "since_ns": self.clock.since_ns,
            "recorded_ns": self.recorded_ns,
        }


cdef class ExpectSpace(VolumeCommand):
    def __cinit__(self, Volume volume, int64_t milliseconds):
        self.milliseconds = milliseconds

    cdef int64_t run(self) noexcept nogil:
        self.volume.log.open_segments.expect_space(self.milliseconds * 1000000)
        return 0


cdef class ListSegments(VolumeCommand):
    def __cinit__(self, Volume volume, Cleaner cleaner):
        self.cleaner = cleaner

    def __dealloc__(self):
        release(self.rows)

    cdef int64_t run(self) noexcept nogil:
        self.count = self.cleaner.list(NULL, 0)
        self.rows = <Row*>calloc(self.count + 1, sizeof(Row))
        if self.rows is NULL:
            return -ENOMEM
        self.count = self.cleaner.list(self.rows, self.count)
        return 0

    cdef object value(self):
        return None if self.error else np.frombuffer((<char*>self.rows)[:self.count * sizeof(Row)], SEGMENT_ROW)


cdef class CleanVolume(VolumeCommand):
    def __cinit__(self, Volume volume, Cleaner cleaner, TokenBucket bucket, segments):
        self.cleaner = cleaner
        self.bucket = bucket
        self.segments = np.array(segments, np.uint32)    # a copy: the caller may change its own
        self.count = <uint32_t>self.segments.shape[0]
        if self.count:
            self.first = &self.segments[0]

    cdef int64_t run(self) noexcept nogil:
        if self.volume.cleaning == 0:
            self.bucket.start(self.volume.io.now_ns(), self.bytes_per_second, self.share)
        elif self.bytes_per_second == 0:
            self.bucket.hurry()                          # a call without a limit lifts that of the running one
        return self.cleaner.clean(self.first, self.count, &self.bucket.throttle, &self.cleaned)

    cdef object value(self):
        return {
            "compacted": self.cleaned.compacted,
            "evacuated": self.cleaned.evacuated,
            "skipped": self.cleaned.skipped,
            "failed": self.cleaned.failed,
            "postponed": self.cleaned.postponed,
            "freed_bytes": self.cleaned.freed_blocks * BLOCK_BYTES,
            "error": -self.cleaned.error,
        }


# ---------------------------------------------------------------------- clones

cdef class CopyInherited(VolumeCommand):
    def __cinit__(self, Volume volume, TokenBucket bucket):
        self.bucket = bucket

    cdef int64_t run(self) noexcept nogil:
        if self.volume.copying:
            return -EBUSY                                # its bucket is in use
        self.bucket.start(self.volume.io.now_ns(), self.bytes_per_second, self.share)
        return copy_inherited(self.volume, &self.bucket.throttle)


cdef class CheckDetached(VolumeCommand):
    def __cinit__(self, Volume volume, Map tree):
        self.tree = tree

    cdef int64_t run(self) noexcept nogil:
        return check_detached(self.volume, self.tree)


cdef class CutOff(VolumeCommand):
    cdef int64_t run(self) noexcept nogil:
        cut_off(self.volume)
        return 0


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
