"""A node that cannot run reports why, which key or device is concerned, and what to do; it leaves nothing behind."""

from __future__ import annotations

import asyncio
import copy
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from iomesh.node.devices import open_device
from support.daemon import Daemon
from support.trial import iomesh_command


def leaves_nothing(daemon: Daemon) -> None:
    for path in daemon.devices:
        if Path(path).is_file():
            open_device(path).close()
    run = daemon.directory / "run"
    assert not run.exists() or list(run.iterdir()) == []


async def test_a_second_daemon_with_the_same_state_is_refused(node: Daemon) -> None:
    assert node.refuse() == (
        5,
        f"state_dir: another iomesh daemon is running with {node.directory}/state: stop it, or set another state_dir",
    )


async def test_a_second_daemon_at_the_same_socket_is_refused(node: Daemon) -> None:
    second = copy.copy(node)
    second.settings = {"state_dir": f"{node.directory}/other"}
    second.devices = []
    code, message = second.refuse()
    assert code == 5
    assert message.startswith(f"control.socket: a process listens on {node.control}")
    second.settings |= {"control.socket": f"{node.directory}/other.sock"}
    second.devices = node.devices
    code, message = second.refuse()
    assert code == 5
    assert f"{node.devices[0]} is held by another iomesh process" in message
    second.settings |= {"devices": ""}
    async with node.client() as client:
        assert (await client.status()).ready, "the first one is not disturbed"


async def test_a_second_daemon_on_the_same_device_is_refused(node: Daemon) -> None:
    second = copy.copy(node)
    second.settings = {"state_dir": f"{node.directory}/other", "run_dir": f"{node.directory}/other"}
    assert node.process
    holder = f"process {node.process.pid} has its lock"
    assert second.refuse() == (
        5,
        f"{node.devices[0]} is held by another iomesh process ({holder}): stop that one first",
    )
    assert not list((node.directory / "other").glob("*.db")), (
        "a node that was refused has left nothing that would bind the next one to its cluster"
    )


async def test_a_killed_daemon_does_not_count_as_a_second_one(node: Daemon) -> None:
    for _ in range(5):
        node.kill()
        node.start()
    assert (node.directory / "run" / "control.sock").is_socket()


async def test_a_device_of_another_cluster_is_refused_with_both(daemon: Daemon) -> None:
    other = uuid.uuid4()
    foreign = await daemon.make_device("foreign.img", cluster=other)
    daemon.devices.append(foreign)
    code, message = daemon.refuse()
    assert code == 6
    assert message.startswith(f"{foreign}: ")
    assert f"this node is of cluster {daemon.cluster}" in message
    leaves_nothing(daemon)


async def test_without_a_configured_cluster_the_node_is_of_that_of_its_devices(daemon: Daemon) -> None:
    cluster, daemon.cluster = daemon.cluster, None  # its one device is of that
    for _ in range(2):  # the metadata is created, and exists the second time
        daemon.start()
        async with daemon.client() as client:
            assert (await client.status()).cluster == str(cluster)
        assert daemon.stop() == 0
    other = uuid.uuid4()
    foreign = await daemon.make_device("foreign.img", cluster=other)
    daemon.devices = [foreign]
    code, message = daemon.refuse()
    assert code == 6
    assert message.startswith(f"{foreign}: ") and f"this node is of cluster {cluster}" in message


async def test_devices_of_several_clusters_are_refused_and_bind_no_metadata(daemon: Daemon) -> None:
    clusters = [daemon.cluster, uuid.uuid4()]
    await daemon.format("other.img", cluster=clusters[1])
    daemon.cluster = None
    code, message = daemon.refuse()
    assert code == 6
    assert message.startswith("devices: they belong to several clusters (")
    assert all(f"{path} of {cluster}" in message for path, cluster in zip(daemon.devices, clusters, strict=True))
    assert not list(daemon.directory.glob("**/*.db"))
    leaves_nothing(daemon)


async def test_a_foreign_device_does_not_determine_the_cluster(daemon: Daemon) -> None:
    daemon.cluster = None
    path = daemon.directory / "empty.img"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    daemon.devices = [str(path)]
    assert daemon.refuse() == (6, f"{path} is not an iomesh device: `iomesh device format {path}` makes it one")
    assert not list(daemon.directory.glob("**/*.db"))
    leaves_nothing(daemon)


@pytest.mark.parametrize("content", ["nothing", "ext4"])
async def test_what_is_no_device_of_ours_is_refused(daemon: Daemon, content: str) -> None:
    path = daemon.directory / "other.img"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    if content == "ext4":
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
    daemon.devices.append(str(path))
    before = path.read_bytes()
    code, message = daemon.refuse()
    assert code == 6
    assert message.startswith(f"{path}: ")
    assert "`iomesh device format`" in message
    assert path.read_bytes() == before
    leaves_nothing(daemon)


async def test_a_missing_device_is_named(daemon: Daemon) -> None:
    daemon.devices.append(f"{daemon.directory}/absent.img")
    assert daemon.refuse() == (3, f"{daemon.directory}/absent.img: there is no such device or file")
    leaves_nothing(daemon)


async def test_metadata_of_another_cluster_is_refused(node: Daemon) -> None:
    node.stop()
    cluster, node.cluster = node.cluster, uuid.uuid4()
    code, message = node.refuse()
    assert code == 6
    assert str(node.cluster) in message and str(cluster) in message


async def test_a_port_that_is_taken_is_named_and_everything_undone(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for key in ("metrics.listen", "nbd.listen", "control.listen"):
            daemon.settings = {key: f"127.0.0.1:{taken.getsockname()[1]}"}
            code, message = await asyncio.to_thread(daemon.refuse)
            assert code == 5, message
            assert key in message
            leaves_nothing(daemon)


@pytest.mark.parametrize("key", ["control.socket", "nbd.socket"])
async def test_a_file_in_a_sockets_place_is_left_alone(daemon: Daemon, key: str) -> None:
    path = daemon.directory / "precious"
    path.write_text("data")
    daemon.settings = {key: str(path)}
    code, message = daemon.refuse()
    assert (code, message) == (5, f"{key}: {path} exists and is not a socket: set another path, or remove it")
    assert path.read_text() == "data"


async def test_a_key_that_does_not_exist_is_named_with_the_nearest(daemon: Daemon) -> None:
    daemon.settings = {"engine.reactor": 2}
    assert daemon.refuse() == (2, "settings: there is no key 'engine.reactor'; did you mean 'engine.reactors'?")
    done = subprocess.run(
        [iomesh_command(), "daemon", "run", "--config", f"{daemon.directory}/absent.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "absent.toml does not exist" in done.stderr
