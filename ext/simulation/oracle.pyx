# The oracle: the model of a volume's content that every read of a simulation is compared with.
#
# For each sector (512 bytes) it knows which operations a read may return. It stores no data: the content follows from
# the operation's number and the address. Operations may overlap while they are in flight; then either may win.
#
# The clock counts events. W follows V when V ended before W began; then, if W took place, V cannot be read any more.
# So for each sector:
#   - a read may return V unless a W that follows it is known to have taken place;
#   - after a process crash every acknowledged W is known to have taken place; after a power cut, every stable W.
#     Operations that were in flight or not stable lapse: each may have taken place or not;
#   - an operation in flight at a crash ends at the crash: it never takes effect after that.
#
# A snapshot holds, for each sector, any content that a read could return if it began and ended with the snapshot's
# creation. Restoring one is an operation of its own, the newest of every sector, with the snapshot's content.
#
# Each volume has an Oracle; those of one simulation run share a Ledger, which numbers the operations of all. So content
# that a clone inherits keeps the parent's numbers: a clone starts as if it had been restored to the parent's snapshot.
#
# In addition: within one block an operation took place whole or not at all; after a power cut the surviving log is a
# prefix: if W survived and V was acknowledged before W began, V survived; content seen after a recovery stays.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release, realloc
from libc.string cimport memcmp, memset

from iomesh.engine.base.invariant cimport invariant

cdef extern from *:
    """
    #define NEVER_ENDED UINT64_MAX
    """
    const uint64_t NEVER "NEVER_ENDED"

cdef enum:
    WORDS = SECTOR_BYTES // 8
    UNKNOWN = -1                     # content that no operation wrote
    DISALLOWED = -2

cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 31)) * <uint64_t>0x9E3779B97F4A7C15
    return x ^ (x >> 29)


cdef void fill(char* data, uint32_t number, uint64_t place, uint32_t sectors) noexcept nogil:
    cdef uint64_t* words = <uint64_t*>data
    cdef uint64_t seed
    cdef uint32_t s, i
    for s in range(sectors):
        seed = mixed(<uint64_t>number << 40 ^ (place + s))
        words[0] = number
        words[1] = place + s
        for i in range(2, WORDS):
            words[i] = seed
        words += WORDS


cdef int64_t identity_of(const char* data, uint64_t place, uint32_t count) noexcept nogil:
    cdef const uint64_t* words = <const uint64_t*>data
    cdef uint64_t number = words[0]
    if number == 0:
        return 0 if memcmp(words, words + 1, SECTOR_BYTES - 8) == 0 else UNKNOWN
    if number >= count or words[1] != place or words[2] != mixed(number << 40 ^ place):
        return UNKNOWN
    return <int64_t>number if memcmp(words + 2, words + 3, SECTOR_BYTES - 24) == 0 else UNKNOWN


cdef class Ledger:
    """Raises MemoryError."""

    def __cinit__(self):
        self.wrote = <Wrote*>calloc(OPERATIONS_MAX, sizeof(Wrote))
        if self.wrote is NULL:
            raise MemoryError("no memory for a model")
        self.clock = 1
        self.count = 1
        self.wrote[0].flags = OP_ZERO | OP_ACKNOWLEDGED | OP_STABLE

    def __dealloc__(self):
        release(self.wrote)


