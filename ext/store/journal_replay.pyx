# Reading a journal when its store opens.
#
#   1. survey both halves, each block in both copies: the newest generation, the end of its snapshot, its last block,
#   and
#      whether an earlier block is missing;
#   2. choose the half with the newest complete snapshot; refuse if there is evidence of a newer state that is lost;
#   3. replay it: apply every entry in order, and restore each block that is valid in one copy only.
#
# The result is the directory as of the last durable change, or a refusal that names the damaged block; never an older
# state. (A change in flight at a crash may be included or not: it was never acknowledged.)
#
# Called by store. Format and reasons: docs/formats.md, "Journal".

from libc.errno cimport ENOMEM, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.io cimport Operation
from iomesh.engine.store.journal cimport REASON_BYTES, REPAIR_BYTES, REPAIRS_MAX
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, JOURNAL_CHANGES, JOURNAL_SNAPSHOT, JOURNAL_SNAPSHOT_END, Extent, JournalBlock, JournalEntry,
    journal_block_fault, journal_block_valid
)
from iomesh.engine.base.task cimport wait, waited

cdef extern from "<errno.h>" nogil:
    int EPROTONOSUPPORT, EUCLEAN


cdef enum:
    PIECE_BLOCKS = 128               # per read, of each copy: 512 KiB

cdef struct Half:                    # result of a survey, for the half's newest generation
    uint64_t generation              # 0: no valid block
    int64_t snapshot_end             # index of the SNAPSHOT_END; -1: none
    int64_t last                     # the highest index
    int64_t lacking                  # lowest index without a block of it in either copy; -1: none
    bint changes                     # it has JOURNAL_CHANGES blocks
    int64_t newer                    # index of a block that a newer version of iomesh wrote; -1: none

cdef struct Pieces:                  # the same blocks of both copies
    JournalBlock* copies[2]
    uint32_t half
    uint32_t first
    uint32_t count
    bint late                        # a read was not answered in time: its data may still arrive at any time

cdef struct Restored:                # consecutive restored blocks, reported in one line
    uint32_t copy
    uint32_t first
    uint32_t count
    int error                        # of rewriting them


cdef int replay(Journal journal, const Superblock* superblock, Repairs* repairs, char* reason) noexcept nogil:
    cdef Pieces pieces
    cdef Half[2] halves
    cdef int error
    cdef int64_t chosen
    memcpy(journal.identity, superblock.device, 16)
    journal.offset = superblock.journal_offset
    journal.area_blocks = superblock.journal_bytes // BLOCK_BYTES
    journal.slab_blocks = superblock.slab_bytes // BLOCK_BYTES
    pieces.copies[0] = <JournalBlock*>allocate_aligned(2 * PIECE_BLOCKS * BLOCK_BYTES)
    if pieces.copies[0] is NULL:
        snprintf(reason, REASON_BYTES, b"there is no memory to read the journal")
        return -ENOMEM
    pieces.copies[1] = pieces.copies[0] + PIECE_BLOCKS
    pieces.late = False
    halves[0] = survey(journal, &pieces, 0)
    halves[1] = survey(journal, &pieces, 1)
    chosen = -1
    if not pieces.late and not refuses_newer(halves, reason):
        chosen = choose(halves, reason)
    error = -EPROTONOSUPPORT if halves[0].newer >= 0 or halves[1].newer >= 0 else -EUCLEAN
    if chosen >= 0:
        error = read_half(journal, &pieces, <uint32_t>chosen, &halves[chosen], repairs, reason)
    if pieces.late:
        snprintf(reason, REASON_BYTES, b"the device does not answer: its journal cannot be read")
        error = -ETIMEDOUT
    journal.home.io.release(pieces.copies[0])
    if error == 0:
        journal.half = <uint32_t>chosen
        journal.generation = halves[chosen].generation
        journal.highest_generation = max(halves[0].generation, halves[1].generation)
        journal.next_index = halves[chosen].last + 1
    return error


# ---------------------------------------------------------------------- 1. survey

cdef Half survey(Journal journal, Pieces* pieces, uint32_t half) noexcept nogil:
    cdef Half found
    cdef uint32_t index = 0, i
    cdef JournalBlock* block
    memset(&found, 0, sizeof(found))
    found.snapshot_end = found.last = found.lacking = found.newer = -1
    while index < journal.area_blocks and not pieces.late:
        read_pieces(journal, pieces, half, index)
        if pieces.late:
            return found
        for i in range(pieces.count):
            block = newest_valid(journal, pieces, i)
            if block is NULL and is_newer(journal, pieces, i):
                found.newer = index + i
            if block is NULL or block.generation < found.generation:
                if found.lacking < 0:
                    found.lacking = index + i
                continue
            if block.generation > found.generation:
                found.generation = block.generation
                found.snapshot_end = -1
                found.lacking = 0 if index + i else -1
                found.changes = False
            found.last = index + i
            if block.kind == JOURNAL_SNAPSHOT_END and found.snapshot_end < 0:
                found.snapshot_end = index + i
            found.changes |= block.kind == JOURNAL_CHANGES
        index += pieces.count
    return found


