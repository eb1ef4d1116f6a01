"""Committed images of devices are opened as they are, and refused with the reason when a newer version has written on
them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from formats.images import BLOCK, BYTES_MAX, IMAGES, MANIFEST, daemon_of, packed, shown, unpack
from iomesh.api.model import VolumeState
from iomesh.cli.inspect.at_rest import DeviceAtRest, ReplicaAtRest
from iomesh.engine.engine import crc32c, structures
from iomesh.metadata import Put
from support import logs
from support.daemon import Daemon
from support.forged import resealed

SUPERBLOCKS = (0, 128 << 10)


@pytest.fixture(scope="module")
def unpacked() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(prefix="iomesh-") as name:
        folders = {image: Path(name) / image for image in IMAGES}
        for image, folder in folders.items():
            folder.mkdir()
            unpack(image, folder)
        yield folders


@pytest.fixture
def image(unpacked: dict[str, Path], expected_in_logs: tuple[str, ...]) -> Iterator[Callable[[str], Daemon]]:
    """Gives a daemon over a copy of an image."""
    daemons: list[Daemon] = []

    def copied(name: str) -> Daemon:
        directory = Path(tempfile.mkdtemp(prefix="iomesh-"))
        subprocess.run(["cp", "-r", "--sparse=always", f"{unpacked[name]}/.", directory], check=True)
        daemons.append(daemon_of(directory))
        return daemons[-1]

    yield copied
    for daemon in daemons:
        if daemon.process is not None:
            daemon.kill()
        logs.check_after(functools.partial(shutil.rmtree, daemon.directory), daemon.directory, expected_in_logs)


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MANIFEST.read_text())
    return found


@pytest.mark.parametrize("name", IMAGES)
async def test_an_image_is_opened_and_everything_in_it_is_as_it_was(image: Callable[[str], Daemon], name: str) -> None:
    expected = manifest()["images"][name]
    assert set(expected["volumes"]) == {"db", "clone", "plain"} and set(expected["snapshots"]) == {"db@monday"}
    assert len(expected["moments"]) >= 2
    daemon = image(name)
    daemon.start()
    assert await shown(daemon, expected["moments"]) == expected
    assert daemon.stop() == 0
    daemon.start()
    assert await shown(daemon, expected["moments"]) == expected


def test_the_images_have_what_they_are_for_and_are_small(unpacked: dict[str, Path]) -> None:
    assert all(packed(name).stat().st_size < BYTES_MAX for name in IMAGES)
    for name in IMAGES:
        with DeviceAtRest(str(unpacked[name] / "device.img")) as it:
            replicas = list(it.directory().replicas.values())
            assert any(replica.compacted for replica in replicas), "a compacted segment"
            opened = [replica for replica in replicas if replica.state == "open"]
            assert bool(opened) == (name == "killed"), "an open tail"
            assert int(it.superblock()["number"]) == 1


# What a newer version has written


def edit(daemon: Daemon, offset: int, structure: str, **fields: int) -> None:
    """Changes fields of a structure on the device, and its checksum with them."""
    places = {name: (at, size) for name, at, size in structures()[structure]}
    with Path(daemon.devices[0]).open("r+b") as device:
        device.seek(offset)
        data = bytearray(device.read(BLOCK))
        for name, value in fields.items():
            at, size = places[name]
            data[at : at + size] = value.to_bytes(size, "little")
        device.seek(offset)
        device.write(resealed(bytes(data)))


def place(it: DeviceAtRest, replica: ReplicaAtRest, block: int) -> int:
    """Where a block of a segment stands on the device."""
    superblock = it.superblock()
    slab_bytes = int(superblock["slab_bytes"])
    offset = block * BLOCK
    for first, count in replica.extents:
        if offset < count * slab_bytes:
            return int(superblock["slabs_offset"]) + first * slab_bytes + offset
        offset -= count * slab_bytes
    raise AssertionError(f"segment {replica.segment} has no block {block}")


@pytest.mark.parametrize(
    ("fields", "reason"), [({"version": 2}, "format version"), ({"features": 1 << 40}, "features")], ids=str
)
def test_a_device_with_a_newer_superblock_is_refused(
    image: Callable[[str], Daemon], fields: dict[str, int], reason: str
) -> None:
    daemon = image("stopped")
    for offset in SUPERBLOCKS:
        edit(daemon, offset, "Superblock", **fields)
    before = Path(daemon.devices[0]).read_bytes()
    code, message = daemon.refuse()
    assert code != 0
    assert daemon.devices[0] in message and reason in message
    assert Path(daemon.devices[0]).read_bytes() == before, "nothing is written to it"


@pytest.mark.parametrize("how", ["version", "flags"])
def test_a_device_with_a_newer_journal_block_is_refused(image: Callable[[str], Daemon], how: str) -> None:
    """The newest one: else it would be taken for one that a crash tore."""
    daemon = image("stopped")
    with DeviceAtRest(daemon.devices[0]) as it:
        directory, journal_bytes = it.directory(), int(it.superblock()["journal_bytes"])
        start = int(it.superblock()["journal_offset"])
    assert directory.half is not None
    for area in (directory.half, directory.half + 2):
        offset = start + area * journal_bytes + (directory.blocks - 1) * BLOCK
        if how == "version":
            edit(daemon, offset, "JournalBlock", version=2)
            continue
        with Path(daemon.devices[0]).open("r+b") as device:
            device.seek(offset)
            data = bytearray(device.read(BLOCK))
            data[64 + 3] = 0x80  # flags of the first entry
            device.seek(offset)
            device.write(resealed(bytes(data)))
    code, message = daemon.refuse()
    assert code != 0
    assert re.search(r"block \d+ of half \d of the journal was written by a newer version of iomesh", message), message


def first_record(it: DeviceAtRest, volume: bytes) -> tuple[str, int]:
    """In the open segment."""
    replica = next(each for each in it.directory().replicas.values() if each.volume == volume and each.state == "open")
    return "RecordHeader", place(it, replica, 0)


def last_footer(it: DeviceAtRest, volume: bytes) -> tuple[str, int]:
    """Of the newest sealed segment, which recovery has to read."""
    sealed = [each for each in it.directory().replicas.values() if each.volume == volume and each.state == "sealed"]
    replica = max(sealed, key=lambda each: each.segment)
    return "Footer", place(it, replica, replica.footer_block)


@pytest.mark.parametrize("fields", [{"version": 2}, {"flags": 1}], ids=str)
async def test_a_volume_with_a_newer_record_is_refused(image: Callable[[str], Daemon], fields: dict[str, int]) -> None:
    await is_refused(image("killed"), first_record, fields)


async def test_a_volume_with_a_newer_footer_is_refused(image: Callable[[str], Daemon]) -> None:
    await is_refused(image("killed"), last_footer, {"version": 2})


async def is_refused(
    daemon: Daemon, find: Callable[[DeviceAtRest, bytes], tuple[str, int]], fields: dict[str, int]
) -> None:
    identity = await volume_id(daemon, "db")
    with DeviceAtRest(daemon.devices[0]) as it:
        structure, offset = find(it, identity)
    edit(daemon, offset, structure, **fields)
    await only_others_are_served(daemon, r"block \d+ of segment \d+ was written by a newer version of iomesh")


async def volume_id(daemon: Daemon, name: str) -> bytes:
    async with daemon.metadata() as metadata:
        entry = await metadata.get(f"names/{name}")
    assert entry is not None
    return bytes.fromhex(json.loads(entry.value)["volume"].replace("-", ""))


async def only_others_are_served(daemon: Daemon, reason: str) -> None:
    daemon.start()
    async with daemon.client() as client:
        volume = await client.volume("db")
        assert volume.state is VolumeState.FAILED
        assert re.search(reason, volume.reason), volume.reason
        assert (await client.volume("plain")).state is VolumeState.SERVING


@pytest.mark.parametrize("fields", [{"version": 2}, {"features": 1}], ids=str)
async def test_a_volume_with_a_newer_checkpoint_is_refused(
    image: Callable[[str], Daemon], fields: dict[str, int]
) -> None:
    """The pointer to it has its checksum, and the metadata is another place to keep that: both are changed."""
    daemon = image("stopped")
    identity = await volume_id(daemon, "db")
    async with daemon.metadata() as metadata:
        entry = await metadata.get(f"logs/{uuid.UUID(bytes=identity)}")
        assert entry is not None
        log = json.loads(entry.value)
        with DeviceAtRest(daemon.devices[0]) as it:
            replica = it.replica(identity, log["checkpoint"]["segment"])
            offset = place(it, replica, log["checkpoint"]["block"])
        edit(daemon, offset, "Checkpoint", **fields)
        log["checkpoint"]["crc"] = crc_of(daemon, offset)
        await metadata.commit(Put(entry.key, json.dumps(log).encode(), entry.version))
    await only_others_are_served(daemon, r"the checkpoint .* was written by a newer version of iomesh")


@pytest.mark.parametrize("kind", ["volumes", "logs", "names"])
async def test_a_volume_with_a_newer_metadata_record_is_refused(image: Callable[[str], Daemon], kind: str) -> None:
    daemon = image("stopped")
    identity = await volume_id(daemon, "db")
    async with daemon.metadata() as metadata:
        entry = await metadata.get(f"{kind}/{'db' if kind == 'names' else uuid.UUID(bytes=identity)}")
        assert entry is not None
        record = json.loads(entry.value)
        record["format"] += 1
        await metadata.commit(Put(entry.key, json.dumps(record).encode(), entry.version))
    await only_others_are_served(daemon, r"has format \d+, and this version knows formats up to \d+")


async def test_a_newer_cluster_record_keeps_the_node_from_starting(image: Callable[[str], Daemon]) -> None:
    daemon = image("stopped")
    async with daemon.metadata() as metadata:
        entry = await metadata.get("cluster")
        assert entry is not None
        record = json.loads(entry.value)
        record["format"] += 1
        await metadata.commit(Put("cluster", json.dumps(record).encode(), entry.version))
    code, message = await asyncio.to_thread(daemon.refuse)
    assert code != 0
    assert re.search(r"metadata key cluster has format \d+", message), message


def crc_of(daemon: Daemon, offset: int) -> int:
    with Path(daemon.devices[0]).open("rb") as device:
        device.seek(offset)
        return crc32c(device.read(BLOCK))
