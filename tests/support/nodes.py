"""A trial of several nodes for a test: nodes are killed, paused and started by name; which of them serves the volume is
asked of all; the volume's fragments are read from the metadata."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iomesh.api.client import Client
from iomesh.api.model import Volume, VolumeState
from iomesh.cli.trial import daemon
from iomesh.cli.trial.installation import Installation
from iomesh.errors import IomeshError
from iomesh.metadata.records import LogRecord
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.metadata.volumes import find_volume
from support.run import alive, end, eventually
from support.trial import Trial, daemons_of, iomesh_command

HANG_SECONDS = 120.0  # against hangs
POLL_SECONDS = 0.005
ANSWER_SECONDS = 2.0  # of a node that may be paused


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


@dataclass(frozen=True)
class Served:
    """owner: the node that serves the volume."""

    owner: str
    uri: str


class Nodes(Trial):
    """`trial up --nodes N`: nodes a, b, c, ...; the volume is created on a."""

    def described_node(self, name: str) -> dict[str, Any]:
        return next(dict(node) for node in self.described["nodes"] if node["name"] == name)

    @property
    def names(self) -> list[str]:
        return [node["name"] for node in self.described["nodes"]]

    @property
    def volume(self) -> str:
        return str(self.described["volumes"][0]["name"])

    def pid_of(self, name: str) -> int:
        """Of the daemon that runs, also while it is not registered yet."""
        (pid,) = daemons_of(self.directory / name)
        return pid

    def runs(self, name: str) -> bool:
        return bool(daemons_of(self.directory / name))

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
        there = Installation.load(self.directory)
        daemon.pause(there.node(name), there.metadata)

    def resume(self, name: str) -> None:
        os.kill(self.pid_of(name), signal.SIGCONT)

    def cut(self, name: str) -> None:
        """Off from the other nodes."""
        self._iomesh("trial", "cut", name, "--dir", str(self.directory), "--json")

    def heal(self, name: str) -> None:
        self._iomesh("trial", "heal", name, "--dir", str(self.directory), "--json")

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[Client]:
        async with Client(str(self.described_node(name)["control"])) as client:
            yield client

    async def seen_by(self, name: str, volume: str = "trial") -> Volume:
        async with self.client(name) as client:
            return next(one for one in await client.volumes() if one.name == volume)

    async def uri_of(self, name: str, volume: str = "trial") -> str:
        """Of the export on this node, once it is there."""

        async def exported() -> bool:
            return bool((await self.seen_by(name, volume)).exports)

        await until(exported, f"node {name} exports volume {volume}")
        return str((await self.seen_by(name, volume)).exports[0].uris[0])

    async def has_replicas(self, owner: str, *members: str) -> bool:
        """Whether these nodes, as the owner sees it, keep what is written to the volume."""
        return sorted((await self.seen_by(owner)).replica_nodes) == sorted(members)

    def iomesh(self, *words: str, node: str) -> str:
        """A command to this node."""
        return self._iomesh(*words, "--address", str(self.described_node(node)["control"]))

    def start_nodes(self, *names: str) -> None:
        """One, or all that do not run, at once; returns when they are ready and serve what they own."""
        words = ("trial", "start", *(names if len(names) == 1 else ()), "--dir", str(self.directory), "--json")
        self.described = json.loads(self._iomesh(*words))

    def begin_to_start_node(self, name: str) -> "subprocess.Popen[str]":
        """Returns once its daemon runs."""
        starting = subprocess.Popen(
            [iomesh_command(), "trial", "start", name, "--dir", str(self.directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: starting.poll() is not None or self.runs(name), what=f"a daemon {name} appears")
        return starting

    def stop_nodes(self, *names: str) -> None:
        """A clean stop of all of these at once."""
        pids = [self.pid_of(name) for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for pid in pids:
            eventually(lambda pid=pid: not alive(pid), what=f"process {pid} stops", seconds=HANG_SECONDS)  # type: ignore[misc]

    # what the cluster says

    async def served(self, volume: str = "") -> Served | None:
        """The trial's volume, or another one, by the running node with the newest right to it. None: by none that
        answers."""
        answers = await asyncio.gather(*(self._listed(node, volume) for node in self.described["nodes"]))
        found = [
            (volume.epoch, name, volume.exports[0].uris[0])
            for name, volume in answers
            if volume is not None and volume.owner == name and volume.state is VolumeState.SERVING and volume.exports
        ]
        if not found:
            return None
        _, owner, uri = max(found)
        return Served(owner, str(uri))

    async def until_served(self, volume: str = "", *, other_than: str = "") -> Served:
        """By a node that is not `other_than`."""
        found: list[Served] = []

        async def holds() -> bool:
            served = await self.served(volume)
            if served is not None and served.owner != other_than:
                found.append(served)
            return bool(found)

        try:
            await until(
                holds, f"the volume {volume} is served" + (f" by another node than {other_than}" if other_than else "")
            )
        except AssertionError as error:
            raise AssertionError(f"{error}: {await self._told(volume)}") from None
        return found[0]

    async def _told(self, of: str) -> str:
        """What each node says of the volume."""
        answers = await asyncio.gather(*(self._listed(node, of) for node in self.described["nodes"]))
        return "; ".join(
            f"{name}: {volume.state} in epoch {volume.epoch}, owner {volume.owner}, {volume.reason}"
            if volume
            else f"{name}: nothing"
            for name, volume in answers
        )

    def check_daemons(self) -> None:
        """Fails if a daemon has ended by itself, or has found damage on its device."""
        for name in self.names:
            lines = Path(self.described_node(name)["log"]).read_text(errors="replace").splitlines()
            damage = [line for line in lines if '"damage found"' in line]
            assert not damage, "\n".join([f"the daemon {name} has found damage:", *damage[:5]])
            assert self.runs(name), "\n".join([f"the daemon {name} has ended by itself; its log:", *lines[-20:]])

    async def _listed(self, node: dict[str, Any], volume: str) -> tuple[str, Volume | None]:
        name, wanted = str(node["name"]), volume or self.volume
        if self.runs(name):
            try:
                async with Client(str(node["control"]), timeout_seconds=ANSWER_SECONDS) as client:
                    return name, next((one for one in await client.volumes() if one.name == wanted), None)
            except IomeshError:  # it starts, is paused, or was killed
                pass
        return name, None

    async def stored(self) -> LogRecord:
        """Of the trial's volume, as the metadata service has it."""
        metadata = await SqliteMetadata.open(self.directory / "metadata.db")
        try:
            stored = await find_volume(metadata, self.volume)
        finally:
            await metadata.close()
        assert stored is not None and stored.log is not None
        return stored.log.record

    async def has_all_replicas(self, count: int) -> bool:
        """Whether the newest fragment has this many members."""
        fragments = (await self.stored()).fragments
        return bool(fragments) and len(fragments[-1].devices) == count
