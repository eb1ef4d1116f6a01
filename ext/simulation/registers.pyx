# The history of a volume's blocks as the clients of all its owners see it. Each block is a register: there must be one
# order of all writes and reads, in which each read returns the write before it, and whatever ended before something
# else began comes first.
#
# Written values are unique, so that is easily decided (Gibbons and Korach, "Testing Shared Memories", 1997). A write
# and the reads that returned it have a zone: from the first end of one of them to the last beginning. If the end comes
# first, the register had that value all that time: two such zones must not overlap, and no other zone may lie inside
# one. A write that nobody acknowledged and nobody read need not have taken place.
#
# What is beyond that:
#   - a write of a former owner takes effect before the log is recovered under a newer epoch, or never (`limit`);
#   - what was acknowledged or read is lost at most by power cuts of all nodes that had it, before a flush (`lapsed`).
#     What is left then of one owner's writes is a prefix;
#   - what a recovered log does not have never comes back: settle() forgets all values but the one that is there. Of a
#     former owner that still runs, writes that it may still acknowledge are kept;
#   - trims have no value of their own: zeros that more than one of them explains are not followed up.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release, malloc
from libc.string cimport memset

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.simulation.disk cimport BLOCK_SECTORS, SECTOR_BYTES
from iomesh.engine.simulation.oracle cimport identity_of

cdef extern from *:
    """
    #define NEVER_ENDED UINT64_MAX
    """
    const uint64_t NEVER "NEVER_ENDED"

cdef enum:
    UNKNOWN = -1                     # a content that no write has


