"""What nodes do with volumes: who may use one, and what happens to those in use when a process ends."""

import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from iomesh.csi import csi_pb2 as pb
from iomesh.csi import registration_pb2 as registration
from iomesh.csi.mounts import mount_at
from support.csi import GIB, Driver, Refused, from_volume, mounted, processes, raw
from support.run import end, eventually, run, tool
from support.trial import Trial, iomesh_command

_Mode = pb.VolumeCapability.AccessMode


def refused(driver: Driver, act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value


def on_node(driver: Driver, node: str) -> pb.TopologyRequirement:
    key = next(iter(driver.call("NodeGetInfo", pb.NodeGetInfoRequest()).accessible_topology.segments))
    return pb.TopologyRequirement(preferred=[pb.Topology(segments={key: node})])


def drop(driver: Driver, volume: pb.Volume, *pods: str) -> None:
    for pod in pods:
        driver.unpublish(volume.volume_id, pod=pod)
    driver.unstage(volume.volume_id)


def test_one_pod_alone_uses_a_read_write_once_pod_volume(driver: Driver) -> None:
    alone, shared = mounted(_Mode.SINGLE_NODE_SINGLE_WRITER), mounted(_Mode.SINGLE_NODE_MULTI_WRITER)
    for capability, second_fails in ((alone, True), (shared, False)):
        volume = driver.create("pods", GIB, volume_capabilities=[capability])
        driver.stage(volume, capability)
        first = driver.publish(volume, capability, pod="first")
        driver.publish(volume, capability, pod="first")
        (first / "file").write_text("from the first")
        if second_fails:
            error = refused(driver, lambda c=capability, v=volume: driver.publish(v, c, pod="second"))  # type: ignore[misc]
            assert error.code == "FAILED_PRECONDITION" and "ReadWriteOncePod" in error.message
            drop(driver, volume, "first")
        else:
            assert (driver.publish(volume, capability, pod="second") / "file").read_text() == "from the first"
            error = refused(driver, lambda v=volume: driver.unstage(v.volume_id))  # type: ignore[misc]
            assert error.code == "FAILED_PRECONDITION" and "unpublish" in error.message
            drop(driver, volume, "first", "second")
        driver.delete(volume.volume_id)


def test_a_volume_of_one_node_moves_to_its_next_pods_node_and_is_not_on_two(new_driver: Callable[..., Driver]) -> None:
    a, b = new_driver(0), new_driver(1)
    volume = a.create("wandering", GIB, parameters={"replicas": "3"}, accessibility_requirements=on_node(a, "a"))
    a.stage(volume)
    (a.publish(volume) / "file").write_text("from a")
    error = refused(b, lambda: b.stage(volume))
    assert error.code == "FAILED_PRECONDITION" and "one node" in error.message
    b.unstage(volume.volume_id)
    drop(a, volume, "pod")
    b.stage(volume)
    assert (b.publish(volume) / "file").read_text() == "from a"
    assert b.owner_of(volume.volume_id) == "b"
    drop(b, volume, "pod")
    a.delete(volume.volume_id)


def test_a_block_volume_of_many_nodes_is_one_device_on_all(new_driver: Callable[..., Driver]) -> None:
    drivers, many = [new_driver(0), new_driver(1)], raw(_Mode.MULTI_NODE_MULTI_WRITER)
    volume = drivers[0].create("shared", GIB, volume_capabilities=[many])
    devices = []
    for driver in drivers:
        driver.stage(volume, many)
        devices.append(driver.publish(volume, many))
    drivers[0].expand(volume.volume_id, 2 * GIB, block=True)
    drivers[1].expand(volume.volume_id, 2 * GIB, block=True)
    for source, target, at in ((0, 1, 0), (1, 0, 2 * GIB - 4096)):
        with devices[source].open("rb+", buffering=0) as device:
            device.seek(at)
            device.write(f"from {source}".encode().ljust(4096, b"."))
            os.fsync(device.fileno())
        block, words = at // 4096, ["bs=4096", "count=1", "iflag=direct"]
        read = run(["dd", f"if={devices[target]}", f"skip={block}", *words])
        assert read.stdout.startswith(f"from {source}")
    stats = pb.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=str(devices[0]))
    (usage,) = drivers[0].call("NodeGetVolumeStats", stats).usage
    assert usage.total == 2 * GIB
    for driver in drivers:
        drop(driver, volume, "pod")
    drivers[0].delete(volume.volume_id)


