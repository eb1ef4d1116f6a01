"""`iomesh daemon run`: brings a node up, serves until it is stopped, takes it down."""

from __future__ import annotations

import asyncio
import os
import signal

from iomesh.node import logs
from iomesh.node.config import Config
from iomesh.node.node import Node

log = logs.logger("node")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STUCK_EXIT_CODE = 14  # of a stop that did not end in time, most likely because a device does not answer: docs/api.md


def run_node(config: Config) -> int:
    """Returns 0 after a clean stop by SIGTERM or SIGINT. Raises the IomeshError that made the start fail."""
    logs.configure(config.log)
    os.umask(0o077)  # sockets and files are private to the daemon unless it sets other modes
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    logs.flush_repeats(loop)
    node = Node(config)
    try:
        await _until(node, stopping)
    finally:
        logs.repeats.flush(all_of_them=True)
        if node.stuck:
            # Threads that wait for a device would keep the process alive as long. The log is in the state of a crash.
            log.error("the process ends although a task of it hangs; the next start recovers the volumes")
            os._exit(STUCK_EXIT_CODE)
    log.info("stopped")


async def _until(node: Node, stopping: asyncio.Event) -> None:
    """Brings the node up, and takes it down once it is to stop. Raises the error that made the start fail."""
    up = asyncio.create_task(node.up(), name="bring-up")
    stop = asyncio.create_task(stopping.wait(), name="stop")
    await asyncio.wait((up, stop), return_when=asyncio.FIRST_COMPLETED)
    if not up.done():
        up.cancel()  # it undoes its finished steps
        await asyncio.wait((up,))
    else:
        up.result()
        await stop
    await node.down()
