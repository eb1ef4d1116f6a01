"""A trial installation (`iomesh trial`) for a test: its own directory and daemons, always removed afterwards."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iomesh.api.client import Client
from support.run import alive, end, eventually, run


def iomesh_command() -> str:
    """The command under test: $IOMESH, or the one installed beside this Python."""
    return os.environ.get("IOMESH") or str(Path(sys.executable).parent / "iomesh")


@dataclass
class Trial:
    directory: Path
    options: list[str] = field(default_factory=list)  # of `trial up`
    described: dict[str, Any] = field(default_factory=dict)

    def up(self) -> None:
        self.described = json.loads(self._iomesh("trial", "up", "--dir", str(self.directory), *self.options, "--json"))

    def start(self) -> None:
        """Starts the daemons again after a crash or a stop."""
        self.described = json.loads(self._iomesh("trial", "start", "--dir", str(self.directory), "--json"))

    def try_to_start(self) -> subprocess.CompletedProcess[str]:
        """Starts the daemons where a refusal may be correct: the caller checks the result."""
        done = run([iomesh_command(), "trial", "start", "--dir", self.directory, "--json"], timeout=300, succeeds=False)
        if done.returncode == 0:
            self.described = json.loads(done.stdout)
        return done

    def begin_to_start(self) -> subprocess.Popen[str]:
        """Starts the daemons without waiting, so the test can interfere."""
        return subprocess.Popen(
            [iomesh_command(), "trial", "start", "--dir", str(self.directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def crash(self) -> None:
        """SIGKILL to every daemon."""
        for pid in self.running():
            end(pid)

    def stop(self) -> None:
        """A clean stop, as by an administrator: SIGTERM, and the daemons end by themselves."""
        for pid in self.pids():
            end(pid, signal.SIGTERM)

    def down(self) -> None:
        """Ends all processes. Never raises: it also runs after a failed test."""
        run([iomesh_command(), "trial", "down", "--dir", str(self.directory)], timeout=300, succeeds=False)
        for pid in self.running():
            end(pid)

    def look(self) -> dict[str, Any]:
        """The present state, as `trial status` describes it."""
        described: dict[str, Any] = json.loads(self._iomesh("trial", "status", "--dir", str(self.directory), "--json"))
        return described

    def change(self, what: str, node: str) -> None:
        """`trial kill`, `pause`, `resume`, `start` or `stop` of one node."""
        self._iomesh("trial", what, node, "--dir", str(self.directory))

    def control_of(self, node: str) -> str:
        return next(str(each["control"]) for each in self.described["nodes"] if each["name"] == node)

    async def make_volume(self, name: str, size_bytes: int) -> str:
        """Creates another volume beside the trial's own; returns its NBD URI."""
        async with Client(self.control) as client:
            await client.create_volume(name, size_bytes)
            return (await client.export_volume(name)).uris[0]

    async def delete_volume(self, name: str) -> None:
        async with Client(self.control) as client:
            await client.delete_volume(name, force=True)

    @property
    def control(self) -> str:
        return str(self.described["nodes"][0]["control"])

    @property
    def config(self) -> Path:
        """Of the first node, as its log and devices are."""
        return Path(self.described["nodes"][0]["config"])

    @property
    def log(self) -> Path:
        return Path(self.described["nodes"][0]["log"])

    @property
    def devices(self) -> list[Path]:
        return [Path(device) for device in self.described["nodes"][0]["devices"]]

    @property
    def pid(self) -> int:
        return self.pids()[0]

    def pids(self) -> list[int]:
        return [int(node["pid"]) for node in self.described["nodes"] if node["pid"]]

    @property
    def uri(self) -> str:
        return str(self.described["volumes"][0]["uri"])

    @property
    def volume_bytes(self) -> int:
        return int(self.described["volumes"][0]["size"])

    def running(self) -> list[int]:
        """Daemons of this trial, identified by command line, so that one that is not yet registered is found too."""
        return daemons_of(self.directory)

    def await_daemon(self, starting: subprocess.Popen[str]) -> int | None:
        """The process of a starting daemon; None if the start ended without one."""
        eventually(lambda: bool(self.running()) or starting.poll() is not None, what="a daemon of the trial appears")
        running = self.running()
        return running[0] if running else None

    def _iomesh(self, *words: str) -> str:
        return run([iomesh_command(), *words]).stdout


def daemons_of(directory: Path) -> list[int]:
    """Daemons whose command line names a file in the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"daemon" in words
            and any(os.fsencode(directory) + b"/" in word for word in words)
            and alive(int(entry.name))
        ):
            found.append(int(entry.name))
    return found
