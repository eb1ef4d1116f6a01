"""`iomesh inspect superblock|journal|directory|segment|record|footer|checkpoint|node DEVICE ...`.

Each command ends with exit code 7 (damaged) when the requested structure is not valid; it is printed all the same.
"""

import errno
import re
from typing import Any

import click

from iomesh.cli import documents
from iomesh.cli.inspect import render
from iomesh.cli.inspect.at_rest import AREAS, DeviceAtRest, ReplicaAtRest
from iomesh.cli.inspect.log_at_rest import checkpoints, describe_block, walk_map
from iomesh.cli.inspect.structures import BLOCK, Fields
from iomesh.cli.session import Session, Size, answers
from iomesh.errors import Damaged, InvalidArgument, NotFound, from_errno, meaning
from iomesh.sizes import exact_size

EXIT_DAMAGED = meaning(Damaged("")).exit_code


class Address(click.ParamType[tuple[int, int]]):
    """SEGMENT:BLOCK, as pointers are printed."""

    name = "segment:block"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", str(value), re.ASCII)
        if match is None:
            raise InvalidArgument(f"ADDRESS: {value!r} is not SEGMENT:BLOCK, two numbers such as 12:0")
        return int(match[1]), int(match[2])


@click.group()
def inspect() -> None:
    """Print what is on a device at rest, structure by structure, valid or not.

    DEVICE is only read. A daemon may have it open, but then what is printed may be older than what the daemon knows.
    """


device_argument = click.argument("device", type=click.Path(), metavar="DEVICE")
volume_option = click.option(
    "--volume", metavar="ID", help="Id of the volume, or how it begins; needed when the device holds several."
)


def opened(path: str) -> DeviceAtRest:
    try:
        return DeviceAtRest(path)
    except OSError as error:
        raise from_errno(error.errno or errno.EIO, f"{path} cannot be opened: {error.strerror}") from None


@inspect.command("superblock")
@device_argument
@answers(documents.Superblocks)
def superblock(session: Session, device: str) -> None:
    """Print both superblocks."""
    with opened(device) as it:
        twins = it.superblocks()
    valid = [one for one in twins if one["valid"]]
    current = max(valid, key=lambda one: int(one["generation"]))["offset"] if valid else None
    session.output.answer(
        {"device": device, "current": current, "superblocks": twins},
        *(render.superblock(one, current) for one in twins),
    )
    end(len(valid) == len(twins))


@inspect.command("journal")
@device_argument
@click.option(
    "--area", type=click.IntRange(0, 3), help="One of the four areas: half 0, half 1, their mirrors. By default all."
)
@click.option("--entries", is_flag=True, help="With the entries of each block.")
@answers(documents.JournalDocument)
def journal(session: Session, device: str, area: int | None, entries: bool) -> None:
    """Print the blocks of the journal, area by area, up to the end of each."""
    areas: list[Fields] = []
    with opened(device) as it:
        for number in range(4) if area is None else (area,):
            blocks = [{"offset": offset, **block} for offset, block in it.journal_area(number)]
            areas.append({"area": number, "name": AREAS[number], "blocks": blocks})
    session.output.answer({"device": device, "areas": areas}, *(render.journal_area(one, entries) for one in areas))
    end(all(block["valid"] for one in areas for block in one["blocks"]))


@inspect.command("directory")
@device_argument
@volume_option
@answers(documents.DirectoryDocument)
def directory(session: Session, device: str, volume: str | None) -> None:
    """Print which segments of which volumes the device holds, according to its journal."""
    with opened(device) as it:
        found = it.directory()
        only = it.volume(volume) if volume else None
        superblock = it.superblock()
    replicas = [one for key, one in sorted(found.replicas.items()) if only in (None, key[0])]
    document = {
        "device": device,
        "half": found.half,
        "generation": found.generation,
        "journal_blocks": found.blocks,
        "notes": found.notes,
        "segments": [vars(one) for one in replicas],
        "slabs": superblock["slabs"],
        "slabs_taken": sum(one.slabs for one in found.replicas.values()),
    }
    session.output.answer(document, *render.directory(document, replicas))
    end(found.half is not None)


@inspect.command("segment")
@device_argument
@click.argument("segment", type=click.IntRange(0, 2**32 - 1))
@volume_option
@click.option("--verify", is_flag=True, help="Read the payload as well and check it against the checksums.")
@click.option("--entries", is_flag=True, help="With the entries of each record.")
@answers(documents.Segment)
def segment(session: Session, device: str, segment: int, volume: str | None, verify: bool, entries: bool) -> None:
    """Print a segment: its records from the first on, then its footer; of a compacted one the blocks that it kept."""
    with opened(device) as it:
        replica = it.replica(it.volume(volume), segment)
        document = compacted_segment(it, replica, verify) if replica.compacted else whole_segment(it, replica, verify)
    session.output.answer(document, *render.segment(document, entries))
    compacted, footer = document["compacted"], document["footer"]
    sound = all(one["valid"] and not one["payload_faults"] for one in document["records"]) and (
        footer is None or bool(footer["valid"])
    )
    faults = [] if compacted is None else [compacted["fault"], *(one["fault"] for one in compacted["blocks"])]
    end(sound and not any(faults))


