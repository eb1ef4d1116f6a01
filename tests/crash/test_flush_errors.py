"""Devices that fail a flush: no later flush is trusted, and flushed data survives a power cut."""

import asyncio
import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iomesh.api.client import Client
from iomesh.api.model import DeviceState, NodeState
from support.cached import DROPS, FORGETS, KEEPS, CachedDevice
from support.load import Load, read_volume
from support.model import BLOCK, Model
from support.nbd import Connection, NbdError
from support.run import eventually
from support.trial import Trial

VOLUME = 16 << 20
MIB = 1 << 20

Cached = Callable[[Trial, int], CachedDevice]


@pytest.fixture
def cached(room: Path) -> Iterator[Cached]:
    made: list[tuple[Trial, CachedDevice]] = []

    def make(trial: Trial, number: int) -> CachedDevice:
        """Replaces one of the trial's devices by one with a volatile cache; restarts the trial."""
        trial.stop()
        device = CachedDevice(trial.devices[number], room)
        made.append((trial, device))
        trial.start()
        return device

    yield make
    for trial, device in made:
        trial.crash()
        device.remove()


async def fails(request: Callable[[], asyncio.Future[None] | object]) -> None:
    with pytest.raises(NbdError) as caught:
        await request()  # type: ignore[misc]
    assert caught.value.errno == errno.EIO


async def fail_a_flush(trial: Trial, device: CachedDevice, how: str) -> None:
    """b is flushed, c is acknowledged, then one flush fails; from then on writes fail, and reads go on."""
    connection = await Connection.connect(trial.uri)
    await connection.write(0, b"b" * MIB)
    await connection.flush()
    await connection.write(MIB, b"c" * MIB)
    device.fail_flushes(how, most=1)
    await fails(connection.flush)
    assert device.failures == 1, "no flush failed"
    await fails(connection.flush)  # the device would report success
    await fails(lambda: connection.write(2 * MIB, b"d" * BLOCK))
    assert await connection.read(0, MIB) == b"b" * MIB
    if how != DROPS:
        assert await connection.read(MIB, MIB) == b"c" * MIB
    await connection.close()
    assert device.failures == 1, "a device whose flush has failed was asked again"


async def until(true: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, true, what="the load goes on", seconds=240)


async def tells_of_it(trial: Trial) -> None:
    async with Client(trial.control) as client:
        [device] = await client.devices()
        status = await client.status()
    assert device.state == DeviceState.FAILED
    assert "flush" in device.reason
    assert not status.ready
    assert status.state != NodeState.READY
    assert any("cannot be written" in problem for problem in status.problems), status.problems


@pytest.mark.parametrize("how", [KEEPS, FORGETS, DROPS])
def test_after_a_failed_flush_nothing_is_written_until_the_volume_is_opened_again(
    new_trial: Callable[..., Trial], cached: Cached, how: str
) -> None:
    trial = new_trial("--device-size", "1G", "--size", str(VOLUME))
    device = cached(trial, 0)
    asyncio.run(fail_a_flush(trial, device, how))
    asyncio.run(tells_of_it(trial))
    trial.crash()
    trial.start()

    async def goes_on() -> bytes:
        connection = await Connection.connect(trial.uri)
        assert await connection.read(0, MIB) == b"b" * MIB, "what was flushed is gone"
        found = await connection.read(MIB, MIB)
        await connection.write(2 * MIB, b"e" * MIB)
        await connection.flush()
        await connection.close()
        return found

    found = asyncio.run(goes_on())
    if how != DROPS:
        assert found == b"c" * MIB, "what was acknowledged is gone, and the device had kept it"
    trial.crash()
    device.cut_power()
    trial.start()
    volume = read_volume(trial.uri, VOLUME)
    assert volume[:MIB] == b"b" * MIB
    assert volume[MIB : 2 * MIB] == found, "what was read back before a flush is not stable behind it"
    assert volume[2 * MIB : 3 * MIB] == b"e" * MIB


@pytest.mark.parametrize(("how", "reactors"), [(KEEPS, 1), (FORGETS, 1), (FORGETS, 2)])
def test_a_log_moves_to_another_device_with_its_unstable_records(
    new_trial: Callable[..., Trial], cached: Cached, draw: random.Random, how: str, reactors: int
) -> None:
    trial = new_trial("--devices", "2", "--reactors", str(reactors), "--device-size", "1G", "--size", str(VOLUME))
    devices = [cached(trial, number) for number in range(2)]
    model = Model(VOLUME)
    load = Load(trial.uri, model, draw.getrandbits(32), connections=2, depth=8)  # no error may reach the client

    async def scenario() -> None:
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            group.create_task(load.run())
            devices[0].fail_flushes(how)
            await until(lambda: devices[0].failures > 0)  # the log's next flush of the device, or the end of a segment
            so_far = load.counts.acknowledged
            await until(lambda: load.counts.acknowledged >= so_far + 200)
            load.stop()
        connection = await Connection.connect(trial.uri)
        await connection.flush()
        await connection.close()
        async with Client(trial.control) as client:
            states = sorted(device.state for device in await client.devices())
        assert states == sorted([DeviceState.FAILED, DeviceState.ONLINE])

    asyncio.run(scenario())
    assert not load.counts.errors
    model.settle_with(read_volume(trial.uri, VOLUME))
    trial.crash()
    for device in devices:
        device.heal()
        device.cut_power()
    trial.start()
    model.settle_with(read_volume(trial.uri, VOLUME))
