"""Daemons of these tests: each a separate process, ended after its test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support import logs
from support.daemon import Daemon


@pytest.fixture
def reactors() -> int:
    """Of the daemon. A test with several volumes may ask for other numbers:
    @pytest.mark.parametrize("reactors", [1, 2])."""
    return 1


@pytest.fixture
async def daemon(expected_in_logs: tuple[str, ...], reactors: int) -> AsyncIterator[Daemon]:
    """A daemon with one formatted device; not started."""
    # Not tmp_path: a socket's path has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="iomesh-"))
    daemon = Daemon(directory, settings={"engine.reactors": reactors} if reactors > 1 else {})
    await daemon.format()
    yield daemon
    if daemon.process is not None:
        daemon.kill()
    if daemon.log.exists():
        print(daemon.log.read_text())
    logs.check_after(lambda: shutil.rmtree(directory), directory, expected_in_logs)


@pytest.fixture
async def node(daemon: Daemon) -> Daemon:
    """The daemon of `daemon`, started."""
    daemon.start()
    return daemon
