"""Checkpoints describe their volume as it is: after a change of its size, policy, name or lineage the next one differs,
and a clean stop writes one even if no data was written since.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from typing import Any

from support.contents import fill
from support.daemon import MIB, Daemon
from support.trial import iomesh_command

SIZE = 16 * MIB
DEADLINE_SECONDS = 120.0  # against hangs; not a performance limit
NOBODY = uuid.UUID(int=0).hex


def described(daemon: Daemon, volume: str) -> dict[str, Any]:
    """The newest checkpoint of the volume on the device."""
    words = ["inspect", "checkpoint", daemon.devices[0], "--volume", volume, "--json"]
    done = subprocess.run([iomesh_command(), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_size_and_restore_window(daemon: Daemon) -> None:
    daemon.start()
    async with daemon.client() as client:
        volume = await client.create_volume("db", SIZE)
        await fill((await client.export_volume("db")).uris[0], b"data")
        await client.checkpoint("db")
        found = described(daemon, volume.id)
        assert (found["name"], found["size_bytes"], found["window_seconds"]) == ("db", SIZE, 0)
        await client.grow_volume("db", 2 * SIZE)
        await client.checkpoint("db")
        assert described(daemon, volume.id)["size_bytes"] == 2 * SIZE
        await client.set_volume("db", window_seconds=3600)
        await client.checkpoint("db")
        assert described(daemon, volume.id)["window_seconds"] == 3600
        await client.set_volume("db", window_seconds=0)
    daemon.stop()
    found = described(daemon, volume.id)
    assert (found["name"], found["size_bytes"], found["window_seconds"]) == ("db", 2 * SIZE, 0)
    assert (found["replicas"], found["write_replicas"]) == (1, 1)


async def test_a_change_that_a_crash_kept_from_every_checkpoint_is_in_the_next(daemon: Daemon) -> None:
    daemon.start()
    async with daemon.client() as client:
        volume = await client.create_volume("db", SIZE)
        await fill((await client.export_volume("db")).uris[0], b"data")
        await client.checkpoint("db")
        await client.grow_volume("db", 2 * SIZE)
    daemon.kill()
    assert described(daemon, volume.id)["size_bytes"] == SIZE
    daemon.start()
    daemon.stop()
    assert described(daemon, volume.id)["size_bytes"] == 2 * SIZE


async def test_a_hidden_parent_and_a_flattened_clone(daemon: Daemon) -> None:
    daemon.start()
    async with daemon.client() as client:
        parent = await client.create_volume("parent", SIZE)
        await fill((await client.export_volume("parent")).uris[0], b"data")
        await client.create_snapshots(["parent"], "monday")
        clone = await client.clone_volume("parent", "monday", "clone")
        await fill((await client.export_volume("clone")).uris[0], b"more")
        await client.checkpoint("clone")
        found = described(daemon, clone.id)
        assert (found["name"], found["lineage_volume"]) == ("clone", parent.id.replace("-", ""))
        assert found["branch"] > 1
        await client.delete_volume("parent", snapshots=True, force=True)
    daemon.stop()
    assert described(daemon, parent.id)["name"] == f"deleted:{parent.id}"
    daemon.start()
    async with daemon.client() as client:
        await client.flatten_volume("clone")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await client.volume("clone")).clone_of:  # noqa: ASYNC110  # the daemon sends no event for this
                await asyncio.sleep(0.1)
    daemon.stop()
    found = described(daemon, clone.id)
    assert (found["branch"], found["lineage_volume"], found["lineage_snapshot"]) == (0, NOBODY, NOBODY)
