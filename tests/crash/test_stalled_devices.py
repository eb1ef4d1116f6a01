"""Devices that do not answer: volumes go on on other devices, nothing hangs, and late answers do no harm."""

import asyncio
import errno
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from iomesh.api.model import Device, DeviceState, VolumeState
from support.daemon import Daemon
from support.failing import FailingDevice
from support.model import BLOCK, Model
from support.nbd import Connection, NbdError
from support.stalling import StallingDisk

VOLUME = 64 << 20
CHUNK = 64 << 10
LIMIT = 2  # seconds
WRITERS = 8
AFTERWARDS = 400  # writes acknowledged after the device was given up

Stalling = Callable[[int, type[FailingDevice]], FailingDevice]


@pytest.fixture
async def stalling(daemon: Daemon, room: Path) -> AsyncIterator[Stalling]:
    """Replaces a device of the daemon, which does not run yet."""
    made: list[FailingDevice] = []
    daemon.settings["engine.request_timeout_seconds"] = LIMIT

    def make(number: int, kind: type[FailingDevice] = StallingDisk) -> FailingDevice:
        made.append(kind(Path(daemon.devices[number]), room))
        return made[-1]

    yield make
    for device in made:
        device.thaw()
    if daemon.process is not None:
        daemon.kill()
    for device in made:
        device.remove()


async def failed(daemon: Daemon) -> list[Device]:
    async with daemon.client() as client:
        return [device for device in await client.devices() if device.state == DeviceState.FAILED]


async def until_failed(daemon: Daemon) -> Device:
    async with asyncio.timeout(240):
        while not (found := await failed(daemon)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    [device] = found
    return device


def lines(daemon: Daemon, event: str) -> list[dict[str, object]]:
    read = [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in read if event in str(line["event"])]


async def write_until(uri: str, model: Model, draw: random.Random, ended: Callable[[int], bool]) -> None:
    """Writes whole blocks, many at once; no write may fail. ended: given the number of acknowledged writes."""
    acknowledged = 0

    async def write_on(connection: Connection) -> None:
        nonlocal acknowledged
        while not ended(acknowledged):
            operation = model.begin("write", draw.randrange(VOLUME // CHUNK) * CHUNK, CHUNK)
            if operation is None:
                await asyncio.sleep(0)
                continue
            await connection.write(operation.offset, operation.data())
            model.acknowledge(operation)
            acknowledged += 1

    connection = await Connection.connect(uri)
    async with asyncio.timeout(240), asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(write_on(connection))
    await connection.flush()
    await connection.close()


async def check(uri: str, model: Model) -> None:
    connection = await Connection.connect(uri)
    content = b"".join([await connection.read(offset, 1 << 20) for offset in range(0, VOLUME, 1 << 20)])
    await connection.close()
    model.settle_with(content)


async def test_writes_go_on_elsewhere_when_one_device_of_two_stalls(
    daemon: Daemon, stalling: Stalling, draw: random.Random
) -> None:
    await daemon.format("second.img")
    device = stalling(0, StallingDisk)
    stalling(1, StallingDisk)
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", VOLUME, segment_bytes=1 << 20)
        uri = (await client.export_volume("db")).uris[0]
    model = Model(VOLUME)
    given_up: list[int] = []  # writes acknowledged until then

    async def stall() -> None:
        device.freeze()
        found = await until_failed(daemon)
        assert "did not answer" in found.reason
        given_up.append(0)

    def ended(acknowledged: int) -> bool:
        if given_up and not given_up[0]:
            given_up[0] = acknowledged
        return bool(given_up) and acknowledged >= given_up[0] + AFTERWARDS

    async with asyncio.timeout(300), asyncio.TaskGroup() as group:
        group.create_task(write_until(uri, model, draw, ended))
        group.create_task(stall())
    assert len(lines(daemon, "device does not answer")) == 1
    status = await daemon.health()
    assert any("did not answer" in warning for warning in status["warnings"]), status
    metrics = await daemon.page("/metrics")
    assert "iomesh_reactor_device_timeouts_total" in metrics
    device.thaw()
    await check(uri, model)  # what only the stalled device has as well: it answers again
    daemon.kill()
    daemon.start()
    await check(uri, model)
    async with daemon.client() as client:
        assert (await client.volume("db")).state is VolumeState.SERVING
    assert not await failed(daemon)


async def test_without_another_device_requests_fail_and_do_not_hang(daemon: Daemon, stalling: Stalling) -> None:
    device = stalling(0, StallingDisk)
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", VOLUME)
        uri = (await client.export_volume("db")).uris[0]
    connection = await Connection.connect(uri)
    await connection.write(0, b"a" * BLOCK)
    await connection.flush()
    device.freeze()
    async with asyncio.timeout(240):
        for request in (
            connection.read(0, BLOCK),
            connection.write(BLOCK, b"b" * BLOCK),
            connection.write(2 * BLOCK, b"c" * BLOCK),
        ):
            with pytest.raises(NbdError) as caught:
                await request
            assert caught.value.errno == errno.EIO
        for _ in range(20):  # more than may be unanswered at once
            with pytest.raises(NbdError):
                await connection.read(0, BLOCK)
        await connection.close()
        assert (await until_failed(daemon)).reason
        async with daemon.client() as client:
            assert (await client.volume("db")).state is VolumeState.READ_ONLY
        device.thaw()
        connection = await Connection.connect(uri)
        while True:  # once the late answers are there
            try:
                assert await connection.read(0, BLOCK) == b"a" * BLOCK
                break
            except NbdError:
                await asyncio.sleep(0.1)
        await connection.close()
    daemon.kill()
    daemon.start()
    connection = await Connection.connect(uri)
    assert await connection.read(0, BLOCK) == b"a" * BLOCK
    await connection.write(BLOCK, b"d" * BLOCK)
    await connection.flush()
    assert await connection.read(BLOCK, BLOCK) == b"d" * BLOCK
    await connection.close()
