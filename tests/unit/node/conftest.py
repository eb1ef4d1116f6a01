"""Files and loop devices to be opened, formatted and refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MIB = 1 << 20


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[int], str]:
    """Makes a sparse file of so many bytes."""

    def make(size_bytes: int, name: str = "device.img") -> str:
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return str(path)

    return make


@pytest.fixture
def loop_of(file_of: Callable[[int], str]) -> Iterator[Callable[[int], str]]:
    """Makes a loop device of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    made = []

    def make(size_bytes: int) -> str:
        command = ["losetup", "--find", "--show", "--direct-io=on", file_of(size_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield make
    for device in made:
        subprocess.run(["losetup", "--detach", device], check=False)
