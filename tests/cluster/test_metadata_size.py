"""The metadata has records of volumes and nodes, not of data: what is written to a volume costs one commit for each
checkpoint, and no record grows. With --soak 1 TiB of log, elsewhere less."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from iomesh.metadata import Change
from iomesh.metadata.sqlite import SqliteMetadata
from support.amount import Amount
from support.nbd import Connection
from support.nodes import Nodes

MIB, GIB = 1 << 20, 1 << 30
VOLUME = 256 * MIB
DEPTH = 8
COMMITS_PER_CHECKPOINT = 2.5  # its pointer, and more numbers for segments
FEW = 30  # commits of nodes and devices, whatever is written
RECORD_BYTES_MAX = 4096


@pytest.mark.timeout(4 * 3600)
def test_a_log_that_is_written_and_trimmed_adds_nothing_to_the_metadata(
    new_trial: Callable[..., Nodes], amount: Amount, draw: random.Random
) -> None:
    log_bytes, checkpoint = (1 << 40, GIB) if amount.soak else (GIB, 64 * MIB)
    nodes = new_trial(
        "--nodes", "2", "--replicas", "2", "--device-size", "4Gi", "--size", str(VOLUME), "--checkpoint-bytes",
        str(checkpoint), kind=Nodes,
    )  # fmt: skip
    asyncio.run(write_and_count(nodes, log_bytes, checkpoint, draw))


async def write_and_count(nodes: Nodes, log_bytes: int, checkpoint: int, draw: random.Random) -> None:
    metadata = await SqliteMetadata.open(nodes.directory / "metadata.db")
    listing = await metadata.list_prefix("")
    seen: list[Change] = []

    async def watch() -> None:
        async for change in metadata.watch("", listing.revision):
            seen.append(change)

    watching = asyncio.create_task(watch())
    connection = await Connection.connect(nodes.uri)
    await overwrite(connection, log_bytes, draw.randbytes(MIB))
    await connection.flush()
    await connection.close()
    after = await metadata.list_prefix("")
    while not seen or seen[-1].revision < after.revision:  # noqa: ASYNC110 (the watch is on its way)
        await asyncio.sleep(0.05)
    watching.cancel()
    await metadata.close()

    values = [len(change.value) for change in seen if change.value is not None]
    folders = Counter(change.key.partition("/")[0] for change in seen)
    stored = sum(len(entry.value) for entry in after.entries)
    print(
        f"{log_bytes / GIB:g} GiB of log: {len(seen)} commits ({dict(folders)}), {sum(values)} bytes of values; "
        f"{len(after.entries)} entries of {stored} bytes"
    )
    assert len(seen) <= COMMITS_PER_CHECKPOINT * log_bytes / checkpoint + FEW
    assert max(values) <= RECORD_BYTES_MAX
    assert {entry.key for entry in after.entries} == {entry.key for entry in listing.entries}
    assert stored <= sum(len(entry.value) for entry in listing.entries) + FEW * len(after.entries), "none has grown"


async def overwrite(connection: Connection, log_bytes: int, data: bytes) -> None:
    """In rounds: the whole volume is written, then all of it trimmed."""
    written = 0
    while written < log_bytes:
        for first in range(0, VOLUME, DEPTH * MIB):
            await asyncio.gather(*(connection.write(offset, data) for offset in range(first, first + DEPTH * MIB, MIB)))
        written += VOLUME
        await connection.trim(0, VOLUME)
