"""The NBD server's sockets: who may connect, who is disconnected, and the state of a connection that an export gets."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from iomesh.exports import nbd
from iomesh.exports.nbd import NbdServer


class Volume:
    """An export that keeps what it is given."""

    def __init__(self, name: str = "books", *, read_only: bool = False, volatile_cache: bool = False) -> None:
        self.name = name
        self.size_bytes = 1 << 30
        self.read_only = read_only
        self.volatile_cache = volatile_cache
        self.comparable: tuple[str, ...] = ()
        self.attached: asyncio.Queue[tuple[socket.socket, bool, int | None]] = asyncio.Queue()

    async def attach(self, fd: int, *, structured: bool, context_id: int | None, since: str | None) -> None:
        assert os.get_blocking(fd), "the engine waits for a socket in the kernel, not by being told to try again"
        await self.attached.put((socket.socket(fileno=fd), structured, context_id))


class BrokenVolume(Volume):
    async def attach(self, fd: int, *, structured: bool, context_id: int | None, since: str | None) -> None:
        os.close(fd)
        raise RuntimeError("no engine today")


@pytest.fixture
async def server() -> AsyncIterator[NbdServer]:
    made = NbdServer()
    yield made
    await made.close()


async def connect(path: Path | str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, str(path))
    return client


async def receive(client: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        arrived = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, count - len(received)), 120)
        if not arrived:
            raise EOFError
        received += arrived
    return received


async def go(client: socket.socket, name: bytes = b"books", ahead: bytes = b"") -> tuple[int, int]:
    """A handshake; returns the size and the transmission flags."""
    await receive(client, 18)
    data = struct.pack(">I", len(name)) + name + b"\0\0"
    stream = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data + ahead
    await asyncio.get_running_loop().sock_sendall(client, stream)
    _, _, kind, length = struct.unpack(">QIII", await receive(client, 20))
    assert kind == 3
    size, flags = struct.unpack(">QH", (await receive(client, length))[2:])
    await receive(client, 20)
    return size, flags


async def test_a_connection_arrives_at_its_export_with_all_that_was_sent_ahead(
    server: NbdServer, tmp_path: Path
) -> None:
    volume = Volume()
    server.publish(volume)
    await server.listen_unix(str(tmp_path / "nbd"))
    with await connect(tmp_path / "nbd") as client:
        await go(client, ahead=b"the first request")
        theirs, structured, context = await asyncio.wait_for(volume.attached.get(), 120)
        with theirs:
            assert (structured, context) == (False, None)
            assert theirs.recv(100) == b"the first request"
            theirs.sendall(b"its answer")
            assert await receive(client, 10) == b"its answer"


async def test_over_tcp_too_and_at_once(server: NbdServer) -> None:
    volume = Volume()
    server.publish(volume)
    port = await server.listen_tcp("127.0.0.1", 0)
    client = socket.socket()
    client.setblocking(False)
    with client:
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        await go(client)
        theirs, _, _ = await asyncio.wait_for(volume.attached.get(), 120)
        with theirs:
            assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(
    ("volume", "present", "absent"),
    [
        (Volume(), 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 7),
        (Volume(volatile_cache=True), 1 << 2 | 1 << 3, 1 << 1),
        (Volume(read_only=True, volatile_cache=True), 1 << 1 | 1 << 8, 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 11),
    ],
    ids=["stable", "volatile", "read-only"],
)
async def test_flags_match_the_abilities_of_the_volume(
    server: NbdServer, tmp_path: Path, volume: Volume, present: int, absent: int
) -> None:
    server.publish(volume)
    await server.listen_unix(str(tmp_path / "nbd"))
    with await connect(tmp_path / "nbd") as client:
        size, flags = await go(client)
        assert size == 1 << 30
        assert flags & present == present
        assert flags & absent == 0
        (await asyncio.wait_for(volume.attached.get(), 120))[0].close()


async def test_a_withdrawn_export_is_not_found_and_its_connections_stay(server: NbdServer, tmp_path: Path) -> None:
    volume = Volume()
    server.publish(volume)
    with pytest.raises(ValueError, match="published already"):
        server.publish(volume)
    await server.listen_unix(str(tmp_path / "nbd"))
    with await connect(tmp_path / "nbd") as client:
        await go(client)
        theirs, _, _ = await asyncio.wait_for(volume.attached.get(), 120)
        server.withdraw("books")
        with theirs, await connect(tmp_path / "nbd") as late:
            with pytest.raises(AssertionError):
                await go(late)
            theirs.sendall(b"x")
            assert await receive(client, 1) == b"x"
        server.publish(volume)


async def test_a_handshake_has_a_timeout(server: NbdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "HANDSHAKE_SECONDS", 0.2)
    server.publish(Volume())
    await server.listen_unix(str(tmp_path / "nbd"))
    with await connect(tmp_path / "nbd") as silent:
        await receive(silent, 18)
        with pytest.raises(EOFError):
            await receive(silent, 1)


async def test_the_oldest_of_too_many_handshakes_is_ended(
    server: NbdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "HANDSHAKES_MAX", 8)
    volume = Volume()
    server.publish(volume)
    await server.listen_unix(str(tmp_path / "nbd"))
    silent = []
    for _ in range(8):
        silent.append(await connect(tmp_path / "nbd"))
        await receive(silent[-1], 18)
    with await connect(tmp_path / "nbd") as client:
        await go(client)
        (await asyncio.wait_for(volume.attached.get(), 120))[0].close()
    with pytest.raises(EOFError):
        await receive(silent[0], 1)
    for one in silent[1:]:
        with pytest.raises(BlockingIOError):
            one.recv(1)
    for one in silent:
        one.close()


async def test_connections_that_are_not_nbd_do_not_disturb_others(server: NbdServer, tmp_path: Path) -> None:
    volume = Volume()
    server.publish(volume)
    await server.listen_unix(str(tmp_path / "nbd"))
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), struct.pack(">I", 3) + b"IHAVEOPT" + b"\xff" * 8):
        with await connect(tmp_path / "nbd") as client:
            await asyncio.get_running_loop().sock_sendall(client, garbage)
    with await connect(tmp_path / "nbd") as client:
        await go(client)
        (await asyncio.wait_for(volume.attached.get(), 120))[0].close()


async def test_an_export_that_cannot_serve_costs_its_client_only(server: NbdServer, tmp_path: Path) -> None:
    server.publish(BrokenVolume())
    volume = Volume("others")
    server.publish(volume)
    await server.listen_unix(str(tmp_path / "nbd"))
    with await connect(tmp_path / "nbd") as client:
        await go(client)
        with pytest.raises(EOFError):
            await receive(client, 1)
    with await connect(tmp_path / "nbd") as client:
        await go(client, b"others")
        (await asyncio.wait_for(volume.attached.get(), 120))[0].close()


async def test_closing_ends_handshakes_and_listening(tmp_path: Path) -> None:
    server = NbdServer()
    server.publish(Volume())
    await server.listen_unix(str(tmp_path / "nbd"))
    with await connect(tmp_path / "nbd") as client:
        await receive(client, 18)
        await server.close()
        with pytest.raises(EOFError):
            await receive(client, 1)
    with pytest.raises(ConnectionRefusedError):
        await connect(tmp_path / "nbd")


async def test_a_path_in_use_is_named(server: NbdServer, tmp_path: Path) -> None:
    (tmp_path / "nbd").write_text("something")
    with pytest.raises(OSError, match="in use"):
        await server.listen_unix(str(tmp_path / "nbd"))
