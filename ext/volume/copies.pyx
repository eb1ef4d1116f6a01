# The copies of a volume's segments on other nodes, when the volume is opened and when a node is back.
#
# The rules are those of docs/ownership.md, with replica sets that are agreed before their records commit. So every
# member of the current fragment that answers, and is not doubtful, has every acknowledged record.
#
# Always true:
#   - before anything is read, the members that answer refuse the former owner, durably;
#   - of a segment the log keeps what any copy has: what one of them lacks was never acknowledged, but may be kept;
#   - a sealed replica is complete up to its end. One that this node has only begun to get is open, and doubtful;
#   - a copy counts only if it was compared with, or has the same epoch and the same sealed end as, the replica of this
#     node;
#   - a copy with records behind the checkpoint is completed or stays as it is, and is never removed: its device is a
#     member of a fragment in the log's record, and answers for all that the fragment has.
#
# Called by volume/recovery.pyx, and by a command when a node is back.

from libc.errno cimport EBADMSG, ECONNRESET, EHOSTUNREACH, ENOENT, ENOMEM, ESTALE, ETIMEDOUT
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free as release, qsort, realloc
from libc.string cimport memcmp, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.planted cimport planted
from iomesh.engine.base.task cimport start, wait, waited
from iomesh.engine.format.layout cimport BLOCK_BYTES, KIND_ZERO, SEGMENT_SEALED, RecordHeader, record_fault
from iomesh.engine.format.peer cimport LISTED_DOUBTFUL, ListedReplica
from iomesh.engine.log.open_segments cimport FOR_SPACE
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport COPIES_MAX, REPLICAS_MAX, Member
from iomesh.engine.store.store cimport Replica

cdef enum:
    PIECE_BLOCKS = 256               # read from another node at once
    WINDOW_BLOCKS = 512              # compared at once: two whole records at least


cdef struct Fencing:                 # of one member
    Operation ended
    void* member
    uint64_t epoch
    bint asked


