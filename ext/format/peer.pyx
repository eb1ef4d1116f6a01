# The frames of the peer protocol, and whether a received one may be trusted.
#
# Always true of what passes request_fault() or reply_fault():
#   - its checksum matches, and its version is this program's;
#   - of a known kind: flags are known, every count and range lies within a segment and the protocol's limits, the
#     payload's length is the one that the kind implies, fields that it does not use are 0;
#   - of any kind: the payload is at most PAYLOAD_BYTES_MAX.
# A WRITE's payload passes write_fault() before the store sees it: a bug or bad memory at the sender, or damage that
# TCP's weak checksum missed, must not reach a device under a right name.
#
# Called by replicas/server.pyx and replicas/peer.pyx. The functions for Python are for tests and fuzzers.
#
# Format: docs/protocols.md, "Frames".

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, CRC_START, KIND_ZERO, SEGMENT_BLOCKS_MAX, VOLUME_BYTES_MAX, Entry, Fault, Footer, RecordHeader,
    footer_fault, footer_table_fault, record_fault)

cdef enum:                           # fields that only some kinds use
    ITS_DEVICE = 1
    ITS_VOLUME = 2
    ITS_EPOCH = 4
    ITS_SEGMENT = 8
    ITS_BLOCK = 16
    ITS_BLOCKS = 32
    ITS_FOOTER = 64
    ITS_FRAGMENT = 128
    ITS_STREAM = 256
    ITS_COUNTER = 512

cdef extern from *:
    r"""
    #define FRAME_SIZE_IS(bytes, expected) \
        _Static_assert((bytes) == (expected), "a structure on the wire has changed its size")
    """
    void size_is "FRAME_SIZE_IS"(size_t bytes, size_t expected) noexcept nogil


cdef void layout_holds() noexcept nogil:
    """Compiled, never called."""
    size_is(sizeof(PeerRequest), FRAME_BYTES)
    size_is(sizeof(VolumeRequest), FRAME_BYTES)
    size_is(sizeof(PullRequest), FRAME_BYTES)
    size_is(sizeof(PeerReply), FRAME_BYTES)
    size_is(sizeof(ListedReplica), ENTRY_BYTES)
    size_is(sizeof(DeviceState), ENTRY_BYTES)


cdef inline Fault fault(const char* words) noexcept nogil:
    cdef Fault it
    it.words = words
    it.entry = -1
    it.newer = False
    return it


cdef inline uint32_t frame_crc(const void* frame) noexcept nogil:
    return crc32c(<const char*>frame + CRC_START, FRAME_BYTES - CRC_START)


cdef void seal_request(PeerRequest* frame) noexcept nogil:
    frame.magic = PEER_REQUEST_MAGIC
    frame.version = PEER_VERSION
    frame.crc = frame_crc(frame)


cdef void seal_reply(PeerReply* frame) noexcept nogil:
    frame.magic = PEER_REPLY_MAGIC
    frame.version = PEER_VERSION
    frame.crc = frame_crc(frame)


cdef const char* common_fault(const PeerRequest* it, uint64_t magic) noexcept nogil:
    """Of what requests and replies have at the same offsets."""
    if it.magic != magic:
        return b"its magic is not that of this protocol"
    if it.crc != frame_crc(it):
        return b"its checksum does not match"
    if it.version != PEER_VERSION:
        return b"its version is not the one that was agreed on"
    if it.payload_bytes > PAYLOAD_BYTES_MAX:
        return b"its payload is longer than any"
    return NULL


