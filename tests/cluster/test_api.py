"""The control API for any gRPC client: ids, generations, pages, changes, standard errors, health, reflection."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.channel import SERVICE
from iomesh.api.model import ChangeKind, MembershipState, VolumeState
from iomesh.errors import Conflict, InvalidArgument, NotFound
from support.daemon import Daemon

GIB = 1 << 30
UNKNOWN = "7f1c1fb0-0000-4000-8000-000000000000"


async def test_a_volume_and_a_snapshot_are_addressed_by_id_as_by_name(node: Daemon) -> None:
    async with node.client() as client:
        volume = await client.create_volume("db", GIB)
        (snapshot,) = await client.create_snapshots([volume.id], "monday")
        assert (snapshot.volume, snapshot.volume_id) == ("db", volume.id)
        assert await client.snapshot(volume.id, snapshot.id) == await client.snapshot("db", "monday")
        await client.grow_volume(volume.id, 2 * GIB)
        await client.export_snapshot(volume.id, snapshot.id)
        await client.unexport_snapshot(volume.id, snapshot.id)
        clone = await client.clone_volume(volume.id, snapshot.id, "clone")
        assert (await client.volume(clone.id)).clone_of == "db@monday"
        await client.delete_volume(clone.id)
        await client.delete_snapshot(volume.id, snapshot.id)
        assert (await client.volume("db")).size_bytes == 2 * GIB
        with pytest.raises(NotFound, match=f"no volume with the id {UNKNOWN}"):
            await client.volume(UNKNOWN)
        with pytest.raises(NotFound, match=f"volume db has no snapshot with the id {UNKNOWN}"):
            await client.delete_snapshot("db", UNKNOWN)
        for refused in (client.create_volume(UNKNOWN, GIB), client.create_snapshots(["db"], UNKNOWN)):
            with pytest.raises(InvalidArgument, match="would be taken for an id"):
                await refused


async def test_a_change_of_what_users_asked_for_raises_the_generation(node: Daemon) -> None:
    async with node.client() as client:
        first = (await client.create_volume("db", GIB)).generation
        assert first >= 1
        assert (await client.grow_volume("db", 2 * GIB)).generation == first + 1
        assert (await client.grow_volume("db", 2 * GIB, if_generation=first)).generation == first + 1, "as it is"
        await client.checkpoint("db")
        with pytest.raises(Conflict, match=f"volume db has generation {first + 1}, not {first}: it was changed"):
            await client.set_volume("db", window_seconds=3600, if_generation=first)
        changed = await client.set_volume("db", window_seconds=3600, if_generation=first + 1)
        assert (changed.generation, changed.policy.window_seconds) == (first + 2, 3600)
        await client.export_volume("db")
        assert (await client.volume("db")).generation == first + 3
    node.kill()
    node.start()
    async with node.client() as client:
        assert (await client.volume("db")).generation == first + 3


async def test_lists_come_in_pages_that_bear_changes_in_between(node: Daemon) -> None:
    async with node.client() as client, grpc.aio.insecure_channel(f"unix:{node.control}") as channel:
        for name in ("a", "b", "c", "d"):
            await client.create_volume(name, GIB)
        call = channel.unary_unary(
            f"/{SERVICE.full_name}/ListVolumes",
            request_serializer=pb.ListVolumesRequest.SerializeToString,
            response_deserializer=pb.ListVolumesResponse.FromString,
        )
        first = await call(pb.ListVolumesRequest(page_size=2))
        assert [each.name for each in first.volumes] == ["a", "b"]
        await client.delete_volume("b")
        await client.create_volume("bb", GIB)
        rest = await call(pb.ListVolumesRequest(page_token=first.next_page_token))
        assert ([each.name for each in rest.volumes], rest.next_page_token) == (["bb", "c", "d"], "")
        with pytest.raises(grpc.aio.AioRpcError, match="page_token 'nonsense' is not one of this API"):
            await call(pb.ListVolumesRequest(page_token="nonsense"))
        assert [(device.node, device.path) for device in await client.devices()] == [("node-a", node.devices[0])]


async def test_a_watch_sends_what_exists_and_then_what_changes(node: Daemon) -> None:
    async with node.client() as client, node.client() as other, asyncio.timeout(300):
        volume = await client.create_volume("db", GIB)
        async with aclosing(other.watch()) as events:
            first = [await anext(events) for _ in range(3)]
            assert [each.kind for each in first] == [ChangeKind.CURRENT, ChangeKind.CURRENT, ChangeKind.SYNCED]
            assert first[0].node is not None and first[1].volume is not None
            assert (first[0].node.name, first[0].node.state) == ("node-a", MembershipState.RUNNING)
            assert first[0].node.control_address == node.control
            assert (first[1].volume.id, first[1].volume.state) == (volume.id, VolumeState.SERVING)
            await client.grow_volume("db", 2 * GIB)
            changed = await anext(events)
            assert changed.kind is ChangeKind.CHANGED and changed.volume is not None
            assert changed.volume.size_bytes == 2 * GIB
            await client.delete_volume("db")
            while (event := await anext(events)).kind is not ChangeKind.REMOVED:
                pass
            assert event.volume is not None and event.volume.id == volume.id


async def test_an_error_has_standard_details(node: Daemon) -> None:
    async with grpc.aio.insecure_channel(f"unix:{node.control}") as channel:
        call: Any = channel.unary_unary(f"/{SERVICE.full_name}/GetVolume")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(pb.GetVolumeRequest(name="db").SerializeToString())
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    status = rpc_status.from_call(raised.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("NOT_FOUND", "iomesh", {"node": "node-a"})
    assert status.message == "there is no volume 'db': `iomesh volume list` shows all volumes"


async def test_the_standard_services_for_health_and_reflection(node: Daemon) -> None:
    async with grpc.aio.insecure_channel(f"unix:{node.control}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "iomesh.v1alpha.Cluster"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {each.name for each in (await call.read()).list_services_response.service}
        assert names == {SERVICE.full_name, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        await call.done_writing()


def test_the_client_works_without_the_engine_and_the_daemon() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, iomesh.api.client\n"
            "print(*(each for each in sys.modules if each.split('.')[0] in ('numpy', 'cryptography')\n"
            "    or each.startswith('iomesh.') and each not in ('iomesh.errors',) and 'iomesh.api' not in each))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
