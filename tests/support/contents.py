"""The contents of a whole export: one repeated text, written and read back."""

import asyncio

from support.daemon import MIB
from support.nbd import Connection


async def fill(uri: str, text: bytes) -> None:
    """The length of `text` divides a MiB."""
    connection = await Connection.connect(uri)
    await asyncio.gather(*(connection.write(at, text * (MIB // len(text))) for at in range(0, connection.size, MIB)))
    await connection.close()


async def everything(uri: str) -> bytes:
    connection = await Connection.connect(uri)
    read = await asyncio.gather(*(connection.read(at, MIB) for at in range(0, connection.size, MIB)))
    await connection.close()
    return b"".join(read)
