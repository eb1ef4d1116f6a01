"""Live blocks by the checkpoint's counts, and by an independent walk of every tree that the checkpoint names.

The engine counts live blocks incrementally; here they are counted by walking the device, without the engine's own
walks.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from iomesh.cli.inspect.at_rest import DeviceAtRest
from iomesh.engine.engine import Pointer, crc32c, read_checkpoint, read_node, read_snapshots, read_table

Address = tuple[int, int]  # segment, block
DYING, CLONE, FOLLOWED = 2, 8, 16
LEVELS = 5


@dataclass(frozen=True)
class Walked:
    counted: dict[int, int]  # segment -> live blocks, by the checkpoint's segment table
    found: dict[int, int]  # segment -> blocks reachable from its trees
    snapshots: list[dict[str, Any]]


class Trees:
    """The trees of one volume on one device."""

    def __init__(self, device: DeviceAtRest, volume: bytes) -> None:
        self.device, self.volume = device, volume
        self.data: set[Address] = set()  # the reached blocks that are data
        self.replicas = {one.segment: one for one in device.directory().replicas.values() if one.volume == volume}

    def block(self, pointer: tuple[int, int, int]) -> bytes:
        segment, block, crc = pointer
        assert segment in self.replicas, f"segment {segment}, of which block {block} is needed, is gone"
        data = self.device.blocks(self.replicas[segment], block, 1)
        assert crc32c(data) == crc, f"block {block} of segment {segment} is not what its pointer says"
        return data

    def reach(self, root: tuple[int, int, int] | None, level: int = LEVELS - 1) -> set[Address]:
        """Every block of a tree, nodes and data; data blocks are verified too."""
        if root is None:
            return set()
        reached = {root[:2]}
        for pointer in read_node(self.block(root)):
            if pointer is not None and level:
                reached |= self.reach(pointer, level - 1)
            elif pointer is not None:
                self.block(pointer)
                reached.add(pointer[:2])
                self.data.add(pointer[:2])
        return reached


def walk(path: str, volume: bytes, checkpoint: Pointer) -> Walked:
    with DeviceAtRest(path) as device:
        trees = Trees(device, volume)
        head = read_checkpoint(trees.block(checkpoint))
        assert head["valid"], head["fault"]
        counted: dict[int, int] = {}
        for index in head["index"]:
            for block in read_node(trees.block(index))[: head["table_blocks"]]:
                if block is not None:
                    counted |= {entry["segment"]: entry["live"] for entry in read_table(trees.block(block))}
        snapshots = []
        if head["snapshots"] is not None:
            for block in read_node(trees.block(head["snapshots"])):
                if block is not None:
                    snapshots += read_snapshots(trees.block(block))
        assert len(snapshots) == head["snapshot_entries"]
        alive = trees.reach(head["root"])
        for snapshot in snapshots:
            if snapshot["flags"] & DYING:  # shared blocks count for its successor
                alive |= trees.reach(snapshot["root"]) - trees.reach(snapshot["successor"])
            elif not snapshot["flags"] & CLONE:
                alive |= trees.reach(snapshot["root"])
        branch = head["branch"]
        check_counts(trees, head, snapshots)
        found = Counter(segment for segment, _ in alive if segment >= branch)
        return Walked({segment: live for segment, live in counted.items() if live}, dict(found), snapshots)


def check_counts(trees: Trees, head: dict[str, Any], snapshots: list[dict[str, Any]]) -> None:
    """Compares each map's block counts, total and not shared with its parent, with the checkpoint's counts."""
    entries = {one["id"]: one for one in snapshots if not one["flags"] & CLONE}

    def data(root: tuple[int, int, int] | None) -> set[Address]:
        return trees.reach(root) & trees.data

    def of(parent: bytes) -> set[Address]:
        return data(entries[parent]["root"]) if parent in entries else set()

    owed = {
        one["heir"]: len(data(one["root"]) - data(one["successor"]) - of(one["parent"]))
        for one in entries.values()
        if one["flags"] & FOLLOWED
    }
    maps = [(bytes(16), "the head", head, head["head_parent"], head["exclusive"])]
    maps += [(one["id"], one["name"], one, one["parent"], one["own"]) for one in entries.values()]
    for identity, name, entry, parent, own in maps:
        if identity in owed and parent in entries and entries[parent]["flags"] & FOLLOWED:
            parent = entries[parent]["parent"]  # it is dying
        held = data(entry["root"])
        inherited = {address for address in held if address[0] < head["branch"]}
        assert entry["mapped"] == len(held), f"{name} holds {len(held)} blocks, and {entry['mapped']} by the count"
        assert entry["inherited"] == len(inherited), (
            f"{name} inherits {len(inherited)} blocks, and {entry['inherited']} by the count"
        )
        alone = len(held - inherited - of(parent)) + owed.get(identity, 0)
        assert own == alone, f"{name} holds {alone} blocks that its parent does not, and {own} by the count"


def check(path: str, volume: bytes, checkpoint: Pointer) -> Walked:
    walked = walk(path, volume, checkpoint)
    for segment in walked.counted | walked.found:
        counted, found = walked.counted.get(segment, 0), walked.found.get(segment, 0)
        assert counted == found, (
            f"segment {segment}: {counted} blocks live by the checkpoint's count, {found} are reachable"
        )
    return walked
