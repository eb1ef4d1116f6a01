"""A copy of records follows the metadata service, and survives what the service does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iomesh.metadata import Change, Delete, MetadataUnavailable, Put
from iomesh.metadata import sqlite as implementation
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.node.mirror import Mirror
from iomesh.node.supervisor import Supervisor
from support.faulty_metadata import Fault, FaultyMetadata

HANG_SECONDS = 120.0


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[SqliteMetadata]:
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    yield metadata
    await metadata.close()


class BreakingWatch(FaultyMetadata):
    """Its watches fail after each change while `breaks` is set."""

    breaks = False
    broken = 0

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        async for change in self.real.watch(prefix, after):
            yield change
            if self.breaks:
                self.broken += 1
                raise MetadataUnavailable("metadata: the connection broke")


def contents(mirror: Mirror) -> dict[str, bytes]:
    return {key: entry.value for key, entry in mirror.entries.items()}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def following(mirror: Mirror) -> AsyncIterator[Supervisor]:
    await mirror.load()
    supervisor = Supervisor()
    supervisor.start("follow", mirror.follow)
    yield supervisor
    assert supervisor.tasks()["follow"] == (True, 0, ""), "the task never failed"
    await supervisor.close()


async def test_it_has_what_is_there_and_what_changes(real: SqliteMetadata) -> None:
    await real.commit(Put("nodes/a", b"1", 0))
    await real.commit(Put("volumes/a", b"1", 0))
    calls: list[None] = []
    mirror = Mirror(real, "nodes/", lambda: calls.append(None))
    async with following(mirror):
        assert (contents(mirror), len(calls)) == ({"nodes/a": b"1"}, 1)
        await real.commit(Put("nodes/b", b"2", 0))
        await real.commit(Put("volumes/b", b"1", 0))
        await real.commit(Put("nodes/a", b"3", None))
        await until(lambda: contents(mirror) == {"nodes/a": b"3", "nodes/b": b"2"})
        await real.commit(Delete("nodes/a", None))
        await until(lambda: contents(mirror) == {"nodes/b": b"2"})
        assert len(calls) == 4


async def test_it_lists_again_when_the_history_is_lost(
    real: SqliteMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementation, "CHANGES_KEPT", 5)
    await real.commit(Put("nodes/a", b"", 0))
    mirror = Mirror(real, "nodes/", lambda: None)
    await mirror.load()
    await real.commit(Delete("nodes/a", None))
    for number in range(10):
        await real.commit(Put(f"volumes/{number}", b"", 0))
    supervisor = Supervisor()
    supervisor.start("follow", mirror.follow)
    await until(lambda: contents(mirror) == {})
    await real.commit(Put("nodes/b", b"", 0))
    await until(lambda: contents(mirror) == {"nodes/b": b""})
    await supervisor.close()


async def test_a_service_that_does_not_answer_leaves_what_was_known(real: SqliteMetadata) -> None:
    metadata = BreakingWatch(real)
    await real.commit(Put("nodes/a", b"1", 0))
    mirror = Mirror(metadata, "nodes/", lambda: None)
    async with following(mirror):
        metadata.breaks, metadata.down = True, Fault.NOT_DONE
        await real.commit(Put("nodes/b", b"2", 0))
        await until(lambda: metadata.broken == 1 and metadata.failed >= 2)
        assert contents(mirror) == {"nodes/a": b"1", "nodes/b": b"2"}
        await real.commit(Delete("nodes/a", None))
        metadata.breaks, metadata.down = False, None
        await until(lambda: contents(mirror) == {"nodes/b": b"2"})
        await real.commit(Put("nodes/c", b"3", 0))
        await until(lambda: contents(mirror) == {"nodes/b": b"2", "nodes/c": b"3"})
