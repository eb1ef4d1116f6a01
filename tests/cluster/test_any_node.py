"""Any node of a cluster answers for the whole: what only a volume's owner can do is passed on to it, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.channel import SERVICE
from iomesh.api.client import Client
from iomesh.api.model import MembershipState, VolumeState
from iomesh.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from iomesh.node.control.forwarding import FORWARDED_BY
from support import rooms
from support.nodes import Nodes, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with rooms.room(request.config) as folder:
        nodes = Nodes(folder / "trial", ["--nodes", "3", "--device-size", "1Gi", "--size", "16Mi"])
        nodes.up()
        yield nodes
        nodes.down()


def client_of(nodes: Nodes, name: str) -> Client:
    return Client(nodes.control_of(name))


async def known_to(client: Client, *names: str) -> None:
    """A node's view of the others may be a moment old."""

    async def holds() -> bool:
        return {volume.name for volume in await client.volumes()} >= set(names)

    await until(holds, f"the node knows {names}")


async def test_a_volume_is_used_through_any_node_from_its_creation_to_its_end(shared: Nodes) -> None:
    async with client_of(shared, "a") as a, client_of(shared, "b") as b, client_of(shared, "c") as c:
        volume = await a.create_volume("db", 16 * MIB, node="b")
        assert volume.owner == "b"
        assert (await c.volume(volume.id)).owner == "b", "also before it has heard of it"
        assert (await c.create_volume("db", 16 * MIB)).id == volume.id, "repeated at another node"
        with pytest.raises(AlreadyExists, match="a volume db exists and is different"):
            await a.create_volume("db", 32 * MIB)
        seen = await c.volume(volume.id)
        assert (seen.owner, seen.state, seen.reactor) == ("b", VolumeState.SERVING, 0)
        assert seen.space.physical_bytes > 0, "only its owner knows that"
        assert (await a.grow_volume("db", 32 * MIB)).size_bytes == 32 * MIB
        assert (await c.set_volume("db", window_seconds=600)).policy.window_seconds == 600
        assert "nbd+unix" in (await c.export_volume("db")).uris[0]
        (snapshot,) = await a.create_snapshots(["db"], "one")
        assert [each.id for each in await c.snapshots("db")] == [snapshot.id]
        clone = await c.clone_volume("db", "one", "copy")
        assert clone.owner == "b", "beside its parent"
        await a.unexport_volume("db")
        assert (await c.restore_volume("db", "one", discard=True)).before == ""
        assert await a.checkpoint("db") == ["db"]
        await a.delete_volume("copy")
        await c.delete_volume("db", snapshots=True)
        assert "db" not in {each.name for each in await b.volumes()}


async def test_snapshots_of_all_nodes_are_listed_and_those_of_several_have_no_common_instant(shared: Nodes) -> None:
    async with client_of(shared, "a") as a, client_of(shared, "c") as c:
        for name, node in (("here", "a"), ("there", "b")):
            await a.create_volume(name, 16 * MIB, node=node)
        await known_to(c, "here", "there")
        await known_to(a, "here", "there")
        for name in ("here", "there"):
            await c.create_snapshots([name], "one")
        assert [each.volume for each in await c.snapshots()] == ["here", "there"]
        with pytest.raises(InvalidArgument, match=r"several nodes \(here of node a, there of node b\)"):
            await c.create_snapshots(["here", "there"], "both")
        for name in ("here", "there"):
            await c.delete_volume(name, snapshots=True)


async def test_what_concerns_a_node_is_asked_of_any_other(shared: Nodes) -> None:
    async with client_of(shared, "a") as a:
        assert (await a.status("c")).node == "c"
        assert [each.node for each in await a.devices("c")] == ["c"]
        assert (await a.device("b-0", "b")).path == str(shared.devices_of("b")[0])
        assert await a.counters("b")
        nodes = await a.nodes()
        assert [(each.name, each.state, each.devices) for each in nodes] == [
            (name, MembershipState.RUNNING, 1) for name in "abc"
        ]
        with pytest.raises(NotFound, match="no node 'x' of this cluster runs; these do: a, b, c"):
            await a.status("x")


async def test_a_call_is_passed_on_once(shared: Nodes) -> None:
    async with client_of(shared, "a") as a, client_of(shared, "b") as b:
        await a.create_volume("once", 16 * MIB)
        await b.checkpoint("once")
        await known_to(b, "once")
        async with grpc.aio.insecure_channel(f"unix:{shared.control_of('b')}") as channel:
            call: Any = channel.unary_unary(f"/{SERVICE.full_name}/GetVolume")
            request = pb.GetVolumeRequest(name="once").SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(request, metadata=((FORWARDED_BY, "c"),))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert raised.value.details() == (
            "GetVolume was forwarded by node c to node b, and is to be answered by node a: the volume has just moved; "
            "try again"
        )
        await b.delete_volume("once")


@pytest.mark.logs("its owner is lost")
async def test_an_owner_that_does_not_answer_is_named(new_trial: Callable[..., Any]) -> None:
    nodes: Nodes = new_trial("--nodes", "2", "--device-size", "1Gi", "--size", "16Mi", kind=Nodes)
    async with client_of(nodes, "b") as b:
        await known_to(b, "trial")
        nodes.kill("a")
        await until(lambda: is_down(b, "a"), "node a is known to be down")
        with pytest.raises(Unavailable, match="node a, which owns volume trial, does not run: start it"):
            await b.grow_volume("trial", 32 * MIB)
        seen = await b.volume("trial")
        assert (seen.state, seen.reason) == (VolumeState.ELSEWHERE, "its owner, node a, does not run")
        nodes.start_nodes("a")
        await until(lambda: grown(b, 32 * MIB), "node a answers again, through node b")


async def is_down(client: Client, name: str) -> bool:
    return next(each.state for each in await client.nodes() if each.name == name) is MembershipState.DOWN


async def grown(client: Client, size: int) -> bool:
    try:
        return (await client.grow_volume("trial", size)).size_bytes == size
    except Unavailable:
        return False
