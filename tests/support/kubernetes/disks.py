"""Loop devices that stand for disks. The nodes of one machine share /dev, so each disk is named for its node."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Disks:
    def __init__(self, nodes: Sequence[str], size_bytes: int, each: int = 1) -> None:
        self._nodes = nodes
        self._size_bytes = size_bytes
        self._each = each
        self._folder = tempfile.TemporaryDirectory(
            prefix="iomesh-disks-", dir=os.environ.get("IOMESH_TEST_FOLDER", "/var/tmp")
        )
        self.paths: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        for node in self._nodes:
            self.paths[node] = [
                self._make(Path(self._folder.name) / f"{node}-{number}") for number in range(self._each)
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in (path for paths in self.paths.values() for path in paths):
            subprocess.run(["losetup", "--detach", path], capture_output=True)
        self._folder.cleanup()

    def _make(self, file: Path) -> str:
        with file.open("wb") as made:
            made.truncate(self._size_bytes)
        command = ["losetup", "--find", "--show", "--direct-io=on", str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
