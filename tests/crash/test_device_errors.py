"""Devices with I/O errors, and full devices: acknowledged data stays correct, and failures are reported."""

import asyncio
import errno
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iomesh.api.model import VolumeState
from iomesh.errors import DeviceFailed
from support.daemon import Daemon
from support.failing import FailingDevice
from support.load import Load, read_volume
from support.model import BLOCK, Model
from support.nbd import Connection, NbdError
from support.trial import Trial

VOLUME = 64 << 20
MIB = 1 << 20
DEVICE = 256 * MIB  # for tests that fill it
SOME = 200  # requests
ATTEMPTS = 20


@pytest.fixture
def failing(room: Path) -> Iterator[Callable[..., FailingDevice]]:
    made: list[FailingDevice] = []

    def make(trial: Trial, number: int = 0, **rates: str) -> FailingDevice:
        """Replaces one of the trial's devices by a failing one; restarts the trial."""
        trial.stop()
        device = FailingDevice(trial.devices[number], room, **rates)
        made.append(device)
        trial.start()
        return device

    yield make
    for device in made:
        device.remove()


@pytest.fixture
def new_trial(new_trial: Callable[..., Trial], failing: Callable[..., FailingDevice]) -> Iterator[Callable[..., Trial]]:
    """Trials that are stopped before their failing devices are removed."""
    made: list[Trial] = []

    def make(*options: str) -> Trial:
        made.append(new_trial(*options))
        return made[-1]

    yield make
    for trial in made:
        trial.crash()


async def under_load(load: Load, during: Callable[[], None], enough: Callable[[], bool]) -> None:
    """Runs a load, calls `during` after SOME acknowledged requests, and stops when `enough` is true."""

    async def reached(condition: Callable[[], bool]) -> None:
        while not condition() and not load.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def events() -> None:
        await reached(lambda: load.counts.acknowledged >= SOME)
        during()
        await reached(enough)
        load.stop()

    async with asyncio.timeout(300), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(events())


def more_than(load: Load, count: int) -> Callable[[], bool]:
    """Whether this many requests were acknowledged since the first call."""
    before: list[int] = []

    def enough() -> bool:
        before.append(load.counts.acknowledged)
        return before[-1] - before[0] >= count

    return enough


def settle(trial: Trial, model: Model) -> None:
    model.settle_with(read_volume(trial.uri, model.size))


def test_writes_go_on_in_another_segment_when_some_fail(
    new_trial: Callable[..., Trial], failing: Callable[..., FailingDevice], draw: random.Random
) -> None:
    trial = new_trial("--device-size", "4Gi", "--size", str(VOLUME))
    device = failing(trial, write_rate="1%")
    model = Model(VOLUME)
    went_on = False
    for _ in range(ATTEMPTS):
        before = device.injected("write")
        load = Load(trial.uri, model, draw.getrandbits(32), tolerate=frozenset({errno.EIO}))
        asyncio.run(under_load(load, lambda: device.fail("write"), some_failed(load, device, before)))
        device.heal()
        assert trial.running() == trial.pids(), "the daemon died of a device's error"
        settle(trial, model)
        trial.crash()
        trial.start()
        settle(trial, model)
        went_on = not load.counts.errors and device.injected("write") - before >= 5
        if went_on:
            break
    assert went_on, "every time a write of the device's journal failed: draw again"


def some_failed(load: Load, device: FailingDevice, before: int) -> Callable[[], bool]:
    """Whether writes went on after five of the device's had failed, or one of its journal failed: then it takes no more
    writes until the next start."""
    after = more_than(load, SOME)
    return lambda: bool(load.counts.errors) or (device.injected("write") - before >= 5 and after())


def test_writes_go_on_elsewhere_when_one_device_of_two_fails(
    new_trial: Callable[..., Trial], failing: Callable[..., FailingDevice], draw: random.Random
) -> None:
    trial = new_trial("--devices", "2", "--device-size", "4Gi", "--size", str(VOLUME))
    device = failing(trial, 0)
    model = Model(VOLUME)
    load = Load(trial.uri, model, draw.getrandbits(32))  # no error may reach the client
    after = more_than(load, SOME)
    asyncio.run(under_load(load, lambda: device.fail("write"), lambda: device.injected("write") > 0 and after()))
    assert device.injected("write"), "no write of the device failed: this shows nothing"
    settle(trial, model)
    device.heal()
    trial.crash()
    trial.start()
    settle(trial, model)


