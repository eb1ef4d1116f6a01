# What Python asks of the engine, and what the engine tells.
#
# A Command is made by Python's thread (engine.pyx), posted to a reactor, run there as a task and put to the answers; then the bell is rung, and
# Python's thread takes it and frees it. What happens unasked is a command of the kind NOTICE that nobody has sent. Whatever a command points
# to is kept alive by who asked.

from libc.errno cimport EBUSY, ENOENT, ENOMEM, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from iomesh.engine.volume.checkpoint cimport Outcome
from iomesh.engine.volume.cleaning cimport Cleaned, Cleaner, Row
from iomesh.engine.history.flatten cimport check_detached, copy_inherited, cut_off
from iomesh.engine.history.difference cimport Comparing, find_changes, hold_older, release_older
from iomesh.engine.history.snapshots cimport (
    Making, branch_off, close_snapshot, delete_snapshot, let_parent_go, make_snapshots, open_snapshot, restore_volume, unmark_snapshot,
    walk_dying)
from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.format.layout cimport BLOCK_BYTES, Pointer, SnapshotEntry
from iomesh.engine.map.map cimport Map
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.store.token_bucket cimport TokenBucket
from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.volume.recovery cimport Recovery
from iomesh.engine.history.roll_forward cimport RollForward
from iomesh.engine.store.scrub cimport Scrubbed, Scrubber, Sealed
from iomesh.engine.map.snapshot_table cimport SnapshotRequest
from iomesh.engine.volume.space cimport Space, measure
from iomesh.engine.store.store cimport Store, format_store
from iomesh.engine.base.task cimport start, wait_in, wake_all
from iomesh.engine.volume.volume cimport EVENT_CHECKPOINT, Volume

cdef extern from *:
    r"""
    #include <stdint.h>
    #include <sys/eventfd.h>
    #include <unistd.h>
    #define newest_load(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)
    #define newest_take(place) __atomic_exchange_n(&(place), NULL, __ATOMIC_ACQ_REL)
    #define newest_swap(place, old, new) __atomic_compare_exchange_n(&(place), old, new, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)
    static inline void bell_ring(int fd) { uint64_t one = 1; ssize_t n = write(fd, &one, sizeof one); (void)n; }
    static inline void bell_still(int fd) { uint64_t count; ssize_t n = read(fd, &count, sizeof count); (void)n; }
    """
    Command* newest_load(Command*) noexcept nogil
    Command* newest_take(Command*) noexcept nogil
    bint newest_swap(Command*, Command**, Command*) noexcept nogil
    int eventfd(unsigned count, int flags) noexcept nogil
    int EFD_NONBLOCK, EFD_CLOEXEC
    void bell_ring(int fd) noexcept nogil
    void bell_still(int fd) noexcept nogil

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close" (int fd)


cdef class Answers:
    """What is done and what was noticed, until Python's thread takes it. Any reactor puts. Raises OSError when there is no descriptor for the bell."""

    def __cinit__(self):
        self.bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.bell < 0:
            raise OSError("no eventfd: too many open files; raise the limit (ulimit -n)")

    def __dealloc__(self):
        cdef Command* command = self.newest
        cdef Command* following
        while command is not NULL:
            following = command.next
            free_command(command)
            command = following
        if self.bell >= 0:
            close_descriptor(self.bell)

    cdef void put(self, Command* command) noexcept nogil:
        command.next = newest_load(self.newest)
        while not newest_swap(self.newest, &command.next, command):
            pass
        bell_ring(self.bell)

    cdef Command* take(self) noexcept nogil:
        """All there are, the oldest first."""
        cdef Command* oldest = NULL
        cdef Command* newest
        cdef Command* command
        bell_still(self.bell)
        newest = newest_take(self.newest)
        while newest is not NULL:
            command = newest
            newest = newest.next
            command.next = oldest
            oldest = command
        return oldest


