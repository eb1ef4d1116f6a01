"""A volume's log at rest: its checkpoints, and the map below one, on one device."""

from typing import Any

from iomesh.cli.inspect import structures
from iomesh.cli.inspect.at_rest import DeviceAtRest, ReplicaAtRest
from iomesh.cli.inspect.structures import BLOCK, Fields
from iomesh.errors import NotFound

LEVELS = 5


def checkpoints(it: DeviceAtRest, volume: bytes) -> list[tuple[int, ReplicaAtRest, int]]:
    """The places of the volume's checkpoints, each with the sequence of its record: from footers, and from headers
    where there is no footer."""
    found = []
    for (owner, _), replica in sorted(it.directory().replicas.items()):
        if owner == volume:
            found += [
                (sequence, replica, block)
                for sequence, block, entry in entries(it, replica)
                if entry["kind"] == "checkpoint"
            ]
    return found


def entries(it: DeviceAtRest, replica: ReplicaAtRest) -> list[tuple[int, int, Fields]]:
    """All entries of a segment: (record's sequence, payload block, entry); an entry without payload has the next
    block."""
    footer = it.footer(replica) if replica.footer_block else None
    if footer is not None and footer["valid"] and footer["entries"] is not None:
        return from_footer(footer["entries"])
    found = []
    for block, record in it.records(replica):
        if not record["valid"]:
            break
        at = block + 1
        for entry in record["entries"]:
            found.append((int(record["sequence"]), at, entry))
            at += entry["kind"] != "zero"
    return found


def from_footer(table: list[Fields]) -> list[tuple[int, int, Fields]]:
    """For a compacted segment, whose footer lists no records, the sequences are 0."""
    found, sequence = [], 0
    for entry in table:
        if entry["kind"] == "record":
            sequence = int(entry["position"])
        else:
            found.append((sequence, int(entry["block"]), entry))
    return found


def describe_block(it: DeviceAtRest, replica: ReplicaAtRest, block: int, what: str) -> Fields:
    """A payload block as a `what` ("checkpoint" or "node"), verified by the checksum in its record."""
    at = f"{replica.segment}:{block}"
    data = it.blocks(replica, block, 1)
    if len(data) < BLOCK:
        return {"at": at, "valid": False, "fault": it.absent(replica, block)}
    logged = next(
        (
            (sequence, entry)
            for sequence, where, entry in entries(it, replica)
            if where == block and entry["kind"] != "zero"
        ),
        None,
    )
    found = structures.checkpoint(data) if what == "checkpoint" else structures.node(data)
    found |= {"at": at, "record": logged[0] or None if logged else None, "checksum": structures.crc32c(data)}
    if logged is None:
        found |= {
            "valid": False,
            "fault": found.get("fault") or "no record of the segment tells of a payload block here",
        }
    elif logged[1]["crc"] != found["checksum"]:
        found |= {
            "valid": False,
            "fault": f"its checksum is {found['checksum']:08x}, its record tells {logged[1]['crc']:08x}",
        }
    elif logged[1]["kind"] != ("checkpoint" if what == "checkpoint" else "map"):
        found |= {"valid": False, "fault": f"its record tells that it is of kind {logged[1]['kind']}"}
    if what == "node" and logged is not None and logged[1]["kind"] == "map":
        found |= {"level": logged[1]["level"], "index": logged[1]["index"]}
    return found


def walk_map(it: DeviceAtRest, volume: bytes, checkpoint: Fields, block: int) -> list[Fields]:
    """The nodes from the root down to the leaf of a volume's block, as far as they are present and valid."""
    nodes: list[Fields] = []
    pointer: Any = checkpoint.get("root")
    for level in range(LEVELS - 1, -1, -1):
        if pointer is None or not checkpoint["valid"]:
            break
        segment, at, crc = pointer
        slot = block >> (8 * level) & 255
        one: Fields = {"at": f"{segment}:{at}", "level": level, "index": block >> (8 * (level + 1)), "slot": slot}
        replica = it.directory().replicas.get((volume, segment))
        data = it.blocks(replica, at, 1) if replica else b""
        if len(data) < BLOCK:
            nodes.append(
                one | {"valid": False, "fault": "not on this device" if replica is None else it.absent(replica, at)}
            )
            break
        if structures.crc32c(data) != crc:
            nodes.append(
                one
                | {
                    "valid": False,
                    "fault": f"its checksum is {structures.crc32c(data):08x}, the pointer to it tells {crc:08x}",
                }
            )
            break
        nodes.append(one | structures.node(data))
        pointer = nodes[-1]["pointers"][slot]
    if not nodes:
        raise NotFound(
            f"the checkpoint at {checkpoint['at']} has no map to walk: "
            f"{checkpoint.get('fault') or 'nothing is written'}"
        )
    return nodes
