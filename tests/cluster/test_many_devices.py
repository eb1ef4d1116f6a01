"""A node with more devices than a machine word has bits, of very different sizes, uses all of them."""

import random
from pathlib import Path

from iomesh.node.offline import format_device
from support.daemon import MIB, Daemon
from support.nbd import Connection

COUNT = 70
SMALL, LARGE = 64 * MIB, 1024 * MIB
PIECE = MIB


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
    for number in range(COUNT):
        await make_device(daemon, f"{number}.img", SMALL)
    await make_device(daemon, "large.img", LARGE)
    empty = {path: taken(path) for path in daemon.devices}
    daemon.start()
    draw = random.Random(1)
    async with daemon.client() as client:
        volume = await client.create_volume("db", 64 << 40, segment_bytes=0)
        assert volume.size_bytes == 64 << 40
        assert volume.segment_bytes == 2 * MIB  # the size that suits the large device
        uri = (await client.export_volume("db")).uris[0]
    written = {}
    connection = await Connection.connect(uri)
    for _ in range(300):
        offset = draw.randrange((64 << 40) // PIECE) * PIECE
        written[offset] = draw.randbytes(16) * (PIECE // 16)
        await connection.write(offset, written[offset])
    await connection.flush()
    await connection.close()
    unused = [path for path in daemon.devices if taken(path) <= empty[path]]
    daemon.kill()
    assert not unused, f"{len(unused)} of {len(daemon.devices)} devices have no segment: {unused[:5]}"
    daemon.start()
    connection = await Connection.connect(uri)
    for offset, data in written.items():
        assert await connection.read(offset, PIECE) == data, f"byte {offset}"
    await connection.close()
