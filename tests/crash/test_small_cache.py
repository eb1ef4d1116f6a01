"""A volume whose map is far larger than the cache: 16 TiB, random single-block I/O, and a cache of 256 map nodes.

Every write waits for nodes to be read, evicted and written back, while checkpoints run, and a kill leaves a partly
written map.
"""

import asyncio
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from support.amount import Amount
from support.nbd import Connection
from support.trial import Trial

BLOCK = 4096
VOLUME = 16 << 40
WORKERS = 32
SPREADS = (12, 20, 26, 32)  # powers of two of blocks: from a few leaves to the whole volume


def block_of(stamp: int, block: int) -> bytes:
    return struct.pack("<QQ", stamp, block) * (BLOCK // 16)


@dataclass
class Sparse:
    """Stamp of each block, 0 for an empty one. Each worker has blocks of its own."""

    draw: random.Random
    held: dict[int, int] = field(default_factory=dict)
    in_doubt: dict[int, int] = field(default_factory=dict)  # requests without an answer
    stamp: int = 0
    reads: int = 0

    def block(self, worker: int) -> int:
        own = [block for block in self.held if block % WORKERS == worker]
        if own and self.draw.random() < 0.4:
            return self.draw.choice(own)
        return self.draw.randrange(2 ** self.draw.choice(SPREADS)) // WORKERS * WORKERS + worker

    async def work(self, connection: Connection, worker: int, times: int) -> None:
        for _ in range(times):
            block = self.block(worker)
            kind = self.draw.random()
            if kind < 0.3:
                await self.look(connection, block)
                continue
            self.stamp += 1
            stamp = self.in_doubt[block] = self.stamp if kind < 0.9 else 0
            if stamp:
                await connection.write(block * BLOCK, block_of(stamp, block))
            else:
                await connection.trim(block * BLOCK, BLOCK)
            self.held[block] = self.in_doubt.pop(block)

    async def look(self, connection: Connection, block: int) -> None:
        data = await connection.read(block * BLOCK, BLOCK)
        allowed = [self.held.get(block, 0)] + ([self.in_doubt[block]] if block in self.in_doubt else [])
        wanted = [block_of(stamp, block) if stamp else bytes(BLOCK) for stamp in allowed]
        assert data in wanted, f"block {block} holds {struct.unpack('<QQ', data[:16])}, not one of the stamps {allowed}"
        if block in self.in_doubt:
            self.held[block] = allowed[wanted.index(data)]
            del self.in_doubt[block]
        self.reads += 1

    async def run(self, uri: str, times: int) -> None:
        connections = [await Connection.connect(uri) for _ in range(2)]
        try:
            await asyncio.gather(*(self.work(connections[worker % 2], worker, times) for worker in range(WORKERS)))
        finally:
            for connection in connections:
                await connection.close()

    async def run_until_killed(self, trial: Trial, seconds: float) -> None:
        async def kill() -> None:
            await asyncio.sleep(seconds)
            trial.crash()

        ends = await asyncio.gather(self.run(trial.uri, 1 << 30), kill(), return_exceptions=True)
        assert isinstance(ends[0], ConnectionError), f"the load ended by itself: {ends[0]!r}"
        assert ends[1] is None

    async def compare(self, uri: str) -> None:
        """Every block that was ever written, many at once."""
        connections = [await Connection.connect(uri) for _ in range(2)]
        blocks = iter(sorted(self.held.keys() | self.in_doubt.keys()))

        async def look(connection: Connection) -> None:
            for block in blocks:
                await self.look(connection, block)

        await asyncio.gather(*(look(connections[number % 2]) for number in range(WORKERS)))
        for connection in connections:
            await connection.close()


@pytest.mark.timeout(1800)
def test_a_map_larger_than_its_cache_loses_nothing(
    new_trial: Callable[..., Trial], draw: random.Random, amount: Amount
) -> None:
    trial = new_trial(
        "--device-size",
        "8Gi",
        "--size",
        str(VOLUME),
        "--map-cache",
        "1Mi",
        "--reactors",
        "1",
        "--checkpoint-bytes",
        "8Mi",
    )
    blocks = Sparse(draw)
    asyncio.run(asyncio.wait_for(blocks.run(trial.uri, 100), 300))
    asyncio.run(asyncio.wait_for(blocks.compare(trial.uri), 300))
    for kill in range(amount.kills // 5 or 1):
        asyncio.run(asyncio.wait_for(blocks.run_until_killed(trial, draw.uniform(0.3, 2)), 300))
        trial.start()
        asyncio.run(asyncio.wait_for(blocks.compare(trial.uri), 300))
        print(f"kill {kill + 1}: {len(blocks.held)} blocks")
    trial.stop()
    trial.start()
    asyncio.run(asyncio.wait_for(blocks.compare(trial.uri), 300))
    assert blocks.reads > 1000
