# Writing a checkpoint's tables and its block. See volume/checkpoint_writer.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Checkpoint, Pointer, TableEntry
from iomesh.engine.log.log cimport Log
from iomesh.engine.map.segment_table cimport SegmentTable
from iomesh.engine.map.snapshot_table cimport SnapshotTable

cdef struct Draft:                   # a checkpoint that is being written
    Checkpoint* checkpoint           # its block; all three are one piece of memory
    Pointer* pointers                # to the blocks of the segment table: the content of the index blocks
    TableEntry* table
    Pointer place                    # of the checkpoint's block

cdef struct Description:             # of the volume, for operators and repair; in every checkpoint
    char name[136]                   # UTF-8, ended by zero
    uint32_t segment_bytes
    uint32_t window_seconds
    uint8_t replicas
    uint8_t write_replicas

cdef class CheckpointWriter:         # of one volume
    cdef Log log
    cdef SegmentTable segments
    cdef SnapshotTable snapshots
    cdef Description description
    cdef uint64_t size_bytes         # of the volume, for the next checkpoint
    cdef uint64_t changes            # of size, description or lineage
    cdef uint64_t described          # ... those of them that the last written checkpoint has
    cdef uint8_t lineage_volume[16]  # of a clone: the volume ...
    cdef uint8_t lineage_snapshot[16]    # ... and the snapshot it was cloned from

    # In a task: writes the checkpoint of the map with this root, the state after record `sequence`. 0: it has
    # committed, and `into` points to it; or a negative errno.
    cdef int write(self, uint64_t sequence, Pointer root, Pointer* into) noexcept nogil
    cdef int begin(self, Draft* draft) noexcept nogil
    cdef void list_segments(self, Draft* draft) noexcept nogil
    cdef void describe(self, Checkpoint* checkpoint, uint64_t sequence, Pointer root) noexcept nogil
    cdef void describe_volume(self, Checkpoint* checkpoint) noexcept nogil
    cdef bint is_described(self, const Checkpoint* checkpoint) noexcept nogil        # as the volume is now
    cdef int write_snapshots(self, Checkpoint* checkpoint) noexcept nogil
    cdef int write_segments(self, Draft* draft) noexcept nogil
    cdef int write_block(self, Draft* draft) noexcept nogil
    cdef void keep_segments(self, const Draft* draft) noexcept nogil
    cdef void keep_segment(self, Pointer block, uint64_t sequence) noexcept nogil
    cdef int add_block(self, int kind, uint64_t position, int flags, const void* data, Pointer* into) noexcept nogil
    cdef int wait_committed(self, int result) noexcept nogil