cdef class Copies:
    """fragments: list of (number, first record, the devices' numbers), oldest first. Raises MemoryError."""

    def __cinit__(self, Volume volume, fragments):
        cdef int i, k
        self.volume = volume
        self.fragments = <Fragment*>calloc(len(fragments) + 1, sizeof(Fragment))
        if self.fragments is NULL:
            raise MemoryError("no memory for a log's fragments")
        for i, (number, first, devices) in enumerate(fragments):
            if not 0 < len(devices) <= <int>REPLICAS_MAX:
                raise ValueError(f"a fragment has 1 to {REPLICAS_MAX} members, not {len(devices)}")
            self.fragments[i].number, self.fragments[i].first = number, first
            for k, device in enumerate(devices):
                self.fragments[i].devices[k] = device
            self.fragment_count += 1

    def __dealloc__(self):
        release(self.fragments)
        release(self.all)

    # ------------------------------------------------------------------ what answers

    cdef int take_over(self) noexcept nogil:
        cdef int result = self.fence()
        if result == 0:
            result = self.list_all()
        return result if result < 0 else self.check_fragments()

    cdef int check_fragments(self) noexcept nogil:
        cdef int i
        for i in range(self.fragment_count):
            if not self.is_answered(&self.fragments[i]):
                return self.fail(
                    EHOSTUNREACH,
                    b"records from %lu on are on device %lu and its copies, none of which answers: start their nodes",
                    self.fragments[i].first, self.fragments[i].devices[0]
                )
            if not self.is_relied_on(&self.fragments[i]) and not planted(b"doubtful_trusted"):
                return self.fail(
                    EHOSTUNREACH,
                    b"records from %lu on are on device %lu and its copies; those that answer had a power cut and may "
                    b"lack acknowledged writes: start the nodes of the others",
                    self.fragments[i].first, self.fragments[i].devices[0]
                )
        return 0

    cdef int fence(self) noexcept nogil:
        """All members at the same time: each answers when the leases that it gave have run out."""
        cdef int count = self.volume.log.open_segments.member_count, i, result = 0
        cdef bint has_former = self.fragment_count or self.volume.log.epoch > 1      # the first owner has none
        cdef Fencing* fencings = <Fencing*>calloc(count, sizeof(Fencing))
        if fencings is NULL:
            return self.fail(ENOMEM, b"no memory to ask %lu devices", count, 0)
        for i in range(count):
            fencings[i].member = self.volume.log.open_segments.members[i]
            fencings[i].epoch = self.volume.log.epoch
            fencings[i].asked = (<Member>fencings[i].member).works()
            if fencings[i].asked and has_former:
                waited(&fencings[i].ended)
                start(fence_body, &fencings[i], &fencings[i].ended)
        for i in range(count):
            self.answered[i] = fencings[i].asked
            if fencings[i].asked and has_former:
                self.answered[i] = wait(&fencings[i].ended) == 0
                if fencings[i].ended.result == -ESTALE:
                    result = self.fail(ESTALE, b"another node has taken the volume over", 0, 0)
        release(fencings)
        return result

    cdef bint is_answered(self, const Fragment* fragment) noexcept nogil:
        cdef int i, k
        for i in range(self.volume.log.open_segments.member_count):
            for k in range(<int>REPLICAS_MAX):
                if (
                    self.answered[i]
                    and fragment.devices[k]
                    and (<Member>self.volume.log.open_segments.members[i]).device() == fragment.devices[k]
                ):
                    return True
        return False

    cdef bint is_relied_on(self, const Fragment* fragment) noexcept nogil:
        """Whether a member that answered is not doubtful, or all have answered. Of this node's replicas, merge() finds
        out."""
        cdef int i, k
        for i in range(self.volume.log.open_segments.member_count):
            for k in range(<int>REPLICAS_MAX):
                if (
                    self.answered[i]
                    and fragment.devices[k]
                    and (<Member>self.volume.log.open_segments.members[i]).device() == fragment.devices[k]
                    and not self.is_doubtful(<uint16_t>i, fragment.number)
                ):
                    return True
        return self.all_answered(fragment.number)

    cdef bint is_doubtful(self, uint16_t member, uint32_t fragment) noexcept nogil:
        """A member of another node that may lack records of this fragment."""
        cdef uint32_t i
        for i in range(self.count):
            if (
                self.all[i].member == member
                and self.all[i].replica.fragment == fragment
                and self.all[i].replica.flags & LISTED_DOUBTFUL
            ):
                return True
        return False

    cdef bint all_answered(self, uint32_t fragment) noexcept nogil:
        """Whether no member of this fragment is silent. Also true if it is not known."""
        cdef int f, i, k
        cdef bint here
        for f in range(self.fragment_count):
            if self.fragments[f].number != fragment:
                continue
            for k in range(<int>REPLICAS_MAX):
                here = self.fragments[f].devices[k] == 0
                for i in range(self.volume.log.open_segments.member_count):
                    here = here or (
                        self.answered[i] and
                        (<Member>self.volume.log.open_segments.members[i]).device() == self.fragments[f].devices[k]
                    )
                if not here:
                    return False
        return True

    cdef bint all_have_answered(self, uint64_t record) noexcept nogil:
        cdef int i
        for i in range(self.fragment_count):
            if (
                self.fragments[i].first <= record < self.end_of(self.fragments[i].number)
                and not self.all_answered(self.fragments[i].number)
            ):
                return False
        return True

    cdef bint everyone_answered(self) noexcept nogil:
        cdef int i
        for i in range(self.volume.log.open_segments.local_count, self.volume.log.open_segments.member_count):
            if not self.answered[i]:
                return False
        return True

    cdef uint64_t current_first(self) noexcept nogil:
        cdef const Fragment* newest = NULL
        cdef int i
        for i in range(self.fragment_count):
            if newest is NULL or self.fragments[i].number > newest.number:
                newest = &self.fragments[i]
        return newest.first if newest is not NULL else 0

    cdef uint64_t end_of(self, uint32_t fragment) noexcept nogil:
        cdef uint64_t end = ~<uint64_t>0
        cdef bint known = False
        cdef int i
        if fragment == 0 or self.fragment_count == 0 or planted(b"fragment_end_ignored"):
            return end
        for i in range(self.fragment_count):
            known = known or self.fragments[i].number == fragment
            if self.fragments[i].number > fragment:
                end = min(end, self.fragments[i].first)
        # one that was never agreed to has no record; older ones than those that are known end before them
        return end if known or fragment < self.fragments[0].number else 0

    # ------------------------------------------------------------------ what they have

    cdef int list_all(self) noexcept nogil:
        cdef ListedReplica* listed = NULL
        cdef Copy* more
        cdef uint32_t count = 0, n
        cdef int i, result
        for i in range(self.volume.log.open_segments.local_count, self.volume.log.open_segments.member_count):
            if not self.answered[i]:
                continue
            self.boots[i] = (<Member>self.volume.log.open_segments.members[i]).boot()
            result = (<Member>self.volume.log.open_segments.members[i]).list_there(&listed, &count)
            if result < 0:
                self.answered[i] = False
                continue
            more = <Copy*>realloc(self.all, (self.count + count + 1) * sizeof(Copy))
            if more is NULL:
                release(listed)
                return self.fail(ENOMEM, b"no memory for a list of %lu segments", count, 0)
            self.all = more
            for n in range(count):
                memset(&self.all[self.count], 0, sizeof(Copy))
                self.all[self.count].replica = listed[n]
                self.all[self.count].member = <uint16_t>i
                self.count += 1
            release(listed)
        if self.count:
            qsort(self.all, self.count, sizeof(Copy), by_segment)
        return 0

    cdef Copy* first_of(self, uint32_t segment) noexcept nogil:
        """The first of the segment's copies; those after it, up to the next segment, follow. NULL: there is none."""
        cdef uint32_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.all[middle].replica.segment < segment:
                low = middle + 1
            else:
                high = middle
        return &self.all[low] if low < self.count and self.all[low].replica.segment == segment else NULL

    cdef Copy* longer_than(self, const Replica* replica) noexcept nogil:
        """A copy with records that lie behind the end of this sealed replica, and before that of its fragment. A former
        owner may have sealed it without them, when it had not committed them: the next one has kept them."""
        cdef Copy* copy = self.first_of(replica.segment)
        cdef Copy* longest = NULL
        cdef uint32_t end = replica.footer_block if replica.footer_block else replica.blocks
        if replica.state != SEGMENT_SEALED or replica.live:
            return NULL
        while copy is not NULL and copy < self.all + self.count and copy.replica.segment == replica.segment:
            if copy.replica.epoch == replica.epoch and (
                listed_end(&copy.replica) > end if copy.replica.state == SEGMENT_SEALED
                else self.has_record_at(copy, replica, end)
            ) and (longest is NULL or is_better(&copy.replica, &longest.replica)):
                longest = copy
            copy += 1
        return longest

    cdef bint has_record_at(self, const Copy* copy, const Replica* replica, uint32_t block) noexcept nogil:
        cdef RecordHeader* header
        cdef bint found = False
        if copy.replica.flags & LISTED_DOUBTFUL or block >= copy.replica.blocks:
            return False
        header = <RecordHeader*>allocate_aligned(BLOCK_BYTES)
        if header is not NULL and self.read(copy, block, 1, <char*>header) == 0:
            found = (
                header.epoch == replica.epoch
                and record_fault(
                    header, self.volume.log.volume, replica.segment, block, copy.replica.blocks
                ).words is NULL
                and header.sequence < self.end_of(replica.fragment)
            )
        self.volume.io.release(header)
        return found

    cdef bint has_open(self, uint32_t segment) noexcept nogil:
        cdef const Copy* copy = self.first_of(segment)
        while copy is not NULL and copy < self.all + self.count and copy.replica.segment == segment:
            if copy.replica.state != SEGMENT_SEALED:
                return True
            copy += 1
        return False

    cdef int read(self, const Copy* copy, uint32_t block, uint32_t blocks, char* into) noexcept nogil:
        """Blocks that a compaction there has removed read as zeros."""
        cdef void* member = self.volume.log.open_segments.members[copy.member]
        cdef int result = (<Member>member).read(copy.replica.segment, NULL, block, blocks, into)
        cdef uint32_t i
        if result == -ENOENT and copy.replica.live:
            for i in range(blocks):
                result = (<Member>member).read(copy.replica.segment, NULL, block + i, 1, into + <size_t>i * BLOCK_BYTES)
                if result == -ENOENT:
                    memset(into + <size_t>i * BLOCK_BYTES, 0, BLOCK_BYTES)
                    result = 0
                if result < 0:
                    break
        # What it has is not known any more. ENOENT: an owner that is being fenced off has sealed it meanwhile.
        if result == -ECONNRESET or result == -ENOENT:
            self.answered[copy.member] = False
            result = -EHOSTUNREACH
        return result

    # ------------------------------------------------------------------ what this node lacks

    cdef int fetch_missing(
        self, bint (*is_here)(void* owner, uint32_t segment) noexcept nogil, void* owner
    ) noexcept nogil:
        cdef uint32_t i
        cdef int result, fetched = 0
        for i in range(self.count):
            if (i and self.all[i].replica.segment == self.all[i - 1].replica.segment) or \
                    self.all[i].replica.fragment == 0 or self.fragment_count == 0 or \
                    self.all[i].replica.fragment < self.fragments[0].number or \
                    self.end_of(self.all[i].replica.fragment) == 0 or is_here(owner, self.all[i].replica.segment):
                continue
            result = self.fetch(self.all[i].replica.segment, -1)
            if result < 0:
                return result
            fetched = 1
        return fetched

    cdef int fetch(self, uint32_t segment, int where) noexcept nogil:
        cdef Copy* copy = self.first_of(segment)
        cdef Copy* chosen = NULL
        cdef bint silent = False
        while copy is not NULL and copy < self.all + self.count and copy.replica.segment == segment:
            silent = silent or not self.answered[copy.member]
            if self.answered[copy.member] and (chosen is NULL or is_better(&copy.replica, &chosen.replica)):
                chosen = copy
            copy += 1
        if chosen is NULL and silent:
            return self.fail(EHOSTUNREACH, b"the nodes that have segment %lu do not answer any more", segment, 0)
        if chosen is NULL:
            return -ENOENT
        if where < 0:
            where = self.volume.log.open_segments.choose_member(FOR_SPACE)
        if where < 0:
            return self.fail(-where, b"segment %lu is on other nodes only, and no device here takes it", segment, 0)
        return self.fetch_copy(chosen, where)

    cdef int fetch_copy(self, const Copy* chosen, int where) noexcept nogil:
        cdef Replica* replica = NULL
        cdef void* member = self.volume.log.open_segments.members[where]
        cdef char* buffer = <char*>allocate_aligned(PIECE_BLOCKS * BLOCK_BYTES)
        cdef uint32_t segment = chosen.replica.segment, block = 0, piece
        cdef int result
        if buffer is NULL:
            return self.fail(ENOMEM, b"no memory to fetch segment %lu", segment, 0)
        result = (<Member>member).reserve(segment, chosen.replica.blocks, &replica)
        while result == 0 and block < chosen.replica.blocks:
            piece = min(<uint32_t>PIECE_BLOCKS, chosen.replica.blocks - block)
            result = self.read(chosen, block, piece, buffer)
            if result == 0:
                result = (<Member>member).fill(segment, replica, block, piece, buffer)
            block += piece
            self.fetched_bytes += <uint64_t>piece * BLOCK_BYTES
        if result == 0:
            result = (<Member>member).make_stable()
        if result == 0:
            replica.fragment = chosen.replica.fragment
            result = (<Member>member).keep(
                segment, replica, chosen.replica.epoch, chosen.replica.stream, chosen.replica.blocks,
                chosen.replica.footer_block, chosen.replica.state
            )
        elif replica is not NULL:
            (<Member>member).discard(segment, replica)
        self.volume.io.release(buffer)
        if result < 0:
            return self.fail(-result, b"segment %lu, which is on other nodes only, cannot be fetched", segment, 0)
        self.fetched += 1
        return 0

    # ------------------------------------------------------------------ what both have

    cdef int merge(self, Replica* replica, uint16_t member) noexcept nogil:
        """Gets the records that reliable copies have, and this replica has not or has lost. Notes how far each copy has
        the same. An open replica that is doubtful needs one that is not, unless all members answer."""
        cdef Copy* copy = self.first_of(replica.segment)
        cdef bint relied_on = False
        cdef int result
        while copy is not NULL and copy < self.all + self.count and copy.replica.segment == replica.segment:
            if copy.replica.epoch == replica.epoch:
                relied_on = relied_on or not copy.replica.flags & LISTED_DOUBTFUL
                result = self.merge_one(copy, replica, member)
                if result < 0:
                    return self.fail(-result, b"segment %lu cannot be compared with its copies", replica.segment, 0)
            copy += 1
        if (
            not relied_on
            and (<Member>self.volume.log.open_segments.members[member]).is_doubtful(replica)
            and not self.all_answered(replica.fragment)
        ):
            return self.fail(
                EHOSTUNREACH,
                b"this node had a power cut and may lack acknowledged writes in segment %lu, and the other members of "
                b"its replica set do not answer: start their nodes",
                replica.segment, 0
            )
        return 0

    cdef int merge_one(self, Copy* copy, Replica* replica, uint16_t member) noexcept nogil:
        cdef char* here = <char*>allocate_aligned(WINDOW_BLOCKS * BLOCK_BYTES)
        cdef char* there = <char*>allocate_aligned(WINDOW_BLOCKS * BLOCK_BYTES)
        cdef uint32_t limit = min(replica.blocks, copy.replica.blocks), block = 0, base = 0, held = 0, length = 1
        cdef int result = 0 if here is not NULL and there is not NULL else -ENOMEM
        if replica.footer_block:                         # what the copy has behind the last record does not count
            limit = min(limit, replica.footer_block)
        while result == 0 and length and block < limit:
            if block + length > base + held or held == 0:
                base, held = block, min(<uint32_t>WINDOW_BLOCKS, limit - block)
                result = self.read_both(copy, replica, member, base, held, here, there)
                if result < 0:
                    break
            length = self.record_at(
                replica, block, base + held, here + <size_t>(block - base) * BLOCK_BYTES,
                there + <size_t>(block - base) * BLOCK_BYTES
            )
            if length > 1 and block + length > base + held and base < block:
                continue                                 # the window moves on
            if length == 0 or block + length > base + held:
                break
            result = self.mend(
                replica, member, block, length, here + <size_t>(block - base) * BLOCK_BYTES,
                there + <size_t>(block - base) * BLOCK_BYTES
            )
            if result > 0:                               # the copy lacks a part of it
                result = 0
                break
            block += length
            length = 1
        copy.common = block
        self.volume.io.release(here)
        self.volume.io.release(there)
        return result

    cdef int read_both(
        self,
        const Copy* copy,
        Replica* replica,
        uint16_t member,
        uint32_t block,
        uint32_t blocks,
        char* here,
        char* there,
    ) noexcept nogil:
        """A block that cannot be read here is one that is not there: zeros."""
        cdef void* local = self.volume.log.open_segments.members[member]
        cdef uint32_t i, piece = 0
        cdef int result = 0
        if (<Member>local).read(replica.segment, replica, block, blocks, here) < 0:
            for i in range(blocks):
                result = (<Member>local).read(replica.segment, replica, block + i, 1, here + <size_t>i * BLOCK_BYTES)
                if result == -ETIMEDOUT:
                    return result
                if result < 0:
                    memset(here + <size_t>i * BLOCK_BYTES, 0, BLOCK_BYTES)
        result = 0
        while result == 0 and piece < blocks:
            result = self.read(
                copy, block + piece, min(blocks - piece, <uint32_t>PIECE_BLOCKS), there + <size_t>piece * BLOCK_BYTES
            )
            piece += PIECE_BLOCKS
        return result

    cdef uint32_t record_at(
        self, const Replica* replica, uint32_t block, uint32_t end, const char* here, const char* there
    ) noexcept nogil:
        """Blocks of the record that one of both has here; 0: neither has one."""
        cdef const RecordHeader* header = <const RecordHeader*>here
        if self.is_of(header, replica, block):
            return 1 + header.payload_blocks
        header = <const RecordHeader*>there
        return 1 + header.payload_blocks if self.is_of(header, replica, block) else 0

    cdef bint is_of(self, const RecordHeader* header, const Replica* replica, uint32_t block) noexcept nogil:
        return (
            header.epoch == replica.epoch
            and record_fault(header, self.volume.log.volume, replica.segment, block, replica.blocks).words is NULL
            and block + 1 + header.payload_blocks <= replica.blocks
        )

    cdef int mend(
        self, Replica* replica, uint16_t member, uint32_t block, uint32_t length, char* here, const char* there
    ) noexcept nogil:
        """Gets the blocks of a record that are wrong here. 1: the copy has not all of the record; 0; or a negative
        errno."""
        cdef const RecordHeader* header = <const RecordHeader*>there
        cdef uint32_t i, k = 0
        cdef bint differs = memcmp(here, there, BLOCK_BYTES) != 0
        if not self.is_of(header, replica, block) or <uint32_t>1 + header.payload_blocks != length:
            if planted(b"shorter_prefix_taken"):
                memset(here, 0, BLOCK_BYTES)
                (<Member>self.volume.log.open_segments.members[member]).fill(replica.segment, replica, block, 1, here)
            return 1
        for i in range(header.entry_count):
            if header.entries[i].kind == KIND_ZERO:
                continue
            k += 1
            if crc32c(there + <size_t>k * BLOCK_BYTES, BLOCK_BYTES) != header.entries[i].crc:
                return 1
            differs = differs or memcmp(
                here + <size_t>k * BLOCK_BYTES, there + <size_t>k * BLOCK_BYTES, BLOCK_BYTES
            ) != 0
        if not differs:
            return 0
        self.fetched_bytes += <uint64_t>length * BLOCK_BYTES
        return (<Member>self.volume.log.open_segments.members[member]).fill(
            replica.segment, replica, block, length, there
        )

    # ------------------------------------------------------------------ what becomes of the copies

    cdef void seal(self, Replica* replica, uint16_t member, uint32_t end) noexcept nogil:
        cdef Copy* copy = self.first_of(replica.segment)
        while copy is not NULL and copy < self.all + self.count and copy.replica.segment == replica.segment:
            self.seal_one(copy, replica, member, end)
            copy += 1

    cdef void seal_one(self, Copy* copy, Replica* replica, uint16_t member, uint32_t end) noexcept nogil:
        cdef void* there = self.volume.log.open_segments.members[copy.member]
        if copy.replica.epoch == replica.epoch and copy.replica.state != SEGMENT_SEALED:
            if copy.replica.flags & LISTED_DOUBTFUL and not planted(b"doubtful_not_sent_again"):
                copy.common = 0                          # what is read there need not be on stable media
            if (
                (self.complete(copy, replica, member, end) == 0 or planted(b"copy_not_completed"))
                and (<Member>there).make_stable() == 0
                and self.is_same_boot(copy.member)
                and (<Member>there).seal(replica.segment, self.volume.log.epoch, NULL, end, 0, True) == 0
            ):
                copy.replica.state = SEGMENT_SEALED
                copy.replica.blocks, copy.replica.footer_block = end, 0
                copy.replica.flags = 0
        copy.matches = is_same(&copy.replica, replica.epoch, end)

    cdef bint is_same_boot(self, uint16_t member) noexcept nogil:
        """Whether nothing of what was found or written there can be lost: it is on stable media, and there was no power
        cut before it was."""
        cdef uint64_t boot = (<Member>self.volume.log.open_segments.members[member]).boot()
        return (boot != 0 and boot == self.boots[member]) or planted(b"reboot_unnoticed")

    cdef int complete(self, Copy* copy, Replica* replica, uint16_t member, uint32_t end) noexcept nogil:
        """Writes the records to an open copy that it lacks, up to block `end`, as far as it was compared."""
        cdef void* local = self.volume.log.open_segments.members[member]
        cdef void* there = self.volume.log.open_segments.members[copy.member]
        cdef char* buffer = NULL
        cdef uint32_t length
        cdef int result = 0
        if copy.common < end:
            buffer = <char*>allocate_aligned(PIECE_BLOCKS * BLOCK_BYTES)
            result = 0 if buffer is not NULL and replica.live == 0 else -ENOMEM
        while result == 0 and copy.common < end:
            result = (<Member>local).read(replica.segment, replica, copy.common, 1, buffer)
            length = 1 + (<const RecordHeader*>buffer).payload_blocks
            if result == 0 and not (
                self.is_of(<const RecordHeader*>buffer, replica, copy.common) and copy.common + length <= end
            ):
                result = -EBADMSG                        # it is damaged here
            if result == 0:
                result = (<Member>local).read(replica.segment, replica, copy.common, length, buffer)
            if result == 0:
                result = (<Member>there).complete(
                    replica.segment, self.volume.log.epoch, replica.stream, copy.common, length, buffer
                )
            if result == 0:
                self.completed += 1
                copy.common += length
        self.volume.io.release(buffer)
        return result

    cdef void adopt(self) noexcept nogil:
        cdef Segment* segment
        cdef Copy* copy
        cdef uint32_t i
        for i in range(self.count):
            copy = &self.all[i]
            segment = self.volume.segments.find(copy.replica.segment)
            if segment is not NULL and (
                copy.matches or is_same(&copy.replica, segment.replica.epoch, sealed_end(segment))
            ):
                copy.matches = True
                if segment.copy_count < COPIES_MAX:
                    segment.copies[segment.copy_count] = copy.member
                    segment.copy_count += 1

    cdef void remove_rest(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if not self.all[i].matches and not self.is_listed(self.volume.segments.find(self.all[i].replica.segment)):
                (<Member>self.volume.log.open_segments.members[self.all[i].member]).remove(
                    self.all[i].replica.segment, self.volume.log.epoch, NULL
                )

    cdef bint is_listed(self, const Segment* segment) noexcept nogil:
        """Whether the log's record may list the segment's fragment, because of records behind the checkpoint."""
        return (
            segment is not NULL
            and segment.last_sequence > self.volume.checkpoints.sequence
            and not planted(b"needed_copy_removed")
        )

    cdef int reconcile(self, uint16_t member) noexcept nogil:
        cdef void* there = self.volume.log.open_segments.members[member]
        cdef Segment* segment
        cdef uint32_t i
        cdef int result
        self.answered[member] = True
        result = self.list_all()
        if result == 0 and not self.answered[member]:
            result = -ECONNRESET
        for i in range(self.count if result == 0 else 0):
            segment = self.volume.segments.find(self.all[i].replica.segment)
            if segment is not NULL and (
                segment.state != SEGMENT_SEALED or has_copy(segment, member) or segment.cleaning
            ):
                continue
            if segment is not NULL and self.settle(&self.all[i], segment):
                if segment.copy_count < COPIES_MAX and not has_copy(segment, member):
                    segment.copies[segment.copy_count] = member
                    segment.copy_count += 1
            elif self.is_listed(segment):
                self.left += 1
            elif result == 0:
                result = (<Member>there).remove(self.all[i].replica.segment, self.volume.log.epoch, NULL)
        return result

    cdef bint settle(self, Copy* copy, Segment* segment) noexcept nogil:
        """Whether the copy has all records of a sealed segment. An open one gets what it lacks, and is sealed."""
        cdef uint32_t end = sealed_end(segment)
        if is_same(&copy.replica, segment.replica.epoch, end):
            return True
        if copy.replica.epoch != segment.replica.epoch or segment.replica.live:
            return False
        segment.cleaning = True                          # its replica stays as it is meanwhile
        if copy.replica.state == SEGMENT_SEALED or self.merge_one(copy, segment.replica, segment.member) == 0:
            self.seal_one(copy, segment.replica, segment.member, end)
        segment.cleaning = False
        return copy.matches

    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b) noexcept nogil:
        snprintf(self.reason, sizeof(self.reason), text, a, b)
        return -error


