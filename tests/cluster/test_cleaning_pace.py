"""Cleaning keeps to its configured rate limit while there is space."""

import asyncio
import os
import time
from collections.abc import Callable

from iomesh.api.client import Client
from support.nbd import Connection
from support.trial import Trial

MIB = 1 << 20
VOLUME = 64 * MIB
RATE = 8 * MIB  # bytes a second


def test_cleaning_at_rest_is_limited_to_its_rate(new_trial: Callable[..., Trial]) -> None:
    """A quarter of each segment is live: rewriting it stays within the limit, however fast the machine is."""
    trial = new_trial("--device-size", "256Mi", "--size", str(VOLUME))
    trial.stop()
    with trial.config.open("a") as config:
        config.write(f"\n[cleaning]\nbytes_per_second = {RATE}\nrest_seconds = 0\n")
    trial.start()

    async def trim_and_watch() -> list[tuple[float, int, float]]:
        """Samples of (time before the query, bytes, time after it)."""
        connection = await Connection.connect(trial.uri)
        for offset in range(0, VOLUME, MIB):
            await connection.write(offset, os.urandom(MIB))
        for offset in range(0, VOLUME, 64 * 1024):
            await connection.trim(offset, 48 * 1024)
        await connection.flush()
        await connection.close()
        seen = [(time.monotonic(), 0, time.monotonic())]
        async with asyncio.timeout(300), Client(trial.control) as client:
            while seen[-1][1] < VOLUME // 4:
                await asyncio.sleep(0.1)
                asked = time.monotonic()
                written = (await client.counters()).volumes[0].counters["compaction_bytes"]
                if written > seen[-1][1]:
                    seen.append((asked, written, time.monotonic()))
        return seen

    seen = asyncio.run(trim_and_watch())
    # The cleaning was between these two times, however slow the answers.
    (began, first, _), (_, last, ended) = (
        seen[1],
        seen[-1],
    )
    moved = 2 * (last - first)  # what is written was read before
    assert moved > VOLUME // 8, f"cleaning was seen at {seen} only: this shows nothing"
    rate = moved / (ended - began)
    print(f"{moved / MIB:.0f} MiB moved in {ended - began:.1f} s: {rate / MIB:.1f} MiB/s")
    assert rate < 1.5 * RATE  # a step in progress is completed, and segments count when complete
