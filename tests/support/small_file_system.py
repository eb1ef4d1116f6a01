"""A file system that a test can fill up."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from support.run import run


class SmallFileSystem:
    """A tmpfs of a few MiB, mounted at `path` until `remove`."""

    def __init__(self, path: Path, *, mebibytes: int = 16) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root: mounts a tmpfs")
        self.path = path
        self._filler = path / "filler"
        path.mkdir()
        if run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", path], succeeds=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here")

    def fill(self) -> None:
        """Fills it to the last byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                while _written(file, bytes(size)):
                    pass

    def free(self) -> None:
        self._filler.unlink()

    def remove(self) -> None:
        run(["umount", "-l", self.path], succeeds=False)


def _written(file: BinaryIO, data: bytes) -> bool:
    """Returns False if there is no space."""
    try:
        file.write(data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True
