"""Images of devices in the present format, with the metadata of their cluster: what a later version opens, or refuses
with a reason (docs/formats.md, "Images of this format").

`make format-images` makes them anew from a real daemon. `stopped` is a device after a clean stop; `killed` is the same
one, written on and killed, with sealed and open segments behind its last checkpoint. Each is a compressed archive of
the device and the metadata service's file. The manifest has the contents that they must show.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iomesh.metadata import Delete
from iomesh.node.offline import format_device
from support.contents import everything
from support.daemon import MIB, Daemon
from support.nbd import Connection

HERE = Path(__file__).parent
MANIFEST = HERE / "manifest.json"
IMAGES = ("stopped", "killed")
BYTES_MAX = 200 << 10  # of one image; they are in every clone of the repository
CLUSTER = uuid.UUID("00c0ffee-0000-4000-8000-000000000001")
DEVICE_BYTES = 128 * MIB
SIZE = 8 * MIB
BLOCK = 4096
DAY = 86400
APART_SECONDS = 0.01  # so that a point in time lies between two operations
SETTINGS = {"cleaning.rest_seconds": "0", "cleaning.bytes_per_second": "0"}
DEADLINE_SECONDS = 120.0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pattern(name: str, length: int) -> bytes:
    """Blocks that are all different, and compress well."""
    return b"".join(f"{name}{number:06}.".encode().ljust(16, b".") * (BLOCK // 16) for number in range(length // BLOCK))


def packed(name: str) -> Path:
    return HERE / f"{name}.tar.xz"


def unpack(name: str, into: Path) -> None:
    """device.img and state/metadata.db. The device is sparse again."""
    with tarfile.open(packed(name)) as archive:
        archive.extractall(into, filter="data")
    sparse = into / "sparse.img"
    subprocess.run(["cp", "--sparse=always", into / "device.img", sparse], check=True)
    sparse.replace(into / "device.img")


def daemon_of(directory: Path) -> Daemon:
    """A daemon over what was unpacked there."""
    return Daemon(directory, devices=[str(directory / "device.img")], cluster=CLUSTER, settings=dict(SETTINGS))


async def shown(daemon: Daemon, moments: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents of everything on the device, as the manifest has them. Makes a clone for each point in time."""
    found: dict[str, Any] = {"volumes": {}, "snapshots": {}, "moments": []}
    async with daemon.client() as client:
        for volume in sorted(await client.volumes(), key=lambda each: each.name):
            content = await everything((await client.export_volume(volume.name)).uris[0])
            found["volumes"][volume.name] = {
                "size_bytes": volume.size_bytes,
                "clone_of": volume.clone_of,
                "window_seconds": volume.policy.window_seconds,
                "sha256": digest(content),
            }
        for snapshot in await client.snapshots():
            name = f"{snapshot.volume}@{snapshot.name}"
            content = await everything((await client.export_snapshot(snapshot.volume, snapshot.name)).uris[0])
            await client.unexport_snapshot(snapshot.volume, snapshot.name)
            found["snapshots"][name] = {"sha256": digest(content)}
        for number, moment in enumerate(moments):
            await client.clone_volume("db", "", f"moment{number}", at_ns=moment["at_ns"])
            content = await everything((await client.export_volume(f"moment{number}")).uris[0])
            found["moments"].append({"at_ns": moment["at_ns"], "sha256": digest(content)})
            await client.delete_volume(f"moment{number}", force=True)
    return found


async def remembered(uri: str) -> dict[str, Any]:
    """A point in time of the restore window, and the content then."""
    await asyncio.sleep(APART_SECONDS)
    moment = {"at_ns": time.time_ns(), "sha256": digest(await everything(uri))}
    await asyncio.sleep(APART_SECONDS)
    return moment


