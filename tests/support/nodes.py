"""A trial of several nodes for a test: nodes are killed, paused and started by name; the volume's fragments are read
from the metadata."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from iomesh.metadata.records import FragmentRecord
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.metadata.volumes import find_volume
from support.run import alive, end, eventually
from support.trial import Trial, daemons_of

HANG_SECONDS = 300.0  # against hangs
POLL_SECONDS = 0.005


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Waits without blocking the event loop."""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                held = holds()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"it never happened that {what}") from None


class Nodes(Trial):
    """`trial up --nodes N`: nodes a, b, c, ...; the volume is created on a."""

    def described_node(self, name: str) -> dict[str, Any]:
        return next(dict(node) for node in self.described["nodes"] if node["name"] == name)

    @property
    def names(self) -> list[str]:
        return [node["name"] for node in self.described["nodes"]]

    def pid_of(self, name: str) -> int:
        pid = self.described_node(name)["pid"]
        assert pid is not None, f"node {name} does not run"
        return int(pid)

    def running_of(self, name: str) -> list[int]:
        """Its daemons, also one that is not yet registered."""
        return daemons_of(self.directory / name)

    def log_of(self, name: str) -> Path:
        return Path(self.described_node(name)["log"])

    def devices_of(self, name: str) -> list[Path]:
        return [Path(device) for device in self.described_node(name)["devices"]]

    def kill(self, *names: str) -> None:
        """SIGKILL to all of these at once; returns once they have ended."""
        pids = [self.pid_of(name) for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            end(pid)

    def pause(self, name: str) -> None:
        os.kill(self.pid_of(name), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        os.kill(self.pid_of(name), signal.SIGCONT)

    def start_nodes(self, *names: str) -> None:
        """All at once; returns when they are ready and serve what they own."""
        words = ("trial", "start", *(names if len(names) == 1 else ()), "--dir", str(self.directory), "--json")
        self.described = json.loads(self._iomesh(*words))

    def stop_node(self, name: str) -> None:
        """A clean stop."""
        pid = self.pid_of(name)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid), what=f"node {name} stops", seconds=HANG_SECONDS)

    async def fragments(self) -> list[FragmentRecord]:
        """Of the trial's volume, as the metadata service has them: oldest first."""
        metadata = await SqliteMetadata.open(self.directory / "metadata.db")
        try:
            stored = await find_volume(metadata, str(self.described["volumes"][0]["name"]))
        finally:
            await metadata.close()
        assert stored is not None and stored.log is not None
        return stored.log.record.fragments

    async def has_all_replicas(self, count: int) -> bool:
        """Whether the newest fragment has this many members."""
        fragments = await self.fragments()
        return bool(fragments) and len(fragments[-1].devices) == count
