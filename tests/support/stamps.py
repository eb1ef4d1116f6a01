"""Blocks of an export that are filled with one number each, written and read back."""

from support.daemon import MIB
from support.nbd import Connection

BLOCK = 4096
Held = dict[int, int]  # the stamp of each block that is not empty


async def put(uri: str, blocks: Held) -> None:
    connection = await Connection.connect(uri)
    for block, stamp in blocks.items():
        await connection.write(block * BLOCK, stamp.to_bytes(8, "little") * 512)
    await connection.close()


async def holding(uri: str) -> Held:
    """The stamp of every block that is not empty."""
    connection = await Connection.connect(uri)
    found = {}
    for at in range(0, connection.size, MIB):
        data = await connection.read(at, MIB)
        for start in range(0, MIB, BLOCK):
            stamp = int.from_bytes(data[start : start + 8], "little")
            assert data[start : start + BLOCK] == stamp.to_bytes(8, "little") * 512, (
                f"block {(at + start) // BLOCK} is torn"
            )
            if stamp:
                found[(at + start) // BLOCK] = stamp
    await connection.close()
    return found