def test_when_nothing_can_be_written_clients_are_told_and_nothing_acknowledged_is_lost(
    new_trial: Callable[..., Trial], failing: Callable[..., FailingDevice], draw: random.Random
) -> None:
    trial = new_trial("--device-size", "4Gi", "--size", str(VOLUME))
    device = failing(trial)
    model = Model(VOLUME)
    load = Load(trial.uri, model, draw.getrandbits(32), tolerate=frozenset({errno.EIO, errno.ENOSPC}))
    asyncio.run(under_load(load, lambda: device.fail("write"), lambda: bool(load.counts.errors)))
    assert load.counts.errors, "no client was told"
    assert trial.running() == trial.pids(), "the daemon died of a device's error"
    assert len(read_volume(trial.uri, VOLUME)) == VOLUME, "reads do not go on"
    device.heal()
    trial.crash()
    trial.start()
    settle(trial, model)


def test_a_read_error_is_an_error_of_that_request_alone(
    new_trial: Callable[..., Trial], failing: Callable[..., FailingDevice]
) -> None:
    trial = new_trial("--device-size", "4Gi", "--size", str(VOLUME))
    device = failing(trial)

    async def scenario() -> None:
        connection = await Connection.connect(trial.uri, structured=True)
        await connection.write(0, b"a" * MIB)
        await connection.flush()
        device.fail("read")
        with pytest.raises(NbdError) as caught:
            await connection.read(0, MIB)
        assert caught.value.errno == errno.EIO
        assert not any(await connection.read(8 * MIB, MIB)), "what is not mapped needs no device"
        await connection.write(MIB, b"b" * MIB)  # whole blocks: no read is needed
        device.heal()
        assert await connection.read(0, MIB) == b"a" * MIB
        assert await connection.read(MIB, MIB) == b"b" * MIB
        await connection.close()

    asyncio.run(scenario())


def test_a_write_into_a_block_that_cannot_be_read_is_an_error_and_changes_nothing(
    new_trial: Callable[..., Trial], failing: Callable[..., FailingDevice]
) -> None:
    trial = new_trial("--device-size", "4Gi", "--size", str(VOLUME))
    device = failing(trial)

    async def scenario() -> None:
        connection = await Connection.connect(trial.uri)
        await connection.write(0, b"a" * BLOCK)
        device.fail("read")
        with pytest.raises(NbdError) as caught:
            await connection.write(100, b"b" * 100)
        assert caught.value.errno == errno.EIO
        device.heal()
        assert await connection.read(0, BLOCK) == b"a" * BLOCK
        await connection.write(100, b"b" * 100)
        assert await connection.read(0, BLOCK) == b"a" * 100 + b"b" * 100 + b"a" * (BLOCK - 200)
        await connection.close()

    asyncio.run(scenario())


async def test_a_volume_whose_log_has_failed_is_read_only_for_everyone_who_looks(daemon: Daemon, room: Path) -> None:
    device = FailingDevice(Path(daemon.devices[0]), room)
    try:
        daemon.start()
        async with daemon.client() as client:
            await client.create_volume("db", VOLUME)
            connection = await Connection.connect((await client.export_volume("db")).uris[0])
            await connection.write(0, b"a" * MIB)
            await connection.flush()
            assert (await daemon.health())["status"] == "ok"
            device.fail("write")
            with pytest.raises(NbdError):
                await write_often(connection)
            volume = await client.volume("db")
            assert volume.state is VolumeState.READ_ONLY
            assert volume.reason.startswith("its log can no longer be written (Input/output error)")
            assert [each.state for each in await client.volumes()] == [VolumeState.READ_ONLY]
            status, health = await client.status(), await daemon.health()
            assert not status.ready
            assert status.problems == health["problems"] == [f"volume db cannot be written: {volume.reason}"]
            assert (health["status"], health["volumes"][0]["writable"]) == ("degraded", False)
            metrics = await daemon.page("/metrics")
            assert 'iomesh_volume_writable{volume="db"} 0.0' in metrics
            assert 'iomesh_volume_state{state="read-only",volume="db"} 1.0' in metrics
            with pytest.raises(DeviceFailed, match="cannot make a snapshot: Input/output error"):
                await client.create_snapshots(["db"], "one")
            assert await connection.read(0, MIB) == b"a" * MIB
            await connection.close()
        device.heal()
        daemon.kill()
        daemon.start()
        async with daemon.client() as client:
            assert (await client.volume("db")).state is VolumeState.SERVING
        assert (await daemon.health())["status"] == "ok"
        daemon.kill()
    finally:
        if daemon.process is not None:
            daemon.kill()
        device.remove()


