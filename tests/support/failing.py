"""A device with injected I/O errors: a trial's device file behind nbdkit's error filter, with nbdfuse in its place.

The daemon opens what looks like the same file. While a trigger file exists, all or some writes or reads of the device
below fail with EIO.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.run import end, eventually, run, tool


class FailingDevice:
    """Replaces `device` (of a trial that is not running) until `remove`."""

    def __init__(self, device: Path, room: Path, *, write_rate: str = "100%", read_rate: str = "100%") -> None:
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            pytest.skip("needs root and /dev/fuse: nbdfuse mounts")
        self.device = device
        self.folder = room / f"failing-{device.stem}"
        self.folder.mkdir()
        self._backing = self.folder / "backing"
        self._mount = self.folder / "fuse"
        self._mount.mkdir()
        device.rename(self._backing)
        socket = self.folder / "s"
        self._said = self.folder / "nbdkit.txt"
        self._server = subprocess.Popen(
            [
                tool("nbdkit", "nbdkit"),
                "-f",
                "-U",
                socket,
                "--filter=error",
                "file",
                self._backing,
                "error-pwrite=EIO",
                f"error-pwrite-rate={write_rate}",
                f"error-pwrite-file={self._trigger('write')}",
                "error-pread=EIO",
                f"error-pread-rate={read_rate}",
                f"error-pread-file={self._trigger('read')}",
            ],
            stderr=self._said.open("wb"),
        )
        uri = f"nbd+unix:///?socket={socket}"
        eventually(
            lambda: run([tool("nbdinfo", "libnbd-bin"), "--size", uri], succeeds=False).returncode == 0,
            what="nbdkit serves the device",
        )
        self._fuse = subprocess.Popen([tool("nbdfuse", "nbdfuse"), "-C", "4", self._mount / "disk", uri])
        eventually((self._mount / "disk").exists, what="nbdfuse makes a file of the device")
        device.symlink_to(self._mount / "disk")

    def fail(self, what: str) -> None:
        """Fails "write" or "read" requests from now on."""
        self._trigger(what).touch()

    def freeze(self) -> None:
        """From now on requests hang: neither data nor an error is returned."""
        self._server.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._server.pid}/task")
        eventually(
            lambda: all((each / "stat").read_text().rpartition(")")[2].split()[0] == "T" for each in threads.iterdir()),
            what="nbdkit stands still",
        )

    def thaw(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def injected(self, what: str) -> int:
        """Number of writes or reads that have failed so far."""
        return self._said.read_bytes().count(
            b"injecting EIO error into " + {"write": b"pwrite", "read": b"pread"}[what]
        )

    def heal(self) -> None:
        for what in ("write", "read"):
            self._trigger(what).unlink(missing_ok=True)

    def remove(self) -> None:
        """Restores the plain file; the daemon must not run."""
        if run(["umount", self._mount], succeeds=False).returncode != 0:
            run(["umount", "-l", self._mount], succeeds=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._fuse.wait(timeout=10)
        for process in (self._fuse, self._server):
            end(process.pid)
            process.wait()
        if self._backing.exists():
            self.device.unlink(missing_ok=True)
            self._backing.rename(self.device)

    def _trigger(self, what: str) -> Path:
        return self.folder / f"fail-{what}"
