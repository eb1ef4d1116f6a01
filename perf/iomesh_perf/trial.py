"""A temporary iomesh, as created by `iomesh trial`: nodes with one file-backed device each, and one volume served over
NBD."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ANSWER_SECONDS = 5.0
POLL_SECONDS = 0.02


class TrialError(Exception):
    """`iomesh` failed; the message is its output."""


def iomesh(*words: str) -> str:
    """Run the `iomesh` installed beside this Python; returns its output."""
    program = Path(sys.executable).parent / "iomesh"
    if not program.exists():
        raise TrialError(f"{program} does not exist: `make build` installs it")
    outcome = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
    if outcome.returncode:
        said = (outcome.stderr.strip() or outcome.stdout.strip() or "nothing")[-2000:]
        raise TrialError(f"iomesh {' '.join(words)} failed with status {outcome.returncode}: {said}")
    return outcome.stdout


class Trial:
    """Runs while the `with` lasts. Its device file is in `directory`, which must be empty or not exist."""

    def __init__(
        self,
        directory: Path,
        *,
        device_bytes: int,
        volume_bytes: int,
        prewrite: bool,
        map_cache_bytes: int | None = None,
        checkpoint_bytes: int | None = None,
        reactors: int | None = None,
        nodes: int = 1,
        replicas: int = 1,
    ) -> None:
        self.directory = directory
        self._up = ["--devices", "1", "--device-size", str(device_bytes), "--size", str(volume_bytes)]
        self._up += ["--nodes", str(nodes), "--replicas", str(replicas)]
        if prewrite:
            self._up.append("--prewrite")
        if map_cache_bytes is not None:
            self._up += ["--map-cache", str(map_cache_bytes)]
        if checkpoint_bytes is not None:
            self._up += ["--checkpoint-bytes", str(checkpoint_bytes)]
        if reactors is not None:
            self._up += ["--reactors", str(reactors)]
        self.pids: dict[str, int] = {}  # of the nodes that run, by name
        self.controls: dict[str, str] = {}
        self.owner = ""
        self.uri = ""
        self.volume = ""

    def __enter__(self) -> Self:
        try:
            self._learn(self._trial("up", *self._up))
        except BaseException:
            self._down_quietly()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._trial("down")
        else:
            self._down_quietly()

    @property
    def pid(self) -> int:
        """Of the node that serves the volume."""
        return self.pids[self.owner]

    @property
    def control(self) -> str:
        return self.controls[self.owner]

    @property
    def members(self) -> list[str]:
        """The other nodes."""
        return [name for name in self.controls if name != self.owner]

    def crash(self, *names: str) -> None:
        """SIGKILL to one node, or to all."""
        self._trial("kill", *names)
        for name in names or list(self.pids):
            self.pids.pop(name, None)

    def start(self, *names: str) -> None:
        """Starts one node, or all that do not run; returns when they serve what they own."""
        self._learn(self._trial("start", *names))

    def await_take_over(self, seconds: float) -> bool:
        """After the owner's end: waits until another node serves the volume, at most so long. Returns whether one does;
        it is the owner then."""
        return asyncio.run(self._await_take_over(time.monotonic() + seconds))

    async def _await_take_over(self, deadline: float) -> bool:
        from iomesh.api.client import Client
        from iomesh.api.model import VolumeState
        from iomesh.errors import IomeshError

        while time.monotonic() < deadline:
            for name in self.members:
                with contextlib.suppress(IomeshError):
                    async with Client(self.controls[name], timeout_seconds=ANSWER_SECONDS) as node:
                        served = (self.volume, name, VolumeState.SERVING)
                        for volume in await node.volumes():
                            if (volume.name, volume.owner, volume.state) == served and volume.exports:
                                self.owner, self.uri = name, str(volume.exports[0].uris[0])
                                return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    def free_bytes(self) -> int:
        """Free bytes of the device that has fewest."""
        free = []
        for control in self.controls.values():
            devices = json.loads(iomesh("device", "list", "--json", "--address", control))
            free.append(sum(int(device["free_bytes"]) for device in devices["devices"]))
        return min(free)

    def make_volume(self, name: str, size_bytes: int) -> str:
        """Creates another volume beside the trial's own; returns its NBD URI."""
        address = ("--address", self.control)
        iomesh("volume", "create", name, str(size_bytes), *address)
        return str(json.loads(iomesh("volume", "export", name, "--json", *address))["uris"][0])

    def uri_through(self, name: str) -> str:
        """Of the volume at this node, which forwards requests to the owner where it is not the owner itself."""
        exported = json.loads(iomesh("volume", "export", self.volume, "--json", "--address", self.controls[name]))
        return str(exported["uris"][0])

    def reactors_of_volumes(self) -> list[int]:
        volumes = json.loads(iomesh("volume", "list", "--json", "--address", self.control))["volumes"]
        return [int(volume.get("reactor", 0)) for volume in volumes]

    def checkpoint(self) -> None:
        iomesh("volume", "checkpoint", self.volume, "--json", "--address", self.control)

    def segment_bytes(self) -> int:
        return int(self._volume()["segment_bytes"])

    def log_bytes_since_checkpoint(self) -> int:
        return int(self._volume()["log_bytes_since_checkpoint"])

    def recovery_seconds(self) -> float:
        """Duration of recovery at the volume's last start."""
        return float(self._volume()["recovery_seconds"])

    def redundancy(self) -> dict[str, Any]:
        """As in the API: bytes of copies that are missing, that were made, and why not."""
        found: dict[str, Any] = self._volume()["redundancy"]
        return found

    def _volume(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(iomesh("volume", "show", self.volume, "--json", "--address", self.control))
        return shown

    def _trial(self, verb: str, *words: str) -> str:
        return iomesh("trial", verb, "--dir", str(self.directory), "--json", *words)

    def _learn(self, printed: str) -> None:
        state = json.loads(printed)
        self.pids = {node["name"]: int(node["pid"]) for node in state["nodes"] if node["pid"]}
        self.controls = {node["name"]: str(node["control"]) for node in state["nodes"]}
        volume = state["volumes"][0]
        self.owner, self.uri, self.volume = str(volume["owner"]), str(volume["uri"]), str(volume["name"])

    def _down_quietly(self) -> None:
        with contextlib.suppress(TrialError, OSError):
            self._trial("down")
