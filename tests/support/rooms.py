"""Folders for tests, and the seed of a run: for fixtures of every scope."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def room(config: pytest.Config) -> Iterator[Path]:
    """A folder on a real disk (direct I/O) with a short path (for sockets), open to PostgreSQL's user."""
    folder = Path(tempfile.mkdtemp(prefix="iomesh-", dir=os.environ.get("IOMESH_TEST_FOLDER", "/var/tmp")))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if config.getoption("--keep"):
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def seed(config: pytest.Config) -> int:
    """The value of --seed, or one random number for the whole run."""
    given = config.getoption("--seed")
    if given is None:
        given = config.option.seed = int.from_bytes(os.urandom(4), "big")
    return int(given)
