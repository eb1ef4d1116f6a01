# The frames of the peer protocol: how the owner of a volume's log reaches replicas on another node, and how any other
# node reaches the owner for a volume's I/O. docs/protocols.md describes each byte by byte; a test compares the two.
#
# A frame is a header of FRAME_BYTES and its payload. All numbers are little-endian. `crc` is the CRC32C of the header
# behind it. A payload has checksums of its own: write_fault() checks those of a WRITE before it is executed; the
# reader of a block checks it against the pointer. What clients read and write has its CRC32C in the frame. Reserved
# fields are written as zero and ignored when read. The
# receiver refuses unknown versions and flags, and fields that the kind does not use and that are not 0.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from iomesh.engine.format.layout cimport Fault

cdef enum:
    PEER_VERSION = 1
    FRAME_BYTES = 96
    WRITE_BLOCKS_MAX = 249           # the largest record: its header and 248 blocks
    READ_BLOCKS_MAX = 256
    ENTRY_BYTES = 32                 # of LIST's and HEARTBEAT's payload
    LIST_ENTRIES_MAX = 512           # of one reply; the next page continues behind the last entry
    HEARTBEAT_ENTRIES_MAX = 256
    PAYLOAD_BYTES_MAX = READ_BLOCKS_MAX * 4096
    BITMAP_BYTES = 2048              # COMPACT: a bit per block of the largest segment, 1: kept
    VOLUME_BLOCKS_MAX = 256          # VOLUME_READ, VOLUME_WRITE: they lie in one such range, that of a leaf of the map
    SMALL_PAYLOAD_BYTES = 16 * 1024  # VOLUME_READ, VOLUME_WRITE: a larger one ...
    LARGE_PAYLOAD_COST = 512 * 1024  # ... costs at least so much credit, since it takes a large buffer

cdef extern from *:
    """
    #define IOMESH_REQUEST_MAGIC 0x5152504D4F49ull        /* "IOMPRQ" as bytes */
    #define IOMESH_REPLY_MAGIC   0x5052504D4F49ull        /* "IOMPRP" */
    """
    const uint64_t PEER_REQUEST_MAGIC "IOMESH_REQUEST_MAGIC"
    const uint64_t PEER_REPLY_MAGIC "IOMESH_REPLY_MAGIC"

cdef enum PeerKind:
    PEER_CREATE = 1                  # an open replica of a segment
    PEER_WRITE = 2                   # a record, or with PEER_FOOTER a footer
    PEER_FLUSH = 3                   # all writes to the device that were answered before it was sent
    PEER_SEAL = 4
    PEER_READ = 5
    PEER_REMOVE = 6
    PEER_LIST = 7                    # a volume's replicas on the device, from a segment number on
    PEER_FENCE = 8
    PEER_HEARTBEAT = 9               # of the node, with the states of its devices
    PEER_COMPACT = 10                # a sealed replica, to the blocks of a bitmap
    # On a connection for one volume: a VolumeRequest.
    PEER_VOLUME_READ = 11
    PEER_VOLUME_WRITE = 12
    PEER_VOLUME_MERGE = 13           # bytes inside one block
    PEER_VOLUME_ZERO = 14
    PEER_VOLUME_FLUSH = 15           # everything acknowledged before
    PEER_VOLUME_STATUS = 16          # how many blocks are alike: mapped, or not
    # Again of a device:
    PEER_PULL = 17                   # a PullRequest: the device's node gets a sealed segment from another node's device
    PEER_READ_STORED = 18            # blocks of a replica as they lie on the device, a compacted one's bitmaps included

cdef enum:                           # PeerRequest.flags
    PEER_FOOTER = 1                  # WRITE: the payload is a footer with its table
    PEER_URGENT = 2                  # CREATE: may use the store's reserve
    PEER_STABLE = 4                  # VOLUME_WRITE, VOLUME_MERGE, VOLUME_ZERO: answered once it is on stable media
    PEER_ZEROS = 8                   # VOLUME_MERGE: of zeros, without a payload
    PEER_COMPLETES = 16              # WRITE: a record of an earlier owner, lacking here. SEAL: none is lacking
    PEER_REPLACES = 32               # PULL: the replica that is here is damaged

cdef enum:                           # PeerReply.flags
    PEER_MORE = 1                    # LIST, HEARTBEAT: there are entries behind the last one
    PEER_UNMAPPED = 2                # VOLUME_READ, VOLUME_STATUS: no block is mapped; a READ's reply is empty then

cdef packed struct PeerRequest:      # 96 bytes
    uint64_t magic
    uint32_t crc
    uint16_t version
    uint8_t kind
    uint8_t flags
    uint64_t id                      # chosen by the client, echoed in the reply
    uint32_t payload_bytes
    uint32_t device                  # its number in the cluster
    uint8_t volume[16]
    uint64_t epoch
    uint32_t segment
    uint32_t block
    uint32_t blocks
    uint32_t footer_block
    uint32_t fragment
    uint16_t stream
    uint16_t reserved_word
    uint64_t counter
    uint8_t reserved[8]

cdef packed struct VolumeRequest:    # 96 bytes: a PeerRequest of a kind from PEER_VOLUME_READ on
    uint64_t magic
    uint32_t crc
    uint16_t version
    uint8_t kind
    uint8_t flags
    uint64_t id
    uint32_t payload_bytes
    uint32_t payload_crc             # CRC32C
    uint8_t volume[16]
    uint64_t block                   # of the volume, the first
    uint64_t blocks
    uint32_t start                   # VOLUME_MERGE: the first byte inside the block ...
    uint32_t bytes                   # ... and how many
    uint8_t reserved[24]

