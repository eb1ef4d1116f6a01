"""Of several connections of one reactor of another node, the newest is served, once the older ones are over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from iomesh.errors import InUse
from iomesh.node.config import PeersConfig, parse_address
from iomesh.node.peers.server import PeerServer, PeerSockets
from iomesh.node.supervisor import Supervisor
from iomesh.peers.handshake import Identity, connect
from support.fake_engine import FakeEngine

CLUSTER, KEY = b"cluster-of-tests", b"k" * 32
HANG_SECONDS = 120.0
ON_ANY_PORT = PeersConfig(listen="127.0.0.1:0", key_file="unused")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(reactors=2)


@pytest.fixture
async def address(engine: FakeEngine) -> AsyncIterator[str]:
    """Of a node called "holder", which serves."""
    sockets, supervisor = PeerSockets(ON_ANY_PORT), Supervisor()
    await sockets.bind()
    server = PeerServer(
        engine.as_engine(),
        Identity(CLUSTER, "holder", KEY),
        sockets,
        supervisor,
        knows=lambda node: True,
        serves=lambda volume: False,
    )
    server.start()
    yield sockets.address
    stopping = asyncio.create_task(server.stop())
    await until(
        lambda: all(each.connection in engine.asked_to_end or each.connection.ended.done() for each in engine.served)
    )
    for each in engine.served:
        if not each.connection.ended.done():
            engine.end(each, "stopped")
    await stopping
    assert not supervisor.failed_jobs
    await supervisor.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def client(address: str, *, node: str = "owner", reactor: int = 0, server_reactor: int = 0) -> socket.socket:
    connection = socket.create_connection(parse_address(address, "address"))
    connection.setblocking(False)
    me = Identity(CLUSTER, node, KEY)
    agreement = await connect(
        connection, me, server="holder", reactor=reactor, server_reactor=server_reactor, seconds=HANG_SECONDS
    )
    made = socket.socket(fileno=agreement.fd)
    made.setblocking(False)
    return made


async def closed(connection: socket.socket) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
    connection.close()


async def test_a_new_connection_waits_until_the_old_one_is_over(engine: FakeEngine, address: str) -> None:
    with await client(address), await client(address, server_reactor=1):
        await until(lambda: len(engine.asked_to_end) == 1)
        (old,) = engine.served
        assert engine.asked_to_end == [old.connection]
        await asyncio.sleep(0.1)
        assert engine.served == [old], "requests of the old one may be under way"
        engine.end(old)
        await until(lambda: len(engine.served) == 2)
        assert engine.served[1].reactor == 1


async def test_of_those_that_wait_only_the_newest_is_served(engine: FakeEngine, address: str) -> None:
    with await client(address):
        await until(lambda: len(engine.served) == 1)
        second = await client(address)
        third = await client(address)
        with await client(address):
            await asyncio.sleep(0.1)
            engine.end(engine.served[0])
            await closed(second)
            await closed(third)
            await until(lambda: len(engine.served) == 2)


async def test_connections_of_other_reactors_and_nodes_do_not_matter(engine: FakeEngine, address: str) -> None:
    with (
        await client(address),
        await client(address, reactor=1),
        await client(address, node="another"),
    ):
        await until(lambda: len(engine.served) == 3)
        assert engine.asked_to_end == []


async def test_a_reactor_that_there_is_not_is_served_by_another(engine: FakeEngine, address: str) -> None:
    with await client(address, server_reactor=5):
        await until(lambda: len(engine.served) == 1)
        assert engine.served[0].reactor == 1


async def test_nobody_can_connect_before_the_node_listens() -> None:
    sockets = PeerSockets(ON_ANY_PORT)
    await sockets.bind()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(parse_address(sockets.address, "address"))
    other = PeerSockets(PeersConfig(listen=sockets.address, key_file="unused"))
    await other.bind()  # Linux lets two processes bind one port while none of them listens
    sockets.listen()
    with pytest.raises(InUse, match=r"peers\.listen: 127\.0\.0\.1:\d+: another process listens there"):
        other.listen()
    sockets.close()
    other.close()
