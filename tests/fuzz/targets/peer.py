"""What another node may send over a connection of the peer protocol: requests to a holder, replies to an owner.

The first byte of an input chooses the side and whether frames are put right before they are sent (magic, version,
checksum): without that a fuzzer would hardly get beyond the checksum. Then follow frames: kind (1 byte), flags (1
byte), count of changes (1 byte), changes (offset in the frame, byte). A WRITE's payload is a record that would fit.

Whatever is sent, the connection serves or ends with a reason, every call is done, and the store holds together: it is
the same when it is opened again, and takes a segment.
"""

from collections.abc import Iterator

from iomesh.engine.format.peer import KINDS, make_frame, read_reply, read_request
from iomesh.engine.format.peer import frames as layout
from iomesh.engine.views.peer import OwnerNode
from iomesh.engine.views.world import WorldView
from support.peers import BLOCK, DEVICE, Pair, V, block_of, pair, record

MAX_BYTES = 400
TO_OWNER, SEALED = 1, 2
FRAME = 96
FRAMES_MAX = 40
USED: dict[int, dict[str, int | bytes]] = {
    KINDS["create"]: {"device": DEVICE, "volume": V, "segment": 1, "epoch": 2, "blocks": 64},
    KINDS["write"]: {"device": DEVICE, "volume": V, "segment": 1, "epoch": 2, "blocks": 2, "payload_bytes": 2 * BLOCK},
    KINDS["flush"]: {"device": DEVICE},
    KINDS["seal"]: {"device": DEVICE, "volume": V, "segment": 1, "epoch": 2, "blocks": 8, "footer_block": 7},
    KINDS["read"]: {"device": DEVICE, "volume": V, "segment": 1, "blocks": 2},
    KINDS["remove"]: {"device": DEVICE, "volume": V, "segment": 1, "epoch": 2},
    KINDS["list"]: {"device": DEVICE, "volume": V, "blocks": 512},
    KINDS["fence"]: {"device": DEVICE, "volume": V, "epoch": 2},
    KINDS["heartbeat"]: {"counter": 1, "blocks": 16},
}


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    if data[0] & TO_OWNER:
        to_owner(data[0], data[1:])
    else:
        to_holder(data[0], data[1:])


def frames_of(how: int, data: bytes, structure: str, defaults: dict[int, dict[str, int | bytes]]) -> Iterator[bytes]:
    at = 0
    for number in range(FRAMES_MAX):
        if at + 3 > len(data):
            return
        kind, flags, changes = data[at], data[at + 1], data[at + 2] % 8
        frame = bytearray(
            make_frame(structure, **({"kind": kind, "flags": flags, "id": number} | defaults.get(kind, {})))
        )
        for where, value in zip(data[at + 3 :: 2], data[at + 4 :: 2], strict=False):
            if changes == 0:
                break
            changes -= 1
            frame[where % FRAME] = value
        at += 3 + 2 * (data[at + 2] % 8)
        yield resealed(structure, bytes(frame)) if how & SEALED else bytes(frame)


def resealed(structure: str, frame: bytes) -> bytes:
    """With the right magic, version and checksum."""
    return make_frame(
        structure,
        **{
            name: frame[offset : offset + size]
            for name, offset, size in layout()[structure]
            if name not in ("magic", "crc", "version")
        },
    )


def to_holder(how: int, data: bytes) -> None:
    it = pair(attached=False)
    view = WorldView(it.world)
    it.nodes.add(view)
    end, served = it.holder.accept(view.number)
    for frame in frames_of(how, data, "PeerRequest", USED):
        fields = read_request(frame)
        view.send(end, frame + payload_for(fields))
        it.nodes.settle()
        if served.end is not None:
            break
    assert served.end in (None, "malformed", "credits"), f"the connection ended: {served.end}"
    assert served.end != "malformed" or served.words, "it ended without a reason"
    directory, fence = it.holder.replicas(DEVICE), it.holder.fenced(DEVICE, V)
    it.holder.crash(power=False)
    it.nodes.settle()
    it.holder.restart()
    assert it.holder.replicas(DEVICE) == directory, "the directory is another after a restart"
    assert it.holder.fenced(DEVICE, V) == fence
    usable(it)


