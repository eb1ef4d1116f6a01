"""The replicas of a volume on the devices of nodes that have ended, compared with each other block by block.

Only the directories, the headers and the footers on the devices are believed, as `iomesh inspect` reads them.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from iomesh.cli.inspect.at_rest import DeviceAtRest, ReplicaAtRest
from iomesh.cli.inspect.structures import BLOCK

PIECE_BLOCKS = 256


@dataclass
class Compared:
    """Of one volume: the nodes that hold each segment of its owner, the blocks that were compared, and by node the
    replicas that do not count: of segments that the owner does not have, or has sealed in another way."""

    holders: dict[int, list[str]] = field(default_factory=dict)
    blocks: int = 0
    left_behind: dict[str, list[int]] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = [len(nodes) for nodes in self.holders.values()]
        by_number = ", ".join(f"{counts.count(number)} of {number}" for number in sorted(set(counts), reverse=True))
        left = ", ".join(f"{len(segments)} on {node}" for node, segments in sorted(self.left_behind.items())) or "none"
        return (
            f"{len(counts)} segments ({by_number} replicas), {self.blocks} blocks compared, "
            f"replicas left behind: {left}"
        )


@dataclass(frozen=True)
class _Copy:
    node: str
    device: DeviceAtRest
    replica: ReplicaAtRest

    @property
    def end(self) -> int:
        """The block behind the last record, or what lies between that and the end of a replica without a footer."""
        return self.replica.footer_block or self.replica.blocks

    def counts_beside(self, other: "_Copy") -> bool:
        return self.replica.state == "sealed" and self.replica.epoch == other.replica.epoch and self.end >= other.end

    def __str__(self) -> str:
        footer = f"footer at {self.replica.footer_block}" if self.replica.footer_block else "no footer"
        return (
            f"{self.node}: {self.replica.state}, epoch {self.replica.epoch}, {self.replica.blocks} blocks, {footer}, "
            f"live {self.replica.live}"
        )


def compare(devices: dict[str, list[Path]], volume: bytes, owner: str) -> Compared:
    """devices: by node. Of the segments that the owner has sealed: fails if two replicas differ, or the owner's is
    invalid."""
    found = Compared()
    with ExitStack() as opened:
        by_segment: dict[int, list[_Copy]] = {}
        for node, paths in devices.items():
            for path in paths:
                device = opened.enter_context(DeviceAtRest(str(path)))
                for (of, segment), replica in device.directory().replicas.items():
                    if of == volume:
                        by_segment.setdefault(segment, []).append(_Copy(node, device, replica))
        for segment, copies in sorted(by_segment.items()):
            described = f"segment {segment} ({'; '.join(map(str, copies))})"
            mine = next((copy for copy in copies if copy.node == owner), None)
            if mine is not None and mine.replica.state == "open":
                continue
            counting = [mine] if mine else []
            assert len({copy.node for copy in copies}) == len(copies), f"{described}: two replicas on one node"
            for copy in copies:
                if mine is None or not copy.counts_beside(mine):
                    found.left_behind.setdefault(copy.node, []).append(segment)
                elif copy is not mine:
                    counting.append(copy)
            if mine is not None:
                end = _end_of_records(mine, described)
                found.blocks += sum(_compare(mine, copy, end, described) for copy in counting[1:])
                found.holders[segment] = [copy.node for copy in counting]
    return found


def _end_of_records(copy: _Copy, described: str) -> int:
    """The block behind the last record. The records follow each other up to the footer, and their payload has its
    checksums. Without a footer they end before the first block that is none."""
    if copy.replica.compacted:
        return copy.end  # headers may have been dropped; the blocks that are left are compared with other replicas
    end = 0
    for block, record in copy.device.records(copy.replica):
        if block >= copy.end or not (record["valid"] or copy.replica.footer_block):
            break
        assert record["valid"], f"{described}: the record at {block} on {copy.node} is invalid: {record['fault']}"
        faults = copy.device.payload_faults(copy.replica, block, record)
        assert not faults, f"{described}: on {copy.node}: {'; '.join(faults)}"
        end = block + 1 + int(record["payload_blocks"])
    assert end == copy.replica.footer_block or not copy.replica.footer_block, (
        f"{described}: the records on {copy.node} end at block {end}"
    )
    return end


def _compare(one: _Copy, other: _Copy, end: int, described: str) -> int:
    """Up to block `end`. Returns the number of blocks compared: those that neither replica has dropped."""
    compared = 0
    step = 1 if one.replica.compacted or other.replica.compacted else PIECE_BLOCKS
    for block in range(0, end, step):
        count = min(step, end - block)
        here, there = (copy.device.blocks(copy.replica, block, count) for copy in (one, other))
        if step == 1 and (one.device.dropped(one.replica, block) or other.device.dropped(other.replica, block)):
            continue
        assert len(here) == len(there) == count * BLOCK, f"{described}: block {block} cannot be read"
        if here != there:
            at = next(i for i in range(count) if here[i * BLOCK :][:BLOCK] != there[i * BLOCK :][:BLOCK])
            raise AssertionError(f"{described}: {one.node} and {other.node} differ in block {block + at}")
        compared += count
    return compared
