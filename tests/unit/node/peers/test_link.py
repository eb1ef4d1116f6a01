"""The connection to another node follows that node's record, and is made again when it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from iomesh.metadata.nodes import NodeRecord
from iomesh.node.peers.link import Link
from iomesh.node.supervisor import Supervisor
from iomesh.peers.handshake import Credits, Identity, PeerAgreement, accept
from support.fake_engine import FakeEngine

CLUSTER, KEY = b"cluster-of-tests", b"k" * 32
HANG_SECONDS = 120.0
ME = Identity(CLUSTER, "owner", KEY)


def record(address: str, *, reactors: int = 1) -> NodeRecord:
    return NodeRecord(
        name="holder",
        incarnation=uuid.uuid4(),
        state=uuid.uuid4(),
        boot=uuid.uuid4(),
        process=1,
        process_namespace=1,
        process_started=1,
        host="host",
        state_dir="/state",
        started_ns=1,
        peer_address=address,
        reactors=reactors,
    )


class Holder:
    """What answers at an address, and does not go beyond the handshake."""

    def __init__(self, name: str = "holder") -> None:
        self._me = Identity(CLUSTER, name, KEY)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    async def connection(self) -> PeerAgreement:
        async with asyncio.timeout(HANG_SECONDS):
            connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            agreement = await accept(connection, self._me, knows=lambda node: True, credits=Credits(64, 8 << 20))
        os.close(agreement.fd)
        return agreement

    def close(self) -> None:
        self._listener.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def kept(engine: FakeEngine, link: Link) -> AsyncIterator[asyncio.Task[None]]:
    supervisor = Supervisor()
    task = supervisor.start("connect to nodes", link.keep, until_done=True)
    yield task.handle
    assert supervisor.tasks()["connect to nodes"] == (True, 0, ""), "the task never failed"
    await supervisor.close()
    for each in engine.attached:
        if not each.ended.done():
            engine.end(each)


async def test_it_reaches_its_share_of_the_other_nodes_reactors() -> None:
    engine, holder = FakeEngine(), Holder()
    async with kept(engine, Link(engine.as_engine(), ME, record(holder.address, reactors=2), 5)):
        agreement = await holder.connection()
        assert (agreement.node, agreement.reactor, agreement.server_reactor) == ("owner", 5, 1)
        await until(lambda: len(engine.attached) == 1)
        assert engine.attached[0][:2] == ("holder", 5)
    holder.close()


async def test_it_connects_again_when_the_connection_ends_and_says_why() -> None:
    engine, holder = FakeEngine(), Holder()
    link = Link(engine.as_engine(), ME, record(holder.address), 0)
    async with kept(engine, link):
        for number in range(3):
            await holder.connection()
            await until(lambda expected=number + 1: len(engine.attached) == expected)  # type: ignore[misc]
            assert link.reason == ""
            engine.end(engine.attached[-1], "silent")
            await until(lambda: bool(link.reason))
            assert link.reason == "the connection was lost: the other node did not answer for 2 seconds"
    holder.close()


async def test_a_new_process_of_the_node_replaces_the_connection_to_the_old_one() -> None:
    engine, old, new = FakeEngine(), Holder(), Holder()
    link = Link(engine.as_engine(), ME, record(old.address), 0)
    async with kept(engine, link):
        await old.connection()
        await until(lambda: len(engine.attached) == 1)
        link.update(record(new.address))
        assert engine.detached == [("holder", 0)]
        engine.end(engine.attached[0], "detached")
        await new.connection()
        await until(lambda: len(engine.attached) == 2)
    old.close()
    new.close()


async def test_a_record_that_is_renewed_by_the_same_process_changes_nothing() -> None:
    engine, holder = FakeEngine(), Holder()
    first = record(holder.address)
    link = Link(engine.as_engine(), ME, first, 0)
    async with kept(engine, link):
        await holder.connection()
        await until(lambda: len(engine.attached) == 1)
        link.update(None)
        link.update(msgspec.structs.replace(first, host="renamed"))
        assert engine.detached == []
    holder.close()


async def test_a_pause_ends_when_the_record_changes() -> None:
    engine, holder = FakeEngine(), Holder()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        link = Link(engine.as_engine(), ME, record(f"127.0.0.1:{nobody.getsockname()[1]}"), 0)
        async with kept(engine, link):
            await until(lambda: "Connection refused" in link.reason)
            link.update(record(holder.address))
            await holder.connection()
            await until(lambda: link.reason == "" and len(engine.attached) == 1)
    holder.close()


async def test_a_node_that_is_forgotten_is_not_dialled_and_keeps_its_connection() -> None:
    engine, holder = FakeEngine(), Holder()
    link = Link(engine.as_engine(), ME, record(holder.address), 0)
    async with kept(engine, link) as task:
        await holder.connection()
        await until(lambda: len(engine.attached) == 1)
        link.update(None)
        await asyncio.sleep(0.1)
        assert engine.detached == [] and not task.done()
        engine.end(engine.attached[0])
        async with asyncio.timeout(HANG_SECONDS):
            await task
    holder.close()


async def test_another_node_at_the_address_is_named() -> None:
    engine, stranger = FakeEngine(), Holder("stranger")
    link = Link(engine.as_engine(), ME, record(stranger.address), 0)

    async def answer() -> None:
        while True:
            try:
                await stranger.connection()
            except Exception:
                continue

    answering = asyncio.create_task(answer())
    async with kept(engine, link):
        await until(lambda: "node stranger answers at the address of node holder: correct the address" in link.reason)
    answering.cancel()
    stranger.close()
