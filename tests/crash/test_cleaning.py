"""Cleaning under load on a device that is much smaller than what is written to it: no acknowledged write is lost,
whenever the daemon is killed, and no write is refused while dead space can be reclaimed.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from iomesh.api.client import Client
from support.amount import Amount
from support.load import Load, read_volume
from support.model import Model
from support.nbd import Connection
from support.run import end
from support.trial import Trial

DEVICE = 128 << 20
VOLUME = 48 << 20  # twice that, which a snapshot may need, still fits the device
NAMES = (
    "segments_compacted",
    "segments_evacuated",
    "segments_removed",
    "checksum_errors",
    "read_errors",
    "no_space_errors",
)


@pytest.fixture
def trial(new_trial: Callable[..., Trial]) -> Trial:
    return new_trial("--device-size", str(DEVICE), "--size", str(VOLUME), "--checkpoint-bytes", "16Mi")


async def counted(trial: Trial) -> dict[str, int]:
    async with Client(trial.control) as client:
        counters = (await client.counters()).volumes[0].counters
        return {name: counters[name] for name in NAMES}


async def load_and_strike(trial: Trial, load: Load, enough: int, snapshots: Iterator[str]) -> dict[str, int]:
    """Counters right before the kill, after `enough` bytes. Meanwhile snapshots are created and deleted."""
    told: dict[str, int] = {}

    async def strike() -> None:
        nonlocal told
        async with Client(trial.control) as client:
            for quarter in range(1, 5):
                while load.counts.bytes_written < enough * quarter // 4 and not load.ended:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                await client.create_snapshots(["trial"], name := next(snapshots))
                await asyncio.sleep(0.2)
                await client.delete_snapshot("trial", name)
            told = await counted(trial)
        load.expect_end()
        os.kill(trial.pid, signal.SIGKILL)

    async with asyncio.timeout(600), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(strike())
    return told


@pytest.mark.timeout(3600)
def test_kills_while_segments_are_cleaned_lose_nothing(
    trial: Trial, draw: random.Random, seed: int, amount: Amount
) -> None:
    model = Model(VOLUME, run=seed & 0xFFFFF or 1)
    names = (f"s{number}" for number in range(1 << 30))
    total = dict.fromkeys(NAMES, 0)
    written = 0
    rounds = 40 if amount.soak else 4
    for _ in range(rounds):
        load = Load(trial.uri, model, draw.getrandbits(32), connections=3, depth=16)
        told = asyncio.run(load_and_strike(trial, load, draw.randint(DEVICE // 2, DEVICE), names))
        end(trial.pid)
        trial.start()
        model.settle_with(read_volume(trial.uri, VOLUME))
        total = {name: total[name] + told[name] for name in NAMES}
        written += load.counts.bytes_written
        print(f"written {written >> 20} MiB, {total}")
    assert written >= rounds * DEVICE // 2
    assert total["segments_compacted"] and total["segments_removed"], total
    assert (total["checksum_errors"], total["read_errors"], total["no_space_errors"]) == (0, 0, 0)


def test_a_snapshot_holds_what_it_held_while_what_surrounds_it_is_cleaned(
    new_trial: Callable[..., Trial], draw: random.Random
) -> None:
    size = 24 << 20
    trial = new_trial("--device-size", str(DEVICE), "--size", str(size), "--checkpoint-bytes", "16Mi")
    model = Model(size)

    async def snapshot(name: str) -> str:
        async with Client(trial.control) as client:
            await client.create_snapshots(["trial"], name)
            return (await client.export_snapshot("trial", name)).uris[0]

    kept: dict[str, bytearray] = {}
    cleaned = 0
    for round_ in range(3):
        uris = {name: asyncio.run(export_again(trial, name)) for name in kept}
        load = Load(trial.uri, model, draw.getrandbits(32), connections=2, depth=16, enough=3 * DEVICE)
        asyncio.run(asyncio.wait_for(load.run(), 600))
        for name, content in kept.items():
            assert read_volume(uris[name], size) == content, f"round {round_}: snapshot {name} has changed"
        if round_ < 2:
            kept[f"round-{round_}"] = read_volume(asyncio.run(snapshot(f"round-{round_}")), size)
        told = asyncio.run(counted(trial))
        print(f"round {round_}: {load.counts.bytes_written >> 20} MiB written, {told}")
        assert not told["checksum_errors"] + told["read_errors"] + told["no_space_errors"], told
        cleaned += told["segments_compacted"]
        end(trial.pid)
        trial.start()
    for name, content in kept.items():
        assert read_volume(asyncio.run(export_again(trial, name)), size) == content, f"snapshot {name} has changed"
    model.settle_with(read_volume(trial.uri, size))
    assert cleaned, "no segment was compacted: this shows nothing"


async def export_again(trial: Trial, name: str) -> str:
    async with Client(trial.control) as client:
        return (await client.export_snapshot("trial", name)).uris[0]


def test_trimmed_space_is_freed_without_a_command(trial: Trial) -> None:
    """Three of four blocks of a full volume are trimmed: no segment dies, each keeps two slabs of its four."""

    async def fill_and_trim() -> tuple[int, int]:
        connection = await Connection.connect(trial.uri)
        for offset in range(0, VOLUME, 1 << 20):
            await connection.write(offset, os.urandom(1 << 20))
        async with Client(trial.control) as client:
            full = (await client.devices())[0].free_bytes
            for offset in range(0, VOLUME, 16384):
                await connection.trim(offset, 12288)
            await connection.flush()
            deadline = time.monotonic() + 300
            free = full
            while free < full + VOLUME * 2 // 5 and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
                free = (await client.devices())[0].free_bytes
        await connection.close()
        return full, free

    full, free = asyncio.run(fill_and_trim())
    print(f"free: {full >> 20} MiB, and {free >> 20} MiB after {VOLUME * 3 >> 22} MiB were trimmed")
    assert free >= full + VOLUME * 2 // 5, f"{(free - full) >> 20} of {VOLUME * 3 >> 22} MiB came back"