cdef void free_command(Command* command) noexcept nogil:
    release(command.superblock)
    release(command.memory)
    release(command)


# ---------------------------------------------------------------------- on the reactor

cdef void command_arrives(Message* message) noexcept nogil:
    cdef Command* command = <Command*>message.owner
    command.ended.owner = command
    command.ended.done = command_ended
    start(command_body, command, &command.ended)


cdef void command_ended(Operation* operation) noexcept nogil:
    cdef Command* command = <Command*>operation.owner
    if command.kind == SERVE and operation.result == 0:
        return                                           # answered when the connection ends
    if operation.result < 0:
        command.error = <int>-operation.result
    (<Answers>command.answers).put(command)


cdef int64_t command_body(void* argument) noexcept nogil:
    cdef Command* command = <Command*>argument
    if command.kind == FORMAT_STORE:
        return format_on(<Reactor>command.reactor, command)
    if command.kind == OPEN_STORE:
        return open_store_on(<Store>command.subject, command)
    if command.kind == CLOSE_STORE:
        (<Scrubber>command.helper).stop()
        return on_all_reactors((<Store>command.subject).home, command, -1)
    if command.kind == LIST_SEALED:
        return list_sealed_on(<Scrubber>command.helper, command)
    if command.kind == SCRUB_SEGMENT:
        return scrub_on(<Scrubber>command.helper, <TokenBucket>command.list[0], command)
    if command.kind == OPEN_VOLUME:
        return open_volume_on(<Volume>command.subject, <Recovery>command.helper, command)
    if command.kind == CLOSE_VOLUME:
        return close_volume_on(<Volume>command.subject, command)
    if command.kind == CHECKPOINT_VOLUME:
        return (<Volume>command.subject).checkpoints.run()
    if command.kind == POINTER_MOVED:
        (<Volume>command.subject).checkpoints.moved(command.first, <Outcome>command.second)
        return 0
    if command.kind == GROW_VOLUME:
        (<Volume>command.subject).blocks = command.first // BLOCK_BYTES
        (<Volume>command.subject).checkpoints.writer.size_bytes = command.first
        return 0
    if command.kind == ERASE_VOLUME:
        return erase_on(<Reactor>command.reactor, command)
    if command.kind == CLEAN_VOLUME:
        return clean_on(<Cleaner>command.helper, <TokenBucket>command.list[0], command)
    if command.kind == LIST_SEGMENTS:
        return list_segments_on(<Cleaner>command.helper, command)
    if command.kind == COPY_INHERITED:
        return copy_inherited_on(<Volume>command.subject, <TokenBucket>command.list[0], command)
    if command.kind == CHECK_DETACHED:
        return check_detached(<Volume>command.subject, <Map>command.list[0])
    if command.kind == CUT_OFF:
        cut_off(<Volume>command.subject)
        return 0
    if command.kind == MEASURE_SPACE:
        return measure_on(<Volume>command.subject, command)
    if command.kind == EXPECT_SPACE:
        (<Volume>command.subject).log.open_segments.expect_space(command.first * 1000000)
        return 0
    if command.kind == CREATE_SNAPSHOTS:
        return make_snapshots(<Reactor>command.reactor, <Making*>command.memory, <uint32_t>command.first)
    if command.kind == LIST_SNAPSHOTS:
        return list_snapshots_on(<Volume>command.subject, command)
    if command.kind == DELETE_SNAPSHOT:
        return delete_snapshot_on(<Volume>command.subject, command)
    if command.kind == RESTORE_VOLUME:
        return restore_on(<Volume>command.subject, command)
    if command.kind == UNMARK_SNAPSHOT:
        return unmark_snapshot(<Volume>command.subject, command.id)
    if command.kind == RETRACE_VOLUME:
        return retrace_on(<RollForward>command.helper, command)
    if command.kind == DIFF_SNAPSHOTS:
        return find_changes(<Volume>command.subject, <Comparing*>command.memory, <Map>command.list[0], <Map>command.list[1])
    if command.kind == OPEN_SNAPSHOT:
        return open_snapshot(<Volume>command.helper, <Volume>command.subject, command.volume)
    if command.kind == CLOSE_SNAPSHOT:
        return close_snapshot_on(<Volume>command.helper, <Volume>command.subject)
    return serve_on(<Volume>command.helper, <NbdConnection>command.subject, command)