def test_readers_on_many_nodes_see_what_one_writer_left(new_driver: Callable[..., Driver]) -> None:
    drivers, readers = [new_driver(0), new_driver(1)], mounted(_Mode.MULTI_NODE_READER_ONLY)
    volume = drivers[0].create("read", GIB, volume_capabilities=[mounted(), readers])
    error = refused(drivers[0], lambda: drivers[0].stage(volume, readers))
    assert error.code == "FAILED_PRECONDITION" and "empty" in error.message
    drivers[0].unstage(volume.volume_id)
    drivers[0].stage(volume)
    (drivers[0].publish(volume) / "file").write_text("left")
    drop(drivers[0], volume, "pod")
    for driver in drivers:
        driver.stage(volume, readers)
        folder = driver.publish(volume, readers)
        assert (folder / "file").read_text() == "left"
        with pytest.raises(OSError, match="Read-only"):
            (folder / "file").write_text("more")
    for driver in drivers:
        drop(driver, volume, "pod")
    drivers[0].delete(volume.volume_id)


def test_a_file_system_is_kept_although_another_one_is_asked_for(driver: Driver) -> None:
    volume = driver.create("kept", GIB)
    driver.stage(volume, mounted(fs_type="ext4"))
    driver.unstage(volume.volume_id)
    error = refused(driver, lambda: driver.stage(volume, mounted(fs_type="xfs")))
    assert error.code == "FAILED_PRECONDITION" and "holds ext4" in error.message
    assert "ext4" in run(["findmnt", "-no", "FSTYPE", str(driver.stage(volume))]).stdout
    driver.unstage(volume.volume_id)
    driver.delete(volume.volume_id)


def test_a_volume_that_another_node_owns_grows_in_use(driver: Driver) -> None:
    """Whose daemon hears of each new size a moment after the owner has answered."""
    volume = driver.create("from-afar", GIB, accessibility_requirements=on_node(driver, "c"))
    driver.stage(volume)
    folder = driver.publish(volume)
    for size in range(2, 10):
        driver.expand(volume.volume_id, size * GIB)
        assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 0.9 * size * GIB
    assert driver.owner_of(volume.volume_id) == "c"
    drop(driver, volume, "pod")
    driver.delete(volume.volume_id)


def test_an_ext4_that_is_not_in_use_grows_when_it_is_staged(driver: Driver) -> None:
    volume = driver.create("growing", GIB, parameters={"fsType": "ext4"})
    driver.stage(volume)
    (driver.publish(volume) / "file").write_text("kept")
    drop(driver, volume, "pod")
    wanted = pb.CapacityRange(required_bytes=3 * GIB)
    grown = pb.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=wanted)
    driver.call("ControllerExpandVolume", grown)
    clone = driver.create("grown", 4 * GIB, volume_content_source=from_volume(volume.volume_id))
    for each, size in ((volume, 3 * GIB), (clone, 4 * GIB)):
        driver.stage(each)
        folder = driver.publish(each)
        assert (folder / "file").read_text() == "kept"
        assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 0.9 * size
    for each in (clone, volume):
        drop(driver, each, "pod")
        driver.delete(each.volume_id)


