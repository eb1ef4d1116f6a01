"""A device at rest, read without the engine's reactors and without trusting its contents.

Always so: the device is opened read-only; whatever its bytes are, reading ends (no offset or count found on it is
followed beyond the device's end, no walk takes more steps than there are blocks) and damage is reported as a `fault`,
never as an exception. `iomesh.engine` parses the structures; this file only knows their places (docs/formats.md).
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from iomesh.cli.inspect import structures
from iomesh.cli.inspect.structures import BLOCK, Fields
from iomesh.errors import Foreign, InvalidArgument, NotFound

SUPERBLOCK_OFFSETS = (0, 128 * 1024)
AREAS = ("half 0", "half 1", "mirror of half 0", "mirror of half 1")


@dataclass(frozen=True)
class ReplicaAtRest:
    """A segment's copy on this device, as listed in the directory."""

    volume: bytes
    segment: int
    state: str
    epoch: int
    stream: int
    blocks: int
    footer_block: int
    extents: tuple[tuple[int, int], ...]
    slab_blocks: int  # of each slab of an extent
    live: int = 0  # of a compacted replica: the blocks that it still has

    @property
    def slabs(self) -> int:
        return sum(count for _, count in self.extents)

    @property
    def compacted(self) -> bool:
        return self.live > 0

    @property
    def room(self) -> int:
        """The blocks of its extents."""
        return self.slabs * self.slab_blocks