cdef int64_t format_on(Reactor reactor, Command* command) noexcept nogil:
    cdef int device = reactor.io.add_device(command.fd)
    cdef int result
    if device < 0:
        return device
    result = format_store(reactor, device, command.superblock)
    reactor.io.remove_device(device)
    return result


cdef struct DeviceCall:
    void* reactor
    int fd                           # -1: remove
    int device


cdef int64_t device_body(void* argument) noexcept nogil:
    cdef DeviceCall* call = <DeviceCall*>argument
    if call.fd < 0:
        (<Reactor>call.reactor).io.remove_device(call.device)
        return 0
    invariant((<Reactor>call.reactor).io.add_device(call.fd) == call.device, b"every reactor counts devices alike")
    return 0


cdef int on_all_reactors(Reactor caller, Command* command, int fd) noexcept nogil:
    """Every reactor's Io knows a device by the same number."""
    cdef DeviceCall call
    cdef uint64_t i
    cdef int result = 0
    call.fd = fd
    call.device = command.device
    for i in range(command.second):
        call.reactor = command.list[i]
        result = min(result, <int>call_on(<Reactor>call.reactor, caller, device_body, &call))
    return result


cdef int64_t open_store_on(Store store, Command* command) noexcept nogil:
    cdef int result = on_all_reactors(store.home, command, command.fd)
    if result == 0:
        result = store.open(command.volume if command.first else NULL)
        if result < 0:
            snprintf(command.reason, sizeof(command.reason), b"%s", store.reason)
    if result < 0:
        on_all_reactors(store.home, command, -1)
    return result


cdef int64_t open_volume_on(Volume volume, Recovery recovery, Command* command) noexcept nogil:
    cdef timespec began, ended
    cdef int result = 0
    clock_gettime(CLOCK_MONOTONIC, &began)
    volume.checkpoints.attach()
    if command.list[0] is not NULL:
        result = branch_off(volume, <Volume>command.list[0], command.id)
        if result < 0:
            snprintf(recovery.reason, sizeof(recovery.reason), b"the snapshot that it is a clone of is not there, or its volume is being closed")
    if result == 0:
        result = recovery.run()
    clock_gettime(CLOCK_MONOTONIC, &ended)
    if result < 0:
        snprintf(command.reason, sizeof(command.reason), b"%s", recovery.reason)
        volume.close()
        if volume.parent is not NULL:
            let_parent_go(volume)
        return result
    command.results[0] = recovery.replayed_records
    command.results[1] = recovery.replayed_bytes
    command.results[2] = (ended.tv_sec - began.tv_sec) * 1000000000 + ended.tv_nsec - began.tv_nsec
    command.results[3] = volume.log.sequence
    walk_dying(<void*>volume)
    return 0


cdef int64_t clean_on(Cleaner cleaner, TokenBucket bucket, Command* command) noexcept nogil:
    cdef Cleaned told
    cdef int result
    if cleaner.volume.cleaning == 0:
        bucket.start(cleaner.volume.io.now_ns(), command.second, <uint32_t>command.third)
    elif command.second == 0:
        bucket.hurried = True                            # whoever is in haste does not wait for who is not
    result = cleaner.clean(<const uint32_t*>command.memory, <uint32_t>command.first, &bucket.throttle, &told)
    command.results[0], command.results[1], command.results[2], command.results[3] = told.compacted, told.evacuated, told.skipped, told.failed
    command.results[4] = told.freed_blocks
    command.results[5] = -told.error
    command.results[6] = told.postponed
    return result


