"""Hooks for the tests of the daemon as a process; without the environment variable IOMESH_TEST_HOOKS they do nothing.

The variable names a file, which is read anew each time a hook is passed. Its lines:

    fail NAME       a background task of that name fails at its start and in every round
    hold NAME       the daemon waits: before a step of its start of that name, or before it opens a volume ("volume db")

docs/testing.md lists them for authors of tests.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

VARIABLE = "IOMESH_TEST_HOOKS"
LOOK_SECONDS = 0.01


class InjectedFailure(Exception):
    """Raised only for tests."""


class Hooks:
    def __init__(self, file: str | None = None) -> None:
        file = os.environ.get(VARIABLE, "") if file is None else file
        self._file = Path(file) if file else None

    def fail(self, name: str) -> None:
        if self._lists(f"fail {name}"):
            raise InjectedFailure(f"{VARIABLE} lets {name} fail")

    async def hold(self, name: str) -> None:
        while self._lists(f"hold {name}"):  # noqa: ASYNC110 (another process writes the file)
            await asyncio.sleep(LOOK_SECONDS)

    def _lists(self, line: str) -> bool:
        if self._file is None:
            return False
        try:
            return line in self._file.read_text().splitlines()
        except FileNotFoundError:
            return False