cdef class Registers:
    """Raises MemoryError."""

    def __cinit__(self):
        cdef uint32_t i
        self.writes = <RegisterWrite*>calloc(WRITES_MAX, sizeof(RegisterWrite))
        self.values = <Value*>malloc(VALUES_MAX * sizeof(Value))
        if self.writes is NULL or self.values is NULL:
            raise MemoryError("no memory for a model")
        self.clock = self.count = 1
        self.free = -1
        self.writes[0].limit = NEVER
        self.writes[0].flags = WRITE_ZERO | WRITE_ACKNOWLEDGED | WRITE_STABLE | WRITE_OVER
        for i in range(MODEL_BLOCKS_MAX):
            self.first[i] = -1
            self.add(i, 0)
        for i in range(EPOCHS_KEPT):
            self.ambiguous[i].loss = NEVER

    def __dealloc__(self):
        release(self.writes)
        release(self.values)

    cdef uint64_t tick(self) noexcept nogil:
        self.clock += 1
        return self.clock

    # ------------------------------------------------------------------ writes

    cdef uint32_t begin(
        self, uint32_t block, uint32_t count, bint zeros, uint64_t epoch, uint32_t owner
    ) noexcept nogil:
        cdef uint32_t number = self.count, i
        cdef RegisterWrite* write = &self.writes[number]
        invariant(number < WRITES_MAX and block + count <= MODEL_BLOCKS_MAX, b"a write lies in the model")
        self.count += 1
        write.begun = self.tick()
        write.ended = write.limit = NEVER
        write.epoch, write.owner, write.block, write.count = epoch, owner, block, count
        write.flags = WRITE_ZERO if zeros else 0
        for i in range(block, block + count):
            self.add(i, number)
        return number

    cdef bint acknowledge(self, uint32_t number, uint32_t holders, bint stable) noexcept nogil:
        cdef RegisterWrite* write = &self.writes[number]
        cdef Value* value
        cdef Value* other
        cdef uint32_t i
        write.ended = self.tick()
        write.flags |= WRITE_ACKNOWLEDGED
        write.holders = holders
        for i in range(HOLDERS_MAX):
            if self.cut[i] > write.begun:
                write.holders &= ~(<uint32_t>1 << i)
        if stable:
            self.flushed(write.begun, write.epoch)
            write.flags |= WRITE_STABLE
        elif write.holders == 0 and not write.flags & WRITE_STABLE:
            self.lapse(write)
        for i in range(write.block, write.block + write.count):
            value = self.find(i, number)
            if value is NULL:                            # settled without it: it was overwritten before, or has lapsed
                continue
            other = self.conflict(i, value)
            if other is not NULL:
                return self.complain(b"was acknowledged, but has no place in the history", i, value, other)
        return True

    cdef void flushed(self, uint64_t begun, uint64_t epoch) noexcept nogil:
        cdef uint32_t i
        for i in range(1, self.count):
            if self.writes[i].ended <= begun and self.writes[i].epoch <= epoch:
                self.writes[i].flags |= WRITE_STABLE

    cdef void is_gone(self, uint32_t owner) noexcept nogil:
        cdef uint32_t i
        for i in range(1, self.count):
            if self.writes[i].owner == owner:
                self.writes[i].flags |= WRITE_OVER

    # ------------------------------------------------------------------ owners and power cuts

    cdef void recovered(self, uint64_t epoch) noexcept nogil:
        cdef uint64_t now = self.tick()
        cdef uint32_t i
        self.opened = max(self.opened, epoch)
        for i in range(1, self.count):
            if self.writes[i].epoch < epoch and self.writes[i].limit == NEVER:
                self.writes[i].limit = now
                self.writes[i].flags |= WRITE_STABLE     # if it is there at all

    cdef void lose_power(self, int node) noexcept nogil:
        cdef RegisterWrite* write
        cdef uint32_t i
        self.cut[node] = self.tick()
        for i in range(1, self.count):
            write = &self.writes[i]
            if write.flags & WRITE_STABLE:
                continue
            if write.flags & WRITE_ACKNOWLEDGED and write.holders >> node & 1:
                write.holders &= ~(<uint32_t>1 << node)
                if write.holders == 0:
                    self.lapse(write)
            elif not write.flags & WRITE_ACKNOWLEDGED or write.holders == 0:     # who has it is not known
                self.lapse(write)

    cdef void distrust(self, uint64_t until) noexcept nogil:
        cdef uint32_t i
        for i in range(1, self.count):
            if not self.writes[i].flags & WRITE_STABLE and self.writes[i].begun < until:
                self.lapse(&self.writes[i])

    cdef void lapse(self, const RegisterWrite* write) noexcept nogil:
        cdef uint32_t i
        cdef Value* value
        for i in range(write.block, write.block + write.count):
            value = self.find(i, <uint32_t>(write - self.writes))
            if value is not NULL:
                value.lapsed = True
                self.lapses += 1

    # ------------------------------------------------------------------ reads

    cdef int64_t identify(self, const char* data, uint64_t place) noexcept nogil:
        """Returns the write that has this content at `place`, in blocks from the volume's start; 0: zeros; UNKNOWN."""
        cdef int64_t number = identity_of(data, place * BLOCK_SECTORS, self.count)
        cdef uint32_t i
        for i in range(1, BLOCK_SECTORS):
            if identity_of(data + i * SECTOR_BYTES, place * BLOCK_SECTORS + i, self.count) != number:
                return UNKNOWN
        return number

    cdef bint check(self, uint32_t block, const char* data, uint64_t place, uint64_t begun) noexcept nogil:
        cdef int64_t seen = self.identify(data, place)
        self.compared += 1
        if seen == 0:
            return self.read_zeros(block, begun) is not NULL
        return self.read(block, seen, begun, data) is not NULL

    cdef bint settle(self, uint32_t block, const char* data, uint64_t place, uint64_t begun) noexcept nogil:
        cdef int64_t seen = self.identify(data, place)
        cdef Value* value
        cdef Value* other
        cdef int32_t* link = &self.first[block]
        cdef int32_t at
        self.compared += 1
        value = self.read_zeros(block, begun) if seen == 0 else self.read(block, seen, begun, data)
        if value is NULL:
            return False
        if value.read_ended == NEVER:                    # of several trims: it does not matter which
            value = self.add(block, self.zeros_of_before(begun))
        if self.writes[value.write].flags & WRITE_ZERO == 0:
            self.ambiguous[self.writes[value.write].epoch % EPOCHS_KEPT].survivor = max(
                self.ambiguous[self.writes[value.write].epoch % EPOCHS_KEPT].survivor, self.writes[value.write].begun
            )
        while link[0] >= 0:
            at = link[0]
            other = &self.values[at]
            if other is value or not self.writes[other.write].flags & (WRITE_ACKNOWLEDGED | WRITE_OVER):
                link = &other.next
                continue
            if other.lapsed:
                self.note_loss(value, other)
            link[0] = other.next
            other.next = self.free
            self.free = at
        return True

    cdef uint32_t zeros_of_before(self, uint64_t begun) noexcept nogil:
        """A trim that is known to have taken place by the time of this read."""
        cdef uint32_t number = self.count
        invariant(number < WRITES_MAX, b"a model has room for writes")
        self.count += 1
        self.writes[number].begun = begun
        self.writes[number].ended = self.tick()
        self.writes[number].limit = NEVER
        self.writes[number].flags = WRITE_ZERO | WRITE_ACKNOWLEDGED | WRITE_STABLE | WRITE_OVER
        return number

    cdef void note_loss(self, const Value* seen, const Value* lost) noexcept nogil:
        """A value that has lapsed is not there: it is lost, unless what was seen may have replaced it."""
        cdef const RegisterWrite* write = &self.writes[lost.write]
        cdef Ambiguous* ambiguous = &self.ambiguous[write.epoch % EPOCHS_KEPT]
        if not write.flags & WRITE_ACKNOWLEDGED or self.writes[seen.write].flags & WRITE_ZERO:
            return
        if self.writes[seen.write].ended < write.begun:
            self.losses += 1
            ambiguous.loss = min(ambiguous.loss, write.ended)

    cdef bint settled(self) noexcept nogil:
        cdef uint32_t i
        cdef bint prefix = True
        for i in range(EPOCHS_KEPT):
            if self.ambiguous[i].survivor > self.ambiguous[i].loss and prefix:
                prefix = False
                snprintf(
                    self.words, sizeof(self.words),
                    b"what a power cut has left is no prefix: a write that began at %llu is there, and one that was "
                    b"acknowledged at %llu, by the same owner, is not",
                    <unsigned long long>self.ambiguous[i].survivor, <unsigned long long>self.ambiguous[i].loss
                )
            self.ambiguous[i].survivor = 0
            self.ambiguous[i].loss = NEVER
        return prefix

    cdef Value* read(self, uint32_t block, int64_t seen, uint64_t begun, const char* data) noexcept nogil:
        """A read that ends now has returned this write."""
        cdef Value* value = NULL if seen < 0 else self.find(block, <uint32_t>seen)
        cdef Value* other
        cdef const uint64_t* words = <const uint64_t*>data
        if value is NULL:
            snprintf(
                self.words, sizeof(self.words),
                b"block %u: read what nobody wrote there (%016llx %016llx ...)" if seen < 0
                else b"block %u: read write %lld, which a recovered log did not have",
                block, words[0], words[1]
            )
            return NULL
        value.read_ended = min(value.read_ended, self.tick())
        value.read_begun = max(value.read_begun, begun)
        if self.writes[value.write].limit != NEVER:      # else the owner whose device lost it may still know it
            value.lapsed = False
        other = self.conflict(block, value)
        if other is not NULL:
            self.complain(b"was read, but has no place in the history", block, value, other)
            return NULL
        return value

    cdef Value* read_zeros(self, uint32_t block, uint64_t begun) noexcept nogil:
        """A read that ends now has returned zeros: of any trim that can have been the last one."""
        cdef uint64_t now = self.tick()
        cdef Value* found = NULL
        cdef Value* other = NULL
        cdef Value* value
        cdef Value before
        cdef int32_t at = self.first[block]
        cdef uint32_t count = 0
        while at >= 0:
            value = &self.values[at]
            at = value.next
            if not self.writes[value.write].flags & WRITE_ZERO:
                continue
            before = value[0]
            value.read_ended, value.read_begun = min(before.read_ended, now), max(before.read_begun, begun)
            value.lapsed = False
            other = self.conflict(block, value)
            if other is NULL:
                count += 1
                found = value
            value[0] = before
        if count == 0:
            value = self.find(block, 0)
            snprintf(
                self.words, sizeof(self.words),
                b"block %u: read zeros, though write %u (begun at %llu, ended at %lld) was later than any trim",
                block, other.write if other is not NULL else 0,
                <unsigned long long>(self.writes[other.write].begun if other is not NULL else 0),
                <long long>(self.writes[other.write].ended if other is not NULL else 0)
            )
            return NULL
        if count == 1:
            found.read_ended, found.read_begun = min(found.read_ended, now), max(found.read_begun, begun)
            found.lapsed = False
        return found

    # ------------------------------------------------------------------ zones

    cdef Value* conflict(self, uint32_t block, const Value* value) noexcept nogil:
        """Another value of the block that cannot be in one history with this one; NULL: there is none."""
        cdef int32_t at = self.first[block]
        cdef Value* other
        cdef uint64_t end = end_of(self, value), begin = begin_of(self, value), its_end, its_begin
        if not took_place(self, value):
            return NULL
        while at >= 0:
            other = &self.values[at]
            at = other.next
            if other == value or not took_place(self, other):
                continue
            its_end, its_begin = end_of(self, other), begin_of(self, other)
            if end < begin and its_end < its_begin:
                if max(end, its_end) < min(begin, its_begin):
                    return other
            elif end < begin:
                if end < its_begin and its_end < begin:
                    return other
            elif its_end < its_begin and its_end < begin and end < its_begin:
                return other
        return NULL

    cdef Value* find(self, uint32_t block, uint32_t number) noexcept nogil:
        cdef int32_t at = self.first[block]
        while at >= 0 and self.values[at].write != number:
            at = self.values[at].next
        return NULL if at < 0 else &self.values[at]

    cdef Value* add(self, uint32_t block, uint32_t number) noexcept nogil:
        cdef int32_t at = self.free
        if at >= 0:
            self.free = self.values[at].next
        else:
            invariant(self.used < VALUES_MAX, b"a model has room for values")
            at = <int32_t>self.used
            self.used += 1
        memset(&self.values[at], 0, sizeof(Value))
        self.values[at].write = number
        self.values[at].read_ended = NEVER
        self.values[at].next = self.first[block]
        self.first[block] = at
        return &self.values[at]

    cdef bint complain(self, const char* what, uint32_t block, const Value* value, const Value* other) noexcept nogil:
        cdef const RegisterWrite* one = &self.writes[value.write]
        cdef const RegisterWrite* two = &self.writes[other.write]
        snprintf(
            self.words, sizeof(self.words),
            b"block %u: write %u (epoch %llu, %llu to %lld, limit %lld, read %lld to %llu) %s: write %u (epoch %llu, "
            b"%llu to %lld, limit %lld, read %lld to %llu)",
            block, value.write, <unsigned long long>one.epoch, <unsigned long long>one.begun, <long long>one.ended,
            <long long>one.limit, <long long>value.read_ended, <unsigned long long>value.read_begun, what, other.write,
            <unsigned long long>two.epoch, <unsigned long long>two.begun, <long long>two.ended, <long long>two.limit,
            <long long>other.read_ended, <unsigned long long>other.read_begun
        )
        return False


cdef inline bint took_place(Registers registers, const Value* value) noexcept nogil:
    return not value.lapsed and (
        registers.writes[value.write].flags & WRITE_ACKNOWLEDGED or value.read_ended != NEVER
    )


cdef inline uint64_t end_of(Registers registers, const Value* value) noexcept nogil:
    cdef const RegisterWrite* write = &registers.writes[value.write]
    return min(min(write.ended, write.limit), value.read_ended)


cdef inline uint64_t begin_of(Registers registers, const Value* value) noexcept nogil:
    return max(registers.writes[value.write].begun, value.read_begun)
