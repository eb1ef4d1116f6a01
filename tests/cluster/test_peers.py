"""Daemons that share a metadata service connect to each other, in both directions, and stay connected."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iomesh.engine.format.peer import KINDS, make_frame, read_reply
from iomesh.errors import InUse, Unavailable
from iomesh.metadata import Delete, Put
from iomesh.metadata.nodes import NodeRecord, decode_node, node_key
from iomesh.peers.handshake import Identity, UnknownNode, connect
from support.clock import WallClock
from support.daemon import Daemon

KEY = bytes(range(32))
MIB = 1 << 20
FRAME_BYTES = 96
HANG_SECONDS = 120.0  # against hangs


def write_key(path: Path, key: bytes = KEY) -> Path:
    path.write_text(base64.b64encode(key).decode() + "\n")
    path.chmod(0o600)
    return path


def member(daemon: Daemon, name: str, *, reactors: int = 1, key: bytes = KEY, listen: str = "127.0.0.1:0") -> Daemon:
    """Another node of the daemon's cluster, on this machine."""
    directory = daemon.directory / name
    directory.mkdir()
    settings = {
        "metadata.path": f"{daemon.directory}/metadata.db",
        "peers.listen": listen,
        "peers.key_file": write_key(directory / "key", key),
        "engine.reactors": reactors,
    }
    return Daemon(directory, cluster=daemon.cluster, settings=settings, name=name)


@pytest.fixture
async def new_member(daemon: Daemon) -> AsyncIterator[Callable[..., Awaitable[Daemon]]]:
    """Makes nodes with one device each; not started."""
    made = []

    async def make(name: str, **options: Any) -> Daemon:
        node = member(daemon, name, **options)
        made.append(node)
        await node.format()
        return node

    yield make
    for node in made:
        if node.process is not None:
            node.kill()
        if node.log.exists():
            print(node.log.read_text())


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not await holds():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it never happened that {what}") from None


async def connected(node: Daemon) -> dict[tuple[str, int], float]:
    """1.0 for each other node and own reactor with a working connection."""
    found = {}
    for line in (await node.page("/metrics")).splitlines():
        if line.startswith("iomesh_peer_connected{"):
            labels, value = line.removeprefix("iomesh_peer_connected{").split("} ")
            named = dict(each.split("=") for each in labels.split(","))
            found[json.loads(named["node"]), int(json.loads(named["reactor"]))] = float(value)
    return found


async def until_connected(node: Daemon, *others: tuple[str, int]) -> None:
    async def holds() -> bool:
        return await connected(node) == dict.fromkeys(others, 1.0)

    await until(holds, f"{node.name} is connected to {others}")


async def warnings(node: Daemon) -> list[str]:
    async with node.client() as client:
        return (await client.status()).warnings


async def until_warned(node: Daemon, *words: str) -> None:
    async def holds() -> bool:
        return any(all(word in warning for word in words) for warning in await warnings(node))

    await until(holds, f"{node.name} warns of {words}")


async def record_of(node: Daemon) -> NodeRecord:
    async with node.metadata() as metadata:
        entry = await metadata.get(node_key(node.name))
        assert entry is not None
        return decode_node(entry)


# ---------------------------------------------------------------------- connected


async def test_nodes_of_a_cluster_connect_each_reactor_in_both_directions(
    new_member: Callable[..., Awaitable[Daemon]],
) -> None:
    one, two = await new_member("node-a", reactors=2), await new_member("node-b", reactors=1)
    one.start()
    assert await connected(one) == {}
    two.start()
    await until_connected(one, ("node-b", 0), ("node-b", 1))
    await until_connected(two, ("node-a", 0))
    assert await warnings(one) == await warnings(two) == []
    record = await record_of(one)
    assert record.reactors == 2
    assert record.peer_address.startswith("127.0.0.1:") and not record.peer_address.endswith(":0")
    assert {(line["node"], line["reactor"]) for line in two.logged("node connected")} == {("node-a", 0), ("node-a", 1)}
    assert two.stop() == 0
    assert one.stop() == 0
    assert not one.wrong() and not two.wrong()


