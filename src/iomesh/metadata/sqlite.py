"""Metadata in one SQLite file: for one machine, any number of processes. The default of a trial and of a single node.

- A commit is on stable media when it has been answered (WAL, synchronous=FULL).
- Every change is also a row of `changes`, from which watches read; the newest CHANGES_KEPT are kept. Commits of other
  processes wake the watches through a thread (sqlite_commits.py), which the first watch starts.
- A lock that is not acquired within BUSY_SECONDS, a full file system and an I/O error are MetadataUnavailable: whether
  the commit took place is unknown, since a COMMIT that fails may have been written. The transaction is ended in any
  case, whatever SQLite has done about it.
- A lease ends by the clock that counts since boot, so setting the time has no effect; leases of an earlier boot have
  expired. The first commit or read after its end removes the entries under it.
- SQLite is called in threads of its own: nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from iomesh.errors import Conflict, Damaged, NotFound, PermissionDenied, Unavailable, Unsupported
from iomesh.metadata.protocol import (
    Change,
    Entry,
    HistoryLost,
    Listing,
    MetadataUnavailable,
    Operation,
    Put,
    check_key,
    check_operation,
)
from iomesh.metadata.sqlite_commits import CommitLookout

SCHEMA_VERSION = 1
CHANGES_KEPT = 10_000
BUSY_SECONDS = 5.0  # another process holds the write lock for milliseconds; longer means that something is wrong
BUSY_PAUSE_SECONDS = 0.01

_SCHEMA = f"""
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, lease INTEGER) WITHOUT ROWID;
CREATE INDEX entries_of_lease ON entries (lease) WHERE lease IS NOT NULL;
CREATE TABLE changes (revision INTEGER, key TEXT, value BLOB, PRIMARY KEY (revision, key)) WITHOUT ROWID;
CREATE TABLE leases (
  id INTEGER PRIMARY KEY AUTOINCREMENT, seconds REAL NOT NULL, ends REAL NOT NULL, boot TEXT NOT NULL
);
CREATE TABLE revision (now INTEGER NOT NULL);
INSERT INTO revision VALUES (1);
PRAGMA user_version = {SCHEMA_VERSION};
"""

ResultT = TypeVar("ResultT")


class SqliteMetadata:
    """Use `await SqliteMetadata.open(path)`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metadata")
        self._committed = asyncio.Event()  # replaced by each commit: wakes the watches
        self._lookout: CommitLookout | None = None  # from the first watch on
        self._database: sqlite3.Connection | None = None
        self._usable = False  # opened and not closed: without a connection, the next call opens a new one

    @classmethod
    async def open(cls, path: Path) -> SqliteMetadata:
        """Opens the file, or creates it (its folder must exist)."""
        metadata = cls(path)
        try:
            await metadata._run(metadata._open)
        except BaseException:
            metadata._thread.submit(metadata._close)
            metadata._thread.shutdown(wait=False)
            raise
        return metadata

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        return await self._run(lambda: self._get(key))

    async def list_prefix(self, prefix: str) -> Listing:
        return await self._run(lambda: self._list(prefix))

    async def commit(self, operation: Operation) -> int:
        check_operation(operation)
        revision = await self._run(lambda: self._commit(operation))
        self._wake()
        return revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        self._look_out()
        while True:
            committed = self._committed
            changes, after = await self._run(lambda seen=after: self._changes(prefix, seen))  # type: ignore[misc]
            for change in changes:
                yield change
            await committed.wait()

    async def grant(self, seconds: float) -> int:
        return await self._run(lambda: self._grant(seconds))

    async def renew(self, lease: int) -> None:
        await self._run(lambda: self._renew(lease))

    async def revoke(self, lease: int) -> None:
        await self._run(lambda: self._revoke(lease))
        self._wake()

    async def close(self) -> None:
        if self._usable:
            await self._run(self._close)
        self._thread.shutdown(wait=True)

    def _look_out(self) -> None:
        if self._lookout is None and self._usable:
            loop = asyncio.get_running_loop()

            def wake() -> None:
                with suppress(RuntimeError):  # the event loop is closed: no watch waits
                    loop.call_soon_threadsafe(self._wake)

            self._lookout = CommitLookout(self.path, wake)
            self._lookout.start()

    def _wake(self) -> None:
        self._committed.set()
        self._committed = asyncio.Event()

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.OperationalError, MemoryError) as error:
            raise MetadataUnavailable(f"metadata {self.path}: {error or 'out of memory'}") from error
        except sqlite3.DatabaseError as error:
            raise Damaged(f"metadata {self.path}: {error}") from error

    # in the thread

    @property
    def _sql(self) -> sqlite3.Connection:
        if self._database is None and self._usable:
            self._connect()
        if self._database is None:
            raise Unavailable(f"metadata {self.path} is closed")
        return self._database

    def _open(self) -> None:
        if not self.path.parent.is_dir():
            raise NotFound(f"metadata {self.path}: its directory does not exist: create it")
        try:
            database = self._connect()
            with self._transaction():
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _SCHEMA.split(";\n"):
                        database.execute(statement)
        except sqlite3.OperationalError as error:
            if "unable to open" in str(error) or "readonly" in str(error):
                raise PermissionDenied(
                    f"metadata {self.path}: {error}; it and its directory must be writable"
                ) from error
            raise
        if version > SCHEMA_VERSION:
            self._close()
            raise Unsupported(
                f"metadata {self.path} was written by a newer version (schema {version}, this one knows "
                f"{SCHEMA_VERSION})"
            )
        self._usable = True

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            _use_wal(database)
            database.execute("PRAGMA synchronous = FULL")
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _close(self) -> None:
        self._usable = False
        if self._lookout is not None:
            self._lookout.stop()
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            self._end_transaction()
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """All reads inside show one point in time."""
        self._sql.execute("BEGIN")
        try:
            yield
        finally:
            self._end_transaction()

    def _end_transaction(self) -> None:
        """Rolls back what was not committed. SQLite itself ends a transaction after some errors and leaves it open
        after others, such as a COMMIT that finds a lock. A connection whose transaction cannot be ended is useless: the
        next call opens a new one."""
        database = self._sql
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error:
            database.close()
            self._database = None

    def _get(self, key: str) -> Entry | None:
        self._expire()
        row = self._sql.execute("SELECT key, value, version FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else Entry(*row)

    def _list(self, prefix: str) -> Listing:
        self._expire()
        with self._reading():
            rows = self._sql.execute(
                "SELECT key, value, version FROM entries WHERE key >= ? AND key < ? ORDER BY key", _range(prefix)
            )
            return Listing([Entry(*row) for row in rows], self._revision())

    def _commit(self, operation: Operation) -> int:
        with self._transaction():
            self._remove_expired()
            self._check_version(operation)
            revision = self._next_revision()
            if isinstance(operation, Put):
                self._put(operation, revision)
            else:
                self._remove(operation.key, revision)
            return revision

    def _check_version(self, operation: Operation) -> None:
        if operation.version is None:
            return
        row = self._sql.execute("SELECT version FROM entries WHERE key = ?", (operation.key,)).fetchone()
        found = row[0] if row else 0
        if found != operation.version:
            raise Conflict(f"{operation.key} has version {found}, not {operation.version}: it was changed concurrently")

    def _put(self, put: Put, revision: int) -> None:
        if (
            put.lease is not None
            and not self._sql.execute("SELECT 1 FROM leases WHERE id = ?", (put.lease,)).fetchone()
        ):
            raise NotFound(f"lease {put.lease} has expired")
        self._sql.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (put.key, put.value, revision, put.lease)
        )
        self._sql.execute("INSERT INTO changes VALUES (?, ?, ?)", (revision, put.key, put.value))

    def _remove(self, key: str, revision: int) -> None:
        if self._sql.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount:
            self._sql.execute("INSERT INTO changes VALUES (?, ?, NULL)", (revision, key))

    def _changes(self, prefix: str, after: int) -> tuple[list[Change], int]:
        self._expire()
        with self._reading():
            now = self._revision()
            if after < now - CHANGES_KEPT:
                raise HistoryLost(f"changes after revision {after} of {self.path} are not known any more")
            rows = self._sql.execute(
                "SELECT key, value, revision FROM changes WHERE revision > ? AND key >= ? AND key < ? "
                "ORDER BY revision, key",
                (after, *_range(prefix)),
            )
            return [Change(*row) for row in rows], max(now, after)

    def _revision(self) -> int:
        return int(self._sql.execute("SELECT now FROM revision").fetchone()[0])

    def _next_revision(self) -> int:
        self._sql.execute("UPDATE revision SET now = now + 1")
        revision = self._revision()
        self._sql.execute("DELETE FROM changes WHERE revision <= ?", (revision - CHANGES_KEPT,))
        return revision

    def _grant(self, seconds: float) -> int:
        with self._transaction():
            row = (seconds, _since_boot() + seconds, _boot())
            return int(
                self._sql.execute("INSERT INTO leases (seconds, ends, boot) VALUES (?, ?, ?)", row).lastrowid or 0
            )

    def _renew(self, lease: int) -> None:
        self._expire()
        # Needs no flush: a power cut can only undo a renewal, and it ends the boot, and with it the lease, anyway.
        self._sql.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction():
                if not self._sql.execute(
                    "UPDATE leases SET ends = ? + seconds WHERE id = ?", (_since_boot(), lease)
                ).rowcount:
                    raise NotFound(f"lease {lease} has expired")
        finally:
            self._sql.execute("PRAGMA synchronous = FULL")

    def _revoke(self, lease: int) -> None:
        with self._transaction():
            self._remove_leases([lease])

    def _expire(self) -> None:
        """Reads take the write lock only if there is something to remove."""
        if self._expired():
            with self._transaction():
                self._remove_expired()

    def _expired(self) -> list[int]:
        return [
            row[0]
            for row in self._sql.execute("SELECT id FROM leases WHERE ends <= ? OR boot != ?", (_since_boot(), _boot()))
        ]

    def _remove_expired(self) -> None:
        self._remove_leases(self._expired())

    def _remove_leases(self, leases: list[int]) -> None:
        for lease in leases:
            keys = [row[0] for row in self._sql.execute("SELECT key FROM entries WHERE lease = ?", (lease,))]
            if keys:
                revision = self._next_revision()
                for key in keys:
                    self._remove(key, revision)
            self._sql.execute("DELETE FROM leases WHERE id = ?", (lease,))


def _use_wal(database: sqlite3.Connection) -> None:
    """SQLite itself does not wait here for another process that opens the new file at the same time."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(BUSY_PAUSE_SECONDS)


def _range(prefix: str) -> tuple[str, str]:
    """The keys with this prefix are those from the first on and before the second. Keys are ASCII."""
    return prefix, prefix + "\x7f"


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
