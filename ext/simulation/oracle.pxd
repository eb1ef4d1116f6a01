# The oracle: the model of a volume's content that every read is compared with. See simulation/oracle.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.disk cimport BLOCK_SECTORS, SECTOR_BYTES

cdef enum:
    OPERATIONS_MAX = 1 << 17         # in one simulation run

    KEPT_MAX = 24                    # snapshots and points in time of one volume at once

cdef enum OperationFlag:
    OP_ZERO = 1                      # writes zeros
    OP_ACKNOWLEDGED = 2
    OP_STABLE = 4                    # acknowledged, and flushed since
    OP_LAPSED = 8                    # may be lost: it failed, was in flight at a crash, or unflushed at a power cut

cdef struct Wrote:                   # one write, trim or write-zeroes
    uint64_t begun                   # on the oracle's clock
    uint64_t ended                   # acknowledged or lapsed; NEVER while it is in flight
    uint32_t flags
    uint32_t oracle                  # the number of its volume's oracle

cdef struct Version:                 # one allowed content of a sector
    uint32_t wrote                   # the operation that set it
    uint32_t content                 # the operation whose data is read; 0: zeros
    int32_t next                     # -1: none

cdef struct Kept:                    # the allowed content of a snapshot
    bint used
    int32_t* first                   # per sector, as the Oracle's

cdef class Ledger:                   # of all volumes of a run: written data names its operation among all of them
    cdef uint64_t clock              # counts events
    cdef uint32_t count              # of operations so far, including the initial zeros
    cdef uint64_t compared           # sectors, in total
    cdef uint64_t ambiguous          # of them those with more than one allowed version
    cdef uint32_t oracles            # in total
    cdef Wrote* wrote

cdef class Oracle:                    # of one volume
    cdef Ledger ledger
    cdef Wrote* wrote                # the ledger's
    cdef uint32_t number             # in the ledger
    cdef Kept kept[KEPT_MAX]
    cdef readonly uint32_t sectors
    cdef uint32_t sectors_max
    cdef int32_t* first              # per sector: its versions; -1: only the initial zeros
    cdef Version* versions
    cdef uint32_t version_room
    cdef uint32_t version_used
    cdef int32_t free_versions
    cdef uint64_t stable             # every operation acknowledged up to this time is stable
    cdef uint32_t oldest_unstable    # no earlier operation can lapse
    cdef uint32_t oldest_lapsed      # no earlier operation lapsed in the last crash
    cdef bint keeps_nothing_volatile    # no device has a volatile cache: every acknowledged operation is stable
    # Operations acknowledged from this time on may be lost, even flushed ones: a device has lied. NEVER: none has.
    cdef uint64_t doubtful_from
    cdef uint64_t oldest_read        # start of the oldest read in flight
    # after a power cut the surviving log is a prefix
    cdef bint prefix_known
    cdef uint64_t crash              # the time of the last crash
    cdef uint64_t begun              # the time of the crash before: its losses do not count for the last one
    cdef uint64_t newest_survivor    # start of `survivor`, the newest that survived
    cdef uint64_t oldest_loss        # end of `loss`, the oldest that was lost
    cdef uint32_t survivor
    cdef uint32_t loss
    cdef char words[512]             # the error message

    cdef void reset(self, uint32_t sectors, bint keeps_nothing_volatile) noexcept nogil     # a new volume, all zeros
    cdef uint32_t begin(self, uint32_t sector, uint32_t count, bint zeros) noexcept nogil
    cdef void acknowledge(self, uint32_t number, bint stable) noexcept nogil
    cdef void fail(self, uint32_t number) noexcept nogil
    cdef uint64_t flush_begins(self) noexcept nogil
    cdef void flushed(self, uint64_t begun) noexcept nogil
    # A checkpoint that is in force contains every operation acknowledged before `begun`.
    cdef void holds(self, uint64_t begun) noexcept nogil
    cdef void crashed(self, bint power) noexcept nogil
    # Checks one sector of a read that began at `begun`. place: the sector's address in the volume, which its content
    # names. False, and words, when the content is not allowed.
    cdef bint check(self, uint32_t sector, const char* data, uint64_t place, uint64_t begun) noexcept nogil
    # Checks a whole block read after a recovery; from then on only the content seen is allowed.
    cdef bint settle(self, uint32_t sector, const char* data, uint64_t place) noexcept nogil
    # The whole volume is settled. False, and words, when the surviving operations are not a prefix.
    cdef bint settled(self) noexcept nogil
    # Keeps the allowed content of a snapshot that was begun at `begun` and is created now, or may have been. Returns
    # its number.
    cdef int keep(self, uint64_t begun) noexcept nogil
    cdef void let_go(self, int number) noexcept nogil
    cdef int keep_again(self, int number) noexcept nogil     # copies it; returns the copy's number
    # Sets the volume's content to that of a snapshot, of this volume or another; the result is stable. Nothing may be
    # in flight. Returns the operation's number.
    cdef uint32_t go_back(self, Oracle of, int number) noexcept nogil
    # Checks a whole block of a snapshot: False, and words. From then on only the content seen is allowed.
    cdef bint check_kept(self, int number, uint32_t sector, const char* data, uint64_t place) noexcept nogil
    cdef int64_t identify(self, const char* data, uint64_t place) noexcept nogil
    cdef int64_t allowed(self, uint32_t sector, int64_t seen, uint64_t horizon) noexcept nogil
    cdef void prune(self, uint32_t sector) noexcept nogil
    cdef void push(self, uint32_t sector, uint32_t number) noexcept nogil
    cdef void replace(self, uint32_t sector, uint32_t number, uint32_t content) noexcept nogil
    cdef int32_t new_version(self, uint32_t number, uint32_t content) noexcept nogil
    cdef int take_kept(self) noexcept nogil
    cdef void copy(self, Oracle of, int32_t from_first, int32_t* first, uint32_t number) noexcept nogil
    cdef void forget(self, int32_t* first) noexcept nogil
    cdef void complain(self, int32_t at, int64_t seen, const char* data, uint64_t place) noexcept nogil

# Fills in what operation `number` writes at `place` (in sectors from the volume's start).
cdef void fill(char* data, uint32_t number, uint64_t place, uint32_t sectors) noexcept nogil
# The operation, below `count`, whose content a sector at `place` has; 0: zeros; -1: none.
cdef int64_t identity_of(const char* data, uint64_t place, uint32_t count) noexcept nogil
