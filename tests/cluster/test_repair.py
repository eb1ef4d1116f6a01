"""A node that lost blocks of its replicas serves them all the same, from a copy on another node, and has them again."""

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iomesh.api.client import Client
from support import replicas
from support.load import read_volume
from support.model import content
from support.nbd import Connection
from support.nodes import Nodes, until

VOLUME = 32 << 20
BLOCK = 4096
DAMAGED = 200
ROUNDS = 5
TAG = 0x1D1D1D1D


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    sizes = ("--device-size", "4Gi", "--size", str(VOLUME), "--segment-size", "4Mi")
    return new_trial("--nodes", "2", "--replicas", "2", *sizes, kind=Nodes)


async def write_whole(uri: str) -> None:
    connection = await Connection.connect(uri)
    for offset in range(0, VOLUME, 1 << 20):
        await connection.write(offset, content(TAG, offset, 1 << 20))
    await connection.flush()
    await connection.close()


def damage(device: Path, draw: random.Random, *, headers: bool, sealed: bool = False) -> int:
    """Overwrites blocks of the volume's data, and with `headers` of its records' headers and footers. Returns how
    many of these there were. sealed: only of segments that were sealed with a footer before the nodes ended, which lie
    in the first half: others are not scrubbed."""
    data, others = [], []
    file = os.open(device, os.O_RDWR)
    everywhere = list(blocks_with_data(file))
    for offset in everywhere[: len(everywhere) // 2] if sealed else everywhere:
        start = os.pread(file, 8, offset)
        if start in (b"IOMRCD\0\0", b"IOMFOTR\0"):
            others.append(offset)
        elif int.from_bytes(start, "little") == TAG:
            data.append(offset)
    chosen = draw.sample(data, DAMAGED) + (draw.sample(others, len(others) // 4) if headers else [])
    for offset in chosen:
        os.pwrite(file, os.urandom(BLOCK), offset)
    os.close(file)
    return len(chosen) - DAMAGED


def blocks_with_data(file: int) -> Iterator[int]:
    """Offsets of the blocks of a sparse file that are not holes."""
    end = 0
    with suppress(OSError):  # ENXIO: no data from there on
        while True:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
            yield from range(start, end, BLOCK)


def check(nodes: Nodes) -> None:
    read, expected = read_volume(nodes.uri, VOLUME), content(TAG, 0, VOLUME)
    wrong = [at for at in range(0, VOLUME, BLOCK) if read[at : at + BLOCK] != expected[at : at + BLOCK]]
    assert not wrong, f"{len(wrong)} blocks are wrong, from {wrong[0]} to {wrong[-1]}"


def counters(nodes: Nodes) -> dict[str, int]:
    async def ask() -> dict[str, int]:
        async with Client(nodes.described_node("a")["control"]) as client:
            (volume,) = (await client.counters()).volumes
            return dict(volume.counters)

    return asyncio.run(ask())


@pytest.mark.parametrize("headers", [False, True])
def test_lost_blocks_are_read_from_a_copy_and_written_again(nodes: Nodes, draw: random.Random, headers: bool) -> None:
    asyncio.run(write_whole(nodes.uri))
    nodes.kill("a", "b")
    (device,) = nodes.devices_of("a")
    lost = damage(device, draw, headers=headers)
    assert bool(lost) == headers
    nodes.start_nodes()  # both at once: recovery needs the copies of headers, and b alone would take the volume over
    check(nodes)
    told = counters(nodes)
    assert told["blocks_repaired"] > 0
    assert told["checksum_errors"] == told["read_errors"] == 0
    for _ in range(ROUNDS):  # one that is just being cleaned is written again the next time
        before = counters(nodes)["blocks_repaired"]
        check(nodes)
        if counters(nodes)["blocks_repaired"] == before:
            return
    raise AssertionError("blocks are got from the copy again and again")


def set_scrub(nodes: Nodes, text: str) -> None:
    """Of all nodes, from their next start on."""
    for name in nodes.names:
        config = Path(nodes.described_node(name)["config"])
        config.write_text(config.read_text() + f"\n[scrub]\n{text}\n")


def test_scrub_repairs_what_it_finds_on_the_owner_and_on_a_member(nodes: Nodes, draw: random.Random) -> None:
    """Data, headers and footers. The owner has blocks repaired, the other node whole replicas."""
    asyncio.run(write_whole(nodes.uri))
    asyncio.run(checkpointed(nodes))
    nodes.kill("a", "b")
    set_scrub(nodes, "interval_seconds = 0\nbytes_per_second = 0")
    for name, headers in (("a", False), ("b", True)):
        damage(nodes.devices_of(name)[0], draw, headers=headers, sealed=True)
        nodes.start_nodes(*nodes.names)
        asyncio.run(until(lambda: repaired(nodes), "all damage is repaired"))
        reported = Path(nodes.described_node(name)["log"]).read_text()
        assert '"damage repaired"' in reported and "Traceback" not in reported
        nodes.kill("a", "b")
        assert replicas_are_equal(nodes), name


async def checkpointed(nodes: Nodes) -> None:
    async with nodes.client("a") as client:
        await client.checkpoint()


async def repaired(nodes: Nodes) -> bool:
    """Each device was verified from end to end, by the daemons that run now, and is whole."""
    for name in nodes.names:
        async with nodes.client(name) as client:
            for device in await client.devices(name):
                whole = device.scrub.verified_bytes >= VOLUME and not device.scrub.damaged_blocks
                if not whole or device.scrub.ended_at is None:
                    return False
    return True


def replicas_are_equal(nodes: Nodes) -> bool:
    log = asyncio.run(nodes.stored())
    devices = {name: nodes.devices_of(name) for name in nodes.names}
    compared = replicas.compare(devices, log.id.bytes, log.owner)
    return len(compared.holders) >= VOLUME // (4 << 20) and all(len(each) == 2 for each in compared.holders.values())
