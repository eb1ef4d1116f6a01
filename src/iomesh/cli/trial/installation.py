"""A trial's directory: its files, and the stored state of the trial.

    D/iomesh-trial.json     the marker: what `trial up` set up
    D/metadata.db           the metadata service, shared by all nodes
    D/<node>/               a node: node.toml, node.log, its state and sockets, daemon.json
    D/<node>/cluster/       its certificates and keys; a single node has none
    D/<node>/devices/       its devices

Always so: a directory is a trial's if, and only if, it holds the marker file that `trial up` put there first; nothing
else is ever removed. The marker changes only while the trial is set up, so commands for several nodes may run at once.
The data about a daemon (its process id, in daemon.json) counts only while that same process runs.
"""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec

from iomesh.errors import Damaged, Foreign, InUse, InvalidArgument, NotFound

MARKER = "iomesh-trial.json"
NODE_NAMES = "abcdefghi"
NODES_MAX = len(NODE_NAMES)
SOCKET_PATH_MAX = 107  # sun_path without its final zero

State = Literal["running", "cut", "paused", "stopped"]


class Process(msgspec.Struct, frozen=True):
    """born: its start time in the kernel's clock ticks, to distinguish it from a later process with the same pid."""

    pid: int
    born: int


@dataclass(frozen=True)
class TrialNode:
    """One node: its directory, and the daemon that was last started in it."""

    name: str
    path: Path
    device_count: int

    @property
    def config(self) -> Path:
        return self.path / "node.toml"

    @property
    def log(self) -> Path:
        return self.path / "node.log"

    @property
    def cut_file(self) -> Path:
        """While it exists, the daemon is cut off from the other nodes."""
        return self.path / "cut"

    @property
    def control(self) -> str:
        return str(self.path / "control.sock")

    @property
    def devices(self) -> list[Path]:
        return [self.path / "devices" / f"{number}.img" for number in range(self.device_count)]

    @property
    def process(self) -> Process | None:
        """The daemon that was last started, running or not. None: none was started."""
        try:
            return msgspec.json.decode((self.path / "daemon.json").read_bytes(), type=Process)
        except FileNotFoundError:
            return None

    def record(self, process: Process) -> None:
        _replace(self.path / "daemon.json", msgspec.json.encode(process))

    @property
    def state(self) -> State:
        process = self.process
        found = look(process.pid) if process else None
        if process is None or found is None or not found.born or found.born != process.born:
            return "stopped"
        if found.letter == "T":
            return "paused"
        return "cut" if self.cut_file.exists() else "running"

    @property
    def alive(self) -> bool:
        return self.state != "stopped"

    @property
    def pid(self) -> int | None:
        """None while no daemon runs."""
        return self.process.pid if self.process and self.alive else None


class Installation(msgspec.Struct):
    """One trial, as stored in its marker file."""

    directory: str
    cluster: str
    names: list[str]  # of the nodes
    devices: int  # of each node
    volume: str = ""  # that `trial up` created; empty: it has not come that far
    volume_bytes: int = 0

    @property
    def path(self) -> Path:
        return Path(self.directory)

    @property
    def marker(self) -> Path:
        return self.path / MARKER

    @property
    def metadata(self) -> Path:
        return self.path / "metadata.db"

    @property
    def nodes(self) -> list[TrialNode]:
        return [TrialNode(name, self.path / name, self.devices) for name in self.names]

    def node(self, name: str) -> TrialNode:
        """Raises NotFound."""
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            raise NotFound(f"the trial in {self.directory} has no node {name!r}: its nodes are {', '.join(self.names)}")
        return found

    @property
    def running(self) -> bool:
        return any(node.alive for node in self.nodes)

    @classmethod
    def create(cls, directory: Path, cluster: str, *, nodes: int = 1, devices: int = 1) -> Self:
        """Claims a directory that does not exist yet or is empty. Raises InUse, Foreign, InvalidArgument."""
        directory = directory.expanduser().absolute()
        made = cls(directory=str(directory), cluster=cluster, names=list(NODE_NAMES[:nodes]), devices=devices)
        longest = made.nodes[0].control
        if len(os.fsencode(longest)) > SOCKET_PATH_MAX:
            raise InvalidArgument(
                f"{directory} is too long for the sockets in it ({longest} has more than {SOCKET_PATH_MAX} bytes): "
                "choose a shorter --dir"
            )
        if made.marker.exists():
            pids = [str(node.pid) for node in cls.load(directory).nodes if node.pid]
            how = f"runs (process {', '.join(pids)})" if pids else "is there, not running"
            raise InUse(
                f"a trial {how} in {directory}: see `iomesh trial status`, end it with `iomesh trial down`, or choose "
                "another --dir"
            )
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise Foreign(f"{directory} is neither empty nor a trial's directory: choose another --dir")
        made.save()
        return made

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises NotFound, Damaged."""
        directory = directory.expanduser().absolute()
        try:
            found = msgspec.json.decode((directory / MARKER).read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(
                f"there is no trial in {directory}: start one with `iomesh trial up`, or name its directory with --dir"
            ) from None
        except msgspec.DecodeError as error:
            raise Damaged(
                f"{directory / MARKER} cannot be read ({error}): end the trial's processes and remove {directory} by "
                "hand"
            ) from None
        found.directory = str(directory)
        return found

    def save(self) -> None:
        _replace(self.marker, msgspec.json.encode(self))

    def remove(self) -> None:
        """Removes the whole directory. Raises InUse while something is mounted in it or a daemon of it runs."""
        mounted = mounts_below(self.path)
        if mounted:
            raise InUse(f"{mounted[0]} is mounted inside the trial {self.directory}: unmount it first")
        if self.running:
            raise InUse(f"the trial in {self.directory} is running: stop it first")
        if not self.marker.is_file():
            raise Foreign(f"{self.directory} has no {MARKER}: it is not a trial's directory and is not removed")
        for entry in self.path.iterdir():
            if entry.name != MARKER:  # last, so that an interrupted removal can be repeated
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self.marker.unlink()
        self.path.rmdir()


def default_directory() -> Path:
    """The directory of a trial without --dir."""
    state = os.environ.get("XDG_STATE_HOME")
    return (
        (Path(state) if state and Path(state).is_absolute() else Path.home() / ".local" / "state") / "iomesh" / "trial"
    )


class Look(NamedTuple):
    """A running process: the kernel's letter for its state, and its start time in clock ticks since boot."""

    letter: str
    born: int


def look(pid: int) -> Look | None:
    """None: there is no such process (a zombie is none)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if words[0] in ("Z", "X") else Look(words[0], int(words[19]))


def birth(pid: int) -> int:
    """The start time of a running process, in clock ticks since boot; 0 if there is none."""
    found = look(pid)
    return found.born if found else 0


def mounts_below(directory: Path) -> list[str]:
    """Mount points inside a directory, without the directory itself."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
        if Path(point) != directory and Path(point).is_relative_to(directory):
            found.append(point)
    return found


def _replace(path: Path, content: bytes) -> None:
    """Writes JSON for people, atomically."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(msgspec.json.format(content, indent=2))
    Path(file.name).replace(path)
