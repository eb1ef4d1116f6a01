"""Requests that ordinary clients do not send: overlapping in flight, reads against writes, errors, odd trims, cut
connections."""

import asyncio
import errno
import os
import random

import pytest

from support.model import BLOCK
from support.nbd import CACHE, FLAG_FUA, FLAG_NO_HOLE, READ, TRIM, WRITE, Connection, NbdError

MIB = 1 << 20


async def refused(
    connection: Connection, kind: int, offset: int, length: int, flags: int = 0, data: bytes = b""
) -> int:
    """The error that a request is answered with."""
    with pytest.raises(NbdError) as caught:
        await connection.request(kind, offset, length, flags, data)
    return caught.value.errno or 0


@pytest.mark.parametrize("structured", [False, True])
async def test_overlapping_writes_in_flight_leave_no_block_of_both(
    volume: str, draw: random.Random, structured: bool
) -> None:
    connection = await Connection.connect(volume, structured=structured)
    for _ in range(20):
        patterns = [(draw.randrange(64) * BLOCK, draw.randint(1, 32) * BLOCK, 1 + number) for number in range(40)]
        await asyncio.gather(*(connection.write(offset, bytes([mark]) * length) for offset, length, mark in patterns))
        data = await connection.read(0, 96 * BLOCK)
        for block in range(96):
            piece = data[block * BLOCK : (block + 1) * BLOCK]
            writers = {mark for offset, length, mark in patterns if offset <= block * BLOCK < offset + length}
            if writers:
                assert len(set(piece)) == 1, f"block {block} holds bytes of several writes"
                assert piece[0] in writers, f"block {block} holds {piece[0]}, written by none of {writers}"
    await connection.close()


async def test_a_read_sees_each_block_before_or_after_a_write(volume: str) -> None:
    writer, reader = await Connection.connect(volume), await Connection.connect(volume, structured=True)
    await writer.write(0, bytes([1]) * MIB)
    for mark in range(2, 60):
        write = asyncio.ensure_future(writer.write(0, bytes([mark]) * MIB))
        while not write.done():
            data = await reader.read(0, MIB)
            for block in range(0, MIB, BLOCK):
                assert data[block : block + BLOCK] in (bytes([mark - 1]) * BLOCK, bytes([mark]) * BLOCK), (
                    f"block {block // BLOCK} is torn"
                )
        await write
    await writer.close()
    await reader.close()


async def test_what_one_connection_wrote_another_reads(volume: str, draw: random.Random) -> None:
    connections = [await Connection.connect(volume, structured=bool(number % 2)) for number in range(4)]
    assert all(connection.flags & 1 << 8 for connection in connections), (
        "the export does not say that it can be used by several connections"
    )
    for _ in range(200):
        offset, data = draw.randrange(16 * MIB), os.urandom(draw.randint(1, 20000))
        await draw.choice(connections).write(offset, data)
        assert await draw.choice(connections).read(offset, len(data)) == data
    for connection in connections:
        await connection.close()


async def test_requests_outside_the_volume_are_refused_and_the_connection_stays(volume: str) -> None:
    connection = await Connection.connect(volume)
    assert await refused(connection, READ, connection.size, 512) in (errno.EINVAL, errno.ENOSPC)
    assert await refused(connection, READ, connection.size - 512, 1024) in (errno.EINVAL, errno.ENOSPC)
    assert await refused(connection, WRITE, connection.size - 512, 1024, 0, bytes(1024)) in (errno.EINVAL, errno.ENOSPC)
    assert await refused(connection, TRIM, connection.size, 4096) in (errno.EINVAL, errno.ENOSPC)
    assert await refused(connection, 77, 0, 4096) == errno.EINVAL
    assert await refused(connection, READ, (1 << 64) - 4096, 8192) in (errno.EINVAL, errno.ENOSPC)
    await connection.write(connection.size - 512, b"x" * 512)
    assert await connection.read(connection.size - 512, 512) == b"x" * 512
    await connection.close()


async def test_a_trim_never_touches_its_neighbours(volume: str, draw: random.Random) -> None:
    connection = await Connection.connect(volume, block_status=True)
    for _ in range(50):
        await connection.write(0, b"\7" * 64 * BLOCK)
        offset, length = draw.randrange(0, 30 * BLOCK), draw.randint(1, 30 * BLOCK)
        await connection.trim(offset, length)
        data = await connection.read(0, 64 * BLOCK)
        assert data[:offset] == b"\7" * offset, "bytes before the trim are gone"
        assert data[offset + length :] == b"\7" * (64 * BLOCK - offset - length), "bytes behind the trim are gone"
        first, last = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
        assert not any(data[first:last]), "whole blocks that were trimmed are not zeros"
    await connection.close()


async def test_zeroes_without_a_hole_stay_allocated_or_read_as_zeros(volume: str) -> None:
    connection = await Connection.connect(volume, block_status=True)
    await connection.write(0, b"\7" * MIB)
    await connection.zero(0, MIB // 2, flags=FLAG_NO_HOLE)
    assert not any(await connection.read(0, MIB // 2))
    assert await connection.read(MIB // 2, MIB // 2) == b"\7" * (MIB // 2)
    for length, state in await connection.status(0, MIB // 2):
        assert length > 0
        assert state in (0, 2, 3)
    await connection.close()


async def test_block_status_covers_the_volume_without_overlap(volume: str) -> None:
    connection = await Connection.connect(volume, block_status=True)
    for offset in range(0, 8 * MIB, 3 * BLOCK):
        await connection.write(offset, b"x" * BLOCK)
    seen, data = 0, 0
    while seen < connection.size:
        for length, state in await connection.status(seen, connection.size - seen):
            assert length > 0, "an extent of no length"
            seen += length
            data += 0 if state & 1 else length
    assert seen == connection.size
    assert data == -(-8 * MIB // (3 * BLOCK)) * BLOCK
    await connection.close()


async def test_flags_and_cache_are_answered(volume: str) -> None:
    connection = await Connection.connect(volume)
    await connection.write(0, b"y" * 10000, flags=FLAG_FUA)
    await connection.zero(5000, 1000, flags=FLAG_FUA)
    await connection.flush()
    await connection.request(CACHE, 0, MIB)
    assert await connection.read(0, 10000) == b"y" * 5000 + bytes(1000) + b"y" * 4000
    await connection.close()


async def test_a_client_that_vanishes_mid_request_disturbs_no_one(volume: str) -> None:
    steady = await Connection.connect(volume)
    await steady.write(0, b"z" * MIB)
    for _ in range(20):
        gone = await Connection.connect(volume)
        requests = [gone.request(WRITE, (8 + number) * MIB, MIB, 0, b"g" * MIB) for number in range(4)] + [
            gone.request(READ, 0, MIB)
        ]
        gone._writer.transport.abort()
        await asyncio.gather(*requests, return_exceptions=True)
        assert await steady.read(0, MIB) == b"z" * MIB
    await steady.close()
