# The engine as Python sees it: see engine.pyi. The only module of it that the rest of iomesh imports.
#
# Python's thread makes objects (allocation, validation of arguments); everything that happens to them afterwards happens on their reactor, by a
# Command (commands.pyx). Objects are kept alive here until the reactor has let go of them.

import atexit
import os
import threading
from collections import namedtuple

import numpy as np

from libc.errno cimport EBUSY, EEXIST, EINVAL, EIO, ENOENT, EROFS
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy

from iomesh.engine.volume.cleaning cimport Cleaner, Row
from iomesh.engine.commands cimport (
    CHECKPOINT_VOLUME, CHECK_DETACHED, CLEAN_VOLUME, CLOSE_SNAPSHOT, CLOSE_STORE, CLOSE_VOLUME, COPY_INHERITED, CREATE_SNAPSHOTS, CUT_OFF,
    DELETE_SNAPSHOT, DIFF_SNAPSHOTS, ERASE_VOLUME, EXPECT_SPACE, FORMAT_STORE, GROW_VOLUME, LIST_MAX, LIST_SEALED, LIST_SEGMENTS, LIST_SNAPSHOTS,
    MEASURE_SPACE, NOTICE, OPEN_SNAPSHOT, OPEN_STORE, OPEN_VOLUME, POINTER_MOVED, RESTORE_VOLUME, RETRACE_VOLUME, SCRUB_SEGMENT, SERVE,
    UNMARK_SNAPSHOT, Answers, Command, checkpoint_written, command_arrives, free_command, volume_event)
from iomesh.engine.volume.checkpoint cimport POINTER_DONE as DONE, POINTER_REFUSED as REFUSED, POINTER_UNKNOWN as UNKNOWN
from iomesh.engine.base.counters cimport COUNTERS, HISTOGRAM_BUCKETS as BUCKETS, HISTOGRAMS
from iomesh.engine.history.difference cimport Comparing, Range
from iomesh.engine.history.snapshots cimport Making, walk_dying
from iomesh.engine.store.journal cimport REPAIRS_MAX
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES as BLOCK, POINTER_PRESENT, SEGMENT_BYTES_MAX as SEGMENT_MAX, SEGMENT_BYTES_MIN as SEGMENT_MIN, Pointer as PointerStruct,
    SLAB_BYTES_MAX, SNAPSHOT_CLONE, SNAPSHOT_DYING, SNAPSHOT_HIDDEN, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED,
    SNAPSHOTS_MAX as SNAPSHOTS_MOST, SnapshotEntry, Superblock, VOLUME_BYTES_MAX as VOLUME_MAX)
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map, MapCache
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.store.token_bucket cimport TokenBucket
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.store.scrub cimport Scrubber, Sealed
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport Snapshot, SnapshotRequest, is_zero_id
from iomesh.engine.volume.space cimport Space
from iomesh.engine.store.store cimport Store, plan_store
from iomesh.engine.base.uring cimport DEVICES_MAX, Uring
from iomesh.engine.volume.volume cimport EVENT_CHECKPOINT, EVENT_CHECKSUM, EVENT_DEVICE, EVENT_NO_SPACE, EVENT_REFUSED, EVENT_TIGHT, Volume

# Part of engine.pyi, made elsewhere:
from iomesh.engine.format.structures import crc32c, make_claim, read_bitmap, read_claim, read_checkpoint, read_footer, read_journal_block  # no-cython-lint
from iomesh.engine.format.structures import read_node, read_record, read_snapshots, read_superblock, read_table, structures  # no-cython-lint
from iomesh.engine.exports.nbd.connection import transmission_flags  # no-cython-lint
from iomesh.engine.exports.nbd.connection import ENDS
from iomesh.engine.base.uring import RingError, why_no_ring

BLOCK_BYTES = BLOCK
SEGMENT_BYTES_MIN = SEGMENT_MIN
SEGMENT_BYTES_MAX = SEGMENT_MAX
VOLUME_BYTES_MAX = <uint64_t>VOLUME_MAX        # a C enum counts as an int
SNAPSHOTS_MAX = SNAPSHOTS_MOST      # of a volume, with the marks of its restore window
DEVICE_BYTES_MIN = 64 << 20         # two journal halves and their mirrors, and room for a few segments of the smallest size
POINTER_REFUSED, POINTER_DONE, POINTER_UNKNOWN = <int>REFUSED, <int>DONE, <int>UNKNOWN
TIERS = {"nvme": 1, "ssd": 2, "hdd": 3}
HISTOGRAM_BUCKETS = BUCKETS
SPACE_EVENTS = {EVENT_TIGHT: "tight", EVENT_NO_SPACE: "no_space", EVENT_REFUSED: "refused"}
HISTOGRAM_NAMES = ("read_latency", "write_latency", "flush_latency")
COUNTER_NAMES = (
    "reads", "read_bytes", "writes", "written_bytes", "flushes", "trims", "trimmed_bytes", "zeroes", "zeroed_bytes",
    "read_errors", "write_errors", "checksum_errors", "no_space_errors",
    "records", "record_bytes", "data_blocks", "map_blocks", "table_blocks", "merges",
    "segments_sealed", "segments_removed", "checkpoints", "device_flushes",
    "segments_compacted", "compaction_bytes", "segments_evacuated", "evacuated_bytes")
if len(COUNTER_NAMES) != COUNTERS or len(HISTOGRAM_NAMES) != HISTOGRAMS:
    raise ImportError("engine.pyx and base/counters.pxd name different counters")

