"""What only the SQLite implementation has: a file, several processes, a history of limited length."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from iomesh.errors import Damaged, NotFound, Unavailable, Unsupported
from iomesh.metadata import HistoryLost, MetadataUnavailable, Put
from iomesh.metadata import sqlite as implementation
from iomesh.metadata.sqlite import SqliteMetadata
from support.small_file_system import SmallFileSystem


async def test_what_was_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    revision = await metadata.commit(Put("a", b"1", 0))
    await metadata.close()
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    assert await metadata.get("a") == ("a", b"1", revision)
    assert await metadata.commit(Put("b", b"1", 0)) > revision
    await metadata.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from iomesh.metadata import Put
from iomesh.metadata.sqlite import SqliteMetadata

async def main():
    metadata = await SqliteMetadata.open(Path(sys.argv[1]))
    for number in range(1000):
        await metadata.commit(Put(f"a/{number:04}", b"", 0))
        print(number, flush=True)

asyncio.run(main())
"""


def last_commit_of_a_process_that_is_killed(path: Path) -> int:
    """The number of the last one that was answered."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        answered = [int(next(writer.stdout)) for _ in range(20)][-1]
        writer.kill()
        return max([answered, *(int(line) for line in writer.stdout if line.strip())])


async def test_a_process_that_is_killed_leaves_what_it_had_committed(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    answered = last_commit_of_a_process_that_is_killed(path)
    metadata = await SqliteMetadata.open(path)
    keys = [entry.key for entry in (await metadata.list_prefix("a/")).entries]
    assert keys[: answered + 1] == [f"a/{number:04}" for number in range(answered + 1)]
    assert len(keys) <= answered + 2, "at most the commit that was under way is there besides"
    await metadata.close()


async def test_a_watch_from_a_revision_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "CHANGES_KEPT", 5)
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    first = await metadata.commit(Put("a/0", b"", 0))
    for number in range(1, 7):
        await metadata.commit(Put(f"a/{number}", b"", 0))
    with pytest.raises(HistoryLost):
        await anext(metadata.watch("a/", first))
    assert (await anext(metadata.watch("a/", first + 1))).key == "a/2"
    await metadata.close()


async def test_leases_of_an_earlier_boot_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    lease = await metadata.grant(3600.0)
    await metadata.commit(Put("nodes/a", b"", 0, lease=lease))
    monkeypatch.setattr(implementation, "_boot", lambda: "another boot")
    assert await metadata.get("nodes/a") is None
    await metadata.close()


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        await SqliteMetadata.open(tmp_path / "absent" / "metadata.db")


async def test_a_file_that_is_not_a_database_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"something else entirely" * 1000)
    with pytest.raises(Damaged, match=r"metadata\.db"):
        await SqliteMetadata.open(path)
    assert path.read_bytes() == b"something else entirely" * 1000


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    await (await SqliteMetadata.open(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(Unsupported, match="newer"):
        await SqliteMetadata.open(path)


async def test_after_closing_there_is_no_answer(tmp_path: Path) -> None:
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    await metadata.close()
    with pytest.raises((Unavailable, RuntimeError)):
        await metadata.get("a")


async def commit_often(metadata: SqliteMetadata) -> None:
    for _ in range(1000):
        await metadata.commit(Put("a", bytes(4096), None))


async def test_a_full_file_system_is_unavailable_until_it_has_space(tmp_path: Path) -> None:
    small = SmallFileSystem(tmp_path / "small", mebibytes=2)
    try:
        metadata = await SqliteMetadata.open(small.path / "metadata.db")
        version = await metadata.commit(Put("a", b"1", 0))
        small.fill()
        with pytest.raises(MetadataUnavailable, match="full"):
            await commit_often(metadata)  # what the files have room for is used first
        kept = await metadata.get("a")
        assert kept is not None
        small.free()
        assert await metadata.commit(Put("a", b"2", kept.version)) > version
        await metadata.close()
    finally:
        small.remove()


async def test_a_lock_of_another_process_is_unavailable_until_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementation, "BUSY_SECONDS", 0.05)
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    version = await metadata.commit(Put("a", b"1", 0))
    other = sqlite3.connect(tmp_path / "metadata.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(MetadataUnavailable, match="locked"):
        await metadata.commit(Put("a", b"2", version))
    assert await metadata.get("a") == ("a", b"1", version), "it can be read meanwhile"
    other.execute("ROLLBACK")
    await metadata.commit(Put("a", b"2", version))
    other.close()
    await metadata.close()


async def test_a_commit_that_fails_in_the_end_leaves_no_transaction_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that does not end makes COMMIT fail where there is no WAL, as on a file system without shared memory."""
    monkeypatch.setattr(implementation, "BUSY_SECONDS", 0.05)
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    await metadata._run(lambda: metadata._sql.execute("PRAGMA journal_mode = DELETE").fetchall())
    version = await metadata.commit(Put("a", b"1", 0))
    reader = sqlite3.connect(tmp_path / "metadata.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM entries").fetchall()
    for _ in range(2):
        with pytest.raises(MetadataUnavailable, match="locked"):
            await metadata.commit(Put("a", b"2", version))
    reader.execute("ROLLBACK")
    reader.close()
    await metadata.commit(Put("a", b"2", version))
    await metadata.close()