cdef int64_t list_sealed_on(Scrubber scrubber, Command* command) noexcept nogil:
    cdef uint32_t count = scrubber.list(NULL, 0)
    cdef Sealed* rows = <Sealed*>calloc(count + 1, sizeof(Sealed))
    if rows is NULL:
        return -ENOMEM
    command.memory = rows
    command.results[0] = scrubber.list(rows, count)
    return 0


cdef int64_t scrub_on(Scrubber scrubber, TokenBucket bucket, Command* command) noexcept nogil:
    cdef Scrubbed told
    cdef int result
    if scrubber.busy:
        return -EBUSY                                    # its bucket is in use
    bucket.start(scrubber.store.home.io.now_ns(), command.second, <uint32_t>command.third)
    result = scrubber.scrub(command.volume, <uint32_t>command.first, &bucket.throttle, &told)
    command.results[0], command.results[1], command.results[2] = told.blocks, told.damaged, told.first
    return result


cdef int64_t list_segments_on(Cleaner cleaner, Command* command) noexcept nogil:
    cdef uint32_t count = cleaner.list(NULL, 0)
    cdef Row* rows = <Row*>calloc(count + 1, sizeof(Row))
    if rows is NULL:
        return -ENOMEM
    command.memory = rows
    command.results[0] = cleaner.list(rows, count)
    return 0


cdef int64_t copy_inherited_on(Volume volume, TokenBucket bucket, Command* command) noexcept nogil:
    if volume.copying:
        return -EBUSY                                    # its bucket is in use
    bucket.start(volume.io.now_ns(), command.first, <uint32_t>command.second)
    return copy_inherited(volume, &bucket.throttle)


cdef int64_t measure_on(Volume volume, Command* command) noexcept nogil:
    command.memory = calloc(1, sizeof(Space))
    if command.memory is NULL:
        return -ENOMEM
    measure(volume, <Space*>command.memory)
    return 0


cdef int64_t list_snapshots_on(Volume volume, Command* command) noexcept nogil:
    cdef SnapshotEntry* entries = <SnapshotEntry*>calloc(volume.snapshots.count + 1, sizeof(SnapshotEntry))
    cdef uint32_t i
    if entries is NULL:
        return -ENOMEM
    for i in range(volume.snapshots.count):
        entries[i] = volume.snapshots.all[i].entry
    command.memory = entries
    command.results[0] = volume.snapshots.count
    return 0


cdef int64_t delete_snapshot_on(Volume volume, Command* command) noexcept nogil:
    cdef bint hidden = False
    cdef int result = delete_snapshot(volume, command.id, &hidden)
    command.results[0] = hidden
    return result


cdef int64_t restore_on(Volume volume, Command* command) noexcept nogil:
    cdef int result
    if volume.closing:
        return -ESHUTDOWN
    if volume.restoring or (volume.connections and not command.first):
        return -EBUSY
    volume.restoring = True
    end_connections(volume)
    result = restore_volume(volume, command.id, <SnapshotRequest*>command.memory, <SnapshotRequest*>command.memory + 1 if command.second else NULL)
    volume.restoring = False
    wake_all(&volume.restored, 0)
    return result


cdef int64_t retrace_on(RollForward roll_forward, Command* command) noexcept nogil:
    cdef int result = roll_forward.run(command.id, command.first)
    if result < 0:
        snprintf(command.reason, sizeof(command.reason), b"%s", roll_forward.reason)
    command.results[0], command.results[1] = roll_forward.records, roll_forward.blocks
    return result


cdef int64_t close_snapshot_on(Volume volume, Volume reading) noexcept nogil:
    end_connections(reading)
    close_snapshot(volume, reading)
    return 0


cdef void end_connections(Volume volume) noexcept nogil:
    cdef void* connection = volume.connection_list
    while connection is not NULL:
        (<NbdConnection>connection).stop()
        connection = (<NbdConnection>connection).next_connection
    while volume.connections:
        wait_in(&volume.connections_changed)