Answer = namedtuple("Answer", "ticket error reason value")
Event = namedtuple("Event", "kind volume value")
Pointer = namedtuple("Pointer", "segment block crc")
SEGMENT_ROW = np.dtype([(name, np.uint32) for name in ("segment", "blocks", "live", "space", "slab", "flags")])       # volume/cleaning.pxd's Row
SEALED_ROW = np.dtype([("volume", "V16"), ("segment", np.uint32), ("blocks", np.uint32)])      # store/scrub.pxd's Sealed

cdef enum:
    REACTORS_MAX = LIST_MAX
    SMALL_BUFFERS = 512              # 8 MiB: reads up to 16 KiB under way on one reactor
    LARGE_BUFFERS = 24               # 24 MiB
    RECORD_BUFFERS = 24              # 24 MiB
    DIFF_FRAMES = 512                # of a comparison's own cache of nodes, 2 MiB
    PATIENCE_NS = 500 * 1000 * 1000  # of writes without space, until the policy has looked whether there is some to be had


class EngineError(Exception):
    """The engine cannot run here; the message says what is missing and what to do."""


cdef class _Runner:
    """A reactor with what lives beside it on its thread."""

    cdef Reactor reactor
    cdef Uring io
    cdef Pool pool
    cdef MapCache cache
    cdef object thread
    cdef int thread_id
    cdef int begun                   # what Io.begin returned, on the thread
    cdef object ready                # threading.Event: it has

    def run(self):
        self.thread_id = threading.get_native_id()
        with nogil:
            self.begun = self.io.begin()
        self.ready.set()
        if self.begun == 0:
            with nogil:
                self.reactor.run()


cdef class _Open:
    """An open volume and what Python may see of it at any time."""

    cdef Volume volume
    cdef Recovery recovery
    cdef Cleaner cleaner
    cdef TokenBucket bucket          # the cleaner's
    cdef TokenBucket copier          # of what copies what it inherits
    cdef _Runner runner
    cdef object counters
    cdef object histograms
    cdef dict connections            # ticket -> NbdConnection
    cdef bint ready
    cdef _Open parent                # of a snapshot that is open for reading: its volume
    cdef _Open stands_on             # of a clone: the volume that it is one of


