"""`iomesh daemon run`: brings a node up, serves until it is told to stop, takes it down."""

from __future__ import annotations

import asyncio
import os
import signal

from iomesh.node import logs
from iomesh.node.config import Config
from iomesh.node.node import Node

log = logs.logger("node")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_node(config: Config) -> int:
    """Returns 0 after a clean stop by SIGTERM or SIGINT. Raises the IomeshError that kept it from coming up."""
    logs.configure(config.log)
    os.umask(0o077)  # sockets and files are the daemon's own, unless it says otherwise
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    node = Node(config)
    up = asyncio.create_task(node.up(), name="bring-up")
    stop = asyncio.create_task(stopping.wait(), name="stop")
    await asyncio.wait((up, stop), return_when=asyncio.FIRST_COMPLETED)
    if not up.done():
        up.cancel()  # it undoes what it has done
        await asyncio.wait((up,))
    else:
        up.result()
        await stop
    await node.down()
    log.info("stopped")
