"""What `volume show` tells of space, of volumes that a daemon serves."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess

from iomesh.api.client import Client
from iomesh.api.model import Space
from support.daemon import MIB, Daemon
from support.nbd import Connection
from support.trial import iomesh_command

SIZE = 64 * MIB


async def write(client: Client, name: str, at: int, length: int) -> None:
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    for offset in range(at, at + length, MIB):
        await connection.write(offset, name.encode()[:1] * MIB)
    await connection.close()


async def space(client: Client, name: str) -> Space:
    """Which adds up."""
    it = (await client.volume(name)).space
    held = it.exclusive_bytes + it.shared_bytes
    assert it.mapped_bytes == held + it.inherited_bytes
    live = held + it.snapshots_bytes + it.pinned_bytes + it.map_bytes
    assert it.physical_bytes == live + it.log_bytes + it.ahead_bytes + it.dead_bytes
    assert it.amplification == (it.physical_bytes / live if live else 0)
    return it


async def test_a_volume_its_snapshot_and_a_clone_of_it(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        it = await space(client, "db")
        assert (it.mapped_bytes, it.physical_bytes, it.amplification) == (0, it.ahead_bytes, 0), "nothing was ever written"
        await write(client, "db", 0, 16 * MIB)
        it = await space(client, "db")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes) == (16 * MIB, 16 * MIB, 0)
        await client.create_snapshots(["db"], "one")
        await write(client, "db", 0, 4 * MIB)
        it = await space(client, "db")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.snapshots_bytes) == (16 * MIB, 4 * MIB, 12 * MIB, 4 * MIB)
        await client.create_snapshots(["db"], "two")
        shown = {one.name: (one.mapped_bytes, one.new_bytes) for one in await client.snapshots("db")}
        assert shown == {"one": (16 * MIB, 16 * MIB), "two": (16 * MIB, 4 * MIB)}
        await client.delete_snapshot("db", "two")
        async with asyncio.timeout(60):
            while (await space(client, "db")).exclusive_bytes != 4 * MIB:  # noqa: ASYNC110  # it is given back behind the answer
                await asyncio.sleep(0.05)
        await client.clone_volume("db", "one", "copy")
        await write(client, "copy", 0, MIB)
        it = await space(client, "copy")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.inherited_bytes) == (16 * MIB, MIB, 0, 15 * MIB)
    node.kill()
    node.start()
    async with node.client() as client:
        it = await space(client, "db")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.snapshots_bytes) == (16 * MIB, 4 * MIB, 12 * MIB, 4 * MIB)
        it = await space(client, "copy")
        assert (it.mapped_bytes, it.exclusive_bytes, it.shared_bytes, it.inherited_bytes) == (16 * MIB, MIB, 0, 15 * MIB)

    def show(*words: str) -> str:
        command = [iomesh_command(), "volume", "show", *words, "--control", node.control]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert re.search(r"^  inherited +15 MiB +from db@one", show("copy"), re.MULTILINE)
    assert "inherited" not in show("db")
    assert json.loads(show("db", "--json"))["space"]["shared_bytes"] == 12 * MIB
