"""Every implementation of the metadata protocol passes the same tests: add a new one to IMPLEMENTATIONS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from iomesh.metadata import Metadata
from iomesh.metadata.sqlite import SqliteMetadata

# Opens one more client of the one service that the test has.
Opener = Callable[[], Awaitable[Metadata]]


def sqlite(folder: Path) -> Opener:
    return lambda: SqliteMetadata.open(folder / "metadata.db")


IMPLEMENTATIONS: dict[str, Callable[[Path], Opener]] = {"sqlite": sqlite}


@pytest.fixture(params=IMPLEMENTATIONS)
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    opener = IMPLEMENTATIONS[request.param](tmp_path)
    async with AsyncExitStack() as stack:

        async def open_client() -> Metadata:
            metadata = await opener()
            stack.push_async_callback(metadata.close)
            return metadata

        yield open_client


@pytest.fixture
async def metadata(client: Opener) -> Metadata:
    return await client()
