"""A node is cut off from the others: connections stay, and nothing arrives."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.nbd import Connection
from support.nodes import Nodes, until

SIZES = ("--device-size", "1Gi", "--size", "32Mi", "--segment-size", "4Mi", "--map-cache", "16Mi")
DATA = bytes(range(256)) * 16


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)


async def test_a_member_that_is_cut_off_is_a_pause(nodes: Nodes) -> None:
    connection = await Connection.connect(nodes.uri)
    await connection.write(0, DATA)
    nodes.cut("c")
    for i in range(1, 20):
        await connection.write(i << 16, DATA)
    served = await nodes.until_served()
    assert served.owner == "a"
    await until(lambda: nodes.has_replicas("a", "a", "b"), "the owner goes on without node c")
    nodes.heal("c")
    await until_all_keep(nodes, connection, "a")
    assert await connection.read(19 << 16, len(DATA)) == DATA
    await connection.close()


async def until_all_keep(nodes: Nodes, connection: Connection, owner: str) -> None:
    """A replica set gets its members back with the next writes."""

    async def keep() -> bool:
        await connection.write(30 << 20, DATA)
        return await nodes.has_replicas(owner, *nodes.names)

    await until(keep, "all nodes keep a replica")
