"""Frames of the peer protocol are accepted only if nothing in them is unknown, impossible or superfluous."""

import pytest

from iomesh.engine.format.peer import KINDS, frames, make_frame, payload_fault, read_reply, read_request
from support.peers import BLOCK, V, W, block_of, footer, record

USED: dict[str, dict[str, int | bytes]] = {  # by kind, the fields that it uses with values that are possible
    "create": {"device": 1, "volume": V, "segment": 5, "epoch": 2, "blocks": 256, "fragment": 3, "stream": 1},
    "write": {
        "device": 1,
        "volume": V,
        "segment": 5,
        "epoch": 2,
        "block": 7,
        "blocks": 3,
        "stream": 1,
        "payload_bytes": 3 * BLOCK,
    },
    "flush": {"device": 1},
    "seal": {"device": 1, "volume": V, "segment": 5, "epoch": 2, "blocks": 100, "footer_block": 99},
    "read": {"device": 1, "volume": V, "segment": 5, "block": 7, "blocks": 256},
    "remove": {"device": 1, "volume": V, "segment": 5, "epoch": 2},
    "compact": {"device": 1, "volume": V, "segment": 5, "epoch": 2, "payload_bytes": 2048},
    "list": {"device": 1, "volume": V, "segment": 5, "blocks": 512},
    "fence": {"device": 1, "volume": V, "epoch": 2},
    "heartbeat": {"counter": 9, "blocks": 256},
}
OF_VOLUME: dict[str, dict[str, int | bytes]] = {
    "volume_read": {"volume": V, "block": 256, "blocks": 256},
    "volume_write": {"volume": V, "block": 257, "blocks": 255, "payload_bytes": 255 * BLOCK, "payload_crc": 7},
    "volume_merge": {"volume": V, "block": 3, "blocks": 1, "start": 4095, "bytes": 1, "payload_bytes": 1},
    "volume_zero": {"volume": V, "block": 1, "blocks": (1 << 34) - 1},
    "volume_flush": {"volume": V},
    "volume_status": {"volume": V, "block": 9, "blocks": 1},
}
STABLE, ZEROS = 4, 8
FIELDS = ("device", "volume", "epoch", "segment", "block", "blocks", "footer_block", "fragment", "stream", "counter")


def fault(kind: str, **changes: int | bytes) -> str | None:
    return read_request(make_frame("PeerRequest", **({"kind": KINDS[kind], "id": 1} | USED[kind] | changes)))["fault"]  # type: ignore[no-any-return]


def volume_fault(kind: str, **changes: int | bytes) -> str | None:
    fields = {"kind": KINDS[kind], "id": 1} | OF_VOLUME[kind] | changes
    return read_request(make_frame("VolumeRequest", **fields))["fault"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", OF_VOLUME)
def test_each_kind_of_a_volumes_io_is_accepted_with_what_it_uses_and_nothing_else(kind: str) -> None:
    assert volume_fault(kind) is None
    assert volume_fault(kind, volume=bytes(16)) == "it names no volume"
    for field in {"block", "blocks", "start", "bytes", "payload_bytes", "payload_crc"} - OF_VOLUME[kind].keys():
        if (kind, field) != ("volume_merge", "payload_crc"):
            assert volume_fault(kind, **{field: 1}) is not None, field
    for bit in range(8):
        known = {"volume_merge": STABLE, "volume_write": STABLE, "volume_zero": STABLE}.get(kind, 0)
        assert (volume_fault(kind, flags=1 << bit) is None) == (1 << bit == known), bit


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("volume_read", {"blocks": 0}),
        ("volume_read", {"block": 257}),  # the next leaf
        ("volume_read", {"blocks": 257}),
        ("volume_read", {"block": (1 << 64) - 256}),
        ("volume_write", {"payload_bytes": 254 * BLOCK}),
        ("volume_write", {"blocks": 256, "payload_bytes": 256 * BLOCK}),
        ("volume_zero", {"block": 2}),  # beyond the largest volume
        ("volume_zero", {"block": 1 << 34, "blocks": 1}),
        ("volume_zero", {"blocks": (1 << 64) - 1}),
        ("volume_status", {"blocks": 0}),
        ("volume_merge", {"blocks": 2}),
        ("volume_merge", {"start": 4096}),
        ("volume_merge", {"bytes": 2, "payload_bytes": 2}),
        ("volume_merge", {"bytes": 0, "payload_bytes": 0}),
        ("volume_merge", {"bytes": 0xFFFFFFFF, "payload_bytes": 0xFFFFFFFF}),
        ("volume_merge", {"flags": ZEROS}),  # has no payload then
    ],
)
def test_impossible_requests_of_a_volume_are_refused(kind: str, changes: dict[str, int]) -> None:
    assert volume_fault(kind, **changes) is not None


