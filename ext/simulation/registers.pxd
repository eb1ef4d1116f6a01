# The history of a volume's blocks as the clients of all its owners see it. See simulation/registers.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef enum:
    MODEL_BLOCKS_MAX = 256
    WRITES_MAX = 1 << 15             # in one run
    VALUES_MAX = 1 << 17             # of blocks, at once
    EPOCHS_KEPT = 64
    HOLDERS_MAX = 8                  # nodes

cdef enum WriteFlag:
    WRITE_ZERO = 1                   # a trim: its value is not its own
    WRITE_ACKNOWLEDGED = 2
    WRITE_STABLE = 4                 # acknowledged or read, and no power cut may take it
    WRITE_OVER = 8                   # it cannot be acknowledged any more

cdef struct RegisterWrite:           # one request
    uint64_t begun                   # on the clock
    uint64_t ended                   # acknowledged; NEVER: not
    uint64_t limit                   # it takes effect before, or not at all: a later owner has settled the log
    uint64_t epoch                   # of the owner that it was given to ...
    uint32_t owner                   # ... and the number of its opening
    uint32_t holders                 # a bit per node that has it, stable or not
    uint32_t flags
    uint32_t block
    uint32_t count

cdef struct Value:                   # of one block, by one write
    uint32_t write
    uint64_t read_ended              # the first end of a read that returned it; NEVER: none
    uint64_t read_begun              # the last beginning of one
    bint lapsed                      # all nodes that had it have lost power: it may be gone, whoever knew it
    int32_t next                     # -1: none

cdef struct Ambiguous:               # what of one epoch's writes was there after a power cut
    uint64_t epoch
    uint64_t survivor                # beginning of the newest that was
    uint64_t loss                    # end of the oldest acknowledged one that was not; NEVER: none

cdef class Registers:
    cdef uint64_t clock              # counts events
    cdef uint32_t count              # of writes; number 0 is the initial zeros
    cdef RegisterWrite* writes
    cdef Value* values
    cdef uint32_t used
    cdef int32_t free
    cdef int32_t first[MODEL_BLOCKS_MAX]
    cdef uint64_t cut[HOLDERS_MAX]   # when each node last lost power
    cdef uint64_t opened             # the epoch of the newest owner that has recovered the log
    cdef Ambiguous ambiguous[EPOCHS_KEPT]
    cdef readonly uint64_t compared  # blocks
    cdef readonly uint64_t lapses    # values that power cuts may have taken
    cdef readonly uint64_t losses    # ... and have
    cdef char words[512]             # the error message

    cdef uint32_t begin(self, uint32_t block, uint32_t count, bint zeros, uint64_t epoch, uint32_t owner) noexcept nogil
    # These: False, and words, when the history is none of a register.
    cdef bint acknowledge(self, uint32_t number, uint32_t holders, bint stable) noexcept nogil
    cdef bint check(self, uint32_t block, const char* data, uint64_t place, uint64_t begun) noexcept nogil
    # Of the owner that has just recovered the log: from now on only what is read here counts.
    cdef bint settle(self, uint32_t block, const char* data, uint64_t place, uint64_t begun) noexcept nogil
    # All blocks are settled: what a power cut has left of each owner's writes is a prefix.
    cdef bint settled(self) noexcept nogil

    cdef uint64_t tick(self) noexcept nogil              # the beginning of a read or flush
    cdef void flushed(self, uint64_t begun, uint64_t epoch) noexcept nogil
    cdef void recovered(self, uint64_t epoch) noexcept nogil     # an owner has recovered the log under this epoch
    cdef void is_gone(self, uint32_t owner) noexcept nogil       # it acknowledges nothing any more
    cdef void lose_power(self, int node) noexcept nogil          # or its devices' caches
    # What was acknowledged until then may be lost: a device's cache was, and the node has ended before it noted so.
    cdef void distrust(self, uint64_t until) noexcept nogil
    cdef int64_t identify(self, const char* data, uint64_t place) noexcept nogil
    cdef Value* read(self, uint32_t block, int64_t seen, uint64_t begun, const char* data) noexcept nogil
    cdef Value* read_zeros(self, uint32_t block, uint64_t begun) noexcept nogil
    cdef Value* conflict(self, uint32_t block, const Value* value) noexcept nogil
    cdef Value* find(self, uint32_t block, uint32_t number) noexcept nogil
    cdef Value* add(self, uint32_t block, uint32_t number) noexcept nogil
    cdef void lapse(self, const RegisterWrite* write) noexcept nogil
    cdef uint32_t zeros_of_before(self, uint64_t begun) noexcept nogil
    cdef void note_loss(self, const Value* seen, const Value* lost) noexcept nogil
    cdef bint complain(self, const char* what, uint32_t block, const Value* value, const Value* other) noexcept nogil
