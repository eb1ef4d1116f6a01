"""Scrub finds every change on a device, and nothing on an unchanged one."""

import asyncio
import json
import mmap
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from iomesh.api.client import Client
from iomesh.api.model import Scrub
from support.nbd import Connection
from support.run import run
from support.trial import Trial, iomesh_command

MIB = 1 << 20
BLOCK = 4096
VOLUME = 24 * MIB
SLOWLY = 1_000_000  # bytes a second: a pass takes half a minute


def configure(trial: Trial, bytes_per_second: int) -> None:
    """Restarts the trial with a scrub that restarts as soon as it has ended; 0: no rate limit."""
    trial.stop()
    path = trial.config
    config = path.read_text().partition("\n[scrub]\n")[0]
    path.write_text(f"{config}\n[scrub]\nbytes_per_second = {bytes_per_second}\ninterval_seconds = 0\n")
    trial.start()


def scrubbing(new_trial: Callable[..., Trial]) -> Trial:
    """A trial that scrubs continuously."""
    trial = new_trial("--device-size", "256Mi", "--size", str(VOLUME))
    configure(trial, 0)
    return trial


async def fill(trial: Trial, marked: bytes) -> None:
    """Writes the volume twice; block 1000 is `marked` in the end. Overwritten segments are compacted meanwhile."""
    connection = await Connection.connect(trial.uri)
    for _ in range(2):
        for offset in range(0, VOLUME, MIB):
            await connection.write(offset, os.urandom(MIB))
        for offset in range(0, VOLUME, 8 * BLOCK):
            await connection.write(offset, os.urandom(BLOCK))
    await connection.write(1000 * BLOCK, marked)
    for offset in range(0, 4 * MIB, MIB):  # so that its segment is sealed
        await connection.write(VOLUME // 2 + offset, os.urandom(MIB))
    await connection.flush()
    await connection.close()


async def passes(trial: Trial, ended_before: datetime | None, count: int) -> Scrub:
    """The scrub's status after this many completed passes."""
    ended = ended_before
    async with asyncio.timeout(300), Client(trial.control) as client:
        while count:
            await asyncio.sleep(0.05)
            scrub = (await client.devices())[0].scrub
            if scrub.ended_at is not None and (ended is None or scrub.ended_at > ended):
                ended, count = scrub.ended_at, count - 1
        return scrub


def damage(device: Path, block: bytes) -> None:
    """Flips one bit of the block, wherever it lies on the device."""
    with device.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        found = image.find(block)
        assert found >= 0, "the block is not on the device"
        assert found % BLOCK == 0
        image[found + 123] ^= 1
        image.flush()


def test_a_block_that_has_changed_on_the_device_is_found(new_trial: Callable[..., Trial]) -> None:
    trial = scrubbing(new_trial)
    marked = os.urandom(BLOCK)
    asyncio.run(fill(trial, marked))
    before = asyncio.run(passes(trial, None, 3))
    assert before.damaged_blocks == 0
    assert before.verified_bytes > VOLUME
    damage(trial.devices[0], marked)
    after = asyncio.run(passes(trial, before.ended_at, 2))
    assert after.damaged_blocks == 1
    shown = run([iomesh_command(), "device", "show", trial.devices[0], "--address", trial.control]).stdout
    assert "1 damaged block" in shown, shown
    found = [json.loads(line) for line in trial.log.read_text().splitlines() if "damage found" in line]
    assert [(event["level"], event["blocks"]) for event in found] == [("error", 1)], found


def test_scrub_finds_nothing_while_segments_come_and_go(new_trial: Callable[..., Trial]) -> None:
    """A segment that is compacted or deleted during its scrub is no damage."""
    trial = scrubbing(new_trial)

    async def overwrite() -> Scrub:
        connection = await Connection.connect(trial.uri)
        removed, round_ = 0, 0
        async with asyncio.timeout(300), Client(trial.control) as client:
            while round_ < 6 or not removed:  # without one that was removed this would show nothing
                for offset in range(0, VOLUME, MIB):
                    await connection.write(offset, os.urandom(MIB))
                for offset in range(round_ % 3 * BLOCK, VOLUME, 3 * BLOCK):
                    await connection.write(offset, os.urandom(BLOCK))
                removed = (await client.counters()).volumes[0].counters["segments_removed"]
                round_ += 1
        await connection.close()
        return await passes(trial, None, 1)

    scrub = asyncio.run(overwrite())
    assert scrub.verified_bytes > 0
    assert scrub.damaged_blocks == 0


def test_a_pass_continues_after_a_restart(new_trial: Callable[..., Trial]) -> None:
    """The time of the last complete pass is kept too."""
    trial = scrubbing(new_trial)
    asyncio.run(fill(trial, os.urandom(BLOCK)))
    asyncio.run(passes(trial, None, 2))  # overwritten segments are gone by then
    configure(trial, SLOWLY)

    async def on_its_way(done_bytes: int) -> Scrub:
        """Waits until a pass is in progress, past `done_bytes` and below 80 %."""
        async with asyncio.timeout(300), Client(trial.control) as client:
            while True:
                scrub = (await client.devices())[0].scrub
                if scrub.running and done_bytes <= scrub.done_bytes < scrub.pass_bytes * 0.8:
                    return scrub
                await asyncio.sleep(0.02)

    before = asyncio.run(on_its_way(4 * MIB))
    trial.stop()
    trial.start()
    after = asyncio.run(on_its_way(before.done_bytes))
    assert after.ended_at == before.ended_at is not None
    assert after.verified_bytes < after.done_bytes, "it has begun anew"
