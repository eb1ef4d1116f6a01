"""A load on a volume that records every operation: many in flight over several connections, of every kind, size and
alignment.

Each worker has its own random generator, so a seed repeats each worker's requests; their interleaving is not repeated.
"""

import asyncio
import random
from dataclasses import dataclass, field

from support.model import BLOCK, Model, Operation
from support.nbd import FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, Connection, NbdError

_LARGEST = 1 << 20


@dataclass
class Counts:
    acknowledged: int = 0
    bytes_written: int = 0
    read: int = 0
    errors: dict[int, int] = field(default_factory=dict)  # by errno

    def note(self, error: int) -> None:
        self.errors[error] = self.errors.get(error, 0) + 1


class Load:
    """Runs until it is stopped, the connections end, or an answer is wrong."""

    def __init__(
        self,
        uri: str,
        model: Model,
        seed: int,
        *,
        connections: int = 3,
        depth: int = 16,
        tolerate: frozenset[int] = frozenset(),
        enough: int = 1 << 62,
    ) -> None:
        self.counts = Counts()
        self._uri, self._model, self._seed = uri, model, seed
        self._connections, self._depth = connections, depth
        self._tolerate = tolerate  # errnos that the test expects from the server
        self._enough = enough  # stop after this many bytes written
        self._stopping = False
        self._end_expected = False

    async def run(self) -> None:
        """Returns after stop(), or when the server ended as expected; raises the first fault that a worker found."""
        try:
            connections = [await self._connect(number) for number in range(self._connections)]
        except (OSError, EOFError):
            if self._end_expected:
                return
            raise
        ends = await asyncio.gather(
            *(
                self._work(connection, random.Random(f"{self._seed}/{number}/{slot}"))
                for number, connection in enumerate(connections)
                for slot in range(self._depth)
            ),
            return_exceptions=True,
        )
        for connection in connections:
            await connection.close()
        for error in ends:
            if error is not None:
                raise error

    def stop(self) -> None:
        """Sends no more requests; requests in flight are still awaited."""
        self._stopping = True

    @property
    def model(self) -> Model:
        return self._model

    @property
    def ended(self) -> bool:
        """No more requests are sent: it was stopped, has written enough, or has found a fault."""
        return self._stopping

    def expect_end(self) -> None:
        """The server is about to be killed: connections may end from now on."""
        self._end_expected = True

    async def _connect(self, number: int) -> Connection:
        return await Connection.connect(self._uri, structured=bool(number % 2))

    async def _work(self, connection: Connection, draw: random.Random) -> None:
        try:
            while not self._stopping and self.counts.bytes_written < self._enough:
                kind = draw.choices(("write", "read", "flush", "trim", "zero"), (62, 18, 5, 7, 8))[0]
                if kind == "flush":
                    await self._flush(connection)
                elif kind == "read":
                    await self._read(connection, *self._range(draw, kind))
                else:
                    await self._change(connection, draw, kind)
        except ConnectionError as error:
            if not self._end_expected:
                raise AssertionError(f"a connection ended while the server was alive: {error}") from None
        finally:
            self._stopping = True

    async def _flush(self, connection: Connection) -> None:
        try:
            await connection.flush()
        except NbdError as error:
            self._tolerated(error, "a flush")

    async def _change(self, connection: Connection, draw: random.Random, kind: str) -> None:
        operation = self._model.begin(kind, *self._range(draw, kind))
        flags = FLAG_FUA if draw.random() < 0.15 else 0
        if kind == "zero":
            flags |= draw.choice((0, FLAG_NO_HOLE, FLAG_FAST_ZERO if connection.flags & 1 << 11 else 0))
        if operation is None:
            await asyncio.sleep(0)
            return
        try:
            await self._send(connection, operation, flags)
        except NbdError as error:  # stays open in the model, old or new: settle_with() decides
            self._tolerated(error, str(operation))
            await asyncio.sleep(0.01)
            return
        self._model.acknowledge(operation)
        self.counts.acknowledged += 1
        self.counts.bytes_written += operation.length if kind == "write" else 0

    async def _send(self, connection: Connection, operation: Operation, flags: int) -> None:
        if operation.kind == "write":
            await connection.write(operation.offset, operation.data(), flags=flags)
        elif operation.kind == "zero":
            await connection.zero(operation.offset, operation.length, flags=flags)
        else:
            await connection.trim(operation.offset, operation.length, flags=flags)

    async def _read(self, connection: Connection, offset: int, length: int) -> None:
        if not self._model.claim(offset, length):
            await asyncio.sleep(0)
            return
        try:
            self._model.check(offset, await connection.read(offset, length))
            self.counts.read += 1
        except NbdError as error:
            self._tolerated(error, f"a read of {length} bytes at {offset}")
        finally:
            self._model.release(offset, length)

    def _tolerated(self, error: NbdError, what: str) -> None:
        number = error.errno or 0
        if number not in self._tolerate:
            raise AssertionError(f"{what} was answered with {error}") from None
        self.counts.note(number)

    def _range(self, draw: random.Random, kind: str) -> tuple[int, int]:
        """Most ranges are one block, some many, some unaligned; a quarter is in a small hot region. Trims are whole
        blocks, because NBD does not define what happens at a trim's edges.
        """
        size = self._model.size
        space = size // 64 if draw.random() < 0.25 else size
        shape = draw.random()
        if kind == "trim":
            length, align = draw.randint(1, 256) * BLOCK, BLOCK
        elif shape < 0.5:
            length, align = BLOCK, BLOCK
        elif shape < 0.72:
            length, align = draw.randint(1, 32) * BLOCK, BLOCK
        elif shape < 0.85:
            length, align = draw.randint(1, 64) * 512, 512
        elif shape < 0.97:
            length, align = draw.randint(1, 3 * BLOCK), 1
        else:
            length, align = draw.randint(1, _LARGEST), 1
        offset = draw.randrange(0, max(space, align), align)
        return offset, min(length, size - offset)


def read_volume(uri: str, size: int) -> bytearray:
    """Reads the whole volume over one connection, several requests at a time."""
    into = bytearray(size)
    asyncio.run(_read_into(uri, into))  # returns no data: asyncio.run formats its result as text
    return into


async def _read_into(uri: str, into: bytearray) -> None:
    connection = await Connection.connect(uri)
    assert connection.size == len(into), f"the export is {connection.size} bytes long, not {len(into)}"

    async def piece(offset: int) -> None:
        data = await connection.read(offset, min(_LARGEST, len(into) - offset))
        into[offset : offset + len(data)] = data

    for start in range(0, len(into), 8 * _LARGEST):
        await asyncio.gather(
            *(piece(offset) for offset in range(start, min(len(into), start + 8 * _LARGEST), _LARGEST))
        )
    await connection.close()
