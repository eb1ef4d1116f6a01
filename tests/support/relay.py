"""`python -m support.relay LISTEN TARGET`: connections to one address go on to another one. An address is the path of a
unix socket, or host:port. So a guest reaches unix sockets of this machine, at the same paths."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def serve(listen: str, target: str) -> asyncio.Server:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            further = await _connect(target)
        except OSError:
            writer.close()
            return
        done = [asyncio.create_task(_copy(reader, further[1])), asyncio.create_task(_copy(further[0], writer))]
        await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, further[1]):
            each.close()

    if not listen.startswith("/"):
        host, _, port = listen.partition(":")
        return await asyncio.start_server(relay, host, int(port))
    Path(listen).parent.mkdir(parents=True, exist_ok=True)
    return await asyncio.start_unix_server(relay, listen)


async def _connect(target: str) -> Streams:
    if target.startswith("/"):
        return await asyncio.open_unix_connection(target)
    host, _, port = target.partition(":")
    return await asyncio.open_connection(host, int(port))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        return


async def main(listen: str, target: str) -> None:
    await (await serve(listen, target)).serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