cdef class Oracle:
    """sectors_max: the volume's largest size. Raises MemoryError."""

    def __cinit__(self, Ledger ledger, uint32_t sectors_max):
        self.ledger = ledger
        self.wrote = ledger.wrote
        self.sectors_max = sectors_max
        self.version_room = 1 << 16
        self.first = <int32_t*>calloc(sectors_max, sizeof(int32_t))
        self.versions = <Version*>calloc(self.version_room, sizeof(Version))
        if self.first is NULL or self.versions is NULL:
            raise MemoryError("no memory for a model")

    def __dealloc__(self):
        for i in range(KEPT_MAX):
            release(self.kept[i].first)
        release(self.first)
        release(self.versions)

    cdef void reset(self, uint32_t sectors, bint keeps_nothing_volatile) noexcept nogil:
        cdef int i
        self.ledger.oracles += 1
        self.number = self.ledger.oracles
        self.sectors = sectors
        self.keeps_nothing_volatile = keeps_nothing_volatile
        memset(self.first, 0xFF, sectors * sizeof(int32_t))
        for i in range(KEPT_MAX):
            self.kept[i].used = False
        self.version_used = 0
        self.free_versions = -1
        self.stable = self.begun = self.crash = 0
        self.doubtful_from = NEVER
        self.oldest_unstable = self.oldest_lapsed = self.ledger.count
        self.oldest_read = NEVER
        self.prefix_known = False

    # ------------------------------------------------------------------ operations, flushes and crashes

    cdef uint32_t begin(self, uint32_t sector, uint32_t count, bint zeros) noexcept nogil:
        cdef uint32_t number = self.ledger.count, i
        invariant(number < OPERATIONS_MAX and sector + count <= self.sectors, b"an operation lies in the model")
        self.ledger.count += 1
        self.ledger.clock += 1
        self.wrote[number].begun = self.ledger.clock
        self.wrote[number].ended = NEVER
        self.wrote[number].flags = OP_ZERO if zeros else 0
        self.wrote[number].oracle = self.number
        self.prefix_known = False
        for i in range(sector, sector + count):
            self.prune(i)
            self.push(i, number)
        return number

    cdef void acknowledge(self, uint32_t number, bint stable) noexcept nogil:
        cdef Wrote* wrote = &self.wrote[number]
        self.ledger.clock += 1
        wrote.ended = self.ledger.clock
        wrote.flags |= OP_ACKNOWLEDGED
        if stable or self.keeps_nothing_volatile:
            wrote.flags |= OP_STABLE
        if stable and wrote.begun - 1 > self.stable:     # the log is a prefix: as is all acknowledged before
            self.stable = wrote.begun - 1

    cdef void fail(self, uint32_t number) noexcept nogil:
        self.ledger.clock += 1
        self.wrote[number].ended = self.ledger.clock
        self.wrote[number].flags |= OP_LAPSED

    cdef uint64_t flush_begins(self) noexcept nogil:
        self.ledger.clock += 1
        return self.ledger.clock

    cdef void flushed(self, uint64_t begun) noexcept nogil:
        self.stable = max(self.stable, begun)

    cdef void holds(self, uint64_t begun) noexcept nogil:
        cdef uint32_t i
        cdef Wrote* wrote
        self.stable = max(self.stable, begun)
        self.doubtful_from = max(self.doubtful_from, begun)
        # now it is known that it took place
        for i in range(self.oldest_lapsed if begun < self.crash else self.ledger.count, self.ledger.count):
            wrote = &self.wrote[i]
            if (
                wrote.oracle == self.number
                and wrote.flags & OP_ACKNOWLEDGED
                and wrote.flags & OP_LAPSED
                and self.begun < wrote.ended <= begun
            ):
                wrote.flags = wrote.flags & ~OP_LAPSED | OP_STABLE

    cdef void crashed(self, bint power) noexcept nogil:
        cdef bint loses = power or self.doubtful_from != NEVER
        cdef uint32_t i, oldest = self.ledger.count
        cdef Wrote* wrote
        self.begun = self.crash
        self.ledger.clock += 1
        self.crash = self.ledger.clock
        self.oldest_lapsed = self.oldest_unstable
        for i in range(self.oldest_unstable, self.ledger.count):
            wrote = &self.wrote[i]
            if wrote.oracle != self.number:
                continue
            if wrote.ended == NEVER:
                wrote.ended = self.ledger.clock
                wrote.flags |= OP_LAPSED
            elif wrote.flags & OP_LAPSED == 0 and not is_stable(self, wrote):
                if loses:
                    wrote.flags = wrote.flags & ~OP_STABLE | OP_LAPSED
                else:
                    oldest = min(oldest, i)
        self.oldest_unstable = oldest
        self.doubtful_from = NEVER
        self.oldest_read = NEVER
        self.prefix_known = True
        self.newest_survivor = self.survivor = self.loss = 0
        self.oldest_loss = NEVER

    # ------------------------------------------------------------------ reads

    cdef bint check(self, uint32_t sector, const char* data, uint64_t place, uint64_t begun) noexcept nogil:
        cdef int64_t seen = self.identify(data, place)
        self.ledger.compared += 1
        if self.allowed(sector, seen, begun) >= 0:
            return True
        self.complain(self.first[sector], seen, data, place)
        return False

    cdef bint settle(self, uint32_t sector, const char* data, uint64_t place) noexcept nogil:
        """Checks a block's eight sectors at once."""
        cdef int64_t[BLOCK_SECTORS] seen
        cdef uint32_t[BLOCK_SECTORS] content
        cdef uint32_t i, k
        cdef int32_t at
        cdef Wrote* wrote
        cdef Wrote* other
        cdef bint single = True
        for i in range(BLOCK_SECTORS):
            seen[i] = self.identify(data + i * SECTOR_BYTES, place + i)
            content[i] = <uint32_t>max(seen[i], <int64_t>0)
            self.ledger.compared += 1
            at = self.first[sector + i]
            if at < 0 or self.versions[at].next < 0:     # nothing to decide
                if seen[i] == (<int64_t>self.versions[at].content if at >= 0 else 0):
                    seen[i] = self.versions[at].wrote if at >= 0 else 0
                    continue
            single = False
            seen[i] = self.allowed(sector + i, seen[i], NEVER)
            if seen[i] < 0:
                self.complain(
                    self.first[sector + i],
                    content[i] if seen[i] == DISALLOWED else UNKNOWN,
                    data + i * SECTOR_BYTES,
                    place + i,
                )
                return False
        if single:
            return True
        # All or nothing: if one sector has W, no other sector that W wrote may have an operation that W follows.
        for i in range(BLOCK_SECTORS):
            wrote = &self.wrote[seen[i]]
            for k in range(BLOCK_SECTORS):
                if wrote.flags & OP_ZERO or seen[k] == seen[i]:
                    continue
                if self.wrote[seen[k]].ended < wrote.begun and has(self, sector + k, <uint32_t>seen[i]):
                    snprintf(
                        self.words, sizeof(self.words),
                        b"block %llu holds half of operation %lld: sector %u has it, "
                        b"sector %u has operation %lld of before",
                        <unsigned long long>(place // BLOCK_SECTORS), <long long>seen[i], i, k, <long long>seen[k]
                    )
                    return False
        for i in range(BLOCK_SECTORS):
            wrote = &self.wrote[seen[i]]
            if not wrote.flags & OP_ZERO and wrote.begun > self.newest_survivor:
                self.newest_survivor = wrote.begun
                self.survivor = <uint32_t>seen[i]
            at = self.first[sector + i]
            while at >= 0:
                other = &self.wrote[self.versions[at].wrote]
                if (
                    other.flags & OP_ACKNOWLEDGED
                    and other.begun > wrote.ended
                    and self.begun < other.ended < self.oldest_loss
                ):
                    self.oldest_loss = other.ended
                    self.loss = self.versions[at].wrote
                at = self.versions[at].next
            self.replace(sector + i, <uint32_t>seen[i], content[i])
        return True

    cdef bint settled(self) noexcept nogil:
        cdef bint prefix = not self.prefix_known or self.newest_survivor <= self.oldest_loss
        if not prefix:
            snprintf(
                self.words, sizeof(self.words),
                b"what survived is no prefix: operation %u is there and operation %u, acknowledged before that began, "
                b"is not",
                self.survivor, self.loss
            )
        return prefix

    # ------------------------------------------------------------------ snapshots

    cdef int keep(self, uint64_t begun) noexcept nogil:
        cdef uint32_t sector
        cdef uint64_t newest
        cdef int32_t at, copy
        cdef int32_t* place
        cdef Wrote* wrote
        cdef int number = self.take_kept()
        for sector in range(self.sectors):
            place = &self.kept[number].first[sector]
            place[0] = -1
            at = self.first[sector]
            newest = 0
            while at >= 0:
                wrote = &self.wrote[self.versions[at].wrote]
                if wrote.flags & OP_ACKNOWLEDGED and not wrote.flags & OP_LAPSED and wrote.ended <= begun:
                    newest = max(newest, wrote.begun)
                at = self.versions[at].next
            at = self.first[sector]
            while at >= 0:
                if self.wrote[self.versions[at].wrote].ended >= newest:
                    copy = self.new_version(self.versions[at].wrote, self.versions[at].content)
                    self.versions[copy].next = place[0]
                    place[0] = copy
                at = self.versions[at].next
        return number

    cdef void let_go(self, int number) noexcept nogil:
        cdef uint32_t sector
        for sector in range(self.sectors):
            self.forget(&self.kept[number].first[sector])
        self.kept[number].used = False

    cdef int take_kept(self) noexcept nogil:
        cdef int number = 0
        while number < KEPT_MAX and self.kept[number].used:
            number += 1
        invariant(number < KEPT_MAX, b"a model keeps more than there are snapshots")
        if self.kept[number].first is NULL:
            self.kept[number].first = <int32_t*>calloc(self.sectors_max, sizeof(int32_t))
            invariant(self.kept[number].first is not NULL, b"there is memory for a model of snapshots")
        self.kept[number].used = True
        return number

    cdef int keep_again(self, int number) noexcept nogil:
        cdef uint32_t sector
        cdef int again = self.take_kept()
        for sector in range(self.sectors):
            self.kept[again].first[sector] = -1
            self.copy(self, self.kept[number].first[sector], &self.kept[again].first[sector], 0)
        return again

    cdef uint32_t go_back(self, Oracle of, int number) noexcept nogil:
        cdef uint32_t operation = self.ledger.count, sector
        invariant(operation < OPERATIONS_MAX, b"a model has room for an operation")
        self.ledger.count += 1
        self.ledger.clock += 2
        self.wrote[operation].begun = self.ledger.clock - 1
        self.wrote[operation].ended = self.ledger.clock
        self.wrote[operation].flags = OP_ACKNOWLEDGED | OP_STABLE
        self.wrote[operation].oracle = self.number
        for sector in range(self.sectors):
            self.forget(&self.first[sector])
            self.copy(of, of.kept[number].first[sector], &self.first[sector], operation)
        self.doubtful_from = max(self.doubtful_from, self.ledger.clock + 1)
        return operation

    cdef void copy(self, Oracle of, int32_t from_first, int32_t* first, uint32_t number) noexcept nogil:
        """Copies a sector's versions. number: the operation that they get; 0: each keeps its own."""
        cdef int32_t at
        while from_first >= 0:
            at = self.new_version(number if number else of.versions[from_first].wrote, of.versions[from_first].content)
            self.versions[at].next = first[0]
            first[0] = at
            from_first = of.versions[from_first].next

    cdef bint check_kept(self, int number, uint32_t sector, const char* data, uint64_t place) noexcept nogil:
        cdef int64_t seen
        cdef int32_t at
        cdef int32_t* first
        cdef uint32_t i
        for i in range(BLOCK_SECTORS):
            first = &self.kept[number].first[sector + i]
            seen = self.identify(data + i * SECTOR_BYTES, place + i)
            self.ledger.compared += 1
            at = first[0]
            if at < 0 and seen == 0:
                continue
            while at >= 0 and self.versions[at].content != seen:
                at = self.versions[at].next
            if at < 0:
                self.complain(first[0], seen, data + i * SECTOR_BYTES, place + i)
                return False
            if self.versions[first[0]].next >= 0:        # from now on only the content seen is allowed
                self.ledger.ambiguous += 1
                self.forget(first)
                first[0] = self.new_version(<uint32_t>seen, <uint32_t>seen)
        return True

    # ------------------------------------------------------------------ versions

    cdef int64_t identify(self, const char* data, uint64_t place) noexcept nogil:
        """Returns the operation that wrote a sector's content; 0: zeros; UNKNOWN."""
        return identity_of(data, place, self.ledger.count)

    cdef int64_t allowed(self, uint32_t sector, int64_t seen, uint64_t horizon) noexcept nogil:
        """Returns the version that `seen` is (of several zeros: the last to end), or DISALLOWED or UNKNOWN. Only
        operations that ended by `horizon` are known to have taken place."""
        cdef int32_t at = self.first[sector]
        cdef uint64_t newest = 0
        cdef int64_t found = DISALLOWED
        cdef Wrote* wrote
        if seen < 0:
            return UNKNOWN
        if at < 0:
            return 0 if seen == 0 else DISALLOWED
        if self.versions[at].next >= 0:
            self.ledger.ambiguous += 1
        while at >= 0:
            wrote = &self.wrote[self.versions[at].wrote]
            if wrote.flags & OP_ACKNOWLEDGED and not wrote.flags & OP_LAPSED and wrote.ended <= horizon:
                newest = max(newest, wrote.begun)
            at = self.versions[at].next
        at = self.first[sector]
        while at >= 0:
            wrote = &self.wrote[self.versions[at].wrote]
            if wrote.ended >= newest and self.versions[at].content == seen:
                if found < 0 or wrote.ended > self.wrote[found].ended:
                    found = self.versions[at].wrote
            at = self.versions[at].next
        return found

    cdef void prune(self, uint32_t sector) noexcept nogil:
        """Drops the versions that can never be read again: a stable operation follows them and ended before every read
        in flight began."""
        cdef int32_t at = self.first[sector], after
        cdef int32_t* place = &self.first[sector]
        cdef uint64_t newest = 0
        cdef Wrote* wrote
        if at < 0 or self.versions[at].next < 0:
            return
        while at >= 0:
            wrote = &self.wrote[self.versions[at].wrote]
            if is_stable(self, wrote) and wrote.ended <= self.oldest_read:
                newest = max(newest, wrote.begun)
            at = self.versions[at].next
        while place[0] >= 0:
            at = place[0]
            after = self.versions[at].next
            if self.wrote[self.versions[at].wrote].ended < newest:
                place[0] = after
                self.versions[at].next = self.free_versions
                self.free_versions = at
            else:
                place = &self.versions[at].next

    cdef void push(self, uint32_t sector, uint32_t number) noexcept nogil:
        cdef int32_t at
        if self.first[sector] < 0 and number:
            self.push(sector, 0)
        at = self.new_version(number, 0 if self.wrote[number].flags & OP_ZERO else number)
        self.versions[at].next = self.first[sector]
        self.first[sector] = at

    cdef int32_t new_version(self, uint32_t number, uint32_t content) noexcept nogil:
        cdef int32_t at = self.free_versions
        if at >= 0:
            self.free_versions = self.versions[at].next
        else:
            if self.version_used == self.version_room:
                self.version_room *= 2
                self.versions = <Version*>realloc(self.versions, self.version_room * sizeof(Version))
                invariant(self.versions is not NULL, b"there is memory for a model")
            at = self.version_used
            self.version_used += 1
        self.versions[at].wrote = number
        self.versions[at].content = content
        self.versions[at].next = -1
        return at

    cdef void forget(self, int32_t* first) noexcept nogil:
        cdef int32_t last = first[0]
        if last < 0:
            return
        while self.versions[last].next >= 0:
            last = self.versions[last].next
        self.versions[last].next = self.free_versions
        self.free_versions = first[0]
        first[0] = -1

    cdef void replace(self, uint32_t sector, uint32_t number, uint32_t content) noexcept nogil:
        """Replaces all versions by one."""
        cdef int32_t at = self.first[sector], last = at
        if at < 0:
            return
        if self.versions[at].next >= 0:
            last = self.versions[at].next
            while self.versions[last].next >= 0:
                last = self.versions[last].next
            self.versions[last].next = self.free_versions
            self.free_versions = self.versions[at].next
            self.versions[at].next = -1
        self.versions[at].wrote = number
        self.versions[at].content = content

    cdef void complain(self, int32_t at, int64_t seen, const char* data, uint64_t place) noexcept nogil:
        """Writes the error message. at: the first of the sector's versions."""
        cdef const uint64_t* words = <const uint64_t*>data
        cdef Wrote* wrote
        cdef int length
        cdef bint unwritten = at < 0
        length = snprintf(
            self.words, sizeof(self.words),
            b"sector %u of block %llu: read ",
            <uint32_t>(place % BLOCK_SECTORS), <unsigned long long>(place // BLOCK_SECTORS)
        )
        if seen >= 0:
            length += snprintf(
                self.words + length, sizeof(self.words) - length, b"what operation %lld wrote", <long long>seen
            )
        else:
            length += snprintf(
                self.words + length, sizeof(self.words) - length,
                b"what nobody wrote there (%016llx %016llx ...)",
                <unsigned long long>words[0], <unsigned long long>words[1]
            )
        length += snprintf(self.words + length, sizeof(self.words) - length, b"; known there:")
        while at >= 0 and length < <int>sizeof(self.words) - 80:
            wrote = &self.wrote[self.versions[at].wrote]
            length += snprintf(
                self.words + length, sizeof(self.words) - length,
                b" %u (%s%s%llu to %lld)",
                self.versions[at].content,
                b"zeros, " if self.versions[at].content == 0 else b"",
                b"lapsed, " if wrote.flags & OP_LAPSED
                else b"stable, " if is_stable(self, wrote)
                else b"acknowledged, " if wrote.flags & OP_ACKNOWLEDGED
                else b"under way, ",
                <unsigned long long>wrote.begun,
                <long long>wrote.ended
            )
            at = self.versions[at].next
        if unwritten:
            snprintf(self.words + length, sizeof(self.words) - length, b" nothing was written")


cdef inline bint is_stable(Oracle oracle, const Wrote* wrote) noexcept nogil:
    return (
        wrote.ended < oracle.doubtful_from
        and (
            wrote.flags & OP_STABLE
            or (wrote.flags & OP_ACKNOWLEDGED and not wrote.flags & OP_LAPSED and wrote.ended <= oracle.stable)
        )
    )


cdef bint has(Oracle oracle, uint32_t sector, uint32_t number) noexcept nogil:
    cdef int32_t at = oracle.first[sector]
    while at >= 0 and oracle.versions[at].wrote != number:
        at = oracle.versions[at].next
    return at >= 0