cdef packed struct PullRequest:      # 96 bytes: a PeerRequest of the kind PEER_PULL
    uint64_t magic
    uint32_t crc
    uint16_t version
    uint8_t kind
    uint8_t flags
    uint64_t id
    uint32_t payload_bytes           # 0
    uint32_t device                  # that gets the copy: its number in the cluster
    uint8_t volume[16]
    uint64_t epoch                   # of the owner that asks
    uint32_t segment
    uint32_t source                  # the device that has it: its number in the cluster
    uint32_t end                     # the block behind the segment's last record
    uint32_t rate                    # KiB per second at most; 0: no limit
    uint64_t segment_epoch           # in which the segment was written
    uint8_t reserved[16]

cdef packed struct PeerReply:        # 96 bytes
    uint64_t magic
    uint32_t crc
    uint16_t version
    uint8_t kind
    uint8_t flags
    uint64_t id
    uint32_t payload_bytes
    uint16_t status                  # 0, or a number of WIRE_ERRORS
    uint16_t reserved_word
    uint64_t fence                   # of the volume: LIST, and refusals with ESTALE
    uint64_t counter                 # HEARTBEAT
    uint64_t boot                    # HEARTBEAT: of the node, see Io.boot
    uint32_t count                   # entries of the payload; VOLUME_STATUS: blocks that are alike
    uint32_t payload_crc             # VOLUME_READ: CRC32C
    uint8_t reserved[32]

cdef packed struct ListedReplica:    # 32 bytes: an entry of LIST's payload
    uint32_t segment
    uint32_t blocks
    uint32_t footer_block
    uint32_t live                    # of a compacted one; 0: it is not compacted
    uint64_t epoch
    uint32_t fragment
    uint16_t stream
    uint8_t state                    # SEGMENT_OPEN, SEGMENT_SEALED
    uint8_t flags

cdef enum:                           # ListedReplica.flags
    LISTED_DOUBTFUL = 1              # open since before the node's last boot: data that was not flushed may be lost

cdef packed struct DeviceState:      # 32 bytes: an entry of HEARTBEAT's payload
    uint32_t device
    uint8_t state
    uint8_t tier
    uint8_t volatile_cache           # 1: writes are on stable media only after a FLUSH
    uint8_t reserved_byte
    uint32_t segment_blocks          # length of the largest segment that suits the device
    uint32_t reserved_word
    uint64_t free_bytes              # without the store's reserve
    uint64_t device_bytes

cdef enum:                           # DeviceState.state
    DEVICE_WORKS = 1
    DEVICE_FAILED = 2                # it is read-only: a flush or a write of its journal failed

# What the receiver checks before it uses anything of a frame. A kind that it does not know is no fault: it skips the
# payload and answers EOPNOTSUPP.
cdef Fault request_fault(const PeerRequest*) noexcept nogil
cdef Fault reply_fault(const PeerReply*) noexcept nogil
# Whether a WRITE's payload, frame.payload_bytes long, is what the frame says: one whole record or one footer.
cdef Fault write_fault(const PeerRequest* frame, const void* payload) noexcept nogil
# Set magic, version and crc.
cdef void seal_request(PeerRequest*) noexcept nogil
cdef void seal_reply(PeerReply*) noexcept nogil

cdef inline bint kind_known(uint8_t kind) noexcept nogil:
    return PEER_CREATE <= kind <= PEER_READ_STORED

cdef inline bint is_of_volume(uint8_t kind) noexcept nogil:
    return PEER_VOLUME_READ <= kind <= PEER_VOLUME_STATUS

cdef inline bint is_read(uint8_t kind) noexcept nogil:     # of a replica
    return kind == PEER_READ or kind == PEER_READ_STORED

# What a request costs of its client's credit: the bytes of its payload, or of its reply's at most; those of a volume's
# I/O by the buffers that they take.
cdef inline uint32_t frame_cost(const PeerRequest* frame) noexcept nogil:
    cdef uint32_t bytes = frame.payload_bytes
    if is_read(frame.kind):
        return frame.blocks * 4096
    if frame.kind == PEER_LIST or frame.kind == PEER_HEARTBEAT:
        return frame.blocks * ENTRY_BYTES
    if frame.kind == PEER_VOLUME_READ:
        bytes = <uint32_t>(<const VolumeRequest*>frame).blocks * 4096
    if is_of_volume(frame.kind) and bytes > SMALL_PAYLOAD_BYTES:
        return max(bytes, <uint32_t>LARGE_PAYLOAD_COST)
    return bytes

# An error's number on the wire, and back. They are the protocol's own, not those of a machine's errno.h; an error that
# has none is sent as EIO.
cdef extern from *:
    """
    #include <errno.h>
    static const int iomesh_wire_errors[] = {0, ENOENT, EEXIST, ESTALE, ENOSPC, EIO, EBADMSG, EROFS, EINVAL, EBUSY,
        ENODEV, EOPNOTSUPP, ENOMEM, EUCLEAN};
    """
    const int* WIRE_ERRORS "iomesh_wire_errors"

cdef enum:
    STATUS_MAX = 13                  # the last number of WIRE_ERRORS
    STATUS_EIO = 5

cdef inline uint16_t wire_status(int error) noexcept nogil:
    """error: 0 or a negative errno."""
    cdef uint16_t status = 0
    while status <= STATUS_MAX:
        if WIRE_ERRORS[status] == -error:
            return status
        status += 1
    return STATUS_EIO

cdef inline int status_error(uint16_t status) noexcept nogil:
    """status: known. Returns 0 or a negative errno."""
    return -WIRE_ERRORS[status]
