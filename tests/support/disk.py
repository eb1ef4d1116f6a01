"""A volume as a local block device: nbdfuse presents it as a file, a loop device (direct I/O) presents the file as a
disk.

Teardown must also work after the server was killed, when every layer above returns errors.
"""

import os
import subprocess
from pathlib import Path

import pytest

from support.run import alive, end, eventually, run, tool


class Disk:
    def __init__(self, uri: str, directory: Path, *, connections: int = 4) -> None:
        self.uri = uri
        self.connections = connections
        self.folder = directory / "fuse"
        self.mount_point = directory / "mount"
        self.file = self.folder / "disk"
        self.device = ""
        self._fuse: subprocess.Popen[bytes] | None = None

    def attach(self) -> None:
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            pytest.skip("needs root and /dev/fuse: loop devices and mounts")
        for folder in (self.folder, self.mount_point):
            folder.mkdir(parents=True, exist_ok=True)
        self._fuse = subprocess.Popen(
            [tool("nbdfuse", "nbdfuse"), "-C", str(self.connections), str(self.file), self.uri]
        )
        eventually(lambda: self.file.exists() or self._fuse_ended(), what=f"nbdfuse makes a file of {self.uri}")
        assert not self._fuse_ended(), f"nbdfuse could not connect to {self.uri}"
        self.device = run([tool("losetup", "mount"), "--direct-io=on", "--find", "--show", self.file]).stdout.strip()

    def make(self, kind: str) -> None:
        """Creates a filesystem: xfs or ext4."""
        if kind == "xfs":
            run([tool("mkfs.xfs", "xfsprogs"), "-q", "-f", self.device])
        else:
            run(
                [
                    tool(f"mkfs.{kind}", "e2fsprogs"),
                    "-q",
                    "-F",
                    "-E",
                    "lazy_itable_init=0,lazy_journal_init=0",
                    self.device,
                ]
            )

    def mount(self) -> Path:
        run(["mount", self.device, self.mount_point])
        return self.mount_point

    def unmount(self) -> None:
        run(["umount", self.mount_point])

    def check(self, kind: str) -> None:
        """fsck without repair; fails the test if the filesystem is not clean."""
        if kind == "xfs":
            run([tool("xfs_repair", "xfsprogs"), "-n", self.device])
        else:
            run([tool("e2fsck", "e2fsprogs"), "-fn", self.device])

    def detach(self) -> None:
        """Removes all layers, whether or not the server runs. What fails to unmount is unmounted lazily and removed
        when the last process closes it.
        """
        if os.path.ismount(self.mount_point) and run(["umount", self.mount_point], succeeds=False).returncode != 0:
            run(["umount", "-l", self.mount_point], succeeds=False)
        if self.device:
            run([tool("losetup", "mount"), "-d", self.device], succeeds=False)
            eventually(lambda: not self._loop_holds_file(), what=f"{self.device} lets go of {self.file}", seconds=20)
            self.device = ""
        if self._fuse is not None:
            if run(["umount", self.folder], succeeds=False).returncode != 0:
                run(["umount", "-l", self.folder], succeeds=False)
            try:
                self._fuse.wait(timeout=10)
            except subprocess.TimeoutExpired:
                end(self._fuse.pid)
                self._fuse.wait()
            self._fuse = None

    def _fuse_ended(self) -> bool:
        return self._fuse is None or self._fuse.poll() is not None or not alive(self._fuse.pid)

    def _loop_holds_file(self) -> bool:
        backing = Path("/sys/block") / Path(self.device).name / "loop" / "backing_file"
        try:
            return str(self.file) in backing.read_text()
        except OSError:
            return False