def test_a_volume_in_use_does_not_notice_that_the_driver_is_killed(driver: Driver) -> None:
    volume = driver.create("steady", GIB)
    driver.stage(volume)
    folder = driver.publish(volume)
    with (folder / "file").open("wb") as file:
        file.write(b"before")
        driver.kill()
        file.write(b" and after")
        file.flush()
        os.fsync(file.fileno())
    driver.start()
    assert driver.publish(volume) == folder and (folder / "file").read_bytes() == b"before and after"
    stats = pb.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=str(folder))
    usage = {each.unit: each for each in driver.call("NodeGetVolumeStats", stats).usage}
    assert 0 < usage[pb.VolumeUsage.BYTES].used < usage[pb.VolumeUsage.BYTES].total <= GIB
    assert usage[pb.VolumeUsage.INODES].available > 0
    drop(driver, volume, "pod")
    driver.delete(volume.volume_id)


@pytest.mark.parametrize("replicas", ["1", "2"])
def test_writes_wait_while_the_nodes_daemon_is_restarted(driver: Driver, cluster: Trial, replicas: str) -> None:
    volume = driver.create(
        "waiting", GIB, parameters={"replicas": replicas}, accessibility_requirements=on_node(driver, "a")
    )
    driver.stage(volume)
    folder = driver.publish(volume)
    written, stop = [0], threading.Event()

    def write() -> None:
        with (folder / "file").open("wb", buffering=0) as file:
            while not stop.is_set():
                file.write(f"{written[0]:015}\n".encode() * 256)
                os.fsync(file.fileno())
                written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        eventually(lambda: written[0] > 10, what="it writes")
        pid = next(int(node["pid"]) for node in cluster.look()["nodes"] if node["name"] == "a")
        end(pid, signal.SIGKILL)
        cluster.start()
        then = written[0]
        eventually(lambda: written[0] > then + 10, what="it writes again")
    finally:
        stop.set()
        writer.join()
    lines = (folder / "file").read_bytes().splitlines()
    assert [int(line) for line in lines[::256]] == list(range(written[0]))
    drop(driver, volume, "pod")
    driver.delete(volume.volume_id)


def test_load_does_not_notice_that_the_daemon_and_the_driver_are_killed(
    driver: Driver, cluster: Trial, room: Path
) -> None:
    """The daemon while the driver is away, too, which finds a device without a connection when it starts."""
    volume = driver.create("loaded", GIB, accessibility_requirements=on_node(driver, "a"))
    driver.stage(volume)
    folder = driver.publish(volume)
    log = room / "fio.log"
    words = [
        *(
            tool("fio", "fio"),
            "--name=load",
            "--invalidate=0",
            f"--directory={folder}",
            "--size=32M",
            "--rw=randwrite",
            "--bs=4k",
        ),
        *("--ioengine=libaio", "--iodepth=8", "--direct=1", "--fsync=32", "--verify=crc32c", "--do_verify=1"),
        *("--loops=1000", "--verify_fatal=1", "--verify_state_save=0", "--rate_iops=500"),
    ]
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=output) as load:
        try:
            for away in (False, True):
                writes = written_sectors(folder)
                eventually(lambda then=writes: written_sectors(folder) > then + 1000, what="it writes")  # type: ignore[misc]
                if away:
                    driver.kill()
                end(next(int(node["pid"]) for node in cluster.look()["nodes"] if node["name"] == "a"), signal.SIGKILL)
                cluster.start()
                if away:
                    driver.start()
                writes = written_sectors(folder)
                eventually(lambda then=writes: written_sectors(folder) > then + 1000, what="it writes again")  # type: ignore[misc]
                assert load.poll() is None, log.read_text()
            driver.expand(volume.volume_id, 2 * GIB)
            assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 1.8 * GIB
        finally:
            load.terminate()
            load.wait()
    assert "err= 0" in log.read_text(), log.read_text()
    with (folder / "file").open("wb") as file:
        file.write(b"as before")
        os.fsync(file.fileno())
    drop(driver, volume, "pod")
    driver.delete(volume.volume_id)


def written_sectors(folder: Path) -> int:
    """Of the device below a file system."""
    device = mount_at(str(folder))
    assert device is not None
    return int(Path(f"/sys/dev/block/{device.device}/stat").read_text().split()[6])


