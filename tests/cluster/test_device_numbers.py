"""A device gets a number in its cluster once, and no other ever gets it; the segment table names devices by it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

from iomesh.cli.inspect.at_rest import DeviceAtRest
from iomesh.engine.engine import read_checkpoint, read_node, read_table
from iomesh.metadata import Delete
from iomesh.metadata.numbers import keep_device_number
from iomesh.metadata.records import DEVICE_NUMBERS_KEY, DeviceRecord, decode, device_key, put_device
from iomesh.node.offline import format_device, inspect_device
from support.daemon import MIB, Daemon
from support.nbd import Connection
from support.trial import iomesh_command

SIZE = 64 * MIB


async def numbers(daemon: Daemon) -> dict[str, int]:
    async with daemon.client() as client:
        found = {device.path: device.number for device in await client.devices()}
    assert all(inspect_device(path).number == number for path, number in found.items()), "as its superblock says"
    return found


async def test_two_nodes_that_start_at_once_give_no_number_twice(daemon: Daemon, room: Path) -> None:
    other = Daemon(daemon.directory / "b", cluster=daemon.cluster, name="node-b")
    other.directory.mkdir()
    for node in (daemon, other):
        node.settings["metadata.path"] = str(room / "metadata.db")
        while len(node.devices) < 6:
            await node.format(f"{len(node.devices)}.img")
    try:
        await asyncio.gather(asyncio.to_thread(daemon.start), asyncio.to_thread(other.start))
        found = await numbers(daemon) | await numbers(other)
        assert sorted(found.values()) == list(range(1, 13))
        daemon.kill()
        daemon.start()
        assert await numbers(daemon) | await numbers(other) == found, "a number stays"
    finally:
        if other.process is not None:
            other.kill()


async def test_a_crash_wastes_a_number_or_keeps_it_for_its_device(daemon: Daemon) -> None:
    """As a crash leaves it after each step of a first attachment: for one device the number is only taken, of the other
    it is in the device's record."""
    first, second = daemon.devices[0], await daemon.format("second.img")
    (daemon.directory / "state").mkdir()
    async with daemon.metadata() as metadata:
        await keep_device_number(metadata, 5)  # 4 was for the first device
        at_rest = inspect_device(second)
        record = DeviceRecord(
            id=uuid.UUID(at_rest.id),
            node=daemon.name,
            path=second,
            tier=at_rest.tier,
            label="",
            size_bytes=at_rest.size_bytes,
            number=5,
        )
        await metadata.commit(put_device(record, 0))
    daemon.start()
    assert await numbers(daemon) == {first: 6, second: 5}


async def test_a_device_formatted_anew_gets_a_new_number_and_one_seen_is_not_given_again(daemon: Daemon) -> None:
    kept, again = daemon.devices[0], await daemon.format("again.img")
    daemon.start()
    before = await numbers(daemon)
    assert sorted(before.values()) == [1, 2]
    async with daemon.client() as client:
        await client.remove_device(again)
    daemon.stop()
    shutil.copy(again, copy := str(daemon.directory / "copy.img"))
    await format_device(again, cluster=daemon.cluster, force=True)
    await format_device(copy, cluster=None, new_identity=True)
    daemon.devices.append(copy)
    daemon.start()
    after = await numbers(daemon)
    assert after[kept] == before[kept]
    assert sorted((after[again], after[copy])) == [3, 4]
    daemon.stop()
    async with daemon.metadata() as metadata:  # as restored from before the devices were attached
        await metadata.commit(Delete(DEVICE_NUMBERS_KEY, None))
    await daemon.format("new.img")
    daemon.start()
    assert (await numbers(daemon))[daemon.devices[-1]] == 5
    shown = subprocess.run(
        [iomesh_command(), "device", "list", "--address", daemon.control, "--json"], capture_output=True, check=True
    )
    assert sorted(one["number"] for one in json.loads(shown.stdout)["devices"]) == [1, 3, 4, 5]
    async with daemon.metadata() as metadata:
        entry = await metadata.get(device_key(uuid.UUID(inspect_device(kept).id)))
        assert entry is not None and decode(DeviceRecord, entry).record.number == before[kept]


def holders(devices: list[str], volume: bytes) -> dict[int, int]:
    """By the directories: the number of the device that holds each segment."""
    found: dict[int, int] = {}
    for path in devices:
        with DeviceAtRest(path) as it:
            number = int(it.superblock()["number"])
            found |= {segment: number for owner, segment in it.directory().replicas if owner == volume}
    return found


def block_at(devices: list[str], volume: bytes, segment: int, block: int) -> bytes:
    for path in devices:
        with DeviceAtRest(path) as it:
            if (volume, segment) in it.directory().replicas:
                return it.blocks(it.replica(volume, segment), block, 1)
    raise AssertionError(f"no device has segment {segment}")


async def test_the_segment_table_names_the_devices_that_hold_the_segments(daemon: Daemon) -> None:
    await daemon.format("second.img")
    daemon.start()
    async with daemon.client() as client:
        volume = await client.create_volume("db", SIZE)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        for offset in range(0, SIZE, MIB):
            await connection.write(offset, bytes([1 + offset // MIB]) * MIB)
        await connection.close()
    daemon.stop()
    identity = uuid.UUID(volume.id).bytes
    async with daemon.metadata() as metadata:
        entry = await metadata.get(f"logs/{volume.id}")
    assert entry is not None
    at = json.loads(entry.value)["checkpoint"]
    checkpoint = read_checkpoint(block_at(daemon.devices, identity, at["segment"], at["block"]))
    table: list[dict[str, Any]] = [
        row
        for index in checkpoint["index"]
        for pointer in read_node(block_at(daemon.devices, identity, *index[:2]))
        if pointer is not None
        for row in read_table(block_at(daemon.devices, identity, *pointer[:2]))
    ]
    there = holders(daemon.devices, identity)
    assert len(table) == checkpoint["table_entries"]
    table = [row for row in table if row["segment"] in there]  # others died with this checkpoint
    assert len(table) > 20
    assert [row["devices"] for row in table] == [[there[row["segment"]]] for row in table]
    assert len({row["devices"][0] for row in table}) == 2, "both devices are in use"
