"""What is mounted, read from /proc/self/mountinfo: os.path.ismount does not see a bind mount from the same file
system."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path

from iomesh.csi.commands import Failed, run

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    point: str
    device: str  # "major:minor" of the file system
    root: str  # what of the file system is mounted
    options: frozenset[str]  # of this mount, not of the file system
    kind: str  # xfs, fuse.nbdfuse, devtmpfs
    source: str

    @property
    def read_only(self) -> bool:
        return "ro" in self.options


def mounts() -> list[Mount]:
    """The oldest first: of several at one point the last one is seen."""
    return [_parse(line) for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def mount_at(point: str) -> Mount | None:
    """The uppermost mount at exactly this path."""
    path = real(point)
    return next((each for each in reversed(mounts()) if each.point == path), None)


def real(path: str) -> str:
    """As mountinfo has it."""
    return os.path.realpath(path)


async def mount(source: str, point: str, *, kind: str = "", options: list[str] | None = None) -> None:
    await run("mount", *(("-t", kind) if kind else ()), *(("-o", ",".join(options)) if options else ()), source, point)


async def bind(source: str, point: str) -> None:
    await run("mount", "--bind", source, point)


async def make_read_only(point: str, options: list[str]) -> None:
    await run("mount", "-o", ",".join(["remount", "bind", "ro", *options]), point)


async def unmount_all(point: str, *, lazily: bool = False) -> bool:
    """Unmounts what is mounted at this path, several times if it was mounted so often. Returns whether anything
    was."""
    found = False
    while await asyncio.to_thread(mount_at, point) is not None:
        try:
            await run("umount", *(("-l",) if lazily else ()), point)
        except Failed:
            if await asyncio.to_thread(mount_at, point) is None:
                break  # it was unmounted meanwhile
            raise
        found = True
    return found


def _parse(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    fields, (kind, source, *_) = before.split(" "), after.split(" ")
    return Mount(
        point=_unescape(fields[4]),
        device=fields[2],
        root=_unescape(fields[3]),
        options=frozenset(fields[5].split(",")),
        kind=kind,
        source=_unescape(source),
    )


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), text)
