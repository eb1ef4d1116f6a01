# A device of the simulated world. See simulation/disk.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from iomesh.engine.simulation.prng cimport Prng
from iomesh.engine.simulation.faults cimport Injector

cdef enum:
    SECTOR_BYTES = 512               # the unit of tearing: a sector is written whole or not at all
    DISK_BLOCK_BYTES = 4096
    BLOCK_SECTORS = 8
    RECENT = 64

cdef struct Undo:                    # a block's state before a write that is not durable yet
    uint32_t block
    bint tainted                     # it was
    bint zero                        # never written before: no old content is kept
    bint forgotten                   # no flush makes it durable
    bint durable                     # durable, although forgotten entries precede it
    uint64_t write                   # which one

cdef enum StrayWay:                  # of the armed stray write
    STRAY_NONE, STRAY_WAITING, STRAY_STRUCK

cdef struct Disk:
    int number
    uint64_t bytes                   # 0: no device
    bint volatile_cache
    int64_t stalled_until_ns         # until then it completes nothing
    int64_t full_until_ns            # until then the storage below has no space for blocks that were never written
    char* memory                     # what reads return
    uint64_t* touched                # a bit per block: ever written
    uint64_t* tainted                # a bit per block: see disk_tainted
    uint64_t* summed                 # a bit per block: `sums` has the checksum of its content
    uint32_t* sums
    uint8_t* settled                 # a mask of sectors per block; zero but during a power cut
    Undo* undo                       # a ring: entry n lies at (n - base) % capacity
    char* undone                     # its blocks
    uint64_t capacity                # of the cache, in blocks
    uint64_t base
    uint64_t tail            # entries before it are durable
    uint64_t head
    uint64_t writes                  # numbers them
    uint64_t dropped                 # how often a failed flush has dropped the cache
    uint64_t recent[RECENT]          # offsets of the last writes: where a misdirected one may arrive
    uint64_t corrupt_from            # start of the range for lost and misdirected writes and rot
    uint64_t corrupt_to
    StrayWay stray                   # the driver's: one write to a given place
    uint64_t stray_from              # that place
    uint64_t stray_to                # where it arrives; the same place: it is lost
    uint64_t stray_limit             # it is lost if it would reach beyond

cdef enum Keeps:                     # what survives a power cut of the writes that were not durable
    KEEPS_NOTHING, KEEPS_ALL, KEEPS_FIRST, KEEPS_WRITES, KEEPS_SECTORS

cdef struct Cut:                     # one power cut of one device
    Keeps keeps
    uint64_t seed
    uint64_t threshold               # KEEPS_WRITES, KEEPS_SECTORS: of 2**64
    uint64_t first                   # KEEPS_FIRST: blocks before this one, and of it so many sectors
    int sectors

# 0 or -ENOMEM
cdef int disk_make(Disk* disk, int number, uint64_t bytes, bint volatile_cache, uint64_t cache_bytes) noexcept nogil
cdef void disk_free(Disk* disk) noexcept nogil
cdef int64_t disk_read(
    Disk* disk, Injector* injector, int64_t time_ns, char* into, uint32_t bytes, uint64_t offset
) noexcept nogil
cdef int64_t disk_write(
    Disk* disk, Injector* injector, int64_t time_ns, const char* data, uint32_t bytes, uint64_t offset
) noexcept nogil
cdef int64_t disk_discard(Disk* disk, uint64_t bytes, uint64_t offset) noexcept nogil
# Makes entries before `head` durable, except forgotten ones.
cdef void disk_flushed(Disk* disk, uint64_t head) noexcept nogil
cdef void disk_forget(Disk* disk, uint64_t head) noexcept nogil         # marks entries before `head` as forgotten
# into the cache; NULL: zeros
cdef void disk_put(Disk* disk, const char* data, uint64_t bytes, uint64_t offset) noexcept nogil
# a power cut: draw, lose, then land the writes in flight; `under_way_blocks`: how many blocks those have in total
cdef void disk_draw_cut(Disk* disk, Cut* cut, Prng* prng, uint64_t under_way_blocks) noexcept nogil
cdef void disk_cut(Disk* disk, const Cut* cut) noexcept nogil
cdef void disk_land(
    Disk* disk, const Cut* cut, uint64_t* position, const char* data, uint32_t bytes, uint64_t offset
) noexcept nogil
cdef bint disk_tainted(Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil
# For the driver, after it has written into `memory`.
cdef void disk_mark_damaged(Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil
cdef uint32_t disk_sum(Disk* disk, uint64_t offset) noexcept nogil      # the CRC-32C of a block
cdef void disk_taint(Disk* disk, uint64_t offset, uint64_t bytes) noexcept nogil