cdef Fault request_fault(const PeerRequest* it) noexcept nogil:
    cdef const char* words = common_fault(it, PEER_REQUEST_MAGIC)
    cdef uint32_t payload = 0
    if words is not NULL or not kind_known(it.kind):
        return fault(words)
    if it.flags & ~allowed_flags(it.kind):
        return fault(b"its flags are not known for its kind")
    if is_of_volume(it.kind):
        return fault(volume_request_fault(<const VolumeRequest*>it))
    if it.kind == PEER_PULL:
        return fault(pull_request_fault(<const PullRequest*>it))
    words = fields_fault(it, fields_of(it.kind))
    if words is not NULL:
        return fault(words)
    if it.kind == PEER_CREATE and not 1 <= it.blocks <= SEGMENT_BLOCKS_MAX:
        return fault(b"it creates a segment of an impossible length")
    if it.kind == PEER_SEAL and (it.blocks > SEGMENT_BLOCKS_MAX or (it.footer_block and it.footer_block >= it.blocks)):
        return fault(b"it seals a segment with an impossible length or footer")
    if is_read(it.kind) and not 1 <= it.blocks <= READ_BLOCKS_MAX:
        return fault(b"it reads no block, or more than one request may")
    if it.kind == PEER_LIST and not 1 <= it.blocks <= LIST_ENTRIES_MAX:
        return fault(b"it lists no replica, or more than one reply may")
    if it.kind == PEER_HEARTBEAT and it.blocks > HEARTBEAT_ENTRIES_MAX:
        return fault(b"it asks for more devices than one reply may have")
    if it.kind == PEER_WRITE:
        if not 1 <= it.blocks <= WRITE_BLOCKS_MAX:
            return fault(b"it writes no block, or more than a record has")
        payload = it.blocks * BLOCK_BYTES
    if it.kind == PEER_COMPACT:
        payload = BITMAP_BYTES
    if is_read(it.kind) or it.kind == PEER_WRITE:
        if it.block >= SEGMENT_BLOCKS_MAX or it.blocks > SEGMENT_BLOCKS_MAX - it.block:
            return fault(b"its range ends beyond any segment")
    if it.payload_bytes != payload:
        return fault(b"its payload has not the length of its kind")
    return fault(NULL)


cdef uint8_t allowed_flags(uint8_t kind) noexcept nogil:
    if kind == PEER_VOLUME_MERGE:
        return PEER_STABLE | PEER_ZEROS
    if kind == PEER_VOLUME_WRITE or kind == PEER_VOLUME_ZERO:
        return PEER_STABLE
    if kind == PEER_WRITE:
        return PEER_FOOTER | PEER_COMPLETES
    if kind == PEER_SEAL:
        return PEER_COMPLETES
    if kind == PEER_PULL:
        return PEER_REPLACES
    return PEER_URGENT if kind == PEER_CREATE else 0


cdef const char* volume_request_fault(const VolumeRequest* it) noexcept nogil:
    cdef uint64_t[2] words
    cdef uint64_t payload = 0
    cdef uint64_t most = VOLUME_BYTES_MAX // BLOCK_BYTES
    memcpy(words, it.volume, 16)
    if not words[0] | words[1]:
        return b"it names no volume"
    if it.kind == PEER_VOLUME_FLUSH:
        if it.block or it.blocks:
            return b"it sets a field that its kind does not use"
    elif it.blocks == 0 or it.block >= most or it.blocks > most - it.block:
        return b"its range is empty, or ends beyond any volume"
    if it.kind == PEER_VOLUME_READ or it.kind == PEER_VOLUME_WRITE:
        if it.block % VOLUME_BLOCKS_MAX + it.blocks > VOLUME_BLOCKS_MAX:
            return b"it reads or writes more than one leaf of the map"
    if it.kind == PEER_VOLUME_WRITE:
        payload = it.blocks * BLOCK_BYTES
    if it.kind == PEER_VOLUME_MERGE:
        if it.blocks != 1 or it.start >= BLOCK_BYTES or not 1 <= it.bytes <= BLOCK_BYTES - it.start:
            return b"its bytes do not lie inside one block"
        payload = 0 if it.flags & PEER_ZEROS else it.bytes
    elif it.start or it.bytes:
        return b"it sets a field that its kind does not use"
    if it.payload_bytes != payload:
        return b"its payload has not the length of its kind"
    if payload == 0 and it.payload_crc:
        return b"it has the checksum of a payload, and none"
    return NULL


cdef const char* pull_request_fault(const PullRequest* it) noexcept nogil:
    cdef uint64_t[2] words
    memcpy(words, it.volume, 16)
    if it.device == 0 or it.source == 0 or it.device == it.source:
        return b"it does not name two devices"
    if not words[0] | words[1]:
        return b"it names no volume"
    if it.segment_epoch == 0 or it.segment_epoch > it.epoch:
        return b"it has no epoch, or one below the segment's"
    if not 1 <= it.end <= SEGMENT_BLOCKS_MAX:
        return b"it asks for a segment of an impossible length"
    if it.payload_bytes:
        return b"its payload has not the length of its kind"
    return NULL


