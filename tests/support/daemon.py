"""One `iomesh daemon run` process of a test: configure, start, query, stop, kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iomesh.api.client import Client
from iomesh.metadata import Metadata, Put
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.metadata.volumes import find_volume, read_volumes
from iomesh.node import hooks
from iomesh.node.offline import format_device
from support.trial import iomesh_command

MIB = 1 << 20
DEVICE_BYTES = 256 * MIB
START_SECONDS = 180.0  # against hangs; not a performance limit


async def names_of_records(metadata: Metadata) -> list[str]:
    """The stored volumes. Fails if a record is incomplete, or if there are other keys."""
    inventory = await read_volumes(metadata)
    assert not inventory.unreadable and not inventory.stale_names and not inventory.unnamed, inventory
    assert all(stored.log is not None for stored in inventory.volumes), inventory
    return sorted(stored.volume.record.name for stored in inventory.volumes)


async def rewrite(metadata: Metadata, key: Callable[[uuid.UUID], str], name: str, old: bytes, new: bytes) -> None:
    """Edits a record of the volume, as another node or an earlier crash would have."""
    found = await find_volume(metadata, name)
    assert found is not None
    entry = await metadata.get(key(found.volume.record.id))
    assert entry is not None and old in entry.value
    await metadata.commit(Put(entry.key, entry.value.replace(old, new), entry.version))


@dataclass
class Daemon:
    """`settings`: `--set` flags by key. `under`: a command that runs the daemon's command, as prlimit(1) does."""

    directory: Path
    devices: list[str] = field(default_factory=list)
    cluster: uuid.UUID | None = field(default_factory=uuid.uuid4)
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = "node-a"
    under: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)  # added to the daemon's environment
    process: subprocess.Popen[bytes] | None = None

    @property
    def control(self) -> str:
        return str(self.directory / "run" / "control.sock")

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    async def format(self, name: str = "device.img", **options: Any) -> str:
        """Formats a device for the daemon's cluster and adds it to the daemon."""
        path = await self.make_device(name, **options)
        self.devices.append(path)
        return path

    async def make_device(self, name: str, **options: Any) -> str:
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(DEVICE_BYTES)
        await format_device(str(path), **({"cluster": self.cluster} | options))
        return str(path)

    @property
    def hooks(self) -> Path:
        """Sets test hooks of the daemon; see iomesh.node.hooks."""
        return self.directory / "hooks"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {hooks.VARIABLE: str(self.hooks)} | self.variables

    def command(self) -> list[str]:
        config = self.directory / f"{self.name}.toml"
        directories = {"state_dir": str(self.directory / "state"), "run_dir": str(self.directory / "run")}
        values = {"name": self.name, "devices": self.devices} | directories
        if self.cluster is not None:
            values["cluster"] = str(self.cluster)
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        config.write_text(
            "\n".join([*lines, '[metrics]\nlisten = "127.0.0.1:0"', '[log]\nformat = "json"\nlevel = "debug"\n'])
        )
        flags = [f"--set={key}={value}" for key, value in self.settings.items()]
        return [*self.under, iomesh_command(), "daemon", "run", "--config", str(config), *flags]

    def start(self) -> None:
        """Returns when the daemon reports ready, as to systemd."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            address = f"\0iomesh-test-{uuid.uuid4()}"
            notified.bind(address)
            with self.log.open("ab") as log:
                environment = self.environment | {"NOTIFY_SOCKET": "@" + address[1:]}
                self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=environment)
            notified.settimeout(START_SECONDS)
            pidfd = os.pidfd_open(self.process.pid)
            try:
                while True:
                    ready, _, _ = select.select([notified.fileno(), pidfd], [], [], START_SECONDS)
                    assert notified.fileno() in ready, f"the daemon did not come up:\n{self.log.read_text()}"
                    if notified.recv(4096).startswith(b"READY=1"):
                        return
            finally:
                os.close(pidfd)

    def start_in_background(self) -> None:
        """Starts it without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=self.environment)

    def refuse(self) -> tuple[int, str]:
        """Expects the start to fail; returns exit code and message."""
        done = subprocess.run(self.command(), capture_output=True, text=True, timeout=START_SECONDS, check=False)
        words = [line for line in done.stderr.splitlines() if line.startswith("iomesh: ")]
        assert len(words) == 1, done.stderr
        return done.returncode, words[0].removeprefix("iomesh: ")

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(START_SECONDS)
        self.process = None
        return code

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(self.control) as client:
            yield client

    @contextlib.asynccontextmanager
    async def metadata(self) -> AsyncIterator[SqliteMetadata]:
        path = self.settings.get("metadata.path", self.directory / "state" / "metadata.db")
        metadata = await SqliteMetadata.open(Path(path))
        try:
            yield metadata
        finally:
            await metadata.close()

    async def page(self, path: str) -> str:
        async with self.client() as client:
            address = (await client.status()).metrics_address

        def get() -> str:
            with urllib.request.urlopen(f"http://{address}{path}") as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(get)

    async def health(self) -> dict[str, Any]:
        """The document of /healthz."""
        document: dict[str, Any] = json.loads(await self.page("/healthz"))
        return document

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self._lines() if line["event"] == event]

    def wrong(self) -> list[dict[str, Any]]:
        """The logged errors."""
        return [line for line in self._lines() if line["level"] not in ("debug", "info", "warning")]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [
            json.loads(line)
            for line in self.log.read_text().splitlines()
            if line.startswith("{") and line.endswith("}")
        ]
