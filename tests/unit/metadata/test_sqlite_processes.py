"""Several processes share one SQLite file: daemons on one machine."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iomesh.metadata import Put
from iomesh.metadata.sqlite import SqliteMetadata

PROCESSES = 4
INCREMENTS = 40

HEAD = """
import asyncio, os, sys
from pathlib import Path
from iomesh.errors import Conflict
from iomesh.metadata import Put
from iomesh.metadata.sqlite import SqliteMetadata

print("ready", flush=True)
sys.stdin.readline()
"""

OPENER = """
async def main():
    metadata = await SqliteMetadata.open(Path(sys.argv[1]))
    await metadata.commit(Put(f"opened/{os.getpid()}", b"", 0))
    await metadata.close()

asyncio.run(main())
"""

COUNTER = """
async def main():
    metadata = await SqliteMetadata.open(Path(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        while True:
            entry = await metadata.get("counters/one")
            count, version = (int(entry.value), entry.version) if entry else (0, 0)
            try:
                await metadata.commit(Put("counters/one", b"%d" % (count + 1), version))
                break
            except Conflict:
                pass
    await metadata.close()

asyncio.run(main())
"""

HOLDER = """
async def main():
    metadata = await SqliteMetadata.open(Path(sys.argv[1]))
    lease = await metadata.grant(2.0)
    await metadata.commit(Put("nodes/a", b"", 0, lease=lease))
    while True:
        await asyncio.sleep(0.5)
        await metadata.renew(lease)

asyncio.run(main())
"""


@contextmanager
def processes(count: int, script: str, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """They have loaded everything, and begin their work together."""
    command = [sys.executable, "-c", HEAD + script, *map(str, arguments)]
    begun = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for process in begun:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in begun:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        yield begun
    finally:
        for process in begun:
            process.kill()
            process.communicate()


async def succeed(begun: list[subprocess.Popen[str]]) -> None:
    for process in begun:
        _, errors = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, errors


async def test_processes_that_create_the_file_at_once_share_it(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / f"metadata-{attempt}.db"
        with processes(PROCESSES, OPENER, path) as begun:
            await succeed(begun)
        metadata = await SqliteMetadata.open(path)
        assert len((await metadata.list_prefix("opened/")).entries) == PROCESSES
        await metadata.close()


async def test_a_watch_sees_every_change_of_other_processes_once_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    metadata = await SqliteMetadata.open(path)
    counts: list[int] = []

    async def follow() -> None:
        async for change in metadata.watch("counters/", 0):
            counts.append(int(change.value or b"0"))
            if len(counts) == PROCESSES * INCREMENTS:
                return

    following = asyncio.create_task(follow())
    with processes(PROCESSES, COUNTER, path, INCREMENTS) as begun:
        await succeed(begun)
        async with asyncio.timeout(60):
            await following
    assert counts == list(range(1, PROCESSES * INCREMENTS + 1))
    await metadata.close()


async def test_the_lease_of_a_process_ends_some_time_after_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    metadata = await SqliteMetadata.open(path)
    changes = metadata.watch("nodes/", 0)
    with processes(1, HOLDER, path) as (holder,):
        async with asyncio.timeout(60):
            assert (await anext(changes)).value == b""
        holder.send_signal(signal.SIGKILL)
        async with asyncio.timeout(60):
            assert (await anext(changes))[:2] == ("nodes/a", None)
    await changes.aclose()
    await metadata.close()


async def test_a_watch_that_was_idle_sees_the_next_change_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    metadata, other = await SqliteMetadata.open(path), await SqliteMetadata.open(path)
    changes = metadata.watch("a", 0)
    for number in range(3):
        coming = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.3)
        assert not coming.done()
        await other.commit(Put("a", b"%d" % number, None))
        async with asyncio.timeout(60):
            assert (await coming).value == b"%d" % number
    await changes.aclose()
    await other.close()
    assert await metadata.get("a") is not None, "the file outlives the other's end"
    await metadata.close()
