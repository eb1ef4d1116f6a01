"""A node with more devices than a machine word has bits, of very different sizes, uses all of them."""

import os
import random
from pathlib import Path

from iomesh.node.offline import format_device
from support.daemon import MIB, Daemon
from support.nbd import Connection

GIB, TIB = 1 << 30, 1 << 40
COUNT = 100
SMALL = [GIB << number % 6 for number in range(COUNT - 8)]  # 1 to 32 GiB
LARGE = [TIB // 8, TIB // 2, TIB, 2 * TIB, 4 * TIB, 8 * TIB, 16 * TIB, 20 * TIB]
VOLUME = 64 * TIB
PIECE = MIB


def largest_file(directory: Path) -> int:
    """What the file system allows: 16 TiB less a block on ext4."""
    path = directory / "probe"
    least, beyond = 0, LARGE[-1] // MIB + 1
    with path.open("wb") as file:
        while beyond - least > 1:
            middle = (least + beyond) // 2
            try:
                os.ftruncate(file.fileno(), middle * MIB)
                least = middle
            except OSError:
                beyond = middle
    path.unlink()
    return least * MIB


async def make_device(daemon: Daemon, name: str, size: int) -> None:
    path = daemon.directory / name
    with path.open("wb") as file:
        file.truncate(size)
    await format_device(str(path), cluster=daemon.cluster)
    daemon.devices.append(str(path))


def taken(path: str) -> int:
    """Allocated bytes of the device's file."""
    return Path(path).stat().st_blocks * 512


async def test_every_device_of_many_takes_segments_and_a_volume_may_be_as_large_as_any(daemon: Daemon) -> None:
    daemon.devices.clear()
    most = largest_file(daemon.directory)
    for number, size in enumerate([*SMALL, *(min(size, most) for size in LARGE)]):
        await make_device(daemon, f"{number}.img", size)
    assert len(daemon.devices) == COUNT
    empty = {path: taken(path) for path in daemon.devices}
    daemon.start()
    draw = random.Random(1)
    async with daemon.client() as client:
        volume = await client.create_volume("db", VOLUME, segment_bytes=MIB)  # so that little data reaches all devices
        assert volume.size_bytes == VOLUME
        uri = (await client.export_volume("db")).uris[0]
        assert sorted(device.number for device in await client.devices()) == list(range(1, COUNT + 1))
    written = {}
    connection = await Connection.connect(uri)
    for number in range(3 * COUNT):  # from the first to the last MiB
        offset = draw.randrange(VOLUME // PIECE) * PIECE if number > 1 else number * (VOLUME - PIECE)
        written[offset] = draw.randbytes(16) * (PIECE // 16)
        await connection.write(offset, written[offset])
    await connection.flush()
    await connection.close()
    async with daemon.client() as client:
        assert (await client.create_volume("default", VOLUME)).segment_bytes == 64 * MIB
        assert all(device.replicas for device in await client.devices())
    unused = [path for path in daemon.devices if taken(path) <= empty[path]]
    daemon.kill()
    assert not unused, f"{len(unused)} of {len(daemon.devices)} devices have no segment: {unused[:5]}"
    daemon.start()
    connection = await Connection.connect(uri)
    for offset, data in written.items():
        assert await connection.read(offset, PIECE) == data, f"byte {offset}"
    await connection.close()