def test_a_volume_whose_server_was_killed_is_attached_anew(driver: Driver) -> None:
    if driver.method == "nbd":
        pytest.skip("the kernel has no process that could be killed")
    volume = driver.create("broken", GIB)
    driver.stage(volume)
    folder = driver.publish(volume)
    (folder / "file").write_text("kept")
    os.sync()
    for pid in processes(str(driver.folder / "state")):
        end(pid)
    health = driver.call("NodeGetVolumeHealth", pb.NodeGetVolumeHealthRequest(volume_id=volume.volume_id))
    assert [each.reason for each in health.volume_health.health_statuses] == ["DeviceFailed"]
    driver.unpublish(volume.volume_id)
    driver.stage(volume)
    assert (driver.publish(volume) / "file").read_text() == "kept"
    for pid in processes(str(driver.folder / "state")):  # and one that is broken can be given up
        end(pid)
    drop(driver, volume, "pod")
    driver.delete(volume.volume_id)


def test_what_serves_a_volume_outlives_the_driver_with_an_attach_server(
    new_driver: Callable[..., Driver], room: Path
) -> None:
    state = room / "d0" / "state"
    driver = new_driver(0, "--attach-server", str(state / "attach.sock"))
    if driver.method == "nbd":
        pytest.skip("the kernel serves it")
    with attach_server(state) as server:
        volume = driver.create("served", GIB)
        driver.stage(volume)
        folder = driver.publish(volume)
        serving = processes(str(state / "volumes"))
        assert serving and all(server.pid in ancestors(pid) for pid in serving)
        driver.kill()
        server.terminate()
        (folder / "file").write_text("written without a driver")
        os.sync()
        driver.start()
        drop(driver, volume, "pod")
        assert server.wait() == 0
    error = refused(driver, lambda: driver.call("NodeStageVolume", driver.stage_request(volume)))
    assert error.code == "UNAVAILABLE" and "iomesh-attach" in error.message
    with attach_server(state) as server:
        driver.stage(volume)
        assert (driver.publish(volume) / "file").read_text() == "written without a driver"
        drop(driver, volume, "pod")
        server.terminate()
    driver.delete(volume.volume_id)


def attach_server(state: Path) -> subprocess.Popen[bytes]:
    with (state.parent / "attach.log").open("ab") as log:
        return subprocess.Popen(
            [iomesh_command(), "csi", "attach-server", "--state-dir", str(state)], stdout=log, stderr=log
        )


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_the_driver_makes_itself_known_and_serves_its_health(new_driver: Callable[..., Driver], room: Path) -> None:
    tool("findmnt", "util-linux")
    registry = room / "r"
    driver = new_driver(0, "--registration-dir", str(registry), "--health-listen", "127.0.0.1:0")
    socket = registry / "csi.iomesh.dev-reg.sock"
    eventually(socket.exists, what="the kubelet sees the driver")
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        call = channel.unary_unary(
            "/pluginregistration.Registration/GetInfo",
            request_serializer=registration.InfoRequest.SerializeToString,
            response_deserializer=registration.PluginInfo.FromString,
        )
        info = call(registration.InfoRequest())
        assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "csi.iomesh.dev", str(driver.socket))
        assert info.supported_versions == ["1.0.0"]
    address = driver.health_address()
    for page in ("healthz", "readyz"):
        assert eventually_ok(f"http://{address}/{page}")
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        tell = channel.unary_unary(
            "/pluginregistration.Registration/NotifyRegistrationStatus",
            request_serializer=registration.RegistrationStatus.SerializeToString,
            response_deserializer=registration.RegistrationStatusResponse.FromString,
        )
        tell(registration.RegistrationStatus(plugin_registered=True))
        tell(registration.RegistrationStatus(plugin_registered=False, error="no such plugin"))
    eventually(driver.ended, what="a driver that the kubelet refuses ends")
    assert "no such plugin" in driver.log.read_text()
    assert not socket.exists()


def eventually_ok(url: str) -> bool:
    def ok() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return int(answer.status) == 200
        except urllib.error.HTTPError:
            return False

    eventually(ok, what=f"{url} is ok")
    return True