cdef int64_t fence_body(void* argument) noexcept nogil:
    cdef Fencing* fencing = <Fencing*>argument
    return (<Member>fencing.member).fence(fencing.epoch)


cdef bint is_better(const ListedReplica* one, const ListedReplica* other) noexcept nogil:
    """Whether a segment is fetched from `one`. Of sealed ones the longest: a former owner may have sealed another one
    that lacks records, which it had not committed when it lost the right, and the next owner took over."""
    if (one.state == SEGMENT_SEALED) != (other.state == SEGMENT_SEALED):
        return one.state == SEGMENT_SEALED
    if one.state == SEGMENT_SEALED:
        return listed_end(one) > listed_end(other)
    return other.flags & LISTED_DOUBTFUL and not one.flags & LISTED_DOUBTFUL


cdef inline uint32_t listed_end(const ListedReplica* listed) noexcept nogil:
    return listed.footer_block if listed.footer_block else listed.blocks


cdef bint has_copy(const Segment* segment, uint16_t member) noexcept nogil:
    cdef int i
    for i in range(segment.copy_count):
        if segment.copies[i] == member:
            return True
    return False


cdef inline uint32_t sealed_end(const Segment* segment) noexcept nogil:
    """The block behind the segment's last record."""
    return segment.replica.footer_block if segment.replica.footer_block else segment.blocks


cdef bint is_same(const ListedReplica* listed, uint64_t epoch, uint32_t end) noexcept nogil:
    """A sealed replica of this epoch has the records up to block `end`, and maybe more, which do not count."""
    if listed.state != SEGMENT_SEALED or listed.epoch != epoch:
        return False
    return listed_end(listed) >= end or planted(b"any_copy_is_same")


cdef int by_segment(const void* a, const void* b) noexcept nogil:
    cdef uint32_t one = (<Copy*>a).replica.segment, other = (<Copy*>b).replica.segment
    return (one > other) - (one < other)