def test_zeros_are_merged_without_a_payload() -> None:
    assert volume_fault("volume_merge", flags=STABLE | ZEROS, payload_bytes=0) is None
    assert volume_fault("volume_merge", flags=ZEROS, payload_bytes=0, payload_crc=1) is not None


@pytest.mark.parametrize("kind", USED)
def test_each_kind_is_accepted_with_the_fields_that_it_uses(kind: str) -> None:
    assert fault(kind) is None


@pytest.mark.parametrize("kind", USED)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_a_kind_does_not_use_must_be_zero(kind: str, field: str) -> None:
    if field not in USED[kind]:
        assert fault(kind, **{field: V if field == "volume" else 1}) == "it sets a field that its kind does not use"


@pytest.mark.parametrize("kind", USED)
@pytest.mark.parametrize("bit", range(8))
def test_only_known_flags_are_accepted(kind: str, bit: int) -> None:
    known = (kind, bit) in (("write", 0), ("write", 4), ("create", 1), ("seal", 4))
    assert (fault(kind, flags=1 << bit) is None) == known


@pytest.mark.parametrize("field", ["device", "volume", "epoch"])
def test_device_volume_and_epoch_are_never_zero(field: str) -> None:
    for kind, used in USED.items():
        if field in used:
            assert fault(kind, **{field: bytes(16) if field == "volume" else 0}) is not None, kind


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("create", {"blocks": 0}),
        ("create", {"blocks": 16385}),
        ("write", {"blocks": 0, "payload_bytes": 0}),
        ("write", {"blocks": 250, "payload_bytes": 250 * BLOCK}),
        ("write", {"payload_bytes": 3 * BLOCK - 1}),
        ("write", {"payload_bytes": 0}),
        ("write", {"block": 16382}),
        ("write", {"block": 0xFFFFFFFF}),
        ("read", {"blocks": 0}),
        ("read", {"blocks": 257}),
        ("read", {"block": 16129}),
        ("read", {"payload_bytes": 1}),
        ("seal", {"blocks": 16385}),
        ("seal", {"footer_block": 100}),
        ("list", {"blocks": 0}),
        ("list", {"blocks": 513}),
        ("heartbeat", {"blocks": 257}),
        ("compact", {"payload_bytes": 2047}),
        ("flush", {"payload_bytes": 8}),
    ],
)
def test_impossible_values_are_refused(kind: str, changes: dict[str, int]) -> None:
    assert fault(kind, **changes) is not None


def test_the_largest_values_are_accepted() -> None:
    assert fault("write", block=16384 - 249, blocks=249, payload_bytes=249 * BLOCK) is None
    assert fault("read", block=16384 - 256) is None
    assert fault("create", blocks=16384) is None
    assert fault("seal", blocks=16384, footer_block=16383) is None


def test_an_unknown_kind_is_no_fault_but_its_payload_is_bounded() -> None:
    for kind in (0, 19, 255):
        assert read_request(make_frame("PeerRequest", kind=kind, flags=255, payload_bytes=1 << 20))["fault"] is None
        assert read_request(make_frame("PeerRequest", kind=kind, payload_bytes=(1 << 20) + 1))["fault"] is not None