async def write_often(connection: Connection) -> None:
    for number in range(1000):
        await connection.write(number % 16 * MIB, b"b" * MIB)


# ---------------------------------------------------------------------- full devices


async def fill(uri: str, model: Model) -> int:
    """Writes until the device is full; returns the offset of the first ENOSPC."""
    connection = await Connection.connect(uri)
    offset = 0
    while True:
        assert offset < model.size, "the device never became full"
        operation = model.begin("write", offset, MIB)
        assert operation is not None
        try:
            await connection.write(offset, operation.data())
        except NbdError as error:
            if error.errno != errno.ENOSPC:
                raise AssertionError(f"a full device was answered with {error}") from None
            await connection.close()
            return offset
        model.acknowledge(operation)
        offset += MIB


def test_a_full_device_refuses_writes_serves_reads_and_takes_trims(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial("--device-size", str(DEVICE), "--size", str(DEVICE))
    model = Model(DEVICE)

    async def scenario() -> None:
        full = await fill(trial.uri, model)
        assert full > 64 * MIB, f"full after {full} bytes of a device of 256 MiB"
        connection = await Connection.connect(trial.uri)
        for offset in range(0, full, MIB):
            model.check(offset, await connection.read(offset, MIB))
        half = full // 2 // MIB * MIB
        for offset in range(0, half, MIB):
            operation = model.begin("trim", offset, MIB)
            assert operation is not None
            await connection.trim(offset, MIB)
            model.acknowledge(operation)
        written = 0
        for offset in range(0, half // 2, MIB):  # there is space again, perhaps after a delay
            operation = model.begin("write", offset, MIB)
            assert operation is not None
            deadline = time.monotonic() + 120
            while True:
                try:
                    await connection.write(offset, operation.data())
                    break
                except NbdError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    assert time.monotonic() < deadline, (
                        f"after {half} bytes were trimmed and {written} written there is still no room"
                    )
                    await asyncio.sleep(0.05)
            model.acknowledge(operation)
            written += MIB
        await connection.close()

    asyncio.run(scenario())
    told = [line for line in trial.log.read_text().splitlines() if "no space: " in line]
    levels = [[level for level in ("warning", "error") if level in line] for line in told]
    assert levels == [["warning"], ["error"]], f"once that writes wait, once that they are refused: {told}"
    settle(trial, model)
    trial.crash()
    trial.start()
    settle(trial, model)


def test_a_full_device_is_still_all_there_after_a_kill_and_after_a_stop(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial("--device-size", str(DEVICE), "--size", str(DEVICE))
    model = Model(DEVICE)
    asyncio.run(fill(trial.uri, model))
    trial.crash()
    trial.start()
    settle(trial, model)
    trial.stop()
    trial.start()
    settle(trial, model)


def test_overwriting_a_full_device_under_load_loses_nothing(
    new_trial: Callable[..., Trial], draw: random.Random
) -> None:
    """Some writes find space that cleaning has freed, others are refused."""
    trial = new_trial("--device-size", str(DEVICE), "--size", str(DEVICE), "--checkpoint-bytes", "16Mi")
    model = Model(DEVICE)
    asyncio.run(fill(trial.uri, model))
    load = Load(trial.uri, model, draw.getrandbits(32), tolerate=frozenset({errno.ENOSPC}))
    asyncio.run(under_load(load, lambda: None, lambda: bool(load.counts.errors)))
    assert load.counts.errors.get(errno.ENOSPC), "no write was refused: this shows nothing"
    settle(trial, model)
    trial.crash()
    trial.start()
    settle(trial, model)
