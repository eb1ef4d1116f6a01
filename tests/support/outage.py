"""A daemon whose metadata service goes away and comes back: its volume is read and written meanwhile."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iomesh.errors import Unavailable
from support.daemon import MIB, Daemon
from support.nbd import Connection

SOON = 120.0  # against hangs
WRITTEN = 40  # MiB: more log than lies between two checkpoints


async def serves_through_outage(
    room: Path, settings: dict[str, Any], kill: Callable[[], None], start: Callable[[], None]
) -> None:
    """settings: of the metadata service, which `kill` ends and `start` starts again."""
    daemon = Daemon(room, settings=settings | {"engine.checkpoint_bytes": 8 * MIB})
    await daemon.format()
    await asyncio.to_thread(daemon.start)
    try:
        async with daemon.client() as node:
            await node.create_volume("db", 64 * MIB)
            (uri,) = (await node.export_volume("db")).uris
        connection = await Connection.connect(uri)
        await asyncio.to_thread(kill)
        try:
            for number in range(WRITTEN):
                await connection.write(number * MIB, bytes([number]) * MIB)
            await connection.flush()
            assert await connection.read(39 * MIB, 4096) == bytes([39]) * 4096
        finally:
            await asyncio.to_thread(start)
        await write_checkpoint(daemon)
        await connection.close()
        await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        async with daemon.client() as node:
            (uri,) = (await node.volume("db")).exports[0].uris
        connection = await Connection.connect(uri)
        for number in range(WRITTEN):
            assert await connection.read(number * MIB, MIB) == bytes([number]) * MIB
        await connection.close()
    finally:
        await asyncio.to_thread(daemon.stop)


async def write_checkpoint(daemon: Daemon) -> None:
    """The service is back; the daemon's next attempt may be some seconds away."""
    async with daemon.client() as node, asyncio.timeout(SOON):
        while True:
            try:
                assert await node.checkpoint("db") == ["db"]
                return
            except Unavailable:
                pass
