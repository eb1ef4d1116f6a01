"""What /sys and /proc say of a machine, below a root directory: `/`, or a tree recorded on another machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

CONTAINER_MARKS = (".dockerenv", "run/.containerenv", "run/systemd/container")


class Machine:
    """Reads files below `root`; nothing here writes."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        """The file's text without space around it, or of FILE#NAME the word behind that name; None: it is not there, or
        cannot be read."""
        file, _, name = path.partition("#")
        try:
            text = (self.root / file).read_text(errors="replace").strip()
        except OSError:
            return None
        if not name:
            return text
        return next((line[len(name) :].split()[0] for line in text.splitlines() if line.startswith(f"{name} ")), None)

    def places(self, pattern: str) -> list[str]:
        """The files that match, as paths below the root, in the order of their names."""
        file, mark, name = pattern.partition("#")
        return sorted(f"{path.relative_to(self.root)}{mark}{name}" for path in self.root.glob(file))

    def container(self) -> bool:
        return any((self.root / mark).exists() for mark in CONTAINER_MARKS)

    def read_only(self, path: str) -> bool:
        """Whether the file lies on a mount that may only be read, as /sys is in most containers."""
        longest, options = "", ""
        for line in (self.read("proc/self/mounts") or "").splitlines():
            words = line.split()
            point = words[1].rstrip("/") if len(words) > 3 else None
            if point is not None and f"/{path}".startswith(f"{point}/") and len(point) >= len(longest):
                longest, options = point, words[3]
        return "ro" in options.split(",")

    def disk_kind(self, path: str) -> str:
        """Of the disk whose settings `path` is one of: nvme, virtual, ssd, hdd, or "" for loop devices and the like."""
        name = path.split("/")[2]
        if name.startswith("nvme"):
            return "nvme"
        if name.startswith(("vd", "xvd")):  # a virtual disk often says that it rotates
            return "virtual"
        if not name.startswith("sd"):
            return ""
        return "hdd" if self.read(f"sys/block/{name}/queue/rotational") == "1" else "ssd"

    def number(self, path: str) -> int:
        """The file's number; 0: it has none."""
        text = self.read(path) or ""
        return int(text) if text.lstrip("-").isdecimal() else 0


DEEP_STATE_US = 10  # leaving a deeper state takes about as long as a read of a fast device does

CONDITIONS: dict[str, Callable[[Machine, str], bool]] = {
    "always": lambda machine, path: True,
    "flash": lambda machine, path: machine.disk_kind(path) in ("nvme", "ssd", "virtual"),
    "nvme": lambda machine, path: machine.disk_kind(path) == "nvme",
    "hdd": lambda machine, path: machine.disk_kind(path) == "hdd",
    "several nodes": lambda machine, path: len(machine.places("sys/devices/system/node/node*")) > 1,
    "deep state": lambda machine, path: machine.number(path.removesuffix("disable") + "latency") > DEEP_STATE_US,
}
