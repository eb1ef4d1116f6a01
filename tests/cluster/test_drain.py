"""A node that is drained gives its volumes and copies to others, and can then be removed, with its devices; a node that
is lost for good can be, too."""

import asyncio
import json
from collections.abc import Callable

import pytest

from iomesh.api.model import Verdict
from iomesh.errors import InUse, NotFound
from support.load import read_volume
from support.model import content
from support.nbd import Connection
from support.nodes import Nodes, until

VOLUME = 48 << 20
TAG = 0x4D4D4D4D
SIZES = (
    *("--device-size", "1Gi", "--size", str(VOLUME), "--segment-size", "4Mi", "--checkpoint-bytes", "8Mi"),
    *("--rebuild-delay", "0"),
)


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "2", *SIZES, kind=Nodes)


async def write(nodes: Nodes) -> None:
    connection = await Connection.connect((await nodes.until_served()).uri)
    for offset in range(0, VOLUME, 1 << 20):
        await connection.write(offset, content(TAG, offset, 1 << 20))
    await connection.flush()
    await connection.close()


def check(nodes: Nodes) -> None:
    served = asyncio.run(nodes.until_served())
    assert bytes(read_volume(served.uri, VOLUME)) == content(TAG, 0, VOLUME)


async def left_on(nodes: Nodes, name: str) -> int:
    async with nodes.client(name) as client:
        return sum(device.replicas for device in await client.devices(name))


async def healthy(nodes: Nodes, by: str) -> bool:
    async with nodes.client(by) as client:
        return (await client.cluster_status()).verdict is Verdict.HEALTHY


def test_a_node_is_drained_and_removed(nodes: Nodes) -> None:
    """The owner. Its volume moves, nothing is left on its device, and the cluster is well without it."""
    asyncio.run(write(nodes))
    told = json.loads(nodes.iomesh("cluster", "drain", "a", "--wait", "--json", node="b"))
    assert told == {"node": "a", "draining": True, "copies": 0}
    assert asyncio.run(left_on(nodes, "a")) == 0
    assert asyncio.run(nodes.until_served()).owner in ("b", "c")
    nodes.stop_nodes("a")
    nodes.iomesh("cluster", "remove", "a", node="b")
    asyncio.run(until(lambda: healthy(nodes, "b"), "the cluster is well without the node"))
    check(nodes)


def test_a_node_that_was_lost_is_forgotten_with_its_devices(nodes: Nodes) -> None:
    asyncio.run(write(nodes))
    nodes.kill("a")
    assert asyncio.run(nodes.until_served(other_than="a")).owner in ("b", "c")
    asyncio.run(until(lambda: is_down(nodes), "the node counts as down"))
    nodes.iomesh("cluster", "remove", "a", "--forget-devices", node="b")
    asyncio.run(until(lambda: healthy(nodes, "b"), "all copies are made again, and the node is forgotten"))
    check(nodes)


async def is_down(nodes: Nodes) -> bool:
    async with nodes.client("b") as client:
        return "running" not in [str(node.state) for node in await client.nodes() if node.name == "a"]


async def test_a_drain_that_would_cost_redundancy_is_refused(nodes: Nodes) -> None:
    async with nodes.client("b") as client:
        await client.create_volume("wide", 16 << 20, replicas=3)
        with pytest.raises(InUse, match=r"volume wide wants 3 replicas, and without b only a, c would be left"):
            await client.drain_node("b")
        await client.delete_volume("wide")
        await client.create_volume("alone", 16 << 20)
        with pytest.raises(InUse, match="volume alone has no replicas, and its data is only there"):
            await client.drain_node("b")
        with pytest.raises(NotFound, match="no node 'z' has joined"):
            await client.drain_node("z")
        assert not any(node.draining for node in await client.nodes())