cdef void read_pieces(Journal journal, Pieces* pieces, uint32_t half, uint32_t first) noexcept nogil:
    """Unreadable blocks become zeros, which are not valid."""
    cdef Operation[2] operations
    cdef uint32_t copy, i
    cdef JournalBlock* block
    pieces.half = half
    pieces.first = first
    pieces.count = min(<uint32_t>PIECE_BLOCKS, journal.area_blocks - first)
    for copy in range(2):
        waited(&operations[copy])
        journal.home.io.read(
            &operations[copy],
            journal.device,
            pieces.copies[copy],
            pieces.count * BLOCK_BYTES,
            journal.place(copy, half, first),
        )
    wait(&operations[0])
    wait(&operations[1])
    pieces.late |= operations[0].result == -ETIMEDOUT or operations[1].result == -ETIMEDOUT
    for copy in range(2):
        if operations[copy].result >= 0 or pieces.late:
            continue
        for i in range(pieces.count):                    # one bad sector must not hide its neighbours
            block = pieces.copies[copy] + i
            waited(&operations[copy])
            journal.home.io.read(
                &operations[copy], journal.device, block, BLOCK_BYTES, journal.place(copy, half, first + i)
            )
            if wait(&operations[copy]) == -ETIMEDOUT:
                pieces.late = True
                return
            if operations[copy].result < 0:
                memset(block, 0, BLOCK_BYTES)


cdef bint valid_at(Journal journal, const JournalBlock* block, uint32_t index) noexcept nogil:
    return journal_block_valid(block, journal.identity, journal.slab_blocks) and block.index == index


cdef JournalBlock* newest_valid(Journal journal, Pieces* pieces, uint32_t i) noexcept nogil:
    """The valid copy of a block, the newer one of two; NULL: neither is valid."""
    cdef JournalBlock* block = pieces.copies[0] + i
    cdef JournalBlock* mirrored = pieces.copies[1] + i
    cdef bint valid = valid_at(journal, block, pieces.first + i)
    cdef bint mirrored_valid = valid_at(journal, mirrored, pieces.first + i)
    if valid and mirrored_valid:
        return block if block.generation >= mirrored.generation else mirrored
    return block if valid else mirrored if mirrored_valid else NULL


cdef bint is_newer(Journal journal, const Pieces* pieces, uint32_t i) noexcept nogil:
    """Whether a copy is intact and of a newer version: leaving it out would lose what it changed."""
    cdef int copy
    for copy in range(2):
        if journal_block_fault(pieces.copies[copy] + i, journal.identity, journal.slab_blocks).newer:
            return True
    return False


# ---------------------------------------------------------------------- 2. choose

cdef bint refuses_newer(const Half* halves, char* reason) noexcept nogil:
    cdef int half
    for half in range(2):
        if halves[half].newer >= 0:
            snprintf(
                reason, REASON_BYTES,
                b"block %lld of half %d of the journal was written by a newer version of iomesh: use that one",
                <long long>halves[half].newer, half
            )
            return True
    return False


cdef int64_t choose(const Half* halves, char* reason) noexcept nogil:
    """The half to replay; -1: the journal is damaged."""
    cdef int64_t chosen = -1, half
    cdef const Half* other
    for half in range(2):
        if halves[half].snapshot_end >= 0 and (chosen < 0 or halves[half].generation > halves[chosen].generation):
            chosen = half
    if chosen < 0:
        snprintf(
            reason,
            REASON_BYTES,
            b"the journal is damaged: neither half has a complete snapshot of the directory in either copy",
        )
        return -1
    other = &halves[1 - chosen]
    if other.generation > halves[chosen].generation and other.changes:
        snprintf(
            reason, REASON_BYTES,
            b"the journal is damaged: half %d has changes of generation %llu, "
            b"and in both copies the snapshot before them has no end",
            <int>(1 - chosen), <unsigned long long>other.generation
        )
        return -1
    if other.generation == halves[chosen].generation:
        snprintf(
            reason, REASON_BYTES,
            b"the journal is damaged: both halves are of generation %llu",
            <unsigned long long>other.generation
        )
        return -1
    if 0 <= halves[chosen].lacking < halves[chosen].last:
        snprintf(
            reason, REASON_BYTES,
            b"the journal is damaged: block %lld of half %d is not valid in either copy, and block %lld behind it is",
            <long long>halves[chosen].lacking, <int>chosen, <long long>halves[chosen].last
        )
        return -1
    return chosen


