# The engine as Python sees it: see engine.pyi. The only module of it that the rest of iomesh imports.
#
# Python's thread creates objects and validates arguments. Afterwards only the object's reactor works on it, through a
# Command (commands/). The engine keeps a reference to each object until the reactor no longer uses it.

import atexit
import os
import threading
from collections import namedtuple

import numpy as np

from libc.errno cimport EBUSY, EEXIST, EINVAL, EIO, ENOENT, EROFS, EXDEV
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free as release
from libc.string cimport memcpy

from iomesh.engine.base.atomics cimport load_flag, load_int, load_uint32, load_uint64
from iomesh.engine.volume.cleaning cimport Cleaner
from iomesh.engine.commands.command cimport Command
from iomesh.engine.commands.connections cimport ServeNbd, clients_leave
from iomesh.engine.commands.forwarding cimport (
    AttachForwarded, CloseForwarded, DetachForwarded, FollowOwner, GrowForwarded, ServeVolume
)
from iomesh.engine.commands.notices cimport (
    Notice, Notices, checkpoint_written, device_full_below, device_stalled, fragment_begun, volume_event
)
from iomesh.engine.commands.rebuild cimport DrainMembers, DropCopy, ListCopies, RebuildCopy
from iomesh.engine.commands.repair cimport RefetchSegment, RepairBlocks
from iomesh.engine.commands.peers cimport AttachPeer, DetachPeer, EndServedPeer, EraseCopies, ServePeer, ServeStore
from iomesh.engine.commands.snapshots cimport (
    CloseSnapshot, CompareSnapshots, CreateSnapshots, DeleteSnapshot, ListSnapshots, OpenSnapshot, RestoreVolume,
    RollVolumeForward, UnmarkSnapshot
)
from iomesh.engine.commands.states cimport reactor_state, volume_state
from iomesh.engine.commands.stores cimport (
    CloseStore, EraseVolume, FormatStore, ListSealed, NumberDevice, OpenStore, ScrubSegment, StoreCommand
)
from iomesh.engine.commands.volumes cimport (
    AddMember, AgreeFragment, CheckDetached, CheckpointVolume, CleanVolume, CloseVolume, CopyInherited, CutOff,
    DescribeVolume, ExpectSpace, GrowVolume, ListSegments, MeasureSpace, MovePointer, OpenVolume, ReadLogClock,
    ReconcileCopies, TendMembers, describe
)
from iomesh.engine.volume.checkpoint cimport (
    POINTER_DONE as DONE, POINTER_REFUSED as REFUSED, POINTER_UNKNOWN as UNKNOWN
)
from iomesh.engine.base.counters cimport COUNTERS, HISTOGRAM_BUCKETS as BUCKETS, HISTOGRAMS
from iomesh.engine.history.snapshots cimport walk_dying
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES as BLOCK, SEGMENT_BYTES_MAX as SEGMENT_MAX, SEGMENT_BYTES_MIN as SEGMENT_MIN, SLAB_BYTES_MAX,
    SNAPSHOT_HIDDEN, SNAPSHOT_MARK, SNAPSHOT_UNSETTLED, SNAPSHOTS_MAX as SNAPSHOTS_MOST, VOLUME_BYTES_MAX as VOLUME_MAX
)
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.map cimport Map, MapCache
from iomesh.engine.exports.forwarding.forwarded_volume cimport ForwardedVolume
from iomesh.engine.exports.forwarding.served_volume cimport ServedVolume
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.replicas.local cimport local_members
from iomesh.engine.replicas.member cimport MEMBERS_MAX, REPLICAS_MAX as REPLICAS_MOST, Member
from iomesh.engine.format.peer cimport DEVICE_WORKS
from iomesh.engine.log.repair cimport mend_node
from iomesh.engine.replicas.pull cimport Sources
from iomesh.engine.replicas.remote cimport RemoteMember
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.replicas.served_store cimport ServedStore, ServedStores
from iomesh.engine.replicas.server cimport CREDIT_BYTES, CREDIT_REQUESTS, Server
from iomesh.engine.store.token_bucket cimport TokenBucket
from iomesh.engine.base.pool cimport Pool
from iomesh.engine.base.reactor cimport Reactor
from iomesh.engine.volume.copies cimport Copies
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.store.scrub cimport Scrubber
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.store.leases cimport Leases
from iomesh.engine.store.store cimport Store, plan_store
from iomesh.engine.base.uring cimport DEVICES_MAX, Uring
from iomesh.engine.volume.target cimport Target
from iomesh.engine.volume.volume cimport (
    EVENT_CHECKPOINT, EVENT_CHECKSUM, EVENT_DEVICE, EVENT_FRAGMENT, EVENT_FULL_BELOW, EVENT_NO_SPACE, EVENT_NUMBERS,
    EVENT_REFUSED, EVENT_SPACE_BELOW, EVENT_STALLED, EVENT_TIGHT, Volume
)

# Part of engine.pyi, defined elsewhere:
from iomesh.engine.format.structures import crc32c, make_claim, read_bitmap, read_claim  # no-cython-lint
from iomesh.engine.format.structures import read_checkpoint, read_footer, read_journal_block  # no-cython-lint
from iomesh.engine.format.structures import read_node, read_record, read_snapshots, read_superblock  # no-cython-lint
from iomesh.engine.format.structures import read_table, structures  # no-cython-lint
from iomesh.engine.exports.nbd.connection import transmission_flags  # no-cython-lint
from iomesh.engine.commands.stores import SEALED_ROW  # no-cython-lint
from iomesh.engine.commands.rebuild import COPIES_ROW  # no-cython-lint
from iomesh.engine.commands.volumes import SEGMENT_ROW  # no-cython-lint
from iomesh.engine.base.uring import RingError, why_no_ring