@pytest.mark.parametrize("structure", ["PeerRequest", "PeerReply"])
def test_a_damaged_frame_is_noticed_whichever_bit_it_is(structure: str) -> None:
    frame = (
        make_frame(structure, kind=KINDS["flush"], device=1) if structure == "PeerRequest" else make_frame(structure)
    )
    read = read_request if structure == "PeerRequest" else read_reply
    assert read(frame)["fault"] is None
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        assert read(bytes(damaged))["fault"] is not None, f"bit {bit} was changed"


@pytest.mark.parametrize("version", [0, 2, 0xFFFF])
def test_another_version_than_the_agreed_one_is_refused(version: int) -> None:
    assert read_request(make_frame("PeerRequest", kind=3, device=1, version=version))["fault"] is not None
    assert read_reply(make_frame("PeerReply", version=version))["fault"] is not None


def test_replies_are_bounded() -> None:
    assert read_reply(make_frame("PeerReply", payload_bytes=1 << 20))["fault"] is None
    assert read_reply(make_frame("PeerReply", flags=3))["fault"] is None
    for fields in ({"payload_bytes": (1 << 20) + 1}, {"flags": 4}, {"status": 14}, {"status": 1, "payload_bytes": 8}):
        assert read_reply(make_frame("PeerReply", **fields))["fault"] is not None, fields


def test_reserved_bytes_are_ignored() -> None:
    offsets = [(offset, size) for name, offset, size in frames()["PeerRequest"] if name.startswith("reserved")]
    assert offsets
    assert fault("flush", reserved=b"\xff" * 8, reserved_word=0xFFFF) is None


# ---------------------------------------------------------------------- what a WRITE carries


def written(data: bytes, **changes: int | bytes) -> str | None:
    usual: dict[str, int | bytes] = {"device": 1, "volume": V, "segment": 5, "epoch": 1, "block": 7}
    lengths = {"blocks": len(data) // BLOCK, "payload_bytes": len(data)}
    frame = make_frame("PeerRequest", **({"kind": KINDS["write"]} | usual | lengths | changes))
    return payload_fault(frame, data)


def test_a_whole_record_is_accepted() -> None:
    assert written(record(5, 7, [block_of(1), block_of(2)])) is None
    assert written(record(5, 7, [])) is None
    assert written(record(5, 7, [block_of(n) for n in range(248)])) is None


@pytest.mark.parametrize(
    "changes", [{"volume": W}, {"segment": 6}, {"block": 8}, {"epoch": 2}, {"stream": 1}, {"flags": 1}]
)
def test_a_record_for_another_place_is_refused(changes: dict[str, int | bytes]) -> None:
    assert written(record(5, 7, [block_of(1)]), **changes) is not None


def test_a_record_that_is_damaged_anywhere_is_refused() -> None:
    data = record(5, 7, [block_of(1), block_of(2)])
    for at in (0, 20, 60, 100, 4095, 4096, 8191, 8192, 12287):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        assert written(bytes(damaged)) is not None, f"byte {at} was changed"


def test_a_record_and_its_frame_have_the_same_length() -> None:
    data = record(5, 7, [block_of(1)])
    assert written(data + block_of(2)) is not None
    assert written(data[:BLOCK]) is not None


def test_a_footer_is_accepted_only_as_one_and_whole() -> None:
    data = footer(5, [4, 1])
    assert len(data) == 2 * BLOCK
    assert written(data, flags=1) is None
    assert written(data) is not None
    assert written(data + bytes(BLOCK), flags=1) is not None
    assert written(data, flags=1, epoch=2) is not None
    assert written(data, flags=1, segment=6) is not None
    for at in (0, 30, 80, BLOCK + 3, BLOCK + 100):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert written(bytes(damaged), flags=1) is not None, f"byte {at} was changed"
