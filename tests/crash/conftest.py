"""Daemons that these tests kill: each a separate process, ended after its test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.daemon import Daemon


@pytest.fixture
async def daemon(room: Path) -> AsyncIterator[Daemon]:
    """A daemon with one formatted device; not started."""
    daemon = Daemon(room)
    await daemon.format()
    yield daemon
    if daemon.process is not None:
        daemon.kill()
