# What simulated volumes may hold: the model that every read of a simulation is compared with. See simulation/oracle.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from iomesh.engine.simulation.disk cimport BLOCK_SECTORS, SECTOR_BYTES

cdef enum:
    OPERATIONS_MAX = 1 << 17         # of one life

    KEPT_MAX = 24                    # snapshots, and moments, of one volume at once

cdef enum OperationFlag:
    OP_ZERO = 1                      # it makes zeros
    OP_ACKNOWLEDGED = 2
    OP_STABLE = 4                    # acknowledged, and flushed since
    OP_LAPSED = 8                    # nobody promises any more that it took place: failed, or under way in a crash, or not flushed before a power cut

cdef struct Wrote:                   # one write, trim or write-zeroes
    uint64_t begun                   # on the oracle's clock
    uint64_t ended                   # acknowledged or lapsed; NEVER while it is under way
    uint32_t flags
    uint32_t oracle                  # the number of that of its volume

cdef struct Version:                 # that a sector may have
    uint32_t wrote                   # by which operation
    uint32_t content                 # what is read then: what this one wrote; 0: zeros
    int32_t next                     # -1: none

cdef struct Kept:                    # what a snapshot may hold
    bint used
    int32_t* first                   # per sector, as the Oracle's

cdef class Ledger:                   # of all volumes of a life: what is written says of which of all operations it is
    cdef uint64_t clock              # counts what happens
    cdef uint32_t count              # of operations so far, the initial zeros included
    cdef uint64_t compared           # sectors, ever
    cdef uint64_t ambiguous          # of them those of which more than one version was allowed
    cdef uint32_t oracles            # ever
    cdef Wrote* wrote

cdef class Oracle:                    # of one volume
    cdef Ledger ledger
    cdef Wrote* wrote                # the ledger's
    cdef uint32_t number             # in the ledger
    cdef Kept kept[KEPT_MAX]
    cdef readonly uint32_t sectors
    cdef uint32_t sectors_max
    cdef int32_t* first              # per sector: its versions; -1: the initial zeros alone
    cdef Version* versions
    cdef uint32_t version_room
    cdef uint32_t version_used
    cdef int32_t free_versions
    cdef uint64_t stable             # whatever was acknowledged up to here is stable
    cdef uint32_t oldest_unstable    # no operation before it can lapse any more
    cdef uint32_t oldest_lapsed      # ... before it has lapsed in the last crash
    cdef bint keeps_nothing_volatile    # no device has a volatile cache: what is acknowledged is stable
    cdef uint64_t doubtful_from      # what is acknowledged from here on may be lost, whatever was promised: a device has lied; NEVER: it has not
    cdef uint64_t oldest_read        # begin of the oldest read under way
    # of a power cut: the log is a prefix
    cdef bint prefix_known
    cdef uint64_t crash              # when it was
    cdef uint64_t begun              # the crash before: what was lost then is no loss of this one
    cdef uint64_t newest_survivor    # begin of it
    cdef uint64_t oldest_loss        # end of it
    cdef uint32_t survivor
    cdef uint32_t loss
    cdef char words[512]             # what is wrong

    cdef void reset(self, uint32_t sectors, bint keeps_nothing_volatile) noexcept nogil     # a new volume, all zeros
    cdef uint32_t begin(self, uint32_t sector, uint32_t count, bint zeros) noexcept nogil
    cdef void acknowledge(self, uint32_t number, bint stable) noexcept nogil
    cdef void fail(self, uint32_t number) noexcept nogil
    cdef uint64_t flush_begins(self) noexcept nogil
    cdef void flushed(self, uint64_t begun) noexcept nogil
    cdef void holds(self, uint64_t begun) noexcept nogil     # a checkpoint that counts has all that was acknowledged before
    cdef void crashed(self, bint power) noexcept nogil
    # Of a read that began at `begun`: False, and words, when that is not what may be there. base: of the sector's place in the volume, for its content
    cdef bint check(self, uint32_t sector, const char* data, uint64_t place, uint64_t begun) noexcept nogil
    # Of a whole block read after a recovery: from now on it is what was seen.
    cdef bint settle(self, uint32_t sector, const char* data, uint64_t place) noexcept nogil
    cdef bint settled(self) noexcept nogil               # the whole volume was; False, and words, when what survived is not a prefix
    # Of a snapshot that was begun at `begun` and is made now, or may have been: what may be in it is kept. Its number.
    cdef int keep(self, uint64_t begun) noexcept nogil
    cdef void let_go(self, int number) noexcept nogil
    cdef int keep_again(self, int number) noexcept nogil     # one more of the same
    # Nothing is under way: the volume is what that snapshot holds, of the same volume or of another one, and that is stable. Its operation.
    cdef uint32_t go_back(self, Oracle of, int number) noexcept nogil
    # Of a whole block of it: False, and words. From now on it is what was seen.
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

# What operation `number` writes at a place (sectors from the volume's begin).
cdef void fill(char* data, uint32_t number, uint64_t place, uint32_t sectors) noexcept nogil