async def test_a_node_that_is_killed_is_noticed_and_its_return_too(
    new_member: Callable[..., Awaitable[Daemon]],
) -> None:
    one, two = await new_member("node-a"), await new_member("node-b")
    one.start()
    two.start()
    await until_connected(one, ("node-b", 0))
    two.kill()
    await until_warned(one, "node node-b cannot be reached", "the other node closed it")
    await until_warned(one, "node node-b cannot be reached", os.strerror(111))
    assert await connected(one) == {("node-b", 0): 0.0}
    assert len(one.logged("connection to node lost")) == 1
    two.start()  # with another port
    await until_connected(one, ("node-b", 0))
    await until_connected(two, ("node-a", 0))
    assert await warnings(one) == []
    assert len(one.logged("connected to node")) == 2


async def test_a_node_that_hangs_is_noticed(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    one, two = await new_member("node-a"), await new_member("node-b")
    one.start()
    two.start()
    await until_connected(one, ("node-b", 0))
    assert two.process is not None
    two.process.send_signal(signal.SIGSTOP)
    try:
        await until_warned(one, "node node-b cannot be reached", "did not answer for 2 seconds")
    finally:
        two.process.send_signal(signal.SIGCONT)
    await until_connected(one, ("node-b", 0))
    await until_connected(two, ("node-a", 0))


async def test_a_node_that_has_stopped_is_forgotten(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    one, two = await new_member("node-a"), await new_member("node-b")
    one.start()
    two.start()
    await until_connected(one, ("node-b", 0))
    assert two.stop() == 0
    await until_connected(one)
    assert await warnings(one) == []
    two.start()
    await until_connected(one, ("node-b", 0))


async def test_a_connection_outlives_the_record_of_its_node(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    """As when the other node cannot renew its lease. Nothing else is dialled meanwhile."""
    one, two = await new_member("node-a"), await new_member("node-b")
    one.start()
    two.start()
    await until_connected(one, ("node-b", 0))
    async with one.metadata() as metadata:
        entry = await metadata.get(node_key("node-b"))
        assert entry is not None
        await metadata.commit(Delete(entry.key, entry.version))

        async def forgotten() -> bool:
            return bool(one.logged("node is not known any more"))

        await until(forgotten, "node-a notices that the record is gone")
        assert await connected(one) == {("node-b", 0): 1.0}
        await metadata.commit(Put(entry.key, entry.value, 0))
    await until_connected(one, ("node-b", 0))
    assert len(one.logged("connected to node")) == 1


# ---------------------------------------------------------------------- refused


async def test_without_the_right_key_there_is_no_connection_and_both_say_why(
    new_member: Callable[..., Awaitable[Daemon]],
) -> None:
    one, two = await new_member("node-a"), await new_member("node-b", key=bytes(32))
    one.start()
    two.start()
    await until_warned(one, "node node-b cannot be reached", "does not have this cluster's key", "compare the keys")
    await until_warned(two, "node node-a cannot be reached", "does not have this cluster's key", "compare the keys")
    assert await connected(one) == {("node-b", 0): 0.0}
    async with one.client() as client:
        assert (await client.status()).ready, "it is a warning: volumes without replicas there are served"


async def test_a_key_that_everybody_can_read_is_refused(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    node = await new_member("node-a")
    key = Path(str(node.settings["peers.key_file"]))
    key.chmod(0o644)
    code, message = node.refuse()
    assert code == 13
    assert message.startswith(f"peers.key_file: {key} is open to every user of this machine (mode 0644): run `chmod o=")


async def test_an_address_that_is_taken_is_refused(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node = await new_member("node-a", listen=f"127.0.0.1:{taken.getsockname()[1]}")
        code, message = node.refuse()
    assert code == 5
    assert message.startswith("peers.listen: 127.0.0.1:") and "another process listens there" in message


# ---------------------------------------------------------------------- as another node sees it


async def shake(daemon: Daemon, *, name: str = "node-x", reactor: int = 0, server_reactor: int = 0) -> socket.socket:
    """Connects to the daemon as reactor `reactor` of a node that runs nothing else."""
    record = await record_of(daemon)
    host, port = record.peer_address.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setblocking(False)
    assert daemon.cluster is not None
    me = Identity(daemon.cluster.bytes, name, KEY)
    agreement = await connect(
        connection, me, server=daemon.name, reactor=reactor, server_reactor=server_reactor, seconds=HANG_SECONDS
    )
    return socket.socket(fileno=agreement.fd)


async def register(daemon: Daemon, name: str) -> None:
    """The record of a node that cannot be reached."""
    record = msgspec.structs.replace(await record_of(daemon), name=name, peer_address="")
    async with daemon.metadata() as metadata:
        await metadata.commit(Put(node_key(name), msgspec.json.encode(record), 0))

    async def known() -> bool:
        try:
            (await shake(daemon, name=name, reactor=99)).close()
        except UnknownNode:
            return False
        return True

    await until(known, f"{daemon.name} knows {name}")


def beat(connection: socket.socket, counter: int) -> int:
    """Sends a heartbeat; returns the counter of its answer."""
    connection.settimeout(HANG_SECONDS)
    connection.sendall(make_frame("PeerRequest", kind=KINDS["heartbeat"], id=1, counter=counter))
    return int(read_reply(connection.recv(FRAME_BYTES, socket.MSG_WAITALL))["counter"])


async def test_a_client_that_is_no_node_is_refused(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    node = await new_member("node-a")
    node.start()
    with pytest.raises(UnknownNode, match="node stranger is not known to node node-a"):
        await shake(node, name="stranger")


async def test_a_new_connection_of_a_reactor_takes_the_place_of_the_old_one(
    new_member: Callable[..., Awaitable[Daemon]],
) -> None:
    node = await new_member("node-a", reactors=2)
    node.start()
    await register(node, "node-x")
    with await shake(node) as first, await shake(node, reactor=1, server_reactor=7) as other:
        assert beat(first, 41) == 41
        assert beat(other, 42) == 42
        with await shake(node) as second, await shake(node) as third:
            assert await asyncio.to_thread(first.recv, 1) == b"", "it was ended"
            assert await asyncio.to_thread(second.recv, 1) == b"", "it was ended"
            assert await asyncio.to_thread(beat, third, 43) == 43
            assert beat(other, 44) == 44, "the other reactor's is not affected"
    assert node.stop() == 0
    assert not node.wrong()


async def test_a_node_that_stops_ends_the_connections_of_others(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    node = await new_member("node-a")
    node.start()
    await register(node, "node-x")
    with await shake(node) as connection:
        assert beat(connection, 41) == 41
        stopping = asyncio.create_task(asyncio.to_thread(node.stop))
        connection.settimeout(HANG_SECONDS)
        assert await asyncio.to_thread(connection.recv, 1) == b""
        assert await stopping == 0


async def test_nodes_whose_clocks_differ_say_by_how_much(new_member: Callable[..., Awaitable[Daemon]]) -> None:
    a, b = await new_member("a"), await new_member("b")
    clock = WallClock(b.directory)
    clock.step(-3600)
    b.variables = clock.variables
    for node in (a, b):
        node.start()

    async def warned(node: Daemon, *words: str) -> bool:
        async with node.client() as client:
            return any(all(each in warning for each in words) for warning in (await client.status()).warnings)

    await until(lambda: warned(a, "the clock of node b was 36", " s behind that of node a"), "a warns of b's clock")
    await until(lambda: warned(b, "the clock of node a was 36", " s ahead of that of node b"), "b warns of a's clock")


async def test_a_device_of_another_node_is_refused_while_that_runs(
    new_member: Callable[..., Awaitable[Daemon]],
) -> None:
    a, b = await new_member("a"), await new_member("b")
    a.start()
    copy = b.directory / "copy.img"
    shutil.copyfile(a.devices[0], copy)
    before = copy.read_bytes()
    own, b.devices = b.devices, [str(copy)]
    code, words = b.refuse()
    assert code == 5
    assert f"{copy} is device " in words and f"which node a has as {a.devices[0]}" in words
    assert "stop that node's daemon first to use it here; a copy becomes a device of its own" in words
    assert copy.read_bytes() == before, "nothing is written to it"
    b.devices = own
    b.start()
    async with b.client() as client:
        with pytest.raises(InUse, match="which node a has as"):
            await client.add_device(str(copy))
        with pytest.raises(Unavailable, match=r"needs 3 nodes, and 2 of this cluster run \(a, b\): start more"):
            await client.create_volume("db", 64 * MIB, replicas=3)
    a.stop()
    async with b.client() as client:
        assert (await client.add_device(str(copy))).node == "b", "a device may move from a node that does not run"
