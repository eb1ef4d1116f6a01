"""`iomesh inspect` of a cleaned device: blocks dropped by compaction are reported and are no fault, kept ones are
verified.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

from iomesh.cli.inspect.at_rest import DeviceAtRest
from support.daemon import MIB, Daemon
from support.documents import faults
from support.nbd import Connection
from support.trial import iomesh_command

BLOCK = 4096
SIZE = 32 * MIB
DEADLINE_SECONDS = 120.0  # against hangs; not a performance limit


def inspect(*words: str, code: int = 0) -> Any:
    done = subprocess.run([iomesh_command(), "inspect", *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def shown(*words: str, code: int = 0) -> str:
    done = subprocess.run([iomesh_command(), "inspect", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


async def compacted(daemon: Daemon) -> list[int]:
    """Lets the daemon compact half-dead segments, kills it, and returns their numbers."""
    daemon.settings = {"cleaning.rest_seconds": "0", "cleaning.bytes_per_second": "0"}
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        for offset in range(0, SIZE, MIB):
            await connection.write(offset, bytes([1 + offset // MIB]) * MIB)
        for offset in range(0, SIZE, 2 * BLOCK):
            await connection.trim(offset, BLOCK)
        await connection.flush()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (await client.counters()).volumes[0].counters["segments_compacted"]:
                await client.checkpoint("db")
                await asyncio.sleep(0.1)
        await connection.close()
    daemon.kill()
    segments = inspect("directory", daemon.devices[0])["segments"]
    return [one["segment"] for one in segments if one["live"]]


async def test_what_compaction_dropped_is_no_fault(daemon: Daemon) -> None:
    device, numbers = daemon.devices[0], [str(number) for number in await compacted(daemon)]
    assert numbers, "nothing was compacted: this shows nothing"
    for number in numbers:
        found = inspect("segment", device, number, "--verify")
        assert faults("inspect segment", found) == []
        it = found["compacted"]
        assert it["fault"] is None and it["dropped_blocks"] > 0
        assert it["live_blocks"] + it["dropped_blocks"] == found["segment"]["blocks"]
        assert not [one for one in it["blocks"] if one["fault"]]
        assert f"{it['dropped_blocks']} dropped by compaction" in shown("segment", device, number, "--verify")
        for one in it["blocks"]:
            assert one["at"] in shown("segment", device, number, "--entries")
            break
    first = numbers[0]
    found = inspect("record", device, f"{first}:0", code=7)
    assert found["fault"] == "dropped by compaction"
    assert inspect("node", device, f"{first}:0", code=7)["nodes"][0]["fault"] == "dropped by compaction"
    assert inspect("node", device, "--offset", str(BLOCK))["nodes"][-1]["valid"], (
        "the map is walked through what was compacted"
    )


async def test_damage_in_what_compaction_kept_is_found(daemon: Daemon) -> None:
    device, numbers = daemon.devices[0], await compacted(daemon)
    number = next(number for number in numbers if inspect("segment", device, str(number))["compacted"]["blocks"])
    kept = inspect("segment", device, str(number))["compacted"]["blocks"]
    with DeviceAtRest(device) as it:
        replica = it.replica(it.volume(None), number)
        damaged = it.blocks(replica, kept[0]["block"], 1)
        first, _ = replica.extents[0]
        bitmap = int(it.superblock()["slabs_offset"]) + first * int(it.superblock()["slab_bytes"])
    with Path(device).open("r+b") as file:
        file.seek(bitmap + BLOCK)  # the first live block is behind the bitmap
        assert file.read(BLOCK) == damaged
        file.seek(bitmap + BLOCK)
        file.write(b"\xa5")
    inspect("segment", device, str(number))
    damaged_blocks = [
        one
        for one in inspect("segment", device, str(number), "--verify", code=7)["compacted"]["blocks"]
        if one["fault"]
    ]
    assert [one["at"] for one in damaged_blocks] == [kept[0]["at"]]
    assert "has checksum" in shown("segment", device, str(number), "--verify", code=7)
    with Path(device).open("r+b") as file:
        for place in (bitmap, bitmap + (replica.live + 1) * BLOCK):
            file.seek(place)
            file.write(b"\xa5")
    found = inspect("segment", device, str(number), "--verify", code=7)
    assert found["compacted"]["fault"] == "neither copy of its bitmap is valid"