async def make() -> None:
    with tempfile.TemporaryDirectory(prefix="iomesh-") as name:
        daemon = daemon_of(Path(name))
        with Path(daemon.devices[0]).open("wb") as file:
            file.truncate(DEVICE_BYTES)
        await format_device(daemon.devices[0], cluster=CLUSTER, label="image")
        daemon.start()
        moments = await write(daemon)
        contents = {"stopped": await shown(daemon, moments)}
        assert daemon.stop() == 0
        await pack(daemon, "stopped")
        daemon.start()
        moments.append(await write_on(daemon))
        contents["killed"] = await shown(daemon, [])
        contents["killed"]["moments"] = moments
        await leave_open_tail(daemon)
        contents["killed"]["volumes"]["db"] = (await shown(daemon, []))["volumes"]["db"]
        daemon.kill()
        await pack(daemon, "killed")
    MANIFEST.write_text(json.dumps({"made_by": version("iomesh"), "images": contents}, indent=2) + "\n")


async def write(daemon: Daemon) -> list[dict[str, Any]]:
    """A volume with a restore window, a snapshot and a trimmed range; its clone; a volume with a compacted segment."""
    async with daemon.client() as client:
        await client.create_volume("db", SIZE, window_seconds=DAY)
        db = await Connection.connect(uri := (await client.export_volume("db")).uris[0])
        await db.write(0, pattern("first", MIB))
        await db.write(SIZE - MIB, pattern("last", MIB))
        moments = [await remembered(uri)]
        await db.write(MIB // 2, pattern("second", MIB // 2))
        await db.trim(SIZE - MIB, 64 * BLOCK)
        await db.write(3 * BLOCK + 512, b"part of a block")
        await client.create_snapshots(["db"], "monday")
        moments.append(await remembered(uri))
        await db.write(0, pattern("third", MIB // 4))
        await db.close()
        await client.clone_volume("db", "monday", "clone")
        clone = await Connection.connect((await client.export_volume("clone")).uris[0])
        await clone.write(2 * MIB, pattern("clone", MIB // 2))
        await clone.close()
        await client.create_volume("plain", SIZE)
        plain = await Connection.connect((await client.export_volume("plain")).uris[0])
        for offset in range(0, 3 * MIB, MIB):
            await plain.write(offset, pattern("plain", MIB))
        for offset in range(0, 3 * MIB, 2 * BLOCK):
            await plain.trim(offset, BLOCK)
        await plain.close()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not any(
                each.volume == "plain" and each.counters["segments_compacted"]
                for each in (await client.counters()).volumes
            ):
                await client.checkpoint("plain")
                await asyncio.sleep(0.1)
        for volume in ("db", "clone", "plain"):
            await client.checkpoint(volume)
    return moments


async def write_on(daemon: Daemon) -> dict[str, Any]:
    """After a checkpoint, so that recovery replays it: segments are sealed."""
    async with daemon.client() as client:
        await client.checkpoint("db")
        db = await Connection.connect(uri := (await client.export_volume("db")).uris[0])
        for number in range(2):
            await db.write((2 + number) * MIB, pattern(f"more{number}", MIB))
        moment = await remembered(uri)
        await db.trim(2 * MIB, 16 * BLOCK)
        await db.close()
    return moment


async def leave_open_tail(daemon: Daemon) -> None:
    async with daemon.client() as client:
        db = await Connection.connect((await client.export_volume("db")).uris[0])
        await db.write(5 * MIB, pattern("tail", 16 * BLOCK))
        await db.flush()
        await db.close()


async def pack(daemon: Daemon, name: str) -> None:
    async with daemon.metadata() as metadata:  # of the machine that made it: another one would wait for it
        await metadata.commit(Delete(f"nodes/{daemon.name}", None))
    with tarfile.open(packed(name), "w:xz", preset=9) as archive:
        archive.add(daemon.devices[0], "device.img", filter=anonymous)
        for file in sorted((daemon.directory / "state").glob("metadata.db*")):
            if not file.name.endswith("-shm"):
                archive.add(file, f"state/{file.name}", filter=anonymous)
    size = packed(name).stat().st_size
    print(f"{packed(name).relative_to(Path.cwd())}: {size:,} bytes")
    assert size < BYTES_MAX, "the image is too large to be committed"


def anonymous(file: tarfile.TarInfo) -> tarfile.TarInfo:
    file.uid = file.gid = file.mtime = 0
    file.uname = file.gname = ""
    file.mode = 0o644
    return file


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(asyncio.run(make()))