cdef uint32_t fields_of(uint8_t kind) noexcept nogil:
    cdef uint32_t replica = ITS_DEVICE | ITS_VOLUME | ITS_SEGMENT
    if kind == PEER_CREATE:
        return replica | ITS_EPOCH | ITS_BLOCKS | ITS_FRAGMENT | ITS_STREAM
    if kind == PEER_WRITE:
        return replica | ITS_EPOCH | ITS_BLOCK | ITS_BLOCKS | ITS_STREAM
    if kind == PEER_SEAL:
        return replica | ITS_EPOCH | ITS_BLOCKS | ITS_FOOTER
    if is_read(kind):
        return replica | ITS_BLOCK | ITS_BLOCKS
    if kind == PEER_REMOVE or kind == PEER_COMPACT:
        return replica | ITS_EPOCH
    if kind == PEER_LIST:
        return replica | ITS_BLOCKS
    if kind == PEER_FENCE:
        return ITS_DEVICE | ITS_VOLUME | ITS_EPOCH
    return ITS_DEVICE if kind == PEER_FLUSH else ITS_COUNTER | ITS_BLOCKS


cdef const char* fields_fault(const PeerRequest* it, uint32_t used) noexcept nogil:
    cdef uint64_t[2] words
    memcpy(words, it.volume, 16)
    if used & ITS_DEVICE and it.device == 0:
        return b"it names no device"
    if used & ITS_VOLUME and not words[0] | words[1]:
        return b"it names no volume"
    if used & ITS_EPOCH and it.epoch == 0:
        return b"it has no epoch"
    if (not used & ITS_DEVICE and it.device) or (not used & ITS_VOLUME and words[0] | words[1]) \
            or (not used & ITS_EPOCH and it.epoch) or (not used & ITS_SEGMENT and it.segment) \
            or (not used & ITS_BLOCK and it.block) or (not used & ITS_BLOCKS and it.blocks) \
            or (not used & ITS_FOOTER and it.footer_block) or (not used & ITS_FRAGMENT and it.fragment) \
            or (not used & ITS_STREAM and it.stream) or (not used & ITS_COUNTER and it.counter):
        return b"it sets a field that its kind does not use"
    return NULL


cdef Fault reply_fault(const PeerReply* it) noexcept nogil:
    cdef const char* words = common_fault(<const PeerRequest*>it, PEER_REPLY_MAGIC)
    if words is not NULL:
        return fault(words)
    if it.flags & ~<uint8_t>(PEER_MORE | PEER_UNMAPPED):
        return fault(b"its flags are not known")
    if it.status > STATUS_MAX:
        return fault(b"its status is not known")
    if it.status and (it.payload_bytes or it.count):
        return fault(b"it reports an error and has a payload")
    return fault(NULL)


cdef Fault write_fault(const PeerRequest* frame, const void* payload) noexcept nogil:
    if frame.flags & PEER_FOOTER:
        return footer_payload_fault(frame, <const Footer*>payload)
    return record_payload_fault(frame, <const RecordHeader*>payload)


cdef Fault record_payload_fault(const PeerRequest* frame, const RecordHeader* record) noexcept nogil:
    cdef Fault found = record_fault(record, frame.volume, frame.segment, frame.block, SEGMENT_BLOCKS_MAX)
    cdef const char* block = <const char*>record
    cdef uint32_t i
    if found.words is not NULL:
        return found
    if (
        record.epoch > frame.epoch
        or (record.epoch < frame.epoch and not frame.flags & PEER_COMPLETES)
        or record.stream != frame.stream
    ):
        return fault(b"it is of another epoch or stream")
    if 1 + <uint32_t>record.payload_blocks != frame.blocks:
        return fault(b"it is not as long as its frame says")
    for i in range(record.entry_count):
        if record.entries[i].kind == KIND_ZERO:
            continue
        block += BLOCK_BYTES
        if crc32c(block, BLOCK_BYTES) != record.entries[i].crc:
            found = fault(b"the checksum of its payload does not match")
            found.entry = <int>i
            return found
    return found


cdef Fault footer_payload_fault(const PeerRequest* frame, const Footer* footer) noexcept nogil:
    cdef Fault found = footer_fault(footer, frame.volume, frame.segment, frame.block, SEGMENT_BLOCKS_MAX)
    if found.words is not NULL:
        return found
    if footer.epoch != frame.epoch or footer.stream != frame.stream:
        return fault(b"it is of another epoch or stream")
    if footer.brief:
        return fault(b"it is the footer of a compacted replica")
    if <uint64_t>1 + footer.table_blocks != frame.blocks:
        return fault(b"it is not as long as its frame says")
    return footer_table_fault(footer, <const Entry*>(footer + 1))


# ---------------------------------------------------------------------- for Python: tests and fuzzers

