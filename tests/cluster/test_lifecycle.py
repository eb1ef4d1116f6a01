"""A node from start to stop: what persists, what is recovered, what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from iomesh.api.model import VolumeState
from iomesh.errors import AlreadyExists, IomeshError, NotFound, Unavailable
from iomesh.metadata.records import Lifecycle, list_devices, log_key, put_log, volume_key
from iomesh.metadata.volumes import find_volume, read_volumes, remove_records
from support.daemon import MIB, Daemon, names_of_records, rewrite
from support.nbd import Connection

GIB = 1 << 30


async def test_what_was_flushed_is_there_after_a_crash_at_the_same_uri(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        uri = (await client.export_volume("db")).uris[0]
    connection = await Connection.connect(uri)
    await connection.write(5 * MIB, b"kept" * 1024)
    await connection.flush()
    node.kill()
    await connection.close()

    node.start()
    async with node.client() as client:
        volume = await client.volume("db")
        assert (volume.state, volume.epoch) == (VolumeState.SERVING, 2)
        assert volume.recovery_bytes > 0
        assert [export.uris for export in volume.exports] == [[uri]]
    connection = await Connection.connect(uri)
    assert await connection.read(5 * MIB, 4096) == b"kept" * 1024
    await connection.close()


async def test_after_a_clean_stop_only_the_checkpoint_itself_is_read(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        uri = (await client.export_volume("db")).uris[0]
    connection = await Connection.connect(uri)
    for number in range(64):
        await connection.write(number * MIB, bytes([number]) * 65536)
    assert node.stop() == 0
    await connection.close()

    node.start()
    async with node.client() as client:
        volume = await client.volume("db")
        assert volume.sequence > 0
        assert volume.recovery_bytes < MIB, "of the 4 MiB that were written nothing is replayed"
    connection = await Connection.connect(uri)
    assert await connection.read(63 * MIB, 65536) == bytes([63]) * 65536
    await connection.close()


async def test_a_stop_ends_connections_and_leaves_no_socket_behind(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        uri = (await client.export_volume("db")).uris[0]
    connection = await Connection.connect(uri)
    await connection.write(0, b"x" * 4096)
    assert node.stop() == 0
    with pytest.raises(ConnectionError):
        await connection.read(0, 4096)
    await connection.close()
    assert list((node.directory / "run").iterdir()) == []
    assert node.logged("stopped")


async def test_a_stop_while_it_starts_is_a_stop(daemon: Daemon) -> None:
    for pause in (0.3, 0.5, 0.6, 0.7, 0.8, 1.0):
        with daemon.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(*daemon.command(), stdout=log, stderr=log)
        await asyncio.sleep(pause)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() in (0, -signal.SIGTERM), "after SIGTERM at any time"
    daemon.start()
    assert daemon.stop() == 0


async def test_the_pointer_in_the_metadata_moves_with_each_checkpoint(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        sequences = []
        for number in range(3):
            await connection.write(number * MIB, b"x" * 4096)
            assert await client.checkpoint() == ["db"]
            async with node.metadata() as metadata:
                found = await find_volume(metadata, "db")
            assert found is not None and found.log is not None and found.log.record.checkpoint is not None
            sequences.append(found.log.record.checkpoint.sequence)
        assert sequences == sorted(set(sequences)), "each covers more than the one before"
        assert (await client.volume("db")).log_bytes_since_checkpoint < MIB
    await connection.close()


async def test_what_somebody_else_wrote_into_a_record_is_kept(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        await connection.write(0, b"x" * 4096)
        async with node.metadata() as metadata:
            await rewrite(metadata, volume_key, "db", b'"replicas":1', b'"replicas":3')
            await client.grow_volume("db", 2 * GIB)
            await client.checkpoint("db")
            found = await find_volume(metadata, "db")
        assert found is not None and found.log is not None
        assert (found.volume.record.policy.replicas, found.volume.record.size_bytes) == (3, 2 * GIB)
        assert found.log.record.checkpoint is not None
    await connection.close()


async def test_an_owner_whose_epoch_is_over_records_no_checkpoint(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        await connection.write(0, b"x" * 4096)
        async with node.metadata() as metadata:
            await rewrite(metadata, log_key, "db", b'"epoch":1', b'"epoch":2')
            with pytest.raises(IomeshError):
                await client.checkpoint("db")
            found = await find_volume(metadata, "db")
        assert found is not None and found.log is not None
        assert found.log.record.checkpoint is None
        assert "has been taken over" in node.logged("volume failed")[0]["reason"]
        volume = await client.volume("db")
        assert volume.state is VolumeState.FAILED
        assert "has been taken over" in volume.reason
    await connection.close()


async def test_a_deletion_interrupted_by_a_crash_continues(node: Daemon) -> None:
    async with node.client() as client:
        for name in ("db", "kept"):
            await client.create_volume(name, GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        await connection.write(0, b"x" * MIB)
        await connection.flush()
    node.kill()
    await connection.close()
    # The state after a crash between the first commit of the deletion and its end.
    async with node.metadata() as metadata:
        await rewrite(metadata, volume_key, "db", b'"ready"', b'"deleting"')

    node.start()
    async with node.client() as client:
        assert [volume.name for volume in await client.volumes()] == ["kept"]
        (device,) = await client.devices()
        kept = await client.volume("kept")
        assert device.replicas == kept.segments, "no segment of the deleted volume is left"
    async with node.metadata() as metadata:
        assert await names_of_records(metadata) == ["kept"]


@pytest.mark.parametrize("reactors", [1, 2])
async def test_a_volume_that_cannot_be_opened_keeps_no_other_from_being_served(node: Daemon, reactors: int) -> None:
    async with node.client() as client:
        for name in ("mine", "broken"):
            await client.create_volume(name, GIB)
            await client.export_volume(name)
    node.stop()
    async with node.metadata() as metadata:
        nowhere = b'{"segment":4000,"block":1,"crc":1,"sequence":1}'
        await rewrite(metadata, log_key, "broken", b'"checkpoint":null', b'"checkpoint":' + nowhere)

    node.start()
    async with node.client() as client:
        broken, mine = await client.volume("broken"), await client.volume("mine")
        assert mine.state is VolumeState.SERVING
        assert mine.reactor in range(reactors)
        assert broken.state is VolumeState.FAILED
        assert "segment 4000" in broken.reason
        assert broken.exports == []
        with pytest.raises(Unavailable, match=r"volume broken is failed: .*segment 4000"):
            await client.export_volume("broken")


async def test_a_volume_that_another_node_owns_is_left_to_it(node: Daemon) -> None:
    async with node.client() as client:
        for name in ("mine", "theirs"):
            await client.create_volume(name, GIB)
            await client.export_volume(name)
    node.stop()
    async with node.metadata() as metadata:
        await rewrite(metadata, log_key, "theirs", b'"node-a"', b'"node-b"')
        before = await find_volume(metadata, "theirs")

    node.start()
    async with node.client() as client:
        assert (await client.status()).ready
        mine, theirs = await client.volumes()
        assert (mine.name, mine.state) == ("mine", VolumeState.SERVING)
        assert (theirs.name, theirs.state, theirs.owner) == ("theirs", VolumeState.ELSEWHERE, "node-b")
        assert theirs.reason == "its owner, node node-b, does not run"
        assert await client.volume("theirs") == theirs
        for refused in (client.export_volume("theirs"), client.delete_volume("theirs")):
            with pytest.raises(Unavailable, match="node node-b, which owns volume theirs, does not run: start it"):
                await refused
        with pytest.raises(AlreadyExists, match="a volume theirs exists in this cluster: choose another name"):
            await client.create_volume("theirs", GIB)
    async with node.metadata() as metadata:
        assert await find_volume(metadata, "theirs") == before


async def test_a_deleted_volume_that_another_node_keeps_for_its_clone_is_left_to_it(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        await client.create_snapshots(["db"], "one")
        await client.clone_volume("db", "one", "clone")
        await client.delete_volume("db", snapshots=True)
    node.stop()
    async with node.metadata() as metadata:  # as while the other node deletes the clone
        found = await read_volumes(metadata)
        for stored in found.volumes:
            assert stored.log is not None
            theirs = msgspec.structs.replace(stored.log.record, owner="node-b")
            await metadata.commit(put_log(theirs, stored.log.version))
            if stored.volume.record.name == "clone":
                await remove_records(metadata, stored.volume.record)
        before = await read_volumes(metadata)
        assert [stored.volume.record.state for stored in before.volumes] == [Lifecycle.HIDDEN]
    node.start()
    async with node.metadata() as metadata:
        assert await read_volumes(metadata) == before


async def test_no_volume_is_opened_while_a_device_is_missing(node: Daemon) -> None:
    second = await node.make_device("second.img", label="second")
    async with node.client() as client:
        added = await client.add_device(second)
        assert added.label == "second"
        await client.create_volume("db", GIB)
    node.stop()
    hidden = Path(second).rename(node.directory / "hidden.img")

    node.start()
    async with node.client() as client:
        volume = await client.volume("db")
        assert volume.state is VolumeState.FAILED
        assert "device second is missing" in volume.reason
        assert {device.label: device.state for device in await client.devices()} == {"": "online", "second": "missing"}
        hidden.rename(second)
        await client.add_device(second)
        assert (await client.volume("db")).state is VolumeState.SERVING, "its device is there again"


async def test_a_device_that_came_back_at_another_path_is_the_same_device(node: Daemon) -> None:
    second = await node.make_device("second.img")
    async with node.client() as client:
        added = await client.add_device(second)
    node.stop()
    moved = str(Path(second).rename(node.directory / "moved.img"))
    node.devices.append(moved)
    node.start()
    async with node.client() as client:
        assert (await client.device(added.id)).path == moved
        with pytest.raises(NotFound, match="there is no device"):
            await client.device(second)
    async with node.metadata() as metadata:
        devices, _ = await list_devices(metadata)
        assert {record.path for record, _ in devices} == {node.devices[0], moved}


async def test_metrics_and_health_are_served(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
    for _ in range(10):
        await connection.write(0, b"x" * 8192)
    await connection.read(0, 4096)
    page = await node.page("/metrics")
    for line in (
        'iomesh_volume_writes_total{volume="db"} 10.0',
        'iomesh_volume_written_bytes_total{volume="db"} 81920.0',
        'iomesh_volume_reads_total{volume="db"} 1.0',
        'iomesh_volume_write_latency_seconds_count{volume="db"} 10.0',
        'iomesh_volume_state{state="serving",volume="db"} 1.0',
        'iomesh_volume_connections{volume="db"} 1.0',
        "iomesh_node_ready 1.0",
    ):
        assert line in page.splitlines()
    for page in ("/healthz", "/readyz"):
        assert json.loads(await node.page(page))["status"] == "ok"
    async with node.client() as client:
        counters = await client.counters()
        assert counters.volumes[0].counters["writes"] == 10
        assert counters.volumes[0].latencies["write_latency"].count == 10
        assert counters.volumes[0].connections == 1
    await connection.close()


async def test_the_documentation_names_every_metric(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    documented = set()
    for line in text.splitlines():
        if line.startswith("| `iomesh_"):
            names = [name.strip("` ") for name in line.split("|")[1].split(",")]
            first = names[0]
            area = "_".join(first.split("_")[:2])
            documented |= {first, *(area + name for name in names[1:])}
    served = {
        line.split()[2] for line in (await node.page("/metrics")).splitlines() if line.startswith("# TYPE iomesh_")
    }
    assert served == documented


async def test_an_idle_node_costs_next_to_nothing(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
    await connection.write(0, b"x" * 4096)
    await asyncio.sleep(1.0)
    assert node.process is not None
    for _ in range(10):  # the remaining work of the start may take a busy machine longer
        before, began = cpu_seconds(node.process.pid), time.monotonic()
        await asyncio.sleep(5.0)
        share = (cpu_seconds(node.process.pid) - before) / (time.monotonic() - began)
        if share < 0.05:
            break
    assert share < 0.05, (
        f"an idle node took {share:.1%} of a core; it is to take less than 1 %, and five times that is no noise"
    )
    await connection.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
