"""Operations: work that is carried out behind the answer, under an id, whatever happens to its client and its nodes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.channel import SERVICE
from iomesh.api.client import Client
from iomesh.api.model import ChangeKind, Operation, OperationState
from iomesh.errors import AlreadyExists, InvalidArgument, IomeshError, NotFound
from iomesh.metadata.records import OperationRecord, put_operation
from support.daemon import MIB, Daemon
from support.nbd import Connection
from support.nodes import Nodes, until
from support.run import run
from support.trial import iomesh_command

SIZE = 32 * MIB
SLOWLY = {"cleaning.bytes_per_second": MIB}


async def a_clone(client: Client, name: str = "db", **where: Any) -> str:
    """Of a volume with content; its id."""
    await client.create_volume(name, SIZE, **where)
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    for at in range(0, SIZE, MIB):
        await connection.write(at, b"snapshot" * (MIB // 8))
    await connection.flush()
    await connection.close()
    await client.create_snapshots([name], "one")
    return (await client.clone_volume(name, "one", f"{name}-copy")).id


async def ended(client: Client, identity: str) -> Operation:
    found = await client.wait_operation(identity)
    assert found.ended_at is not None and found.started_at is not None
    assert found.ended_at >= found.started_at
    return found


async def test_an_operation_is_begun_once_and_tells_how_it_ended(node: Daemon) -> None:
    async with node.client() as client:
        volume = await client.create_volume("db", SIZE)
        (snapshot,) = await client.create_snapshots(["db"], "one")
        identity = str(uuid.uuid4())
        work = pb.RestoreVolumeRequest(volume="db", snapshot="one")
        begun = await client.start_operation(work, identity)
        assert (begun.id, begun.kind, begun.subject, begun.volume_id, begun.node) == (
            identity,
            "restore-volume",
            "db@one",
            volume.id,
            "node-a",
        )
        assert (await client.start_operation(work, identity)).id == identity
        done = await ended(client, identity)
        assert done.state is OperationState.DONE and done.restored is not None
        before = done.restored.before
        assert await client.start_operation(work, identity) == done, "once"
        assert [each.name for each in await client.snapshots("db")] == ["one", before]
        with pytest.raises(AlreadyExists, match=f"operation {identity} is another one, of db@one: choose another id"):
            await client.start_operation(pb.DeleteVolumeRequest(name="db"), identity)

        refused = await client.start_operation(pb.DeleteVolumeRequest(name=volume.id))
        failed = await ended(client, refused.id)
        assert failed.state is OperationState.FAILED and failed.error is not None
        assert (failed.error.kind, failed.error.exit_code) == ("InUse", 5)
        assert "volume db has 2 snapshot(s): delete them first" in failed.error.message

        removed = await client.start_operation(pb.DeleteSnapshotRequest(volume="db", snapshot=snapshot.id))
        assert (await ended(client, removed.id)).deleted is not None
        gone = await client.start_operation(pb.DeleteVolumeRequest(name="db", snapshots=True))
        assert (await ended(client, gone.id)).state is OperationState.DONE
        missing = await client.start_operation(pb.DeleteVolumeRequest(name="db"))
        error = (await ended(client, missing.id)).error
        assert error is not None and (error.kind, error.exit_code) == ("NotFound", 3)
        listed = await client.operations()
        assert [each.id for each in listed] == [identity, refused.id, removed.id, gone.id, missing.id]
        with pytest.raises(NotFound, match="there is no operation 'x': `iomesh operation list` shows all"):
            await client.operation("x")
        with pytest.raises(InvalidArgument, match="id: 'x' is not a UUID"):
            await client.start_operation(pb.DeleteVolumeRequest(name="db"), "x")
    async with grpc.aio.insecure_channel(f"unix:{node.control}") as channel:
        call: Any = channel.unary_unary(
            f"/{SERVICE.full_name}/GetOperation", response_deserializer=pb.Operation.FromString
        )
        status = (await call(pb.GetOperationRequest(id=refused.id).SerializeToString())).error
        info = error_details_pb2.ErrorInfo()
        assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert status.details[0].Unpack(info) and (info.reason, info.domain) == ("IN_USE", "iomesh")
        start: Any = channel.unary_unary(f"/{SERVICE.full_name}/StartOperation")
        with pytest.raises(grpc.aio.AioRpcError, match="the request names no work that this version knows: set one of"):
            await start(b"")


async def test_a_flattening_has_progress_and_goes_on_without_its_client_and_after_a_restart(node: Daemon) -> None:
    node.settings = dict(SLOWLY)
    node.kill()
    node.start()
    async with node.client() as client:
        clone = await a_clone(client)
        begun = await client.start_operation(pb.FlattenVolumeRequest(name="db-copy"))
        assert (begun.kind, begun.volume_id, begun.state) == ("flatten-volume", clone, OperationState.RUNNING)
    async with node.client() as client, aclosing(client.watch(nodes=False, volumes=False, operations=True)) as events:
        first = [await anext(events), await anext(events)]
        assert [each.kind for each in first] == [ChangeKind.CURRENT, ChangeKind.SYNCED]
        assert first[0].operation is not None and first[0].operation.id == begun.id

        async def moves() -> bool:
            seen = await client.operation(begun.id)
            return 0 < seen.done_bytes < seen.total_bytes

        await until(moves, "there is progress")
        assert (await client.wait_operation(begun.id, 0.01)).state is OperationState.RUNNING
    node.kill()
    node.settings = {}
    node.start()
    async with node.client() as client:
        done = await ended(client, begun.id)
        assert (done.state, done.error) == (OperationState.DONE, None)
        assert (await client.volume("db-copy")).clone_of == ""


async def test_what_a_restart_interrupts_is_reported_as_ended_with_the_reason(node: Daemon) -> None:
    """The daemon died after it had written the records of a restore and a deletion, and before it did anything."""
    async with node.client() as client:
        await client.create_volume("db", SIZE)
        await client.create_snapshots(["db"], "one")
    async with node.metadata() as metadata:
        volume = uuid.UUID((await one_volume(node)).id)
        cut = [
            OperationRecord(
                id=uuid.uuid4(),
                request=request.SerializeToString(deterministic=True),
                subject="db",
                volume=volume,
                node="node-a",
                incarnation=uuid.uuid4(),
                started_ns=1,
            )
            for request in (
                pb.StartOperationRequest(restore_volume=pb.RestoreVolumeRequest(volume="db", snapshot="one")),
                pb.StartOperationRequest(delete_volume=pb.DeleteVolumeRequest(name="db", snapshots=True)),
            )
        ]
        node.kill()
        for record in cut:
            await metadata.commit(put_operation(record, 0))
    node.start()
    async with node.client() as client:
        restored, deleted = [(await ended(client, str(record.id))).error for record in cut]
        assert restored is not None and deleted is not None
        assert "node node-a ended while it carried this out, so it is not known whether it took" in restored.message
        assert "ended before the deletion of volume db had begun: the volume is as it was" in deleted.message
        assert [each.name for each in await client.snapshots("db")] == ["one"]


async def one_volume(node: Daemon) -> Any:
    async with node.client() as client:
        return await client.volume("db")


@pytest.mark.logs("its owner is lost")
async def test_any_node_answers_and_one_that_is_lost_is_replaced(new_trial: Callable[..., Any]) -> None:
    nodes: Nodes = new_trial("--nodes", "3", "--device-size", "1Gi", "--size", "16Mi", kind=Nodes)
    async with nodes.client("b") as b, nodes.client("c") as c:
        await a_clone(b, node="b")
        async with nodes.client("a") as a:
            begun = await a.start_operation(pb.FlattenVolumeRequest(name="db-copy"))
            assert begun.node == "a"
            assert (await c.operation(begun.id)).subject == "db-copy"
        nodes.kill("a")
        done = await c.wait_operation(begun.id)
        assert (done.state, done.error) == (OperationState.DONE, None)
        assert (await b.volume("db-copy")).clone_of == ""

        moved = await c.start_operation(pb.DeleteVolumeRequest(name="trial"))
        failed = await b.wait_operation(moved.id)
        assert failed.error is not None and "node a, which owns volume trial, " in failed.error.message


async def test_commands_begin_operations_wait_for_them_and_find_them_again(node: Daemon) -> None:
    def asked(*words: str, code: int = 0) -> Any:
        done = run([iomesh_command(), *words, "--address", node.control, "--json"], succeeds=not code)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    node.settings = dict(SLOWLY)
    node.kill()
    node.start()
    async with node.client() as client:
        await a_clone(client)
    begun = await asyncio.to_thread(asked, "volume", "flatten", "db-copy", "--no-wait")
    identity = begun["operation"]
    assert begun["clone_of"] == "db@one"
    (listed,) = (await asyncio.to_thread(asked, "operation", "list"))["operations"]
    assert (listed["id"], listed["kind"], listed["state"]) == (identity, "flatten-volume", "running")
    assert (await asyncio.to_thread(asked, "operation", "wait", identity, "--timeout", "1s"))["state"] == "running"
    node.kill()
    node.settings = {}
    node.start()
    assert (await asyncio.to_thread(asked, "operation", "wait", identity))["state"] == "done"
    refused = await asyncio.to_thread(asked, "volume", "delete", "db", code=5)
    assert refused["error"]["kind"] == "InUse"
    assert (await asyncio.to_thread(asked, "volume", "delete", "db", "--snapshots", "--force"))["deleted"] is True
    assert (await asyncio.to_thread(asked, "operation", "show", identity))["subject"] == "db-copy"
    failed = (await asyncio.to_thread(asked, "operation", "list"))["operations"][1]
    waited = await asyncio.to_thread(asked, "operation", "wait", failed["id"], code=5)
    assert waited["error"]["message"] == failed["failure"]["message"] == refused["error"]["message"]
    async with node.client() as client:
        with pytest.raises(IomeshError):
            await client.volume("db")