KINDS = {
    "create": PEER_CREATE, "write": PEER_WRITE, "flush": PEER_FLUSH, "seal": PEER_SEAL, "read": PEER_READ,
    "remove": PEER_REMOVE, "list": PEER_LIST, "fence": PEER_FENCE, "heartbeat": PEER_HEARTBEAT,
    "compact": PEER_COMPACT, "volume_read": PEER_VOLUME_READ, "volume_write": PEER_VOLUME_WRITE,
    "volume_merge": PEER_VOLUME_MERGE, "volume_zero": PEER_VOLUME_ZERO, "volume_flush": PEER_VOLUME_FLUSH,
    "volume_status": PEER_VOLUME_STATUS, "pull": PEER_PULL, "read_stored": PEER_READ_STORED,
}
MAGICS = {
    "PeerRequest": PEER_REQUEST_MAGIC, "VolumeRequest": PEER_REQUEST_MAGIC, "PullRequest": PEER_REQUEST_MAGIC,
    "PeerReply": PEER_REPLY_MAGIC,
}


def read_request(data: bytes) -> dict:
    """The fields, with "fault": the reason why the frame is refused, or None."""
    cdef const PeerRequest* it = <const PeerRequest*>frame_of(data)
    structure = "VolumeRequest" if is_of_volume(it.kind) else "PullRequest" if it.kind == PEER_PULL else "PeerRequest"
    return shown(structure, data, request_fault(it))


def read_reply(data: bytes) -> dict:
    cdef const PeerReply* it = <const PeerReply*>frame_of(data)
    return shown("PeerReply", data, reply_fault(it))


def payload_fault(frame: bytes, payload: bytes) -> str | None:
    """Why the payload of a valid WRITE is refused; None: it is not."""
    cdef const PeerRequest* it = <const PeerRequest*>frame_of(frame)
    if request_fault(it).words is not NULL or it.kind != PEER_WRITE or len(payload) != it.payload_bytes:
        raise ValueError("it is no valid WRITE with this payload")
    cdef Fault found = write_fault(it, <const char*>payload)
    return None if found.words is NULL else found.words.decode()


def make_frame(structure: str, **fields: int | bytes) -> bytes:
    """A frame with these fields, zeros elsewhere; magic, version and a right checksum unless they are given."""
    data = bytearray(FRAME_BYTES)
    for name, value in ({"magic": MAGICS[structure], "version": PEER_VERSION} | fields).items():
        offset, size = next((offset, size) for field, offset, size in FRAMES[structure] if field == name)
        raw = value.to_bytes(size, "little") if isinstance(value, int) else value
        data[offset:offset + size] = raw.ljust(size, b"\0")
    if "crc" not in fields:
        data[8:12] = crc32c(<char*>data + CRC_START, FRAME_BYTES - CRC_START).to_bytes(4, "little")
    return bytes(data)


def read_entries(structure: str, data: bytes) -> list[dict]:
    """The entries of a payload: of LIST (ListedReplica) or HEARTBEAT (DeviceState)."""
    size = sum(size for _, _, size in FRAMES[structure])
    return [fields_in(structure, data[at:at + size]) for at in range(0, len(data), size)]


def statuses() -> dict[int, int]:
    """The errno on this machine for each status."""
    return {status: -status_error(status) for status in range(STATUS_MAX + 1)}


cdef const char* frame_of(bytes data) except NULL:
    if len(data) != FRAME_BYTES:
        raise ValueError(f"a frame's header is {FRAME_BYTES} bytes, not {len(data)}")
    return data


cdef dict shown(str structure, bytes data, Fault found):
    fields = fields_in(structure, data)
    fields["fault"] = None if found.words is NULL else found.words.decode()
    return fields


cdef dict fields_in(str structure, bytes data):
    shown = [field for field in FRAMES[structure] if field[0] != "magic" and "reserved" not in field[0]]
    return {
        name: int.from_bytes(data[offset:offset + size], "little") if size <= 8 else data[offset:offset + size]
        for name, offset, size in shown
    }


cdef char[FRAME_BYTES] ANYWHERE                          # never read or written: only gives the fields an address


cdef size_t place(const void* field):
    return <const char*>field - ANYWHERE


def frames() -> dict:
    """Each structure's fields as (name, offset, bytes); a test compares docs/protocols.md with them."""
    return {
        "PeerRequest": request_fields(), "VolumeRequest": volume_request_fields(),
        "PullRequest": pull_request_fields(), "PeerReply": reply_fields(), "ListedReplica": listed_fields(),
        "DeviceState": state_fields(),
    }


