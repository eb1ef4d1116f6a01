"""The control API's contract for volumes and exports (docs/api.md)."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from iomesh.api.client import Client
from iomesh.api.model import VolumeState
from iomesh.errors import AlreadyExists, InUse, InvalidArgument, NoSpace, NotFound, Unavailable
from support.daemon import MIB, Daemon
from support.nbd import Connection
from support.trial import iomesh_command

GIB = 1 << 30


async def test_creating_what_exists_is_the_same_volume_or_an_error(node: Daemon) -> None:
    async with node.client() as client:
        volume = await client.create_volume("db", GIB)
        assert (volume.state, volume.size_bytes, volume.owner, volume.policy.replicas) == (
            VolumeState.SERVING,
            GIB,
            "node-a",
            1,
        )
        assert (await client.create_volume("db", GIB)).id == volume.id
        assert (await client.create_volume("db", GIB, segment_bytes=volume.segment_bytes, replicas=1)).id == volume.id
        for size, segment in ((2 * GIB, 0), (GIB, 4 * MIB)):
            with pytest.raises(AlreadyExists, match="a volume db exists and is different: 1Gi, segments of 1Mi"):
                await client.create_volume("db", size, segment_bytes=segment)


async def test_of_those_who_create_one_name_at_once_all_get_one_volume(node: Daemon) -> None:
    async with node.client() as client:
        volumes = await asyncio.gather(*(client.create_volume("db", GIB) for _ in range(8)))
        assert len({volume.id for volume in volumes}) == 1
        assert {volume.state for volume in volumes} == {VolumeState.SERVING}


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("", GIB, "'' is not a valid volume name"),
        ("a/b", GIB, "'a/b' is not a valid volume name"),
        ("-a", GIB, "no dash first"),
        ("a" * 129, GIB, "at most 128"),
        ("db\n", GIB, "is not a valid volume name"),
        ("db", 0, "a volume of 0 bytes"),
        ("db", 4095, "the next valid size is 4096"),
        ("db", (64 << 40) + 4096, "too large: at most 64Ti"),
    ],
)
async def test_names_and_sizes_have_to_make_sense(node: Daemon, name: str, size: int, words: str) -> None:
    async with node.client() as client:
        with pytest.raises(InvalidArgument) as raised:
            await client.create_volume(name, size)
        assert words in raised.value.message
        assert await client.volumes() == []


async def test_the_largest_volume_is_a_thin_one(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", 64 << 40)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        assert connection.size == 64 << 40
        await connection.write((64 << 40) - 4096, b"last" * 1024)
        assert await connection.read((64 << 40) - 4096, 4096) == b"last" * 1024
        assert await connection.read(32 << 40, 4096) == bytes(4096)
        assert (await client.volume("db")).live_bytes < MIB
        assert MIB <= (await client.volume("db")).space.physical_bytes < GIB, "a segment or two"
        await connection.close()


async def test_what_no_volume_can_have_is_refused(node: Daemon) -> None:
    async with node.client() as client:
        with pytest.raises(InvalidArgument, match="a volume of 5 replicas: choose 1 to 4"):
            await client.create_volume("db", GIB, replicas=5)
        with pytest.raises(InvalidArgument, match="a power of two from 1Mi to 64Mi"):
            await client.create_volume("db", GIB, segment_bytes=3 * MIB)
        assert await client.volumes() == []


async def test_more_replicas_than_nodes_run_are_refused(node: Daemon) -> None:
    async with node.client() as client:
        with pytest.raises(
            Unavailable,
            match=r"volume db with 3 replicas needs 3 nodes, and 1 of this cluster run \(node-a\): start more",
        ):
            await client.create_volume("db", GIB, replicas=3)
        assert await client.volumes() == []


async def test_a_volume_without_space_leaves_nothing(node: Daemon) -> None:
    async with node.client() as client:
        made: list[str] = []

        async def fill() -> None:
            for number in range(1000):
                await client.create_volume(f"db{number}", GIB)
                made.append(f"db{number}")

        with pytest.raises(NoSpace):
            await fill()
        assert {volume.name for volume in await client.volumes()} == set(made)
        assert {volume.state for volume in await client.volumes()} == {VolumeState.SERVING}
        await client.delete_volume(made[0])
        assert (await client.create_volume("db", GIB)).state is VolumeState.SERVING, "there is room again"
    assert node.stop() == 0
    node.start()
    async with node.client() as client:
        assert {volume.name for volume in await client.volumes()} == {*made[1:], "db"}


async def test_an_unknown_volume_is_named(node: Daemon) -> None:
    async with node.client() as client:
        for call in (
            client.volume("db"),
            client.grow_volume("db", GIB),
            client.delete_volume("db"),
            client.export_volume("db"),
            client.unexport_volume("db"),
            client.checkpoint("db"),
        ):
            with pytest.raises(NotFound, match="there is no volume 'db'"):
                await call


async def test_a_grown_volume_keeps_its_data_and_shows_its_size_to_new_connections(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        uri = (await client.export_volume("db")).uris[0]
        before = await Connection.connect(uri)
        await before.write(GIB - 4096, b"old " * 1024)
        grown = await client.grow_volume("db", 2 * GIB)
        assert grown.size_bytes == 2 * GIB
        assert (await client.grow_volume("db", 2 * GIB)).size_bytes == 2 * GIB
        with pytest.raises(InvalidArgument, match="it cannot shrink to 1Gi"):
            await client.grow_volume("db", GIB)
        after = await Connection.connect(uri)
        assert after.size == 2 * GIB
        await after.write(2 * GIB - 4096, b"new " * 1024)
        assert await before.read(GIB - 4096, 4096) == b"old " * 1024
        await before.close()
        await after.close()
    node.kill()
    node.start()
    connection = await Connection.connect(uri)
    assert connection.size == 2 * GIB
    await connection.close()


async def test_who_is_connected_reaches_the_grown_part_and_learns_of_it_on_a_second_connection(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        uri = (await client.export_volume("db")).uris[0]
        connections = [await Connection.connect(uri), await Connection.connect(uri, block_status=True)]
        for connection in connections:
            for reaches_beyond in (
                connection.read(GIB, 4096),
                connection.write(GIB, b"early" * 4096),
                connection.trim(GIB, 4096),
            ):
                with pytest.raises(OSError, match="error"):
                    await reaches_beyond
        await client.grow_volume("db", 2 * GIB)
        for number, connection in enumerate(connections):
            at = 2 * GIB - (1 + number) * MIB
            await connection.write(at, b"grown   " * 512)
            assert await connection.read(at, 8192) == b"grown   " * 512 + bytes(4096)
            await connection.trim(at, 4096)
            assert await connection.read(at, 4096) == bytes(4096)
            await connection.zero(at, 4096)
        assert await connections[1].status(2 * GIB - 4096, 4096) == [(4096, 3)]
        with pytest.raises(OSError, match="error"):
            await connections[0].read(2 * GIB, 4096)
        asking = await Connection.connect(uri)
        assert asking.size == 2 * GIB
        for connection in (*connections, asking):
            await connection.close()


async def test_a_client_that_asks_for_room_to_grow_reaches_what_the_volume_grows_by(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        uri = (await client.export_volume("db")).uris[0]
        connection = await Connection.connect(uri.replace("/db?", "/db+?"))
        assert connection.size == 64 << 40
        with pytest.raises(OSError, match="error"):
            await connection.write(GIB, b"early" * 4096)
        await client.grow_volume("db", 2 * GIB)
        await connection.write(GIB, b"grown   " * 512)
        assert await connection.read(GIB, 4096) == b"grown   " * 512
        await connection.close()


async def test_a_volume_in_use_is_deleted_by_force_alone_and_gives_its_space_back(node: Daemon) -> None:
    async with node.client() as client:
        (before,) = await client.devices()
        await client.create_volume("db", GIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        await asyncio.gather(*(connection.write(number * MIB, b"x" * MIB) for number in range(32)))
        with pytest.raises(InUse, match=r"volume db has 1 connection\(s\): end them, or delete with force"):
            await client.delete_volume("db")
        assert await connection.read(0, 4096) == b"x" * 4096
        await client.delete_volume("db", force=True)
        with pytest.raises(ConnectionError):
            await connection.read(0, 4096)
        await connection.close()
        assert await client.volumes() == []
        (after,) = await client.devices()
        assert (after.free_bytes, after.replicas) == (before.free_bytes, 0)
        volume = await client.create_volume("db", GIB)
        assert (volume.epoch, volume.sequence) == (1, 0), "a name that comes again is a new volume"
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        assert await connection.read(0, MIB) == bytes(MIB)
        await connection.close()


async def test_an_export_keeps_its_mode_until_it_is_withdrawn(node: Daemon) -> None:
    async with node.client() as client:
        await client.create_volume("db", GIB)
        with pytest.raises(ConnectionError):
            await Connection.connect(f"nbd+unix:///db?socket={node.directory}/run/nbd.sock")
        export = await client.export_volume("db", read_only=True)
        assert (await client.export_volume("db", read_only=True)) == export
        with pytest.raises(AlreadyExists, match="exported read-only already: unexport it first"):
            await client.export_volume("db")
        connection = await Connection.connect(export.uris[0])
        with pytest.raises(OSError, match="error"):
            await connection.write(0, b"x" * 4096)
        with pytest.raises(InUse, match="unexport with force"):
            await client.unexport_volume("db")
        await client.unexport_volume("db", force=True)
        with pytest.raises(ConnectionError):
            await connection.read(0, 4096)
        await connection.close()
        await client.unexport_volume("db")
        assert (await client.volume("db")).exports == []
        with pytest.raises(ConnectionError):
            await Connection.connect(export.uris[0])
    node.kill()
    node.start()
    async with node.client() as client:
        assert (await client.volume("db")).exports == [], "what was withdrawn does not come back"


async def test_an_export_is_reached_over_tcp_too(daemon: Daemon) -> None:
    daemon.settings["nbd.listen"] = "127.0.0.1:0"
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", GIB)
        unix, tcp = (await client.export_volume("db")).uris
        assert tcp.startswith("nbd://127.0.0.1:")
        near, far = await Connection.connect(unix), await Connection.connect(tcp)
        await near.write(0, b"both" * 1024)
        assert await far.read(0, 4096) == b"both" * 1024
        assert (await client.volume("db")).exports[0].connections == 2
        await near.close()
        await far.close()


async def test_the_control_api_is_reached_over_tcp_too(daemon: Daemon, unused_tcp_port: int) -> None:
    daemon.settings["control.listen"] = f"127.0.0.1:{unused_tcp_port}"
    daemon.start()
    async with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        assert (await client.status()).node == "node-a"


async def test_what_a_client_asked_for_is_done_though_it_did_not_wait(node: Daemon) -> None:
    async with node.client() as client:
        await client.status()  # connects first: later requests arrive at once
        for number in range(1000):
            call = asyncio.create_task(client.create_volume(f"db{number}", GIB))
            await asyncio.sleep(number / 1000)  # increasing delays, until the request is in progress
            call.cancel()
            await asyncio.wait((call,))
            if number >= 10 and await client.volumes():
                break
        for volume in await client.volumes():
            same = await client.create_volume(volume.name, GIB)  # answers once it is open
            assert (same.id, same.state) == (volume.id, VolumeState.SERVING), volume.name
        assert await client.volumes(), "some of them were under way when their client left"


async def test_a_device_that_holds_segments_is_not_removed_and_an_empty_one_is(daemon: Daemon) -> None:
    await daemon.format("second.img", label="second")
    daemon.start()
    async with daemon.client() as client:
        removed = await client.device("second")
        await client.remove_device("second")
        assert [device.label for device in await client.devices()] == [""]
        with pytest.raises(NotFound, match="there is no device 'second' on this node"):
            await client.remove_device("second")
        await client.create_volume("db", GIB)
        with pytest.raises(InUse, match="holds 1 segment replicas: delete the volumes on it first"):
            await client.remove_device(daemon.devices[0])
        with pytest.raises(InUse, match="cannot be added while a volume is open"):
            await client.add_device(removed.path)
        assert (await client.add_device(daemon.devices[0])).path == daemon.devices[0], "one that is there is there"


async def test_the_command_line_reports_the_same_with_its_exit_code(node: Daemon) -> None:
    def iomesh(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    assert iomesh("volume", "create", "db", "1Gi") == (0, "")
    assert iomesh("volume", "create", "db", "1Gi") == (0, "")
    for words, code, said in (
        (("volume", "create", "db", "2Gi"), 4, "exists and is different"),
        (("volume", "create", "x", "many"), 2, "'many'"),
        (("volume", "create", "x", "65Ti"), 2, "too large"),
        (("volume", "show", "x"), 3, "there is no volume 'x'"),
        (("device", "show", "x"), 3, "'x'"),
    ):
        status, message = iomesh(*words)
        assert status == code, message
        assert said in message
