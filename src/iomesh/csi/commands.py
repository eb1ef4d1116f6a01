"""Runs the system's programs: mount, mkfs, blkid. Each error names the program and what it printed."""

from __future__ import annotations

import asyncio
import os
import shutil

from iomesh.errors import IomeshError, Unsupported

SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

# Program to Debian package.
PACKAGES = {
    "mount": "mount",
    "umount": "mount",
    "blkid": "util-linux",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "dumpe2fs": "e2fsprogs",
    "nbdkit": "nbdkit",
    "nbdfuse": "libnbd-bin",
    "modprobe": "kmod",
    "fusermount3": "fuse3",
}


class Failed(IomeshError):
    """A program ended with an error; `code` is its exit code, `output` what it printed."""

    def __init__(self, message: str, code: int = 1, output: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.output = output


def find(program: str) -> str:
    """The path of a program. Raises Unsupported, which names the package that brings it."""
    found = shutil.which(program) or shutil.which(program, path=SYSTEM_FOLDERS)
    if found is None:
        raise Unsupported(f"{program} is not installed on this node: install the package {PACKAGES[program]}")
    return found


async def run(program: str, *words: str) -> str:
    """Returns what it printed. Raises Failed."""
    process = await asyncio.create_subprocess_exec(
        find(program),
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
    )
    output, _ = await process.communicate()
    text = output.decode(errors="replace").strip()
    assert process.returncode is not None
    if process.returncode:
        raise Failed(
            f"{program} {' '.join(words)} failed with {process.returncode}: {' '.join(text.split())}",
            process.returncode,
            text,
        )
    return text
