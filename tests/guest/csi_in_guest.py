"""What a guest does with the CSI driver: `python -m guest.csi_in_guest CONTROL ORDERS [soak]`.

CONTROL is the daemon's socket. The daemon runs on the machine of the guest, which is asked at ORDERS (host:port) to
kill it and to start it again. With `soak` the driver is killed after each of its steps, otherwise after those of
attaching.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from csi.test_crashes import life
from iomesh.csi import hooks
from iomesh.csi.mounts import mount_at
from support.csi import GIB, Driver
from support.run import eventually, tool

SECONDS = 600
KILLED_AT = ("stage: recorded", "stage: address recorded", "stage: connected", "expand: device grown",
             "unstage: device gone")  # fmt: skip


def main(control: str, orders: str, soak: str = "") -> None:
    driver = Driver(Path(tempfile.mkdtemp(dir="/var/tmp")) / "d", [control])
    driver.start()
    assert driver.method == "nbd", driver.log.read_text()
    try:
        under_load(driver, lambda: ask(orders))
        print("killed under load", flush=True)
        points = hooks.points("nbd") if soak else KILLED_AT
        driver.kills.write_text("\n".join(points))
        restarts = driver.restarts
        life(driver, "xfs") if soak else short_life(driver)
        assert driver.kills.read_text() == "" and driver.restarts == restarts + len(points)
        print("killed at each step", flush=True)
        assert driver.remains() == []
    except BaseException:
        print(driver.log.read_text(), flush=True)
        raise
    driver.stop()


def short_life(driver: Driver) -> None:
    volume = driver.create("short", GIB)
    driver.stage(volume)
    folder = driver.publish(volume)
    (folder / "file").write_text("kept")
    driver.expand(volume.volume_id, 2 * GIB)
    assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 1.8 * GIB
    driver.unpublish(volume.volume_id)
    driver.unstage(volume.volume_id)
    driver.delete(volume.volume_id)


def under_load(driver: Driver, restart_daemon: Callable[[], None]) -> None:
    volume = driver.create("loaded", GIB)
    driver.stage(volume)
    folder = driver.publish(volume)
    words = [
        *(tool("fio", "fio"), "--name=load", f"--directory={folder}", "--size=8M", "--rw=randwrite", "--bs=4k"),
        *("--ioengine=libaio", "--iodepth=8", "--direct=1", "--fsync=32", "--verify=crc32c", "--do_verify=1"),
        *("--loops=1000", "--verify_fatal=1", "--verify_state_save=0", "--rate_iops=200"),
    ]
    log = driver.folder / "fio.log"
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=output) as load:
        try:
            for away in (False, True):
                until_written(folder)
                if away:
                    driver.kill()
                restart_daemon()
                if away:
                    driver.start()
                until_written(folder)
                assert load.poll() is None, log.read_text()
            driver.expand(volume.volume_id, 2 * GIB)
            assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 1.8 * GIB
        finally:
            load.terminate()
            load.wait()
    assert "err= 0" in log.read_text(), log.read_text()
    (folder / "file").write_text("kept")
    driver.unpublish(volume.volume_id)
    driver.unstage(volume.volume_id)
    driver.stage(volume)
    assert (driver.publish(volume) / "file").read_text() == "kept"
    driver.unpublish(volume.volume_id)
    driver.unstage(volume.volume_id)
    driver.delete(volume.volume_id)


def until_written(folder: Path) -> None:
    """Until the device has written some more."""
    found = mount_at(str(folder))
    assert found is not None
    statistics = Path(f"/sys/dev/block/{found.device}/stat")

    def sectors() -> int:
        return int(statistics.read_text().split()[6])

    before = sectors()
    eventually(lambda: sectors() > before + 1000, what="the load writes", seconds=SECONDS)


def ask(orders: str) -> None:
    host, _, port = orders.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        assert connection.recv(100) == b"done"


if __name__ == "__main__":
    main(*sys.argv[1:])
