# What Python asks of the engine and is told by it: see commands.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from iomesh.engine.base.io cimport Operation
from iomesh.engine.format.layout cimport Pointer, Superblock
from iomesh.engine.base.reactor cimport Message

cdef enum:
    LIST_MAX = 64

cdef enum CommandKind:
    FORMAT_STORE, OPEN_STORE, CLOSE_STORE, OPEN_VOLUME, CLOSE_VOLUME, CHECKPOINT_VOLUME, GROW_VOLUME, ERASE_VOLUME, SERVE, NOTICE, POINTER_MOVED,
    CLEAN_VOLUME, LIST_SEGMENTS, EXPECT_SPACE, CREATE_SNAPSHOTS, LIST_SNAPSHOTS, DELETE_SNAPSHOT, OPEN_SNAPSHOT, CLOSE_SNAPSHOT, DIFF_SNAPSHOTS,
    LIST_SEALED, SCRUB_SEGMENT, RESTORE_VOLUME, MEASURE_SPACE, UNMARK_SNAPSHOT, RETRACE_VOLUME, COPY_INHERITED, CHECK_DETACHED, CUT_OFF

cdef struct Command:
    Message message
    Command* next                    # of the answers
    Operation ended
    int kind
    int64_t ticket
    void* answers                    # where it goes when it is done
    void* reactor
    void* subject                    # Store, Volume or NbdConnection
    void* helper                     # Recovery; Cleaner; RollForward; the Volume that a connection or a snapshot is of
    Superblock* superblock
    int fd
    int device
    uint64_t first
    uint64_t second
    uint64_t third
    uint8_t volume[16]
    uint64_t results[8]
    void* list[LIST_MAX]             # Stores; Reactors
    void* memory                     # Makings; numbers of segments; the SnapshotEntries or Rows that are the answer
    uint8_t id[16]                   # of a snapshot
    int error
    char reason[512]


cdef class Answers:
    cdef readonly int bell
    cdef Command* newest

    cdef void put(self, Command* command) noexcept nogil
    cdef Command* take(self) noexcept nogil


cdef void command_arrives(Message* message) noexcept nogil
cdef void volume_event(void* volume, int kind, uint64_t first, uint64_t second, uint64_t third) noexcept nogil
cdef bint checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil
cdef void free_command(Command* command) noexcept nogil