def payload_for(fields: dict[str, int | bytes]) -> bytes:
    """As long as the frame says, up to 2 MiB; of a WRITE a record that may fit."""
    wanted = min(int(fields["payload_bytes"]), 2 << 20)
    if fields["kind"] != KINDS["write"] or wanted != 2 * BLOCK:
        return bytes(wanted)
    volume = fields["volume"]
    assert isinstance(volume, bytes)
    return record(
        int(fields["segment"]), int(fields["block"]), [block_of(1)], volume=volume, epoch=int(fields["epoch"])
    )


def usable(it: Pair) -> None:
    owner = OwnerNode(it.nodes)
    owner.attach(it.holder)
    epoch = (1 << 64) - 1  # no fence is higher
    calls = [
        owner.create(DEVICE, b"volume-of-fuzzer", 77, epoch=epoch, blocks=4, urgent=True),
        owner.write(
            DEVICE,
            b"volume-of-fuzzer",
            77,
            0,
            record(77, 0, [block_of(5)], volume=b"volume-of-fuzzer", epoch=epoch),
            epoch=epoch,
        ),
    ]
    assert it.done(*calls) == [0, 0], "the store takes no segment any more"


def to_owner(how: int, data: bytes) -> None:
    it = pair(attached=False)
    view = WorldView(it.world)
    it.nodes.add(view)
    ours, theirs = it.owner.connect_to(view.number)
    it.owner.join(ours)
    calls = [
        it.owner.create(DEVICE, V, 1),
        it.owner.write(DEVICE, V, 1, 0, record(1, 0, [block_of(1)])),
        it.owner.flush(DEVICE),
        it.owner.seal(DEVICE, V, 1, 2),
        it.owner.read(DEVICE, V, 1, 0, 2),
        it.owner.remove(DEVICE, V, 1),
        it.owner.list(DEVICE, V, 0, 4),
        it.owner.fence(DEVICE, V, 1),
        it.owner.heartbeat(1, 4),
    ]
    asked = view.receive(theirs, 1 << 20)
    it.nodes.settle()
    ids: dict[int, int] = {}  # by kind
    at = 0
    while at + FRAME <= len(asked.data):
        fields = read_request(asked.data[at : at + FRAME])
        ids[fields["kind"]] = fields["id"]
        at += FRAME + fields["payload_bytes"]
    defaults: dict[int, dict[str, int | bytes]] = {kind: {"id": number, "counter": 1} for kind, number in ids.items()}
    defaults.get(KINDS["read"], {})["payload_bytes"] = 2 * BLOCK
    for frame in frames_of(how, data, "PeerReply", defaults):
        if not it.owner.attached:
            break
        view.send(theirs, frame + bytes(min(read_reply(frame)["payload_bytes"], 2 << 20)))
        it.nodes.settle()
    it.owner.detach()
    it.nodes.settle()
    assert all(call.over for call in calls), "a call is not done"
    assert it.owner.end in ("malformed", "detached"), f"the connection ended: {it.owner.end}"
    assert it.owner.end != "malformed" or it.owner.words, "it ended without a reason"


def seeds() -> list[bytes]:
    plain = [bytes([kind, 0, 0]) for kind in range(1, 13)]
    changed = [
        bytes([kind, 0, 2, where, 1, where + 3, 200]) for kind in range(1, 10) for where in (16, 24, 28, 48, 60, 64, 68)
    ]
    found = [bytes([how]) + plain[0] + one + plain[4] for how in (0, SEALED) for one in plain]
    found += [bytes([SEALED]) + plain[0] + plain[1] + one + plain[6] for one in changed]
    found += [bytes([how]) + one for how in (TO_OWNER, TO_OWNER | SEALED) for one in plain]
    found += [bytes([TO_OWNER | SEALED]) + one for one in changed]
    life = b"".join(plain[kind - 1] for kind in (8, 1, 2, 3, 5, 4, 5, 6, 7, 9))
    return [*found, bytes([SEALED]) + life, bytes([SEALED]) + life * 3, bytes([TO_OWNER | SEALED]) + life]