@dataclass
class DirectoryAtRest:
    """The contents of the journal: the segments of the device. notes: irregularities found while reading."""

    half: int | None = None
    generation: int = 0
    blocks: int = 0
    replicas: dict[tuple[bytes, int], ReplicaAtRest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class DeviceAtRest:
    """A device or file, opened read-only. Raises OSError, and InvalidArgument for what is neither."""

    def __init__(self, path: str) -> None:
        self.path = path
        # Nonblocking: opening a pipe must not block.
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(self.fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise InvalidArgument(f"{path} is neither a block device nor a file")
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self.fd)
            raise
        self._directory: DirectoryAtRest | None = None
        self._superblock: Fields | None = None
        self._bitmaps: dict[ReplicaAtRest, dict[int, int] | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there, as many as the device has and returns; a bad sector reads as nothing."""
        if offset < 0 or offset >= self.size or size <= 0:
            return b""
        try:
            return os.pread(self.fd, min(size, self.size - offset), offset)
        except OSError:
            return b""

    # superblocks

    def superblocks(self) -> list[Fields]:
        """Both twins, each with its offset."""
        return [{"offset": offset, **self.superblock_at(offset)} for offset in SUPERBLOCK_OFFSETS]

    def superblock_at(self, offset: int) -> Fields:
        data = self.read(offset, BLOCK)
        if offset + BLOCK > self.size:
            return {"valid": False, "fault": f"behind the end: {self.path} has {self.size} bytes"}
        if len(data) < BLOCK:
            return {"valid": False, "fault": "unreadable"}
        if not any(data):
            return {"valid": False, "fault": "empty"}
        found = structures.superblock(data)
        if found["valid"] and found["device_bytes"] > self.size:
            found |= {"valid": False, "fault": f"made for {found['device_bytes']} bytes, the device has {self.size}"}
        return found

    def superblock(self) -> Fields:
        """The current superblock. Raises Foreign."""
        if self._superblock is not None:
            return self._superblock
        sound = [one for one in self.superblocks() if one["valid"]]
        if not sound:
            raise Foreign(
                f"{self.path} holds no valid iomesh superblock: `iomesh inspect superblock {self.path}` says what is "
                "wrong with each"
            )
        self._superblock = max(sound, key=lambda one: int(one["generation"]))
        return self._superblock

    # journal

    def journal_area(self, area: int) -> Iterator[tuple[int, Fields]]:
        """Blocks of one of the four areas, with their offsets, up to the first that does not belong to it. Raises
        NotFound."""
        superblock = self.superblock()
        start, size = (
            int(superblock["journal_offset"]) + area * int(superblock["journal_bytes"]),
            int(superblock["journal_bytes"]),
        )
        generation: int | None = None
        for index in range(size // BLOCK):
            offset = start + index * BLOCK
            block = self.journal_block(offset, superblock)
            if (
                block["valid"]
                and generation is not None
                and (block["generation"] != generation or block["index"] != index)
            ):
                return
            if block["valid"] and generation is None and block["index"] == index:
                generation = int(block["generation"])
            if not block["valid"] and block.get("empty"):
                return
            yield offset, block

    def journal_block(self, offset: int, superblock: Fields) -> Fields:
        data = self.read(offset, BLOCK)
        if len(data) < BLOCK:
            return {"valid": False, "fault": "unreadable or behind the device's end"}
        if not any(data):
            return {"valid": False, "fault": "empty", "empty": True}
        found = structures.journal_block(data, superblock["slab_bytes"])
        if found["valid"] and found["device"] != superblock["device"]:
            found |= {"valid": False, "fault": "written for another device"}
        return found

    def directory(self) -> DirectoryAtRest:
        """Replays the newest complete half, each block from the area or, when that is damaged, from its mirror. Raises
        NotFound."""
        if self._directory is None:
            superblock = self.superblock()
            halves = [self._replay(half, superblock) for half in (0, 1)]
            whole = [one for one in halves if one.half is not None]
            self._directory = (
                max(whole, key=lambda one: one.generation)
                if whole
                else DirectoryAtRest(notes=["no half of the journal holds a whole snapshot of the directory"])
            )
        return self._directory

    def _replay(self, half: int, superblock: Fields) -> DirectoryAtRest:
        found, whole = DirectoryAtRest(), False
        for index in range(int(superblock["journal_bytes"]) // BLOCK):
            copies = self._copies(half, index, superblock)
            sound = [
                one
                for one in copies
                if one["valid"] and one["index"] == index and (index == 0 or one["generation"] == found.generation)
            ]
            if not sound:
                break
            block = max(sound, key=lambda one: int(one["generation"]))
            if not whole and block["kind"] == "changes":
                break
            found.notes += [
                f"half {half}, block {index}: {one['fault']}; its twin counts" for one in copies if not one["valid"]
            ]
            found.generation, found.blocks = int(block["generation"]), index + 1
            for entry in block["entries"]:
                self._apply(found, entry, int(superblock["slab_bytes"]) // BLOCK)
            whole = whole or block["kind"] == "snapshot end"
        if whole:
            found.half = half
        return found

    def _copies(self, half: int, index: int, superblock: Fields) -> list[Fields]:
        """A block of a half and of its mirror."""
        start, size = int(superblock["journal_offset"]), int(superblock["journal_bytes"])
        return [self.journal_block(start + area * size + index * BLOCK, superblock) for area in (half, half + 2)]

    @staticmethod
    def _apply(directory: DirectoryAtRest, entry: Fields, slab_blocks: int) -> None:
        key = (bytes(entry["volume"]), int(entry["segment"]))
        if entry["kind"] == "delete":
            directory.replicas.pop(key, None)
        elif entry["kind"] == "put":
            extents = tuple((int(first), int(count)) for first, count in entry["extents"])
            directory.replicas[key] = ReplicaAtRest(
                key[0],
                key[1],
                entry["state"],
                entry["epoch"],
                entry["stream"],
                entry["blocks"],
                entry["footer_block"],
                extents,
                slab_blocks,
                entry["live"],
            )

    # segments

    def volumes(self) -> list[bytes]:
        return sorted({volume for volume, _ in self.directory().replicas})

    def volume(self, prefix: str | None) -> bytes:
        """The volume whose id begins with `prefix`; without a prefix, the only one on the device. Raises NotFound."""
        known = self.volumes()
        wanted = (prefix or "").replace("-", "").lower()
        matching = [one for one in known if one.hex().startswith(wanted)]
        if len(matching) == 1:
            return matching[0]
        there = ", ".join(one.hex() for one in known) or "none"
        if not matching:
            raise NotFound(f"no volume {prefix or ''} on {self.path}; it holds {there}")
        raise NotFound(
            f"{len(matching)} volumes on {self.path} match: name one with --volume, by its id or a prefix of it "
            f"({there})"
        )

    def replica(self, volume: bytes, segment: int) -> ReplicaAtRest:
        """Raises NotFound."""
        found = self.directory().replicas.get((volume, segment))
        if found is None:
            numbers = sorted(number for owner, number in self.directory().replicas if owner == volume)
            there = f"{numbers[0]} to {numbers[-1]}, {len(numbers)} in all" if numbers else "none"
            raise NotFound(
                f"segment {segment} of volume {volume.hex()} is not on {self.path}, which holds of it {there}"
            )
        return found

    def blocks(self, replica: ReplicaAtRest, block: int, count: int) -> bytes:
        """Bytes of up to `count` blocks from `block` on: up to a dropped block, or the end of the replica or device."""
        if not replica.compacted:
            return self._stored(replica, block, count)
        places, result = self._places(replica) or {}, b""
        while count > 0 and block in places:
            result += self._stored(replica, places[block], 1)
            block, count = block + 1, count - 1
        return result

    def dropped(self, replica: ReplicaAtRest, block: int) -> bool:
        """Whether compaction dropped the block, which nothing pointed to. False if no bitmap of the replica is
        valid."""
        places = self._places(replica) if replica.compacted else None
        return places is not None and block < replica.blocks and block not in places

    def absent(self, replica: ReplicaAtRest, block: int) -> str:
        """Describes why a block was not read."""
        return "dropped by compaction" if self.dropped(replica, block) else "unreadable or behind the segment's end"

    def bitmap_fault(self, replica: ReplicaAtRest) -> str | None:
        """The fault of a compacted replica's bitmap."""
        return "neither copy of its bitmap is valid" if self._places(replica) is None else None

    def _places(self, replica: ReplicaAtRest) -> dict[int, int] | None:
        """The position of each remaining block in a compacted replica; None if neither bitmap is valid."""
        if replica not in self._bitmaps:
            copies = [self._stored(replica, at, 1) for at in (0, replica.live + 1)]
            bitmaps = [structures.bitmap(data) for data in copies if len(data) == BLOCK]
            sound = [
                one
                for one in bitmaps
                if one["valid"] and (one["volume"], one["segment"]) == (replica.volume, replica.segment)
            ]
            self._bitmaps[replica] = (
                {block: 1 + rank for rank, block in enumerate(sound[0]["live_blocks"])} if sound else None
            )
        return self._bitmaps[replica]

    def _stored(self, replica: ReplicaAtRest, block: int, count: int) -> bytes:
        """The same, addressed by the blocks' positions in the replica."""
        superblock = self.superblock()
        result, position = bytearray(), 0
        for first, slabs in replica.extents:
            length = slabs * replica.slab_blocks
            while count > 0 and position <= block < position + length:
                now = min(count, position + length - block)
                offset = (
                    int(superblock["slabs_offset"]) + first * int(superblock["slab_bytes"]) + (block - position) * BLOCK
                )
                data = self.read(offset, now * BLOCK)
                result += data
                if len(data) < now * BLOCK:
                    return bytes(result)
                block, count = block + now, count - now
            position += length
        return bytes(result)

    def record(self, replica: ReplicaAtRest, block: int) -> Fields:
        """The record whose header is at `block`; contradictions to its place are faults."""
        data = self.blocks(replica, block, 1)
        if len(data) < BLOCK:
            return {"valid": False, "fault": self.absent(replica, block)}
        if not any(data):
            return {"valid": False, "fault": "empty", "empty": True}
        found = structures.record(data)
        if found["valid"]:
            if found["volume"] != replica.volume:
                found |= {"valid": False, "fault": f"of volume {bytes(found['volume']).hex()}"}
            elif (found["segment"], found["block"]) != (replica.segment, block):
                found |= {"valid": False, "fault": f"written for {found['segment']}:{found['block']}"}
            elif block + 1 + found["payload_blocks"] > (replica.blocks if replica.compacted else replica.room):
                found |= {"valid": False, "fault": "goes beyond the segment's end"}
        return found

    def records(self, replica: ReplicaAtRest) -> Iterator[tuple[int, Fields]]:
        """Headers from the segment's first block on, up to the footer or the first invalid one, which is the last
        returned."""
        block, previous = 0, 0
        end = replica.footer_block or replica.room
        while block < end:
            found = self.record(replica, block)
            if found["valid"] and found["previous_crc"] != previous:
                found |= {"valid": False, "fault": "does not follow the record before it"}
            yield block, found
            if not found["valid"]:
                return
            previous = int(found["crc"])
            block += 1 + int(found["payload_blocks"])

    def payload_faults(self, replica: ReplicaAtRest, block: int, record: Fields) -> list[str]:
        """The payload blocks of a valid record that do not match the checksum in its header. A block dropped by
        compaction is no fault."""
        faults, at = [], block + 1
        payload = b"" if replica.compacted else self.blocks(replica, at, int(record["payload_blocks"]))
        for entry in record["entries"]:
            if entry["kind"] == "zero":
                continue
            start = (at - block - 1) * BLOCK
            data = self.blocks(replica, at, 1) if replica.compacted else payload[start : start + BLOCK]
            if len(data) < BLOCK:
                if not self.dropped(replica, at):
                    faults.append(f"{replica.segment}:{at} cannot be read")
            elif structures.crc32c(data) != entry["crc"]:
                faults.append(
                    f"{replica.segment}:{at} has checksum {structures.crc32c(data):08x}, its header says "
                    f"{entry['crc']:08x}"
                )
            at += 1
        return faults

    def listed_blocks(self, replica: ReplicaAtRest, footer: Fields, *, verify: bool) -> list[Fields]:
        """The payload blocks that the footer of a compacted segment lists, in order, each "live" or "dropped", with a
        fault where it contradicts the footer. verify: also read live blocks and compare checksums. A brief footer lists
        only live blocks."""
        found = []
        for entry in footer["entries"] or ():
            if entry["kind"] in ("record", "zero"):
                continue
            block, fault = int(entry["block"]), None
            dropped = self.dropped(replica, block)
            if dropped and footer["brief"]:
                fault = "the footer lists it, and the bitmap does not have it"
            elif verify and not dropped:
                data = self.blocks(replica, block, 1)
                if len(data) < BLOCK:
                    fault = "cannot be read"
                elif structures.crc32c(data) != entry["crc"]:
                    fault = f"has checksum {structures.crc32c(data):08x}, the footer tells {entry['crc']:08x}"
            found.append(
                {**entry, "at": f"{replica.segment}:{block}", "state": "dropped" if dropped else "live", "fault": fault}
            )
        return found

    def footer(self, replica: ReplicaAtRest) -> Fields:
        """A sealed segment's footer with its table of entries."""
        if not replica.footer_block:
            return {"valid": False, "fault": "none: the segment is open or was sealed without one"}
        data = self.blocks(replica, replica.footer_block, 1)
        if len(data) < BLOCK:
            return {"valid": False, "fault": "unreadable or behind the segment's end"}
        found = structures.footer(data)
        if found["valid"] and found["table_blocks"]:
            data = self.blocks(replica, replica.footer_block, 1 + int(found["table_blocks"]))
            if len(data) < (1 + found["table_blocks"]) * BLOCK:
                return found | {"valid": False, "fault": "its table ends beyond the segment"}
            found = structures.footer(data)
        if found["valid"] and (
            found["volume"] != replica.volume
            or (found["segment"], found["block"]) != (replica.segment, replica.footer_block)
        ):
            found |= {
                "valid": False,
                "fault": f"written for {found['segment']}:{found['block']} of volume {bytes(found['volume']).hex()}",
            }
        return found