cdef int64_t close_volume_on(Volume volume, Command* command) noexcept nogil:
    cdef int result = 0
    end_connections(volume)
    while volume.readings:                               # they are being closed, too
        wait_in(&volume.connections_changed)
    if command.first and not volume.log.error:
        result = volume.checkpoints.run()
    volume.close()
    if volume.parent is not NULL:
        let_parent_go(volume)
    return result


cdef int64_t serve_on(Volume volume, NbdConnection connection, Command* command) noexcept nogil:
    cdef int number
    if volume.closing or volume.restoring or (volume.snapshots is not None and volume.snapshots.unsettled() is not NULL):
        number = -EBUSY
    elif connection.compared is not NULL and not hold_older(<Volume>connection.compared, connection.since, connection.older):
        number = -ENOENT
    else:
        number = volume.io.add_connection(command.fd)
        if number < 0 and connection.compared is not NULL:
            release_older(<Volume>connection.compared, connection.since, connection.older)
    if number < 0:
        close_descriptor(command.fd)
        return number
    connection.connection = number
    connection.ended.owner = command
    connection.ended.done = connection_ended
    connection.next_connection = volume.connection_list
    volume.connection_list = <void*>connection
    volume.connections += 1
    connection.start()
    return 0


cdef void connection_ended(Operation* operation) noexcept nogil:
    cdef Command* command = <Command*>operation.owner
    unlink_connection(<Volume>command.helper, <NbdConnection>command.subject)
    end_comparing(<NbdConnection>command.subject)
    command.ended.result = 0
    (<Answers>command.answers).put(command)


cdef void end_comparing(NbdConnection connection) noexcept nogil:
    if connection.compared is not NULL:
        release_older(<Volume>connection.compared, connection.since, connection.older)


cdef void unlink_connection(Volume volume, NbdConnection connection) noexcept nogil:
    cdef void** place = &volume.connection_list
    while place[0] is not <void*>connection:
        place = &(<NbdConnection>place[0]).next_connection
    place[0] = connection.next_connection
    volume.connections -= 1
    wake_all(&volume.connections_changed, 0)


cdef int64_t erase_on(Reactor reactor, Command* command) noexcept nogil:
    cdef EraseCall call
    cdef uint64_t i
    cdef int64_t result
    call.volume = command.volume
    for i in range(command.first):
        call.store = command.list[i]
        result = call_on((<Store>call.store).home, reactor, erase_body, &call)
        if result < 0:
            return result
        command.results[0] += result
    return 0


cdef struct EraseCall:
    void* store
    uint8_t* volume


cdef int64_t erase_body(void* argument) noexcept nogil:
    cdef EraseCall* call = <EraseCall*>argument
    return (<Store>call.store).erase(call.volume)


# ---------------------------------------------------------------------- unasked

cdef void volume_event(void* volume, int kind, uint64_t first, uint64_t second, uint64_t third) noexcept nogil:
    cdef Command* notice = <Command*>calloc(1, sizeof(Command))
    if notice is NULL:
        return                                           # the counters tell it too
    notice.kind = NOTICE
    notice.error = kind
    notice.first = first
    notice.second = second
    notice.third = third
    memcpy(notice.volume, (<Volume>volume).identity, 16)
    (<Answers>(<Volume>volume).listener).put(notice)


cdef bint checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil:
    cdef Command* notice = <Command*>calloc(1, sizeof(Command))
    if notice is NULL:
        return False
    notice.kind = NOTICE
    notice.error = EVENT_CHECKPOINT
    notice.first = sequence
    notice.second = (<Volume>owner).checkpoints.writer.size_bytes
    notice.results[0], notice.results[1], notice.results[2] = pointer.segment, pointer.block, pointer.crc
    memcpy(notice.volume, (<Volume>owner).identity, 16)
    (<Answers>(<Volume>owner).listener).put(notice)
    return True