BLOCK_BYTES = BLOCK
SEGMENT_BYTES_MIN = SEGMENT_MIN
SEGMENT_BYTES_MAX = SEGMENT_MAX
VOLUME_BYTES_MAX = <uint64_t>VOLUME_MAX        # as a C enum it would be an int
SEGMENT_NUMBER_MAX = 2**32 - 2
SNAPSHOTS_MAX = SNAPSHOTS_MOST      # of a volume, including the restore points of its restore window
REPLICAS_MAX = <int>REPLICAS_MOST               # of a volume
PEER_CREDIT_REQUESTS, PEER_CREDIT_BYTES = <int>CREDIT_REQUESTS, <int>CREDIT_BYTES
DEVICE_BYTES_MIN = 64 << 20     # two journal halves and their mirrors, and room for a few segments of the smallest size
POINTER_REFUSED, POINTER_DONE, POINTER_UNKNOWN = <int>REFUSED, <int>DONE, <int>UNKNOWN
TIERS = {"nvme": 1, "ssd": 2, "hdd": 3}
HISTOGRAM_BUCKETS = BUCKETS
STORE_EVENTS = {EVENT_STALLED: "stalled", EVENT_FULL_BELOW: "full_below", EVENT_SPACE_BELOW: "space_below"}
SPACE_EVENTS = {EVENT_TIGHT: "tight", EVENT_NO_SPACE: "no_space", EVENT_REFUSED: "refused"}
HISTOGRAM_NAMES = ("read_latency", "write_latency", "flush_latency")
COUNTER_NAMES = (
    "reads", "read_bytes", "writes", "written_bytes", "flushes", "trims", "trimmed_bytes", "zeroes", "zeroed_bytes",
    "read_errors", "write_errors", "checksum_errors", "blocks_repaired", "no_space_errors",
    "records", "record_bytes", "data_blocks", "map_blocks", "table_blocks", "merges",
    "segments_sealed", "segments_removed", "checkpoints", "device_flushes",
    "segments_compacted", "compaction_bytes", "segments_evacuated", "evacuated_bytes")
if len(COUNTER_NAMES) != COUNTERS or len(HISTOGRAM_NAMES) != HISTOGRAMS:
    raise ImportError("engine.pyx and base/counters.pxd name different counters")

Answer = namedtuple("Answer", "ticket error reason value")
Event = namedtuple("Event", "kind volume value")
Pointer = namedtuple("Pointer", "segment block crc")

cdef enum:
    REACTORS_MAX = 64
    SMALL_BUFFERS = 512              # 8 MiB: reads of up to 16 KiB in flight on one reactor
    LARGE_BUFFERS = 24               # 24 MiB
    RECORD_BUFFERS = 24              # 24 MiB
    DIFF_FRAMES = 512                # map node cache of one comparison, 2 MiB
    ENOSPC_TIMEOUT_NS = 500 * 1000 * 1000    # writes without space wait this long for the cleaning policy


class EngineError(Exception):
    """The engine cannot run here; the message says what is missing and what to do."""


cdef class _Runner:
    """A reactor and the objects that only its thread uses."""

    cdef Reactor reactor
    cdef Uring io
    cdef Pool pool
    cdef MapCache cache
    cdef ServedStores known          # the stores that other nodes may use
    cdef Sources sources             # the other nodes, for copies of segments
    cdef dict nodes                  # name of another node -> RemoteNode
    cdef object thread
    cdef int thread_id
    cdef int begun                   # result of Io.begin, on the thread
    cdef object ready                # threading.Event: `begun` is set

    def run(self):
        self.thread_id = threading.get_native_id()
        with nogil:
            self.begun = self.io.begin()
        self.ready.set()
        if self.begun == 0:
            with nogil:
                self.reactor.run()
        self.reactor.end()


cdef class _Open:
    """An open volume and the data that Python may read at any time."""

    cdef Volume volume
    cdef Recovery recovery
    cdef Cleaner cleaner
    cdef TokenBucket bucket          # the cleaner's
    cdef TokenBucket copier          # of the flatten copy
    cdef _Runner runner
    cdef object counters
    cdef object histograms
    cdef list devices                # its log's members: None for one of this node, else the number in the cluster
    cdef bint replicated
    cdef bint ready
    cdef _Open parent                # of a snapshot open for reading: its volume
    cdef _Open stands_on             # of a clone: its parent volume


cdef class _Forwarded:
    """A volume of another node that this node's exports use."""

    cdef ForwardedVolume volume
    cdef object counters
    cdef object histograms
    cdef bint wanted                 # by exports; otherwise it is only the heir of an open volume
    cdef bint closing


