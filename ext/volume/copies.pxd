# The copies of a volume's segments on other nodes. See volume/copies.pyx.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport RecordHeader
from iomesh.engine.format.peer cimport ListedReplica
from iomesh.engine.map.segment_table cimport Segment
from iomesh.engine.replicas.member cimport MEMBERS_MAX, REPLICAS_MAX
from iomesh.engine.store.store cimport Replica
from iomesh.engine.volume.volume cimport Volume

cdef struct Fragment:                # as the metadata service has it
    uint32_t number
    uint64_t first                   # record
    uint32_t devices[REPLICAS_MAX]   # of its replica set: their numbers in the cluster; 0: none

cdef struct Copy:                    # a replica on another node
    ListedReplica replica
    uint16_t member
    uint32_t common                  # blocks from the segment's beginning on whose records it has
    bint matches                     # it has all that the replica here has

cdef class Copies:                   # Copies(volume, fragments)
    cdef Volume volume
    cdef Fragment* fragments         # oldest first; the last one is the current one
    cdef int fragment_count
    cdef Copy* all                   # by segment number
    cdef uint32_t count
    cdef bint answered[MEMBERS_MAX]  # it accepted the fence
    cdef uint64_t boots[MEMBERS_MAX]  # of the members' machines when their copies were listed
    cdef char reason[512]
    cdef readonly uint64_t fetched_bytes
    cdef readonly uint32_t fetched   # segments that were on other nodes only
    cdef readonly uint32_t completed  # records that copies lacked
    cdef readonly uint32_t left      # copies that reconcile() neither counts nor removes yet

    # These: in a task; 0, or a negative errno and `reason`.
    #
    # Fences the volume's former owner off, on all members that answer; and lists what those of other nodes have. Fails
    # unless every fragment has a member that answers.
    cdef int take_over(self) noexcept nogil
    cdef int check_fragments(self) noexcept nogil        # again, if a connection may have ended meanwhile
    # Gets a segment that this node lacks, or has shorter. where: the member that gets it; -1: any. -ENOENT: no node
    # that answers has it.
    cdef int fetch(self, uint32_t segment, int where) noexcept nogil
    cdef int fetch_copy(self, const Copy* chosen, int where) noexcept nogil
    # Those of known fragments. 1: there were some.
    cdef int fetch_missing(
        self, bint (*is_here)(void* owner, uint32_t segment) noexcept nogil, void* owner
    ) noexcept nogil
    # A copy that has more of a segment that is sealed here; NULL: none.
    cdef Copy* longer_than(self, const Replica* replica) noexcept nogil
    # A replica of this node gets what it lacks of the records in its copies; how far each copy is the same is noted.
    cdef int merge(self, Replica* replica, uint16_t member) noexcept nogil
    # The replica is sealed and has records up to block `end`: its copies get what they lack, and are sealed, too.
    cdef void seal(self, Replica* replica, uint16_t member, uint32_t end) noexcept nogil
    # Records end before this one in segments of this fragment; ~0: they do not.
    cdef uint64_t end_of(self, uint32_t fragment) noexcept nogil
    # What was written before this record is on all members of the fragments before the newest one; 0: there is none.
    cdef uint64_t current_first(self) noexcept nogil
    # No member is silent of the fragments that may have this record; no device of another node is.
    cdef bint all_have_answered(self, uint64_t record) noexcept nogil
    cdef bint everyone_answered(self) noexcept nogil
    # Tells the segment table of the copies that match. Once the fragment is agreed, remove_rest() removes the others.
    cdef void adopt(self) noexcept nogil
    cdef void remove_rest(self) noexcept nogil
    # Of an open volume, with new Copies: a member of another node is back. What it has of the volume's sealed segments
    # counts as copies again; what the volume does not need is removed there. `left`: what stays until the next
    # checkpoint.
    cdef int reconcile(self, uint16_t member) noexcept nogil

    cdef bint is_listed(self, const Segment* segment) noexcept nogil
    cdef bint settle(self, Copy* copy, Segment* segment) noexcept nogil
    cdef void seal_one(self, Copy* copy, Replica* replica, uint16_t member, uint32_t end) noexcept nogil
    cdef bint is_same_boot(self, uint16_t member) noexcept nogil
    cdef int complete(self, Copy* copy, Replica* replica, uint16_t member, uint32_t end) noexcept nogil
    cdef bint has_record_at(self, const Copy* copy, const Replica* replica, uint32_t block) noexcept nogil
    cdef bint has_open(self, uint32_t segment) noexcept nogil      # a copy of it that is not sealed
    cdef int fence(self) noexcept nogil
    cdef Copy* first_of(self, uint32_t segment) noexcept nogil
    cdef int list_all(self) noexcept nogil
    cdef bint is_answered(self, const Fragment* fragment) noexcept nogil
    cdef bint is_relied_on(self, const Fragment* fragment) noexcept nogil
    cdef bint is_doubtful(self, uint16_t member, uint32_t fragment) noexcept nogil
    cdef bint all_answered(self, uint32_t fragment) noexcept nogil
    cdef int read(self, const Copy* copy, uint32_t block, uint32_t blocks, char* into) noexcept nogil
    cdef int merge_one(self, Copy* copy, Replica* replica, uint16_t member) noexcept nogil
    cdef int read_both(
        self,
        const Copy* copy,
        Replica* replica,
        uint16_t member,
        uint32_t block,
        uint32_t blocks,
        char* here,
        char* there,
    ) noexcept nogil
    cdef uint32_t record_at(
        self, const Replica* replica, uint32_t block, uint32_t end, const char* here, const char* there
    ) noexcept nogil
    cdef bint is_of(self, const RecordHeader* header, const Replica* replica, uint32_t block) noexcept nogil
    cdef int mend(
        self, Replica* replica, uint16_t member, uint32_t block, uint32_t length, char* here, const char* there
    ) noexcept nogil
    cdef int fail(self, int error, const char* text, uint64_t a, uint64_t b) noexcept nogil