cdef class Engine:
    cdef readonly list warnings
    cdef list runners
    cdef void* reactors[REACTORS_MAX]
    cdef int reactor_count
    cdef dict stores                 # number -> Store
    cdef dict scrubs                 # likewise: (Scrubber, its TokenBucket)
    cdef dict volumes                # 16 bytes -> _Open
    cdef dict snapshots              # likewise, of those that are open for reading
    cdef dict pending                # ticket -> what the answer is about, kept alive
    cdef Answers answers
    cdef int64_t tickets
    cdef uint64_t devices            # a bit per device number in use
    cdef uint64_t checkpoint_bytes
    cdef bint started

    def __init__(self, *, reactors=1, mode="adaptive", poll_microseconds=50, map_cache_bytes=256 << 20, checkpoint_bytes=1 << 30,
                 iopoll=False, register_buffers=True):
        cdef _Runner runner
        modes = {"adaptive": 0, "busy": 1, "sleep": 2}
        if mode not in modes:
            raise ValueError(f"mode is adaptive, busy or sleep, not {mode!r}")
        if not 1 <= reactors <= REACTORS_MAX:
            raise ValueError(f"reactors is 1 to {REACTORS_MAX}, not {reactors}")
        if map_cache_bytes // reactors < 1 << 20:
            raise ValueError(f"a map cache of {map_cache_bytes} bytes is too small: each reactor needs 1 MiB")
        if checkpoint_bytes < 1 << 20:
            raise ValueError(f"checkpoint_bytes is at least 1 MiB, not {checkpoint_bytes}")
        self.warnings = []
        self.runners = []
        self.stores = {}
        self.scrubs = {}
        self.volumes = {}
        self.snapshots = {}
        self.pending = {}
        self.checkpoint_bytes = checkpoint_bytes
        try:
            self.answers = Answers()
        except OSError as error:
            raise EngineError(str(error)) from None
        for number in range(reactors):
            runner = _Runner()
            runner.pool = Pool(SMALL_BUFFERS, LARGE_BUFFERS, RECORD_BUFFERS)
            try:
                runner.io = Uring(<uintptr_t>runner.pool.arena, runner.pool.arena_bytes if register_buffers else 0, iopoll)
            except RingError as error:
                raise EngineError(str(error)) from None
            runner.reactor = Reactor(number, runner.io, modes[mode], poll_microseconds * 1000)
            runner.cache = MapCache(map_cache_bytes // reactors // BLOCK, runner.io)
            self.warnings += [warning for warning in runner.io.warnings if warning not in self.warnings]
            self.runners.append(runner)
            self.reactors[number] = <void*>runner.reactor
            self.reactor_count += 1

    def start(self):
        atexit.register(self.stop)                       # nothing of it may be freed while its threads run: until stop() this holds it
        for runner in self.runners:
            (<_Runner>runner).thread = threading.Thread(
                target=runner.run, name=f"iomesh-reactor-{(<_Runner>runner).reactor.number}", daemon=True)
            (<_Runner>runner).ready = threading.Event()
            (<_Runner>runner).thread.start()
        self.started = True
        for runner in self.runners:
            (<_Runner>runner).ready.wait()
            if (<_Runner>runner).begun < 0:
                self.stop()
                raise EngineError(why_no_ring(-(<_Runner>runner).begun))

    def stop(self):
        for runner in self.runners if self.started else ():
            (<_Runner>runner).reactor.stop()
        for runner in self.runners if self.started else ():
            (<_Runner>runner).thread.join()
        self.started = False
        atexit.unregister(self.stop)

    def fileno(self):
        return self.answers.bell

    # ------------------------------------------------------------------ asking

    cdef Command* command(self, int kind, _Runner runner, object subject):
        cdef Command* command = <Command*>calloc(1, sizeof(Command))
        if command is NULL:
            raise MemoryError("no memory for a command")
        self.tickets += 1
        command.kind = kind
        command.ticket = self.tickets
        command.answers = <void*>self.answers
        command.reactor = <void*>runner.reactor
        command.subject = <void*>subject
        command.message.deliver = command_arrives
        command.message.owner = command
        self.pending[self.tickets] = (runner, subject)
        return command

    cdef int64_t post(self, Command* command):
        (<Reactor>command.reactor).post(&command.message)
        return command.ticket

    cdef void name_reactors(self, Command* command):
        """All of them, each of which is to know a device."""
        cdef int number
        command.second = self.reactor_count
        for number in range(self.reactor_count):
            command.list[number] = self.reactors[number]

    cdef int64_t refuse(self, int error, str reason):
        """An answer without asking anybody."""
        cdef Command* command = self.command(NOTICE, self.runners[0], None)
        encoded = reason.encode()[:511]
        command.kind = FORMAT_STORE
        command.error = error
        memcpy(command.reason, <const char*>encoded, len(encoded))
        self.answers.put(command)
        return command.ticket

    cdef int take_device(self) except -1:
        cdef int number
        for number in range(DEVICES_MAX):
            if not self.devices >> number & 1:
                self.devices |= <uint64_t>1 << number
                return number
        raise ValueError(f"a node has at most {DEVICES_MAX} devices")

    cdef _Runner runner_of(self, int number):
        return self.runners[number % len(self.runners)]

    def format_store(self, int fd, *, bytes cluster, bytes device, uint64_t device_bytes, int tier, str label):
        cdef Command* command
        cdef Superblock* superblock
        cdef _Runner runner = self.runner_of(0)
        encoded = label.encode()
        if len(cluster) != 16 or len(device) != 16:
            raise ValueError("cluster and device are 16 bytes each")
        if tier not in TIERS.values():
            raise ValueError(f"tier is one of {sorted(TIERS)}, not {tier}")
        if len(encoded) > 63:
            raise ValueError(f"a label has at most 63 bytes, not {len(encoded)}")
        superblock = <Superblock*>calloc(1, sizeof(Superblock))
        if superblock is NULL:
            raise MemoryError("no memory for a superblock")
        if plan_store(superblock, device_bytes) < 0:
            release(superblock)
            raise ValueError(f"a device has at least {DEVICE_BYTES_MIN} bytes, not {device_bytes}")
        memcpy(superblock.cluster, <const char*>cluster, 16)
        memcpy(superblock.device, <const char*>device, 16)
        memcpy(superblock.label, <const char*>encoded, len(encoded))
        superblock.tier = tier
        superblock.created_ns = runner.io.unix_ns()
        command = self.command(FORMAT_STORE, runner, None)
        command.superblock = superblock
        command.fd = fd
        command.device = self.take_device()
        return self.post(command)

    def open_store(self, int fd, *, cluster, bint volatile_cache):
        cdef uint64_t device_bytes = os.lseek(fd, 0, os.SEEK_END)
        cdef Command* command
        cdef int device = self.take_device()
        cdef _Runner runner = self.runner_of(len(self.stores))
        cdef Store store = Store(runner.reactor, device, device_bytes, volatile_cache)
        command = self.command(OPEN_STORE, runner, store)
        self.name_reactors(command)
        command.fd = fd
        command.device = device
        if cluster is not None:
            command.first = 1
            memcpy(command.volume, <const char*>(<bytes>cluster), 16)
        return self.post(command)

    def close_store(self, int store):
        cdef Command* command
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        if self.volumes:
            return self.refuse(EBUSY, f"store {store} is in use: close the volumes first")
        runner, it = self.stores[store]
        command = self.command(CLOSE_STORE, runner, it)
        self.name_reactors(command)
        command.helper = <void*>self.scrubs[store][0]
        command.device = store
        return self.post(command)

    def sealed(self, int store):
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        cdef Command* command = self.command(LIST_SEALED, self.stores[store][0], self.stores[store][1])
        command.helper = <void*>self.scrubs[store][0]
        return self.post(command)

    def scrub(self, int store, bytes volume, uint32_t segment, *, uint64_t bytes_per_second=0, uint32_t share=25):
        cdef Command* command
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        if len(volume) != 16:
            raise ValueError("a volume is named by 16 bytes")
        command = self.command(SCRUB_SEGMENT, self.stores[store][0], self.stores[store][1])
        command.helper = <void*>self.scrubs[store][0]
        command.list[0] = <void*>self.scrubs[store][1]
        command.first, command.second, command.third = segment, bytes_per_second, share
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def store_space(self, int store):
        if store not in self.stores:
            raise KeyError(f"no store has the number {store}")
        cdef Store it = self.stores[store][1]
        return {"slabs": it.slabs.total, "free_slabs": it.slabs.free, "reserve_slabs": it.reserve, "slab_bytes": it.superblock.slab_bytes,
                "replicas": it.replicas, "failed": it.failed, "flush_failed": it.flusher.failed}

    def open_volume(self, bytes volume, *, uint64_t size_bytes, uint64_t epoch, uint64_t segment_bytes, checkpoint, clone_of=None,
                    bytes name=b"", uint32_t window_seconds=0, uint32_t replicas=1):
        cdef Command* command
        cdef _Open opened
        cdef _Open parent = None
        cdef _Runner runner
        cdef SegmentTable segments
        cdef Map map
        cdef Log log
        if len(volume) != 16:
            raise ValueError("a volume is named by 16 bytes")
        if volume in self.volumes:
            return self.refuse(EEXIST, "the volume is open")
        if not self.stores:
            return self.refuse(ENOENT, "this node has no device: format one and add it")
        if size_bytes % BLOCK or not 0 < size_bytes <= VOLUME_MAX:
            raise ValueError(f"a volume has 4096 bytes to 64 TiB, in steps of 4096, not {size_bytes}")
        if segment_bytes % SLAB_BYTES_MAX or not SEGMENT_MIN <= segment_bytes <= SEGMENT_MAX:
            raise ValueError(f"a segment has 1 MiB to 64 MiB, in steps of 256 KiB, not {segment_bytes}")
        if len(name) > 135:
            raise ValueError(f"a volume's name has at most 135 bytes, not {len(name)}")
        if clone_of is not None:
            check_snapshot(clone_of[1], "its name")
            parent = self.opened(clone_of[0])
            if parent is None:
                return self.refuse(ENOENT, "the volume that it is a clone of is not open")
        opened = _Open()
        opened.stands_on = parent
        runner = self.runner_of(len(self.volumes)) if parent is None else parent.runner    # whose segments it reads
        segments = SegmentTable()
        map = Map(runner.cache, runner.io, segments)
        log = Log(runner.reactor, runner.pool, segments, [it for _, it in self.stores.values()], volume, epoch, segment_bytes // BLOCK)
        opened.runner = runner
        opened.volume = Volume(volume, runner.reactor, runner.pool, log, map, segments, size_bytes // BLOCK)
        give_counters(opened)
        log.counters = log.open_segments.counters = log.flusher.counters = opened.volume.checkpoints.counters = opened.volume.counters
        opened.volume.checkpoints.interval = self.checkpoint_bytes
        memcpy(opened.volume.checkpoints.writer.description.name, <const char*>name, len(name))
        opened.volume.checkpoints.writer.description.segment_bytes = <uint32_t>segment_bytes
        opened.volume.checkpoints.writer.description.window_seconds = window_seconds
        opened.volume.checkpoints.writer.description.replicas = <unsigned char>replicas
        opened.volume.checkpoints.writer.description.write_replicas = <unsigned char>replicas
        opened.volume.listener = <void*>self.answers
        opened.volume.on_event = volume_event
        opened.volume.checkpoints.on_written = checkpoint_written
        opened.volume.checkpoints.on_dying = walk_dying
        opened.connections = {}
        opened.recovery = Recovery(opened.volume, checkpoint)
        opened.cleaner = Cleaner(opened.volume)
        opened.bucket = self.new_bucket()
        opened.bucket.stopping = &opened.volume.closing
        opened.copier = self.new_bucket()
        opened.copier.stopping = &opened.volume.closing
        log.open_segments.idle_timeout_ns = PATIENCE_NS
        self.volumes[volume] = opened
        command = self.command(OPEN_VOLUME, runner, opened.volume)
        command.helper = <void*>opened.recovery
        if parent is not None:
            command.list[0] = <void*>parent.volume
            memcpy(command.id, <const char*>(<bytes>clone_of[1]), 16)
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    cdef _Open opened(self, bytes volume):
        cdef _Open opened = self.volumes.get(volume)
        return opened if opened is not None and opened.ready else None

    cdef _Open reading(self, bytes id):
        cdef _Open reading = self.snapshots.get(id)
        return reading if reading is not None and reading.ready else None

    cdef int64_t ask_volume(self, int kind, bytes volume, uint64_t first):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = self.command(kind, opened.runner, opened.volume)
        command.first = first
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def close_volume(self, bytes volume, *, bint checkpoint):
        cdef _Open opened = self.opened(volume)
        for id, reading in list(self.snapshots.items()):
            if (<_Open>reading).ready and (<_Open>reading).parent is opened and opened is not None:
                self.close_snapshot(id)
        ticket = self.ask_volume(CLOSE_VOLUME, volume, checkpoint)
        if opened is not None:
            opened.ready = False                         # nothing more is asked of it
        return ticket

    def checkpoint(self, bytes volume):
        return self.ask_volume(CHECKPOINT_VOLUME, volume, 0)

    def checkpoint_moved(self, bytes volume, uint64_t sequence, int outcome):
        cdef _Open opened = self.volumes.get(volume)
        cdef Command* command
        if outcome not in (<int>REFUSED, <int>DONE, <int>UNKNOWN):
            raise ValueError(f"{outcome} is no outcome of an update")
        if opened is not None:
            command = self.command(POINTER_MOVED, opened.runner, opened.volume)
            command.first = sequence
            command.second = outcome
            self.post(command)

    def grow_volume(self, bytes volume, uint64_t size_bytes):
        cdef _Open opened = self.opened(volume)
        if size_bytes % BLOCK or size_bytes > VOLUME_MAX:
            raise ValueError(f"a volume has at most 64 TiB, in steps of 4096, not {size_bytes}")
        if opened is not None and size_bytes < opened.volume.blocks * BLOCK:
            return self.refuse(EINVAL, "a volume cannot shrink")
        return self.ask_volume(GROW_VOLUME, volume, size_bytes)

    def erase_volume(self, bytes volume):
        cdef Command* command
        if volume in self.volumes:
            return self.refuse(EBUSY, "the volume is open: close it first")
        stores = [it for _, it in self.stores.values()]
        command = self.command(ERASE_VOLUME, self.runner_of(0), stores)
        command.first = len(stores)
        for i, store in enumerate(stores):
            command.list[i] = <void*>store
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def serve_nbd(self, bytes volume, int fd, *, bint structured, context_id, bint read_only, since=None):
        cdef _Open opened = self.opened(volume) or self.reading(volume)
        cdef NbdConnection connection
        cdef Command* command
        if opened is None:
            os.close(fd)
            return self.refuse(ENOENT, "the volume is not open")
        if opened.parent is not None and not read_only:
            os.close(fd)
            return self.refuse(EROFS, "a snapshot is only read")
        if since is not None and opened.parent is None:
            os.close(fd)
            return self.refuse(EINVAL, "only a snapshot is compared with another one")
        connection = NbdConnection(opened.volume, structured=structured, context_id=context_id, read_only=read_only)
        if since is not None:
            check_snapshot(since, "the older one's name")
            connection.older = Map(opened.runner.cache, opened.runner.io, opened.volume.segments)
            memcpy(connection.since, <const char*>(<bytes>since), 16)
            connection.compared = <void*>opened.parent.volume
        command = self.command(SERVE, opened.runner, connection)
        command.fd = fd
        command.helper = <void*>opened.volume
        opened.connections[command.ticket] = connection
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    # ------------------------------------------------------------------ cleaning

    def segments(self, bytes volume):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = self.command(LIST_SEGMENTS, opened.runner, opened.volume)
        command.helper = <void*>opened.cleaner
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def space(self, bytes volume):
        return self.ask_volume(MEASURE_SPACE, volume, 0)

    cdef TokenBucket new_bucket(self):
        cdef TokenBucket bucket = TokenBucket()
        bucket.reactors = self.reactors
        bucket.reactor_count = self.reactor_count
        return bucket

    def hurry_cleaning(self):
        for opened in self.volumes.values():
            (<_Open>opened).bucket.hurried = True

    def clean(self, bytes volume, segments, *, uint64_t bytes_per_second=0, uint32_t share=25):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        numbers = np.ascontiguousarray(segments, np.uint32)
        cdef const uint32_t[::1] view = numbers
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = self.command(CLEAN_VOLUME, opened.runner, opened.volume)
        command.helper = <void*>opened.cleaner
        command.first = len(numbers)
        command.second, command.third = bytes_per_second, share
        command.list[0] = <void*>opened.bucket
        command.memory = calloc(len(numbers) + 1, sizeof(uint32_t))
        if command.memory is NULL:
            raise MemoryError("no memory for a list of segments")
        if len(numbers):
            memcpy(command.memory, &view[0], len(numbers) * sizeof(uint32_t))
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def expect_space(self, bytes volume, uint64_t milliseconds):
        return self.ask_volume(EXPECT_SPACE, volume, milliseconds)

    # ------------------------------------------------------------------ snapshots

    def create_snapshots(self, snapshots, *, bint mark=False, bint urgent=False):
        cdef Command* command
        cdef Making* makings
        cdef _Open opened
        wanted = sorted(snapshots)
        if not wanted or len({volume for volume, _, _ in wanted}) < len(wanted):
            raise ValueError("snapshots are made of one volume or several, one of each")
        for _, id, name in wanted:
            check_snapshot(id, name)
        together = [self.opened(volume) for volume, _, _ in wanted]
        if None in together:
            return self.refuse(ENOENT, "the volume is not open")
        opened = together[0]
        command = self.command(CREATE_SNAPSHOTS, opened.runner, together)
        command.memory = makings = <Making*>calloc(len(wanted), sizeof(Making))
        command.first = len(wanted)
        if makings is NULL:
            raise MemoryError("no memory for the making of snapshots")
        for i, (_, id, name) in enumerate(wanted):
            opened = together[i]
            makings[i].volume = <void*>opened.volume
            name_snapshot_request(&makings[i].snapshot_request, id, name)
            makings[i].snapshot_request.entry.flags = SNAPSHOT_MARK if mark else 0
            makings[i].urgent = urgent
        return self.post(command)

    def delete_snapshot(self, bytes volume, bytes id):
        return self.ask_snapshot(DELETE_SNAPSHOT, volume, id)

    def unmark_snapshot(self, bytes volume, bytes id):
        return self.ask_snapshot(UNMARK_SNAPSHOT, volume, id)

    def restore_volume(self, bytes volume, bytes snapshot, *, bytes before, str name, bint discard, bint force, mark=None, bint unsettled=False):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        cdef SnapshotRequest* snapshot_request
        check_snapshot(snapshot, "its name")
        check_snapshot(before, name)
        if mark is not None:
            check_snapshot(mark[0], mark[1])
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        opened.bucket.hurried = opened.copier.hurried = True     # who cleans it, or copies what it inherits, has to end first
        command = self.command(RESTORE_VOLUME, opened.runner, opened.volume)
        command.memory = snapshot_request = <SnapshotRequest*>calloc(2, sizeof(SnapshotRequest))
        if snapshot_request is NULL:
            raise MemoryError("no memory for a snapshot")
        name_snapshot_request(snapshot_request, before, name)
        snapshot_request.entry.flags = SNAPSHOT_HIDDEN if discard else 0
        command.first = force
        command.second = mark is not None
        if mark is not None:
            name_snapshot_request(snapshot_request + 1, mark[0], mark[1])
            snapshot_request[1].entry.flags = SNAPSHOT_MARK | (SNAPSHOT_UNSETTLED if unsettled else 0)
            if unsettled:
                memcpy(snapshot_request[1].entry.before, <const char*>before, 16)
        memcpy(command.volume, <const char*>volume, 16)
        memcpy(command.id, <const char*>snapshot, 16)
        return self.post(command)

    def roll_forward(self, bytes volume, bytes source, bytes mark, *, uint64_t until_ns):
        cdef _Open opened = self.opened(volume)
        cdef _Open followed = self.opened(source)
        cdef RollForward roll_forward
        cdef Command* command
        check_snapshot(mark, "its name")
        if opened is None or followed is None:
            return self.refuse(ENOENT, "the volume is not open")
        if followed is not opened and followed is not opened.stands_on:
            raise ValueError("a volume follows its own log, or that of the volume that it is a clone of")
        roll_forward = RollForward(opened.volume, followed.volume)
        command = self.command(RETRACE_VOLUME, opened.runner, (opened.volume, roll_forward))
        command.helper = <void*>roll_forward
        command.first = until_ns
        memcpy(command.volume, <const char*>volume, 16)
        memcpy(command.id, <const char*>mark, 16)
        return self.post(command)

    def list_snapshots(self, bytes volume):
        return self.ask_volume(LIST_SNAPSHOTS, volume, 0)

    cdef int64_t ask_snapshot(self, int kind, bytes volume, bytes id):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        check_snapshot(id, "its name")
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = self.command(kind, opened.runner, opened.volume)
        memcpy(command.volume, <const char*>volume, 16)
        memcpy(command.id, <const char*>id, 16)
        return self.post(command)

    def diff_snapshots(self, bytes volume, bytes older, newer, *, uint64_t offset, uint32_t most):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        cdef Comparing* comparing
        cdef MapCache cache
        cdef Map one, other
        for id in (older,) if newer is None else (older, newer):
            check_snapshot(id, "its name")
        if offset % BLOCK or not 0 < most <= 1 << 20:
            raise ValueError(f"a comparison begins at a multiple of 4096 and finds 1 to 2**20 ranges, not at {offset} and {most}")
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        cache = MapCache(DIFF_FRAMES, opened.runner.io)
        one, other = Map(cache, opened.runner.io, opened.volume.segments), Map(cache, opened.runner.io, opened.volume.segments)
        command = self.command(DIFF_SNAPSHOTS, opened.runner, (opened.volume, one, other))
        command.memory = comparing = <Comparing*>calloc(1, sizeof(Comparing) + most * sizeof(Range))
        if comparing is NULL:
            raise MemoryError("no memory for the ranges that differ")
        comparing.ranges = <Range*>(comparing + 1)
        comparing.room = most
        comparing.block = offset // BLOCK
        memcpy(comparing.older, <const char*>older, 16)
        if newer is not None:
            memcpy(comparing.newer, <const char*>(<bytes>newer), 16)
        command.subject = <void*>opened.volume
        command.list[0], command.list[1] = <void*>one, <void*>other
        return self.post(command)

    # ------------------------------------------------------------------ detaching

    def copy_inherited(self, bytes volume, *, uint64_t bytes_per_second=0, uint32_t share=25):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = self.command(COPY_INHERITED, opened.runner, opened.volume)
        command.first, command.second = bytes_per_second, share
        command.list[0] = <void*>opened.copier
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def check_detached(self, bytes volume):
        cdef _Open opened = self.opened(volume)
        cdef Command* command
        cdef Map tree
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        tree = Map(MapCache(DIFF_FRAMES, opened.runner.io), opened.runner.io, opened.volume.segments)
        command = self.command(CHECK_DETACHED, opened.runner, (opened.volume, tree))
        command.subject = <void*>opened.volume
        command.list[0] = <void*>tree
        memcpy(command.volume, <const char*>volume, 16)
        return self.post(command)

    def cut_off(self, bytes volume):
        return self.ask_volume(CUT_OFF, volume, 0)

    def open_snapshot(self, bytes volume, bytes id):
        cdef _Open opened = self.opened(volume)
        cdef _Open reading
        cdef Command* command
        cdef Map map
        cdef _Runner runner
        check_snapshot(id, "its name")
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        if id in self.snapshots or id in self.volumes:
            return self.refuse(EEXIST, "the snapshot is open")
        runner = opened.runner
        map = Map(runner.cache, runner.io, opened.volume.segments)
        reading = _Open()
        reading.runner = runner
        reading.parent = opened
        reading.volume = Volume(id, runner.reactor, runner.pool, None, map, opened.volume.segments, 1)
        reading.volume.listener = <void*>self.answers
        reading.volume.on_event = volume_event
        reading.connections = {}
        give_counters(reading)
        self.snapshots[id] = reading
        command = self.command(OPEN_SNAPSHOT, runner, reading.volume)
        command.helper = <void*>opened.volume
        memcpy(command.volume, <const char*>id, 16)
        return self.post(command)

    def close_snapshot(self, bytes id):
        cdef _Open reading = self.snapshots.get(id)
        cdef Command* command
        if reading is None or not reading.ready:
            return self.refuse(ENOENT, "the snapshot is not open")
        reading.ready = False
        command = self.command(CLOSE_SNAPSHOT, reading.runner, reading.volume)
        command.helper = <void*>reading.parent.volume
        memcpy(command.volume, <const char*>id, 16)
        return self.post(command)

    # ------------------------------------------------------------------ looking

    def volume_state(self, bytes volume):
        cdef _Open opened = self.volumes[volume]
        cdef Volume it = opened.volume
        return {
            "size_bytes": it.blocks * BLOCK, "sequence": it.log.sequence, "committed": it.log.committed, "stable": it.log.flusher.stable,
            "segments": it.segments.count, "live_blocks": it.segments.live, "mapped_blocks": it.segments.mapped,
            "exclusive_blocks": min(it.segments.exclusive, it.segments.mapped - it.segments.inherited), "inherited_blocks": it.segments.inherited,
            "connections": it.connections,
            "log_bytes": it.log.bytes + it.log.open_segments.footer_bytes, "log_bytes_since_checkpoint": it.log.bytes - it.log.bytes_at_checkpoint,
            "segment_bytes": it.log.open_segments.segment_blocks * BLOCK, "epoch": it.log.epoch, "reactor": opened.runner.reactor.number,
            "checkpoint_sequence": it.checkpoints.sequence, "checkpoint": to_pointer(it.checkpoints.pointer),
            "map_root": to_pointer(it.map.root), "map_load_errors": it.map.load_errors, "error": -it.log.error or self.stores_error(),
            "snapshots": it.snapshots.count, "unsettled": unsettled_before(it),
            "head_parent": None if is_zero_id(it.snapshots.head_parent) else it.snapshots.head_parent[:16], "stalled_ns": it.checkpoints.stalled_ns,
            "walked_nodes": it.walk.nodes, "walk_disagreements": it.walk.disagreements, "walk_unreadable": it.walk.unreadable,
            "no_space": bool(it.log.open_segments.no_space), "space_is_coming": bool(it.log.open_segments.space_is_coming()),
            "checkpointing": bool(it.checkpoints.running), "unanswered": bool(it.checkpoints.unanswered),
            "volatile_cache": bool(it.volatile_cache)}

    cdef int stores_error(self):
        """An errno while no store takes anything new; 0: one does."""
        return 0 if any(not store.failed for _, store in self.stores.values()) else EIO

    def counters(self, bytes volume):
        return (<_Open>self.volumes[volume]).counters

    def histograms(self, bytes volume):
        return (<_Open>self.volumes[volume]).histograms

    def reactor_state(self, int reactor):
        cdef _Runner runner = self.runners[reactor]
        return {
            "turns": runner.reactor.turns, "sleeps": runner.reactor.sleeps, "busy_ns": runner.reactor.busy_ns, "thread_id": runner.thread_id,
            "system_calls": runner.io.enters, "map_frames": runner.cache.frames, "map_used": runner.cache.used, "map_dirty": runner.cache.dirty,
            "map_hits": runner.cache.hits, "map_misses": runner.cache.misses, "buffers_registered": bool(runner.io.buffers_registered),
            "free_small_buffers": runner.pool.free[0], "free_large_buffers": runner.pool.free[1], "free_record_buffers": runner.pool.free[2]}

    # ------------------------------------------------------------------ hearing

    def collect(self):
        cdef Command* command
        cdef Command* following = self.answers.take()
        heard = []
        while following is not NULL:
            command = following
            following = command.next
            try:
                if command.kind == NOTICE:
                    heard.append(self.event(command))
                elif command.kind == POINTER_MOVED:
                    self.pending.pop(command.ticket)
                else:
                    heard.append(self.answer(command))
            finally:
                free_command(command)
        return heard

    cdef object event(self, Command* command):
        volume = command.volume[:16]
        if command.error == EVENT_CHECKPOINT:
            return Event("checkpoint", volume, {
                "pointer": Pointer(command.results[0], command.results[1], command.results[2]), "sequence": command.first,
                "size_bytes": command.second})
        if command.error == EVENT_CHECKSUM:
            return Event("checksum", volume, {"offset_bytes": command.first * BLOCK, "segment": command.second, "block": command.third})
        if command.error == EVENT_DEVICE:
            return Event("device", volume, {"store": command.first, "error": command.second})
        return Event(SPACE_EVENTS[command.error], volume, {})

    cdef object answer(self, Command* command):
        cdef Store store
        cdef NbdConnection connection
        cdef _Open opened
        subject = self.pending.pop(command.ticket)[1]
        error, reason, value = command.error, command.reason.decode(errors="replace"), None
        volume = command.volume[:16]
        if error and not reason:
            reason = os.strerror(error)
        if subject is None:
            self.devices &= ~(<uint64_t>(1 if command.fd else 0) << command.device)
        elif command.kind == OPEN_STORE:
            store = subject
            if error:
                self.devices &= ~(<uint64_t>1 << command.device)
            else:
                self.stores[command.device] = (self.runner_of(store.home.number), store)
                self.scrubs[command.device] = (Scrubber(store), self.new_bucket())
                value = {"store": command.device, "cluster": store.superblock.cluster[:16], "device": store.superblock.device[:16],
                         "tier": store.superblock.tier, "label": store.superblock.label.decode(errors="replace"),
                         "device_bytes": store.superblock.device_bytes, "created_ns": store.superblock.created_ns,
                         "repaired": repaired(store)}
        elif command.kind == CLOSE_STORE:
            self.devices &= ~(<uint64_t>1 << command.device)
            self.stores.pop(command.device)
            self.scrubs.pop(command.device)
        elif command.kind == OPEN_VOLUME:
            opened = self.volumes[volume]
            opened.recovery = None
            opened.ready = not error
            if error:
                self.volumes.pop(volume)
            else:
                value = {"replayed_records": command.results[0], "replayed_bytes": command.results[1], "seconds": command.results[2] / 1e9,
                         "sequence": command.results[3], "reactor": opened.runner.reactor.number}
        elif command.kind == CLOSE_VOLUME:
            self.volumes.pop(volume)
        elif command.kind == CUT_OFF and not error:
            opened = self.volumes[volume]
            opened.stands_on = None
        elif command.kind == ERASE_VOLUME:
            value = {"segments": command.results[0]}
        elif command.kind == SERVE:
            connection = subject
            value = {"requests": connection.requests, "end": ENDS[connection.end]}
            opened = self.volumes.get(volume) or self.snapshots.get(volume)
            if opened is not None:
                opened.connections.pop(command.ticket, None)
        elif command.kind == CLEAN_VOLUME:
            value = {"compacted": command.results[0], "evacuated": command.results[1], "skipped": command.results[2], "failed": command.results[3],
                     "postponed": command.results[6], "freed_bytes": command.results[4] * BLOCK, "error": command.results[5]}
        elif command.kind == LIST_SEALED and not error:
            value = np.frombuffer((<char*>command.memory)[:command.results[0] * sizeof(Sealed)], SEALED_ROW)
        elif command.kind == SCRUB_SEGMENT and not error:
            value = {"blocks": command.results[0], "damaged": command.results[1], "first_damaged": command.results[2]}
        elif command.kind == LIST_SEGMENTS and not error:
            value = np.frombuffer((<char*>command.memory)[:command.results[0] * sizeof(Row)], SEGMENT_ROW)
        elif command.kind == MEASURE_SPACE and not error:
            value = {f"{name}_bytes": blocks * BLOCK for name, blocks in (<Space*>command.memory)[0].items()}
        elif command.kind == CREATE_SNAPSHOTS and not error:
            value = {"snapshots": [made(&(<Making*>command.memory)[i]) for i in range(command.first)]}
        elif command.kind == RETRACE_VOLUME and not error:
            value = {"records": command.results[0], "bytes": command.results[1] * BLOCK}
        elif command.kind == LIST_SNAPSHOTS and not error:
            value = listed(<SnapshotEntry*>command.memory, command.results[0])
        elif command.kind == DELETE_SNAPSHOT and not error:
            value = {"hidden": bool(command.results[0])}
        elif command.kind == DIFF_SNAPSHOTS and not error:
            value = compared(<Comparing*>command.memory)
        elif command.kind == OPEN_SNAPSHOT:
            opened = self.snapshots[volume]
            opened.ready = not error
            if error:
                self.snapshots.pop(volume)
            else:
                value = {"size_bytes": opened.volume.blocks * BLOCK}
        elif command.kind == CLOSE_SNAPSHOT:
            self.snapshots.pop(volume)
        return Answer(command.ticket, error, reason, value)


cdef void give_counters(_Open opened):
    cdef uint64_t[::1] counters
    cdef uint64_t[:, ::1] histograms
    opened.counters = np.zeros(COUNTERS, np.uint64)
    opened.histograms = np.zeros((HISTOGRAMS, BUCKETS), np.uint64)
    counters, histograms = opened.counters, opened.histograms
    opened.volume.counters = opened.volume.reader.counters = &counters[0]
    opened.volume.latencies = &histograms[0, 0]


cdef object check_snapshot(id, str name):
    if not isinstance(id, bytes) or len(id) != 16 or id == bytes(16):
        raise ValueError("a snapshot is named by 16 bytes that are not all zero")
    if not 0 < len(name.encode()) <= 63 or "\0" in name:
        raise ValueError(f"a snapshot's name has 1 to 63 bytes, none of them zero, not {name!r}")


cdef object name_snapshot_request(SnapshotRequest* snapshot_request, bytes id, str name):
    encoded = name.encode()
    memcpy(snapshot_request.entry.id, <const char*>id, 16)
    memcpy(snapshot_request.entry.name, <const char*>(<bytes>encoded), len(encoded))


cdef object unsettled_before(Volume it):
    cdef Snapshot* mark = it.snapshots.unsettled()
    return None if mark is NULL else mark.entry.before[:16]


cdef dict made(const Making* it):
    return {"volume": (<Volume>it.volume).identity[:16], "id": it.snapshot_request.entry.id[:16], "sequence": it.snapshot_request.entry.sequence,
            "time_ns": it.snapshot_request.entry.time_ns}


cdef list listed(const SnapshotEntry* entries, uint64_t count):
    cdef uint64_t i
    clones = [entries[i].parent[:16] for i in range(count) if entries[i].flags & SNAPSHOT_CLONE]
    return [{
        "id": entries[i].id[:16], "name": entries[i].name.decode(errors="replace"), "sequence": entries[i].sequence, "time_ns": entries[i].time_ns,
        "size_bytes": entries[i].size_bytes, "parent": None if is_zero_id(entries[i].parent) else entries[i].parent[:16],
        "hidden": bool(entries[i].flags & SNAPSHOT_HIDDEN), "dying": bool(entries[i].flags & SNAPSHOT_DYING),
        "mark": bool(entries[i].flags & SNAPSHOT_MARK), "clones": clones.count(entries[i].id[:16]),
        "mapped_blocks": entries[i].mapped, "inherited_blocks": entries[i].inherited, "new_blocks": entries[i].own,
        "unsettled": bool(entries[i].flags & SNAPSHOT_UNSETTLED),
    } for i in range(count) if not entries[i].flags & SNAPSHOT_CLONE]


cdef dict compared(const Comparing* it):
    cdef uint32_t i
    return {"ranges": [(it.ranges[i].block * BLOCK, it.ranges[i].count * BLOCK, bool(it.ranges[i].mapped)) for i in range(it.count)],
            "next": it.next * BLOCK if it.next < it.blocks else 0, "nodes": it.nodes}


def histogram_bounds():
    """Upper bounds of the buckets, in nanoseconds: bucket 4 * p + k ends where (4 + k + 1) << (p - 2) begins."""
    cdef object one = 1     # Python's, which does not overflow
    return np.array([min((one * 5 + n % 4) << max(n // 4 - 2, 0), 2**64 - 1) for n in range(BUCKETS)], np.uint64)


cdef object to_pointer(PointerStruct pointer):
    return Pointer(pointer.segment, pointer.block, pointer.crc) if pointer.flags & POINTER_PRESENT else None


cdef list repaired(Store store):
    return [store.repairs.lines[i].decode(errors="replace") for i in range(min(store.repairs.count, <uint32_t>REPAIRS_MAX))]