def whole_segment(it: DeviceAtRest, replica: ReplicaAtRest, verify: bool) -> Fields:
    records = []
    for block, record in it.records(replica):
        faults = it.payload_faults(replica, block, record) if verify and record["valid"] else []
        records.append({"at": f"{replica.segment}:{block}", **record, "payload_faults": faults})
    last = records.pop() if records and records[-1].get("empty") else None
    footer = it.footer(replica) if replica.footer_block else None
    return {
        "device": it.path,
        "segment": vars(replica),
        "records": records,
        "ends": last["at"] if last else None,
        "footer": footer,
        "compacted": None,
    }


def compacted_segment(it: DeviceAtRest, replica: ReplicaAtRest, verify: bool) -> Fields:
    """A compacted segment has no records: their headers are dropped like all blocks without a pointer to them."""
    footer = it.footer(replica) if replica.footer_block else None
    blocks = it.listed_blocks(replica, footer, verify=verify) if footer is not None and footer["valid"] else []
    compacted = {
        "fault": it.bitmap_fault(replica),
        "live_blocks": replica.live,
        "dropped_blocks": replica.blocks - replica.live,
        "blocks": blocks,
    }
    return {
        "device": it.path,
        "segment": vars(replica),
        "records": [],
        "ends": None,
        "footer": footer,
        "compacted": compacted,
    }


@inspect.command("record")
@device_argument
@click.argument("address", type=Address())
@volume_option
@answers(documents.Structure)
def record(session: Session, device: str, address: tuple[int, int], volume: str | None) -> None:
    """Print the record whose header stands at ADDRESS (SEGMENT:BLOCK), and check its payload."""
    with opened(device) as it:
        replica = it.replica(it.volume(volume), address[0])
        found = it.record(replica, address[1])
        faults = it.payload_faults(replica, address[1], found) if found["valid"] else []
    document = {"at": f"{address[0]}:{address[1]}", **found, "payload_faults": faults}
    session.output.answer(document, *render.record(document))
    end(bool(found["valid"]) and not faults)


@inspect.command("footer")
@device_argument
@click.argument("segment", type=click.IntRange(0, 2**32 - 1))
@volume_option
@answers(documents.Structure)
def footer(session: Session, device: str, segment: int, volume: str | None) -> None:
    """Print the footer of a sealed segment with its table."""
    with opened(device) as it:
        replica = it.replica(it.volume(volume), segment)
        found = it.footer(replica)
    session.output.answer({"at": f"{segment}:{replica.footer_block}", **found}, *render.footer(found, replica))
    end(bool(found["valid"]))


@inspect.command("checkpoint")
@device_argument
@click.argument("address", type=Address(), required=False)
@volume_option
@answers(documents.Structure)
def checkpoint(session: Session, device: str, address: tuple[int, int] | None, volume: str | None) -> None:
    """Print the checkpoint at ADDRESS (SEGMENT:BLOCK), by default the newest of the volume on the device."""
    with opened(device) as it:
        owner = it.volume(volume)
        if address is None:
            replica, block = newest_checkpoint(it, owner)
        else:
            replica, block = it.replica(owner, address[0]), address[1]
        found = describe_block(it, replica, block, "checkpoint")
    session.output.answer(found, *render.checkpoint(found))
    end(bool(found["valid"]))


@inspect.command("node")
@device_argument
@click.argument("address", type=Address(), required=False)
@volume_option
@click.option(
    "--offset",
    type=Size(),
    help="Instead of an address: walk down the newest checkpoint's map to this byte of the volume.",
)
@answers(documents.MapNodes)
def node(
    session: Session, device: str, address: tuple[int, int] | None, volume: str | None, offset: int | None
) -> None:
    """Print the map node at ADDRESS (SEGMENT:BLOCK), or those that lead to a byte of the volume."""
    if (address is None) == (offset is None):
        raise InvalidArgument("name either the ADDRESS of a map node (SEGMENT:BLOCK) or an --offset in the volume")
    with opened(device) as it:
        owner = it.volume(volume)
        nodes: list[Fields]
        if address is not None:
            nodes = [describe_block(it, it.replica(owner, address[0]), address[1], "node")]
        else:
            replica, block = newest_checkpoint(it, owner)
            found = describe_block(it, replica, block, "checkpoint")
            if offset is not None and found["valid"] and offset >= found["size_bytes"]:
                size = exact_size(int(found["size_bytes"]))
                raise InvalidArgument(
                    f"--offset: {exact_size(offset)} is beyond the end of the volume, which has {size} in its newest "
                    "checkpoint"
                )
            nodes = walk_map(it, owner, found, (offset or 0) // BLOCK)
    session.output.answer(
        {"device": device, "nodes": nodes},
        *(line for one in nodes for line in render.node(one, whole=address is not None)),
    )
    end(all(one["valid"] for one in nodes))


def newest_checkpoint(it: DeviceAtRest, volume: bytes) -> tuple[ReplicaAtRest, int]:
    """Raises NotFound when there is none."""
    found = checkpoints(it, volume)
    if not found:
        raise NotFound(
            f"no checkpoint of volume {volume.hex()} is on {it.path}: it was never written, or lies on another device "
            "of the node"
        )
    _, replica, block = max(found, key=lambda one: one[0])
    return replica, block


def end(valid: bool) -> None:
    if not valid:
        raise click.exceptions.Exit(EXIT_DAMAGED)
