"""SIGKILL at any time: acknowledged writes survive; each other write is applied or not, block by block.

Our own load keeps many requests of every kind in flight and records each. The daemon is killed under it, right after
its start, during a recovery (once or several times), or during a clean stop; checkpoints are written every few MiB, so
kills hit them too. After each kill the whole volume is read and compared with the model; what was read must not change
later.
"""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from iomesh.api.client import Client
from support.amount import Amount
from support.load import Load, read_volume
from support.model import Model
from support.nbd import Connection
from support.run import end
from support.trial import Trial

VOLUME = 64 << 20
SMALL = 16 << 20
PHASES = {"under load": 55, "right after the start": 10, "in recovery": 25, "in a clean stop": 10}
ACKNOWLEDGED = (50, 1500)  # minimum and maximum number of requests before a kill
CLEAR_EVERY = 12  # rounds between trims of the whole volume, which free the device's space


async def load_until(
    signal_number: signal.Signals, trial: Trial, load: Load, acknowledged: int, seconds: float = 0
) -> None:
    """Runs the load and signals the daemon, after this many acknowledged requests and then this much time."""

    async def strike() -> None:
        while load.counts.acknowledged < acknowledged and not load.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(seconds)
        load.expect_end()
        os.kill(trial.pid, signal_number)

    async with asyncio.timeout(600), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(strike())


def kill_in_recovery(trial: Trial, draw: random.Random) -> None:
    """Starts the daemon and kills it before or after it is ready."""
    starting = trial.begin_to_start()
    daemon = trial.await_daemon(starting)
    assert daemon is not None, f"the daemon did not start:\n{starting.communicate()}"
    time.sleep(draw.choice((0, draw.uniform(0, 0.3), draw.uniform(0.2, 1.2))))
    end(daemon)
    _finish(starting)


def _finish(starting: subprocess.Popen[str]) -> None:
    """The command that started a daemon exits by itself, without a traceback, if the daemon is killed."""
    said = starting.communicate(timeout=60)
    assert "Traceback" not in said[0] + said[1], said


@pytest.mark.timeout(7200)
def test_every_acknowledged_write_survives_a_kill(
    new_trial: Callable[..., Trial], draw: random.Random, seed: int, amount: Amount
) -> None:
    trial = new_trial("--device-size", "16Gi", "--size", str(VOLUME), "--checkpoint-bytes", "4Mi")
    model = Model(VOLUME, run=seed & 0xFFFFF or 1)
    for kill in range(amount.kills):
        phase = draw.choices(list(PHASES), list(PHASES.values()))[0]
        load = Load(
            trial.uri, model, draw.getrandbits(32), connections=draw.randint(1, 4), depth=draw.choice((1, 4, 16, 32))
        )
        at_least = 0 if phase == "right after the start" else draw.randint(*ACKNOWLEDGED)
        sign = signal.SIGTERM if phase == "in a clean stop" else signal.SIGKILL
        asyncio.run(load_until(sign, trial, load, at_least, draw.uniform(0, 0.05)))
        assert load.counts.acknowledged >= at_least
        if phase == "in a clean stop":
            time.sleep(draw.uniform(0, 0.2))
        end(trial.pid)
        for _ in range(draw.randint(1, 3) if phase == "in recovery" else 0):
            kill_in_recovery(trial, draw)
        trial.start()
        in_doubt = len(model.open)
        model.settle_with(read_volume(trial.uri, VOLUME))
        print(f"kill {kill + 1} {phase}: {load.counts.acknowledged} acknowledged, {in_doubt} in doubt")
        if kill % CLEAR_EVERY == CLEAR_EVERY - 1:
            asyncio.run(clear(trial.uri, model))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("reactors", [1, 2])
def test_four_volumes_on_two_devices_survive_kills(
    new_trial: Callable[..., Trial], draw: random.Random, amount: Amount, reactors: int
) -> None:
    """All under load at once. With two reactors, each has two of the volumes and one of the devices."""
    trial = new_trial(
        *("--devices", "2", "--reactors", str(reactors), "--device-size", "4Gi"),
        *("--size", str(SMALL), "--checkpoint-bytes", "4Mi"),
    )
    uris = [trial.uri, *(asyncio.run(trial.make_volume(f"volume-{number}", SMALL)) for number in range(3))]
    models = [Model(SMALL, run=number + 1) for number in range(len(uris))]
    assert sorted(asyncio.run(reactors_of(trial))) == sorted(number % reactors for number in range(len(uris)))
    for kill in range(max(amount.kills // 4, 1)):
        loads = [
            Load(uri, model, draw.getrandbits(32), connections=2, depth=4)
            for uri, model in zip(uris, models, strict=True)
        ]
        asyncio.run(kill_under(trial, loads, draw.randint(50, 400)))
        for _ in range(draw.randint(0, 2)):
            kill_in_recovery(trial, draw)
        trial.start()
        for uri, model in zip(uris, models, strict=True):
            model.settle_with(read_volume(uri, SMALL))
        print(f"kill {kill + 1}: {[load.counts.acknowledged for load in loads]} acknowledged")


async def reactors_of(trial: Trial) -> list[int]:
    async with Client(trial.control) as client:
        return [volume.reactor for volume in await client.volumes()]


async def kill_under(trial: Trial, loads: list[Load], acknowledged: int) -> None:
    """Kills the daemon once each of the loads has had so many answers."""

    async def strike() -> None:
        while any(load.counts.acknowledged < acknowledged and not load.ended for load in loads):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for load in loads:
            load.expect_end()
        os.kill(trial.pid, signal.SIGKILL)
        end(trial.pid)

    async with asyncio.timeout(600), asyncio.TaskGroup() as group:
        for load in loads:
            group.create_task(load.run())
        group.create_task(strike())


async def clear(uri: str, model: Model) -> None:
    """Trims the whole volume."""
    connection = await Connection.connect(uri)
    for offset in range(0, model.size, 1 << 24):
        operation = model.begin("trim", offset, 1 << 24)
        assert operation is not None
        await connection.trim(offset, 1 << 24)
        model.acknowledge(operation)
    await connection.close()


def test_a_clean_stop_and_start_keeps_everything(new_trial: Callable[..., Trial], draw: random.Random) -> None:
    trial = new_trial("--device-size", "4Gi", "--size", str(VOLUME))
    model = Model(VOLUME)
    for _ in range(3):
        load = Load(trial.uri, model, draw.getrandbits(32))
        asyncio.run(run_for(load, 1500))
        assert not model.open, "a request was not answered"
        trial.stop()
        trial.start()
        model.settle_with(read_volume(trial.uri, VOLUME))


async def run_for(load: Load, acknowledged: int) -> None:
    async def stop() -> None:
        while load.counts.acknowledged < acknowledged and not load.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        load.stop()

    async with asyncio.timeout(600), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(stop())
