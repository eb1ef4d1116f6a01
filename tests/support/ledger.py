"""Database clients that record each acknowledged commit outside the database. The database must have every commit in
the ledger.

Client c commits transactions 1, 2, 3, ...; transaction n inserts the row (c, n, text) and adds n to the client's total.
Afterwards the client's rows are 1..m without a gap, m is the last recorded number or one more (its answer was in
flight), the texts match, and the total is the sum: so half a transaction is detected as well as a missing one.
"""

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

TABLES = (
    "CREATE TABLE entries (client int, number bigint, text text, PRIMARY KEY (client, number))",
    "CREATE INDEX entries_text ON entries (text)",
    "CREATE TABLE totals (client int PRIMARY KEY, total numeric NOT NULL)",
)


def text_of(client: int, number: int) -> str:
    """32 to 3232 characters, determined by client and number."""
    digest = hashlib.sha256(f"{client}/{number}".encode()).hexdigest()
    return digest[:32] * (1 + int(digest[:2], 16) % 101)


@dataclass
class Ledger:
    sockets: Path
    clients: int
    committed: dict[int, int] = field(default_factory=dict)  # by client: the last acknowledged number

    async def make(self) -> None:
        connection = await self._connect()
        for statement in TABLES:
            await connection.execute(statement)
        await connection.executemany("INSERT INTO totals VALUES ($1, 0)", [(client,) for client in range(self.clients)])
        await connection.close()
        self.committed = dict.fromkeys(range(self.clients), 0)

    async def run(self, ended: asyncio.Event) -> None:
        """Commits until the server ends (then `ended` must be set within 10 seconds)."""
        await asyncio.gather(*(self._commit(client) for client in range(self.clients)))
        await asyncio.wait_for(ended.wait(), 10)

    async def verify(self) -> None:
        """Compares the database with the ledger, then adopts its state: a commit whose answer was in flight counts from
        now on.
        """
        connection = await self._connect()
        for client, noted in self.committed.items():
            rows = await connection.fetch("SELECT number, text FROM entries WHERE client = $1 ORDER BY number", client)
            numbers = [int(row["number"]) for row in rows]
            assert numbers == list(range(1, len(numbers) + 1)), (
                f"client {client}: transactions are missing in the middle"
            )
            assert noted <= len(numbers) <= noted + 1, (
                f"client {client}: {noted} commits were acknowledged, the database has {len(numbers)}"
            )
            wrong = [row["number"] for row in rows if row["text"] != text_of(client, row["number"])]
            assert not wrong, f"client {client}: the rows {wrong[:5]} hold something else than was written"
            total = await connection.fetchval("SELECT total FROM totals WHERE client = $1", client)
            assert total == sum(numbers), f"client {client}: its total is {total}, its rows add up to {sum(numbers)}"
            self.committed[client] = len(numbers)
        await connection.close()

    async def _commit(self, client: int) -> None:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncio.TimeoutError):
            connection = await self._connect()
            try:
                while True:
                    number = self.committed[client] + 1
                    async with connection.transaction():
                        await connection.execute(
                            "INSERT INTO entries VALUES ($1, $2, $3)", client, number, text_of(client, number)
                        )
                        await connection.execute(
                            "UPDATE totals SET total = total + $2 WHERE client = $1", client, number
                        )
                    self.committed[client] = number
            finally:
                connection.terminate()

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=str(self.sockets), user="postgres", database="postgres", timeout=30, statement_cache_size=20
        )