cdef list request_fields():
    cdef PeerRequest* it = <PeerRequest*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("id", place(&it.id), sizeof(it.id)),
        ("payload_bytes", place(&it.payload_bytes), sizeof(it.payload_bytes)),
        ("device", place(&it.device), sizeof(it.device)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("block", place(&it.block), sizeof(it.block)),
        ("blocks", place(&it.blocks), sizeof(it.blocks)),
        ("footer_block", place(&it.footer_block), sizeof(it.footer_block)),
        ("fragment", place(&it.fragment), sizeof(it.fragment)),
        ("stream", place(&it.stream), sizeof(it.stream)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("counter", place(&it.counter), sizeof(it.counter)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
    ]


cdef list volume_request_fields():
    cdef VolumeRequest* it = <VolumeRequest*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("id", place(&it.id), sizeof(it.id)),
        ("payload_bytes", place(&it.payload_bytes), sizeof(it.payload_bytes)),
        ("payload_crc", place(&it.payload_crc), sizeof(it.payload_crc)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("block", place(&it.block), sizeof(it.block)),
        ("blocks", place(&it.blocks), sizeof(it.blocks)),
        ("start", place(&it.start), sizeof(it.start)),
        ("bytes", place(&it.bytes), sizeof(it.bytes)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
    ]


cdef list pull_request_fields():
    cdef PullRequest* it = <PullRequest*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("id", place(&it.id), sizeof(it.id)),
        ("payload_bytes", place(&it.payload_bytes), sizeof(it.payload_bytes)),
        ("device", place(&it.device), sizeof(it.device)),
        ("volume", place(&it.volume), sizeof(it.volume)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("source", place(&it.source), sizeof(it.source)),
        ("end", place(&it.end), sizeof(it.end)),
        ("rate", place(&it.rate), sizeof(it.rate)),
        ("segment_epoch", place(&it.segment_epoch), sizeof(it.segment_epoch)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
    ]


cdef list reply_fields():
    cdef PeerReply* it = <PeerReply*>ANYWHERE
    return [
        ("magic", place(&it.magic), sizeof(it.magic)),
        ("crc", place(&it.crc), sizeof(it.crc)),
        ("version", place(&it.version), sizeof(it.version)),
        ("kind", place(&it.kind), sizeof(it.kind)),
        ("flags", place(&it.flags), sizeof(it.flags)),
        ("id", place(&it.id), sizeof(it.id)),
        ("payload_bytes", place(&it.payload_bytes), sizeof(it.payload_bytes)),
        ("status", place(&it.status), sizeof(it.status)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("fence", place(&it.fence), sizeof(it.fence)),
        ("counter", place(&it.counter), sizeof(it.counter)),
        ("boot", place(&it.boot), sizeof(it.boot)),
        ("count", place(&it.count), sizeof(it.count)),
        ("payload_crc", place(&it.payload_crc), sizeof(it.payload_crc)),
        ("reserved", place(&it.reserved), sizeof(it.reserved)),
    ]


cdef list listed_fields():
    cdef ListedReplica* it = <ListedReplica*>ANYWHERE
    return [
        ("segment", place(&it.segment), sizeof(it.segment)),
        ("blocks", place(&it.blocks), sizeof(it.blocks)),
        ("footer_block", place(&it.footer_block), sizeof(it.footer_block)),
        ("live", place(&it.live), sizeof(it.live)),
        ("epoch", place(&it.epoch), sizeof(it.epoch)),
        ("fragment", place(&it.fragment), sizeof(it.fragment)),
        ("stream", place(&it.stream), sizeof(it.stream)),
        ("state", place(&it.state), sizeof(it.state)),
        ("flags", place(&it.flags), sizeof(it.flags)),
    ]


cdef list state_fields():
    cdef DeviceState* it = <DeviceState*>ANYWHERE
    return [
        ("device", place(&it.device), sizeof(it.device)),
        ("state", place(&it.state), sizeof(it.state)),
        ("tier", place(&it.tier), sizeof(it.tier)),
        ("volatile_cache", place(&it.volatile_cache), sizeof(it.volatile_cache)),
        ("reserved_byte", place(&it.reserved_byte), sizeof(it.reserved_byte)),
        ("segment_blocks", place(&it.segment_blocks), sizeof(it.segment_blocks)),
        ("reserved_word", place(&it.reserved_word), sizeof(it.reserved_word)),
        ("free_bytes", place(&it.free_bytes), sizeof(it.free_bytes)),
        ("device_bytes", place(&it.device_bytes), sizeof(it.device_bytes)),
    ]


cdef dict FRAMES = frames()
