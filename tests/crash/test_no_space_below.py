"""A sparse device on a file system that is full: writes wait, then get ENOSPC, and continue by themselves."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from iomesh.api.model import DeviceState
from iomesh.errors import NoSpace
from support.daemon import Daemon
from support.nbd import Connection, NbdError
from support.small_file_system import SmallFileSystem

VOLUME = 64 << 20
MIB = 1 << 20
WAIT = 1  # seconds


@pytest.fixture
def small(room: Path) -> Iterator[SmallFileSystem]:
    """With room for the device's journal and some data, and direct I/O, which a tmpfs may not have."""
    made = SmallFileSystem(room / "small", mebibytes=64)
    yield made
    made.remove()


@pytest.fixture
async def daemon(room: Path, small: SmallFileSystem) -> AsyncIterator[Daemon]:
    """A daemon whose only device is a sparse file of 256 MiB on the small file system; not started."""
    daemon = Daemon(room, settings={"engine.space_below_wait_seconds": WAIT})
    try:
        await daemon.format("small/device.img")
    except Exception as error:
        pytest.skip(f"no direct I/O on a tmpfs here: {error}")
    yield daemon
    if daemon.process is not None:
        daemon.kill()


async def fill(connection: Connection) -> int:
    """Writes behind the first MiB until a write is refused; returns the number of MiB that are acknowledged."""
    for number in range(1, VOLUME // MIB):
        try:
            await connection.write(number * MIB, bytes([number + 1]) * MIB)
        except NbdError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError("the file system never became full")


async def check(connection: Connection, count: int) -> None:
    for number in range(count):
        assert await connection.read(number * MIB, MIB) == bytes([number + 1]) * MIB, f"MiB {number}"


def count_lines(daemon: Daemon, words: str) -> int:
    events = [json.loads(line)["event"] for line in daemon.log.read_text().splitlines() if line.startswith("{")]
    return sum(words in event for event in events)


async def test_without_space_below_writes_are_refused_until_there_is_some(
    daemon: Daemon, small: SmallFileSystem
) -> None:
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", VOLUME)
        uri = (await client.export_volume("db")).uris[0]
        connection = await Connection.connect(uri)
        await connection.write(0, bytes([1]) * MIB)
        small.fill()
        count = await fill(connection)
        await check(connection, count)
        [device] = await client.devices()
        assert device.state is DeviceState.ONLINE
        assert "has no space" in device.reason
        status = await client.status()
        assert any("has no space" in problem for problem in status.problems), status.problems
        assert "iomesh_device_full_below" in await daemon.page("/metrics")
        with pytest.raises(NoSpace):
            await client.create_snapshots(["db"], "one")
        before = await client.volume("db")
        for _ in range(20):
            with pytest.raises(NbdError) as caught:
                await connection.write(0, bytes([9]) * MIB)
            assert caught.value.errno == errno.ENOSPC
        await asyncio.sleep(3)  # several attempts to write again
        after = await client.volume("db")
        assert after.log_bytes_since_checkpoint == before.log_bytes_since_checkpoint, "the log grows"
        assert after.segments == before.segments, "new segments although nothing can be written"
        assert count_lines(daemon, "no space under the device") == 1
        small.free()
        async with asyncio.timeout(240):
            while True:
                try:
                    await connection.write(count * MIB, bytes([count + 1]) * MIB)
                    break
                except NbdError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    await asyncio.sleep(0.1)
            await connection.flush()
            while (await client.devices())[0].reason:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await check(connection, count + 1)
        assert not (await client.status()).problems
        await client.create_snapshots(["db"], "one")
        await connection.close()


async def test_nothing_acknowledged_is_lost_by_a_kill_without_space_below(
    daemon: Daemon, small: SmallFileSystem
) -> None:
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", VOLUME)
        uri = (await client.export_volume("db")).uris[0]
    connection = await Connection.connect(uri)
    await connection.write(0, bytes([1]) * MIB)
    small.fill()
    count = await fill(connection)
    daemon.kill()
    daemon.start()
    connection = await Connection.connect(uri)
    await check(connection, count)
    await fill(connection)
    await connection.close()
    daemon.kill()
    small.free()
    daemon.start()
    connection = await Connection.connect(uri)
    await check(connection, count)
    await connection.write(count * MIB, bytes([count + 1]) * MIB)
    await check(connection, count + 1)
    await connection.close()