# ---------------------------------------------------------------------- 3. replay

cdef int read_half(
    Journal journal, Pieces* pieces, uint32_t half, const Half* found, Repairs* repairs, char* reason
) noexcept nogil:
    cdef Restored restored
    cdef uint32_t index = 0, i, copy
    cdef JournalBlock* block
    cdef const char* words
    restored.count = 0
    while index <= found.last:
        read_pieces(journal, pieces, half, index)
        if pieces.late:
            return -ETIMEDOUT
        for i in range(min(pieces.count, <uint32_t>(found.last + 1 - index))):
            block = newest_valid(journal, pieces, i)
            words = apply_block(journal, block, found, index + i)
            if words is not NULL:
                snprintf(
                    reason, REASON_BYTES, b"the journal is damaged: block %u of half %u: %s", index + i, half, words
                )
                return -EUCLEAN
            for copy in range(2):
                if memcmp(pieces.copies[copy] + i, block, BLOCK_BYTES) != 0:
                    if (
                        valid_at(journal, pieces.copies[copy] + i, index + i)
                        and pieces.copies[copy][i].generation == found.generation
                    ):
                        snprintf(
                            reason, REASON_BYTES,
                            b"the journal is damaged: block %u of half %u: its two copies are valid and differ",
                            index + i, half
                        )
                        return -EUCLEAN
                    restore(journal, block, half, copy, index + i, &restored, repairs)
            memcpy(journal.block, block, BLOCK_BYTES)    # after the loop the newest block, for write_newest()
        index += pieces.count
    tell_restored(&restored, half, repairs)
    return 0


cdef const char* apply_block(
    Journal journal, const JournalBlock* block, const Half* found, uint32_t index
) noexcept nogil:
    """Apply a block to the directory. NULL, or what is wrong with it."""
    cdef uint32_t at = 0
    cdef const JournalEntry* entry
    cdef const char* words
    cdef int expected = (
        JOURNAL_SNAPSHOT if index < found.snapshot_end
        else JOURNAL_SNAPSHOT_END if index == found.snapshot_end
        else JOURNAL_CHANGES
    )
    if block is NULL or block.generation != found.generation:
        return b"it cannot be read a second time"
    if block.kind != expected:
        return b"it is not of the kind that belongs there"
    while at < block.bytes:                              # the block is valid: its entries end exactly at `bytes`
        entry = <const JournalEntry*>(block.entries + at)
        words = journal.directory.replay(entry)
        if words is not NULL:
            return words
        at += sizeof(JournalEntry) + entry.extent_count * sizeof(Extent)
    return NULL


cdef void restore(
    Journal journal,
    const JournalBlock* block,
    uint32_t half,
    uint32_t copy,
    uint32_t index,
    Restored* restored,
    Repairs* repairs,
) noexcept nogil:
    cdef Operation operation
    waited(&operation)
    journal.home.io.write(&operation, journal.device, block, BLOCK_BYTES, journal.place(copy, half, index))
    wait(&operation)
    if restored.count and (restored.copy != copy or restored.first + restored.count != index):
        tell_restored(restored, half, repairs)
    if restored.count == 0:
        restored.copy = copy
        restored.first = index
        restored.error = 0
    restored.count += 1
    if operation.result < 0:
        restored.error = <int>-operation.result


cdef void tell_restored(Restored* restored, uint32_t half, Repairs* repairs) noexcept nogil:
    cdef char* line
    if restored.count == 0:
        return
    line = new_repair(repairs)
    if restored.error:
        snprintf(
            line, REPAIR_BYTES,
            b"journal: blocks %u to %u of %s half %u are damaged and cannot be rewritten (error %d): "
            b"replace the device",
            restored.first, restored.first + restored.count - 1, b"the mirror of" if restored.copy else b"", half,
            restored.error
        )
    else:
        snprintf(
            line, REPAIR_BYTES,
            b"journal: blocks %u to %u of %s half %u were damaged and are restored from the other copy",
            restored.first, restored.first + restored.count - 1, b"the mirror of" if restored.copy else b"", half
        )
    restored.count = 0


cdef char* new_repair(Repairs* repairs) noexcept nogil:
    cdef uint32_t number = min(repairs.count, <uint32_t>(REPAIRS_MAX - 1))       # excess ones overwrite the last line
    repairs.count += 1
    return repairs.lines[number]
