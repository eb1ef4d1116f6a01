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
    cdef char reason[512]
    cdef readonly uint64_t fetched_bytes
    cdef readonly uint32_t fetched   # segments that were on other nodes only

    # These: in a task; 0, or a negative errno and `reason`.
    #
    # Fences the volume's former owner off, on all members that answer; and lists what those of other nodes have. Fails
    # unless every fragment has a member that answers.
    cdef int take_over(self) noexcept nogil
    # Gets a segment that this node lacks. -ENOENT: no node that answers has it.
    cdef int fetch(self, uint32_t segment) noexcept nogil
    # Those of known fragments. 1: there were some.
    cdef int fetch_missing(
        self, bint (*is_here)(void* owner, uint32_t segment) noexcept nogil, void* owner
    ) noexcept nogil
    # A replica of this node gets what it lacks of the records in its copies; how far each copy is the same is noted.
    cdef int merge(self, Replica* replica, uint16_t member) noexcept nogil
    # How many of the first `end` blocks all reliable copies have, as merge() found.
    cdef uint32_t common(self, const Replica* replica, uint32_t end) noexcept nogil
    # The replica is sealed and has records up to block `end`: its copies that have them are sealed, too.
    cdef void seal(self, const Replica* replica, uint32_t end) noexcept nogil
    # Records end before this one in segments of this fragment; ~0: they do not.
    cdef uint64_t end_of(self, uint32_t fragment) noexcept nogil
    # Tells the segment table of the copies that match, and removes the others.
    cdef void adopt(self) noexcept nogil
    # Of an open volume, with new Copies: a member of another node is back. What it has of the volume's sealed segments
    # counts as copies again; what the volume does not need is removed there.
    cdef int reconcile(self, uint16_t member) noexcept nogil
    cdef bint complete(self, Copy* copy, Segment* segment) noexcept nogil
    cdef void seal_one(self, Copy* copy, const Replica* replica, uint32_t end) noexcept nogil

    cdef bint is_outdated(self, const Replica* replica) noexcept nogil
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
