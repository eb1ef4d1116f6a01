"""A node in the test's process, for events between two steps of a command: real engine, real devices, real metadata."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from iomesh.node.config import Config, load_config
from iomesh.node.node import Node
from iomesh.node.offline import format_device
from support.daemon import DEVICE_BYTES

CLUSTER = uuid.UUID(int=0xC)


async def make_device(folder: Path) -> Path:
    path = folder / "device.img"
    with path.open("wb") as file:
        file.truncate(DEVICE_BYTES)
    await format_device(str(path), cluster=CLUSTER)
    return path


@contextlib.asynccontextmanager
async def node_in(folder: Path) -> AsyncIterator[Node]:
    """A running node with one device, created if missing. The path must be short because sockets are in it."""
    if not (folder / "device.img").exists():
        await make_device(folder)
    node = Node(node_config(folder))
    await node.up()
    try:
        yield node
    finally:
        await node.down()


def node_config(folder: Path) -> Config:
    """Configuration of a node with the device in that folder."""
    settings: dict[str, Any] = {
        "name": "node-a",
        "state_dir": str(folder / "state"),
        "run_dir": str(folder / "run"),
        "cluster": str(CLUSTER),
        "devices": [str(folder / "device.img")],
        "metrics.listen": "",
    }
    config = folder / "node.toml"
    config.write_text("")
    return load_config(config, settings)


class Gate:
    """Holds a step of a node until the test releases it: `with Gate(node.engine, "checkpoint") as gate`."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name
        self._step: Callable[..., Awaitable[Any]] = getattr(owner, name)
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    def __enter__(self) -> Gate:
        setattr(self._owner, self._name, self._wait)
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        setattr(self._owner, self._name, self._step)

    async def reached(self) -> None:
        async with asyncio.timeout(60):
            await self._reached.wait()

    def open(self) -> None:
        self._open.set()

    async def _wait(self, *arguments: Any, **named: Any) -> Any:
        self._reached.set()
        await self._open.wait()
        return await self._step(*arguments, **named)
