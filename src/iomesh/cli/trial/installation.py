"""A trial's directory: its files, and the stored state of the trial.

Always so: a directory is a trial's if, and only if, it holds the marker file that `trial up` put there first; nothing
else is ever removed. The marker's data about a daemon (its process id) counts only while that same process runs.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Self

import msgspec

from iomesh.errors import Damaged, Foreign, InUse, InvalidArgument, NotFound

MARKER = "iomesh-trial.json"
SOCKET_PATH_MAX = 107  # sun_path without its final zero


class TrialNode(msgspec.Struct):
    """One daemon. pid: 0 when none was started. born: its start time in the kernel's clock ticks, to distinguish it
    from a later process."""

    name: str
    control: str
    pid: int = 0
    born: int = 0

    @property
    def alive(self) -> bool:
        return self.born > 0 and birth(self.pid) == self.born  # it may have ended before its start time was read


class TrialVolume(msgspec.Struct):
    name: str
    size: int
    uri: str


class Installation(msgspec.Struct):
    """One trial, as stored in its marker file."""

    directory: str
    cluster: str
    nodes: list[TrialNode] = []
    devices: list[str] = []
    volumes: list[TrialVolume] = []
    version: int = 1

    @property
    def path(self) -> Path:
        return Path(self.directory)

    @property
    def marker(self) -> Path:
        return self.path / MARKER

    @property
    def config(self) -> Path:
        return self.path / "node.toml"

    @property
    def log(self) -> Path:
        return self.path / "node.log"

    @property
    def running(self) -> bool:
        return any(node.alive for node in self.nodes)

    @classmethod
    def create(cls, directory: Path, cluster: str) -> Self:
        """Claims a directory that does not exist yet or is empty. Raises InUse, Foreign, InvalidArgument."""
        directory = directory.expanduser().absolute()
        longest = directory / "control.sock"
        if len(os.fsencode(longest)) > SOCKET_PATH_MAX:
            raise InvalidArgument(
                f"{directory} is too long for the sockets in it ({longest} has more than {SOCKET_PATH_MAX} bytes): "
                "choose a shorter --dir"
            )
        if (directory / MARKER).exists():
            there = cls.load(directory)
            how = f"runs (process {there.nodes[0].pid})" if there.running else "is there, not running"
            raise InUse(
                f"a trial {how} in {directory}: see `iomesh trial status`, end it with `iomesh trial down`, or choose "
                "another --dir"
            )
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise Foreign(f"{directory} is neither empty nor a trial's directory: choose another --dir")
        made = cls(directory=str(directory), cluster=cluster)
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
        """Replaces the marker atomically."""
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=MARKER, delete=False) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2))
        Path(file.name).replace(self.marker)

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


def birth(pid: int) -> int:
    """The start time of a running process, in clock ticks since boot; 0 if there is none (a zombie is none)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if words[0] in ("Z", "X") else int(words[19])


def mounts_below(directory: Path) -> list[str]:
    """Mount points inside a directory, without the directory itself."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
        if Path(point) != directory and Path(point).is_relative_to(directory):
            found.append(point)
    return found