cdef class Engine:
    cdef readonly list warnings
    cdef list runners
    cdef void* reactors[REACTORS_MAX]
    cdef int reactor_count
    cdef dict stores                 # number -> Store
    cdef dict scrubs                 # likewise: (Scrubber, its TokenBucket)
    cdef Leases leases
    cdef dict served                 # likewise: ServedStore, of those with a number in the cluster
    cdef dict node_devices           # name of another node -> numbers of its devices in the cluster
    cdef set drained                 # numbers of devices that are drained
    cdef dict serving                # ticket -> ServePeer or ServeVolume
    cdef dict clients                # ticket -> NbdConnection
    cdef dict volumes                # 16 bytes -> _Open
    cdef dict forwarded              # 16 bytes -> _Forwarded
    cdef dict snapshots              # likewise, snapshots open for reading
    cdef dict pending                # ticket -> Command, until it is answered
    cdef Notices notices
    cdef int64_t tickets
    cdef set devices                 # device numbers in use
    cdef uint64_t checkpoint_bytes
    cdef int64_t below_wait_ns
    cdef bint started

    def __init__(
        self,
        *,
        reactors=1,
        mode="adaptive",
        poll_microseconds=50,
        map_cache_bytes=256 << 20,
        checkpoint_bytes=1 << 30,
        iopoll=False,
        register_buffers=True,
        request_timeout_seconds=30.0,
        space_below_wait_seconds=5.0,
    ):
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
        if not 0 <= space_below_wait_seconds <= 3600:
            raise ValueError(f"space_below_wait_seconds is 0 to 3600, not {space_below_wait_seconds}")
        if not 0.1 <= request_timeout_seconds <= 3600:
            raise ValueError(f"request_timeout_seconds is 0.1 to 3600, not {request_timeout_seconds}")
        self.warnings = []
        self.runners = []
        self.stores = {}
        self.scrubs = {}
        self.served = {}
        self.node_devices = {}
        self.drained = set()
        self.serving = {}
        self.clients = {}
        self.volumes = {}
        self.forwarded = {}
        self.snapshots = {}
        self.pending = {}
        self.devices = set()
        self.checkpoint_bytes = checkpoint_bytes
        self.below_wait_ns = <int64_t>(space_below_wait_seconds * 1e9)
        try:
            self.notices = Notices()
        except OSError as error:
            raise EngineError(str(error)) from None
        for number in range(reactors):
            runner = _Runner()
            runner.pool = Pool(SMALL_BUFFERS, LARGE_BUFFERS, RECORD_BUFFERS)
            try:
                runner.io = Uring(
                    <uintptr_t>runner.pool.arena, runner.pool.arena_bytes if register_buffers else 0, iopoll
                )
            except RingError as error:
                raise EngineError(str(error)) from None
            runner.io.request_timeout_ns = <int64_t>(request_timeout_seconds * 1e9)
            runner.pool.attach(runner.io)
            runner.reactor = Reactor(number, runner.io, modes[mode], poll_microseconds * 1000)
            runner.cache = MapCache(map_cache_bytes // reactors // BLOCK, runner.io)
            if self.leases is None:
                self.leases = Leases(runner.io.monotonic_ns())
            runner.known = ServedStores()
            runner.known.leases = self.leases
            runner.sources = Sources()
            runner.nodes = {}
            self.warnings += [warning for warning in runner.io.warnings if warning not in self.warnings]
            self.runners.append(runner)
            self.reactors[number] = <void*>runner.reactor
            self.reactor_count += 1

    def start(self):
        atexit.register(self.stop)                       # keeps a reference while the threads run
        for runner in self.runners:
            (<_Runner>runner).thread = threading.Thread(
                target=runner.run, name=f"iomesh-reactor-{(<_Runner>runner).reactor.number}", daemon=True)
            (<_Runner>runner).ready = threading.Event()
            (<_Runner>runner).reactor.begin()
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
        return self.notices.bell

    # ------------------------------------------------------------------ commands

    cdef int64_t ask(self, Command command) except -1:
        """Run the command on its reactor; returns the ticket."""
        self.prepare(command)
        command.post()
        return command.ticket

    cdef int64_t refuse(self, int error, str reason) except -1:
        """Answer with an error without running a command."""
        cdef Command command = Command()
        self.prepare(command)
        command.refuse(error, reason)
        return command.ticket

    cdef int prepare(self, Command command) except -1:
        self.tickets += 1
        command.prepare(self.tickets, self.notices)
        self.pending[command.ticket] = command
        return 0

    cdef int64_t ask_store(self, StoreCommand command) except -1:
        """Run a command that involves every reactor."""
        command.reactors = self.reactors
        command.reactor_count = self.reactor_count
        return self.ask(command)

    cdef int take_device(self) except -1:
        cdef int number
        for number in range(DEVICES_MAX):
            if number not in self.devices:
                self.devices.add(number)
                return number
        raise ValueError(f"a node has at most {DEVICES_MAX} devices")

    cdef _Runner runner_of(self, int number):
        return self.runners[number % len(self.runners)]

    def format_store(self, int fd, *, bytes cluster, bytes device, uint64_t device_bytes, int tier, str label):
        cdef FormatStore command = FormatStore(self.runner_of(0).reactor, fd)
        encoded = label.encode()
        if len(cluster) != 16 or len(device) != 16:
            raise ValueError("cluster and device are 16 bytes each")
        if tier not in TIERS.values():
            raise ValueError(f"tier is one of {sorted(TIERS)}, not {tier}")
        if len(encoded) > 63:
            raise ValueError(f"a label has at most 63 bytes, not {len(encoded)}")
        if plan_store(&command.superblock, device_bytes) < 0:
            raise ValueError(f"a device has at least {DEVICE_BYTES_MIN} bytes, not {device_bytes}")
        memcpy(command.superblock.cluster, <const char*>cluster, 16)
        memcpy(command.superblock.device, <const char*>device, 16)
        memcpy(command.superblock.label, <const char*>encoded, len(encoded))
        command.superblock.tier = tier
        command.superblock.created_ns = command.reactor.io.unix_ns()
        command.device = self.take_device()
        return self.ask(command)

    def open_store(self, int fd, *, cluster, bint volatile_cache):
        cdef uint64_t device_bytes = os.lseek(fd, 0, os.SEEK_END)
        cdef int device = self.take_device()
        cdef _Runner runner = self.runner_of(len(self.stores))
        cdef OpenStore command = OpenStore(Store(runner.reactor, device, device_bytes, volatile_cache), fd)
        command.store.leases = self.leases
        command.store.listener = <void*>self.notices
        command.store.on_stalled = device_stalled
        command.store.on_full_below = device_full_below
        command.any_cluster = cluster is None
        if cluster is not None:
            memcpy(command.cluster, <const char*>(<bytes>cluster), 16)
        return self.ask_store(command)

    def number_device(self, int store, uint32_t number):
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        if number == 0:
            raise ValueError("numbers of devices begin at 1")
        return self.ask(NumberDevice(self.stores[store], number))

    def close_store(self, int store):
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        if self.volumes:
            return self.refuse(EBUSY, f"store {store} is in use: close the volumes first")
        return self.ask_store(
            CloseStore(self.stores[store], self.scrubs[store][0], self.served.pop(store, None), self.tables())
        )

    cdef list tables(self):
        return [(<_Runner>runner).known for runner in self.runners]

    cdef int serve_store(self, Store store) except -1:
        """Other nodes may use it from now on, if it has a number."""
        cdef ServedStore served
        cdef ServeStore command
        if store.superblock.number == 0 or store.device in self.served:
            return 0
        served = ServedStore(store, self.runner_at(store.home).cache.bitmaps, self.runner_at(store.home).sources)
        self.served[store.device] = served
        command = ServeStore(served, self.tables())
        command.reactors, command.reactor_count = self.reactors, self.reactor_count
        self.ask(command)
        return 0

    cdef _Runner runner_at(self, Reactor reactor):
        return self.runners[reactor.number]

    def sealed(self, int store):
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        return self.ask(ListSealed(self.scrubs[store][0]))

    def scrub(self, int store, bytes volume, uint32_t segment, *, uint64_t bytes_per_second=0, uint32_t share=25):
        cdef ScrubSegment command
        if store not in self.stores:
            return self.refuse(ENOENT, f"no store has the number {store}")
        if len(volume) != 16:
            raise ValueError("a volume is named by 16 bytes")
        command = ScrubSegment(*self.scrubs[store])
        command.bytes_per_second, command.share = bytes_per_second, share
        command.segment = segment
        memcpy(command.volume, <const char*>volume, 16)
        return self.ask(command)

    def store_space(self, int store):
        if store not in self.stores:
            raise KeyError(f"no store has the number {store}")
        cdef Store it = self.stores[store]
        return {
            "slabs": it.slabs.total,
            "free_slabs": load_uint32(it.slabs.free),
            "reserve_slabs": it.reserve,
            "slab_bytes": it.superblock.slab_bytes,
            "replicas": load_uint32(it.replicas),
            "failed": load_int(it.failed),
            "flush_failed": load_int(it.flusher.failed),
            "stalled": load_int(it.stalled),
            "full_below": bool(load_flag(it.full_below)),
        }

    def open_volume(
        self,
        bytes volume,
        *,
        uint64_t size_bytes,
        uint64_t epoch,
        uint64_t segment_bytes,
        checkpoint,
        uint32_t first_segment,
        uint32_t promised,
        clone_of=None,
        bytes name=b"",
        uint32_t window_seconds=0,
        uint32_t replicas=1,
        uint32_t minimum=1,
        fragments=(),
        uint32_t first_fragment=1,
        reactor=None,
    ):
        cdef OpenVolume command
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
        if reactor is not None and not 0 <= reactor < self.reactor_count:
            raise ValueError(f"there are reactors 0 to {self.reactor_count - 1}, and no reactor {reactor}")
        if not 0 < first_segment <= promised + 1 <= SEGMENT_NUMBER_MAX + 1:
            raise ValueError(
                f"segments are numbered from 1 to {SEGMENT_NUMBER_MAX}, not from {first_segment} to {promised}"
            )
        if not 1 <= minimum <= replicas <= REPLICAS_MAX:
            raise ValueError(
                f"a volume has 1 to {REPLICAS_MAX} replicas, of which some must work, not {replicas} and {minimum}"
            )
        if clone_of is not None:
            check_snapshot(clone_of[1], "its name")
            parent = self.opened(clone_of[0])
            if parent is None:
                return self.refuse(ENOENT, "the volume that it is a clone of is not open")
        opened = _Open()
        opened.stands_on = parent
        opened.replicated = replicas > 1
        if parent is not None:
            runner = parent.runner                       # it reads the parent's segments
        else:
            runner = self.runners[self.emptiest() if reactor is None else reactor]
        segments = SegmentTable()
        map = Map(runner.cache, runner.io, segments)
        members = self.members(runner, volume, replicas)
        opened.devices = [
            (<Member>member).device() if (<Member>member).node is not NULL else None for member in members
        ]
        log = Log(
            runner.reactor,
            runner.pool,
            segments,
            members,
            volume,
            epoch,
            segment_bytes // BLOCK,
        )
        opened.runner = runner
        opened.volume = Volume(volume, runner.reactor, runner.pool, log, map, segments, size_bytes // BLOCK)
        give_counters(opened)
        log.counters = log.open_segments.counters = log.flusher.counters = opened.volume.counters
        opened.volume.checkpoints.counters = opened.volume.counters
        opened.volume.checkpoints.interval = self.checkpoint_bytes
        describe(&opened.volume.checkpoints.writer.description, name, <uint32_t>segment_bytes, window_seconds, replicas)
        log.open_segments.below_wait_ns = self.below_wait_ns
        opened.volume.listener = <void*>self.notices
        opened.volume.on_event = volume_event
        opened.volume.checkpoints.on_written = checkpoint_written
        opened.volume.checkpoints.on_dying = walk_dying
        opened.recovery = Recovery(
            opened.volume, checkpoint, Copies(opened.volume, fragments) if replicas > 1 or fragments else None
        )
        if replicas > 1 or fragments:
            log.open_segments.replicas, log.open_segments.minimum = replicas, minimum
            log.open_segments.fragment = first_fragment
            log.open_segments.fragment_asked = log.open_segments.fragment_agreed = first_fragment - 1
            opened.volume.on_fragment = fragment_begun
            opened.volume.map.mender = <void*>log.open_segments
            opened.volume.map.mend = mend_node
        opened.cleaner = Cleaner(opened.volume)
        opened.bucket = self.new_bucket()
        opened.bucket.stopping = &opened.volume.closing
        opened.copier = self.new_bucket()
        opened.copier.stopping = &opened.volume.closing
        log.open_segments.enospc_timeout_ns = ENOSPC_TIMEOUT_NS
        log.open_segments.next_segment = first_segment
        log.open_segments.promise(promised)
        self.volumes[volume] = opened
        if replicas > 1:
            self.give_heir(opened)
        command = OpenVolume(opened.volume, opened.recovery)
        if parent is not None:
            command.parent = parent.volume
            memcpy(command.snapshot, <const char*>(<bytes>clone_of[1]), 16)
        return self.ask(command)

    cdef list members(self, _Runner runner, bytes volume, uint32_t replicas):
        """Of the volume's log: the devices of this node, and if it has replicas those of the others."""
        cdef RemoteMember member
        members = local_members(runner.reactor, list(self.stores.values()), volume)
        for node, devices in sorted(self.node_devices.items()) if replicas > 1 else ():
            for device in devices:
                member = RemoteMember(
                    runner.reactor, len(members), self.remote_node(node, runner.reactor.number), device, volume
                )
                member.leaving = device in self.drained
                members.append(member)
        return members

    cdef int emptiest(self) except -1:
        volumes = self.volumes_by_reactor()
        return volumes.index(min(volumes))

    def volumes_by_reactor(self):
        counts = [0] * self.reactor_count
        for opened in self.volumes.values():
            counts[(<_Open>opened).runner.reactor.number] += 1
        return counts

    def busy_ns(self):
        return [load_uint64((<_Runner>runner).reactor.busy_ns) for runner in self.runners]

    cdef _Open opened(self, bytes volume):
        cdef _Open opened = self.volumes.get(volume)
        return opened if opened is not None and opened.ready else None

    cdef _Open reading(self, bytes id):
        cdef _Open reading = self.snapshots.get(id)
        return reading if reading is not None and reading.ready else None

    cdef int64_t ask_volume(self, type kind, bytes volume, tuple arguments=()) except -1:
        cdef _Open opened = self.opened(volume)
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        return self.ask(kind(opened.volume, *arguments))

    def close_volume(self, bytes volume, *, bint checkpoint):
        cdef _Open opened = self.opened(volume)
        for id, reading in list(self.snapshots.items()):
            if (<_Open>reading).ready and (<_Open>reading).parent is opened and opened is not None:
                self.close_snapshot(id)
        ticket = self.ask_volume(CloseVolume, volume, (checkpoint,))
        if opened is not None:
            opened.ready = False                         # no further command may use it
        return ticket

    def checkpoint(self, bytes volume, *, bint renew=False):
        return self.ask_volume(CheckpointVolume, volume, (renew,))

    def checkpoint_moved(self, bytes volume, uint64_t sequence, int outcome, uint32_t promised):
        cdef _Open opened = self.volumes.get(volume)
        if outcome not in (<int>REFUSED, <int>DONE, <int>UNKNOWN):
            raise ValueError(f"{outcome} is no outcome of an update")
        if opened is not None:
            self.ask(MovePointer(opened.volume, sequence, outcome, promised))

    def fragment_agreed(self, bytes volume, uint32_t number, int outcome):
        cdef _Open opened = self.volumes.get(volume)
        if outcome not in (<int>REFUSED, <int>DONE, <int>UNKNOWN):
            raise ValueError(f"{outcome} is no outcome of an update")
        if opened is not None:
            self.ask(AgreeFragment(opened.volume, number, outcome))

    def tend_members(self, bytes volume):
        cdef _Open opened = self.opened(volume)
        if opened is not None:
            self.ask(TendMembers(opened.volume))

    def reconcile(self, bytes volume, str node):
        cdef _Open opened = self.opened(volume)
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        return self.ask(ReconcileCopies(opened.volume, self.node_devices.get(node, [])))

    def grow_volume(self, bytes volume, uint64_t size_bytes):
        if size_bytes % BLOCK or size_bytes > VOLUME_MAX:
            raise ValueError(f"a volume has at most 64 TiB, in steps of 4096, not {size_bytes}")
        return self.ask_volume(GrowVolume, volume, (size_bytes,))

    def describe_volume(self, bytes volume, *, bytes name, uint32_t window_seconds, uint32_t replicas):
        return self.ask_volume(DescribeVolume, volume, (name, window_seconds, replicas))

    def erase_volume(self, bytes volume):
        if volume in self.volumes:
            return self.refuse(EBUSY, "the volume is open: close it first")
        return self.ask(EraseVolume(self.runner_of(0).reactor, list(self.stores.values()), volume))

    def erase_copies(self, bytes volume, str node, *, uint64_t epoch):
        cdef _Runner runner = self.runner_of(0)
        if volume in self.volumes:
            return self.refuse(EBUSY, "the volume is open: close it first")
        members = [
            RemoteMember(runner.reactor, number, self.remote_node(node, runner.reactor.number), device, volume)
            for number, device in enumerate(self.node_devices.get(node, []))
        ]
        return self.ask(EraseCopies(runner.reactor, members, epoch))

    def serve_nbd(self, bytes volume, int fd, *, bint structured, context_id, bint read_only, since=None):
        cdef _Open opened = self.opened(volume) or self.reading(volume)
        cdef NbdConnection connection
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
        connection.successor = connection.reader.successor = opened.volume.heir
        ticket = self.ask(ServeNbd(opened.volume, connection, fd))
        self.clients[ticket] = connection
        return ticket

    # ------------------------------------------------------------------ volumes of other nodes

    def forward_volume(self, bytes volume, *, uint64_t size_bytes, int reactor):
        cdef _Forwarded forwarded
        if len(volume) != 16:
            raise ValueError("a volume is named by 16 bytes")
        forwarded = self.forwarded.get(volume)
        if forwarded is not None and not forwarded.closing:
            if forwarded.wanted:
                raise ValueError("the volume is forwarded already")
            forwarded.wanted = True
            self.grow_forwarded(volume, size_bytes)
            return
        if not 0 <= reactor < self.reactor_count:
            raise ValueError(f"there are reactors 0 to {self.reactor_count - 1}, and no reactor {reactor}")
        self.new_forwarded(volume, size_bytes, self.runners[reactor]).wanted = True

    cdef int give_heir(self, _Open opened) except -1:
        """What the volume's clients go on with when another node takes it over."""
        cdef bytes name = name_of(opened.volume)
        cdef _Forwarded forwarded = self.forwarded.get(name)
        if forwarded is None or forwarded.closing:
            forwarded = self.new_forwarded(name, opened.volume.blocks * BLOCK, opened.runner)
        if forwarded.volume.reactor is opened.volume.reactor:
            opened.volume.heir = forwarded.volume
        opened.volume.on_lost = clients_leave
        return 0

    cdef int drop_heir(self, Volume volume) except -1:
        """The volume is closed."""
        cdef _Forwarded forwarded = self.forwarded.get(name_of(volume))
        cdef CloseForwarded command
        cdef NbdConnection connection
        for connection in self.clients.values():
            if connection.successor is volume:
                connection.successor = connection.reader.successor = None
        if forwarded is None or forwarded.volume is not volume.heir or forwarded.wanted or forwarded.closing:
            return 0
        forwarded.closing = True
        command = CloseForwarded(forwarded.volume)
        command.silent = True
        self.ask(command)
        return 0

    cdef _Forwarded new_forwarded(self, bytes volume, uint64_t size_bytes, _Runner runner):
        cdef _Forwarded forwarded = _Forwarded()
        cdef uint64_t[::1] counters
        cdef uint64_t[:, ::1] histograms
        forwarded.volume = ForwardedVolume(volume, runner.reactor, runner.pool, size_bytes // BLOCK)
        forwarded.counters = np.zeros(COUNTERS, np.uint64)
        forwarded.histograms = np.zeros((HISTOGRAMS, BUCKETS), np.uint64)
        counters, histograms = forwarded.counters, forwarded.histograms
        forwarded.volume.counters, forwarded.volume.latencies = &counters[0], &histograms[0, 0]
        self.forwarded[volume] = forwarded
        return forwarded

    def serve_forwarded(self, bytes volume, int fd, *, bint structured, context_id, bint read_only):
        cdef _Forwarded forwarded = self.forwarded.get(volume)
        cdef NbdConnection connection
        if forwarded is None or forwarded.closing:
            os.close(fd)
            return self.refuse(ENOENT, "the volume is not forwarded")
        connection = NbdConnection(forwarded.volume, structured=structured, context_id=context_id, read_only=read_only)
        ticket = self.ask(ServeNbd(forwarded.volume, connection, fd))
        self.clients[ticket] = connection
        return ticket

    def attach_forwarded(self, bytes volume, int fd, *, uint32_t requests, uint64_t bytes):
        cdef _Forwarded forwarded = self.forwarded.get(volume)
        if forwarded is None or forwarded.closing:
            os.close(fd)
            return self.refuse(ENOENT, "the volume is not forwarded")
        if requests == 0 or bytes < 1 << 20:
            os.close(fd)
            raise ValueError(f"the owner gives credit for {requests} requests and {bytes} bytes: too few")
        return self.ask(AttachForwarded(forwarded.volume, fd, requests, bytes))

    def detach_forwarded(self, bytes volume):
        if volume in self.forwarded:
            self.ask(DetachForwarded((<_Forwarded>self.forwarded[volume]).volume))

    def grow_forwarded(self, bytes volume, uint64_t size_bytes):
        if volume in self.forwarded:
            self.ask(GrowForwarded((<_Forwarded>self.forwarded[volume]).volume, size_bytes // BLOCK))

    def close_forwarded(self, bytes volume):
        cdef _Forwarded forwarded = self.forwarded.get(volume)
        if forwarded is None or forwarded.closing or not forwarded.wanted:
            return self.refuse(ENOENT, "the volume is not forwarded")
        forwarded.closing = True
        return self.ask(CloseForwarded(forwarded.volume))

    def follow_owner(self, bytes volume, *, bint here, int64_t milliseconds):
        cdef _Open opened = self.opened(volume)
        cdef _Forwarded forwarded = self.forwarded.get(volume)
        cdef NbdConnection connection
        cdef Target former, present
        if opened is None or forwarded is None or forwarded.closing:
            return self.refuse(ENOENT, "the volume is not open, or not forwarded")
        if opened.volume.reactor is not forwarded.volume.reactor:
            return self.refuse(EXDEV, "the volume's clients are on another reactor")
        former, present = (forwarded.volume, opened.volume) if here else (opened.volume, forwarded.volume)
        for connection in self.clients.values():
            if connection.volume is former and connection.successor is not present:
                connection.successor = connection.reader.successor = present
        return self.ask(FollowOwner(former, present, milliseconds))

    cdef int followed(self, FollowOwner command) except -1:
        cdef NbdConnection connection
        for connection in self.clients.values():
            if connection.successor is command.former and (
                command.volume is None or command.volume.heir is not command.former
            ):
                connection.successor = connection.reader.successor = None
        return 0

    def forwarded_state(self, bytes volume):
        cdef _Forwarded forwarded = self.forwarded[volume]
        return {
            "attached": bool(forwarded.volume.node.ready),
            "open": forwarded.volume.open,
            "repeated": forwarded.volume.repeated,
            "reactor": forwarded.volume.reactor.number,
            "connections": load_uint32(forwarded.volume.connections),
        }

    def serve_volume(self, bytes volume, int fd):
        cdef _Open opened = self.opened(volume)
        cdef ServeVolume command
        if opened is None:
            os.close(fd)
            return self.refuse(ENOENT, "the volume is not open")
        command = ServeVolume(
            opened.volume, ServedVolume(opened.volume, Server(opened.runner.reactor, ServedStores())), fd
        )
        ticket = self.ask(command)
        self.serving[ticket] = command
        return ticket

    # ------------------------------------------------------------------ other nodes

    def serve_peer(self, int fd, *, int reactor):
        cdef _Runner runner
        cdef ServePeer command
        if not 0 <= reactor < self.reactor_count:
            os.close(fd)
            raise ValueError(f"there are reactors 0 to {self.reactor_count - 1}, and no reactor {reactor}")
        runner = self.runners[reactor]
        command = ServePeer(Server(runner.reactor, runner.known), fd)
        ticket = self.ask(command)
        self.serving[ticket] = command
        return ticket

    def end_served_peer(self, int64_t ticket):
        command = self.serving.get(ticket)
        if isinstance(command, ServeVolume):
            self.ask(EndServedPeer((<ServeVolume>command).served.server))
        elif command is not None:
            self.ask(EndServedPeer((<ServePeer>command).server))

    def attach_peer(self, str node, int fd, *, int reactor, uint32_t requests, uint64_t bytes):
        if not 0 <= reactor < self.reactor_count:
            os.close(fd)
            raise ValueError(f"there are reactors 0 to {self.reactor_count - 1}, and no reactor {reactor}")
        if requests == 0 or bytes < 1 << 20:
            os.close(fd)
            raise ValueError(f"node {node} gives credit for {requests} requests and {bytes} bytes: too few")
        sources = (<_Runner>self.runners[reactor]).sources
        return self.ask(AttachPeer(self.remote_node(node, reactor), sources, fd, requests, bytes))

    def detach_peer(self, str node, *, int reactor):
        if 0 <= reactor < self.reactor_count and node in (<_Runner>self.runners[reactor]).nodes:
            self.ask(DetachPeer(self.remote_node(node, reactor)))

    def drain_devices(self, devices):
        cdef _Open opened
        self.drained = set(devices)
        for opened in self.volumes.values():
            self.ask(DrainMembers(opened.volume, devices))

    def know_devices(self, str node, devices):
        self.node_devices[node] = list(devices)
        for volume in self.volumes:
            self.add_members(volume, node)

    cdef int add_members(self, bytes volume, str node) except -1:
        """Devices of a node become members of an open volume's log."""
        cdef _Open opened = self.volumes[volume]
        cdef RemoteMember member
        for device in self.node_devices[node] if opened.replicated else ():
            if device in opened.devices or len(opened.devices) == MEMBERS_MAX:
                continue
            member = RemoteMember(
                opened.runner.reactor,
                len(opened.devices),
                self.remote_node(node, opened.runner.reactor.number),
                device,
                volume,
            )
            member.leaving = device in self.drained
            opened.devices.append(device)
            self.ask(AddMember(opened.volume, member))
        return 0

    cdef RemoteNode remote_node(self, str node, int reactor):
        cdef _Runner runner = self.runners[reactor]
        if node not in runner.nodes:
            runner.nodes[node] = RemoteNode(runner.reactor)
        return runner.nodes[node]

    def peers(self):
        cdef RemoteNode remote
        found = []
        for runner in self.runners:
            for node, remote in (<_Runner>runner).nodes.items():
                found.append(
                    {
                        "node": node,
                        "reactor": (<_Runner>runner).reactor.number,
                        "attached": bool(remote.ready),
                        "readies": remote.readies,
                        "calls": remote.peer.calls,
                        "devices": self.node_devices.get(node, []),
                        "free_bytes": free_bytes_of(remote),
                    }
                )
        return found

    # ------------------------------------------------------------------ rebuild

    def copies(self, bytes volume):
        return self.ask_volume(ListCopies, volume)

    def rebuild_copy(self, bytes volume, uint32_t segment, *, uint32_t device, uint32_t source, uint32_t rate):
        return self.ask_volume(RebuildCopy, volume, (segment, device, source, rate))

    def drop_copy(self, bytes volume, uint32_t segment, *, uint32_t device):
        return self.ask_volume(DropCopy, volume, (segment, device))

    def repair_blocks(self, bytes volume, uint32_t segment, blocks):
        return self.ask_volume(RepairBlocks, volume, (segment, blocks))

    def refetch(self, int store, bytes volume, uint32_t segment, *, uint32_t source):
        served = self.served.get(store)
        if served is None:
            return self.refuse(ENOENT, f"no store that other nodes may use has the number {store}")
        return self.ask(RefetchSegment(served, volume, segment, source))

    # ------------------------------------------------------------------ cleaning

    def segments(self, bytes volume):
        cdef _Open opened = self.opened(volume)
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        return self.ask(ListSegments(opened.volume, opened.cleaner))

    def space(self, bytes volume):
        return self.ask_volume(MeasureSpace, volume)

    cdef TokenBucket new_bucket(self):
        cdef TokenBucket bucket = TokenBucket()
        bucket.reactors = self.reactors
        bucket.reactor_count = self.reactor_count
        return bucket

    def hurry_cleaning(self):
        for opened in self.volumes.values():
            (<_Open>opened).bucket.hurry()

    def clean(self, bytes volume, segments, *, uint64_t bytes_per_second=0, uint32_t share=25):
        cdef _Open opened = self.opened(volume)
        cdef CleanVolume command
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = CleanVolume(opened.volume, opened.cleaner, opened.bucket, segments)
        command.bytes_per_second, command.share = bytes_per_second, share
        return self.ask(command)

    def expect_space(self, bytes volume, uint64_t milliseconds):
        return self.ask_volume(ExpectSpace, volume, (milliseconds,))

    # ------------------------------------------------------------------ snapshots

    def create_snapshots(self, snapshots, *, bint mark=False, bint urgent=False):
        cdef CreateSnapshots command
        wanted = sorted(snapshots)
        if not wanted or len({volume for volume, _, _ in wanted}) < len(wanted):
            raise ValueError("snapshots are made of one volume or several, one of each")
        for _, id, name in wanted:
            check_snapshot(id, name)
        together = [self.opened(volume) for volume, _, _ in wanted]
        if None in together:
            return self.refuse(ENOENT, "the volume is not open")
        command = CreateSnapshots([(<_Open>opened).volume for opened in together])
        for i, (_, id, name) in enumerate(wanted):
            name_snapshot_request(&command.makings[i].snapshot_request, id, name)
            command.makings[i].snapshot_request.entry.flags = SNAPSHOT_MARK if mark else 0
            command.makings[i].urgent = urgent
        return self.ask(command)

    def delete_snapshot(self, bytes volume, bytes id):
        return self.ask_snapshot(DeleteSnapshot, volume, id)

    def unmark_snapshot(self, bytes volume, bytes id):
        return self.ask_snapshot(UnmarkSnapshot, volume, id)

    def restore_volume(
        self,
        bytes volume,
        bytes snapshot,
        *,
        bytes before,
        str name,
        bint discard,
        bint force,
        mark=None,
        bint unsettled=False,
    ):
        cdef _Open opened = self.opened(volume)
        cdef RestoreVolume command
        check_snapshot(snapshot, "its name")
        check_snapshot(before, name)
        if mark is not None:
            check_snapshot(mark[0], mark[1])
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        opened.bucket.hurry()                            # cleaning and flattening must end first
        opened.copier.hurry()
        command = RestoreVolume(opened.volume, snapshot)
        name_snapshot_request(&command.before, before, name)
        command.before.entry.flags = SNAPSHOT_HIDDEN if discard else 0
        command.force = force
        command.marked = mark is not None
        if mark is not None:
            name_snapshot_request(&command.mark, mark[0], mark[1])
            command.mark.entry.flags = SNAPSHOT_MARK | (SNAPSHOT_UNSETTLED if unsettled else 0)
            if unsettled:
                memcpy(command.mark.entry.before, <const char*>before, 16)
        return self.ask(command)

    def roll_forward(self, bytes volume, bytes source, bytes mark, *, uint64_t until_ns):
        cdef _Open opened = self.opened(volume)
        cdef _Open followed = self.opened(source)
        check_snapshot(mark, "its name")
        if opened is None or followed is None:
            return self.refuse(ENOENT, "the volume is not open")
        if followed is not opened and followed is not opened.stands_on:
            raise ValueError("a volume follows its own log, or that of the volume that it is a clone of")
        return self.ask(RollVolumeForward(opened.volume, mark, RollForward(opened.volume, followed.volume), until_ns))

    def log_clock(self, bytes volume):
        return self.ask_volume(ReadLogClock, volume)

    def list_snapshots(self, bytes volume):
        return self.ask_volume(ListSnapshots, volume)

    cdef int64_t ask_snapshot(self, type kind, bytes volume, bytes id) except -1:
        check_snapshot(id, "its name")
        return self.ask_volume(kind, volume, (id,))

    def diff_snapshots(self, bytes volume, bytes older, newer, *, uint64_t offset, uint32_t most):
        cdef _Open opened = self.opened(volume)
        cdef CompareSnapshots command
        cdef MapCache cache
        for id in (older,) if newer is None else (older, newer):
            check_snapshot(id, "its name")
        if offset % BLOCK or not 0 < most <= 1 << 20:
            raise ValueError(
                f"a comparison begins at a multiple of 4096 and finds 1 to 2**20 ranges, not at {offset} and {most}"
            )
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        cache = MapCache(DIFF_FRAMES, opened.runner.io)
        command = CompareSnapshots(
            opened.volume,
            Map(cache, opened.runner.io, opened.volume.segments),
            Map(cache, opened.runner.io, opened.volume.segments),
            most,
        )
        command.comparing.block = offset // BLOCK
        memcpy(command.comparing.older, <const char*>older, 16)
        if newer is not None:
            memcpy(command.comparing.newer, <const char*>(<bytes>newer), 16)
        return self.ask(command)

    # ------------------------------------------------------------------ flattening a clone

    def copy_inherited(self, bytes volume, *, uint64_t bytes_per_second=0, uint32_t share=25):
        cdef _Open opened = self.opened(volume)
        cdef CopyInherited command
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        command = CopyInherited(opened.volume, opened.copier)
        command.bytes_per_second, command.share = bytes_per_second, share
        return self.ask(command)

    def check_detached(self, bytes volume):
        cdef _Open opened = self.opened(volume)
        if opened is None:
            return self.refuse(ENOENT, "the volume is not open")
        return self.ask(
            CheckDetached(
                opened.volume, Map(MapCache(DIFF_FRAMES, opened.runner.io), opened.runner.io, opened.volume.segments)
            )
        )

    def cut_off(self, bytes volume):
        return self.ask_volume(CutOff, volume)

    def open_snapshot(self, bytes volume, bytes id):
        cdef _Open opened = self.opened(volume)
        cdef _Open reading
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
        reading.volume.listener = <void*>self.notices
        reading.volume.on_event = volume_event
        give_counters(reading)
        self.snapshots[id] = reading
        return self.ask(OpenSnapshot(opened.volume, id, reading.volume))

    def close_snapshot(self, bytes id):
        cdef _Open reading = self.snapshots.get(id)
        if reading is None or not reading.ready:
            return self.refuse(ENOENT, "the snapshot is not open")
        reading.ready = False
        return self.ask(CloseSnapshot(reading.parent.volume, id, reading.volume))

    # ------------------------------------------------------------------ state and counters

    def volume_state(self, bytes volume):
        cdef _Open opened = self.volumes[volume]
        state = volume_state(opened.volume)
        state["error"] = state["error"] or self.stores_error()
        for which in ("checkpoint", "map_root"):
            state[which] = None if state[which] is None else Pointer(*state[which])
        return state

    cdef int stores_error(self):
        """An errno while no store accepts new data; 0: at least one does."""
        return 0 if any(load_int((<Store>store).failed) == 0 for store in self.stores.values()) else EIO

    def counters(self, bytes volume):
        return (<_Open>self.volumes[volume]).counters

    def histograms(self, bytes volume):
        return (<_Open>self.volumes[volume]).histograms

    def reactor_state(self, int reactor):
        cdef _Runner runner = self.runners[reactor]
        state = reactor_state(runner.reactor, runner.io, runner.cache, runner.pool)
        state["thread_id"] = runner.thread_id
        state["volumes"] = self.volumes_by_reactor()[reactor]
        return state

    # ------------------------------------------------------------------ answers and events

    def collect(self):
        cdef Notice* notice
        cdef Notice* following = self.notices.take()
        cdef Command command
        heard = []
        while following is not NULL:
            notice = following
            following = notice.next
            try:
                if notice.ticket == 0:
                    heard.append(event(notice))
                    continue
                command = self.pending.pop(notice.ticket)
                self.settle(command)
                if not command.silent:
                    heard.append(answer(command))
            finally:
                release(notice)
        return heard

    cdef int settle(self, Command command) except -1:
        """Update the lists of open stores, volumes, snapshots and connections after a command."""
        if isinstance(command, FormatStore):
            self.devices.discard((<FormatStore>command).device)
        elif isinstance(command, OpenStore):
            self.store_opened(command)
        elif isinstance(command, NumberDevice) and not command.error:
            self.serve_store((<NumberDevice>command).store)
        elif isinstance(command, (ServePeer, ServeVolume)):
            self.serving.pop(command.ticket, None)
        elif isinstance(command, CloseStore):
            self.store_closed((<CloseStore>command).store.device)
        elif isinstance(command, OpenVolume):
            self.volume_opened(command)
        elif isinstance(command, CloseVolume):
            self.volumes.pop(name_of((<CloseVolume>command).volume))
            self.drop_heir((<CloseVolume>command).volume)
        elif isinstance(command, CutOff) and not command.error:
            (<_Open>self.volumes[name_of((<CutOff>command).volume)]).stands_on = None
        elif isinstance(command, OpenSnapshot):
            self.snapshot_opened(command)
        elif isinstance(command, CloseSnapshot):
            self.snapshots.pop(name_of((<CloseSnapshot>command).reading))
        elif isinstance(command, ServeNbd):
            self.clients.pop(command.ticket, None)
        elif isinstance(command, FollowOwner):
            self.followed(command)
        elif isinstance(command, CloseForwarded):
            self.forwarded_closed(command)
        return 0

    cdef int store_opened(self, OpenStore command) except -1:
        cdef Store store = command.store
        if command.error:
            self.devices.discard(store.device)
            return 0
        self.stores[store.device] = store
        self.scrubs[store.device] = (Scrubber(store), self.new_bucket())
        self.serve_store(store)
        return 0

    cdef int store_closed(self, int store) except -1:
        self.devices.discard(store)
        self.stores.pop(store)
        self.scrubs.pop(store)
        return 0

    cdef int volume_opened(self, OpenVolume command) except -1:
        cdef _Open opened = self.volumes[name_of(command.volume)]
        opened.recovery = None
        opened.ready = not command.error
        if command.error:
            self.volumes.pop(name_of(command.volume))
            self.drop_heir(command.volume)
        return 0

    cdef int snapshot_opened(self, OpenSnapshot command) except -1:
        cdef _Open reading = self.snapshots[name_of(command.reading)]
        reading.ready = not command.error
        if command.error:
            self.snapshots.pop(name_of(command.reading))
        return 0

    cdef int forwarded_closed(self, CloseForwarded command) except -1:
        cdef bytes name = name_of(command.forwarded)
        cdef _Forwarded forwarded = self.forwarded.get(name)
        cdef _Open opened = self.volumes.get(name)
        if forwarded is None or forwarded.volume is not command.forwarded:
            return 0                                     # another one has taken its place
        forwarded.closing = False
        if command.error:                                # a client has come
            return 0
        forwarded.wanted = False
        if opened is None or opened.volume.heir is not forwarded.volume:
            self.forwarded.pop(name)
        return 0


cdef object answer(Command command):
    reason = command.reason.decode(errors="replace")
    if command.error and not reason:
        reason = os.strerror(command.error)
    return Answer(command.ticket, command.error, reason, command.value())


cdef object event(const Notice* notice):
    volume = notice.volume[:16]
    if notice.event in STORE_EVENTS:
        return Event(STORE_EVENTS[notice.event], None, {"store": notice.store})
    if notice.event == EVENT_CHECKPOINT:
        return Event(
            "checkpoint",
            volume,
            {
                "pointer": Pointer(notice.pointer.segment, notice.pointer.block, notice.pointer.crc),
                "sequence": notice.sequence,
                "size_bytes": notice.size_bytes,
                "next_segment": notice.next_segment,
            },
        )
    if notice.event == EVENT_FRAGMENT:
        return Event(
            "fragment",
            volume,
            {
                "number": notice.fragment,
                "first": notice.sequence,
                "devices": [device for device in notice.devices[:REPLICAS_MAX] if device],
            },
        )
    if notice.event == EVENT_NUMBERS:
        return Event("numbers", volume, {"next_segment": notice.next_segment})
    if notice.event == EVENT_CHECKSUM:
        return Event(
            "checksum",
            volume,
            {"offset_bytes": notice.block * BLOCK, "segment": notice.segment, "block": notice.segment_block},
        )
    if notice.event == EVENT_DEVICE:
        return Event("device", volume, {"store": notice.store, "error": notice.error})
    return Event(SPACE_EVENTS[notice.event], volume, {})


cdef bytes name_of(Target volume):
    return volume.identity[:16]


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


def histogram_bounds():
    """Upper bounds of the buckets, in nanoseconds: bucket 4 * p + k ends where (4 + k + 1) << (p - 2) begins."""
    cdef object one = 1     # a Python int, which does not overflow
    return np.array([min((one * 5 + n % 4) << max(n // 4 - 2, 0), 2**64 - 1) for n in range(BUCKETS)], np.uint64)


cdef dict free_bytes_of(RemoteNode remote):
    """By the numbers of the node's working devices, as of its last heartbeat."""
    cdef uint32_t i
    return {
        remote.states[i].device: remote.states[i].free_bytes
        for i in range(remote.state_count if remote.ready else 0)
        if remote.states[i].state == DEVICE_WORKS
    }
