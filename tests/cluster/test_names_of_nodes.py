"""A second daemon under the name of a running one takes nothing from it; a killed one is replaced at once."""

from __future__ import annotations

import copy

from iomesh.metadata import Delete
from iomesh.metadata.volumes import read_volumes
from support.daemon import Daemon

MIB = 1 << 20


def same_name(daemon: Daemon) -> Daemon:
    """A daemon with the same metadata, and its own state directory."""
    second = copy.copy(daemon)
    second.process, second.devices = None, []
    second.settings = {
        "state_dir": f"{daemon.directory}/second",
        "run_dir": f"{daemon.directory}/second/run",
        "metadata.path": f"{daemon.directory}/state/metadata.db",
    }
    return second


async def epochs(daemon: Daemon) -> list[int]:
    async with daemon.metadata() as metadata:
        return [stored.log.record.epoch for stored in (await read_volumes(metadata)).volumes if stored.log is not None]


async def test_a_second_daemon_of_the_same_name_is_refused_and_takes_no_epoch(node: Daemon) -> None:
    assert node.process is not None
    async with node.client() as client:
        await client.create_volume("db", 16 * MIB)
        before = await epochs(node)
        code, message = same_name(node).refuse()
        assert code == 5
        assert message.startswith("name: a daemon runs as node node-a already, with the same metadata: ")
        assert f"process {node.process.pid} on" in message and f"state_dir {node.directory}/state," in message
        assert await epochs(node) == before
        await client.checkpoint("db")  # its epoch is still the current one
        assert (await client.status()).warnings == []


async def test_after_a_kill_the_name_is_free_at_once(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", 16 * MIB)
    node.kill()
    node.start()
    node.kill()
    second = same_name(node)  # reads the devices from the metadata
    second.start()
    try:
        assert not node.logged("waiting for a lease to expire")
        assert len(await epochs(node)) == 1
    finally:
        assert second.stop() == 0
    node.start()
    async with node.client() as client:
        assert [volume.state.value for volume in await client.volumes()] == ["serving"]


async def test_without_its_devices_a_volume_keeps_its_epoch(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", 16 * MIB)
    assert node.stop() == 0
    before = await epochs(node)
    devices, node.devices = node.devices, []
    async with node.metadata() as metadata:
        for entry in (await metadata.list_prefix("devices/")).entries:
            await metadata.commit(Delete(entry.key, entry.version))
    node.start()
    async with node.client() as client:
        (volume,) = await client.volumes()
        assert (volume.state.value, "no device of this node is available" in volume.reason) == ("failed", True)
    assert node.stop() == 0
    assert await epochs(node) == before
    node.devices = devices
    node.start()
    async with node.client() as client:
        assert [volume.state.value for volume in await client.volumes()] == ["serving"]
