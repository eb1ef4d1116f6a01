"""A replicated volume goes from node to node: by hand, and when its owner is lost. What is acknowledged and read under
load meanwhile is tested in test_replicas.py."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Callable

import msgspec
import pytest

from iomesh.api.model import VolumeState
from iomesh.errors import InUse, InvalidArgument, NotFound, Unavailable
from iomesh.metadata.records import get_log, put_log
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.metadata.volumes import find_volume
from iomesh.node.tenure import LEASE_SECONDS
from support.nbd import Connection
from support.nodes import Nodes, until

SIZES = ("--device-size", "1Gi", "--size", "32Mi", "--segment-size", "4Mi", "--map-cache", "16Mi")
QUIET_SECONDS = 3.0  # several times what a take-over takes
DATA = bytes(range(256)) * 16


@pytest.fixture
def nodes(new_trial: Callable[..., Nodes]) -> Nodes:
    return new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)


async def write(uri: str, offset: int = 0) -> None:
    connection = await Connection.connect(uri)
    await connection.write(offset, DATA)
    await connection.flush()
    await connection.close()


async def read(uri: str, offset: int = 0) -> bytes:
    connection = await Connection.connect(uri)
    data = await connection.read(offset, len(DATA))
    await connection.close()
    return data


async def test_a_volume_is_moved_from_node_to_node_by_hand(nodes: Nodes) -> None:
    await write(nodes.uri)
    async with nodes.client("a") as a, nodes.client("b") as b:
        moved = await a.move_volume("trial", "b")
        assert (moved.owner, moved.state) == ("b", VolumeState.ELSEWHERE)
        served = await nodes.until_served(other_than="a")
        assert served.owner == "b"
        assert await read(served.uri) == DATA
        await write(served.uri, 1 << 20)
        assert (await a.move_volume("trial", "b")).owner == "b", "it is there already, says node b, whichever is asked"
        assert (await b.take_over_volume("trial")).epoch == (await b.volume("trial")).epoch, "it has it already"
        await until(lambda: nodes.has_replicas("b", "a", "b", "c"), "the former owner keeps a replica")
        await b.move_volume("trial")
    served = await nodes.until_served(other_than="b")
    assert (await read(served.uri), await read(served.uri, 1 << 20)) == (DATA, DATA)


async def test_a_move_is_refused_with_the_reason_and_changes_nothing(nodes: Nodes) -> None:
    connection = await Connection.connect(nodes.uri)
    async with nodes.client("a") as a:
        await a.create_volume("single", 16 << 20)
        with pytest.raises(InvalidArgument, match="volume single has no replicas: its data is only on this node"):
            await a.move_volume("single", "b")
        with pytest.raises(
            InvalidArgument, match=r"cannot move to node d, which does not keep .*: name one of (b, c|c, b)"
        ):
            await a.move_volume("trial", "d")
        before = (await a.volume("trial")).epoch
        nodes.pause("b")
        await connection.write(0, DATA)  # an owner without anything to write does not need to give a member up
        await until(lambda: nodes.has_replicas("a", "a", "c"), "the owner goes on without node b")
        nodes.resume("b")
        assert (await a.volume("trial")).epoch == before
        await connection.write(0, DATA)
        await a.create_snapshots(["trial"], "monday")
        await a.clone_volume("trial", "monday", "copy")
        for name in ("trial", "copy"):
            with pytest.raises(InUse, match="share blocks and have to be on one node"):
                await a.move_volume(name, force=True)
        assert await connection.read(0, len(DATA)) == DATA
    await connection.close()


async def test_a_move_to_a_node_that_hangs_ends_where_it_began(nodes: Nodes) -> None:
    """It is found out only by waiting: the connection to the node seems to work."""
    await write(nodes.uri)
    async with nodes.client("a") as a:
        nodes.pause("b")
        with pytest.raises(Unavailable, match="volume trial was not moved: node b has not opened it within 10 s"):
            await a.move_volume("trial", "b")
        served = await nodes.until_served()
        assert served.owner == "a"
        assert await read(served.uri) == DATA
        nodes.resume("b")
        await asyncio.sleep(1)
        assert (await nodes.seen_by("b")).owner == "a", "the offer is over"


@pytest.mark.parametrize("started", ["a", "b"])
async def test_what_a_crash_in_the_middle_of_a_move_leaves_is_opened_by_one_node(nodes: Nodes, started: str) -> None:
    """The owner has closed the volume, offered it to b, and everything has died. Whoever runs opens it."""
    await write(nodes.uri)
    nodes.kill("a", "b", "c")
    metadata = await SqliteMetadata.open(nodes.directory / "metadata.db")
    stored = await find_volume(metadata, "trial")
    assert stored is not None and stored.log is not None
    its_log, version = stored.log
    await metadata.commit(put_log(msgspec.structs.replace(its_log, offered_to="b"), version))
    starting = [nodes.begin_to_start_node(name) for name in (started, "c")]
    served = await nodes.until_served()
    assert served.owner == started
    assert await read(served.uri) == DATA
    for each in starting:
        each.communicate()
    nodes.start_nodes()
    log = await get_log(metadata, its_log.id)
    assert log is not None and (log.record.owner, log.record.offered_to) == (started, "")
    await metadata.close()


async def test_a_volume_is_not_taken_from_an_owner_that_runs_unless_forced(nodes: Nodes) -> None:
    connection = await Connection.connect(nodes.uri)
    await connection.write(0, DATA)
    async with nodes.client("c") as c:
        with pytest.raises(InUse, match=r"volume trial is owned by node a, which runs .*volume move trial --to c"):
            await c.take_over_volume("trial")
        assert await connection.read(0, len(DATA)) == DATA
        taken = await c.take_over_volume("trial", force=True)
        assert (taken.owner, taken.state) == ("c", VolumeState.SERVING)
        other = DATA[::-1]
        await connection.write(0, other)  # the former owner forwards it
        assert await read(taken.exports[0].uris[0]) == other
        await connection.close()
    await until(lambda: is_elsewhere(nodes, "a"), "the former owner has closed the volume")
    await until(lambda: nodes.has_replicas("c", "a", "b", "c"), "the former owner keeps a replica")
    nodes.check_daemons()


async def is_elsewhere(nodes: Nodes, node: str) -> bool:
    return (await nodes.seen_by(node)).state is VolumeState.ELSEWHERE


async def test_a_volume_without_replicas_waits_for_its_owner(nodes: Nodes) -> None:
    async with nodes.client("a") as a:
        await a.create_volume("single", 16 << 20)
    nodes.kill("a")
    await nodes.until_served(other_than="a")
    await asyncio.sleep(QUIET_SECONDS)
    async with nodes.client("b") as b:
        single = await b.volume("single")
        assert (single.owner, single.state) == ("a", VolumeState.ELSEWHERE)
        assert single.reason == "its owner, node a, does not run"
        for force in (False, True):
            with pytest.raises(
                InvalidArgument, match="no replicas: its data is only on node a, which has to be started"
            ):
                await b.take_over_volume("single", force=force)
        with pytest.raises(NotFound, match="there is no volume 'other'"):
            await b.take_over_volume("other")
    nodes.start_nodes("a")
    assert (await nodes.seen_by("a", "single")).state is VolumeState.SERVING
    assert (await nodes.seen_by("a")).state is VolumeState.ELSEWHERE


async def test_a_volume_moves_on_when_its_owner_is_stopped(nodes: Nodes) -> None:
    await write(nodes.uri)
    nodes.stop_nodes("a")
    served = await nodes.until_served(other_than="a")
    assert await read(served.uri) == DATA


async def test_clones_go_with_their_parent(nodes: Nodes) -> None:
    await write(nodes.uri)
    async with nodes.client("a") as a:
        await a.create_snapshots(["trial"], "monday")
        await a.clone_volume("trial", "monday", "copy")
        await a.export_volume("copy")
        await a.delete_volume("trial", snapshots=True)
    nodes.kill("a")

    async def owner() -> str:
        for node in ("b", "c"):
            async with nodes.client(node) as client:
                seen = [one for one in await client.volumes() if one.name == "copy"]  # it may not have heard of it yet
            if seen and seen[0].state is VolumeState.SERVING:
                return seen[0].owner
        return ""

    async def is_served() -> bool:
        return bool(await owner())

    await until(is_served, "the clone is served")
    copy = await nodes.seen_by(await owner(), "copy")
    assert await read(copy.exports[0].uris[0]) == DATA


async def test_a_volume_with_fewer_replicas_than_wanted_is_a_warning(nodes: Nodes) -> None:
    nodes.kill("c")
    await write(nodes.uri)
    async with nodes.client("a") as a:
        await until(lambda: nodes.has_replicas("a", "a", "b"), "the owner goes on without node c")
        (warning,) = (await a.volume("trial")).warnings
        assert re.match("it has 2 of 3 replicas: what is written now is kept on 2 node", warning)
        assert f"volume trial: {warning}" in (await a.status()).warnings
        nodes.start_nodes("c")

        async def is_member_again() -> bool:  # for what is written from then on
            await write(nodes.uri)
            return await nodes.has_replicas("a", "a", "b", "c")

        await until(is_member_again, "node c keeps a replica again")
        assert (await a.volume("trial")).warnings == []


async def test_an_outage_of_the_metadata_moves_no_volume(nodes: Nodes) -> None:
    """All leases expire while it lasts: the first node that is answered finds no record of another one."""
    connection = await Connection.connect(nodes.uri)
    with contextlib.closing(sqlite3.connect(nodes.directory / "metadata.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(2 * LEASE_SECONDS)
        other.execute("ROLLBACK")
    await asyncio.sleep(3 * LEASE_SECONDS)
    await connection.write(0, DATA)
    assert await connection.read(0, len(DATA)) == DATA
    assert (await nodes.until_served()).owner == "a"
    assert (await nodes.stored()).epoch == 1
    await connection.close()
